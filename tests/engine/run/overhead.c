/* Benchmark: planning a graph of 10,000 nodes takes less than a second, before anything ran and when all is there; a
 * node costs less than 5 ms beyond its own work. Fails when a target of the design (section 8) is missed. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <time.h>

#include <cmocka.h>

#include "tests/engine/run/fake.h"

#define NODES 10000
#define RUN_NODES 1000

static double seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Layers of a hundred nodes, each reading three of the layer before. */
static void layers(struct fake *f, int n)
{
    fake_init(f);
    for (int i = 0; i < n; i++) {
        char name[16];
        snprintf(name, sizeof name, "n%05d", i);
        int at = fake_add(f, name, i < 100 ? &fake_value : &fake_sum);
        snprintf(name, sizeof name, "%d", i);
        fake_set(f, at, i < 100 ? "value" : "add", name);
        for (int k = 0; i >= 100 && k < 3; k++)
            fake_connect(f, at, "in", (i / 100 - 1) * 100 + (i * 7 + k) % 100, i < 200 ? "a" : "");
    }
}

static void ten_thousand_nodes_are_planned_in_a_second(void **state)
{
    struct fake f;
    char dir[64];
    (void)state;
    fake_directory(dir);
    layers(&f, NODES);
    double began = seconds();
    fake_plan(&f, dir, NULL);
    double took = seconds() - began;
    printf("plan of %d nodes, no store: %.3f s\n", NODES, took);
    assert_true(took < 1);
    fake_fini(&f);
    fake_remove(dir);
}

static void a_node_costs_less_than_5_ms(void **state)
{
    struct fake f;
    char dir[64];
    (void)state;
    fake_directory(dir);
    layers(&f, RUN_NODES);
    double began = seconds();
    struct run_summary s = fake_run(&f, dir, NULL);
    double took = seconds() - began;
    printf("%zu nodes without work: %.3f s, %.3f ms a node\n", s.done, took, 1e3 * took / RUN_NODES);
    assert_int_equal(s.done, RUN_NODES);
    assert_true(took < 5e-3 * RUN_NODES);
    began = seconds();
    fake_plan(&f, dir, NULL);
    printf("plan of %d nodes, all there: %.3f s\n", RUN_NODES, seconds() - began);
    began = seconds();
    s = fake_run(&f, dir, NULL);
    printf("run of %d nodes, all reused: %.3f s\n", RUN_NODES, seconds() - began);
    assert_int_equal(s.reused, RUN_NODES);
    fake_fini(&f);
    fake_remove(dir);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(ten_thousand_nodes_are_planned_in_a_second),
        cmocka_unit_test(a_node_costs_less_than_5_ms),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
