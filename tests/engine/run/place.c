/* engine/run/place.c and place_take.c on synthetic machines, and on machines with GPUs from tests/topologies. */
#include "engine/run/place.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static struct place *make(const char *topology, int threads)
{
    struct place *p = NULL;
    struct err e = {0};
    if (!place_new(&p, topology, threads, &e))
        fail_msg("%s", e.text);
    return p;
}

static void units_follow_the_topology_and_the_limit(void **state)
{
    static const struct {
        const char *topology;
        int threads, units;
        const char *text;
    } cases[] = {
        {"numa:1 core:4 pu:1", 0, 4, "4 cores, 1 NUMA node, "},
        {"numa:2 core:4 pu:2", 0, 8, "8 cores, 2 NUMA nodes, "},
        {"numa:2 core:4 pu:2", 3, 3, "3 cores, 2 NUMA nodes, "},
        {"numa:2 core:4 pu:2", 9, 9, "9 hardware threads, 2 NUMA nodes, "},
        {"numa:2 core:4 pu:2", 99, 16, "16 hardware threads, 2 NUMA nodes, "},
        {"core:1 pu:1", 0, 1, "1 core, 1 NUMA node, "},
    };
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct place *p = make(cases[i].topology, cases[i].threads);
        assert_int_equal(place_units(p), cases[i].units);
        assert_int_equal(place_unused(p), cases[i].units);
        assert_memory_equal(place_text(p), cases[i].text, strlen(cases[i].text));
        assert_true(place_memory(p) > 0);
        place_free(p);
    }
}

static void sets_are_disjoint_and_come_back(void **state)
{
    struct place *p = make("numa:2 core:4 pu:2", 0);
    struct place_set *s[3];
    struct err e;
    char text[64];
    (void)state;
    for (int i = 0; i < 3; i++)
        assert_true(place_take(p, 2, NULL, 0, &s[i], &e));
    assert_int_equal(place_unused(p), 2);
    assert_string_equal(place_set_text(s[0], text, sizeof text), "0-3");
    assert_string_equal(place_set_text(s[1], text, sizeof text), "4-7");
    assert_string_equal(place_set_text(s[2], text, sizeof text), "8-11");
    struct place_set *none;
    assert_false(place_take(p, 3, NULL, 0, &none, &e));
    assert_int_equal(e.code, ERR_BUG);
    place_give(p, s[1]);
    assert_int_equal(place_unused(p), 4);
    assert_true(place_take(p, 2, NULL, 0, &s[1], &e)); /* both NUMA nodes have two: the first is taken */
    assert_string_equal(place_set_text(s[1], text, sizeof text), "4-7");
    for (int i = 0; i < 3; i++)
        place_give(p, s[i]);
    assert_int_equal(place_unused(p), 8);
    place_free(p);
}

static void a_set_stays_on_one_numa_node_when_one_has_room(void **state)
{
    struct place *p = make("numa:2 core:4 pu:1", 0);
    struct place_set *one, *four, *three, *rest;
    struct err e;
    char text[64];
    (void)state;
    assert_true(place_take(p, 1, NULL, 0, &one, &e));
    assert_true(place_take(p, 4, NULL, 0, &four, &e)); /* not 1-4, which spans both */
    assert_string_equal(place_set_text(four, text, sizeof text), "4-7");
    assert_true(place_take(p, 3, NULL, 0, &three, &e));
    assert_string_equal(place_set_text(three, text, sizeof text), "1-3");
    place_give(p, one);
    place_give(p, four);
    assert_true(place_take(p, 5, NULL, 0, &rest, &e)); /* more than one node has: spans */
    assert_string_equal(place_set_text(rest, text, sizeof text), "0,4-7");
    place_give(p, rest);
    place_give(p, three);
    place_free(p);
}

static void a_small_set_fills_the_fuller_node(void **state)
{
    struct place *p = make("numa:2 core:4 pu:1", 0);
    struct place_set *three, *one, *four;
    struct err e;
    char text[64];
    (void)state;
    assert_true(place_take(p, 3, NULL, 0, &three, &e));
    assert_true(place_take(p, 1, NULL, 0, &one, &e));
    assert_string_equal(place_set_text(one, text, sizeof text), "3");
    assert_true(place_take(p, 4, NULL, 0, &four, &e));
    assert_string_equal(place_set_text(four, text, sizeof text), "4-7");
    place_give(p, one);
    place_give(p, three);
    place_give(p, four);
    place_free(p);
}

/* -- machines with GPUs -- */

static struct place *load(const char *machine)
{
    char path[512];
    snprintf(path, sizeof path, "%s/tests/topologies/%s.xml", getenv("SCOUT_ROOT"), machine);
    return make(path, 0);
}

static const char *list(const struct place_set *s)
{
    static char text[256];
    return place_set_text(s, text, sizeof text);
}

struct gpu {
    const char *pci, *near;
    const char *cores; /* of a node on it, with all other GPUs at work */
};

static const struct gpu dgx_a100[] = {
    {"0000:07:00.0", "near NUMA node 3 (cores 48-63)", "48-55"},
    {"0000:0f:00.0", "near NUMA node 3 (cores 48-63)", "56-63"},
    {"0000:47:00.0", "near NUMA node 1 (cores 16-31)", "16-23"},
    {"0000:4e:00.0", "near NUMA node 1 (cores 16-31)", "24-31"},
    {"0000:87:00.0", "near NUMA node 7 (cores 112-127)", "112-119"},
    {"0000:90:00.0", "near NUMA node 7 (cores 112-127)", "120-127"},
    {"0000:b7:00.0", "near NUMA node 5 (cores 80-95)", "80-87"},
    {"0000:bd:00.0", "near NUMA node 5 (cores 80-95)", "88-95"},
};
static const struct gpu dgx_h100[] = {
    {"0000:1b:00.0", "near NUMA node 0 (cores 0-55)", "0-10"},
    {"0000:43:00.0", "near NUMA node 0 (cores 0-55)", "11-21"},
    {"0000:52:00.0", "near NUMA node 0 (cores 0-55)", "22-32"},
    {"0000:61:00.0", "near NUMA node 0 (cores 0-55)", "33-43"},
    {"0000:9d:00.0", "near NUMA node 1 (cores 56-111)", "56-66"},
    {"0000:c3:00.0", "near NUMA node 1 (cores 56-111)", "67-77"},
    {"0000:d1:00.0", "near NUMA node 1 (cores 56-111)", "78-88"},
    {"0000:df:00.0", "near NUMA node 1 (cores 56-111)", "89-99"},
};
static const struct gpu workstation[] = {
    {"0000:01:00.0", "near NUMA node 0 (cores 0-15)", "0-4"},
    {"0000:02:00.0", "near NUMA node 0 (cores 0-15)", "5-9"},
};

static const struct machine {
    const char *name;
    const struct gpu *gpus;
    int n;
    const char *rest; /* for four cores of work on the CPU, with all GPUs at work */
} machines[] = {
    {"dgx-a100", dgx_a100, 8, "0-3"}, {"dgx-h100", dgx_h100, 8, "44-47"}, {"workstation", workstation, 2, "10-13"}};
enum { MACHINES = sizeof machines / sizeof *machines };

/* What each GPU of the machine is near to; all are in use. */
static void use_all(struct place *p, const struct machine *m, int near[8])
{
    struct err e;
    for (int i = 0; i < m->n; i++) {
        assert_true(place_device_near(p, m->gpus[i].pci, &near[i], &e));
        place_use_device(p, near[i]);
    }
}

static void work_on_gpus_is_near_and_apart_and_other_work_elsewhere(void **state)
{
    (void)state;
    for (int k = 0; k < MACHINES; k++) {
        const struct machine *m = &machines[k];
        struct place *p = load(m->name);
        struct place_set *sets[8], *rest;
        int near[8];
        char text[512];
        struct err e;
        use_all(p, m, near);
        for (int i = 0; i < m->n; i++) {
            assert_string_equal(place_near_text(p, near[i], text, sizeof text), m->gpus[i].near);
            assert_true(place_take(p, place_device_share(p, near[i]), &near[i], 1, &sets[i], &e));
            assert_string_equal(list(sets[i]), m->gpus[i].cores);
        }
        assert_true(place_take(p, 4, NULL, 0, &rest, &e));
        assert_string_equal(list(rest), m->rest);
        place_give(p, rest);
        for (int i = 0; i < m->n; i++)
            place_give(p, sets[i]);
        place_free(p);
    }
}

static void work_without_a_gpu_keeps_away_from_gpus_while_it_can(void **state)
{
    struct place *p = load("dgx-a100");
    struct place_set *twenty, *most, *rest;
    int near[8];
    struct err e;
    (void)state;
    use_all(p, &machines[0], near);
    assert_true(place_take(p, 20, NULL, 0, &twenty, &e)); /* no NUMA node has 20: the free ones without a GPU */
    assert_string_equal(list(twenty), "0-15,32-35");
    assert_true(place_take(p, 60, NULL, 0, &most, &e)); /* 44 more without a GPU, and 4 near each pair of GPUs */
    assert_string_equal(list(most), "16-19,36-51,64-83,96-115");
    assert_true(place_take(p, 12, &near[2], 1, &rest, &e)); /* all that is left near cuda:2 */
    assert_string_equal(list(rest), "20-31");
    place_give(p, twenty);
    place_give(p, most);
    place_give(p, rest);
    place_free(p);
}

static void a_gpu_without_free_cores_near_it_gets_others(void **state)
{
    struct place *p = load("dgx-a100");
    struct place_set *all, *far, *none;
    int near[8];
    struct err e;
    (void)state;
    use_all(p, &machines[0], near);
    assert_true(place_take(p, 14, &near[0], 1, &all, &e));
    assert_true(place_take(p, 4, &near[1], 1, &far, &e)); /* the last two near it, and two that are near no GPU */
    assert_string_equal(list(far), "0-1,62-63");
    place_give(p, all);
    place_give(p, far);
    assert_true(place_take(p, 16, near, 8, &all, &e)); /* work on all GPUs has cores near each */
    assert_string_equal(list(all), "16-19,48-51,80-83,112-115");
    assert_true(place_device_near(p, "0000:aa:00.0", &near[0], &e)); /* nobody knows it */
    assert_int_equal(near[0], PLACE_ANYWHERE);
    assert_true(place_take(p, 2, near, 1, &none, &e));
    assert_string_equal(list(none), "0-1");
    place_bind_near(p, near[0]);
    place_give(p, all);
    place_give(p, none);
    place_free(p);
}

static void cores_that_the_run_does_not_use_are_near_nothing(void **state)
{
    char path[512];
    int near;
    struct err e;
    (void)state;
    snprintf(path, sizeof path, "%s/tests/topologies/dgx-h100.xml", getenv("SCOUT_ROOT"));
    struct place *p = make(path, 8); /* all on NUMA node 0 */
    assert_true(place_device_near(p, "0000:9d:00.0", &near, &e));
    assert_int_equal(near, PLACE_ANYWHERE);
    place_use_device(p, near);
    assert_int_equal(place_device_share(p, near), 4); /* the other half is for the CPU's work */
    assert_true(place_device_near(p, "0000:1b:00.0", &near, &e));
    assert_true(near != PLACE_ANYWHERE);
    place_free(p);
}

static void this_machine_has_a_core_and_memory(void **state)
{
    struct place *p = make(NULL, 0);
    struct place_set *s;
    struct err e;
    (void)state;
    assert_true(place_units(p) >= 1);
    assert_true(place_memory(p) > 1 << 20);
    assert_true(place_take(p, 1, NULL, 0, &s, &e));
    place_bind(p, s);
    place_give(p, s);
    place_free(p);
}

static void nonsense_is_refused_with_its_text(void **state)
{
    struct place *p = NULL;
    struct err e;
    (void)state;
    assert_false(place_new(&p, "numa:zero", 0, &e));
    assert_int_equal(e.code, ERR_USAGE);
    assert_string_equal(e.text, "'numa:zero' is no synthetic topology that hwloc knows");
    assert_false(place_new(&p, "/nowhere/at-all.xml", 0, &e));
    assert_int_equal(e.code, ERR_USAGE);
    assert_string_equal(e.text, "'/nowhere/at-all.xml' is no topology that hwloc can read: 'lstopo FILE.xml' writes "
                                "one");
    assert_null(p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(units_follow_the_topology_and_the_limit),
        cmocka_unit_test(sets_are_disjoint_and_come_back),
        cmocka_unit_test(a_set_stays_on_one_numa_node_when_one_has_room),
        cmocka_unit_test(a_small_set_fills_the_fuller_node),
        cmocka_unit_test(work_on_gpus_is_near_and_apart_and_other_work_elsewhere),
        cmocka_unit_test(work_without_a_gpu_keeps_away_from_gpus_while_it_can),
        cmocka_unit_test(a_gpu_without_free_cores_near_it_gets_others),
        cmocka_unit_test(cores_that_the_run_does_not_use_are_near_nothing),
        cmocka_unit_test(this_machine_has_a_core_and_memory),
        cmocka_unit_test(nonsense_is_refused_with_its_text),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
