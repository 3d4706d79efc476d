#ifndef ENGINE_RUN_STATE_H
#define ENGINE_RUN_STATE_H
/* What a run and its nodes hold while they live; shared by the files of engine/run only.
 *
 * Life of a node:  UNKNOWN -> UNNEEDED | REUSED | WAITING;  WAITING -> READY -> OPENING -> ASKING -> RUNNING -> DONE,
 * FAILED or INTERRUPTED;  WAITING -> BLOCKED when an input failed;  REUSED or DONE -> WAITING when its object turns out
 * to be damaged or gone.
 *
 * `run.lock` protects every field below the line "while it runs" and the lists of the scheduler. The rest is written
 * before the first worker starts. A node's own thread owns what is marked so, without the lock. */
#include <pthread.h>

#include "engine/run/place.h"
#include "engine/run/progress.h"
#include "engine/run/run.h"

enum node_state {
    STATE_UNKNOWN = 0, /* not resolved, or (plan_only) its key cannot be told */
    STATE_UNNEEDED,    /* nothing that must run reads it */
    STATE_REUSED,
    STATE_WAITING,     /* must run; an input is missing */
    STATE_READY,       /* its inputs are there */
    STATE_OPENING,     /* its thread opens the inputs and asks for its needs */
    STATE_ASKING,      /* needs are known; waits to be admitted */
    STATE_RUNNING,
    STATE_DONE,
    STATE_FAILED,
    STATE_BLOCKED,
    STATE_INTERRUPTED,
    STATE_COUNT
};

struct source {        /* a value of a PARAM_SOURCE parameter */
    int param;
    const char *path;
    struct key digest;
    bool known;
    struct key stamp;  /* of sizes and times, as when it was hashed */
};

/* An accelerator of the back end, as this run uses it. */
struct accelerator {
    const struct run_device *about;
    int near;              /* what it is attached to (place.h) */
    bool tried;            /* opened, or found not to work (run.device_lock) */
    /* -- the rest under run.lock -- */
    bool usable;           /* opened, and did not fail since */
    bool taken;            /* by a running node */
    uint64_t free_memory;  /* when it was opened */
    struct err why;        /* of one that was tried and is not usable */
};

enum asked {               /* where the user wants a node */
    ASKED_CPU = 0,         /* or its type uses no accelerator */
    ASKED_AUTO,            /* on an accelerator when there is one */
    ASKED_KIND,            /* "cuda" */
    ASKED_DEVICE,          /* "cuda:1" */
};

struct node {
    struct run *run;
    const struct graph_node *def;
    int index;
    const char *const **text;   /* [param][value]: as in the graph, with PARAM_PATH made absolute */
    struct source *sources;
    size_t n_sources;
    struct input **inputs;      /* [port][i]; `object` is set while its thread has them open */
    const char *numerics;       /* "" if none; NULL until the key was asked for */
    struct key key;
    bool has_key;
    int *consumers;             /* nodes that read this one, once per connection */
    size_t n_consumers;
    int height;                 /* nodes on the longest path from here to a sink, itself included */
    int place;                  /* the accelerator it computes on, or the first of their kind; -1: the CPU */
    enum asked asked;
    bool target, relevant;      /* must be there at the end; the targets depend on it */

    /* -- while it runs (run.lock) -- */
    enum node_state state;
    const char *reason;
    bool wanted;                /* something that must run reads it, or it is a target */
    bool forced;                /* run even if an object is there: it was found damaged */
    bool changed;               /* what it wrote outside the store was found changed: a quick look is not enough */
    size_t missing;             /* connections whose node is not there yet */
    int damaged;                /* times its object was found damaged in this run */
    int bypassed;               /* nodes of lower priority that were admitted while this one asked */
    struct needs needs;
    int cores;
    uint64_t memory;            /* admitted with */
    int *devices;               /* accelerators it was given; room for all when it is placed on one */
    int n_devices;
    const char *where;          /* "cuda:0,cuda:1" or "cpu"; NULL until it ran */
    bool admitted, dismissed;
    bool refused;               /* while it asked, the last accelerator that it could use failed */
    struct place_set *set;      /* cores it was given */
    pthread_t thread;
    struct node *next_finished;
    double began, seconds;      /* monotonic; NaN until it ran */
    double hashed, hash_total;  /* bytes, while a source is hashed before the run */
    double done, total, done_first, time_first;
    char unit[16];
    struct index_stat *stats;
    size_t n_stats;
    bool has_ledger;
    struct key ledger;
    struct err *error;

    /* -- its own thread only -- */
    struct writer *output;
    struct queue **queues;      /* one a device; a single one on the CPU */
    struct str parts;           /* names of linked parts, a line each */
};

struct run {
    const struct graph *graph;
    struct run_options options;
    char *dir, *store_path;
    struct store *store;        /* NULL in a plan without a store */
    struct run_lock *dir_lock;
    struct node *nodes;
    size_t n;
    struct arena arena;         /* plan data; written before workers start, and after that only under `lock` */
    struct place *place;
    struct accelerator *devices; /* parallel to those of the back end */
    struct progress *progress;
    double started;             /* seconds since 1970 */
    char *machine;
    uint64_t memory_total;
    bool planned;

    pthread_mutex_t device_lock; /* held while accelerators are opened; taken before `lock` */
    pthread_mutex_t lock;
    pthread_cond_t changed;     /* the scheduler waits for this */
    pthread_cond_t admitted;    /* nodes in STATE_ASKING wait for this */
    atomic_bool stopping;
    /* -- the scheduler's (lock) -- */
    struct node **ready;        /* a heap by priority; entries that are no longer STATE_READY are skipped */
    size_t n_ready, ready_capacity;
    struct node **asking;
    size_t n_asking;
    struct node **active;       /* nodes that have a thread: as many as may run and ask */
    size_t n_active;
    struct node **deferred;     /* ready, but a node with the same key is active: that one's result will do; or enough
                                   nodes wait for its accelerators */
    size_t n_deferred, deferred_capacity;
    struct node *finished;      /* threads to join */
    size_t n_threads, n_running;
    uint64_t memory_used, disk_used; /* declared by running nodes */
    int device_cores;           /* held by nodes on accelerators */
    bool index_dirty, index_warned;
};

/* node.c */
bool node_build_all(struct run *r, struct err *e) ERR_CHECK;
void node_free_all(struct run *r);
/* Key of a part of the node with that key. */
bool node_part_key(const struct key *node, const char *part, struct key *out, struct err *e) ERR_CHECK;
/* Are all the parts in the store (header and size) that object `o`, of any node of the run, lists as linked? */
bool node_parts_exist(const struct node *n, struct object *o, bool *there, struct err *e) ERR_CHECK;
/* Fingerprint of sizes, times and inodes of a source (of the files directly in it, if a directory). */
bool node_stamp(const char *path, struct key *out, struct err *e) ERR_CHECK;
/* Are the sources of `n` still what was hashed? ERR_INPUT names the one that changed. */
bool node_sources_stand(const struct node *n, struct err *e) ERR_CHECK;
/* upstream.c: the same of all that `n` depends on. */
bool node_upstream_stands(const struct node *n, struct err *e) ERR_CHECK;
/* Of `n` itself what node_input_path says of an input. */
bool node_path(const struct node *n, const char *param, const char **out, struct err *e) ERR_CHECK;
/* The text that stands for the parameters, inputs and sources in the object's attributes; see plan.c. */
bool node_record_parameters(const struct node *n, struct str *out, struct err *e) ERR_CHECK;
bool node_record_inputs(const struct node *n, struct str *out, struct err *e) ERR_CHECK;
bool node_record_sources(const struct node *n, struct str *out, struct err *e) ERR_CHECK;
const char *state_name(enum node_state s); /* as in run.h5 */

/* plan.c */
bool plan_keys(struct run *r, struct err *e) ERR_CHECK;
/* States of everything wanted; verifies the objects of targets unless plan_only. Lock held or not yet needed. */
bool plan_states(struct run *r, struct err *e) ERR_CHECK;
/* Resolve wanted nodes in STATE_UNKNOWN from index `from` down, and count the missing inputs anew. */
bool plan_resolve(struct run *r, int from, bool verify, struct err *e) ERR_CHECK;
/* Is the object of `n` there with all of its parts? *why (may be NULL) says what is not. */
bool plan_object_stands(struct run *r, struct node *n, bool verify, bool quick, const char **why,
                        struct err *e) ERR_CHECK;

/* device.c: where nodes are placed, and the accelerators as a resource */
/* Place every node. ERR_USAGE: no such word; ERR_RESOURCE: what was asked for is not there. */
bool device_place_nodes(struct run *r, struct err *e) ERR_CHECK;
/* Learn what each accelerator is near to. Once, when there is a place. */
bool device_locate(struct run *r, struct err *e) ERR_CHECK;
/* Start the accelerators of all nodes that must run, and say what there is. Refuses when a node may run on any, and
 * none works: its result would be another on the CPU, so the user decides. */
bool device_open_needed(struct run *r, struct err *e) ERR_CHECK;
/* Start what `n` may use, as far as it was not tried yet. ERR_DEVICE when none of it works. */
bool device_open_for(struct node *n, struct err *e) ERR_CHECK;
/* Of a node that asked (lock held): ERR_RESOURCE or ERR_DEVICE when no accelerator can ever hold it. */
bool device_can_ever_fit(const struct node *n, struct err *e) ERR_CHECK;
/* The accelerators that it would get now, into n->devices; returns how many, 0: it has to wait. Lock held. */
int device_choose(struct node *n);
/* Bytes that it may use on each accelerator it has, or on the roomiest that it may get. Lock held. */
uint64_t device_memory(const struct node *n);
/* How many accelerators that work it may use. Lock held. */
int device_count(const struct node *n);
/* Cores that drive the first `count` of n->devices. Lock held. */
int device_cores(const struct node *n, int count);
void device_take(struct node *n, int count); /* lock held; give_back follows */
void device_give(struct node *n);
/* Fill n->where with the names of the first `count` of n->devices. Lock held. */
bool device_name(struct node *n, int count, struct err *e) ERR_CHECK;
/* The node failed with ERR_DEVICE: what it was given is used no more, and *e says so and what to do. */
void device_fail(struct node *n, struct err *e);

/* sched.c */
bool sched_run(struct run *r, struct err *e) ERR_CHECK;

/* worker.c */
enum worker_outcome { WORKER_DONE, WORKER_FAILED, WORKER_STOPPED, WORKER_DISMISSED, WORKER_REPAIR };
bool worker_start(struct node *n, struct err *e) ERR_CHECK;
/* sched.c, called by the worker at the end of its life, and when its needs are known. */
void sched_finish(struct node *n, enum worker_outcome outcome, const struct err *why, const int *broken,
                  size_t n_broken);
bool sched_ask(struct node *n, struct err *e) ERR_CHECK;

/* report.c: the thread that draws live lines and keeps run.h5 up to date, from report_start to report_stop. Writing the
 * index is tried, and a failure is a warning: it is derived from the store. */
struct report;
bool report_start(struct report **out, struct run *r, struct err *e) ERR_CHECK;
void report_stop(struct report *p); /* NULL is fine; writes the index a last time */
void report_index(struct run *r);
/* Tell the log and the stream that the state of `n` changed. Lock held. */
void report_state(struct node *n);
/* Monotonic seconds. */
double report_clock(void);

#endif
