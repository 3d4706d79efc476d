/* Tensors of the CPU backend: made, copied, freed; and the rows that embed gathers. */
#include "tests/kernels/variants.h"

static void a_tensor_has_its_shape_and_is_aligned(void **state)
{
    (void)state;
    const struct kernels *k = kernels_find("plain");
    struct queue q = variant_queue(k, 1);
    struct err e = {0};
    struct tensor t = {0};
    int64_t shape[3] = {3, 5, 7};
    assert_ok(k->tensor_new(&q, &t, DTYPE_BF16, 3, shape, &e), e);
    assert_int_equal(tensor_count(&t), 105);
    assert_true(t.owned && t.device == TENSOR_HOST && t.layout == TENSOR_ROWS && t.dtype == DTYPE_BF16);
    assert_int_equal((uintptr_t)t.data % 64, 0);
    k->tensor_free(&q, &t);
    assert_null(t.data);
    k->tensor_free(&q, &t);
}

static void an_empty_tensor_has_data(void **state)
{
    (void)state;
    const struct kernels *k = kernels_find("plain");
    struct queue q = variant_queue(k, 1);
    struct err e = {0};
    struct tensor t = {0};
    assert_ok(k->tensor_new(&q, &t, DTYPE_F32, 2, (int64_t[]){0, 4}, &e), e);
    assert_non_null(t.data);
    k->tensor_free(&q, &t);
}

static void a_failed_tensor_leaves_the_old_one(void **state)
{
    (void)state;
    const struct kernels *k = kernels_find("plain");
    struct queue q = variant_queue(k, 1);
    struct err e;
    struct tensor t = {.rank = 42};
    assert_err(k->tensor_new(&q, &t, DTYPE_F32, 2, (int64_t[]){INT64_MAX, 4}, &e), e, ERR_RESOURCE, "address space");
    assert_err(k->tensor_new(&q, &t, DTYPE_F32, 2, (int64_t[]){-1, 4}, &e), e, ERR_BUG, "dimension 0 is -1");
    assert_err(k->tensor_new(&q, &t, DTYPE_F32, 5, (int64_t[]){1, 1, 1, 1}, &e), e, ERR_BUG, "rank 5");
    mem_fail_after(1, false);
    assert_err(k->tensor_new(&q, &t, DTYPE_F32, 1, (int64_t[]){4}, &e), e, ERR_RESOURCE, "");
    mem_fail_after(1, false);
    assert_err(k->panels_new(&q, &t, 4, 4, DTYPE_F32, &e), e, ERR_RESOURCE, "");
    mem_fail_after(0, false);
    assert_int_equal(t.rank, 42);
}

static void what_is_uploaded_comes_back(void **state)
{
    (void)state;
    const struct kernels *k = kernels_find("plain");
    struct queue q = variant_queue(k, 1);
    struct err e = {0};
    struct tensor a = {0}, b = {0};
    float in[12], out[12];
    for (int i = 0; i < 12; i++)
        in[i] = (float)i;
    assert_ok(k->tensor_new(&q, &a, DTYPE_F32, 2, (int64_t[]){3, 4}, &e), e);
    assert_ok(k->tensor_new(&q, &b, DTYPE_F32, 2, (int64_t[]){4, 3}, &e), e);
    assert_ok(k->upload(&q, &a, in, sizeof in, &e), e);
    assert_ok(k->copy(&q, &a, &b, &e), e);
    assert_ok(k->download(&q, out, &b, sizeof out, &e), e);
    assert_memory_equal(in, out, sizeof in);
    assert_err(k->upload(&q, &a, in, sizeof in - 4, &e), e, ERR_BUG, "44 bytes for a tensor of 48 bytes");
    assert_err(k->download(&q, out, &a, sizeof in - 4, &e), e, ERR_BUG, "44 bytes for a tensor of 48 bytes");
    struct tensor part = tensor_rows(&a, 0, 2);
    assert_err(k->copy(&q, &part, &b, &e), e, ERR_BUG, "copy");
    k->tensor_free(&q, &a);
    k->tensor_free(&q, &b);
}

static void embed_widens_the_named_rows(void **state)
{
    (void)state;
    const struct kernels *k = kernels_find("plain");
    struct queue q = variant_queue(k, 2);
    struct err e = {0};
    /* 1, -2, 0.5, 3 in each format; the second row is the first doubled. */
    float f32[8] = {1, -2, 0.5f, 3, 2, -4, 1, 6};
    uint16_t bf16[8] = {0x3f80, 0xc000, 0x3f00, 0x4040, 0x4000, 0xc080, 0x3f80, 0x40c0};
    uint16_t f16[8] = {0x3c00, 0xc000, 0x3800, 0x4200, 0x4000, 0xc400, 0x3c00, 0x4600};
    const struct {
        enum dtype dtype;
        void *data;
    } cases[] = {{DTYPE_F32, f32}, {DTYPE_BF16, bf16}, {DTYPE_F16, f16}};
    int32_t ids[3] = {1, 0, 1};
    for (size_t i = 0; i < COUNT(cases); i++) {
        float y[12];
        struct tensor table = tensor_matrix(cases[i].data, cases[i].dtype, 2, 4);
        struct tensor id = tensor_vector(ids, DTYPE_I32, 3), out = tensor_matrix(y, DTYPE_F32, 3, 4);
        assert_ok(k->embed(&q, &table, &id, &out, &e), e);
        assert_bits(f32 + 4, y, 4, "row 1");
        assert_bits(f32, y + 4, 4, "row 0");
        assert_bits(f32 + 4, y + 8, 4, "row 1");
    }
    ids[2] = 2;
    float y[12];
    struct tensor table = tensor_matrix(f32, DTYPE_F32, 2, 4), id = tensor_vector(ids, DTYPE_I32, 3);
    struct tensor out = tensor_matrix(y, DTYPE_F32, 3, 4);
    assert_err(k->embed(&q, &table, &id, &out, &e), e, ERR_BUG, "ids[2] is 2, expected 0 to 1");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_tensor_has_its_shape_and_is_aligned),
        cmocka_unit_test(an_empty_tensor_has_data),
        cmocka_unit_test(a_failed_tensor_leaves_the_old_one),
        cmocka_unit_test(what_is_uploaded_comes_back),
        cmocka_unit_test(embed_widens_the_named_rows),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
