/* What tokenizer.json may ask for and we do not do, or what is wrong in it: each with its message. A case is a change
 * to a small tokenizer that is fine. Also: what the regular expressions of pre-tokenizers may hold. */
#include "nodes/model/tokenizer.h"
#include "nodes/model/tokenizer_regex.h"
#include "tests/check.h"

#include <jansson.h>

static const char fine[] =
    "{\"truncation\": null, \"padding\": null, \"normalizer\": null, \"pre_tokenizer\": null, \"post_processor\": null,"
    " \"added_tokens\": [{\"id\": 0, \"content\": \"<s>\", \"normalized\": false}],"
    " \"model\": {\"type\": \"BPE\", \"unk_token\": null, \"vocab\": {\"<s>\": 0, \"a\": 1, \"b\": 2, \"ab\": 3},"
    " \"merges\": [\"a b\"]}}";

/* Put `value` (JSON) in the place of `member` of the object `object` ("" for the whole), write it, open it. */
static bool open_changed(const char *object, const char *member, const char *value, char folder[256],
                         struct tokenizer **t, struct err *e)
{
    char path[512];
    json_error_t error;
    json_t *root = json_loads(fine, 0, NULL), *where = *object ? json_object_get(root, object) : root;
    json_t *new = json_loads(value, JSON_DECODE_ANY, &error);
    if (!new)
        fail_msg("a case is no JSON: %s", value);
    assert_int_equal(json_object_set_new(where, member, new), 0);
    char *text = json_dumps(root, 0);
    check_write(folder, "tokenizer.json", text, strlen(text));
    free(text);
    json_decref(root);
    snprintf(path, sizeof path, "%s/tokenizer.json", folder);
    return tokenizer_open(t, path, e);
}

static const struct {
    const char *object, *member, *value, *message;
} rejected[] = {
    {"", "truncation", "{\"max_length\": 8}", "'truncation' is not supported: whole texts are encoded; set it to null"},
    {"", "padding", "{}", "'padding' is not supported"},
    {"", "model", "[]", "there is no object 'model'"},
    {"", "added_tokens", "{}", "added_tokens must be a list"},
    {"", "added_tokens", "[7]", "an added token must be an object with id and content"},
    {"", "added_tokens", "[{\"id\": 0}]", "the added token '' needs a content and an id from 0 to 16777215"},
    {"", "added_tokens", "[{\"id\": -1, \"content\": \"x\"}]", "the added token 'x' needs a content and an id"},
    {"", "added_tokens", "[{\"id\": 9, \"content\": \"x\"}]",
     "the added token 'x' has id 9; the library gives it 4 (its id in model.vocab, or the next free one)"},
    {"", "added_tokens", "[{\"id\": 2, \"content\": \"a\"}]", "the added token 'a' has id 2; the library gives it 1"},
    {"", "added_tokens", "[{\"id\": 1, \"content\": \"a\"}, {\"id\": 1, \"content\": \"a\"}]",
     "the added token 'a' is there twice"},
    {"", "added_tokens", "[{\"id\": 1, \"content\": \"a\", \"lstrip\": 1}]",
     "added_tokens.lstrip must be true or false"},
    {"", "normalizer", "{\"type\": \"NFC\"}",
     "normalizer: 'NFC' is not supported; Prepend, Replace, and one Sequence of them are"},
    {"", "normalizer", "{\"type\": \"Sequence\"}", "normalizer.normalizers must be a list"},
    {"", "normalizer", "{\"type\": \"Sequence\", \"normalizers\": [{\"type\": \"Lowercase\"}]}",
     "normalizer.normalizers: 'Lowercase' is not supported"},
    {"", "normalizer", "{\"type\": \"Replace\", \"pattern\": {\"Regex\": \" \"}, \"content\": \"_\"}",
     "normalizer: Replace needs a pattern {\"String\": ...} that is not empty"},
    {"", "normalizer", "3", "normalizer must be an object with a 'type'"},
    {"", "normalizer", "{}", "normalizer has no 'type'"},
    {"", "pre_tokenizer", "{\"type\": \"BertPreTokenizer\"}",
     "pre_tokenizer: 'BertPreTokenizer' is not supported; Split, Digits, ByteLevel, Metaspace, and one Sequence of"},
    {"", "pre_tokenizer", "{\"type\": \"Sequence\", \"pretokenizers\": [{\"type\": \"Punctuation\"}]}",
     "pre_tokenizer.pretokenizers[0]: 'Punctuation' is not supported"},
    {"", "pre_tokenizer", "{\"type\": \"Split\", \"pattern\": {\"String\": \"x\"}, \"behavior\": \"Removed\"}",
     "pre_tokenizer: Split with behavior 'Removed' is not supported; 'Isolated', not inverted, is"},
    {"", "pre_tokenizer", "{\"type\": \"Split\", \"pattern\": {\"String\": \"x\"}, \"behavior\": \"Isolated\","
     " \"invert\": true}", "Split with behavior 'Isolated', inverted, is not supported"},
    {"", "pre_tokenizer", "{\"type\": \"Split\", \"behavior\": \"Isolated\"}", "Split needs a pattern"},
    {"", "pre_tokenizer", "{\"type\": \"Split\", \"pattern\": {\"String\": \"\"}, \"behavior\": \"Isolated\"}",
     "it can match an empty string"},
    {"", "pre_tokenizer", "{\"type\": \"Sequence\", \"pretokenizers\":"
     " [{\"type\": \"ByteLevel\"}, {\"type\": \"Digits\"}]}",
     "pre_tokenizer.pretokenizers[1]: nothing may follow ByteLevel"},
    {"", "pre_tokenizer", "{\"type\": \"Metaspace\", \"replacement\": \"ab\"}", "it must be one character"},
    {"", "pre_tokenizer", "{\"type\": \"Metaspace\", \"prepend_scheme\": \"last\"}",
     "Metaspace with prepend_scheme 'last'; always, first and never are known"},
    {"", "pre_tokenizer", "{\"type\": \"Metaspace\", \"prepend_scheme\": \"first\", \"add_prefix_space\": false}",
     "contradicts itself"},
    {"", "post_processor", "{\"type\": \"RobertaProcessing\"}",
     "post_processor: 'RobertaProcessing' is not supported; TemplateProcessing, ByteLevel, and one Sequence of them"},
    {"", "post_processor", "{\"type\": \"TemplateProcessing\", \"single\": []}",
     "post_processor.single has no Sequence: the text itself would be left out"},
    {"", "post_processor", "{\"type\": \"TemplateProcessing\", \"single\": [{\"SpecialToken\": {\"id\": \"q\"}}]}",
     "the special token 'q' has no ids in special_tokens"},
    {"", "post_processor", "{\"type\": \"TemplateProcessing\", \"single\": [{\"SpecialToken\": {\"id\": \"q\"}}],"
     " \"special_tokens\": {\"q\": {\"ids\": [99]}}}", "the special token 'q' has an id that is no token's"},
    {"", "post_processor", "{\"type\": \"TemplateProcessing\", \"single\": [{\"Sequence\": {}}, {\"Sequence\": {}}]}",
     "post_processor.single[1] must be a SpecialToken, or the one Sequence"},
    {"model", "type", "\"WordPiece\"", "model.type 'WordPiece' is not supported; only BPE is"},
    {"model", "type", "\"Unigram\"", "model.type 'Unigram' is not supported; only BPE is"},
    {"model", "dropout", "0.1", "model.dropout is not supported: the ids of a text would be random; set it to null"},
    {"model", "continuing_subword_prefix", "\"##\"", "model.continuing_subword_prefix '##' is not supported; null is"},
    {"model", "end_of_word_suffix", "\"</w>\"", "model.end_of_word_suffix '</w>' is not supported; null is"},
    {"model", "fuse_unk", "\"yes\"", "model.fuse_unk must be true or false"},
    {"model", "unk_token", "\"<unk>\"", "model.unk_token '<unk>' is not in model.vocab"},
    {"model", "unk_token", "7", "model.unk_token must be a string"},
    {"model", "vocab", "{}", "model.vocab must be an object of 1 to 16777216 strings with their ids"},
    {"model", "vocab", "{\"a\": \"0\"}", "model.vocab: the id of 'a' must be a whole number from 0 to 16777215"},
    {"model", "vocab", "{\"a\": 16777216}", "model.vocab: the id of 'a' must be a whole number"},
    {"model", "merges", "null", "model.merges must be a list of at most 16777216 merges"},
    {"model", "merges", "[\"ab\"]", "model.merges[0] must be a string of two parts with one space between"},
    {"model", "merges", "[\"a b c\"]", "model.merges[0] must be a string of two parts with one space between"},
    {"model", "merges", "[[\"a\"]]", "model.merges[0] must be a string of two parts"},
    {"model", "merges", "[\"a b\", \"b c\"]", "model.merges[1]: 'c' is not in model.vocab"},
    {"model", "merges", "[\"b a\"]", "model.merges[0]: 'ba' is not in model.vocab"},
};

static void what_is_not_supported_is_refused_by_name(void **state)
{
    (void)state;
    char folder[256];
    check_dir_make(folder);
    for (size_t i = 0; i < COUNT(rejected); i++) {
        struct tokenizer *t;
        struct err e;
        assert_err(open_changed(rejected[i].object, rejected[i].member, rejected[i].value, folder, &t, &e), e,
                   ERR_INPUT, rejected[i].message);
        assert_non_null(strstr(e.text, "/tokenizer.json: "));
    }
    check_dir_remove(folder);
}

static void what_changes_nothing_is_accepted(void **state)
{
    static const struct {
        const char *object, *member, *value;
    } accepted[] = {
        {"", "version", "\"1.0\""},
        {"", "decoder", "{\"type\": \"Whatever\"}"},
        {"", "added_tokens", "[]"},
        {"", "post_processor", "{\"type\": \"ByteLevel\"}"},
        {"", "pre_tokenizer", "{\"type\": \"Sequence\", \"pretokenizers\": []}"},
        {"model", "dropout", "0"},
        {"model", "end_of_word_suffix", "\"\""},
        {"model", "merges", "[[\"a\", \"b\"]]"},
    };
    (void)state;
    char folder[256];
    check_dir_make(folder);
    for (size_t i = 0; i < COUNT(accepted); i++) {
        struct tokenizer *t;
        struct err e;
        int32_t *ids;
        size_t n;
        assert_ok(open_changed(accepted[i].object, accepted[i].member, accepted[i].value, folder, &t, &e), e);
        assert_int_equal(tokenizer_size(t), 4);
        assert_ok(tokenizer_encode(t, "bab", 3, true, &ids, &n, &e), e);
        assert_int_equal(n, 2);
        assert_int_equal(ids[0], 2);
        assert_int_equal(ids[1], 3);
        mem_free(ids);
        tokenizer_close(t);
    }
    check_dir_remove(folder);
}

static void an_empty_text_has_no_ids_but_memory_of_its_own(void **state)
{
    (void)state;
    char folder[256];
    struct tokenizer *t;
    struct err e;
    int32_t *ids = NULL;
    size_t n = 7;
    check_dir_make(folder);
    assert_ok(open_changed("", "version", "1", folder, &t, &e), e);
    assert_ok(tokenizer_encode(t, "", 0, true, &ids, &n, &e), e);
    assert_int_equal(n, 0);
    assert_non_null(ids);
    mem_free(ids);
    tokenizer_close(t);
    check_dir_remove(folder);
}

static void the_offset_of_invalid_utf8_is_that_of_the_character(void **state)
{
    static const struct {
        const char *text;
        const char *message;
    } cases[] = {
        {"\x80", "at byte 0 (0x80)"},           {"ab\xc0\x80", "at byte 2 (0xc0)"},
        {"\xe4\xbd\xa0\xe4\xbd", "at byte 3 (0xe4)"}, {"a\xed\xa0\x80", "at byte 1 (0xed)"},
        {"a\xf4\x90\x80\x80", "at byte 1 (0xf4)"},    {"a\xe0\x9f\xbf", "at byte 1 (0xe0)"},
        {"a\xf0\x8f\xbf\xbf", "at byte 1 (0xf0)"},    {"\xf8\x88\x80\x80\x80", "at byte 0 (0xf8)"},
        {"ok\xc3(", "at byte 2 (0xc3)"},
    };
    (void)state;
    char folder[256];
    struct tokenizer *t;
    struct err e;
    int32_t *ids;
    size_t n;
    check_dir_make(folder);
    assert_ok(open_changed("", "version", "1", folder, &t, &e), e);
    for (size_t i = 0; i < COUNT(cases); i++)
        assert_err(tokenizer_encode(t, cases[i].text, strlen(cases[i].text), true, &ids, &n, &e), e, ERR_INPUT,
                   cases[i].message);
    tokenizer_close(t);
    check_dir_remove(folder);
}

/* ---------------------------------------------------------------------------------------------- regular expressions */

static void expressions_that_could_mean_something_else_are_refused(void **state)
{
    static const struct {
        const char *pattern, *message;
    } cases[] = {
        {"\\w+", "the escape \\w is not supported"},
        {"\\d", "the escape \\d is not supported"},
        {"\\b", "the escape \\b is not supported"},
        {"x\\", "it ends with a backslash"},
        {"\\p{Lu}", "the property \\p{Lu} is not supported; {L}, {M} and {N} are"},
        {"\\P{Han}", "the property \\P{Han} is not supported"},
        {"[\\S]", "a negated class such as \\S inside [...] is not supported"},
        {"[^\\P{L}]", "a negated class such as \\S inside [...] is not supported"},
        {"[a", "a [ is not closed"},
        {"[]a]", "']' inside [...] is not supported; write \\]"},
        {"[[:alpha:]]", "'[' inside [...] is not supported; write \\["},
        {"[a&&b]", "'&' inside [...] is not supported"},
        {"^a", "'^' is not supported: it depends on what ends a line"},
        {"a$", "'$' is not supported"},
        {"a.", "'.' is not supported"},
        {"(?<name>a)", "the group '(?<n' is not supported"},
        {"(*ACCEPT)a", "the group '(*AC' is not supported"},
        {"a{,3}", "'{' must start an interval such as {1,3}; a brace itself is written \\{"},
        {"a{2}+", "a + behind an interval is not supported"},
        {"a*", "it can match an empty string, which splits nothing"},
        {"a|", "it can match an empty string"},
        {"", "it can match an empty string"},
        {"(a", "missing closing parenthesis"},
    };
    (void)state;
    for (size_t i = 0; i < COUNT(cases); i++) {
        pcre2_code *code;
        struct err e;
        assert_err(tokenizer_regex_compile(&code, cases[i].pattern, &e), e, ERR_INPUT, cases[i].message);
        assert_non_null(strstr(e.text, "the regular expression '"));
    }
}

/* Of each text, where the first match ends; 0 when there is none at the start. */
static void expressions_match_what_the_library_matches(void **state)
{
    static const struct {
        const char *pattern, *text;
        size_t end;
    } cases[] = {
        {"\\s+", "\xc2\x85\xe3\x80\x80\xe1\x9a\x80 x", 9},   /* U+0085, U+3000, U+1680 */
        {"\\s+", "\xe1\xa0\x8e", 0},                         /* U+180E is no space, whatever PCRE2 says */
        {"\\S", "\xe1\xa0\x8e", 3},
        {"\\s", "\xe2\x80\x8b", 0},                          /* nor is U+200B */
        {"\\p{N}+", "1\xc2\xbd\xe2\x85\xa7\xf0\x9e\x93\xb0", 10}, /* 1, a half, Roman eight, U+1E4F0 (Unicode 15) */
        {"[\\p{L}\\p{M}]+", "e\xcc\x81\xf0\x96\xb5\x80\xe0\xa2\x97-", 10}, /* U+16D40, U+0897 (Unicode 16) */
        {"\\P{L}", "\xf0\x96\xb5\x80", 0},
        {"(?i:'s|'ll)", "'LL", 3},
        {"(?i:'s)", "'\xc5\xbf", 3},                         /* the long s folds to s */
        {"a++b?", "aaab", 4},
        {"\\s+(?!\\S)|\\s+", "   x", 2},
        {"\\p{N}{1,3}", "12345", 3},
    };
    (void)state;
    struct err e;
    pcre2_match_data *data;
    assert_ok(tokenizer_regex_data(&data, &e), e);
    for (size_t i = 0; i < COUNT(cases); i++) {
        pcre2_code *code;
        bool found;
        size_t start = 0, end = 0;
        assert_ok(tokenizer_regex_compile(&code, cases[i].pattern, &e), e);
        size_t n = strlen(cases[i].text);
        assert_ok(tokenizer_regex_find(code, data, cases[i].text, n, 0, &found, &start, &end, &e), e);
        size_t got = found && start == 0 ? end : 0;
        if (got != cases[i].end)
            fail_msg("'%s' on case %zu: the match ends at %zu, expected %zu", cases[i].pattern, i, got, cases[i].end);
        pcre2_code_free(code);
    }
    pcre2_match_data_free(data);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_is_not_supported_is_refused_by_name),
        cmocka_unit_test(what_changes_nothing_is_accepted),
        cmocka_unit_test(an_empty_text_has_no_ids_but_memory_of_its_own),
        cmocka_unit_test(the_offset_of_invalid_utf8_is_that_of_the_character),
        cmocka_unit_test(expressions_that_could_mean_something_else_are_refused),
        cmocka_unit_test(expressions_match_what_the_library_matches),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
