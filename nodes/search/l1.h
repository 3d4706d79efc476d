#ifndef NODES_SEARCH_L1_H
#define NODES_SEARCH_L1_H
/* The L1 surrogate: what a format costs a unit, from the losses that `quantize` computed beside the renderings. */
#include "nodes/search/candidates.h"

/* cost[unit, format] = the mean over the unit's matrices, weighted by their parameters, of the relative output loss
 * tr(dW H dW^T) / tr(W H W^T), or of the weight loss |dW|^2 / |W|^2 where there was no hessian. NaN where the format is
 * not available. Both losses are shares, so units of different sizes compare as equals. ERR_NUMERIC when a loss of an
 * available format is not finite or is negative. */
bool l1_costs(const struct menu *m, struct object *quantize, double *cost, struct err *e) ERR_CHECK;

#endif
