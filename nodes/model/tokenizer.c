/* tokenizer.json as a whole: the way of a text through added tokens, normalizer, pre-tokenizer, byte pair encoding and
 * post-processor. The parts with work of their own are tokenizer_added, tokenizer_split and tokenizer_bpe; normalizers
 * and post-processors, as far as we do them, are a few lines each and here. */
#include "nodes/model/tokenizer.h"

#include <string.h>

#include "engine/base/str.h"
#include "nodes/model/json.h"
#include "nodes/model/tokenizer_added.h"
#include "nodes/model/tokenizer_bpe.h"
#include "nodes/model/tokenizer_json.h"
#include "nodes/model/tokenizer_split.h"
#include "nodes/model/utf8.h"

#define MOST_FILE_BYTES ((size_t)256 << 20)
#define MOST_TEXT_BYTES ((size_t)1 << 30) /* symbols of one word are counted in 32 bits */
#define NORMALIZER_STEPS 8
#define CACHE_TEXT 23

/* Replace `find` by `put` everywhere; with a NULL `find`, put it in front of a text that is not empty. */
struct normalizer_step {
    const char *find, *put;
};

struct tokenizer {
    struct bpe bpe;
    struct splitter splitter;
    struct added_set raw, normalized;     /* found before and after the normalizer */
    struct normalizer_step normalizer[NORMALIZER_STEPS];
    int n_normalizer;
    struct ids prefix, suffix;            /* what the post-processor puts around a text */
    bool has_template;
    char byte_text[256][3];               /* the character that stands for a byte, and a NUL */
    int32_t largest;
    struct arena arena;
};

/* ------------------------------------------------------------------------------------------------------- normalizer */

static bool load_normalizer(struct tokenizer *t, const json_t *j, const char *where, bool nested, struct err *e)
{
    const char *type, *put, *find = NULL;
    if (!j || json_is_null(j))
        return true;
    if (!tokenizer_json_type(j, where, &type, e))
        return false;
    if (strcmp(type, "Sequence") == 0 && !nested) {
        const json_t *list;
        if (!tokenizer_json_list(j, "normalizers", where, &list, e))
            return false;
        for (size_t i = 0; i < json_array_size(list); i++)
            if (!load_normalizer(t, json_array_get(list, i), "normalizer.normalizers", true, e))
                return false;
        return true;
    }
    if (strcmp(type, "Prepend") == 0) {
        if (!tokenizer_json_text(j, "prepend", where, "", &put, e))
            return false;
    } else if (strcmp(type, "Replace") == 0) {
        if (!tokenizer_json_text(json_object_get(j, "pattern"), "String", where, "", &find, e) ||
            !tokenizer_json_text(j, "content", where, "", &put, e))
            return false;
        if (!find[0])
            return err_set(e, ERR_INPUT, "%s: Replace needs a pattern {\"String\": ...} that is not empty", where);
    } else {
        return err_set(e, ERR_INPUT, "%s: '%s' is not supported; Prepend, Replace, and one Sequence of them are", where,
                       type);
    }
    if (t->n_normalizer == NORMALIZER_STEPS)
        return err_set(e, ERR_INPUT, "%s: more than %d steps", where, NORMALIZER_STEPS);
    struct normalizer_step *step = &t->normalizer[t->n_normalizer++];
    *step = (struct normalizer_step){find ? arena_strdup(&t->arena, find, e) : NULL, arena_strdup(&t->arena, put, e)};
    return step->put && (!find || step->find);
}

/* One step from text to out, which is emptied first. */
static void normalize_step(const struct normalizer_step *step, const char *text, size_t n, struct str *out)
{
    out->length = 0;
    if (!step->find) {
        if (n)
            str_add(out, step->put);
        str_add_bytes(out, text, n);
        return;
    }
    size_t n_find = strlen(step->find), at = 0;
    for (const char *hit; (hit = memmem(text + at, n - at, step->find, n_find)); at = (size_t)(hit - text) + n_find) {
        str_add_bytes(out, text + at, (size_t)(hit - text) - at);
        str_add(out, step->put);
    }
    str_add_bytes(out, text + at, n - at);
}

/* All steps; the result is in buffers[0] or [1], or is the text itself, and *out points to it. */
static bool normalize(const struct tokenizer *t, struct str buffers[2], const char **out, size_t *n, struct err *e)
{
    for (int i = 0; i < t->n_normalizer; i++) {
        struct str *to = &buffers[i % 2];
        normalize_step(&t->normalizer[i], *out, *n, to);
        if (!str_ok(to, e))
            return false;
        *out = to->text;
        *n = to->length;
    }
    return true;
}

/* ----------------------------------------------------------------------------------------------------- added tokens */

/* The id that the library gives, whatever the file says: the vocabulary's, or the next free one. */
static bool check_added_id(const struct tokenizer *t, const struct added_token *token, int32_t largest_added,
                           struct err *e)
{
    int32_t expected = tokenizer_bpe_find(&t->bpe, token->text, token->length);
    if (expected < 0)
        expected = largest_added >= (int32_t)t->bpe.n_pieces ? largest_added + 1 : (int32_t)t->bpe.n_pieces;
    if (token->id == expected)
        return true;
    return err_set(e, ERR_INPUT, "the added token '%s' has id %d; the library gives it %d (its id in model.vocab, or "
                   "the next free one)", token->text, token->id, expected);
}

static bool load_added_token(struct tokenizer *t, const json_t *j, int32_t *largest_added, struct err *e)
{
    struct added_token token = {0};
    const char *text;
    const json_t *id = json_object_get(j, "id");
    bool normalized;
    if (!json_is_object(j))
        return err_set(e, ERR_INPUT, "an added token must be an object with id and content");
    if (!tokenizer_json_text(j, "content", "added_tokens", "", &text, e) ||
        !tokenizer_json_bool(j, "normalized", "added_tokens", true, &normalized, e) ||
        !tokenizer_json_bool(j, "single_word", "added_tokens", false, &token.single_word, e) ||
        !tokenizer_json_bool(j, "lstrip", "added_tokens", false, &token.lstrip, e) ||
        !tokenizer_json_bool(j, "rstrip", "added_tokens", false, &token.rstrip, e))
        return false;
    if (!text[0] || !json_is_integer(id) || json_integer_value(id) < 0 || json_integer_value(id) >= 1 << 24)
        return err_set(e, ERR_INPUT, "the added token '%s' needs a content and an id from 0 to %d", text,
                       (1 << 24) - 1);
    token.id = (int32_t)json_integer_value(id);
    token.length = strlen(text);
    token.text = text;
    if (!check_added_id(t, &token, *largest_added, e))
        return false;
    *largest_added = token.id > *largest_added ? token.id : *largest_added;

    struct str buffers[2] = {{0}, {0}};
    bool ok = !normalized || normalize(t, buffers, &token.text, &token.length, e);
    if (ok && token.length == 0)
        ok = err_set(e, ERR_INPUT, "the normalizer leaves nothing of the added token '%s'", text);
    token.text = ok ? arena_strndup(&t->arena, token.text, token.length, e) : NULL;
    ok = token.text && tokenizer_added_add(normalized ? &t->normalized : &t->raw, &token, e);
    str_free(&buffers[0]);
    str_free(&buffers[1]);
    return ok;
}

static bool load_added_tokens(struct tokenizer *t, const json_t *list, struct err *e)
{
    int32_t largest = -1;
    if (list && !json_is_null(list) && !json_is_array(list))
        return err_set(e, ERR_INPUT, "added_tokens must be a list");
    for (size_t i = 0; i < json_array_size(list); i++)
        if (!load_added_token(t, json_array_get(list, i), &largest, e))
            return false;
    t->largest = largest > t->bpe.largest ? largest : t->bpe.largest;
    return tokenizer_added_sort(&t->raw, e) && tokenizer_added_sort(&t->normalized, e);
}

/* --------------------------------------------------------------------------------------------------- post-processor */

/* The ids of a special token of a template, which names them in a table of its own. */
static bool add_special(const struct tokenizer *t, const json_t *table, const char *name, struct ids *out,
                        struct err *e)
{
    const json_t *list = json_object_get(json_object_get(table, name), "ids");
    if (!json_is_array(list))
        return err_set(e, ERR_INPUT, "post_processor: the special token '%s' has no ids in special_tokens", name);
    for (size_t i = 0; i < json_array_size(list); i++) {
        const json_t *id = json_array_get(list, i);
        if (!json_is_integer(id) || json_integer_value(id) < 0 || json_integer_value(id) > t->largest)
            return err_set(e, ERR_INPUT, "post_processor: the special token '%s' has an id that is no token's", name);
        int32_t value = (int32_t)json_integer_value(id);
        if (!tokenizer_ids_add(out, &value, 1, e))
            return false;
    }
    return true;
}

static bool load_template(struct tokenizer *t, const json_t *j, struct err *e)
{
    const json_t *list;
    bool seen = false;
    if (t->has_template)
        return err_set(e, ERR_INPUT, "post_processor: TemplateProcessing is there twice");
    t->has_template = true;
    if (!tokenizer_json_list(j, "single", "post_processor", &list, e))
        return false;
    for (size_t i = 0; i < json_array_size(list); i++) {
        const json_t *piece = json_array_get(list, i), *special = json_object_get(piece, "SpecialToken");
        const char *name = json_string_value(json_object_get(special, "id"));
        if (json_object_get(piece, "Sequence") && !seen)
            seen = true;
        else if (!name)
            return err_set(e, ERR_INPUT, "post_processor.single[%zu] must be a SpecialToken, or the one Sequence", i);
        else if (!add_special(t, json_object_get(j, "special_tokens"), name, seen ? &t->suffix : &t->prefix, e))
            return false;
    }
    return seen || err_set(e, ERR_INPUT, "post_processor.single has no Sequence: the text itself would be left out");
}

/* ByteLevel changes offsets only. */
static bool load_post_processor(struct tokenizer *t, const json_t *j, const char *where, bool nested, struct err *e)
{
    const char *type;
    if (!j || json_is_null(j))
        return true;
    if (!tokenizer_json_type(j, where, &type, e))
        return false;
    if (strcmp(type, "TemplateProcessing") == 0)
        return load_template(t, j, e);
    if (strcmp(type, "ByteLevel") == 0)
        return true;
    if (strcmp(type, "Sequence") == 0 && !nested) {
        const json_t *list;
        if (!tokenizer_json_list(j, "processors", where, &list, e))
            return false;
        for (size_t i = 0; i < json_array_size(list); i++)
            if (!load_post_processor(t, json_array_get(list, i), "post_processor.processors", true, e))
                return false;
        return true;
    }
    return err_set(e, ERR_INPUT, "%s: '%s' is not supported; TemplateProcessing, ByteLevel, and one Sequence of them "
                   "are", where, type);
}

/* ---------------------------------------------------------------------------------------------------------- loading */

/* Bytes that print stand for themselves; the others, in order, for U+0100 and up. */
static void fill_byte_text(struct tokenizer *t)
{
    int next = 0x100;
    for (int b = 0; b < 256; b++) {
        bool prints = (b >= 0x21 && b <= 0x7e) || (b >= 0xa1 && b <= 0xac) || b >= 0xae;
        int c = prints ? b : next++;
        if (c < 0x80) {
            t->byte_text[b][0] = (char)c;
        } else {
            t->byte_text[b][0] = (char)(0xc0 | c >> 6);
            t->byte_text[b][1] = (char)(0x80 | (c & 0x3f));
        }
    }
}

static bool load(struct tokenizer *t, const json_t *root, struct err *e)
{
    static const char *const must_be_null[] = {"truncation", "padding"};
    if (!json_is_object(root))
        return err_set(e, ERR_INPUT, "a tokenizer must be a JSON object");
    for (size_t i = 0; i < sizeof must_be_null / sizeof *must_be_null; i++) {
        const json_t *value = json_object_get(root, must_be_null[i]);
        if (value && !json_is_null(value))
            return err_set(e, ERR_INPUT, "'%s' is not supported: whole texts are encoded; set it to null",
                           must_be_null[i]);
    }
    fill_byte_text(t);
    return tokenizer_bpe_init(&t->bpe, json_object_get(root, "model"), e) &&
           load_normalizer(t, json_object_get(root, "normalizer"), "normalizer", false, e) &&
           load_added_tokens(t, json_object_get(root, "added_tokens"), e) &&
           tokenizer_split_init(&t->splitter, json_object_get(root, "pre_tokenizer"), e) &&
           load_post_processor(t, json_object_get(root, "post_processor"), "post_processor", false, e);
}

bool tokenizer_open(struct tokenizer **out, const char *path, struct err *e)
{
    struct tokenizer *t = NULL;
    json_t *root;
    if (!json_load_file_strict(&root, path, MOST_FILE_BYTES, e))
        return false;
    bool ok = mem_new(&t, 1, e);
    if (ok && !load(t, root, e))
        ok = err_context(e, "%s", path);
    json_decref(root);
    if (!ok) {
        tokenizer_close(t);
        return false;
    }
    *out = t;
    return true;
}

void tokenizer_close(struct tokenizer *t)
{
    if (!t)
        return;
    tokenizer_bpe_fini(&t->bpe);
    tokenizer_split_fini(&t->splitter);
    tokenizer_added_fini(&t->raw);
    tokenizer_added_fini(&t->normalized);
    mem_free(t->prefix.list);
    mem_free(t->suffix.list);
    arena_free(&t->arena);
    mem_free(t);
}

int tokenizer_size(const struct tokenizer *t) { return t->largest + 1; }

/* --------------------------------------------------------------------------------------------------------- encoding */

/* A word that was encoded before: its ids are still in the output. */
struct cached_word {
    char text[CACHE_TEXT];
    uint8_t length;          /* 0: empty */
    uint32_t first, count;   /* in the ids */
};

struct encoding {
    const struct tokenizer *tokenizer;
    struct ids ids;
    struct bpe_work work;
    struct str mapped;       /* a word in the alphabet of bytes */
    struct cached_word *cache;
    size_t cache_slots;      /* a power of two */
    pcre2_match_data *data;
};

/* One in eight bytes may start a new word; more than 16384 words do not pay. */
static bool start_encoding(struct encoding *c, size_t n, struct err *e)
{
    c->cache_slots = 64;
    while (c->cache_slots < 16384 && c->cache_slots < n / 8)
        c->cache_slots *= 2;
    return mem_new(&c->cache, c->cache_slots, e) && tokenizer_regex_data(&c->data, e) &&
           tokenizer_ids_reserve(&c->ids, n / 4 + 1, e);
}

static void end_encoding(struct encoding *c)
{
    tokenizer_bpe_work_fini(&c->work);
    str_free(&c->mapped);
    mem_free(c->cache);
    pcre2_match_data_free(c->data);
    mem_free(c->ids.list);
}

static struct cached_word *cache_slot(const struct encoding *c, const char *word, size_t n)
{
    uint64_t h = 0xcbf29ce484222325u;
    for (size_t i = 0; i < n; i++)
        h = (h ^ (unsigned char)word[i]) * 0x100000001b3u;
    return &c->cache[(h ^ h >> 29) & (c->cache_slots - 1)];
}

static bool encode_uncached(struct encoding *c, const char *word, size_t n, struct err *e)
{
    if (c->tokenizer->splitter.byte_level) {
        c->mapped.length = 0;
        for (size_t i = 0; i < n; i++)
            str_add(&c->mapped, c->tokenizer->byte_text[(unsigned char)word[i]]);
        if (!str_ok(&c->mapped, e))
            return false;
        word = c->mapped.text;
        n = c->mapped.length;
    }
    return tokenizer_bpe_word(&c->tokenizer->bpe, &c->work, word, n, &c->ids, e);
}

static bool encode_word(void *context, const char *word, size_t n, struct err *e)
{
    struct encoding *c = context;
    if (n > CACHE_TEXT)
        return encode_uncached(c, word, n, e);
    struct cached_word *slot = cache_slot(c, word, n);
    if (slot->length == n && memcmp(slot->text, word, n) == 0) {
        if (!tokenizer_ids_reserve(&c->ids, slot->count, e))
            return false;
        memcpy(c->ids.list + c->ids.n, c->ids.list + slot->first, slot->count * sizeof *c->ids.list);
        c->ids.n += slot->count;
        return true;
    }
    size_t first = c->ids.n;
    if (!encode_uncached(c, word, n, e))
        return false;
    memcpy(slot->text, word, n);
    slot->length = (uint8_t)n;
    slot->first = (uint32_t)first;
    slot->count = (uint32_t)(c->ids.n - first);
    return true;
}

/* Text between two added tokens of the raw text: normalized, cut at those of the normalized text, and encoded. */
static bool encode_piece(struct encoding *c, const char *text, size_t n, bool at_start, struct err *e)
{
    const struct tokenizer *t = c->tokenizer;
    struct str buffers[2] = {{0}, {0}};
    struct added_spans spans = {0};
    bool ok = normalize(t, buffers, &text, &n, e) && tokenizer_added_find(&t->normalized, c->data, text, n, &spans, e);
    for (size_t i = 0; ok && i < spans.n; i++) {
        const struct added_span *s = &spans.list[i];
        if (s->id >= 0)
            ok = tokenizer_ids_add(&c->ids, &s->id, 1, e);
        else
            ok = tokenizer_split_run(&t->splitter, c->data, text + s->start, s->end - s->start,
                                     at_start && s->start == 0, encode_word, c, e);
    }
    mem_free(spans.list);
    str_free(&buffers[0]);
    str_free(&buffers[1]);
    return ok;
}

static bool encode(struct encoding *c, const char *text, size_t n, struct err *e)
{
    struct added_spans spans = {0};
    bool ok = tokenizer_added_find(&c->tokenizer->raw, c->data, text, n, &spans, e);
    for (size_t i = 0; ok && i < spans.n; i++) {
        const struct added_span *s = &spans.list[i];
        if (s->id >= 0)
            ok = tokenizer_ids_add(&c->ids, &s->id, 1, e);
        else
            ok = encode_piece(c, text + s->start, s->end - s->start, s->start == 0, e);
    }
    mem_free(spans.list);
    return ok;
}

bool tokenizer_encode(const struct tokenizer *t, const char *text, size_t n, bool special, int32_t **ids, size_t *count,
                      struct err *e)
{
    struct encoding c = {.tokenizer = t};
    size_t valid = utf8_prefix(text, n);
    if (valid < n)
        return err_set(e, ERR_INPUT, "the text is not valid UTF-8 at byte %zu (0x%02x)", valid,
                       (unsigned char)text[valid]);
    if (n > MOST_TEXT_BYTES)
        return err_set(e, ERR_INPUT, "a text of %zu bytes; at most %zu are encoded at once: cut it into documents", n,
                       MOST_TEXT_BYTES);
    bool ok = start_encoding(&c, n, e) && (!special || tokenizer_ids_add(&c.ids, t->prefix.list, t->prefix.n, e)) &&
              encode(&c, text, n, e) && (!special || tokenizer_ids_add(&c.ids, t->suffix.list, t->suffix.n, e));
    if (ok) {
        *ids = c.ids.list;
        *count = c.ids.n;
        c.ids.list = NULL;
    }
    end_encoding(&c);
    return ok;
}
