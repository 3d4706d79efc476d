/* The node types rank and frontier, and what all node types of the search refuse. */
#include "tests/nodes/search/world.h"

static void rank_orders_formats_by_their_loss(void **state)
{
    (void)state;
    struct object *o = rank_object();
    uint64_t n;
    double *cost = load(o, "cost", DTYPE_F64, &n), *scale = load(o, "scale", DTYPE_F64, NULL);
    uint8_t *order = load(o, "order", DTYPE_U8, NULL);
    assert_int_equal(n, UNITS * MADE_FORMATS);
    for (int u = 0; u < UNITS; u++) {
        static const uint8_t expected[] = {3, 2, 1, 0};
        assert_true(scale[u] == 1);
        assert_memory_equal(order + u * MADE_FORMATS, expected, MADE_FORMATS);
        assert_int_equal(isnan(cost[u * MADE_FORMATS]), u % 5 == 4);
    }
    mem_free(order);
    mem_free(scale);
    mem_free(cost);
    object_close(o);
}

static void rank_takes_scales_from_units_that_were_measured_alone(void **state)
{
    (void)state;
    struct err e;
    struct candidates c;
    uint8_t a[UNITS];
    made_table(&world.made, &c);
    menu_uniform(&world.made.menu, 3, a);
    assert_non_null(candidates_add(&c, &world.made.menu, a, "uniform", -1, &e));
    for (int u = 0; u < 3; u++) {
        a[u] = 1;
        assert_non_null(candidates_add(&c, &world.made.menu, a, "flip", 0, &e));
        a[u] = 3;
    }
    a[0] = a[1] = 2; /* two units: says nothing of either */
    assert_non_null(candidates_add(&c, &world.made.menu, a, "swap", 0, &e));
    made_measure(&world.made, &c, 0);
    struct object *rows = made_object(&world.made, &c, world.store, "alone");
    struct object *o = run_fine(&node_rank, "rank with rows", (struct setting[]){{"rows", rows, NULL}, {0}});
    double *scale = load(o, "scale", DTYPE_F64, NULL), product = 1;
    for (int u = 0; u < 3; u++) {
        double expected = c.list[1 + u].kl_mean / world.made.cost[u * MADE_FORMATS + 1];
        assert_true(fabs(scale[u] - expected) < 1e-9 * expected);
        product *= scale[u];
    }
    for (int u = 3; u < UNITS; u++)
        assert_true(fabs(scale[u] - cbrt(product)) < 1e-9 * scale[u]);
    mem_free(scale);
    object_close(o);
    object_close(rows);
    candidates_fini(&c);
}

static void frontier_proposes_uniforms_and_an_even_spread(void **state)
{
    (void)state;
    struct err e;
    struct candidates c;
    uint64_t n;
    struct object *rank = rank_object();
    struct object *o = run_fine(&node_frontier, "frontier", (struct setting[]){{"surrogate", rank, NULL}, {0}});
    assert_ok(candidates_read(&c, o, &e), e);
    assert_in_range(c.n, MADE_FORMATS + 12, MADE_FORMATS + 15); /* all in full is an end of the frontier as well */
    size_t archived = 0;
    double last = 0, widest = 0;
    for (size_t i = 0; i < c.n; i++) {
        assert_int_equal(candidates_find(&c, c.list[i].assignment), i);
        if (strcmp(c.list[i].origin, "archive") == 0) {
            assert_true(c.list[i].bpp > last);
            widest = archived > 0 && c.list[i].bpp - last > widest ? c.list[i].bpp - last : widest;
            last = c.list[i].bpp;
            archived++;
        } else {
            assert_string_equal(c.list[i].origin, "uniform");
        }
    }
    assert_true(archived >= 12 && widest < 1.5);
    uint64_t *bytes = load(o, "predicted/bytes", DTYPE_U64, &n);
    double *cost = load(o, "predicted/cost", DTYPE_F64, NULL);
    for (uint64_t i = 1; i < n; i++)
        assert_true(bytes[i] > bytes[i - 1] && cost[i] < cost[i - 1]);
    mem_free(bytes);
    mem_free(cost);
    candidates_fini(&c);
    object_close(o);
    object_close(rank);
}

/* What is promised of the predicted frontier is in the result; that the limit broke the promise is in the log, too. */
static void frontier_says_what_its_epsilon_is_worth(void **state)
{
    (void)state;
    static const struct {
        const char *epsilon, *limit;
        int64_t exact, capped;
    } cases[] = {{"0", "100000", 1, 0}, {"0.01", "100000", 0, 0}, {"0.01", "20", 0, 1}, {"0", "20", 0, 1}};
    struct object *rank = rank_object();
    for (size_t i = 0; i < COUNT(cases); i++) {
        int64_t exact = -1, capped = -1;
        double gap = -1, epsilon = -1;
        struct object *o = run_fine(&node_frontier, "epsilon", (struct setting[]){{"surrogate", rank, NULL},
            {"epsilon", NULL, cases[i].epsilon}, {"limit", NULL, cases[i].limit}, {0}});
        assert_true(object_int(o, "predicted_exact", &exact) && object_int(o, "predicted_capped", &capped) &&
                    object_double(o, "predicted_gap", &gap) && object_double(o, "predicted_epsilon", &epsilon));
        assert_int_equal(exact, cases[i].exact);
        assert_int_equal(capped, cases[i].capped);
        assert_true(capped ? isnan(epsilon) : epsilon == atof(cases[i].epsilon));
        assert_true(exact ? gap == 0 : gap > 0 && (capped || gap <= epsilon));
        assert_int_equal(strstr(world.log, "could not be kept: there were more than `limit` (20) points") != NULL,
                         capped);
        object_close(o);
    }
    object_close(rank);
}

/* Lowest KL of at most `bpp` among the candidates that are not flips, and how many there are. */
static double best_within(const struct candidates *c, double bpp, size_t *n)
{
    double best = INFINITY;
    *n = 0;
    for (size_t i = 0; i < c->n; i++) {
        if (strcmp(c->list[i].origin, "flip") == 0)
            continue;
        ++*n;
        if (c->list[i].bpp <= bpp && c->list[i].kl_mean < best)
            best = c->list[i].kl_mean;
    }
    return best;
}

/* The same from as many points of the surrogate as it was, all of them near `bpp`: more than a search that does not
 * learn could do, since it would have to find the place first. */
static double best_unlearned(struct object *rank, double bpp, size_t n)
{
    struct err e;
    struct candidates all, near;
    double best;
    struct object *o = run_fine(&node_frontier, "unlearned", (struct setting[]){{"surrogate", rank, NULL},
                                                                                {"count", NULL, "5000"}, {0}});
    struct object *rows = measure_object(o, "unlearned");
    assert_ok(candidates_read(&all, rows, &e), e);
    assert_true(all.n > 2 * n);
    made_table(&world.made, &near);
    for (size_t k = 0; k < n; k++) {
        struct candidate *nearest = NULL;
        for (size_t i = 0; i < all.n; i++)
            if (!isnan(all.list[i].bpp) &&
                (!nearest || fabs(all.list[i].bpp - bpp) < fabs(nearest->bpp - bpp)))
                nearest = &all.list[i];
        assert_non_null(candidates_add(&near, &world.made.menu, nearest->assignment, "near", -1, &e));
        nearest->bpp = NAN; /* taken */
    }
    made_measure(&world.made, &near, 0);
    best = best_within(&near, bpp, &n);
    candidates_fini(&near);
    candidates_fini(&all);
    object_close(rows);
    object_close(o);
    return best;
}

/* Three rounds: what is proposed is new, and at the size of the knee the rounds find what the surrogate as it was does
 * not. */
static void frontier_learns_and_never_repeats_itself(void **state)
{
    (void)state;
    struct err e;
    struct object *rank = rank_object(), *rows[3];
    struct candidates seen[3]; /* after each round */
    struct setting chosen_from[4] = {{0}};
    for (int round = 0; round < 3; round++) {
        struct setting settings[8] = {{"surrogate", rank, NULL}, {"neighbours", NULL, "6"}};
        char name[16];
        struct candidates c;
        made_table(&world.made, &seen[round]);
        for (int i = 0; i < round; i++)
            settings[2 + i] = (struct setting){"rows", rows[i], NULL};
        for (size_t i = 0; round > 0 && i < seen[round - 1].n; i++)
            assert_non_null(candidates_add(&seen[round], &world.made.menu, seen[round - 1].list[i].assignment,
                                           seen[round - 1].list[i].origin, -1, &e));
        snprintf(name, sizeof name, "frontier %d", round);
        struct object *o = run_fine(&node_frontier, name, settings);
        assert_ok(candidates_read(&c, o, &e), e);
        assert_true(c.n > 0);
        size_t flips = 0, swaps = 0;
        for (size_t i = 0; i < c.n; i++) {
            assert_int_equal(candidates_find(&seen[round], c.list[i].assignment), -1);
            assert_non_null(candidates_add(&seen[round], &world.made.menu, c.list[i].assignment, c.list[i].origin, -1,
                                           &e));
            flips += strcmp(c.list[i].origin, "flip") == 0;
            swaps += strcmp(c.list[i].origin, "swap") == 0;
        }
        assert_int_equal(flips, round ? 3 : 0);
        assert_int_equal(swaps, round ? 3 : 0);
        candidates_fini(&c);
        made_measure(&world.made, &seen[round], 0);
        rows[round] = measure_object(o, name);
        chosen_from[round] = (struct setting){"rows", rows[round], NULL};
        object_close(o);
    }
    struct object *select = run_fine(&node_select, "after the rounds", chosen_from);
    double bpp = seen[2].list[load_one(select, "chosen")].bpp;
    size_t n;
    double first = best_within(&seen[0], bpp, &n), last = best_within(&seen[2], bpp, &n);
    double unlearned = best_unlearned(rank, bpp, n);
    if (!(last < 0.95 * first && last < 0.95 * unlearned))
        fail_msg("at %.4f bpp KL %g after one round, %g after three; %g without learning", bpp, first, last, unlearned);
    for (int i = 0; i < 3; i++) {
        object_close(rows[i]);
        candidates_fini(&seen[i]);
    }
    object_close(select);
    object_close(rank);
}

/* Within a budget everything that is proposed fits, and the best predicted point that does is among it. */
static void frontier_within_a_budget_proposes_what_fits(void **state)
{
    (void)state;
    struct err e;
    struct object *rows = measured_rows(), *rank = rank_object();
    struct candidates c;
    uint64_t n_points;
    struct object *o = run_fine(&node_frontier, "within", (struct setting[]){{"rows", rows, NULL},
        {"surrogate", rank, NULL}, {"bpp", NULL, "7"}, {"count", NULL, "6"}, {"neighbours", NULL, "8"},
        {"uniform", NULL, "false"}, {0}});
    uint64_t *bytes = load(o, "predicted/bytes", DTYPE_U64, &n_points), best = 0, largest = 0;
    assert_ok(candidates_read(&c, o, &e), e);
    assert_in_range(c.n, 8, 14);
    for (uint64_t i = 0; i < n_points; i++)
        best = menu_bpp(&world.made.menu, bytes[i]) <= 7 ? bytes[i] : best;
    for (size_t i = 0; i < c.n; i++) {
        assert_true(c.list[i].bpp <= 7);
        if (strcmp(c.list[i].origin, "archive") == 0 && c.list[i].bytes > largest)
            largest = c.list[i].bytes;
    }
    assert_int_equal(largest, best);
    mem_free(bytes);
    candidates_fini(&c);
    object_close(o);
    /* what nothing can keep is refused before anything is measured for it */
    static const struct {
        const char *name, *value;
    } tiny[] = {{"bpp", "2"}, {"bpp", "1e-9"}, {"budget", "1000"}};
    for (size_t i = 0; i < COUNT(tiny); i++)
        assert_err(run_node(&node_frontier, "tiny", (struct setting[]){{"surrogate", rank, NULL},
                            {tiny[i].name, NULL, tiny[i].value}, {0}}, &o, &e), e, ERR_INPUT,
                   "any choice of formats takes at least");
    object_close(rank);
    object_close(rows);
}

static void frontier_with_nothing_left_proposes_an_empty_table(void **state)
{
    (void)state;
    struct err e;
    struct candidates c;
    struct object *rank = rank_object();
    struct object *first = run_fine(&node_frontier, "few", (struct setting[]){{"surrogate", rank, NULL},
                                                                              {"count", NULL, "0"}, {0}});
    struct object *rows = measure_object(first, "few rows");
    struct object *o = run_fine(&node_frontier, "none", (struct setting[]){{"surrogate", rank, NULL},
                                                                           {"rows", rows, NULL},
                                                                           {"count", NULL, "0"}, {0}});
    assert_ok(candidates_read(&c, o, &e), e);
    assert_int_equal(c.n, 0);
    struct object *measured = measure_object(o, "none measured"); /* and rows without a row are read */
    struct object *again = run_fine(&node_frontier, "again", (struct setting[]){{"surrogate", rank, NULL},
        {"rows", measured, NULL}, {"count", NULL, "2"}, {0}});
    candidates_fini(&c);
    object_close(again);
    object_close(measured);
    object_close(o);
    object_close(rows);
    object_close(first);
    object_close(rank);
}

/* What `frontier` flips and swaps is what `select` would choose, on either scale. */
static void frontier_searches_around_the_knee_that_select_finds(void **state)
{
    (void)state;
    struct err e;
    struct object *rows = measured_rows(), *rank = rank_object();
    static const char *const scales[] = {"linear", "log"};
    uint32_t knees[2];
    struct candidates known, proposed;
    assert_ok(candidates_read(&known, rows, &e), e);
    for (int i = 0; i < 2; i++) {
        struct object *select = run_fine(&node_select, "select", (struct setting[]){{"rows", rows, NULL},
            {"scale", NULL, scales[i]}, {0}});
        struct object *o = run_fine(&node_frontier, "frontier", (struct setting[]){{"rows", rows, NULL},
            {"surrogate", rank, NULL}, {"scale", NULL, scales[i]}, {"neighbours", NULL, "5"}, {"count", NULL, "0"},
            {0}});
        knees[i] = load_one(select, "chosen");
        assert_ok(candidates_read(&proposed, o, &e), e);
        assert_int_equal(proposed.n, 5);
        for (size_t k = 0; k < 5; k++) {
            int changed = 0;
            for (int u = 0; u < UNITS; u++)
                changed += proposed.list[k].assignment[u] != known.list[knees[i]].assignment[u];
            assert_int_equal(changed, strcmp(proposed.list[k].origin, "swap") == 0 ? 2 : 1);
        }
        candidates_fini(&proposed);
        object_close(o);
        object_close(select);
    }
    assert_int_not_equal(knees[0], knees[1]);
    candidates_fini(&known);
    object_close(rank);
    object_close(rows);
}

/* A format index means nothing under another list of formats, so such a table is refused wherever it is connected. */
static void every_node_refuses_candidates_of_other_renderings(void **state)
{
    (void)state;
    struct made other = world.made;
    struct candidates c;
    struct err e;
    char *names[MADE_FORMATS];
    uint64_t seed = 4;
    for (int f = 0; f < MADE_FORMATS; f++)
        names[f] = world.made.menu.format_names[(f + 1) % MADE_FORMATS];
    other.menu.format_names = names;
    made_table(&world.made, &c);
    made_random(&world.made, &c, &seed);
    made_measure(&world.made, &c, 0);
    struct object *wrong = made_object(&other, &c, world.store, "other formats"), *rank = rank_object(), *o;
    static const struct {
        const struct node_class *class;
        const char *port;
    } nodes[] = {{&node_rank, "rows"}, {&node_frontier, "rows"}, {&node_measure, "candidates"}, {&node_select, "rows"}};
    for (size_t i = 0; i < COUNT(nodes); i++) {
        struct setting settings[] = {{nodes[i].port, wrong, NULL}, {"surrogate", rank, NULL}, {0}};
        assert_err(run_node(nodes[i].class, "other", settings, &o, &e), e, ERR_INPUT,
                   "formats/name[0] is 'small', 'tiny' was expected: it was made from other renderings");
    }
    object_close(rank);
    object_close(wrong);
    candidates_fini(&c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rank_orders_formats_by_their_loss),
        cmocka_unit_test(rank_takes_scales_from_units_that_were_measured_alone),
        cmocka_unit_test(frontier_proposes_uniforms_and_an_even_spread),
        cmocka_unit_test(frontier_says_what_its_epsilon_is_worth),
        cmocka_unit_test(frontier_learns_and_never_repeats_itself),
        cmocka_unit_test(frontier_within_a_budget_proposes_what_fits),
        cmocka_unit_test(frontier_with_nothing_left_proposes_an_empty_table),
        cmocka_unit_test(frontier_searches_around_the_knee_that_select_finds),
        cmocka_unit_test(every_node_refuses_candidates_of_other_renderings),
    };
    return cmocka_run_group_tests(tests, world_set_up, world_tear_down);
}
