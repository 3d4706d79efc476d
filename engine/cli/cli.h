#ifndef ENGINE_CLI_CLI_H
#define ENGINE_CLI_CLI_H
/* What the commands share: messages, exit codes, loading a graph, and the back end. This folder is the only place that
 * prints to the terminal and ends the process. */
#include "engine/cli/args.h"
#include "engine/run/run.h"

enum cli_exit {
    CLI_DONE = 0,
    CLI_FAILED = 1,      /* after the start, or our own mistake */
    CLI_WRONG = 2,       /* usage, graph or input found wrong before anything started */
    CLI_RESOURCE = 3,    /* disk, memory, device, directory in use */
    CLI_INTERRUPTED = 130
};

/* "0.1.0" */
const char *cli_version(void);

/* Print a line of --json and free it; just its event when memory was out while it was made. */
void cli_print_json(struct str *s, const char *event);
/* "scout: error: text" on stderr; with --json an event "error" on stdout as well; with --debug where it was raised. */
void cli_error(const struct args *a, const struct err *e);
/* The event alone, for what goes wrong before there are `args`. */
void cli_error_json(const struct err *e);
/* The exit code for an error; `started`: after the first node started, when no graph or input was wrong from the
 * beginning. */
int cli_exit(const struct err *e, bool started);
/* cli_error, and cli_exit of an error that came before anything started. */
int cli_fail(const struct args *a, const struct err *e);

/* Load the graph of the first operand with --variant and --set; prints what is wrong and returns false, with the exit
 * code in *code. */
bool cli_load(const struct args *a, struct graph **out, int *code);
/* Is there a run in the directory? ERR_INPUT without its run.h5. */
bool cli_check_run(const char *dir, struct err *e) ERR_CHECK;
/* Fill dir, store, targets, device, jobs, threads, memory and the back end from the options that the command has. With
 * --device cpu no accelerator is looked for: the way out when its driver hangs. */
enum { CLI_DEVICES_MOST = 64 };
struct cli_options {
    struct run_options run;
    struct run_device devices[CLI_DEVICES_MOST]; /* what run.backend lists; until run_open */
};
bool cli_run_options(const struct args *a, struct cli_options *o, struct err *e);
/* One line of a table of nodes: state, seconds (NaN: none), figures, and `error` (NULL: none). Figures in seconds are a
 * profile: they are in run.h5 and in --json, not here. */
void cli_print_node(int width, const char *name, const char *state, double seconds, const struct index_stat *stats,
                    size_t n_stats, const char *error);
/* Open a run for planning only, and plan it. On failure prints and returns false. *code is the exit code, CLI_DONE
 * when it went well. */
bool cli_plan(const struct args *a, struct graph **g, struct run **r, int *code);

extern const struct command command_run, command_plan, command_status, command_audit, command_explain, command_nodes,
    command_graph, command_check, command_devices, command_formats, command_inspect, command_decode;

/* The options that say what to run, shared by run, plan and explain. */
#define CLI_GRAPH_OPTIONS \
    {"--dir", "RUN", false, "the run's directory (default: runs/<graph name>)"}, \
    {"--store", "DIR", false, "where results are kept (default: as last time, then RUN/store); runs may share one"}, \
    {"--set", "NAME=VALUE", true, "a graph parameter, or nodes.<node>.with.<parameter>"}, \
    {"--variant", "NAME", false, "a variant of the graph"}
#define CLI_DEVICE_OPTION {"--device", "DEVICE", false, "auto, cpu, cuda or cuda:N"}
#define CLI_RUN_OPTIONS \
    CLI_GRAPH_OPTIONS, \
    {"--target", "NODE", true, "make this node and what it needs (default: all that nobody reads)"}, \
    CLI_DEVICE_OPTION, \
    {"--jobs", "N", false, "most nodes at once (default: the number of cores)"}, \
    {"--threads", "N", false, "cores to use (default: all)"}, \
    {"--memory", "SIZE", false, "memory that running nodes may use together (default: nine tenths of the machine's)"}

#endif
