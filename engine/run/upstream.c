/* What a node depends on, all the way up: for provenance, and to see that no source changed under a long run. */
#include <stdlib.h>
#include <string.h>

#include "engine/run/state.h"

/* *out = the indices of `n` and of all that it reads, ascending (mem_free); inputs have lower indices than readers. */
static bool collect(const struct node *n, int **out, size_t *count, struct err *e)
{
    const struct run *r = n->run;
    bool *above;
    int *list;
    if (!mem_new(&above, (size_t)n->index + 1, e))
        return false;
    if (!mem_raw(&list, (size_t)n->index + 1, e)) {
        mem_free(above);
        return false;
    }
    above[n->index] = true;
    for (int i = n->index; i >= 0; i--) {
        const struct graph_node *def = r->nodes[i].def;
        for (size_t p = 0; above[i] && def->class->ports && def->class->ports[p].name; p++)
            for (size_t k = 0; k < def->n_inputs[p]; k++)
                above[def->inputs[p][k].node] = true;
    }
    *count = 0;
    for (int i = 0; i <= n->index; i++)
        if (above[i])
            list[(*count)++] = i;
    mem_free(above);
    *out = list;
    return true;
}

bool node_upstream_stands(const struct node *n, struct err *e)
{
    int *list;
    size_t count;
    if (!collect(n, &list, &count, e))
        return false;
    bool ok = true;
    for (size_t i = 0; ok && i < count; i++) {
        const struct node *x = &n->run->nodes[list[i]];
        ok = node_sources_stand(x, e);
        if (!ok && x != n)
            err_context(e, "node '%s'", x->def->name);
    }
    mem_free(list);
    return ok;
}

/* The node of that key among those that `n` reads, all the way up; NULL: there is none. Nodes of one key have the same
 * parameters and sources; the first of the graph counts. */
static bool find(const struct node *n, const struct key *key, const struct node **out, struct err *e)
{
    int *list;
    size_t count;
    if (!collect(n, &list, &count, e))
        return false;
    *out = NULL;
    for (size_t i = 0; i < count && !*out; i++) {
        const struct node *x = &n->run->nodes[list[i]];
        if (x != n && x->has_key && key_equal(&x->key, key))
            *out = x;
    }
    mem_free(list);
    return true;
}

bool node_upstream_type(const struct node *n, const struct key *key, const char **out, struct err *e)
{
    const struct node *x;
    if (!find(n, key, &x, e))
        return false;
    *out = x ? x->def->class->name : NULL;
    return true;
}

bool node_upstream_path(const struct node *n, const struct key *key, const char *param, const char **out,
                        struct err *e)
{
    const struct node *x;
    char text[KEY_TEXT];
    if (!find(n, key, &x, e))
        return false;
    if (!x)
        return err_set(e, ERR_BUG, "node '%s' does not depend on %s", n->def->name, key_text(key, text));
    return node_path(x, param, out, e);
}

bool node_part_commit(struct node *n, struct writer *w, struct err *e)
{
    if (node_upstream_stands(n, e))
        return writer_commit(w, e);
    writer_abort(w);
    return false;
}

/* By type, then key: an order that does not depend on how a graph lists its nodes. */
static int by_key(const void *a, const void *b)
{
    const struct node *x = *(const struct node *const *)a, *y = *(const struct node *const *)b;
    int c = strcmp(x->def->class->name, y->def->class->name);
    return c ? c : memcmp(x->key.bytes, y->key.bytes, KEY_BYTES);
}

/* "port = key" or "port = key.output", a line each: the nodes' own keys, so that they can be looked up in the list. */
static void add_inputs(const struct node *n, struct str *out)
{
    char text[KEY_TEXT];
    for (size_t p = 0; n->def->class->ports && n->def->class->ports[p].name; p++)
        for (size_t i = 0; i < n->def->n_inputs[p]; i++) {
            const struct input *in = &n->inputs[p][i];
            str_printf(out, "%s = %s%s%s\n", n->def->class->ports[p].name,
                       key_text(&n->run->nodes[n->def->inputs[p][i].node].key, text), in->output[0] ? "." : "",
                       in->output);
        }
}

static bool tell(const struct node *n, node_ancestor each, void *context, struct err *e)
{
    struct str parameters = {0}, sources = {0}, inputs = {0};
    add_inputs(n, &inputs);
    bool ok = node_record_parameters(n, &parameters, e) && node_record_sources(n, &sources, e) && str_ok(&inputs, e);
    if (ok) {
        const struct ancestor a = {.type = n->def->class->name, .version = n->def->class->version, .key = &n->key,
                                   .numerics = node_numerics(n), .parameters = parameters.text ? parameters.text : "",
                                   .inputs = inputs.text ? inputs.text : "", .sources = sources.text ? sources.text : ""};
        ok = each(context, &a, e);
    }
    str_free(&parameters);
    str_free(&sources);
    str_free(&inputs);
    return ok;
}

bool node_each_ancestor(const struct node *n, node_ancestor each, void *context, struct err *e)
{
    int *list;
    size_t count;
    const struct node **sorted = NULL;
    if (!collect(n, &list, &count, e))
        return false;
    bool ok = mem_new(&sorted, count, e);
    for (size_t i = 0; ok && i < count; i++)
        sorted[i] = &n->run->nodes[list[i]];
    if (ok)
        qsort(sorted, count, sizeof *sorted, by_key);
    for (size_t i = 0; ok && i < count; i++)
        if (!key_equal(&sorted[i]->key, &n->key) && (i == 0 || !key_equal(&sorted[i]->key, &sorted[i - 1]->key)))
            ok = tell(sorted[i], each, context, e);
    mem_free(sorted);
    mem_free(list);
    return ok;
}
