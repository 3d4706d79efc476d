/* Number formats: the table and the conversions of single values; and views of tensors. */
#include <math.h>

#include "engine/base/dtype.h"
#include "engine/base/tensor.h"
#include "tests/check.h"

static void dtypes_are_found_by_their_safetensors_name(void **state)
{
    (void)state;
    for (int t = 0; t < DTYPE_COUNT; t++) {
        enum dtype found = DTYPE_COUNT;
        assert_true(dtype_from_safetensors(dtype_info((enum dtype)t)->safetensors, &found));
        assert_int_equal(found, t);
        assert_true(dtype_bytes(found) >= 1 && dtype_bytes(found) <= 8);
    }
    enum dtype untouched = DTYPE_U8;
    assert_false(dtype_from_safetensors("F4", &untouched));
    assert_int_equal(untouched, DTYPE_U8);
}

/* The examples of export-formats 1.2, and the ends of the range. */
static void e4m3_agrees_with_the_spot_checks_of_the_format(void **state)
{
    (void)state;
    static const struct {
        float x;
        uint8_t code;
    } cases[] = {
        {17, 0x58}, {19, 0x5a}, {432, 0x7e}, {464, 0x7e}, {448, 0x7e}, {1e30f, 0x7e}, {-1e30f, 0xfe}, {INFINITY, 0x7e},
        {0x1p-10f, 0x00}, {0.75f * 0x1p-9f, 0x01}, {1.5f * 0x1p-9f, 0x02}, {-0.0f, 0x80}, {0.0f, 0x00}, {1.0f, 0x38},
        {0x1p-6f, 0x08}, {0x1p-9f, 0x01}, {7.5f * 0x1p-9f, 0x08}, {-0x1p-149f, 0x80},
    };
    for (size_t i = 0; i < COUNT(cases); i++)
        if (e4m3_from_f32(cases[i].x) != cases[i].code)
            fail_msg("%g: expected 0x%02x, got 0x%02x", (double)cases[i].x, cases[i].code, e4m3_from_f32(cases[i].x));
    assert_true(e4m3_to_f32(0x7e) == 448 && e4m3_to_f32(0x01) == 0x1p-9f && e4m3_to_f32(0x08) == 0x1p-6f);
    assert_true(isnan(e4m3_to_f32(0x7f)) && isnan(e4m3_to_f32(0xff)));
}

/* Every code decodes by the formula and encodes to itself; between neighbours the nearer wins, on a tie the even. */
static void e4m3_rounds_to_the_nearest_even_of_all_codes(void **state)
{
    (void)state;
    for (int c = 0; c < 0x7f; c++) {
        double formula = c >= 8 ? (1 + (c & 7) / 8.0) * pow(2, (c >> 3) - 7) : c * pow(2, -9);
        float x = e4m3_to_f32((uint8_t)c);
        assert_true((double)x == formula);
        assert_int_equal(e4m3_from_f32(x), c);
        assert_int_equal(e4m3_from_f32(-x), c | 0x80);
        if (c == 0x7e)
            break;
        float next = e4m3_to_f32((uint8_t)(c + 1)), middle = (x + next) / 2; /* exact in f32 */
        assert_int_equal(e4m3_from_f32(middle), c & 1 ? c + 1 : c);
        assert_int_equal(e4m3_from_f32(nextafterf(middle, 0)), c);
        assert_int_equal(e4m3_from_f32(nextafterf(middle, 1000)), c + 1);
    }
}

static void half_precision_numbers_widen_exactly(void **state)
{
    (void)state;
    static const struct {
        uint16_t code;
        float x;
    } cases[] = {
        {0x3c00, 1}, {0xc000, -2}, {0x7bff, 65504}, {0x0400, 0x1p-14f}, {0x0001, 0x1p-24f}, {0x03ff, 1023 * 0x1p-24f},
        {0x0000, 0}, {0x8000, -0.0f}, {0x7c00, INFINITY}, {0xfc00, -INFINITY}, {0x3555, 0.333251953125f},
    };
    for (size_t i = 0; i < COUNT(cases); i++)
        assert_int_equal(f32_bits(f16_to_f32(cases[i].code)), f32_bits(cases[i].x));
    assert_true(isnan(f16_to_f32(0x7e00)));
}

static void bf16_rounds_to_nearest_even_and_keeps_nan(void **state)
{
    (void)state;
    static const struct {
        uint32_t bits;
        uint16_t code;
    } cases[] = {
        {0x3f800000, 0x3f80}, {0x3f808000, 0x3f80}, {0x3f818000, 0x3f82}, {0x3f808001, 0x3f81}, {0x7f7fffff, 0x7f80},
        {0x7f800000, 0x7f80}, {0xff800000, 0xff80}, {0x7f800001, 0x7fc0}, {0xffc00000, 0xffc0}, {0x80000000, 0x8000},
    };
    for (size_t i = 0; i < COUNT(cases); i++)
        assert_int_equal(bf16_from_f32(f32_from_bits(cases[i].bits)), cases[i].code);
    for (uint32_t c = 0; c < 0x10000; c++) /* every value that is a bf16 comes back */
        if ((c & 0x7fff) <= 0x7f80)
            assert_int_equal(bf16_from_f32(bf16_to_f32((uint16_t)c)), c);
}

static void float_dtypes_widen_from_unaligned_bytes(void **state)
{
    (void)state;
    static const struct {
        enum dtype t;
        unsigned char bytes[17];
    } cases[] = {
        {DTYPE_F32, {9, 0, 0, 0x80, 0x3f, 0, 0, 0, 0xc0}},
        {DTYPE_BF16, {9, 0x80, 0x3f, 0, 0xc0}},
        {DTYPE_F16, {9, 0, 0x3c, 0, 0xc0}},
        {DTYPE_F8_E4M3, {9, 0x38, 0xc0}},
        {DTYPE_F64, {9, 0, 0, 0, 0, 0, 0, 0xf0, 0x3f, 0, 0, 0, 0, 0, 0, 0, 0xc0}},
    };
    float out[2];
    struct err e;
    for (size_t i = 0; i < COUNT(cases); i++) {
        assert_ok(dtype_to_f32(cases[i].t, cases[i].bytes + 1, 2, out, &e), e);
        assert_true(out[0] == 1 && out[1] == -2);
    }
    assert_err(dtype_to_f32(DTYPE_I32, cases[0].bytes, 1, out, &e), e, ERR_INPUT, "i32");
}

static void tensor_views_borrow_their_rows(void **state)
{
    (void)state;
    float data[12];
    for (int i = 0; i < 12; i++)
        data[i] = (float)i;
    struct tensor m = tensor_matrix(data, DTYPE_F32, 4, 3), rows = tensor_rows(&m, 2, 2);
    assert_int_equal(tensor_count(&m), 12);
    assert_int_equal(tensor_count(&rows), 6);
    assert_true(*(float *)rows.data == 6 && !rows.owned && rows.device == TENSOR_HOST);
    assert_int_equal(tensor_vector(data, DTYPE_F32, 12).rank, 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(dtypes_are_found_by_their_safetensors_name),
        cmocka_unit_test(e4m3_agrees_with_the_spot_checks_of_the_format),
        cmocka_unit_test(e4m3_rounds_to_the_nearest_even_of_all_codes),
        cmocka_unit_test(half_precision_numbers_widen_exactly),
        cmocka_unit_test(bf16_rounds_to_nearest_even_and_keeps_nan),
        cmocka_unit_test(float_dtypes_widen_from_unaligned_bytes),
        cmocka_unit_test(tensor_views_borrow_their_rows),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
