/* Reading a graph with all that it extends, and laying the layers over one another. Trees are never changed by merging:
 * a merged map is new, its keys and values are borrowed, so that every mark still says where its text stands. */
#include "engine/graph/merge.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/base/str.h"
#include "engine/graph/draft.h"
#include "engine/graph/shape.h"

/* The files that are being read, innermost first. */
struct chain {
    const char *path, *real; /* as it is said; without links and "..": one name for one file */
    const struct chain *up;
};

/* --------------------------------------------------------------------------------------------------------- merging */

/* A null deletes what it overrides, except inside variants: those are merged with the files, but applied later. */
enum mode {
    MODE_FILE, /* a whole file; its `variants` are merged with MODE_KEEP */
    MODE_PLAIN,
    MODE_KEEP, /* nulls stay, for a later merge */
};

static struct tree *merge(struct loading *l, struct tree *base, struct tree *over, enum mode mode);

static struct tree *new_map(struct loading *l, size_t capacity, const struct mark *m)
{
    struct tree *map = loading_new(l, sizeof *map);
    if (!map)
        return NULL;
    map->kind = TREE_MAP;
    map->mark = *m;
    map->pairs = loading_new(l, (capacity + 1) * sizeof *map->pairs);
    return map->pairs ? map : NULL;
}

static enum mode mode_of(enum mode mode, const struct tree *key)
{
    if (mode != MODE_FILE)
        return mode;
    return strcmp(key->text, "variants") == 0 ? MODE_KEEP : MODE_PLAIN;
}

/* `base` (NULL: nothing) with `over` on top; both are maps. */
static struct tree *merge_maps(struct loading *l, struct tree *base, struct tree *over, enum mode mode)
{
    size_t n = base ? base->n : 0;
    struct tree *map = new_map(l, n + over->n, base ? &base->mark : &over->mark);
    if (!map)
        return NULL;
    map->is_damaged = over->is_damaged || (base && base->is_damaged);
    for (size_t i = 0; i < n; i++) {
        struct tree *key = base->pairs[i].key, *value = base->pairs[i].value, *above = yaml_get(over, key->text);
        if (above && above->kind == TREE_NULL && mode != MODE_KEEP)
            continue;
        if (above && !(value = merge(l, value, above, mode_of(mode, key))))
            return NULL;
        map->pairs[map->n++] = (struct tree_pair){key, value};
    }
    for (size_t i = 0; i < over->n; i++) {
        struct tree *key = over->pairs[i].key, *value = over->pairs[i].value;
        if (yaml_pair(base, key->text) || (value->kind == TREE_NULL && mode != MODE_KEEP))
            continue;
        if (!(value = merge(l, NULL, value, mode_of(mode, key))))
            return NULL;
        map->pairs[map->n++] = (struct tree_pair){key, value};
    }
    return yaml_index(l, map) ? map : NULL;
}

/* NULL only when memory is out. */
static struct tree *merge(struct loading *l, struct tree *base, struct tree *over, enum mode mode)
{
    if (over->kind != TREE_MAP)
        return over;
    if (base && base->kind == TREE_BAD)
        return base;
    return merge_maps(l, base && base->kind == TREE_MAP ? base : NULL, over, mode);
}

/* ----------------------------------------------------------------------------------------------------------- files */

static bool read_file(struct loading *l, const char *path, const struct mark *from, const struct chain *up,
                      struct tree **out, const char **text);

/* The file's one name; `path` as it is when there is no such file, which is said when it is read. */
static const char *real_path(struct loading *l, const char *path)
{
    char real[PATH_MAX];
    return arena_strdup(&l->scratch, realpath(path, real) ? real : path, &l->fatal);
}

static bool circle(struct loading *l, const struct mark *m, const char *path, const char *real,
                   const struct chain *chain)
{
    char text[512];
    const char *names[LOADING_FILES];
    size_t n = 0, at = 0;
    for (const struct chain *c = chain; c && n < LOADING_FILES; c = c->up) {
        names[n++] = c->path;
        if (strcmp(c->real, real) == 0)
            break;
    }
    for (size_t i = n; i > 0 && at < sizeof text; i--)
        at += (size_t)snprintf(text + at, sizeof text - at, "%s -> ", names[i - 1]);
    return loading_problem(l, m, NULL, "'extends' goes in a circle: %s%s", text, path);
}

/* The merged tree of the file that `extends` names. */
static bool read_base(struct loading *l, const struct tree *extends, const struct chain *chain, struct tree **out)
{
    const char *unused, *real;
    char shown[64];
    *out = NULL;
    if (extends->kind != TREE_SCALAR)
        return true;
    if (!*extends->text)
        return loading_problem(l, &extends->mark, NULL, "'extends' names a file, but is empty");
    if (strstr(extends->text, "$("))
        return loading_problem(l, &extends->mark, NULL, "'extends' cannot use graph parameters, but is %s",
                               loading_shown(extends->text, shown));
    const char *path = loading_join(l, extends->origin, extends->text);
    if (!path || !(real = real_path(l, path)))
        return false;
    for (const struct chain *c = chain; c; c = c->up)
        if (strcmp(c->real, real) == 0)
            return circle(l, &extends->mark, path, real, chain);
    return read_file(l, path, &extends->mark, chain, out, &unused);
}

/* Read, check and merge one file with what it extends. *out is NULL when there is no going on. */
static bool read_file(struct loading *l, const char *path, const struct mark *from, const struct chain *up,
                      struct tree **out, const char **text)
{
    const char *plain = loading_join(l, NULL, path), *real = plain ? real_path(l, plain) : NULL;
    struct chain chain = {plain, real, up};
    struct tree *file, *base = NULL;
    size_t bytes;
    *out = NULL;
    if (!real)
        return false;
    if (l->n_sources == LOADING_FILES)
        return loading_problem(l, from, NULL, "more than %d files extend one another", LOADING_FILES);
    if (!yaml_read(l, up ? &l->scratch : l->arena, path, from, text, &bytes))
        return false;
    if (!*text)
        return true;
    l->sources[l->n_sources++] = path;
    if (!yaml_parse(l, path, *text, bytes, true, &file))
        return false;
    if (!file)
        return true;
    l->trees[l->n_sources - 1] = file;
    if (!shape_file(l, file))
        return false;
    if (file->kind != TREE_MAP)
        return true;
    struct tree *extends = yaml_get(file, "extends");
    bool has_base = extends && extends->kind != TREE_NULL;
    if (has_base && !read_base(l, extends, &chain, &base))
        return false;
    if (has_base && !base)
        return draft_check_part(l, file);
    *out = merge(l, base, file, MODE_FILE);
    return *out != NULL;
}

/* ---------------------------------------------------------------------------------------------- variants and --set */

/* The keys of a map, if it is one. */
static bool list_keys(struct loading *l, const struct tree *map, const char ***keys, size_t *n)
{
    *n = map && map->kind == TREE_MAP ? map->n : 0;
    *keys = loading_new(l, (*n + 1) * sizeof **keys);
    for (size_t i = 0; *keys && i < *n; i++)
        (*keys)[i] = map->pairs[i].key->text;
    return *keys != NULL;
}

static bool apply_variant(struct loading *l, struct tree **graph)
{
    const char *name = l->options->variant, **keys;
    char list[256];
    size_t n;
    struct tree *variants = yaml_get(*graph, "variants"), *variant = yaml_get(variants, name);
    struct mark m = {.file = arena_printf(l->arena, &l->fatal, "--variant %s", name)};
    if (!m.file || !list_keys(l, variants, &keys, &n))
        return false;
    if (!variant || variant->kind == TREE_NULL)
        return loading_problem(l, &m, loading_nearest(l, name, keys, n), "the graph has no variant '%s': it has %s",
                               name, n ? loading_listed("", keys, n, list, sizeof list) : "none");
    if (variant->kind != TREE_MAP)
        return true;
    *graph = merge(l, *graph, variant, MODE_PLAIN);
    return *graph != NULL;
}

/* The tree {a: {b: {c: value}}} for the path a.b.c, all marked `m`. */
static struct tree *nest(struct loading *l, const char *const *parts, size_t n, struct tree *value,
                         const struct mark *m)
{
    while (n > 0) {
        struct tree *map = new_map(l, 1, m), *key = loading_new(l, sizeof *key);
        if (!map || !key)
            return NULL;
        *key = (struct tree){.kind = TREE_SCALAR, .mark = *m, .text = parts[--n]};
        map->pairs[0] = (struct tree_pair){key, value};
        map->n = 1;
        if (!yaml_index(l, map))
            return NULL;
        value = map;
    }
    return value;
}

/* What a --set may name: a graph parameter that exists, or a path into a node that exists. *ok tells. */
static bool check_path(struct loading *l, const struct tree *graph, const char *const *parts, size_t n,
                       const struct mark *m, bool *ok)
{
    bool is_param = strcmp(parts[0], "params") == 0 && n == 2, is_node = strcmp(parts[0], "nodes") == 0 && n >= 2;
    const struct tree *map = yaml_get(graph, parts[0]);
    const char **keys;
    char shown[64];
    size_t n_keys;
    *ok = false;
    if (!is_param && !is_node)
        return loading_problem(l, m, NULL,
                               "expected a graph parameter, params.NAME, or a path like nodes.NODE.with.PARAMETER");
    if (yaml_pair(map, parts[1])) {
        *ok = true;
        return true;
    }
    return list_keys(l, map, &keys, &n_keys) &&
           loading_problem(l, m, loading_nearest(l, parts[1], keys, n_keys), "the graph has no %s %s",
                           is_param ? "parameter" : "node", loading_shown(parts[1], shown));
}

#define MOST_PARTS 8

/* Split `text` at its dots, in place; a bare name means params.NAME. */
static size_t split_path(char *text, const char *parts[MOST_PARTS])
{
    size_t n = 0;
    if (!strchr(text, '.'))
        parts[n++] = "params";
    for (char *dot = text; dot && n < MOST_PARTS; text = dot + 1) {
        dot = strchr(text, '.');
        if (dot)
            *dot = '\0';
        parts[n++] = text;
        if (!dot)
            break;
    }
    return n;
}

/* What --set gives: a text as it stands, so that "a # b" loses nothing; YAML where only YAML can say it: lists, quoted
 * texts, null. *out is NULL when a problem was noted. */
static bool set_value(struct loading *l, const struct mark *m, const char *text, struct tree **out)
{
    bool is_yaml = (*text && strchr("[{\"'", *text)) || strcmp(text, "null") == 0 || strcmp(text, "~") == 0;
    *out = NULL;
    if (is_yaml)
        return yaml_parse(l, m->file, text, strlen(text), false, out);
    if (!str_is_utf8(text, strlen(text)))
        return loading_problem(l, m, NULL, "the value is not valid UTF-8");
    struct tree *t = loading_new(l, sizeof *t);
    if (!t)
        return false;
    *t = (struct tree){.kind = TREE_SCALAR, .mark = *m, .text = text};
    *out = t;
    return true;
}

/* One "path=value". */
static bool apply_set(struct loading *l, const char *text, struct tree **graph)
{
    struct mark m = {.file = arena_printf(l->arena, &l->fatal, "--set %s", text)};
    const char *equals = strchr(text, '=');
    const char *parts[MOST_PARTS];
    char *path = equals ? arena_strndup(&l->scratch, text, (size_t)(equals - text), &l->fatal) : NULL;
    struct tree *value;
    bool ok;
    if (!m.file || (equals && !path))
        return false;
    if (!equals)
        return loading_problem(l, &m, NULL, "there is no '=': write --set NAME=VALUE");
    size_t n = split_path(path, parts);
    if (!check_path(l, *graph, parts, n, &m, &ok))
        return false;
    if (!ok)
        return true;
    if (!set_value(l, &m, equals + 1, &value))
        return false;
    if (!value)
        return true;
    struct tree *part = nest(l, parts, n, value, &m);
    if (!part || !shape_part(l, part, "--set"))
        return false;
    *graph = merge(l, *graph, part, MODE_PLAIN);
    return *graph != NULL;
}

bool merge_graph(struct loading *l, struct tree **out, const char **text)
{
    struct mark top = {.file = l->path};
    struct tree *graph;
    *out = NULL;
    *text = NULL;
    if (!read_file(l, l->path, &top, NULL, &graph, text))
        return false;
    if (!graph)
        return true;
    if (l->options->variant && !apply_variant(l, &graph))
        return false;
    for (size_t i = 0; i < l->options->n_set; i++)
        if (!apply_set(l, l->options->set[i], &graph))
            return false;
    *out = graph;
    return true;
}
