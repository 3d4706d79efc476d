#include "tests/check.h"

#include <math.h>

#include "engine/store/store_private.h"

static struct key hash_of(void (*feed)(struct key_hash *h))
{
    struct key_hash *h;
    struct key k;
    struct err e;
    assert_ok(key_hash_new(&h, &e), e);
    feed(h);
    assert_ok(key_hash_end(h, &k, &e), e);
    return k;
}

static void expect(const struct key *k, const char *text)
{
    char out[KEY_TEXT];
    assert_string_equal(key_text(k, out), text);
}

static void bytes_hash_to_the_published_sha256_vectors(void **state)
{
    (void)state;
    struct key k;
    struct err e;
    assert_ok(key_of_bytes("abc", 3, &k, &e), e);
    expect(&k, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    assert_ok(key_of_bytes(NULL, 0, &k, &e), e);
    expect(&k, "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
}

static void feed_all(struct key_hash *h)
{
    struct key abc;
    struct err e;
    assert_ok(key_of_bytes("abc", 3, &abc, &e), e);
    key_hash_text(h, "hessian");
    key_hash_int(h, -12);
    key_hash_double(h, 0.1);
    key_hash_bytes(h, "\x00\xff", 2);
    key_hash_key(h, &abc);
}

/* The digest was computed with Python's hashlib over: u64 length and bytes of "format 1", "hessian", "-12", the 16 hex
 * digits of 0.1, 00 ff, SHA-256("abc"). */
static void fields_hash_as_an_independent_program_says(void **state)
{
    (void)state;
    struct key k = hash_of(feed_all);
    expect(&k, "6938961e57c3a405ce91220fff7c09107f4ffe97e21711a920a62269421ad389");
}

static void feed_ab_c(struct key_hash *h) { key_hash_text(h, "ab"), key_hash_text(h, "c"); }
static void feed_a_bc(struct key_hash *h) { key_hash_text(h, "a"), key_hash_text(h, "bc"); }
static void feed_abc(struct key_hash *h) { key_hash_text(h, "abc"); }
static void feed_abc_empty(struct key_hash *h) { key_hash_text(h, "abc"), key_hash_text(h, ""); }
static void feed_zero(struct key_hash *h) { key_hash_double(h, 0.0); }
static void feed_minus_zero(struct key_hash *h) { key_hash_double(h, -0.0); }
static void feed_tiny(struct key_hash *h) { key_hash_double(h, 5e-324); }
static void feed_nothing(struct key_hash *h) { (void)h; }

static void the_split_into_fields_changes_the_key(void **state)
{
    (void)state;
    void (*const feeds[])(struct key_hash *) = {feed_ab_c, feed_a_bc, feed_abc, feed_abc_empty, feed_zero, feed_tiny,
                                                feed_nothing};
    for (size_t i = 0; i < COUNT(feeds); i++)
        for (size_t j = 0; j < i; j++) {
            struct key a = hash_of(feeds[i]), b = hash_of(feeds[j]);
            assert_false(key_equal(&a, &b));
        }
}

static void minus_zero_has_the_key_of_zero(void **state)
{
    (void)state;
    struct key a = hash_of(feed_zero), b = hash_of(feed_minus_zero);
    assert_true(key_equal(&a, &b));
}

static void nan_has_no_key(void **state)
{
    (void)state;
    struct key_hash *h;
    struct key k;
    struct err e;
    assert_ok(key_hash_new(&h, &e), e);
    key_hash_double(h, NAN);
    assert_err(key_hash_end(h, &k, &e), e, ERR_INPUT, "NaN");
}

static void text_is_parsed_strictly(void **state)
{
    (void)state;
    const char *good = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    struct key k;
    assert_true(key_parse(good, &k));
    expect(&k, good);
    char longer[KEY_TEXT + 1], upper[KEY_TEXT], bad[KEY_TEXT];
    snprintf(longer, sizeof longer, "%s0", good);
    snprintf(upper, sizeof upper, "%s", good);
    upper[0] = 'B';
    assert_false(key_parse(longer, &k));
    assert_false(key_parse(upper, &k));
    assert_false(key_parse("", &k));
    for (size_t n = 0; n < KEY_TEXT - 1; n++) {
        snprintf(bad, sizeof bad, "%.*s", (int)n, good);
        assert_false(key_parse(bad, &k));
        snprintf(bad, sizeof bad, "%s", good);
        bad[n] = 'g';
        assert_false(key_parse(bad, &k));
    }
}

static void a_set_holds_what_was_added_and_nothing_else(void **state)
{
    (void)state;
    struct key_set set = {0};
    struct err e;
    for (unsigned i = 0; i < 2000; i++) {
        struct key k;
        assert_ok(key_of_bytes(&i, sizeof i, &k, &e), e);
        assert_false(key_set_has(&set, &k));
        assert_ok(key_set_add(&set, &k, &e), e);
        assert_ok(key_set_add(&set, &k, &e), e);
        assert_true(key_set_has(&set, &k));
        assert_int_equal(set.n, i + 1);
    }
    for (unsigned i = 0; i < 2000; i++) { /* every third leaves, twice; the others stay */
        struct key k;
        assert_ok(key_of_bytes(&i, sizeof i, &k, &e), e);
        for (int twice = 0; i % 3 == 0 && twice < 2; twice++)
            key_set_remove(&set, &k);
    }
    assert_int_equal(set.n, 1333);
    for (unsigned i = 0; i < 2000; i++) {
        struct key k;
        assert_ok(key_of_bytes(&i, sizeof i, &k, &e), e);
        assert_true(key_set_has(&set, &k) == (i % 3 != 0));
    }
    key_set_free(&set);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(bytes_hash_to_the_published_sha256_vectors),
        cmocka_unit_test(fields_hash_as_an_independent_program_says),
        cmocka_unit_test(the_split_into_fields_changes_the_key),
        cmocka_unit_test(minus_zero_has_the_key_of_zero),
        cmocka_unit_test(nan_has_no_key),
        cmocka_unit_test(text_is_parsed_strictly),
        cmocka_unit_test(a_set_holds_what_was_added_and_nothing_else),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
