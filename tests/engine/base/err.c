/* The error type. */
#include <errno.h>

#include "tests/check.h"

static void errors_keep_code_text_context_and_place(void **state)
{
    (void)state;
    struct err e = {0};
    assert_false(err_set(&e, ERR_INPUT, "group size %d does not divide %d columns", 16, 40));
    assert_int_equal(e.code, ERR_INPUT);
    assert_true(e.line > 0 && strstr(e.file, "err.c"));
    assert_false(err_context(&e, "node '%s'", "quantize"));
    assert_string_equal(e.text, "node 'quantize': group size 16 does not divide 40 columns");
    assert_false(err_suggest(&e, NULL) || err_suggest(NULL, "x"));
    assert_string_equal(e.text, "node 'quantize': group size 16 does not divide 40 columns");
    assert_false(err_suggest(&e, "16"));
    assert_string_equal(e.text, "node 'quantize': group size 16 does not divide 40 columns; did you mean '16'?");
    assert_false(err_at(&e, "g.yaml", 3, 7, 2));
    assert_string_equal(e.input, "g.yaml");
    assert_int_equal(e.input_line, 3);
    assert_int_equal(e.input_column, 7);
    assert_int_equal(e.input_width, 2);
    assert_false(err_set(NULL, ERR_IO, "nobody listens"));
    assert_false(err_context(NULL, "nobody"));
    assert_string_equal(err_name(ERR_STOPPED), "stopped");
    assert_string_equal(err_name((enum err_code)99), "bug");
}

static void a_long_context_keeps_the_text_within_bounds(void **state)
{
    (void)state;
    struct err e;
    char big[3000];
    memset(big, 'x', sizeof big);
    big[sizeof big - 1] = '\0';
    assert_false(err_set(&e, ERR_INPUT, "%s", big));
    assert_int_equal(strlen(e.text), sizeof e.text - 1);
    for (int i = 0; i < 300; i++)
        err_context(&e, "%d bottles", i);
    assert_int_equal(strlen(e.text), sizeof e.text - 1);
    assert_int_equal(strncmp(e.text, "299 bottles: 298 bottles: ", 26), 0);
    err_context(&e, "%s", big);
    assert_int_equal(strlen(e.text), sizeof e.text - 1);
    assert_non_null(strstr(e.text, "xxx: 299 bottles: "));
    errno = EACCES;
    err_errno(&e, ERR_IO, "cannot open '%s'", big);
    assert_int_equal(strlen(e.text), sizeof e.text - 1);
    assert_non_null(strstr(e.text, "xxx: Permission denied"));
}

static void a_full_disk_is_a_resource_error_whatever_failed(void **state)
{
    (void)state;
    struct err e;
    errno = ENOSPC;
    assert_false(err_errno(&e, ERR_IO, "write '%s'", "x.h5"));
    assert_int_equal(e.code, ERR_RESOURCE);
    assert_non_null(strstr(e.text, "write 'x.h5': No space"));
    errno = EACCES;
    assert_false(err_errno(&e, ERR_IO, "open"));
    assert_int_equal(e.code, ERR_IO);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(errors_keep_code_text_context_and_place),
        cmocka_unit_test(a_long_context_keeps_the_text_within_bounds),
        cmocka_unit_test(a_full_disk_is_a_resource_error_whatever_failed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
