/* Text helpers: growing strings, JSON, near names, sizes and times, UTF-8. */
#include <math.h>

#include "engine/base/str.h"
#include "tests/check.h"

static void a_string_grows_and_reports_a_failed_append_at_the_end(void **state)
{
    (void)state;
    struct str s = {0};
    struct err e;
    str_add(&s, "a");
    for (int i = 0; i < 100; i++)
        str_printf(&s, "%d,", i);
    str_add_bytes(&s, "xyz", 2);
    assert_ok(str_ok(&s, &e), e);
    assert_int_equal(s.length, strlen(s.text));
    assert_int_equal(strncmp(s.text, "a0,1,2,", 7), 0);
    assert_string_equal(s.text + s.length - 4, "9,xy");
    mem_fail_after(1, false);
    for (int i = 0; i < 1000; i++)
        str_add(&s, "more");
    mem_fail_after(0, false);
    assert_err(str_ok(&s, &e), e, ERR_RESOURCE, "out of memory");
    str_free(&s);
}

static void json_strings_are_escaped(void **state)
{
    (void)state;
    static const struct {
        const char *text, *json;
    } cases[] = {
        {"", "\"\""},
        {"plain", "\"plain\""},
        {"a\"b\\c", "\"a\\\"b\\\\c\""},
        {"\n\t\x01", "\"\\n\\u0009\\u0001\""},
        {"gr\xc3\xbcn", "\"gr\xc3\xbcn\""},
        {"\xff|\xc3", "\"\\ufffd|\\ufffd\""},
        {"\xed\xa0\x80", "\"\\ufffd\\ufffd\\ufffd\""},
    };
    struct str s = {0};
    for (size_t i = 0; i < COUNT(cases); i++) {
        str_add_json(&s, cases[i].text);
        assert_string_equal(s.text, cases[i].json);
        str_free(&s);
    }
    str_add_json_double(&s, 0.1);
    str_add(&s, " ");
    str_add_json_double(&s, NAN);
    assert_string_equal(s.text, "0.10000000000000001 null");
    str_free(&s);
}

static void the_nearest_name_is_within_a_third_of_the_longer(void **state)
{
    (void)state;
    static const char *const names[] = {"model", "corpus", "calibration", "select", "quantize", "on", "a"};
    static const struct {
        const char *name, *nearest;
    } cases[] = {
        {"modle", "model"}, {"Model", "model"}, {"corps", "corpus"}, {"calibraton", "calibration"},
        {"kalibrashun", NULL},
        {"xyz", NULL}, {"", NULL}, {"in", "on"}, {"selects", "select"}, {"qauntize", "quantize"}, {"hessian", NULL},
        {"b", NULL}, {"A", "a"}, {"ab", NULL}, {"at", NULL},
    };
    for (size_t i = 0; i < COUNT(cases); i++) {
        const char *got = str_nearest(cases[i].name, names, COUNT(names)), *wanted = cases[i].nearest;
        if (!got != !wanted || (got && strcmp(got, wanted) != 0))
            fail_msg("'%s': expected %s, got %s", cases[i].name, wanted ? wanted : "none", got ? got : "none");
    }
    char longest[200];
    memset(longest, 'm', 199);
    longest[199] = '\0';
    assert_null(str_nearest(longest, names, COUNT(names)));
    assert_null(str_nearest("model", names, 0));
}

static void sizes_are_read_in_decimal_with_binary_units(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        bool ok;
        uint64_t bytes;
    } cases[] = {
        {"1000", true, 1000}, {"8GiB", true, 8ull << 30}, {"512 MiB", true, 512ull << 20}, {"1.5K", true, 1536},
        {"2T", true, 2ull << 40}, {"7B", true, 7}, {"0", true, 0}, {"3KB", true, 3072}, {"", false, 0},
        {"-1", false, 0}, {"MiB", false, 0}, {"1 gig", false, 0}, {"0x10", false, 0}, {"1e3", false, 0},
        {"1e400", false, 0}, {"99999999999TiB", false, 0}, {"nan", false, 0}, {"5 5", false, 0},
    };
    for (size_t i = 0; i < COUNT(cases); i++) {
        uint64_t bytes = 0;
        bool ok = str_parse_size(cases[i].text, &bytes);
        if (ok != cases[i].ok || (ok && bytes != cases[i].bytes))
            fail_msg("'%s': %d, %llu", cases[i].text, ok, (unsigned long long)bytes);
    }
}

static void sizes_and_times_are_written_for_people(void **state)
{
    (void)state;
    char out[16];
    assert_string_equal(str_size(0, out), "0 B");
    assert_string_equal(str_size(1023, out), "1023 B");
    assert_string_equal(str_size(2040109466, out), "1.9 GiB");
    assert_string_equal(str_size(UINT64_MAX, out), "16777216.0 TiB");
    assert_string_equal(str_seconds(0.0123, out), "12 ms");
    assert_string_equal(str_seconds(4.2, out), "4.2 s");
    assert_string_equal(str_seconds(187, out), "3m07s");
    assert_string_equal(str_seconds(3720, out), "1h02m");
    assert_string_equal(str_seconds(NAN, out), "-");
}

static void utf8_is_strict(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        size_t n;
        bool ok;
    } cases[] = {
        {"", 0, true}, {"a\0b", 3, true}, {"\xc3\xbc", 2, true}, {"\xe2\x86\x92", 3, true},
        {"\xf0\x9f\x98\x80", 4, true},
        {"\xf4\x8f\xbf\xbf", 4, true}, {"\xc3", 1, false}, {"\x80", 1, false}, {"\xc0\x80", 2, false},
        {"\xe0\x80\x80", 3, false}, {"\xf0\x80\x80\x80", 4, false}, {"\xed\xa0\x80", 3, false},
        {"\xf4\x90\x80\x80", 4, false}, {"\xff", 1, false}, {"\xc3(", 2, false},
    };
    for (size_t i = 0; i < COUNT(cases); i++)
        if (str_is_utf8(cases[i].text, cases[i].n) != cases[i].ok)
            fail_msg("case %zu", i);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_string_grows_and_reports_a_failed_append_at_the_end),
        cmocka_unit_test(json_strings_are_escaped),
        cmocka_unit_test(the_nearest_name_is_within_a_third_of_the_longer),
        cmocka_unit_test(sizes_are_read_in_decimal_with_binary_units),
        cmocka_unit_test(sizes_and_times_are_written_for_people),
        cmocka_unit_test(utf8_is_strict),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
