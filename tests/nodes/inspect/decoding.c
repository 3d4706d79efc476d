/* The second code path for decoded weights: the worked examples, rows taken in pieces, and the program's own
 * decoding. */
#include "nodes/inspect/decoding.h"

#include <math.h>

#include "nodes/format/format.h"
#include "tests/check.h"

static void worked_examples_decode(void **state)
{
    const char *what = "";
    (void)state;
    if (!decoding_examples(&what))
        fail_msg("%s decodes to other weights", what);
}

static const struct {
    struct scheme scheme;
    enum dtype scale_dtype;
    const char *format; /* the program's, where it has this scheme with scales of this type */
} cases[] = {
    {{.kind = SCHEME_NVFP4}, DTYPE_F8_E4M3, "nvfp4"},
    {{.kind = SCHEME_MXFP4}, DTYPE_U8, "mxfp4"},
    {{.kind = SCHEME_FP8}, DTYPE_F32, "fp8"},
    {{.kind = SCHEME_FP8}, DTYPE_BF16, NULL},
    {{.kind = SCHEME_FP8}, DTYPE_F16, NULL},
    {{.kind = SCHEME_FP8_BLOCK}, DTYPE_F32, "fp8_block"},
    {{.kind = SCHEME_MXFP8}, DTYPE_U8, "mxfp8"},
    {{.kind = SCHEME_INT8}, DTYPE_F32, "int8"},
    {{.kind = SCHEME_INT8}, DTYPE_BF16, NULL},
    {{.kind = SCHEME_PACKED, .bits = 8, .group = -1}, DTYPE_BF16, "int8_a16"},
    {{.kind = SCHEME_PACKED, .bits = 8, .group = 128}, DTYPE_BF16, NULL},
    {{.kind = SCHEME_PACKED, .bits = 4, .group = -1}, DTYPE_BF16, NULL},
    {{.kind = SCHEME_PACKED, .bits = 4, .group = 32}, DTYPE_BF16, "int4_g32"},
    {{.kind = SCHEME_PACKED, .bits = 4, .group = 64}, DTYPE_BF16, "int4_g64"},
    {{.kind = SCHEME_PACKED, .bits = 4, .group = 128}, DTYPE_BF16, "int4_g128"},
    {{.kind = SCHEME_PACKED, .bits = 4, .group = 48}, DTYPE_BF16, NULL},
};

static uint32_t next(uint32_t *state) { return (*state = *state * 1664525u + 1013904223u) >> 8; }

/* Bytes that are codes and scales of numbers: no NaN, scales near 1. */
static void fill(const struct scheme *s, enum dtype scale_dtype, unsigned char *codes, size_t n_codes,
                 unsigned char *scales, size_t n_scales, uint32_t *state)
{
    bool is_e4m3 = s->kind == SCHEME_FP8 || s->kind == SCHEME_FP8_BLOCK || s->kind == SCHEME_MXFP8;
    for (size_t i = 0; i < n_codes; i++) {
        codes[i] = (unsigned char)next(state);
        if (is_e4m3 && (codes[i] & 0x7f) == 0x7f)
            codes[i] = 0x11;
    }
    for (size_t i = 0; i < n_scales; i++) {
        float value = 0.5f + (float)(next(state) % 1000) / 1000.0f;
        uint16_t half = scale_dtype == DTYPE_F16 ? (uint16_t)(0x3800u + next(state) % 1024u) : bf16_from_f32(value);
        if (scale_dtype == DTYPE_F8_E4M3 || scale_dtype == DTYPE_U8)
            scales[i] = (unsigned char)(scale_dtype == DTYPE_U8 ? 120 + next(state) % 15 : next(state) % 0x7f);
        else if (scale_dtype == DTYPE_F32)
            memcpy(scales + 4 * i, &value, 4);
        else
            memcpy(scales + 2 * i, &half, 2);
    }
}

#define K 768
static void a_row_in_pieces_is_the_row(void **state)
{
    uint32_t random = 1;
    (void)state;
    for (size_t c = 0; c < COUNT(cases); c++) {
        static unsigned char codes[K], scales[4 * K];
        static double whole[K], parts[K];
        struct decoding d;
        decoding_init(&d, &cases[c].scheme, cases[c].scale_dtype, K, 3.5f);
        int64_t per = d.columns ? d.columns : K;
        fill(&cases[c].scheme, cases[c].scale_dtype, codes, sizeof codes, scales, (size_t)(K / per), &random);
        decoding_run(&d, codes, scales, 0, K, whole);
        for (int64_t at = 0, count; at < K; at += count) {
            count = K - at < 256 ? K - at : 256;
            decoding_run(&d, codes + decoding_code_bytes(&d, at),
                         scales + (size_t)(at / per) * decoding_scale_bytes(&d), at, count, parts + at);
        }
        assert_memory_equal(whole, parts, sizeof whole);
    }
}
#undef K

/* Two programs were written to one text: what they make of the same bytes differs by f32's rounding only. */
static void the_program_decodes_alike(void **state)
{
    enum { N = 5, K = 384 };
    uint32_t random = 7;
    (void)state;
    for (size_t c = 0; c < COUNT(cases); c++) {
        if (!cases[c].format)
            continue;
        const struct format *f = format_find(cases[c].format);
        assert_non_null(f);
        struct rendering r;
        struct decoding d;
        struct err e;
        static float ours[N * K];
        static double theirs[K];
        const float global = 3584.0f;
        assert_ok(format_rendering_new(&r, f, N, K, DTYPE_BF16, &e), e);
        decoding_init(&d, &cases[c].scheme, cases[c].scale_dtype, K, global);
        int64_t per = d.columns ? d.columns : K, rows = cases[c].scheme.kind == SCHEME_FP8_BLOCK ? 1 : N;
        fill(&cases[c].scheme, cases[c].scale_dtype, r.part[0], (size_t)(N * decoding_code_bytes(&d, K)), r.part[1],
             (size_t)(rows * (K / per)), &random);
        if (cases[c].scheme.kind == SCHEME_NVFP4)
            memcpy(r.part[2], &global, sizeof global);
        f->decode(&r, 0, N, ours);
        for (int64_t row = 0; row < N; row++) {
            const int64_t scale = rows == 1 ? 0 : row * (K / per);
            decoding_run(&d, (unsigned char *)r.part[0] + row * decoding_code_bytes(&d, K),
                         (unsigned char *)r.part[1] + (size_t)scale * decoding_scale_bytes(&d), 0, K, theirs);
            for (int64_t k = 0; k < K; k++)
                if (!(fabs((double)ours[row * K + k] - theirs[k]) <= 1.5e-7 * fabs(theirs[k])))
                    fail_msg("%s [%lld, %lld]: %.9g, here %.9g", f->name, (long long)row, (long long)k,
                             (double)ours[row * K + k], theirs[k]);
        }
        for (int i = 0; i < FORMAT_PARTS; i++)
            mem_free(r.part[i]);
    }
}

static void bytes_that_are_no_number_are_nan(void **state)
{
    struct decoding d;
    static const unsigned char infinite[] = {0x80, 0x7f}, nan_half[] = {0x01, 0x7c};
    (void)state;
    assert_true(isnan(decode_e4m3(0x7f)) && isnan(decode_e4m3(0xff)));
    decoding_init(&d, &(struct scheme){.kind = SCHEME_MXFP4}, DTYPE_U8, 32, 1);
    assert_true(isnan(decoding_scale(&d, (const unsigned char *)"\xff")));
    assert_true(decoding_scale(&d, (const unsigned char *)"\x7f") == 1.0);
    decoding_init(&d, &(struct scheme){.kind = SCHEME_FP8}, DTYPE_BF16, 32, 1);
    assert_true(isinf(decoding_scale(&d, infinite)));
    decoding_init(&d, &(struct scheme){.kind = SCHEME_FP8}, DTYPE_F16, 32, 1);
    assert_true(isnan(decoding_scale(&d, nan_half)));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(worked_examples_decode),
        cmocka_unit_test(a_row_in_pieces_is_the_row),
        cmocka_unit_test(the_program_decodes_alike),
        cmocka_unit_test(bytes_that_are_no_number_are_nan),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
