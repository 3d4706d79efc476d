/* The menu and tables of candidates through a real store: what is written is what is read, and how tables unite. */
#include "tests/nodes/search/objects.h"

#include "nodes/search/l1.h"
#include "tests/nodes/fake_node.h"

struct world {
    char folder[256];
    struct store *store;
    struct made made;
};

static int set_up(void **state)
{
    static struct world w;
    struct err e;
    char path[300];
    w = (struct world){0};
    check_dir_make(w.folder);
    snprintf(path, sizeof path, "%s/store", w.folder);
    assert_ok(store_open(&w.store, path, &e), e);
    made_init(&w.made, 10, 2, 1);
    *state = &w;
    return 0;
}

static int tear_down(void **state)
{
    struct world *w = *state;
    made_fini(&w->made);
    store_close(w->store);
    check_dir_remove(w->folder);
    return 0;
}

static void assert_same(const struct candidates *c, const struct candidate *a, const struct candidate *b)
{
    assert_memory_equal(a->assignment, b->assignment, (size_t)c->n_units);
    assert_string_equal(a->origin, b->origin);
    assert_true(a->bytes == b->bytes && a->bpp == b->bpp);
    assert_int_equal(a->n_windows, b->n_windows);
    assert_memory_equal(&a->kl_mean, &b->kl_mean, sizeof a->kl_mean);
    assert_memory_equal(&a->kl_p95, &b->kl_p95, sizeof a->kl_p95);
    assert_memory_equal(&a->kl_p99, &b->kl_p99, sizeof a->kl_p99);
    assert_memory_equal(&a->kl_p999, &b->kl_p999, sizeof a->kl_p999);
    assert_memory_equal(&a->nll_delta, &b->nll_delta, sizeof a->nll_delta);
    assert_int_equal(a->tokens, b->tokens);
    assert_memory_equal(&a->kl_max, &b->kl_max, sizeof a->kl_max);
    assert_memory_equal(&a->top1, &b->top1, sizeof a->top1);
    for (uint32_t w = 0; w < c->n_windows; w++)
        assert_true(a->kl_window[w] == b->kl_window[w] || (isnan(a->kl_window[w]) && isnan(b->kl_window[w])));
}

static void the_menu_is_read_from_renderings(void **state)
{
    struct world *w = *state;
    struct err e;
    struct menu m;
    struct object *o = made_quantize(&w->made, w->store, "quantize", true);
    assert_ok(menu_read(&m, o, &e), e);
    const struct menu *expected = &w->made.menu;
    assert_int_equal(m.n_units, 10);
    assert_int_equal(m.n_formats, MADE_FORMATS);
    assert_true(m.total_parameters == expected->total_parameters);
    assert_memory_equal(m.bytes, expected->bytes, 10 * MADE_FORMATS * sizeof *m.bytes);
    assert_memory_equal(m.available, expected->available, 10 * MADE_FORMATS);
    assert_memory_equal(m.fallback, expected->fallback, 10 * MADE_FORMATS * sizeof *m.fallback);
    assert_string_equal(m.serving, "any");
    assert_string_equal(m.unit_names[7], "layer.1.unit.3");
    assert_string_equal(m.format_names[2], "half");
    assert_ok(menu_check(&m, o, "renderings", &e), e);
    menu_fini(&m);
    object_close(o);
}

static void a_uniform_assignment_uses_the_fallback_where_it_must(void **state)
{
    struct world *w = *state;
    const struct menu *m = &w->made.menu;
    uint8_t a[10];
    menu_uniform(m, 0, a); /* units 4 and 9 cannot have tiny */
    for (int u = 0; u < 10; u++)
        assert_int_equal(a[u], u % 5 == 4 ? 2 : 0);
    menu_uniform(m, 3, a);
    for (int u = 0; u < 10; u++)
        assert_int_equal(a[u], 3);
    assert_true(menu_bpp(m, menu_bytes(m, a)) == 16);
}

static void a_fallback_that_a_unit_cannot_have_is_refused(void **state)
{
    struct world *w = *state;
    static const struct { int unit, format, fallback; const char *text; } cases[] = {
        {4, 0, 0, "unit 'layer.1.unit.0' would have format 0 where 0 is meant"}, /* not available */
        {4, 0, -1, "would have format -1 where 0 is meant"},
        {4, 0, MADE_FORMATS, "would have format 4 where 0 is meant"},
        {3, 1, 2, "unit 'layer.0.unit.3' would have format 2 where 1 is meant"}, /* but that is available itself */
    };
    for (size_t i = 0; i < COUNT(cases); i++) {
        struct err e;
        struct menu m;
        char seed[32];
        int32_t *at = &w->made.menu.fallback[cases[i].unit * MADE_FORMATS + cases[i].format], old = *at;
        snprintf(seed, sizeof seed, "broken fallback %zu", i);
        *at = cases[i].fallback;
        struct object *o = made_quantize(&w->made, w->store, seed, true);
        assert_err(menu_read(&m, o, &e), e, ERR_INPUT, cases[i].text);
        object_close(o);
        *at = old;
    }
}

static void l1_weighs_matrices_by_their_parameters(void **state)
{
    struct world *w = *state;
    for (int is_output = 0; is_output < 2; is_output++) {
        struct err e;
        double cost[10 * MADE_FORMATS];
        struct object *o = made_quantize(&w->made, w->store, is_output ? "output" : "weight", is_output);
        assert_ok(l1_costs(&w->made.menu, o, cost, &e), e);
        for (int i = 0; i < 10 * MADE_FORMATS; i++)
            if (w->made.menu.available[i])
                assert_true(fabs(cost[i] - w->made.cost[i]) <= 1e-12 * cost[i]);
            else
                assert_true(isnan(cost[i]));
        object_close(o);
    }
}

static void a_table_is_read_as_it_was_written(void **state)
{
    struct world *w = *state;
    struct err e;
    struct candidates c, back;
    uint64_t seed = 3;
    made_table(&w->made, &c);
    for (int i = 0; i < 40; i++)
        made_random(&w->made, &c, &seed)->parent = i - 1;
    made_measure(&w->made, &c, 0);
    c.list[3].kl_window[5] = NAN; /* as racing leaves it */
    c.list[3].kl_mean = NAN;
    c.list[3].n_windows = 5;
    c.list[3].dropped_at = 5;
    c.list[3].dropped_by = 2;
    struct object *o = made_object(&w->made, &c, w->store, "table");
    assert_ok(candidates_read(&back, o, &e), e);
    assert_int_equal(back.n, 40);
    assert_int_equal(back.n_windows, MADE_WINDOWS);
    assert_string_equal(back.numeric, "fp32 made");
    assert_string_equal(back.tokens, "made");
    assert_string_equal(back.context, "made context");
    assert_memory_equal(back.window_tokens, c.window_tokens, MADE_WINDOWS * sizeof(uint32_t));
    assert_memory_equal(back.window_document, c.window_document, MADE_WINDOWS * sizeof(uint32_t));
    for (size_t i = 0; i < 40; i++) {
        assert_same(&c, &back.list[i], &c.list[i]);
        assert_int_equal(back.list[i].id, i);
        assert_int_equal(back.list[i].parent, i - 1);
        assert_int_equal(candidate_is_complete(&back, &back.list[i]), i != 3);
    }
    assert_int_equal(back.list[3].dropped_at, 5);
    assert_int_equal(back.list[3].dropped_by, 2);
    candidates_fini(&back);
    candidates_fini(&c);
    object_close(o);
}

static void a_table_without_rows_or_windows_is_legal(void **state)
{
    struct world *w = *state;
    struct err e;
    struct candidates c, back;
    assert_ok(candidates_init(&c, 10, 0, NULL, NULL, &e), e);
    struct object *o = made_object(&w->made, &c, w->store, "empty");
    assert_ok(candidates_read(&back, o, &e), e);
    assert_int_equal(back.n, 0);
    assert_int_equal(back.n_units, 10);
    assert_null(object_dataset(o, "candidates/kl_mean"));
    candidates_fini(&back);
    object_close(o);
    uint64_t seed = 1;
    made_random(&w->made, &c, &seed);
    o = made_object(&w->made, &c, w->store, "proposals");
    assert_ok(candidates_read(&back, o, &e), e);
    assert_int_equal(back.n, 1);
    assert_true(isnan(back.list[0].kl_mean));
    assert_false(candidate_is_complete(&back, &back.list[0]));
    assert_null(back.list[0].kl_window);
    assert_true(back.list[0].bytes == c.list[0].bytes);
    candidates_fini(&back);
    candidates_fini(&c);
    object_close(o);
}

static const struct node_class reader = {.name = "reader"};

static void tables_unite_by_assignment_and_a_measured_row_wins(void **state)
{
    struct world *w = *state;
    struct err e;
    struct candidates proposed, one, two, all;
    uint64_t seed = 8;
    assert_ok(candidates_init(&proposed, 10, 0, NULL, NULL, &e), e);
    made_table(&w->made, &one);
    made_table(&w->made, &two);
    for (int i = 0; i < 4; i++)
        made_random(&w->made, &proposed, &seed);
    /* one: proposed 2, 3, and a new one whose parent is proposed 3; two: the new one again, and proposed 0 */
    for (int i = 2; i < 4; i++)
        assert_non_null(candidates_add(&one, &w->made.menu, proposed.list[i].assignment, "again", -1, &e));
    made_random(&w->made, &one, &seed)->parent = 1;
    assert_non_null(candidates_add(&two, &w->made.menu, one.list[2].assignment, "third", -1, &e));
    assert_non_null(candidates_add(&two, &w->made.menu, proposed.list[0].assignment, "fourth", 0, &e));
    made_measure(&w->made, &one, 0);
    made_measure(&w->made, &two, 0);
    struct object *objects[] = {made_object(&w->made, &proposed, w->store, "p"),
                                made_object(&w->made, &one, w->store, "1"),
                                made_object(&w->made, &two, w->store, "2")};
    struct node n;
    fake_node_init(&n, &reader, w->store, "reader");
    for (int i = 0; i < 3; i++)
        fake_node_connect(&n, "rows", "measure", objects[i], NULL);
    assert_ok(candidates_read_rows(&all, &w->made.menu, &n, "rows", &e), e);
    assert_int_equal(all.n, 5);
    assert_int_equal(all.n_windows, MADE_WINDOWS);
    static const bool measured[] = {true, false, true, true, true};
    for (size_t i = 0; i < 5; i++) {
        assert_int_equal(all.list[i].id, i);
        assert_string_equal(all.list[i].origin, "random");
        assert_int_equal(candidate_is_complete(&all, &all.list[i]), measured[i]);
    }
    assert_int_equal(all.list[0].parent, -1); /* the first row of an assignment says where it came from */
    assert_int_equal(all.list[4].parent, 3);
    assert_same(&all, &all.list[4], &one.list[2]);
    candidates_fini(&all);
    fake_node_fini(&n);
    for (int i = 0; i < 3; i++)
        object_close(objects[i]);
    candidates_fini(&proposed);
    candidates_fini(&one);
    candidates_fini(&two);
}

static void tables_that_cannot_be_compared_are_refused(void **state)
{
    struct world *w = *state;
    static const char *const messages[] = {"'measure' was measured in 'fp32 made' and 'polish' in 'bf16 made'",
                                           "'polish' was measured on other windows", "was made from other renderings",
                                           "'measure' and 'polish' were measured with different renderings"};
    for (size_t kind = 0; kind < COUNT(messages); kind++) {
        struct err e;
        struct candidates one, two, all;
        struct made other = w->made;
        char name[16], *names[MADE_FORMATS];
        made_table(&w->made, &one);
        made_table(&w->made, &two);
        if (kind == 0)
            strcpy(two.numeric, "bf16 made");
        if (kind == 1)
            strcpy(two.tokens, "others");
        if (kind == 2) {
            memcpy(names, other.menu.format_names, sizeof names);
            names[1] = "other";
            other.menu.format_names = names;
        }
        if (kind == 3) /* as two `quantize` nodes of one model give: all names are the same */
            strcpy(two.context, "another context");
        snprintf(name, sizeof name, "wrong%zu", kind);
        struct object *a = made_object(&w->made, &one, w->store, "right");
        struct object *b = made_object(&other, &two, w->store, name);
        struct node n;
        fake_node_init(&n, &reader, w->store, "reader");
        fake_node_connect(&n, "rows", "measure", a, NULL);
        fake_node_connect(&n, "rows", "polish", b, NULL);
        assert_err(candidates_read_rows(&all, &w->made.menu, &n, "rows", &e), e, ERR_INPUT, messages[kind]);
        fake_node_fini(&n);
        object_close(a);
        object_close(b);
        candidates_fini(&one);
        candidates_fini(&two);
    }
}

/* Names do not tell one `quantize` from another; what an object was made from does. Assignments are free of that, and
 * of what was measured. */
static void rows_are_of_the_very_renderings(void **state)
{
    struct world *w = *state;
    struct err e;
    struct menu m;
    struct candidates c, all;
    char inputs[256], own[KEY_TEXT], other[KEY_TEXT];
    uint64_t seed = 9;
    struct object *quantize = made_quantize(&w->made, w->store, "quantize of rows", true);
    assert_ok(menu_read(&m, quantize, &e), e);
    made_table(&w->made, &c);
    made_random(&w->made, &c, &seed);
    made_random(&w->made, &c, &seed);
    made_measure(&w->made, &c, 1);
    c.list[0].dropped_at = 0; /* before it was measured at all */
    c.list[0].dropped_by = 1;
    c.list[0].bytes++; /* another model's */
    struct key k = made_key("no such renderings");
    key_text(&k, other);
    key_text(object_key(quantize), own);
    for (int is_other = 0; is_other < 2; is_other++) {
        struct writer *writer;
        struct node n;
        char name[32];
        snprintf(name, sizeof name, "rows of %d", is_other);
        snprintf(inputs, sizeof inputs, "model = %s\nrenderings = %s\n", other, is_other ? other : own);
        struct key key = made_key(name);
        assert_ok(writer_new(&writer, w->store, &key, "measure/1", &e) && candidates_write(&c, &m, writer, &e) &&
                  writer_text(writer, "inputs", inputs, &e), e);
        struct object *o = made_commit(w->store, writer, name);
        fake_node_init(&n, &reader, w->store, "reader");
        fake_node_connect(&n, "rows", "measure", o, NULL);
        if (is_other) {
            assert_err(candidates_read_rows(&all, &m, &n, "rows", &e), e, ERR_INPUT, "'measure' was made from other "
                       "renderings");
        } else {
            assert_ok(candidates_read_rows(&all, &m, &n, "rows", &e), e);
            assert_true(all.n_windows == MADE_WINDOWS && all.list[0].dropped_at == 0 && all.list[0].dropped_by == 1);
            candidates_fini(&all);
        }
        assert_ok(candidates_read_assignments(&all, &m, &n, "rows", &e), e);
        assert_true(all.n == 2 && all.n_windows == 0 && all.list[0].dropped_at == -1);
        for (size_t i = 0; i < 2; i++)
            assert_true(memcmp(all.list[i].assignment, c.list[i].assignment, (size_t)m.n_units) == 0 &&
                        all.list[i].bytes == menu_bytes(&m, c.list[i].assignment) && isnan(all.list[i].kl_mean));
        candidates_fini(&all);
        m.available[c.list[1].assignment[0]] = 0;
        assert_err(candidates_read_assignments(&all, &m, &n, "rows", &e), e, ERR_INPUT, "which it cannot have");
        m.available[c.list[1].assignment[0]] = 1;
        fake_node_fini(&n);
        object_close(o);
    }
    candidates_fini(&c);
    menu_fini(&m);
    object_close(quantize);
}

static void an_object_that_is_no_table_is_refused(void **state)
{
    struct world *w = *state;
    struct err e;
    struct candidates c;
    struct menu m;
    struct object *o = made_quantize(&w->made, w->store, "quantize", true);
    assert_err(candidates_read(&c, o, &e), e, ERR_INPUT, "holds no table of candidates");
    object_close(o);
    made_table(&w->made, &c);
    o = made_object(&w->made, &c, w->store, "no menu");
    assert_err(menu_read(&m, o, &e), e, ERR_INPUT, "has no dataset 'bytes'");
    candidates_fini(&c);
    object_close(o);
}

/* Parents, droppers and formats are used as indices, so a table where one of them points nowhere is not read. */
static void a_table_that_points_outside_itself_is_refused(void **state)
{
    struct world *w = *state;
    static const struct {
        int32_t parent, dropped_by;
        uint8_t format;
        const char *message;
    } cases[] = {{5, -1, 0, "row 4 of its candidates has id 4 and parent 5"},
                 {-2, -1, 0, "row 4 of its candidates has id 4 and parent -2"},
                 {0, 5, 0, "candidate 4 was dropped by candidate 5 of 5"},
                 {0, -2, 0, "candidate 4 was dropped by candidate -2 of 5"},
                 {0, 0, MADE_FORMATS, "candidate 4 has unit 7 in format 4 of 4"},
                 {0, 0, 255, "candidate 4 has unit 7 in format 255 of 4"},
                 {4, 4, MADE_FORMATS - 1, NULL}};
    for (size_t i = 0; i < COUNT(cases); i++) {
        struct err e;
        struct candidates c, back;
        uint64_t seed = 5;
        char name[16];
        made_table(&w->made, &c);
        for (int k = 0; k < 5; k++)
            made_random(&w->made, &c, &seed);
        made_measure(&w->made, &c, 0);
        c.list[4].parent = cases[i].parent;
        c.list[4].dropped_by = cases[i].dropped_by;
        c.list[4].assignment[7] = cases[i].format;
        snprintf(name, sizeof name, "outside %zu", i);
        struct object *o = made_object(&w->made, &c, w->store, name);
        if (cases[i].message) {
            assert_err(candidates_read(&back, o, &e), e, ERR_INPUT, cases[i].message);
        } else {
            assert_ok(candidates_read(&back, o, &e), e);
            candidates_fini(&back);
        }
        candidates_fini(&c);
        object_close(o);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_menu_is_read_from_renderings),
        cmocka_unit_test(a_uniform_assignment_uses_the_fallback_where_it_must),
        cmocka_unit_test(a_fallback_that_a_unit_cannot_have_is_refused),
        cmocka_unit_test(l1_weighs_matrices_by_their_parameters),
        cmocka_unit_test(a_table_is_read_as_it_was_written),
        cmocka_unit_test(a_table_without_rows_or_windows_is_legal),
        cmocka_unit_test(tables_unite_by_assignment_and_a_measured_row_wins),
        cmocka_unit_test(tables_that_cannot_be_compared_are_refused),
        cmocka_unit_test(rows_are_of_the_very_renderings),
        cmocka_unit_test(an_object_that_is_no_table_is_refused),
        cmocka_unit_test(a_table_that_points_outside_itself_is_refused),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
