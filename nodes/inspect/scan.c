#include "nodes/inspect/scan.h"

#include <string.h>

#define DEEPEST 64

static bool fail(struct scan *s, const char *what)
{
    if (!s->failed)
        err_set(s->e, ERR_INPUT, "%s: not valid JSON: %s at byte %zu", s->name, what, s->at);
    s->failed = true;
    return false;
}

void scan_init(struct scan *s, const char *text, size_t n, const char *name, struct err *e)
{
    *s = (struct scan){.text = text, .n = n, .name = name, .e = e};
    if (!str_is_utf8(text, n)) {
        err_set(e, ERR_INPUT, "%s: not valid UTF-8", name);
        s->failed = true;
    }
}

static void skip_space(struct scan *s)
{
    while (s->at < s->n && (s->text[s->at] == ' ' || s->text[s->at] == '\n' || s->text[s->at] == '\t' ||
                            s->text[s->at] == '\r'))
        s->at++;
}

/* The next character that is no white space, '\0' at the end (a NUL in the text is no JSON either). */
static char next(struct scan *s)
{
    if (s->failed)
        return '\0';
    skip_space(s);
    return s->at < s->n ? s->text[s->at] : '\0';
}

enum scan_type scan_peek(struct scan *s)
{
    char c = next(s);
    switch (c) {
    case '{': return SCAN_OBJECT;
    case '[': return SCAN_ARRAY;
    case '"': return SCAN_STRING;
    case 't': case 'f': case 'n': return SCAN_WORD;
    default: return c == '-' || (c >= '0' && c <= '9') ? SCAN_NUMBER : SCAN_NOTHING;
    }
}

bool scan_enter(struct scan *s)
{
    char c = next(s);
    if (c != '{' && c != '[')
        return fail(s, "an object or array was expected");
    if (++s->depth > DEEPEST)
        return fail(s, "nested deeper than 64 levels");
    s->at++;
    return true;
}

/* Behind the comma before another element, or behind the bracket at the end. */
static bool more(struct scan *s, size_t *count, char close)
{
    char c = next(s);
    if (c == close) {
        s->at++;
        s->depth--;
        return false;
    }
    if (*count > 0) {
        if (c != ',')
            return fail(s, close == '}' ? "',' or '}' was expected" : "',' or ']' was expected");
        s->at++;
    }
    ++*count;
    return !s->failed;
}

bool scan_element(struct scan *s, size_t *count) { return more(s, count, ']'); }

bool scan_member(struct scan *s, size_t *count, struct str *key)
{
    if (!more(s, count, '}'))
        return false;
    if (next(s) != '"')
        return fail(s, "a key was expected");
    if (!scan_string(s, key))
        return false;
    if (next(s) != ':')
        return fail(s, "':' was expected");
    s->at++;
    return true;
}

static bool read_hex(struct scan *s, uint32_t *out)
{
    uint32_t x = 0;
    for (int i = 0; i < 4; i++, s->at++) {
        char c = s->at < s->n ? s->text[s->at] : '\0';
        uint32_t digit = c >= '0' && c <= '9' ? (uint32_t)(c - '0') : (c | 32) >= 'a' && (c | 32) <= 'f'
                                                                           ? (uint32_t)((c | 32) - 'a' + 10)
                                                                           : 16;
        if (digit > 15)
            return fail(s, "\\u wants four hexadecimal digits");
        x = x << 4 | digit;
    }
    *out = x;
    return true;
}

/* Behind \u: one character, which may take a second \u. */
static bool read_escaped(struct scan *s, struct str *out)
{
    uint32_t c, low;
    if (!read_hex(s, &c))
        return false;
    if (c >= 0xd800 && c < 0xdc00) {
        if (s->n - s->at < 2 || s->text[s->at] != '\\' || s->text[s->at + 1] != 'u')
            return fail(s, "half of a surrogate pair");
        s->at += 2;
        if (!read_hex(s, &low))
            return false;
        if (low < 0xdc00 || low > 0xdfff)
            return fail(s, "half of a surrogate pair");
        c = 0x10000 + ((c - 0xd800) << 10 | (low - 0xdc00));
    }
    if (c == 0 || (c >= 0xdc00 && c < 0xe000))
        return fail(s, c == 0 ? "\\u0000 in a text" : "half of a surrogate pair");
    char u[4];
    size_t n = c < 0x80 ? 1 : c < 0x800 ? 2 : c < 0x10000 ? 3 : 4;
    static const unsigned char lead[5] = {0, 0, 0xc0, 0xe0, 0xf0};
    for (size_t i = n; i-- > 1; c >>= 6)
        u[i] = (char)(0x80 | (c & 0x3f));
    u[0] = (char)(lead[n] | c);
    str_add_bytes(out, u, n);
    return true;
}

static bool read_escape(struct scan *s, struct str *out)
{
    static const char from[] = "\"\\/bfnrt", to[] = "\"\\/\b\f\n\r\t";
    char c = s->at < s->n ? s->text[s->at] : '\0';
    const char *known = c ? strchr(from, c) : NULL;
    s->at++;
    if (known)
        str_add_bytes(out, to + (known - from), 1);
    else if (c == 'u')
        return read_escaped(s, out);
    else
        return fail(s, "an unknown escape");
    return true;
}

bool scan_string(struct scan *s, struct str *out)
{
    if (next(s) != '"')
        return fail(s, "a string was expected");
    s->at++;
    out->length = 0;
    str_add(out, "");
    for (;;) {
        size_t from = s->at;
        while (s->at < s->n && s->text[s->at] != '"' && s->text[s->at] != '\\' && (unsigned char)s->text[s->at] >= 0x20)
            s->at++;
        str_add_bytes(out, s->text + from, s->at - from);
        if (s->at >= s->n || (unsigned char)s->text[s->at] < 0x20)
            return fail(s, "a string that does not end");
        if (s->text[s->at++] == '"')
            break;
        if (!read_escape(s, out))
            return false;
    }
    if (!str_ok(out, s->e))
        s->failed = true;
    return !s->failed;
}

static size_t digits(struct scan *s)
{
    size_t from = s->at;
    while (s->at < s->n && s->text[s->at] >= '0' && s->text[s->at] <= '9')
        s->at++;
    return s->at - from;
}

static bool is_at(const struct scan *s, const char *set)
{
    return s->at < s->n && s->text[s->at] && strchr(set, s->text[s->at]);
}

bool scan_integer(struct scan *s, int64_t *out, bool *fits)
{
    if (scan_peek(s) != SCAN_NUMBER)
        return fail(s, "a number was expected");
    bool negative = s->text[s->at] == '-';
    s->at += negative;
    size_t from = s->at, n = digits(s);
    int64_t x = 0;
    if (n == 0 || (n > 1 && s->text[from] == '0'))
        return fail(s, "a malformed number");
    *fits = true;
    for (size_t i = 0; i < n && *fits; i++)
        *fits = !__builtin_mul_overflow(x, 10, &x) && !__builtin_sub_overflow(x, s->text[from + i] - '0', &x);
    if (!negative && *fits)
        *fits = !__builtin_sub_overflow(0, x, &x);
    if (is_at(s, ".")) {
        *fits = false;
        s->at++;
        if (digits(s) == 0)
            return fail(s, "a malformed number");
    }
    if (is_at(s, "eE")) {
        *fits = false;
        s->at++;
        s->at += is_at(s, "+-");
        if (digits(s) == 0)
            return fail(s, "a malformed number");
    }
    *out = x;
    return true;
}

static bool skip_word(struct scan *s)
{
    static const char *const words[] = {"true", "false", "null"};
    for (size_t i = 0; i < 3; i++) {
        size_t n = strlen(words[i]);
        if (s->n - s->at >= n && memcmp(s->text + s->at, words[i], n) == 0) {
            s->at += n;
            return true;
        }
    }
    return fail(s, "an unknown word");
}

bool scan_skip(struct scan *s)
{
    struct str text = {0};
    size_t count = 0;
    int64_t number;
    bool fits, is_object = false;
    switch (scan_peek(s)) {
    case SCAN_STRING: scan_string(s, &text); break;
    case SCAN_NUMBER: scan_integer(s, &number, &fits); break;
    case SCAN_WORD: skip_word(s); break;
    case SCAN_OBJECT: is_object = true; /* fall through */
    case SCAN_ARRAY:
        scan_enter(s); /* recursion ends at the deepest level that scan_enter allows */
        while (!s->failed && (is_object ? scan_member(s, &count, &text) : scan_element(s, &count)))
            scan_skip(s);
        break;
    default: fail(s, "a value was expected");
    }
    str_free(&text);
    return !s->failed;
}

bool scan_end(struct scan *s)
{
    if (!s->failed) {
        skip_space(s);
        if (s->at < s->n)
            fail(s, "text behind the value");
    }
    return !s->failed;
}
