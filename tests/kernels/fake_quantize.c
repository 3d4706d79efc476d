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

/* The rules, word for word, for one row. */
static void expected_row(const float *x, int64_t n, enum act_rule rule, float gs, enum dtype mode, float *y)
{
    struct table e4m3 = e4m3_table(), e2m1 = e2m1_table();
    int64_t block = rule == ACT_NVFP4 ? 16 : n;
    for (int64_t first = 0; first < n; first += block) {
        float most = 0.0f;
        for (int64_t i = first; i < first + block; i++)
            most = fmaxf(most, fabsf(to_mode(x[i], mode)));
        float floor = 1.0f / (448.0f * 512.0f), s = most / 448.0f > floor ? most / 448.0f : floor;
        float bs = round_by_table(&e4m3, gs * most / 6.0f), r = gs / bs;
        for (int64_t i = first; i < first + block; i++) {
            float v = to_mode(x[i], mode);
            if (rule == ACT_NVFP4)
                y[i] = bs == 0.0f ? 0.0f : round_by_table(&e2m1, v * r) * bs / gs;
            else if (rule == ACT_FP8_TOKEN)
                y[i] = round_by_table(&e4m3, v / s) * s;
            else
                y[i] = v;
        }
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
                check_rows(x, 4, n, ACT_FP8_TOKEN, 0.0f, mode ? DTYPE_BF16 : DTYPE_F32);
                check_rows(x, 4, n, ACT_NONE, 0.0f, mode ? DTYPE_BF16 : DTYPE_F32);
            }
            free(x);
        }
    }
    float *x = numbers(37 * 1000, MIXED, 1); /* large enough for several threads */
    check_rows(x, 37, 1000, ACT_FP8_TOKEN, 0.0f, DTYPE_F32);
    free(x);
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
    float x[34];
    struct err e;
    struct tensor odd = tensor_matrix(x, DTYPE_F32, 2, 17), even = tensor_matrix(x, DTYPE_F32, 2, 16);
    assert_err(k->fake_quantize(&q, &odd, ACT_NVFP4, 1.0f, DTYPE_F32, &odd, &e), e, ERR_BUG, "17 columns for nvfp4");
    assert_err(k->fake_quantize(&q, &even, ACT_NVFP4, 0.0f, DTYPE_F32, &even, &e), e, ERR_BUG, "global scale 0");
    assert_err(k->fake_quantize(&q, &even, ACT_FP8_TOKEN, 0.0f, DTYPE_F16, &even, &e), e, ERR_BUG, "mode f16");
    assert_err(k->fake_quantize(&q, &even, ACT_NONE, 0.0f, DTYPE_F32, &odd, &e), e, ERR_BUG, "'y'");
}

/* What is not finite stays not finite, in every lane and mode: rounding must not hide an overflow. Its finite neighbours
 * may come out as anything. */
static void what_is_not_finite_is_not_hidden(void **state)
{
    (void)state;
    enum { N = 48 };
    /* Infinities, the NaN that arithmetic makes, and those that rounding to bf16 by integers takes for numbers. */
    static const uint32_t bad[] = {0x7f800000u, 0xff800000u, 0x7fc00000u, 0xffc00000u, 0x7f800001u, 0x7fffffffu,
                                   0xffffffffu};
    static const enum act_rule rules[] = {ACT_NONE, ACT_NVFP4, ACT_FP8_TOKEN};
    const struct kernels *k[8];
    size_t n_variants = variants(k);
    struct err e = {0};
    for (size_t v = 0; v < n_variants; v++)
        for (int lane = 0; lane < N; lane++)
            for (size_t b = 0; b < COUNT(bad); b++)
                for (int c = 0; c < 6; c++) {
                    float *x = numbers(N, RANDOM, 3), y[N];
                    struct queue q = variant_queue(k[v], 1);
                    struct tensor in = tensor_matrix(x, DTYPE_F32, 1, N), out = tensor_matrix(y, DTYPE_F32, 1, N);
                    enum act_rule rule = rules[c / 2];
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
        cmocka_unit_test(nvfp4_follows_the_rules_at_all_scales),
        cmocka_unit_test(nvfp4_matches_the_worked_example),
        cmocka_unit_test(wrong_arguments_are_reported),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
