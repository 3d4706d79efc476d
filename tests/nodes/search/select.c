/* The node type select: frontier, knee, how sure it is, and budgets. */
#include "tests/nodes/search/world.h"

static void select_finds_frontier_and_knee(void **state)
{
    (void)state;
    struct err e;
    struct candidates c;
    uint64_t n, n_dropped;
    struct object *rows = measured_rows();
    struct object *o = run_fine(&node_select, "select", (struct setting[]){{"rows", rows, NULL}, {0}});
    assert_ok(candidates_read(&c, o, &e), e);
    uint32_t *frontier = load(o, "frontier", DTYPE_U32, &n), knee = load_one(o, "knee/id");
    int32_t *by = load(o, "dominated_by", DTYPE_I32, NULL);
    uint32_t *dropped = load(o, "leave_one_out/dropped", DTYPE_U32, &n_dropped);
    double *mass = load(o, "knee/mass", DTYPE_F64, NULL), *low = load(o, "interval/low", DTYPE_F64, NULL),
           *high = load(o, "interval/high", DTYPE_F64, NULL);
    bool is_on = false;
    for (uint64_t i = 0; i < n; i++) {
        is_on |= frontier[i] == knee;
        assert_int_equal(by[frontier[i]], -1);
    }
    for (size_t i = 0; i < c.n; i++) {
        const struct candidate *x = &c.list[i];
        if (by[i] >= 0)
            assert_true(c.list[by[i]].bytes <= x->bytes && c.list[by[i]].kl_mean <= x->kl_mean);
        assert_true(low[i] <= x->kl_mean && x->kl_mean <= high[i]);
    }
    assert_true(is_on);
    assert_int_equal(load_one(o, "chosen"), knee);
    assert_int_equal(n_dropped, n);
    assert_memory_equal(dropped, frontier, n * sizeof *dropped);
    assert_true(*mass == 1); /* documents differ by a factor that all candidates share */
    mem_free(high);
    mem_free(low);
    mem_free(mass);
    mem_free(dropped);
    mem_free(by);
    mem_free(frontier);
    candidates_fini(&c);
    object_close(o);
    object_close(rows);
}

static void select_is_the_same_twice_and_other_with_another_seed_only_in_mass(void **state)
{
    (void)state;
    struct object *rows = measured_rows();
    struct setting settings[2][3] = {{{"rows", rows, NULL}, {"seed", NULL, "1"}},
                                     {{"rows", rows, NULL}, {"seed", NULL, "2"}}};
    struct object *a = run_fine(&node_select, "seed 1", settings[0]);
    struct object *b = run_fine(&node_select, "seed 2", settings[1]);
    assert_int_equal(load_one(a, "chosen"), load_one(b, "chosen"));
    assert_int_equal(load_one(a, "knee/id"), load_one(b, "knee/id"));
    object_close(a);
    object_close(b);
    object_close(rows);
}

/* Rounding gives the reference itself a KL of 1e-10 or 1e-7: that must not decide what ships. */
static void the_knee_does_not_hang_on_the_noise_of_a_lossless_candidate(void **state)
{
    (void)state;
    struct err e;
    struct candidates c;
    uint32_t knees[2][3];
    struct object *rows = measured_rows();
    uint8_t full[UNITS];
    assert_ok(candidates_read(&c, rows, &e), e);
    menu_uniform(&world.made.menu, MADE_FORMATS - 1, full);
    struct candidate *lossless = &c.list[candidates_find(&c, full)];
    assert_true(lossless->kl_mean == 0);
    static const double floors[] = {0, 5e-8, 1e-10};
    for (int i = 0; i < 3; i++) {
        char name[16];
        lossless->kl_mean = floors[i];
        for (uint32_t w = 0; w < c.n_windows; w++)
            lossless->kl_window[w] = floors[i];
        snprintf(name, sizeof name, "floor %d", i);
        struct object *noisy = made_object(&world.made, &c, world.store, name);
        for (int k = 0; k < 2; k++) {
            struct setting settings[] = {{"rows", noisy, NULL}, {"scale", NULL, "log"}, {0}};
            if (k == 0)
                settings[1] = (struct setting){0}; /* as it is by default */
            struct object *o = run_fine(&node_select, name, settings);
            knees[k][i] = load_one(o, "chosen");
            object_close(o);
        }
        object_close(noisy);
    }
    assert_true(knees[0][0] == knees[0][1] && knees[0][0] == knees[0][2]);
    assert_true(knees[1][0] != knees[1][1] || knees[1][0] != knees[1][2]); /* else the rows would prove nothing */
    candidates_fini(&c);
    object_close(rows);
}

static void select_keeps_budgets_and_ceilings(void **state)
{
    (void)state;
    struct err e;
    struct candidates c;
    struct object *rows = measured_rows(), *o;
    assert_ok(candidates_read(&c, rows, &e), e);
    static const char *const bpps[] = {"5", "7.5", "9", "16"};
    for (size_t i = 0; i < COUNT(bpps); i++) {
        o = run_fine(&node_select, bpps[i], (struct setting[]){{"rows", rows, NULL}, {"bpp", NULL, bpps[i]}, {0}});
        const struct candidate *chosen = &c.list[load_one(o, "chosen")];
        assert_true(chosen->bpp <= atof(bpps[i]));
        for (size_t j = 0; j < c.n; j++)
            if (c.list[j].bpp <= atof(bpps[i]))
                assert_true(c.list[j].kl_mean >= chosen->kl_mean);
        object_close(o);
    }
    static const char *const kls[] = {"0.15", "0.05", "0.01"};
    for (size_t i = 0; i < COUNT(kls); i++) {
        o = run_fine(&node_select, kls[i], (struct setting[]){{"rows", rows, NULL}, {"kl", NULL, kls[i]}, {0}});
        const struct candidate *chosen = &c.list[load_one(o, "chosen")];
        assert_true(chosen->kl_mean <= atof(kls[i]));
        for (size_t j = 0; j < c.n; j++)
            if (c.list[j].kl_mean <= atof(kls[i]))
                assert_true(c.list[j].bytes >= chosen->bytes);
        object_close(o);
    }
    assert_err(run_node(&node_select, "too small", (struct setting[]){{"rows", rows, NULL}, {"budget", NULL, "1000"},
                                                                     {0}}, &o, &e), e, ERR_INPUT,
               "no measured candidate has at most 1000 bytes");
    assert_err(run_node(&node_select, "both", (struct setting[]){{"rows", rows, NULL}, {"bpp", NULL, "5"},
                                                                {"kl", NULL, "0.001"}, {0}}, &o, &e), e, ERR_INPUT,
               "and KL at most 0.001: the frontier goes from");
    candidates_fini(&c);
    object_close(rows);
}

static void select_needs_a_complete_row(void **state)
{
    (void)state;
    struct err e;
    struct candidates c;
    struct object *o;
    uint64_t seed = 1;
    made_table(&world.made, &c);
    made_random(&world.made, &c, &seed);
    struct object *rows = made_object(&world.made, &c, world.store, "unmeasured");
    assert_err(run_node(&node_select, "select", (struct setting[]){{"rows", rows, NULL}, {0}}, &o, &e), e, ERR_INPUT,
               "none of the 1 candidates was measured on all windows");
    object_close(rows);
    candidates_fini(&c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(select_finds_frontier_and_knee),
        cmocka_unit_test(select_is_the_same_twice_and_other_with_another_seed_only_in_mass),
        cmocka_unit_test(the_knee_does_not_hang_on_the_noise_of_a_lossless_candidate),
        cmocka_unit_test(select_keeps_budgets_and_ceilings),
        cmocka_unit_test(select_needs_a_complete_row),
    };
    return cmocka_run_group_tests(tests, world_set_up, world_tear_down);
}
