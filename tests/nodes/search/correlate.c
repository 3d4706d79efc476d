/* The node types sample and correlate on the made-up model. */
#include "tests/nodes/search/world.h"

static struct object *sample(const char *kind, const char *count, struct object *centre, const char *seed)
{
    const struct setting with[] = {{"kind", NULL, kind}, {"count", NULL, count}, {"centre", centre, NULL}, {0}};
    const struct setting without[] = {{"kind", NULL, kind}, {"count", NULL, count}, {0}};
    return run_fine(&node_sample, seed, centre ? with : without);
}

static struct object *chosen(void)
{
    struct object *rows = measured_rows();
    struct object *o = run_fine(&node_select, "select", (struct setting[]){{"rows", rows, NULL}, {"bpp", NULL, "8"},
                                                                           {0}});
    object_close(rows);
    return o;
}

static void samples_are_what_they_say(void **state)
{
    (void)state;
    struct err e;
    struct candidates c;
    const struct menu *m = &world.made.menu;
    struct object *centre = chosen(), *o = sample("spread", "200", NULL, "spread");
    assert_ok(candidates_read(&c, o, &e), e);
    assert_int_equal(c.n, 200);
    double low = INFINITY, high = 0;
    for (size_t i = 0; i < c.n; i++) {
        low = c.list[i].bpp < low ? c.list[i].bpp : low;
        high = c.list[i].bpp > high ? c.list[i].bpp : high;
        for (int u = 0; u < UNITS; u++)
            assert_true(m->available[u * MADE_FORMATS + c.list[i].assignment[u]]);
        assert_int_equal(candidates_find(&c, c.list[i].assignment), i);
    }
    assert_true(low < 6.5 && high > 12);
    candidates_fini(&c);
    object_close(o);
    static const char *const kinds[] = {"near", "swap"};
    for (int k = 0; k < 2; k++) {
        o = sample(kinds[k], "30", centre, kinds[k]);
        assert_ok(candidates_read(&c, o, &e), e);
        assert_true(c.n > 10);
        assert_string_equal(c.list[0].origin, "centre");
        for (size_t i = 1; i < c.n; i++) {
            int changed = 0;
            for (int u = 0; u < UNITS; u++)
                changed += c.list[i].assignment[u] != c.list[0].assignment[u];
            assert_int_equal(c.list[i].parent, 0);
            assert_in_range(changed, 1, k ? 6 : UNITS / 4);
            assert_true(k ? c.list[i].bytes == c.list[0].bytes : fabs(c.list[i].bpp - c.list[0].bpp) <= 0.5);
        }
        candidates_fini(&c);
        object_close(o);
    }
    struct object *none;
    assert_err(run_node(&node_sample, "no centre", (struct setting[]){{"kind", NULL, "near"}, {0}}, &none, &e), e,
               ERR_INPUT, "connect port 'centre'");
    object_close(centre);
}

/* A surrogate whose costs are the truth, with a pair. */
static struct object *true_surrogate(void)
{
    struct err e;
    struct writer *w;
    struct key k = made_key("truth");
    const struct menu *m = &world.made.menu;
    double cost[UNITS * MADE_FORMATS], pair[MADE_FORMATS * MADE_FORMATS] = {0};
    uint32_t units[2] = {2, 3};
    for (int i = 0; i < UNITS * MADE_FORMATS; i++)
        cost[i] = m->available[i] ? world.made.truth[i] : NAN;
    pair[0] = 0.125;
    assert_ok(writer_new(&w, world.store, &k, "probe/1", &e) &&
              writer_add_strings(w, "units/name", (const char *const *)m->unit_names, UNITS, "unit", "", &e) &&
              writer_add_strings(w, "formats/name", (const char *const *)m->format_names, MADE_FORMATS, "format", "",
                                 &e),
              e);
    made_add(w, "cost", DTYPE_F64, UNITS, MADE_FORMATS, cost);
    made_add(w, "pairs/units", DTYPE_U32, 1, 2, units);
    assert_ok(writer_add(w, &(struct dataset){.name = "pairs/cost", .dtype = DTYPE_F64, .rank = 3,
                                              .shape = {1, MADE_FORMATS, MADE_FORMATS}, .unit = "nat", .axes = "",
                                              .description = ""}, pair, &e), e);
    return made_commit(world.store, w, "truth");
}

static void a_surrogate_that_is_the_truth_is_found_perfect(void **state)
{
    (void)state;
    struct err e;
    struct object *centre = chosen(), *swaps = sample("swap", "40", centre, "swaps of truth");
    struct object *rows = measure_object(swaps, "rows of truth"), *truth = true_surrogate();
    struct object *o;
    char **origin;
    uint64_t n;
    assert_ok(run_node(&node_correlate, "correlate",
                       (struct setting[]){{"surrogates", truth, NULL}, {"rows", rows, NULL}, {0}}, &o, &e), e);
    double *spearman = load(o, "correlation/spearman", DTYPE_F64, &n);
    assert_ok(object_read_strings(o, "correlation/origin", &origin, &n, &e), e);
    assert_true(n >= 3);
    for (uint64_t i = 0; i < n / 2; i++) /* the first half: without the pair, which is not in the truth */
        assert_true(fabs(spearman[i] - 1) < 1e-12);
    assert_string_equal(origin[0], "all");
    uint64_t *swaps_n = load(o, "swaps/n", DTYPE_U64, NULL), *right = load(o, "swaps/right", DTYPE_U64, NULL);
    uint64_t *apart = load(o, "swaps/n_apart", DTYPE_U64, NULL), *also = load(o, "swaps/right_apart", DTYPE_U64, NULL);
    if (!(swaps_n[0] > 5 && right[0] == swaps_n[0] && also[0] == apart[0] && apart[0] > 0))
        fail_msg("%d swaps, %d right; %d told apart, %d right", (int)swaps_n[0], (int)right[0], (int)apart[0],
                 (int)also[0]);
    uint64_t *all[] = {swaps_n, right, apart, also};
    for (size_t i = 0; i < COUNT(all); i++)
        mem_free(all[i]);
    mem_free(origin);
    mem_free(spearman);
    struct object *objects[] = {o, truth, rows, swaps, centre};
    for (size_t i = 0; i < COUNT(objects); i++)
        object_close(objects[i]);
}

/* Base, one, other and both, measured: the made-up truth is a sum, so that nothing is added beyond it, while the
 * surrogate says 0.125. */
static void pairs_are_held_against_four_measurements(void **state)
{
    (void)state;
    struct err e;
    struct candidates c;
    uint8_t a[UNITS];
    made_table(&world.made, &c);
    menu_uniform(&world.made.menu, 3, a);
    assert_non_null(candidates_add(&c, &world.made.menu, a, "base", -1, &e));
    for (int which = 1; which < 4; which++) {
        a[2] = which & 1 ? 0 : 3;
        a[3] = which & 2 ? 0 : 3;
        assert_non_null(candidates_add(&c, &world.made.menu, a, which == 3 ? "pair" : "single", 0, &e));
    }
    made_measure(&world.made, &c, 0);
    struct object *rows = made_object(&world.made, &c, world.store, "four"), *truth = true_surrogate(), *o;
    assert_ok(run_node(&node_correlate, "checks",
                       (struct setting[]){{"surrogates", truth, NULL}, {"rows", rows, NULL}, {0}}, &o, &e), e);
    uint64_t n;
    double *measured = load(o, "checks/measured", DTYPE_F64, &n), *predicted = load(o, "checks/predicted", DTYPE_F64,
                                                                                    NULL);
    assert_int_equal(n, 1);
    assert_true(fabs(measured[0]) < 1e-9 && fabs(predicted[0] - 0.125) < 1e-12);
    assert_int_equal(load_one(o, "checks/unit"), 2);
    assert_int_equal(load_one(o, "checks/unit2"), 3);
    mem_free(measured);
    mem_free(predicted);
    object_close(o);
    object_close(truth);
    object_close(rows);
    candidates_fini(&c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(samples_are_what_they_say),
        cmocka_unit_test(a_surrogate_that_is_the_truth_is_found_perfect),
        cmocka_unit_test(pairs_are_held_against_four_measurements),
    };
    return cmocka_run_group_tests(tests, world_set_up, world_tear_down);
}
