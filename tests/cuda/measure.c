/* The evaluator on accelerators: the same rows to the bit whether weights are resident or brought layer by layer, on
 * one device or two, and when the device turns out too small; a lost one fails the measurement, and what was
 * measured by then is kept. */
#include "tests/cuda/pair.h"

#include <sys/stat.h>

#include "nodes/model/evaluator.h"
#include "tests/nodes/model/world.h"

#ifdef EMULATED
#include "tests/cuda/emulate_control.h"
#endif

#define CANDIDATES 5
#define ROWS (CANDIDATES * WORLD_WINDOWS)
#define PLENTY ((uint64_t)8 << 30)

static const struct node_class measuring = {
    .name = "measure",
    .ports = (const struct port[]){EVALUATOR_PORTS, {0}},
    .params = (const struct param[]){EVALUATOR_PARAMS, {0}},
};

/* How it is measured. */
struct setting {
    const char *lanes, *replay;
    int devices;
    uint64_t memory; /* of each device */
};

/* What came of it: the KL of every candidate on every window, and what it took. */
struct result {
    double kl[CANDIDATES][WORLD_WINDOWS];
    double rows_measured, weights_brought;
};

static struct queue *queues[2];

/* A world whose renderings and teacher are made on the first device; one for all tests. */
static struct world world;

static int open_world(void **state)
{
    (void)state;
    struct err e = {0};
    assert_ok(queues[0]->k->enter(queues[0], &e), e);
    fake_node_place(queues, 1, PLENTY);
    model_world_open(&world, "stories260k");
    return 0;
}

static int close_world(void **state)
{
    (void)state;
    model_world_close(&world);
    return 0;
}

/* As if nothing had been measured. */
static void forget(void)
{
    char path[300];
    snprintf(path, sizeof path, "%s/store/ledger", world.folder);
    check_dir_remove(path);
    assert_int_equal(mkdir(path, 0777), 0);
}

static bool measure(const struct setting *s, struct result *out, struct err *e)
{
    struct node n;
    struct evaluator *v = NULL;
    struct candidates table = {0};
    fake_node_place(queues, s->devices, s->memory);
    fake_node_init(&n, &measuring, world.store, "measuring");
    n.numerics = WORLD_NUMERICS;
    fake_node_set(&n, "lanes", s->lanes);
    fake_node_set(&n, "replay", s->replay);
    model_world_connect(&world, &n);
    bool ok = evaluator_open(&v, &n, e) && evaluator_table(v, &table, e);
    for (unsigned c = 0; ok && c < CANDIDATES; c++) {
        uint8_t assignment[64];
        assert_in_range(world.menu.n_units, 1, 64);
        model_world_assignment(&world, 11 + c, assignment);
        ok = candidates_add(&table, &world.menu, assignment, "made", -1, e);
    }
    ok = ok && evaluator_measure(v, &table, 0, e);
    for (size_t c = 0; ok && c < CANDIDATES; c++)
        memcpy(out->kl[c], table.list[c].kl_window, sizeof out->kl[c]);
    if (v) {
        evaluator_close(v);
        out->rows_measured = fake_node_stat(&n, "rows_measured");
        out->weights_brought = fake_node_stat(&n, "weights_brought");
    }
    candidates_fini(&table);
    fake_node_fini(&n);
    return ok;
}

static void assert_same(const struct result *a, const struct result *b, const char *what)
{
    for (int c = 0; c < CANDIDATES; c++)
        for (int i = 0; i < WORLD_WINDOWS; i++)
            if (memcmp(&a->kl[c][i], &b->kl[c][i], sizeof(double)) != 0 || !(a->kl[c][i] > 0.0))
                fail_msg("%s: candidate %d, window %d: %.17g, expected %.17g", what, c, i, b->kl[c][i], a->kl[c][i]);
}

static struct result undisturbed(double *all_weights)
{
    struct result r = {0};
    struct err e = {0};
    const struct setting plain = {"0", "true", 1, PLENTY};
    forget();
    assert_ok(measure(&plain, &r, &e), e);
    assert_true(r.rows_measured == ROWS);
    *all_weights = r.weights_brought;
    return r;
}

static void assert_rows_are_the_same(const struct setting *settings, size_t n)
{
    double all;
    struct result want = undisturbed(&all);
    for (size_t i = 0; i < n; i++) {
        char name[64];
        struct result got = {0};
        struct err e = {0};
        forget();
        assert_ok(measure(&settings[i], &got, &e), e);
        CASE(name, "setting %zu", i);
        assert_same(&want, &got, name);
        assert_true(got.rows_measured == ROWS);
        /* Resident weights are brought once to a device; others at every pass that uses them. */
        if (settings[i].memory == PLENTY)
            assert_true(got.weights_brought <= all * settings[i].devices);
        else
            assert_true(got.weights_brought >= all && (settings[i].lanes[0] == '0' || got.weights_brought > all));
    }
}

static void rows_are_the_same_however_they_are_come_by(void **state)
{
    (void)state;
    /* Small memory: nothing is resident, and no state is kept. */
    static const struct setting settings[] = {{"1", "true", 1, PLENTY},  {"2", "false", 1, PLENTY}, {"0", "true", 1, 0},
                                              {"3", "true", 1, 0},       {"0", "true", 2, PLENTY},
                                              {"1", "true", 2, 0}};
    assert_rows_are_the_same(settings, COUNT(settings));
}

/* Last: the world is another one afterwards. Heads come after the layers, in the formats that candidates have. */
static void heads_that_are_units_are_brought_like_the_rest(void **state)
{
    (void)state;
    static const struct setting settings[] = {{"2", "false", 1, PLENTY}, {"3", "true", 1, 0}};
    struct err e = {0};
    model_world_close(&world);
    assert_ok(queues[0]->k->enter(queues[0], &e), e);
    fake_node_place(queues, 1, PLENTY);
    model_world_open_with_head(&world, "stories260k");
    assert_true(world.model->head_unit >= 0);
    assert_rows_are_the_same(settings, COUNT(settings));
}

#ifdef EMULATED
/* Room for what the evaluator opens, then for less and less more. */
static void a_device_that_is_too_small_measures_less_at_a_time(void **state)
{
    (void)state;
    double all;
    struct result want = undisturbed(&all);
    const struct setting plain = {"0", "true", 1, PLENTY};
    bool was_full = false;
    uint64_t room = (uint64_t)40 << 20;
    for (; room >= (uint64_t)1 << 20; room -= room / 16) {
        struct result got = {0};
        struct err e = {0};
        forget();
        emulate_limit(emulate_used() + room);
        bool ok = measure(&plain, &got, &e);
        emulate_limit(UINT64_MAX);
        if (ok) {
            assert_same(&want, &got, "a small device");
            was_full = was_full || got.weights_brought > all;
        } else { /* then it is too small for one lane and window, too */
            const struct setting least = {"1", "false", 1, 0};
            assert_int_equal(e.code, ERR_RESOURCE);
            assert_non_null(strstr(e.text, "out of memory"));
            forget();
            emulate_limit(emulate_used() + room);
            assert_false(measure(&least, &got, &e));
            emulate_limit(UINT64_MAX);
        }
        if (!ok)
            break;
    }
    assert_true(was_full); /* some size was too small for all at once, and large enough for less */
}

static void a_lost_device_is_told_and_what_was_measured_is_kept(void **state)
{
    (void)state;
    double all;
    struct result want = undisturbed(&all), got = {0};
    struct err e = {0};
    const struct setting plain = {"1", "true", 1, PLENTY};
    uint64_t before = emulate_used();
    forget();
    double kept = 0;
    for (long launches = 120; launches < 500; launches += 150) {
        emulate_lose_after(launches);
        bool ok = measure(&plain, &got, &e);
        emulate_lose_after(-1);
        assert_false(ok);
        assert_int_equal(e.code, ERR_DEVICE);
        assert_non_null(strstr(e.text, "cuda:0"));
        kept += got.rows_measured;
    }
    assert_true(kept > 0 && kept < ROWS);
    assert_ok(measure(&plain, &got, &e), e);
    assert_true(got.rows_measured == ROWS - kept); /* the device is back: only the rest */
    assert_same(&want, &got, "after losses");
    assert_int_equal(emulate_used(), before); /* nothing is left on the device */
}
#endif

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rows_are_the_same_however_they_are_come_by),
#ifdef EMULATED
        cmocka_unit_test(a_device_that_is_too_small_measures_less_at_a_time),
        cmocka_unit_test(a_lost_device_is_told_and_what_was_measured_is_kept),
#endif
        cmocka_unit_test(heads_that_are_units_are_brought_like_the_rest),
    };
    struct err e = {0};
    size_t n;
    const char *why;
    const struct device *d = first_device();
    if (!d)
        return SKIPPED;
    const struct device *all = kernels_devices(&n, &why);
    for (int i = 0; i < 2; i++) { /* two devices of one kind, or two queues on one */
        const struct device *x = n > 1 && all[1].kernels == d->kernels ? &all[i] : d;
        if (!kernels_queue_new(&queues[i], x->kernels, x->index, 1, &e))
            fail_msg("%s", e.text);
    }
    int failed = cmocka_run_group_tests(tests, open_world, close_world);
    kernels_queue_free(queues[0]);
    kernels_queue_free(queues[1]);
    return failed;
}
