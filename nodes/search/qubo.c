/* One lambda: striking out, the exact solver where it fits, else bound and search in turns. */
#include "nodes/search/qubo.h"

#include <float.h>
#include <math.h>
#include <string.h>

#include "nodes/search/qubo_private.h"
#include "nodes/search/stats.h"

#define TURNS 6       /* most models at one lambda, each of what the one before left open */
#define WORTH 0.02    /* of the open labels: striking out fewer ends the turns */
#define ROUNDINGS 4   /* of the bound, best first, that the search starts from */
#define BLOCKS 200    /* of units that are solved exactly with the others as they are */
#define BLOCK_CELLS ((size_t)1 << 12) /* most entries of the tables of one */

/* At work on one lambda. */
struct solve {
    const struct qubo_problem *p;
    const struct qubo_options *o; /* defaults filled in */
    struct qubo_open open;
    struct qubo_point *out;
    uint8_t *assignment;          /* [unit]: scratch */
};

static struct qubo_options filled(const struct qubo_options *o)
{
    struct qubo_options f = *o;
    f.starts = o->starts > 0 ? o->starts : 4;
    f.steps = o->steps > 0 ? o->steps : 40000;
    f.rounds = o->rounds > 0 ? o->rounds : 200;
    f.cells = o->cells > 0 ? o->cells : (size_t)1 << 24;
    f.threads = o->threads > 0 ? o->threads : 1;
    return f;
}

/* ------------------------------------------------------------------------------------------------------ assignments */

static double cost_of(const struct qubo_problem *p, const uint8_t *x)
{
    size_t n = (size_t)p->n_formats;
    double sum = 0;
    for (size_t u = 0; u < (size_t)p->n_units; u++)
        sum += p->cost[u * n + x[u]];
    for (size_t i = 0; i < p->n_pairs; i++)
        sum += p->pair_cost[(i * n + x[p->pairs[i][0]]) * n + x[p->pairs[i][1]]];
    return sum;
}

/* Keep an assignment if it is the best so far. */
static void offer(struct solve *s, const uint8_t *x)
{
    const struct qubo_problem *p = s->p;
    struct qubo_point *out = s->out;
    uint64_t bytes = 0;
    for (size_t u = 0; u < (size_t)p->n_units; u++)
        bytes += p->bytes[u * (size_t)p->n_formats + x[u]];
    double cost = cost_of(p, x), energy = cost + out->lambda * (double)bytes;
    if (!(energy < out->energy))
        return;
    memmove(out->assignment, x, (size_t)p->n_units);
    out->energy = energy;
    out->cost = cost;
    out->bytes = bytes;
}

/* A labelling of the open units, with what is decided of the others. */
static void offer_labels(struct solve *s, const struct qubo_model *m, const uint8_t *x)
{
    const struct qubo_problem *p = s->p;
    for (size_t u = 0; u < (size_t)p->n_units; u++)
        for (int f = 0; f < p->n_formats; f++)
            if (s->open.open[u * (size_t)p->n_formats + (size_t)f])
                s->assignment[u] = (uint8_t)f;
    for (uint32_t i = 0; i < m->n; i++)
        s->assignment[m->unit[i]] = m->format[m->at[i] + x[i]];
    offer(s, s->assignment);
}

/* The labels of an assignment; where its format is struck out, the cheapest open one. */
static void labels_of(const struct qubo_model *m, const uint8_t *assignment, uint8_t *x)
{
    for (uint32_t i = 0; i < m->n; i++) {
        const double *unary = m->unary + m->at[i];
        x[i] = 0;
        for (uint32_t k = 1; k < model_labels(m, i); k++)
            if (unary[k] < unary[x[i]])
                x[i] = (uint8_t)k;
        for (uint32_t k = 0; k < model_labels(m, i); k++)
            if (m->format[m->at[i] + k] == assignment[m->unit[i]])
                x[i] = (uint8_t)k;
    }
}

/* ----------------------------------------------------------------------------------------------------------- search */

/* Starts: the pool's, the best so far, random ones. x [start, unit] becomes what was found. */
static bool search(struct solve *s, const struct qubo_model *m, const struct qubo_pool *pool, struct err *e)
{
    size_t roundings = pool->n < ROUNDINGS ? pool->n : ROUNDINGS, starts = roundings + 1 + (size_t)s->o->starts;
    uint8_t *x = NULL;
    double *energy = NULL;
    struct err *errors = NULL;
    bool *ok = NULL;
    bool all = mem_new(&x, starts * m->n, e) && mem_new(&energy, starts, e) && mem_new(&errors, starts, e) &&
               mem_new(&ok, starts, e);
    if (all) {
        uint64_t seed = s->o->seed;
        memcpy(x, pool->x, roundings * m->n);
        labels_of(m, s->out->assignment, x + roundings * m->n);
        for (size_t i = roundings + 1; i < starts; i++)
            for (uint32_t u = 0; u < m->n; u++)
                x[i * m->n + u] = (uint8_t)stats_below(&seed, model_labels(m, u));
        /* Each start is on its own, so that threads cannot change what it finds. */
#pragma omp parallel for schedule(dynamic) num_threads(s->o->threads)
        for (size_t i = 0; i < starts; i++)
            ok[i] = qubo_local(m, s->o->seed + i, (size_t)s->o->steps, x + i * m->n, &energy[i], &errors[i]);
    }
    size_t best = 0;
    for (size_t i = 0; all && i < starts; i++) {
        if (!ok[i]) {
            *e = errors[i];
            all = false;
        } else if (energy[i] < energy[best]) {
            best = i;
        }
    }
    if (all)
        offer_labels(s, m, x + best * m->n);
    mem_free(ok);
    mem_free(errors);
    mem_free(energy);
    mem_free(x);
    return all;
}

/* The units around a random one, breadth first, `size` of them at most; list [unit] gets them, in [unit] is zeroed. */
static size_t grow(const struct qubo_open *r, uint32_t from, size_t size, uint32_t *list, uint8_t *in)
{
    const struct qubo_problem *p = r->p;
    size_t n = 1;
    list[0] = from;
    in[from] = 1;
    for (size_t k = 0; k < n && n < size; k++)
        for (uint32_t l = r->first[list[k]]; l < r->first[list[k] + 1] && n < size; l++) {
            const uint32_t *pair = p->pairs[r->link[l]];
            uint32_t other = pair[pair[0] == list[k]];
            if (!in[other]) {
                in[other] = 1;
                list[n++] = other;
            }
        }
    return n;
}

/* The optimum of the block `in` [unit] with all others as they are; *fits when its tables were small enough. */
static bool solve_block(struct solve *s, const uint8_t *in, bool *fits, struct err *e)
{
    struct qubo_open *open = &s->open;
    size_t n = (size_t)s->p->n_formats, cells = (size_t)s->p->n_units * n;
    uint8_t *all, *x = NULL;
    struct qubo_model m = {0};
    if (!mem_raw(&all, cells, e))
        return false;
    memcpy(all, open->open, cells);
    for (size_t i = 0; i < cells; i++)
        if (!in[i / n])
            open->open[i] = i % n == s->out->assignment[i / n];
    bool ok = open_strike(open, e) && open_model(open, &m, e) && mem_new(&x, m.n, e) &&
              qubo_tree(&m, BLOCK_CELLS, x, fits, e);
    if (ok && *fits)
        offer_labels(s, &m, x);
    memcpy(open->open, all, cells);
    mem_free(x);
    arena_free(&m.arena);
    mem_free(all);
    return ok;
}

/* Blocks as large as they may be: their size follows what fitted. */
static bool improve_blocks(struct solve *s, const struct qubo_model *m, struct err *e)
{
    uint64_t seed = s->o->seed;
    size_t size = 32, units = (size_t)s->p->n_units;
    uint32_t *list = NULL;
    uint8_t *in = NULL;
    bool ok = mem_new(&list, units, e) && mem_new(&in, units, e);
    for (int i = 0; ok && i < BLOCKS; i++) {
        bool fits = false;
        memset(in, 0, units);
        grow(&s->open, m->unit[stats_below(&seed, m->n)], size, list, in);
        ok = solve_block(s, in, &fits, e);
        size = fits ? size + size / 4 + 1 : size / 2 + 2;
    }
    mem_free(in);
    mem_free(list);
    return ok;
}

/* Strike out the labels whose bound is above the best energy; returns how many. */
static size_t strike_above(struct solve *s, const struct qubo_dual *d, const double *bound)
{
    const struct qubo_model *m = d->m;
    size_t struck = 0;
    for (uint32_t i = 0; i < m->n; i++) {
        uint8_t *open = s->open.open + (size_t)m->unit[i] * (size_t)s->p->n_formats;
        uint32_t left = model_labels(m, i);
        for (uint32_t k = m->at[i]; k < m->at[i + 1] && left > 1; k++)
            if (bound[k] > s->out->energy + 2 * d->error) {
                open[m->format[k]] = 0;
                struck++;
                left--;
            }
    }
    return struck;
}

/* Bound and search; *again when enough was struck out for another turn. */
static bool turn(struct solve *s, const struct qubo_model *m, bool *again, struct err *e)
{
    struct qubo_pool pool;
    struct qubo_dual d = {0};
    double *bound = NULL;
    if (!pool_init(&pool, m, ROUNDINGS, e))
        return false;
    bool ok = dual_ascend(&d, m, s->o->rounds, &pool, e) && search(s, m, &pool, e) &&
              improve_blocks(s, m, e) && mem_new(&bound, m->at[m->n], e);
    if (ok) {
        double energy = s->out->energy;
        s->out->bound = fmax(s->out->bound, fmin(d.bound, energy));
        s->out->is_exact = energy - d.bound <= 4 * d.error;
        dual_label_bounds(&d, bound);
        *again = !s->out->is_exact && (double)strike_above(s, &d, bound) > WORTH * m->at[m->n];
    }
    mem_free(bound);
    dual_fini(&d);
    pool_fini(&pool);
    return ok;
}

/* One model; *again when there is to be another. */
static bool step(struct solve *s, bool *again, struct err *e)
{
    struct qubo_model m;
    uint8_t *x = NULL;
    *again = false;
    if (!open_strike(&s->open, e) || !open_model(&s->open, &m, e))
        return false;
    bool ok = mem_new(&x, m.n, e) && qubo_tree(&m, s->o->cells, x, &s->out->is_exact, e);
    if (ok && s->out->is_exact)
        offer_labels(s, &m, x);
    else if (ok)
        ok = turn(s, &m, again, e);
    mem_free(x);
    arena_free(&m.arena);
    return ok;
}

bool qubo_solve(const struct qubo_problem *p, double lambda, const struct qubo_options *o, const uint8_t *const *hints,
                size_t n_hints, struct qubo_point *out, struct err *e)
{
    struct qubo_options full = filled(o);
    struct qubo_point point = {.lambda = lambda, .energy = INFINITY, .bound = -INFINITY,
                               .assignment = out->assignment};
    struct solve s = {.p = p, .o = &full, .out = &point};
    bool again = true;
    if (!mem_new(&s.assignment, (size_t)p->n_units, e) || !open_init(&s.open, p, lambda, e)) {
        mem_free(s.assignment);
        return false;
    }
    for (size_t u = 0; u < (size_t)p->n_units; u++) /* the best format of each unit on its own */
        for (int f = p->n_formats - 1, best = -1; f >= 0; f--) {
            size_t at = u * (size_t)p->n_formats;
            if (s.open.open[at + (size_t)f] &&
                (best < 0 || s.open.unary[at + (size_t)f] <= s.open.unary[at + (size_t)best]))
                s.assignment[u] = (uint8_t)(best = f);
        }
    offer(&s, s.assignment);
    for (size_t i = 0; i < n_hints; i++)
        offer(&s, hints[i]);
    bool ok = true;
    for (int i = 0; ok && again && i < TURNS; i++)
        ok = step(&s, &again, e);
    if (ok) {
        if (point.is_exact)
            point.bound = point.energy;
        point.gap = fmax(0, point.energy - point.bound) / fmax(fabs(point.energy), DBL_MIN);
        *out = point;
    }
    open_fini(&s.open);
    mem_free(s.assignment);
    return ok;
}
