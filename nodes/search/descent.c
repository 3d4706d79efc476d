/* The moves from a base, their order, when one is given up, and the choice among what was measured. */
#include "nodes/search/descent.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "nodes/search/race.h"
#include "nodes/search/stats.h"

#define FLIP_SIDES 256  /* most changes of one unit, of each direction, that are paired */
#define BLOCK_SIDES 64  /* most changes of a block, likewise */
#define SIDES (FLIP_SIDES + BLOCK_SIDES)
#define LEVEL 0.95      /* of the interval that says what is a tie */
#define PER_UNIT 2      /* most moves of a batch that change the same unit, while there are others */

static const int block_units[] = {2, 4, 8};
#define BLOCKS (sizeof block_units / sizeof *block_units)

/* Units [place, place + units) of the order by role that go from one format to another. */
struct change {
    int place, units, from, to;
    double gain;   /* predicted fall of the cost; negative: it rises */
    int64_t bytes; /* added */
};

/* A move: one change (second.units 0), or two. */
struct proposal {
    struct change first, second;
    double gain;
    int64_t bytes;
    enum { FREE, PAID, LOSS } kind; /* gains without bytes, gains for bytes, does not gain */
    double steepness;               /* within its kind the largest comes first */
};

struct proposals {
    struct proposal *list;
    size_t n;
    bool is_cut; /* there are pairs that are not on the list */
};

/* What stays the same during a run. */
struct search {
    struct descent *d;
    int32_t *unit;       /* [place]: units by role, then by layer */
    int32_t *role;       /* [place] */
    struct race race;    /* its schedule: the order of windows, and the looks */
    uint8_t *assignment; /* [unit]: scratch */
    uint8_t *used;       /* [place]: moves of the batch that change it */
};

/* ------------------------------------------------------------------------------------------------------------ roles */

struct named {
    char *role; /* the name without the number of the layer */
    int32_t layer, unit;
};

/* The dot-separated part of the name that is the number of the unit's layer is taken out; a name without one is a role
 * of its own. */
static void make_role(const char *name, int32_t layer, char *out)
{
    char number[16];
    size_t n = (size_t)snprintf(number, sizeof number, "%d", layer);
    strcpy(out, name);
    for (char *part = out; part; part = strchr(part, '.')) {
        part += *part == '.';
        if (strncmp(part, number, n) == 0 && (part[n] == '.' || part[n] == '\0')) {
            memmove(part, part + n, strlen(part + n) + 1);
            return;
        }
    }
}

static int by_role(const void *a, const void *b)
{
    const struct named *x = a, *y = b;
    int c = strcmp(x->role, y->role);
    if (c)
        return c;
    if (x->layer != y->layer)
        return x->layer < y->layer ? -1 : 1;
    return (x->unit > y->unit) - (x->unit < y->unit);
}

static bool order_units(struct search *s, struct err *e)
{
    const struct menu *m = s->d->menu;
    size_t n = (size_t)m->n_units;
    struct arena arena = {0};
    struct named *named = arena_new(&arena, n * sizeof *named, e);
    bool ok = named != NULL;
    for (size_t u = 0; ok && u < n; u++) {
        named[u] = (struct named){arena_new(&arena, strlen(m->unit_names[u]) + 1, e), m->layers[u], (int32_t)u};
        ok = named[u].role != NULL;
        if (ok)
            make_role(m->unit_names[u], m->layers[u], named[u].role);
    }
    if (ok)
        qsort(named, n, sizeof *named, by_role);
    for (size_t i = 0, role = 0; ok && i < n; i++) {
        role += i > 0 && strcmp(named[i].role, named[i - 1].role) != 0;
        s->unit[i] = named[i].unit;
        s->role[i] = (int32_t)role;
    }
    arena_free(&arena);
    return ok;
}

/* ------------------------------------------------------------------------------------------------------------ looks */

/* The paired difference of the move on what was measured by the look, and whether that excludes a gain. */
static bool test_move(struct search *s, struct descent_move *m, uint32_t stage, bool *is_lost, struct err *e)
{
    const struct candidates *t = s->d->table;
    double level = 1 - 2 * s->d->give_up / (s->race.n_stages - 1);
    struct stats_difference x;
    if (!stats_paired_interval(t->list[m->candidate].kl_window, t->list[m->base].kl_window, t->window_tokens,
                               t->window_document, t->n_windows, level, &x, e))
        return false;
    double low = x.mean - (x.mean - x.low) * sqrt(1 - (double)s->race.documents[stage] / s->race.n_documents);
    m->estimate = m->kl_before + x.mean;
    m->bound = -low;
    *is_lost = low > 0;
    return true;
}

/* ------------------------------------------------------------------------------------------------------- proposals */

/* Best gain first; of equal ones the smaller result; then by place, length and format, so that the order is one. */
static int by_gain(const void *a, const void *b)
{
    const struct change *x = a, *y = b;
    if (x->gain != y->gain)
        return x->gain > y->gain ? -1 : 1;
    if (x->bytes != y->bytes)
        return x->bytes < y->bytes ? -1 : 1;
    if (x->place != y->place)
        return x->place < y->place ? -1 : 1;
    if (x->units != y->units)
        return x->units < y->units ? -1 : 1;
    return (x->to > y->to) - (x->to < y->to);
}

static int by_prospect(const void *a, const void *b)
{
    const struct proposal *x = a, *y = b;
    if (x->kind != y->kind)
        return x->kind < y->kind ? -1 : 1;
    if (x->steepness != y->steepness)
        return x->steepness > y->steepness ? -1 : 1;
    if (x->bytes != y->bytes)
        return x->bytes < y->bytes ? -1 : 1;
    int c = by_gain(&x->first, &y->first);
    return c ? c : by_gain(&x->second, &y->second);
}

static struct proposal propose(const struct change *first, const struct change *second)
{
    struct proposal p = {.first = *first, .gain = first->gain, .bytes = first->bytes};
    if (second) {
        p.second = *second;
        p.gain += second->gain;
        p.bytes += second->bytes;
    }
    p.kind = !(p.gain > 0) ? LOSS : p.bytes > 0 ? PAID : FREE;
    p.steepness = p.kind == PAID ? p.gain / (double)p.bytes : p.gain;
    return p;
}

/* Append the change of `units` units from `place` on to format `to`, if all of them can have it. */
static void add_change(const struct search *s, int place, int units, int from, int to, struct change *out, size_t *n)
{
    const struct menu *m = s->d->menu;
    struct change c = {.place = place, .units = units, .from = from, .to = to};
    for (int i = place; i < place + units; i++) {
        int row = s->unit[i] * m->n_formats;
        if (!m->available[row + to])
            return;
        c.gain += s->d->cost[row + from] - s->d->cost[row + to];
        c.bytes += (int64_t)(m->bytes[row + to] - m->bytes[row + from]);
    }
    out[(*n)++] = c;
}

/* The changes of the units [first, end) of one role, which all have format `from`. */
static void list_run(const struct search *s, int first, int end, int from, struct change *out, size_t *n)
{
    for (int to = 0; to < s->d->menu->n_formats; to++) {
        if (to == from)
            continue;
        for (int i = first; i < end; i++)
            add_change(s, i, 1, from, to, out, n);
        for (size_t k = 0; k < BLOCKS; k++)
            for (int i = first; block_units[k] < end - first && i + block_units[k] <= end; i++)
                add_change(s, i, block_units[k], from, to, out, n);
        if (end - first > 1)
            add_change(s, first, end - first, from, to, out, n);
    }
}

/* All changes from the base, best gain first. `out` has room for [unit, format, 2 + BLOCKS]. */
static size_t list_changes(const struct search *s, const struct candidate *base, struct change *out)
{
    size_t n = 0;
    for (int i = 0, units = s->d->menu->n_units, end; i < units; i = end) {
        uint8_t from = base->assignment[s->unit[i]];
        for (end = i + 1; end < units && s->role[end] == s->role[i] && base->assignment[s->unit[end]] == from; end++)
            ;
        list_run(s, i, end, from, out, &n);
    }
    qsort(out, n, sizeof *out, by_gain);
    return n;
}

/* The best changes of one direction, which are paired with those of the other. */
struct side {
    struct change list[SIDES];
    size_t n, flips, blocks;
    bool is_cut;
};

static void add_side(struct side *s, const struct change *c)
{
    size_t *of = c->units > 1 ? &s->blocks : &s->flips;
    if (*of == (c->units > 1 ? BLOCK_SIDES : FLIP_SIDES)) {
        s->is_cut = true;
        return;
    }
    ++*of;
    s->list[s->n++] = *c;
}

static void pair(const struct side *up, const struct side *down, int64_t room, struct proposals *out)
{
    for (size_t i = 0; i < up->n; i++)
        for (size_t j = 0; j < down->n; j++) {
            const struct change *a = &up->list[i], *b = &down->list[j];
            bool is_disjoint = a->place + a->units <= b->place || b->place + b->units <= a->place;
            if (is_disjoint && a->bytes + b->bytes <= room)
                out->list[out->n++] = propose(a, b);
        }
}

/* From the order by kind: those without bytes and those for bytes take turns, then the rest. */
static bool take_turns(struct proposals *p, struct err *e)
{
    struct proposal *list;
    size_t kinds[3] = {0}, n = 0;
    if (!mem_raw(&list, p->n, e))
        return false;
    for (size_t i = 0; i < p->n; i++)
        kinds[p->list[i].kind]++;
    for (size_t i = 0; i < kinds[FREE] || i < kinds[PAID]; i++) {
        if (i < kinds[FREE])
            list[n++] = p->list[i];
        if (i < kinds[PAID])
            list[n++] = p->list[kinds[FREE] + i];
    }
    memcpy(list + n, p->list + n, kinds[LOSS] * sizeof *list);
    mem_free(p->list);
    p->list = list;
    return true;
}

static size_t most_changes(int n_units, int n_formats) { return (size_t)n_units * (size_t)n_formats * (2 + BLOCKS); }

static size_t most_proposals(int n_units, int n_formats) { return most_changes(n_units, n_formats) + SIDES * SIDES; }

uint64_t descent_memory(int n_units, int n_formats)
{
    return most_changes(n_units, n_formats) * sizeof(struct change) + 2 * sizeof(struct side) +
           2 * most_proposals(n_units, n_formats) * sizeof(struct proposal);
}

/* All moves from the base that fit, in the order in which they are to be tried. */
static bool list_proposals(const struct search *s, const struct candidate *base, struct proposals *out, struct err *e)
{
    int units = s->d->menu->n_units, formats = s->d->menu->n_formats;
    struct change *changes = NULL;
    struct side *up = NULL, *down = NULL;
    int64_t room = (int64_t)(s->d->most_bytes - base->bytes);
    *out = (struct proposals){0};
    bool ok = mem_raw(&changes, most_changes(units, formats), e) && mem_new(&up, 1, e) && mem_new(&down, 1, e) &&
              mem_raw(&out->list, most_proposals(units, formats), e);
    size_t n = ok ? list_changes(s, base, changes) : 0;
    for (size_t i = 0; i < n; i++) {
        if (changes[i].bytes <= room)
            out->list[out->n++] = propose(&changes[i], NULL);
        if (changes[i].bytes != 0)
            add_side(changes[i].bytes > 0 ? up : down, &changes[i]);
    }
    if (ok) {
        pair(up, down, room, out);
        out->is_cut = up->n > 0 && down->n > 0 && (up->is_cut || down->is_cut);
        qsort(out->list, out->n, sizeof *out->list, by_prospect);
        ok = take_turns(out, e);
    }
    mem_free(down);
    mem_free(up);
    mem_free(changes);
    return ok;
}

/* ---------------------------------------------------------------------------------------------------------- a batch */

static struct descent_change change_of(const struct search *s, const struct change *c)
{
    if (c->units == 0)
        return (struct descent_change){.unit = -1, .units = 0, .from = -1, .to = -1};
    return (struct descent_change){s->unit[c->place], c->units, c->from, c->to};
}

static void apply(const struct search *s, const struct change *c)
{
    for (int i = c->place; i < c->place + c->units; i++)
        s->assignment[s->unit[i]] = (uint8_t)c->to;
}

/* Append the candidate of a proposal, unless it is in the table already. */
static bool try_proposal(struct search *s, uint32_t base, const struct proposal *p, bool *is_new, struct err *e)
{
    struct descent *d = s->d;
    memcpy(s->assignment, d->table->list[base].assignment, (size_t)d->menu->n_units);
    apply(s, &p->first);
    apply(s, &p->second);
    *is_new = candidates_find(d->table, s->assignment) < 0;
    if (!*is_new)
        return true;
    if (d->n_moves == d->capacity) {
        size_t capacity = d->capacity ? 2 * d->capacity : 64;
        if (!mem_grow(&d->moves, d->capacity, capacity, e))
            return false;
        d->capacity = capacity;
    }
    const struct candidate *c = candidates_add(d->table, d->menu, s->assignment, "polish", (int32_t)base, e);
    if (!c)
        return false;
    d->moves[d->n_moves++] = (struct descent_move){
        .base = base, .candidate = c->id, .first = change_of(s, &p->first), .second = change_of(s, &p->second),
        .gain = p->gain, .kl_before = d->table->list[base].kl_mean, .kl_after = NAN, .estimate = NAN, .bound = NAN,
        .difference = {stats_no_difference, stats_no_difference, NAN, NAN}, .look = -1};
    return true;
}

/* Does one of the units change in as many moves of the batch as may be? Counts it in if not. */
static bool is_crowded(const struct search *s, const struct proposal *p)
{
    const struct change *both[] = {&p->first, &p->second};
    for (int k = 0; k < 2; k++)
        for (int i = both[k]->place; i < both[k]->place + both[k]->units; i++)
            if (s->used[i] >= PER_UNIT)
                return true;
    return false;
}

static void count_used(struct search *s, const struct proposal *p)
{
    const struct change *both[] = {&p->first, &p->second};
    for (int k = 0; k < 2; k++)
        for (int i = both[k]->place; i < both[k]->place + both[k]->units; i++)
            s->used[i]++;
}

/* Put the next untried moves into the table: at first no more than PER_UNIT that change the same unit, so that a batch
 * does not hang on one guess; then any. */
static bool fill_batch(struct search *s, uint32_t base, const struct proposals *list, size_t wanted, struct err *e)
{
    size_t got = 0;
    memset(s->used, 0, (size_t)s->d->menu->n_units);
    for (int strict = 1; strict >= 0; strict--)
        for (size_t i = 0; i < list->n && got < wanted; i++) {
            const struct proposal *p = &list->list[i];
            bool is_new;
            if (strict && is_crowded(s, p))
                continue;
            if (!try_proposal(s, base, p, &is_new, e))
                return false;
            if (!is_new)
                continue;
            got++;
            if (strict)
                count_used(s, p);
        }
    return true;
}

/* Give up those of the moves from `first` on that no longer can gain; *left: how many are not given up. */
static bool look(struct search *s, uint32_t stage, size_t first, size_t *left, struct err *e)
{
    struct descent *d = s->d;
    *left = 0;
    for (size_t i = first; i < d->n_moves; i++) {
        struct descent_move *m = &d->moves[i];
        struct candidate *c = &d->table->list[m->candidate];
        bool is_lost;
        if (m->look >= 0)
            continue;
        if (!test_move(s, m, stage, &is_lost, e))
            return false;
        *left += !is_lost;
        if (is_lost) {
            m->look = (int32_t)stage;
            c->dropped_at = (int32_t)c->n_windows;
            c->dropped_by = (int32_t)m->base;
        }
    }
    return true;
}

/* Measure the moves from `first` on, look by look. */
static bool measure_moves(struct search *s, size_t first, struct err *e)
{
    struct descent *d = s->d;
    const struct race *r = &s->race;
    size_t left = 1, candidate = d->moves[first].candidate;
    for (uint32_t stage = 0; stage < r->n_stages && left > 0; stage++) {
        uint32_t from = stage ? r->end[stage - 1] : 0;
        if (!d->measure(d->context, d->table, candidate, r->windows + from, r->end[stage] - from, e) ||
            (stage + 1 < r->n_stages && !look(s, stage, first, &left, e)))
            return false;
    }
    return true;
}

/* What is known of a move that was measured in full. */
static bool compare(struct search *s, struct descent_move *m, struct err *e)
{
    struct descent *d = s->d;
    const struct candidates *t = d->table;
    const struct candidate *x = &t->list[m->candidate], *base = &t->list[m->base];
    m->kl_after = m->estimate = x->kl_mean;
    if (!stats_paired_interval(x->kl_window, base->kl_window, t->window_tokens, t->window_document, t->n_windows, LEVEL,
                               &m->difference.measured, e) ||
        (d->predict && !d->predict(d->context, x, base, &m->difference.predicted, e)))
        return false;
    double own = m->difference.measured.error, other = m->difference.predicted.error;
    pooled_combine(&m->difference, pooled_share(own * own, other * other));
    return true;
}

/* Is the move an improvement? Measured as one; and in a tie by all that is known. */
static bool is_better(const struct search *s, const struct descent_move *m)
{
    const struct candidate *x = &s->d->table->list[m->candidate];
    return candidate_is_complete(s->d->table, x) && m->kl_after < m->kl_before &&
           (!stats_is_tie(&m->difference.measured) || m->difference.mean < 0);
}

/* Measure the moves from `first` on, and accept the best of them if it is better than the base. */
static bool measure_batch(struct search *s, size_t first, struct err *e)
{
    struct descent *d = s->d;
    size_t best = d->n_moves;
    if (!measure_moves(s, first, e))
        return false;
    for (size_t i = first; i < d->n_moves; i++) {
        struct descent_move *m = &d->moves[i];
        if (m->look >= 0)
            continue;
        if (!compare(s, m, e))
            return false;
        if (is_better(s, m) && (best == d->n_moves || m->kl_after < d->moves[best].kl_after))
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
static bool run_batch(struct search *s, struct err *e)
{
    struct descent *d = s->d;
    struct proposals list = {0};
    uint32_t base = d->chosen;
    size_t first = d->n_moves, left = (size_t)d->most_moves - d->n_moves;
    size_t wanted = left < (size_t)d->batch ? left : (size_t)d->batch;
    bool ok = (!d->refit || d->refit(d->context, d, e)) && list_proposals(s, &d->table->list[base], &list, e) &&
              fill_batch(s, base, &list, wanted, e) && (d->n_moves == first || measure_batch(s, first, e));
    d->is_exhausted = ok && d->n_moves == first && !list.is_cut;
    d->is_cut = ok && d->n_moves == first && list.is_cut;
    mem_free(list.list);
    return ok;
}

/* ------------------------------------------------------------------------------------------------------------ a run */

static bool open_search(struct search *s, struct descent *d, struct err *e)
{
    size_t units = (size_t)d->menu->n_units;
    struct race_options o = {.level = d->give_up, .looks = DESCENT_LOOKS, .seed = d->seed};
    *s = (struct search){.d = d};
    if (!mem_new(&s->unit, units, e) || !mem_new(&s->role, units, e) || !mem_new(&s->assignment, units, e) ||
        !mem_new(&s->used, units, e) || !order_units(s, e) || !race_init(&s->race, d->table, &o, e))
        return false;
    d->n_looks = (int)s->race.n_stages - 1;
    memcpy(d->look_windows, s->race.end, (size_t)d->n_looks * sizeof *d->look_windows);
    return true;
}

static void close_search(struct search *s)
{
    race_fini(&s->race);
    mem_free(s->used);
    mem_free(s->assignment);
    mem_free(s->role);
    mem_free(s->unit);
}

static bool check(const struct descent *d, struct err *e)
{
    if (d->table->n != 1 || !candidate_is_complete(d->table, &d->table->list[0]) || d->batch < 1 || d->most_moves < 0)
        return err_set(e, ERR_BUG, "a descent starts from one measured candidate, with batches of at least 1 move");
    if (!(d->give_up >= 0 && d->give_up < 1))
        return err_set(e, ERR_BUG, "a descent gives moves up at level %g", d->give_up);
    if (d->table->list[0].bytes > d->most_bytes)
        return err_set(e, ERR_BUG, "a descent to at most %llu bytes starts at %llu", (unsigned long long)d->most_bytes,
                       (unsigned long long)d->table->list[0].bytes);
    return true;
}

bool descent_run(struct descent *d, struct err *e)
{
    struct search s = {0};
    if (!check(d, e))
        return false;
    bool ok = open_search(&s, d, e);
    d->chosen = 0;
    for (int pass = 0; ok && pass < d->most_passes && !d->is_exhausted && !d->is_cut;) {
        uint32_t base = d->chosen;
        if (d->n_moves >= (size_t)d->most_moves)
            break;
        ok = run_batch(&s, e);
        pass += d->chosen != base;
    }
    close_search(&s);
    return ok;
}

void descent_fini(struct descent *d)
{
    mem_free(d->moves);
    d->moves = NULL;
    d->n_moves = d->capacity = 0;
}

const char *descent_kind(const struct descent_move *m)
{
    if (m->first.units > 1 || m->second.units > 1)
        return "block";
    return m->second.unit < 0 ? "flip" : "swap";
}
