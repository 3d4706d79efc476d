/* The transpose of panels: the bytes of packing the transposed matrix. */
#include "tests/kernels/variants.h"

#include "kernels/cpu/pack.h"

static void transpose_case(int64_t n, int64_t k, enum dtype mode)
{
    const struct kernels *table[8];
    size_t n_variants = variants(table);
    float *w = numbers(n * k, MIXED, 1), *turned = numbers(n * k, ZEROS, 2);
    for (int64_t i = 0; i < n * k; i++)
        turned[i % k * n + i / k] = w[i];
    size_t bytes = (size_t)(pack_panels(k) * (mode == DTYPE_F32 ? pack_stride_f32(n) : pack_stride_bf16(n))) *
                   dtype_bytes(mode);
    for (size_t v = 0; v < n_variants; v++) {
        struct err e = {0};
        struct queue q = variant_queue(table[v], 1 + (int)v % 3);
        struct tensor a = {0}, b = {0}, c = {0}, d = {0};
        struct tensor tw = tensor_matrix(w, DTYPE_F32, n, k), tt = tensor_matrix(turned, DTYPE_F32, k, n);
        assert_ok(table[v]->panels_new(&q, &a, n, k, mode, &e) && table[v]->pack(&q, &tw, 0, &a, &e), e);
        assert_ok(table[v]->panels_new(&q, &b, k, n, mode, &e) && table[v]->pack(&q, &tt, 0, &b, &e), e);
        assert_ok(table[v]->panels_new(&q, &c, k, n, mode, &e) && table[v]->panels_new(&q, &d, n, k, mode, &e), e);
        assert_ok(table[v]->transpose(&q, &a, &c, &e) && table[v]->transpose(&q, &c, &d, &e), e);
        if (memcmp(b.data, c.data, bytes) != 0)
            fail_msg("%s: {%lld, %lld} in %s has other bytes than packing the transpose", table[v]->name, (long long)n,
                     (long long)k, dtype_info(mode)->name);
        size_t back = (size_t)(pack_panels(n) * (mode == DTYPE_F32 ? pack_stride_f32(k) : pack_stride_bf16(k))) *
                      dtype_bytes(mode);
        assert_memory_equal(a.data, d.data, back);
        table[v]->tensor_free(&q, &a), table[v]->tensor_free(&q, &b);
        table[v]->tensor_free(&q, &c), table[v]->tensor_free(&q, &d);
    }
    free(w), free(turned);
}

static void panels_of_the_transposed_matrix(void **state)
{
    (void)state;
    for (int64_t n = 1; n <= 35; n++)
        for (int64_t k = 1; k <= 35; k += 1 + n % 3) {
            transpose_case(n, k, DTYPE_F32);
            transpose_case(n, k, DTYPE_BF16);
        }
    transpose_case(192, 576, DTYPE_F32); /* large enough for several threads */
    transpose_case(960, 577, DTYPE_BF16);
}

/* dy W by matmul, against f64. */
static void a_product_with_it_is_the_gradient_at_the_input(void **state)
{
    (void)state;
    enum { T = 5, N = 70, K = 45 };
    const struct kernels *table[8];
    size_t n_variants = variants(table);
    float *w = numbers(N * K, RANDOM, 1), *dy = numbers(T * N, RANDOM, 2), dx[T * K];
    for (size_t v = 0; v < n_variants; v++) {
        struct err e = {0};
        struct queue q = variant_queue(table[v], 1);
        struct tensor panels = {0}, turned = {0}, tw = tensor_matrix(w, DTYPE_F32, N, K);
        struct tensor tdy = tensor_matrix(dy, DTYPE_F32, T, N), tdx = tensor_matrix(dx, DTYPE_F32, T, K);
        assert_ok(table[v]->panels_new(&q, &panels, N, K, DTYPE_F32, &e) && table[v]->pack(&q, &tw, 0, &panels, &e), e);
        assert_ok(table[v]->panels_new(&q, &turned, K, N, DTYPE_F32, &e), e);
        assert_ok(table[v]->transpose(&q, &panels, &turned, &e) && table[v]->matmul(&q, &tdy, &turned, &tdx, &e), e);
        for (int i = 0; i < T * K; i++) {
            double want = 0.0;
            for (int j = 0; j < N; j++)
                want += (double)dy[i / K * N + j] * (double)w[j * K + i % K];
            assert_true(fabs((double)dx[i] - want) <= 1e-5);
        }
        table[v]->tensor_free(&q, &panels), table[v]->tensor_free(&q, &turned);
    }
    free(w), free(dy);
}

static void wrong_shapes_are_reported(void **state)
{
    (void)state;
    const struct kernels *k = kernels_find("plain");
    struct queue q = variant_queue(k, 1);
    struct err e = {0};
    struct tensor a = {0}, b = {0}, c = {0};
    assert_ok(k->panels_new(&q, &a, 3, 5, DTYPE_F32, &e) && k->panels_new(&q, &b, 5, 4, DTYPE_F32, &e) &&
                  k->panels_new(&q, &c, 5, 3, DTYPE_BF16, &e), e);
    assert_err(k->transpose(&q, &a, &b, &e), e, ERR_BUG, "transpose: 'out'");
    assert_err(k->transpose(&q, &a, &c, &e), e, ERR_BUG, "transpose: from f32 to bf16");
    k->tensor_free(&q, &a), k->tensor_free(&q, &b), k->tensor_free(&q, &c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(panels_of_the_transposed_matrix),
        cmocka_unit_test(a_product_with_it_is_the_gradient_at_the_input),
        cmocka_unit_test(wrong_shapes_are_reported),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
