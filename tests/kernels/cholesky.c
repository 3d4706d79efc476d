/* Cholesky factors: the specification to the bit in all variants and with any number of threads, L L^T against the
 * matrix, and what is not positive definite. */
#include "tests/kernels/variants.h"

#define ABOVE 777.0 /* what the tests put above the diagonal, where nothing may be read or written */

static bool factor(const struct kernels *k, int threads, double *a, int64_t n, struct err *e)
{
    struct queue q = variant_queue(k, threads);
    struct tensor t = tensor_matrix(a, DTYPE_F64, n, n);
    return k->cholesky(&q, &t, e);
}

/* Positive definite: g g^T of g [n, n + 3], and something on the diagonal. */
static double *definite(int64_t n, double ridge)
{
    int64_t m = n + 3;
    float *g = numbers(n * m, RANDOM, (uint64_t)n);
    double *a = malloc((size_t)(n * n) * sizeof *a);
    assert_non_null(a);
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = 0; j < n; j++) {
            double sum = i == j ? ridge : 0.0;
            for (int64_t t = 0; t < m; t++)
                sum += (double)g[i * m + t] * (double)g[j * m + t];
            a[i * n + j] = j <= i ? sum : ABOVE;
        }
    free(g);
    return a;
}

static double *copy(const double *a, int64_t n)
{
    double *b = malloc((size_t)(n * n) * sizeof *b);
    assert_non_null(b);
    memcpy(b, a, (size_t)(n * n) * sizeof *b);
    return b;
}

/* kernels.h, word for word. */
static void specification(double *a, int64_t n)
{
    for (int64_t j = 0; j < n; j++)
        for (int64_t i = j; i < n; i++) {
            double x = a[i * n + j];
            for (int64_t k = 0; k < j; k++)
                x = fma(-a[i * n + k], a[j * n + k], x);
            a[i * n + j] = i == j ? sqrt(x) : x / a[j * n + j];
        }
}

/* (L L^T)[i][j] is off by at most (j + 2) roundings of the sum of magnitudes, which for i, j is at most
 * sqrt(a[i][i] a[j][j]). */
static void check_product(const double *l, const double *a, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = 0; j <= i; j++) {
            double sum = 0.0, bound = (double)(n + 2) * 0x1p-52 * sqrt(a[i * n + i] * a[j * n + j]);
            for (int64_t k = 0; k <= j; k++)
                sum += l[i * n + k] * l[j * n + k];
            if (!(fabs(sum - a[i * n + j]) <= bound))
                fail_msg("%lld: (L L^T)[%lld][%lld] is %.17g, expected %.17g within %.3g", (long long)n, (long long)i,
                         (long long)j, sum, a[i * n + j], bound);
        }
}

static void check_size(int64_t n)
{
    const struct kernels *k[8];
    size_t n_variants = variants(k);
    double *a = definite(n, 0.1), *want = copy(a, n);
    specification(want, n);
    check_product(want, a, n);
    for (size_t v = 0; v < n_variants; v++) {
        int threads = 1 + (int)(n + (int64_t)v) % 3;
        double *l = copy(a, n);
        struct err e = {0};
        assert_ok(factor(k[v], threads, l, n, &e), e);
        for (int64_t i = 0; i < n * n; i++)
            if (memcmp(&l[i], &want[i], sizeof *l) != 0)
                fail_msg("%s, %lld, %d threads: L[%lld][%lld] is %.17g, expected %.17g", k[v]->name, (long long)n,
                         threads, (long long)(i / n), (long long)(i % n), l[i], want[i]);
        free(l);
    }
    free(a), free(want);
}

static void every_variant_follows_the_specification_to_the_bit(void **state)
{
    (void)state;
    for (int64_t n = 1; n <= 100; n++)
        check_size(n);
    static const int64_t large[] = {127, 128, 129, 192, 193, 200, 257};
    for (size_t i = 0; i < COUNT(large); i++)
        check_size(large[i]);
}

static void bits_do_not_depend_on_the_number_of_threads(void **state)
{
    (void)state;
    enum { N = 333 };
    struct err e = {0};
    const struct kernels *k = kernels_cpu(&e);
    double *a = definite(N, 0.01), *want = copy(a, N);
    assert_ok(factor(k, 1, want, N, &e), e);
    for (int threads = 2; threads <= 5; threads++) {
        double *l = copy(a, N);
        assert_ok(factor(k, threads, l, N, &e), e);
        assert_memory_equal(want, l, (size_t)N * N * sizeof *l);
        free(l);
    }
    free(a), free(want);
}

/* With whole numbers throughout, so that every step is exact. */
static void known_factors_are_exact(void **state)
{
    (void)state;
    const struct kernels *k[8];
    size_t n_variants = variants(k);
    static const double three[9] = {4, ABOVE, ABOVE, 12, 37, ABOVE, -16, -43, 98};
    static const double factor_of_three[9] = {2, ABOVE, ABOVE, 6, 1, ABOVE, -8, 5, 3};
    struct err e = {0};
    for (size_t v = 0; v < n_variants; v++) {
        double a[9], one = 9.0;
        memcpy(a, three, sizeof a);
        assert_ok(factor(k[v], 1, a, 3, &e) && factor(k[v], 1, &one, 1, &e) && factor(k[v], 1, &one, 0, &e), e);
        assert_memory_equal(a, factor_of_three, sizeof a);
        assert_true(one == 3.0);
    }
}

/* The minor is the first: 1 is at the first element, and what breaks it lies in the first, a middle and the last
 * tile. */
static void what_is_not_positive_definite_is_told_with_the_minor(void **state)
{
    (void)state;
    enum { N = 200 };
    const struct kernels *k[8];
    size_t n_variants = variants(k);
    static const int places[] = {0, 1, 63, 64, 100, 128, 199};
    static const double values[] = {0.0, -1.0, NAN, INFINITY};
    for (size_t p = 0; p < COUNT(places); p++)
        for (size_t i = 0; i < COUNT(values); i++) {
            char text[96];
            struct err e = {0};
            double *a = definite(N, 0.1);
            a[places[p] * N + places[p]] = values[i];
            CASE(text, "a matrix [200, 200] is not positive definite: its leading minor of order %d ", places[p] + 1);
            assert_err(factor(k[(p + i) % n_variants], 1 + (int)i % 3, a, N, &e), e, ERR_NUMERIC, text);
            free(a);
        }
    double two[4] = {1.0, ABOVE, 2.0, 1.0}; /* a positive diagonal is not enough */
    struct err e = {0};
    assert_err(factor(k[0], 1, two, 2, &e), e, ERR_NUMERIC, "of order 2 ");
}

static void wrong_shapes_are_reported(void **state)
{
    (void)state;
    const struct kernels *k = kernels_find("plain");
    struct queue q = variant_queue(k, 1);
    double h[16] = {0};
    struct err e;
    struct tensor t = tensor_matrix(h, DTYPE_F64, 4, 3);
    assert_err(k->cholesky(&q, &t, &e), e, ERR_BUG, "cholesky: 'a' is f64 of rank 2 [4, 3]");
    t = tensor_matrix(h, DTYPE_F32, 4, 4);
    assert_err(k->cholesky(&q, &t, &e), e, ERR_BUG, "expected row-major f64 [4, 4]");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_variant_follows_the_specification_to_the_bit),
        cmocka_unit_test(bits_do_not_depend_on_the_number_of_threads),
        cmocka_unit_test(known_factors_are_exact),
        cmocka_unit_test(what_is_not_positive_definite_is_told_with_the_minor),
        cmocka_unit_test(wrong_shapes_are_reported),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
