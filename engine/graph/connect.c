/* References: what `in` says, and which of the unrolled nodes it means. A written reference is read and judged once;
 * each round of the node that says it then takes the rounds that the reference means there. */
#include <ctype.h>
#include <stdio.h>
#include <string.h>

#include "engine/graph/draft.h"
#include "engine/graph/params.h"
#include "engine/graph/value.h"

#define MOST_OUTPUTS 32 /* named in a message */

enum form { FORM_ONLY, FORM_ROUND, FORM_THIS, FORM_PREV, FORM_PAST, FORM_ALL, FORM_LAST };

/* One reference of a port. */
struct ref {
    const struct written *to; /* NULL when a problem was noted: it connects nothing */
    enum form form;
    int round; /* of FORM_ROUND */
    const char *output;
    const char *text;
    struct mark mark;
};

/* The port whose references are read. */
struct place {
    struct loading *l;
    const struct draft *d;
    const struct written *w;
    const struct port *port;
    char where[192]; /* "node 'hessian', port 'tokens'" */
};

/* ---------------------------------------------------------------------------------------------- reading references */

/* "stem.a, stem.b or stem.c" */
static const char *outputs_of(const struct node_class *c, const char *stem, char *out, size_t size)
{
    const char *names[MOST_OUTPUTS];
    char prefix[LOADING_REFERENCE + 2];
    size_t n = 0;
    for (const struct output *o = c->outputs; o->name && n < MOST_OUTPUTS; o++)
        names[n++] = o->name;
    snprintf(prefix, sizeof prefix, "%s.", stem);
    return loading_listed(prefix, names, n, out, size);
}

static const char *types_of(const struct port *p, char *out, size_t size)
{
    static const char *const any[] = {"any node", NULL};
    const char *const *types = p->types ? p->types : any;
    size_t n = 0;
    while (types[n])
        n++;
    return loading_listed("", types, n, out, size);
}

/* Does entry `type` of a port ("corpus", "corpus.selection") name class `c`? *output is what it wants after the dot, or
 * NULL. */
static bool names_class(const char *type, const struct node_class *c, const char **output)
{
    size_t n = strcspn(type, ".");
    *output = type[n] && strcmp(type + n, ".*") != 0 ? type + n + 1 : NULL;
    return strlen(c->name) == n && strncmp(type, c->name, n) == 0;
}

/* May an object of class `c`, or of its `output`, go into the port? */
static bool check_type(const struct place *p, const struct ref *r, bool *ok)
{
    const struct node_class *c = r->to->class;
    char types[256];
    bool class_fits = !p->port->types;
    *ok = class_fits;
    for (size_t i = 0; p->port->types && p->port->types[i]; i++) {
        const char *output;
        bool named = names_class(p->port->types[i], c, &output);
        class_fits = class_fits || named;
        *ok = *ok || (named && (!output || !*r->output || strcmp(output, r->output) == 0));
    }
    if (*ok)
        return true;
    types_of(p->port, types, sizeof types);
    if (class_fits)
        return loading_problem(p->l, &r->mark, NULL, "%s: takes %s, not '%s'", p->where, types, r->text);
    return loading_problem(p->l, &r->mark, NULL, "%s: takes %s, but node '%s' is of type %s", p->where, types,
                           r->to->name, c->name);
}

/* Is the reference's output one that class `c` has, or rightly absent? */
static bool check_output(const struct place *p, const struct ref *r, bool *ok)
{
    const struct node_class *c = r->to->class;
    const char *names[MOST_OUTPUTS], *near;
    char list[256], shown[64], prefix[128];
    int stem = (int)(strlen(r->text) - strlen(r->output));
    size_t n = 0;
    *ok = false;
    if (!c->outputs || !c->outputs[0].name) {
        *ok = !*r->output;
        snprintf(prefix, sizeof prefix, "%.*s", stem - 1, r->text);
        return *ok || loading_problem(p->l, &r->mark, prefix, "%s: node '%s' has one result without outputs, so no %s",
                                      p->where, r->to->name, loading_shown(r->output, shown));
    }
    for (const struct output *o = c->outputs; o->name && n < MOST_OUTPUTS; o++) {
        names[n++] = o->name;
        *ok = *ok || strcmp(o->name, r->output) == 0;
    }
    *ok = *ok || (!*r->output && !p->port->types);
    if (*ok)
        return true;
    if (!*r->output)
        return loading_problem(p->l, &r->mark, NULL, "%s: node '%s' has several outputs: write %s", p->where,
                               r->to->name, outputs_of(c, r->text, list, sizeof list));
    near = loading_nearest(p->l, r->output, names, n);
    if (near)
        near = arena_printf(&p->l->scratch, &p->l->fatal, "%.*s%s", stem, r->text, near);
    snprintf(prefix, sizeof prefix, "%.*s", stem - 1, r->text);
    return loading_problem(p->l, &r->mark, near, "%s: node '%s' has no output %s: there is %s", p->where, r->to->name,
                           loading_shown(r->output, shown), outputs_of(c, prefix, list, sizeof list));
}

/* The word after a repeated node's name. False when it is none of the forms. */
static bool read_form(const char *word, struct ref *r)
{
    static const struct {
        const char *word;
        enum form form;
    } forms[] = {{"this", FORM_THIS}, {"prev", FORM_PREV}, {"past", FORM_PAST}, {"all", FORM_ALL}, {"last", FORM_LAST}};
    long long round;
    for (size_t i = 0; i < sizeof forms / sizeof *forms; i++)
        if (strcmp(word, forms[i].word) == 0) {
            r->form = forms[i].form;
            return true;
        }
    if (!value_integer(word, &round) || round < -1000000 || round > 1000000)
        return false;
    r->form = FORM_ROUND;
    r->round = (int)round;
    return true;
}

/* Does the form make sense between these two nodes and for this port? */
static bool check_form(const struct place *p, const struct ref *r, bool *ok)
{
    const struct written *to = r->to, *w = p->w;
    bool is_relative = r->form == FORM_THIS || r->form == FORM_PREV || r->form == FORM_PAST;
    int wanted = r->form == FORM_THIS ? w->rounds : w->rounds - 1;
    *ok = false;
    if (r->form == FORM_ROUND && (r->round < 1 || r->round > to->rounds))
        return loading_problem(p->l, &r->mark, NULL, "%s: node '%s' has the rounds 1 to %d, not %d", p->where, to->name,
                               to->rounds, r->round);
    if (is_relative && w->rounds == 0)
        return loading_problem(
            p->l, &r->mark, NULL,
            "%s: '%s' is relative to a round, but node '%s' is not repeated: say '%s.last', '%s.all' or a "
            "round like '%s.1'",
            p->where, r->text, w->name, to->name, to->name, to->name);
    if ((r->form == FORM_THIS || r->form == FORM_PREV) && w->rounds > 0 && to->rounds < wanted)
        return loading_problem(p->l, &r->mark, NULL,
                               "%s: '%s' is missing in round %d: node '%s' is repeated %d times, '%s' %d", p->where,
                               r->text, w->rounds, to->name, to->rounds, w->name, w->rounds);
    if ((r->form == FORM_PAST || r->form == FORM_ALL) && !p->port->many)
        return loading_problem(p->l, &r->mark, NULL,
                               "%s: takes one node, but '%s' means several: say '%s.last' or a round "
                               "like '%s.1'",
                               p->where, r->text, to->name, to->name);
    if (r->form == FORM_PREV && !p->port->many && !p->port->optional)
        return loading_problem(p->l, &r->mark, NULL, "%s: is required, but '%s' is nothing in round 1", p->where,
                               r->text);
    *ok = true;
    return true;
}

/* The nearest node to `name`; not the one that is speaking, which could only mean itself when it is repeated. */
static bool nearest_node(const struct place *p, const char *name, const char **near)
{
    const char **names = loading_new(p->l, (p->d->n_written + 1) * sizeof *names);
    size_t n = 0;
    if (!names)
        return false;
    for (size_t i = 0; i < p->d->n_written; i++)
        if (&p->d->written[i] != p->w || p->w->rounds > 0)
            names[n++] = p->d->names[i];
    *near = loading_nearest(p->l, name, names, n);
    return true;
}

static bool unknown_node(const struct place *p, const struct ref *r, const char *name)
{
    char shown[64];
    const char *near, *rest;
    if (!nearest_node(p, name, &near))
        return false;
    rest = near ? strchr(r->text, '.') : NULL;
    if (rest)
        near = arena_printf(&p->l->scratch, &p->l->fatal, "%s%s", near, rest);
    return loading_problem(p->l, &r->mark, near, "%s: there is no node %s", p->where, loading_shown(name, shown));
}

/* What is wrong with the part after the name; `rest` is that part, "" if there is none. */
static bool bad_round(const struct place *p, const struct ref *r, const struct written *to)
{
    const char *n = to->name;
    return loading_problem(
        p->l, &r->mark, NULL,
        "%s: node '%s' is repeated, and '%s' does not say which round: write '%s.1' to '%s.%d', '%s.this', "
        "'%s.prev', '%s.past', '%s.all' or '%s.last'",
        p->where, n, r->text, n, n, to->rounds, n, n, n, n, n);
}

/* Read "node", "node.output", "node.round" or "node.round.output" into *r. */
static bool read_ref(const struct place *p, const struct tree *t, struct ref *r)
{
    char *name, *rest;
    const struct written *to;
    bool ok;
    *r = (struct ref){.text = t->text, .mark = t->mark, .output = ""};
    if (strnlen(t->text, LOADING_REFERENCE + 1) > LOADING_REFERENCE) /* no name is so long, and a parameter may be said by every node */
        return unknown_node(p, r, t->text);
    name = arena_strdup(&p->l->scratch, t->text, &p->l->fatal);
    if (!name)
        return false;
    rest = strchr(name, '.');
    if (rest)
        *rest++ = '\0';
    to = draft_find(p->d, name);
    if (!to)
        return unknown_node(p, r, name);
    if (to->rounds < 0)
        return true;
    if (to->rounds > 0) {
        char *word = rest;
        rest = rest ? strchr(rest, '.') : NULL;
        if (rest)
            *rest++ = '\0';
        if (!word || !read_form(word, r))
            return bad_round(p, r, to);
    } else if (rest && !(to->class && to->class->outputs) &&
               (loading_is_round_word(rest) || isdigit((unsigned char)*rest))) {
        return loading_problem(p->l, &r->mark, to->name, "%s: node '%s' is not repeated, so it has no '%s'", p->where,
                               to->name, rest);
    }
    r->to = to;
    if (rest && !(r->output = arena_strdup(p->l->arena, rest, &p->l->fatal)))
        return false;
    if (!check_form(p, r, &ok))
        return false;
    if (ok && to->class && (!check_type(p, r, &ok) || (ok && !check_output(p, r, &ok))))
        return false;
    if (rest && !*rest && ok) { /* "node." */
        ok = false;
        if (!loading_problem(p->l, &r->mark, NULL, "%s: '%s' ends in a dot", p->where, t->text))
            return false;
    }
    r->to = ok ? to : NULL;
    return true;
}

/* ------------------------------------------------------------------------------------------------------ connecting */

/* The rounds of r->to that round `round` of the saying node takes: *first to *last, none when *last < *first. */
static void rounds_of(const struct ref *r, int round, int *first, int *last)
{
    int n = r->to->rounds;
    *first = 1;
    *last = 0;
    switch (r->form) {
    case FORM_ONLY:
        *last = 1;
        break;
    case FORM_ROUND:
        *first = *last = r->round;
        break;
    case FORM_THIS:
        *first = *last = round;
        break;
    case FORM_PREV:
        *last = round - 1;
        *first = round > 1 ? round - 1 : 1;
        break;
    case FORM_PAST:
        *last = round - 1 < n ? round - 1 : n;
        break;
    case FORM_ALL:
        *last = n;
        break;
    case FORM_LAST:
        *first = *last = n;
        break;
    }
}

/* Fill port number `at` of one unrolled node. */
static bool connect_port(struct loading *l, struct draft *d, struct graph_node *n, size_t at, const struct ref *refs,
                         size_t n_refs, int round)
{
    size_t count = 0, k = 0;
    int first, last;
    for (size_t i = 0; i < n_refs; i++)
        if (refs[i].to) {
            rounds_of(&refs[i], round, &first, &last);
            count += last >= first ? (size_t)(last - first + 1) : 0;
        }
    d->n_connections += count;
    if (d->n_connections > LOADING_CONNECTIONS)
        return true; /* reported by the caller */
    struct graph_input *list = arena_new(l->arena, (count + 1) * sizeof *list, &l->fatal);
    if (!list)
        return false;
    for (size_t i = 0; i < n_refs; i++) {
        if (!refs[i].to)
            continue;
        rounds_of(&refs[i], round, &first, &last);
        for (int j = first; j <= last; j++)
            list[k++] = (struct graph_input){(int)refs[i].to->first + j - 1, refs[i].output, value_mark(&refs[i].mark)};
    }
    n->inputs[at] = list;
    n->n_inputs[at] = count;
    return true;
}

/* A required port that several may fill needs one in round 1 already. */
static bool check_first_round(const struct place *p, const struct ref *refs, size_t n)
{
    if (p->port->optional || n == 0 || p->w->rounds <= 0)
        return true;
    for (size_t i = 0; i < n; i++)
        if (!refs[i].to || (refs[i].form != FORM_PREV && refs[i].form != FORM_PAST))
            return true;
    return loading_problem(p->l, &refs[0].mark, NULL,
                           "%s: has nothing in round 1, where '%s' is empty: add what the first round takes", p->where,
                           refs[0].text);
}

static bool missing_port(const struct place *p)
{
    char types[256];
    return p->port->optional || p->w->tree->is_damaged ||
           draft_is_misspelt(yaml_get(p->w->tree, "in"), yaml_get(p->w->tree, "with"), p->port->name, p->w->class,
                             class_port) ||
           loading_problem(p->l, &p->w->mark, NULL, "node '%s': port '%s' of %s is not connected: it takes %s (%s)",
                           p->w->name, p->port->name, p->w->class->name, types_of(p->port, types, sizeof types),
                           p->port->help ? p->port->help : "required");
}

/* All references of one port, for all rounds of the node. */
static bool connect_written(struct place *p, struct draft *d, struct graph *g, size_t at, struct tree *t)
{
    struct tree *one[1], **items = one;
    size_t n = 1;
    if (!t)
        return missing_port(p);
    if (!params_fill(p->l, d->params, t, &t))
        return false;
    if (t->kind == TREE_LIST) {
        items = t->items;
        n = t->n;
    }
    one[0] = t;
    if (t->kind == TREE_LIST && !p->port->many)
        return loading_problem(p->l, &t->mark, NULL, "%s: takes one node, but is given a list", p->where);
    if (n == 0 && !p->port->optional)
        return loading_problem(p->l, &t->mark, NULL, "%s: the list is empty, but the port needs at least one node",
                               p->where);
    d->n_refs += n;
    if (d->n_refs > LOADING_CONNECTIONS)
        return true; /* reported by the caller */
    struct ref *refs = loading_new(p->l, (n + 1) * sizeof *refs);
    if (!refs)
        return false;
    for (size_t i = 0; i < n; i++)
        if (items[i]->kind == TREE_SCALAR && !read_ref(p, items[i], &refs[i]))
            return false;
    if (!check_first_round(p, refs, n))
        return false;
    for (int round = 1; round == 1 || round <= p->w->rounds; round++)
        if (!connect_port(p->l, d, &g->nodes[p->w->first + (size_t)round - 1], at, refs, n, round))
            return false;
    return true;
}

static bool unknown_port(struct loading *l, const struct written *w, const struct tree *key)
{
    const char *names[64];
    char shown[64];
    size_t n = 0;
    for (const struct port *p = w->class->ports; p && p->name && n < 64; p++)
        names[n++] = p->name;
    if (class_param(w->class, key->text) >= 0)
        return loading_problem(l, &key->mark, NULL,
                               "node '%s': '%s' is a parameter of %s, not a port: write it under 'with'", w->name,
                               key->text, w->class->name);
    return loading_problem(l, &key->mark, loading_nearest(l, key->text, names, n), "node '%s': %s has no port %s%s",
                           w->name, w->class->name, loading_shown(key->text, shown), n ? "" : ": it takes no inputs");
}

bool connect_names(struct loading *l, const struct written *w)
{
    const struct tree *in = yaml_get(w->tree, "in");
    for (size_t i = 0; in && in->kind == TREE_MAP && i < in->n; i++)
        if (class_port(w->class, in->pairs[i].key->text) < 0 && !unknown_port(l, w, in->pairs[i].key))
            return false;
    return true;
}

/* Room for the connections of every round. */
static bool make_ports(struct loading *l, const struct written *w, size_t n, struct graph *g)
{
    for (int round = 1; round == 1 || round <= w->rounds; round++) {
        struct graph_node *node = &g->nodes[w->first + (size_t)round - 1];
        node->n_inputs = arena_new(l->arena, (n + 1) * sizeof *node->n_inputs, &l->fatal);
        node->inputs = arena_new(l->arena, (n + 1) * sizeof *node->inputs, &l->fatal);
        if (!node->n_inputs || !node->inputs)
            return false;
    }
    return true;
}

static bool connect_node(struct loading *l, struct draft *d, const struct written *w, struct graph *g)
{
    const struct tree *in = yaml_get(w->tree, "in");
    size_t n = 0;
    while (w->class->ports && w->class->ports[n].name)
        n++;
    if (!make_ports(l, w, n, g))
        return false;
    if (in && in->kind == TREE_BAD)
        return true;
    if (!connect_names(l, w))
        return false;
    for (size_t i = 0; i < n; i++) {
        struct place p = {.l = l, .d = d, .w = w, .port = &w->class->ports[i]};
        snprintf(p.where, sizeof p.where, "node '%s', port '%s'", w->name, p.port->name);
        if (!connect_written(&p, d, g, i, yaml_get(in, p.port->name)))
            return false;
    }
    return true;
}

bool connect_nodes(struct loading *l, struct draft *d, struct graph *g)
{
    for (size_t i = 0; i < d->n_written; i++) {
        const struct written *w = &d->written[i];
        if (w->class && !connect_node(l, d, w, g))
            return false;
        if (d->n_refs > LOADING_CONNECTIONS || d->n_connections > LOADING_CONNECTIONS)
            return loading_problem(l, &w->mark, NULL, "more than %d connections by here", LOADING_CONNECTIONS);
    }
    return true;
}
