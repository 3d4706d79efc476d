#ifndef NODES_MODEL_DESCRIBE_H
#define NODES_MODEL_DESCRIBE_H
/* What the object of a node says whose result is a model: attributes, /units, /matrices and /tensors, which others are
 * numbered by (nodes/README.md). Nothing in it depends on where the model lies or how it is cut into files. */
#include "nodes/model/model.h"

/* Read every byte of `m`, telling the node's progress, and write it all to the node's output. A NaN or an infinity in a
 * tensor is ERR_NUMERIC with its place. */
bool describe_model(struct node *n, const struct model *m, struct err *e) ERR_CHECK;
/* Add what that takes. */
void describe_needs(const struct model *m, struct needs *out);

#endif
