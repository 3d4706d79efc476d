/* The node type quantize with rounding methods beyond rtn: what it says that they did, that nothing is worse than rtn,
 * that formats of equal codes get equal codes, that a stopped run goes on to the same bytes, and what it refuses. */
#include "tests/check.h"

#include <math.h>

#include "nodes/format/rounding.h"
#include "nodes/model/renderings.h"
#include "tests/nodes/fake_node.h"

extern const struct node_class node_quantize;

struct world {
    char folder[256], path[512];
    struct store *store;
    struct model *model;
    struct object *hessian;
};

static void world_open(struct world *w)
{
    struct err e = {0};
    char path[300];
    check_dir_make(w->folder);
    snprintf(path, sizeof path, "%s/store", w->folder);
    snprintf(w->path, sizeof w->path, "%s/data/models/stories260k", check_root());
    assert_ok(store_open(&w->store, path, &e) && model_open(&w->model, w->path, &e), e);
    w->hessian = fake_hessian(w->store, w->model);
}

static void world_close(struct world *w)
{
    object_close(w->hessian);
    model_close(w->model);
    store_close(w->store);
    check_dir_remove(w->folder);
}

static const char *const menu[] = {"mxfp4", "nvfp4", "nvfp4_a16", "int4_g64", "fp8_block", "fp8", "bf16"};

static void make_node(struct node *n, struct world *w, const char *const *methods, size_t n_methods)
{
    fake_node_init(n, &node_quantize, w->store, "quantize");
    fake_node_connect(n, "model", "model", NULL, w->path);
    fake_node_connect(n, "hessian", "hessian", w->hessian, NULL);
    for (size_t i = 0; i < COUNT(menu); i++)
        fake_node_set(n, "formats", menu[i]);
    for (size_t i = 0; i < n_methods; i++)
        fake_node_set(n, "rounding", methods[i]);
}

static struct object *quantize(struct world *w, const char *const *methods, size_t n_methods, int threads)
{
    struct node n;
    struct err e = {0};
    make_node(&n, w, methods, n_methods);
    n.threads = threads;
    struct object *o = fake_node_run(&n, &e);
    if (!o)
        fail_msg("%s", e.text);
    fake_node_fini(&n);
    return o;
}

static void *load(struct object *o, const char *name, enum dtype t, size_t count)
{
    struct err e = {0};
    void *data = NULL;
    uint64_t got;
    assert_ok(object_read_all(o, name, t, &data, &got, &e), e);
    assert_int_equal(got, count);
    return data;
}

static void methods_say_what_they_did_and_nothing_is_worse_than_rtn(void **state)
{
    (void)state;
    static const char *const methods[] = {"rtn", "gptq"};
    struct world rounded, nearest;
    world_open(&rounded);
    world_open(&nearest);
    struct object *a = quantize(&rounded, methods, 2, 2), *b = quantize(&nearest, methods, 1, 2);
    size_t cells = (size_t)rounded.model->n_matrices * COUNT(menu), better = 0, there = 0;
    double *before = load(a, "rounding/before", DTYPE_F64, cells), *after = load(a, "rounding/after", DTYPE_F64, cells);
    uint8_t *kept = load(a, "rounding/kept", DTYPE_U8, cells);
    double *ours = load(a, "output_loss", DTYPE_F64, cells), *rtn = load(b, "output_loss", DTYPE_F64, cells);
    for (size_t i = 0; i < cells; i++) {
        bool plain = i % COUNT(menu) == COUNT(menu) - 1;
        assert_true(isnan(ours[i]) == isnan(rtn[i]));
        assert_true(isnan(before[i]) == (plain || isnan(rtn[i])));
        if (isnan(before[i]))
            continue;
        there++;
        better += kept[i];
        if (!(fabs(before[i] / rtn[i] - 1.0) < 1e-6))
            fail_msg("%s: %.9g before, %.9g by rtn", menu[i % COUNT(menu)], before[i], rtn[i]);
        assert_int_equal(kept[i], after[i] < before[i]);
        assert_true(ours[i] == (kept[i] ? after[i] : before[i]));
    }
    assert_true(there > 0 && better > 0);
    mem_free(before), mem_free(after), mem_free(kept), mem_free(ours), mem_free(rtn);
    object_close(a);
    object_close(b);
    world_close(&nearest);
    world_close(&rounded);
}

static void formats_of_equal_codes_get_equal_codes(void **state)
{
    (void)state;
    struct world w;
    struct err e = {0};
    struct renderings *r;
    world_open(&w);
    struct object *o = quantize(&w, (const char *const[]){"gptq"}, 1, 1);
    assert_ok(renderings_open_object(&r, w.store, o, w.model, &e), e);
    for (int i = 0; i < w.model->n_matrices; i++) {
        const struct matrix *m = &w.model->matrices[i];
        struct rendering x, y;
        if (m->k % 16)
            continue;
        assert_ok(renderings_read(r, i, "nvfp4", &x, &e) && renderings_read(r, i, "nvfp4_a16", &y, &e), e);
        assert_memory_equal(x.part[0], y.part[0], (size_t)(m->n * m->k / 2));
        assert_memory_equal(x.part[1], y.part[1], (size_t)(m->n * m->k / 16));
        rendering_free(&x);
        rendering_free(&y);
    }
    renderings_close(r);
    object_close(o);
    world_close(&w);
}

/* The bytes of the object and of all its parts. */
static void assert_same(struct world *x, struct object *a, struct world *y, struct object *b)
{
    struct err e = {0};
    for (int layer = -1; layer < 5; layer++) {
        struct object *p = NULL, *q = NULL;
        char name[64];
        size_t n, m;
        snprintf(name, sizeof name, "layer.%03d", layer);
        if (layer >= 0)
            assert_ok(object_part(x->store, a, name, &p, &e) && object_part(y->store, b, name, &q, &e), e);
        char *one = check_read(object_path(p ? p : a), &n), *other = check_read(object_path(q ? q : b), &m);
        assert_int_equal(n, m);
        assert_memory_equal(one, other, n);
        free(one);
        free(other);
        object_close(p);
        object_close(q);
    }
}

static void a_stopped_run_goes_on_and_threads_change_no_byte(void **state)
{
    (void)state;
    struct world whole, broken;
    struct err e = {0};
    struct node n;
    world_open(&whole);
    world_open(&broken);
    struct object *a = quantize(&whole, rounding_names, 2, 1);
    make_node(&n, &broken, rounding_names, 2);
    n.stop_after = 2;
    assert_null(fake_node_run(&n, &e));
    assert_int_equal(e.code, ERR_STOPPED);
    fake_node_fini(&n);
    struct object *b = quantize(&broken, rounding_names, 2, 3);
    assert_same(&whole, a, &broken, b);
    object_close(a);
    object_close(b);
    world_close(&broken);
    world_close(&whole);
}

static void what_cannot_be_is_refused(void **state)
{
    (void)state;
    struct world w;
    struct node n;
    struct err e = {0};
    world_open(&w);
    make_node(&n, &w, (const char *const[]){"gptq", "rtn"}, 2);
    assert_err(fake_node_run(&n, &e), e, ERR_INPUT, "rtn can only be the first");
    fake_node_fini(&n);

    fake_node_init(&n, &node_quantize, w.store, "quantize");
    fake_node_connect(&n, "model", "model", NULL, w.path);
    fake_node_set(&n, "formats", "fp8");
    fake_node_set(&n, "rounding", "gptq");
    assert_err(fake_node_run(&n, &e), e, ERR_INPUT, "connect the port 'hessian'");
    fake_node_fini(&n);
    world_close(&w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(methods_say_what_they_did_and_nothing_is_worse_than_rtn),
        cmocka_unit_test(formats_of_equal_codes_get_equal_codes),
        cmocka_unit_test(a_stopped_run_goes_on_and_threads_change_no_byte),
        cmocka_unit_test(what_cannot_be_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
