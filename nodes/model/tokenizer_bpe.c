/* Byte pair encoding as the `tokenizers` library does it. A word starts as its characters (or, where one is not in the
 * vocabulary, its bytes, or the unknown token); then the adjacent pair with the lowest rank is merged, the leftmost
 * first among equals, until no pair is in the merge table. With a heap of candidates this takes O(n log n) for a word
 * of n characters: tokenizers in the style of SentencePiece see a whole text as one word. */
#include "nodes/model/tokenizer_bpe.h"

#include <stdio.h>
#include <string.h>

#include "engine/base/str.h"
#include "nodes/model/tokenizer_json.h"
#include "nodes/model/utf8.h"

#define MOST_PIECES ((size_t)1 << 24)

struct symbol {
    int32_t id;         /* -1: merged into the one before it */
    int32_t prev, next; /* -1: none */
};

struct candidate_merge {
    int32_t rank, at;   /* `at`: the left symbol */
    int32_t id;         /* what the pair was to become when this was noted */
};

bool tokenizer_ids_reserve(struct ids *ids, size_t more, struct err *e)
{
    if (ids->capacity - ids->n >= more)
        return true;
    size_t capacity = ids->n + more > ids->capacity * 2 ? ids->n + more : ids->capacity * 2;
    capacity = capacity < 64 ? 64 : capacity;
    if (!mem_grow(&ids->list, ids->n, capacity, e))
        return false;
    ids->capacity = capacity;
    return true;
}

bool tokenizer_ids_add(struct ids *ids, const int32_t *list, size_t n, struct err *e)
{
    if (!tokenizer_ids_reserve(ids, n, e))
        return false;
    if (n)
        memcpy(ids->list + ids->n, list, n * sizeof *list);
    ids->n += n;
    return true;
}

/* ----------------------------------------------------------------------------------------------------------- tables */

/* FNV-1a; the upper bits are folded in since tables use the lower ones. */
static size_t hash_text(const char *text, size_t n)
{
    uint64_t h = 0xcbf29ce484222325u;
    for (size_t i = 0; i < n; i++)
        h = (h ^ (unsigned char)text[i]) * 0x100000001b3u;
    return (size_t)(h ^ h >> 32);
}

static size_t hash_pair(int32_t left, int32_t right)
{
    uint64_t h = ((uint64_t)(uint32_t)left << 32 | (uint32_t)right) * 0x9e3779b97f4a7c15u;
    return (size_t)(h ^ h >> 32);
}

/* At least twice as many slots as entries. */
static size_t slots_for(size_t n)
{
    size_t slots = 16;
    while (slots < 2 * n)
        slots *= 2;
    return slots;
}

static struct piece *piece_slot(const struct bpe *b, const char *text, size_t n)
{
    size_t i = hash_text(text, n) & (b->piece_slots - 1);
    while (b->pieces[i].text && (b->pieces[i].length != n || memcmp(b->pieces[i].text, text, n) != 0))
        i = (i + 1) & (b->piece_slots - 1);
    return &b->pieces[i];
}

int32_t tokenizer_bpe_find(const struct bpe *b, const char *text, size_t n)
{
    const struct piece *p = piece_slot(b, text, n);
    return p->text ? p->id : -1;
}

static struct merge *merge_slot(const struct bpe *b, int32_t left, int32_t right)
{
    size_t i = hash_pair(left, right) & (b->merge_slots - 1);
    while (b->merges[i].left >= 0 && (b->merges[i].left != left || b->merges[i].right != right))
        i = (i + 1) & (b->merge_slots - 1);
    return &b->merges[i];
}

/* ---------------------------------------------------------------------------------------------------------- loading */

static bool read_vocab(struct bpe *b, const json_t *vocab, struct err *e)
{
    const char *text;
    json_t *value;
    size_t n = json_object_size(vocab);
    if (!json_is_object(vocab) || n == 0 || n > MOST_PIECES)
        return err_set(e, ERR_INPUT, "model.vocab must be an object of 1 to %zu strings with their ids", MOST_PIECES);
    b->piece_slots = slots_for(n);
    b->n_pieces = n;
    if (!mem_new(&b->pieces, b->piece_slots, e))
        return false;
    json_object_foreach((json_t *)vocab, text, value)
    {
        json_int_t id = json_is_integer(value) ? json_integer_value(value) : -1;
        if (id < 0 || id >= (json_int_t)MOST_PIECES)
            return err_set(e, ERR_INPUT, "model.vocab: the id of '%s' must be a whole number from 0 to %zu", text,
                           MOST_PIECES - 1);
        size_t length = strlen(text);
        struct piece *p = piece_slot(b, text, length);
        p->text = arena_strndup(&b->arena, text, length, e);
        if (!p->text)
            return false;
        p->length = (uint32_t)length;
        p->id = (int32_t)id;
        b->largest = p->id > b->largest ? p->id : b->largest;
    }
    return true;
}

/* What a merge joins: "A B", or ["A", "B"]. */
static bool merge_halves(const json_t *merge, const char *halves[2], size_t lengths[2])
{
    if (json_is_array(merge) && json_array_size(merge) == 2) {
        for (size_t i = 0; i < 2; i++) {
            halves[i] = json_string_value(json_array_get(merge, i));
            if (!halves[i])
                return false;
            lengths[i] = strlen(halves[i]);
        }
        return true;
    }
    const char *text = json_string_value(merge);
    const char *space = text ? strchr(text, ' ') : NULL;
    if (!space || strchr(space + 1, ' '))
        return false;
    halves[0] = text;
    lengths[0] = (size_t)(space - text);
    halves[1] = space + 1;
    lengths[1] = strlen(space + 1);
    return true;
}

/* Of a pair that is listed twice, the later one counts, as in the library. */
static bool add_merge(struct bpe *b, const json_t *merge, int32_t rank, struct str *joined, struct err *e)
{
    const char *halves[2];
    size_t lengths[2];
    int32_t ids[3];
    if (!merge_halves(merge, halves, lengths))
        return err_set(e, ERR_INPUT, "model.merges[%d] must be a string of two parts with one space between, or a list "
                       "of two strings", rank);
    joined->length = 0;
    str_add_bytes(joined, halves[0], lengths[0]);
    str_add_bytes(joined, halves[1], lengths[1]);
    if (!str_ok(joined, e))
        return false;
    ids[0] = tokenizer_bpe_find(b, halves[0], lengths[0]);
    ids[1] = tokenizer_bpe_find(b, halves[1], lengths[1]);
    ids[2] = tokenizer_bpe_find(b, joined->text, joined->length);
    for (int i = 0; i < 3; i++)
        if (ids[i] < 0)
            return err_set(e, ERR_INPUT, "model.merges[%d]: '%.*s' is not in model.vocab", rank,
                           (int)(i < 2 ? lengths[i] : joined->length), i < 2 ? halves[i] : joined->text);
    *merge_slot(b, ids[0], ids[1]) = (struct merge){ids[0], ids[1], rank, ids[2]};
    return true;
}

static bool read_merges(struct bpe *b, const json_t *merges, struct err *e)
{
    struct str joined = {0};
    size_t n = json_array_size(merges);
    bool ok = false;
    if (!json_is_array(merges) || n > MOST_PIECES)
        return err_set(e, ERR_INPUT, "model.merges must be a list of at most %zu merges", MOST_PIECES);
    b->merge_slots = slots_for(n);
    if (!mem_raw(&b->merges, b->merge_slots, e))
        return false;
    for (size_t i = 0; i < b->merge_slots; i++)
        b->merges[i].left = -1;
    for (size_t i = 0; i < n; i++)
        if (!add_merge(b, json_array_get(merges, i), (int32_t)i, &joined, e))
            goto out;
    ok = true;
out:
    str_free(&joined);
    return ok;
}

static void note_characters(struct bpe *b)
{
    for (int i = 0; i < BPE_DIRECT; i++) {
        char text[2] = {(char)i};
        size_t n = 1;
        if (i >= 0x80) {
            text[0] = (char)(0xc0 | i >> 6);
            text[1] = (char)(0x80 | (i & 0x3f));
            n = 2;
        }
        b->direct[i] = tokenizer_bpe_find(b, text, n);
    }
    for (int i = 0; i < 256; i++) {
        char name[8];
        int n = snprintf(name, sizeof name, "<0x%02X>", i);
        b->bytes[i] = b->byte_fallback ? tokenizer_bpe_find(b, name, (size_t)n) : -1;
    }
}

static bool read_unknown(struct bpe *b, const json_t *model, struct err *e)
{
    const char *text;
    b->unknown = -1;
    if (!tokenizer_json_text(model, "unk_token", "model", NULL, &text, e))
        return false;
    if (!text)
        return true;
    b->unknown = tokenizer_bpe_find(b, text, strlen(text));
    if (b->unknown < 0)
        return err_set(e, ERR_INPUT, "model.unk_token '%s' is not in model.vocab", text);
    return true;
}

static bool read_model(struct bpe *b, const json_t *model, struct err *e)
{
    const char *type, *prefix, *suffix;
    const json_t *dropout = json_object_get(model, "dropout");
    if (!json_is_object(model))
        return err_set(e, ERR_INPUT, "there is no object 'model'");
    /* Files of the library's early versions leave the type out. */
    if (!tokenizer_json_text(model, "type", "model", "BPE", &type, e))
        return false;
    if (strcmp(type, "BPE") != 0)
        return err_set(e, ERR_INPUT, "model.type '%s' is not supported; only BPE is", type);
    if (dropout && !json_is_null(dropout) && json_number_value(dropout) != 0.0)
        return err_set(e, ERR_INPUT, "model.dropout is not supported: the ids of a text would be random; set it to "
                       "null");
    if (!tokenizer_json_text(model, "continuing_subword_prefix", "model", "", &prefix, e) ||
        !tokenizer_json_text(model, "end_of_word_suffix", "model", "", &suffix, e))
        return false;
    if (prefix[0] || suffix[0])
        return err_set(e, ERR_INPUT, "model.%s '%s' is not supported; null is",
                       prefix[0] ? "continuing_subword_prefix" : "end_of_word_suffix", prefix[0] ? prefix : suffix);
    if (!tokenizer_json_bool(model, "byte_fallback", "model", false, &b->byte_fallback, e) ||
        !tokenizer_json_bool(model, "fuse_unk", "model", false, &b->fuse_unknown, e) ||
        !tokenizer_json_bool(model, "ignore_merges", "model", false, &b->ignore_merges, e) ||
        !read_vocab(b, json_object_get(model, "vocab"), e) || !read_unknown(b, model, e) ||
        !read_merges(b, json_object_get(model, "merges"), e))
        return false;
    note_characters(b);
    return true;
}

bool tokenizer_bpe_init(struct bpe *b, const json_t *model, struct err *e)
{
    *b = (struct bpe){0};
    if (read_model(b, model, e))
        return true;
    tokenizer_bpe_fini(b);
    return false;
}

void tokenizer_bpe_fini(struct bpe *b)
{
    mem_free(b->pieces);
    mem_free(b->merges);
    arena_free(&b->arena);
    *b = (struct bpe){0};
}

/* --------------------------------------------------------------------------------------------------------- encoding */

void tokenizer_bpe_work_fini(struct bpe_work *w)
{
    mem_free(w->symbols);
    mem_free(w->heap);
    *w = (struct bpe_work){0};
}

static void add_symbol(struct bpe_work *w, int32_t id)
{
    int32_t at = (int32_t)w->n_symbols++;
    w->symbols[at] = (struct symbol){.id = id, .prev = at - 1, .next = at + 1};
}

static int32_t character_id(const struct bpe *b, const char *s, size_t n)
{
    uint32_t c = utf8_decode(s);
    return c < BPE_DIRECT ? b->direct[c] : tokenizer_bpe_find(b, s, n);
}

static bool has_bytes(const struct bpe *b, const char *s, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (b->bytes[(unsigned char)s[i]] < 0)
            return false;
    return b->byte_fallback;
}

/* The word as characters. An unknown one waits until the next known one, so that a run of them can become one token;
 * bytes go ahead of one that waits. Both are as in the library. There are at most n symbols: room is made by the
 * caller. */
static void start_symbols(const struct bpe *b, struct bpe_work *w, const char *word, size_t n)
{
    bool waiting = false;
    w->n_symbols = 0;
    for (size_t at = 0, length; at < n; at += length) {
        length = utf8_length((unsigned char)word[at]);
        int32_t id = character_id(b, word + at, length);
        if (id >= 0) {
            if (waiting)
                add_symbol(w, b->unknown);
            waiting = false;
            add_symbol(w, id);
        } else if (has_bytes(b, word + at, length)) {
            for (size_t i = 0; i < length; i++)
                add_symbol(w, b->bytes[(unsigned char)word[at + i]]);
        } else if (b->unknown >= 0) {
            if (waiting && !b->fuse_unknown)
                add_symbol(w, b->unknown);
            waiting = true;
        }
    }
    if (waiting)
        add_symbol(w, b->unknown);
    if (w->n_symbols)
        w->symbols[w->n_symbols - 1].next = -1;
}

static bool goes_first(const struct candidate_merge *x, const struct candidate_merge *y)
{
    return x->rank != y->rank ? x->rank < y->rank : x->at < y->at;
}

/* Note the pair that starts at symbol `at`, if it can be merged. */
static bool push_pair(const struct bpe *b, struct bpe_work *w, int32_t at, struct err *e)
{
    if (at < 0 || w->symbols[at].next < 0)
        return true;
    const struct merge *m = merge_slot(b, w->symbols[at].id, w->symbols[w->symbols[at].next].id);
    if (m->left < 0)
        return true;
    if (w->n_heap == w->heap_capacity) {
        size_t capacity = w->heap_capacity ? 2 * w->heap_capacity : 64;
        if (!mem_grow(&w->heap, w->n_heap, capacity, e))
            return false;
        w->heap_capacity = capacity;
    }
    struct candidate_merge new = {m->rank, at, m->id};
    size_t i = w->n_heap++;
    for (; i > 0 && goes_first(&new, &w->heap[(i - 1) / 2]); i = (i - 1) / 2)
        w->heap[i] = w->heap[(i - 1) / 2];
    w->heap[i] = new;
    return true;
}

static struct candidate_merge pop_pair(struct bpe_work *w)
{
    struct candidate_merge top = w->heap[0], last = w->heap[--w->n_heap];
    size_t i = 0;
    for (size_t child; (child = 2 * i + 1) < w->n_heap; i = child) {
        if (child + 1 < w->n_heap && goes_first(&w->heap[child + 1], &w->heap[child]))
            child++;
        if (!goes_first(&w->heap[child], &last))
            break;
        w->heap[i] = w->heap[child];
    }
    w->heap[i] = last;
    return top;
}

/* Candidates are not taken out of the heap when one of their symbols changes; they are found stale when their turn
 * comes: the pair at their place no longer makes what it was to make. */
static bool merge_all(const struct bpe *b, struct bpe_work *w, struct err *e)
{
    w->n_heap = 0;
    for (size_t i = 0; i < w->n_symbols; i++)
        if (!push_pair(b, w, (int32_t)i, e))
            return false;
    while (w->n_heap) {
        struct candidate_merge top = pop_pair(w);
        struct symbol *left = &w->symbols[top.at];
        if (left->id < 0 || left->next < 0)
            continue;
        struct symbol *right = &w->symbols[left->next];
        const struct merge *m = merge_slot(b, left->id, right->id);
        if (m->left < 0 || m->id != top.id)
            continue;
        left->id = top.id;
        left->next = right->next;
        right->id = -1;
        if (left->next >= 0)
            w->symbols[left->next].prev = top.at;
        if (!push_pair(b, w, left->prev, e) || !push_pair(b, w, top.at, e))
            return false;
    }
    return true;
}

bool tokenizer_bpe_word(const struct bpe *b, struct bpe_work *w, const char *word, size_t n, struct ids *out,
                        struct err *e)
{
    if (b->ignore_merges) {
        int32_t id = tokenizer_bpe_find(b, word, n);
        if (id >= 0)
            return tokenizer_ids_add(out, &id, 1, e);
    }
    if (n > w->symbol_capacity) {
        size_t capacity = n < 64 ? 64 : n;
        if (!mem_grow(&w->symbols, 0, capacity, e))
            return false;
        w->symbol_capacity = capacity;
    }
    start_symbols(b, w, word, n);
    if (!merge_all(b, w, e) || !tokenizer_ids_reserve(out, w->n_symbols, e))
        return false;
    for (size_t i = 0; i < w->n_symbols; i++)
        if (w->symbols[i].id >= 0)
            out->list[out->n++] = w->symbols[i].id;
    return true;
}
