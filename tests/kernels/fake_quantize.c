/* Activation fake quantization against a version that searches tables of the formats' values, for every bf16 number and
 * every tie between neighbours. */
#include "tests/kernels/variants.h"

/* The magnitudes of a format in the order of their codes. */
struct table {
    int n;
    float value[128];
};

static struct table e2m1_table(void)
{
    return (struct table){8, {0.0f, 0.5f, 1.0f, 1.5f, 2.0f, 3.0f, 4.0f, 6.0f}};
}

/* m 2^-9 and (1 + m/8) 2^(e-7); 0x7e is the largest. */
static struct table e4m3_table(void)
{
    struct table t = {.n = 127};
    for (int code = 0; code < t.n; code++) {
        int e = code >> 3, m = code & 7;
        t.value[code] = e == 0 ? ldexpf((float)m, -9) : ldexpf(1.0f + (float)m / 8.0f, e - 7);
    }
    return t;
}

/* Nearest value; the even code at a tie; saturating; with the sign of x. Distances are exact in f64. */
static float round_by_table(const struct table *t, float x)
{
    double a = fmin(fabs((double)x), (double)t->value[t->n - 1]);
    int best = 0;
    for (int i = 1; i < t->n; i++) {
        double d = fabs(a - (double)t->value[i]), old = fabs(a - (double)t->value[best]);
        if (d > old)
            break; /* values ascend: the rest is farther still */
        if (d < old || i % 2 == 0)
            best = i;
    }
    return copysignf(t->value[best], x);
}

static float to_mode(float x, enum dtype mode) { return mode == DTYPE_BF16 ? bf16_to_f32(bf16_from_f32(x)) : x; }

/* 2^e for the least e with amax <= 2^e * most, in exact arithmetic; 0 where the quotient in f32 is at most 2^-127. */
static float mx_scale(float amax, double most)
{
    int e = -126;
    if (amax / (float)most <= 0x1p-127f)
        return 0.0f;
    while ((double)amax > ldexp(most, e))
        e++;
    return ldexpf(1.0f, e);
}

/* The nearest integer -128..127, the even one at a tie. */
static float round_to_integer(float x)
{
    float best = -128.0f, clamped = fminf(fmaxf(x, -129.0f), 129.0f);
    for (int i = -127; i <= 127; i++) {
        double d = fabs((double)clamped - i), old = fabs((double)clamped - (double)best);
        if (d < old || (d == old && i % 2 == 0))
            best = (float)i;
    }
    return best;
}

/* The rules, word for word, for one value of a block whose largest magnitude is `most`. */
static float expected_value(float v, float most, enum act_rule rule, float gs, const struct table *e4m3,
                            const struct table *e2m1)
{
    float s, bs;
    switch (rule) {
    case ACT_NVFP4:
        bs = round_by_table(e4m3, gs * most / 6.0f);
        return bs == 0.0f ? 0.0f : round_by_table(e2m1, v * (gs / bs)) * bs / gs;
    case ACT_FP8_TOKEN:
        s = fmaxf(most / 448.0f, 1.0f / (448.0f * 512.0f));
        return round_by_table(e4m3, v / s) * s;
    case ACT_FP8_GROUP:
        s = fmaxf(most, 1e-10f) / 448.0f;
        return round_by_table(e4m3, v / s) * s;
    case ACT_MXFP4:
        s = mx_scale(most, 6.0);
        return s == 0.0f ? 0.0f : round_by_table(e2m1, v / s) * s;
    case ACT_MXFP8:
        s = mx_scale(most, 448.0);
        return s == 0.0f ? 0.0f : round_by_table(e4m3, v / s) * s;
    case ACT_INT8_TOKEN:
        return v == 0.0f ? 0.0f : round_to_integer(v * (127.0f / most)) * (most / 127.0f);
    default:
        return v;
    }
}

static void expected_row(const float *x, int64_t n, enum act_rule rule, float gs, enum dtype mode, float *y)
{
    static const int64_t blocks[ACT_COUNT] = {
        [ACT_NVFP4] = 16, [ACT_FP8_GROUP] = 128, [ACT_MXFP4] = 32, [ACT_MXFP8] = 32};
    struct table e4m3 = e4m3_table(), e2m1 = e2m1_table();
    int64_t block = blocks[rule] ? blocks[rule] : n;
    for (int64_t first = 0; first < n; first += block) {
        int64_t end = first + block < n ? first + block : n;
        float most = 0.0f;
        for (int64_t i = first; i < end; i++)
            most = fmaxf(most, fabsf(to_mode(x[i], mode)));
        for (int64_t i = first; i < end; i++)
            y[i] = expected_value(to_mode(x[i], mode), most, rule, gs, &e4m3, &e2m1);
    }
}

static void check_rows(const float *x, int64_t t, int64_t n, enum act_rule rule, float gs, enum dtype mode)
{
    const struct kernels *k[8];
    size_t n_variants = variants(k);
    float *want = numbers(t * n, RANDOM, 1), *got = numbers(t * n, RANDOM, 2);
    struct err e = {0};
    for (int64_t r = 0; r < t; r++)
        expected_row(x + r * n, n, rule, gs, mode, want + r * n);
    for (size_t v = 0; v < n_variants; v++) {
        char name[128];
        struct queue q = variant_queue(k[v], 1 + (int)v % 3);
        struct tensor in = tensor_matrix((void *)(uintptr_t)x, DTYPE_F32, t, n);
        struct tensor out = tensor_matrix(got, DTYPE_F32, t, n);
        assert_ok(k[v]->fake_quantize(&q, &in, rule, gs, mode, &out, &e), e);
        CASE(name, "%s, rule %d, n=%lld, gs=%g, %s", k[v]->name, (int)rule, (long long)n, (double)gs,
             dtype_info(mode)->name);
        assert_bits(want, got, t * n, name);
        memcpy(got, x, (size_t)(t * n) * sizeof *got);
        assert_ok(k[v]->fake_quantize(&q, &out, rule, gs, mode, &out, &e), e); /* y may be x */
        assert_bits(want, got, t * n, name);
    }
    free(want), free(got);
}

/* With 448 in the row the scale is 1, and y is x in E4M3. */
static void e4m3_is_right_for_every_bf16_number_and_every_tie(void **state)
{
    (void)state;
    struct table t = e4m3_table();
    static float x[70000];
    int64_t n = 0;
    x[n++] = 448.0f;
    for (uint32_t u = 0; u < 65536; u++) {
        float v = bf16_to_f32((uint16_t)u);
        if (fabsf(v) <= 448.0f) /* false for NaN */
            x[n++] = v;
    }
    for (int i = 0; i + 1 < t.n; i++) {
        float tie = (t.value[i] + t.value[i + 1]) / 2.0f;
        for (int sign = -1; sign <= 1; sign += 2) {
            x[n++] = (float)sign * tie;
            x[n++] = (float)sign * nextafterf(tie, 0.0f);
            x[n++] = (float)sign * nextafterf(tie, 1e9f);
        }
    }
    check_rows(x, 1, n, ACT_FP8_TOKEN, 0.0f, DTYPE_F32);
}

/* Blocks whose largest is 6 with a global scale of 1 have the block scale 1, and y is x in E2M1. */
static void e2m1_is_right_for_every_bf16_number_and_every_tie(void **state)
{
    (void)state;
    struct table t = e2m1_table();
    static float values[80000], x[100000];
    int64_t n = 0, m = 0;
    for (uint32_t u = 0; u < 65536; u++) {
        float v = bf16_to_f32((uint16_t)u);
        if (fabsf(v) <= 6.0f)
            values[n++] = v;
    }
    for (int i = 0; i + 1 < t.n; i++) {
        float tie = (t.value[i] + t.value[i + 1]) / 2.0f;
        for (int sign = -1; sign <= 1; sign += 2) {
            values[n++] = (float)sign * tie;
            values[n++] = (float)sign * nextafterf(tie, 0.0f);
            values[n++] = (float)sign * nextafterf(tie, 1e9f);
        }
    }
    for (int64_t i = 0; i < n; i++) {
        if (m % 16 == 0)
            x[m++] = 6.0f;
        x[m++] = values[i];
    }
    while (m % 16 != 0)
        x[m++] = 0.0f;
    check_rows(x, 1, m, ACT_NVFP4, 1.0f, DTYPE_F32);
}

static void every_length_mode_and_kind_follows_the_rules(void **state)
{
    (void)state;
    for (int64_t n = 1; n <= 33; n++) {
        for (int kind = 0; kind < NUMBERS_COUNT; kind++) {
            float *x = numbers(4 * n, (enum numbers)kind, (uint64_t)(n * 10 + kind));
            for (int mode = 0; mode < 2; mode++) {
                enum dtype t = mode ? DTYPE_BF16 : DTYPE_F32;
                check_rows(x, 4, n, ACT_FP8_TOKEN, 0.0f, t);
                check_rows(x, 4, n, ACT_FP8_GROUP, 0.0f, t);
                check_rows(x, 4, n, ACT_INT8_TOKEN, 0.0f, t);
                check_rows(x, 4, n, ACT_NONE, 0.0f, t);
            }
            free(x);
        }
    }
    float *x = numbers(37 * 1000, MIXED, 1); /* large enough for several threads */
    check_rows(x, 37, 1000, ACT_FP8_TOKEN, 0.0f, DTYPE_F32);
    check_rows(x, 37, 1000, ACT_FP8_GROUP, 0.0f, DTYPE_F32);
    check_rows(x, 37, 1000, ACT_INT8_TOKEN, 0.0f, DTYPE_F32);
    free(x);
}

/* Groups that are whole, cut off by the row's end, and one of a single value; a group of zeros. */
static void fp8_groups_follow_the_rules(void **state)
{
    (void)state;
    static const int64_t lengths[] = {127, 128, 129, 256, 300, 384};
    for (size_t l = 0; l < COUNT(lengths); l++) {
        for (int kind = 0; kind < NUMBERS_COUNT; kind++) {
            int64_t n = lengths[l];
            float *x = numbers(3 * n, (enum numbers)kind, (uint64_t)(n + kind));
            for (int64_t i = 0; i < 127; i++)
                x[n + i] = 0.0f;
            check_rows(x, 3, n, ACT_FP8_GROUP, 0.0f, DTYPE_F32);
            check_rows(x, 3, n, ACT_FP8_GROUP, 0.0f, DTYPE_BF16);
            free(x);
        }
    }
}

/* Blocks of 32 of every kind; and with largest values on both sides of where the exponent changes: 6 and 448 times a
 * power of two, which still have that power as their scale. */
static void mx_blocks_follow_the_rules(void **state)
{
    (void)state;
    static const enum act_rule rules[] = {ACT_MXFP4, ACT_MXFP8};
    enum { STEPS = 300 };
    for (size_t r = 0; r < COUNT(rules); r++) {
        float most = rules[r] == ACT_MXFP4 ? 6.0f : 448.0f;
        for (int64_t n = 32; n <= 160; n += 32) {
            for (int kind = 0; kind < NUMBERS_COUNT; kind++) {
                float *x = numbers(5 * n, (enum numbers)kind, (uint64_t)n);
                for (int64_t i = 0; i < 32; i++) /* a block of zeros among others */
                    x[2 * n + i] = i % 2 ? 0.0f : -0.0f;
                check_rows(x, 5, n, rules[r], 0.0f, DTYPE_F32);
                check_rows(x, 5, n, rules[r], 0.0f, DTYPE_BF16);
                free(x);
            }
        }
        float *x = numbers(STEPS * 32, RANDOM, 3);
        for (int i = 0; i < STEPS; i++) { /* from denormals on: where a scale would be the byte 0 it is none */
            int e = i / 3 * 2 - 145;
            float edge = ldexpf(most, e > 118 ? 118 : e);
            for (int j = 0; j < 32; j++)
                x[i * 32 + j] *= edge / 2.0f;
            x[i * 32 + i % 32] = i % 3 == 0 ? edge : nextafterf(edge, i % 3 == 1 ? 0.0f : INFINITY);
        }
        check_rows(x, 1, STEPS * 32, rules[r], 0.0f, DTYPE_F32);
        free(x);
        x = numbers(37 * 1024, MIXED, 1); /* large enough for several threads */
        check_rows(x, 37, 1024, rules[r], 0.0f, DTYPE_F32);
        free(x);
    }
}

/* A row whose largest value is 127 has the scale 1, and y is x as an integer: every tie, and its neighbours. */
static void integers_round_every_tie_to_the_even_one(void **state)
{
    (void)state;
    static float x[2000];
    int64_t n = 0;
    x[n++] = 127.0f;
    for (int i = -127; i < 127; i++) {
        float tie = (float)i + 0.5f;
        x[n++] = tie;
        x[n++] = nextafterf(tie, -INFINITY);
        x[n++] = nextafterf(tie, INFINITY);
        x[n++] = (float)i + 0.25f;
    }
    check_rows(x, 1, n, ACT_INT8_TOKEN, 0.0f, DTYPE_F32);
    x[0] = -127.0f;
    check_rows(x, 1, n, ACT_INT8_TOKEN, 0.0f, DTYPE_BF16);
}

/* A row's result does not depend on the rows beside it. */
static void rows_are_independent(void **state)
{
    (void)state;
    enum { T = 9, N = 384 };
    const struct kernels *k[8];
    size_t n_variants = variants(k);
    float *x = numbers(T * N, MIXED, 21), *all = numbers(T * N, RANDOM, 1), *one = numbers(N, RANDOM, 2);
    struct err e = {0};
    for (size_t v = 0; v < n_variants; v++)
        for (enum act_rule rule = ACT_NONE; rule < ACT_COUNT; rule++) {
            struct queue q = variant_queue(k[v], 2);
            float gs = rule == ACT_NVFP4 ? 100.0f : 0.0f;
            struct tensor in = tensor_matrix(x, DTYPE_F32, T, N), out = tensor_matrix(all, DTYPE_F32, T, N);
            assert_ok(k[v]->fake_quantize(&q, &in, rule, gs, DTYPE_F32, &out, &e), e);
            for (int64_t t = T - 1; t >= 0; t--) {
                struct tensor row = tensor_rows(&in, t, 1), y = tensor_matrix(one, DTYPE_F32, 1, N);
                assert_ok(k[v]->fake_quantize(&q, &row, rule, gs, DTYPE_F32, &y, &e), e);
                assert_bits(all + t * N, one, N, k[v]->name);
            }
        }
    free(x), free(all), free(one);
}

/* Global scales from far too small (blocks vanish) to far too large (blocks saturate). */
static void nvfp4_follows_the_rules_at_all_scales(void **state)
{
    (void)state;
    static const float scales[] = {1e-3f, 0.02f, 1.0f, 2688.0f, 3584.0f, 1e5f, 1e9f};
    for (size_t s = 0; s < COUNT(scales); s++) {
        for (int64_t n = 16; n <= 80; n += 16) {
            for (int kind = 0; kind < NUMBERS_COUNT; kind++) {
                if (kind == LARGE && scales[s] > 1e6f)
                    continue;
                float *x = numbers(5 * n, (enum numbers)kind, (uint64_t)n);
                for (int64_t i = 0; i < 16; i++) /* a block of zeros among others */
                    x[2 * n + i] = 0.0f;
                check_rows(x, 5, n, ACT_NVFP4, scales[s], DTYPE_F32);
                check_rows(x, 5, n, ACT_NVFP4, scales[s], DTYPE_BF16);
                free(x);
            }
        }
    }
    float *x = numbers(37 * 1024, MIXED, 1); /* large enough for several threads */
    check_rows(x, 37, 1024, ACT_NVFP4, 100.0f, DTYPE_F32);
    free(x);
}

/* A worked block: amax 0.75, gs 3584: bs = 448, r = 8; the values of the weight example NVFP4-A of the format's
 * reference, which exercises every tie. */
static void nvfp4_matches_the_worked_example(void **state)
{
    (void)state;
    const float x[16] = {.75f, -.75f, .625f, .4375f, .3125f, .21875f, .15625f, .09375f,
                         .03125f, -.03125f, 0.0f, -.625f, -.4375f, .0625f, -.1875f, .5f};
    const float want[16] = {.75f, -.75f, .5f, .5f, .25f, .25f, .125f, .125f,
                            0.0f, -0.0f, 0.0f, -.5f, -.5f, .0625f, -.1875f, .5f};
    const struct kernels *k[8];
    size_t n_variants = variants(k);
    struct err e = {0};
    for (size_t v = 0; v < n_variants; v++) {
        float y[16];
        struct queue q = variant_queue(k[v], 1);
        struct tensor in = tensor_matrix((void *)(uintptr_t)x, DTYPE_F32, 1, 16);
        struct tensor out = tensor_matrix(y, DTYPE_F32, 1, 16);
        assert_ok(k[v]->fake_quantize(&q, &in, ACT_NVFP4, 3584.0f, DTYPE_F32, &out, &e), e);
        assert_bits(want, y, 16, k[v]->name);
    }
}

static void wrong_arguments_are_reported(void **state)
{
    (void)state;
    const struct kernels *k = kernels_find("plain");
    struct queue q = variant_queue(k, 1);
    float x[96];
    struct err e;
    struct tensor odd = tensor_matrix(x, DTYPE_F32, 2, 17), even = tensor_matrix(x, DTYPE_F32, 2, 16);
    struct tensor half = tensor_matrix(x, DTYPE_F32, 2, 48);
    assert_err(k->fake_quantize(&q, &odd, ACT_NVFP4, 1.0f, DTYPE_F32, &odd, &e), e, ERR_BUG, "17 columns for nvfp4");
    assert_err(k->fake_quantize(&q, &half, ACT_MXFP4, 0.0f, DTYPE_F32, &half, &e), e, ERR_BUG, "48 columns for mxfp4");
    assert_err(k->fake_quantize(&q, &half, ACT_MXFP8, 0.0f, DTYPE_F32, &half, &e), e, ERR_BUG, "multiple of 32");
    assert_err(k->fake_quantize(&q, &even, ACT_NVFP4, 0.0f, DTYPE_F32, &even, &e), e, ERR_BUG, "global scale 0");
    assert_err(k->fake_quantize(&q, &even, ACT_INT8_TOKEN, 1.0f, DTYPE_F32, &even, &e), e, ERR_BUG,
               "global scale 1 for int8");
    assert_err(k->fake_quantize(&q, &even, ACT_FP8_TOKEN, 0.0f, DTYPE_F16, &even, &e), e, ERR_BUG, "mode f16");
    assert_err(k->fake_quantize(&q, &even, ACT_COUNT, 0.0f, DTYPE_F32, &even, &e), e, ERR_BUG, "no rule");
    assert_err(k->fake_quantize(&q, &even, ACT_NONE, 0.0f, DTYPE_F32, &odd, &e), e, ERR_BUG, "'y'");
}

/* What is not finite stays not finite, in every lane and mode: rounding must not hide an overflow. Its finite
 * neighbours may come out as anything. */
static void what_is_not_finite_is_not_hidden(void **state)
{
    (void)state;
    enum { N = 64 };
    /* Infinities, the NaN that arithmetic makes, and those that rounding to bf16 by integers takes for numbers. */
    static const uint32_t bad[] = {0x7f800000u, 0xff800000u, 0x7fc00000u, 0xffc00000u, 0x7f800001u, 0x7fffffffu,
                                   0xffffffffu};
    const struct kernels *k[8];
    size_t n_variants = variants(k);
    struct err e = {0};
    for (size_t v = 0; v < n_variants; v++)
        for (int lane = 0; lane < N; lane++)
            for (size_t b = 0; b < COUNT(bad); b++)
                for (int c = 0; c < 2 * ACT_COUNT; c++) {
                    float *x = numbers(N, RANDOM, 3), y[N];
                    struct queue q = variant_queue(k[v], 1);
                    struct tensor in = tensor_matrix(x, DTYPE_F32, 1, N), out = tensor_matrix(y, DTYPE_F32, 1, N);
                    enum act_rule rule = (enum act_rule)(c / 2);
                    x[lane] = f32_from_bits(bad[b]);
                    assert_ok(k[v]->fake_quantize(&q, &in, rule, rule == ACT_NVFP4 ? 100.0f : 0.0f,
                                                  c % 2 ? DTYPE_BF16 : DTYPE_F32, &out, &e), e);
                    if (isfinite(y[lane]))
                        fail_msg("%s, rule %d, %s, lane %d: 0x%08x became %g", k[v]->name, (int)rule,
                                 c % 2 ? "bf16" : "f32", lane, bad[b], (double)y[lane]);
                    free(x);
                }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_is_not_finite_is_not_hidden),
        cmocka_unit_test(e4m3_is_right_for_every_bf16_number_and_every_tie),
        cmocka_unit_test(e2m1_is_right_for_every_bf16_number_and_every_tie),
        cmocka_unit_test(every_length_mode_and_kind_follows_the_rules),
        cmocka_unit_test(fp8_groups_follow_the_rules),
        cmocka_unit_test(mx_blocks_follow_the_rules),
        cmocka_unit_test(integers_round_every_tie_to_the_even_one),
        cmocka_unit_test(rows_are_independent),
        cmocka_unit_test(nvfp4_follows_the_rules_at_all_scales),
        cmocka_unit_test(nvfp4_matches_the_worked_example),
        cmocka_unit_test(wrong_arguments_are_reported),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
