/* The node type `corpus` over a real store, on shipped models and texts: windows are slices of their documents, sets
 * are disjoint, and what is drawn depends on the documents' text and the seed alone. */
#include "nodes/model/tokenizer.h"
#include "nodes/model/tokens.h"
#include "nodes/nodes.h"
#include "tests/check.h"
#include "tests/nodes/fake_node.h"

enum { SETS = 3, MOST_SETTINGS = 12 };
static const char *const set_names[SETS] = {"calibration", "selection", "report"};

struct world {
    struct store *store;
    char folder[256], store_path[300], text_path[300], model_path[512];
    int n_runs;
};

struct setting {
    const char *param, *value;
};

static void world_open(struct world *w)
{
    struct err e = {0};
    *w = (struct world){0};
    check_dir_make(w->folder);
    snprintf(w->store_path, sizeof w->store_path, "%s/store", w->folder);
    snprintf(w->text_path, sizeof w->text_path, "%s/text", w->folder);
    snprintf(w->model_path, sizeof w->model_path, "%s/data/models/stories260k", check_root());
    assert_ok(store_open(&w->store, w->store_path, &e), e);
}

static void world_close(struct world *w)
{
    store_close(w->store);
    check_dir_remove(w->folder);
}

/* A node on the world's text with these settings (ended by a NULL name) and a key of its own. */
static void make_node(struct world *w, struct node *n, const struct setting *settings)
{
    char seed[32];
    snprintf(seed, sizeof seed, "run %d", w->n_runs++);
    fake_node_init(n, &node_corpus, w->store, seed);
    fake_node_connect(n, "tokenizer", "model", NULL, w->model_path);
    fake_node_set(n, "text", w->text_path);
    for (; settings->param; settings++)
        fake_node_set(n, settings->param, settings->value);
}

static struct object *run(struct world *w, const struct setting *settings, struct err *e)
{
    struct node n;
    make_node(w, &n, settings);
    struct object *o = fake_node_run(&n, e);
    fake_node_fini(&n);
    return o;
}

static struct object *must_run(struct world *w, const struct setting *settings)
{
    struct err e = {0};
    struct object *o = run(w, settings, &e);
    if (!o)
        fail_msg("%s", e.text);
    return o;
}

static struct token_set read_set(struct object *o, int set)
{
    struct token_set t;
    struct err e = {0};
    struct input in = {.object = o, .node = "corpus", .type = "corpus", .output = set_names[set]};
    assert_ok(tokens_read(&t, &in, &e), e);
    return t;
}

static bool sets_are_equal(struct object *a, struct object *b, int set)
{
    struct token_set x = read_set(a, set), y = read_set(b, set);
    bool equal = x.n == y.n && strcmp(x.digest, y.digest) == 0;
    tokens_fini(&x);
    tokens_fini(&y);
    return equal;
}

/* The shipped stories, the first `bytes` of them, in the world's text file. */
static void use_stories(struct world *w, size_t bytes)
{
    char path[512];
    size_t n = 0;
    snprintf(path, sizeof path, "%s/data/text/tinystories/ascii.txt", check_root());
    char *text = check_read(path, &n);
    assert_non_null(text);
    check_write(w->folder, "text", text, bytes < n ? bytes : n);
    free(text);
}

/* The documents of an object: as many as `*n`; freed with mem_free. */
struct document_row {
    char digest[KEY_TEXT];
    uint8_t split;
    uint64_t offset, bytes;
};

static struct document_row *read_documents(struct object *o, size_t *n)
{
    struct err e = {0};
    struct document_row *rows;
    char **digests;
    uint8_t *split;
    uint64_t *offset, *bytes, count;
    assert_ok(object_read_strings(o, "documents/digest", &digests, &count, &e), e);
    assert_ok(object_load(o, "documents/split", DTYPE_U8, &split, NULL, &e), e);
    assert_ok(object_load(o, "documents/offset", DTYPE_U64, &offset, NULL, &e), e);
    assert_ok(object_load(o, "documents/bytes", DTYPE_U64, &bytes, NULL, &e), e);
    assert_ok(mem_new(&rows, count, &e), e);
    for (uint64_t i = 0; i < count; i++) {
        rows[i] = (struct document_row){.split = split[i], .offset = offset[i], .bytes = bytes[i]};
        snprintf(rows[i].digest, sizeof rows[i].digest, "%s", digests[i]);
    }
    *n = count;
    mem_free(digests);
    mem_free(split);
    mem_free(offset);
    mem_free(bytes);
    return rows;
}

/* A window is found in its document's ids, at a multiple of the window, and holds as much as there is. */
static void check_window(const struct token_set *t, uint32_t w, const int32_t *ids, size_t n)
{
    const int32_t *row = t->ids + (size_t)w * t->window;
    size_t length = (size_t)t->length[w];
    for (size_t i = length; i < t->window; i++)
        assert_int_equal(row[i], 0);
    for (size_t at = 0; at < n; at += t->window)
        if (length == (n - at < t->window ? n - at : t->window) && memcmp(ids + at, row, length * sizeof *ids) == 0)
            return;
    fail_msg("window %u of %zu tokens is no piece of its document", w, length);
}

static void windows_are_pieces_of_documents_and_sets_are_disjoint(void **state)
{
    (void)state;
    struct world w;
    struct err e = {0};
    struct tokenizer *tokenizer;
    char path[600];
    size_t n_text = 0, n_documents = 0;
    world_open(&w);
    use_stories(&w, 60000);
    char *text = check_read(w.text_path, &n_text);
    snprintf(path, sizeof path, "%s/tokenizer.json", w.model_path);
    assert_ok(tokenizer_open(&tokenizer, path, &e), e);
    struct object *o = must_run(&w, (struct setting[]){{"window", "64"}, {"selection", "9"}, {"least", "16"}, {0}});
    struct document_row *documents = read_documents(o, &n_documents);
    size_t used[4] = {0}, in_windows = 0;
    bool *seen;
    assert_ok(mem_new(&seen, n_documents, &e), e);
    for (size_t i = 0; i < n_documents; i++) {
        struct key k;
        char hex[KEY_TEXT];
        assert_true(documents[i].offset + documents[i].bytes <= n_text && documents[i].split <= 3);
        assert_ok(key_of_bytes(text + documents[i].offset, documents[i].bytes, &k, &e), e);
        assert_string_equal(key_text(&k, hex), documents[i].digest);
        used[documents[i].split]++;
    }
    for (int s = 0; s < SETS; s++) {
        struct token_set t = read_set(o, s);
        assert_int_equal(t.window, 64);
        assert_int_equal(t.n, s == 1 ? 9 : 16);
        for (uint32_t i = 0; i < t.n; i++) {
            const struct document_row *d = &documents[t.document[i]];
            int32_t *ids;
            size_t n;
            assert_true(t.document[i] < n_documents);
            assert_int_equal(d->split, s);
            assert_ok(tokenizer_encode(tokenizer, text + d->offset, d->bytes, true, &ids, &n, &e), e);
            assert_true(t.length[i] >= 16);
            check_window(&t, i, ids, n);
            mem_free(ids);
            in_windows += !seen[t.document[i]];
            seen[t.document[i]] = true;
        }
        tokens_fini(&t);
    }
    assert_true(used[0] && used[1] && used[2] && used[3]);
    assert_int_equal(in_windows, used[0] + used[1] + used[2]);
    int64_t vocabulary;
    assert_true(object_int(o, "vocabulary", &vocabulary));
    assert_int_equal(vocabulary, 512);
    mem_free(seen);
    mem_free(documents);
    free(text);
    tokenizer_close(tokenizer);
    object_close(o);
    world_close(&w);
}

/* The set for probes is one more, of documents of its own; without it there is none. */
static void probes_have_documents_of_their_own(void **state)
{
    (void)state;
    struct world w;
    struct err e = {0};
    struct token_set t;
    size_t n, used = 0;
    world_open(&w);
    use_stories(&w, 60000);
    struct object *a = must_run(&w, (struct setting[]){{"window", "64"}, {0}});
    struct object *b = must_run(&w, (struct setting[]){{"window", "64"}, {"probe", "12"}, {0}});
    const struct input none = {.object = a, .node = "corpus", .type = "corpus", .output = "probe"};
    const struct input set = {.object = b, .node = "corpus", .type = "corpus", .output = "probe"};
    for (int s = 0; s < SETS; s++)
        assert_true(sets_are_equal(a, b, s));
    assert_err(tokens_read(&t, &none, &e), e, ERR_INPUT, "no token set 'probe': give it a parameter `probe` above 0");
    assert_ok(tokens_read(&t, &set, &e), e);
    assert_int_equal(t.n, 12);
    struct document_row *documents = read_documents(b, &n);
    for (uint32_t i = 0; i < t.n; i++)
        assert_int_equal(documents[t.document[i]].split, 4);
    for (size_t i = 0; i < n; i++)
        used += documents[i].split == 4;
    assert_true(used > 1 && used <= 12);
    mem_free(documents);
    tokens_fini(&t);
    object_close(a);
    object_close(b);
    world_close(&w);
}

static void the_same_twice_is_the_same_and_another_seed_is_not(void **state)
{
    (void)state;
    struct world w;
    world_open(&w);
    use_stories(&w, 60000);
    struct object *a = must_run(&w, (struct setting[]){{"window", "64"}, {0}});
    struct object *b = must_run(&w, (struct setting[]){{"window", "64"}, {0}});
    struct object *c = must_run(&w, (struct setting[]){{"window", "64"}, {"seed", "2"}, {0}});
    for (int s = 0; s < SETS; s++) {
        assert_true(sets_are_equal(a, b, s));
        assert_false(sets_are_equal(a, c, s));
    }
    object_close(a);
    object_close(b);
    object_close(c);
    world_close(&w);
}

static void more_calibration_leaves_the_other_sets_as_they_are(void **state)
{
    (void)state;
    struct world w;
    world_open(&w);
    use_stories(&w, 60000);
    struct object *a = must_run(&w, (struct setting[]){{"window", "64"}, {0}});
    struct object *b = must_run(&w, (struct setting[]){{"window", "64"}, {"calibration", "40"}, {0}});
    assert_false(sets_are_equal(a, b, 0));
    assert_true(sets_are_equal(a, b, 1));
    assert_true(sets_are_equal(a, b, 2));
    object_close(a);
    object_close(b);
    world_close(&w);
}

/* 40 documents as lines of the file, from the last to the first or the other way, each `copies` times. */
static void use_lines(struct world *w, bool backwards, int copies)
{
    char text[16384];
    size_t n = 0;
    for (int c = 0; c < copies; c++)
        for (int i = 0; i < 40; i++)
            n += (size_t)snprintf(text + n, sizeof text - n, "Story number %d was told, and all went home to sleep.\n",
                                  backwards ? 39 - i : i);
    check_write(w->folder, "text", text, n);
}

static void neither_order_nor_copies_change_the_sets(void **state)
{
    static const struct setting settings[] = {{"documents", "lines"}, {"window", "16"}, {"calibration", "4"},
                                              {"selection", "4"}, {"report", "4"}, {"least", "8"}, {0}};
    (void)state;
    struct world w;
    world_open(&w);
    use_lines(&w, false, 1);
    struct object *a = must_run(&w, settings);
    use_lines(&w, true, 1);
    struct object *b = must_run(&w, settings);
    use_lines(&w, false, 3);
    struct object *c = must_run(&w, settings);
    size_t n;
    mem_free(read_documents(c, &n));
    assert_int_equal(n, 40);
    for (int s = 0; s < SETS; s++) {
        assert_true(sets_are_equal(a, b, s));
        assert_true(sets_are_equal(a, c, s));
    }
    object_close(a);
    object_close(b);
    object_close(c);
    world_close(&w);
}

static void short_pieces_are_kept_or_left_out_as_told(void **state)
{
    (void)state;
    struct world w;
    int n_short[2] = {0};
    world_open(&w);
    use_stories(&w, 200000);
    for (int skip = 0; skip < 2; skip++) {
        struct object *o = must_run(&w, (struct setting[]){{"short", skip ? "skip" : "mask"}, {"least", "100"},
                                                           {"window", "128"}, {0}});
        for (int s = 0; s < SETS; s++) {
            struct token_set t = read_set(o, s);
            for (uint32_t i = 0; i < t.n; i++) {
                assert_true(t.length[i] >= 100);
                n_short[skip] += t.length[i] < 128;
            }
            tokens_fini(&t);
        }
        object_close(o);
    }
    assert_true(n_short[0] > 0);
    assert_int_equal(n_short[1], 0);
    world_close(&w);
}

static void a_document_gives_no_more_than_its_share(void **state)
{
    (void)state;
    struct world w;
    world_open(&w);
    use_stories(&w, 200000);
    struct object *o = must_run(&w, (struct setting[]){{"window", "32"}, {"per_document", "2"}, {0}});
    for (int s = 0; s < SETS; s++) {
        struct token_set t = read_set(o, s);
        for (uint32_t i = 2; i < t.n; i++)
            assert_false(t.document[i] == t.document[i - 1] && t.document[i] == t.document[i - 2]);
        assert_int_equal(t.document[0], t.document[1]);
        tokens_fini(&t);
    }
    object_close(o);
    world_close(&w);
}

static void a_document_begins_with_bos_unless_told_otherwise(void **state)
{
    (void)state;
    struct world w;
    world_open(&w);
    use_lines(&w, false, 1);
    for (int special = 0; special < 2; special++) {
        struct object *o = must_run(&w, (struct setting[]){{"documents", "lines"}, {"window", "16"},
                                                           {"per_document", "1"}, {"calibration", "4"},
                                                           {"selection", "4"}, {"report", "4"},
                                                           {"special", special ? "true" : "false"}, {0}});
        struct token_set t = read_set(o, 1);
        for (uint32_t i = 0; i < t.n; i++)
            assert_int_equal(t.ids[(size_t)i * t.window] == 1, special);
        tokens_fini(&t);
        object_close(o);
    }
    world_close(&w);
}

static void too_little_text_is_an_error_that_counts(void **state)
{
    static const struct {
        const char *text;
        struct setting settings[MOST_SETTINGS];
        const char *message;
    } cases[] = {
        {"Once upon a time there was a girl.", {{"window", "8"}, {"least", "2"}, {"documents", "whole"}},
         "the text has too few documents for `selection`: 8 windows of 8 tokens were wanted"},
        {"Once upon a time there was a girl.",
         {{"window", "8"}, {"selection", "1"}, {"least", "2"}, {"documents", "whole"}},
         "for `report`: 16 windows of 8 tokens were wanted, 0 could be had (1 of 1 documents were looked at, by this "
         "set and those before it); give more text, fewer or shorter windows"},
        {"One day.\nTwo days.\nThree days.", {{"documents", "lines"}, {"short", "skip"}},
         "8 windows of 256 tokens were wanted, 0 could be had (3 of 3 documents were looked at, by this set and those "
         "before it); give more text, fewer or shorter windows, or `short: mask`"},
        {"", {{0}}, "the text is empty"},
        {"\n\n", {{0}}, "no document in it"},
    };
    (void)state;
    struct world w;
    world_open(&w);
    for (size_t i = 0; i < COUNT(cases); i++) {
        struct err e;
        check_write(w.folder, "text", cases[i].text, strlen(cases[i].text));
        assert_err(run(&w, cases[i].settings, &e), e, ERR_INPUT, cases[i].message);
    }
    world_close(&w);
}

static void it_stops_between_documents(void **state)
{
    (void)state;
    struct world w;
    struct node n;
    struct err e;
    world_open(&w);
    use_stories(&w, 60000);
    make_node(&w, &n, (struct setting[]){{"window", "64"}, {0}});
    n.stop_after = n.parts_made = 1;
    assert_err(fake_node_run(&n, &e), e, ERR_STOPPED, "");
    fake_node_fini(&n);
    world_close(&w);
}

static void what_it_needs_grows_with_text_and_windows(void **state)
{
    (void)state;
    struct world w;
    uint64_t memory[3];
    world_open(&w);
    for (int i = 0; i < 3; i++) {
        struct node n;
        struct needs needs = {0};
        struct err e = {0};
        use_stories(&w, i == 0 ? 1000 : 500000);
        make_node(&w, &n, (struct setting[]){{"window", "1024"}, {"calibration", i == 2 ? "10000" : "16"}, {0}});
        assert_ok(node_corpus.needs(&n, &needs, &e), e);
        assert_int_equal(needs.cores, 1);
        memory[i] = needs.memory;
        fake_node_fini(&n);
    }
    assert_true(memory[0] >= 16 << 20 && memory[0] < memory[1] && memory[1] < memory[2]);
    assert_true(memory[1] < 200 << 20);
    world_close(&w);
}

/* Allocations far apart, since there are thousands; the last attempt, with none failing, succeeds. */
static void running_out_of_memory_is_an_error(void **state)
{
    static const struct setting settings[] = {{"documents", "lines"}, {"window", "16"}, {"calibration", "4"},
                                              {"selection", "4"}, {"report", "4"}, {"least", "8"}, {0}};
    (void)state;
    struct world w;
    world_open(&w);
    use_lines(&w, false, 1);
    struct object *o = NULL;
    for (long i = 1, failures = 0; !o; i += 1 + i / 8, failures++) {
        struct node n;
        struct err e = {0};
        make_node(&w, &n, settings);
        mem_fail_after(i, true);
        bool ok = node_corpus.run(&n, &e);
        mem_fail_after(0, false);
        if (ok) {
            assert_true(failures > 20);
            fake_node_fini(&n);
            o = must_run(&w, settings);
        } else {
            assert_int_equal(e.code, ERR_RESOURCE);
            fake_node_fini(&n);
        }
    }
    object_close(o);
    world_close(&w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(windows_are_pieces_of_documents_and_sets_are_disjoint),
        cmocka_unit_test(the_same_twice_is_the_same_and_another_seed_is_not),
        cmocka_unit_test(probes_have_documents_of_their_own),
        cmocka_unit_test(more_calibration_leaves_the_other_sets_as_they_are),
        cmocka_unit_test(neither_order_nor_copies_change_the_sets),
        cmocka_unit_test(short_pieces_are_kept_or_left_out_as_told),
        cmocka_unit_test(a_document_gives_no_more_than_its_share),
        cmocka_unit_test(a_document_begins_with_bos_unless_told_otherwise),
        cmocka_unit_test(too_little_text_is_an_error_that_counts),
        cmocka_unit_test(it_stops_between_documents),
        cmocka_unit_test(what_it_needs_grows_with_text_and_windows),
        cmocka_unit_test(running_out_of_memory_is_an_error),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
