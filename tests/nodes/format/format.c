/* What holds for every format: sizes and names, hard values, round trips, error budgets; and E2M1's ties as a rendering
 * has them. The worked examples are in examples.c, codes and scales apart from formats in tests/kernels/grid.c. */
#include "tests/nodes/format/rendered.h"

/* Relative RMS errors of i.i.d. Gaussian bf16 weights, K = 4096 (export-formats 9.7), with a margin of 4 % either
 * way. */
#define BUDGET_NVFP4 0.095
#define BUDGET_MXFP4 0.1125
#define BUDGET_FP8 0.0265
#define BUDGET_MXFP8 0.0266
#define BUDGET_INT8 0.0086
#define BUDGET_INT4_G128 0.110
#define BUDGET_INT4_G64 0.102
#define BUDGET_INT4_G32 0.094
#define BUDGET_MARGIN 0.04

#define MOST_MULTIPLE 128 /* of all formats' k_multiple */

static void siblings_differ_in_the_input_alone(void **state)
{
    (void)state;
    static const struct {
        const struct format *a, *b;
        enum act_rule act;
    } cases[] = {{&format_nvfp4, &format_nvfp4_a16, ACT_NVFP4}, {&format_mxfp4, &format_mxfp4_a16, ACT_MXFP4},
                 {&format_fp8, &format_fp8_a16, ACT_FP8_TOKEN}, {&format_mxfp8, &format_mxfp8_a16, ACT_MXFP8}};
    float *w = gaussian(8 * 64, 0.02f);
    for (size_t c = 0; c < COUNT(cases); c++) {
        struct format_part parts[FORMAT_PARTS];
        int count = cases[c].b->parts(8, 64, DTYPE_BF16, parts);
        struct rendering a = encoded(cases[c].a, w, 8, 64), b = encoded(cases[c].b, w, 8, 64);
        for (int i = 0; i < count; i++)
            assert_memory_equal(a.part[i], b.part[i], format_part_bytes(&parts[i]));
        assert_int_equal(cases[c].a->act, cases[c].act);
        assert_int_equal(cases[c].b->act, ACT_NONE);
        assert_string_equal(cases[c].b->input_json, "null");
        release(&a);
        release(&b);
    }
    free(w);
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
    enum { N = 4, K = MOST_MULTIPLE };
    float w[N * K], out[N * K];
    for (const struct format *const *f = formats; *f; f++) {
        const struct grid *g = &weight_grid[(*f)->code];
        for (int i = 0; i < N * K; i++)
            w[i] = i % 3 ? 0.0f : -0.0f;
        struct rendering r = encoded(*f, w, N, K);
        (*f)->decode(&r, 0, N, out);
        for (int i = 0; i < N * K; i++)
            assert_true(out[i] == 0.0f);
        uint8_t zero = g->element == ELEMENT_U4B8 ? 0x88 : g->element == ELEMENT_U8B128 ? 128 : 0;
        for (size_t i = 0; *f != &format_bf16 && i < part_bytes(&r, 0); i++)
            assert_int_equal(((uint8_t *)r.part[0])[i], zero);
        int64_t scales = *f == &format_bf16 ? 0 : grid_scale_rows(g, N) * grid_scale_columns(g, K);
        for (int64_t i = 0; i < scales; i++) {
            const uint8_t *bytes = r.part[1];
            switch (g->scale) {
            case SCALE_F32: assert_int_equal(((uint32_t *)r.part[1])[i], 0x3f800000u); break;
            case SCALE_BF16: assert_int_equal(((uint16_t *)r.part[1])[i], 0x3f80u); break;
            default: assert_int_equal(bytes[i], g->scale == SCALE_E8M0 ? 127 : 0x20);
            }
        }
        if (g->scale == SCALE_E4M3)
            assert_true(*(float *)r.part[2] == 1.0f);
        release(&r);
    }
}

static void denormals_and_extremes_decode_to_finite_values(void **state)
{
    (void)state;
    enum { N = 2, K = MOST_MULTIPLE };
    static const float cases[] = {1e-45f, 1e-40f, 1.17549435e-38f, 2e-36f, 8e-36f, 1e-30f, 1.0f, 1e30f, 3.3e38f};
    for (const struct format *const *f = formats; *f; f++) {
        for (size_t c = 0; c < COUNT(cases); c++) {
            const struct grid *g = &weight_grid[(*f)->code];
            float w[N * K], out[N * K];
            /* Largest weights of MX are rounded up to the next power of two from 1.75 on, those of integers by half a
             * step: what would be above the largest f32 is infinite. */
            bool rounds_up = g->scale == SCALE_E8M0 || g->element >= ELEMENT_S8;
            float largest = rounds_up && cases[c] > 2.9e38f ? 2.9e38f : cases[c];
            for (int i = 0; i < N * K; i++)
                w[i] = largest * ((float)(i % 5 - 2) / 2.0f);
            struct rendering r = rendering_of(*f, N, K, DTYPE_F32);
            struct err e = {0};
            float amax = 0.0f;
            assert_true(format_amax(w, N, K, &amax, &e) && (*f)->encode(w, amax, &r, &e));
            (*f)->decode(&r, 0, N, out);
            for (int i = 0; i < N * K; i++)
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
    enum { N = 3, K = MOST_MULTIPLE };
    for (const struct format *const *f = formats; *f; f++) {
        for (int bad = 0; bad < 2; bad++) {
            float w[N * K] = {0};
            struct err e = {0};
            w[2 * K + 5] = bad ? -INFINITY : NAN;
            struct rendering r = rendering_of(*f, N, K, DTYPE_BF16);
            assert_err((*f)->encode(w, 1.0f, &r, &e), e, ERR_NUMERIC, "[2, 5]");
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
        {&format_mxfp4, 128, 352, DTYPE_BF16, 128 * 176 + 128 * 11},
        {&format_mxfp4_a16, 128, 352, DTYPE_BF16, 128 * 176 + 128 * 11},
        {&format_fp8, 128, 352, DTYPE_BF16, 128 * 352 + 128 * 4},
        {&format_fp8_a16, 128, 352, DTYPE_BF16, 128 * 352 + 128 * 4},
        {&format_fp8_block, 128, 352, DTYPE_BF16, 128 * 352 + 3 * 4},
        {&format_fp8_block, 129, 384, DTYPE_BF16, 129 * 384 + 2 * 3 * 4},
        {&format_mxfp8, 128, 352, DTYPE_BF16, 128 * 352 + 128 * 11},
        {&format_mxfp8_a16, 128, 352, DTYPE_BF16, 128 * 352 + 128 * 11},
        {&format_int8, 128, 352, DTYPE_BF16, 128 * 352 + 128 * 4},
        {&format_int8_a16, 128, 352, DTYPE_BF16, 128 * 352 + 128 * 2 + 16},
        {&format_int4_g32, 128, 384, DTYPE_BF16, 128 * 192 + 128 * 12 * 2 + 16},
        {&format_int4_g64, 128, 384, DTYPE_BF16, 128 * 192 + 128 * 6 * 2 + 16},
        {&format_int4_g128, 128, 384, DTYPE_BF16, 128 * 192 + 128 * 3 * 2 + 16},
        {&format_bf16, 128, 352, DTYPE_BF16, 128 * 352 * 2},
        {&format_bf16, 128, 352, DTYPE_F16, 128 * 352 * 2},
        {&format_bf16, 128, 352, DTYPE_F32, 128 * 352 * 4},
        {&format_fp8, 3, 172, DTYPE_F32, 3 * 172 + 3 * 4},
        {&format_nvfp4, 64, 172, DTYPE_BF16, 64 * 88 + 64 * 11 + 4 + 4}, /* does not fit: as if padded to 176 */
        {&format_int4_g128, 64, 172, DTYPE_BF16, 64 * 128 + 64 * 2 * 2 + 16},
        {&format_mxfp8, 64, 172, DTYPE_BF16, 64 * 172 + 64 * 6},
    };
    for (size_t c = 0; c < COUNT(cases); c++)
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
        {&format_nvfp4, 3, {{"weight_packed", DTYPE_U8, 2, {48, 64}}, {"weight_scale", DTYPE_F8_E4M3, 2, {48, 8}},
                            {"weight_global_scale", DTYPE_F32, 1, {1}}}},
        {&format_mxfp4, 2, {{"weight_packed", DTYPE_U8, 2, {48, 64}}, {"weight_scale", DTYPE_U8, 2, {48, 4}}}},
        {&format_fp8, 2, {{"weight", DTYPE_F8_E4M3, 2, {48, 128}}, {"weight_scale", DTYPE_F32, 2, {48, 1}}}},
        {&format_fp8_block, 2, {{"weight", DTYPE_F8_E4M3, 2, {48, 128}}, {"weight_scale", DTYPE_F32, 2, {1, 1}}}},
        {&format_mxfp8, 2, {{"weight", DTYPE_F8_E4M3, 2, {48, 128}}, {"weight_scale", DTYPE_U8, 2, {48, 4}}}},
        {&format_int8, 2, {{"weight", DTYPE_I8, 2, {48, 128}}, {"weight_scale", DTYPE_F32, 2, {48, 1}}}},
        {&format_int8_a16, 3, {{"weight_packed", DTYPE_I32, 2, {48, 32}}, {"weight_scale", DTYPE_BF16, 2, {48, 1}},
                               {"weight_shape", DTYPE_I64, 1, {2}}}},
        {&format_int4_g32, 3, {{"weight_packed", DTYPE_I32, 2, {48, 16}}, {"weight_scale", DTYPE_BF16, 2, {48, 4}},
                               {"weight_shape", DTYPE_I64, 1, {2}}}},
        {&format_int4_g64, 3, {{"weight_packed", DTYPE_I32, 2, {48, 16}}, {"weight_scale", DTYPE_BF16, 2, {48, 2}},
                               {"weight_shape", DTYPE_I64, 1, {2}}}},
        {&format_int4_g128, 3, {{"weight_packed", DTYPE_I32, 2, {48, 16}}, {"weight_scale", DTYPE_BF16, 2, {48, 1}},
                                {"weight_shape", DTYPE_I64, 1, {2}}}},
        {&format_bf16, 1, {{"weight", DTYPE_F16, 2, {48, 128}}}},
    };
    for (size_t c = 0; c < COUNT(cases); c++) {
        struct format_part got[FORMAT_PARTS];
        assert_int_equal(cases[c].f->parts(48, 128, DTYPE_F16, got), cases[c].count);
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
    static const struct {
        const struct format *f;
        int multiple;
    } cases[] = {{&format_nvfp4, 16}, {&format_nvfp4_a16, 16}, {&format_mxfp4, 32}, {&format_mxfp4_a16, 32},
                 {&format_mxfp8, 32}, {&format_mxfp8_a16, 32}, {&format_int4_g32, 32}, {&format_int4_g64, 64},
                 {&format_int4_g128, 128}, {&format_int8_a16, 4}, {&format_fp8, 1}, {&format_fp8_a16, 1},
                 {&format_fp8_block, 1}, {&format_int8, 1}, {&format_bf16, 1}};
    float w[3 * MOST_MULTIPLE] = {1.0f};
    for (size_t c = 0; c < COUNT(cases); c++) {
        const struct format *f = cases[c].f;
        for (int k = 1; k <= 2 * MOST_MULTIPLE; k++)
            if (format_fits(f, 1, k) != (k % cases[c].multiple == 0))
                fail_msg("%s fits [1, %d]: %d", f->name, k, format_fits(f, 1, k));
        assert_false(format_fits(f, 0, MOST_MULTIPLE));
        if (cases[c].multiple == 1)
            continue;
        int k = cases[c].multiple * 3 / 2;
        struct err e = {0};
        struct rendering r = rendering_of(f, 1, k, DTYPE_BF16);
        assert_err(f->encode(w, 1.0f, &r, &e), e, ERR_BUG, f->name);
        release(&r);
    }
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
    enum { N = 130, K = 2 * MOST_MULTIPLE };
    static float all[N * K], rows[N * K];
    float *w = gaussian(N * K, 0.02f);
    for (const struct format *const *f = formats; *f; f++) {
        struct rendering r = encoded(*f, w, N, K);
        (*f)->decode(&r, 0, N, all);
        for (int64_t first = 0, n = 1; first < N; first += n, n = n % 5 + 1) {
            n = first + n > N ? N - first : n;
            (*f)->decode(&r, first, n, rows + first * K);
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
    } cases[] = {{&format_nvfp4, BUDGET_NVFP4}, {&format_nvfp4_a16, BUDGET_NVFP4}, {&format_mxfp4, BUDGET_MXFP4},
                 {&format_mxfp4_a16, BUDGET_MXFP4}, {&format_fp8, BUDGET_FP8}, {&format_fp8_a16, BUDGET_FP8},
                 {&format_fp8_block, BUDGET_FP8}, {&format_mxfp8, BUDGET_MXFP8}, {&format_mxfp8_a16, BUDGET_MXFP8},
                 {&format_int8, BUDGET_INT8}, {&format_int8_a16, BUDGET_INT8}, {&format_int4_g32, BUDGET_INT4_G32},
                 {&format_int4_g64, BUDGET_INT4_G64}, {&format_int4_g128, BUDGET_INT4_G128}};
    float *w = gaussian(64 * 4096, 0.02f);
    for (size_t c = 0; c < COUNT(cases); c++) {
        double got = relative_rms(cases[c].f, w, 64, 4096);
        if (fabs(got / cases[c].budget - 1.0) > BUDGET_MARGIN)
            fail_msg("%s: relative RMS error %.5f, expected %.5f", cases[c].f->name, got, cases[c].budget);
    }
    assert_true(relative_rms(&format_bf16, w, 64, 4096) == 0.0);
    free(w);
}

/* Encoding what was decoded changes little: the scale is fitted to the largest decoded weight, which of integers is no
 * longer half a step beyond the end, so that they may move by a fifteenth and what its bf16 scale is rounded by. With
 * the scales kept nothing changes (blocks.c). */
static void encoding_decoded_weights_again_is_stable(void **state)
{
    (void)state;
    enum { N = 16, K = MOST_MULTIPLE };
    float *w = gaussian(N * K, 0.05f), once[N * K], twice[N * K];
    for (const struct format *const *f = formats; *f; f++) {
        float tolerance = grid_bits(weight_grid[(*f)->code].element) == 4 && (*f)->stores_shape ? 0.075f : 0.03f;
        struct rendering r = encoded(*f, w, N, K);
        (*f)->decode(&r, 0, N, once);
        release(&r);
        r = encoded(*f, once, N, K);
        (*f)->decode(&r, 0, N, twice);
        release(&r);
        for (int i = 0; i < N * K; i++)
            if (fabsf(twice[i] - once[i]) > tolerance * fabsf(once[i]))
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
        cmocka_unit_test(siblings_differ_in_the_input_alone),
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
