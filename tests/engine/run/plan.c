/* engine/run/plan.c and explain.c: what is in a key, what is reused, what is wanted, and why. */
#include "engine/run/state.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/engine/run/fake.h"

static char dir[64];

static int set_up(void **state)
{
    (void)state;
    fake_reset();
    fake_directory(dir);
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    fake_remove(dir);
    return 0;
}

/* The key of a lone `value` node with one parameter set (or none). */
static struct key key_with(const struct node_class *c, const char *param, const char *text)
{
    struct fake f;
    fake_init(&f);
    int n = fake_add(&f, "n", c);
    if (param)
        fake_set(&f, n, param, text);
    struct key k = fake_key(&f, dir, n);
    fake_fini(&f);
    return k;
}

static void each_parameter_in_the_key_changes_it_and_no_other(void **state)
{
    static const struct {
        const char *param, *text;
        bool changes;
    } cases[] = {
        {"value", "2", true},      {"scale", "0.5", true},  {"extra", "1, 3", true}, {"extra", "2, 1", true},
        {"extra", "1", true},      {"note", "x", true},     {"out", "elsewhere", false}, {"speed", "9", false},
        {"value", "1", false},     {"scale", "1", false},   {"extra", "1, 2", false},
    };
    (void)state;
    const struct key plain = key_with(&fake_value, NULL, NULL);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct key k = key_with(&fake_value, cases[i].param, cases[i].text);
        if (key_equal(&k, &plain) == cases[i].changes)
            fail_msg("%s = %s: the key %s", cases[i].param, cases[i].text, cases[i].changes ? "stayed" : "changed");
    }
}

static void code_version_and_numeric_mode_are_in_the_key(void **state)
{
    struct node_class other = fake_value;
    (void)state;
    const struct key plain = key_with(&fake_value, NULL, NULL), newer = key_with(&fake_value2, NULL, NULL);
    assert_false(key_equal(&plain, &newer));
    other.numerics = NULL;
    struct key unnamed = key_with(&other, NULL, NULL);
    assert_false(key_equal(&plain, &unnamed));
    other = fake_value;
    other.name = "valeu";
    struct key renamed = key_with(&other, NULL, NULL);
    assert_false(key_equal(&plain, &renamed));
}

static void a_source_counts_by_content_and_not_by_path(void **state)
{
    char a[96], b[96], c[96];
    (void)state;
    snprintf(a, sizeof a, "%s/a", dir);
    snprintf(b, sizeof b, "%s/b", dir);
    snprintf(c, sizeof c, "%s/c", dir);
    for (int i = 0; i < 3; i++) {
        FILE *f = fopen(i == 0 ? a : i == 1 ? b : c, "w");
        assert_non_null(f);
        fputs(i < 2 ? "the same" : "other", f);
        fclose(f);
    }
    /* A store is needed to know digests. */
    struct fake f;
    fake_init(&f);
    fake_add(&f, "n", &fake_value);
    fake_run(&f, dir, NULL);
    fake_fini(&f);
    const struct key ka = key_with(&fake_value, "file", a), kb = key_with(&fake_value, "file", b);
    const struct key kc = key_with(&fake_value, "file", c), none = key_with(&fake_value, NULL, NULL);
    assert_true(key_equal(&ka, &kb));
    assert_false(key_equal(&ka, &kc));
    assert_false(key_equal(&ka, &none));
}

static void inputs_count_by_key_order_and_output(void **state)
{
    static const char *const outputs[][2] = {{"a", "b"}, {"b", "a"}, {"a", "a"}, {"", "b"}};
    struct key keys[4];
    (void)state;
    for (size_t i = 0; i < 4; i++) {
        struct fake f;
        fake_init(&f);
        int v = fake_add(&f, "v", &fake_value), s = fake_add(&f, "s", &fake_sum);
        fake_connect(&f, s, "in", v, outputs[i][0]);
        fake_connect(&f, s, "in", v, outputs[i][1]);
        keys[i] = fake_key(&f, dir, s);
        for (size_t k = 0; k < i; k++)
            assert_false(key_equal(&keys[i], &keys[k]));
        fake_fini(&f);
    }
}

static void names_of_nodes_are_not_in_the_key(void **state)
{
    struct fake f, g;
    (void)state;
    fake_init(&f);
    fake_init(&g);
    struct key a = fake_key(&f, dir, fake_add(&f, "first", &fake_value));
    struct key b = fake_key(&g, dir, fake_add(&g, "second", &fake_value));
    assert_true(key_equal(&a, &b));
    fake_fini(&f);
    fake_fini(&g);
}

/* v -> s1 -> s2 -> s3 */
static void chain(struct fake *f)
{
    fake_init(f);
    int at = fake_add(f, "v", &fake_value);
    for (int i = 1; i <= 3; i++) {
        char name[8];
        snprintf(name, sizeof name, "s%d", i);
        int next = fake_add(f, name, &fake_sum);
        fake_connect(f, next, "in", at, i == 1 ? "a" : "");
        at = next;
    }
}

static void a_second_run_reuses_everything(void **state)
{
    struct fake f;
    (void)state;
    chain(&f);
    struct run_summary s = fake_run(&f, dir, NULL);
    assert_int_equal(s.done, 4);
    assert_int_equal(fake_runs, 4);
    char *first = fake_objects(dir);
    s = fake_run(&f, dir, NULL);
    assert_string_equal(fake_states, "v=reused s1=reused s2=reused s3=reused");
    assert_int_equal(s.reused, 4);
    assert_int_equal(s.needed, 4);
    assert_int_equal(fake_runs, 4);
    char *second = fake_objects(dir);
    assert_string_equal(first, second);
    free(first);
    free(second);
    fake_fini(&f);
}

static void a_change_runs_only_what_is_below_it(void **state)
{
    struct fake f;
    (void)state;
    chain(&f);
    fake_run(&f, dir, NULL);
    fake_set(&f, 2, "add", "5");
    fake_plan(&f, dir, NULL);
    assert_string_equal(fake_states, "v=reuse s1=reuse s2=run s3=run");
    fake_reset();
    fake_run(&f, dir, NULL);
    assert_int_equal(fake_runs, 2);
    assert_string_equal(fake_states, "v=reused s1=reused s2=done s3=done");
    fake_fini(&f);
}

static void a_missing_object_that_nobody_reads_is_not_remade(void **state)
{
    struct fake f;
    char path[256];
    (void)state;
    chain(&f);
    fake_run(&f, dir, NULL);
    for (int i = 0; i < 3; i++) {
        fake_object_path(&f, dir, i, path, sizeof path);
        assert_int_equal(unlink(path), 0);
    }
    fake_reset();
    fake_plan(&f, dir, NULL);
    assert_string_equal(fake_states, "v=not needed s1=not needed s2=not needed s3=reuse");
    fake_run(&f, dir, NULL);
    assert_int_equal(fake_runs, 0);
    /* Without the sink, all of them are wanted. */
    fake_object_path(&f, dir, 3, path, sizeof path);
    assert_int_equal(unlink(path), 0);
    fake_run(&f, dir, NULL);
    assert_int_equal(fake_runs, 4);
    fake_fini(&f);
}

static void a_target_limits_the_run_to_what_it_needs(void **state)
{
    struct fake f;
    const char *targets[] = {"s1"};
    const struct run_options o = {.targets = targets, .n_targets = 1};
    (void)state;
    chain(&f);
    fake_plan(&f, dir, &o);
    assert_string_equal(fake_states, "v=run s1=run s2=not needed s3=not needed");
    struct run_summary s = fake_run(&f, dir, &o);
    assert_int_equal(s.needed, 2);
    assert_int_equal(s.done, 2);
    assert_string_equal(fake_states, "v=done s1=done s2=waiting s3=waiting");
    fake_fini(&f);
}

static void an_unknown_target_names_the_nearest(void **state)
{
    struct fake f;
    const char *targets[] = {"s9"};
    const struct run_options o = {.dir = dir, .targets = targets, .n_targets = 1, .plan_only = true};
    struct run *r = NULL;
    struct err e;
    (void)state;
    chain(&f);
    assert_false(run_open(&r, &f.graph, &o, &e));
    assert_int_equal(e.code, ERR_USAGE);
    assert_string_equal(e.text, "target 's9' is no node of graph 'fake'; did you mean 's1'?");
    fake_fini(&f);
}

static void a_source_of_unknown_digest_makes_the_rest_unknown(void **state)
{
    struct fake f;
    char big[96];
    (void)state;
    snprintf(big, sizeof big, "%s/big", dir);
    FILE *file = fopen(big, "w");
    assert_non_null(file);
    assert_int_equal(ftruncate(fileno(file), 65 << 20), 0);
    fclose(file);
    chain(&f);
    fake_run(&f, dir, NULL); /* makes the store */
    fake_set(&f, 0, "file", big);
    struct run_options o = {.dir = dir, .plan_only = true};
    struct run *r = NULL;
    struct run_view v;
    struct err e;
    assert_true(run_open(&r, &f.graph, &o, &e) && run_plan(r, &e));
    run_view(r, 0, &v);
    assert_string_equal(v.state, "unknown");
    char expected[160];
    snprintf(expected, sizeof expected, "unknown until file '%s' has been hashed", big);
    assert_string_equal(v.reason, expected);
    run_view(r, 3, &v);
    assert_string_equal(v.state, "unknown");
    assert_string_equal(v.reason, "unknown until 's2' is known");
    run_close(r);
    fake_fini(&f);
}

static void what_was_written_outside_is_made_again_when_it_is_gone(void **state)
{
    struct fake f;
    char written[96];
    (void)state;
    fake_init(&f);
    int out = fake_add(&f, "out", &fake_outside), sum = fake_add(&f, "sum", &fake_sum);
    fake_connect(&f, sum, "in", out, "");
    fake_run(&f, dir, NULL);
    snprintf(written, sizeof written, "%s/written", dir);
    assert_int_equal(access(written, F_OK), 0);
    fake_run(&f, dir, NULL);
    assert_string_equal(fake_states, "out=reused sum=reused");
    assert_int_equal(unlink(written), 0);
    fake_plan(&f, dir, NULL);
    assert_string_equal(fake_states, "out=run sum=reuse");
    fake_run(&f, dir, NULL);
    assert_string_equal(fake_states, "out=done sum=reused");
    assert_int_equal(access(written, F_OK), 0);
    fake_fini(&f);
}

/* A change that only a full look finds is not forgotten by the quick one before the node starts. */
static void what_was_written_outside_is_made_again_when_it_has_changed(void **state)
{
    struct fake f;
    char written[96], text[16] = "";
    (void)state;
    fake_init(&f);
    int out = fake_add(&f, "out", &fake_outside), sum = fake_add(&f, "sum", &fake_sum);
    fake_connect(&f, sum, "in", out, "");
    fake_run(&f, dir, NULL);
    snprintf(written, sizeof written, "%s/written", dir);
    FILE *file = fopen(written, "w");
    assert_true(file && fputs("hers\n", file) >= 0 && fclose(file) == 0);
    fake_run(&f, dir, NULL);
    assert_string_equal(fake_states, "out=done sum=reused");
    file = fopen(written, "r");
    assert_true(file && fgets(text, sizeof text, file) && fclose(file) == 0);
    assert_string_equal(text, "here\n");
    fake_fini(&f);
}

static void explain_follows_a_change_to_where_it_began(void **state)
{
    struct fake f;
    struct str text = {0};
    (void)state;
    chain(&f);
    fake_run(&f, dir, NULL);
    fake_set(&f, 0, "value", "12");
    struct run_options o = {.dir = dir, .plan_only = true};
    struct run *r = NULL;
    struct err e;
    assert_true(run_open(&r, &f.graph, &o, &e) && run_plan(r, &e));
    if (!run_explain(r, 2, &text, &e))
        fail_msg("%s", e.text);
    assert_non_null(strstr(text.text, "node 's2' (sum) changed: key was "));
    assert_non_null(strstr(text.text, "\n  input 'in' (s1) changed:\n    node 's1' (sum) changed"));
    assert_non_null(strstr(text.text, "input 'in' (v.a) changed:\n"));
    assert_non_null(strstr(text.text, "parameter 'value': was 1, is 12\n"));
    assert_non_null(strstr(text.text, "it would run: no result yet\n"));
    assert_non_null(strstr(text.text, "\n  add = 1\n"));
    run_close(r);
    str_free(&text);
    fake_set(&f, 0, "value", "1");
    assert_true(run_open(&r, &f.graph, &o, &e) && run_plan(r, &e) && run_explain(r, 2, &text, &e));
    assert_non_null(strstr(text.text, "node 's2' is unchanged"));
    assert_non_null(strstr(text.text, "it would be reused: its result is in the store\n"));
    run_close(r);
    str_free(&text);
    fake_fini(&f);
}

static void explain_names_the_code_version(void **state)
{
    struct fake f, g;
    struct str text = {0};
    (void)state;
    fake_init(&f);
    fake_init(&g);
    fake_add(&f, "v", &fake_value);
    fake_add(&g, "v", &fake_value2);
    fake_run(&f, dir, NULL);
    struct run_options o = {.dir = dir, .plan_only = true};
    struct run *r = NULL;
    struct err e;
    assert_true(run_open(&r, &g.graph, &o, &e) && run_plan(r, &e) && run_explain(r, 0, &text, &e));
    assert_non_null(strstr(text.text, "code version of value: was 1, is 2\n"));
    run_close(r);
    str_free(&text);
    fake_fini(&f);
    fake_fini(&g);
}

int main(void)
{
#define TEST(f) cmocka_unit_test_setup_teardown(f, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        TEST(each_parameter_in_the_key_changes_it_and_no_other),
        TEST(code_version_and_numeric_mode_are_in_the_key),
        TEST(a_source_counts_by_content_and_not_by_path),
        TEST(inputs_count_by_key_order_and_output),
        TEST(names_of_nodes_are_not_in_the_key),
        TEST(a_second_run_reuses_everything),
        TEST(a_change_runs_only_what_is_below_it),
        TEST(a_missing_object_that_nobody_reads_is_not_remade),
        TEST(a_target_limits_the_run_to_what_it_needs),
        TEST(an_unknown_target_names_the_nearest),
        TEST(a_source_of_unknown_digest_makes_the_rest_unknown),
        TEST(what_was_written_outside_is_made_again_when_it_is_gone),
        TEST(what_was_written_outside_is_made_again_when_it_has_changed),
        TEST(explain_follows_a_change_to_where_it_began),
        TEST(explain_names_the_code_version),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
