/* Messages, exit codes, and the way from options to a loaded graph and an opened plan. */
#include "engine/cli/cli.h"

#include <math.h>
#include <string.h>
#include <unistd.h>

#include "kernels/devices.h"
#include "nodes/nodes.h"

const char *cli_version(void)
{
    return SCOUT_VERSION;
}

void cli_print_json(struct str *s, const char *event)
{
    if (s->text && !s->failed)
        puts(s->text);
    else
        printf("{\"event\":\"%s\"}\n", event);
    str_free(s);
}

void cli_error_json(const struct err *e)
{
    struct str s = {0};
    str_printf(&s, "{\"event\":\"error\",\"code\":\"%s\",\"text\":", err_name(e->code));
    str_add_json(&s, e->text);
    if (e->input[0]) {
        str_add(&s, ",\"file\":");
        str_add_json(&s, e->input);
        if (e->input_line > 0)
            str_printf(&s, ",\"line\":%d,\"column\":%d", e->input_line, e->input_column);
    }
    str_add(&s, "}");
    cli_print_json(&s, "error");
}

void cli_error(const struct args *a, const struct err *e)
{
    fflush(stdout);
    if (e->input[0])
        graph_error_print(e, stderr);
    else
        fprintf(stderr, "scout: error: %s\n", e->text);
    if (a && args_flag(a, "--debug") && e->file)
        fprintf(stderr, "  raised at %s:%d\n", e->file, e->line);
    if (a && args_flag(a, "--json"))
        cli_error_json(e);
}

int cli_exit(const struct err *e, bool started)
{
    switch (e->code) {
    case ERR_STOPPED:
        return CLI_INTERRUPTED;
    case ERR_RESOURCE:
    case ERR_DEVICE:
        return CLI_RESOURCE;
    case ERR_USAGE:
    case ERR_INPUT:
        return started ? CLI_FAILED : CLI_WRONG;
    default:
        return CLI_FAILED;
    }
}

int cli_fail(const struct args *a, const struct err *e)
{
    cli_error(a, e);
    return cli_exit(e, false);
}

bool cli_load(const struct args *a, struct graph **out, int *code)
{
    struct graph_errors errors = {0};
    struct graph_options o = {.variant = args_value(a, "--variant"), .classes = node_table};
    o.set = args_values(a, "--set", &o.n_set);
    if (graph_load(out, args_operand(a, 0), &o, &errors))
        return true;
    for (size_t i = 0; i < errors.n; i++)
        *code = cli_fail(a, &errors.list[i]);
    graph_errors_free(&errors);
    return false;
}

bool cli_check_run(const char *dir, struct err *e)
{
    struct str path = {0};
    str_printf(&path, "%s/run.h5", dir);
    bool ok = str_ok(&path, e) && (access(path.text, R_OK) == 0 ||
              err_errno(e, ERR_INPUT, "there is no run in '%s': cannot open '%s'", dir, path.text));
    str_free(&path);
    return ok;
}

/* The accelerators as the engine wants them; their other texts live as long as the process. */
static void list_devices(struct cli_options *o)
{
    struct run_backend *b = &o->run.backend;
    size_t n;
    const struct device *list = kernels_devices(&n, &b->no_device);
    for (size_t i = 0; i < n && i < CLI_DEVICES_MOST; i++) {
        struct run_device *d = &o->devices[i];
        *d = (struct run_device){.kernels = list[i].kernels, .family = "cuda", .model = list[i].model,
                                 .pci = list[i].pci, .index = list[i].index, .memory = list[i].memory};
        snprintf(d->name, sizeof d->name, "%s:%d", d->family, d->index);
        b->n_devices++;
    }
    b->devices = o->devices;
    b->expects_device = strncmp(kernels_build(), "no ", 3) != 0;
    b->device_open = kernels_device_open;
    b->device_note = kernels_device_note;
}

bool cli_run_options(const struct args *a, struct cli_options *options, struct err *e)
{
    struct run_options *o = &options->run;
    *o = (struct run_options){.dir = args_value(a, "--dir"), .store = args_value(a, "--store"),
                              .device = args_value(a, "--device")};
    o->targets = args_values(a, "--target", &o->n_targets);
    if (!args_int(a, "--jobs", 1, 4096, &o->jobs, e) || !args_int(a, "--threads", 1, 4096, &o->threads, e) ||
        !args_size(a, "--memory", &o->memory, e))
        return false;
    const struct kernels *k = kernels_cpu(e);
    if (!k)
        return false;
    o->backend = (struct run_backend){
        .kernels = k, .name = k->name, .queue_new = kernels_queue_new, .queue_free = kernels_queue_free};
    if (!o->device || strcmp(o->device, "cpu") != 0)
        list_devices(options);
    return true;
}

static void print_stat(const struct index_stat *s, bool is_first)
{
    bool is_said = strcmp(s->unit, "1") == 0 || strstr(s->name, s->unit); /* rows_reused counts rows */
    printf("%s %s %.6g%s%s", is_first ? " " : ",", s->name, s->value, is_said ? "" : " ", is_said ? "" : s->unit);
}

void cli_print_node(int width, const char *name, const char *state, double seconds, const struct index_stat *stats,
                    size_t n_stats, const char *error)
{
    char when[16] = "";
    bool is_first = true;
    printf("  %-*s  %s", width, name, state);
    if (!isnan(seconds))
        printf("%*s", 21 - (int)strlen(state), str_seconds(seconds, when));
    for (size_t i = 0; i < n_stats; i++) {
        if (strcmp(stats[i].unit, "s") == 0)
            continue;
        print_stat(&stats[i], is_first);
        is_first = false;
    }
    if (error && error[0])
        printf("  %s", error);
    printf("\n");
}

bool cli_plan(const struct args *a, struct graph **g, struct run **r, int *code)
{
    struct cli_options o;
    struct err e = {0};
    *g = NULL;
    *r = NULL;
    *code = CLI_DONE;
    if (!cli_run_options(a, &o, &e)) {
        *code = cli_fail(a, &e);
        return false;
    }
    if (!cli_load(a, g, code))
        return false;
    o.run.plan_only = true;
    if (run_open(r, *g, &o.run, &e) && run_plan(*r, &e))
        return true;
    *code = cli_fail(a, &e);
    run_close(*r);
    graph_free(*g);
    return false;
}
