/* Reading a text and cutting it: at separator lines, before headings, by line, by JSON item, or not at all. Documents
 * are slices of the file's bytes (of copies, for JSON), without the white space around them; copies of an earlier one
 * are dropped. */
#include "nodes/model/documents.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "nodes/model/json.h"
#include "nodes/model/utf8.h"

#define TEXT_LIMIT ((size_t)4 << 30)

static bool is_space(char c) { return c == ' ' || c == '\n' || c == '\r' || c == '\t'; }

static bool check_text(const char *text, size_t n, const char *path, struct err *e)
{
    if (n == 0)
        return err_set(e, ERR_INPUT, "%s: the text is empty", path);
    const char *nul = memchr(text, '\0', n);
    if (nul)
        return err_set(e, ERR_INPUT, "%s: a NUL at byte %zu: this is no text", path, (size_t)(nul - text));
    size_t valid = utf8_prefix(text, n);
    return valid == n || err_set(e, ERR_INPUT, "%s: invalid UTF-8 at byte %zu: convert the text to UTF-8", path, valid);
}

/* Append text[begin, end) without the white space around it, unless nothing is left. Its place is the byte at which it
 * begins, or `ordinal` where text is no part of the file (-1: it is). */
static bool add(struct documents *d, const char *text, size_t begin, size_t end, int64_t ordinal, struct err *e)
{
    while (begin < end && is_space(text[begin]))
        begin++;
    while (end > begin && is_space(text[end - 1]))
        end--;
    if (begin == end)
        return true;
    if ((d->n & (d->n + 1)) == 0 && !mem_grow(&d->list, d->n, 2 * d->n + 1, e)) /* full at 2^k - 1 */
        return false;
    d->list[d->n++] = (struct document){
        .text = text + begin, .bytes = end - begin, .offset = ordinal < 0 ? begin : (uint64_t)ordinal};
    return true;
}

/* Does the line [begin, end) begin an article: " = Title = ", one sign a side? */
static bool is_heading(const char *text, size_t begin, size_t end)
{
    while (begin < end && is_space(text[begin]))
        begin++;
    while (end > begin && is_space(text[end - 1]))
        end--;
    return end - begin >= 5 && text[begin] == '=' && text[begin + 1] == ' ' && text[begin + 2] != '=' &&
           text[end - 1] == '=' && text[end - 2] == ' ' && text[end - 3] != '=';
}

static bool is_separator(const char *text, size_t begin, size_t end, const char *separator)
{
    size_t n = strlen(separator);
    while (end > begin && is_space(text[end - 1]))
        end--;
    while (begin < end && is_space(text[begin]))
        begin++;
    return end - begin == n && memcmp(text + begin, separator, n) == 0;
}

static bool cut_lines(struct documents *d, const char *text, size_t n, enum document_rule rule, const char *separator,
                      struct err *e)
{
    size_t document = 0;
    for (size_t begin = 0; begin < n;) {
        const char *newline = memchr(text + begin, '\n', n - begin);
        size_t end = newline ? (size_t)(newline - text) : n, next = newline ? end + 1 : n;
        bool cuts = rule == DOCUMENTS_LINES || (rule == DOCUMENTS_HEADING && is_heading(text, begin, end)) ||
                    (rule == DOCUMENTS_SEPARATOR && is_separator(text, begin, end, separator));
        if (cuts) {
            if (!add(d, text, document, begin, -1, e))
                return false;
            document = rule == DOCUMENTS_SEPARATOR ? next : begin;
        }
        begin = next;
    }
    return add(d, text, document, n, -1, e);
}

static bool add_json(struct documents *d, const json_t *item, const char *key, size_t ordinal, const char *path,
                     struct err *e)
{
    const json_t *value = *key ? json_object_get(item, key) : item;
    if (!json_is_string(value))
        return err_set(e, ERR_INPUT, "%s: item %zu%s%s%s is no text; parameter `json_key` names the member that is",
                       path, ordinal, *key ? ", member '" : "", key, *key ? "'," : "");
    size_t n = json_string_length(value);
    char *copy = arena_strndup(&d->arena, json_string_value(value), n, e);
    return copy && add(d, copy, 0, n, (int64_t)ordinal, e);
}

/* A JSON list of items, or an item a line. */
static bool cut_json(struct documents *d, const char *text, size_t n, const char *key, const char *path, struct err *e)
{
    size_t start = 0, ordinal = 0;
    json_t *value;
    while (start < n && is_space(text[start]))
        start++;
    if (start < n && text[start] == '[') {
        if (!json_load_text(&value, text, n, path, e))
            return false;
        bool ok = true;
        for (; ok && ordinal < json_array_size(value); ordinal++)
            ok = add_json(d, json_array_get(value, ordinal), key, ordinal, path, e);
        json_decref(value);
        return ok;
    }
    for (size_t begin = 0; begin < n; ordinal++) {
        const char *newline = memchr(text + begin, '\n', n - begin);
        size_t end = newline ? (size_t)(newline - text) : n, first = begin;
        while (first < end && is_space(text[first]))
            first++;
        if (first < end) {
            if (!json_load_text(&value, text + begin, end - begin, path, e))
                return err_context(e, "line %zu", ordinal + 1);
            bool ok = add_json(d, value, key, ordinal, path, e);
            json_decref(value);
            if (!ok)
                return false;
        }
        begin = newline ? end + 1 : n;
    }
    return true;
}

static int by_digest(const void *a, const void *b)
{
    const struct document *x = *(const struct document *const *)a, *y = *(const struct document *const *)b;
    int order = memcmp(x->digest.bytes, y->digest.bytes, KEY_BYTES);
    return order ? order : (x > y) - (x < y);
}

/* Digests, and every document but the first of equal ones dropped, so that splits are disjoint by content. */
static bool drop_copies(struct documents *d, struct err *e)
{
    struct document **sorted;
    if (!mem_new(&sorted, d->n, e))
        return false;
    bool ok = true;
    for (size_t i = 0; ok && i < d->n; i++) {
        ok = key_of_bytes(d->list[i].text, d->list[i].bytes, &d->list[i].digest, e);
        sorted[i] = &d->list[i];
    }
    if (ok)
        qsort(sorted, d->n, sizeof *sorted, by_digest);
    for (size_t i = 1; ok && i < d->n; i++)
        if (key_equal(&sorted[i]->digest, &sorted[i - 1]->digest))
            sorted[i]->bytes = 0;
    mem_free(sorted);
    size_t kept = 0;
    for (size_t i = 0; ok && i < d->n; i++)
        if (d->list[i].bytes)
            d->list[kept++] = d->list[i];
    d->n_copies = d->n - kept;
    d->n = kept;
    return ok;
}

bool documents_read(struct documents *out, const char *path, enum document_rule rule, const char *separator,
                    const char *json_key, struct err *e)
{
    struct documents d = {0};
    size_t n;
    if (!json_read_file(&d.text, &n, path, TEXT_LIMIT, e))
        return false;
    bool ok = check_text(d.text, n, path, e);
    if (ok && rule == DOCUMENTS_JSON)
        ok = cut_json(&d, d.text, n, json_key, path, e);
    else if (ok && rule == DOCUMENTS_WHOLE)
        ok = add(&d, d.text, 0, n, -1, e);
    else if (ok)
        ok = cut_lines(&d, d.text, n, rule, separator, e);
    if (ok && d.n == 0)
        ok = err_set(e, ERR_INPUT, "%s: no document in it: there is nothing but white space", path);
    ok = ok && drop_copies(&d, e);
    if (!ok) {
        documents_fini(&d);
        return false;
    }
    *out = d;
    return true;
}

void documents_fini(struct documents *d)
{
    mem_free(d->list);
    mem_free(d->text);
    arena_free(&d->arena);
    *d = (struct documents){0};
}
