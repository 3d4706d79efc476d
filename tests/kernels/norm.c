/* RMS norm, residual addition, bias and largest magnitude: equal bits in all variants, every length, close to f64. */
#include "tests/kernels/variants.h"

enum { ROWS = 3 };

/* Row by row in f64 with libm. */
static void check_norm(const float *x, const float *w, const float *y, int64_t h, float eps, const char *what)
{
    for (int64_t t = 0; t < ROWS; t++) {
        double sum = 0;
        for (int64_t i = 0; i < h; i++)
            sum += (double)x[t * h + i] * (double)x[t * h + i];
        double s = 1.0 / sqrt(sum / (double)h + (double)eps);
        for (int64_t i = 0; i < h; i++) {
            double want = (double)w[i] * ((double)x[t * h + i] * s), got = (double)y[t * h + i];
            if (!(fabs(got - want) <= 1e-6 * fabs(want) + 1e-44))
                fail_msg("%s: [%lld][%lld] is %.9g, expected %.9g", what, (long long)t, (long long)i, got, want);
        }
    }
}

static void norm_case(int64_t h, enum numbers kind)
{
    const struct kernels *k[8];
    size_t n_variants = variants(k);
    struct err e = {0};
    float *x = numbers(ROWS * h, kind, 1), *d = numbers(ROWS * h, kind, 2), *w = numbers(h, RANDOM, 3);
    float *sum = copy_of(x, ROWS * h), *want = copy_of(x, ROWS * h), *want_added = copy_of(x, ROWS * h);
    float eps = kind == DENORMALS ? 1e-30f : 1e-5f;
    for (int64_t i = 0; i < ROWS * h; i++)
        sum[i] = x[i] + d[i];
    for (size_t v = 0; v < n_variants; v++) {
        char name[96];
        CASE(name, "%s, h=%lld, numbers %d", k[v]->name, (long long)h, (int)kind);
        struct queue q = variant_queue(k[v], 1 + (int)v % 3);
        float *y = numbers(ROWS * h, RANDOM, 4), *z = copy_of(x, ROWS * h);
        struct tensor tx = tensor_matrix(x, DTYPE_F32, ROWS, h), td = tensor_matrix(d, DTYPE_F32, ROWS, h);
        struct tensor tw = tensor_vector(w, DTYPE_F32, h), ty = tensor_matrix(y, DTYPE_F32, ROWS, h);
        struct tensor tz = tensor_matrix(z, DTYPE_F32, ROWS, h);
        assert_ok(k[v]->rmsnorm(&q, &tx, &tw, eps, &ty, &e), e);
        check_norm(x, w, y, h, eps, name);
        if (v > 0)
            assert_bits(want, y, ROWS * h, name);
        memcpy(want, y, (size_t)(ROWS * h) * sizeof *y);
        assert_ok(k[v]->rmsnorm(&q, &tz, &tw, eps, &tz, &e), e); /* y may be x */
        assert_bits(want, z, ROWS * h, name);
        memcpy(z, x, (size_t)(ROWS * h) * sizeof *z);
        assert_ok(k[v]->add_rmsnorm(&q, &tz, &td, &tw, eps, &ty, &e), e);
        assert_bits(sum, z, ROWS * h, name);
        check_norm(sum, w, y, h, eps, name);
        if (v > 0)
            assert_bits(want_added, y, ROWS * h, name);
        memcpy(want_added, y, (size_t)(ROWS * h) * sizeof *y);
        memcpy(z, x, (size_t)(ROWS * h) * sizeof *z);
        assert_ok(k[v]->add(&q, &tz, &td, &e), e);
        assert_bits(sum, z, ROWS * h, name);
        memcpy(z, x, (size_t)(ROWS * h) * sizeof *z);
        assert_ok(k[v]->add_bias(&q, &tz, &tw, &e), e);
        for (int64_t i = 0; i < ROWS * h; i++)
            assert_true(f32_bits(z[i]) == f32_bits(x[i] + w[i % h]));
        free(y), free(z);
    }
    free(x), free(d), free(w), free(sum), free(want), free(want_added);
}

static void every_length_in_every_variant(void **state)
{
    (void)state;
    for (int64_t h = 1; h <= 33; h++)
        norm_case(h, RANDOM);
    norm_case(576, RANDOM);
    norm_case(1000, MIXED);
    norm_case(20000, RANDOM); /* large enough for several threads */
}

static void zeros_denormals_and_large_numbers(void **state)
{
    (void)state;
    for (int64_t h = 1; h <= 33; h += 8) {
        norm_case(h, ZEROS);
        norm_case(h, DENORMALS);
    }
    /* The largest whose squares do not overflow. */
    float x[20], w[20], y[20];
    const struct kernels *k[8];
    size_t n_variants = variants(k);
    struct err e = {0};
    for (int i = 0; i < 20; i++) {
        x[i] = 0x1p60f;
        w[i] = 1.0f;
    }
    for (size_t v = 0; v < n_variants; v++) {
        struct queue q = variant_queue(k[v], 1);
        struct tensor tx = tensor_matrix(x, DTYPE_F32, 1, 20), tw = tensor_vector(w, DTYPE_F32, 20);
        struct tensor ty = tensor_matrix(y, DTYPE_F32, 1, 20);
        assert_ok(k[v]->rmsnorm(&q, &tx, &tw, 1e-5f, &ty, &e), e);
        for (int i = 0; i < 20; i++)
            assert_true(y[i] == 1.0f);
    }
}

static void no_rows_are_fine(void **state)
{
    (void)state;
    const struct kernels *k[8];
    size_t n_variants = variants(k);
    float w[4] = {0}, none[1];
    struct err e = {0};
    for (size_t v = 0; v < n_variants; v++) {
        struct queue q = variant_queue(k[v], 3);
        struct tensor x = tensor_matrix(none, DTYPE_F32, 0, 4), tw = tensor_vector(w, DTYPE_F32, 4);
        float amax = 2.0f;
        assert_ok(k[v]->rmsnorm(&q, &x, &tw, 1e-5f, &x, &e), e);
        assert_ok(k[v]->amax(&q, &x, &amax, &e), e);
        assert_true(amax == 2.0f);
    }
}

static void amax_is_the_largest_magnitude(void **state)
{
    (void)state;
    const struct kernels *k[8];
    size_t n_variants = variants(k);
    struct err e = {0};
    for (size_t v = 0; v < n_variants; v++) {
        for (int64_t n = 1; n <= 33; n++) {
            float *x = numbers(5 * n, RANDOM, (uint64_t)n), amax = 0.0f;
            struct queue q = variant_queue(k[v], 2);
            struct tensor t = tensor_matrix(x, DTYPE_F32, 5, n);
            for (int64_t at = 0; at < 5 * n; at++) { /* at every place */
                float old = x[at];
                x[at] = at % 2 ? -7.0f : 7.0f;
                amax = 3.0f;
                assert_ok(k[v]->amax(&q, &t, &amax, &e), e);
                assert_true(amax == 7.0f);
                x[at] = old;
            }
            amax = 3.0f;
            assert_ok(k[v]->amax(&q, &t, &amax, &e), e);
            assert_true(amax == 3.0f);
            free(x);
        }
    }
}

static void amax_reports_the_first_that_is_not_finite(void **state)
{
    (void)state;
    const struct kernels *k[8];
    size_t n_variants = variants(k);
    for (size_t v = 0; v < n_variants; v++) {
        for (int threads = 1; threads <= 3; threads++) {
            float *x = numbers(700 * 99, RANDOM, 3), amax = 1.0f;
            struct queue q = variant_queue(k[v], threads);
            struct tensor t = tensor_matrix(x, DTYPE_F32, 700, 99);
            struct err e;
            x[600 * 99 + 2] = INFINITY;
            assert_err(k[v]->amax(&q, &t, &amax, &e), e, ERR_NUMERIC,
                       "infinity at row 600, column 2 of a matrix [700, 99]");
            x[4 * 99 + 98] = NAN;
            assert_err(k[v]->amax(&q, &t, &amax, &e), e, ERR_NUMERIC, "NaN at row 4, column 98");
            x[4 * 99 + 17] = -INFINITY;
            assert_err(k[v]->amax(&q, &t, &amax, &e), e, ERR_NUMERIC, "infinity at row 4, column 17");
            assert_true(amax == 1.0f);
            free(x);
        }
    }
}

static void wrong_shapes_are_reported(void **state)
{
    (void)state;
    const struct kernels *k = kernels_find("plain");
    struct queue q = variant_queue(k, 1);
    float a[12], b[12];
    struct err e;
    struct tensor x = tensor_matrix(a, DTYPE_F32, 3, 4), y = tensor_matrix(b, DTYPE_F32, 4, 3);
    struct tensor w = tensor_vector(b, DTYPE_F32, 3);
    assert_err(k->rmsnorm(&q, &x, &w, 1e-5f, &x, &e), e, ERR_BUG, "rmsnorm: 'w' is f32 of rank 1 [3, 1]");
    assert_err(k->add(&q, &x, &y, &e), e, ERR_BUG, "add: 'd'");
    assert_err(k->add_bias(&q, &x, &w, &e), e, ERR_BUG, "add_bias: 'b'");
    w = tensor_vector(b, DTYPE_F32, 4);
    assert_err(k->add_rmsnorm(&q, &x, &y, &w, 1e-5f, &x, &e), e, ERR_BUG, "add_rmsnorm: 'd'");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_length_in_every_variant),
        cmocka_unit_test(zeros_denormals_and_large_numbers),
        cmocka_unit_test(no_rows_are_fine),
        cmocka_unit_test(amax_is_the_largest_magnitude),
        cmocka_unit_test(amax_reports_the_first_that_is_not_finite),
        cmocka_unit_test(wrong_shapes_are_reported),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
