/* Adjoint probes against what they stand for: the directional derivative of the drawn logits by finite differences, and
 * the KL of perturbed weights as the perturbation is scaled down. Formats are made up here: the plain weights plus a
 * random direction. */
#include <math.h>

#include "nodes/model/adjoint.h"
#include "tests/check.h"
#include "tests/nodes/fake_node.h"

#define WINDOWS 3
#define WINDOW 24
#define BLOCK 8

struct world {
    char folder[256];
    struct model *model;
    struct token_set tokens;
    struct queue q;
    struct forward f;
    double scale;       /* of the direction, in root mean squares of the weights */
    int only;           /* the unit that is perturbed by `load`; -1: all */
    uint32_t block;
};

static void world_open(struct world *w, bool with_head, int threads)
{
    struct err e;
    char source[512], path[600];
    *w = (struct world){.only = -1, .scale = 1e-2, .block = BLOCK};
    check_dir_make(w->folder);
    snprintf(source, sizeof source, "%s/data/models/stories260k", check_root());
    if (with_head) {
        snprintf(path, sizeof path, "%s/untied", w->folder);
        fake_untied(source, path);
        snprintf(source, sizeof source, "%.500s", path);
    }
    assert_ok(model_open_as(&w->model, source, with_head ? HEAD_UNIT : HEAD_AS_STORED, &e), e);
    fake_tokens(&w->tokens, WINDOWS, WINDOW, w->model->config.vocab);
    w->q = (struct queue){.k = kernels_cpu(&e), .threads = threads, .device = TENSOR_HOST};
    assert_ok(forward_open(&w->f, w->model, &w->q, DTYPE_F32, WINDOW, &e), e);
}

static void world_close(struct world *w)
{
    forward_close(&w->f);
    tokens_fini(&w->tokens);
    model_close(w->model);
    check_dir_remove(w->folder);
}

/* The weights of a unit plus scale * (root mean square) * a direction of random numbers. */
static bool perturbed(struct world *w, int unit, int format, double scale, struct unit_weights *out, struct err *e)
{
    const struct unit *u = &w->model->units[unit];
    size_t n = (size_t)(u->n * u->k);
    float *all;
    assert_true(mem_raw(&all, n, e));
    for (int i = 0; i < u->count; i++) {
        const struct matrix *m = &w->model->matrices[u->first + i];
        assert_ok(model_read_matrix(w->model, u->first + i, all + m->row * u->k, e), *e);
    }
    double squares = 0;
    for (size_t i = 0; i < n; i++)
        squares += (double)all[i] * all[i];
    double root = sqrt(squares / (double)n);
    uint64_t seed = 1000 * (uint64_t)unit + (uint64_t)format + 1;
    for (size_t i = 0; i < n; i++) {
        seed = seed * 6364136223846793005u + 1442695040888963407u;
        all[i] += (float)(scale * root * ((double)(seed >> 11) * 0x1p-53 - 0.5) * 3.4641016151377544);
    }
    struct tensor rows = tensor_matrix(all, DTYPE_F32, u->n, u->k);
    *out = (struct unit_weights){.act = ACT_NONE};
    bool ok = w->q.k->panels_new(&w->q, &out->panels, u->n, u->k, DTYPE_F32, e) &&
              w->q.k->pack(&w->q, &rows, 0, &out->panels, e);
    mem_free(all);
    return ok;
}

static bool load(void *context, int unit, int format, struct unit_weights *out, struct err *e)
{
    struct world *w = context;
    return perturbed(w, unit, format, w->scale, out, e);
}

/* Logits of one window, [WINDOW, vocab], with `unit` perturbed by `scale` (unit -1: none). */
static void logits(struct world *w, uint32_t window, int unit, int format, double scale, struct tensor *out)
{
    struct err e;
    const struct kernels *k = w->q.k;
    struct tensor x = {0};
    const struct unit_weights none = {0};
    struct unit_weights head = none;
    assert_ok(k->tensor_new(&w->q, &x, DTYPE_F32, 2, (int64_t[]){WINDOW, w->model->config.hidden}, &e) &&
              k->tensor_new(&w->q, out, DTYPE_F32, 2, (int64_t[]){WINDOW, w->model->config.vocab}, &e), e);
    assert_ok(forward_embed(&w->f, w->tokens.ids + window * WINDOW, &x, &e), e);
    for (int layer = 0; layer < w->model->config.layers; layer++) {
        struct unit_weights weights[LAYER_UNITS] = {0};
        for (int u = 0; u < LAYER_UNITS; u++) {
            int at = layer * LAYER_UNITS + u;
            assert_ok(at == unit ? perturbed(w, at, format, scale, &weights[u], &e)
                                 : weights_stored(&w->q, w->model, at, DTYPE_F32, &weights[u], &e), e);
        }
        assert_ok(forward_layer(&w->f, layer, weights, &x, NULL, NULL, &e), e);
        for (int u = 0; u < LAYER_UNITS; u++)
            unit_weights_free(&w->q, &weights[u]);
    }
    assert_ok(forward_final(&w->f, &x, &x, &e), e);
    if (unit >= 0 && unit == w->model->head_unit)
        assert_ok(perturbed(w, unit, format, scale, &head, &e), e);
    assert_ok(k->matmul(&w->q, &x, head.panels.data ? &head.panels : &w->f.head, out, &e), e);
    unit_weights_free(&w->q, &head);
    k->tensor_free(&w->q, &x);
}

struct result {
    struct adjoint_row rows[WINDOWS];
    int n_units, n_formats, n_probes;
};

static void result_new(struct result *r, const struct world *w, int n_formats, int n_probes)
{
    struct err e;
    *r = (struct result){.n_units = w->model->n_units, .n_formats = n_formats, .n_probes = n_probes};
    size_t cells = (size_t)(w->model->n_units * n_formats);
    for (int i = 0; i < WINDOWS; i++)
        assert_ok(mem_new(&r->rows[i].response, cells * (size_t)n_probes, &e) &&
                  mem_new(&r->rows[i].local, cells, &e) && mem_new(&r->rows[i].square, cells, &e) &&
                  mem_new(&r->rows[i].trace, (size_t)r->n_units, &e), e);
}

static void result_free(struct result *r)
{
    for (int i = 0; i < WINDOWS; i++) {
        mem_free(r->rows[i].response);
        mem_free(r->rows[i].local);
        mem_free(r->rows[i].square);
        mem_free(r->rows[i].trace);
    }
}

static double response(const struct result *r, int window, int unit, int format, int probe)
{
    return r->rows[window].response[(unit * r->n_formats + format) * r->n_probes + probe];
}

/* All windows, `batch` at a time. */
static void run(struct world *w, int n_formats, int n_probes, int n_traces, enum fisher_draw draw, uint32_t batch,
                struct result *out)
{
    struct err e;
    uint8_t *skip;
    static const uint32_t windows[WINDOWS] = {0, 1, 2};
    assert_ok(mem_new(&skip, (size_t)(w->model->n_units * n_formats), &e), e);
    for (int i = 0; i < w->model->n_units * n_formats; i++)
        skip[i] = w->only >= 0 && i / n_formats != w->only;
    struct adjoint_spec s = {.f = &w->f, .tokens = &w->tokens, .n_formats = n_formats, .n_probes = n_probes,
                             .n_traces = n_traces, .draw = draw, .seed = 7, .block = w->block, .skip = skip,
                             .load = load, .context = w};
    result_new(out, w, n_formats, n_probes);
    for (uint32_t at = 0; at < WINDOWS; at += batch) {
        uint32_t n = WINDOWS - at < batch ? WINDOWS - at : batch;
        assert_ok(adjoint_run(&s, windows + at, n, out->rows + at, &e), e);
    }
    mem_free(skip);
}

/* The draw of (probe, window) at the unperturbed logits, as adjoint_run makes it. */
static void draw_at(struct world *w, enum fisher_draw kind, int probe, uint32_t window, struct tensor *v)
{
    struct err e;
    uint64_t seeds[WINDOW];
    logits(w, window, -1, 0, 0, v);
    for (uint32_t t = 0; t < WINDOW; t++)
        seeds[t] = t < tokens_scored(&w->tokens, window) ? adjoint_seed(7, probe, window, t) : 0;
    assert_ok(w->q.k->fisher_draw(&w->q, v, kind, seeds, &e), e);
}

/* Over `n` rows from `first` on. */
static double inner(const struct tensor *a, const struct tensor *b, int64_t first, int64_t n)
{
    double sum = 0;
    const float *x = a->data, *y = b->data;
    for (int64_t i = first * a->shape[1]; i < (first + n) * a->shape[1]; i++)
        sum += (double)x[i] * y[i];
    return sum;
}

/* <v, logits> of every block with the unit moved forth and back, half the difference. */
static void difference(struct world *w, const struct tensor *v, uint32_t window, int unit, double scale, double *out)
{
    for (int i = 0; i < 2; i++) {
        struct tensor z = {0};
        logits(w, window, unit, 0, i ? -scale : scale, &z);
        for (uint32_t b = 0; b < WINDOW / w->block; b++)
            out[b] = i ? (out[b] - inner(v, &z, b * w->block, w->block)) / 2 : inner(v, &z, b * w->block, w->block);
        w->q.k->tensor_free(&w->q, &z);
    }
}

/* The derivative of the same to its scale, times w->scale: by Richardson without the third order. */
static void derivative(struct world *w, const struct tensor *v, uint32_t window, int unit, double *out)
{
    double far[WINDOW], near[WINDOW];
    difference(w, v, window, unit, 4 * w->scale, far);
    difference(w, v, window, unit, 2 * w->scale, near);
    for (uint32_t b = 0; b < WINDOW / w->block; b++)
        out[b] = (8 * near[b] - far[b]) / 12;
}

/* Errors are taken against the root mean square of all units' responses to the draw: one that happens to be near zero
 * is no less exact than the others. */
static void check_derivatives(struct world *w, enum fisher_draw kind)
{
    struct result r;
    run(w, 1, 2, 0, kind, WINDOWS, &r);
    for (int probe = 0; probe < 2; probe++) {
        struct tensor v = {0};
        double errors = 0, squares = 0;
        draw_at(w, kind, probe, 1, &v);
        for (int u = 0; u < w->model->n_units; u++) {
            double blocks[WINDOW], want = 0, got = response(&r, 1, u, 0, probe);
            derivative(w, &v, 1, u, blocks);
            for (uint32_t b = 0; b < WINDOW / w->block; b++)
                want += blocks[b];
            errors += (got - want) * (got - want);
            squares += want * want;
        }
        double error = sqrt(errors / squares);
        print_message("relative error of %d directional derivatives: %.2g\n", w->model->n_units, error);
        assert_true(squares > 0 && error < 1e-3);
        w->q.k->tensor_free(&w->q, &v);
    }
    result_free(&r);
}

static void responses_are_derivatives_of_the_drawn_logits(void **state)
{
    (void)state;
    for (int with_head = 0; with_head < 2; with_head++) {
        struct world w;
        world_open(&w, with_head, 2);
        w.scale = 2e-3;
        check_derivatives(&w, FISHER_SIGN);
        check_derivatives(&w, FISHER_LABEL);
        world_close(&w);
    }
}

/* Of the last layer's last unit, and of the head, what a position's error does is seen at its own logits alone; so
 * their local squares are sums of squares of derivatives over the logits of a block. With one block they are the
 * responses' own squares, of every unit. */
static void local_squares_are_those_of_blocks(void **state)
{
    (void)state;
    static const uint32_t lengths[] = {1, BLOCK, WINDOW};
    for (size_t i = 0; i < COUNT(lengths); i++) {
        struct world w;
        struct result r;
        world_open(&w, true, 2);
        w.scale = 2e-3;
        w.block = lengths[i];
        run(&w, 1, 2, 0, FISHER_SIGN, WINDOWS, &r);
        const int units[] = {w.model->config.layers * LAYER_UNITS - 1, w.model->head_unit};
        for (size_t k = 0; k < COUNT(units); k++) {
            double want = 0, blocks[WINDOW];
            for (int probe = 0; probe < 2; probe++) {
                struct tensor v = {0};
                draw_at(&w, FISHER_SIGN, probe, 1, &v);
                derivative(&w, &v, 1, units[k], blocks);
                for (uint32_t b = 0; b < WINDOW / w.block; b++)
                    want += blocks[b] * blocks[b] / 2;
                w.q.k->tensor_free(&w.q, &v);
            }
            double got = r.rows[1].local[units[k]];
            if (want <= 0 || fabs(got - want) > 5e-3 * want)
                fail_msg("unit %d, blocks of %u: %g, expected %g", units[k], w.block, got, want);
        }
        for (int u = 0; w.block == WINDOW && u < w.model->n_units; u++) {
            double a = response(&r, 2, u, 0, 0), b = response(&r, 2, u, 0, 1), want = (a * a + b * b) / 2;
            assert_true(want > 0 && fabs(r.rows[2].local[u] - want) <= 1e-12 * want);
        }
        result_free(&r);
        world_close(&w);
    }
}

static void batches_and_threads_change_no_bits(void **state)
{
    (void)state;
    struct world w[2];
    struct result r[2];
    for (int i = 0; i < 2; i++) {
        world_open(&w[i], true, i ? 3 : 1);
        run(&w[i], 2, 2, 1, FISHER_SIGN, i ? 1 : WINDOWS, &r[i]);
    }
    size_t cells = (size_t)w[0].model->n_units * 2;
    for (int i = 0; i < WINDOWS; i++) {
        assert_memory_equal(r[0].rows[i].response, r[1].rows[i].response, cells * 2 * sizeof(double));
        assert_memory_equal(r[0].rows[i].local, r[1].rows[i].local, cells * sizeof(double));
        assert_memory_equal(r[0].rows[i].square, r[1].rows[i].square, cells * sizeof(double));
        assert_memory_equal(r[0].rows[i].trace, r[1].rows[i].trace, (size_t)w[0].model->n_units * sizeof(double));
    }
    for (int i = 0; i < 2; i++) {
        result_free(&r[i]);
        world_close(&w[i]);
    }
}

/* KL of the perturbed logits to the unperturbed, summed over the scored positions of all windows; nats. */
static double real_kl(struct world *w, int unit, double scale)
{
    double sum = 0;
    for (uint32_t window = 0; window < WINDOWS; window++) {
        struct tensor z[2] = {0};
        logits(w, window, -1, 0, 0, &z[0]);
        logits(w, window, unit, 0, scale, &z[1]);
        for (uint32_t t = 0; t < tokens_scored(&w->tokens, window); t++) {
            const int vocab = w->model->config.vocab;
            const float *p = (float *)z[0].data + (size_t)t * (size_t)vocab;
            const float *q = (float *)z[1].data + (size_t)t * (size_t)vocab;
            double top = -INFINITY, a = 0, b = 0, mean = 0;
            for (int i = 0; i < vocab; i++)
                top = p[i] > top ? p[i] : top;
            for (int i = 0; i < vocab; i++) {
                a += exp(p[i] - top);
                b += exp(q[i] - top);
            }
            for (int i = 0; i < vocab; i++)
                mean += exp(p[i] - top) / a * ((double)p[i] - q[i]);
            sum += mean - log(a) + log(b);
        }
        w->q.k->tensor_free(&w->q, &z[0]);
        w->q.k->tensor_free(&w->q, &z[1]);
    }
    return sum;
}

#define DRAWS 256

/* Half the mean square of the responses against the measured KL, at ever smaller scales. The estimate's own error is
 * about sqrt(2 / (draws * windows)) = 5 %; the draws are the same at all scales, so how the ratio changes is known far
 * better: it must come to a limit. */
static void a_cost_is_the_limit_of_the_measured_kl(void **state)
{
    (void)state;
    static const double scales[] = {0.3, 0.03};
    struct world w;
    world_open(&w, false, 2);
    for (w.only = 1; w.only < w.model->n_units; w.only += 9) {
        double ratio[COUNT(scales)];
        for (size_t i = 0; i < COUNT(scales); i++) {
            struct result r;
            double squares = 0;
            w.scale = scales[i];
            run(&w, 1, DRAWS, 0, FISHER_SIGN, WINDOWS, &r);
            for (int window = 0; window < WINDOWS; window++)
                for (int k = 0; k < DRAWS; k++)
                    squares += response(&r, window, w.only, 0, k) * response(&r, window, w.only, 0, k);
            ratio[i] = 0.5 * squares / DRAWS / real_kl(&w, w.only, scales[i]);
            result_free(&r);
        }
        print_message("unit %d: predicted / measured KL at scales 0.3 and 0.03: %.3f %.3f\n", w.only, ratio[0],
                      ratio[1]);
        assert_true(fabs(ratio[1] - 1) < 0.2);
        assert_true(fabs(ratio[1] - ratio[0]) < 0.05);
    }
    world_close(&w);
}

/* trace F = sum over all weights of E[(dL/dw)^2], the squares of g x^T summed over a window:
 * for a direction of independent numbers of variance s^2, E[response^2] = s^2 trace. */
static void a_trace_is_what_random_directions_find(void **state)
{
    (void)state;
    enum { DIRECTIONS = 40 };
    struct world w;
    struct result r;
    world_open(&w, true, 2);
    w.scale = 1e-2;
    run(&w, DIRECTIONS, 1, 1, FISHER_SIGN, WINDOWS, &r);
    double logs = 0;
    for (int u = 0; u < w.model->n_units; u++) {
        double squares = 0, trace = 0, weights = 0;
        const struct unit *unit = &w.model->units[u];
        for (int i = 0; i < unit->count; i++) {
            const struct matrix *m = &w.model->matrices[unit->first + i];
            float *values;
            struct err e;
            assert_ok(mem_raw(&values, (size_t)(m->n * m->k), &e) &&
                      model_read_matrix(w.model, unit->first + i, values, &e), e);
            for (int64_t at = 0; at < m->n * m->k; at++)
                weights += (double)values[at] * values[at];
            mem_free(values);
        }
        double variance = w.scale * w.scale * weights / (double)unit->parameters;
        for (int window = 0; window < WINDOWS; window++) {
            trace += r.rows[window].trace[u];
            for (int d = 0; d < DIRECTIONS; d++)
                squares += response(&r, window, u, d, 0) * response(&r, window, u, d, 0) / DIRECTIONS;
        }
        double ratio = squares / variance / trace; /* chi squared of DIRECTIONS, a little more spread over windows */
        logs += log(ratio);
        assert_true(ratio > 0.4 && ratio < 2.5);
    }
    print_message("random directions / trace, mean over units: %.3f\n", exp(logs / w.model->n_units));
    assert_true(fabs(logs / w.model->n_units) < 0.15);
    result_free(&r);
    world_close(&w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(responses_are_derivatives_of_the_drawn_logits),
        cmocka_unit_test(local_squares_are_those_of_blocks),
        cmocka_unit_test(batches_and_threads_change_no_bits),
        cmocka_unit_test(a_cost_is_the_limit_of_the_measured_kl),
        cmocka_unit_test(a_trace_is_what_random_directions_find),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
