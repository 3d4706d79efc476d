/* The forward pass against `transformers`: golden logits made by tools/golden_logits.py. And RoPE against the check
 * values of the architecture notes. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "nodes/model/forward.h"
#include "nodes/model/rope.h"
#include "tests/check.h"

/* Share of the logits' range by which a logit may differ. f32 rounding gives 8.3e-7 at most in these models. */
#define TOLERANCE 3e-6

struct golden {
    int32_t windows, window, columns;
    float range;
    int32_t *ids, *column;
    float *logits, *lse;
};

static void *read_block(FILE *f, size_t bytes)
{
    void *p = malloc(bytes);
    assert_non_null(p);
    assert_int_equal(fread(p, 1, bytes, f), bytes);
    return p;
}

static struct golden read_golden(const char *path)
{
    struct golden g;
    FILE *f = fopen(path, "rb");
    assert_non_null(f);
    assert_int_equal(fread(&g, 16, 1, f), 1);
    size_t positions = (size_t)g.windows * (size_t)g.window;
    g.ids = read_block(f, positions * 4);
    g.column = read_block(f, (size_t)g.columns * 4);
    g.logits = read_block(f, positions * (size_t)g.columns * 4);
    g.lse = read_block(f, positions * 4);
    fclose(f);
    return g;
}

static void free_golden(struct golden *g)
{
    free(g->ids);
    free(g->column);
    free(g->logits);
    free(g->lse);
}

static void compare_window(struct forward *f, const struct golden *g, int w)
{
    const struct kernels *k = f->q->k;
    int64_t vocab = f->model->config.vocab, states[2] = {g->window, f->model->config.hidden};
    int64_t shape[2] = {g->window, vocab};
    struct tensor x = {0}, y = {0};
    struct err e;
    assert_ok(k->tensor_new(f->q, &x, DTYPE_F32, 2, states, &e), e);
    assert_ok(k->tensor_new(f->q, &y, DTYPE_F32, 2, shape, &e), e);
    assert_ok(forward_embed(f, g->ids + w * g->window, &x, &e), e);
    for (int layer = 0; layer < f->model->config.layers; layer++) {
        struct unit_weights weights[LAYER_UNITS] = {0};
        for (int u = 0; u < LAYER_UNITS; u++)
            assert_ok(weights_stored(f->q, f->model, layer * LAYER_UNITS + u, f->mode, &weights[u], &e), e);
        assert_ok(forward_layer(f, layer, weights, &x, NULL, NULL, &e), e);
        for (int u = 0; u < LAYER_UNITS; u++)
            k->tensor_free(f->q, &weights[u].panels);
    }
    assert_ok(forward_final(f, &x, &x, &e), e);
    assert_ok(k->matmul(f->q, &x, &f->head, &y, &e), e);
    const float *logits = y.data;
    for (int t = 0; t < g->window; t++) {
        const float *row = logits + (int64_t)t * vocab, *want = g->logits + ((int64_t)w * g->window + t) * g->columns;
        double sum = 0;
        for (int64_t i = 0; i < vocab; i++)
            sum += exp((double)row[i] - row[0]);
        for (int i = 0; i < g->columns; i++)
            if (!(fabsf(row[g->column[i]] - want[i]) <= TOLERANCE * g->range))
                fail_msg("%s: window %d, position %d, token %d: logit %.7g, transformers has %.7g", f->model->path, w,
                         t, g->column[i], row[g->column[i]], want[i]);
        double lse = row[0] + log(sum), want_lse = g->lse[w * g->window + t];
        if (!(fabs(lse - want_lse) <= TOLERANCE * g->range))
            fail_msg("%s: window %d, position %d: log-sum-exp %.7g, transformers has %.7g", f->model->path, w, t, lse,
                     want_lse);
    }
    k->tensor_free(f->q, &x);
    k->tensor_free(f->q, &y);
}

/* The model in `folder` against the golden file `golden`, both below the root. */
static void compare_model(const char *folder, const char *golden)
{
    char path[1024];
    struct err e;
    struct model *m;
    struct forward f;
    struct queue q = {.k = kernels_cpu(&e), .threads = 2, .device = TENSOR_HOST};
    assert_non_null(q.k);
    snprintf(path, sizeof path, "%s/%s", check_root(), golden);
    struct golden g = read_golden(path);
    snprintf(path, sizeof path, "%s/%s", check_root(), folder);
    assert_ok(model_open(&m, path, &e), e);
    assert_ok(forward_open(&f, m, &q, DTYPE_F32, g.window, &e), e);
    for (int w = 0; w < g.windows; w++)
        compare_window(&f, &g, w);
    forward_close(&f);
    model_close(m);
    free_golden(&g);
}

static void babyllama_logits_are_those_of_transformers(void **state)
{
    (void)state;
    compare_model("data/models/babyllama-1m", "tests/golden/logits/babyllama-1m.bin");
}

static void stories260k_logits_are_those_of_transformers(void **state)
{
    (void)state;
    compare_model("data/models/stories260k", "tests/golden/logits/stories260k.bin");
}

/* What the models that ship do not have, each in a tiny model of random weights. */
static void tiny_logits_are_those_of_transformers(void **state)
{
    static const char *const names[] = {"untied", "rope_llama3", "rope_linear", "biases", "head_dim", "mistral",
                                        "float16", "float32", "sharded"};
    (void)state;
    for (size_t i = 0; i < COUNT(names); i++) {
        char folder[64], golden[96];
        snprintf(folder, sizeof folder, "tests/golden/logits/tiny/%s", names[i]);
        snprintf(golden, sizeof golden, "%s/logits.bin", folder);
        compare_model(folder, golden);
    }
}

/* rd = 128, theta 5e5, factor 8, low 1, high 4, 8192 positions: check values of the architecture notes. */
static void llama3_frequencies_have_the_known_values(void **state)
{
    static const struct { int i; double value; } cases[] = {
        {28, 3.2114461e-3}, {30, 1.3718937e-3}, {35, 9.556213e-5}, {63, 3.0689259e-7}};
    const struct model_config c = {.head_dim = 128, .theta = 5e5, .rope = ROPE_LLAMA3, .rope_factor = 8, .rope_low = 1,
        .rope_high = 4, .rope_original = 8192};
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        double got = rope_frequency(&c, cases[i].i);
        if (!(fabs(got / cases[i].value - 1) < 1e-5))
            fail_msg("frequency %d: %.8g, expected %.8g", cases[i].i, got, cases[i].value);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(babyllama_logits_are_those_of_transformers),
        cmocka_unit_test(stories260k_logits_are_those_of_transformers),
        cmocka_unit_test(tiny_logits_are_those_of_transformers),
        cmocka_unit_test(llama3_frequencies_have_the_known_values),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
