/* Parameter values, typed by what the node type declares and never by YAML's own rules. A value keeps one canonical
 * text: what goes into the key of a result. */
#include "engine/graph/value.h"

#include <ctype.h>
#include <errno.h>
#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "engine/base/str.h"

/* Integers are kept in a double, too. */
#define LARGEST_EXACT (1LL << 53)

/* What an element takes in memory, its text when short included. */
#define ELEMENT_BYTES 32

/* One element while it is typed. */
struct element {
    const char *where;
    const struct param *p;
    const struct tree *t;
    const char *text;
    double number;
};

bool value_integer(const char *text, long long *out)
{
    char *end;
    const char *digits = text + (*text == '-');
    if (!isdigit((unsigned char)*digits))
        return false;
    errno = 0;
    *out = strtoll(text, &end, 10);
    return *end == '\0' && errno == 0;
}

/* A finite decimal number and nothing else. */
static bool read_float(const char *text, double *out)
{
    char *end;
    if (!*text || text[strspn(text, "0123456789.eE+-")])
        return false; /* strtod would read "inf", "nan", hexadecimal and leading spaces */
    *out = strtod(text, &end);
    return end != text && *end == '\0' && isfinite(*out);
}

const char *value_expected(const struct param *p, char out[256])
{
    static const char *const names[] = {[PARAM_INT] = "an integer",
                                        [PARAM_FLOAT] = "a number",
                                        [PARAM_BOOL] = "true or false",
                                        [PARAM_STRING] = "a text",
                                        [PARAM_SIZE] = "a size like 512MiB or 8GiB",
                                        [PARAM_SOURCE] = "a file or directory",
                                        [PARAM_PATH] = "a path"};
    size_t n = 0;
    if (p->type != PARAM_ENUM) {
        snprintf(out, 256, "%s", names[p->type]);
        return out;
    }
    while (p->choices[n])
        n++;
    size_t at = (size_t)snprintf(out, 256, n > 1 ? "one of " : "");
    loading_listed("", p->choices, n, out + at, 256 - at);
    return out;
}

static bool wrong(struct loading *l, const struct element *x, const char *near)
{
    char shown[64], expected[256];
    return loading_problem(l, &x->t->mark, near, "%s: expected %s, found %s", x->where, value_expected(x->p, expected),
                           loading_shown(x->t->text, shown));
}

const char *param_bound(const struct param *p, double x, char out[32])
{
    char size[16];
    if (p->type == PARAM_SIZE)
        snprintf(out, 32, "%s", x < 0x1p63 ? str_size((uint64_t)x, size) : "8 EiB");
    else
        snprintf(out, 32, p->type == PARAM_INT && fabs(x) < 1e18 ? "%.0f" : "%.15g", x);
    return out;
}

static bool check_range(struct loading *l, const struct element *x, bool *ok)
{
    const struct param *p = x->p;
    char least[32], most[32], shown[64], unit[48] = "";
    *ok = (p->least == 0 && p->most == 0) || (x->number >= p->least && x->number <= p->most);
    if (*ok)
        return true;
    if (p->unit && p->type != PARAM_SIZE)
        snprintf(unit, sizeof unit, " (unit: %s)", p->unit);
    if (isinf(p->most))
        return loading_problem(l, &x->t->mark, NULL, "%s: %s is out of range: it must be at least %s%s", x->where,
                               loading_shown(x->t->text, shown), param_bound(p, p->least, least), unit);
    return loading_problem(l, &x->t->mark, NULL, "%s: %s is out of range: it must be %s to %s%s", x->where,
                           loading_shown(x->t->text, shown), param_bound(p, p->least, least),
                           param_bound(p, p->most, most), unit);
}

static bool make_number(struct loading *l, struct element *x, bool *ok)
{
    const char *text = x->t->text;
    long long whole = 0;
    uint64_t bytes = 0;
    *ok = false;
    if (x->p->type == PARAM_INT) {
        if (!value_integer(text, &whole) || whole > LARGEST_EXACT || whole < -LARGEST_EXACT)
            return wrong(l, x, NULL);
        x->number = (double)whole;
        x->text = arena_printf(l->arena, &l->fatal, "%lld", whole);
    } else if (x->p->type == PARAM_SIZE) {
        if (!str_parse_size(text, &bytes))
            return wrong(l, x, NULL);
        x->number = (double)bytes;
        x->text = arena_printf(l->arena, &l->fatal, "%llu", (unsigned long long)bytes);
    } else {
        if (!read_float(text, &x->number))
            return wrong(l, x, NULL);
        x->number += 0.0; /* one zero: -0 would be another text, so another key */
        x->text = arena_printf(l->arena, &l->fatal, "%.17g", x->number);
    }
    return x->text && check_range(l, x, ok);
}

static bool make_choice(struct loading *l, struct element *x, bool *ok)
{
    size_t n = 0;
    for (*ok = false; x->p->choices[n]; n++)
        if (strcmp(x->p->choices[n], x->t->text) == 0) {
            x->text = x->p->choices[n];
            *ok = true;
            return true;
        }
    return wrong(l, x, loading_nearest(l, x->t->text, x->p->choices, n));
}

/* The path as the user would type it is in messages; the value is absolute. */
static bool make_source(struct loading *l, struct element *x, bool *ok)
{
    char folder[PATH_MAX + 1];
    struct stat st;
    *ok = false;
    const char *path = loading_join(l, x->t->origin, x->t->text);
    if (!path)
        return false;
    if (stat(path, &st) < 0)
        return loading_problem(l, &x->t->mark, NULL, "%s: %s: '%s'", x->where,
                               errno == ENOENT ? "no such file or directory" : strerror(errno), path);
    if (path[0] != '/' && !getcwd(folder, PATH_MAX))
        return loading_problem(l, &x->t->mark, NULL, "%s: the working directory has no name: %s", x->where,
                               strerror(errno));
    if (path[0] != '/')
        path = loading_join(l, strcat(folder, "/"), path);
    x->text = path;
    *ok = true;
    return path != NULL;
}

static bool make_element(struct loading *l, struct element *x, bool *ok)
{
    const char *text = x->t->text;
    bool is_path = x->p->type == PARAM_SOURCE || x->p->type == PARAM_PATH;
    *ok = true;
    if (is_path && !*text && !x->p->fallback) {
        *ok = false;
        return loading_problem(l, &x->t->mark, NULL, "%s: expected %s, but it is empty", x->where,
                               x->p->type == PARAM_SOURCE ? "a file or directory" : "a path");
    }
    switch (x->p->type) {
    case PARAM_INT:
    case PARAM_FLOAT:
    case PARAM_SIZE:
        return make_number(l, x, ok);
    case PARAM_ENUM:
        return make_choice(l, x, ok);
    case PARAM_BOOL:
        x->number = strcmp(text, "true") == 0;
        x->text = x->number != 0 ? "true" : "false";
        *ok = strcmp(text, x->text) == 0;
        return *ok || wrong(l, x, NULL);
    case PARAM_SOURCE:
        if (*text)
            return make_source(l, x, ok);
        break;
    default:
        break;
    }
    x->text = arena_strdup(l->arena, text, &l->fatal);
    return x->text != NULL;
}

struct mark value_mark(const struct mark *m)
{
    return loading_in_file(m) ? *m : (struct mark){0};
}

/* Count what a value takes before it is made: a long parameter, or a long list, may be the value of every node. Noted
 * once. */
static bool within_limits(struct loading *l, const char *where, const struct tree *t, struct tree **items, size_t n,
                          bool *ok)
{
    bool was_full = l->valued > LOADING_ALL_TEXT;
    l->valued += n * ELEMENT_BYTES;
    for (size_t i = 0; i < n && l->valued <= LOADING_ALL_TEXT; i++)
        l->valued += items[i]->kind == TREE_SCALAR ? strlen(items[i]->text) + 1 : 0;
    *ok = l->valued <= LOADING_ALL_TEXT;
    return *ok || was_full ||
           loading_problem(l, &t->mark, NULL, "%s: the values of all parameters take more than %zu bytes by here",
                           where, LOADING_ALL_TEXT);
}

/* A choice made twice is a mistake: no two elements of a menu are alike. */
static bool check_repeats(struct loading *l, const char *where, const struct param *p, struct tree **items,
                          const struct value *v, bool *ok)
{
    *ok = true;
    for (size_t i = 0; p->type == PARAM_ENUM && i < v->n; i++)
        for (size_t k = 0; k < i; k++)
            if (strcmp(v->text[i], v->text[k]) == 0) {
                *ok = false;
                return loading_problem(l, &items[i]->mark, NULL, "%s: '%s' is in the list twice", where, v->text[i]);
            }
    return true;
}

bool value_make(struct loading *l, const char *where, const struct param *p, struct tree *t, struct value *out,
                bool *ok)
{
    struct tree **items = t->kind == TREE_LIST ? t->items : &t;
    size_t n = t->kind == TREE_LIST ? t->n : 1;
    *ok = false;
    if (t->kind == TREE_LIST && !p->many)
        return loading_problem(l, &t->mark, NULL, "%s: expected a single value, found a list", where);
    if (n == 0 && !(p->fallback && !*p->fallback)) /* only where none is the default */
        return loading_problem(l, &t->mark, NULL, "%s: the list is empty: at least one element is needed", where);
    bool fits;
    if (!within_limits(l, where, t, items, n, &fits) || !fits)
        return l->fatal.code == ERR_NONE;
    out->n = n;
    out->mark = value_mark(&t->mark);
    out->text = arena_new(l->arena, (n + 1) * sizeof *out->text, &l->fatal);
    out->number = arena_new(l->arena, (n + 1) * sizeof *out->number, &l->fatal);
    if (!out->text || !out->number)
        return false;
    bool all = true;
    for (size_t i = 0; i < n; i++) {
        struct element x = {.where = where, .p = p, .t = items[i]};
        bool good = false;
        if (items[i]->kind == TREE_SCALAR && !make_element(l, &x, &good))
            return false;
        all = all && good;
        out->text[i] = x.text;
        out->number[i] = x.number;
    }
    return all ? check_repeats(l, where, p, items, out, ok) : true;
}

/* "a, b" as a list of texts. */
static bool split_default(struct loading *l, const char *text, const struct tree *model, struct tree *list)
{
    size_t most = 1;
    for (const char *c = text; *c; c++)
        most += *c == ',';
    list->kind = TREE_LIST;
    list->items = loading_new(l, most * sizeof *list->items);
    if (!list->items)
        return false;
    for (const char *p = text; *p;) {
        size_t n, kept;
        p += strspn(p, " ");
        n = kept = strcspn(p, ",");
        while (kept > 0 && p[kept - 1] == ' ')
            kept--;
        struct tree *item = loading_new(l, sizeof *item);
        if (!item)
            return false;
        *item = *model;
        item->text = arena_strndup(&l->scratch, p, kept, &l->fatal);
        if (!item->text)
            return false;
        list->items[list->n++] = item;
        p += n + (p[n] == ',');
    }
    return true;
}

bool value_default(struct loading *l, const char *where, const struct param *p, struct value *out, bool *ok)
{
    struct tree one = {.kind = TREE_SCALAR, .text = p->fallback, .origin = l->path}, list = {0};
    if (!p->many)
        return value_make(l, where, p, &one, out, ok);
    return split_default(l, p->fallback, &one, &list) && value_make(l, where, p, &list, out, ok);
}
