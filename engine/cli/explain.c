/* `scout explain`: why a node would run again, and what its key is made of. */
#include "engine/cli/cli.h"

static bool unknown_node(const struct graph *g, const char *name, struct err *e)
{
    const char **names;
    if (!mem_new(&names, g->n_nodes + 1, e))
        return false;
    for (size_t i = 0; i < g->n_nodes; i++)
        names[i] = g->nodes[i].name;
    err_set(e, ERR_USAGE, "explain: '%s' is no node of graph '%s'", name, g->name);
    err_suggest(e, str_nearest(name, names, g->n_nodes));
    mem_free(names);
    return false;
}

static void print_json(const struct run_view *v, const char *text)
{
    char key[KEY_TEXT];
    struct str s = {0};
    str_add(&s, "{\"event\":\"explain\",\"node\":");
    str_add_json(&s, v->name);
    str_printf(&s, ",\"state\":\"%s\"", v->state);
    if (v->has_key)
        str_printf(&s, ",\"key\":\"%s\"", key_text(&v->key, key));
    str_add(&s, ",\"text\":");
    str_add_json(&s, text);
    str_add(&s, "}");
    cli_print_json(&s, "explain");
}

static int explain_main(const struct args *a)
{
    struct graph *g;
    struct run *r;
    struct run_view v;
    struct str text = {0};
    struct err e = {0};
    int code;
    if (!cli_plan(a, &g, &r, &code))
        return code;
    const char *name = args_operand(a, 1);
    int at = graph_find(g, name);
    if (at < 0 ? unknown_node(g, name, &e) : run_explain(r, (size_t)at, &text, &e)) {
        run_view(r, (size_t)at, &v);
        if (args_flag(a, "--json"))
            print_json(&v, text.text);
        else
            fputs(text.text, stdout);
    } else {
        code = cli_fail(a, &e);
    }
    str_free(&text);
    run_close(r);
    graph_free(g);
    return code;
}

const struct command command_explain = {
    "explain", "Say why a node would run again: what changed since its last result, and where the change began.",
    (const char *const[]){"GRAPH", "NODE", NULL},
    (const struct option[]){CLI_GRAPH_OPTIONS, CLI_DEVICE_OPTION, {0}}, explain_main};
