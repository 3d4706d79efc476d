/* Products summed over sequences: exact sums where they are whole numbers, close to long double elsewhere, equal bits
 * in all variants, on any number of threads, and of a sequence on its own. */
#include "tests/kernels/variants.h"

static void dots(const struct kernels *k, int threads, const float *a, const float *b, int64_t rows, int64_t n,
                 int64_t window, double *dot, double *square)
{
    struct err e = {0};
    struct queue q = variant_queue(k, threads);
    struct tensor ta = tensor_matrix((void *)(uintptr_t)a, DTYPE_F32, rows, n);
    struct tensor tb = tensor_matrix((void *)(uintptr_t)b, DTYPE_F32, rows, n);
    struct tensor td = tensor_vector(dot, DTYPE_F64, rows / window);
    struct tensor ts = tensor_vector(square, DTYPE_F64, rows / window);
    assert_ok(k->window_dots(&q, &ta, &tb, window, &td, square ? &ts : NULL, &e), e);
}

static bool close_to(double got, long double want, long double size, bool exact)
{
    return exact ? (long double)got == want : fabsl((long double)got - want) <= 1e-14L * size;
}

static void check_sums(const float *a, const float *b, int64_t count, double dot, double square, enum numbers kind,
                       const char *name)
{
    long double d = 0, s = 0, size = 0;
    for (int64_t i = 0; i < count; i++) {
        long double p = (long double)a[i] * (long double)b[i];
        d += p, s += p * p, size += fabsl(p);
    }
    if (!close_to(dot, d, size, kind == INTEGERS) || !close_to(square, s, s, kind == INTEGERS))
        fail_msg("%s: %.17g and %.17g, expected %.17g and %.17g", name, dot, square, (double)d, (double)s);
}

static void dots_case(int64_t sequences, int64_t window, int64_t n, enum numbers kind)
{
    const struct kernels *k[8];
    char name[96];
    size_t n_variants = variants(k);
    int64_t rows = sequences * window;
    float *a = numbers(rows * n, kind, 1), *b = numbers(rows * n, kind, 2);
    double want[2][8], got[2][8];
    assert_in_range(sequences, 0, 8);
    dots(k[0], 1, a, b, rows, n, window, want[0], want[1]);
    for (int64_t i = 0; i < sequences; i++)
        check_sums(a + i * window * n, b + i * window * n, window * n, want[0][i], want[1][i], kind,
                   CASE(name, "sequence %lld of %lld x %lld x %lld", (long long)i, (long long)sequences,
                        (long long)window, (long long)n));
    for (size_t v = 0; v < n_variants; v++)
        for (int threads = 1; threads <= 3; threads++) {
            size_t bytes = (size_t)sequences * sizeof *got[0];
            dots(k[v], threads, a, b, rows, n, window, got[0], got[1]);
            assert_memory_equal(want[0], got[0], bytes);
            assert_memory_equal(want[1], got[1], bytes);
            memset(got, 0xff, sizeof got);
            dots(k[v], threads, a, b, rows, n, window, got[0], NULL);
            assert_memory_equal(want[0], got[0], bytes);
            for (int64_t i = 0; i < sequences; i++) { /* alone */
                dots(k[v], threads, a + i * window * n, b + i * window * n, window, n, window, got[0], got[1]);
                assert_memory_equal(&want[0][i], got[0], sizeof *got[0]);
                assert_memory_equal(&want[1][i], got[1], sizeof *got[1]);
            }
        }
    free(a), free(b);
}

static void every_shape_in_every_variant(void **state)
{
    (void)state;
    for (int64_t n = 1; n <= 33; n++)
        dots_case(1 + n % 3, 1 + n % 20, n, n % 2 ? RANDOM : INTEGERS);
    for (int64_t window = 1; window <= 50; window += 7)
        dots_case(2, window, 40, MIXED);
    dots_case(8, 33, 576, RANDOM);
    dots_case(1, 256, 192, RANDOM); /* large enough for several threads: one sequence, */
    dots_case(7, 5, 3000, INTEGERS); /* and several */
    dots_case(0, 4, 4, RANDOM);
}

/* A product of two f32 numbers is exact: cancelling sums lose nothing. */
static void products_are_not_rounded(void **state)
{
    (void)state;
    const struct kernels *k[8];
    size_t n_variants = variants(k);
    const float a[2] = {0x1.000002p0f, -1.0f}, b[2] = {0x1.000002p0f, 0x1.000004p0f};
    for (size_t v = 0; v < n_variants; v++) {
        double dot, square;
        dots(k[v], 1, a, b, 2, 1, 2, &dot, &square);
        assert_true(dot == 0x1p-46);
    }
}

static void wrong_shapes_are_reported(void **state)
{
    (void)state;
    const struct kernels *k = kernels_find("plain");
    struct queue q = variant_queue(k, 1);
    float x[12] = {0};
    double y[4];
    struct err e;
    struct tensor a = tensor_matrix(x, DTYPE_F32, 4, 3), b = tensor_matrix(x, DTYPE_F32, 3, 3);
    struct tensor two = tensor_vector(y, DTYPE_F64, 2), single = tensor_vector(x, DTYPE_F32, 2);
    assert_err(k->window_dots(&q, &a, &b, 2, &two, NULL, &e), e, ERR_BUG, "window_dots: 'b'");
    assert_err(k->window_dots(&q, &a, &a, 3, &two, NULL, &e), e, ERR_BUG, "4 rows, expected a multiple of the window");
    assert_err(k->window_dots(&q, &a, &a, 0, &two, NULL, &e), e, ERR_BUG, "the window 0");
    assert_err(k->window_dots(&q, &a, &a, 1, &two, NULL, &e), e, ERR_BUG, "window_dots: 'dot'");
    assert_err(k->window_dots(&q, &a, &a, 2, &two, &single, &e), e, ERR_BUG, "window_dots: 'square'");
    mem_fail_after(1, false);
    assert_err(k->window_dots(&q, &a, &a, 2, &two, NULL, &e), e, ERR_RESOURCE, "");
    mem_fail_after(0, false);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_shape_in_every_variant),
        cmocka_unit_test(products_are_not_rounded),
        cmocka_unit_test(wrong_shapes_are_reported),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
