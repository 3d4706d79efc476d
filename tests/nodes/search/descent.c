/* The decisions of the coordinate descent, with a made-up model in the place of measuring. */
#include "tests/nodes/search/menus.h"

#include "nodes/search/descent.h"

struct trial {
    struct made made;
    struct candidates table;
    double *cost;
    struct descent d;
    size_t calls, most_batch;
    double scatter;      /* the same in every document by itself, up and down */
    double noise;        /* measured KL is off by up to this factor, as a function of the assignment */
    long fail_at;        /* the call that fails; 0: none */
    size_t n_told;
};

/* Documents do not agree about a candidate. */
static void scatter(const struct trial *t, const struct candidates *table, struct candidate *c,
                    const uint32_t *windows, size_t n, uint64_t hash)
{
    double sum = 0, tokens = 0;
    for (size_t k = 0; k < n; k++) {
        uint64_t own = hash + table->window_document[windows[k]];
        c->kl_window[windows[k]] *= 1 + t->scatter * (2 * (double)stats_random(&own) * 0x1p-64 - 1);
    }
    for (uint32_t w = 0; w < table->n_windows && c->n_windows == table->n_windows; w++) {
        sum += c->kl_window[w] * table->window_tokens[w];
        tokens += table->window_tokens[w];
        c->kl_mean = sum / tokens;
    }
}

static bool measure(void *context, struct candidates *table, size_t first, const uint32_t *windows, size_t n,
                    struct err *e)
{
    struct trial *t = context;
    t->calls++;
    if (t->fail_at && (long)t->calls == t->fail_at)
        return err_set(e, ERR_STOPPED, "interrupted");
    t->most_batch = table->n - first > t->most_batch ? table->n - first : t->most_batch;
    made_measure_windows(&t->made, table, first, windows, n);
    for (size_t i = first; i < table->n; i++) {
        struct candidate *c = &table->list[i];
        uint64_t hash = 1;
        for (int u = 0; u < table->n_units; u++)
            hash = hash * 1099511628211u + c->assignment[u];
        double factor = 1 + t->noise * (double)stats_random(&hash) * 0x1p-64;
        for (size_t k = 0; k < n && c->dropped_at < 0; k++)
            c->kl_window[windows[k]] *= factor;
        if (c->dropped_at < 0 && c->n_windows == table->n_windows)
            c->kl_mean *= factor;
        if (t->scatter > 0 && c->dropped_at < 0)
            scatter(t, table, c, windows, n, hash);
    }
    return true;
}

static void tell(void *context, const struct descent_move *m)
{
    struct trial *t = context;
    assert_true(m->is_accepted);
    t->n_told++;
}

/* From a random start, with the surrogate as it is. */
static void start(struct trial *t, int units, double spread, uint64_t seed)
{
    struct err e;
    *t = (struct trial){0};
    made_init(&t->made, units, spread, seed);
    made_table(&t->made, &t->table);
    made_random(&t->made, &t->table, &seed);
    made_measure(&t->made, &t->table, 0);
    size_t cells = (size_t)units * MADE_FORMATS;
    assert_ok(mem_new(&t->cost, cells, &e), e);
    memcpy(t->cost, t->made.cost, cells * sizeof *t->cost);
    t->d = (struct descent){.menu = &t->made.menu, .table = &t->table, .cost = t->cost,
                            .most_bytes = t->table.list[0].bytes, .most_passes = 1000, .most_moves = 10000, .batch = 4,
                            .context = t, .measure = measure, .tell = tell};
}

static void finish(struct trial *t)
{
    descent_fini(&t->d);
    mem_free(t->cost);
    candidates_fini(&t->table);
    made_fini(&t->made);
}

/* Apply a change of a move; its units are those of one role (every fourth) in successive layers. */
static void apply(const struct descent_change *c, const struct menu *m, uint8_t *assignment)
{
    for (int i = 0; i < c->units; i++) {
        int unit = c->unit + 4 * i;
        assert_in_range(unit, 0, m->n_units - 1);
        assert_int_equal(assignment[unit], c->from);
        assert_int_not_equal(c->from, c->to);
        assert_true(m->available[unit * MADE_FORMATS + c->to]);
        assignment[unit] = (uint8_t)c->to;
    }
}

/* What must hold of any run: accepted moves form a chain of strict falls within the size, and every entry is a move. */
static void assert_sound(const struct trial *t)
{
    const struct descent *d = &t->d;
    uint32_t base = 0;
    size_t accepted = 0;
    assert_int_equal(d->n_moves + 1, t->table.n);
    for (size_t i = 0; i < d->n_moves; i++) {
        const struct descent_move *m = &d->moves[i];
        const struct candidate *from = &t->table.list[m->base], *to = &t->table.list[m->candidate];
        uint8_t expected[1024];
        assert_int_equal(m->candidate, i + 1);
        assert_int_equal(to->parent, m->base);
        assert_string_equal(to->origin, "polish");
        assert_true(m->kl_before == from->kl_mean);
        assert_int_equal(m->look >= 0, to->dropped_at >= 0);
        if (m->look < 0)
            assert_true(m->kl_after == to->kl_mean && m->estimate == to->kl_mean);
        memcpy(expected, from->assignment, (size_t)t->table.n_units);
        apply(&m->first, &t->made.menu, expected);
        apply(&m->second, &t->made.menu, expected);
        assert_memory_equal(expected, to->assignment, (size_t)t->table.n_units);
        assert_string_equal(descent_kind(m), m->first.units + m->second.units > 2 ||
                                             (m->second.units == 0 && m->first.units > 1) ? "block" :
                                             m->second.units ? "swap" : "flip");
        assert_true(to->bytes <= d->most_bytes);
        assert_int_equal(candidates_find(&t->table, to->assignment), m->candidate); /* nothing is measured twice */
        if (!m->is_accepted)
            continue;
        assert_int_equal(m->base, base);
        assert_true(m->kl_after < m->kl_before);
        base = m->candidate;
        accepted++;
    }
    assert_int_equal(d->chosen, base);
    assert_int_equal(t->n_told, accepted);
}

static void kl_falls_strictly_and_size_never_grows(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed < 12; seed++) {
        struct err e;
        struct trial t;
        start(&t, 12, 4, seed);
        t.noise = 0.3;
        assert_ok(descent_run(&t.d, &e), e);
        assert_sound(&t);
        assert_true(t.d.is_exhausted);
        assert_true(t.table.list[t.d.chosen].kl_mean < t.table.list[0].kl_mean);
        assert_true(t.most_batch <= 4);
        finish(&t);
    }
}

/* One unit, or a block of 2, 4, 8 or all units of a run of one role in one format, to another format: found by trying
 * every stretch of layers. */
static size_t all_changes(const struct menu *m, const uint8_t *a, struct descent_change *out)
{
    size_t n = 0;
    int layers = m->n_units / 4;
    for (int role = 0; role < 4; role++)
        for (int i = 0; i < layers; i++)
            for (int k = 1; i + k <= layers; k++) {
                bool is_run = true;
                for (int l = i; l < i + k; l++)
                    is_run = is_run && a[4 * l + role] == a[4 * i + role];
                bool is_whole = (i == 0 || a[4 * (i - 1) + role] != a[4 * i + role]) &&
                                (i + k == layers || a[4 * (i + k) + role] != a[4 * i + role]);
                if (!is_run || !(k == 1 || k == 2 || k == 4 || k == 8 || is_whole))
                    continue;
                for (int to = 0; to < MADE_FORMATS; to++) {
                    bool fits = to != a[4 * i + role];
                    for (int l = i; l < i + k; l++)
                        fits = fits && m->available[(4 * l + role) * MADE_FORMATS + to];
                    if (fits)
                        out[n++] = (struct descent_change){4 * i + role, k, a[4 * i + role], to};
                }
            }
    return n;
}

static int64_t bytes_of(const struct menu *m, const struct descent_change *c)
{
    int64_t sum = 0;
    for (int i = 0; i < c->units; i++) {
        const uint64_t *bytes = m->bytes + (c->unit + 4 * i) * MADE_FORMATS;
        sum += (int64_t)(bytes[c->to] - bytes[c->from]);
    }
    return sum;
}

static bool are_disjoint(const struct descent_change *x, const struct descent_change *y)
{
    for (int i = 0; i < x->units; i++)
        for (int j = 0; j < y->units; j++)
            if (x->unit + 4 * i == y->unit + 4 * j)
                return false;
    return true;
}

#define MOST_CHANGES 2000

/* Call `each` with every move from the assignment that fits. */
static void all_moves(const struct menu *m, const uint8_t *a, uint64_t most,
                      void (*each)(void *context, const struct descent_change *x, const struct descent_change *y),
                      void *context)
{
    struct descent_change *c, none = {-1, 0, -1, -1};
    struct err e;
    assert_ok(mem_new(&c, MOST_CHANGES, &e), e);
    size_t n = all_changes(m, a, c);
    int64_t room = (int64_t)(most - menu_bytes(m, a));
    assert_in_range(n, 1, MOST_CHANGES);
    for (size_t i = 0; i < n; i++) {
        if (bytes_of(m, &c[i]) <= room)
            each(context, &c[i], &none);
        for (size_t j = 0; j < n; j++)
            if (bytes_of(m, &c[i]) > 0 && bytes_of(m, &c[j]) < 0 && are_disjoint(&c[i], &c[j]) &&
                bytes_of(m, &c[i]) + bytes_of(m, &c[j]) <= room)
                each(context, &c[i], &c[j]);
    }
    mem_free(c);
}

struct visit {
    const struct trial *t;
    size_t n;
};

static void must_not_be_better(void *context, const struct descent_change *x, const struct descent_change *y)
{
    struct visit *v = context;
    const struct candidate *end = &v->t->table.list[v->t->d.chosen];
    uint8_t a[64];
    memcpy(a, end->assignment, (size_t)v->t->table.n_units);
    apply(x, &v->t->made.menu, a);
    apply(y, &v->t->made.menu, a);
    if (made_kl(&v->t->made, a) < made_kl(&v->t->made, end->assignment) * (1 - 1e-12))
        fail_msg("units %d and %d to formats %d and %d, %d and %d of them, are better", x->unit, y->unit, x->to, y->to,
                 x->units, y->units);
    v->n++;
}

/* When it ends by itself, no flip, swap or block that fits is better. */
static void the_end_is_a_local_optimum(void **state)
{
    (void)state;
    static const int units[] = {8, 16, 20};
    for (size_t i = 0; i < COUNT(units); i++) {
        struct err e;
        struct trial t;
        start(&t, units[i], 5, 21);
        assert_ok(descent_run(&t.d, &e), e);
        assert_true(t.d.is_exhausted);
        struct visit v = {&t, 0};
        all_moves(&t.made.menu, t.table.list[t.d.chosen].assignment, t.d.most_bytes, must_not_be_better, &v);
        assert_true(v.n > 20);
        finish(&t);
    }
}

struct prediction {
    double gain;
    int64_t bytes;
};

struct predictions {
    const struct trial *t;
    struct prediction list[MOST_CHANGES * 20];
    size_t n;
};

static double cost_of(const struct trial *t, const struct descent_change *c)
{
    double fall = 0;
    for (int i = 0; i < c->units; i++) {
        const double *cost = t->cost + (c->unit + 4 * i) * MADE_FORMATS;
        fall += cost[c->from] - cost[c->to];
    }
    return fall;
}

static void predict(void *context, const struct descent_change *x, const struct descent_change *y)
{
    struct predictions *p = context;
    const struct menu *m = &p->t->made.menu;
    assert_in_range(p->n, 0, COUNT(p->list) - 1);
    p->list[p->n++] = (struct prediction){cost_of(p->t, x) + cost_of(p->t, y), bytes_of(m, x) + bytes_of(m, y)};
}

/* Where a move stands: 0 gains without bytes, 1 gains for bytes, 2 does not gain; and how steep it is. */
static int standing(double gain, int64_t bytes, double *steepness)
{
    int kind = !(gain > 0) ? 2 : bytes > 0;
    *steepness = kind == 1 ? gain / (double)bytes : gain;
    return kind;
}

static int falling(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x < y) - (x > y);
}

/* One move at a time, of which none is accepted: then all moves from the start are tried, in the order of the header,
 * which here comes from a list that was made and sorted in another way. */
static void moves_are_tried_steepest_first(void **state)
{
    (void)state;
    struct err e;
    struct trial t;
    struct predictions *p;
    double *sorted[3];
    size_t n[3] = {0}, at[3] = {0}, blocks = 0;
    start(&t, 12, 2, 5);
    t.noise = 1e6;
    t.d.batch = 1;
    t.d.most_bytes += 60000;
    assert_ok(mem_new(&p, 1, &e), e);
    p->t = &t;
    all_moves(&t.made.menu, t.table.list[0].assignment, t.d.most_bytes, predict, p);
    for (int k = 0; k < 3; k++)
        assert_ok(mem_new(&sorted[k], p->n, &e), e);
    for (size_t i = 0; i < p->n; i++) {
        double steepness;
        int kind = standing(p->list[i].gain, p->list[i].bytes, &steepness);
        sorted[kind][n[kind]++] = steepness;
    }
    for (int k = 0; k < 3; k++)
        qsort(sorted[k], n[k], sizeof **sorted, falling);
    assert_true(n[0] > 10 && n[1] > 10 && n[2] > 10);
    assert_ok(descent_run(&t.d, &e), e);
    assert_sound(&t);
    assert_int_equal(t.d.n_moves, p->n);
    for (size_t i = 0; i < t.d.n_moves; i++) {
        const struct descent_move *m = &t.d.moves[i];
        double steepness;
        int64_t bytes = bytes_of(&t.made.menu, &m->first) + bytes_of(&t.made.menu, &m->second);
        int kind = standing(m->gain, bytes, &steepness);
        int expected = at[0] == n[0] && at[1] == n[1] ? 2 :
                       at[1] == n[1] || (at[0] < n[0] && at[0] == at[1]) ? 0 : 1;
        assert_int_equal(kind, expected);
        assert_true(fabs(steepness - sorted[kind][at[kind]]) <= 1e-12 * fabs(steepness));
        assert_true(fabs(m->gain - cost_of(&t, &m->first) - cost_of(&t, &m->second)) <= 1e-15);
        at[kind]++;
        blocks += strcmp(descent_kind(m), "block") == 0;
    }
    assert_true(blocks > 10);
    for (int k = 0; k < 3; k++)
        mem_free(sorted[k]);
    mem_free(p);
    finish(&t);
}

static void an_optimum_stays_where_it_is(void **state)
{
    (void)state;
    struct err e;
    struct trial t;
    start(&t, 8, 2, 4);
    t.noise = 1e6; /* everything else is measured far worse */
    assert_ok(descent_run(&t.d, &e), e);
    assert_sound(&t);
    assert_int_equal(t.d.chosen, 0);
    assert_int_equal(t.n_told, 0);
    finish(&t);
}

static void equal_kl_is_not_accepted(void **state)
{
    (void)state;
    struct err e;
    struct trial t;
    start(&t, 8, 2, 4);
    for (int i = 0; i < 8 * MADE_FORMATS; i++)
        t.made.truth[i] = 0.125;
    made_measure(&t.made, &t.table, 0);
    assert_ok(descent_run(&t.d, &e), e);
    assert_true(t.d.n_moves > 0);
    assert_int_equal(t.d.chosen, 0);
    finish(&t);
}

/* Predictions from elsewhere that know the truth, beside measuring with noise. */
static bool foresee(void *context, const struct candidate *a, const struct candidate *b, struct stats_difference *out,
                    struct err *e)
{
    const struct trial *t = context;
    (void)e;
    double mean = made_kl(&t->made, a->assignment) - made_kl(&t->made, b->assignment), error = 0.02 * fabs(mean);
    *out = (struct stats_difference){mean, mean - 2 * error, mean + 2 * error, error, 8};
    return true;
}

/* With them no tie is accepted that they speak against, and the end is better in truth. */
static void a_measured_tie_needs_no_worse_a_prediction(void **state)
{
    (void)state;
    struct err e;
    double end[2] = {0};
    size_t ties = 0;
    for (uint64_t seed = 1; seed <= 20; seed++)
        for (int with = 0; with < 2; with++) {
            struct trial t;
            start(&t, 12, 2, seed);
            t.scatter = 0.2;
            t.d.most_moves = 200;
            t.d.predict = with ? foresee : NULL;
            assert_ok(descent_run(&t.d, &e), e);
            for (size_t i = 0; i < t.d.n_moves; i++) {
                const struct descent_move *m = &t.d.moves[i];
                assert_true(isnan(m->difference.predicted.mean) == !with);
                if (!m->is_accepted)
                    continue;
                assert_true(m->kl_after < m->kl_before);
                bool is_tie = stats_is_tie(&m->difference.measured);
                ties += is_tie && with;
                assert_true(!is_tie || m->difference.mean < 0);
            }
            end[with] += log(made_kl(&t.made, t.table.list[t.d.chosen].assignment));
            finish(&t);
        }
    assert_true(ties > 0 && end[1] < end[0] - 0.2); /* sums of 20 logarithms */
}

static void limits_are_kept(void **state)
{
    (void)state;
    static const struct {
        int passes, moves, batch;
        size_t moves_expected;
    } cases[] = {{1000, 0, 4, 0}, {1000, 10, 4, 10}, {1000, 3, 8, 3}, {1, 1000, 1, 0}};
    for (size_t i = 0; i < COUNT(cases); i++) {
        struct err e;
        struct trial t;
        start(&t, 12, 4, 2);
        t.d.most_passes = cases[i].passes;
        t.d.most_moves = cases[i].moves;
        t.d.batch = cases[i].batch;
        assert_ok(descent_run(&t.d, &e), e);
        assert_sound(&t);
        assert_false(t.d.is_exhausted);
        if (cases[i].passes > 1)
            assert_int_equal(t.d.n_moves, cases[i].moves_expected);
        else
            assert_int_equal(t.n_told, 1);
        assert_true(t.most_batch <= (size_t)cases[i].batch);
        finish(&t);
    }
}

static void growth_lets_bytes_be_added(void **state)
{
    (void)state;
    struct err e;
    struct trial t;
    start(&t, 12, 4, 2);
    t.d.most_bytes = UINT64_MAX / 4;
    assert_ok(descent_run(&t.d, &e), e);
    assert_sound(&t);
    assert_true(t.table.list[t.d.chosen].kl_mean == 0); /* every unit in full */
    finish(&t);
}

/* 300 units in `small`, and one in `half` that is small and matters little. Every other unit gains by `half` as well,
 * but only the last one's is paid for by the first one's bytes, and its gain is the least: so the swap is not among the
 * best changes that are paired, and the descent must not say that nothing is left. With fewer units it is, and is
 * taken. */
static void a_descent_that_left_swaps_out_does_not_say_that_it_is_exhausted(void **state)
{
    (void)state;
    static const int units[] = {300, 200};
    for (size_t i = 0; i < COUNT(units); i++) {
        struct err e;
        struct trial t;
        int n = units[i];
        start(&t, n, 2, 4);
        for (int u = 0; u < n; u++) {
            uint64_t size = u == 0 ? 3 : u == n - 1 ? 2 : 1000;
            for (int f = 0; f < MADE_FORMATS; f++) {
                int at = u * MADE_FORMATS + f;
                t.made.menu.available[at] = f == 1 || f == 2;
                t.made.menu.bytes[at] = f == 2 ? 1000 + size : 1000;
                t.cost[at] = t.made.truth[at] = f == 2 ? 0 : u == 0 ? 0.01 : u == n - 1 ? 0.1 : 1;
            }
            t.table.list[0].assignment[u] = u == 0 ? 2 : 1;
            t.made.menu.layers[u] = -1; /* no block: each name is a role of its own */
        }
        t.table.list[0].bytes = menu_bytes(&t.made.menu, t.table.list[0].assignment);
        made_measure(&t.made, &t.table, 0);
        t.d.most_bytes = t.table.list[0].bytes;
        assert_ok(descent_run(&t.d, &e), e);
        assert_sound(&t);
        assert_int_equal(t.d.is_cut, n == 300);
        assert_int_equal(t.d.is_exhausted, n == 200);
        assert_int_equal(t.n_told, n == 200);
        finish(&t);
    }
}

static void assert_same_moves(const struct descent *a, const struct descent *b, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        const struct descent_move *x = &a->moves[i], *y = &b->moves[i];
        assert_memory_equal(&x->first, &y->first, sizeof x->first);
        assert_memory_equal(&x->second, &y->second, sizeof x->second);
        assert_true(x->base == y->base && x->candidate == y->candidate && x->look == y->look);
        assert_memory_equal(&x->kl_after, &y->kl_after, sizeof x->kl_after); /* NaN too */
        assert_memory_equal(&x->bound, &y->bound, sizeof x->bound);
        assert_true(x->gain == y->gain && x->kl_before == y->kl_before && x->is_accepted == y->is_accepted);
    }
}

static void an_interruption_is_handed_on_and_a_second_run_takes_the_same_steps(void **state)
{
    (void)state;
    struct err e;
    struct trial whole, cut;
    start(&whole, 10, 4, 3);
    assert_ok(descent_run(&whole.d, &e), e);
    start(&cut, 10, 4, 3);
    cut.fail_at = 3;
    assert_err(descent_run(&cut.d, &e), e, ERR_STOPPED, "interrupted");
    assert_int_equal(cut.d.n_moves, 12); /* two batches measured, and the one in hand */
    assert_same_moves(&cut.d, &whole.d, 8);
    finish(&cut);
    finish(&whole);
}

/* ------------------------------------------------------------------------------------------------------- giving up */

#define DOCUMENTS 40
#define WINDOWS (2 * DOCUMENTS)

/* Measured KL is that of the base plus `shift` plus noise by document, of which the mean over the whole set is taken
 * out if it is `is_centred`. What was asked for is counted. */
struct survey {
    struct made made;
    struct candidates table;
    double *cost, shift, noise;
    bool is_centred, is_heavy;
    uint64_t seed;
    size_t windows; /* measured, over all candidates */
    struct descent d;
};

static double normal(uint64_t *state)
{
    double u = ((double)stats_random(state) + 1) * 0x1p-64, v = (double)stats_random(state) * 0x1p-64;
    return sqrt(-2 * log(u)) * cos(6.283185307179586 * v);
}

/* Of candidate c: a number per document. Heavy: Student's t with 4 degrees of freedom. */
static void draw(const struct survey *s, const struct candidate *c, double *out)
{
    uint64_t state = s->seed;
    double mean = 0;
    for (int u = 0; u < s->table.n_units; u++)
        state = state * 1099511628211u + c->assignment[u] + 1;
    for (int i = 0; i < DOCUMENTS; i++) {
        double x = normal(&state), chi = 0;
        for (int k = 0; k < 4 && s->is_heavy; k++) {
            double y = normal(&state);
            chi += y * y / 4;
        }
        out[i] = s->noise * (s->is_heavy ? x / sqrt(chi) : x);
        mean += out[i] / DOCUMENTS;
    }
    for (int i = 0; i < DOCUMENTS && s->is_centred; i++)
        out[i] -= mean;
}

static bool measure_survey(void *context, struct candidates *table, size_t first, const uint32_t *windows, size_t n,
                           struct err *e)
{
    struct survey *s = context;
    double noise[DOCUMENTS];
    (void)e;
    for (size_t i = first; i < table->n; i++) {
        struct candidate *c = &table->list[i];
        if (c->dropped_at >= 0)
            continue;
        draw(s, c, noise);
        for (size_t k = 0; k < n; k++) {
            assert_true(isnan(c->kl_window[windows[k]])); /* nothing is asked for twice */
            c->kl_window[windows[k]] = 1 + s->shift + noise[windows[k] / 2];
        }
        c->n_windows += (uint32_t)n;
        s->windows += n;
        if (c->n_windows < WINDOWS)
            continue;
        c->kl_mean = 0;
        for (uint32_t w = 0; w < WINDOWS; w++)
            c->kl_mean += c->kl_window[w] / WINDOWS;
    }
    return true;
}

/* A start with KL 1 everywhere; up to 2,000 moves, whatever they are. */
static void start_survey(struct survey *s, double shift, double noise, double give_up)
{
    struct err e;
    uint32_t tokens[WINDOWS], document[WINDOWS];
    uint64_t seed = 3;
    *s = (struct survey){.shift = shift, .noise = noise, .seed = 17};
    made_init(&s->made, 40, 2, 8);
    for (uint32_t w = 0; w < WINDOWS; w++) {
        tokens[w] = 255;
        document[w] = 900 - w / 2;
    }
    assert_ok(candidates_init(&s->table, 40, WINDOWS, tokens, document, &e), e);
    struct candidate *c = made_random(&s->made, &s->table, &seed);
    for (uint32_t w = 0; w < WINDOWS; w++)
        c->kl_window[w] = 1;
    c->kl_mean = 1;
    c->n_windows = WINDOWS;
    s->d = (struct descent){.menu = &s->made.menu, .table = &s->table, .cost = s->made.cost,
                            .most_bytes = c->bytes + 1000000, .most_passes = 1000, .most_moves = 2000, .batch = 50,
                            .give_up = give_up, .seed = 5, .context = s, .measure = measure_survey};
}

static void finish_survey(struct survey *s)
{
    descent_fini(&s->d);
    candidates_fini(&s->table);
    made_fini(&s->made);
}

static size_t count_given_up(const struct descent *d)
{
    size_t n = 0;
    for (size_t i = 0; i < d->n_moves; i++)
        n += d->moves[i].look >= 0;
    return n;
}

/* A move that gains nothing, but next to it, is given up at no more than the stated level: the simulation's own error
 * is two standard deviations. */
static void a_move_that_gains_is_lost_at_the_stated_level(void **state)
{
    (void)state;
    for (int heavy = 0; heavy < 2; heavy++) {
        struct err e;
        struct survey s;
        start_survey(&s, 1e-9, 0.01, 0.1);
        s.is_centred = true;
        s.is_heavy = heavy;
        assert_ok(descent_run(&s.d, &e), e);
        assert_int_equal(s.d.n_moves, 2000);
        assert_int_equal(s.d.chosen, 0);
        double rate = (double)count_given_up(&s.d) / 2000;
        if (rate > 0.1 + 2 * sqrt(0.1 * 0.9 / 2000) || rate < 0.01)
            fail_msg("%.4f given up at level 0.1 (%s tails)", rate, heavy ? "heavy" : "normal");
        finish_survey(&s);
    }
}

/* What clearly loses goes at the first look that it can; what clearly gains is measured in full. */
static void losers_are_given_up_early_and_gainers_are_not(void **state)
{
    (void)state;
    struct err e;
    struct survey s;
    start_survey(&s, 0.05, 0.01, 0.05);
    assert_ok(descent_run(&s.d, &e), e);
    assert_int_equal(s.d.n_looks, DESCENT_LOOKS);
    for (uint32_t k = 0; k < DESCENT_LOOKS; k++)
        assert_int_equal(s.d.look_windows[k], WINDOWS / 8 * (k + 1));
    assert_true(count_given_up(&s.d) > 1990);
    assert_true(s.windows < 2000 * 12);
    for (size_t i = 0; i < s.d.n_moves; i++) {
        const struct descent_move *m = &s.d.moves[i];
        const struct candidate *c = &s.table.list[m->candidate];
        if (m->look < 0)
            continue;
        double mean = 0;
        for (uint32_t w = 0; w < WINDOWS; w++)
            mean += isnan(c->kl_window[w]) ? 0 : (c->kl_window[w] - 1) / c->n_windows;
        assert_int_equal(c->n_windows, s.d.look_windows[m->look]);
        assert_int_equal(c->dropped_at, c->n_windows);
        assert_int_equal(c->dropped_by, m->base);
        assert_true(isnan(m->kl_after) && isnan(c->kl_mean) && m->bound < 0 && !m->is_accepted);
        assert_true(fabs(m->estimate - 1 - mean) < 1e-12 && m->bound > -mean);
    }
    finish_survey(&s);
    start_survey(&s, -0.05, 0.01, 0.05);
    s.d.most_passes = 1;
    assert_ok(descent_run(&s.d, &e), e);
    assert_int_equal(count_given_up(&s.d), 0);
    assert_int_equal(s.windows, 50 * WINDOWS);
    double least = 1;
    for (size_t i = 0; i < s.d.n_moves; i++)
        least = fmin(least, s.d.moves[i].kl_after);
    assert_true(s.table.list[s.d.chosen].kl_mean == least && least < 1);
    finish_survey(&s);
}

/* The bound of the last look, by the formula of the header, for one move. */
static void the_bound_is_that_of_a_sample_without_replacement(void **state)
{
    (void)state;
    struct err e;
    struct survey s;
    start_survey(&s, 0.05, 0.01, 0.14);
    s.d.most_moves = 1;
    assert_ok(descent_run(&s.d, &e), e);
    const struct descent_move *m = &s.d.moves[0];
    const struct candidate *c = &s.table.list[1];
    assert_int_equal(m->look, 0);
    double mean = 0, squares = 0, seen = 5;
    for (uint32_t w = 0; w < WINDOWS; w += 2)
        mean += isnan(c->kl_window[w]) ? 0 : (c->kl_window[w] - 1) / seen;
    for (uint32_t w = 0; w < WINDOWS; w += 2)
        squares += isnan(c->kl_window[w]) ? 0 : (c->kl_window[w] - 1 - mean) * (c->kl_window[w] - 1 - mean);
    double t = 2.998527820; /* Student's t, 4 degrees of freedom, 0.98: a seventh of 0.14 at each of seven looks */
    double low = mean - t * sqrt(squares / (seen - 1) / seen * (1 - seen / DOCUMENTS));
    assert_true(fabs(m->bound + low) < 1e-8);
    finish_survey(&s);
}

static void without_a_level_or_documents_all_are_measured_in_full(void **state)
{
    (void)state;
    struct err e;
    struct survey s;
    struct trial t;
    start_survey(&s, 0.05, 0.01, 0);
    s.d.most_moves = 100;
    assert_ok(descent_run(&s.d, &e), e);
    assert_int_equal(s.d.n_looks, 0);
    assert_int_equal(s.windows, 100 * WINDOWS);
    finish_survey(&s);
    start(&t, 12, 4, 2);
    t.d.give_up = 0.05;
    for (uint32_t w = 0; w < MADE_WINDOWS; w++)
        t.table.window_document[w] = w % 3;
    made_measure(&t.made, &t.table, 0);
    assert_ok(descent_run(&t.d, &e), e);
    assert_sound(&t);
    assert_int_equal(t.d.n_looks, 0);
    finish(&t);
}

/* The same moves with the same numbers for one seed; for another the documents come in another order, and the result
 * is sound all the same. */
static void the_seed_decides_which_documents_are_seen_first(void **state)
{
    (void)state;
    struct err e;
    struct survey s[3];
    for (int i = 0; i < 3; i++) {
        start_survey(&s[i], 0.003, 0.01, 0.1);
        s[i].d.most_moves = 200;
        s[i].d.seed = i < 2 ? 5 : 6;
        assert_ok(descent_run(&s[i].d, &e), e);
    }
    assert_int_equal(s[0].windows, s[1].windows);
    assert_same_moves(&s[0].d, &s[1].d, 200);
    assert_true(s[2].windows != s[0].windows);
    for (int i = 0; i < 3; i++)
        finish_survey(&s[i]);
}

/* Each request for memory of a short run fails once: the error is handed on, and nothing is lost or leaked. */
static void want_of_memory_is_handed_on(void **state)
{
    (void)state;
    bool ok = false;
    long n = 0;
    while (!ok) {
        struct err e = {0};
        struct survey s;
        start_survey(&s, 0.05, 0.01, 0.05);
        s.d.most_moves = 20;
        s.d.batch = 10;
        mem_fail_after(++n, false);
        ok = descent_run(&s.d, &e);
        mem_fail_after(0, false);
        assert_true(ok || e.code == ERR_RESOURCE);
        finish_survey(&s);
    }
    assert_in_range(n, 20, 10000);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(kl_falls_strictly_and_size_never_grows),
        cmocka_unit_test(the_end_is_a_local_optimum),
        cmocka_unit_test(moves_are_tried_steepest_first),
        cmocka_unit_test(an_optimum_stays_where_it_is),
        cmocka_unit_test(equal_kl_is_not_accepted),
        cmocka_unit_test(a_measured_tie_needs_no_worse_a_prediction),
        cmocka_unit_test(limits_are_kept),
        cmocka_unit_test(growth_lets_bytes_be_added),
        cmocka_unit_test(a_descent_that_left_swaps_out_does_not_say_that_it_is_exhausted),
        cmocka_unit_test(an_interruption_is_handed_on_and_a_second_run_takes_the_same_steps),
        cmocka_unit_test(a_move_that_gains_is_lost_at_the_stated_level),
        cmocka_unit_test(losers_are_given_up_early_and_gainers_are_not),
        cmocka_unit_test(the_bound_is_that_of_a_sample_without_replacement),
        cmocka_unit_test(without_a_level_or_documents_all_are_measured_in_full),
        cmocka_unit_test(the_seed_decides_which_documents_are_seen_first),
        cmocka_unit_test(want_of_memory_is_handed_on),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
