/* The node type polish on made-up measurements. */
#include "tests/nodes/search/world.h"

static void polish_lowers_kl_within_the_size(void **state)
{
    (void)state;
    struct err e;
    struct candidates c;
    uint64_t n;
    struct object *rows = measured_rows();
    struct object *select = run_fine(&node_select, "select", (struct setting[]){{"rows", rows, NULL},
                                                                                {"bpp", NULL, "8"}, {0}});
    world.measured = 0;
    struct object *o = run_fine(&node_polish, "polish", (struct setting[]){{"select", select, NULL},
                                                                           {"moves", NULL, "100"}, {0}});
    assert_ok(candidates_read(&c, o, &e), e);
    uint32_t chosen = load_one(o, "chosen");
    uint8_t *accepted = load(o, "moves/accepted", DTYPE_U8, &n);
    double *before = load(o, "moves/kl_before", DTYPE_F64, NULL), *after = load(o, "moves/kl_after", DTYPE_F64, NULL);
    assert_true(n <= 100 && world.measured == n + 1 && c.n == n + 1);
    size_t lines = 0;
    for (char *line = strtok(world.log, "\n"); line; line = strtok(NULL, "\n")) {
        assert_true(!strstr(line, "KL") || strstr(line, " [fp32 made]")); /* the numeric mode is with every KL */
        lines += strstr(line, "KL") != NULL;
    }
    size_t taken = 0;
    for (uint64_t i = 0; i < n; i++) {
        taken += accepted[i];
        assert_true(!accepted[i] || after[i] < before[i]);
    }
    assert_true(taken > 0);
    assert_int_equal(lines, taken + 1);
    assert_true(c.list[chosen].kl_mean < c.list[0].kl_mean && c.list[chosen].bytes <= c.list[0].bytes);
    for (size_t i = 0; i < c.n; i++)
        assert_false(c.list[i].kl_mean < c.list[chosen].kl_mean); /* NaN: given up */
    mem_free(after);
    mem_free(before);
    mem_free(accepted);
    /* Its rows go back into select, which cannot choose worse. */
    struct object *again = run_fine(&node_select, "again", (struct setting[]){{"rows", rows, NULL}, {"rows", o, NULL},
                                                                              {"bpp", NULL, "8"}, {0}});
    struct candidates all;
    assert_ok(candidates_read(&all, again, &e), e);
    assert_true(all.list[load_one(again, "chosen")].kl_mean <= c.list[chosen].kl_mean);
    candidates_fini(&all);
    object_close(again);
    object_close(o);
    /* Without moves it is the start. */
    o = run_fine(&node_polish, "still", (struct setting[]){{"select", select, NULL}, {"moves", NULL, "0"}, {0}});
    assert_int_equal(load_one(o, "chosen"), 0);
    object_close(o);
    candidates_fini(&c);
    object_close(select);
    object_close(rows);
}

/* Up to a budget it may grow, and not beyond. */
static void polish_uses_what_a_budget_leaves(void **state)
{
    (void)state;
    struct err e;
    struct candidates c;
    struct object *rows = measured_rows();
    struct object *select = run_fine(&node_select, "small", (struct setting[]){{"rows", rows, NULL},
                                                                               {"bpp", NULL, "7"}, {0}});
    struct object *o = run_fine(&node_polish, "budget", (struct setting[]){{"select", select, NULL},
        {"bpp", NULL, "9"}, {"moves", NULL, "200"}, {0}});
    assert_ok(candidates_read(&c, o, &e), e);
    uint32_t chosen = load_one(o, "chosen");
    assert_true(c.list[chosen].bytes > c.list[0].bytes && c.list[chosen].kl_mean < c.list[0].kl_mean);
    for (size_t i = 0; i < c.n; i++)
        assert_true(c.list[i].bpp <= 9);
    candidates_fini(&c);
    object_close(o);
    object_close(select);
    object_close(rows);
}

/* The units that a descent from `select` changes, move by move. `port` NULL, or the object on another port. */
static int32_t *polish_moves(struct object *select, const char *port, struct object *on_port, uint64_t *n)
{
    struct object *o = run_fine(&node_polish, "polish", (struct setting[]){{"select", select, NULL},
                                                                           {"moves", NULL, "24"},
                                                                           {port, on_port, NULL}, {0}});
    int32_t *moves = load(o, "moves/unit", DTYPE_I32, n);
    object_close(o);
    return moves;
}

/* Rows of another context say nothing of this one's KL: they must not change which moves are tried. */
static void polish_learns_only_from_rows_of_its_context(void **state)
{
    (void)state;
    struct err e;
    struct candidates c, start;
    uint64_t n[3];
    int32_t *moves[3];
    struct object *rows = measured_rows(), *select[3];
    assert_ok(candidates_read(&c, rows, &e), e);
    struct setting settings[] = {{"rows", rows, NULL}, {"bpp", NULL, "8"}, {0}};
    select[0] = run_fine(&node_select, "same context", settings);
    strcpy(c.context, "another context");
    settings[0].object = made_object(&world.made, &c, world.store, "another context");
    select[1] = run_fine(&node_select, "another context", settings);
    object_close(settings[0].object);
    made_table(&world.made, &start);
    assert_non_null(candidates_add(&start, &world.made.menu, c.list[load_one(select[0], "chosen")].assignment, "start",
                                   -1, &e));
    made_measure(&world.made, &start, 0);
    settings[0].object = made_object(&world.made, &start, world.store, "start alone");
    select[2] = run_fine(&node_select, "start alone", settings);
    object_close(settings[0].object);
    for (int i = 0; i < 3; i++) {
        moves[i] = polish_moves(select[i], NULL, NULL, &n[i]);
        assert_int_equal(n[i], 24);
    }
    assert_memory_not_equal(moves[0], moves[1], 24 * sizeof **moves); /* the rows do matter where they may */
    assert_memory_equal(moves[1], moves[2], 24 * sizeof **moves);
    /* What select lacks may come by another port, and counts as much. */
    int32_t *other = polish_moves(select[2], "rows", rows, &n[2]);
    assert_memory_equal(moves[0], other, 24 * sizeof *other);
    mem_free(other);
    for (int i = 0; i < 3; i++) {
        mem_free(moves[i]);
        object_close(select[i]);
    }
    candidates_fini(&start);
    candidates_fini(&c);
    object_close(rows);
}

/* With a start at the largest size and each smaller format better, every move leaves more room than the one before; at
 * the largest `growth` there is, that must not wrap. */
static void the_largest_growth_does_not_wrap(void **state)
{
    (void)state;
    struct err e;
    struct candidates c;
    double truth[UNITS * MADE_FORMATS];
    uint8_t full[UNITS];
    uint64_t n;
    memcpy(truth, world.made.truth, sizeof truth);
    for (int u = 0; u < UNITS; u++)
        world.made.truth[u * MADE_FORMATS + MADE_FORMATS - 1] = 1;
    menu_uniform(&world.made.menu, MADE_FORMATS - 1, full);
    made_table(&world.made, &c);
    assert_non_null(candidates_add(&c, &world.made.menu, full, "uniform", -1, &e));
    made_measure(&world.made, &c, 0);
    struct object *rows = made_object(&world.made, &c, world.store, "full");
    struct object *select = run_fine(&node_select, "full", (struct setting[]){{"rows", rows, NULL}, {0}});
    struct object *o = run_fine(&node_polish, "growth", (struct setting[]){{"select", select, NULL},
        {"growth", NULL, "9223372036854774784"}, {"moves", NULL, "40"}, {0}});
    uint8_t *accepted = load(o, "moves/accepted", DTYPE_U8, &n);
    size_t taken = 0;
    for (uint64_t i = 0; i < n; i++)
        taken += accepted[i];
    assert_int_equal(n, 40);
    assert_int_equal(taken, 5); /* of each batch of 8 */
    memcpy(world.made.truth, truth, sizeof truth);
    mem_free(accepted);
    object_close(o);
    object_close(select);
    object_close(rows);
    candidates_fini(&c);
}

/* With the true costs as the surrogate the predicted gains are what is measured, but for the factor that windows put
 * on all of them; L1's are not. */
static void a_surrogate_takes_the_place_of_l1(void **state)
{
    (void)state;
    struct err e;
    struct made truth = world.made;
    double costs[UNITS * MADE_FORMATS];
    for (int i = 0; i < UNITS * MADE_FORMATS; i++)
        costs[i] = world.made.menu.available[i] ? world.made.truth[i] : NAN;
    truth.cost = costs;
    struct object *rows = measured_rows(), *surrogate, *l1 = rank_object();
    struct object *select = run_fine(&node_select, "select", (struct setting[]){{"rows", rows, NULL},
                                                                                {"bpp", NULL, "8"}, {0}});
    struct writer *w;
    struct key k = made_key("surrogate");
    assert_ok(writer_new(&w, world.store, &k, "probe/1", &e) &&
              writer_add_strings(w, "units/name", (const char *const *)truth.menu.unit_names, UNITS, "unit", "", &e) &&
              writer_add_strings(w, "formats/name", (const char *const *)truth.menu.format_names, MADE_FORMATS,
                                 "format", "", &e), e);
    made_add(w, "cost", DTYPE_F64, UNITS, MADE_FORMATS, costs);
    surrogate = made_commit(world.store, w, "surrogate");
    double worst[2] = {0};
    for (int i = 0; i < 2; i++) {
        uint64_t n;
        struct object *o = run_fine(&node_polish, "polish", (struct setting[]){{"select", select, NULL},
            {"surrogate", i ? surrogate : l1, NULL}, {"moves", NULL, "40"}, {0}});
        double *gain = load(o, "moves/gain", DTYPE_F64, &n), *before = load(o, "moves/kl_before", DTYPE_F64, NULL);
        double *after = load(o, "moves/kl_after", DTYPE_F64, NULL);
        for (uint64_t m = 0; m < n; m++)
            worst[i] = fmax(worst[i], fabs(before[m] - after[m] - gain[m]) / before[m]);
        mem_free(after);
        mem_free(before);
        mem_free(gain);
        object_close(o);
    }
    if (!(worst[1] < 1e-3 && worst[0] > 0.01))
        fail_msg("predicted gains are off by up to %g with the true costs, %g with L1's", worst[1], worst[0]);
    object_close(surrogate);
    object_close(l1);
    object_close(select);
    object_close(rows);
}

/* A probe as the surrogate also predicts every move that was measured in full, and none is accepted in a tie that it
 * speaks against. */
static void a_probe_has_a_say_in_ties(void **state)
{
    (void)state;
    struct err e;
    enum { DOCUMENTS = 8, CELLS = UNITS * MADE_FORMATS };
    double cost[CELLS], *response;
    uint32_t tokens[DOCUMENTS], document[DOCUMENTS];
    assert_ok(mem_new(&response, CELLS * DOCUMENTS, &e), e);
    for (uint32_t w = 0; w < DOCUMENTS; w++) {
        tokens[w] = 100;
        document[w] = w;
        for (int i = 0; i < CELLS; i++) {
            cost[i] = world.made.menu.available[i] ? world.made.truth[i] : NAN;
            response[i * DOCUMENTS + (int)w] = sqrt(2 * cost[i] * tokens[w] * (0.9 + 0.025 * w)); /* one draw */
        }
    }
    struct object *rows = measured_rows();
    struct object *probe = made_probe(&world.made, world.store, "probe of moves", cost, 1, 0, response, response, 1,
                                      DOCUMENTS, tokens, document);
    struct object *select = run_fine(&node_select, "select", (struct setting[]){{"rows", rows, NULL},
                                                                                {"bpp", NULL, "8"}, {0}});
    struct object *o = run_fine(&node_polish, "polish", (struct setting[]){{"select", select, NULL},
        {"surrogate", probe, NULL}, {"moves", NULL, "40"}, {"give_up", NULL, "0"}, {0}});
    uint64_t n, seen = 0;
    double *before = load(o, "moves/kl_before", DTYPE_F64, &n), *after = load(o, "moves/kl_after", DTYPE_F64, NULL);
    double *predicted = load(o, "moves/predicted", DTYPE_F64, NULL);
    double *error = load(o, "moves/predicted_error", DTYPE_F64, NULL);
    double *own = load(o, "moves/measured_error", DTYPE_F64, NULL), *pooled = load(o, "moves/pooled", DTYPE_F64, NULL);
    uint8_t *accepted = load(o, "moves/accepted", DTYPE_U8, NULL);
    for (uint64_t m = 0; m < n; m++) {
        double measured = after[m] - before[m], w = error[m] * error[m] / (error[m] * error[m] + own[m] * own[m]);
        assert_true(own[m] > 0 && error[m] > 0);
        assert_true(fabs(predicted[m] - measured) < 1e-6 * before[m]); /* it knows the truth */
        assert_true(fabs(pooled[m] - w * measured - (1 - w) * predicted[m]) < 1e-12);
        assert_true(!accepted[m] || (measured < 0 && pooled[m] < 0));
        seen += accepted[m];
    }
    assert_true(n == 40 && seen > 0);
    mem_free(accepted);
    mem_free(pooled);
    mem_free(own);
    mem_free(error);
    mem_free(predicted);
    mem_free(after);
    mem_free(before);
    mem_free(response);
    object_close(o);
    object_close(select);
    object_close(probe);
    object_close(rows);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(polish_lowers_kl_within_the_size),
        cmocka_unit_test(polish_learns_only_from_rows_of_its_context),
        cmocka_unit_test(a_surrogate_takes_the_place_of_l1),
        cmocka_unit_test(a_probe_has_a_say_in_ties),
        cmocka_unit_test(polish_uses_what_a_budget_leaves),
        cmocka_unit_test(the_largest_growth_does_not_wrap),
    };
    return cmocka_run_group_tests(tests, world_set_up, world_tear_down);
}
