/* Loading a graph, stage by stage, and showing what was wrong with it. Each stage notes its problems in `struct
 * loading`; they are sorted here and become the errors that the caller sees. */
#include "engine/graph/graph.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "engine/base/str.h"
#include "engine/graph/draft.h"
#include "engine/graph/merge.h"
#include "engine/graph/params.h"

/* -------------------------------------------------------------------------------------------------------- problems */

static int by_place(const void *a, const void *b)
{
    const struct problem *x = a, *y = b;
    int order = x->source - y->source;
    if (!order)
        order = x->mark.line - y->mark.line;
    if (!order)
        order = x->mark.column - y->mark.column;
    return order ? order : x->order < y->order ? -1 : x->order > y->order;
}

/* Stands in for the list when not even the list could be allocated; never written to. */
static const struct err no_memory = {.code = ERR_RESOURCE, .text = "out of memory while loading the graph"};

static void fill(const struct problem *p, const char *path, struct err *e)
{
    const char *text = p->text;
    err_set(e, ERR_INPUT, "%s", text);
    err_at(e, p->mark.file ? p->mark.file : path, p->mark.line, p->mark.column, p->mark.width);
}

/* Sort the problems by place and hand the first LOADING_REPORTED of them over, with "and N more" after them. */
static void report(struct loading *l, struct graph_errors *errors)
{
    bool is_fatal = l->fatal.code != ERR_NONE;
    size_t shown = l->n_problems < LOADING_REPORTED ? l->n_problems : LOADING_REPORTED, more = l->n_problems - shown;
    errors->n = is_fatal ? 1 : shown + (more > 0);
    if (!mem_new(&errors->list, errors->n, NULL)) {
        errors->list = (struct err *)(uintptr_t)&no_memory;
        errors->n = 1;
        return;
    }
    if (is_fatal) {
        errors->list[0] = l->fatal;
        err_at(&errors->list[0], l->path, 0, 0, 0);
        return;
    }
    qsort(l->problems, l->n_problems, sizeof *l->problems, by_place);
    for (size_t i = 0; i < shown; i++)
        fill(&l->problems[i], l->path, &errors->list[i]);
    if (more) {
        err_set(&errors->list[shown], ERR_INPUT, "and %zu more", more);
        err_at(&errors->list[shown], l->path, 0, 0, 0);
    }
}

void graph_errors_free(struct graph_errors *errors)
{
    if (errors->list != &no_memory)
        mem_free(errors->list);
    *errors = (struct graph_errors){0};
}

/* --------------------------------------------------------------------------------------------------------- loading */

/* May be the name of a directory wherever it is put: ASCII letters, digits, - _ ., the first no dot. */
static bool is_plain(const char *text)
{
    static const char plain[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.";
    return *text && *text != '.' && !text[strspn(text, plain)] && strlen(text) <= LOADING_NAME;
}

/* "graphs/quickstart.yaml" is called quickstart when it does not say its name; what is not plain becomes '_'. */
static const char *stem(struct loading *l, const char *path)
{
    const char *slash = strrchr(path, '/'), *name = slash ? slash + 1 : path, *dot = strrchr(name, '.');
    size_t n = dot && dot > name ? (size_t)(dot - name) : strlen(name);
    char *out = arena_strndup(l->arena, name, n < LOADING_NAME ? n : LOADING_NAME, &l->fatal);
    for (char *c = out; c && *c; c++) {
        const char one[2] = {*c};
        if (!is_plain(one) && (c == out || *c != '.'))
            *c = '_';
    }
    return out;
}

static bool read_name(struct loading *l, struct tree *tree, struct tree *params, struct graph *g)
{
    struct tree *name = yaml_get(tree, "name");
    char shown[64];
    if (name && !params_fill(l, params, name, &name))
        return false;
    if (name && name->kind == TREE_LIST)
        return loading_problem(l, &name->mark, NULL, "name must be a single value, but is a list");
    bool is_given = name && name->kind == TREE_SCALAR && *name->text;
    if (is_given && !is_plain(name->text))
        return loading_problem(l, &name->mark, NULL,
                               "the graph's name %s cannot be a directory's: letters, digits, '-', '_' and '.', at "
                               "most %d, the first no '.'",
                               loading_shown(name->text, shown), LOADING_NAME);
    g->name = is_given ? arena_strdup(l->arena, name->text, &l->fatal) : stem(l, l->path);
    return g->name != NULL;
}

/* All stages. True when none failed for lack of memory; whether the graph is good is in l->n_problems. */
static bool load(struct loading *l, struct graph *g)
{
    struct draft d = {0};
    struct tree *tree;
    const char *text;
    bool ok;
    if (!merge_graph(l, &tree, &text))
        return false;
    if (!tree)
        return true;
    g->text = (char *)(uintptr_t)text; /* the arena's, which is the graph's */
    d.params = yaml_get(tree, "params");
    if (!params_check(l, d.params, &ok))
        return false;
    if (!ok)
        return true;
    if (!params_check_used(l, tree))
        return false;
    if (!read_name(l, tree, d.params, g) || !draft_read(l, tree, &d) || !draft_unroll(l, &d, g, &ok))
        return false;
    return !ok || (connect_nodes(l, &d, g) && order_nodes(l, g));
}

bool graph_load(struct graph **out, const char *path, const struct graph_options *o, struct graph_errors *errors)
{
    struct graph *g = NULL;
    struct loading l = {.options = o, .path = path};
    *errors = (struct graph_errors){0};
    bool ok = mem_new(&g, 1, &l.fatal);
    if (ok) {
        l.arena = &g->arena;
        l.path = g->path = arena_strdup(l.arena, path, &l.fatal);
        ok = g->path && load(&l, g) && l.n_problems == 0;
    }
    if (ok) {
        *out = g;
    } else {
        l.path = path;
        report(&l, errors);
        graph_free(g);
    }
    mem_free(l.problems);
    arena_free(&l.scratch);
    return ok;
}

void graph_free(struct graph *g)
{
    if (g)
        arena_free(&g->arena);
    mem_free(g);
}

/* ------------------------------------------------------------------------------------------------------ looking up */

int graph_find(const struct graph *g, const char *name)
{
    for (size_t i = 0; i < g->n_nodes; i++)
        if (strcmp(g->nodes[i].name, name) == 0)
            return (int)i;
    return -1;
}

int class_param(const struct node_class *c, const char *name)
{
    for (int i = 0; c->params && c->params[i].name; i++)
        if (strcmp(c->params[i].name, name) == 0)
            return i;
    return -1;
}

int class_port(const struct node_class *c, const char *name)
{
    for (int i = 0; c->ports && c->ports[i].name; i++)
        if (strcmp(c->ports[i].name, name) == 0)
            return i;
    return -1;
}

/* -------------------------------------------------------------------------------------------------------- printing */

#define WIDEST 160 /* characters of a source line that are shown */

static size_t character(const char *p, size_t left)
{
    size_t n = 1;
    while (n < left && ((unsigned char)p[n] & 0xc0) == 0x80)
        n++;
    return n;
}

/* Line number `line` of the file, without its end, in *text (to be freed with mem_free); false when it cannot be
 * had. */
static bool source_line(const char *path, int line, char **text, size_t *length)
{
    char *content = NULL;
    size_t bytes = 0, at = 0, end;
    ssize_t got = 1;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0)
        return false;
    bool ok = mem_raw(&content, LOADING_FILE_BYTES, NULL);
    while (ok && got > 0 && bytes < LOADING_FILE_BYTES) {
        got = read(fd, content + bytes, LOADING_FILE_BYTES - bytes);
        bytes += got > 0 ? (size_t)got : 0;
    }
    close(fd);
    if (ok && bytes >= 3 && memcmp(content, "\xef\xbb\xbf", 3) == 0)
        at = 3;
    for (int i = 1; ok && i < line; i++) {
        while (at < bytes && !yaml_break(content + at, bytes - at))
            at++;
        at += yaml_break(content + at, bytes - at);
    }
    for (end = at; ok && end < bytes && !yaml_break(content + end, bytes - end);)
        end++;
    ok = ok && at < end;
    if (ok) {
        memmove(content, content + at, end - at);
        *text = content;
        *length = end - at;
    } else {
        mem_free(content);
    }
    return ok;
}

/* The characters [from, to) of a line; what a terminal would obey becomes '?', and a broken byte, too. With `blank`,
 * the same width in spaces, tabs kept. */
static void print_characters(FILE *out, const char *text, size_t length, int from, int to, bool blank)
{
    int i = 0;
    for (size_t at = 0; at < length && i < to; i++) {
        size_t n = character(text + at, length - at);
        unsigned char c = (unsigned char)text[at];
        if (i >= from) {
            if (c == '\t')
                fputc('\t', out);
            else if (blank)
                fputc(' ', out);
            else if (c < 0x20 || c == 0x7f || !str_is_utf8(text + at, n))
                fputc('?', out);
            else
                fwrite(text + at, 1, n, out);
        }
        at += n;
    }
    for (; blank && i < to; i++)
        fputc(' ', out);
}

/* The source line, and carets with the hint behind them. */
static void print_source(const struct err *e, const char *text, size_t length, const char *hint, FILE *out)
{
    int column = e->input_column > 0 ? e->input_column - 1 : 0, width = e->input_width > 0 ? e->input_width : 1;
    int from = column + width > WIDEST ? column > 40 ? column - 40 : 0 : 0, to = from + WIDEST, n = 0;
    for (size_t at = 0; at < length; n++)
        at += character(text + at, length - at);
    if (width > to - column)
        width = to - column;
    fprintf(out, "%5d | %s", e->input_line, from > 0 ? "..." : "");
    print_characters(out, text, length, from, to, false);
    fprintf(out, "%s\n      | %s", n > to ? "..." : "", from > 0 ? "   " : "");
    print_characters(out, text, length, from, column, true);
    for (int i = 0; i < width; i++)
        fputc('^', out);
    fprintf(out, "%s%s\n", hint ? " " : "", hint ? hint : "");
}

void graph_error_print(const struct err *e, FILE *out)
{
    const char *split = strchr(e->text, '\n'), *hint = split ? split + 1 : NULL;
    int length = split ? (int)(split - e->text) : (int)strlen(e->text);
    char *text;
    size_t n;
    if (e->input[0] && e->input_line > 0)
        fprintf(out, "%s:%d:%d: ", e->input, e->input_line, e->input_column);
    else if (e->input[0])
        fprintf(out, "%s: ", e->input);
    fprintf(out, "error: %.*s", length, e->text);
    if (e->input_line > 0 && source_line(e->input, e->input_line, &text, &n)) {
        fputc('\n', out);
        print_source(e, text, n, hint, out);
        mem_free(text);
    } else {
        fprintf(out, "%s%s\n", hint ? "; " : "", hint ? hint : "");
    }
}
