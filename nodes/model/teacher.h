#ifndef NODES_MODEL_TEACHER_H
#define NODES_MODEL_TEACHER_H
/* What a `teacher` node left for those that measure against it. */
#include "nodes/model/model.h"
#include "nodes/model/tokens.h"

/* The states of `in` (a teacher's result), [window, slot, hidden] f32 in fresh memory (mem_free). ERR_INPUT unless
 * they are of these tokens, in the numeric mode `numeric`, and `hidden` wide. */
bool teacher_read(float **states, const struct input *in, const struct token_set *tokens, int hidden,
                  const char *numeric, struct err *e) ERR_CHECK;
/* Whose head those states go through to become the teacher's logits, when candidates are of the model of key `model`:
 * *out = NULL, that model's, or the model that it was rotated from, opened (model_close). ERR_INPUT when the teacher is
 * of any other model. Both keys are of nodes that `n` depends on. */
bool teacher_model(struct model **out, const struct node *n, const struct input *in, const struct key *model,
                   struct err *e) ERR_CHECK;

#endif
