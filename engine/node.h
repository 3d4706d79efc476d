#ifndef ENGINE_NODE_H
#define ENGINE_NODE_H
/* The contract every node type fulfils. A node type is one `struct node_class`: its ports, parameters and outputs are
 * data, so that the loader, the checker, the help text and the key need no code per type. `run` turns inputs into an
 * object; it opens no files but sources, starts no threads, and gives the same bytes for the same inputs, parameters
 * and numeric mode, whatever the number of threads. */
#include "engine/base/err.h"
#include "engine/store/store.h"

struct node;
struct kernels;

/* ------------------------------------------------------------------------------------------------- what a type says */

enum param_type {
    PARAM_INT,    /* decimal, range [least, most] */
    PARAM_FLOAT,  /* range [least, most] */
    PARAM_BOOL,   /* true or false */
    PARAM_STRING,
    PARAM_ENUM,   /* one of `choices` */
    PARAM_SIZE,   /* bytes: 8GiB */
    PARAM_SOURCE, /* a file or directory that must exist; its content is in the key, its path is not. Relative paths are
                     relative to the graph file that says them */
    PARAM_PATH,   /* a place to write to; not in the key; relative to RUN */
};

struct param {
    const char *name;
    enum param_type type;
    bool many;            /* a list of `type`; a scalar is a list of one */
    const char *fallback; /* the default as text ("a, b" for a list), NULL: required; "" with PARAM_STRING, SOURCE or
                             PATH: none */
    double least, most;   /* for numbers; both 0: no range */
    const char *one_of;   /* for numbers of which 0 stands for none: at most one of a node's parameters with the same
                             text here can be set. It says why, after "each of them": "is a budget by itself" */
    const char *const *choices; /* NULL-terminated, for PARAM_ENUM */
    const char *unit;     /* "token", "byte", NULL */
    bool outside_key;     /* cannot change a result */
    const char *help;     /* one line */
};

struct port {
    const char *name;
    const char *const *types; /* NULL-terminated node types that may be connected; a type is "corpus" or
                                 "corpus.selection" when only one of its outputs fits; NULL: any node */
    bool many, optional;
    const char *help;
};

struct output {
    const char *name; /* "calibration"; a type with one unnamed output has NULL outputs */
    const char *help;
};

/* What a node wants before it starts; asked when its inputs are there. */
struct needs {
    int cores;            /* most cores it can use; 0: all */
    uint64_t memory;      /* peak bytes of host memory */
    uint64_t device_memory; /* bytes on each accelerator that it uses */
    int devices;          /* most accelerators of one kind that it can use at once; 0: one */
    uint64_t disk;        /* bytes it will publish, without parts that are there */
};

struct node_class {
    const char *name;     /* "hessian": the `type:` of the graph, and the file's name in nodes/ */
    const char *summary;  /* one line, for `scout nodes` */
    unsigned version;     /* raise it when a result changes: older objects become stale */
    bool accelerator;     /* its kernels run on an accelerator when there is one; false: always on the CPU */
    const struct port *ports;     /* ended by a NULL name; NULL: none */
    const struct param *params;   /* likewise */
    const struct output *outputs; /* likewise */
    /* What of the numeric mode changes the result's bits, as text for the key ("fp32 cpu"); NULL: nothing. Called with
     * parameters known and inputs not yet there. */
    bool (*numerics)(const struct node *n, const char **out, struct err *e);
    /* NULL: one core, 64 MiB. */
    bool (*needs)(struct node *n, struct needs *out, struct err *e);
    /* Of a finished object: do the things outside the store that it speaks of (an exported directory) still stand as
     * it says? NULL: there are none. False makes the node run again. `quick`: look at names and sizes only (for a
     * plan, and while others wait). */
    bool (*stands)(struct node *n, struct object *result, bool quick);
    /* Inputs to one object. It fills node_output(n); the engine commits it when true is returned. */
    bool (*run)(struct node *n, struct err *e);
};

/* ------------------------------------------------------------------------------------------ what a running node has */

const char *node_name(const struct node *n);
/* Parameters. The name must be declared with that type. Borrowed from the node. */
int64_t node_int(const struct node *n, const char *param);
double node_float(const struct node *n, const char *param);
bool node_bool(const struct node *n, const char *param);
const char *node_string(const struct node *n, const char *param); /* STRING, ENUM, SOURCE, PATH: absolute paths */
uint64_t node_size(const struct node *n, const char *param);
size_t node_list(const struct node *n, const char *param); /* length of a `many` parameter */
const char *node_list_string(const struct node *n, const char *param, size_t i);
double node_list_float(const struct node *n, const char *param, size_t i);

/* Inputs: how many are connected to a port, and the i-th. The object is borrowed for the node's run. `output` is the
 * name after the dot in the graph, "" when the whole node is meant. */
struct input {
    struct object *object;
    const char *node, *type, *output;
    struct key key; /* of the node that made it, and the output's name: what goes into this node's key */
};
size_t node_inputs(const struct node *n, const char *port);
const struct input *node_input(const struct node *n, const char *port, size_t i); /* i < node_inputs */
/* The path that parameter `param` (PARAM_SOURCE or PARAM_PATH) of the node behind an input has. Before returning a
 * source, checks that it is still what was hashed (size and times): otherwise ERR_INPUT. */
bool node_input_path(const struct node *n, const char *port, size_t i, const char *param, const char **out,
                     struct err *e) ERR_CHECK;
/* Type of the node of that key among those that this one depends on, all the way up (borrowed; NULL: there is none), and
 * what node_input_path says of it. For what an input was made from: a teacher's model. */
bool node_upstream_type(const struct node *n, const struct key *key, const char **out, struct err *e) ERR_CHECK;
bool node_upstream_path(const struct node *n, const struct key *key, const char *param, const char **out,
                        struct err *e) ERR_CHECK;

/* The key of this node, and the numeric text that went into it ("" if none). */
const struct key *node_key(const struct node *n);
const char *node_numerics(const struct node *n);
/* What the node depends on, all the way up: each result once, by type and key. Texts are lines "name = value"; inputs
 * are "port = key" or "port = key.output". Same for equal keys, whatever the graph calls its nodes. */
struct ancestor {
    const char *type;
    unsigned version;
    const struct key *key;
    const char *numerics, *parameters, *inputs, *sources;
};
typedef bool (*node_ancestor)(void *context, const struct ancestor *a, struct err *e);
bool node_each_ancestor(const struct node *n, node_ancestor each, void *context, struct err *e) ERR_CHECK;
/* The run directory (for what a node exports), and the store (for ledgers and parts). */
const char *node_run_dir(const struct node *n);
struct store *node_store(const struct node *n);

/* The object being made. Owned by the engine. */
struct writer *node_output(struct node *n);

/* Parts: pieces of a result that are durable on their own, so that a killed node goes on where it was ("layer.003").
 * *out = the part if it is done, else NULL. The caller closes it. */
bool node_part_open(struct node *n, const char *part, struct object **out, struct err *e) ERR_CHECK;
/* Is the part there, by its header and size? For `needs`: what is there need not be written again. */
bool node_part_exists(struct node *n, const char *part, bool *there, struct err *e) ERR_CHECK;
/* A writer for a missing part, to be given to node_part_commit or writer_abort. */
bool node_part_new(struct node *n, const char *part, struct writer **out, struct err *e) ERR_CHECK;
/* writer_commit, unless a source that the node depends on has changed since it was hashed: then ERR_INPUT. Takes w. */
bool node_part_commit(struct node *n, struct writer *w, struct err *e) ERR_CHECK;
/* Put a link `parts/<part>` into the node's output. */
bool node_part_link(struct node *n, const char *part, struct err *e) ERR_CHECK;
/* A part of another node's result. ERR_INPUT when missing or damaged. The caller closes it. */
bool object_part(struct store *s, struct object *o, const char *part, struct object **out, struct err *e) ERR_CHECK;

/* Make this node's ledger known, so that run.h5 shows it under /live while the node runs. */
void node_live(struct node *n, const struct key *ledger, struct ledger *l);

/* Compute. Where a node is placed (on some kind of accelerator, or the CPU) is known from the start, so the first two
 * may be asked in `numerics` and `needs`; which accelerators it got, and queues on them, only in `run`. */
const struct kernels *node_kernels(const struct node *n); /* the table of its place */
bool node_on_device(const struct node *n);                /* is it placed on an accelerator? */
int node_devices(const struct node *n);                   /* accelerators it was given; 0: it computes on the CPU */
/* The queue on the i-th of them, i < node_devices(n). Its host work has the node's threads. */
struct queue *node_device_queue(struct node *n, int i);
struct queue *node_queue(struct node *n);                 /* the first of them; the CPU's without an accelerator */
int node_threads(const struct node *n);
/* Bytes that it may use on each accelerator it was given; in `needs`, on the roomiest that it may get; 0 on the CPU. */
uint64_t node_device_memory(const struct node *n);
/* Host memory the node was admitted with, in bytes. */
uint64_t node_memory(const struct node *n);

/* Asked between rows: true once the run has been interrupted. Then return node_stopped(e). */
bool node_stopping(const struct node *n);
bool node_stopped(struct err *e); /* ERR_STOPPED; returns false */

/* The live line and the log. `unit` is "window", "layer". */
void node_progress(struct node *n, double done, double total, const char *unit);
/* One plain line in run.log (and on a terminal that is no terminal): "name: text". */
void node_log(struct node *n, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* A figure about how the result was made (layer-forwards saved, rows reused), shown by the run and kept in run.h5,
 * never in the object: it may differ between equal results. Setting a name again replaces it. */
void node_stat(struct node *n, const char *name, double value, const char *unit);

#endif
