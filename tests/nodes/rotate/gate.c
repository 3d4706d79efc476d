/* The gate: what is kept, and by which figures. The losses are compared with those of the written model, by the format
 * itself and in loops over whole matrices. */
#include <math.h>

#include "nodes/model/forward.h"
#include "tests/nodes/rotate/place.h"

enum { NONE, RESIDUAL, HEADS, BOTH, SETS };

static int find_matrix(const struct model *m, const char *name)
{
    for (int i = 0; i < m->n_matrices; i++)
        if (strcmp(m->matrices[i].name, name) == 0)
            return i;
    fail_msg("no matrix '%s'", name);
    return -1;
}

/* What rounding a written matrix to nvfp4_a16 loses of its square, by the format itself. Its unit has the largest
 * magnitude of `unit` matrices from `first` on. */
static double lost_square(const struct model *m, int matrix)
{
    const struct matrix *x = &m->matrices[matrix];
    const struct unit *u = &m->units[x->unit];
    const struct format *f = format_find("nvfp4_a16");
    struct rendering r;
    struct err e;
    float amax = 0, *w, *back, *others;
    double lost = 0, whole = 0;
    size_t n = (size_t)(x->n * x->k);
    assert_ok(mem_raw(&w, n, &e) && mem_raw(&back, n, &e) && mem_raw(&others, (size_t)(u->n * u->k), &e), e);
    for (int i = u->first; i < u->first + u->count; i++)
        assert_ok(model_read_matrix(m, i, others, &e) &&
                  format_amax(others, m->matrices[i].n, m->matrices[i].k, &amax, &e), e);
    assert_ok(model_read_matrix(m, matrix, w, &e) && format_rendering_new(&r, f, x->n, x->k, x->dtype, &e) &&
              f->encode(w, amax, &r, &e), e);
    f->decode(&r, 0, x->n, back);
    for (size_t i = 0; i < n; i++) {
        lost += ((double)back[i] - (double)w[i]) * ((double)back[i] - (double)w[i]);
        whole += (double)w[i] * (double)w[i];
    }
    rendering_free(&r);
    mem_free(w);
    mem_free(back);
    mem_free(others);
    return lost / whole;
}

static void what_hurts_is_undone(void **state)
{
    struct place p;
    struct made made = place_small;
    (void)state;
    for (int l = 0; l < made.layers; l++)
        made.weights[l] = MADE_EXACT;
    place_open(&p, &made);
    for (int text = 0; text < 2; text++) {
        struct object *o = place_run(&p, text, SETTINGS("untie=true"));
        struct model *a = place_model(p.source), *b = place_model(p.target);
        uint8_t *heads = place_column(o, "heads/kept", DTYPE_U8, 2);
        uint8_t *residual = place_column(o, "residual/kept", DTYPE_U8, 1);
        double *before = place_column(o, "residual/loss_before", DTYPE_F64, 1);
        double *after = place_column(o, "residual/loss_after", DTYPE_F64, 1);
        assert_true(!residual[0] && !heads[0] && !heads[1]);
        assert_true(before[0] == 0 && after[0] > 0.01);
        for (size_t i = 0; i < a->files->n_tensors; i++)
            assert_true(place_same_tensor(a, b, a->files->tensors[i].name));
        assert_true(place_figure(o, "kl") == 0);
        place_same_file(&p, "config.json");
        mem_free(heads);
        mem_free(residual);
        mem_free(before);
        mem_free(after);
        model_close(a);
        model_close(b);
        object_close(o);
    }
    place_close(&p);
}

static void what_helps_is_kept_layer_by_layer(void **state)
{
    struct place p;
    struct made made = place_small;
    (void)state;
    made.weights[0] = MADE_VALUES;
    made.weights[1] = MADE_EXACT;
    place_open(&p, &made);
    for (int text = 0; text < 2; text++) {
        struct object *o = place_run(&p, text, SETTINGS("residual=false"));
        struct model *a = place_model(p.source), *b = place_model(p.target);
        uint8_t *heads = place_column(o, "heads/kept", DTYPE_U8, 2);
        double *before = place_column(o, "heads/loss_before", DTYPE_F64, 2);
        double *after = place_column(o, "heads/loss_after", DTYPE_F64, 2);
        if (!(heads[0] && !heads[1] && after[0] < 0.9 * before[0] && before[1] == 0 && after[1] > 0))
            fail_msg("text %d: kept %d %d, losses %g %g and %g %g", text, heads[0], heads[1], before[0], after[0],
                     before[1], after[1]);
        assert_false(place_same_tensor(a, b, "model.layers.0.self_attn.v_proj.weight"));
        assert_true(place_same_tensor(a, b, "model.layers.1.self_attn.v_proj.weight"));
        mem_free(heads);
        mem_free(before);
        mem_free(after);
        model_close(a);
        model_close(b);
        object_close(o);
    }
    place_close(&p);
}

/* Here the attention of layer 0 loses half as much, but other layers decide, and the model is no closer to the
 * original. */
static void what_loses_less_but_comes_no_closer_is_undone(void **state)
{
    struct place p;
    struct made made = place_small;
    (void)state;
    made.weights[0] = MADE_BETWEEN;
    made.weights[1] = MADE_EXACT;
    place_open(&p, &made);
    struct object *o = place_run(&p, true, SETTINGS("residual=false"));
    struct model *a = place_model(p.source), *b = place_model(p.target);
    uint8_t *heads = place_column(o, "heads/kept", DTYPE_U8, 2);
    double *before = place_column(o, "heads/loss_before", DTYPE_F64, 2);
    double *after = place_column(o, "heads/loss_after", DTYPE_F64, 2);
    double kl_before = place_figure(o, "kl_rounded_before"), kl_after = place_figure(o, "kl_rounded_after");
    if (!(after[0] < before[0] && !heads[0] && !heads[1] && kl_after >= kl_before && kl_before > 0))
        fail_msg("kept %d %d, losses %g %g, KL %g and %g", heads[0], heads[1], before[0], after[0], kl_before,
                 kl_after);
    for (size_t i = 0; i < a->files->n_tensors; i++)
        assert_true(place_same_tensor(a, b, a->files->tensors[i].name));
    mem_free(heads);
    mem_free(before);
    mem_free(after);
    model_close(a);
    model_close(b);
    object_close(o);
    place_close(&p);
}

/* The losses of weights are those of what was written, and sums of them decide. */
static void losses_are_those_of_what_is_written(void **state)
{
    static const char *const names[] = {"model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.v_proj",
        "model.layers.1.self_attn.o_proj", "model.layers.1.mlp.up_proj", "model.layers.1.mlp.down_proj"};
    struct place p;
    struct made made = place_small;
    (void)state;
    made.weights[0] = made.weights[1] = MADE_BETWEEN;
    made.dtype = DTYPE_BF16;
    place_open(&p, &made);
    struct object *o = place_run(&p, false, SETTINGS("heads=true"));
    struct model *a = place_model(p.source), *b = place_model(p.target);
    double *loss = place_column(o, "gate/weight_loss", DTYPE_F64, (uint64_t)a->n_matrices * SETS);
    double *output = place_column(o, "gate/output_loss", DTYPE_F64, (uint64_t)a->n_matrices * SETS);
    uint8_t *heads = place_column(o, "heads/kept", DTYPE_U8, 2);
    uint8_t *residual = place_column(o, "residual/kept", DTYPE_U8, 1);
    double *before = place_column(o, "residual/loss_before", DTYPE_F64, 1);
    double *after = place_column(o, "residual/loss_after", DTYPE_F64, 1);
    double sum[2] = {0, 0};
    assert_true(residual[0]);
    for (int i = 0; i < a->n_matrices; i++) {
        sum[0] += loss[i * SETS + NONE];
        sum[1] += loss[i * SETS + RESIDUAL];
        for (int s = 0; s < SETS; s++)
            assert_true(isnan(output[i * SETS + s]));
    }
    assert_true(fabs(sum[0] - before[0]) < 1e-12 && fabs(sum[1] - after[0]) < 1e-12);
    for (size_t i = 0; i < COUNT(names); i++) {
        int m = find_matrix(a, names[i]), set = RESIDUAL | (heads[a->units[a->matrices[m].unit].layer] ? HEADS : 0);
        double first = lost_square(a, m), then = lost_square(b, m);
        if (fabs(loss[m * SETS + NONE] - first) > 1e-6 * first || fabs(loss[m * SETS + set] - then) > 1e-6 * then)
            fail_msg("%s: losses %.9g and %.9g, of what was written %.9g and %.9g", names[i], loss[m * SETS + NONE],
                     loss[m * SETS + set], first, then);
    }
    mem_free(loss);
    mem_free(output);
    mem_free(heads);
    mem_free(residual);
    mem_free(before);
    mem_free(after);
    model_close(a);
    model_close(b);
    object_close(o);
    place_close(&p);
}

/* Rows that a unit of the model reads, real positions of all windows: by the observer of a plain pass. */
struct inputs {
    const struct place *p;
    enum unit_role role;
    float *x;
    int64_t n, k;
};

static bool observe(void *context, enum unit_role role, const struct tensor *x, struct err *e)
{
    struct inputs *in = context;
    (void)e;
    if (role != in->role)
        return true;
    in->k = x->shape[1];
    for (int w = 0; w < WINDOWS; w++) {
        int64_t real = in->p->tokens.length[w];
        memcpy(in->x + in->n * in->k, (const float *)x->data + w * WINDOW * in->k,
               (size_t)(real * in->k) * sizeof(float));
        in->n += real;
    }
    return true;
}

/* |x W^T - q(x) W^^T|^2 / |x W^T|^2 of the query matrix (or what else is first in the unit) of layer 0, in f64. */
static double lost_output(const struct place *p, const char *path, const char *format, enum unit_role role)
{
    struct err e;
    struct model *m = place_model(path);
    struct forward f;
    struct queue q = {.k = kernels_cpu(&e), .threads = 1, .device = TENSOR_HOST};
    const struct format *by = format_find(format);
    const struct unit *u = &m->units[role];
    const struct matrix *first = &m->matrices[u->first];
    struct inputs in = {.p = p, .role = role};
    struct tensor x = {0};
    struct unit_weights w[LAYER_UNITS] = {0};
    struct rendering r;
    int64_t shape[2] = {WINDOWS * WINDOW, m->config.hidden};
    size_t n = (size_t)(u->n * u->k);
    float amax = 0, *weights, *back, *quantized, xmax = 0;
    assert_ok(mem_raw(&in.x, (size_t)(WINDOWS * WINDOW * u->k), &e) && mem_raw(&weights, n, &e) &&
              mem_raw(&back, n, &e) && mem_raw(&quantized, (size_t)(WINDOWS * WINDOW * u->k), &e), e);
    assert_ok(forward_open(&f, m, &q, DTYPE_F32, WINDOW, &e) && q.k->tensor_new(&q, &x, DTYPE_F32, 2, shape, &e) &&
              forward_embed(&f, p->tokens.ids, &x, &e), e);
    for (int i = 0; i < LAYER_UNITS; i++)
        assert_ok(weights_stored(&q, m, i, DTYPE_F32, &w[i], &e), e);
    assert_ok(forward_layer(&f, 0, w, &x, observe, &in, &e), e);
    for (int i = u->first + u->count - 1; i >= u->first; i--) /* the first one's weights stay */
        assert_ok(model_read_matrix(m, i, weights, &e) &&
                  format_amax(weights, m->matrices[i].n, m->matrices[i].k, &amax, &e), e);
    assert_ok(format_rendering_new(&r, by, first->n, first->k, first->dtype, &e), e);
    assert_ok(by->encode(weights, amax, &r, &e), e);
    by->decode(&r, 0, first->n, back);
    struct tensor rows = tensor_matrix(in.x, DTYPE_F32, in.n, in.k);
    struct tensor y = tensor_matrix(quantized, DTYPE_F32, in.n, in.k);
    memcpy(quantized, in.x, (size_t)(in.n * in.k) * sizeof *quantized);
    assert_ok(q.k->amax(&q, &rows, &xmax, &e), e);
    if (by->act != ACT_NONE)
        assert_ok(q.k->fake_quantize(&q, &rows, by->act, by->static_input_scale ? 2688.0f / xmax : 0.0f, DTYPE_F32, &y,
                                     &e), e);
    double lost = 0, whole = 0;
    for (int64_t t = 0; t < in.n; t++)
        for (int64_t o = 0; o < first->n; o++) {
            double right = 0, got = 0;
            for (int64_t k = 0; k < in.k; k++) {
                right += (double)in.x[t * in.k + k] * (double)weights[o * in.k + k];
                got += (double)quantized[t * in.k + k] * (double)back[o * in.k + k];
            }
            lost += (right - got) * (right - got);
            whole += right * right;
        }
    rendering_free(&r);
    for (int i = 0; i < LAYER_UNITS; i++)
        unit_weights_free(&q, &w[i]);
    q.k->tensor_free(&q, &x);
    forward_close(&f);
    mem_free(in.x);
    mem_free(weights);
    mem_free(back);
    mem_free(quantized);
    model_close(m);
    return lost / whole;
}

/* Of outputs, too, as a pass over the written model itself finds them: for a format that leaves inputs alone and for
 * one that quantizes them; where norms have weights of their own, and where they have not. */
static void losses_of_outputs_are_those_of_what_is_written(void **state)
{
    static const struct { const char *setting, *format; } formats_tried[] = {{"gate_format=nvfp4_a16", "nvfp4_a16"},
                                                                             {"gate_format=nvfp4", "nvfp4"}};
    static const char *const names[] = {"model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.o_proj",
                                        "model.layers.0.mlp.gate_proj", "model.layers.0.mlp.down_proj"};
    (void)state;
    for (size_t i = 0; i < 2 * COUNT(formats_tried); i++) {
        struct place p;
        struct made made = place_small;
        const char *format = formats_tried[i / 2].format;
        made.layers = 1;
        made.weights[0] = i % 2 ? MADE_RANDOM : MADE_BETWEEN;
        place_open(&p, &made);
        struct object *o = place_run(&p, true, SETTINGS(formats_tried[i / 2].setting));
        struct model *a = place_model(p.source);
        double *loss = place_column(o, "gate/output_loss", DTYPE_F64, (uint64_t)a->n_matrices * SETS);
        object_close(place_run(&p, true, SETTINGS("gate=false")));
        for (int role = 0; role < LAYER_UNITS; role++) {
            int m = find_matrix(a, names[role]);
            double first = lost_output(&p, p.source, format, (enum unit_role)role);
            double then = lost_output(&p, p.target, format, (enum unit_role)role);
            /* Inputs differ in their last bits, and some then round to the other side. */
            double near = i / 2 ? 0.02 : 1e-4;
            if (fabs(loss[m * SETS + NONE] - first) > near * first || fabs(loss[m * SETS + BOTH] - then) > near * then)
                fail_msg("%s in %s: losses %.9g and %.9g, of what was written %.9g and %.9g", names[role], format,
                         loss[m * SETS + NONE], loss[m * SETS + BOTH], first, then);
        }
        mem_free(loss);
        model_close(a);
        object_close(o);
        place_close(&p);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_hurts_is_undone),
        cmocka_unit_test(what_helps_is_kept_layer_by_layer),
        cmocka_unit_test(what_loses_less_but_comes_no_closer_is_undone),
        cmocka_unit_test(losses_are_those_of_what_is_written),
        cmocka_unit_test(losses_of_outputs_are_those_of_what_is_written),
    };
    return cmocka_run_group_tests_name("gate", tests, NULL, NULL);
}
