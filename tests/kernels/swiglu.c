/* The exponential that all kernels share, and SwiGLU. */
#include "tests/kernels/variants.h"

#include "kernels/cpu/cpu.h"

/* Relative error of lanes_exp, in units of 2^-24 (half a unit in the last place or more is unavoidable). */
static const double exp_error = 2.0 * 0x1p-24;

static void run_exp(size_t variant, const float *x, float *y, int64_t n)
{
    if (variant == 0)
        exp_plain(x, y, n);
    else if (variant == 1)
        exp_avx2(x, y, n);
    else
        exp_avx512(x, y, n);
}

static size_t exp_variants(void)
{
    return kernels_find("avx512") ? 3 : kernels_find("avx2") ? 2 : 1;
}

static void exp_is_within_two_roundings_of_libm(void **state)
{
    (void)state;
    enum { N = 4096 };
    static float x[N], y[N];
    for (size_t v = 0; v < exp_variants(); v++) {
        for (float from = -87.0f; from < 88.0f; from += 1.0f) {
            for (int i = 0; i < N; i++)
                x[i] = from + (float)i / N;
            run_exp(v, x, y, N);
            for (int i = 0; i < N; i++) {
                double want = exp((double)x[i]);
                if (!(fabs((double)y[i] - want) <= exp_error * want))
                    fail_msg("variant %zu: exp(%.9g) is %.9g, expected %.9g", v, (double)x[i], (double)y[i], want);
            }
        }
    }
}

static void exp_has_equal_bits_in_all_variants_and_exact_ends(void **state)
{
    (void)state;
    float x[19] = {0.0f, -0.0f, -87.33f, -87.34f, -88.0f, -104.0f, -1e30f, -INFINITY, 88.0f, NAN, 1e-40f, -1e-40f,
                   0.34657359f, -0.34657359f, 1.0f, -1.0f, 0.5f, 2.0f, -20.0f};
    float want[19], got[19];
    exp_plain(x, want, 19);
    assert_true(want[0] == 1.0f && want[1] == 1.0f && want[10] == 1.0f && want[11] == 1.0f);
    assert_true(want[2] > 0.0f && want[3] == 0.0f && want[4] == 0.0f && want[5] == 0.0f && want[6] == 0.0f);
    assert_true(want[7] == 0.0f && want[8] > 1.6e38f && want[8] < INFINITY && isnan(want[9]));
    x[9] = want[9] = 1.0f; /* NaN payloads may differ */
    exp_plain(x, want, 19);
    for (size_t v = 1; v < exp_variants(); v++) {
        run_exp(v, x, got, 19);
        assert_bits(want, got, 19, "exp");
    }
    for (int64_t n = 0; n <= 33; n++) { /* every length */
        float *in = numbers(n, RANDOM, (uint64_t)n), *a = numbers(n, RANDOM, 1), *b = numbers(n, RANDOM, 2);
        for (int64_t i = 0; i < n; i++)
            in[i] *= 90.0f;
        exp_plain(in, a, n);
        for (size_t v = 1; v < exp_variants(); v++) {
            run_exp(v, in, b, n);
            assert_bits(a, b, n, "exp");
        }
        free(in), free(a), free(b);
    }
}

static void swiglu_case(int64_t n, enum numbers kind, float factor)
{
    enum { T = 3 };
    const struct kernels *k[8];
    size_t n_variants = variants(k);
    struct err e = {0};
    float *gu = numbers(T * 2 * n, kind, 1), *want = numbers(T * n, RANDOM, 2), *got = numbers(T * n, RANDOM, 3);
    for (int64_t i = 0; i < T * 2 * n; i++)
        gu[i] *= factor;
    for (size_t v = 0; v < n_variants; v++) {
        struct queue q = variant_queue(k[v], 1 + (int)v % 3);
        struct tensor in = tensor_matrix(gu, DTYPE_F32, T, 2 * n), out = tensor_matrix(v ? got : want, DTYPE_F32, T, n);
        assert_ok(k[v]->swiglu(&q, &in, &out, &e), e);
        if (v > 0)
            assert_bits(want, got, T * n, k[v]->name);
    }
    for (int64_t i = 0; i < T * n; i++) {
        /* Below -87.33 silu is 0 instead of about -1e-36. */
        double g = (double)gu[i / n * 2 * n + i % n], u = (double)gu[i / n * 2 * n + n + i % n];
        double expected = g / (1.0 + exp(-g)) * u;
        if (!(fabs((double)want[i] - expected) <= 1e-6 * fabs(expected) + 2e-36 * (1.0 + fabs(u))))
            fail_msg("n=%lld: silu(%g) * %g is %g, expected %g", (long long)n, g, u, (double)want[i], expected);
    }
    free(gu), free(want), free(got);
}

static void swiglu_is_close_to_f64_at_every_length(void **state)
{
    (void)state;
    for (int64_t n = 1; n <= 33; n++)
        swiglu_case(n, RANDOM, 8.0f);
    swiglu_case(200, RANDOM, 86.0f);
    swiglu_case(9001, RANDOM, 20.0f); /* large enough for several threads */
    swiglu_case(200, RANDOM, 1000.0f); /* neither end overflows */
    for (int kind = 0; kind < NUMBERS_COUNT; kind++)
        if (kind != LARGE)
            swiglu_case(40, (enum numbers)kind, 1.0f);
}

static void wrong_shapes_are_reported(void **state)
{
    (void)state;
    const struct kernels *k = kernels_find("plain");
    struct queue q = variant_queue(k, 1);
    float x[12];
    struct err e;
    struct tensor gu = tensor_matrix(x, DTYPE_F32, 2, 5), y = tensor_matrix(x, DTYPE_F32, 2, 3);
    assert_err(k->swiglu(&q, &gu, &y, &e), e, ERR_BUG, "swiglu: 'gu' is f32 of rank 2 [2, 5]");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(exp_is_within_two_roundings_of_libm),
        cmocka_unit_test(exp_has_equal_bits_in_all_variants_and_exact_ends),
        cmocka_unit_test(swiglu_is_close_to_f64_at_every_length),
        cmocka_unit_test(wrong_shapes_are_reported),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
