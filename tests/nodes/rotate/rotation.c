/* Orthogonal matrices of every order, and rounding once. */
#include <math.h>

#include "engine/store/store.h"
#include "nodes/rotate/basis.h"
#include "tests/check.h"

#define TOLERANCE 1e-12

/* Rows of Q: what becomes of unit vectors (mem_free). */
static double *whole(const struct rotation *r)
{
    int64_t n = rotation_order(r);
    double *q, *work;
    struct err e;
    assert_ok(mem_new(&q, (size_t)(n * n), &e) && mem_new(&work, (size_t)n, &e), e);
    for (int64_t i = 0; i < n; i++) {
        q[i * n + i] = 1.0;
        rotation_apply(r, q + i * n, work);
    }
    mem_free(work);
    return q;
}

static struct rotation *must_make(int64_t n, uint64_t seed)
{
    struct rotation *r;
    struct err e;
    assert_ok(rotation_new(&r, n, seed, &e), e);
    assert_int_equal(rotation_order(r), n);
    return r;
}

static void check_order(int64_t n)
{
    struct rotation *r = must_make(n, 7);
    bool is_hadamard;
    int64_t p = rotation_core(r, &is_hadamard);
    double *q = whole(r);
    assert_true(p >= 1 && n % p == 0);
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = 0; j <= i; j++) {
            double dot = 0;
            for (int64_t k = 0; k < n; k++)
                dot += q[i * n + k] * q[j * n + k];
            if (fabs(dot - (i == j)) > TOLERANCE)
                fail_msg("order %lld: rows %lld and %lld have product %.17g", (long long)n, (long long)i, (long long)j,
                         dot);
        }
    for (int64_t i = 0; is_hadamard && i < n * n; i++)
        if (fabs(fabs(q[i]) * sqrt((double)n) - 1.0) > TOLERANCE)
            fail_msg("order %lld: element %lld is %.17g, not +-1 / sqrt(n)", (long long)n, (long long)i, q[i]);
    mem_free(q);
    rotation_free(r);
}

static void matrices_of_every_order_are_orthogonal(void **state)
{
    (void)state;
    for (int64_t n = 1; n <= 70; n++)
        check_order(n);
    const int64_t more[] = {172, 192, 344, 352, 384, 576, 896, 960};
    for (size_t i = 0; i < COUNT(more); i++)
        check_order(more[i]);
}

static void cores_are_hadamard_matrices_where_paley_has_one(void **state)
{
    static const struct { int64_t n, core; bool is_hadamard; } cases[] = {
        {1, 1, true}, {2, 1, true}, {64, 1, true}, {128, 1, true}, {4096, 1, true},
        {12, 12, true}, {20, 20, true}, {28, 28, true}, {36, 36, true}, {44, 44, true}, {60, 60, true},
        {192, 12, true}, {576, 36, true}, {352, 44, true}, {896, 28, true}, {960, 60, true}, {1536, 12, true},
        {2560, 20, true}, {3072, 12, true}, {5120, 20, true},
        {3, 3, false}, {6, 3, false}, {172, 43, false}, {184, 23, false}, {52, 13, false}};
    (void)state;
    for (size_t i = 0; i < COUNT(cases); i++) {
        struct rotation *r = must_make(cases[i].n, 1);
        bool is_hadamard;
        int64_t core = rotation_core(r, &is_hadamard);
        if (core != cases[i].core || is_hadamard != cases[i].is_hadamard)
            fail_msg("order %lld has core %lld (%d), expected %lld (%d)", (long long)cases[i].n, (long long)core,
                     is_hadamard, (long long)cases[i].core, cases[i].is_hadamard);
        rotation_free(r);
    }
}

static void undoing_gives_back_what_was(void **state)
{
    const int64_t orders[] = {1, 16, 36, 43, 172, 576};
    double x[576], work[576];
    (void)state;
    for (size_t c = 0; c < COUNT(orders); c++) {
        int64_t n = orders[c];
        struct rotation *r = must_make(n, 3);
        for (int64_t i = 0; i < n; i++)
            x[i] = sin(1.7 * (double)(i + 1));
        rotation_apply(r, x, work);
        rotation_undo(r, x, work);
        for (int64_t i = 0; i < n; i++)
            if (fabs(x[i] - sin(1.7 * (double)(i + 1))) > TOLERANCE)
                fail_msg("order %lld: element %lld came back as %.17g", (long long)n, (long long)i, x[i]);
        rotation_free(r);
    }
}

static void digest(int64_t n, uint64_t seed, char out[KEY_TEXT])
{
    struct rotation *r = must_make(n, seed);
    double *q = whole(r);
    struct key key;
    struct err e;
    assert_ok(key_of_bytes(q, (size_t)(n * n) * sizeof *q, &key, &e), e);
    key_text(&key, out);
    mem_free(q);
    rotation_free(r);
}

/* Recorded once: a seed means the same matrix on every machine and in every later version. */
static void a_seed_has_the_same_bits_everywhere(void **state)
{
    static const struct { int64_t n; uint64_t seed; const char *digest; } cases[] = {
        {64, 1, "c7af7c7c953a7e32eb4d94d473a8b262a3079e6739e892c0c70140bbee7db3be"},
        {576, 1, "a6f7e8949453be4030399bd086ba5deef1ad4a78eae8cb67c9e6c81303dea1e1"},
        {172, 1, "1379a4c24933a715b6b9d1f5ee223b2bac5acc997db9a6f55724d48648c53cc7"}};
    char text[KEY_TEXT], other[KEY_TEXT];
    (void)state;
    for (size_t i = 0; i < COUNT(cases); i++) {
        digest(cases[i].n, cases[i].seed, text);
        if (strcmp(text, cases[i].digest) != 0)
            fail_msg("order %lld, seed %llu: %s, expected %s", (long long)cases[i].n, (unsigned long long)cases[i].seed,
                     text, cases[i].digest);
        digest(cases[i].n, cases[i].seed + 1, other);
        assert_string_not_equal(text, other);
    }
    assert_true(rotation_seed(1, 0, 0) != rotation_seed(1, 1, 0) && rotation_seed(1, 1, 0) != rotation_seed(1, 1, 1) &&
                rotation_seed(1, 1, 1) != rotation_seed(2, 1, 1));
}

static void numbers_are_rounded_once(void **state)
{
    /* Between 1 and the next bf16 (f16) number: a little above the middle. In f32 that is the middle itself, which a
     * second rounding takes to the even neighbour, 1. */
    const double x[] = {1 + 0x1p-8 + 0x1p-40, -(1 + 0x1p-8 + 0x1p-40), 1 + 0x1p-8, 1 + 0x1p-8 - 0x1p-40, 0x1p-140, 0.0};
    const uint16_t bf16[] = {0x3f81, 0xbf81, 0x3f80, 0x3f80, 0, 0};
    const double y[] = {1 + 0x1p-11 + 0x1p-40, 1 + 0x1p-11, 1 + 3 * 0x1p-11, 65504, 0x1p-25 + 0x1p-60};
    const uint16_t f16[] = {0x3c01, 0x3c00, 0x3c02, 0x7bff, 1};
    const double far = 1e39, half = 65520;
    uint16_t out[8];
    float wide;
    struct err e;
    (void)state;
    assert_ok(basis_round(x, COUNT(x), DTYPE_BF16, out, &e), e);
    for (size_t i = 0; i < COUNT(x); i++)
        assert_int_equal(out[i], bf16[i]);
    assert_ok(basis_round(y, COUNT(y), DTYPE_F16, out, &e), e);
    for (size_t i = 0; i < COUNT(y); i++)
        assert_int_equal(out[i], f16[i]);
    assert_ok(basis_round(x, 1, DTYPE_F32, &wide, &e), e);
    assert_true(wide == 1 + 0x1p-8f);
    assert_err(basis_round(&half, 1, DTYPE_F16, out, &e), e, ERR_NUMERIC, "beyond the range of f16");
    assert_false(basis_round(&far, 1, DTYPE_BF16, out, &e));
    assert_false(basis_round(&far, 1, DTYPE_F32, &wide, &e));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(matrices_of_every_order_are_orthogonal),
        cmocka_unit_test(cores_are_hadamard_matrices_where_paley_has_one),
        cmocka_unit_test(undoing_gives_back_what_was),
        cmocka_unit_test(a_seed_has_the_same_bits_everywhere),
        cmocka_unit_test(numbers_are_rounded_once),
    };
    return cmocka_run_group_tests_name("rotation", tests, NULL, NULL);
}
