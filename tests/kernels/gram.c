/* Second moments: the lower triangle only, equal bits in all variants, close to f64. */
#include "tests/kernels/variants.h"

static void gram(const struct kernels *k, int threads, const float *x, int64_t t, int64_t n, double *h)
{
    struct queue q = variant_queue(k, threads);
    struct err e = {0};
    struct tensor in = tensor_matrix((void *)(uintptr_t)x, DTYPE_F32, t, n), out = tensor_matrix(h, DTYPE_F64, n, n);
    assert_ok(k->gram(&q, &in, &out, &e), e);
}

static double *filled(int64_t n, double value)
{
    double *h = malloc((size_t)(n * n) * sizeof *h);
    assert_non_null(h);
    for (int64_t i = 0; i < n * n; i++)
        h[i] = value;
    return h;
}

/* The specification, word for word: an f32 chain within 256 rows, blocks added in f64. */
static double moment(const float *x, int64_t t, int64_t n, int64_t i, int64_t j, double from)
{
    for (int64_t first = 0; first < t; first += 256) {
        float sum = 0.0f;
        for (int64_t r = first; r < t && r < first + 256; r++)
            sum = fmaf(x[r * n + i], x[r * n + j], sum);
        from += (double)sum;
    }
    return from;
}

static void check_case(int64_t t, int64_t n, enum numbers kind)
{
    const struct kernels *k[8];
    size_t n_variants = variants(k);
    float *x = numbers(t * n, kind, 11);
    for (size_t v = 0; v < n_variants; v++) {
        double *h = filled(n, 0.125);
        gram(k[v], 1 + (int)v % 3, x, t, n, h);
        for (int64_t i = 0; i < n; i++) {
            for (int64_t j = 0; j < n; j++) {
                double want = j <= i ? moment(x, t, n, i, j, 0.125) : 0.125;
                if (h[i * n + j] != want)
                    fail_msg("%s, T=%lld K=%lld: h[%lld][%lld] is %.17g, expected %.17g", k[v]->name, (long long)t,
                             (long long)n, (long long)i, (long long)j, h[i * n + j], want);
            }
        }
        free(h);
    }
    free(x);
}

static void every_variant_follows_the_specification_to_the_bit(void **state)
{
    (void)state;
    static const int64_t rows[] = {0, 1, 2, 255, 256, 257, 600};
    for (size_t i = 0; i < COUNT(rows); i++)
        for (int64_t n = 1; n <= 33; n += i % 2 ? 4 : 7)
            check_case(rows[i], n, RANDOM);
    check_case(70, 96, RANDOM);
    check_case(70, 97, MIXED);
    check_case(40, 200, RANDOM);
    for (int kind = 0; kind < NUMBERS_COUNT; kind++)
        check_case(20, 24, (enum numbers)kind);
}

static void sums_are_close_to_f64(void **state)
{
    (void)state;
    enum { T = 1000, N = 20 };
    struct err e = {0};
    const struct kernels *k = kernels_cpu(&e);
    float *x = numbers(T * N, RANDOM, 5);
    double *h = filled(N, 0.0);
    gram(k, 2, x, T, N, h);
    for (int i = 0; i < N; i++) {
        for (int j = 0; j <= i; j++) {
            double sum = 0, size = 0;
            for (int t = 0; t < T; t++) {
                sum += (double)x[t * N + i] * (double)x[t * N + j];
                size += fabs((double)x[t * N + i] * (double)x[t * N + j]);
            }
            assert_true(fabs(h[i * N + j] - sum) <= 256 * 0x1p-24 * size);
        }
    }
    free(x), free(h);
}

static void wrong_shapes_are_reported(void **state)
{
    (void)state;
    const struct kernels *k = kernels_find("plain");
    struct queue q = variant_queue(k, 1);
    float x[12];
    double h[16];
    struct err e;
    struct tensor in = tensor_matrix(x, DTYPE_F32, 3, 4), out = tensor_matrix(h, DTYPE_F64, 4, 3);
    assert_err(k->gram(&q, &in, &out, &e), e, ERR_BUG, "gram: 'h' is f64 of rank 2 [4, 3]");
    out = tensor_matrix(h, DTYPE_F32, 4, 4);
    assert_err(k->gram(&q, &in, &out, &e), e, ERR_BUG, "expected row-major f64 [4, 4]");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_variant_follows_the_specification_to_the_bit),
        cmocka_unit_test(sums_are_close_to_f64),
        cmocka_unit_test(wrong_shapes_are_reported),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
