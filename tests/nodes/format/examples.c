/* The worked examples of the format specification (export-formats 2): values that were computed independently of this
 * code, a function a format. */
#include "tests/nodes/format/rendered.h"

/* The columns of an example that has fewer than its format's block: the rest are zeros. */
#define MOST_COLUMNS 128

static void nvfp4_gives_the_worked_example_a(void **state)
{
    (void)state;
    static const float block0[16] = {.75f, -.75f, .625f, .4375f, .3125f, .21875f, .15625f, .09375f,
                                     .03125f, -.03125f, 0, -.625f, -.4375f, .0625f, -.1875f, .5f};
    static const uint16_t block1[16] = {0x3dcd, 0xbd4d, 0x3ca4, 0x3d07, 0xbda4, 0x3be5, 0x0000, 0x3d76,
                                        0xbdcd, 0x3c76, 0x3d38, 0xbccd, 0x3db8, 0xbc24, 0x3b83, 0x3d8f};
    static const uint8_t packed[24] = {0xf7, 0x66, 0x44, 0x22, 0x80, 0xe0, 0x1e, 0x6b, 0xd7, 0x42, 0x1e, 0x60,
                                       0x2f, 0xb5, 0x97, 0x60, 0,    0,    0,    0,    0,    0,    0,    0};
    static const uint8_t scales[3] = {0x7e, 0x67, 0x20}, global[4] = {0x00, 0x00, 0x60, 0x45};
    static const double expected[48] = {
        .75, -.75, .5, .5, .25, .25, .125, .125, 0, -0.0, 0, -.5, -.5, .0625, -.1875, .5,
        .100446425, -.0502232127, .0167410709, .0334821418, -.0669642836, .00837053545, 0, .0669642836,
        -.100446425, .0167410709, .0502232127, -.0251116063, .100446425, -.00837053545, 0, .0669642836,
        0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0};
    float w[48] = {0}, out[48];
    memcpy(w, block0, sizeof block0);
    widen(block1, 16, w + 16);
    struct rendering r = encoded(&format_nvfp4, w, 1, 48);
    assert_memory_equal(r.part[0], packed, sizeof packed);
    assert_memory_equal(r.part[1], scales, sizeof scales);
    assert_memory_equal(r.part[2], global, sizeof global);
    format_nvfp4.decode(&r, 0, 1, out);
    assert_floats(out, expected, 48, 1e-8);
    release(&r);
}

/* A row of one block in an MX format: its scale byte, its first eight codes, its first eight weights again. */
static void check_mx(const struct format *f, const float first[8], uint8_t scale, const uint8_t *codes, size_t n_codes,
                     const double expected[8])
{
    static const uint8_t nothing[32] = {0};
    float w[32] = {0}, out[32];
    double all[32] = {0};
    for (int i = 0; i < 8; i++)
        w[i] = bf16_to_f32(bf16_from_f32(first[i]));
    memcpy(all, expected, 8 * sizeof *all);
    struct rendering r = encoded(f, w, 1, 32);
    assert_int_equal(*(uint8_t *)r.part[1], scale);
    assert_memory_equal(r.part[0], codes, n_codes);
    assert_memory_equal((uint8_t *)r.part[0] + n_codes, nothing, part_bytes(&r, 0) - n_codes);
    f->decode(&r, 0, 1, out);
    assert_floats(out, all, 32, 0.0);
    release(&r);
}

static void mxfp4_gives_the_worked_examples(void **state)
{
    (void)state;
    static const float a[8] = {.75f, -.5f, .3125f, .09375f, -.03125f, .625f, -.4375f, .1875f};
    static const float b[8] = {.8984375f, -.5f, .3125f, .09375f, -.03125f, .625f, -.8125f, .1875f};
    static const double back_a[8] = {.75, -.5, .25, .125, -0.0, .5, -.5, .1875};
    static const double back_b[8] = {1.0, -.5, .25, .125, -0.0, .5, -.75, .25};
    check_mx(&format_mxfp4, a, 0x7c, (const uint8_t[]){0xe7, 0x24, 0x68, 0x3e}, 4, back_a);
    check_mx(&format_mxfp4, b, 0x7d, (const uint8_t[]){0xc6, 0x12, 0x48, 0x2d}, 4, back_b);
    check_mx(&format_mxfp4_a16, a, 0x7c, (const uint8_t[]){0xe7, 0x24, 0x68, 0x3e}, 4, back_a);
}

static void mxfp4_chooses_the_exponents_of_the_specification(void **state)
{
    (void)state;
    static const struct {
        float amax;
        uint8_t scale;
    } cases[] = {{.75f, 124}, {.80078125f, 124}, {.87109375f, 124}, {.875f, 125}, {.8984375f, 125}, {1.0f, 125}};
    for (size_t c = 0; c < COUNT(cases); c++) {
        for (int sign = -1; sign <= 1; sign += 2) {
            float w[32] = {0.0f, (float)sign * cases[c].amax, .125f};
            struct rendering r = encoded(&format_mxfp4, w, 1, 32);
            assert_int_equal(*(uint8_t *)r.part[1], cases[c].scale);
            release(&r);
            r = encoded(&format_mxfp8, w, 1, 32); /* the same rule, six binades lower */
            assert_int_equal(*(uint8_t *)r.part[1], cases[c].scale - 6);
            release(&r);
        }
    }
}

static void mxfp8_gives_the_worked_example(void **state)
{
    (void)state;
    static const float a[8] = {.75f, -.5f, .3125f, .1f, -.03125f, .001f, -.0001f, 0.0f}, b[8] = {.8984375f, .5f};
    static const double back_a[8] = {.75, -.5, .3125, .1015625, -.03125, .0009765625, -9.918212890625e-5, 0};
    static const double back_b[8] = {.875, .5}; /* 224 and 128 steps of 2^-8 */
    check_mx(&format_mxfp8, a, 0x76, (const uint8_t[]){0x7c, 0xf8, 0x72, 0x65, 0xd8, 0x30, 0x95, 0}, 8, back_a);
    check_mx(&format_mxfp8, b, 0x77, (const uint8_t[]){0x76, 0x70}, 2, back_b);
    check_mx(&format_mxfp8_a16, a, 0x76, (const uint8_t[]){0x7c, 0xf8, 0x72, 0x65, 0xd8, 0x30, 0x95, 0}, 8, back_a);
}

static void fp8_gives_the_worked_examples(void **state)
{
    (void)state;
    static const struct {
        int n;
        uint16_t w[10];
        uint32_t scale;
        uint8_t code[10];
        double out[10];
    } cases[] = {
        {10, {0x4060, 0xc060, 0x3f80, 0xbe9a, 0x3d80, 0x3c24, 0x8000, 0x4002, 0x3b80, 0x3852}, 0x3c000000,
         {0x7e, 0xfe, 0x70, 0xe2, 0x50, 0x3a, 0x80, 0x78, 0x30, 0x03},
         {3.5, -3.5, 1, -.3125, .0625, .009765625, -0.0, 2, .00390625, 4.57763671875e-5}},
        {6, {0x3dcd, 0xbd96, 0x3d4d, 0x3c4d, 0xbb4b, 0x3a38}, 0x396a4925, {0x7e, 0xfa, 0x76, 0x66, 0xd6, 0x45},
         {.100097659, -.0714983279, .0500488295, .0125122074, -.00312805185, .000726154893}},
    };
    static const struct format *const all[] = {&format_fp8, &format_fp8_a16, &format_fp8_block};
    for (size_t c = 0; c < COUNT(cases) * COUNT(all); c++) { /* a row is a tile, too */
        const struct format *f = all[c % COUNT(all)];
        size_t i = c / COUNT(all);
        float w[10], out[10];
        int k = cases[i].n;
        widen(cases[i].w, (size_t)k, w);
        struct rendering r = encoded(f, w, 1, k);
        assert_int_equal(f32_bits(*(float *)r.part[1]), cases[i].scale);
        assert_memory_equal(r.part[0], cases[i].code, (size_t)k);
        f->decode(&r, 0, 1, out);
        assert_floats(out, cases[i].out, (size_t)k, 6e-8); /* half a step of f32: they were worked in f64 */
        release(&r);
    }
}

/* Export-formats 1.2. The row's maximum is 448, so that its scale is 1 and codes are those of the values. */
static void e4m3_codes_are_those_of_the_specification(void **state)
{
    (void)state;
    const float w[9] = {448.0f, 17.0f, 19.0f, 432.0f, 0x1p-10f, 0.75f * 0x1p-9f, 1.5f * 0x1p-9f, -0.0f, 1.0f};
    static const uint8_t codes[9] = {0x7e, 0x58, 0x5a, 0x7e, 0x00, 0x01, 0x02, 0x80, 0x38};
    struct rendering r = encoded(&format_fp8, w, 1, 9);
    assert_memory_equal(r.part[0], codes, sizeof codes);
    assert_int_equal(e4m3_from_f32(464.0f), 0x7e);
    assert_int_equal(e4m3_from_f32(-1e9f), 0xfe);
    assert_true(e4m3_to_f32(0x7e) == 448.0f && e4m3_to_f32(0x08) == 0x1p-6f && e4m3_to_f32(0x01) == 0x1p-9f);
    release(&r);
}

static void fp8_block_has_a_scale_per_tile(void **state)
{
    (void)state;
    enum { N = 256, K = 384 };
    float *w = gaussian(N * K, 0.02f), out[K];
    struct format_part parts[FORMAT_PARTS];
    assert_int_equal(format_fp8_block.parts(N, K, DTYPE_BF16, parts), 2);
    assert_int_equal(parts[1].shape[0], 2);
    assert_int_equal(parts[1].shape[1], 3);
    for (int tile = 0; tile < 6; tile++) /* the largest of tile (i, j) is its number from 1 on, times 3.5 */
        w[(tile / 3 * 128 + 5 * tile) * K + tile % 3 * 128 + 7] = (tile % 2 ? -3.5f : 3.5f) * (float)(tile + 1);
    struct rendering r = encoded(&format_fp8_block, w, N, K);
    for (int tile = 0; tile < 6; tile++) {
        assert_true(((float *)r.part[1])[tile] == (float)(tile + 1) * 3.5f / 448.0f);
        int64_t row = tile / 3 * 128 + 5 * tile, column = tile % 3 * 128 + 7;
        assert_int_equal(((uint8_t *)r.part[0])[row * K + column], tile % 2 ? 0xfe : 0x7e);
        format_fp8_block.decode(&r, row, 1, out);
        assert_true(out[column] == w[row * K + column]);
    }
    release(&r);
    free(w);
}

static void int8_gives_the_worked_example(void **state)
{
    (void)state;
    static const float w[8] = {1.0f, -1.0f, .5f, -.25f, .1f, .004f, 0.0f, -.77f};
    static const uint8_t codes[8] = {0x7f, 0x81, 0x40, 0xe0, 0x0d, 0x01, 0x00, 0x9e};
    static const double expected[8] = {.99607849, -.99607849, .501960814, -.250980407,
                                       .10196079, .00784313772, 0, -.768627496};
    float bf16[8], out[8];
    for (int i = 0; i < 8; i++)
        bf16[i] = bf16_to_f32(bf16_from_f32(w[i]));
    struct rendering r = encoded(&format_int8, bf16, 1, 8);
    assert_int_equal(f32_bits(*(float *)r.part[1]), 0x3c008081);
    assert_memory_equal(r.part[0], codes, sizeof codes);
    format_int8.decode(&r, 0, 1, out);
    assert_floats(out, expected, 8, 6e-8);
    release(&r);
}

/* The word of the specification: codes 1, -1, 127, -128. */
static void int8_a16_packs_the_words_of_the_specification(void **state)
{
    (void)state;
    struct rendering r = rendering_of(&format_int8_a16, 1, 4, DTYPE_BF16);
    float out[4];
    *(uint32_t *)r.part[0] = 0x00ff7f81u;
    *(uint16_t *)r.part[1] = 0x3f80;
    format_int8_a16.decode(&r, 0, 1, out);
    assert_floats(out, (const double[]){1, -1, 127, -128}, 4, 0.0);
    release(&r);
    /* bf16(127.5 / 127.5) = 1; 127.5 and its negative both tie to the even 128, which only the negative end has. */
    const float w[4] = {1.0f, -1.0f, 127.5f, -127.5f};
    r = encoded(&format_int8_a16, w, 1, 4);
    assert_int_equal(*(uint16_t *)r.part[1], 0x3f80);
    assert_int_equal(*(uint32_t *)r.part[0], 0x00ff7f81u);
    assert_int_equal(((int64_t *)r.part[2])[0], 1);
    assert_int_equal(((int64_t *)r.part[2])[1], 4);
    release(&r);
}

static void int4_gives_the_worked_example(void **state)
{
    (void)state;
    static const struct format *const all[] = {&format_int4_g32, &format_int4_g64, &format_int4_g128};
    static const float w[8] = {.75f, -.75f, .1f, -.25f, .35f, .05f, -.6f, 0.0f};
    static const double expected[8] = {.70068359375, -.70068359375, .10009765625, -.2001953125,
                                       .30029296875, 0, -.6005859375, 0};
    for (size_t f = 0; f < COUNT(all); f++) {
        int k = all[f]->k_multiple;
        float bf16[MOST_COLUMNS] = {0}, out[MOST_COLUMNS];
        double back[MOST_COLUMNS] = {0};
        for (int i = 0; i < 8; i++)
            bf16[i] = bf16_to_f32(bf16_from_f32(w[i]));
        memcpy(back, expected, sizeof expected);
        struct rendering r = encoded(all[f], bf16, 1, k);
        const uint32_t *words = r.part[0];
        assert_int_equal(*(uint16_t *)r.part[1], 0x3dcd);
        assert_memory_equal(words, ((const uint8_t[]){0x1f, 0x69, 0x8b, 0x82}), 4);
        assert_int_equal(words[0], 0x828b691fu);
        for (int i = 1; i < k / 8; i++)
            assert_int_equal(words[i], 0x88888888u);
        assert_int_equal(((int64_t *)r.part[2])[0], 1);
        assert_int_equal(((int64_t *)r.part[2])[1], k);
        all[f]->decode(&r, 0, 1, out);
        assert_floats(out, back, (size_t)k, 0.0);
        release(&r);
    }
}

/* Export-formats 1.1, 1.3 and 1.4: which bits of a packed row are which column's, in all formats of four bits. */
static void the_lower_column_lies_in_the_low_half_of_a_byte(void **state)
{
    (void)state;
    for (const struct format *const *f = formats; *f; f++) {
        const struct grid *g = &weight_grid[(*f)->code];
        float out[MOST_COLUMNS];
        if (grid_bits(g->element) != 4)
            continue;
        struct rendering r = rendering_of(*f, 1, MOST_COLUMNS, DTYPE_BF16);
        for (int i = 0; i < MOST_COLUMNS / 2; i++)
            ((uint8_t *)r.part[0])[i] = (uint8_t)(i % 16 | (i * 7 + 3) % 16 << 4);
        if (g->scale == SCALE_BF16)
            for (int i = 0; i < MOST_COLUMNS / g->columns; i++)
                ((uint16_t *)r.part[1])[i] = 0x4000; /* 2 */
        else /* 2^1 of E8M0, or 2 of E4M3 under the divisor 1 */
            memset(r.part[1], g->scale == SCALE_E8M0 ? 128 : 0x40, part_bytes(&r, 1));
        if (g->scale == SCALE_E4M3)
            *(float *)r.part[2] = 1.0f;
        (*f)->decode(&r, 0, 1, out);
        for (int i = 0; i < MOST_COLUMNS; i++) {
            int code = i % 2 ? (i / 2 * 7 + 3) % 16 : i / 2 % 16;
            static const float e2m1[8] = {0, .5f, 1, 1.5f, 2, 3, 4, 6};
            float value = g->element == ELEMENT_U4B8 ? (float)(code - 8)
                                                     : code & 8 ? -e2m1[code & 7] : e2m1[code & 7];
            if (out[i] != 2.0f * value)
                fail_msg("%s: column %d, code %d is %g", (*f)->name, i, code, (double)out[i]);
        }
        release(&r);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(nvfp4_gives_the_worked_example_a),
        cmocka_unit_test(mxfp4_gives_the_worked_examples),
        cmocka_unit_test(mxfp4_chooses_the_exponents_of_the_specification),
        cmocka_unit_test(mxfp8_gives_the_worked_example),
        cmocka_unit_test(fp8_gives_the_worked_examples),
        cmocka_unit_test(e4m3_codes_are_those_of_the_specification),
        cmocka_unit_test(fp8_block_has_a_scale_per_tile),
        cmocka_unit_test(int8_gives_the_worked_example),
        cmocka_unit_test(int8_a16_packs_the_words_of_the_specification),
        cmocka_unit_test(int4_gives_the_worked_example),
        cmocka_unit_test(the_lower_column_lies_in_the_low_half_of_a_byte),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
