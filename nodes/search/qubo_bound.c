/* The dual bound by TRW-S (Kolmogorov, "Convergent tree-reweighted message passing for energy minimization", 2006), in
 * the form of SRMP (Kolmogorov, "A new look at reweighted message passing", 2015): a pass goes through the units in
 * order; a unit first takes all that its edges to the units before it know (their min-marginals), then gives equal
 * parts of what it has to its edges to the units behind it. Neither step lowers the sum of all minima, which is the
 * bound. On the way, a labelling is read off (the rounding of 2006, section 4). */
#include <float.h>
#include <math.h>

#include "nodes/search/qubo_private.h"

#define LEAST_GAIN 1e-6 /* of what the passes have gained so far, over PATIENCE of them: less ends the ascent */
#define PATIENCE 10
#define EACH 4          /* passes from one rounding to the next */

/* --------------------------------------------------------------------------------------------------------- messages */

/* The message of an edge to its end `i`: 0 the lower unit, 1 the higher one. */
static double *message(const struct qubo_dual *d, uint32_t edge, int end)
{
    return d->message + d->offset[edge] + (end ? model_labels(d->m, d->m->edge[edge][0]) : 0);
}

/* Unit i, which is the end `end` of the edge, takes what it knows: its message becomes the edge's min-marginal. */
static void collect(struct qubo_dual *d, uint32_t i, uint32_t edge, int end)
{
    const struct qubo_model *m = d->m;
    uint32_t lower = model_labels(m, m->edge[edge][0]), higher = model_labels(m, m->edge[edge][1]);
    const double *table = m->pair + m->table[edge], *from = message(d, edge, !end);
    double *to = message(d, edge, end), *reduced = d->reduced + m->at[i], fresh[256];
    if (end == 0) {
        for (uint32_t a = 0; a < lower; a++, table += higher) {
            fresh[a] = table[0] - from[0];
            for (uint32_t b = 1; b < higher; b++) {
                double x = table[b] - from[b];
                fresh[a] = x < fresh[a] ? x : fresh[a];
            }
        }
    } else {
        for (uint32_t b = 0; b < higher; b++)
            fresh[b] = table[b] - from[0];
        for (uint32_t a = 1; a < lower; a++) {
            table += higher;
            for (uint32_t b = 0; b < higher; b++) {
                double x = table[b] - from[a];
                fresh[b] = x < fresh[b] ? x : fresh[b];
            }
        }
    }
    for (uint32_t k = 0; k < model_labels(m, i); k++) {
        reduced[k] += fresh[k] - to[k];
        to[k] = fresh[k];
    }
}

/* Give `share` of the unit's reduced costs to each of n links from `first` on, at which it is the end `end`. */
static void distribute(struct qubo_dual *d, uint32_t i, uint32_t first, uint32_t n, int end, double share)
{
    double *reduced = d->reduced + d->m->at[i];
    uint32_t labels = model_labels(d->m, i);
    for (uint32_t l = 0; l < n; l++) {
        double *to = message(d, d->m->link[first + l], end);
        for (uint32_t k = 0; k < labels; k++)
            to[k] -= share * reduced[k];
    }
    for (uint32_t k = 0; k < labels; k++)
        reduced[k] *= 1 - n * share; /* may be 0 */
}

/* ----------------------------------------------------------------------------------------------------------- passes */

/* The label of unit i that is best with the units before it as they are in x, and the messages of those behind. */
static uint8_t rounded(const struct qubo_dual *d, uint32_t i, const uint8_t *x)
{
    const struct qubo_model *m = d->m;
    uint32_t labels = model_labels(m, i), best = 0;
    double cost[256];
    for (uint32_t k = 0; k < labels; k++)
        cost[k] = d->reduced[m->at[i] + k];
    for (uint32_t l = m->first[i]; l < m->split[i]; l++) {
        uint32_t edge = m->link[l];
        const double *row = m->pair + m->table[edge] + (size_t)x[m->edge[edge][0]] * labels;
        const double *mine = message(d, edge, 1);
        for (uint32_t k = 0; k < labels; k++)
            cost[k] += row[k] - mine[k];
    }
    for (uint32_t k = 1; k < labels; k++)
        if (cost[k] < cost[best])
            best = k;
    return (uint8_t)best;
}

static double part_of(const struct qubo_model *m, uint32_t i)
{
    uint32_t before = m->split[i] - m->first[i], after = m->first[i + 1] - m->split[i];
    uint32_t most = before > after ? before : after;
    return most > 0 ? 1.0 / most : 0;
}

/* From the first unit to the last; with x, the rounding. */
static void pass_there(struct qubo_dual *d, uint8_t *x)
{
    const struct qubo_model *m = d->m;
    for (uint32_t i = 0; i < m->n; i++) {
        for (uint32_t l = m->first[i]; l < m->split[i]; l++)
            collect(d, i, m->link[l], 1);
        if (x)
            x[i] = rounded(d, i, x);
        distribute(d, i, m->split[i], m->first[i + 1] - m->split[i], 0, part_of(m, i));
    }
}

/* And back. Returns the sum of the units' minima at the end, when the edges' are 0: the bound, but for rounding. */
static double pass_back(struct qubo_dual *d)
{
    const struct qubo_model *m = d->m;
    double sum = m->constant;
    for (uint32_t i = m->n; i-- > 0;) {
        for (uint32_t l = m->split[i]; l < m->first[i + 1]; l++)
            collect(d, i, m->link[l], 0);
        distribute(d, i, m->first[i], m->split[i] - m->first[i], 1, part_of(m, i));
        double least = INFINITY;
        for (uint32_t k = m->at[i]; k < m->at[i + 1]; k++)
            least = fmin(least, d->reduced[k]);
        sum += least;
    }
    return sum;
}

/* -------------------------------------------------------------------------------------------------------- the bound */

static double edge_minimum(const struct qubo_dual *d, uint32_t edge)
{
    const struct qubo_model *m = d->m;
    uint32_t lower = model_labels(m, m->edge[edge][0]), higher = model_labels(m, m->edge[edge][1]);
    const double *table = m->pair + m->table[edge], *from = message(d, edge, 0), *to = message(d, edge, 1);
    double least = INFINITY;
    for (uint32_t a = 0; a < lower; a++)
        for (uint32_t b = 0; b < higher; b++)
            least = fmin(least, *table++ - from[a] - to[b]);
    return least;
}

/* The reduced costs afresh from the messages, and the sum of all minima less what it may be wrong by. Whatever the
 * messages, it is a bound in exact arithmetic. Each rounding errs by at most DBL_EPSILON / 2 of its result, of which
 * none is larger than the sum of all absolute values, and no value is the result of more roundings than there are
 * summands. */
static void evaluate(struct qubo_dual *d)
{
    const struct qubo_model *m = d->m;
    double sum = m->constant, magnitude = m->magnitude;
    for (uint32_t k = 0; k < m->at[m->n]; k++)
        d->reduced[k] = m->unary[k];
    for (uint32_t edge = 0; edge < m->n_edges; edge++) {
        double largest = 0;
        for (int end = 0; end < 2; end++) {
            uint32_t i = m->edge[edge][end];
            const double *from = message(d, edge, end);
            for (uint32_t k = 0; k < model_labels(m, i); k++) {
                d->reduced[m->at[i] + k] += from[k];
                largest = fmax(largest, fabs(from[k]));
            }
        }
        double least = edge_minimum(d, edge);
        sum += least;
        magnitude += fabs(least) + 4 * largest;
    }
    for (uint32_t i = 0; i < m->n; i++) {
        double least = INFINITY;
        for (uint32_t k = m->at[i]; k < m->at[i + 1]; k++)
            least = fmin(least, d->reduced[k]);
        sum += least;
    }
    d->error = DBL_EPSILON * (double)(m->n + m->n_edges + 8) * magnitude;
    d->bound = sum - d->error;
}

void dual_label_bounds(const struct qubo_dual *d, double *bound)
{
    const struct qubo_model *m = d->m;
    for (uint32_t i = 0; i < m->n; i++) {
        double least = INFINITY;
        for (uint32_t k = m->at[i]; k < m->at[i + 1]; k++) {
            bound[k] = d->reduced[k];
            least = fmin(least, d->reduced[k]);
        }
        for (uint32_t k = m->at[i]; k < m->at[i + 1]; k++)
            bound[k] += d->bound - least;
    }
    for (uint32_t edge = 0; edge < m->n_edges; edge++) {
        uint32_t u = m->edge[edge][0], v = m->edge[edge][1], lower = model_labels(m, u), higher = model_labels(m, v);
        const double *table = m->pair + m->table[edge], *from = message(d, edge, 0), *to = message(d, edge, 1);
        double least = edge_minimum(d, edge), of_higher[256];
        for (uint32_t b = 0; b < higher; b++)
            of_higher[b] = INFINITY;
        for (uint32_t a = 0; a < lower; a++) {
            double of_lower = INFINITY;
            for (uint32_t b = 0; b < higher; b++) {
                double x = *table++ - from[a] - to[b];
                of_lower = fmin(of_lower, x);
                of_higher[b] = fmin(of_higher[b], x);
            }
            bound[m->at[u] + a] += of_lower - least;
        }
        for (uint32_t b = 0; b < higher; b++)
            bound[m->at[v] + b] += of_higher[b] - least;
    }
}

/* ----------------------------------------------------------------------------------------------------------- ascent */

static bool dual_init(struct qubo_dual *d, const struct qubo_model *m, struct err *e)
{
    size_t to = 0;
    *d = (struct qubo_dual){.m = m};
    if (!mem_new(&d->offset, m->n_edges + 1, e))
        return false;
    for (size_t i = 0; i < m->n_edges; i++) {
        d->offset[i] = to;
        to += model_labels(m, m->edge[i][0]) + model_labels(m, m->edge[i][1]);
    }
    if (!mem_new(&d->message, to + 1, e) || !mem_new(&d->reduced, (size_t)m->at[m->n] + 1, e))
        return false;
    for (uint32_t k = 0; k < m->at[m->n]; k++)
        d->reduced[k] = m->unary[k];
    return true;
}

void dual_fini(struct qubo_dual *d)
{
    mem_free(d->offset);
    mem_free(d->message);
    mem_free(d->reduced);
    *d = (struct qubo_dual){0};
}

bool dual_ascend(struct qubo_dual *d, const struct qubo_model *m, int rounds, struct qubo_pool *pool, struct err *e)
{
    uint8_t *x = NULL;
    double start = 0, mark = 0;
    if (!dual_init(d, m, e) || !mem_new(&x, m->n, e)) {
        dual_fini(d);
        return false;
    }
    for (int round = 0; round < rounds; round++) {
        bool rounds_off = round % EACH == EACH - 1;
        pass_there(d, rounds_off ? x : NULL);
        if (rounds_off)
            pool_add(pool, m, x, model_energy(m, x));
        double now = pass_back(d);
        if (round == 0)
            start = mark = now;
        if (pool->n > 0 && now >= pool->energy[0])
            break;
        if (round % PATIENCE == PATIENCE - 1) {
            if (now - mark <= LEAST_GAIN * (now - start))
                break;
            mark = now;
        }
    }
    mem_free(x);
    evaluate(d);
    return true;
}
