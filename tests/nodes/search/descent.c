/* The decisions of the coordinate descent, with a made-up model in the place of measuring. */
#include "tests/nodes/search/menus.h"

#include "nodes/search/descent.h"

struct trial {
    struct made made;
    struct candidates table;
    double *cost;
    struct descent d;
    size_t calls, most_batch;
    double noise;        /* measured KL is off by up to this factor, as a function of the assignment */
    long fail_at;        /* the call that fails; 0: none */
    size_t n_told;
};

static bool measure(void *context, struct candidates *table, size_t first, struct err *e)
{
    struct trial *t = context;
    t->calls++;
    if (t->fail_at && (long)t->calls == t->fail_at)
        return err_set(e, ERR_STOPPED, "interrupted");
    t->most_batch = table->n - first > t->most_batch ? table->n - first : t->most_batch;
    made_measure(&t->made, table, first);
    for (size_t i = first; i < table->n; i++) {
        uint64_t hash = 1;
        for (int u = 0; u < table->n_units; u++)
            hash = hash * 1099511628211u + table->list[i].assignment[u];
        table->list[i].kl_mean *= 1 + t->noise * (double)stats_random(&hash) * 0x1p-64;
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
        assert_int_equal(m->candidate, i + 1);
        assert_int_equal(to->parent, m->base);
        assert_string_equal(to->origin, "polish");
        assert_true(m->kl_before == from->kl_mean && m->kl_after == to->kl_mean);
        int changed = 0;
        for (int u = 0; u < t->table.n_units; u++) {
            if (from->assignment[u] == to->assignment[u])
                continue;
            changed++;
            bool is_first = u == m->unit;
            assert_true(is_first || u == m->unit2);
            assert_int_equal(from->assignment[u], is_first ? m->from : m->from2);
            assert_int_equal(to->assignment[u], is_first ? m->to : m->to2);
            assert_true(t->made.menu.available[u * MADE_FORMATS + to->assignment[u]]);
        }
        assert_int_equal(changed, m->unit2 < 0 ? 1 : 2);
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

/* When it ends by itself, no flip and no swap that fits is better. */
static void the_end_is_a_local_optimum(void **state)
{
    (void)state;
    struct err e;
    struct trial t;
    start(&t, 10, 5, 21);
    assert_ok(descent_run(&t.d, &e), e);
    const struct menu *m = &t.made.menu;
    const struct candidate *end = &t.table.list[t.d.chosen];
    uint8_t a[10];
    double least = made_kl(&t.made, end->assignment);
    memcpy(a, end->assignment, sizeof a);
    for (int u = 0; u < 10; u++)
        for (int v = 0; v < u; v++)
            for (int f = 0; f < MADE_FORMATS * MADE_FORMATS; f++) {
                a[u] = (uint8_t)(f / MADE_FORMATS);
                a[v] = (uint8_t)(f % MADE_FORMATS);
                const uint64_t *at_u = m->bytes + u * MADE_FORMATS, *at_v = m->bytes + v * MADE_FORMATS;
                int64_t du = (int64_t)(at_u[a[u]] - at_u[end->assignment[u]]);
                int64_t dv = (int64_t)(at_v[a[v]] - at_v[end->assignment[v]]);
                bool fits = m->available[u * MADE_FORMATS + a[u]] && m->available[v * MADE_FORMATS + a[v]] &&
                            menu_bytes(m, a) <= t.d.most_bytes;
                bool is_move = a[u] == end->assignment[u] || a[v] == end->assignment[v] || (du > 0) != (dv > 0);
                if (fits && is_move && du != 0 && dv != 0 && made_kl(&t.made, a) < least * (1 - 1e-12))
                    fail_msg("units %d and %d in formats %d and %d are better", u, v, a[u], a[v]);
                a[u] = end->assignment[u];
                a[v] = end->assignment[v];
            }
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
    assert_memory_equal(cut.d.moves, whole.d.moves, 8 * sizeof *cut.d.moves);
    finish(&cut);
    finish(&whole);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(kl_falls_strictly_and_size_never_grows),
        cmocka_unit_test(the_end_is_a_local_optimum),
        cmocka_unit_test(an_optimum_stays_where_it_is),
        cmocka_unit_test(equal_kl_is_not_accepted),
        cmocka_unit_test(limits_are_kept),
        cmocka_unit_test(growth_lets_bytes_be_added),
        cmocka_unit_test(a_descent_that_left_swaps_out_does_not_say_that_it_is_exhausted),
        cmocka_unit_test(an_interruption_is_handed_on_and_a_second_run_takes_the_same_steps),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
