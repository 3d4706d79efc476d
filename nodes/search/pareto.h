#ifndef NODES_SEARCH_PARETO_H
#define NODES_SEARCH_PARETO_H
/* The nondominated points of a plane, less being better on both axes. */
#include <stddef.h>
#include <stdint.h>

#include "engine/base/err.h"

/* Points (x[i], y[i]), i < n; one with a NaN takes no part. A point is beaten by another that is no worse on both axes
 * and better on one; of equal points the one of lowest index beats the others. dominated_by[i] = the point of the
 * frontier with the lowest y among those that beat i, or -1 (on the frontier, or no part). frontier[0..*n_frontier) =
 * indices of the frontier, x ascending and so y falling, both strictly; room for n. */
bool pareto_filter(const double *x, const double *y, size_t n, int32_t *dominated_by, uint32_t *frontier,
                   size_t *n_frontier, struct err *e) ERR_CHECK;

#endif
