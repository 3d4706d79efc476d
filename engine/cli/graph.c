/* `scout graph`: the graph as text for graphviz, or its nodes and what they take with --json. */
#include <string.h>

#include "engine/cli/cli.h"

/* A DOT string literal. */
static void print_quoted(const char *text)
{
    putchar('"');
    for (; *text; text++) {
        if (*text == '"' || *text == '\\')
            putchar('\\');
        putchar(*text);
    }
    putchar('"');
}

static void print_edges(const struct graph *g, const struct graph_node *n)
{
    for (size_t p = 0; n->class->ports && n->class->ports[p].name; p++)
        for (size_t i = 0; i < n->n_inputs[p]; i++) {
            const struct graph_input *in = &n->inputs[p][i];
            printf("  ");
            print_quoted(g->nodes[in->node].name);
            printf(" -> ");
            print_quoted(n->name);
            printf(" [label=");
            print_quoted(in->output[0] ? in->output : n->class->ports[p].name);
            printf("];\n");
        }
}

static void print_dot(const struct graph *g)
{
    printf("digraph ");
    print_quoted(g->name);
    printf(" {\n  rankdir=LR;\n  node [shape=box, fontname=\"sans-serif\"];\n  edge [fontname=\"sans-serif\", "
           "fontsize=10];\n");
    for (size_t i = 0; i < g->n_nodes; i++) {
        const struct graph_node *n = &g->nodes[i];
        printf("  ");
        print_quoted(n->name);
        printf(" [label=");
        print_quoted(n->name);
        if (strcmp(n->name, n->class->name) != 0) {
            printf(", xlabel=");
            print_quoted(n->class->name);
        }
        printf("];\n");
    }
    for (size_t i = 0; i < g->n_nodes; i++)
        print_edges(g, &g->nodes[i]);
    printf("}\n");
}

static void print_json(const struct graph *g, const struct graph_node *n)
{
    struct str s = {0};
    bool is_first = true;
    str_add(&s, "{\"event\":\"node\",\"node\":");
    str_add_json(&s, n->name);
    str_printf(&s, ",\"type\":\"%s\",\"inputs\":[", n->class->name);
    for (size_t p = 0; n->class->ports && n->class->ports[p].name; p++)
        for (size_t i = 0; i < n->n_inputs[p]; i++) {
            const struct graph_input *in = &n->inputs[p][i];
            str_printf(&s, "%s{\"port\":\"%s\",\"node\":", is_first ? "" : ",", n->class->ports[p].name);
            str_add_json(&s, g->nodes[in->node].name);
            str_printf(&s, ",\"output\":\"%s\"}", in->output);
            is_first = false;
        }
    str_add(&s, "]}");
    cli_print_json(&s, "node");
}

static int graph_main(const struct args *a)
{
    const char *format = args_value(a, "--format");
    struct graph *g;
    int code;
    if (format && strcmp(format, "dot") != 0) {
        struct err e;
        err_set(&e, ERR_USAGE, "graph: format '%s' is not known; the one there is: dot", format);
        return cli_fail(a, &e);
    }
    if (!cli_load(a, &g, &code))
        return code;
    for (size_t i = 0; args_flag(a, "--json") && i < g->n_nodes; i++)
        print_json(g, &g->nodes[i]);
    if (!args_flag(a, "--json"))
        print_dot(g);
    graph_free(g);
    return CLI_DONE;
}

const struct command command_graph = {
    "graph", "Print the graph for graphviz: scout graph GRAPH | dot -Tsvg.", (const char *const[]){"GRAPH", NULL},
    (const struct option[]){{"--format", "FORMAT", false, "dot (the default)"},
                            {"--set", "NAME=VALUE", true, "a graph parameter, or nodes.<node>.with.<parameter>"},
                            {"--variant", "NAME", false, "a variant of the graph"},
                            {0}},
    graph_main};
