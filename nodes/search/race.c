/* The schedule of looks, and the tests at a look: race.h says what they promise. */
#include "nodes/search/race.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "nodes/search/stats.h"

/* ----------------------------------------------------------------------------------------------------- the schedule */

/* order[d] = place of document d, a random permutation (Fisher and Yates). */
static void draw_order(uint64_t state, uint32_t *order, uint32_t n)
{
    for (uint32_t d = 0; d < n; d++)
        order[d] = d;
    for (uint32_t d = n; d > 1; d--) {
        uint32_t other = (uint32_t)stats_below(&state, d), kept = order[d - 1];
        order[d - 1] = order[other];
        order[other] = kept;
    }
}

/* The stages: after which number of documents there is a look, and all of them at last. */
static void find_stages(struct race *r)
{
    uint32_t n = r->n_documents, looks = r->options.level > 0 ? (uint32_t)r->options.looks : 0;
    for (uint64_t k = 1; k <= looks; k++) {
        uint32_t after = (uint32_t)((k * n + looks) / (looks + 1)); /* rounded up */
        uint32_t before = r->n_stages ? r->documents[r->n_stages - 1] : 0;
        if (after >= RACE_LEAST_DOCUMENTS && after < n && after > before)
            r->documents[r->n_stages++] = after;
    }
    r->documents[r->n_stages++] = n;
}

static void order_windows(struct race *r, uint32_t n_windows, const uint32_t *order)
{
    uint32_t at = 0, first = 0;
    for (uint32_t s = 0; s < r->n_stages; s++) {
        for (uint32_t w = 0; w < n_windows; w++)
            if (order[r->index[w]] >= first && order[r->index[w]] < r->documents[s])
                r->windows[at++] = w;
        first = r->documents[s];
        r->end[s] = at;
    }
}

bool race_init(struct race *r, const struct candidates *c, const struct race_options *o, struct err *e)
{
    struct race made = {.options = *o};
    uint32_t *order = NULL, windows = c->n_windows;
    size_t most = (size_t)(o->level > 0 ? o->looks : 0) + 1;
    bool ok = mem_new(&made.index, windows, e) && mem_new(&made.windows, windows, e) &&
              mem_new(&made.end, most, e) && mem_new(&made.documents, most, e) &&
              mem_new(&made.drops, c->n, e) &&
              stats_documents(c->window_document, windows, made.index, &made.n_documents, e) &&
              mem_new(&order, made.n_documents, e);
    if (ok) {
        draw_order(o->seed, order, made.n_documents);
        find_stages(&made);
        order_windows(&made, windows, order);
    }
    mem_free(order);
    if (!ok) {
        race_fini(&made);
        return false;
    }
    *r = made;
    return true;
}

void race_fini(struct race *r)
{
    mem_free(r->index);
    mem_free(r->windows);
    mem_free(r->end);
    mem_free(r->documents);
    mem_free(r->drops);
    *r = (struct race){0};
}

/* ----------------------------------------------------------------------------------------------------------- a look */

static bool is_protected(const struct candidate *x) { return strcmp(x->origin, "uniform") == 0; }

/* What a look works with. Documents are those measured so far, numbered as they come in r->windows. */
struct look {
    struct race *r;
    struct candidates *c;
    uint32_t stage, n_documents;
    const struct candidate **by_bytes; /* [candidate]: ascending, then by id: also those that are out of the race */
    size_t n_droppable;
    double *positions;                 /* [document] */
    double *sums;                      /* [candidate, document]: KL over positions */
    double *difference;                /* [document] */
};

static int by_bytes(const void *a, const void *b)
{
    const struct candidate *x = *(const struct candidate *const *)a, *y = *(const struct candidate *const *)b;
    if (x->bytes != y->bytes)
        return x->bytes < y->bytes ? -1 : 1;
    return (x->id > y->id) - (x->id < y->id);
}

static bool sum_documents(struct look *l, struct err *e)
{
    const struct race *r = l->r;
    uint32_t *place; /* of a document among those measured, + 1 */
    if (!mem_new(&place, r->n_documents, e))
        return false;
    bool ok = true;
    uint32_t n = 0;
    for (uint32_t i = 0; i < r->end[l->stage]; i++) {
        uint32_t w = r->windows[i], *at = &place[r->index[w]];
        *at = *at ? *at : ++n;
        l->positions[*at - 1] += l->c->window_tokens[w];
        for (size_t k = 0; ok && k < l->c->n; k++) {
            const struct candidate *x = &l->c->list[k];
            if (x->dropped_at >= 0)
                continue;
            l->sums[k * l->n_documents + *at - 1] += x->kl_window[w] * l->c->window_tokens[w];
            ok = isfinite(x->kl_window[w]) ||
                 err_set(e, ERR_BUG, "race: candidate %zu lacks window %u at look %u", k, w, l->stage);
        }
    }
    mem_free(place);
    return ok;
}

/* The test of x against y, its rival number `rank`. Filled when y beats x. */
static bool is_beaten(const struct look *l, const struct candidate *x, const struct candidate *y, size_t rank,
                      struct race_drop *out)
{
    uint32_t n = l->n_documents;
    const double *a = l->sums + (size_t)x->id * n, *b = l->sums + (size_t)y->id * n;
    struct stats_ratio d;
    for (uint32_t i = 0; i < n; i++)
        l->difference[i] = a[i] - b[i];
    stats_ratio(l->difference, l->positions, n, &d);
    double looks = l->r->n_stages - 1, place = (double)rank;
    double error = l->r->options.level / (looks * (double)l->n_droppable * place * (place + 1));
    if (!(d.mean > 0) || !(stats_student_tail(d.mean / d.error, n - 1) < error))
        return false;
    *out = (struct race_drop){.candidate = x->id, .by = y->id, .look = l->stage, .difference = d.mean, .error = error,
                              .low = d.mean + stats_student(error, n - 1) * d.error};
    return true;
}

/* Of the rivals that beat by_bytes[at], the one with the largest lower bound. */
static bool find_winner(const struct look *l, size_t at, struct race_drop *out)
{
    const struct candidate *x = l->by_bytes[at];
    size_t end = at + 1, rank = 0;
    bool found = false;
    while (end < l->c->n && l->by_bytes[end]->bytes == x->bytes)
        end++;
    for (size_t i = end; i-- > 0;) {
        struct race_drop drop;
        if (i == at)
            continue;
        rank++; /* those that are out keep their numbers: numbers know nothing of KLs */
        if (l->by_bytes[i]->dropped_at < 0 && is_beaten(l, x, l->by_bytes[i], rank, &drop) &&
            (!found || drop.low > out->low)) {
            *out = drop;
            found = true;
        }
    }
    return found;
}

static int by_candidate(const void *a, const void *b)
{
    uint32_t x = ((const struct race_drop *)a)->candidate, y = ((const struct race_drop *)b)->candidate;
    return (x > y) - (x < y);
}

/* All tests first, then all drops: who is dropped does not depend on the order of tests. A candidate cannot lose its
 * winner by that: lower bounds above 0 rank means strictly, so whoever drops it, at once or through others, is left. */
static void drop(struct look *l)
{
    struct race *r = l->r;
    size_t before = r->n_drops;
    for (size_t at = 0; at < l->c->n; at++) {
        const struct candidate *x = l->by_bytes[at];
        if (x->dropped_at < 0 && !is_protected(x) && find_winner(l, at, &r->drops[r->n_drops]))
            r->n_drops++;
    }
    qsort(r->drops + before, r->n_drops - before, sizeof *r->drops, by_candidate);
    for (size_t i = before; i < r->n_drops; i++) {
        struct candidate *x = &l->c->list[r->drops[i].candidate];
        x->dropped_at = (int32_t)x->n_windows;
        x->dropped_by = (int32_t)r->drops[i].by;
    }
}

bool race_look(struct race *r, struct candidates *c, uint32_t stage, struct err *e)
{
    if (stage + 1 >= r->n_stages)
        return true;
    struct look l = {.r = r, .c = c, .stage = stage, .n_documents = r->documents[stage]};
    bool ok = mem_new(&l.by_bytes, c->n, e) && mem_new(&l.positions, l.n_documents, e) &&
              mem_new(&l.sums, c->n * l.n_documents, e) && mem_new(&l.difference, l.n_documents, e) &&
              sum_documents(&l, e);
    for (size_t i = 0; ok && i < c->n; i++) {
        l.by_bytes[i] = &c->list[i];
        l.n_droppable += !is_protected(&c->list[i]);
    }
    if (ok) {
        qsort(l.by_bytes, c->n, sizeof *l.by_bytes, by_bytes);
        drop(&l);
    }
    mem_free(l.difference);
    mem_free(l.sums);
    mem_free(l.positions);
    mem_free(l.by_bytes);
    return ok;
}
