/* Written nodes: what stands under a node's name, apart from its connections. */
#include "engine/graph/draft.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/base/str.h"
#include "engine/graph/params.h"
#include "engine/graph/value.h"

#define MOST_THREADS 4096
#define MOST_DEVICES 64

/* --------------------------------------------------------------------------------------------------------- classes */

static bool find_class(struct loading *l, struct draft *d, struct written *w)
{
    struct tree *type = yaml_get(w->tree, "type");
    char shown[64];
    size_t n = 0;
    if (!type)
        return w->tree->is_damaged ||
               loading_problem(l, &w->mark, loading_nearest(l, w->name, d->names, (size_t)(w - d->written)),
                               "node '%s' has no type: `scout nodes` lists the types", w->name);
    if (!params_fill(l, d->params, type, &type))
        return false;
    if (type->kind == TREE_LIST)
        return loading_problem(l, &type->mark, NULL, "node '%s': type must be a single value, but is a list", w->name);
    if (type->kind != TREE_SCALAR)
        return true;
    for (; l->options->classes[n]; n++)
        if (strcmp(l->options->classes[n]->name, type->text) == 0) {
            w->class = l->options->classes[n];
            return true;
        }
    const char **names = loading_new(l, (n + 1) * sizeof *names);
    if (!names)
        return false;
    for (size_t i = 0; i < n; i++)
        names[i] = l->options->classes[i]->name;
    return loading_problem(l, &type->mark, loading_nearest(l, type->text, names, n),
                           "node '%s': there is no node type %s: `scout nodes` lists the types", w->name,
                           loading_shown(type->text, shown));
}

/* ------------------------------------------------------------------------------------------------------ parameters */

static bool unknown_param(struct loading *l, const struct written *w, const struct tree *key)
{
    const char *names[64], *near;
    char shown[64];
    size_t n = 0;
    for (const struct param *p = w->class->params; p && p->name && n < 64; p++)
        names[n++] = p->name;
    near = loading_nearest(l, key->text, names, n);
    if (class_port(w->class, key->text) >= 0)
        return loading_problem(l, &key->mark, NULL,
                               "node '%s': '%s' is a port of %s, not a parameter: write it under 'in'", w->name,
                               key->text, w->class->name);
    return loading_problem(l, &key->mark, near, "node '%s': %s has no parameter %s", w->name, w->class->name,
                           loading_shown(key->text, shown));
}

bool draft_is_misspelt(const struct tree *map, const struct tree *other, const char *key, const struct node_class *c,
                       int (*known)(const struct node_class *c, const char *key))
{
    if (yaml_pair(other, key) || (map && map->is_damaged))
        return true;
    for (size_t i = 0; map && map->kind == TREE_MAP && i < map->n; i++)
        if (known(c, map->pairs[i].key->text) < 0 && str_nearest(map->pairs[i].key->text, &key, 1))
            return true;
    return false;
}

static bool make_param(struct loading *l, struct draft *d, struct written *w, size_t at)
{
    const struct param *p = &w->class->params[at];
    struct tree *t = yaml_get(yaml_get(w->tree, "with"), p->name);
    char where[256], expected[256];
    bool ok;
    snprintf(where, sizeof where, "node '%s', parameter '%s'", w->name, p->name);
    if (!t && p->fallback)
        return value_default(l, where, p, &w->params[at], &ok);
    if (!t && (w->tree->is_damaged ||
               draft_is_misspelt(yaml_get(w->tree, "with"), yaml_get(w->tree, "in"), p->name, w->class, class_param)))
        return true;
    if (!t)
        return loading_problem(l, &w->mark, NULL, "node '%s': parameter '%s' of %s is missing: %s (%s)", w->name,
                               p->name, w->class->name, value_expected(p, expected), p->help ? p->help : "required");
    if (!params_fill(l, d->params, t, &t))
        return false;
    return (t->kind != TREE_SCALAR && t->kind != TREE_LIST) || value_make(l, where, p, t, &w->params[at], &ok);
}

/* Of the parameters that exclude each other, only one can be set. */
static bool check_one_of(struct loading *l, const struct written *w)
{
    const struct param *params = w->class->params;
    const struct tree *with = yaml_get(w->tree, "with");
    for (size_t i = 0; params && params[i].name; i++)
        for (size_t k = 0; k < i; k++) {
            const struct value *a = &w->params[k], *b = &w->params[i];
            if (!params[i].one_of || !params[k].one_of || strcmp(params[i].one_of, params[k].one_of) != 0 ||
                a->n == 0 || b->n == 0 || a->number[0] == 0 || b->number[0] == 0)
                continue;
            const struct tree *t = yaml_get(with, params[i].name);
            if (!loading_problem(l, t ? &t->mark : &w->mark, NULL, "node '%s': both '%s' (%g) and '%s' (%g) are set, "
                                 "but each of them %s: leave one, and the others at 0", w->name, params[k].name,
                                 a->number[0], params[i].name, b->number[0], params[i].one_of))
                return false;
        }
    return true;
}

static bool check_names(struct loading *l, const struct written *w)
{
    const struct tree *with = yaml_get(w->tree, "with");
    for (size_t i = 0; with && with->kind == TREE_MAP && i < with->n; i++)
        if (class_param(w->class, with->pairs[i].key->text) < 0 && !unknown_param(l, w, with->pairs[i].key))
            return false;
    return true;
}

static bool read_params(struct loading *l, struct draft *d, struct written *w)
{
    const struct tree *with = yaml_get(w->tree, "with");
    size_t n = 0;
    if (with && with->kind == TREE_BAD)
        return true;
    if (!check_names(l, w))
        return false;
    while (w->class->params && w->class->params[n].name)
        n++;
    w->params = arena_new(l->arena, (n + 1) * sizeof *w->params, &l->fatal);
    if (!w->params)
        return false;
    for (size_t i = 0; i < n; i++)
        if (!make_param(l, d, w, i))
            return false;
    return check_one_of(l, w);
}

/* ------------------------------------------------------------------------------------------------------ on, repeat */

/* The text of `map`'s key after $(...), or NULL when it is not there or a problem was noted. */
static bool text_of(struct loading *l, struct draft *d, struct tree *t, const char *where, struct tree **out)
{
    *out = NULL;
    if (!t)
        return true;
    if (!params_fill(l, d->params, t, &t))
        return false;
    if (t->kind == TREE_LIST)
        return loading_problem(l, &t->mark, NULL, "%s: expected a single value, found a list", where);
    *out = t->kind == TREE_SCALAR ? t : NULL;
    return true;
}

static bool is_device(const char *text)
{
    long long index;
    if (strncmp(text, "cuda:", 5) == 0)
        return value_integer(text + 5, &index) && text[5] != '-' && index < MOST_DEVICES;
    return strcmp(text, "auto") == 0 || strcmp(text, "cpu") == 0 || strcmp(text, "cuda") == 0;
}

static bool read_device(struct loading *l, struct draft *d, struct written *w, const struct tree *on)
{
    static const char *const devices[] = {"auto", "cpu", "cuda"};
    char where[128], shown[64];
    struct tree *t;
    snprintf(where, sizeof where, "node '%s', device", w->name);
    if (!text_of(l, d, yaml_get(on, "device"), where, &t))
        return false;
    w->device = "auto";
    if (!t)
        return true;
    if (!is_device(t->text))
        return loading_problem(l, &t->mark, loading_nearest(l, t->text, devices, 3),
                               "%s: expected auto, cpu, cuda or cuda:N, found %s", where,
                               loading_shown(t->text, shown));
    w->device = arena_strdup(l->arena, t->text, &l->fatal);
    return w->device != NULL;
}

static bool read_on(struct loading *l, struct draft *d, struct written *w)
{
    const struct tree *on = yaml_get(w->tree, "on");
    char where[128], shown[64];
    struct tree *t;
    long long threads;
    if (!read_device(l, d, w, on))
        return false;
    snprintf(where, sizeof where, "node '%s', threads", w->name);
    if (!text_of(l, d, yaml_get(on, "threads"), where, &t))
        return false;
    if (t && (!value_integer(t->text, &threads) || threads < 1 || threads > MOST_THREADS)) {
        if (!loading_problem(l, &t->mark, NULL, "%s: expected an integer from 1 to %d, found %s", where, MOST_THREADS,
                             loading_shown(t->text, shown)))
            return false;
    } else if (t) {
        w->threads = (int)threads;
    }
    snprintf(where, sizeof where, "node '%s', memory", w->name);
    if (!text_of(l, d, yaml_get(on, "memory"), where, &t))
        return false;
    if (t && (!str_parse_size(t->text, &w->memory) || w->memory == 0))
        return loading_problem(l, &t->mark, NULL, "%s: expected a size like 512MiB or 8GiB, found %s", where,
                               loading_shown(t->text, shown));
    return true;
}

static bool read_repeat(struct loading *l, struct draft *d, struct written *w)
{
    struct tree *repeat = yaml_get(w->tree, "repeat"), *t;
    char where[128], shown[64];
    long long rounds;
    snprintf(where, sizeof where, "node '%s', repeat", w->name);
    if (!text_of(l, d, repeat, where, &t))
        return false;
    w->rounds = repeat && !t ? -1 : 0;
    if (!t)
        return true;
    w->rounds = -1;
    if (!value_integer(t->text, &rounds) || rounds < 1 || rounds > LOADING_ROUNDS)
        return loading_problem(l, &t->mark, NULL, "%s: expected an integer from 1 to %d, found %s", where,
                               LOADING_ROUNDS, loading_shown(t->text, shown));
    w->rounds = (int)rounds;
    return true;
}

/* ----------------------------------------------------------------------------------------------------------- nodes */

static int by_name(const void *a, const void *b)
{
    const struct written *const *x = a, *const *y = b;
    return strcmp((*x)->name, (*y)->name);
}

const struct written *draft_find(const struct draft *d, const char *name)
{
    const struct written key = {.name = name}, *at = &key;
    const struct written **found = bsearch(&at, d->by_name, d->n_written, sizeof *d->by_name, by_name);
    return found ? *found : NULL;
}

static bool list_nodes(struct loading *l, const struct tree *nodes, struct draft *d)
{
    size_t n = nodes->n;
    d->written = loading_new(l, (n + 1) * sizeof *d->written);
    d->names = loading_new(l, (n + 1) * sizeof *d->names);
    d->by_name = loading_new(l, (n + 1) * sizeof *d->by_name);
    if (!d->written || !d->names || !d->by_name)
        return false;
    for (size_t i = 0; i < n; i++) {
        const struct tree_pair *pair = &nodes->pairs[i];
        struct written *w = &d->written[i];
        w->name = d->names[i] = arena_strdup(l->arena, pair->key->text, &l->fatal);
        if (!w->name)
            return false;
        w->mark = pair->key->mark;
        w->tree = pair->value;
        d->by_name[i] = w;
    }
    d->n_written = n;
    qsort(d->by_name, n, sizeof *d->by_name, by_name);
    return true;
}

bool draft_read(struct loading *l, struct tree *graph, struct draft *d)
{
    struct tree *nodes = yaml_get(graph, "nodes");
    struct mark top = {.file = l->path, .line = 1, .column = 1, .width = 1};
    if (nodes && nodes->kind == TREE_BAD)
        return true;
    if (!nodes || nodes->kind != TREE_MAP || nodes->n == 0)
        return graph->is_damaged || (nodes && nodes->is_damaged) ||
               loading_problem(l, nodes ? &nodes->mark : &top, NULL, "the graph has no nodes");
    if (!list_nodes(l, nodes, d))
        return false;
    for (size_t i = 0; i < d->n_written; i++) {
        struct written *w = &d->written[i];
        if (w->tree->kind == TREE_BAD) {
            w->rounds = -1;
            continue;
        }
        if (!find_class(l, d, w) || !read_repeat(l, d, w) || !read_on(l, d, w) || (w->class && !read_params(l, d, w)))
            return false;
    }
    return true;
}

bool draft_check_part(struct loading *l, struct tree *file)
{
    struct draft d = {0};
    const struct tree *nodes = yaml_get(file, "nodes");
    if (!nodes || nodes->kind != TREE_MAP)
        return true;
    if (!list_nodes(l, nodes, &d))
        return false;
    for (size_t i = 0; i < d.n_written; i++) {
        struct written *w = &d.written[i];
        const struct tree *type = yaml_get(w->tree, "type");
        if (!type || type->kind != TREE_SCALAR || strstr(type->text, "$("))
            continue; /* the base may say it */
        if (!find_class(l, &d, w) || (w->class && (!check_names(l, w) || !connect_names(l, w))))
            return false;
    }
    return true;
}

static bool unroll_one(struct loading *l, const struct written *w, int round, struct graph_node *out)
{
    *out = (struct graph_node){.name = w->name,
                               .class = w->class,
                               .params = w->params,
                               .device = w->device,
                               .threads = w->threads,
                               .memory = w->memory,
                               .mark = value_mark(&w->mark)};
    if (w->rounds > 0)
        out->name = arena_printf(l->arena, &l->fatal, "%s.%d", w->name, round);
    return out->name != NULL;
}

bool draft_unroll(struct loading *l, struct draft *d, struct graph *g, bool *ok)
{
    size_t n = 0, at = 0;
    *ok = false;
    for (size_t i = 0; i < d->n_written; i++) {
        struct written *w = &d->written[i];
        w->first = n;
        n += w->rounds > 0 ? (size_t)w->rounds : 1;
        if (n > LOADING_NODES)
            return loading_problem(l, &w->mark, NULL, "more than %d nodes by here, rounds of repeated nodes counted",
                                   LOADING_NODES);
    }
    g->nodes = arena_new(l->arena, (n + 1) * sizeof *g->nodes, &l->fatal);
    if (!g->nodes)
        return false;
    for (size_t i = 0; i < d->n_written; i++)
        for (int round = 1; round == 1 || round <= d->written[i].rounds; round++)
            if (!unroll_one(l, &d->written[i], round, &g->nodes[at++]))
                return false;
    g->n_nodes = n;
    *ok = true;
    return true;
}
