#ifndef ENGINE_GRAPH_DRAFT_H
#define ENGINE_GRAPH_DRAFT_H
/* The graph between its text and its nodes: each written node with its class and typed parameters, then the unrolled
 * nodes in the order of the text, then their connections, then the final order. Private to engine/graph. */
#include "engine/graph/yaml.h"

/* A node as it is written; `repeat` makes several nodes of it. */
struct written {
    const char *name;
    struct mark mark;
    struct tree *tree;              /* TREE_BAD when a problem was noted about the node as a whole */
    const struct node_class *class; /* NULL when unknown; then a problem was noted */
    int rounds;                     /* 0: not repeated. -1: a problem was noted */
    size_t first;                   /* index of its first unrolled node in graph->nodes, before sorting */
    struct value *params;
    const char *device;
    int threads;
    uint64_t memory;
};

struct draft {
    struct tree *params;     /* the graph's; may be NULL */
    struct written *written; /* in the order of the text */
    size_t n_written;
    const char **names;             /* of all written nodes */
    const struct written **by_name; /* the same, sorted */
    size_t n_refs, n_connections; /* references read, and what they connect in all rounds */
};

/* Fill *d from the merged tree: classes, parameters, places, rounds. */
bool draft_read(struct loading *l, struct tree *graph, struct draft *d) ERR_CHECK;
/* Of a file whose base could not be read: the types that it says, and the names under their `with` and `in`. */
bool draft_check_part(struct loading *l, struct tree *file) ERR_CHECK;
/* Make g->nodes, unrolled, without connections. *ok is false when they are too many to go on. */
bool draft_unroll(struct loading *l, struct draft *d, struct graph *g, bool *ok) ERR_CHECK;
/* The written node of that name, or NULL. */
const struct written *draft_find(const struct draft *d, const char *name);

/* True when `key`, which `map` lacks, is probably there under a misspelt name, or in the map `other` where it does not
 * belong (both may be NULL): that is reported, so the key is not reported as missing. `known` tells the good keys. */
bool draft_is_misspelt(const struct tree *map, const struct tree *other, const char *key, const struct node_class *c,
                       int (*known)(const struct node_class *c, const char *key));

/* connect.c: are the names under `in` ports of the node's class? */
bool connect_names(struct loading *l, const struct written *w) ERR_CHECK;
/* connect.c: read every `in` and connect the ports of g->nodes. */
bool connect_nodes(struct loading *l, struct draft *d, struct graph *g) ERR_CHECK;
/* order.c: sort g->nodes so that every node comes after its inputs, ties in the order of the text. A circle is a
 * problem noted with its path; then g->nodes stays as it is. */
bool order_nodes(struct loading *l, struct graph *g) ERR_CHECK;

#endif
