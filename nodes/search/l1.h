#ifndef NODES_SEARCH_L1_H
#define NODES_SEARCH_L1_H
/* The L1 surrogate: what a format costs a unit, from the losses that `quantize` computed beside the renderings; and how
 * far the renderings are from the weights. */
#include "nodes/search/candidates.h"

/* cost[unit, format] = the mean over the unit's matrices, weighted by their parameters, of the relative output loss
 * tr(dW H dW^T) / tr(W H W^T), or of the weight loss |dW|^2 / |W|^2 where there was no hessian. NaN where the format is
 * not available. Both losses are shares, so units of different sizes compare as equals. ERR_NUMERIC when a loss of an
 * available format is not finite or is negative. */
bool l1_costs(const struct menu *m, struct object *quantize, double *cost, struct err *e) ERR_CHECK;
/* square[unit, format] = ||dW||^2 of the unit's rendered weights: the sum over its matrices of the weight loss, which
 * is a share, times `whole` [matrix] = ||W||^2, n of them. NaN where not available; errors likewise, and ERR_INPUT when
 * the result is not of n matrices. */
bool l1_weight_squares(const struct menu *m, struct object *quantize, const double *whole, uint64_t n, double *square,
                       struct err *e) ERR_CHECK;

#endif
