/* The problems of a load: noted in any order, reported in the order of the text. And the small questions that several
 * stages ask: what is a name, what does a path mean. */
#include "engine/graph/loading.h"

#include <ctype.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "engine/base/str.h"

/* Suggestions cost a comparison with every known name; after this many problems nobody reads them. */
#define MOST_SUGGESTIONS 100

void *loading_new(struct loading *l, size_t bytes)
{
    return arena_new(&l->scratch, bytes, &l->fatal);
}

/* Files come in the order in which they were read, then what was said on the command line. */
static int source_rank(const struct loading *l, const struct mark *m)
{
    int n = (int)l->n_sources;
    if (!m->file)
        return 0;
    for (int i = 0; i < n; i++)
        if (strcmp(m->file, l->sources[i]) == 0)
            return i;
    for (size_t i = 0; i < l->options->n_set; i++)
        if (strncmp(m->file, "--set ", 6) == 0 && strcmp(m->file + 6, l->options->set[i]) == 0)
            return n + 1 + (int)i;
    return n;
}

/* Control characters would move the terminal's cursor or end the message early. */
static void clean(char *text)
{
    for (; *text; text++)
        if ((unsigned char)*text < 0x20 || *text == 0x7f)
            *text = '?';
}

bool loading_problem(struct loading *l, const struct mark *m, const char *near, const char *format, ...)
{
    char text[sizeof((struct err *)0)->text];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    clean(text);
    if (l->n_problems == l->problem_capacity) {
        size_t capacity = l->problem_capacity ? 2 * l->problem_capacity : 64;
        if (!mem_grow(&l->problems, l->n_problems, capacity, &l->fatal))
            return false;
        l->problem_capacity = capacity;
    }
    const char *kept = near ? arena_printf(&l->scratch, &l->fatal, "%s\ndid you mean '%s'?", text, near)
                            : arena_strdup(&l->scratch, text, &l->fatal);
    if (!kept)
        return false;
    l->problems[l->n_problems] =
        (struct problem){.mark = *m, .source = source_rank(l, m), .order = l->n_problems, .text = kept};
    l->n_problems++;
    return true;
}

const char *loading_nearest(const struct loading *l, const char *name, const char *const *names, size_t n)
{
    return l->n_problems < MOST_SUGGESTIONS ? str_nearest(name, names, n) : NULL;
}

const char *loading_shown(const char *text, char out[64])
{
    size_t n = strnlen(text, 64), kept = n <= 48 ? n : 44;
    while (kept < n && kept > 0 && ((unsigned char)text[kept] & 0xc0) == 0x80)
        kept--; /* not in the middle of a character */
    snprintf(out, 64, "'%.*s%s'", (int)kept, text, kept < n ? "..." : "");
    return out;
}

const char *loading_listed(const char *prefix, const char *const *names, size_t n, char *out, size_t size)
{
    size_t at = 0;
    out[0] = '\0';
    for (size_t i = 0; i < n && at < size; i++)
        at += (size_t)snprintf(out + at, size - at, "%s%s%s", i == 0 ? "" : i + 1 == n ? " or " : ", ", prefix,
                               names[i]);
    return out;
}

bool loading_is_name(const char *text)
{
    size_t n = 0;
    for (; text[n]; n++) {
        unsigned char c = (unsigned char)text[n];
        if (!isascii(c) || !(isalpha(c) || c == '_' || (n > 0 && (isdigit(c) || c == '-'))))
            return false;
    }
    return n > 0 && n <= LOADING_NAME;
}

bool loading_is_round_word(const char *text)
{
    static const char *const words[] = {"this", "prev", "past", "all", "last"};
    for (size_t i = 0; i < sizeof words / sizeof *words; i++)
        if (strcmp(text, words[i]) == 0)
            return true;
    return false;
}

/* A folder, and no link to one: from a link, ".." leads to where it points. */
static bool is_folder(const char *path)
{
    struct stat st;
    return lstat(path, &st) == 0 && S_ISDIR(st.st_mode);
}

/* Take "." and doubled slashes out of `path`, in place, and ".." after a folder; other ".." stay. "" becomes ".". */
static void normalise(char *path)
{
    bool absolute = path[0] == '/';
    size_t out = absolute, kept = 0; /* kept: named folders in the output that ".." may take away */
    for (const char *in = path; *in;) {
        size_t n = strcspn(in, "/");
        bool up = n == 2 && in[0] == '.' && in[1] == '.', is_removed = false;
        if (up && kept > 0) {
            path[out] = '\0'; /* before `in`: at least a slash lies between */
            is_removed = is_folder(path);
        }
        if (is_removed) {
            while (out > absolute && path[out - 1] != '/')
                out--;
            out -= out > absolute;
            kept--;
        } else if (n > 0 && !(n == 1 && in[0] == '.') && !(up && absolute && out == 1)) {
            if (out > absolute)
                path[out++] = '/';
            memmove(path + out, in, n);
            out += n;
            kept = up ? 0 : kept + 1;
        }
        in += n;
        in += *in == '/';
    }
    if (out == 0)
        path[out++] = '.';
    path[out] = '\0';
}

const char *loading_join(struct loading *l, const char *from, const char *path)
{
    const char *slash = from && path[0] != '/' ? strrchr(from, '/') : NULL;
    int folder = slash ? (int)(slash - from) + 1 : 0;
    char *joined = arena_printf(l->arena, &l->fatal, "%.*s%s", folder, folder ? from : "", path);
    if (joined && *joined)
        normalise(joined);
    return joined;
}
