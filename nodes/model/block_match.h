#ifndef NODES_MODEL_BLOCK_MATCH_H
#define NODES_MODEL_BLOCK_MATCH_H
/* The rounding step block_match: after all matrices of a layer are rendered in a format, their free scales are refitted
 * so that what the layer puts out is again what the original puts out for the same input. Free are scales that are
 * finer than the steps they rule: an f32 or bf16 scale, of rows (or tiles of rows), and NVFP4's divisor, of a unit;
 * powers of two and E4M3 are not.
 *
 * Unit after unit, in the order of the forward pass: with y the output that it should have, y' the output that it has
 * from the inputs that the rendered matrices before it give, the steps of row n are multiplied by
 *
 *     a[n] = sum over tokens of y'[n] y[n]  /  sum over tokens of y'[n]^2
 *
 * the least squares answer, over the tokens that methods fit. For the unit that ends the layer y is what the layer's
 * output lacks, so there it is the least squares answer for the layer's output itself. Each unit's refit is kept only
 * if it lowers the layer's squared error on held-out windows. Weights only: inputs are not quantized here. */
#include "nodes/format/rounding.h"
#include "nodes/model/forward.h"
#include "nodes/model/tokens.h"

struct block_match;

/* `share` [window]: nonzero where the window is held out; there are some of both. Works on the host queue `q`; model,
 * tokens and share are borrowed until close. */
bool block_match_open(struct block_match **out, const struct model *m, struct queue *q, const struct token_set *tokens,
                      const uint8_t *share, struct err *e) ERR_CHECK;
void block_match_close(struct block_match *b); /* NULL is fine */
/* Bytes that it has at its peak. */
uint64_t block_match_bytes(const struct model *m, const struct kernels *k, const struct token_set *tokens);

/* Layers are gone through in order, each once: enter (the original's inputs and outputs), refit as many sets of
 * renderings as there are, leave. */
bool block_match_enter(struct block_match *b, int layer, struct err *e) ERR_CHECK;
/* r[i] is the rendering of the layer's i-th matrix, all with the same codes, changed in place; where r[i].format is
 * NULL the matrix stays as it is in the source. steps[u] for the layer's u-th unit: the layer's squared error on
 * held-out windows as a share of the square of what the layer adds, before and after, and whether the refit was
 * kept. */
bool block_match_refit(struct block_match *b, struct rendering *r, struct rounding_step steps[LAYER_UNITS],
                       struct err *e) ERR_CHECK;
bool block_match_leave(struct block_match *b, struct err *e) ERR_CHECK;

#endif
