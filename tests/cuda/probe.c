/* The node type probe on an accelerator and on the CPU: the same draws, so the same responses but for the order of sums. */
#include "tests/cuda/pair.h"

#include "tests/nodes/model/world.h"

#include <math.h>

extern const struct node_class node_probe;

#define PLENTY ((uint64_t)8 << 30)

static struct queue *queue;

static struct object *run(struct world *w, const char *seed)
{
    struct err e = {0};
    struct node n;
    fake_node_init(&n, &node_probe, w->store, seed);
    n.numerics = WORLD_NUMERICS;
    model_world_connect(w, &n);
    fake_node_set(&n, "draws", "2");
    fake_node_set(&n, "traces", "1");
    struct object *o = fake_node_run(&n, &e);
    if (!o)
        fail_msg("%s", e.text);
    fake_node_fini(&n);
    return o;
}

/* Root mean square difference over root mean square, of what is a number in both. */
static double distance(struct object *a, struct object *b, const char *name)
{
    struct err e;
    double *x = NULL, *y = NULL, differences = 0, squares = 0;
    uint64_t n = 0, m = 0;
    assert_ok(object_load(a, name, DTYPE_F64, &x, &n, &e) && object_load(b, name, DTYPE_F64, &y, &m, &e), e);
    assert_int_equal(n, m);
    for (uint64_t i = 0; i < n; i++) {
        assert_int_equal(isnan(x[i]), isnan(y[i]));
        if (isnan(x[i]))
            continue;
        differences += (x[i] - y[i]) * (x[i] - y[i]);
        squares += x[i] * x[i];
    }
    mem_free(x);
    mem_free(y);
    assert_true(squares > 0);
    return sqrt(differences / squares);
}

static void an_accelerator_finds_what_the_cpu_finds(void **state)
{
    (void)state;
    struct queue *q = queue;
    struct world w;
    struct err e = {0};
    static const char *const names[] = {"response", "cost", "square", "trace"};
    assert_ok(q->k->enter(q, &e), e);
    fake_node_place(&q, 1, PLENTY);
    model_world_open(&w, "stories260k");
    struct object *there = run(&w, "on the device");
    fake_node_place(NULL, 0, 0);
    struct object *here = run(&w, "on the host");
    for (size_t i = 0; i < COUNT(names); i++) {
        double d = distance(here, there, names[i]);
        print_message("%s: %.2g apart\n", names[i], d);
        assert_true(d < 1e-3);
    }
    object_close(there);
    object_close(here);
    model_world_close(&w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(an_accelerator_finds_what_the_cpu_finds)};
    struct err e = {0};
    const struct device *d = first_device();
    if (!d)
        return SKIPPED;
    if (!kernels_queue_new(&queue, d->kernels, d->index, 1, &e))
        fail_msg("%s", e.text);
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    kernels_queue_free(queue);
    return failed;
}
