#ifndef TESTS_NODES_SEARCH_WORLD_H
#define TESTS_NODES_SEARCH_WORLD_H
/* The node types of the search, run one after the other on a made-up model over a real store. Measuring is made up as
 * well: the functions of nodes/model/evaluator.h are in world.c. */
#include "tests/nodes/search/objects.h"

#include "nodes/nodes.h"
#include "tests/nodes/fake_node.h"

#define UNITS 24

struct world {
    char folder[256];
    struct store *store;
    struct made made;
    struct object *quantize;
    size_t measured; /* by the made-up evaluator */
    int n_runs;
    char log[16384]; /* what the last node that ran said, a line each */
};
extern struct world world;

int world_set_up(void **state); /* of a group of tests */
int world_tear_down(void **state);

/* A node with the renderings connected, and pairs of (port, object) and of (parameter, text), ended by NULL. */
struct setting {
    const char *name;
    struct object *object;
    const char *text;
};
bool run_node(const struct node_class *class, const char *seed, const struct setting *settings, struct object **out,
              struct err *e);
struct object *run_fine(const struct node_class *class, const char *seed, const struct setting *settings);

/* A table of proposals as `measure` would have made it. */
struct object *measure_object(struct object *proposals, const char *seed);
/* The result of `rank`, and what the first round measures. */
struct object *rank_object(void);
struct object *measured_rows(void);

void *load(struct object *o, const char *name, enum dtype t, uint64_t *n);
uint32_t load_one(struct object *o, const char *name);

#endif
