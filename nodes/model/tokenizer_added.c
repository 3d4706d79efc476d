#include "nodes/model/tokenizer_added.h"

#include <stdlib.h>
#include <string.h>

#include "engine/base/mem.h"
#include "nodes/model/utf8.h"

bool tokenizer_added_add(struct added_set *s, const struct added_token *t, struct err *e)
{
    if (s->n == s->capacity) {
        size_t capacity = s->capacity ? 2 * s->capacity : 16;
        if (!mem_grow(&s->list, s->n, capacity, e))
            return false;
        s->capacity = capacity;
    }
    if (t->single_word && !s->word && !tokenizer_regex_word(&s->word, e))
        return false;
    s->list[s->n++] = *t;
    return true;
}

static int compare(const void *x, const void *y)
{
    const struct added_token *a = x, *b = y;
    unsigned char first_a = (unsigned char)a->text[0], first_b = (unsigned char)b->text[0];
    if (first_a != first_b)
        return first_a < first_b ? -1 : 1;
    if (a->length != b->length)
        return a->length > b->length ? -1 : 1;
    return memcmp(a->text, b->text, a->length);
}

bool tokenizer_added_sort(struct added_set *s, struct err *e)
{
    if (s->n)
        qsort(s->list, s->n, sizeof *s->list, compare);
    for (size_t i = 1; i < s->n; i++)
        if (compare(&s->list[i - 1], &s->list[i]) == 0)
            return err_set(e, ERR_INPUT, "the added token '%s' is there twice", s->list[i].text);
    size_t i = 0;
    for (int b = 0; b <= 256; b++) {
        while (i < s->n && (unsigned char)s->list[i].text[0] < b)
            i++;
        s->first[b] = i;
    }
    return true;
}

void tokenizer_added_fini(struct added_set *s)
{
    mem_free(s->list);
    pcre2_code_free(s->word);
    *s = (struct added_set){0};
}

/* The longest token that starts at text[at], or NULL. */
static const struct added_token *token_at(const struct added_set *s, const char *text, size_t n, size_t at)
{
    unsigned char b = (unsigned char)text[at];
    for (size_t i = s->first[b]; i < s->first[b + 1]; i++)
        if (s->list[i].length <= n - at && memcmp(s->list[i].text, text + at, s->list[i].length) == 0)
            return &s->list[i];
    return NULL;
}

static bool is_word(const struct added_set *s, pcre2_match_data *data, const char *character, bool *out, struct err *e)
{
    size_t start, end;
    return tokenizer_regex_find(s->word, data, character, utf8_length((unsigned char)*character), 0, out, &start, &end,
                                e);
}

/* Is there a word character right before `start` or right behind `end`? */
static bool inside_word(const struct added_set *s, pcre2_match_data *data, const char *text, size_t n, size_t start,
                        size_t end, bool *out, struct err *e)
{
    *out = false;
    if (start > 0 && !is_word(s, data, text + utf8_before(text, start), out, e))
        return false;
    return *out || end == n || is_word(s, data, text + end, out, e);
}

static bool add_span(struct added_spans *out, size_t start, size_t end, int32_t id, struct err *e)
{
    if (out->n == out->capacity) {
        size_t capacity = out->capacity ? 2 * out->capacity : 16;
        if (!mem_grow(&out->list, out->n, capacity, e))
            return false;
        out->capacity = capacity;
    }
    out->list[out->n++] = (struct added_span){start, end, id};
    return true;
}

/* `done`: where the span before ends. */
static bool add_token(struct added_spans *out, const struct added_token *t, const char *text, size_t n, size_t start,
                      size_t *done, struct err *e)
{
    size_t end = start + t->length;
    if (t->lstrip) {
        while (start > 0 && utf8_is_space(utf8_decode(text + utf8_before(text, start))))
            start = utf8_before(text, start);
        start = start > *done ? start : *done;
    }
    if (t->rstrip)
        while (end < n && utf8_is_space(utf8_decode(text + end)))
            end += utf8_length((unsigned char)text[end]);
    if (*done < start && !add_span(out, *done, start, -1, e))
        return false;
    *done = end;
    return add_span(out, start, end, t->id, e);
}

bool tokenizer_added_find(const struct added_set *s, pcre2_match_data *data, const char *text, size_t n,
                          struct added_spans *out, struct err *e)
{
    size_t done = 0;
    for (size_t at = 0; s->n && at < n;) {
        const struct added_token *t = token_at(s, text, n, at);
        bool refused = false;
        if (!t) {
            at++;
            continue;
        }
        if (t->single_word && !inside_word(s, data, text, n, at, at + t->length, &refused, e))
            return false;
        if (!refused && !add_token(out, t, text, n, at, &done, e))
            return false;
        at += t->length;
    }
    return done >= n || add_span(out, done, n, -1, e);
}
