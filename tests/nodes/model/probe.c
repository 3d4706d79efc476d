/* The node type probe on a real small model and its real renderings: that it goes on where it was killed, on any number
 * of threads, to the same bytes, and that what it says is the responses' second moments. */
#include "tests/nodes/model/world.h"

#include <math.h>

extern const struct node_class node_probe;

static struct object *run(struct world *w, const char *seed, int threads, int stop_after, struct err *e)
{
    struct node n;
    fake_node_init(&n, &node_probe, w->store, seed);
    n.numerics = WORLD_NUMERICS;
    n.threads = n.queue.threads = threads;
    n.stop_after = stop_after;
    model_world_connect(w, &n);
    fake_node_set(&n, "draws", "3");
    fake_node_set(&n, "batch", stop_after ? "1" : "0");
    fake_node_set(&n, "traces", "1");
    fake_node_set(&n, "significance", "0");
    fake_node_set(&n, "checks", "2");
    struct object *o = fake_node_run(&n, e);
    fake_node_fini(&n);
    return o;
}

static double *load(struct object *o, const char *name, uint64_t *n)
{
    struct err e;
    double *out;
    assert_ok(object_load(o, name, DTYPE_F64, &out, n, &e), e);
    return out;
}

static void costs_come_of_the_responses(void **state)
{
    (void)state;
    struct err e;
    struct world w;
    uint64_t n, cells;
    model_world_open(&w, "stories260k");
    struct object *o = run(&w, "probe", 2, 0, &e);
    if (!o)
        fail_msg("%s", e.text);
    double *response = load(o, "response", &n), *cost = load(o, "cost", &cells), *error = load(o, "cost_error", NULL);
    double *trace = load(o, "trace", NULL), *square = load(o, "square", NULL), tokens = 0;
    double *local = load(o, "local", NULL);
    double *own = load(o, "cost_own", NULL), *kept = load(o, "cost_kept", NULL);
    assert_int_equal(cells, w.menu.n_units * WORLD_FORMATS);
    assert_int_equal(n, cells * 3 * WORLD_WINDOWS);
    for (uint32_t i = 0; i < WORLD_WINDOWS; i++)
        tokens += tokens_scored(&w.tokens, i);
    for (uint64_t c = 0; c < cells; c++) {
        double sum = 0;
        if (!w.menu.available[c]) {
            assert_true(isnan(cost[c]) && isnan(response[c * 3 * WORLD_WINDOWS]));
            continue;
        }
        for (int i = 0; i < 3 * WORLD_WINDOWS; i++)
            sum += response[c * 3 * WORLD_WINDOWS + (uint64_t)i] * response[c * 3 * WORLD_WINDOWS + (uint64_t)i];
        assert_true(fabs(own[c] - sum / 6 / tokens) <= 1e-12 * own[c]);
        double ratio = cost[c] > 0 ? log(cost[c] / own[c]) : 0; /* shrunk, where something is not kept */
        assert_true(fabs(ratio) < 2 && (kept[c] < 1 || fabs(ratio) < 1e-12));
        assert_true((cost[c] == 0) == (c % WORLD_FORMATS == WORLD_BF16));
        assert_true(c % WORLD_FORMATS == WORLD_BF16 ||
                    (square[c * WORLD_WINDOWS] > 0 && local[c * WORLD_WINDOWS] > 0 && error[c] > 0));
        assert_true(kept[c] >= 0 && kept[c] <= 1 && (c % WORLD_FORMATS != WORLD_BF16 || kept[c] == 1));
    }
    int64_t block;
    assert_true(object_int(o, "block", &block) && block == 8 && WORLD_WINDOW % 8 == 0);
    for (int u = 0; u < w.menu.n_units; u++)
        assert_true(trace[u * WORLD_WINDOWS] > 0);
    double *all[] = {response, cost, error, trace, local, square, own, kept};
    for (size_t i = 0; i < COUNT(all); i++)
        mem_free(all[i]);
    object_close(o);
    model_world_close(&w);
}

/* A strong pair as base, one, other, both. */
static void the_strongest_pairs_are_proposed(void **state)
{
    (void)state;
    struct err e;
    struct world w;
    struct candidates c;
    model_world_open(&w, "stories260k");
    struct object *o = run(&w, "probe", 2, 0, &e);
    assert_non_null(o);
    assert_ok(candidates_read(&c, o, &e), e);
    assert_in_range(c.n, 6, 7); /* two pairs may share a single */
    assert_string_equal(c.list[0].origin, "base");
    size_t pairs = 0;
    for (size_t i = 1; i < c.n; i++) {
        int changed = 0;
        for (int u = 0; u < w.menu.n_units; u++) {
            assert_int_equal(c.list[0].assignment[u], WORLD_BF16);
            changed += c.list[i].assignment[u] != WORLD_BF16;
        }
        assert_int_equal(changed, strcmp(c.list[i].origin, "pair") == 0 ? 2 : 1);
        pairs += changed == 2;
    }
    assert_int_equal(pairs, 2);
    candidates_fini(&c);
    object_close(o);
    model_world_close(&w);
}

static void a_killed_probe_goes_on_to_the_same_bytes(void **state)
{
    (void)state;
    struct err e = {0};
    struct world w[2];
    struct object *o[2];
    for (int i = 0; i < 2; i++)
        model_world_open(&w[i], "stories260k");
    o[0] = run(&w[0], "probe", 1, 0, &e);
    assert_non_null(o[0]);
    assert_null(run(&w[1], "probe", 3, 1, &e));
    assert_int_equal(e.code, ERR_STOPPED);
    o[1] = run(&w[1], "probe", 3, 0, &e);
    if (!o[1])
        fail_msg("%s", e.text);
    uint64_t bytes[2];
    char *content[2];
    for (int i = 0; i < 2; i++) {
        FILE *f = fopen(object_path(o[i]), "rb");
        assert_non_null(f);
        assert_int_equal(fseek(f, 0, SEEK_END), 0);
        bytes[i] = (uint64_t)ftell(f);
        rewind(f);
        content[i] = malloc(bytes[i]);
        assert_int_equal(fread(content[i], 1, bytes[i], f), bytes[i]);
        fclose(f);
    }
    assert_int_equal(bytes[0], bytes[1]);
    assert_memory_equal(content[0], content[1], bytes[0]);
    for (int i = 0; i < 2; i++) {
        free(content[i]);
        object_close(o[i]);
        model_world_close(&w[i]);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(costs_come_of_the_responses),
        cmocka_unit_test(the_strongest_pairs_are_proposed),
        cmocka_unit_test(a_killed_probe_goes_on_to_the_same_bytes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
