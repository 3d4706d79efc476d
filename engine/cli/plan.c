/* `scout plan`: what a run would make, what it would reuse, and what cannot be told yet. Reads only, and quickly: large
 * sources are not hashed. */
#include <string.h>

#include "engine/cli/cli.h"

static void print_json(const struct run_view *v)
{
    char key[KEY_TEXT];
    struct str s = {0};
    str_add(&s, "{\"event\":\"plan\",\"node\":");
    str_add_json(&s, v->name);
    str_printf(&s, ",\"type\":\"%s\",\"state\":\"%s\"", v->type, v->state);
    if (v->has_key)
        str_printf(&s, ",\"key\":\"%s\"", key_text(&v->key, key));
    str_add(&s, ",\"reason\":");
    str_add_json(&s, v->reason);
    str_add(&s, "}");
    cli_print_json(&s, "plan");
}

static int plan_main(const struct args *a)
{
    struct graph *g;
    struct run *r;
    struct run_view v;
    int code, width = 4;
    if (!cli_plan(a, &g, &r, &code))
        return code;
    size_t run = 0, reuse = 0, unknown = 0;
    for (size_t i = 0; i < run_count(r); i++) {
        run_view(r, i, &v);
        if ((int)strlen(v.name) > width)
            width = (int)strlen(v.name);
        run += strcmp(v.state, "run") == 0;
        reuse += strcmp(v.state, "reuse") == 0;
        unknown += strcmp(v.state, "unknown") == 0;
    }
    for (size_t i = 0; i < run_count(r); i++) {
        run_view(r, i, &v);
        if (args_flag(a, "--json"))
            print_json(&v);
        else
            printf("  %-*s  %-10s  %s\n", width, v.name, v.state, v.reason);
    }
    if (args_flag(a, "--json"))
        printf("{\"event\":\"result\",\"run\":%zu,\"reuse\":%zu,\"unknown\":%zu}\n", run, reuse, unknown);
    else
        printf("%zu to run, %zu to reuse, %zu unknown; store %s\n", run, reuse, unknown, run_store_path(r));
    run_close(r);
    graph_free(g);
    return CLI_DONE;
}

const struct command command_plan = {"plan", "Say what a run would make, reuse, or cannot tell yet. Changes nothing.",
                                     (const char *const[]){"GRAPH", NULL},
                                     (const struct option[]){CLI_RUN_OPTIONS, {0}}, plan_main};
