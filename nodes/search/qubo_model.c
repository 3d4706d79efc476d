/* A problem at one lambda with the formats that are still open: striking them out, and the compact model of what is
 * left. Also the pool of labellings. */
#include <math.h>
#include <string.h>

#include "nodes/search/qubo_private.h"

#define MARGIN 1e-12 /* of the sum of absolute values: sums of f64 that differ by less are taken as equal */

/* ------------------------------------------------------------------------------------------------------------ pairs */

static size_t cell(const struct qubo_problem *p, uint32_t u, int format)
{
    return (size_t)u * (size_t)p->n_formats + (size_t)format;
}

/* Cost of a pair seen from unit u: u in format a, the other in format b. */
static double pair_cost(const struct qubo_problem *p, uint32_t pair, uint32_t u, int a, int b)
{
    size_t n = (size_t)p->n_formats, base = pair * n * n;
    return p->pair_cost[p->pairs[pair][0] == u ? base + (size_t)a * n + (size_t)b : base + (size_t)b * n + (size_t)a];
}

static uint32_t other_unit(const struct qubo_problem *p, uint32_t pair, uint32_t u)
{
    return p->pairs[pair][0] == u ? p->pairs[pair][1] : p->pairs[pair][0];
}

/* Lists of edges per unit, in the order of the edges; first [n + 1], link [2 * n_edges]. */
static void link_up(uint32_t n, uint32_t (*edge)[2], size_t n_edges, uint32_t *first, uint32_t *link)
{
    for (size_t i = 0; i < n_edges; i++)
        for (int k = 0; k < 2; k++)
            first[edge[i][k] + 1]++;
    for (uint32_t u = 0; u < n; u++)
        first[u + 1] += first[u];
    for (int end = 1; end >= 0; end--) /* as the higher end first */
        for (size_t i = 0; i < n_edges; i++)
            link[first[edge[i][end]]++] = (uint32_t)i;
    memmove(first + 1, first, n * sizeof *first); /* each start has become the next one's */
    first[0] = 0;
}

bool open_init(struct qubo_open *r, const struct qubo_problem *p, double lambda, struct err *e)
{
    size_t cells = (size_t)p->n_units * (size_t)p->n_formats;
    *r = (struct qubo_open){.p = p};
    if (!mem_new(&r->unary, cells, e) || !mem_new(&r->open, cells, e) ||
        !mem_new(&r->first, (size_t)p->n_units + 1, e) || !mem_new(&r->link, 2 * p->n_pairs, e)) {
        open_fini(r);
        return false;
    }
    for (size_t i = 0; i < cells; i++) {
        r->open[i] = (uint8_t)!isnan(p->cost[i]);
        r->unary[i] = p->cost[i] + lambda * (double)p->bytes[i];
    }
    link_up((uint32_t)p->n_units, p->pairs, p->n_pairs, r->first, r->link);
    return true;
}

void open_fini(struct qubo_open *r)
{
    mem_free(r->unary);
    mem_free(r->open);
    mem_free(r->first);
    mem_free(r->link);
    *r = (struct qubo_open){0};
}

/* ----------------------------------------------------------------------------------------------------- striking out */

/* Is unit u in format b better than in a, whatever its neighbours have? By more than rounding, so that no optimum is
 * lost, and formats that are equal both stay. */
static bool is_dead_end(const struct qubo_open *r, uint32_t u, int a, int b)
{
    const struct qubo_problem *p = r->p;
    double x = r->unary[cell(p, u, a)], y = r->unary[cell(p, u, b)], gain = x - y, size = fabs(x) + fabs(y);
    for (uint32_t i = r->first[u]; i < r->first[u + 1]; i++) {
        uint32_t v = other_unit(p, r->link[i], u);
        double least = INFINITY, largest = 0;
        for (int f = 0; f < p->n_formats; f++)
            if (r->open[cell(p, v, f)]) {
                double with_a = pair_cost(p, r->link[i], u, a, f), with_b = pair_cost(p, r->link[i], u, b, f);
                least = fmin(least, with_a - with_b);
                largest = fmax(largest, fabs(with_a) + fabs(with_b));
            }
        gain += least;
        size += largest;
    }
    return gain > MARGIN * size;
}

static bool strike_unit(struct qubo_open *r, uint32_t u)
{
    bool changed = false;
    for (int a = 0; a < r->p->n_formats; a++)
        for (int b = 0; r->open[cell(r->p, u, a)] && b < r->p->n_formats; b++)
            if (b != a && r->open[cell(r->p, u, b)] && is_dead_end(r, u, a, b)) {
                r->open[cell(r->p, u, a)] = 0;
                changed = true;
            }
    return changed;
}

bool open_strike(struct qubo_open *r, struct err *e)
{
    const struct qubo_problem *p = r->p;
    uint8_t *stale; /* units of which a neighbour has changed */
    if (!mem_new(&stale, (size_t)p->n_units, e))
        return false;
    memset(stale, 1, (size_t)p->n_units);
    for (bool changed = true; changed;) {
        changed = false;
        for (uint32_t u = 0; u < (uint32_t)p->n_units; u++) {
            if (!stale[u])
                continue;
            stale[u] = 0;
            if (!strike_unit(r, u))
                continue;
            changed = true;
            for (uint32_t i = r->first[u]; i < r->first[u + 1]; i++)
                stale[other_unit(p, r->link[i], u)] = 1;
        }
    }
    mem_free(stale);
    return true;
}

/* -------------------------------------------------------------------------------------------------------- the model */

/* The one format that unit u still has, or -1. */
static int decided(const struct qubo_open *r, uint32_t u)
{
    int found = -1;
    for (int f = 0; f < r->p->n_formats; f++)
        if (r->open[cell(r->p, u, f)]) {
            if (found >= 0)
                return -1;
            found = f;
        }
    return found;
}

/* Units and labels, without neighbours; number [unit] gets the number in the model, or -1 - the format it must have. */
static bool add_units(const struct qubo_open *r, struct qubo_model *m, int64_t *number, struct err *e)
{
    size_t units = (size_t)r->p->n_units, formats = (size_t)r->p->n_formats;
    uint32_t labels = 0;
    if (!(m->unit = arena_new(&m->arena, units * sizeof *m->unit, e)) ||
        !(m->at = arena_new(&m->arena, (units + 1) * sizeof *m->at, e)) ||
        !(m->format = arena_new(&m->arena, units * formats * sizeof *m->format, e)) ||
        !(m->unary = arena_new(&m->arena, units * formats * sizeof *m->unary, e)))
        return false;
    for (uint32_t u = 0; u < units; u++) {
        int format = decided(r, u);
        number[u] = format >= 0 ? -1 - (int64_t)format : (int64_t)m->n;
        if (format >= 0) {
            double x = r->unary[cell(r->p, u, format)];
            m->constant += x;
            m->magnitude += fabs(x);
            continue;
        }
        m->unit[m->n++] = u;
        for (int f = 0; f < r->p->n_formats; f++)
            if (r->open[cell(r->p, u, f)]) {
                m->format[labels] = (uint8_t)f;
                m->unary[labels] = r->unary[cell(r->p, u, f)];
                m->magnitude += fabs(m->unary[labels++]);
            }
        m->at[m->n] = labels;
    }
    return true;
}

/* A pair with at least one unit decided. */
static void fold_pair(const struct qubo_open *r, struct qubo_model *m, const int64_t *number, uint32_t pair)
{
    uint32_t u = r->p->pairs[pair][0], v = r->p->pairs[pair][1];
    if (number[u] >= 0) {
        uint32_t swap = u;
        u = v, v = swap;
    }
    int format = (int)(-1 - number[u]);
    if (number[v] < 0) {
        double x = pair_cost(r->p, pair, u, format, (int)(-1 - number[v]));
        m->constant += x;
        m->magnitude += fabs(x);
        return;
    }
    for (uint32_t k = m->at[number[v]]; k < m->at[number[v] + 1]; k++) {
        double x = pair_cost(r->p, pair, u, format, m->format[k]);
        m->unary[k] += x;
        m->magnitude += fabs(x);
    }
}

static bool add_pairs(const struct qubo_open *r, struct qubo_model *m, const int64_t *number, struct err *e)
{
    const struct qubo_problem *p = r->p;
    size_t entries = 0;
    for (size_t i = 0; i < p->n_pairs; i++) {
        int64_t u = number[p->pairs[i][0]], v = number[p->pairs[i][1]];
        if (u >= 0 && v >= 0) {
            m->n_edges++;
            entries += (size_t)model_labels(m, (uint32_t)u) * model_labels(m, (uint32_t)v);
        }
    }
    if (!(m->edge = arena_new(&m->arena, (m->n_edges + 1) * sizeof *m->edge, e)) ||
        !(m->table = arena_new(&m->arena, (m->n_edges + 1) * sizeof *m->table, e)) ||
        !(m->pair = arena_new(&m->arena, (entries + 1) * sizeof *m->pair, e)))
        return false;
    size_t edge = 0, to = 0;
    for (size_t i = 0; i < p->n_pairs; i++) {
        int64_t u = number[p->pairs[i][0]], v = number[p->pairs[i][1]];
        if (u < 0 || v < 0) {
            fold_pair(r, m, number, (uint32_t)i);
            continue;
        }
        m->edge[edge][0] = (uint32_t)u;
        m->edge[edge][1] = (uint32_t)v;
        m->table[edge++] = to;
        for (uint32_t a = m->at[u]; a < m->at[u + 1]; a++)
            for (uint32_t b = m->at[v]; b < m->at[v + 1]; b++)
                m->pair[to++] = pair_cost(p, (uint32_t)i, p->pairs[i][0], m->format[a], m->format[b]);
    }
    return true;
}

static bool add_links(struct qubo_model *m, struct err *e)
{
    if (!(m->first = arena_new(&m->arena, ((size_t)m->n + 1) * sizeof *m->first, e)) ||
        !(m->split = arena_new(&m->arena, ((size_t)m->n + 1) * sizeof *m->split, e)) ||
        !(m->link = arena_new(&m->arena, (2 * m->n_edges + 1) * sizeof *m->link, e)))
        return false;
    link_up(m->n, m->edge, m->n_edges, m->first, m->link);
    for (uint32_t i = 0; i < m->n; i++) {
        m->split[i] = m->first[i];
        while (m->split[i] < m->first[i + 1] && m->edge[m->link[m->split[i]]][1] == i)
            m->split[i]++;
    }
    return true;
}

bool open_model(const struct qubo_open *r, struct qubo_model *out, struct err *e)
{
    struct qubo_model m = {0};
    int64_t *number = NULL;
    bool ok = mem_new(&number, (size_t)r->p->n_units, e) && add_units(r, &m, number, e) &&
              add_pairs(r, &m, number, e) && add_links(&m, e);
    mem_free(number);
    if (!ok) {
        arena_free(&m.arena);
        return false;
    }
    *out = m;
    return true;
}

double model_energy(const struct qubo_model *m, const uint8_t *x)
{
    double sum = m->constant;
    for (uint32_t i = 0; i < m->n; i++)
        sum += m->unary[m->at[i] + x[i]];
    for (size_t i = 0; i < m->n_edges; i++) {
        const uint32_t *ends = m->edge[i];
        sum += m->pair[m->table[i] + (size_t)x[ends[0]] * model_labels(m, ends[1]) + x[ends[1]]];
    }
    return sum;
}

/* --------------------------------------------------------------------------------------------------------- the pool */

bool pool_init(struct qubo_pool *pool, const struct qubo_model *m, size_t most, struct err *e)
{
    *pool = (struct qubo_pool){.most = most};
    if (!mem_new(&pool->x, most * m->n, e) || !mem_new(&pool->energy, most, e)) {
        pool_fini(pool);
        return false;
    }
    return true;
}

void pool_fini(struct qubo_pool *pool)
{
    mem_free(pool->x);
    mem_free(pool->energy);
    *pool = (struct qubo_pool){0};
}

void pool_add(struct qubo_pool *pool, const struct qubo_model *m, const uint8_t *x, double energy)
{
    size_t at = pool->n, units = m->n;
    while (at > 0 && pool->energy[at - 1] > energy)
        at--;
    for (size_t i = at; i > 0 && pool->energy[i - 1] == energy; i--)
        if (memcmp(pool->x + (i - 1) * units, x, units) == 0)
            return;
    if (at == pool->most)
        return;
    pool->n += pool->n < pool->most;
    memmove(pool->x + (at + 1) * units, pool->x + at * units, (pool->n - 1 - at) * units);
    memmove(pool->energy + at + 1, pool->energy + at, (pool->n - 1 - at) * sizeof *pool->energy);
    memcpy(pool->x + at * units, x, units);
    pool->energy[at] = energy;
}
