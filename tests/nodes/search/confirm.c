/* The node type confirm on made-up measurements: which baselines there are, and when the choice stands. */
#include "tests/nodes/search/world.h"

#include "nodes/search/archive.h"

/* What a `polish` would hand on that chose this assignment. */
static struct object *choice_of(const uint8_t *assignment, const char *seed)
{
    struct err e;
    struct candidates c;
    struct writer *w;
    struct key k = made_key(seed);
    uint32_t chosen = 1;
    uint8_t other[UNITS];
    made_table(&world.made, &c);
    menu_uniform(&world.made.menu, 0, other);
    assert_non_null(candidates_add(&c, &world.made.menu, other, "uniform", -1, &e));
    assert_non_null(candidates_add(&c, &world.made.menu, assignment, "polish", 0, &e));
    made_measure(&world.made, &c, 0);
    assert_ok(writer_new(&w, world.store, &k, "polish/1", &e) && candidates_write(&c, &world.made.menu, w, &e), e);
    made_add(w, "chosen", DTYPE_U32, 1, 0, &chosen);
    candidates_fini(&c);
    return made_commit(world.store, w, seed);
}

struct answer {
    struct candidates table;
    uint32_t chosen, *candidate;
    double *difference, *low, *high;
    char **name;
    uint64_t n;
};

static void run_confirm(const uint8_t *assignment, const char *seed, struct answer *out)
{
    struct err e;
    struct object *choice = choice_of(assignment, seed);
    struct object *o = run_fine(&node_confirm, "confirm", (struct setting[]){{"choice", choice, NULL}, {0}});
    assert_ok(candidates_read(&out->table, o, &e), e);
    out->chosen = load_one(o, "chosen");
    out->candidate = load(o, "compared/candidate", DTYPE_U32, &out->n);
    out->difference = load(o, "compared/difference", DTYPE_F64, NULL);
    out->low = load(o, "compared/low", DTYPE_F64, NULL);
    out->high = load(o, "compared/high", DTYPE_F64, NULL);
    assert_ok(object_read_strings(o, "compared/name", &out->name, &out->n, &e), e);
    object_close(o);
    object_close(choice);
}

static void free_answer(struct answer *a)
{
    candidates_fini(&a->table);
    mem_free(a->candidate);
    mem_free(a->difference);
    mem_free(a->low);
    mem_free(a->high);
    mem_free(a->name);
}

/* Least sum of `cost` within `most` bytes. */
static void knapsack(const double *cost, uint64_t most, uint8_t *out)
{
    struct err e;
    struct archive *a;
    const struct menu *m = &world.made.menu;
    size_t n, at = 0;
    assert_ok(archive_new(&a, &(struct archive_problem){UNITS, MADE_FORMATS, m->bytes, cost},
                          &(struct archive_options){0}, &e), e);
    const struct archive_point *p = archive_points(a, &n);
    for (size_t i = 0; i < n; i++)
        if (p[i].bytes <= most)
            at = i;
    assert_true(archive_quality(a)->is_exact);
    assert_ok(archive_assignments(a, &at, 1, out, &e), e);
    archive_free(a);
}

/* What must hold whoever wins. */
static void assert_sound(const struct answer *a)
{
    const struct candidate *list = a->table.list, *best = &list[a->chosen];
    assert_int_equal(list[0].parent, -1);
    for (uint64_t i = 0; i < a->n; i++) {
        const struct candidate *x = &list[a->candidate[i]];
        assert_true(x->bytes <= list[0].bytes && best->kl_mean <= x->kl_mean);
        assert_true(a->difference[i] == x->kl_mean - list[0].kl_mean);
        assert_true(a->low[i] <= a->difference[i] && a->difference[i] <= a->high[i]);
        assert_true((a->difference[i] == 0) == (x->kl_mean == list[0].kl_mean));
    }
    assert_string_equal(a->name[a->n - 1], "L1 knapsack");
    assert_true(best->kl_mean <= list[0].kl_mean && best->bytes <= list[0].bytes);
}

/* The best by the true costs beats what the surrogate's costs say, and every uniform format. */
static void a_choice_that_wins_stands(void **state)
{
    (void)state;
    uint8_t best[UNITS], l1[UNITS], uniform[UNITS];
    struct answer a;
    const struct menu *m = &world.made.menu;
    menu_uniform(m, 2, uniform);
    uint64_t most = menu_bytes(m, uniform);
    double truth[UNITS * MADE_FORMATS];
    for (int i = 0; i < UNITS * MADE_FORMATS; i++)
        truth[i] = m->available[i] ? world.made.truth[i] : NAN;
    knapsack(truth, most, best);
    knapsack(world.made.cost, menu_bytes(m, best), l1);
    run_confirm(best, "wins", &a);
    assert_sound(&a);
    assert_int_equal(a.chosen, 0);
    assert_string_equal(a.table.list[0].origin, "polish");
    assert_true(menu_bytes(m, best) < most); /* so that the uniform one of that size does not fit */
    assert_int_equal(a.n, 3);                /* tiny, small, knapsack */
    assert_string_equal(a.name[0], "uniform tiny");
    assert_string_equal(a.name[1], "uniform small");
    assert_string_equal(a.table.list[a.candidate[0]].origin, "uniform");
    assert_string_equal(a.table.list[a.candidate[2]].origin, "l1");
    assert_memory_equal(a.table.list[a.candidate[2]].assignment, l1, UNITS);
    assert_true(a.difference[2] > 0 && a.low[2] > 0);
    assert_non_null(strstr(world.log, "the choice stands"));
    free_answer(&a);
}

/* A choice of `half` in the place of a smaller format that is far better: the knapsack has the same bytes and wins; a
 * uniform one that does not fit is not asked although its KL is 0. */
static void a_choice_that_loses_is_replaced(void **state)
{
    (void)state;
    uint8_t bad[UNITS];
    struct answer a;
    const struct menu *m = &world.made.menu;
    menu_uniform(m, 1, bad);
    bad[3] = 3; /* the last unit of a layer has most parameters: its bytes are worth more elsewhere */
    world.made.truth[3 * MADE_FORMATS + 3] = 5;
    run_confirm(bad, "loses", &a);
    world.made.truth[3 * MADE_FORMATS + 3] = 0;
    assert_sound(&a);
    assert_int_not_equal(a.chosen, 0);
    for (uint64_t i = 0; i < a.n; i++)
        assert_true(a.difference[i] < 0 && a.high[i] < 0);
    assert_int_equal(a.n, 3);
    for (size_t i = 0; i < a.table.n; i++)
        assert_true(a.table.list[i].bytes <= a.table.list[0].bytes);
    assert_non_null(strstr(world.log, "the choice LOST"));
    free_answer(&a);
}

/* Equal KL is no reason to change; and a baseline that is the choice itself is measured once. */
static void the_choice_wins_ties(void **state)
{
    (void)state;
    uint8_t choice[UNITS];
    double truth[UNITS * MADE_FORMATS];
    struct answer a;
    memcpy(truth, world.made.truth, sizeof truth);
    for (int i = 0; i < UNITS * MADE_FORMATS; i++)
        world.made.truth[i] = 0.25;
    menu_uniform(&world.made.menu, 1, choice);
    choice[0] = 2;
    run_confirm(choice, "ties", &a);
    assert_sound(&a);
    assert_int_equal(a.chosen, 0);
    for (uint64_t i = 0; i < a.n; i++)
        assert_true(a.difference[i] == 0 && a.low[i] == 0 && a.high[i] == 0);
    free_answer(&a);
    memcpy(world.made.truth, truth, sizeof truth);
    menu_uniform(&world.made.menu, 3, choice); /* the best there is: the knapsack finds it too */
    run_confirm(choice, "itself", &a);
    assert_sound(&a);
    assert_int_equal(a.chosen, 0);
    assert_int_equal(a.n, MADE_FORMATS + 1);
    assert_int_equal(a.table.n, MADE_FORMATS);
    assert_int_equal(a.candidate[3], 0);
    assert_int_equal(a.candidate[4], 0);
    free_answer(&a);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_choice_that_wins_stands),
        cmocka_unit_test(a_choice_that_loses_is_replaced),
        cmocka_unit_test(the_choice_wins_ties),
    };
    return cmocka_run_group_tests(tests, world_set_up, world_tear_down);
}
