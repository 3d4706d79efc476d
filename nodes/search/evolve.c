/* Drawing assignments within the budget, and the stages of selection. */
#include "nodes/search/evolve.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "nodes/search/allocate.h"
#include "nodes/search/stats.h"

#define MOST_RAISES 3  /* of an offspring, before the budget is seen to */
#define MOST_CHANGES 10
#define ATTEMPTS 1000  /* to draw one that is new */
#define MOST_LEVELS 255

/* What a run has at hand beside the caller's struct. */
struct state {
    struct evolve *v;
    uint8_t *level;      /* [unit, level]: formats, bytes ascending */
    int *n_levels;       /* [unit] */
    int *at;             /* [unit]: the levels of what is being drawn */
    int8_t *moved;       /* [unit]: +1 raised, -1 lowered */
    int *open;           /* [unit]: scratch */
    uint8_t *assignment; /* [unit]: what is being drawn, as formats */
    uint64_t bytes;      /* of it */
    uint32_t *windows;   /* [window]: in the generation's order */
    uint32_t *live;      /* ids of the generation's candidates that are still in */
    size_t n_live;
    uint64_t random;
    long parent;         /* -1: none yet */
};

/* ----------------------------------------------------------------------------------------------------------- levels */

struct option {
    uint64_t bytes;
    double cost;
    int format;
};

static int by_bytes(const void *a, const void *b)
{
    const struct option *x = a, *y = b;
    if (x->bytes != y->bytes)
        return x->bytes < y->bytes ? -1 : 1;
    if (x->cost != y->cost)
        return x->cost < y->cost ? -1 : 1;
    return x->format - y->format;
}

static void find_levels(struct state *s)
{
    const struct menu *m = s->v->menu;
    struct option options[MOST_LEVELS];
    for (int u = 0; u < m->n_units; u++) {
        size_t n = 0;
        double least = INFINITY;
        for (int f = 0; f < m->n_formats; f++) {
            int cell = u * m->n_formats + f;
            if (m->available[cell])
                options[n++] = (struct option){m->bytes[cell], s->v->cost[cell], f};
        }
        qsort(options, n, sizeof *options, by_bytes);
        for (size_t i = 0; i < n; i++)
            if (options[i].cost < least) {
                s->level[u * m->n_formats + s->n_levels[u]++] = (uint8_t)options[i].format;
                least = options[i].cost;
            }
    }
}

static uint64_t bytes_at(const struct state *s, int unit, int level)
{
    int row = unit * s->v->menu->n_formats;
    return s->v->menu->bytes[row + s->level[row + level]];
}

/* Start from an assignment of levels. */
static void take_levels(struct state *s)
{
    const struct menu *m = s->v->menu;
    s->bytes = 0;
    for (int u = 0; u < m->n_units; u++)
        s->bytes += bytes_at(s, u, s->at[u]);
    memset(s->moved, 0, (size_t)m->n_units * sizeof *s->moved);
}

static void take_parent(struct state *s)
{
    const struct menu *m = s->v->menu;
    const uint8_t *from = s->v->table->list[s->parent].assignment;
    for (int u = 0; u < m->n_units; u++) {
        s->at[u] = 0;
        while (s->level[u * m->n_formats + s->at[u]] != from[u])
            s->at[u]++;
    }
    take_levels(s);
}

/* --------------------------------------------------------------------------------------------------------- mutation */

static void step(struct state *s, int unit, int by)
{
    s->bytes = s->bytes - bytes_at(s, unit, s->at[unit]) + bytes_at(s, unit, s->at[unit] + by);
    s->at[unit] += by;
    s->moved[unit] = (int8_t)by;
}

/* A random unit goes up a level, none that went down before, and to at most `most` bytes in all. False if there is
 * none. */
static bool raise_one(struct state *s, uint64_t most)
{
    size_t n = 0;
    for (int u = 0; u < s->v->menu->n_units; u++)
        if (s->moved[u] >= 0 && s->at[u] + 1 < s->n_levels[u] &&
            s->bytes - bytes_at(s, u, s->at[u]) + bytes_at(s, u, s->at[u] + 1) <= most)
            s->open[n++] = u;
    if (n > 0)
        step(s, s->open[stats_below(&s->random, n)], 1);
    return n > 0;
}

/* A random unit goes down a level, none that went up before. */
static bool lower_one(struct state *s)
{
    size_t n = 0;
    for (int u = 0; u < s->v->menu->n_units; u++)
        if (s->moved[u] <= 0 && s->at[u] > 0)
            s->open[n++] = u;
    if (n > 0)
        step(s, s->open[stats_below(&s->random, n)], -1);
    return n > 0;
}

/* Draw an offspring of the parent. False when this draw came to nothing. */
static bool mutate(struct state *s)
{
    uint64_t a = stats_below(&s->random, MOST_RAISES), b = stats_below(&s->random, MOST_RAISES);
    int changes = 0;
    take_parent(s);
    for (uint64_t i = 0; i <= (a < b ? a : b); i++)
        changes += raise_one(s, UINT64_MAX);
    while (s->bytes > s->v->most_bytes)
        if (!lower_one(s) || ++changes > MOST_CHANGES)
            return false;
    while (raise_one(s, s->v->most_bytes))
        continue;
    return true;
}

/* Draw one for the first generation: from the smallest level for all that does not fit, random units go down until the
 * budget holds, and then up as long as one fits. The first of all is the largest level for all that fits, filled up. */
static void draw_first(struct state *s, int level, bool is_first)
{
    for (int u = 0; u < s->v->menu->n_units; u++) {
        int top = s->n_levels[u] - 1, to = is_first ? level : level + 1;
        s->at[u] = to < top ? to : top;
    }
    take_levels(s);
    while (s->bytes > s->v->most_bytes) {
        memset(s->moved, 0, (size_t)s->v->menu->n_units * sizeof *s->moved);
        if (!lower_one(s))
            break; /* not reached: all at level 0 fit */
    }
    memset(s->moved, 0, (size_t)s->v->menu->n_units * sizeof *s->moved);
    while (raise_one(s, s->v->most_bytes))
        continue;
}

/* Put what was drawn among the generation's candidates, unless it is there or is the parent. One that was dropped in an
 * earlier generation is let in again. */
static bool let_in(struct state *s, bool *is_new, struct err *e)
{
    struct evolve *v = s->v;
    const struct menu *m = v->menu;
    for (int u = 0; u < m->n_units; u++)
        s->assignment[u] = s->level[u * m->n_formats + s->at[u]];
    long at = candidates_find(v->table, s->assignment);
    *is_new = at < 0 || v->table->list[at].dropped_at >= 0;
    if (!*is_new)
        return true;
    if (at < 0) {
        const struct candidate *c = candidates_add(v->table, m, s->assignment, "evolve", (int32_t)s->parent, e);
        if (!c)
            return false;
        at = c->id;
    }
    struct candidate *c = &v->table->list[at];
    c->dropped_at = c->dropped_by = -1;
    s->live[s->n_live++] = (uint32_t)at;
    return true;
}

/* The generation's candidates; fewer than wanted when no new ones are drawn any more. */
static bool draw_generation(struct state *s, struct err *e)
{
    int level = 0;
    bool fits = true, is_new;
    while (s->parent < 0 && fits) { /* the largest level for all that fits */
        uint64_t bytes = 0;
        bool is_higher = false;
        for (int u = 0; u < s->v->menu->n_units; u++) {
            int top = s->n_levels[u] - 1;
            is_higher |= level < top;
            bytes += bytes_at(s, u, level + 1 < top ? level + 1 : top);
        }
        fits = is_higher && bytes <= s->v->most_bytes;
        level += fits;
    }
    s->n_live = 0;
    for (int attempt = 0; attempt < ATTEMPTS && s->n_live < (size_t)s->v->offspring; attempt++) {
        if (s->parent < 0)
            draw_first(s, level, attempt == 0);
        else if (!mutate(s))
            continue;
        if (!let_in(s, &is_new, e))
            return false;
        attempt = is_new ? 0 : attempt;
    }
    return true;
}

/* -------------------------------------------------------------------------------------------------------- selection */

/* Mean KL over the first n windows of the generation's order. */
static double fitness(const struct state *s, uint32_t id, size_t n)
{
    const struct candidates *t = s->v->table;
    double sum = 0, tokens = 0;
    for (size_t i = 0; i < n; i++) {
        uint32_t w = s->windows[i];
        sum += t->list[id].kl_window[w] * t->window_tokens[w];
        tokens += t->window_tokens[w];
    }
    return sum / tokens;
}

/* Positions that measuring what is live on the first n windows would add. */
static uint64_t tokens_wanted(const struct state *s, size_t n)
{
    const struct candidates *t = s->v->table;
    uint64_t wanted = 0;
    for (size_t i = 0; i < s->n_live; i++)
        for (size_t k = 0; k < n; k++)
            wanted += isnan(t->list[s->live[i]].kl_window[s->windows[k]]) ? t->window_tokens[s->windows[k]] : 0;
    return wanted;
}

struct rank {
    double kl;
    uint64_t bytes;
    uint32_t id;
};

static int by_kl(const void *a, const void *b)
{
    const struct rank *x = a, *y = b;
    if (x->kl != y->kl)
        return x->kl < y->kl ? -1 : 1;
    if (x->bytes != y->bytes)
        return x->bytes < y->bytes ? -1 : 1;
    return (x->id > y->id) - (x->id < y->id);
}

static void drop(struct state *s, uint32_t id, uint32_t by)
{
    struct candidate *c = &s->v->table->list[id];
    if (candidate_is_complete(s->v->table, c))
        return; /* there is nothing to be spared */
    c->dropped_at = (int32_t)c->n_windows;
    c->dropped_by = (int32_t)by;
}

/* Keep the best `most` of what is live by the first n windows, in order. */
static bool survive(struct state *s, size_t n, size_t most, struct err *e)
{
    struct rank *ranks;
    if (!mem_new(&ranks, s->n_live, e))
        return false;
    for (size_t i = 0; i < s->n_live; i++) {
        ranks[i] = (struct rank){fitness(s, s->live[i], n), s->v->table->list[s->live[i]].bytes, s->live[i]};
        if (!isfinite(ranks[i].kl))
            ranks[i].kl = INFINITY; /* a model that breaks down is no survivor */
    }
    qsort(ranks, s->n_live, sizeof *ranks, by_kl);
    for (size_t i = 0; i < s->n_live; i++) {
        s->live[i] = ranks[i].id;
        if (i >= most)
            drop(s, ranks[i].id, ranks[0].id);
    }
    s->n_live = s->n_live < most ? s->n_live : most;
    mem_free(ranks);
    return true;
}

static void shuffle_windows(struct state *s)
{
    uint32_t n = s->v->table->n_windows;
    for (uint32_t w = 0; w < n; w++)
        s->windows[w] = w;
    for (uint32_t w = n; w > 1; w--) {
        uint32_t other = (uint32_t)stats_below(&s->random, w), kept = s->windows[w - 1];
        s->windows[w - 1] = s->windows[other];
        s->windows[other] = kept;
    }
}

/* The generation is not finished: what is live is let go of. */
static void abandon(struct state *s)
{
    for (size_t i = 0; i < s->n_live; i++)
        drop(s, s->live[i], (uint32_t)(s->parent < 0 ? s->live[0] : (uint32_t)s->parent));
    s->n_live = 0;
}

/* All stages. *is_done false: the tokens did not reach to the end. */
static bool select_parent(struct state *s, bool *is_done, struct err *e)
{
    struct evolve *v = s->v;
    size_t k = (size_t)v->keep;
    shuffle_windows(s);
    *is_done = false;
    for (int stage = 0; stage < v->stages; stage++) {
        bool is_last = stage + 1 == v->stages;
        size_t n = v->table->n_windows;
        for (int later = stage + 1; later < v->stages; later++)
            n = (n + k - 1) / k;
        uint64_t wanted = tokens_wanted(s, n);
        if (wanted > v->most_tokens - v->tokens) {
            abandon(s);
            return true;
        }
        if (!v->measure(v->context, v->table, s->windows, n, e) ||
            !survive(s, n, is_last ? 1 : (s->n_live + k - 1) / k, e))
            return false;
        v->tokens += wanted;
    }
    const struct candidate *best = &v->table->list[s->live[0]];
    if (candidate_is_complete(v->table, best) &&
        (s->parent < 0 || best->kl_mean < v->table->list[s->parent].kl_mean))
        s->parent = best->id;
    *is_done = true;
    return true;
}

/* -------------------------------------------------------------------------------------------------------------- run */

static bool note_generation(struct state *s, struct err *e)
{
    struct evolve *v = s->v;
    size_t n = (size_t)v->n_generations;
    if (!mem_grow(&v->parent, n, n + 1, e) || !mem_grow(&v->tokens_by, n, n + 1, e))
        return false;
    v->parent[n] = v->chosen = (uint32_t)s->parent;
    v->tokens_by[n] = v->tokens;
    v->n_generations++;
    if (v->tell)
        v->tell(v->context, v);
    return true;
}

static bool evolve(struct state *s, struct err *e)
{
    struct evolve *v = s->v;
    for (;;) {
        bool is_done;
        v->end = EVOLVE_GENERATIONS;
        if (v->n_generations >= v->most_generations)
            return true;
        if (!draw_generation(s, e))
            return false;
        v->end = EVOLVE_EXHAUSTED;
        if (s->n_live == 0)
            return true;
        if (!select_parent(s, &is_done, e))
            return false;
        v->end = EVOLVE_TOKENS;
        if (!is_done && s->parent < 0)
            return err_set(e, ERR_INPUT, "%" PRIu64 " tokens do not reach through the first generation: give it more, "
                           "or fewer offspring", v->most_tokens);
        if (!is_done)
            return true;
        if (s->parent < 0)
            return err_set(e, ERR_NUMERIC, "none of the %d first candidates has a finite KL", v->offspring);
        if (!note_generation(s, e))
            return false;
    }
}

static bool check(const struct evolve *v, struct err *e)
{
    if (v->table->n != 0 || v->table->n_windows == 0 || v->offspring < 1 || v->stages < 1 || v->keep < 2 ||
        v->most_generations < 1)
        return err_set(e, ERR_BUG, "an evolution starts from an empty table with windows, and has offspring, stages "
                       "and generations");
    return allocate_check_budget(v->menu, v->most_bytes, e);
}

bool evolve_run(struct evolve *v, struct err *e)
{
    struct state s = {.v = v, .random = v->seed, .parent = -1};
    size_t units = (size_t)v->menu->n_units;
    v->tokens = 0;
    v->n_generations = 0;
    bool ok = check(v, e) && mem_new(&s.level, units * (size_t)v->menu->n_formats, e) &&
              mem_new(&s.n_levels, units, e) && mem_new(&s.at, units, e) && mem_new(&s.moved, units, e) &&
              mem_new(&s.open, units, e) && mem_new(&s.assignment, units, e) &&
              mem_new(&s.windows, v->table->n_windows, e) && mem_new(&s.live, (size_t)v->offspring, e);
    if (ok) {
        find_levels(&s);
        ok = evolve(&s, e);
    }
    mem_free(s.live);
    mem_free(s.windows);
    mem_free(s.assignment);
    mem_free(s.open);
    mem_free(s.moved);
    mem_free(s.at);
    mem_free(s.n_levels);
    mem_free(s.level);
    return ok;
}

void evolve_fini(struct evolve *v)
{
    mem_free(v->parent);
    mem_free(v->tokens_by);
    v->parent = NULL;
    v->tokens_by = NULL;
    v->n_generations = 0;
}
