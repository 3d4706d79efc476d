/* Reading JSON without a tree: what is valid, what is not, and the limits. */
#include "nodes/inspect/scan.h"
#include "tests/check.h"

static const char *const valid[] = {
    "{}", " [ ] ", "1", "-0.5e+10", "\"\"", "true", "false", "null", "{\"a\":[1,2,{\"b\":null}],\"c\":\"\\u00e9\\n\"}",
    "[1e5,0,-0,1.25E-3]", "\"\\ud83d\\ude00 \\\" \\\\ \\/ \\b\\f\\r\\t\"", "\t[\r\n\"\xc3\xa9\"]"};

static const char *const invalid[] = {
    "", "{", "}", "[", "]", "{]", "[}", "{\"a\"}", "{\"a\":}", "{\"a\":1,}", "[1,]", "[,1]", "[1 2]", "{1:2}", "01",
    "-", "1.", "1e", "1e+", ".5", "+1", "tru", "nul", "truefalse", "\"", "\"\\x\"", "\"\\u12\"", "\"\\ud800\"",
    "\"\\ud800\\u0041\"", "\"\\udc00\"", "\"\\u0000\"", "\"a\nb\"", "{\"a\":1} x", "1 2", "\xff", "\"\xc0\x80\"",
    "'a'"};

static bool read_all(const char *text, struct err *e)
{
    struct scan s;
    scan_init(&s, text, strlen(text), "text", e);
    scan_skip(&s);
    return scan_end(&s);
}

static void valid_texts_are_skipped_whole(void **state)
{
    (void)state;
    for (size_t i = 0; i < COUNT(valid); i++) {
        struct err e = {0};
        if (!read_all(valid[i], &e))
            fail_msg("%s: %s", valid[i], e.text);
    }
}

static void invalid_texts_are_refused_with_a_reason(void **state)
{
    (void)state;
    for (size_t i = 0; i < COUNT(invalid); i++) {
        struct err e = {0};
        if (read_all(invalid[i], &e) || e.code != ERR_INPUT || !e.text[0])
            fail_msg("'%s' was read, or refused without a reason", invalid[i]);
    }
}

static void nesting_ends_at_64_levels(void **state)
{
    char text[200];
    struct err e;
    (void)state;
    for (int depth = 63; depth <= 65; depth++) {
        memset(text, '[', (size_t)depth);
        memset(text + depth, ']', (size_t)depth);
        text[2 * depth] = '\0';
        assert_int_equal(read_all(text, &e), depth <= 64);
    }
}

/* An integer that fits 64 bits, and one that does not. */
static void numbers_are_integers_where_they_fit(void **state)
{
    static const struct {
        const char *text;
        bool fits;
        int64_t value;
    } cases[] = {{"0", true, 0}, {"-0", true, 0}, {"42", true, 42}, {"-9223372036854775808", true, INT64_MIN},
                 {"9223372036854775807", true, INT64_MAX}, {"9223372036854775808", false, 0},
                 {"-9223372036854775809", false, 0}, {"1.0", false, 0}, {"1e3", false, 0},
                 {"99999999999999999999999999", false, 0}};
    (void)state;
    for (size_t i = 0; i < COUNT(cases); i++) {
        struct scan s;
        struct err e;
        int64_t value;
        bool fits;
        scan_init(&s, cases[i].text, strlen(cases[i].text), "text", &e);
        assert_true(scan_integer(&s, &value, &fits));
        assert_true(scan_end(&s));
        assert_int_equal(fits, cases[i].fits);
        if (fits)
            assert_int_equal(value, cases[i].value);
    }
}

static void members_and_escapes_are_read(void **state)
{
    static const char text[] = "{\"a\\u0042\":\"\\u00e9\\ud83d\\ude00\", \"n\": [1, -2]}";
    struct scan s;
    struct err e;
    struct str key = {0}, value = {0};
    size_t count = 0, elements = 0;
    int64_t sum = 0, x;
    bool fits;
    (void)state;
    scan_init(&s, text, strlen(text), "text", &e);
    assert_int_equal(scan_peek(&s), SCAN_OBJECT);
    assert_true(scan_enter(&s));
    assert_true(scan_member(&s, &count, &key));
    assert_string_equal(key.text, "aB");
    assert_true(scan_string(&s, &value));
    assert_string_equal(value.text, "\xc3\xa9\xf0\x9f\x98\x80");
    assert_true(scan_member(&s, &count, &key));
    assert_string_equal(key.text, "n");
    assert_true(scan_enter(&s));
    while (scan_element(&s, &elements)) {
        assert_true(scan_integer(&s, &x, &fits));
        sum += x;
    }
    assert_int_equal(sum, -1);
    assert_false(scan_member(&s, &count, &key));
    assert_true(scan_end(&s));
    assert_int_equal(count, 2);
    str_free(&key);
    str_free(&value);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(valid_texts_are_skipped_whole),
        cmocka_unit_test(invalid_texts_are_refused_with_a_reason),
        cmocka_unit_test(nesting_ends_at_64_levels),
        cmocka_unit_test(numbers_are_integers_where_they_fit),
        cmocka_unit_test(members_and_escapes_are_read),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
