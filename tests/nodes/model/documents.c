/* Cutting a text into documents: what each rule makes of it, where copies go, and which texts are refused. */
#include "nodes/model/documents.h"
#include "tests/check.h"

struct file {
    char folder[256], path[512];
};

static void file_make(struct file *f, const char *text, size_t n)
{
    check_dir_make(f->folder);
    check_write(f->folder, "text", text, n);
    snprintf(f->path, sizeof f->path, "%s/text", f->folder);
}

/* Documents as "offset:text|offset:text|", with newlines written as '/'. */
static void show(const struct documents *d, char out[1024])
{
    size_t at = 0;
    for (size_t i = 0; i < d->n; i++) {
        at += (size_t)snprintf(out + at, 1024 - at, "%d:", (int)d->list[i].offset);
        for (size_t j = 0; j < d->list[i].bytes; j++)
            out[at++] = d->list[i].text[j] == '\n' ? '/' : d->list[i].text[j];
        out[at++] = '|';
    }
    out[at] = '\0';
}

static void each_rule_cuts_at_its_places(void **state)
{
    static const struct {
        enum document_rule rule;
        const char *argument, *text, *expected; /* argument: the separator, or the JSON key */
        size_t n_copies;
    } cases[] = {
        {DOCUMENTS_SEPARATOR, "<e>", "a\nb\n<e>\n c \n<e>\n", "0:a/b|9:c|", 0},
        {DOCUMENTS_SEPARATOR, "<e>", "a<e>\nb <e>\n", "0:a<e>/b <e>|", 0},     /* a line of its own, or it is text */
        {DOCUMENTS_SEPARATOR, "<e>", "<e>\r\n<e>\na\r\n<e>\r\nb", "9:a|17:b|", 0},
        {DOCUMENTS_SEPARATOR, "<e>", "no separator", "0:no separator|", 0},
        {DOCUMENTS_SEPARATOR, "<e>", "a\n<e>\nb\n<e>\n a\n<e>\nc", "0:a|6:b|19:c|", 1},
        {DOCUMENTS_HEADING, "", " = A = \nx\n = = B = = \ny\n = C = \nz\n", "1:= A = /x/ = = B = = /y|25:= C = /z|", 0},
        {DOCUMENTS_HEADING, "", "before\n= A =\nx", "0:before|7:= A =/x|", 0},
        {DOCUMENTS_HEADING, "", "x = 1\n== A ==\n = 5\n= =\n", "0:x = 1/== A ==/ = 5/= =|", 0},
        {DOCUMENTS_LINES, "", "a\n\n b \nc", "0:a|4:b|7:c|", 0},
        {DOCUMENTS_LINES, "", "a\na\na\n", "0:a|", 2},
        {DOCUMENTS_WHOLE, "", "\n a\n\nb \n", "2:a//b|", 0},
        {DOCUMENTS_JSON, "", "[\"a\\nb\", \" \", \"c\"]", "0:a/b|2:c|", 0},
        {DOCUMENTS_JSON, "", "\"a\"\n\n  \"b\"\n", "0:a|2:b|", 0},
        {DOCUMENTS_JSON, "", "[\" \\n a\", \"  b \"]", "0:a|1:b|", 0},
        {DOCUMENTS_JSON, "text", " [{\"text\": \"a\"}, {\"text\": \"a\", \"x\": 1}]", "0:a|", 1},
        {DOCUMENTS_JSON, "text", "{\"text\": \"a\"}\n{\"id\": 3, \"text\": \"\\u00e9\"}", "0:a|1:\xc3\xa9|", 0},
    };
    (void)state;
    for (size_t i = 0; i < COUNT(cases); i++) {
        struct file f;
        struct documents d;
        struct err e;
        char got[1024];
        file_make(&f, cases[i].text, strlen(cases[i].text));
        assert_ok(documents_read(&d, f.path, cases[i].rule, cases[i].argument, cases[i].argument, &e), e);
        show(&d, got);
        if (strcmp(got, cases[i].expected) != 0 || d.n_copies != cases[i].n_copies)
            fail_msg("case %zu: got %s and %zu copies, expected %s and %zu", i, got, d.n_copies, cases[i].expected,
                     cases[i].n_copies);
        documents_fini(&d);
        check_dir_remove(f.folder);
    }
}

static void many_documents_are_all_there_with_their_digests(void **state)
{
    enum { N = 5000 };
    (void)state;
    static char text[N * 8];
    size_t n = 0;
    for (int i = 0; i < N; i++)
        n += (size_t)snprintf(text + n, sizeof text - n, "%d\n", i);
    struct file f;
    struct documents d;
    struct err e;
    file_make(&f, text, n);
    assert_ok(documents_read(&d, f.path, DOCUMENTS_LINES, "", "", &e), e);
    assert_int_equal(d.n, N);
    for (size_t i = 0; i < N; i++) {
        struct key k;
        assert_int_equal(strtol(d.list[i].text, NULL, 10), i);
        assert_memory_equal(text + d.list[i].offset, d.list[i].text, d.list[i].bytes);
        assert_ok(key_of_bytes(d.list[i].text, d.list[i].bytes, &k, &e), e);
        assert_true(key_equal(&k, &d.list[i].digest));
    }
    documents_fini(&d);
    check_dir_remove(f.folder);
}

static void what_is_no_text_is_refused(void **state)
{
    static const struct {
        enum document_rule rule;
        const char *key, *text;
        size_t n;
        const char *message;
    } cases[] = {
        {DOCUMENTS_WHOLE, "", "", 0, "text: the text is empty"},
        {DOCUMENTS_LINES, "", " \n\t\r\n", 5, "no document in it: there is nothing but white space"},
        {DOCUMENTS_WHOLE, "", "ab\0c", 4, "a NUL at byte 2: this is no text"},
        {DOCUMENTS_WHOLE, "", "\xe4\xbd\xa0\xe4\xbd\xa0\xff", 7, "invalid UTF-8 at byte 6: convert the text to UTF-8"},
        {DOCUMENTS_JSON, "", "[\"a\"", 4, "not valid JSON"},
        {DOCUMENTS_JSON, "", "\"a\"\n{\"a\"", 8, "line 2: "},
        {DOCUMENTS_JSON, "", "[3]", 3, "item 0 is no text; parameter `json_key` names the member that is"},
        {DOCUMENTS_JSON, "", "\"a\"\n{\"text\": \"b\"}", 17, "item 1 is no text"},
        {DOCUMENTS_JSON, "q", "[{\"text\": \"b\"}]", 15, "item 0, member 'q', is no text"},
        {DOCUMENTS_JSON, "q", "[\"b\"]", 5, "item 0, member 'q', is no text"},
        {DOCUMENTS_JSON, "", "[]", 2, "no document in it"},
    };
    (void)state;
    for (size_t i = 0; i < COUNT(cases); i++) {
        struct file f;
        struct documents d;
        struct err e;
        file_make(&f, cases[i].text, cases[i].n);
        assert_err(documents_read(&d, f.path, cases[i].rule, "<e>", cases[i].key, &e), e, ERR_INPUT, cases[i].message);
        assert_non_null(strstr(e.text, f.path));
        check_dir_remove(f.folder);
    }
}

static void a_folder_or_nothing_is_no_text(void **state)
{
    (void)state;
    char folder[256], path[512];
    struct documents d;
    struct err e;
    check_dir_make(folder);
    assert_err(documents_read(&d, folder, DOCUMENTS_WHOLE, "", "", &e), e, ERR_INPUT, "not a regular file");
    snprintf(path, sizeof path, "%s/missing", folder);
    assert_err(documents_read(&d, path, DOCUMENTS_WHOLE, "", "", &e), e, ERR_INPUT, "No such file");
    check_dir_remove(folder);
}

static void running_out_of_memory_is_an_error(void **state)
{
    static const char lines[] = "a\nb\nc\nd\ne\n", json[] = "[\"a\", \"b\", \"c\"]";
    (void)state;
    for (int i = 0; i < 2; i++) {
        struct file f;
        struct documents d = {0};
        struct err e = {0};
        bool ok = false;
        long n = 0;
        file_make(&f, i ? json : lines, i ? sizeof json - 1 : sizeof lines - 1);
        while (!ok) {
            mem_fail_after(++n, true);
            ok = documents_read(&d, f.path, i ? DOCUMENTS_JSON : DOCUMENTS_LINES, "", "", &e);
            mem_fail_after(0, false);
            assert_true(ok || e.code == ERR_RESOURCE);
        }
        assert_true(n > 3);
        documents_fini(&d);
        check_dir_remove(f.folder);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(each_rule_cuts_at_its_places),
        cmocka_unit_test(many_documents_are_all_there_with_their_digests),
        cmocka_unit_test(what_is_no_text_is_refused),
        cmocka_unit_test(a_folder_or_nothing_is_no_text),
        cmocka_unit_test(running_out_of_memory_is_an_error),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
