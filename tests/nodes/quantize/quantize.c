/* The node type quantize over a real model and store: what its object holds, what it refuses, that a stopped run goes
 * on, and that threads change no bit. Its renderings are read back through nodes/model/renderings.h. */
#include "tests/check.h"

#include <math.h>

#include "nodes/model/renderings.h"
#include "tests/nodes/fake_node.h"

extern const struct node_class node_quantize;

struct world {
    char folder[256], model_path[512];
    struct store *store;
    struct model *model;
};

/* A store of its own, and the shipped model `name`. */
static void world_open(struct world *w, const char *name)
{
    struct err e = {0};
    char path[300];
    check_dir_make(w->folder);
    snprintf(path, sizeof path, "%s/store", w->folder);
    snprintf(w->model_path, sizeof w->model_path, "%s/data/models/%s", check_root(), name);
    assert_ok(store_open(&w->store, path, &e), e);
    assert_ok(model_open(&w->model, w->model_path, &e), e);
}

static void world_close(struct world *w)
{
    model_close(w->model);
    store_close(w->store);
    check_dir_remove(w->folder);
}

/* A quantize node with these formats (NULL-terminated) and, if given, this hessian. */
static void make_node(struct node *n, struct world *w, const char *const *menu, struct object *hessian)
{
    fake_node_init(n, &node_quantize, w->store, "quantize");
    fake_node_connect(n, "model", "model", NULL, w->model_path);
    if (hessian)
        fake_node_connect(n, "hessian", "hessian", hessian, NULL);
    for (; *menu; menu++)
        fake_node_set(n, "formats", *menu);
}

static struct object *quantize(struct world *w, const char *const *menu, struct object *hessian, int threads)
{
    struct node n;
    struct err e = {0};
    make_node(&n, w, menu, hessian);
    n.threads = threads;
    struct object *o = fake_node_run(&n, &e);
    if (!o)
        fail_msg("%s", e.text);
    fake_node_fini(&n);
    return o;
}

static void *load(struct object *o, const char *name, enum dtype t, uint64_t count)
{
    struct err e = {0};
    void *data = NULL;
    uint64_t got;
    assert_ok(object_read_all(o, name, t, &data, &got, &e), e);
    assert_int_equal(got, count);
    return data;
}

/* ------------------------------------------------------------------------------------------------------------ tests */

static const char *const menu_all[] = {"nvfp4", "nvfp4_a16", "fp8", "bf16", NULL};
static const char *const menu_weights[] = {"nvfp4_a16", "fp8", "bf16", NULL};

static void availability_and_bytes_follow_from_the_shapes(void **state)
{
    (void)state;
    struct world w;
    world_open(&w, "stories260k"); /* down_proj has 172 columns: no block of 16 divides them */
    struct object *o = quantize(&w, menu_weights, NULL, 1);
    uint64_t cells = (uint64_t)w.model->n_units * 3;
    uint8_t *available = load(o, "available", DTYPE_U8, cells);
    uint64_t *bytes = load(o, "bytes", DTYPE_U64, cells);
    for (int u = 0; u < w.model->n_units; u++) {
        const struct unit *unit = &w.model->units[u];
        assert_int_equal(available[u * 3], unit->role != ROLE_DOWN);
        assert_int_equal(available[u * 3 + 1], 1);
        assert_int_equal(available[u * 3 + 2], 1);
        assert_int_equal(bytes[u * 3 + 1], unit->n * unit->k + 4 * unit->n);
        assert_int_equal(bytes[u * 3 + 2], 2 * unit->n * unit->k);
        if (unit->role != ROLE_DOWN)
            assert_int_equal(bytes[u * 3], unit->n * unit->k / 2 + unit->n * unit->k / 16 + 4 * unit->count);
    }
    mem_free(available);
    mem_free(bytes);
    object_close(o);
    world_close(&w);
}

/* The node's tables for that menu on that server; fallbacks of the units of layer 0, "qkv o gate_up down", by name. */
static void assert_fallbacks(const char *model, const char *serving, const char *const *menu, const char *meant,
                             const char *expected)
{
    struct world w;
    struct node n;
    struct err e = {0};
    int n_formats = 0, at = -1;
    char got[200] = "";
    for (; menu[n_formats]; n_formats++)
        at = strcmp(menu[n_formats], meant) == 0 ? n_formats : at;
    world_open(&w, model);
    make_node(&n, &w, menu, NULL);
    fake_node_set(&n, "serving", serving);
    struct object *o = fake_node_run(&n, &e);
    if (!o)
        fail_msg("%s", e.text);
    uint64_t cells = (uint64_t)(w.model->n_units * n_formats);
    uint8_t *available = load(o, "available", DTYPE_U8, cells);
    int32_t *fallback = load(o, "fallback", DTYPE_I32, cells);
    for (uint64_t i = 0; i < cells; i++) {
        assert_in_range(fallback[i], 0, n_formats - 1);
        assert_int_equal(available[i] != 0, fallback[i] == (int32_t)(i % (uint64_t)n_formats));
        assert_true(available[(int)(i / (uint64_t)n_formats) * n_formats + fallback[i]]);
    }
    for (int u = 0; u < 4; u++)
        sprintf(got + strlen(got), "%s%s", u ? " " : "", menu[fallback[u * n_formats + at]]);
    assert_string_equal(got, expected);
    const char *text;
    assert_true(object_text(o, "serving", &text));
    assert_string_equal(text, serving);
    mem_free(available);
    mem_free(fallback);
    object_close(o);
    fake_node_fini(&n);
    world_close(&w);
}

static void units_that_do_not_fit_fall_back_where_it_is_served(void **state)
{
    (void)state;
    static const char *const int4[] = {"int4_g128", "int4_g64", "int4_g32", "int8_a16", "bf16", NULL};
    static const char *const tiles[] = {"fp8_block", "fp8", "bf16", NULL}, *const mx[] = {"mxfp8", "fp8", "bf16", NULL};
    /* widths 128 and 352 */
    assert_fallbacks("babyllama-1m", "any", int4, "int4_g128", "int4_g128 int4_g128 int4_g128 int4_g32");
    assert_fallbacks("babyllama-1m", "vllm-hopper", tiles, "fp8_block", "fp8 fp8_block fp8 fp8");
    assert_fallbacks("babyllama-1m", "any", tiles, "fp8_block", "fp8_block fp8_block fp8_block fp8_block");
    assert_fallbacks("babyllama-1m", "vllm-blackwell", mx, "mxfp8", "mxfp8 mxfp8 mxfp8 mxfp8");
    /* 64 and 172 */
    assert_fallbacks("stories260k", "vllm-ampere", int4, "int4_g128", "int4_g64 int4_g64 int4_g64 int8_a16");
    assert_fallbacks("stories260k", "any", mx, "mxfp8", "mxfp8 mxfp8 mxfp8 fp8");
    assert_fallbacks("stories260k", "vllm-blackwell", mx, "mxfp8", "fp8 fp8 fp8 fp8");
}

static void formats_that_the_server_does_not_run_are_refused_with_the_remedy(void **state)
{
    (void)state;
    static const struct { const char *serving, *format, *text; } cases[] = {
        {"vllm-blackwell", "int8", "formats: vllm-blackwell does not offer 'int8': "},
        {"vllm-hopper", "mxfp8", "use 'mxfp8_a16'"},
        {"vllm-ampere", "fp8_block", "use 'fp8_a16'"},
    };
    struct world w;
    world_open(&w, "stories260k");
    for (size_t i = 0; i < COUNT(cases); i++) {
        struct node n;
        struct err e = {0};
        make_node(&n, &w, (const char *const[]){"bf16", cases[i].format, NULL}, NULL);
        fake_node_set(&n, "serving", cases[i].serving);
        assert_err(fake_node_run(&n, &e), e, ERR_INPUT, cases[i].text);
        fake_node_fini(&n);
    }
    world_close(&w);
}

static void renderings_are_what_the_formats_encode(void **state)
{
    (void)state;
    struct world w;
    struct err e = {0};
    world_open(&w, "stories260k");
    struct object *o = quantize(&w, menu_weights, NULL, 2);
    struct renderings *r;
    assert_ok(renderings_open_object(&r, w.store, o, w.model, &e), e);
    assert_int_equal(renderings_format(r, "fp8"), 1);
    assert_int_equal(renderings_format(r, "nvfp4"), -1);
    for (int i = 0; i < w.model->n_matrices; i++) {
        const struct matrix *m = &w.model->matrices[i];
        const struct unit *u = &w.model->units[m->unit];
        float *weights, amax = 0.0f;
        assert_ok(mem_raw(&weights, u->parameters, &e), e);
        for (int j = u->first; j < u->first + u->count; j++) {
            float *at = weights + w.model->matrices[j].row * u->k;
            assert_ok(model_read_matrix(w.model, j, at, &e), e);
            assert_ok(format_amax(at, w.model->matrices[j].n, u->k, &amax, &e), e);
        }
        for (int f = 0; menu_weights[f]; f++) {
            const struct format *format = format_find(menu_weights[f]);
            if (!format_fits(format, m->n, m->k))
                continue;
            struct rendering got, expected;
            struct format_part parts[FORMAT_PARTS];
            assert_ok(renderings_read(r, i, menu_weights[f], &got, &e), e);
            assert_ok(format_rendering_new(&expected, format, m->n, m->k, m->dtype, &e), e);
            assert_ok(format->encode(weights + m->row * m->k, amax, &expected, &e), e);
            int count = format->parts(m->n, m->k, m->dtype, parts);
            for (int p = 0; p < count; p++)
                assert_memory_equal(got.part[p], expected.part[p], format_part_bytes(&parts[p]));
            rendering_free(&got);
            rendering_free(&expected);
        }
        mem_free(weights);
    }
    renderings_close(r);
    object_close(o);
    world_close(&w);
}

static void renderings_that_are_not_there_are_refused_by_name(void **state)
{
    (void)state;
    struct world w;
    struct err e = {0};
    world_open(&w, "stories260k");
    struct object *o = quantize(&w, menu_weights, NULL, 1);
    struct renderings *r;
    struct rendering x;
    assert_ok(renderings_open_object(&r, w.store, o, w.model, &e), e);
    assert_err(renderings_read(r, 0, "nvfp4", &x, &e), e, ERR_INPUT, "was not quantized to 'nvfp4'");
    int down = w.model->n_matrices - 1;
    assert_int_equal(w.model->matrices[down].k, 172);
    assert_err(renderings_read(r, down, "nvfp4_a16", &x, &e), e, ERR_INPUT, "cannot have format nvfp4_a16");
    renderings_close(r);

    struct world other; /* as many matrices of the same names, of other shapes */
    world_open(&other, "babyllama-1m");
    assert_err(renderings_open_object(&r, other.store, o, other.model, &e), e, ERR_INPUT, "quantize this model");
    world_close(&other);
    object_close(o);
    world_close(&w);
}

static void losses_are_those_of_the_formula(void **state)
{
    (void)state;
    struct world w;
    struct err e = {0};
    world_open(&w, "stories260k");
    struct object *hessian = fake_hessian(w.store, w.model), *o = quantize(&w, menu_all, hessian, 2);
    uint64_t cells = (uint64_t)w.model->n_matrices * 4;
    double *weight_loss = load(o, "weight_loss", DTYPE_F64, cells);
    double *output_loss = load(o, "output_loss", DTYPE_F64, cells);
    struct renderings *r;
    assert_ok(renderings_open_object(&r, w.store, o, w.model, &e), e);
    for (int i = 0; i < w.model->n_matrices; i += 5) { /* each role of some layer */
        const struct matrix *m = &w.model->matrices[i];
        float *source, *got;
        assert_ok(mem_raw(&source, (size_t)(m->n * m->k), &e) && mem_raw(&got, (size_t)(m->n * m->k), &e), e);
        assert_ok(model_read_matrix(w.model, i, source, &e), e);
        for (int f = 0; f < 4; f++) {
            if (!format_fits(format_find(menu_all[f]), m->n, m->k)) {
                assert_true(isnan(weight_loss[i * 4 + f]) && isnan(output_loss[i * 4 + f]));
                continue;
            }
            struct rendering x;
            assert_ok(renderings_read(r, i, menu_all[f], &x, &e), e);
            x.format->decode(&x, 0, m->n, got);
            rendering_free(&x);
            double square = 0, whole = 0, energy = 0, whole_energy = 0;
            for (int64_t row = 0; row < m->n; row++) {
                const float *s = source + row * m->k, *g = got + row * m->k;
                for (int64_t a = 0; a < m->k; a++) {
                    double da = (double)g[a] - (double)s[a];
                    square += da * da;
                    whole += (double)s[a] * (double)s[a];
                    for (int64_t b = 0; b < m->k; b++) {
                        double h = fake_moment(m->unit, a, b);
                        energy += da * h * ((double)g[b] - (double)s[b]);
                        whole_energy += (double)s[a] * h * (double)s[b];
                    }
                }
            }
            if (fabs(weight_loss[i * 4 + f] - square / whole) > 1e-6 * square / whole ||
                fabs(output_loss[i * 4 + f] - energy / whole_energy) > 1e-4 * energy / whole_energy)
                fail_msg("%s in %s: %.9g and %.9g, expected %.9g and %.9g", m->name, menu_all[f],
                         weight_loss[i * 4 + f], output_loss[i * 4 + f], square / whole, energy / whole_energy);
        }
        mem_free(source);
        mem_free(got);
    }
    renderings_close(r);
    mem_free(weight_loss);
    mem_free(output_loss);
    object_close(o);
    object_close(hessian);
    world_close(&w);
}

static void input_scales_are_the_divisors_of_the_calibration_maxima(void **state)
{
    (void)state;
    struct world w;
    struct err e = {0};
    world_open(&w, "stories260k");
    struct object *hessian = fake_hessian(w.store, w.model), *o = quantize(&w, menu_all, hessian, 1);
    float *scale = load(o, "input_scale", DTYPE_F32, (uint64_t)w.model->n_units);
    float *amax = load(o, "input_amax", DTYPE_F32, (uint64_t)w.model->n_units);
    struct renderings *r;
    assert_ok(renderings_open_object(&r, w.store, o, w.model, &e), e);
    for (int u = 0; u < w.model->n_units; u++) {
        assert_true(amax[u] == fake_amax(u));
        /* A unit that cannot have nvfp4 has no static scale. */
        assert_true(scale[u] == (w.model->units[u].role == ROLE_DOWN ? 0.0f : 2688.0f / fake_amax(u)));
        assert_true(renderings_input_scale(r, u) == scale[u]);
    }
    renderings_close(r);
    mem_free(scale);
    mem_free(amax);
    object_close(o);
    object_close(hessian);
    world_close(&w);
}

static void matrices_of_a_unit_share_their_global_scale(void **state)
{
    (void)state;
    struct world w;
    struct err e = {0};
    world_open(&w, "babyllama-1m");
    struct object *o = quantize(&w, menu_weights, NULL, 1);
    struct renderings *r;
    assert_ok(renderings_open_object(&r, w.store, o, w.model, &e), e);
    for (int u = 0; u < w.model->n_units; u++) {
        float first = 0.0f;
        for (int i = 0; i < w.model->units[u].count; i++) {
            struct rendering x;
            assert_ok(renderings_read(r, w.model->units[u].first + i, "nvfp4_a16", &x, &e), e);
            float gs = *(float *)x.part[2];
            first = i ? first : gs;
            assert_true(gs == first && gs > 0.0f);
            rendering_free(&x);
        }
    }
    renderings_close(r);
    object_close(o);
    world_close(&w);
}

static void without_a_hessian_static_input_scales_are_refused_and_output_losses_unknown(void **state)
{
    (void)state;
    struct world w;
    struct node n;
    struct err e = {0};
    world_open(&w, "stories260k");
    make_node(&n, &w, menu_all, NULL);
    assert_err(fake_node_run(&n, &e), e, ERR_INPUT, "connect the port 'hessian', or use 'nvfp4_a16'");
    fake_node_fini(&n);
    struct object *o = quantize(&w, menu_weights, NULL, 1);
    double *loss = load(o, "output_loss", DTYPE_F64, (uint64_t)w.model->n_matrices * 3);
    for (int i = 0; i < w.model->n_matrices * 3; i++)
        assert_true(isnan(loss[i]));
    mem_free(loss);
    object_close(o);
    world_close(&w);
}

static void a_format_given_twice_is_refused(void **state)
{
    (void)state;
    struct world w;
    struct node n;
    struct err e = {0};
    world_open(&w, "stories260k");
    make_node(&n, &w, (const char *const[]){"fp8", "bf16", "fp8", NULL}, NULL);
    assert_err(fake_node_run(&n, &e), e, ERR_INPUT, "'fp8' is given twice");
    fake_node_fini(&n);
    world_close(&w);
}

/* The bytes of an object's file. */
static char *bytes_of(struct object *o, size_t *n)
{
    char *bytes = check_read(object_path(o), n);
    assert_non_null(bytes);
    return bytes;
}

static void a_stopped_run_goes_on_and_gives_the_same_bytes(void **state)
{
    (void)state;
    struct world whole, broken;
    struct err e = {0};
    struct node n;
    world_open(&whole, "stories260k");
    world_open(&broken, "stories260k");
    struct object *a = quantize(&whole, menu_weights, NULL, 1);
    make_node(&n, &broken, menu_weights, NULL);
    n.stop_after = 3; /* in the third layer */
    assert_null(fake_node_run(&n, &e));
    assert_int_equal(e.code, ERR_STOPPED);
    fake_node_fini(&n);
    make_node(&n, &broken, menu_weights, NULL);
    n.threads = 3;
    struct object *b = fake_node_run(&n, &e);
    if (!b)
        fail_msg("%s", e.text);
    assert_int_equal(n.parts_made, 3); /* of five layers, two were there */
    fake_node_fini(&n);

    size_t n_a, n_b;
    char *bytes_a = bytes_of(a, &n_a), *bytes_b = bytes_of(b, &n_b);
    assert_int_equal(n_a, n_b);
    assert_memory_equal(bytes_a, bytes_b, n_a);
    free(bytes_a);
    free(bytes_b);
    for (int layer = 0; layer < 5; layer++) {
        struct object *x = NULL, *y = NULL;
        char name[64];
        snprintf(name, sizeof name, "layer.%03d", layer);
        assert_ok(object_part(whole.store, a, name, &x, &e) && object_part(broken.store, b, name, &y, &e), e);
        bytes_a = bytes_of(x, &n_a);
        bytes_b = bytes_of(y, &n_b);
        assert_int_equal(n_a, n_b);
        assert_memory_equal(bytes_a, bytes_b, n_a);
        free(bytes_a);
        free(bytes_b);
        object_close(x);
        object_close(y);
    }
    object_close(a);
    object_close(b);
    world_close(&whole);
    world_close(&broken);
}

static void needs_cover_the_largest_layer(void **state)
{
    (void)state;
    struct world w;
    struct node n;
    struct needs needs = {0};
    struct err e = {0};
    world_open(&w, "babyllama-1m");
    make_node(&n, &w, menu_weights, NULL);
    assert_ok(node_quantize.needs(&n, &needs, &e), e);
    const struct unit *largest = &w.model->units[2]; /* gate_up */
    assert_true(needs.memory > largest->parameters * 4);
    assert_true(needs.disk > w.model->units[0].parameters);
    fake_node_fini(&n);
    world_close(&w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(availability_and_bytes_follow_from_the_shapes),
        cmocka_unit_test(units_that_do_not_fit_fall_back_where_it_is_served),
        cmocka_unit_test(formats_that_the_server_does_not_run_are_refused_with_the_remedy),
        cmocka_unit_test(renderings_are_what_the_formats_encode),
        cmocka_unit_test(renderings_that_are_not_there_are_refused_by_name),
        cmocka_unit_test(losses_are_those_of_the_formula),
        cmocka_unit_test(input_scales_are_the_divisors_of_the_calibration_maxima),
        cmocka_unit_test(matrices_of_a_unit_share_their_global_scale),
        cmocka_unit_test(without_a_hessian_static_input_scales_are_refused_and_output_losses_unknown),
        cmocka_unit_test(a_format_given_twice_is_refused),
        cmocka_unit_test(a_stopped_run_goes_on_and_gives_the_same_bytes),
        cmocka_unit_test(needs_cover_the_largest_layer),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
