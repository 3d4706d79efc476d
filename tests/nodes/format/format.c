/* The formats against the worked examples of the format specification (values computed independently of this code),
 * against brute-force rounding, and against error budgets. */
#include "nodes/format/format.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

/* Relative RMS error of i.i.d. Gaussian bf16 weights, K = 4096, with a margin of 4 % either way. */
#define BUDGET_NVFP4 0.095
#define BUDGET_FP8 0.0265
#define BUDGET_MARGIN 0.04

static struct rendering rendering_of(const struct format *f, int64_t n, int64_t k, enum dtype source)
{
    struct err e = {0};
    struct rendering r = {0};
    if (!format_rendering_new(&r, f, n, k, source, &e))
        fail_msg("%s", e.text);
    return r;
}

static void release(struct rendering *r)
{
    for (int i = 0; i < FORMAT_PARTS; i++)
        mem_free(r->part[i]);
    *r = (struct rendering){0};
}

static struct rendering encoded(const struct format *f, const float *w, int64_t n, int64_t k)
{
    struct err e = {0};
    float amax = 0.0f;
    struct rendering r = rendering_of(f, n, k, DTYPE_BF16);
    if (!format_amax(w, n, k, &amax, &e) || !f->encode(w, amax, &r, &e))
        fail_msg("%s", e.text);
    return r;
}

/* Values around 1, normally distributed, rounded to bf16; the same on every machine. */
static float *gaussian(int64_t count, float sigma)
{
    float *w = malloc((size_t)count * sizeof *w);
    assert_non_null(w);
    uint64_t state = 1;
    for (int64_t i = 0; i < count; i++) {
        double sum = -6.0;
        for (int j = 0; j < 12; j++) {
            state = state * 6364136223846793005u + 1442695040888963407u;
            sum += (double)(state >> 11) / 9007199254740992.0;
        }
        w[i] = bf16_to_f32(bf16_from_f32((float)sum * sigma));
    }
    return w;
}

static void assert_floats(const float *got, const double *expected, size_t n, double tolerance)
{
    for (size_t i = 0; i < n; i++)
        if (fabs((double)got[i] - expected[i]) > tolerance * fabs(expected[i]) ||
            signbit((double)got[i]) != signbit(expected[i]))
            fail_msg("element %zu is %.9g, expected %.9g", i, (double)got[i], expected[i]);
}

/* --------------------------------------------------------------------------------------------------------- examples */

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
    for (int i = 0; i < 16; i++)
        w[16 + i] = bf16_to_f32(block1[i]);
    struct rendering r = encoded(&format_nvfp4, w, 1, 48);
    assert_memory_equal(r.part[0], packed, sizeof packed);
    assert_memory_equal(r.part[1], scales, sizeof scales);
    assert_memory_equal(r.part[2], global, sizeof global);
    format_nvfp4.decode(&r, 0, 1, out);
    assert_floats(out, expected, 48, 1e-8);
    release(&r);
}

static void nvfp4_a16_has_the_same_parts_as_nvfp4(void **state)
{
    (void)state;
    float *w = gaussian(8 * 64, 0.02f);
    struct rendering a = encoded(&format_nvfp4, w, 8, 64), b = encoded(&format_nvfp4_a16, w, 8, 64);
    assert_memory_equal(a.part[0], b.part[0], 8 * 32);
    assert_memory_equal(a.part[1], b.part[1], 8 * 4);
    assert_memory_equal(a.part[2], b.part[2], 4);
    assert_int_equal(format_nvfp4.act, ACT_NVFP4);
    assert_int_equal(format_nvfp4_a16.act, ACT_NONE);
    release(&a);
    release(&b);
    free(w);
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
    for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
        float w[10], out[10];
        int k = cases[c].n;
        for (int i = 0; i < k; i++)
            w[i] = bf16_to_f32(cases[c].w[i]);
        struct rendering r = encoded(&format_fp8, w, 1, k);
        assert_int_equal(f32_bits(*(float *)r.part[1]), cases[c].scale);
        assert_memory_equal(r.part[0], cases[c].code, (size_t)k);
        format_fp8.decode(&r, 0, 1, out);
        assert_floats(out, cases[c].out, (size_t)k, 6e-8); /* half a step of f32: they were worked in f64 */
        release(&r);
    }
}

static void e4m3_codes_are_those_of_the_specification(void **state)
{
    (void)state;
    /* The row's maximum is 448, so that its scale is 1 and codes are those of the values. */
    const float w[8] = {448.0f, 17.0f, 19.0f, 432.0f, 0x1p-10f, 0.75f * 0x1p-9f, 1.5f * 0x1p-9f, -0.0f};
    static const uint8_t codes[8] = {0x7e, 0x58, 0x5a, 0x7e, 0x00, 0x01, 0x02, 0x80};
    struct rendering r = encoded(&format_fp8, w, 1, 8);
    assert_memory_equal(r.part[0], codes, sizeof codes);
    assert_int_equal(e4m3_from_f32(464.0f), 0x7e);
    assert_int_equal(e4m3_from_f32(-1e9f), 0xfe);
    release(&r);
}

/* --------------------------------------------------------------------------------------------------------- rounding */

/* Code of x by search: the nearest magnitude, and of two equally near ones that with the even index. */
static uint8_t nearest_e2m1(float x)
{
    static const double value[8] = {0, .5, 1, 1.5, 2, 3, 4, 6};
    int best = 0;
    for (int i = 1; i < 8; i++) {
        double now = fabs(fabs((double)x) - value[i]), before = fabs(fabs((double)x) - value[best]);
        if (now < before || (now == before && i % 2 == 0))
            best = i;
    }
    return (uint8_t)(best | (signbit(x) ? 8 : 0));
}

/* One block whose scales are all 1 (unit maximum 2688, block maximum 6), so that codes are those of the values. */
static void assert_e2m1(const float x[14])
{
    struct err e = {0};
    float w[16];
    memcpy(w, x, 14 * sizeof *x);
    w[14] = 6.0f;
    w[15] = -6.0f;
    struct rendering r = rendering_of(&format_nvfp4, 1, 16, DTYPE_BF16);
    assert_true(format_nvfp4.encode(w, 2688.0f, &r, &e));
    assert_int_equal(*(uint8_t *)r.part[1], 0x38);
    for (int i = 0; i < 14; i++) {
        uint8_t code = ((uint8_t *)r.part[0])[i / 2] >> (i % 2 * 4) & 15;
        if (code != nearest_e2m1(w[i]))
            fail_msg("%.9g has code %d, expected %d", (double)w[i], code, nearest_e2m1(w[i]));
    }
    release(&r);
}

static void e2m1_rounds_every_tie_to_the_even_index(void **state)
{
    (void)state;
    static const float ties[7] = {.25f, .75f, 1.25f, 1.75f, 2.5f, 3.5f, 5.0f};
    static const uint8_t codes[7] = {0, 2, 2, 4, 4, 6, 6};
    float at[14], below[14], above[14];
    for (int i = 0; i < 7; i++) {
        assert_int_equal(nearest_e2m1(ties[i]), codes[i]);
        for (int s = 0; s < 2; s++) {
            at[2 * i + s] = s ? -ties[i] : ties[i];
            below[2 * i + s] = nextafterf(at[2 * i + s], 0.0f);
            above[2 * i + s] = nextafterf(at[2 * i + s], s ? -9.0f : 9.0f);
        }
    }
    assert_e2m1(at);
    assert_e2m1(below);
    assert_e2m1(above);
}

static void e2m1_rounds_a_fine_grid_to_the_nearest(void **state)
{
    (void)state;
    for (int i = -6 * 512; i <= 6 * 512; i += 14) {
        float x[14];
        for (int j = 0; j < 14; j++)
            x[j] = (float)(i + j > 6 * 512 ? 6 * 512 : i + j) / 512.0f;
        assert_e2m1(x);
    }
}

static void nvfp4_saturates_what_the_rounded_scale_cannot_reach(void **state)
{
    (void)state;
    /* s_raw = 17 rounds down to 16, so that the block's maximum is 6.375 steps away: the code stays 7. */
    struct err e = {0};
    float w[16] = {102.0f, -102.0f}, out[16];
    struct rendering r = rendering_of(&format_nvfp4, 1, 16, DTYPE_BF16);
    assert_true(format_nvfp4.encode(w, 2688.0f, &r, &e));
    assert_int_equal(*(uint8_t *)r.part[1], 0x58);
    assert_int_equal(*(uint8_t *)r.part[0], 0xf7);
    format_nvfp4.decode(&r, 0, 1, out);
    assert_true(out[0] == 96.0f && out[1] == -96.0f);
    release(&r);
}

/* ------------------------------------------------------------------------------------------------------ hard values */

static void nvfp4_scale_bytes_stay_within_bounds(void **state)
{
    (void)state;
    enum { BLOCKS = 64 };
    float w[BLOCKS * 16] = {0}, out[BLOCKS * 16];
    for (int b = 0; b < BLOCKS; b++) /* block maxima from 1 down to 2^-63, in one unit; the last block is zero */
        w[b * 16 + b % 16] = b < BLOCKS - 1 ? ldexpf(1.0f, -b) : 0.0f;
    struct rendering r = encoded(&format_nvfp4, w, 1, BLOCKS * 16);
    const uint8_t *scale = r.part[1];
    for (int b = 0; b < BLOCKS; b++)
        assert_in_range(scale[b], 0x08, 0x7e);
    assert_int_equal(scale[0], 0x7e);
    assert_int_equal(scale[20], 0x08);
    assert_int_equal(scale[BLOCKS - 1], 0x20);
    format_nvfp4.decode(&r, 0, 1, out);
    for (int i = 0; i < BLOCKS * 16; i++)
        assert_true(isfinite(out[i]));
    release(&r);
}

static void zero_matrices_decode_to_zero(void **state)
{
    (void)state;
    float w[4 * 32], out[4 * 32];
    for (const struct format *const *f = formats; *f; f++) {
        for (int i = 0; i < 4 * 32; i++)
            w[i] = i % 3 ? 0.0f : -0.0f;
        struct rendering r = encoded(*f, w, 4, 32);
        if (*f != &format_bf16)
            for (int i = 0; i < 4 * 16; i++)
                assert_int_equal(((uint8_t *)r.part[0])[i], 0);
        (*f)->decode(&r, 0, 4, out);
        for (int i = 0; i < 4 * 32; i++)
            assert_true(out[i] == 0.0f);
        if (*f == &format_fp8)
            for (int i = 0; i < 4; i++)
                assert_true(((float *)r.part[1])[i] == 1.0f);
        if (*f == &format_nvfp4)
            assert_true(*(float *)r.part[2] == 1.0f);
        release(&r);
    }
}

static void denormals_and_extremes_decode_to_finite_values(void **state)
{
    (void)state;
    static const float cases[] = {1e-45f, 1e-40f, 1.17549435e-38f, 2e-36f, 8e-36f, 1e-30f, 1.0f, 1e30f, 3.3e38f};
    for (const struct format *const *f = formats; *f; f++) {
        for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
            float w[32], out[32];
            for (int i = 0; i < 32; i++)
                w[i] = cases[c] * ((float)(i % 5 - 2) / 2.0f);
            struct rendering r = rendering_of(*f, 2, 16, DTYPE_F32);
            struct err e = {0};
            float amax = 0.0f;
            assert_true(format_amax(w, 2, 16, &amax, &e) && (*f)->encode(w, amax, &r, &e));
            (*f)->decode(&r, 0, 2, out);
            for (int i = 0; i < 32; i++)
                if (!isfinite(out[i]) || fabsf(out[i] - w[i]) > amax)
                    fail_msg("%s: %.9g decodes to %.9g", (*f)->name, (double)w[i], (double)out[i]);
            if (!(*f)->group_format)
                assert_memory_equal(out, w, sizeof w);
            release(&r);
        }
    }
}

static void nan_and_infinity_are_refused_with_their_place(void **state)
{
    (void)state;
    for (const struct format *const *f = formats; *f; f++) {
        for (int bad = 0; bad < 2; bad++) {
            float w[3 * 16] = {0};
            struct err e = {0};
            w[2 * 16 + 5] = bad ? -INFINITY : NAN;
            struct rendering r = rendering_of(*f, 3, 16, DTYPE_BF16);
            assert_false((*f)->encode(w, 1.0f, &r, &e));
            assert_int_equal(e.code, ERR_NUMERIC);
            assert_non_null(strstr(e.text, "[2, 5]"));
            assert_non_null(strstr(e.text, bad ? "infinite" : "NaN"));
            release(&r);
        }
    }
}

/* --------------------------------------------------------------------------------------------------- sizes and fits */

static void bytes_are_those_of_the_summary_table(void **state)
{
    (void)state;
    static const struct {
        const struct format *f;
        int64_t n, k;
        enum dtype source;
        uint64_t bytes;
    } cases[] = {
        {&format_nvfp4, 128, 352, DTYPE_BF16, 128 * 176 + 128 * 22 + 4 + 4},
        {&format_nvfp4_a16, 128, 352, DTYPE_BF16, 128 * 176 + 128 * 22 + 4},
        {&format_fp8, 128, 352, DTYPE_BF16, 128 * 352 + 128 * 4},
        {&format_bf16, 128, 352, DTYPE_BF16, 128 * 352 * 2},
        {&format_bf16, 128, 352, DTYPE_F16, 128 * 352 * 2},
        {&format_bf16, 128, 352, DTYPE_F32, 128 * 352 * 4},
        {&format_fp8, 3, 172, DTYPE_F32, 3 * 172 + 3 * 4},
        {&format_nvfp4, 64, 172, DTYPE_BF16, 64 * 88 + 64 * 11 + 4 + 4}, /* does not fit: as if padded to 176 */
    };
    for (size_t c = 0; c < sizeof cases / sizeof *cases; c++)
        assert_int_equal(format_bytes(cases[c].f, cases[c].n, cases[c].k, cases[c].source), cases[c].bytes);
}

static void parts_have_the_names_and_shapes_of_the_summary_table(void **state)
{
    (void)state;
    static const struct {
        const struct format *f;
        int count;
        struct format_part parts[3];
    } cases[] = {
        {&format_nvfp4, 3, {{"weight_packed", DTYPE_U8, 2, {48, 32}}, {"weight_scale", DTYPE_F8_E4M3, 2, {48, 4}},
                            {"weight_global_scale", DTYPE_F32, 1, {1}}}},
        {&format_fp8, 2, {{"weight", DTYPE_F8_E4M3, 2, {48, 64}}, {"weight_scale", DTYPE_F32, 2, {48, 1}}}},
        {&format_bf16, 1, {{"weight", DTYPE_F16, 2, {48, 64}}}},
    };
    for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
        struct format_part got[FORMAT_PARTS];
        assert_int_equal(cases[c].f->parts(48, 64, DTYPE_F16, got), cases[c].count);
        for (int i = 0; i < cases[c].count; i++) {
            const struct format_part *p = &cases[c].parts[i];
            assert_string_equal(got[i].suffix, p->suffix);
            assert_int_equal(got[i].dtype, p->dtype);
            assert_int_equal(got[i].rank, p->rank);
            for (int d = 0; d < p->rank; d++)
                assert_int_equal(got[i].shape[d], p->shape[d]);
        }
    }
}

static void a_format_fits_when_its_blocks_divide_the_columns(void **state)
{
    (void)state;
    assert_true(format_fits(&format_nvfp4, 1, 16));
    assert_false(format_fits(&format_nvfp4, 64, 172));
    assert_false(format_fits(&format_nvfp4_a16, 64, 8));
    assert_true(format_fits(&format_fp8, 64, 172));
    assert_true(format_fits(&format_bf16, 1, 1));
    struct err e = {0};
    float w[24] = {1.0f};
    struct rendering r = rendering_of(&format_nvfp4, 1, 24, DTYPE_BF16);
    assert_false(format_nvfp4.encode(w, 1.0f, &r, &e));
    assert_int_equal(e.code, ERR_BUG);
    release(&r);
}

static void every_listed_name_is_a_format(void **state)
{
    (void)state;
    size_t n = 0;
    for (; format_names[n]; n++)
        assert_ptr_equal(format_find(format_names[n]), formats[n]);
    assert_null(formats[n]);
    assert_null(format_find("int3"));
}

/* ------------------------------------------------------------------------------------------------------ round trips */

static void bf16_keeps_every_finite_value_of_the_source(void **state)
{
    (void)state;
    static const enum dtype types[] = {DTYPE_BF16, DTYPE_F16};
    for (size_t t = 0; t < 2; t++) {
        struct err e = {0};
        uint16_t *source = malloc(65536 * sizeof *source);
        float *w = malloc(65536 * sizeof *w), *out = malloc(65536 * sizeof *out);
        int64_t n = 0;
        for (uint32_t i = 0; i < 65536; i++) {
            uint16_t bits = (uint16_t)i;
            float x = types[t] == DTYPE_BF16 ? bf16_to_f32(bits) : f16_to_f32(bits);
            if (isfinite(x)) {
                source[n] = bits;
                w[n++] = x;
            }
        }
        struct rendering r = rendering_of(&format_bf16, n, 1, types[t]);
        assert_true(format_bf16.encode(w, 0.0f, &r, &e));
        assert_memory_equal(r.part[0], source, (size_t)n * 2);
        format_bf16.decode(&r, 0, n, out);
        assert_memory_equal(out, w, (size_t)n * sizeof *w);
        release(&r);
        free(source);
        free(w);
        free(out);
    }
}

static void decoding_by_rows_gives_the_bits_of_decoding_at_once(void **state)
{
    (void)state;
    float *w = gaussian(37 * 48, 0.02f), all[37 * 48], rows[37 * 48];
    for (const struct format *const *f = formats; *f; f++) {
        struct rendering r = encoded(*f, w, 37, 48);
        (*f)->decode(&r, 0, 37, all);
        for (int64_t first = 0, n = 1; first < 37; first += n, n = n % 5 + 1) {
            n = first + n > 37 ? 37 - first : n;
            (*f)->decode(&r, first, n, rows + first * 48);
        }
        assert_memory_equal(rows, all, sizeof all);
        release(&r);
    }
    free(w);
}

static double relative_rms(const struct format *f, const float *w, int64_t n, int64_t k)
{
    struct rendering r = encoded(f, w, n, k);
    float *out = malloc((size_t)(n * k) * sizeof *out);
    double lost = 0.0, whole = 0.0;
    f->decode(&r, 0, n, out);
    for (int64_t i = 0; i < n * k; i++) {
        lost += ((double)out[i] - (double)w[i]) * ((double)out[i] - (double)w[i]);
        whole += (double)w[i] * (double)w[i];
    }
    release(&r);
    free(out);
    return sqrt(lost / whole);
}

static void errors_of_gaussian_weights_are_within_the_budget(void **state)
{
    (void)state;
    static const struct {
        const struct format *f;
        double budget;
    } cases[] = {{&format_nvfp4, BUDGET_NVFP4}, {&format_nvfp4_a16, BUDGET_NVFP4}, {&format_fp8, BUDGET_FP8}};
    float *w = gaussian(64 * 4096, 0.02f);
    for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
        double got = relative_rms(cases[c].f, w, 64, 4096);
        if (fabs(got / cases[c].budget - 1.0) > BUDGET_MARGIN)
            fail_msg("%s: relative RMS error %.5f, expected %.5f", cases[c].f->name, got, cases[c].budget);
    }
    assert_true(relative_rms(&format_bf16, w, 64, 4096) == 0.0);
    free(w);
}

/* Encoding what was decoded changes nothing: the decoded values lie on the grid that they came from. */
static void encoding_decoded_weights_again_is_stable(void **state)
{
    (void)state;
    float *w = gaussian(16 * 64, 0.05f), once[16 * 64], twice[16 * 64];
    for (const struct format *const *f = formats; *f; f++) {
        struct rendering r = encoded(*f, w, 16, 64);
        (*f)->decode(&r, 0, 16, once);
        release(&r);
        r = encoded(*f, once, 16, 64);
        (*f)->decode(&r, 0, 16, twice);
        release(&r);
        for (int i = 0; i < 16 * 64; i++)
            if (fabsf(twice[i] - once[i]) > 0.03f * fabsf(once[i]))
                fail_msg("%s: element %d is %.9g, then %.9g", (*f)->name, i, (double)once[i], (double)twice[i]);
    }
    free(w);
}

static void running_out_of_memory_leaves_nothing_behind(void **state)
{
    (void)state;
    for (long nth = 1; nth <= 3; nth++) {
        struct err e = {0};
        struct rendering r = {.n = -1};
        mem_fail_after(nth, false);
        bool ok = format_rendering_new(&r, &format_nvfp4, 16, 64, DTYPE_BF16, &e);
        mem_fail_after(0, false);
        assert_false(ok);
        assert_int_equal(e.code, ERR_RESOURCE);
        assert_int_equal(r.n, -1);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(nvfp4_gives_the_worked_example_a),
        cmocka_unit_test(nvfp4_a16_has_the_same_parts_as_nvfp4),
        cmocka_unit_test(fp8_gives_the_worked_examples),
        cmocka_unit_test(e4m3_codes_are_those_of_the_specification),
        cmocka_unit_test(e2m1_rounds_every_tie_to_the_even_index),
        cmocka_unit_test(e2m1_rounds_a_fine_grid_to_the_nearest),
        cmocka_unit_test(nvfp4_saturates_what_the_rounded_scale_cannot_reach),
        cmocka_unit_test(nvfp4_scale_bytes_stay_within_bounds),
        cmocka_unit_test(zero_matrices_decode_to_zero),
        cmocka_unit_test(denormals_and_extremes_decode_to_finite_values),
        cmocka_unit_test(nan_and_infinity_are_refused_with_their_place),
        cmocka_unit_test(bytes_are_those_of_the_summary_table),
        cmocka_unit_test(parts_have_the_names_and_shapes_of_the_summary_table),
        cmocka_unit_test(a_format_fits_when_its_blocks_divide_the_columns),
        cmocka_unit_test(every_listed_name_is_a_format),
        cmocka_unit_test(bf16_keeps_every_finite_value_of_the_source),
        cmocka_unit_test(decoding_by_rows_gives_the_bits_of_decoding_at_once),
        cmocka_unit_test(errors_of_gaussian_weights_are_within_the_budget),
        cmocka_unit_test(encoding_decoded_weights_again_is_stable),
        cmocka_unit_test(running_out_of_memory_leaves_nothing_behind),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
