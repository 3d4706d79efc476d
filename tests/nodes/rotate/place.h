#ifndef TESTS_NODES_ROTATE_PLACE_H
#define TESTS_NODES_ROTATE_PLACE_H
/* A made-up model in a folder with a store, and the node type rotate on it. */
#include "tests/nodes/fake_node.h"
#include "tests/nodes/rotate/made.h"

#define WINDOWS 3
#define WINDOW 32

struct place {
    char folder[256], source[300], target[300]; /* target: where the node writes */
    struct store *store;
    struct object *info, *corpus; /* corpus: the output "calibration" */
    struct token_set tokens;
    int n_runs;
};

/* Two layers of random weights in f32. */
extern const struct made place_small;

void place_open(struct place *p, const struct made *m);
void place_close(struct place *p);
/* A node under a key of its own, with the tokens connected if `text`, and settings "name=value", ended by NULL. */
#define SETTINGS(...) (const char *const[]){__VA_ARGS__, NULL}
void place_node(struct place *p, struct node *n, bool text, const char *const *settings);
/* Run one; its object. */
struct object *place_run(struct place *p, bool text, const char *const *settings);
/* Run one, which must fail so. */
void place_fail(struct place *p, bool text, const char *const *settings, enum err_code code, const char *message);

struct model *place_model(const char *path);
double place_figure(struct object *o, const char *name);
/* A column of that length, f64 or u8 (mem_free). */
void *place_column(struct object *o, const char *name, enum dtype t, uint64_t expected);
/* Has the tensor the same bytes in both? */
bool place_same_tensor(const struct model *a, const struct model *b, const char *name);
/* A file as text (free); NULL if it is not there. And: the file is the same in source and target. */
char *place_text(const char *folder, const char *name);
void place_same_file(const struct place *p, const char *name);

#endif
