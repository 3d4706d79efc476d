#ifndef NODES_MODEL_RENDERINGS_H
#define NODES_MODEL_RENDERINGS_H
/* Reading what a `quantize` node made: the packed parts of a matrix in a format, and the static scale of a unit's
 * input. Renderings stay in the object's parts until they are asked for. Every function may be called from any
 * thread. */
#include "engine/node.h"
#include "nodes/model/forward.h"

struct renderings;

/* From the first input on `port` of a running node. `m` is the original model, which must have the matrices that the
 * renderings were made from, and be the node's input `model` if it has that port (ERR_INPUT otherwise); object and
 * model are borrowed until renderings_close. */
bool renderings_open(struct renderings **out, struct node *n, const char *port, const struct model *m,
                     struct err *e) ERR_CHECK;
/* The same without a node: `object` is a quantize result in `store`. */
bool renderings_open_object(struct renderings **out, struct store *store, struct object *object, const struct model *m,
                            struct err *e) ERR_CHECK;
void renderings_close(struct renderings *r); /* NULL is fine */
/* One matrix in one format, parts in fresh memory (rendering_free). bf16 is read from the source through the model. A
 * format that was not asked of quantize, or that the matrix' unit cannot have, is ERR_INPUT. */
bool renderings_read(struct renderings *r, int matrix, const char *format_name, struct rendering *out,
                     struct err *e) ERR_CHECK;
/* A unit in that format as the forward pass wants it, with the format's treatment of the input: read, and packed on the
 * queue. `m` as above. */
bool renderings_load(struct renderings *r, struct queue *q, const struct model *m, int unit, const char *format_name,
                     enum dtype mode, struct unit_weights *out, struct err *e) ERR_CHECK;
/* The static NVFP4 input_global_scale of a unit; 0 if it has none. */
float renderings_input_scale(const struct renderings *r, int unit);
/* Index of the format in the object's list (an assignment's byte), or -1. */
int renderings_format(const struct renderings *r, const char *name);

#endif
