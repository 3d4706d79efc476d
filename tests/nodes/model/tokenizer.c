/* Token ids against those of the `tokenizers` library: golden files made by tools/golden_tokens.py. */
#include "nodes/model/json.h"
#include "nodes/model/tokenizer.h"
#include "tests/check.h"

/* A tokenizer of the golden files: its own small ones, or that of a shipped model. */
static struct tokenizer *open_tokenizer(const char *name)
{
    char path[1024];
    struct err e;
    struct tokenizer *t;
    snprintf(path, sizeof path, "%s/tests/golden/tokens/tokenizers/%s.json", check_root(), name);
    if (access(path, R_OK) != 0)
        snprintf(path, sizeof path, "%s/data/models/%s/tokenizer.json", check_root(), name);
    assert_ok(tokenizer_open(&t, path, &e), e);
    return t;
}

/* One line of ids.txt: "TOKENIZER SPECIAL SLICE: id id ...". */
static void check_line(char *line, struct tokenizer *t, const char *name, int special, const char *slice)
{
    char path[1024], *text, *at = strchr(line, ':') + 1;
    struct err e;
    size_t n, count, i = 0;
    int32_t *ids;
    snprintf(path, sizeof path, "%s/tests/golden/tokens/slices/%s.txt", check_root(), slice);
    assert_ok(json_read_file(&text, &n, path, 1 << 20, &e), e);
    assert_ok(tokenizer_encode(t, text, n, special, &ids, &count, &e), e);
    for (char *end; *at == ' '; at = end, i++) {
        long want = strtol(at, &end, 10);
        if (end == at)
            break;
        if (i >= count || ids[i] != want)
            fail_msg("%s, %s, special %d: id %zu is %d, tokenizers has %ld", name, slice, special, i,
                     i < count ? ids[i] : -1, want);
    }
    if (i != count)
        fail_msg("%s, %s, special %d: %zu ids, tokenizers has %zu", name, slice, special, count, i);
    mem_free(text);
    mem_free(ids);
}

static void ids_are_those_of_the_tokenizers_library(void **state)
{
    char path[1024], name[64] = "", slice[64], last[64] = "", *text;
    struct err e;
    struct tokenizer *t = NULL;
    size_t n, lines = 0;
    int special;
    (void)state;
    snprintf(path, sizeof path, "%s/tests/golden/tokens/ids.txt", check_root());
    assert_ok(json_read_file(&text, &n, path, 1 << 24, &e), e);
    for (char *line = text, *next; *line; line = next, lines++) {
        next = strchr(line, '\n');
        assert_non_null(next);
        *next++ = '\0';
        assert_int_equal(sscanf(line, "%63s %d %63[^:]:", name, &special, slice), 3);
        if (strcmp(name, last) != 0) {
            tokenizer_close(t);
            t = open_tokenizer(name);
            snprintf(last, sizeof last, "%s", name);
        }
        check_line(line, t, name, special, slice);
    }
    assert_true(lines >= 500);
    tokenizer_close(t);
    mem_free(text);
}

static void long_texts_without_a_space_take_no_quadratic_time(void **state)
{
    static const size_t n = 2000000;
    struct err e;
    struct tokenizer *t = open_tokenizer("stories260k");
    char *text;
    int32_t *ids;
    size_t count;
    (void)state;
    assert_ok(mem_raw(&text, n, &e), e);
    memset(text, 'a', n);
    assert_ok(tokenizer_encode(t, text, n, true, &ids, &count, &e), e);
    assert_true(count > 1 && count <= n + 2);
    mem_free(ids);
    mem_free(text);
    tokenizer_close(t);
}

static void invalid_utf8_is_refused_with_its_place(void **state)
{
    struct err e;
    struct tokenizer *t = open_tokenizer("stories260k");
    int32_t *ids;
    size_t count;
    (void)state;
    assert_err(tokenizer_encode(t, "abc\xff", 4, true, &ids, &count, &e), e, ERR_INPUT, "3");
    tokenizer_close(t);
}

/* The n-th allocation fails, for n = 1, 2, ... until none does: a clean error each time. */
static void running_out_of_memory_is_an_error(void **state)
{
    char path[1024];
    struct err e;
    (void)state;
    snprintf(path, sizeof path, "%s/tests/golden/tokens/tokenizers/pieces.json", check_root());
    long n = 0;
    bool done = false;
    while (!done) {
        struct tokenizer *t = NULL;
        int32_t *ids = NULL;
        size_t count;
        mem_fail_after(++n, true);
        bool ok = tokenizer_open(&t, path, &e) && tokenizer_encode(t, "Lily went", 9, true, &ids, &count, &e);
        mem_fail_after(0, false);
        done = ok;
        if (!ok)
            assert_int_equal(e.code, ERR_RESOURCE);
        mem_free(ids);
        tokenizer_close(t);
    }
    assert_true(n > 3);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(ids_are_those_of_the_tokenizers_library),
        cmocka_unit_test(long_texts_without_a_space_take_no_quadratic_time),
        cmocka_unit_test(invalid_utf8_is_refused_with_its_place),
        cmocka_unit_test(running_out_of_memory_is_an_error),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
