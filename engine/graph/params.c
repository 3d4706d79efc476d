/* $(name): what a parameter holds is found once and kept in its tree (`resolved`). A chain of parameters is followed by
 * recursion, at most LOADING_PARAMS deep; bytes are bounded, since a parameter may say another one twice. */
#include "engine/graph/params.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/base/str.h"

/* The parameters that are being resolved, innermost first. */
struct chain {
    const char *name;
    const struct chain *up;
};

static bool fill(struct loading *l, struct tree *params, struct tree *t, const struct chain *up, struct tree **out);

static bool bad(struct loading *l, const struct tree *t, struct tree **out)
{
    struct tree *none = loading_new(l, sizeof *none);
    if (none) {
        *none = *t;
        none->kind = TREE_BAD;
        *out = none;
    }
    return none != NULL;
}

static bool unknown(struct loading *l, const struct tree *params, const struct tree *t, const char *name)
{
    char shown[64];
    size_t n = params && params->kind == TREE_MAP ? params->n : 0;
    const char **names = loading_new(l, (n + 1) * sizeof *names);
    if (!names)
        return false;
    for (size_t i = 0; i < n; i++)
        names[i] = params->pairs[i].key->text;
    return loading_problem(l, &t->mark, loading_nearest(l, name, names, n), "there is no graph parameter %s%s",
                           loading_shown(name, shown), n ? "" : ": the graph has no params");
}

static bool circle(struct loading *l, const struct tree *t, const char *name, const struct chain *chain)
{
    char text[768];
    const char *names[8];
    size_t n = 0, all = 0, at = 0;
    for (const struct chain *c = chain; c; c = c->up) {
        all++;
        if (n < sizeof names / sizeof *names)
            names[n++] = c->name;
        if (strcmp(c->name, name) == 0)
            break;
    }
    if (all > n)
        at = (size_t)snprintf(text, sizeof text, "%s -> ... -> ", name);
    for (size_t i = n; i > 0 && at < sizeof text; i--)
        at += (size_t)snprintf(text + at, sizeof text - at, "%s -> ", names[i - 1]);
    return loading_problem(l, &t->mark, NULL, "graph parameters go in a circle: %s%s", text, name);
}

/* What the graph parameter `name`, said in `t`, holds. */
static bool lookup(struct loading *l, struct tree *params, const struct tree *t, const char *name,
                   const struct chain *up, struct tree **out)
{
    const struct tree_pair *pair = yaml_pair(params, name);
    if (!pair)
        return unknown(l, params, t, name) && bad(l, t, out);
    struct tree *value = pair->value;
    if (!value->resolved) {
        struct chain chain = {name, up};
        if (value->is_resolving)
            return circle(l, t, name, up) && bad(l, t, out);
        value->is_resolving = true;
        if (!fill(l, params, value, &chain, &value->resolved))
            return false;
        value->is_resolving = false;
    }
    *out = value->resolved;
    return true;
}

/* The name in "$(name)" at `p`; *end is behind the bracket. NULL with *end NULL when the bracket is not closed. */
static const char *name_at(struct loading *l, const char *p, const char **end)
{
    const char *close = strchr(p, ')');
    *end = close ? close + 1 : NULL;
    return close ? arena_strndup(&l->scratch, p + 2, (size_t)(close - p - 2), &l->fatal) : NULL;
}

/* Count what substitution made, so that no graph can make the program run out of memory. */
static bool within_limits(struct loading *l, const struct tree *t, size_t length, bool *ok)
{
    *ok = length <= LOADING_TEXT && l->substituted + length <= LOADING_ALL_TEXT;
    if (!*ok)
        return loading_problem(l, &t->mark, NULL, "a text of more than %zu bytes after $(...)", LOADING_TEXT);
    l->substituted += length;
    return true;
}

/* A text with pieces: "$(folder)/x", "a $$( b". Copies into `s`. *is_good is false when a problem was noted. */
static bool join_pieces(struct loading *l, struct tree *params, struct tree *t, const struct chain *up, struct str *s,
                        const char **origin, bool *is_good)
{
    const char *p = t->text;
    *is_good = false;
    while (*p) {
        const char *next = strstr(p, "$("), *end, *name;
        struct tree *value;
        bool escaped = next > p && next[-1] == '$';
        if (!next || escaped) {
            size_t n = next ? (size_t)(next - p) - 1 : strlen(p);
            str_add_bytes(s, p, n);
            if (next)
                str_add(s, "$(");
            p = next ? next + 2 : p + n;
            continue;
        }
        str_add_bytes(s, p, (size_t)(next - p));
        name = name_at(l, next, &end);
        if (!name)
            return !end && loading_problem(l, &t->mark, NULL, "'$(' without ')': write $$( for a plain $(");
        if (!lookup(l, params, t, name, up, &value))
            return false;
        if (value->kind == TREE_BAD)
            return true;
        if (value->kind != TREE_SCALAR)
            return loading_problem(l, &t->mark, NULL, "$(%s) is a list: it can be a whole value, not a part of one",
                                   name);
        if (s->length == 0)
            *origin = value->origin;
        str_add(s, value->text);
        p = end;
        if (s->length > LOADING_TEXT)
            break;
    }
    *is_good = true;
    return true;
}

static bool fill_text(struct loading *l, struct tree *params, struct tree *t, const struct chain *up, struct tree **out)
{
    const char *text = t->text, *end, *origin = t->origin;
    struct tree *made = NULL;
    struct str s = {0};
    bool ok, is_good;
    if (!strstr(text, "$(")) {
        *out = t;
        return true;
    }
    if (text[0] == '$' && text[1] == '(') {
        const char *name = name_at(l, text, &end);
        if (end && !*end)
            return name && lookup(l, params, t, name, up, out);
    }
    ok = join_pieces(l, params, t, up, &s, &origin, &is_good);
    if (ok && is_good)
        ok = str_ok(&s, &l->fatal) && within_limits(l, t, s.length, &is_good);
    if (ok && is_good) {
        made = loading_new(l, sizeof *made);
        if (made) {
            *made = (struct tree){.kind = TREE_SCALAR, .mark = t->mark, .origin = origin};
            made->text = arena_strndup(&l->scratch, s.text ? s.text : "", s.length, &l->fatal);
        }
        ok = made && made->text;
        *out = made;
    } else if (ok) {
        ok = bad(l, t, out);
    }
    str_free(&s);
    return ok;
}

static bool fill_list(struct loading *l, struct tree *params, struct tree *t, const struct chain *up, struct tree **out)
{
    struct tree *list = loading_new(l, sizeof *list);
    if (!list)
        return false;
    *list = *t;
    list->items = loading_new(l, (t->n + 1) * sizeof *list->items);
    if (!list->items)
        return false;
    for (size_t i = 0; i < t->n; i++) {
        struct tree *item = t->items[i];
        if (!fill(l, params, item, up, &list->items[i]))
            return false;
        if (list->items[i]->kind != TREE_LIST)
            continue;
        if (!loading_problem(l, &item->mark, NULL,
                             "%s is a list and cannot stand inside a list: make it the whole value", item->text) ||
            !bad(l, item, &list->items[i]))
            return false;
    }
    *out = list;
    return true;
}

static bool fill(struct loading *l, struct tree *params, struct tree *t, const struct chain *up, struct tree **out)
{
    if (t->kind == TREE_SCALAR)
        return fill_text(l, params, t, up, out);
    if (t->kind == TREE_LIST)
        return fill_list(l, params, t, up, out);
    *out = t;
    return true;
}

bool params_fill(struct loading *l, struct tree *params, struct tree *t, struct tree **out)
{
    return fill(l, params, t, NULL, out);
}

bool params_check(struct loading *l, struct tree *params, bool *ok)
{
    *ok = true;
    if (!params || params->kind != TREE_MAP)
        return true;
    if (params->n > LOADING_PARAMS) {
        *ok = false;
        return loading_problem(l, &params->pairs[LOADING_PARAMS].key->mark, NULL, "more than %d graph parameters",
                               LOADING_PARAMS);
    }
    for (size_t i = 0; i < params->n; i++) {
        struct tree *unused;
        const struct tree_pair *pair = &params->pairs[i];
        if (!lookup(l, params, pair->value, pair->key->text, NULL, &unused))
            return false;
    }
    return true;
}

/* ----------------------------------------------------------------------------------------------------- what is used */

/* The names of all graph parameters, sorted, each once. */
struct names {
    const char **list;
    bool *is_used;
    size_t n;
    bool is_misspelt; /* some text says a name that is none of them: it may be meant for any */
};

/* A name that ends where its text may go on: "window)...". */
struct slice {
    const char *text;
    size_t length;
};

static int by_text(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

static int by_slice(const void *a, const void *b)
{
    const struct slice *s = a;
    const char *name = *(const char *const *)b;
    int order = strncmp(s->text, name, s->length);
    return order ? order : name[s->length] ? -1 : 0;
}

static void add_names(struct names *names, const struct tree *params)
{
    for (size_t i = 0; params && params->kind == TREE_MAP && i < params->n; i++)
        names->list[names->n++] = params->pairs[i].key->text;
}

/* Mark what the text says. */
static void note_text(struct names *names, const char *text)
{
    for (const char *p = text; (p = strstr(p, "$(")); p += 2) {
        if (p > text && p[-1] == '$')
            continue;
        struct slice s = {.text = p + 2};
        while (s.length <= LOADING_NAME && s.text[s.length] && s.text[s.length] != ')')
            s.length++;
        const char **found = bsearch(&s, names->list, names->n, sizeof *names->list, by_slice);
        names->is_misspelt = names->is_misspelt || !found;
        if (found)
            names->is_used[found - names->list] = true;
    }
}

/* All texts of a tree; those of what was refused, too, since it was meant to say them. */
static void note_tree(struct names *names, const struct tree *t)
{
    if (t->text)
        note_text(names, t->text);
    for (size_t i = 0; t->items && i < t->n; i++)
        note_tree(names, t->items[i]);
    for (size_t i = 0; t->pairs && i < t->n; i++)
        note_tree(names, t->pairs[i].value);
}

static bool report_unused(struct loading *l, const struct names *names, const struct tree *params)
{
    const char **used = loading_new(l, (names->n + 1) * sizeof *used);
    size_t n = 0;
    if (!used)
        return false;
    for (size_t i = 0; i < names->n; i++)
        if (names->is_used[i])
            used[n++] = names->list[i];
    for (size_t i = 0; params && params->kind == TREE_MAP && i < params->n; i++) {
        const struct tree *key = params->pairs[i].key, *value = params->pairs[i].value;
        const char **at = bsearch(&key->text, names->list, names->n, sizeof *names->list, by_text);
        if (names->is_used[at - names->list] || value->kind == TREE_BAD)
            continue;
        if (!loading_problem(l, &key->mark, loading_nearest(l, key->text, used, n),
                             "graph parameter '%s' is used nowhere: no value says $(%s)", key->text, key->text))
            return false;
    }
    return true;
}

bool params_check_used(struct loading *l, struct tree *graph)
{
    struct tree *params = yaml_get(graph, "params"), *variants = yaml_get(graph, "variants");
    size_t n_variants = variants && variants->kind == TREE_MAP ? variants->n : 0;
    size_t all = params && params->kind == TREE_MAP ? params->n : 0, kept = 0;
    for (size_t i = 0; i < n_variants; i++) {
        const struct tree *more = yaml_get(variants->pairs[i].value, "params");
        all += more && more->kind == TREE_MAP ? more->n : 0;
    }
    struct names names = {.list = loading_new(l, (all + 1) * sizeof *names.list), .is_used = loading_new(l, all + 1)};
    if (!names.list || !names.is_used)
        return false;
    add_names(&names, params);
    for (size_t i = 0; i < n_variants; i++)
        add_names(&names, yaml_get(variants->pairs[i].value, "params"));
    qsort(names.list, names.n, sizeof *names.list, by_text);
    for (size_t i = 0; i < names.n; i++)
        if (kept == 0 || strcmp(names.list[kept - 1], names.list[i]) != 0)
            names.list[kept++] = names.list[i];
    names.n = kept;
    for (size_t i = 0; i < l->n_sources; i++)
        if (l->trees[i])
            note_tree(&names, l->trees[i]);
    note_tree(&names, graph); /* what --set says */
    if (!names.is_misspelt && !report_unused(l, &names, params))
        return false;
    for (size_t i = 0; !names.is_misspelt && i < n_variants; i++)
        if (!report_unused(l, &names, yaml_get(variants->pairs[i].value, "params")))
            return false;
    return true;
}
