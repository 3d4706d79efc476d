#ifndef NODES_MODEL_UTF8_H
#define NODES_MODEL_UTF8_H
/* Walking through UTF-8. Only utf8_prefix takes text that may be wrong; the others want what it has passed. */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Bytes of the character that starts with this byte; 1 for a byte that starts none. */
static inline size_t utf8_length(unsigned char first)
{
    return first < 0xc0 ? 1 : first < 0xe0 ? 2 : first < 0xf0 ? 3 : 4;
}

/* The code point at `s`. */
static inline uint32_t utf8_decode(const char *s)
{
    const unsigned char *b = (const unsigned char *)s;
    switch (utf8_length(b[0])) {
    case 1: return b[0];
    case 2: return (b[0] & 0x1fu) << 6 | (b[1] & 0x3fu);
    case 3: return (b[0] & 0x0fu) << 12 | (b[1] & 0x3fu) << 6 | (b[2] & 0x3fu);
    default: return (b[0] & 0x07u) << 18 | (b[1] & 0x3fu) << 12 | (b[2] & 0x3fu) << 6 | (b[3] & 0x3fu);
    }
}

/* First byte of the character that ends just before text[at]; at > 0. */
static inline size_t utf8_before(const char *text, size_t at)
{
    do
        at--;
    while (at > 0 && ((unsigned char)text[at] & 0xc0) == 0x80);
    return at;
}

/* Is it one character of valid UTF-8 (no overlong forms, surrogates or code points above U+10FFFF)? */
static inline bool utf8_is_character(const char *s, size_t n)
{
    static const uint32_t least[] = {0, 0, 0x80, 0x800, 0x10000};
    unsigned char first = (unsigned char)s[0];
    size_t length = utf8_length(first);
    if ((first >= 0x80 && first < 0xc2) || first > 0xf4 || length > n)
        return false;
    for (size_t i = 1; i < length; i++)
        if (((unsigned char)s[i] & 0xc0) != 0x80)
            return false;
    uint32_t c = utf8_decode(s);
    return c >= least[length] && c <= 0x10ffff && (c < 0xd800 || c > 0xdfff);
}

/* How many of the first bytes are valid UTF-8; n when all are, else the offset of the first wrong character. */
static inline size_t utf8_prefix(const char *text, size_t n)
{
    size_t at = 0;
    while (at < n && utf8_is_character(text + at, n - at))
        at += utf8_length((unsigned char)text[at]);
    return at;
}

/* Unicode's White_Space. */
static inline bool utf8_is_space(uint32_t c)
{
    return (c >= 0x09 && c <= 0x0d) || c == 0x20 || c == 0x85 || c == 0xa0 || c == 0x1680 ||
           (c >= 0x2000 && c <= 0x200a) || c == 0x2028 || c == 0x2029 || c == 0x202f || c == 0x205f || c == 0x3000;
}

#endif
