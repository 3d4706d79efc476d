/* Keys and states: what a node's result is called, whether it is in the store, and who needs it. The text that an
 * object keeps of its own making (parameters, inputs, sources) is made here as well, because it says what went into the
 * key. */
#include <stdlib.h>
#include <string.h>

#include "engine/run/state.h"

/* The largest text attribute an object gets; HDF5 keeps attributes below 64 KiB. */
#define RECORD_MOST 32768

/* --------------------------------------------------------------------------------------------------- order of names */

/* Ports and parameters go into the key in the byte order of their names, whatever the order of the class. At most
 * COUNT_MOST of either; a class with more would be a mistake in its table. */
#define COUNT_MOST 256

static size_t by_name(const char *const *names, size_t n, size_t order[COUNT_MOST])
{
    for (size_t i = 0; i < n; i++) {
        size_t k = i;
        for (; k > 0 && strcmp(names[order[k - 1]], names[i]) > 0; k--)
            order[k] = order[k - 1];
        order[k] = i;
    }
    return n;
}

static size_t sorted_params(const struct node_class *c, size_t order[COUNT_MOST])
{
    const char *names[COUNT_MOST];
    size_t n = 0;
    for (; c->params && c->params[n].name && n < COUNT_MOST; n++)
        names[n] = c->params[n].name;
    return by_name(names, n, order);
}

static size_t sorted_ports(const struct node_class *c, size_t order[COUNT_MOST])
{
    const char *names[COUNT_MOST];
    size_t n = 0;
    for (; c->ports && c->ports[n].name && n < COUNT_MOST; n++)
        names[n] = c->ports[n].name;
    return by_name(names, n, order);
}

static bool in_key(const struct param *p)
{
    return !p->outside_key && p->type != PARAM_PATH;
}

static const struct source *source_of(const struct node *n, size_t param, size_t i)
{
    for (size_t s = 0; s < n->n_sources; s++)
        if (n->sources[s].param == (int)param)
            return &n->sources[s + i];
    return NULL;
}

/* --------------------------------------------------------------------------------------------------------- records */

/* A record too long for an attribute is kept as its digest and number of lines. */
static bool shorten(struct str *s, struct err *e)
{
    if (!str_ok(s, e) || s->length <= RECORD_MOST)
        return str_ok(s, e);
    struct key digest;
    char text[KEY_TEXT];
    size_t lines = 0;
    for (size_t i = 0; i < s->length; i++)
        lines += s->text[i] == '\n';
    if (!key_of_bytes(s->text, s->length, &digest, e))
        return false;
    str_free(s);
    *s = (struct str){0};
    str_printf(s, "%zu lines with SHA-256 %s\n", lines, key_text(&digest, text));
    return str_ok(s, e);
}

bool node_record_parameters(const struct node *n, struct str *out, struct err *e)
{
    size_t order[COUNT_MOST], count = sorted_params(n->def->class, order);
    for (size_t k = 0; k < count; k++) {
        const struct param *p = &n->def->class->params[order[k]];
        const struct value *v = &n->def->params[order[k]];
        if (!in_key(p) || p->type == PARAM_SOURCE)
            continue;
        str_printf(out, "%s = ", p->name);
        for (size_t i = 0; i < v->n; i++)
            str_printf(out, "%s%s", i ? ", " : "", v->text[i]);
        str_add(out, "\n");
    }
    return shorten(out, e);
}

bool node_record_sources(const struct node *n, struct str *out, struct err *e)
{
    size_t order[COUNT_MOST], count = sorted_params(n->def->class, order);
    char text[KEY_TEXT];
    for (size_t k = 0; k < count; k++) {
        const struct param *p = &n->def->class->params[order[k]];
        if (p->type != PARAM_SOURCE || !in_key(p))
            continue;
        for (size_t i = 0; i < n->def->params[order[k]].n; i++) {
            const struct source *s = source_of(n, order[k], i);
            str_printf(out, "%s = %s\n", p->name, s->path[0] ? key_text(&s->digest, text) : "none");
        }
    }
    return shorten(out, e);
}

bool node_record_inputs(const struct node *n, struct str *out, struct err *e)
{
    size_t order[COUNT_MOST], count = sorted_ports(n->def->class, order);
    char text[KEY_TEXT];
    for (size_t k = 0; k < count; k++)
        for (size_t i = 0; i < n->def->n_inputs[order[k]]; i++)
            str_printf(out, "%s = %s\n", n->def->class->ports[order[k]].name,
                       key_text(&n->inputs[order[k]][i].key, text));
    return shorten(out, e);
}

/* ------------------------------------------------------------------------------------------------------------ keys */

static void tell_hashed(void *context, uint64_t done, uint64_t total)
{
    struct node *n = context;
    pthread_mutex_lock(&n->run->lock);
    n->hashed = (double)done;
    n->hash_total = (double)total;
    pthread_mutex_unlock(&n->run->lock);
}

/* The digest of one source. In a plan it may stay unknown; in a run it is hashed now. */
static bool hash_source(struct node *n, struct source *s, struct err *e)
{
    struct run *r = n->run;
    struct key before;
    const struct digest_progress progress = {.tell = tell_hashed, .context = n};
    if (!s->path[0]) {
        s->known = true;
        return true;
    }
    s->known = false;
    if (!r->store)
        return true;
    bool ok = node_stamp(s->path, &before, e) &&
              store_source_digest(r->store, s->path, r->options.plan_only, &s->digest, &s->known, &progress, e) &&
              node_stamp(s->path, &s->stamp, e);
    tell_hashed(n, 0, 0);
    if (!ok)
        return err_context(e, "node '%s'", n->def->name);
    if (!key_equal(&before, &s->stamp))
        return err_set(e, ERR_INPUT, "node '%s': '%s' changed while it was read: wait until it is complete",
                       n->def->name, s->path);
    return true;
}

/* True when everything that goes into the key is known; else n->reason says what is not. */
static bool know_parts(struct node *n, bool *known, struct err *e)
{
    struct run *r = n->run;
    *known = false;
    for (size_t i = 0; i < n->n_sources; i++) {
        const struct param *p = &n->def->class->params[n->sources[i].param];
        if (!in_key(p))
            continue;
        if (!hash_source(n, &n->sources[i], e))
            return false;
        if (!n->sources[i].known) {
            n->reason = arena_printf(&r->arena, e, "unknown until %s '%s' has been hashed", p->name,
                                     n->sources[i].path);
            return n->reason != NULL;
        }
    }
    for (size_t p = 0; n->def->class->ports && n->def->class->ports[p].name; p++)
        for (size_t i = 0; i < n->def->n_inputs[p]; i++)
            if (!r->nodes[n->def->inputs[p][i].node].has_key) {
                n->reason = arena_printf(&r->arena, e, "unknown until '%s' is known", n->inputs[p][i].node);
                return n->reason != NULL;
            }
    *known = true;
    return true;
}

static void hash_params(struct key_hash *h, const struct node *n)
{
    size_t order[COUNT_MOST], count = sorted_params(n->def->class, order);
    for (size_t k = 0; k < count; k++) {
        const struct param *p = &n->def->class->params[order[k]];
        const struct value *v = &n->def->params[order[k]];
        if (!in_key(p))
            continue;
        key_hash_text(h, p->name);
        key_hash_int(h, (int64_t)v->n);
        for (size_t i = 0; i < v->n; i++) {
            const struct source *s = p->type == PARAM_SOURCE ? source_of(n, order[k], i) : NULL;
            if (s && s->path[0])
                key_hash_key(h, &s->digest);
            else if (p->type == PARAM_FLOAT)
                key_hash_double(h, v->number[i]);
            else
                key_hash_text(h, v->text[i]);
        }
    }
}

/* The key of an input: the node's, or the node's with the output's name when one is named. */
static bool input_key(const struct run *r, const struct graph_input *in, struct key *out, struct err *e)
{
    const struct key *from = &r->nodes[in->node].key;
    struct key_hash *h;
    if (!in->output[0]) {
        *out = *from;
        return true;
    }
    if (!key_hash_new(&h, e))
        return false;
    key_hash_key(h, from);
    key_hash_text(h, in->output);
    return key_hash_end(h, out, e);
}

static bool hash_inputs(struct key_hash *h, struct node *n, struct err *e)
{
    size_t order[COUNT_MOST], count = sorted_ports(n->def->class, order);
    for (size_t k = 0; k < count; k++) {
        size_t p = order[k];
        key_hash_text(h, n->def->class->ports[p].name);
        key_hash_int(h, (int64_t)n->def->n_inputs[p]);
        for (size_t i = 0; i < n->def->n_inputs[p]; i++) {
            if (!input_key(n->run, &n->def->inputs[p][i], &n->inputs[p][i].key, e))
                return false;
            key_hash_key(h, &n->inputs[p][i].key);
        }
    }
    return true;
}

static bool ask_numerics(struct node *n, struct err *e)
{
    const char *text = NULL;
    if (n->def->class->numerics && !n->def->class->numerics(n, &text, e))
        return err_context(e, "node '%s'", n->def->name);
    n->numerics = text && text[0] ? arena_strdup(&n->run->arena, text, e) : "";
    return n->numerics != NULL;
}

static bool make_key(struct node *n, struct err *e)
{
    const struct node_class *c = n->def->class;
    struct key_hash *h;
    if (!ask_numerics(n, e) || !key_hash_new(&h, e))
        return false;
    key_hash_text(h, c->name);
    key_hash_int(h, c->version);
    key_hash_text(h, n->numerics);
    hash_params(h, n);
    struct err why;
    bool ok = hash_inputs(h, n, &why);
    struct key key;
    if (!key_hash_end(h, &key, e))
        return false;
    if (!ok) {
        *e = why;
        return false;
    }
    n->key = key;
    n->has_key = true;
    return true;
}

bool plan_keys(struct run *r, struct err *e)
{
    for (size_t i = 0; i < r->n; i++) {
        struct node *n = &r->nodes[i];
        bool known;
        n->has_key = false;
        if (!n->relevant)
            continue;
        if (!know_parts(n, &known, e) || (known && !make_key(n, e)))
            return false;
    }
    return true;
}

/* ----------------------------------------------------------------------------------------------------------- states */

bool plan_object_stands(struct run *r, struct node *n, bool verify, bool quick, const char **why, struct err *e)
{
    const char *reason = "no result yet";
    bool found = false;
    if (r->store && n->has_key && !n->forced && !object_exists(r->store, &n->key, &found, e))
        return err_context(e, "node '%s'", n->def->name);
    if (n->forced)
        reason = "its result was damaged";
    if (found && (verify || n->def->class->stands)) {
        struct object *o = NULL;
        if (!object_open(&o, r->store, &n->key, e))
            return err_context(e, "node '%s'", n->def->name);
        if (!o) {
            reason = "its result was damaged";
            found = false;
        } else if (!node_parts_exist(n, o, &found, e)) {
            object_close(o);
            return false;
        } else if (!found) {
            reason = "a part of its result is missing";
        } else if (n->def->class->stands && !n->def->class->stands(n, o, quick && !n->changed)) {
            reason = "what it wrote outside the store is no longer as it was";
            found = false;
            n->changed = true;
        }
        object_close(o);
    }
    if (found)
        reason = "its result is in the store";
    if (why)
        *why = reason;
    n->state = found ? STATE_REUSED : STATE_WAITING;
    return true;
}

static void want_inputs(struct run *r, struct node *n)
{
    for (size_t p = 0; n->def->class->ports && n->def->class->ports[p].name; p++)
        for (size_t i = 0; i < n->def->n_inputs[p]; i++)
            r->nodes[n->def->inputs[p][i].node].wanted = true;
}

bool plan_resolve(struct run *r, int from, bool verify, struct err *e)
{
    for (int i = from; i >= 0; i--) {
        struct node *n = &r->nodes[i];
        if (!n->wanted || (n->state != STATE_UNKNOWN && n->state != STATE_UNNEEDED))
            continue;
        if (n->has_key || !r->store) {
            if (!plan_object_stands(r, n, verify && n->target, !verify, &n->reason, e))
                return false;
        }
        if (n->state != STATE_REUSED)
            want_inputs(r, n);
    }
    return true;
}

/* The targets are those named, or all nodes that nobody reads. What they depend on is relevant. */
static void mark_relevant(struct run *r)
{
    for (size_t i = r->n; i-- > 0;) {
        struct node *n = &r->nodes[i];
        if (r->options.n_targets == 0)
            n->target = n->n_consumers == 0;
        n->relevant = n->target;
        for (size_t k = 0; k < n->n_consumers && !n->relevant; k++)
            n->relevant = r->nodes[n->consumers[k]].relevant;
        /* What stands outside the store is wanted for its own sake, even when nobody has to read the object again. */
        n->wanted = n->target || (n->relevant && n->def->class->stands);
    }
}

bool plan_states(struct run *r, struct err *e)
{
    mark_relevant(r);
    if (!plan_keys(r, e) || !plan_resolve(r, (int)r->n - 1, !r->options.plan_only, e))
        return false;
    for (size_t i = 0; i < r->n; i++) {
        struct node *n = &r->nodes[i];
        if (n->wanted)
            continue;
        bool found = false;
        if (n->relevant && r->store && n->has_key && !object_exists(r->store, &n->key, &found, e))
            return err_context(e, "node '%s'", n->def->name);
        n->state = STATE_UNNEEDED;
        if (!n->relevant) {
            n->reason = "not wanted by any target";
        } else if (found) {
            n->state = STATE_REUSED;
            n->reason = "its result is in the store";
        } else {
            n->reason = "not needed: nothing that must run reads it";
        }
    }
    return true;
}
