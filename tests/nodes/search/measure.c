/* The node type measure when it races: what it drops, what it says of that, and what it leaves alone. */
#include "tests/nodes/search/world.h"

/* Random candidates, unmeasured. */
static struct object *proposals(void)
{
    struct err e;
    struct candidates c;
    uint64_t seed = 4;
    assert_ok(candidates_init(&c, UNITS, 0, NULL, NULL, &e), e);
    for (int f = 0; f < MADE_FORMATS; f++) {
        uint8_t assignment[UNITS];
        menu_uniform(&world.made.menu, f, assignment);
        assert_non_null(candidates_add(&c, &world.made.menu, assignment, "uniform", -1, &e));
    }
    for (int i = 0; i < 20; i++)
        made_random(&world.made, &c, &seed);
    struct object *o = made_object(&world.made, &c, world.store, "random proposals");
    candidates_fini(&c);
    return o;
}

static void measure(struct object *from, const char *race, struct candidates *out, struct object **o)
{
    struct err e;
    *o = run_fine(&node_measure, "measure", (struct setting[]){{"candidates", from, NULL}, {"race", NULL, race}, {0}});
    assert_ok(candidates_read(out, *o, &e), e);
}

static void what_is_beaten_is_measured_no_further_and_what_is_left_is_what_it_was(void **state)
{
    (void)state;
    struct candidates all, raced;
    struct object *from = proposals(), *whole, *o;
    uint64_t n, n_documents, none;
    measure(from, "0", &all, &whole);
    measure(from, "0.05", &raced, &o);
    uint32_t *candidate = load(o, "race/candidate", DTYPE_U32, &n), *by = load(o, "race/by", DTYPE_U32, NULL);
    uint32_t *look = load(o, "race/look", DTYPE_U32, NULL);
    uint32_t *documents = load(o, "race/documents", DTYPE_U32, &n_documents);
    double *difference = load(o, "race/difference", DTYPE_F64, NULL), *low = load(o, "race/low", DTYPE_F64, NULL);
    double *error = load(o, "race/error", DTYPE_F64, NULL), *level = load(o, "race/level", DTYPE_F64, NULL);
    assert_in_range(n, 3, 20);
    assert_true(level[0] == 0.05 && n_documents == 2 && documents[0] == 5 && documents[1] == 6);
    size_t dropped = 0;
    for (size_t i = 0; i < raced.n; i++) {
        const struct candidate *x = &raced.list[i], *y = &all.list[i];
        assert_memory_equal(x->assignment, y->assignment, UNITS);
        assert_true(candidate_is_complete(&all, y) && y->dropped_at == -1);
        dropped += x->dropped_at >= 0;
        if (x->dropped_at < 0) {
            assert_memory_equal(x->kl_window, y->kl_window, MADE_WINDOWS * sizeof *x->kl_window);
            assert_true(candidate_is_complete(&raced, x) && x->kl_mean == y->kl_mean && x->tokens == y->tokens);
            continue;
        }
        assert_true(x->dropped_at == (int32_t)x->n_windows && x->n_windows == 10 && x->tokens < y->tokens);
        for (uint32_t w = 0; w < MADE_WINDOWS; w++)
            assert_true(isnan(x->kl_window[w]) || x->kl_window[w] == y->kl_window[w]);
        /* The whole table agrees: it has fewer bytes and less KL. */
        const struct candidate *winner = &all.list[x->dropped_by];
        assert_true(winner->bytes <= y->bytes && winner->kl_mean < y->kl_mean && strcmp(x->origin, "uniform") != 0);
    }
    assert_int_equal(dropped, n);
    for (uint64_t i = 0; i < n; i++) {
        assert_int_equal(raced.list[candidate[i]].dropped_by, by[i]);
        assert_true(look[i] == 0 && difference[i] > low[i] && low[i] > 0 && error[i] > 0 && error[i] <= 0.025 / 20);
    }
    assert_non_null(strstr(world.log, "is dropped after 5 of 6 documents: candidate "));
    mem_free(load(whole, "race/candidate", DTYPE_U32, &none));
    assert_int_equal(none, 0);
    mem_free(level);
    mem_free(error);
    mem_free(low);
    mem_free(difference);
    mem_free(documents);
    mem_free(look);
    mem_free(by);
    mem_free(candidate);
    candidates_fini(&raced);
    candidates_fini(&all);
    object_close(o);
    object_close(whole);
    object_close(from);
}

/* Rows that racing left unfinished go on through the other nodes without being taken for measured ones. */
static void dropped_candidates_take_no_part_in_what_comes_after(void **state)
{
    (void)state;
    struct err e;
    struct candidates raced, selected, next;
    struct object *from = proposals(), *o, *rank = rank_object();
    measure(from, "0.05", &raced, &o);
    struct object *select = run_fine(&node_select, "select", (struct setting[]){{"rows", o, NULL}, {0}});
    struct object *again = run_fine(&node_frontier, "frontier", (struct setting[]){{"surrogate", rank, NULL},
                                                                                  {"rows", o, NULL}, {0}});
    assert_ok(candidates_read(&selected, select, &e) && candidates_read(&next, again, &e), e);
    int32_t *by = load(select, "dominated_by", DTYPE_I32, NULL);
    uint64_t n;
    uint32_t *frontier = load(select, "frontier", DTYPE_U32, &n);
    for (uint64_t i = 0; i < n; i++)
        assert_true(selected.list[frontier[i]].dropped_at < 0);
    for (size_t i = 0; i < selected.n; i++) {
        assert_int_equal(selected.list[i].dropped_at, raced.list[i].dropped_at);
        assert_int_equal(selected.list[i].dropped_by, raced.list[i].dropped_by);
        if (selected.list[i].dropped_at >= 0)
            assert_int_equal(by[i], -1);
        assert_int_equal(candidates_find(&next, selected.list[i].assignment), -1); /* nor is it proposed again */
    }
    mem_free(frontier);
    mem_free(by);
    candidates_fini(&next);
    candidates_fini(&selected);
    candidates_fini(&raced);
    object_close(again);
    object_close(select);
    object_close(o);
    object_close(rank);
    object_close(from);
}

static void what_was_chosen_already_is_measured_in_full(void **state)
{
    (void)state;
    struct err e;
    struct candidates c;
    struct object *rows = measured_rows();
    struct object *select = run_fine(&node_select, "select", (struct setting[]){{"rows", rows, NULL}, {0}});
    struct object *o = run_fine(&node_measure, "measure", (struct setting[]){{"candidates", select, NULL},
        {"which", NULL, "frontier"}, {"race", NULL, "0.5"}, {0}});
    assert_ok(candidates_read(&c, o, &e), e);
    for (size_t i = 0; i < c.n; i++)
        assert_true(candidate_is_complete(&c, &c.list[i]));
    candidates_fini(&c);
    object_close(o);
    object_close(select);
    object_close(rows);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_is_beaten_is_measured_no_further_and_what_is_left_is_what_it_was),
        cmocka_unit_test(dropped_candidates_take_no_part_in_what_comes_after),
        cmocka_unit_test(what_was_chosen_already_is_measured_in_full),
    };
    return cmocka_run_group_tests(tests, world_set_up, world_tear_down);
}
