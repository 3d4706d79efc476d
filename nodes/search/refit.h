#ifndef NODES_SEARCH_REFIT_H
#define NODES_SEARCH_REFIT_H
/* The archive learns: surrogate costs scaled so that their sums fit what was measured.
 *
 * The model of a candidate's KL is g * sum over units of (1 + t[unit] + q[format]) * cost[unit, format]. g is the
 * geometric mean of KL / summed cost. t and q are found by ridge regression with 0, that is the costs as they were, as
 * the prior: they minimise the sum over candidates of (predicted / KL - 1)^2 + ridge * (|t|^2 + |q|^2). Relative
 * errors, since KL spans decades. The ridge is the one of a fixed grid with the least leave-one-out error, and t = q =
 * 0 if none of them beats that. Factors are held between 1/10 and 10, so no cost becomes negative or free. */
#include "nodes/search/candidates.h"

struct refit {
    size_t n_rows;       /* candidates that were fitted */
    double scale;        /* g */
    double ridge;        /* INFINITY: t = q = 0 */
    double error_before; /* root mean square of predicted / KL - 1: with g alone */
    double error_after;  /* the same, each candidate predicted from the others */
};

/* Fit to the complete rows of `tables` (n_tables of them, equal assignments may repeat and count as often) with KL > 0
 * and a summed cost > 0; of more than 256 those nearest in bpp to `centre`. cost and out [unit, format] may be the same
 * array; NaN stays NaN. With no such row out = cost. Deterministic; f64. */
bool refit_costs(const struct menu *m, const double *cost, const struct candidates *const *tables, size_t n_tables,
                 double centre, double *out, struct refit *result, struct err *e) ERR_CHECK;
/* Sum over units of cost[unit, assignment[unit]]. */
double refit_predict(const struct menu *m, const double *cost, const uint8_t *assignment);

#endif
