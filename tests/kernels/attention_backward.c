/* The gradient of attention: that of differences on small shapes, of a naive f64 version on all, with equal bits in all
 * variants, on any number of threads, and of a sequence on its own. */
#include "tests/kernels/gradient.h"

static int64_t width_of(const struct attention_shape *s)
{
    return (int64_t)(s->heads + 2 * s->kv_heads) * s->head_dim;
}

struct sequences {
    struct attention_shape s;
    int64_t n;
};

static int64_t rows_of(const struct sequences *c) { return c->n * c->s.window; }

/* ---------------------------------------------------------------------------------------------------- naive, in f64 */

/* Probabilities of query `row` of a sequence, head h. */
static void probabilities(const struct attention_shape *s, const double *x, int64_t row, int64_t h, double *p)
{
    int64_t d = s->head_dim, width = width_of(s), kv = h / (s->heads / s->kv_heads);
    double most = -INFINITY, sum = 0.0;
    for (int64_t j = 0; j <= row; j++) {
        p[j] = 0.0;
        for (int64_t c = 0; c < d; c++)
            p[j] += x[row * width + h * d + c] * x[j * width + (s->heads + kv) * d + c];
        p[j] /= sqrt((double)d);
        most = fmax(most, p[j]);
    }
    for (int64_t j = 0; j <= row; j++)
        sum += p[j] = exp(p[j] - most);
    for (int64_t j = 0; j <= row; j++)
        p[j] /= sum;
}

static void attention_forward(const void *context, const double *x, double *y)
{
    const struct sequences *c = context;
    const struct attention_shape *s = &c->s;
    int64_t d = s->head_dim, width = width_of(s);
    double *p = malloc((size_t)s->window * sizeof *p);
    assert_non_null(p);
    for (int64_t i = 0; i < rows_of(c) * s->heads; i++) {
        int64_t row = i / s->heads % s->window, h = i % s->heads, kv = h / (s->heads / s->kv_heads);
        const double *seq = x + i / s->heads / s->window * s->window * width;
        probabilities(s, seq, row, h, p);
        for (int64_t ch = 0; ch < d; ch++) {
            y[i * d + ch] = 0.0;
            for (int64_t j = 0; j <= row; j++)
                y[i * d + ch] += p[j] * seq[j * width + (s->heads + s->kv_heads + kv) * d + ch];
        }
    }
    free(p);
}

/* One query of one head: adds to dx. */
static void backward_row(const struct attention_shape *s, const double *x, const float *dy, int64_t row, int64_t h,
                         double *p, double *dp, double *dx)
{
    int64_t d = s->head_dim, width = width_of(s), kv = h / (s->heads / s->kv_heads);
    int64_t k = (s->heads + kv) * d, v = k + s->kv_heads * d;
    double dot = 0.0;
    probabilities(s, x, row, h, p);
    for (int64_t j = 0; j <= row; j++) {
        dp[j] = 0.0;
        for (int64_t c = 0; c < d; c++) {
            dp[j] += (double)dy[c] * x[j * width + v + c];
            dx[j * width + v + c] += p[j] * (double)dy[c];
        }
        dot += p[j] * dp[j];
    }
    for (int64_t j = 0; j <= row; j++) {
        double ds = p[j] * (dp[j] - dot) / sqrt((double)d);
        for (int64_t c = 0; c < d; c++) {
            dx[row * width + h * d + c] += ds * x[j * width + k + c];
            dx[j * width + k + c] += ds * x[row * width + h * d + c];
        }
    }
}

/* To be freed. */
static double *naive_backward(const struct sequences *c, const float *qkv, const float *dout)
{
    const struct attention_shape *s = &c->s;
    int64_t n = rows_of(c) * width_of(s);
    double *x = gradient_wide(qkv, n), *dx = gradient_wide(qkv, n);
    double *p = malloc((size_t)s->window * sizeof *p), *dp = malloc((size_t)s->window * sizeof *dp);
    assert_true(p && dp);
    memset(dx, 0, (size_t)n * sizeof *dx);
    for (int64_t i = 0; i < rows_of(c) * s->heads; i++) {
        int64_t first = i / s->heads / s->window * s->window * width_of(s);
        backward_row(s, x + first, dout + i * s->head_dim, i / s->heads % s->window, i % s->heads, p, dp, dx + first);
    }
    free(x), free(p), free(dp);
    return dx;
}

/* ------------------------------------------------------------------------------------------------------- the kernel */

static void backward(const struct kernels *k, int threads, const struct sequences *c, const float *qkv,
                     const float *dout, float *dqkv)
{
    struct err e = {0};
    struct queue q = variant_queue(k, threads);
    int64_t rows = rows_of(c), out_width = (int64_t)c->s.heads * c->s.head_dim;
    float *out = numbers(rows * out_width, ZEROS, 1);
    struct tensor x = tensor_matrix((void *)(uintptr_t)qkv, DTYPE_F32, rows, width_of(&c->s));
    struct tensor y = tensor_matrix(out, DTYPE_F32, rows, out_width);
    struct tensor dy = tensor_matrix((void *)(uintptr_t)dout, DTYPE_F32, rows, out_width);
    struct tensor dx = tensor_matrix(dqkv, DTYPE_F32, rows, width_of(&c->s));
    assert_ok(k->attention(&q, &x, &c->s, &y, &e), e);
    assert_ok(k->attention_backward(&q, &x, &c->s, &y, &dy, &dx, &e), e);
    free(out);
}

static const char *name_of(const char *variant, const struct sequences *c)
{
    static char name[128];
    return CASE(name, "%s: %lld sequences of %d, heads %d over %d of %d", variant, (long long)c->n, c->s.window,
                c->s.heads, c->s.kv_heads, c->s.head_dim);
}

/* `differences`: the shape is small enough for them. */
static void backward_case(struct sequences c, bool differences)
{
    const struct kernels *k[8];
    size_t n_variants = variants(k);
    int64_t n = rows_of(&c) * width_of(&c.s), n_out = rows_of(&c) * c.s.heads * c.s.head_dim;
    float *qkv = numbers(n, RANDOM, 1), *dout = numbers(n_out, RANDOM, 2);
    float *want = numbers(n, RANDOM, 3), *got = numbers(n, RANDOM, 4);
    for (int64_t i = 0; i < n; i++)
        qkv[i] *= 2.0f; /* scores that tell keys apart */
    double *naive = naive_backward(&c, qkv, dout);
    if (differences) {
        double *gradient = gradient_differences(attention_forward, &c, qkv, n, dout, n_out);
        for (int64_t i = 0; i < n; i++)
            assert_true(fabs(gradient[i] - naive[i]) < 1e-8);
        free(gradient);
    }
    backward(k[0], 1, &c, qkv, dout, want);
    assert_gradient(naive, want, n, 4e-6, name_of("plain", &c));
    for (size_t v = 1; v < n_variants; v++) {
        backward(k[v], 1 + (int)v % 3, &c, qkv, dout, got);
        assert_bits(want, got, n, name_of(k[v]->name, &c));
    }
    free(qkv), free(dout), free(want), free(got), free(naive);
}

static void every_head_dim_and_window(void **state)
{
    (void)state;
    for (int d = 1; d <= 33; d++)
        backward_case((struct sequences){{2, 1, d, 1 + d % 7}, 2}, d < 12);
    for (int window = 1; window <= 70; window++)
        backward_case((struct sequences){{3, 3, 1 + window % 20, window}, 2}, window < 8);
    backward_case((struct sequences){{6, 2, 4, 5}, 2}, true);
}

static void shapes_of_models_and_odd_ones(void **state)
{
    (void)state;
    static const struct sequences shapes[] = {
        {{9, 3, 64, 256}, 1}, /* SmolLM2 */
        {{8, 4, 8, 300}, 1},  /* stories260K's heads */
        {{20, 1, 8, 70}, 1},  {{2, 2, 33, 130}, 2}, {{1, 1, 130, 65}, 2}, {{1, 1, 1024, 9}, 1},
    };
    for (size_t i = 0; i < COUNT(shapes); i++)
        backward_case(shapes[i], false);
}

/* One score far above the others: nothing flows to q and k, and all of dout to that key's value. */
static void a_dominant_key_takes_all(void **state)
{
    (void)state;
    const struct kernels *k[8];
    size_t n_variants = variants(k);
    const struct sequences c = {{1, 1, 4, 90}, 1};
    float *qkv = numbers(90 * 12, RANDOM, 9), *dout = numbers(90 * 4, INTEGERS, 3), got[90 * 12];
    for (int t = 0; t < 90; t++) {
        qkv[t * 12] = 1000.0f;
        for (int i = 1; i < 4; i++)
            qkv[t * 12 + i] = 0.0f;
        qkv[t * 12 + 4] = t == 0 ? 8.0f : 0.0f;
    }
    for (size_t v = 0; v < n_variants; v++) {
        backward(k[v], 1, &c, qkv, dout, got);
        for (int t = 0; t < 90; t++)
            for (int i = 0; i < 4; i++) {
                float sum = 0.0f;
                for (int j = 0; j < 90 && t == 0; j++)
                    sum += dout[j * 4 + i];
                assert_true(fabsf(got[t * 12 + i]) < 1e-3f && fabsf(got[t * 12 + 4 + i]) < 1e-1f);
                assert_true(fabsf(got[t * 12 + 8 + i] - sum) < 1e-4f);
            }
    }
    free(qkv), free(dout);
}

/* A sequence has the same bits alone or among others, on any number of threads; a query's gradient also when later rows
 * are missing. */
static void a_sequence_depends_on_itself_only(void **state)
{
    (void)state;
    const struct kernels *k[8];
    size_t n_variants = variants(k);
    const struct sequences c = {{4, 2, 20, 110}, 3};
    int64_t width = width_of(&c.s), n = rows_of(&c) * width, one = 110 * width, out_one = 110 * 80;
    float *qkv = numbers(n, RANDOM, 1), *dout = numbers(3 * out_one, RANDOM, 2);
    float *want = numbers(n, RANDOM, 3), *got = numbers(n, RANDOM, 4);
    for (size_t v = 0; v < n_variants; v++) {
        backward(k[v], 1, &c, qkv, dout, want);
        for (int threads = 2; threads <= 5; threads++) {
            backward(k[v], threads, &c, qkv, dout, got);
            assert_bits(want, got, n, k[v]->name);
        }
        backward(k[v], 1, &(struct sequences){c.s, 1}, qkv + one, dout + out_one, got);
        assert_bits(want + one, got, one, "alone");
        for (int window = 1; window < 110; window += 9) {
            backward(k[v], 1, &(struct sequences){{4, 2, 20, window}, 1}, qkv + one, dout + out_one, got);
            for (int64_t t = 0; t < window; t++)
                assert_bits(want + one + t * width, got + t * width, 80, "queries of a shorter window");
        }
    }
    free(qkv), free(dout), free(want), free(got);
}

static void no_memory_and_wrong_shapes_are_reported(void **state)
{
    (void)state;
    const struct kernels *k = kernels_find("plain");
    struct queue q = variant_queue(k, 1);
    float x[64] = {0}, y[64] = {0}, z[64];
    struct err e;
    struct tensor qkv = tensor_matrix(x, DTYPE_F32, 4, 12), out = tensor_matrix(y, DTYPE_F32, 4, 4);
    struct tensor dqkv = tensor_matrix(z, DTYPE_F32, 4, 12);
    const struct attention_shape s = {1, 1, 4, 4};
    assert_err(k->attention_backward(&q, &qkv, &(struct attention_shape){1, 1, 4, 3}, &out, &out, &dqkv, &e), e,
               ERR_BUG, "4 rows, expected a multiple of the window 3");
    assert_err(k->attention_backward(&q, &qkv, &s, &qkv, &out, &dqkv, &e), e, ERR_BUG, "'out'");
    assert_err(k->attention_backward(&q, &qkv, &s, &out, &qkv, &dqkv, &e), e, ERR_BUG, "attention_backward: 'dout'");
    assert_err(k->attention_backward(&q, &qkv, &s, &out, &out, &out, &e), e, ERR_BUG, "attention_backward: 'dqkv'");
    mem_fail_after(1, false);
    assert_err(k->attention_backward(&q, &qkv, &s, &out, &out, &dqkv, &e), e, ERR_RESOURCE, "");
    mem_fail_after(0, false);
    struct tensor none = tensor_matrix(x, DTYPE_F32, 0, 12), no_out = tensor_matrix(y, DTYPE_F32, 0, 4);
    assert_ok(k->attention_backward(&q, &none, &s, &no_out, &no_out, &none, &e), e);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_head_dim_and_window),
        cmocka_unit_test(shapes_of_models_and_odd_ones),
        cmocka_unit_test(a_dominant_key_takes_all),
        cmocka_unit_test(a_sequence_depends_on_itself_only),
        cmocka_unit_test(no_memory_and_wrong_shapes_are_reported),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
