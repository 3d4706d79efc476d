#ifndef NODES_MODEL_TEACHER_H
#define NODES_MODEL_TEACHER_H
/* What a `teacher` node left for those that measure against it. */
#include "nodes/model/tokens.h"

/* The states of `in` (a teacher's result), [window, slot, hidden] f32 in fresh memory (mem_free). ERR_INPUT unless
 * they are of these tokens, in the numeric mode `numeric`, `hidden` wide, and, where `model_key` is not NULL, of
 * that model. */
bool teacher_read(float **states, const struct input *in, const struct token_set *tokens, int hidden,
                  const char *numeric, const struct key *model_key, struct err *e) ERR_CHECK;

#endif
