/* Memory: alignment, overflow, the failure hook, arenas. */
#include "tests/check.h"

static void memory_is_aligned_zeroed_and_checked_for_overflow(void **state)
{
    (void)state;
    struct err e;
    double *x = NULL, *kept;
    assert_ok(mem_new(&x, 1000, &e), e);
    assert_int_equal((uintptr_t)x % 64, 0);
    for (int i = 0; i < 1000; i++)
        assert_true(x[i] == 0);
    x[999] = 3;
    assert_ok(mem_grow(&x, 1000, 3000, &e), e);
    assert_true(x[999] == 3 && x[1000] == 0 && x[2999] == 0);
    kept = x;
    assert_err(mem_new(&x, SIZE_MAX / 4, &e), e, ERR_RESOURCE, "overflows");
    assert_err(mem_grow(&x, 3000, SIZE_MAX / 2, &e), e, ERR_RESOURCE, "overflows");
    assert_ptr_equal(x, kept);
    mem_free(x);
    mem_free(NULL);
    void *nothing = NULL;
    assert_ok(mem_new_bytes(&nothing, 0, 8, &e), e);
    assert_non_null(nothing);
    mem_free(nothing);
}

static void the_failure_hook_fails_once_or_from_then_on(void **state)
{
    (void)state;
    static const struct {
        long n;
        bool sticky;
        const char *pattern;
    } cases[] = {{1, false, "-++++"}, {3, false, "++-++"}, {1, true, "-----"}, {3, true, "++---"}, {0, true, "+++++"}};
    for (size_t c = 0; c < COUNT(cases); c++) {
        char got[6] = "";
        mem_fail_after(cases[c].n, cases[c].sticky);
        for (int i = 0; i < 5; i++) {
            int *p = NULL;
            got[i] = mem_new(&p, 1, NULL) ? '+' : '-';
            mem_free(p);
        }
        mem_fail_after(0, false);
        assert_string_equal(got, cases[c].pattern);
    }
}

static void an_arena_gives_zeroed_aligned_pieces_of_any_size(void **state)
{
    (void)state;
    static const size_t sizes[] = {0, 1, 15, 16, 17, 4096, 100000, 3, 16384};
    struct arena a = {0};
    struct err e;
    unsigned char *pieces[COUNT(sizes)];
    for (size_t i = 0; i < COUNT(sizes); i++) {
        pieces[i] = arena_new(&a, sizes[i], &e);
        assert_non_null(pieces[i]);
        assert_int_equal((uintptr_t)pieces[i] % 16, 0);
        for (size_t k = 0; k < sizes[i]; k++)
            assert_int_equal(pieces[i][k], 0);
        memset(pieces[i], (int)i + 1, sizes[i]);
    }
    for (size_t i = 0; i < COUNT(sizes); i++)
        for (size_t k = 0; k < sizes[i]; k++)
            assert_int_equal(pieces[i][k], i + 1);
    assert_string_equal(arena_strdup(&a, "word", &e), "word");
    assert_string_equal(arena_strndup(&a, "words", 3, &e), "wor");
    assert_string_equal(arena_printf(&a, &e, "%s-%03d", "x", 7), "x-007");
    assert_null(arena_new(&a, SIZE_MAX - 3, &e));
    assert_int_equal(e.code, ERR_RESOURCE);
    arena_free(&a);
    assert_null(a.blocks);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(memory_is_aligned_zeroed_and_checked_for_overflow),
        cmocka_unit_test(the_failure_hook_fails_once_or_from_then_on),
        cmocka_unit_test(an_arena_gives_zeroed_aligned_pieces_of_any_size),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
