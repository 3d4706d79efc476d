#ifndef ENGINE_BASE_STR_H
#define ENGINE_BASE_STR_H
/* Text helpers: a growing string, the nearest known name, sizes with units, JSON quoting. */
#include <stdint.h>
#include <stdio.h>

#include "engine/base/err.h"

/* A growing, always NUL-terminated string. Zero-initialise; str_free when done. A failed append sets `failed` and
 * further appends do nothing, so a chain of appends is checked once with str_ok. */
struct str {
    char *text;
    size_t length, capacity;
    bool failed;
};
void str_add(struct str *s, const char *text);
void str_add_bytes(struct str *s, const char *text, size_t n);
void str_printf(struct str *s, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* A JSON string literal, quotes included. Invalid UTF-8 bytes are written as U+FFFD. */
void str_add_json(struct str *s, const char *text);
/* A JSON number: %.17g, and null for NaN or infinity. */
void str_add_json_double(struct str *s, double x);
bool str_ok(const struct str *s, struct err *e) ERR_CHECK; /* ERR_RESOURCE when an append failed */
void str_free(struct str *s);

/* The entry of names[0..n) nearest to `name` by edit distance, or NULL when none is near (distance more than a third of
 * the longer name, at least 1, at most 4, or nothing of the shorter one left). */
const char *str_nearest(const char *name, const char *const *names, size_t n);

/* "8GiB", "512 MiB", "1000": to bytes. Suffixes KiB MiB GiB TiB (and K M G T as the same), B; false if malformed. */
bool str_parse_size(const char *text, uint64_t *bytes) ERR_CHECK;
/* "1.9 GiB" in `out` (at least 16 bytes); returns `out`. */
const char *str_size(uint64_t bytes, char out[16]);
/* "1h02m", "3m07s", "4.2 s", "12 ms" in `out`; returns `out`. */
const char *str_seconds(double seconds, char out[16]);
/* True when the n bytes are valid UTF-8 (no surrogates, no overlong forms). */
bool str_is_utf8(const char *text, size_t n);

#endif
