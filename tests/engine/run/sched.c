/* engine/run/sched.c and worker.c: order, admission, failures, repair. */
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

static void a_failure_stops_only_its_descendants(void **state)
{
    struct fake f;
    (void)state;
    fake_init(&f);
    int v = fake_add(&f, "v", &fake_value), bad = fake_add(&f, "bad", &fake_fail), a = fake_add(&f, "a", &fake_sum);
    int b = fake_add(&f, "b", &fake_sum), c = fake_add(&f, "c", &fake_sum), d = fake_add(&f, "d", &fake_sum);
    fake_connect(&f, bad, "in", v, "a");
    fake_connect(&f, a, "in", bad, "");
    fake_connect(&f, b, "in", a, "");
    fake_connect(&f, c, "in", v, "b");
    fake_connect(&f, d, "in", c, "");
    struct run_summary s = fake_run(&f, dir, NULL);
    assert_string_equal(fake_states, "v=done bad=failed a=blocked b=blocked c=done d=done");
    assert_int_equal(s.failed, 1);
    assert_int_equal(s.blocked, 2);
    assert_int_equal(s.done, 3);
    assert_false(s.resource);
    assert_true(s.started);
    /* The rest is reused, the failed node is tried again. */
    fake_set(&f, bad, "how", "resource");
    s = fake_run(&f, dir, NULL);
    assert_string_equal(fake_states, "v=reused bad=failed a=blocked b=blocked c=reused d=reused");
    assert_true(s.resource);
    fake_fini(&f);
}

/* A result that cannot be looked at (here: a file lies where its folder belongs) fails its node and nothing else. */
static void failing_to_look_for_a_result_stops_only_its_descendants(void **state)
{
    struct fake f;
    char path[256];
    (void)state;
    fake_init(&f);
    int in_the_way = fake_add(&f, "in_the_way", &fake_outside), a = fake_add(&f, "a", &fake_sum);
    int b = fake_add(&f, "b", &fake_sum), c = fake_add(&f, "c", &fake_sum);
    fake_connect(&f, a, "in", in_the_way, "");
    fake_connect(&f, b, "in", a, "");
    fake_connect(&f, c, "in", in_the_way, "");
    fake_set(&f, c, "add", "3");
    fake_object_path(&f, dir, a, path, sizeof path);
    *strrchr(path, '/') = '\0';
    fake_set(&f, in_the_way, "out", path);
    fake_run(&f, dir, NULL);
    assert_string_equal(fake_states, "in_the_way=done a=failed b=blocked c=done");
    assert_int_equal(fake_runs, 2); /* a was not even begun */
    fake_fini(&f);
}

/* Run one `needy` node; its error's text is in `text`, "" if it was done. */
static void run_needy(const char *param, const char *value, const struct run_options *more, uint64_t on_memory,
                      int on_threads, char text[1024], struct index_stat stats[4])
{
    struct fake f;
    struct run *r = NULL;
    struct run_view v = {0};
    struct run_summary s = {0};
    struct err e = {0};
    fake_init(&f);
    int n = fake_add(&f, "n", &fake_needy);
    fake_set(&f, n, param, value);
    f.graph.nodes[n].memory = on_memory;
    f.graph.nodes[n].threads = on_threads;
    struct run_options o = *more;
    o.dir = dir;
    if (!run_open(&r, &f.graph, &o, &e) || !run_execute(r, &s, &e))
        fail_msg("%s", e.text);
    run_view(r, 0, &v);
    snprintf(text, 1024, "%s", v.error ? v.error->text : "");
    if (v.error)
        assert_int_equal(v.error->code, ERR_RESOURCE);
    for (size_t i = 0; i < v.n_stats && i < 4; i++)
        stats[i] = v.stats[i];
    run_close(r);
    fake_fini(&f);
}

static void what_can_never_fit_is_refused_with_the_figures(void **state)
{
    const struct run_options gib = {.memory = UINT64_C(1) << 30};
    struct index_stat stats[4];
    char text[1024];
    (void)state;
    run_needy("memory", "3221225472", &gib, 0, 0, text, stats);
    assert_string_equal(text, "it needs 3.0 GiB of memory, and the run has: 1.0 GiB");
    run_needy("memory", "536870912", &gib, 256 << 20, 0, text, stats);
    assert_string_equal(text, "it needs 512.0 MiB of memory, and its `on: memory` allows: 256.0 MiB");
    run_needy("disk", "4503599627370496", &gib, 0, 0, text, stats);
    assert_non_null(strstr(text, "it will write 4096.0 TiB, and '"));
    assert_non_null(strstr(text, " free (64 MiB of it are kept as a reserve)"));
    assert_int_equal(fake_runs, 0);
}

static void cores_and_memory_are_what_was_declared_and_what_there_is(void **state)
{
    static const struct {
        const char *cores;
        int on_threads;
        double threads;
    } cases[] = {{"1", 0, 1}, {"3", 0, 3}, {"0", 0, 8}, {"64", 0, 8}, {"0", 2, 2}, {"4", 9, 4}};
    const struct run_options o = {.topology = "numa:2 core:4 pu:1", .memory = UINT64_C(1) << 30};
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct index_stat stats[4] = {0};
        char text[1024];
        fake_remove(dir);
        run_needy("cores", cases[i].cores, &o, i == 0 ? 1 << 20 : 0, cases[i].on_threads, text, stats);
        assert_string_equal(text, "");
        assert_string_equal(stats[0].name, "threads");
        assert_true(stats[0].value == cases[i].threads);
        assert_true(stats[1].value == (i == 0 ? 1 << 20 : 1024));
    }
}

/* Eight independent nodes with that memory and those cores; the most that ran at once. */
static int most_at_once(const char *memory, const char *cores, const struct run_options *o)
{
    struct fake f;
    fake_init(&f);
    for (int i = 0; i < 8; i++) {
        char name[8];
        snprintf(name, sizeof name, "n%d", i);
        int n = fake_add(&f, name, &fake_needy);
        fake_set(&f, n, "memory", memory);
        fake_set(&f, n, "cores", cores);
        fake_set(&f, n, "ms", "30");
        fake_set(&f, n, "tag", name + 1); /* keys of their own */
    }
    fake_reset();
    fake_remove(dir);
    struct run_summary s = fake_run(&f, dir, o);
    assert_int_equal(s.done, 8);
    fake_fini(&f);
    return fake_most_at_once;
}

static void what_does_not_fit_now_waits(void **state)
{
    struct run_options o = {.topology = "numa:2 core:4 pu:1", .memory = 1000 << 20};
    (void)state;
    assert_int_equal(most_at_once("104857600", "1", &o), 8);
    assert_int_equal(most_at_once("524288000", "1", &o), 2); /* 500 MiB of 1000 */
    assert_int_equal(most_at_once("629145600", "1", &o), 1); /* 600 MiB */
    assert_int_equal(most_at_once("1024", "3", &o), 2);      /* 3 cores of 8 */
    assert_int_equal(most_at_once("1024", "0", &o), 1);      /* all cores */
    o.jobs = 3;
    assert_int_equal(most_at_once("1024", "1", &o), 3);
}

static void a_wide_node_is_not_passed_over_for_ever(void **state)
{
    struct fake f;
    const struct run_options o = {.topology = "core:2 pu:1", .memory = UINT64_C(1) << 30};
    (void)state;
    fake_init(&f);
    int wide = -1;
    for (int i = 0; i < 80; i++) {
        char name[8];
        snprintf(name, sizeof name, "n%02d", i);
        int n = fake_add(&f, name, i == 1 ? &fake_needy : &fake_sum);
        if (i == 1) {
            fake_set(&f, n, "cores", "2");
            wide = n;
        } else {
            snprintf(name, sizeof name, "%d", i);
            fake_set(&f, n, "add", name);
            fake_set(&f, n, "ms", i == 0 ? "5" : "3");
        }
    }
    struct run *r = NULL;
    struct run_summary s = {0};
    struct err e;
    struct run_options with = o;
    with.dir = dir;
    FILE *log = tmpfile();
    with.out = log;
    with.output = RUN_PLAIN;
    assert_true(run_open(&r, &f.graph, &with, &e) && run_execute(r, &s, &e));
    assert_int_equal(s.done, 80);
    run_close(r);
    rewind(log);
    char line[512];
    int done_before = 0;
    while (fgets(line, sizeof line, log) && !strstr(line, "n01: running"))
        done_before += strstr(line, ": done") != NULL;
    if (done_before > 30)
        fail_msg("node %d began after %d others", wide, done_before);
    fclose(log);
    fake_fini(&f);
}

static void nodes_with_one_key_run_once(void **state)
{
    struct fake f;
    const struct run_options o = {.topology = "core:8 pu:1"};
    (void)state;
    fake_init(&f);
    int v = fake_add(&f, "v", &fake_value);
    for (int i = 0; i < 6; i++) {
        char name[8];
        snprintf(name, sizeof name, "s%d", i);
        int n = fake_add(&f, name, &fake_sum);
        fake_set(&f, n, "ms", "10");
        fake_connect(&f, n, "in", v, "a");
    }
    struct run_summary s = fake_run(&f, dir, &o);
    assert_int_equal(fake_runs, 2);
    assert_int_equal(s.done, 2);
    assert_int_equal(s.reused, 5);
    fake_fini(&f);
}

static void the_longest_path_goes_first(void **state)
{
    struct fake f;
    const struct run_options o = {.topology = "core:1 pu:1"};
    struct run_options with = o;
    (void)state;
    fake_init(&f);
    fake_add(&f, "lone", &fake_needy);
    int a = fake_add(&f, "a", &fake_value), b = fake_add(&f, "b", &fake_sum), c = fake_add(&f, "c", &fake_sum);
    fake_connect(&f, b, "in", a, "a");
    fake_connect(&f, c, "in", b, "");
    FILE *log = tmpfile();
    struct run *r = NULL;
    struct run_summary s = {0};
    struct err e;
    with.dir = dir;
    with.out = log;
    with.output = RUN_PLAIN;
    with.jobs = 1;
    assert_true(run_open(&r, &f.graph, &with, &e) && run_execute(r, &s, &e));
    run_close(r);
    rewind(log);
    char line[512], order[64] = "";
    while (fgets(line, sizeof line, log))
        if (strstr(line, ": running"))
            strncat(order, line, strcspn(line, ":"));
    /* `lone` is asked for at once and there is one core; a goes first as it has the longest way to go. */
    if (order[0] != 'a')
        fail_msg("order: %s", order);
    fclose(log);
    fake_fini(&f);
}

static void a_damaged_object_is_remade_when_it_is_read(void **state)
{
    struct fake f;
    char path[256];
    (void)state;
    fake_init(&f);
    int v = fake_add(&f, "v", &fake_value), a = fake_add(&f, "a", &fake_sum), b = fake_add(&f, "b", &fake_sum);
    fake_connect(&f, a, "in", v, "a");
    fake_connect(&f, b, "in", a, "");
    fake_run(&f, dir, NULL);
    char *before = fake_objects(dir);
    /* A sink: found at once. */
    fake_object_path(&f, dir, b, path, sizeof path);
    fake_damage(path);
    fake_reset();
    fake_run(&f, dir, NULL);
    assert_int_equal(fake_runs, 1);
    assert_string_equal(fake_states, "v=reused a=reused b=done");
    char *after = fake_objects(dir);
    assert_string_equal(before, after);
    free(after);
    /* An inner node, found when it is opened as an input of a node that must run. */
    fake_object_path(&f, dir, a, path, sizeof path);
    fake_damage(path);
    fake_object_path(&f, dir, b, path, sizeof path);
    assert_int_equal(unlink(path), 0);
    fake_reset();
    struct run_summary s = fake_run(&f, dir, NULL);
    assert_int_equal(fake_runs, 2);
    assert_int_equal(s.failed, 0);
    assert_string_equal(fake_states, "v=reused a=done b=done");
    after = fake_objects(dir);
    assert_string_equal(before, after);
    free(after);
    free(before);
    fake_fini(&f);
}

/* Path of the object of a part. */
static void part_path(const struct key *node, const char *part, char *out, size_t size)
{
    struct key_hash *h;
    struct key key;
    char text[KEY_TEXT];
    assert_true(key_hash_new(&h, NULL));
    key_hash_key(h, node);
    key_hash_text(h, "part");
    key_hash_text(h, part);
    assert_true(key_hash_end(h, &key, NULL));
    key_text(&key, text);
    snprintf(out, size, "%s/store/objects/%.2s/%s.h5", dir, text, text);
}

static void a_damaged_or_missing_part_is_remade_alone(void **state)
{
    struct fake f;
    char path[256];
    (void)state;
    fake_init(&f);
    int v = fake_add(&f, "v", &fake_value), p = fake_add(&f, "p", &fake_parts), r = fake_add(&f, "r", &fake_reader);
    fake_connect(&f, p, "in", v, "a");
    fake_connect(&f, r, "in", p, "");
    fake_run(&f, dir, NULL);
    assert_int_equal(fake_parts_made, 8);
    char *before = fake_objects(dir);
    struct key key = fake_key(&f, dir, p);
    for (int round = 0; round < 2; round++) {
        part_path(&key, "layer.002", path, sizeof path);
        if (round == 0)
            fake_damage(path);
        else
            assert_int_equal(unlink(path), 0);
        fake_object_path(&f, dir, r, path, sizeof path);
        assert_int_equal(unlink(path), 0);
        fake_reset();
        struct run_summary s = fake_run(&f, dir, NULL);
        assert_int_equal(s.failed, 0);
        assert_string_equal(fake_states, "v=reused p=done r=done");
        assert_int_equal(fake_parts_made, 1);
        char *after = fake_objects(dir);
        assert_string_equal(before, after);
        free(after);
    }
    free(before);
    fake_fini(&f);
}

static void no_device_of_that_kind_is_said_before_the_start(void **state)
{
    struct fake f;
    struct run *r = NULL;
    struct err e;
    (void)state;
    fake_init(&f);
    fake_add(&f, "v", &fake_value);
    struct run_options o = {.dir = dir, .device = "cuda:1"};
    assert_false(run_open(&r, &f.graph, &o, &e));
    assert_int_equal(e.code, ERR_RESOURCE);
    assert_string_equal(e.text, "device 'cuda:1': this machine has no accelerator; use --device cpu");
    o.device = "gpu";
    assert_false(run_open(&r, &f.graph, &o, &e));
    assert_int_equal(e.code, ERR_USAGE);
    o.device = "cpu";
    struct run_summary s = fake_run(&f, dir, &o);
    assert_int_equal(s.done, 1);
    fake_fini(&f);
}

int main(void)
{
#define TEST(f) cmocka_unit_test_setup_teardown(f, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        TEST(a_failure_stops_only_its_descendants),
        TEST(failing_to_look_for_a_result_stops_only_its_descendants),
        TEST(what_can_never_fit_is_refused_with_the_figures),
        TEST(cores_and_memory_are_what_was_declared_and_what_there_is),
        TEST(what_does_not_fit_now_waits),
        TEST(a_wide_node_is_not_passed_over_for_ever),
        TEST(nodes_with_one_key_run_once),
        TEST(the_longest_path_goes_first),
        TEST(a_damaged_object_is_remade_when_it_is_read),
        TEST(a_damaged_or_missing_part_is_remade_alone),
        TEST(no_device_of_that_kind_is_said_before_the_start),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
