/* engine/run/upstream.c: what a node depends on is told alike whatever the graph calls it, and nothing is published once
 * a source far above has changed. */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "engine/run/state.h"
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

static void write_file(const char *path, const char *text)
{
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    assert_true(fputs(text, f) >= 0);
    assert_int_equal(fclose(f), 0);
}

static void *change_later(void *path)
{
    nanosleep(&(struct timespec){.tv_nsec = 300000000}, NULL);
    write_file(path, "changed");
    return NULL;
}

/* value (with the file) -> sum -> parts -> reader */
static void make_graph(struct fake *f, const char *path, const char *ms)
{
    fake_init(f);
    int v = fake_add(f, "v", &fake_value), s = fake_add(f, "s", &fake_sum);
    int p = fake_add(f, "p", &fake_parts), r = fake_add(f, "r", &fake_reader);
    fake_set(f, v, "file", path);
    fake_connect(f, s, "in", v, "a");
    fake_set(f, p, "ms", ms);
    fake_connect(f, p, "in", s, "");
    fake_connect(f, r, "in", p, "");
}

static void nothing_is_published_after_a_source_changed(void **state)
{
    char path[128];
    struct fake f;
    pthread_t changer;
    (void)state;
    snprintf(path, sizeof path, "%s/source", dir);
    write_file(path, "first");
    make_graph(&f, path, "100");
    assert_int_equal(pthread_create(&changer, NULL, change_later, path), 0);
    struct run_summary s = fake_run(&f, dir, &(struct run_options){.topology = "core:2 pu:1"});
    pthread_join(changer, NULL);
    assert_int_equal(s.failed, 1);
    assert_string_equal(fake_states, "v=done s=done p=failed r=blocked");
    int made = fake_parts_made; /* the last of them was refused */
    assert_true(made >= 1 && made < 8);

    write_file(path, "first"); /* the same content again: what was published before is still good, and only that */
    fake_reset();
    fake_run(&f, dir, &(struct run_options){.topology = "core:2 pu:1"});
    assert_string_equal(fake_states, "v=reused s=reused p=done r=done");
    assert_int_equal(fake_parts_made, 8 - (made - 1));
    fake_fini(&f);
}

static bool append(void *context, const struct ancestor *a, struct err *e)
{
    char key[KEY_TEXT];
    (void)e;
    str_printf(context, "%s %u %s [%s] %s| %s| %s|\n", a->type, a->version, key_text(a->key, key), a->numerics,
               a->parameters, a->inputs, a->sources);
    return true;
}

/* What depends on what, of the last node of the graph. */
static char *told(const struct fake *f)
{
    struct run *r;
    struct err e;
    struct str out = {0};
    const struct run_options o = {.dir = dir, .plan_only = true};
    assert_true(run_open(&r, &f->graph, &o, &e) && run_plan(r, &e));
    assert_true(node_each_ancestor(&r->nodes[r->n - 1], append, &out, &e));
    run_close(r);
    return out.text;
}

static void names_and_order_do_not_change_what_is_told(void **state)
{
    struct fake a, b;
    (void)state;
    fake_init(&a);
    int v = fake_add(&a, "v", &fake_value), w = fake_add(&a, "w", &fake_value), s = fake_add(&a, "s", &fake_sum);
    fake_set(&a, w, "value", "7");
    fake_connect(&a, s, "in", v, "a");
    fake_connect(&a, s, "in", w, "b");
    fake_init(&b);
    int other = fake_add(&b, "other", &fake_value), twin = fake_add(&b, "twin", &fake_value);
    int lone = fake_add(&b, "lone", &fake_value), sum = fake_add(&b, "sum", &fake_sum);
    fake_set(&b, other, "value", "7");
    fake_set(&b, lone, "value", "9"); /* nobody reads it */
    fake_connect(&b, sum, "in", twin, "a");
    fake_connect(&b, sum, "in", other, "b");
    char *x = told(&a), *y = told(&b);
    assert_string_equal(x, y);
    assert_non_null(strstr(x, "value = 7"));
    assert_null(strstr(x, "sum"));
    mem_free(x);
    mem_free(y);
    fake_fini(&a);
    fake_fini(&b);
}

static void a_node_far_up_is_found_by_its_key(void **state)
{
    char path[128];
    struct fake f;
    struct run *r;
    struct err e;
    struct key other = {{0}};
    const char *type, *found;
    (void)state;
    snprintf(path, sizeof path, "%s/source", dir);
    write_file(path, "first");
    make_graph(&f, path, "0");
    fake_run(&f, dir, &(struct run_options){.topology = "core:2 pu:1"}); /* so that there is a store, and keys */
    const struct run_options o = {.dir = dir, .plan_only = true};
    assert_true(run_open(&r, &f.graph, &o, &e) && run_plan(r, &e));
    const struct node *reader = &r->nodes[r->n - 1], *value = &r->nodes[0];
    assert_true(node_upstream_type(reader, &value->key, &type, &e));
    assert_string_equal(type, "value");
    assert_true(node_upstream_path(reader, &value->key, "file", &found, &e));
    assert_string_equal(found, path);
    /* Itself and strangers are not above it. */
    assert_true(node_upstream_type(reader, &reader->key, &type, &e));
    assert_null(type);
    assert_true(node_upstream_type(reader, &other, &type, &e));
    assert_null(type);
    assert_false(node_upstream_path(reader, &other, "file", &found, &e));
    assert_non_null(strstr(e.text, "does not depend on"));
    write_file(path, "second");
    assert_false(node_upstream_path(reader, &value->key, "file", &found, &e));
    assert_non_null(strstr(e.text, "changed while the run was going"));
    run_close(r);
    fake_fini(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(nothing_is_published_after_a_source_changed, set_up, tear_down),
        cmocka_unit_test_setup_teardown(names_and_order_do_not_change_what_is_told, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_node_far_up_is_found_by_its_key, set_up, tear_down),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
