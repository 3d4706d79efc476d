#ifndef NODES_SEARCH_QUBO_H
#define NODES_SEARCH_QUBO_H
/* One format per unit, for costs of units, costs of pairs of units, and a price of bytes:
 *
 *     energy(x) = sum over u of cost[u, x_u] + sum over pairs (u, v) of pair_cost[x_u, x_v] + lambda * bytes(x)
 *
 * A quadratic binary programme over one-hot choices, of which only one-hot points are ever looked at, so there is no
 * penalty term. How one lambda is solved (qubo.c):
 *
 *  1. Formats that cannot be in an optimum are struck out (dead ends: Goldstein 1994).
 *  2. What is left is solved by dynamic programming over an elimination order, if its tables are small enough
 *     (qubo_tree.c). Then the result is the optimum. Without pairs, or with pairs that form trees, it always is.
 *  3. Otherwise a dual bound is raised by block-coordinate ascent (TRW-S, Kolmogorov 2006, in the form of SRMP, 2015;
 *     qubo_bound.c), its roundings and seeded random starts are improved by tabu search with moves of one unit and of
 *     pairs (qubo_local.c), the best of them by optima of blocks of
 *     units with the others as they are, and formats that the bound shows to be above the best energy are struck out.
 *     What is left goes back to 2, as long as something was struck out.
 *
 * Same bytes for the same problem, options and seed at any number of threads. */
#include <stdint.h>

#include "engine/base/err.h"

/* Rows are units, columns formats; NaN in `cost` marks a format that the unit cannot have. Every unit has a format; all
 * other figures are finite. Pairs are as in nodes/search/surrogate.h: first < second, sorted, each once. Borrowed. */
struct qubo_problem {
    int n_units, n_formats;
    const uint64_t *bytes;      /* [unit, format] */
    const double *cost;         /* [unit, format], nats */
    size_t n_pairs;
    uint32_t (*pairs)[2];       /* [pair]; read only: C17 has no implicit const for arrays */
    const double *pair_cost;    /* [pair, format of first, format of second], nats */
};

/* 0 means the default. */
struct qubo_options {
    uint64_t seed;
    int starts;   /* random starts of the local search beside those that the bound gives; 4 */
    int steps;    /* tabu steps of a start; 40,000 */
    int rounds;   /* most passes there and back of the dual ascent; 200 */
    size_t cells; /* most entries of all tables of the dynamic programme together; 2^24 */
    int threads;  /* 1; cannot change the result */
};

struct qubo_point {
    double lambda;       /* nats per byte */
    double cost;         /* energy without the price of bytes: surrogate_energy */
    uint64_t bytes;
    double energy;       /* cost + lambda * bytes */
    double bound;        /* no assignment has a lower energy at this lambda: what rounding may have made of it is
                            subtracted. When is_exact: energy */
    double gap;          /* (energy - bound) / |energy|, at least 0; 0 when is_exact */
    bool is_exact;       /* an optimum, up to rounding in sums of f64 */
    uint8_t *assignment; /* [unit] */
};

/* Minimise at `lambda` >= 0. The best of `hints` (n_hints of them, each [unit], of available formats) is a start of
 * the search, too; no result is worse than it. out->assignment is the caller's, [unit]; all else of *out is set. */
bool qubo_solve(const struct qubo_problem *p, double lambda, const struct qubo_options *o, const uint8_t *const *hints,
                size_t n_hints, struct qubo_point *out, struct err *e) ERR_CHECK;

struct qubo_sweep_options {
    struct qubo_options solve;
    size_t count;        /* most points; at least 2 */
    uint64_t low, high;  /* bytes; only between points that reach into this range is it searched further; high 0: all */
    uint64_t resolution; /* bytes; points closer together are not searched between; 0: any are */
    void *context;       /* of the following, which may be NULL */
    bool (*stopping)(void *context);
    void (*tell)(void *context, size_t points);
};

/* The chain of assignments along lambda, bytes strictly rising and cost strictly falling, by bisection (Eisner and
 * Severance 1976): from everything smallest and everything cheapest, the widest gap in bytes between two neighbours is
 * looked into, at the lambda at which both have the same energy. What is better there becomes a point; if there is
 * none, nothing on the lower hull lies between the two. A point that a later one shows to be above the hull is left
 * out. Each point is given at the lambda at which it was found.
 * *out: *n points in one block with their assignments (mem_free). ERR_STOPPED when `stopping` said so. */
bool qubo_sweep(const struct qubo_problem *p, const struct qubo_sweep_options *o, struct qubo_point **out, size_t *n,
                struct err *e) ERR_CHECK;

#endif
