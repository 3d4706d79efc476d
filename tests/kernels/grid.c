/* Codes and scales against a search through all of them: the nearest one, the even one at a tie. Distances are exact in
 * f64. */
#include "tests/kernels/variants.h"

#include "kernels/grid.h"

static const enum element elements[] = {ELEMENT_E2M1, ELEMENT_E4M3, ELEMENT_S8, ELEMENT_U4B8, ELEMENT_U8B128};

/* The values of an element, written anew from export-formats 1; NaN for a code that never occurs. */
static double value_of(enum element t, int code)
{
    static const double e2m1[8] = {0, .5, 1, 1.5, 2, 3, 4, 6};
    int sign = code >> 7 ? -1 : 1, exponent = code >> 3 & 15, mantissa = code & 7;
    switch (t) {
    case ELEMENT_E2M1: return code & 8 ? -e2m1[code & 7] : e2m1[code & 7];
    case ELEMENT_S8: return code < 128 ? code : code - 256;
    case ELEMENT_U4B8: return (code & 15) - 8;
    case ELEMENT_U8B128: return code - 128;
    default:
        if ((code & 127) == 127)
            return NAN;
        return exponent ? sign * ldexp(1.0 + mantissa / 8.0, exponent - 7) : sign * ldexp(mantissa, -9);
    }
}

static bool has_sign(enum element t) { return t == ELEMENT_E2M1 || t == ELEMENT_E4M3; }

/* Of the values on the side of x's sign, where there is a zero of either sign. */
static uint8_t nearest(enum element t, float x)
{
    int best = -1;
    double least = INFINITY, near = fmax(-1000.0, fmin(1000.0, (double)x)); /* so that differences are exact */
    for (int code = 0; code < (grid_bits(t) == 4 ? 16 : 256); code++) {
        double v = value_of(t, code), d = fabs(near - v);
        if (isnan(v) || (has_sign(t) && signbit(v) != signbit((double)x)))
            continue;
        if (best < 0 || d < least || (d == least && code % 2 == 0)) {
            best = code;
            least = d;
        }
    }
    return (uint8_t)best;
}

static void values_are_those_of_the_specification(void **state)
{
    (void)state;
    for (size_t e = 0; e < COUNT(elements); e++) {
        float values[256];
        int codes = grid_bits(elements[e]) == 4 ? 16 : 256;
        grid_values(elements[e], values);
        for (int i = 0; i < 256; i++) {
            double v = value_of(elements[e], i % codes);
            if (isnan(v))
                continue;
            if ((double)values[i] != v || signbit((double)values[i]) != signbit(v))
                fail_msg("element %d, code %d is %g, expected %g", (int)elements[e], i, (double)values[i], v);
            assert_true(f32_bits(values[i]) == f32_bits(grid_value(elements[e], (uint8_t)i)));
        }
    }
}

static void check_code(enum element t, float x)
{
    uint8_t got = grid_code(t, x), want = nearest(t, x);
    if (got != want)
        fail_msg("element %d: %.9g has code %d, expected %d", (int)t, (double)x, got, want);
}

/* Between every two neighbouring values: sixteen steps, the midpoint among them, and its neighbours in f32. */
static void every_number_gets_the_nearest_code(void **state)
{
    (void)state;
    for (size_t e = 0; e < COUNT(elements); e++) {
        enum element t = elements[e];
        int codes = grid_bits(t) == 4 ? 16 : 256;
        for (int code = 0; code < codes; code++) {
            double low = value_of(t, code), high = INFINITY;
            for (int i = 0; i < codes; i++)
                if (value_of(t, i) > low && value_of(t, i) < high)
                    high = value_of(t, i);
            if (isnan(low) || isinf(high))
                continue;
            for (int i = 0; i <= 16; i++)
                check_code(t, (float)(low + (high - low) * i / 16.0));
            float middle = (float)((low + high) / 2.0);
            check_code(t, nextafterf(middle, -INFINITY));
            check_code(t, nextafterf(middle, INFINITY));
        }
    }
}

static void what_is_beyond_the_ends_gets_the_last_code(void **state)
{
    (void)state;
    static const float far[] = {6.5f, 7.5f, 8.0f, 8.5f, 127.0f, 127.5f, 128.0f, 128.5f, 448.0f, 463.9f, 464.0f, 465.0f,
                                500.0f, 1e9f, 3.4e38f};
    for (size_t e = 0; e < COUNT(elements); e++) {
        for (size_t i = 0; i < COUNT(far); i++) {
            check_code(elements[e], far[i]);
            check_code(elements[e], -far[i]);
        }
        assert_int_equal(grid_code(elements[e], INFINITY), nearest(elements[e], 3.4e38f));
        assert_int_equal(grid_code(elements[e], -INFINITY), nearest(elements[e], -3.4e38f));
    }
}

static void tiny_numbers_and_zeros_keep_their_sign_where_there_is_one(void **state)
{
    (void)state;
    static const float tiny[] = {0.0f, 1e-45f, 1e-38f, 0x1p-11f, 0x1p-10f, 0x1.000002p-10f};
    for (size_t e = 0; e < COUNT(elements); e++)
        for (size_t i = 0; i < COUNT(tiny); i++) {
            check_code(elements[e], tiny[i]);
            check_code(elements[e], -tiny[i]);
        }
}

/* ----------------------------------------------------------------------------------------------------------- scales */

/* The step of a stored scale by the formula, or NaN for one that is never written: NaN, negative, below the least. */
static double step_of(enum scale_type t, uint32_t scale, double global)
{
    switch (t) {
    case SCALE_BF16: return scale < 0x7f80 ? (double)bf16_to_f32((uint16_t)scale) : NAN;
    case SCALE_E8M0: return scale < 255 ? ldexp(1.0, (int)scale - 127) : NAN;
    default: return scale < 0x7f && scale >= 8 ? value_of(ELEMENT_E4M3, (int)scale) / global : NAN;
    }
}

static void steps_are_those_of_the_specification(void **state)
{
    (void)state;
    assert_true(grid_step(SCALE_F32, f32_bits(0.37f), 1.0f) == 0.37f);
    for (uint32_t s = 0; s < 0x7f80; s++)
        assert_true((double)grid_step(SCALE_BF16, s, 1.0f) == step_of(SCALE_BF16, s, 1.0));
    for (uint32_t s = 0; s < 255; s++)
        assert_true((double)grid_step(SCALE_E8M0, s, 1.0f) == step_of(SCALE_E8M0, s, 1.0));
    for (uint32_t s = 8; s < 0x7f; s++)
        assert_true(grid_step(SCALE_E4M3, s, 3584.0f) == (float)step_of(SCALE_E4M3, s, 3584.0));
}

/* How far a step is from a wanted one: E8M0 in the exponent, E4M3 as the product with the divisor has it. */
static double distance(enum scale_type t, double step, double wanted)
{
    return t == SCALE_E8M0 ? fabs(log2(step) - log2(wanted)) : fabs(step - wanted);
}

static void check_scale(enum scale_type t, float step, float global)
{
    uint32_t got = grid_scale(t, step, global), last = t == SCALE_BF16 ? 0x7f80 : 255;
    double exact = t == SCALE_E4M3 ? (double)(step * global) : (double)step, own, least = INFINITY;
    double scale_by = 1.0; /* compare E4M3 before its division */
    own = distance(t, step_of(t, got, scale_by), exact);
    for (uint32_t s = 0; s < last; s++) {
        double d = distance(t, step_of(t, s, scale_by), exact);
        if (d < least)
            least = d;
    }
    if (!(own <= least * (1.0 + 1e-6))) /* where the logarithm is halfway either may be said to be nearest */
        fail_msg("scale type %d: %.9g / %g has scale 0x%x, which is off by %g instead of %g", (int)t, (double)step,
                 (double)global, got, own, least);
}

static void every_step_gets_the_nearest_scale(void **state)
{
    (void)state;
    uint64_t seed = 5;
    for (int i = 0; i < 400; i++) {
        float m = 1.0f + (float)next_random(&seed) * 0x1p-31f;
        check_scale(SCALE_BF16, ldexpf(m, (int)(next_random(&seed) % 250) - 125), 1.0f);
        check_scale(SCALE_E8M0, ldexpf(m, (int)(next_random(&seed) % 252) - 125), 1.0f);
        check_scale(SCALE_E4M3, ldexpf(m, (int)(next_random(&seed) % 30) - 15), 3584.0f);
        check_scale(SCALE_E4M3, ldexpf(m, (int)(next_random(&seed) % 20) - 8), 1.0f);
        assert_int_equal(grid_scale(SCALE_F32, m, 1.0f), f32_bits(m));
    }
    for (uint32_t b = 1; b < 255; b++) { /* in the exponent the middle is the square root of two */
        assert_int_equal(grid_scale(SCALE_E8M0, ldexpf(1.0f, (int)b - 127), 1.0f), b);
        assert_int_equal(grid_scale(SCALE_E8M0, ldexpf(1.414f, (int)b - 127), 1.0f), b);
        assert_int_equal(grid_scale(SCALE_E8M0, ldexpf(1.415f, (int)b - 127), 1.0f), b < 254 ? b + 1 : 254);
    }
}

static void steps_that_no_scale_has_give_that_of_zeros(void **state)
{
    (void)state;
    static const uint32_t empty[] = {[SCALE_F32] = 0x3f800000u, [SCALE_BF16] = 0x3f80, [SCALE_E8M0] = 127,
                                     [SCALE_E4M3] = 0x20};
    for (enum scale_type t = SCALE_F32; t <= SCALE_E4M3; t++) {
        assert_int_equal(grid_empty(t), empty[t]);
        assert_int_equal(grid_scale(t, 0.0f, 1.0f), empty[t]);
        assert_int_equal(grid_scale(t, -0.0f, 1.0f), empty[t]);
        assert_int_equal(grid_scale(t, INFINITY, 1.0f), empty[t]);
        assert_int_equal(grid_scale(t, NAN, 1.0f), empty[t]);
    }
    assert_int_equal(grid_scale(SCALE_BF16, 1e-45f, 1.0f), 0x3f80);
    assert_int_equal(grid_scale(SCALE_E4M3, 1e-9f, 1.0f), 0x08);
    assert_int_equal(grid_scale(SCALE_E4M3, 1e9f, 1.0f), 0x7e);
}

/* The scales that round to nearest gives blocks, for all codes and largest weights over forty binades: never below the
 * least, never a byte that is NaN, and as the formulas of export-formats 2 have them. */
static void scales_of_round_to_nearest_follow_the_formulas(void **state)
{
    (void)state;
    uint64_t seed = 9;
    for (enum weight_code c = CODE_FP8; c < CODE_COUNT; c++) {
        const struct grid *g = &weight_grid[c];
        for (int i = 0; i < 300; i++) {
            float amax = ldexpf(1.0f + (float)next_random(&seed) * 0x1p-31f, (int)(next_random(&seed) % 40) - 30);
            uint32_t got = grid_fit(g, amax, 100.0f), want;
            double most = g->element == ELEMENT_E2M1 ? 6 : g->element == ELEMENT_E4M3 ? 448
                          : g->element == ELEMENT_U4B8 ? 7.5 : 127.5;
            assert_true((double)grid_most(g->element) == most);
            if (g->scale == SCALE_E8M0) { /* the exponent, and one more from 1.75 on */
                int e = ilogbf(amax);
                want = (uint32_t)(e + (ldexpf(amax, -e) >= 1.75f) + 127 - (g->element == ELEMENT_E2M1 ? 2 : 8));
            } else if (g->scale == SCALE_E4M3) {
                want = nearest(ELEMENT_E4M3, 100.0f * (amax / (float)most));
                want = want < 8 ? 8 : want;
            } else {
                want = f32_bits(amax / (float)most);
                want = g->scale == SCALE_F32 ? want : bf16_from_f32(f32_from_bits(want));
            }
            if (got != want)
                fail_msg("code %d: a largest weight of %.9g has scale 0x%x, expected 0x%x", (int)c, (double)amax, got,
                         want);
            assert_false(grid_is_empty(g, amax));
        }
        assert_true(grid_is_empty(g, 0.0f));
        assert_int_equal(grid_fit(g, 0.0f, 100.0f), grid_empty(g->scale));
        bool vanishes = g->scale == SCALE_F32 || g->scale == SCALE_BF16;
        assert_true(grid_is_empty(g, 1e-45f) == vanishes);
        if (vanishes)
            assert_int_equal(grid_fit(g, 1e-45f, 1.0f), grid_empty(g->scale));
    }
}

static void nvfp4_divisors_are_2688_over_the_largest_weight(void **state)
{
    (void)state;
    assert_true(grid_global(0.75f) == 3584.0f && grid_global(2688.0f) == 1.0f);
    assert_true(grid_global(0.0f) == 1.0f && grid_global(1e-45f) == 1.0f); /* the quotient is infinite */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(values_are_those_of_the_specification),
        cmocka_unit_test(every_number_gets_the_nearest_code),
        cmocka_unit_test(what_is_beyond_the_ends_gets_the_last_code),
        cmocka_unit_test(tiny_numbers_and_zeros_keep_their_sign_where_there_is_one),
        cmocka_unit_test(steps_are_those_of_the_specification),
        cmocka_unit_test(every_step_gets_the_nearest_scale),
        cmocka_unit_test(steps_that_no_scale_has_give_that_of_zeros),
        cmocka_unit_test(scales_of_round_to_nearest_follow_the_formulas),
        cmocka_unit_test(nvfp4_divisors_are_2688_over_the_largest_weight),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
