#ifndef TESTS_NODES_FAKE_NODE_H
#define TESTS_NODES_FAKE_NODE_H
/* A `struct node` without an engine: what engine/node.h promises to a running node, over a real store, with values that
 * the test sets. It lets a test run one node type alone, stop it anywhere, and count what it did. */
#include "engine/node.h"
#include "nodes/model/model.h"
#include "nodes/model/tokens.h"

#define FAKE_MOST 16

struct node {
    const struct node_class *class;
    struct store *store;
    const char *run_dir;
    struct key key;
    struct {
        const char *name, *text[FAKE_MOST];
        size_t n;
    } values[FAKE_MOST];              /* others have the declared default */
    struct {
        const char *port, *path;      /* path: what node_input_path answers */
        struct input input;
    } inputs[FAKE_MOST];
    size_t n_values, n_inputs;
    const struct ancestor *ancestors; /* what it is said to depend on */
    struct {
        struct key key;
        const char *type, *path;
    } upstream[4];                    /* what it depends on beside its inputs, for node_upstream_path */
    size_t n_upstream;
    size_t n_ancestors;
    int threads;
    int stop_after;                   /* node_stopping is true once this many parts were made; 0: never */
    int parts_made, parts_found;
    int *asks;                        /* node_stopping counts it down, and is true once it is 0; NULL: it does not */
    const char *numerics;             /* NULL: "" */
    struct ledger *ledger;            /* what the node made known as live; its own */
    struct {
        char name[48];
        double value;
    } stats[FAKE_MOST];               /* what it told of how the result was made */
    size_t n_stats;
    struct queue queue;
    struct queue *devices[4];         /* accelerators that it was given; n_devices 0: it computes on the CPU */
    int n_devices;
    uint64_t device_memory;
    struct writer *output;
    struct arena arena;
};

/* From now on fresh nodes are given these accelerators (0: none), which are the caller's. */
void fake_node_place(struct queue *const *devices, int n, uint64_t memory);
/* A fresh node of that type; `seed` gives its key. Its output is an empty object. */
void fake_node_init(struct node *n, const struct node_class *class, struct store *s, const char *seed);
void fake_node_set(struct node *n, const char *param, const char *text); /* a list is set by several calls */
void fake_node_connect(struct node *n, const char *port, const char *type, struct object *object, const char *path);
/* An input that is one output of a node. */
void fake_node_connect_output(struct node *n, const char *port, const char *type, const char *output,
                              struct object *object);
/* A node far above it, whose object this is. */
void fake_node_depend(struct node *n, const char *type, struct object *object, const char *path);
/* Run it; when it succeeds its object is committed and returned (object_close), else NULL with *e filled. */
struct object *fake_node_run(struct node *n, struct err *e);
/* A figure that it told with node_stat; one that it did not tell fails the test. */
double fake_node_stat(const struct node *n, const char *name);
/* Abandons the output if it was not run. */
void fake_node_fini(struct node *n);

/* What a hessian node would have made: parts with the second moment and the maximum of every unit's input, both by
 * formulas. */
struct object *fake_hessian(struct store *s, const struct model *m);
double fake_moment(int unit, int64_t i, int64_t j); /* a diagonal and a weak rank-one term, of each unit its own */
float fake_amax(int unit);

/* What a model node would have made of the directory `path`, as far as other nodes read it; and with `head: unit`. */
struct object *fake_model(struct store *s, const char *path);
struct object *fake_model_with_head(struct store *s); /* of every such model */
/* Make the directory `to`: the model `from`, which is tied, with a head of its own that is a copy of the embedding. */
void fake_untied(const char *from, const char *to);
/* Token ids below `vocab` by a formula: n windows of `window` slots, each four tokens shorter than the one before, two
 * windows a document (tokens_fini). */
void fake_tokens(struct token_set *out, uint32_t n, uint32_t window, int vocab);
/* What a corpus node would have made, with one output. */
struct object *fake_corpus(struct store *s, const char *output, const struct token_set *t);

#endif
