#ifndef NODES_SEARCH_REFIT_H
#define NODES_SEARCH_REFIT_H
/* The archive learns: surrogate costs scaled so that their sums fit what was measured.
 *
 * The model of a candidate's KL is g * sum over units of (1 + t[unit] + q[format]) * cost[unit, format]. An error is
 * taken as e = (predicted - KL) / (KL + floor): relative, since KL spans decades, but not below the floor, which is the
 * larger of
 *     1e-7 nat, what fp32 arithmetic makes of a log-probability: a KL below it is rounding;
 *     10 % of the median KL of the rows: what lies a decade below the place that is searched needs no relative
 *     accuracy, and in coarser arithmetic the noise is higher.
 * Without it a near-lossless candidate (KL 5e-8 where 1e-6 was predicted: e = 19) would outweigh all others. Measured
 * on the quickstart's model, with the second round predicted from the first: the error is 19 % without a floor and at
 * 1 %, 8 % at 10 %, 9 % at 100 %.
 *
 * g is the geometric mean of KL / summed cost, a candidate's weight being (KL / (KL + floor))^2, the square of what e
 * makes of its relative error. t and q are found by ridge regression with 0, that is the costs as they were, as the
 * prior: they minimise the sum over candidates of e^2 + ridge * (|t|^2 + |q|^2). The ridge is the one of a fixed grid
 * with the least leave-one-out error, and t = q = 0 if none of them beats that. Factors are held between 1/10 and 10,
 * so no cost becomes negative or free. */
#include "nodes/search/candidates.h"

struct refit {
    size_t n_rows;       /* candidates that were fitted */
    double floor;        /* nats */
    double scale;        /* g */
    double ridge;        /* INFINITY: t = q = 0 */
    double error_before; /* root mean square of e: with g alone */
    double error_after;  /* the same, each candidate predicted from the others */
};

/* Fit to the complete rows of `tables` (n_tables of them, equal assignments may repeat and count as often) with KL > 0
 * and a summed cost > 0; of more than 256 those nearest in bpp to `centre`. cost and out [unit, format] may be the same
 * array; NaN stays NaN. With no such row out = cost. Deterministic; f64. */
bool refit_costs(const struct menu *m, const double *cost, const struct candidates *const *tables, size_t n_tables,
                 double centre, double *out, struct refit *result, struct err *e) ERR_CHECK;

#endif
