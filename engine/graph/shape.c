/* The grammar of the graph language, as a walk over one file's tree. Nothing here knows node types. */
#include "engine/graph/shape.h"

#include <stdio.h>
#include <string.h>

#define COUNT(array) (sizeof(array) / sizeof *(array))

static const char *const file_keys[] = {"scout", "name", "extends", "params", "nodes", "variants"};
static const char *const part_keys[] = {"name", "params", "nodes"};
static const char *const node_keys[] = {"type", "in", "with", "on", "repeat"};
static const char *const on_keys[] = {"device", "threads", "memory"};

/* `t` must be a map, or null. *ok says whether it is a map. */
static bool want_map(struct loading *l, struct tree *t, const char *what, bool *ok)
{
    *ok = t->kind == TREE_MAP;
    if (*ok || t->kind == TREE_NULL || t->kind == TREE_BAD)
        return true;
    const char *kind = yaml_kind(t);
    t->kind = TREE_BAD;
    return loading_problem(l, &t->mark, NULL, "%s must be a map, but is %s", what, kind);
}

static bool want_text(struct loading *l, struct tree *t, const char *what)
{
    if (t->kind == TREE_SCALAR || t->kind == TREE_NULL || t->kind == TREE_BAD)
        return true;
    const char *kind = yaml_kind(t);
    t->kind = TREE_BAD;
    return loading_problem(l, &t->mark, NULL, "%s must be a single value, but is %s", what, kind);
}

/* A text or a list of texts. */
static bool want_values(struct loading *l, struct tree *t, const char *what)
{
    if (t->kind == TREE_MAP) {
        t->kind = TREE_BAD;
        return loading_problem(l, &t->mark, NULL, "%s must be a value or a list of values, but is a map", what);
    }
    if (t->kind != TREE_LIST)
        return true;
    for (size_t i = 0; i < t->n; i++) {
        struct tree *item = t->items[i];
        if (item->kind == TREE_SCALAR || item->kind == TREE_BAD)
            continue;
        const char *kind = yaml_kind(item);
        item->kind = TREE_BAD;
        if (!loading_problem(l, &item->mark, NULL, "%s: an element of the list must be a single value, but is %s", what,
                             kind))
            return false;
    }
    return true;
}

static bool known_keys(struct loading *l, struct tree *map, const char *const *keys, size_t n, const char *what)
{
    for (size_t i = 0; i < map->n; i++) {
        const struct tree *key = map->pairs[i].key;
        bool known = false;
        for (size_t k = 0; k < n; k++)
            known = known || strcmp(key->text, keys[k]) == 0;
        if (known)
            continue;
        char shown[64], list[128];
        map->pairs[i].value->kind = TREE_BAD;
        map->is_damaged = true;
        if (!loading_problem(l, &key->mark, loading_nearest(l, key->text, keys, n), "%s has no key %s: it may have %s",
                             what, loading_shown(key->text, shown), loading_listed("", keys, n, list, sizeof list)))
            return false;
    }
    return true;
}

/* Names of nodes, graph parameters and variants. A wrong one makes its value BAD. */
static bool good_name(struct loading *l, struct tree_pair *pair, const char *what, bool *ok)
{
    char shown[64];
    *ok = loading_is_name(pair->key->text);
    if (*ok)
        return true;
    pair->value->kind = TREE_BAD;
    return loading_problem(
        l, &pair->key->mark, NULL,
        "%s is not a name for a %s: a name is a letter or _, then letters, digits, _ or -, at most %d in all",
        loading_shown(pair->key->text, shown), what, LOADING_NAME);
}

static bool check_params(struct loading *l, struct tree *params)
{
    bool ok;
    if (!want_map(l, params, "params", &ok))
        return false;
    for (size_t i = 0; ok && i < params->n; i++) {
        struct tree_pair *pair = &params->pairs[i];
        char what[96];
        bool named;
        if (!good_name(l, pair, "graph parameter", &named))
            return false;
        snprintf(what, sizeof what, "graph parameter '%.64s'", pair->key->text);
        if (!want_values(l, pair->value, what))
            return false;
    }
    return true;
}

/* `in` and `with`: a map of names to values. */
static bool check_values(struct loading *l, struct tree *map, const char *node, const char *key)
{
    char what[224];
    bool ok;
    snprintf(what, sizeof what, "node '%s', %s", node, key);
    if (!want_map(l, map, what, &ok))
        return false;
    for (size_t i = 0; ok && i < map->n; i++) {
        snprintf(what, sizeof what, "node '%s', %s '%.64s'", node, strcmp(key, "in") == 0 ? "port" : "parameter",
                 map->pairs[i].key->text);
        if (!want_values(l, map->pairs[i].value, what))
            return false;
    }
    return true;
}

static bool check_on(struct loading *l, struct tree *on, const char *node)
{
    char what[160];
    bool ok;
    snprintf(what, sizeof what, "node '%s', on", node);
    if (!want_map(l, on, what, &ok) || (ok && !known_keys(l, on, on_keys, COUNT(on_keys), what)))
        return false;
    for (size_t i = 0; ok && i < on->n; i++) {
        snprintf(what, sizeof what, "node '%s', on, %.16s", node, on->pairs[i].key->text);
        if (!want_text(l, on->pairs[i].value, what))
            return false;
    }
    return true;
}

static bool check_node(struct loading *l, struct tree_pair *pair)
{
    struct tree *node = pair->value, *part;
    const char *name = pair->key->text;
    char what[160];
    bool ok;
    if (!good_name(l, pair, "node", &ok))
        return false;
    if (ok && loading_is_round_word(name)) {
        node->kind = TREE_BAD;
        return loading_problem(l, &pair->key->mark, NULL,
                               "a node may not be called '%s': the word names a round of a repeated node", name);
    }
    snprintf(what, sizeof what, "node '%.64s'", name);
    if (!ok || !want_map(l, node, what, &ok))
        return !ok;
    if (!ok)
        return true;
    if (!known_keys(l, node, node_keys, COUNT(node_keys), what))
        return false;
    snprintf(what, sizeof what, "node '%s', type", name);
    if ((part = yaml_get(node, "type")) && !want_text(l, part, what))
        return false;
    snprintf(what, sizeof what, "node '%s', repeat", name);
    if ((part = yaml_get(node, "repeat")) && !want_text(l, part, what))
        return false;
    if ((part = yaml_get(node, "in")) && !check_values(l, part, name, "in"))
        return false;
    if ((part = yaml_get(node, "with")) && !check_values(l, part, name, "with"))
        return false;
    return !(part = yaml_get(node, "on")) || check_on(l, part, name);
}

static bool check_nodes(struct loading *l, struct tree *nodes)
{
    bool ok;
    if (!want_map(l, nodes, "nodes", &ok))
        return false;
    for (size_t i = 0; ok && i < nodes->n; i++)
        if (!check_node(l, &nodes->pairs[i]))
            return false;
    return true;
}

/* What a file and a variant have in common. */
static bool check_common(struct loading *l, struct tree *t)
{
    struct tree *part;
    if ((part = yaml_get(t, "name")) && !want_text(l, part, "name"))
        return false;
    if ((part = yaml_get(t, "params")) && !check_params(l, part))
        return false;
    return !(part = yaml_get(t, "nodes")) || check_nodes(l, part);
}

bool shape_part(struct loading *l, struct tree *part, const char *where)
{
    bool ok;
    if (!want_map(l, part, where, &ok))
        return false;
    return !ok || (known_keys(l, part, part_keys, COUNT(part_keys), where) && check_common(l, part));
}

static bool check_variants(struct loading *l, struct tree *variants)
{
    bool ok;
    if (!want_map(l, variants, "variants", &ok))
        return false;
    for (size_t i = 0; ok && i < variants->n; i++) {
        struct tree_pair *pair = &variants->pairs[i];
        char what[96];
        bool named;
        if (!good_name(l, pair, "variant", &named))
            return false;
        snprintf(what, sizeof what, "variant '%.64s'", pair->key->text);
        if (!shape_part(l, pair->value, what))
            return false;
    }
    return true;
}

static bool check_language(struct loading *l, struct tree *file)
{
    struct tree *version = yaml_get(file, "scout");
    char shown[64];
    if (!version)
        return file->is_damaged ||
               loading_problem(l, &file->mark, NULL,
                               "the language version is missing: put 'scout: 1' in the file's first line");
    if (version->kind == TREE_BAD || (version->kind == TREE_SCALAR && strcmp(version->text, "1") == 0))
        return true;
    if (version->kind == TREE_SCALAR)
        return loading_problem(l, &version->mark, NULL, "language version %s is unknown: this program reads 'scout: 1'",
                               loading_shown(version->text, shown));
    return loading_problem(l, &version->mark, NULL, "the language version must be 1, but is %s", yaml_kind(version));
}

bool shape_file(struct loading *l, struct tree *file)
{
    struct tree *part;
    if (file->kind != TREE_MAP) {
        bool is_empty = file->kind == TREE_NULL;
        const char *kind = yaml_kind(file);
        file->kind = TREE_BAD;
        return is_empty ? loading_problem(l, &file->mark, NULL, "the graph is empty: it needs 'scout: 1' and 'nodes'")
                        : loading_problem(l, &file->mark, NULL,
                                          "a graph is a map with the keys scout and nodes, but this is %s", kind);
    }
    if (!known_keys(l, file, file_keys, COUNT(file_keys), "the graph") || !check_language(l, file))
        return false;
    if ((part = yaml_get(file, "extends")) && !want_text(l, part, "extends"))
        return false;
    return check_common(l, file) && (!(part = yaml_get(file, "variants")) || check_variants(l, part));
}
