/* The moves from a base, their order, and the choice among what was measured. */
#include "nodes/search/descent.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define SWAP_SIDES 256 /* most single changes of each direction that are paired into swaps */
#define PER_UNIT 2     /* most moves of a batch that change the same unit, while there are others */

/* One unit's change from the base. */
struct change {
    int unit, from, to;
    double gain;  /* predicted fall of the cost; negative: it rises */
    int64_t bytes; /* added */
};

/* A flip (second.unit -1) or a swap. */
struct proposal {
    struct change first, second;
    double gain;
    int64_t bytes;
};

struct proposals {
    struct proposal *list;
    size_t n;
    bool is_cut; /* there are swaps that are not on the list */
};

/* Best gain first; of equal ones the smaller result; then by unit and format, so that the order is one. */
static int by_gain(const void *a, const void *b)
{
    const struct change *x = a, *y = b;
    if (x->gain != y->gain)
        return x->gain > y->gain ? -1 : 1;
    if (x->bytes != y->bytes)
        return x->bytes < y->bytes ? -1 : 1;
    if (x->unit != y->unit)
        return x->unit < y->unit ? -1 : 1;
    return (x->to > y->to) - (x->to < y->to);
}

static int by_prospect(const void *a, const void *b)
{
    const struct proposal *x = a, *y = b;
    if (x->gain != y->gain)
        return x->gain > y->gain ? -1 : 1;
    if (x->bytes != y->bytes)
        return x->bytes < y->bytes ? -1 : 1;
    int c = by_gain(&x->first, &y->first);
    return c ? c : by_gain(&x->second, &y->second);
}

/* All changes of one unit of the base, best gain first. `out` has room for [unit, format]. */
static size_t list_changes(const struct descent *d, const struct candidate *base, struct change *out)
{
    const struct menu *m = d->menu;
    size_t n = 0;
    for (int u = 0; u < m->n_units; u++) {
        int row = u * m->n_formats, from = base->assignment[u];
        for (int to = 0; to < m->n_formats; to++)
            if (to != from && m->available[row + to])
                out[n++] = (struct change){u, from, to, d->cost[row + from] - d->cost[row + to],
                                           (int64_t)(m->bytes[row + to] - m->bytes[row + from])};
    }
    qsort(out, n, sizeof *out, by_gain);
    return n;
}

/* The flips and swaps from the base that fit, best first. */
static bool list_proposals(const struct descent *d, const struct candidate *base, struct proposals *out, struct err *e)
{
    const struct menu *m = d->menu;
    size_t cells = (size_t)m->n_units * (size_t)m->n_formats, n_up = 0, n_down = 0, all_up = 0, all_down = 0;
    struct change *changes = NULL, *up = NULL, *down = NULL;
    int64_t room = (int64_t)(d->most_bytes - base->bytes);
    *out = (struct proposals){0};
    bool ok = mem_raw(&changes, cells, e) && mem_raw(&up, SWAP_SIDES, e) && mem_raw(&down, SWAP_SIDES, e) &&
              mem_raw(&out->list, cells + (size_t)SWAP_SIDES * SWAP_SIDES, e);
    size_t n = ok ? list_changes(d, base, changes) : 0;
    for (size_t i = 0; i < n; i++) {
        if (changes[i].bytes <= room)
            out->list[out->n++] = (struct proposal){changes[i], {.unit = -1, .from = -1, .to = -1}, changes[i].gain,
                                                    changes[i].bytes};
        all_up += changes[i].bytes > 0;
        all_down += changes[i].bytes < 0;
        if (changes[i].bytes > 0 && n_up < SWAP_SIDES)
            up[n_up++] = changes[i];
        else if (changes[i].bytes < 0 && n_down < SWAP_SIDES)
            down[n_down++] = changes[i];
    }
    out->is_cut = all_up > 0 && all_down > 0 && (n_up < all_up || n_down < all_down);
    for (size_t i = 0; i < n_up; i++)
        for (size_t j = 0; j < n_down; j++)
            if (up[i].unit != down[j].unit && up[i].bytes + down[j].bytes <= room)
                out->list[out->n++] = (struct proposal){up[i], down[j], up[i].gain + down[j].gain,
                                                        up[i].bytes + down[j].bytes};
    if (ok)
        qsort(out->list, out->n, sizeof *out->list, by_prospect);
    mem_free(down);
    mem_free(up);
    mem_free(changes);
    return ok;
}

/* Append the candidate of a proposal, unless it is in the table already. */
static bool try_proposal(struct descent *d, uint32_t base, const struct proposal *p, uint8_t *assignment, bool *is_new,
                         struct err *e)
{
    memcpy(assignment, d->table->list[base].assignment, (size_t)d->menu->n_units);
    assignment[p->first.unit] = (uint8_t)p->first.to;
    if (p->second.unit >= 0)
        assignment[p->second.unit] = (uint8_t)p->second.to;
    *is_new = candidates_find(d->table, assignment) < 0;
    if (!*is_new)
        return true;
    if (d->n_moves == d->capacity) {
        size_t capacity = d->capacity ? 2 * d->capacity : 64;
        if (!mem_grow(&d->moves, d->capacity, capacity, e))
            return false;
        d->capacity = capacity;
    }
    const struct candidate *c = candidates_add(d->table, d->menu, assignment, "polish", (int32_t)base, e);
    if (!c)
        return false;
    d->moves[d->n_moves++] = (struct descent_move){
        .base = base, .candidate = c->id, .unit = p->first.unit, .from = p->first.from, .to = p->first.to,
        .unit2 = p->second.unit, .from2 = p->second.from, .to2 = p->second.to,
        .kl_before = d->table->list[base].kl_mean, .kl_after = NAN};
    return true;
}

/* Put the next untried moves into the table: at first no more than PER_UNIT that change the same unit, so that a batch
 * does not hang on one guess; then any. `used` counts by unit, zeroed. */
static bool fill_batch(struct descent *d, uint32_t base, const struct proposals *list, size_t wanted,
                       uint8_t *assignment, uint8_t *used, struct err *e)
{
    size_t got = 0;
    for (int strict = 1; strict >= 0; strict--)
        for (size_t i = 0; i < list->n && got < wanted; i++) {
            const struct proposal *p = &list->list[i];
            bool is_new, is_crowded = used[p->first.unit] >= PER_UNIT ||
                                      (p->second.unit >= 0 && used[p->second.unit] >= PER_UNIT);
            if (strict && is_crowded)
                continue;
            if (!try_proposal(d, base, p, assignment, &is_new, e))
                return false;
            if (!is_new)
                continue;
            got++;
            if (strict)
                used[p->first.unit]++;
            if (strict && p->second.unit >= 0)
                used[p->second.unit]++;
        }
    return true;
}

/* Measure the moves from `first` on, and accept the best of them if it is below the base. */
static bool measure_batch(struct descent *d, uint32_t base, size_t first, struct err *e)
{
    size_t best = d->n_moves;
    if (!d->measure(d->context, d->table, d->moves[first].candidate, e))
        return false;
    for (size_t i = first; i < d->n_moves; i++) {
        const struct candidate *c = &d->table->list[d->moves[i].candidate];
        d->moves[i].kl_after = c->kl_mean;
        if (candidate_is_complete(d->table, c) && c->kl_mean < d->table->list[base].kl_mean &&
            (best == d->n_moves || c->kl_mean < d->moves[best].kl_after))
            best = i;
    }
    if (best == d->n_moves)
        return true;
    d->moves[best].is_accepted = true;
    d->chosen = d->moves[best].candidate;
    if (d->tell)
        d->tell(d->context, &d->moves[best]);
    return true;
}

/* One batch from the base. If there is no move for it, says why. */
static bool run_batch(struct descent *d, struct err *e)
{
    struct proposals list = {0};
    uint8_t *assignment = NULL, *used = NULL;
    uint32_t base = d->chosen;
    size_t units = (size_t)d->menu->n_units, first = d->n_moves;
    size_t left = (size_t)d->most_moves - d->n_moves, wanted = left < (size_t)d->batch ? left : (size_t)d->batch;
    bool ok = (!d->refit || d->refit(d->context, d, e)) && list_proposals(d, &d->table->list[base], &list, e) &&
              mem_new(&assignment, units, e) && mem_new(&used, units, e) &&
              fill_batch(d, base, &list, wanted, assignment, used, e) &&
              (d->n_moves == first || measure_batch(d, base, first, e));
    d->is_exhausted = ok && d->n_moves == first && !list.is_cut;
    d->is_cut = ok && d->n_moves == first && list.is_cut;
    mem_free(used);
    mem_free(assignment);
    mem_free(list.list);
    return ok;
}

bool descent_run(struct descent *d, struct err *e)
{
    if (d->table->n != 1 || !candidate_is_complete(d->table, &d->table->list[0]) || d->batch < 1 || d->most_moves < 0)
        return err_set(e, ERR_BUG, "a descent starts from one measured candidate, with batches of at least 1 move");
    if (d->table->list[0].bytes > d->most_bytes)
        return err_set(e, ERR_BUG, "a descent to at most %llu bytes starts at %llu", (unsigned long long)d->most_bytes,
                       (unsigned long long)d->table->list[0].bytes);
    d->chosen = 0;
    for (int pass = 0; pass < d->most_passes && !d->is_exhausted && !d->is_cut;) {
        uint32_t base = d->chosen;
        if (d->n_moves >= (size_t)d->most_moves)
            break;
        if (!run_batch(d, e))
            return false;
        pass += d->chosen != base;
    }
    return true;
}

void descent_fini(struct descent *d)
{
    mem_free(d->moves);
    d->moves = NULL;
    d->n_moves = d->capacity = 0;
}
