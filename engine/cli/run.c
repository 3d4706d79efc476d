/* `scout run`: load, run, and say what came of it. With --dry-run it is `scout plan`. */
#include <math.h>
#include <string.h>
#include <unistd.h>

#include "engine/cli/cli.h"
#include "engine/cli/interrupt.h"

static int exit_code(const struct run_summary *s)
{
    if (s->stopped)
        return CLI_INTERRUPTED;
    if (s->failed == 0)
        return CLI_DONE;
    return s->resource ? CLI_RESOURCE : CLI_FAILED;
}

/* Times and figures of what this run made; `scout status` has those of reused results too. */
static void print_view(const struct run_view *v, int width)
{
    bool reused = strcmp(v->state, "reused") == 0;
    cli_print_node(width, v->name, v->state, reused ? NAN : v->seconds, v->stats, reused ? 0 : v->n_stats, NULL);
}

static void print_table(const struct run *r)
{
    struct run_view v;
    int width = 4;
    for (size_t i = 0; i < run_count(r); i++) {
        run_view(r, i, &v);
        if (v.needed && (int)strlen(v.name) > width)
            width = (int)strlen(v.name);
    }
    printf("\n  %-*s  %-11s  %8s\n", width, "node", "state", "time");
    for (size_t i = 0; i < run_count(r); i++) {
        run_view(r, i, &v);
        if (v.needed)
            print_view(&v, width);
    }
}

static void print_failures(const struct args *a, const struct run *r)
{
    struct run_view v;
    for (size_t i = 0; i < run_count(r); i++) {
        run_view(r, i, &v);
        if (!v.error || strcmp(v.state, "failed") != 0)
            continue;
        struct err e = *v.error;
        err_context(&e, "node '%s'", v.name);
        cli_error(a, &e);
    }
}

static void print_json(const struct run *r, const struct graph *g, const struct run_summary *s, int code)
{
    struct str t = {0};
    str_add(&t, "{\"event\":\"result\",\"graph\":");
    str_add_json(&t, g->name);
    str_add(&t, ",\"run\":");
    str_add_json(&t, run_dir(r));
    str_printf(&t,
               ",\"needed\":%zu,\"reused\":%zu,\"done\":%zu,\"failed\":%zu,\"blocked\":%zu,\"interrupted\":%zu,"
               "\"waiting\":%zu,\"seconds\":",
               s->needed, s->reused, s->done, s->failed, s->blocked, s->interrupted, s->waiting);
    str_add_json_double(&t, s->seconds);
    str_printf(&t, ",\"exit\":%d}", code);
    cli_print_json(&t, "result");
}

static void print_summary(const struct args *a, const struct run *r, const struct graph *g, const struct run_summary *s)
{
    char when[16];
    int code = exit_code(s);
    if (args_flag(a, "--json")) {
        print_json(r, g, s, code);
    } else {
        print_table(r);
        printf("\nreused %zu of %zu nodes, made %zu", s->reused, s->needed, s->done);
        if (s->failed + s->blocked > 0)
            printf(", %zu failed, %zu blocked", s->failed, s->blocked);
        printf(", in %s: %s/run.h5\n", str_seconds(s->seconds, when), run_dir(r));
    }
    fflush(stdout);
    if (s->stopped)
        fprintf(stderr, "scout: interrupted; what was done is kept, and the same command goes on from there\n");
}

static int execute(const struct args *a, const struct graph *g, struct run *r)
{
    struct run_summary s;
    struct err e = {0};
    if (!run_execute(r, &s, &e)) {
        cli_error(a, &e);
        return cli_exit(&e, s.started);
    }
    if (!s.started) {
        fprintf(stderr, "scout: interrupted before anything started\n");
        if (args_flag(a, "--json"))
            print_json(r, g, &s, CLI_INTERRUPTED);
        return CLI_INTERRUPTED;
    }
    print_summary(a, r, g, &s);
    print_failures(a, r);
    return exit_code(&s);
}

static int run_main(const struct args *a)
{
    struct cli_options o;
    struct interrupt *watch = NULL;
    struct graph *g = NULL;
    struct run *r = NULL;
    struct err e = {0};
    int code;
    if (args_flag(a, "--dry-run"))
        return command_plan.main(a);
    if (!interrupt_start(&watch, &e) || !cli_run_options(a, &o, &e)) {
        code = cli_fail(a, &e);
        goto out;
    }
    if (!cli_load(a, &g, &code))
        goto out;
    o.run.output = args_flag(a, "--json") ? RUN_JSON : isatty(STDOUT_FILENO) ? RUN_TERMINAL : RUN_PLAIN;
    o.run.out = stdout;
    o.run.version = cli_version();
    o.run.command_line = args_line(a);
    if (!run_open(&r, g, &o.run, &e)) {
        code = cli_fail(a, &e);
        goto out;
    }
    interrupt_attach(watch, r);
    code = execute(a, g, r);
    interrupt_attach(watch, NULL);
out:
    run_close(r);
    graph_free(g);
    interrupt_stop(watch);
    return code;
}

const struct command command_run = {
    "run", "Make every result that the graph wants and the store does not have.", (const char *const[]){"GRAPH", NULL},
    (const struct option[]){
        CLI_RUN_OPTIONS, {"--dry-run", NULL, false, "only say what would run, as 'scout plan'"}, {0}},
    run_main};
