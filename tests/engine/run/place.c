/* engine/run/place.c on synthetic machines. */
#include "engine/run/place.h"

#include <setjmp.h>
#include <stdarg.h>
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
    assert_null(p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(units_follow_the_topology_and_the_limit),
        cmocka_unit_test(sets_are_disjoint_and_come_back),
        cmocka_unit_test(a_set_stays_on_one_numa_node_when_one_has_room),
        cmocka_unit_test(a_small_set_fills_the_fuller_node),
        cmocka_unit_test(this_machine_has_a_core_and_memory),
        cmocka_unit_test(nonsense_is_refused_with_its_text),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
