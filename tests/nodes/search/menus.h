#ifndef TESTS_NODES_SEARCH_MENUS_H
#define TESTS_NODES_SEARCH_MENUS_H
/* A made-up model for the tests of the search: units of several sizes in four formats, with a surrogate cost that is
 * right only up to a factor per unit and format, and the "measured" KL that the right one gives. */
#include "tests/check.h"

#include <math.h>

#include "nodes/search/candidates.h"
#include "nodes/search/stats.h"

#define MADE_FORMATS 4 /* tiny, small, half, full */
#define MADE_WINDOWS 12

struct made {
    struct menu menu;
    double *cost;  /* [unit, format]: what the surrogate says */
    double *truth; /* [unit, format]: what measuring says */
    struct arena arena;
};

/* Unit u of every fifth is not to be had in the first format and has the third instead. Factors of the truth lie within 1/spread and spread. */
static inline void made_init(struct made *x, int n_units, double spread, uint64_t seed)
{
    static char *const names[] = {"tiny", "small", "half", "full"};
    static const double bits[] = {4.5, 4.5, 8.2, 16}, losses[] = {0.012, 0.01, 0.0007, 0};
    struct err e;
    size_t cells = (size_t)n_units * MADE_FORMATS;
    *x = (struct made){.menu = {.n_units = n_units, .n_formats = MADE_FORMATS}};
    struct menu *m = &x->menu;
    assert_ok((x->cost = arena_new(&x->arena, cells * sizeof *x->cost, &e)) &&
              (x->truth = arena_new(&x->arena, cells * sizeof *x->truth, &e)) &&
              (m->unit_names = arena_new(&x->arena, (size_t)n_units * sizeof *m->unit_names, &e)) &&
              (m->format_names = arena_new(&x->arena, sizeof names, &e)) &&
              (m->parameters = arena_new(&x->arena, (size_t)n_units * sizeof *m->parameters, &e)) &&
              (m->layers = arena_new(&x->arena, (size_t)n_units * sizeof *m->layers, &e)) &&
              (m->bytes = arena_new(&x->arena, cells * sizeof *m->bytes, &e)) &&
              (m->available = arena_new(&x->arena, cells, &e)) &&
              (m->fallback = arena_new(&x->arena, cells * sizeof *m->fallback, &e)), e);
    snprintf(m->serving, sizeof m->serving, "any");
    memcpy(m->format_names, names, sizeof names);
    for (int u = 0; u < n_units; u++) {
        assert_non_null(m->unit_names[u] = arena_printf(&x->arena, &e, "layer.%d.unit.%d", u / 4, u % 4));
        m->layers[u] = u / 4;
        m->parameters[u] = (uint64_t)(1 + u % 4) * 65536;
        m->total_parameters += m->parameters[u];
        double own = exp(log(spread) * (2 * (double)stats_random(&seed) * 0x1p-64 - 1));
        double loss = exp(2 * (double)stats_random(&seed) * 0x1p-64 - 1);
        for (int f = 0; f < MADE_FORMATS; f++) {
            int at = u * MADE_FORMATS + f;
            m->bytes[at] = (uint64_t)((double)m->parameters[u] * bits[f] / 8) + (f == 0 ? 4 : 0);
            m->available[at] = !(f == 0 && u % 5 == 4);
            m->fallback[at] = m->available[at] ? f : 2;
            x->cost[at] = m->available[at] ? loss * losses[f] : NAN;
            x->truth[at] = loss * losses[f] * own * (f == 2 ? 1.5 : 0.6);
        }
    }
}

static inline void made_fini(struct made *x) { arena_free(&x->arena); }

static inline double made_kl(const struct made *x, const uint8_t *assignment)
{
    double kl = 0;
    for (int u = 0; u < x->menu.n_units; u++)
        kl += x->truth[u * MADE_FORMATS + assignment[u]];
    return kl;
}

/* An empty table with windows: two of each of six documents. */
static inline void made_table(const struct made *x, struct candidates *out)
{
    struct err e;
    uint32_t tokens[MADE_WINDOWS], document[MADE_WINDOWS];
    for (uint32_t w = 0; w < MADE_WINDOWS; w++) {
        tokens[w] = 100 + w;
        document[w] = 40 - w / 2;
    }
    assert_ok(candidates_init(out, x->menu.n_units, MADE_WINDOWS, tokens, document, &e), e);
    snprintf(out->numeric, sizeof out->numeric, "fp32 made");
    snprintf(out->tokens, sizeof out->tokens, "made");
    snprintf(out->context, sizeof out->context, "made context");
}

/* The KL of a window: windows differ by a factor that candidates share. */
static inline double made_window(const struct candidates *table, double kl, uint32_t w)
{
    return kl * (0.8 + 0.05 * (table->window_document[w] % 8));
}

/* Fill the columns of a whole row from its windows. */
static inline void made_finish(const struct made *x, const struct candidates *table, struct candidate *c)
{
    double kl = made_kl(x, c->assignment), sum = 0, tokens = 0;
    for (uint32_t w = 0; w < table->n_windows; w++) {
        sum += c->kl_window[w] * table->window_tokens[w];
        tokens += table->window_tokens[w];
    }
    c->kl_mean = sum / tokens;
    c->kl_p95 = 3 * kl;
    c->kl_p99 = 5 * kl;
    c->kl_p999 = 7 * kl;
    c->kl_max = 9 * kl;
    c->nll_delta = kl / 2;
    c->top1 = exp(-kl);
}

/* "Measure" the entries from `first` on that were not dropped on these windows, as evaluator_measure_windows. */
static inline void made_measure_windows(const struct made *x, struct candidates *table, size_t first,
                                        const uint32_t *windows, size_t n)
{
    for (size_t i = first; i < table->n; i++) {
        struct candidate *c = &table->list[i];
        if (c->dropped_at >= 0)
            continue;
        for (size_t k = 0; k < n; k++) {
            bool is_new = isnan(c->kl_window[windows[k]]);
            c->kl_window[windows[k]] = made_window(table, made_kl(x, c->assignment), windows[k]);
            c->tokens += is_new ? table->window_tokens[windows[k]] : 0;
            c->n_windows += is_new;
        }
        if (c->n_windows == table->n_windows)
            made_finish(x, table, c);
    }
}

/* The same on all windows, from the start. */
static inline void made_measure(const struct made *x, struct candidates *table, size_t first)
{
    for (size_t i = first; i < table->n; i++) {
        struct candidate *c = &table->list[i];
        c->n_windows = table->n_windows;
        c->tokens = 0;
        for (uint32_t w = 0; w < table->n_windows; w++) {
            c->kl_window[w] = made_window(table, made_kl(x, c->assignment), w);
            c->tokens += table->window_tokens[w];
        }
        made_finish(x, table, c);
    }
}

/* Append a random assignment. */
static inline struct candidate *made_random(const struct made *x, struct candidates *table, uint64_t *seed)
{
    struct err e;
    uint8_t assignment[1024];
    for (int u = 0; u < x->menu.n_units; u++)
        do
            assignment[u] = (uint8_t)stats_below(seed, MADE_FORMATS);
        while (!x->menu.available[u * MADE_FORMATS + assignment[u]]);
    struct candidate *c = candidates_add(table, &x->menu, assignment, "random", -1, &e);
    assert_non_null(c);
    return c;
}

#endif
