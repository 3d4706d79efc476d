/* $(name): what a parameter holds is found once and kept in its tree (`resolved`). A chain of parameters is followed by
 * recursion, at most LOADING_PARAMS deep; bytes are bounded, since a parameter may say another one twice. */
#include "engine/graph/params.h"

#include <stdio.h>
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
