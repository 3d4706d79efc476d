#ifndef ENGINE_RUN_RUN_H
#define ENGINE_RUN_RUN_H
/* The life of one run: a checked graph becomes keys, the keys say what exists and what must run, and worker threads
 * make what is missing. `scout plan` is the first half of it, on a store opened read-only. Nothing here ends the
 * process, and text goes only to the streams that the options name. */
#include <stdatomic.h>

#include "engine/base/str.h"
#include "engine/graph/graph.h"

struct queue;

/* An accelerator. Devices with the same `kernels` are of one kind: they give the same bits, so no key names one. */
struct run_device {
    const struct kernels *kernels;
    const char *family; /* "cuda" */
    char name[16];      /* "cuda:0" */
    const char *model;  /* "NVIDIA H100 80GB HBM3" */
    const char *pci;    /* "0000:1b:00.0", "" unknown */
    int index;          /* what device_open and queue_new call it */
    uint64_t memory;    /* bytes */
};

/* The compute back end, as the command line hands it over: the engine knows no kernel, it passes them on. */
struct run_backend {
    const struct kernels *kernels;    /* the CPU's; NULL: nodes that compute nothing (tests) */
    const char *name;                 /* "cpu avx512", for the machine line */
    const struct run_device *devices; /* in the order of their indices; run_open copies them */
    size_t n_devices;
    const char *no_device;            /* one line: why there is none; NULL: unknown */
    bool expects_device;              /* the build could use one, so a run without one says why */
    /* Start a device from the calling thread, which is bound to cores near it, and ask how many bytes are free on it.
     * ERR_DEVICE when it does not work. Called again, it only looks whether it still does. */
    bool (*device_open)(int index, uint64_t *free_memory, struct err *e);
    /* What a user should know of a device that was opened, lines; "" for nothing. NULL: never anything. */
    const char *(*device_note)(int index);
    /* A queue on that device, or on the CPU (TENSOR_HOST), whose host work uses `threads` threads; both NULL when
     * kernels is NULL. */
    bool (*queue_new)(struct queue **out, const struct kernels *k, int device, int threads, struct err *e);
    void (*queue_free)(struct queue *q);
};

enum run_output {
    RUN_SILENT = 0, /* run.log only */
    RUN_PLAIN,      /* one line per step */
    RUN_TERMINAL,   /* a live line per running node, redrawn in place */
    RUN_JSON,       /* one object per line */
};

struct run_options {
    const char *dir;            /* RUN; NULL: runs/<graph name> */
    const char *store;          /* STORE; NULL: the one that this run used last, at first RUN/store */
    const char *const *targets; /* names of the nodes that must be there at the end; none: all that nobody reads */
    size_t n_targets;
    const char *device;         /* auto, cpu, cuda, cuda:1; NULL: auto. Anything but auto goes before a node's `on:` */
    int jobs;                   /* most nodes at once, 0: as many as there are cores */
    int threads;                /* cores of the run, 0: all that the process may use */
    uint64_t memory;            /* bytes that all running nodes may declare together, 0: the machine's */
    bool plan_only;             /* nothing is created, locked or hashed at length: run_plan and the views only */
    enum run_output output;
    FILE *out;                  /* where `output` goes, NULL with RUN_SILENT */
    struct run_backend backend;
    const char *command_line, *version; /* for run.h5; NULL: "" */
    const char *topology;       /* of another machine (place.h), for tests; NULL: this machine */
};

struct run;

/* Make RUN, take its lock, open the store. `g` and the texts of `o` are borrowed until run_close. ERR_USAGE names an
 * unknown target; ERR_RESOURCE: no such device, directory not writable or in use. */
bool run_open(struct run **out, const struct graph *g, const struct run_options *o, struct err *e) ERR_CHECK;
void run_close(struct run *r); /* NULL is fine */

/* Keys, states and reasons of all nodes. Hashes sources that are not in the digest cache, unless plan_only: then what
 * depends on them is unknown. Called by run_execute; call it directly only with plan_only. */
bool run_plan(struct run *r, struct err *e) ERR_CHECK;

struct run_summary {
    size_t needed, reused, done, failed, blocked, interrupted, waiting;
    bool started;      /* false: something was found wrong before any node started */
    bool stopped;      /* run_stop came before all was done */
    bool resource;     /* some node failed for want of a resource */
    double seconds;
};
/* Plan, then make everything that the targets want. Returns true when the run went through, whatever its nodes did:
 * failures of nodes are in the summary and in the views. False: it could not start (summary->started is false) or the
 * engine itself failed. */
bool run_execute(struct run *r, struct run_summary *summary, struct err *e) ERR_CHECK;
/* From any thread, once or more: start no node, ask the running ones to stop at their next row. */
void run_stop(struct run *r);

/* One node as the run sees it now. Texts are borrowed from the run. */
struct run_view {
    const char *name, *type;
    const char *state;   /* as in run.h5, or while planned: "run", "reuse", "unknown", "not needed" */
    const char *reason;  /* one line: why it runs, is reused, or cannot be told */
    const struct err *error; /* of a failed node, else NULL */
    bool needed, has_key;
    struct key key;
    double seconds;      /* NaN if it did not run */
    const struct index_stat *stats;
    size_t n_stats;
};
size_t run_count(const struct run *r);
void run_view(const struct run *r, size_t i, struct run_view *out);
/* Add `,"stats":{name: value, ...}` to a JSON object; nothing when there are none. */
void run_stats_json(const struct index_stat *stats, size_t n, struct str *s);
/* Absolute paths. */
const char *run_dir(const struct run *r);
const char *run_store_path(const struct run *r);

/* Why node i would run again: its record (parameters, inputs, sources, version, numeric mode) against that of its last
 * result as run.h5 and the store know it, followed through changed inputs to the nodes where the change began. Text of
 * several lines, in *out. Call after run_plan with plan_only. */
bool run_explain(struct run *r, size_t i, struct str *out, struct err *e) ERR_CHECK;

/* The STORE that the run in directory `dir` used: what its store.path says, else dir/store. ERR_INPUT when store.path
 * names one that is gone. */
bool run_find_store(const char *dir, char *out, size_t size, struct err *e) ERR_CHECK;

#endif
