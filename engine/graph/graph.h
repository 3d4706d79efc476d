#ifndef ENGINE_GRAPH_GRAPH_H
#define ENGINE_GRAPH_GRAPH_H
/* The graph language: text to a checked graph. Loading resolves `extends`, `params`, `variants`, `repeat` and `--set`,
 * types every parameter by its declaration, connects every port, and reports all mistakes of a file at once, each with
 * file, line, column, the source line, carets and the nearest known name. A loaded graph is immutable. */
#include <stdio.h>

#include "engine/node.h"

/* Where a piece of a graph came from. `file` is NULL for --set and for defaults. */
struct mark {
    const char *file;
    int line, column, width; /* from 1 */
};

struct value {            /* a typed parameter value: always a list, of one element unless the parameter is `many` */
    size_t n;
    const char **text;    /* canonical text of each element: ints in decimal, floats as %.17g, paths absolute */
    double *number;       /* INT, FLOAT, BOOL (0 or 1), SIZE (bytes): the value; exact for |int| < 2^53 */
    struct mark mark;
};

struct graph_input {      /* one connection of a port */
    int node;             /* index in graph->nodes */
    const char *output;   /* "" for the whole node */
    struct mark mark;
};

struct graph_node {
    const char *name;                /* "round.2" for the second unrolled one */
    const struct node_class *class;
    struct value *params;            /* parallel to class->params */
    size_t *n_inputs;                /* parallel to class->ports */
    struct graph_input **inputs;
    const char *device;              /* on: "auto", "cpu", "cuda", "cuda:1" */
    int threads;                     /* on: 0 when not said */
    uint64_t memory;                 /* on: 0 when not said */
    struct mark mark;                /* of its name */
};

struct graph {
    const char *name, *path;
    char *text;                      /* of the top file */
    struct graph_node *nodes;        /* in topological order, ties in the order of the text */
    size_t n_nodes;
    struct arena arena;
};

struct graph_options {
    const char *variant;             /* NULL: none */
    const char *const *set;          /* "params.windows=8" or "windows=8" (a graph parameter), or
                                        "nodes.corpus.with.window=128". The value is the text as it stands, unless it
                                        begins with [ { " ' or is null or ~: then YAML */
    size_t n_set;
    const struct node_class *const *classes; /* the node table, NULL-terminated */
};

/* All mistakes of a load, in the order of the text; at most 50, then one that says how many more. A text with a
 * suggestion has it on a second line: "node 'x', ...: there is no node 'modle'\ndid you mean 'model'?". `input` is the
 * file as the user named it, or "--set windows=8" with line 0. */
struct graph_errors {
    struct err *list;
    size_t n;
};

/* Returns false with at least one error in *errors (freed by graph_errors_free): ERR_INPUT, or a single ERR_RESOURCE
 * when memory ran out. Files are read, none is written; relative paths count from the file that says them. */
bool graph_load(struct graph **out, const char *path, const struct graph_options *o,
                struct graph_errors *errors) ERR_CHECK;
void graph_free(struct graph *g);
void graph_errors_free(struct graph_errors *errors);
/* Print one error as the house does: "file:line:col: error: text", the source line, carets, and the suggestion after
 * them. The file is read again; if it is gone, the source line is left out. */
void graph_error_print(const struct err *e, FILE *out);

/* Index of the node of that name, or -1. */
int graph_find(const struct graph *g, const char *name);
/* Index of a param or port in a class by name, or -1. */
int class_param(const struct node_class *c, const char *name);
int class_port(const struct node_class *c, const char *name);
/* A bound of a parameter as it is written: sizes with their unit. Returns `out`. */
const char *param_bound(const struct param *p, double x, char out[32]);

#endif
