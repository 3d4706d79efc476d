/* The gradients of RMS norm, SwiGLU and rotary positions, and subtraction: they agree with differences of a function in
 * f64, and have equal bits in all variants, at every length, and in a row on its own. */
#include "tests/kernels/gradient.h"

/* Of the largest element: far below the 1e-3 that a search needs. */
static const double bound = 2e-6;

/* --------------------------------------------------------------------------------------------------------- RMS norm */

struct norm {
    const float *w;
    int64_t rows, h;
    double eps;
};

static void norm_forward(const void *context, const double *x, double *y)
{
    const struct norm *c = context;
    for (int64_t t = 0; t < c->rows; t++) {
        double sum = 0.0;
        for (int64_t i = 0; i < c->h; i++)
            sum += x[t * c->h + i] * x[t * c->h + i];
        double s = 1.0 / sqrt(sum / (double)c->h + c->eps);
        for (int64_t i = 0; i < c->h; i++)
            y[t * c->h + i] = (double)c->w[i] * x[t * c->h + i] * s;
    }
}

static void norm_backward(const struct kernels *k, int threads, const struct norm *c, const float *x, const float *dy,
                          float *dx)
{
    struct err e = {0};
    struct queue q = variant_queue(k, threads);
    struct tensor tx = tensor_matrix((void *)(uintptr_t)x, DTYPE_F32, c->rows, c->h);
    struct tensor td = tensor_matrix((void *)(uintptr_t)dy, DTYPE_F32, c->rows, c->h);
    struct tensor tw = tensor_vector((void *)(uintptr_t)c->w, DTYPE_F32, c->h);
    struct tensor out = tensor_matrix(dx, DTYPE_F32, c->rows, c->h);
    assert_ok(k->rmsnorm_backward(&q, &tx, &tw, (float)c->eps, &td, &out, &e), e);
}

static void norm_case(int64_t rows, int64_t h)
{
    const struct kernels *k[8];
    char name[96];
    size_t n_variants = variants(k);
    int64_t n = rows * h;
    float *x = numbers(n, RANDOM, 1), *dy = numbers(n, RANDOM, 2), *w = numbers(h, RANDOM, 3);
    float *before = numbers(n, RANDOM, 4), *want = copy_of(before, n);
    struct norm c = {w, rows, h, 1e-3};
    norm_backward(k[0], 1, &c, x, dy, want);
    if (n < 1000) {
        double *gradient = gradient_differences(norm_forward, &c, x, n, dy, n);
        for (int64_t i = 0; i < n; i++)
            gradient[i] += (double)before[i]; /* it accumulates */
        assert_gradient(gradient, want, n, bound, CASE(name, "rmsnorm, %lld x %lld", (long long)rows, (long long)h));
        free(gradient);
    }
    for (size_t v = 0; v < n_variants; v++)
        for (int threads = 1; threads <= 3; threads++) {
            float *got = copy_of(before, n);
            norm_backward(k[v], threads, &c, x, dy, got);
            assert_bits(want, got, n, CASE(name, "%s: %lld x %lld", k[v]->name, (long long)rows, (long long)h));
            free(got);
        }
    float *alone = copy_of(before + n - h, h);
    norm_backward(k[n_variants - 1], 1, &(struct norm){w, 1, h, 1e-3}, x + n - h, dy + n - h, alone);
    assert_bits(want + n - h, alone, h, "rmsnorm, the last row on its own");
    free(x), free(dy), free(w), free(before), free(want), free(alone);
}

static void rmsnorm_has_the_gradient_of_differences(void **state)
{
    (void)state;
    for (int64_t h = 1; h <= 33; h++)
        norm_case(1 + h % 4, h);
    norm_case(2, 200);
    norm_case(37, 576);
    norm_case(3, 20000); /* large enough for several threads */
}

/* ----------------------------------------------------------------------------------------------------------- SwiGLU */

static void swiglu_forward(const void *context, const double *x, double *y)
{
    const int64_t *shape = context; /* rows, columns of y */
    for (int64_t i = 0; i < shape[0] * shape[1]; i++) {
        const double *gate = x + i / shape[1] * 2 * shape[1] + i % shape[1];
        y[i] = gate[0] / (1.0 + exp(-gate[0])) * gate[shape[1]];
    }
}

static void swiglu_backward(const struct kernels *k, int threads, int64_t rows, int64_t n, const float *gu,
                            const float *dy, float *dgu)
{
    struct err e = {0};
    struct queue q = variant_queue(k, threads);
    struct tensor in = tensor_matrix((void *)(uintptr_t)gu, DTYPE_F32, rows, 2 * n);
    struct tensor d = tensor_matrix((void *)(uintptr_t)dy, DTYPE_F32, rows, n);
    struct tensor out = tensor_matrix(dgu, DTYPE_F32, rows, 2 * n);
    assert_ok(k->swiglu_backward(&q, &in, &d, &out, &e), e);
}

static void swiglu_case(int64_t rows, int64_t n, float factor)
{
    const struct kernels *k[8];
    char name[96];
    size_t n_variants = variants(k);
    int64_t both = rows * 2 * n;
    float *gu = numbers(both, RANDOM, 1), *dy = numbers(rows * n, RANDOM, 2), *want = numbers(both, RANDOM, 3);
    for (int64_t i = 0; i < both; i++)
        gu[i] *= factor;
    swiglu_backward(k[0], 1, rows, n, gu, dy, want);
    if (both < 1000) {
        double *gradient = gradient_differences(swiglu_forward, (int64_t[]){rows, n}, gu, both, dy, rows * n);
        assert_gradient(gradient, want, both, bound, CASE(name, "swiglu, %lld x %lld, times %g", (long long)rows,
                                                          (long long)n, (double)factor));
        free(gradient);
    }
    for (size_t v = 0; v < n_variants; v++)
        for (int threads = 1; threads <= 3; threads++) {
            float *got = copy_of(gu, both); /* dgu may be gu */
            swiglu_backward(k[v], threads, rows, n, got, dy, got);
            assert_bits(want, got, both, CASE(name, "%s: %lld x %lld", k[v]->name, (long long)rows, (long long)n));
            free(got);
        }
    float *alone = numbers(2 * n, RANDOM, 4);
    swiglu_backward(k[n_variants - 1], 1, 1, n, gu + both - 2 * n, dy + (rows - 1) * n, alone);
    assert_bits(want + both - 2 * n, alone, 2 * n, "swiglu, the last row on its own");
    free(gu), free(dy), free(want), free(alone);
}

static void swiglu_has_the_gradient_of_differences(void **state)
{
    (void)state;
    for (int64_t n = 1; n <= 33; n++)
        swiglu_case(1 + n % 4, n, 6.0f);
    swiglu_case(3, 100, 30.0f);
    swiglu_case(29, 1536, 3.0f); /* large enough for several threads */
}

/* Where the gate is far from zero: silu' is 0 or 1, and nothing overflows. */
static void swiglu_at_both_ends(void **state)
{
    (void)state;
    const struct kernels *k[8];
    size_t n_variants = variants(k);
    const float gu[8] = {-1e30f, -200.0f, 200.0f, 1e30f, 3.0f, 3.0f, 3.0f, 3.0f}, dy[4] = {2.0f, 2.0f, 2.0f, 2.0f};
    const float want[8] = {0.0f, 0.0f, 6.0f, 6.0f, 0.0f, 0.0f, 400.0f, 2e30f};
    for (size_t v = 0; v < n_variants; v++) {
        float got[8];
        swiglu_backward(k[v], 1, 1, 4, gu, dy, got);
        for (int i = 0; i < 8; i++)
            if (!(got[i] == want[i]))
                fail_msg("%s: element %d is %.9g, expected %.9g", k[v]->name, i, (double)got[i], (double)want[i]);
    }
}

/* ------------------------------------------------------------------------------------------------------------- rope */

struct rotation {
    struct attention_shape s;
    int64_t rows;
    const float *cosine, *sine;
};

static void rope_forward(const void *context, const double *x, double *y)
{
    const struct rotation *c = context;
    int64_t d = c->s.head_dim, half = d / 2, heads = c->s.heads + 2 * c->s.kv_heads;
    for (int64_t i = 0; i < c->rows * heads * d; i++) {
        int64_t channel = i % d, at = i / (heads * d) % c->s.window * half + channel % half;
        double other = channel < half ? -x[i + half] : x[i - half];
        bool rotated = i / d % heads < c->s.heads + c->s.kv_heads;
        y[i] = rotated ? x[i] * (double)c->cosine[at] + other * (double)c->sine[at] : x[i];
    }
}

/* Any numbers as tables, so with a factor too. */
static void rope_with_the_sine_negated_is_its_transpose(void **state)
{
    (void)state;
    const struct kernels *k[8];
    size_t n_variants = variants(k);
    for (int d = 2; d <= 36; d += 2) {
        struct rotation c = {.s = {3, 1, d, 3}, .rows = 6};
        int64_t width = 5 * d, n = c.rows * width, table = 3 * d / 2;
        float *x = numbers(n, RANDOM, 1), *dy = numbers(n, RANDOM, 2), *negated = numbers(table, RANDOM, 3);
        float *cosine = numbers(table, RANDOM, 4), *sine = copy_of(negated, table);
        for (int64_t i = 0; i < table; i++)
            negated[i] = -sine[i];
        c.cosine = cosine, c.sine = sine;
        double *gradient = gradient_differences(rope_forward, &c, x, n, dy, n);
        for (size_t v = 0; v < n_variants; v++) {
            struct err e = {0};
            struct queue q = variant_queue(k[v], 1);
            float *got = copy_of(dy, n);
            struct tensor t = tensor_matrix(got, DTYPE_F32, c.rows, width);
            struct tensor tc = tensor_matrix(cosine, DTYPE_F32, 3, d / 2);
            struct tensor ts = tensor_matrix(negated, DTYPE_F32, 3, d / 2);
            assert_ok(k[v]->rope(&q, &t, &c.s, &tc, &ts, &e), e);
            assert_gradient(gradient, got, n, bound, k[v]->name);
            free(got);
        }
        free(x), free(dy), free(negated), free(cosine), free(sine), free(gradient);
    }
}

/* ------------------------------------------------------------------------------------------------------ differences */

static void subtract_case(int64_t rows, int64_t n)
{
    const struct kernels *k[8];
    size_t n_variants = variants(k);
    struct err e = {0};
    int64_t count = rows * n;
    float *a = numbers(count, MIXED, 1), *b = numbers(count, MIXED, 2), *want = copy_of(a, count);
    for (int64_t i = 0; i < count; i++)
        want[i] = a[i] - b[i];
    for (size_t v = 0; v < n_variants; v++)
        for (int place = 0; place < 3; place++) { /* d apart, d is a, d is b */
            struct queue q = variant_queue(k[v], 1 + place);
            float *x = copy_of(a, count), *y = copy_of(b, count), *z = copy_of(a, count);
            struct tensor ta = tensor_matrix(x, DTYPE_F32, rows, n), tb = tensor_matrix(y, DTYPE_F32, rows, n);
            struct tensor td = tensor_matrix(place == 0 ? z : place == 1 ? x : y, DTYPE_F32, rows, n);
            assert_ok(k[v]->subtract(&q, &ta, &tb, &td, &e), e);
            assert_bits(want, td.data, count, k[v]->name);
            free(x), free(y), free(z);
        }
    free(a), free(b), free(want);
}

static void differences_are_exact_and_in_place(void **state)
{
    (void)state;
    for (int64_t n = 1; n <= 33; n++)
        subtract_case(3, n);
    subtract_case(70, 1000);
    subtract_case(0, 5);
}

static void wrong_shapes_are_reported(void **state)
{
    (void)state;
    const struct kernels *k = kernels_find("plain");
    struct queue q = variant_queue(k, 1);
    float x[12] = {0};
    struct err e;
    struct tensor a = tensor_matrix(x, DTYPE_F32, 2, 4), b = tensor_matrix(x, DTYPE_F32, 2, 3);
    struct tensor w = tensor_vector(x, DTYPE_F32, 4);
    assert_err(k->rmsnorm_backward(&q, &a, &w, 1e-5f, &b, &a, &e), e, ERR_BUG, "rmsnorm_backward: 'dy'");
    assert_err(k->rmsnorm_backward(&q, &a, &w, 1e-5f, &a, &b, &e), e, ERR_BUG, "rmsnorm_backward: 'dx'");
    assert_err(k->rmsnorm_backward(&q, &b, &w, 1e-5f, &b, &b, &e), e, ERR_BUG, "rmsnorm_backward: 'w'");
    assert_err(k->swiglu_backward(&q, &a, &b, &a, &e), e, ERR_BUG, "swiglu_backward: 'gu'");
    assert_err(k->subtract(&q, &a, &b, &a, &e), e, ERR_BUG, "subtract: 'b'");
    assert_err(k->subtract(&q, &a, &a, &b, &e), e, ERR_BUG, "subtract: 'd'");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rmsnorm_has_the_gradient_of_differences),
        cmocka_unit_test(swiglu_has_the_gradient_of_differences),
        cmocka_unit_test(swiglu_at_both_ends),
        cmocka_unit_test(rope_with_the_sine_negated_is_its_transpose),
        cmocka_unit_test(differences_are_exact_and_in_place),
        cmocka_unit_test(wrong_shapes_are_reported),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
