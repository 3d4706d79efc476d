/* engine/run/device.c and what sched.c does with it: placement, starting, admission and failure of accelerators, on a
 * back end that only pretends and on machines that are files. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/engine/run/fake.h"

static const char *const h100_pci[] = {"0000:1b:00.0", "0000:43:00.0", "0000:52:00.0", "0000:61:00.0",
                                       "0000:9d:00.0", "0000:c3:00.0", "0000:d1:00.0", "0000:df:00.0"};
static char dir[64], said[65536];

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

static const char *topology(const char *name)
{
    static char path[512];
    snprintf(path, sizeof path, "%s/tests/topologies/%s.xml", getenv("SCOUT_ROOT"), name);
    return path;
}

/* `n` independent nodes c0, c1, ... that compute for `ms`, and can use `cores`. */
static void computing(struct fake *f, int n, const char *ms, const char *cores)
{
    fake_init(f);
    for (int i = 0; i < n; i++) {
        char name[16];
        snprintf(name, sizeof name, "c%d", i);
        int at = fake_add(f, name, &fake_compute);
        fake_set(f, at, "tag", name + 1);
        fake_set(f, at, "ms", ms);
        fake_set(f, at, "cores", cores);
    }
}

/* Run it, with what it says in `said`; *e is filled when it could not start. */
static struct run_summary run_said(const struct fake *f, struct run_options o, struct err *e)
{
    struct run *r = NULL;
    struct run_summary s = {0};
    FILE *log = tmpfile();
    assert_non_null(log);
    o.dir = dir;
    o.out = log;
    o.output = RUN_PLAIN;
    *e = (struct err){0};
    if (run_open(&r, &f->graph, &o, e) && !run_execute(r, &s, e))
        assert_false(s.started);
    run_close(r);
    rewind(log);
    said[fread(said, 1, sizeof said - 1, log)] = '\0';
    fclose(log);
    return s;
}

static int count(const char *text)
{
    int n = 0;
    for (const char *at = said; (at = strstr(at, text)); at += strlen(text))
        n++;
    return n;
}

#define assert_said(text)                                                                                              \
    do {                                                                                                               \
        if (count(text) != 1)                                                                                          \
            fail_msg("'%s' %d times in:\n%s", text, count(text), said);                                               \
    } while (0)

static void a_key_names_the_kind_and_not_the_device(void **state)
{
    static const char *const same[] = {NULL, "auto", "cuda", "cuda:0", "cuda:1"};
    struct fake f;
    struct run_options o = {.backend = fake_backend(2, NULL)};
    (void)state;
    computing(&f, 1, "0", "1");
    int v = fake_add(&f, "v", &fake_value);
    struct key device = fake_key_with(&f, dir, 0, &o), value = fake_key_with(&f, dir, v, &o);
    for (size_t i = 0; i < sizeof same / sizeof *same; i++) {
        o.device = same[i];
        struct key key = fake_key_with(&f, dir, 0, &o);
        assert_true(key_equal(&key, &device));
    }
    o.device = "cpu";
    struct key cpu = fake_key_with(&f, dir, 0, &o), value_cpu = fake_key_with(&f, dir, v, &o);
    assert_false(key_equal(&cpu, &device));
    assert_true(key_equal(&value, &value_cpu));
    o.device = NULL;
    f.graph.nodes[0].device = "cpu"; /* on: */
    struct key on_cpu = fake_key_with(&f, dir, 0, &o);
    assert_true(key_equal(&on_cpu, &cpu));
    o.device = "cuda"; /* goes before it */
    struct key over = fake_key_with(&f, dir, 0, &o);
    assert_true(key_equal(&over, &device));
    fake_fini(&f);
}

static void devices_of_another_kind_have_keys_of_their_own(void **state)
{
    struct fake f;
    struct run_options o = {.backend = fake_backend(2, NULL), .topology = "core:4 pu:1"};
    struct run_device devices[2] = {o.backend.devices[0], o.backend.devices[1]};
    struct err e;
    (void)state;
    devices[1].kernels = &fake_other_kernels;
    o.backend.devices = devices;
    computing(&f, 2, "20", "1");
    struct key first = fake_key_with(&f, dir, 0, &o);
    o.device = "cuda:1";
    struct key second = fake_key_with(&f, dir, 0, &o);
    assert_false(key_equal(&first, &second));
    o.device = "cuda"; /* the first kind only */
    struct run_summary s = run_said(&f, o, &e);
    assert_int_equal(s.done, 2);
    assert_int_equal(count("running on cuda:0 and"), 2);
    assert_int_equal(fake_opened, 1);
    assert_said("cuda:1: Fake 80GB, near no NUMA node that is known, 80.0 GiB, not used");
    fake_fini(&f);
}

static void without_an_accelerator_auto_is_the_cpu_and_says_so(void **state)
{
    struct fake f;
    struct run_options o = {.backend = fake_backend(0, NULL), .topology = "core:4 pu:1"};
    struct err e;
    (void)state;
    computing(&f, 2, "0", "1");
    struct run_summary s = run_said(&f, o, &e);
    assert_int_equal(s.done, 2);
    assert_said("no accelerator: no NVIDIA driver; everything computes on the CPU");
    assert_said("c0: running on 1 core (0), 1.0 KiB");
    run_said(&f, o, &e); /* nothing is missed when nothing must run */
    assert_int_equal(count("no accelerator"), 0);
    fake_remove(dir);
    o.device = "cpu";
    s = run_said(&f, o, &e);
    assert_int_equal(s.done, 2);
    assert_int_equal(count("no accelerator"), 0);
    fake_remove(dir);
    o.device = NULL;
    o.backend.expects_device = false;
    run_said(&f, o, &e);
    assert_int_equal(count("no accelerator"), 0);
    fake_fini(&f);
}

static void what_was_asked_for_by_name_must_be_there(void **state)
{
    static const struct {
        int n;
        const char *option, *on, *text;
    } cases[] = {
        {0, "cuda", "auto", "device 'cuda': no NVIDIA driver; use --device cpu"},
        {0, "auto", "cuda:1", "node 'c0': device 'cuda:1': no NVIDIA driver; use --device cpu"},
        {2, "cuda:2", "auto", "device 'cuda:2' is not there: this machine has cuda:0, cuda:1"},
        {2, NULL, "cuda:7", "node 'c0': device 'cuda:7' is not there: this machine has cuda:0, cuda:1"},
        {0, "cpu", "cuda", ""},
        {2, "cuda", "cuda:7", ""},
    };
    struct fake f;
    struct err e;
    (void)state;
    computing(&f, 1, "0", "1");
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct run_options o = {.backend = fake_backend(cases[i].n, NULL), .device = cases[i].option};
        f.graph.nodes[0].device = cases[i].on;
        run_said(&f, o, &e);
        assert_string_equal(e.text, cases[i].text);
        assert_int_equal(e.code, e.text[0] ? ERR_RESOURCE : ERR_NONE);
    }
    fake_fini(&f);
}

/* A type that can use none is on the CPU, whatever its graph says. */
static void other_nodes_stay_on_the_cpu(void **state)
{
    struct fake f;
    struct run_options o = {.backend = fake_backend(2, NULL), .device = "cuda:1", .topology = "core:2 pu:1"};
    struct err e;
    (void)state;
    fake_init(&f);
    fake_add(&f, "v", &fake_value);
    f.graph.nodes[0].device = "cuda:9";
    struct run_summary s = run_said(&f, o, &e);
    assert_int_equal(s.done, 1);
    assert_said("v: running on 1 core (0)");
    assert_int_equal(fake_opened, 0); /* nothing needs it */
    fake_fini(&f);
}

static void the_map_is_said_before_any_node_starts(void **state)
{
    struct fake f;
    struct run_options o = {.backend = fake_backend(8, h100_pci), .topology = topology("dgx-h100")};
    struct err e;
    (void)state;
    computing(&f, 1, "0", "8");
    run_said(&f, o, &e);
    assert_said("cuda:0: Fake 80GB, 0000:1b:00.0, near NUMA node 0 (cores 0-55), 79.0 GiB of 80.0 GiB free");
    assert_said("cuda:7: Fake 80GB, 0000:df:00.0, near NUMA node 1 (cores 56-111), 79.0 GiB of 80.0 GiB free");
    assert_true(strstr(said, "cuda:7: Fake") < strstr(said, "c0: running on cuda:0 and 8 cores (0-7), 1.0 KiB"));
    assert_int_equal(fake_opened, 0xff);
    fake_fini(&f);
}

static void independent_nodes_spread_over_devices_and_cores(void **state)
{
    struct fake f;
    struct run_options o = {.backend = fake_backend(8, h100_pci), .topology = topology("dgx-h100")};
    struct err e;
    (void)state;
    computing(&f, 8, "150", "0");
    int cpu = fake_add(&f, "cpu", &fake_needy);
    fake_set(&f, cpu, "ms", "150");
    fake_set(&f, cpu, "cores", "20");
    struct run_summary s = run_said(&f, o, &e);
    assert_int_equal(s.done, 9);
    assert_int_equal(fake_most_at_once, 9);
    assert_int_equal(fake_shared, 0);
    assert_said("c0: running on cuda:0 and 11 cores (0-10), ");
    assert_said("c3: running on cuda:3 and 11 cores (33-43), ");
    assert_said("c4: running on cuda:4 and 11 cores (56-66), ");
    assert_said("c7: running on cuda:7 and 11 cores (89-99), ");
    assert_said("cpu: running on 20 cores (44-53,100-109), ");
    fake_fini(&f);
}

/* A CPU node that could use all cores leaves some to each accelerator, and gets what those do not hold. */
static void a_node_that_can_use_all_cores_runs_beside_accelerators(void **state)
{
    struct fake f;
    struct run_options o = {.backend = fake_backend(8, h100_pci), .topology = topology("dgx-h100")};
    struct err e;
    (void)state;
    fake_init(&f);
    int wide = fake_add(&f, "wide", &fake_needy), gate = fake_add(&f, "gate", &fake_sum);
    fake_set(&f, wide, "cores", "0");
    fake_set(&f, wide, "ms", "300");
    fake_set(&f, gate, "ms", "50"); /* so that `wide` goes first */
    for (int i = 0; i < 8; i++) {
        char name[16];
        snprintf(name, sizeof name, "c%d", i);
        int at = fake_add(&f, name, &fake_compute);
        fake_set(&f, at, "tag", name + 1);
        fake_set(&f, at, "ms", "50");
        fake_connect(&f, at, "in", gate, "");
    }
    struct run_summary s = run_said(&f, o, &e);
    assert_int_equal(s.done, 10);
    if (fake_most_at_once < 8)
        fail_msg("%d at once:\n%s", fake_most_at_once, said);
    assert_said("wide: running on 95 cores");
    fake_fini(&f);
}

static void a_device_has_one_node_at_a_time(void **state)
{
    struct fake f;
    struct run_options o = {.backend = fake_backend(2, NULL), .topology = "core:16 pu:1"};
    struct err e;
    (void)state;
    computing(&f, 6, "30", "1");
    struct run_summary s = run_said(&f, o, &e);
    assert_int_equal(s.done, 6);
    assert_int_equal(fake_most_at_once, 2);
    assert_int_equal(fake_shared, 0);
    assert_true(count("running on cuda:0 and 1 core ") >= 2 && count("running on cuda:1 and 1 core ") >= 2);
    fake_fini(&f);
}

static void the_named_device_is_obeyed(void **state)
{
    struct fake f;
    struct run_options o = {.backend = fake_backend(2, NULL), .topology = "core:8 pu:1", .device = "cuda:1"};
    struct err e;
    (void)state;
    computing(&f, 3, "10", "1");
    struct run_summary s = run_said(&f, o, &e);
    assert_int_equal(s.done, 3);
    assert_int_equal(fake_most_at_once, 1);
    assert_int_equal(count("running on cuda:1 and"), 3);
    assert_int_equal(fake_opened, 2);
    fake_remove(dir);
    o.device = NULL;
    f.graph.nodes[2].device = "cuda:1";
    fake_reset();
    s = run_said(&f, o, &e);
    assert_int_equal(s.done, 3);
    assert_said("c2: running on cuda:1 and");
    fake_fini(&f);
}

static void a_node_gets_as_many_devices_as_are_free(void **state)
{
    struct fake f;
    struct run_options o = {.backend = fake_backend(4, NULL), .topology = "core:8 pu:1"};
    struct err e;
    (void)state;
    computing(&f, 2, "200", "2");
    fake_set(&f, 0, "devices", "3");
    fake_set(&f, 1, "devices", "3");
    struct run_summary s = run_said(&f, o, &e);
    assert_int_equal(s.done, 2);
    assert_said("c0: running on cuda:0,cuda:1,cuda:2 and 2 cores (0-1)");
    assert_said("c1: running on cuda:3 and 2 cores (2-3)");
    assert_int_equal(fake_shared, 0);
    struct arena arena = {0};
    struct index_run run;
    struct index_node *nodes;
    size_t n;
    assert_true(index_read(dir, &run, &nodes, &n, &arena, &e));
    assert_string_equal(nodes[0].device, "cuda:0,cuda:1,cuda:2");
    assert_string_equal(nodes[1].device, "cuda:3");
    arena_free(&arena);
    fake_fini(&f);
}

static void memory_of_a_device_is_refused_with_the_figures(void **state)
{
    struct fake f;
    struct run_options o = {.backend = fake_backend(2, NULL), .topology = "core:8 pu:1"};
    struct err e;
    (void)state;
    computing(&f, 3, "0", "1");
    fake_set(&f, 0, "device_memory", "96636764160"); /* 90 GiB */
    fake_set(&f, 1, "device_memory", "81604378624"); /* 76 GiB: into the reserve */
    fake_set(&f, 2, "takes", "all");
    struct run_summary s = run_said(&f, o, &e);
    assert_int_equal(s.failed, 2);
    assert_int_equal(s.done, 1);
    assert_true(s.resource);
    assert_said("c0: failed: it needs 90.0 GiB of device memory, and cuda:0 has 79.0 GiB free (5 % of it are kept as a "
                "reserve)");
    assert_said("c1: failed: it needs 76.0 GiB of device memory, and cuda:0 has 79.0 GiB free");
    fake_fini(&f);
}

static void a_device_that_does_not_start_is_left_out(void **state)
{
    struct fake f;
    struct run_options o = {.backend = fake_backend(2, NULL), .topology = "core:8 pu:1"};
    struct err e;
    (void)state;
    computing(&f, 2, "5", "1");
    fake_broken = 1;
    struct run_summary s = run_said(&f, o, &e);
    assert_int_equal(s.done, 2);
    assert_int_equal(count("running on cuda:1 and"), 2);
    assert_said("warning: cuda:0 is left out: the self-test failed");
    assert_said("cuda:0: Fake 80GB, near no NUMA node that is known, 80.0 GiB, left out");
    fake_fini(&f);
}

/* On the CPU the results would be others: the user decides. */
static void a_run_without_a_device_that_starts_is_refused(void **state)
{
    struct fake f;
    struct run_options o = {.backend = fake_backend(2, NULL), .topology = "core:8 pu:1"};
    struct err e;
    (void)state;
    computing(&f, 1, "0", "1");
    fake_broken = 3;
    struct run_summary s = run_said(&f, o, &e);
    assert_false(s.started);
    assert_int_equal(e.code, ERR_DEVICE);
    assert_string_equal(e.text, "none of 2 accelerators works: cuda:0: the self-test failed; --device cpu computes on "
                                "the CPU");
    assert_int_equal(fake_runs, 0);
    o.device = "cpu";
    s = run_said(&f, o, &e);
    assert_int_equal(s.done, 1);
    fake_fini(&f);
}

static void a_named_device_that_does_not_start_fails_its_nodes(void **state)
{
    struct fake f;
    struct run_options o = {.backend = fake_backend(2, NULL), .topology = "core:8 pu:1"};
    struct err e;
    (void)state;
    computing(&f, 3, "0", "1");
    f.graph.nodes[1].device = "cuda:1";
    int after = fake_add(&f, "after", &fake_sum);
    fake_connect(&f, after, "in", 1, "");
    fake_broken = 2;
    struct run_summary s = run_said(&f, o, &e);
    assert_int_equal(s.done, 2);
    assert_int_equal(s.failed, 1);
    assert_int_equal(s.blocked, 1);
    assert_true(s.resource);
    assert_said("c1: failed: cuda:1: the self-test failed");
    fake_fini(&f);
}

static void a_device_that_fails_is_used_no_more(void **state)
{
    struct fake f;
    struct run_options o = {.backend = fake_backend(2, NULL), .topology = "core:8 pu:1"};
    struct err e;
    (void)state;
    computing(&f, 6, "20", "1");
    for (int i = 0; i < 6; i++)
        fake_set(&f, i, "breaks", "0");
    struct run_summary s = run_said(&f, o, &e);
    assert_int_equal(s.failed, 1);
    assert_int_equal(s.done, 5);
    assert_true(s.resource);
    assert_said("c0: failed: cuda:0 failed: kernel 'gram' failed: an illegal address; what was done is kept, and the "
                "same command goes on from there");
    assert_int_equal(count("running on cuda:1 and"), 5);
    fake_reset();
    fake_set(&f, 0, "breaks", "-1");
    s = run_said(&f, o, &e);
    assert_int_equal(s.done, 1);
    assert_int_equal(s.reused, 5);
    fake_fini(&f);
}

static void nodes_that_can_run_nowhere_else_fail_with_the_device(void **state)
{
    struct fake f;
    struct run_options o = {.backend = fake_backend(2, NULL), .topology = "core:8 pu:1"};
    struct err e;
    (void)state;
    computing(&f, 20, "20", "1");
    for (int i = 0; i < 20; i++) {
        fake_set(&f, i, "breaks", "1");
        f.graph.nodes[i].device = "cuda:1";
    }
    int cpu = fake_add(&f, "cpu", &fake_needy);
    fake_set(&f, cpu, "ms", "60");
    struct run_summary s = run_said(&f, o, &e);
    assert_int_equal(s.failed, 20);
    assert_int_equal(s.done, 1);
    assert_int_equal(fake_runs, 2);
    assert_int_equal(count("failed: cuda:1: it failed while 'c0' ran: kernel 'gram' failed: an illegal address; the "
                           "same command goes on from what was done"), 19);
    fake_fini(&f);
}

/* Of a node's several devices those are lost that no longer answer. */
static void of_several_devices_the_one_that_failed_is_found(void **state)
{
    struct fake f;
    struct run_options o = {.backend = fake_backend(3, NULL), .topology = "core:8 pu:1"};
    struct err e;
    (void)state;
    computing(&f, 3, "10", "1");
    fake_set(&f, 0, "devices", "3");
    fake_set(&f, 0, "breaks", "1");
    struct run_summary s = run_said(&f, o, &e);
    assert_int_equal(s.failed, 1);
    assert_int_equal(s.done, 2);
    assert_int_equal(count("running on cuda:1 and"), 0);
    assert_said("c0: failed: cuda:0,cuda:1,cuda:2 failed: kernel");
    fake_fini(&f);
}

static void a_device_is_started_when_a_repair_needs_it(void **state)
{
    struct fake f;
    struct run_options o = {.backend = fake_backend(1, NULL), .topology = "core:8 pu:1"};
    char path[256], text[KEY_TEXT];
    struct err e;
    (void)state;
    computing(&f, 1, "0", "1");
    int after = fake_add(&f, "after", &fake_reader), last = fake_add(&f, "last", &fake_sum);
    (void)after;
    fake_connect(&f, last, "in", 0, "");
    f.graph.n_nodes = 3;
    run_said(&f, o, &e);
    for (int i = 0; i < 2; i++) {
        struct key key = fake_key_with(&f, dir, i ? last : 0, &o);
        key_text(&key, text);
        snprintf(path, sizeof path, "%s/store/objects/%.2s/%s.h5", dir, text, text);
        if (i)
            assert_int_equal(unlink(path), 0);
        else
            fake_damage(path);
    }
    fake_reset();
    struct run_summary s = run_said(&f, o, &e);
    assert_int_equal(s.failed, 0);
    assert_said("c0: running on cuda:0 and");
    assert_int_equal(fake_opened, 1);
    fake_fini(&f);
}

/* Whatever nodes ask for, a run ends: nothing waits for what can no longer come. */
static void every_mixture_of_nodes_ends(void **state)
{
    static const char *const machines[] = {"core:1 pu:1", "core:2 pu:1", "numa:2 core:3 pu:2"};
    static const char *const places[] = {"auto", "cuda", "cuda:1", "cpu"};
    unsigned seed = 1;
    (void)state;
    for (int round = 0; round < 12; round++) {
        struct fake f;
        struct run_options o = {.backend = fake_backend(1 + round % 4, NULL), .topology = machines[round % 3]};
        struct err e;
        fake_init(&f);
        for (int i = 0; i < 40; i++) {
            char name[16], text[16];
            snprintf(name, sizeof name, "n%02d", i);
            bool computes = rand_r(&seed) % 2;
            int at = fake_add(&f, name, computes ? &fake_compute : &fake_needy);
            fake_set(&f, at, "tag", name + 1);
            snprintf(text, sizeof text, "%d", rand_r(&seed) % 4);
            fake_set(&f, at, "cores", text);
            snprintf(text, sizeof text, "%d", rand_r(&seed) % 4);
            if (computes)
                fake_set(&f, at, "devices", text);
            f.graph.nodes[at].device = places[rand_r(&seed) % (round % 4 ? 4 : 2)];
            for (int k = 0; k < rand_r(&seed) % 3 && i > 0; k++)
                fake_connect(&f, at, "in", rand_r(&seed) % i, "");
        }
        fake_remove(dir);
        struct run_summary s = run_said(&f, o, &e);
        if (s.done + s.reused != 40)
            fail_msg("round %d: %zu done, %zu failed: %s\n%s", round, s.done, s.failed, e.text, said);
        fake_fini(&f);
    }
    assert_int_equal(fake_shared, 0);
}

int main(void)
{
#define TEST(f) cmocka_unit_test_setup_teardown(f, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        TEST(a_key_names_the_kind_and_not_the_device),
        TEST(devices_of_another_kind_have_keys_of_their_own),
        TEST(without_an_accelerator_auto_is_the_cpu_and_says_so),
        TEST(what_was_asked_for_by_name_must_be_there),
        TEST(other_nodes_stay_on_the_cpu),
        TEST(the_map_is_said_before_any_node_starts),
        TEST(independent_nodes_spread_over_devices_and_cores),
        TEST(a_node_that_can_use_all_cores_runs_beside_accelerators),
        TEST(a_device_has_one_node_at_a_time),
        TEST(the_named_device_is_obeyed),
        TEST(a_node_gets_as_many_devices_as_are_free),
        TEST(memory_of_a_device_is_refused_with_the_figures),
        TEST(a_device_that_does_not_start_is_left_out),
        TEST(a_run_without_a_device_that_starts_is_refused),
        TEST(a_named_device_that_does_not_start_fails_its_nodes),
        TEST(a_device_that_fails_is_used_no_more),
        TEST(nodes_that_can_run_nowhere_else_fail_with_the_device),
        TEST(of_several_devices_the_one_that_failed_is_found),
        TEST(a_device_is_started_when_a_repair_needs_it),
        TEST(every_mixture_of_nodes_ends),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
