#include "engine/base/str.h"

#include <ctype.h>
#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "engine/base/mem.h"

static bool reserve(struct str *s, size_t more)
{
    if (s->failed)
        return false;
    if (s->length + more + 1 <= s->capacity)
        return true;
    size_t capacity = s->capacity ? s->capacity * 2 : 64;
    while (capacity < s->length + more + 1)
        capacity *= 2;
    s->failed = !mem_grow(&s->text, s->text ? s->length + 1 : 0, capacity, NULL);
    if (!s->failed)
        s->capacity = capacity;
    return !s->failed;
}

void str_add_bytes(struct str *s, const char *text, size_t n)
{
    if (!reserve(s, n))
        return;
    if (n)
        memcpy(s->text + s->length, text, n);
    s->length += n;
    s->text[s->length] = '\0';
}

void str_add(struct str *s, const char *text) { str_add_bytes(s, text, strlen(text)); }

void str_printf(struct str *s, const char *format, ...)
{
    va_list args, again;
    va_start(args, format);
    va_copy(again, args);
    int n = vsnprintf(NULL, 0, format, args);
    va_end(args);
    if (n >= 0 && reserve(s, (size_t)n)) {
        vsnprintf(s->text + s->length, (size_t)n + 1, format, again);
        s->length += (size_t)n;
    }
    va_end(again);
}

/* Bytes of the UTF-8 sequence at p, or 0 if it is not valid. */
static size_t utf8_length(const unsigned char *p, size_t left)
{
    static const uint32_t least[] = {0, 0, 0x80, 0x800, 0x10000};
    size_t n = p[0] < 0x80 ? 1 : p[0] >= 0xf0 && p[0] < 0xf8 ? 4 : p[0] >= 0xe0 ? 3 : p[0] >= 0xc0 ? 2 : 0;
    if (p[0] >= 0xf8 || n == 0 || n > left)
        return 0;
    uint32_t c = n == 1 ? p[0] : p[0] & (0x7fu >> n);
    for (size_t i = 1; i < n; i++) {
        if ((p[i] & 0xc0) != 0x80)
            return 0;
        c = c << 6 | (p[i] & 0x3fu);
    }
    bool surrogate = c >= 0xd800 && c < 0xe000;
    return (n > 1 && c < least[n]) || surrogate || c > 0x10ffff ? 0 : n;
}

bool str_is_utf8(const char *text, size_t n)
{
    for (size_t i = 0; i < n;) {
        size_t step = utf8_length((const unsigned char *)text + i, n - i);
        if (!step)
            return false;
        i += step;
    }
    return true;
}

void str_add_json(struct str *s, const char *text)
{
    size_t n = strlen(text);
    str_add(s, "\"");
    for (size_t i = 0; i < n;) {
        unsigned char c = (unsigned char)text[i];
        size_t step = utf8_length((const unsigned char *)text + i, n - i);
        if (step == 0)
            str_add(s, "\\ufffd");
        else if (c == '"' || c == '\\')
            str_printf(s, "\\%c", c);
        else if (c == '\n')
            str_add(s, "\\n");
        else if (c < 0x20 || c == 0x7f)
            str_printf(s, "\\u%04x", c);
        else
            str_add_bytes(s, text + i, step);
        i += step ? step : 1;
    }
    str_add(s, "\"");
}

void str_add_json_double(struct str *s, double x)
{
    if (isfinite(x))
        str_printf(s, "%.17g", x);
    else
        str_add(s, "null");
}

bool str_ok(const struct str *s, struct err *e)
{
    return !s->failed || err_set(e, ERR_RESOURCE, "out of memory while making a text of %zu bytes", s->length);
}

void str_free(struct str *s)
{
    mem_free(s->text);
    *s = (struct str){0};
}

/* ---------------------------------------------------------------------------------------------------- nearest names */

#define LONGEST 64

static size_t least3(size_t a, size_t b, size_t c) { return a < b ? (a < c ? a : c) : (b < c ? b : c); }

/* Edit distance with neighbours swapped counting as one (optimal string alignment); names are at most LONGEST long. */
static size_t distance(const char *a, const char *b)
{
    size_t n = strlen(a), m = strlen(b), row[3][LONGEST + 1];
    for (size_t j = 0; j <= m; j++)
        row[0][j] = j;
    for (size_t i = 1; i <= n; i++) {
        size_t *now = row[i % 3], *before = row[(i + 2) % 3], *older = row[(i + 1) % 3];
        now[0] = i;
        for (size_t j = 1; j <= m; j++) {
            size_t change = before[j - 1] + (tolower((unsigned char)a[i - 1]) != tolower((unsigned char)b[j - 1]));
            now[j] = least3(before[j] + 1, now[j - 1] + 1, change);
            if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] && older[j - 2] + 1 < now[j])
                now[j] = older[j - 2] + 1;
        }
    }
    return row[n % 3][m];
}

const char *str_nearest(const char *name, const char *const *names, size_t n)
{
    const char *best = NULL;
    size_t best_distance = 0, length = strnlen(name, LONGEST + 1);
    for (size_t i = 0; i < n && length <= LONGEST; i++) {
        size_t other = strlen(names[i]), longer = length > other ? length : other, shorter = length + other - longer;
        size_t limit = longer / 3 < 1 ? 1 : longer / 3 > 4 ? 4 : longer / 3;
        if (other > LONGEST || (length > other ? length - other : other - length) > limit)
            continue;
        size_t d = distance(name, names[i]);
        if (d <= limit && d < shorter && (!best || d < best_distance)) {
            best = names[i];
            best_distance = d;
        }
    }
    return best;
}

/* ------------------------------------------------------------------------------------------------ sizes and seconds */

bool str_parse_size(const char *text, uint64_t *bytes)
{
    static const char units[] = "KMGT";
    char *end;
    size_t digits = strspn(text, "0123456789.");
    if (!isdigit((unsigned char)text[0]) || strchr("xXeE", text[digits] ? text[digits] : ' '))
        return false; /* strtod would read hexadecimal and exponents */
    double x = strtod(text, &end);
    while (*end == ' ')
        end++;
    const char *unit = *end ? strchr(units, *end) : NULL;
    if (unit) {
        end++;
        x *= ldexp(1.0, 10 * (int)(unit - units + 1));
        if (*end == 'i')
            end++;
    }
    if (*end == 'B')
        end++;
    if (*end || !(x < 0x1p63))
        return false;
    *bytes = (uint64_t)x;
    return true;
}

const char *str_size(uint64_t bytes, char out[16])
{
    static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB"};
    double x = (double)bytes;
    int u = 0;
    while (x >= 1024 && u < 4) {
        x /= 1024;
        u++;
    }
    snprintf(out, 16, u == 0 ? "%.0f %s" : "%.1f %s", x, units[u]);
    return out;
}

const char *str_seconds(double seconds, char out[16])
{
    unsigned long whole = seconds >= 0 && seconds < 1e9 ? (unsigned long)(seconds + 0.5) : 0;
    unsigned hours = (unsigned)(whole / 3600) % 100000u, minutes = (unsigned)(whole / 60 % 60),
             rest = (unsigned)(whole % 60);
    if (!(seconds >= 0))
        snprintf(out, 16, "-");
    else if (seconds < 1)
        snprintf(out, 16, "%.0f ms", seconds * 1e3);
    else if (seconds < 60)
        snprintf(out, 16, "%.1f s", seconds);
    else if (whole < 3600)
        snprintf(out, 16, "%um%02us", minutes, rest);
    else
        snprintf(out, 16, "%uh%02um", hours, minutes);
    return out;
}
