#ifndef TESTS_NODES_SEARCH_INSTANCES_H
#define TESTS_NODES_SEARCH_INSTANCES_H
/* Random problems for the tests and the benchmark of qubo. */
#include "tests/check.h"

#include <math.h>

#include "engine/base/mem.h"
#include "nodes/search/qubo.h"
#include "nodes/search/stats.h"

enum instance_kind {
    SIGNED, /* +-10 to 50 % of sqrt(cost * cost), one sign a pair, entries within 20 % of that */
    FRUSTRATED, /* the same sizes, but every entry has a sign of its own, so that no choice satisfies many pairs */
    FLAT,   /* and all units of one size and nearly one cost, so that nothing is decided by the unit alone */
    N_KINDS, /* those that the tests take in turn */
    WEAK = N_KINDS, /* as FRUSTRATED, with 3 to 12 % */
    MEASURED, /* as SIGNED, with the 3 to 8 % that the significant pairs of SmolLM2-135M's probes have */
    GRAM,     /* products of responses, as probes give them: the pairs of groups of GROUP units whose responses have a
                 factor in common, of either sign, a tenth of their square; no choice has a cost below 0 */
};

#define GROUP 21 /* each is in 20 pairs */

struct instance {
    struct qubo_problem p;
    uint64_t *bytes;
    double *cost;
    uint32_t (*pairs)[2];
    double *pair_cost;
};

static inline double uniform(uint64_t *seed, double low, double high)
{
    return low + (high - low) * (double)(stats_random(seed) >> 11) * 0x1p-53;
}

static inline int by_units(const void *a, const void *b)
{
    const uint32_t *x = a, *y = b;
    if (x[0] != y[0])
        return x[0] < y[0] ? -1 : 1;
    return (x[1] > y[1]) - (x[1] < y[1]);
}

/* All pairs of groups of GROUP units. */
static inline void group_pairs(struct instance *x, size_t n_pairs)
{
    struct err e;
    assert_ok(mem_new(&x->pairs, n_pairs, &e), e);
    for (uint32_t u = 0; u < (uint32_t)x->p.n_units; u++)
        for (uint32_t v = u + 1; v < (uint32_t)x->p.n_units && v / GROUP == u / GROUP && x->p.n_pairs < n_pairs; v++) {
            x->pairs[x->p.n_pairs][0] = u;
            x->pairs[x->p.n_pairs++][1] = v;
        }
}

/* Distinct random pairs, sorted, of units at most `reach` apart (0: any). Fewer than n_pairs if they do not exist. */
static inline void instance_pairs(struct instance *x, size_t n_pairs, int reach, uint64_t *seed)
{
    struct err e;
    uint64_t units = (uint64_t)x->p.n_units;
    size_t n = 0;
    assert_ok(mem_new(&x->pairs, n_pairs, &e), e);
    for (size_t tries = 0; n < n_pairs && tries < 100 * n_pairs; tries++) {
        uint32_t u = (uint32_t)stats_below(seed, units), v = (uint32_t)stats_below(seed, units);
        if (u < v && (reach == 0 || v - u <= (uint32_t)reach)) {
            x->pairs[n][0] = u;
            x->pairs[n++][1] = v;
        }
        if (n < n_pairs)
            continue;
        qsort(x->pairs, n, sizeof *x->pairs, by_units);
        size_t kept = n > 0;
        for (size_t i = 1; i < n; i++)
            if (by_units(x->pairs[i], x->pairs[kept - 1]) != 0)
                memmove(x->pairs[kept++], x->pairs[i], sizeof *x->pairs);
        n = kept;
    }
    qsort(x->pairs, n, sizeof *x->pairs, by_units);
    size_t kept = n > 0;
    for (size_t i = 1; i < n; i++)
        if (by_units(x->pairs[i], x->pairs[kept - 1]) != 0)
            memmove(x->pairs[kept++], x->pairs[i], sizeof *x->pairs);
    x->p.n_pairs = kept;
}

static inline void instance_pair_costs(struct instance *x, enum instance_kind kind, uint64_t *seed)
{
    static const double strengths[][2] = {[SIGNED] = {0.1, 0.5}, [FRUSTRATED] = {0.1, 0.5}, [FLAT] = {0.1, 0.5},
                                          [WEAK] = {0.03, 0.12}, [MEASURED] = {0.03, 0.08}, [GRAM] = {2, 2}};
    struct err e;
    size_t n = (size_t)x->p.n_formats, units = (size_t)x->p.n_units;
    double *loading; /* [unit, format]: GRAM's, the correlation of a response with the factor */
    assert_ok(mem_new(&loading, units * n, &e), e);
    for (size_t u = 0; kind == GRAM && u < units; u++) {
        double sign = stats_below(seed, 2) ? 1 : -1;
        for (size_t f = 0; f < n; f++)
            loading[u * n + f] = sign * sqrt(0.1) * uniform(seed, 0.8, 1.2);
    }
    for (size_t i = 0; i < x->p.n_pairs; i++) {
        double strength = uniform(seed, strengths[kind][0], strengths[kind][1]), sign = stats_below(seed, 2) ? 1 : -1;
        for (size_t a = 0; a < n; a++)
            for (size_t b = 0; b < n; b++) {
                size_t u = x->pairs[i][0] * n + a, v = x->pairs[i][1] * n + b;
                double size = sqrt(x->cost[u] * x->cost[v]);
                bool is_one_sign = kind == SIGNED || kind == MEASURED;
                double own = kind == GRAM ? loading[u] * loading[v] :
                             is_one_sign ? sign * uniform(seed, 0.8, 1.2) : stats_below(seed, 2) ? 1 : -1;
                x->pair_cost[(i * n + a) * n + b] = isnan(size) ? 0 : strength * own * size;
            }
    }
    mem_free(loading);
}

static inline void instance_init(struct instance *x, int units, int formats, size_t n_pairs, int reach,
                                 enum instance_kind kind, uint64_t seed)
{
    static const double bits[] = {4.25, 4.5, 6.25, 8.06, 8.25, 16}, loss[] = {1.5e-2, 1e-2, 2e-3, 6e-4, 5e-4, 0};
    struct err e;
    size_t n = (size_t)formats, cells = (size_t)units * n;
    *x = (struct instance){.p = {.n_units = units, .n_formats = formats}};
    assert_in_range(formats, 1, 6);
    assert_ok(mem_new(&x->bytes, cells, &e) && mem_new(&x->cost, cells, &e) &&
              mem_new(&x->pair_cost, n_pairs * n * n, &e), e);
    for (size_t u = 0; u < (size_t)units; u++) {
        double parameters = kind == FLAT ? 0x1p20 : exp2(floor(uniform(&seed, 18, 24)));
        double weight = kind == FLAT ? 1 : pow(10, uniform(&seed, -2, 2));
        for (size_t f = 0; f < n; f++) {
            size_t level = f + 6 - n;
            bool is_missing = f + 1 < n && kind != FLAT && stats_below(&seed, 10) == 0;
            x->bytes[u * n + f] = (uint64_t)(parameters * bits[level] / 8);
            x->cost[u * n + f] = is_missing ? NAN : 1e-4 * weight * loss[level] * exp(uniform(&seed, -0.3, 0.3));
        }
    }
    if (kind == GRAM)
        group_pairs(x, n_pairs);
    else
        instance_pairs(x, n_pairs, reach, &seed);
    instance_pair_costs(x, kind, &seed);
    x->p.bytes = x->bytes;
    x->p.cost = x->cost;
    x->p.pairs = x->pairs;
    x->p.pair_cost = x->pair_cost;
}

static inline void instance_fini(struct instance *x)
{
    mem_free(x->bytes);
    mem_free(x->cost);
    mem_free(x->pairs);
    mem_free(x->pair_cost);
}

/* A price at which a choice of formats is mixed: between the slopes of the units, the `share` of them in order. */
static inline double instance_lambda(const struct instance *x, double share)
{
    struct err e;
    size_t units = (size_t)x->p.n_units, n = (size_t)x->p.n_formats, found = 0;
    double *slopes;
    assert_ok(mem_new(&slopes, units, &e), e);
    for (size_t u = 0; u < units; u++) {
        size_t a = 0;
        while (isnan(x->cost[u * n + a]))
            a++;
        if (a + 1 < n)
            slopes[found++] = (x->cost[u * n + a] - x->cost[u * n + n - 1]) /
                              (double)(x->bytes[u * n + n - 1] - x->bytes[u * n + a]);
    }
    for (size_t i = 1; i < found; i++)
        for (size_t k = i; k > 0 && slopes[k] < slopes[k - 1]; k--) {
            double swap = slopes[k];
            slopes[k] = slopes[k - 1];
            slopes[k - 1] = swap;
        }
    double slope = found > 0 ? slopes[(size_t)(share * (double)(found - 1))] : 0;
    mem_free(slopes);
    return slope;
}

#endif
