/* Why a node would run again: what went into its key now, against what its last object says went into it then. A
 * changed input is followed to the node that it comes from, until the changes that began it all are found. */
#include <string.h>
#include <unistd.h>

#include "engine/run/state.h"

struct explanation {
    struct run *run;
    struct str *out;
    const struct index_node *last; /* of run.h5 */
    size_t n_last;
    const char *unread;            /* why run.h5 is there but cannot be read; NULL: it was read, or is not there */
    bool *seen;                    /* nodes explained already */
};

/* The value of the i-th line "name = value" of that name, as a slice; false if there is none. */
static bool nth_value(const char *text, const char *name, size_t name_length, size_t i, const char **value,
                      size_t *length)
{
    while (*text) {
        size_t line = strcspn(text, "\n");
        if (line > name_length + 2 && strncmp(text, name, name_length) == 0 &&
            strncmp(text + name_length, " = ", 3) == 0 && i-- == 0) {
            *value = text + name_length + 3;
            *length = line - name_length - 3;
            return true;
        }
        text += line + (text[line] == '\n');
    }
    return false;
}

static void indent(struct str *s, int depth)
{
    str_printf(s, "%*s", 2 * depth, "");
}

/* Lines of `now` whose value differs in `then`, and lines that are only in one of them. `what`: "parameter",
 * "source". */
static bool compare_lines(struct explanation *x, int depth, const char *what, const char *then, const char *now)
{
    bool differs = false;
    const char *value;
    size_t length;
    for (const char *line = now; *line;) {
        size_t whole = strcspn(line, "\n");
        const char *equals = strstr(line, " = ");
        size_t name = equals && equals < line + whole ? (size_t)(equals - line) : whole;
        bool was = nth_value(then, line, name, 0, &value, &length);
        int now_length = name + 3 <= whole ? (int)(whole - name - 3) : 0;
        if (!was || length != (size_t)now_length || strncmp(value, line + name + 3, length) != 0) {
            differs = true;
            indent(x->out, depth);
            str_printf(x->out, "%s '%.*s': was %.*s, is %.*s\n", what, (int)name, line, was ? (int)length : 10,
                       was ? value : "not there", now_length, line + name + 3);
        }
        line += whole + (line[whole] == '\n');
    }
    for (const char *line = then; *line;) {
        size_t whole = strcspn(line, "\n");
        const char *equals = strstr(line, " = ");
        size_t name = equals && equals < line + whole ? (size_t)(equals - line) : whole;
        if (!nth_value(now, line, name, 0, &value, &length)) {
            differs = true;
            indent(x->out, depth);
            str_printf(x->out, "%s '%.*s' is no longer there\n", what, (int)name, line);
        }
        line += whole + (line[whole] == '\n');
    }
    return differs;
}

static const char *text_of(const struct object *o, const char *name)
{
    const char *text;
    return object_text(o, name, &text) ? text : "";
}

static bool explain_node(struct explanation *x, const struct node *n, int depth, struct err *e);

/* Inputs, connection by connection; the first change of each producing node is explained below it. */
static bool compare_inputs(struct explanation *x, const struct node *n, int depth, const char *then, bool *differs,
                           struct err *e)
{
    for (size_t p = 0; n->def->class->ports && n->def->class->ports[p].name; p++) {
        const char *port = n->def->class->ports[p].name, *value;
        size_t length, i = 0;
        for (; i < n->def->n_inputs[p]; i++) {
            char text[KEY_TEXT];
            const struct input *in = &n->inputs[p][i];
            bool was = nth_value(then, port, strlen(port), i, &value, &length);
            if (was && length == KEY_TEXT - 1 && strncmp(value, key_text(&in->key, text), length) == 0)
                continue;
            *differs = true;
            indent(x->out, depth);
            str_printf(x->out, "input '%s' (%s%s%s) %s\n", port, in->node, in->output[0] ? "." : "", in->output,
                       was ? "changed:" : "is new");
            if (was && !explain_node(x, &x->run->nodes[n->def->inputs[p][i].node], depth + 1, e))
                return false;
        }
        if (nth_value(then, port, strlen(port), i, &value, &length)) {
            *differs = true;
            indent(x->out, depth);
            str_printf(x->out, "input '%s' had more connections\n", port);
        }
    }
    return true;
}

static bool compare_object(struct explanation *x, const struct node *n, struct object *o, int depth, struct err *e)
{
    const struct node_class *c = n->def->class;
    struct str parameters = {0}, sources = {0};
    bool differs = false;
    int64_t version = -1;
    bool ok = node_record_parameters(n, &parameters, e) && node_record_sources(n, &sources, e);
    if (ok && strcmp(text_of(o, "node_type"), c->name) != 0) {
        differs = true;
        indent(x->out, depth);
        str_printf(x->out, "node type: was %s, is %s\n", text_of(o, "node_type"), c->name);
    }
    if (ok && object_int(o, "code_version", &version) && version != c->version) {
        differs = true;
        indent(x->out, depth);
        str_printf(x->out, "code version of %s: was %lld, is %u\n", c->name, (long long)version, c->version);
    }
    if (ok && strcmp(text_of(o, "numerics"), node_numerics(n)) != 0) {
        differs = true;
        indent(x->out, depth);
        str_printf(x->out, "numeric mode: was '%s', is '%s'\n", text_of(o, "numerics"), node_numerics(n));
    }
    if (ok) {
        differs |= compare_lines(x, depth, "parameter", text_of(o, "parameters"),
                                 parameters.text ? parameters.text : "");
        differs |= compare_lines(x, depth, "source", text_of(o, "data_files"), sources.text ? sources.text : "");
        ok = compare_inputs(x, n, depth, text_of(o, "inputs"), &differs, e);
    }
    if (ok && !differs) {
        indent(x->out, depth);
        str_add(x->out, "the record of its last result shows no difference; the key is made in another way now\n");
    }
    str_free(&parameters);
    str_free(&sources);
    return ok;
}

/* What became of the node since the last run, in lines indented by `depth`. */
static bool explain_node(struct explanation *x, const struct node *n, int depth, struct err *e)
{
    const struct index_node *last = NULL;
    char was[KEY_TEXT], is[KEY_TEXT];
    for (size_t i = 0; i < x->n_last; i++)
        if (strcmp(x->last[i].name, n->def->name) == 0)
            last = &x->last[i];
    indent(x->out, depth);
    if (x->seen[n->index]) {
        str_printf(x->out, "node '%s': see above\n", n->def->name);
        return true;
    }
    x->seen[n->index] = true;
    if (!n->has_key) {
        str_printf(x->out, "node '%s': %s\n", n->def->name, n->reason ? n->reason : "unknown");
        return true;
    }
    if (x->unread) {
        str_printf(x->out, "node '%s': what it was cannot be told, the run's index cannot be read: %s\n", n->def->name,
                   x->unread);
        return true;
    }
    if (!last || !last->has_key) {
        str_printf(x->out, "node '%s' has not run in this directory before\n", n->def->name);
        return true;
    }
    if (key_equal(&last->key, &n->key)) {
        str_printf(x->out, "node '%s' is unchanged (key %.12s, last state %s): %s\n", n->def->name,
                   key_text(&n->key, is), last->state, n->reason ? n->reason : "");
        return true;
    }
    struct object *o = NULL;
    if (x->run->store && !object_open(&o, x->run->store, &last->key, e))
        return false;
    str_printf(x->out, "node '%s' (%s) changed: key was %.12s, is %.12s\n", n->def->name, n->def->class->name,
               key_text(&last->key, was), key_text(&n->key, is));
    if (!o) {
        indent(x->out, depth + 1);
        str_printf(x->out, "its last result is not in the store (last state %s): what changed cannot be told\n",
                   last->state);
        return true;
    }
    bool ok = compare_object(x, n, o, depth + 1, e);
    object_close(o);
    return ok;
}

static bool add_record(const struct node *n, struct str *out, struct err *e)
{
    char text[KEY_TEXT];
    struct str lines = {0};
    if (!n->has_key)
        return true;
    str_printf(out, "key %s\n", key_text(&n->key, text));
    str_printf(out, "  type = %s\n  code version = %u\n  numerics = %s\n", n->def->class->name, n->def->class->version,
               node_numerics(n));
    bool ok = node_record_parameters(n, &lines, e) && node_record_sources(n, &lines, e) &&
              node_record_inputs(n, &lines, e);
    for (const char *line = lines.text; ok && line && *line;) {
        size_t whole = strcspn(line, "\n");
        str_printf(out, "  %.*s\n", (int)whole, line);
        line += whole + (line[whole] == '\n');
    }
    str_free(&lines);
    return ok;
}

static bool has_index(const char *dir)
{
    struct str path = {0};
    str_printf(&path, "%s/run.h5", dir);
    bool is_there = path.text && !path.failed && access(path.text, F_OK) == 0;
    str_free(&path);
    return is_there;
}

bool run_explain(struct run *r, size_t i, struct str *out, struct err *e)
{
    struct explanation x = {.run = r, .out = out};
    struct arena arena = {0};
    struct index_run about;
    struct index_node *last = NULL;
    struct err why;
    if (index_read(r->dir, &about, &last, &x.n_last, &arena, &why))
        x.last = last;
    else if (has_index(r->dir))
        x.unread = why.text;
    if (!x.last)
        x.n_last = 0;
    x.seen = arena_new(&arena, r->n + 1, e);
    bool ok = x.seen && explain_node(&x, &r->nodes[i], 0, e);
    if (ok) {
        str_printf(out, "it would %s: %s\n",
                   r->nodes[i].state == STATE_REUSED    ? "be reused"
                   : r->nodes[i].state == STATE_WAITING ? "run"
                                                        : "not run",
                   r->nodes[i].reason ? r->nodes[i].reason : "");
        ok = add_record(&r->nodes[i], out, e);
    }
    arena_free(&arena);
    return ok && str_ok(out, e);
}
