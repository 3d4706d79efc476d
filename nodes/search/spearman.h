#ifndef NODES_SEARCH_SPEARMAN_H
#define NODES_SEARCH_SPEARMAN_H
/* Spearman's rank correlation: how well one score orders what another one measured. */
#include <stddef.h>

#include "engine/base/err.h"

/* Pearson's correlation of the ranks of x and y, n pairs; equal values share the mean of their ranks. NaN when fewer
 * than three pairs, or when all of a side are equal. A NaN in either side is ERR_BUG. */
bool spearman(const double *x, const double *y, size_t n, double *out, struct err *e) ERR_CHECK;

#endif
