/* `scout explain`: why a node would run again, and what its key is made of. */
#include "engine/cli/cli.h"

static int explain_main(const struct args *a)
{
    struct graph *g;
    struct run *r;
    struct str text = {0};
    struct err e = {0};
    int code;
    if (!cli_plan(a, &g, &r, &code))
        return code;
    const char *name = args_operand(a, 1);
    int at = graph_find(g, name);
    if (at < 0) {
        const char **names;
        if (mem_new(&names, g->n_nodes + 1, &e)) {
            for (size_t i = 0; i < g->n_nodes; i++)
                names[i] = g->nodes[i].name;
            const char *near = str_nearest(name, names, g->n_nodes);
            err_set(&e, ERR_USAGE, "explain: '%s' is no node of graph '%s'", name, g->name);
            err_suggest(&e, near);
            mem_free(names);
        }
        code = cli_fail(a, &e);
    } else if (!run_explain(r, (size_t)at, &text, &e)) {
        code = cli_fail(a, &e);
    } else {
        code = CLI_DONE;
        if (args_flag(a, "--json")) {
            struct str json = {0};
            str_add(&json, "{\"event\":\"explain\",\"node\":");
            str_add_json(&json, name);
            str_add(&json, ",\"text\":");
            str_add_json(&json, text.text);
            str_add(&json, "}");
            cli_print_json(&json, "explain");
        } else {
            fputs(text.text, stdout);
        }
    }
    str_free(&text);
    run_close(r);
    graph_free(g);
    return code;
}

const struct command command_explain = {
    "explain", "Say why a node would run again: what changed since its last result, and where the change began.",
    (const char *const[]){"GRAPH", "NODE", NULL}, (const struct option[]){CLI_GRAPH_OPTIONS, {0}}, explain_main};
