/* The chain along lambda: the lower hull of (bytes, cost), found by bisection. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "engine/base/mem.h"
#include "nodes/search/qubo.h"

#define SAME 1e-10 /* of the energy: less is no gain */

/* A point, and whether nothing on the lower hull lies between it and the next. */
struct vertex {
    struct qubo_point point;
    bool is_closed;
};

/* The lower hull of what was found: bytes rising, cost falling. */
struct chain {
    const struct qubo_problem *p;
    const struct qubo_sweep_options *o;
    struct vertex *v;
    size_t n, capacity;
    uint8_t *fresh; /* [unit]: what is being found */
};

static double energy_at(const struct qubo_point *x, double lambda) { return x->cost + lambda * (double)x->bytes; }

/* What a byte must cost for both to have the same energy; a is the smaller one. */
static double balance(const struct qubo_point *a, const struct qubo_point *b)
{
    return (a->cost - b->cost) / (double)(b->bytes - a->bytes);
}

/* Is the middle one of three not below the line between the others? */
static bool is_above(const struct qubo_point *a, const struct qubo_point *x, const struct qubo_point *b)
{
    return balance(a, x) <= balance(x, b);
}

static void drop(struct chain *c, size_t at)
{
    mem_free(c->v[at].point.assignment);
    memmove(c->v + at, c->v + at + 1, (c->n - 1 - at) * sizeof *c->v);
    c->n--;
}

static bool put(struct chain *c, size_t at, const struct qubo_point *x, struct err *e)
{
    size_t units = (size_t)c->p->n_units, capacity = 2 * c->capacity + 16;
    uint8_t *assignment;
    if (c->n == c->capacity) {
        if (!mem_grow(&c->v, c->capacity, capacity, e))
            return false;
        c->capacity = capacity;
    }
    if (!mem_raw(&assignment, units, e))
        return false;
    memcpy(assignment, x->assignment, units);
    memmove(c->v + at + 1, c->v + at, (c->n - at) * sizeof *c->v);
    c->v[at] = (struct vertex){.point = *x};
    c->v[at].point.assignment = assignment;
    c->n++;
    return true;
}

/* Put a copy of a point in its place, unless it is not below the hull, and leave out what then is not. */
static bool insert(struct chain *c, const struct qubo_point *x, bool *is_new, struct err *e)
{
    size_t at = 0;
    *is_new = false;
    while (at < c->n && c->v[at].point.bytes < x->bytes)
        at++;
    if ((at > 0 && c->v[at - 1].point.cost <= x->cost) ||
        (at < c->n && c->v[at].point.bytes == x->bytes && c->v[at].point.cost <= x->cost))
        return true;
    while (at < c->n && c->v[at].point.cost >= x->cost)
        drop(c, at);
    if (at > 0 && at < c->n && is_above(&c->v[at - 1].point, x, &c->v[at].point))
        return true;
    if (!put(c, at, x, e))
        return false;
    for (; at >= 2 && is_above(&c->v[at - 2].point, &c->v[at - 1].point, x); at--)
        drop(c, at - 1);
    while (at + 2 < c->n && is_above(x, &c->v[at + 1].point, &c->v[at + 2].point))
        drop(c, at + 1);
    if (at > 0)
        c->v[at - 1].is_closed = false;
    *is_new = true;
    return true;
}

/* --------------------------------------------------------------------------------------------------------- its ends */

/* The most that unit u can save, in nats per byte, by a format that is larger than another, whatever its neighbours
 * have; at any higher price everything is in its smallest formats. most [unit, format] is scratch. */
static double steepest(const struct qubo_problem *p, double *highest)
{
    size_t n = (size_t)p->n_formats;
    double slope = 0;
    for (size_t a = 0; a < n; a++)
        for (size_t b = 0; b < n; b++) {
            for (size_t u = 0; u < (size_t)p->n_units; u++)
                highest[u] = p->cost[u * n + a] - p->cost[u * n + b];
            for (size_t i = 0; i < p->n_pairs; i++)
                for (int end = 0; end < 2; end++) {
                    const double *table = p->pair_cost + i * n * n;
                    size_t own = end ? 1 : n, other = end ? n : 1, v = p->pairs[i][!end];
                    double most = -INFINITY;
                    for (size_t f = 0; f < n; f++)
                        if (!isnan(p->cost[v * n + f]))
                            most = fmax(most, table[a * own + f * other] - table[b * own + f * other]);
                    highest[p->pairs[i][end]] += most;
                }
            for (size_t u = 0; u < (size_t)p->n_units; u++) {
                uint64_t from = p->bytes[u * n + a], to = p->bytes[u * n + b];
                if (from < to && highest[u] > 0) /* no for NaN: one is not available */
                    slope = fmax(slope, highest[u] / (double)(to - from));
            }
        }
    return slope;
}

/* Solve at lambda, from the two points after `at` if there are any, and put what is found into the chain. */
static bool look(struct chain *c, double lambda, long at, bool *is_new, struct err *e)
{
    struct qubo_point x = {.assignment = c->fresh};
    const uint8_t *hints[2] = {0};
    for (int i = 0; at >= 0 && i < 2; i++)
        hints[i] = c->v[at + i].point.assignment;
    *is_new = false;
    if (!qubo_solve(c->p, lambda, &c->o->solve, hints, at >= 0 ? 2 : 0, &x, e))
        return false;
    if (at >= 0) {
        double here = energy_at(&c->v[at].point, lambda);
        if (here - x.energy <= SAME * fabs(here))
            return true;
    }
    return insert(c, &x, is_new, e);
}

static bool find_ends(struct chain *c, struct err *e)
{
    double *scratch, high;
    bool is_new;
    if (!mem_new(&scratch, (size_t)c->p->n_units, e))
        return false;
    high = steepest(c->p, scratch) * (1 + 1e-9);
    mem_free(scratch);
    return look(c, high, -1, &is_new, e) && look(c, 0, -1, &is_new, e);
}

/* -------------------------------------------------------------------------------------------------------- bisection */

/* The open interval that is widest within the range, or -1. */
static long widest(const struct chain *c)
{
    uint64_t low = c->o->low, high = c->o->high > 0 ? c->o->high : UINT64_MAX, most = 0;
    long found = -1;
    for (size_t i = 0; i + 1 < c->n; i++) {
        uint64_t from = c->v[i].point.bytes, to = c->v[i + 1].point.bytes;
        if (c->v[i].is_closed || to - from < c->o->resolution || to <= low || from >= high)
            continue;
        from = from > low ? from : low;
        to = to < high ? to : high;
        if (to - from > most) {
            most = to - from;
            found = (long)i;
        }
    }
    return found;
}

static bool bisect(struct chain *c, struct err *e)
{
    for (long at; c->n < c->o->count && (at = widest(c)) >= 0;) {
        bool is_new;
        if (c->o->stopping && c->o->stopping(c->o->context))
            return err_set(e, ERR_STOPPED, "interrupted");
        if (!look(c, balance(&c->v[at].point, &c->v[at + 1].point), at, &is_new, e))
            return false;
        if (!is_new)
            c->v[at].is_closed = true;
        if (c->o->tell)
            c->o->tell(c->o->context, c->n);
    }
    return true;
}

/* All in one block: the points, then their assignments. */
static bool pack(const struct chain *c, struct qubo_point **out, size_t *n, struct err *e)
{
    size_t units = (size_t)c->p->n_units;
    struct qubo_point *points = NULL;
    if (!mem_new_bytes((void **)&points, c->n, sizeof *points + units, e))
        return false;
    uint8_t *assignments = (uint8_t *)(points + c->n);
    for (size_t i = 0; i < c->n; i++) {
        points[i] = c->v[i].point;
        points[i].assignment = assignments + i * units;
        memcpy(points[i].assignment, c->v[i].point.assignment, units);
    }
    *out = points;
    *n = c->n;
    return true;
}

bool qubo_sweep(const struct qubo_problem *p, const struct qubo_sweep_options *o, struct qubo_point **out, size_t *n,
                struct err *e)
{
    struct chain c = {.p = p, .o = o};
    bool ok = mem_new(&c.fresh, (size_t)p->n_units, e) && find_ends(&c, e) && bisect(&c, e) && pack(&c, out, n, e);
    for (size_t i = 0; i < c.n; i++)
        mem_free(c.v[i].point.assignment);
    mem_free(c.v);
    mem_free(c.fresh);
    return ok;
}
