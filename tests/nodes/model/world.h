#ifndef TESTS_NODES_MODEL_WORLD_H
#define TESTS_NODES_MODEL_WORLD_H
/* A small model in a real store, with what the nodes before a measuring one make of it: renderings in every format and
 * the teacher's states by the real nodes, the hessian and the token set made up (fake_node.h). */
#include "nodes/search/candidates.h"
#include "tests/check.h"
#include "tests/nodes/fake_node.h"

#define WORLD_WINDOWS 3
#define WORLD_WINDOW 24
#define WORLD_NUMERICS "fp32 here" /* what nodes in it call their arithmetic */

enum { WORLD_NVFP4, WORLD_NVFP4_A16, WORLD_FP8, WORLD_BF16, WORLD_FORMATS };

struct world {
    char folder[256], source[512];
    struct store *store;
    struct model *model;
    struct token_set tokens;
    struct object *info, *corpus, *teacher, *renderings; /* corpus: its output is "selection" */
    struct menu menu;
};

/* Equal worlds have equal keys. `name`: a model of data/models. */
void model_world_open(struct world *w, const char *name);
/* The same with a head of its own (fake_untied), which is a unit. */
void model_world_open_with_head(struct world *w, const char *name);
void model_world_close(struct world *w);
/* Connect a node to what is there: those of "model", "renderings", "teacher" and "tokens" that it has ports for. */
void model_world_connect(const struct world *w, struct node *n);
/* An assignment, a different one for each `seed`: all formats, where the unit's shape allows. */
void model_world_assignment(const struct world *w, unsigned seed, uint8_t *assignment);

#endif
