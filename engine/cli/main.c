/* The program `scout`: find the command, parse its options, let it run. */
#include <signal.h>
#include <string.h>

#include "engine/cli/cli.h"
#include "kernels/devices.h"

static const struct command *const commands[] = {&command_run, &command_plan, &command_status, &command_audit,
                                                 &command_explain, &command_nodes, &command_formats, &command_graph,
                                                 &command_check, &command_devices, &command_inspect, &command_decode};
enum { N_COMMANDS = sizeof commands / sizeof *commands };

static void print_help(FILE *out)
{
    fprintf(out,
            "usage: scout COMMAND [ARGUMENT]... [OPTION]...\n\n"
            "Runs graphs that measure, choose and export mixed-precision formats for language models.\n\ncommands:\n");
    for (size_t i = 0; i < N_COMMANDS; i++)
        fprintf(out, "  %-10s %s\n", commands[i]->name, commands[i]->summary);
    fprintf(out,
            "\n'scout COMMAND --help' lists a command's options; 'scout --version' prints the version.\n"
            "Exit codes: 0 done; 1 a node failed; 2 wrong usage, graph or input; 3 disk, memory, device or a directory "
            "in use;\n130 interrupted, and the same command resumes.\n");
}

/* The command line is wrong: there are no parsed options yet that could say --json. */
static int fail(int argc, char **argv, const struct err *e)
{
    int code = cli_fail(NULL, e);
    for (int i = 0; i < argc; i++)
        if (strcmp(argv[i], "--json") == 0) {
            cli_error_json(e);
            break;
        }
    return code;
}

static int unknown(const char *word, int argc, char **argv)
{
    const char *names[N_COMMANDS + 2] = {"--help", "--version"};
    struct err e;
    for (size_t i = 0; i < N_COMMANDS; i++)
        names[i + 2] = commands[i]->name;
    const char *near = str_nearest(word, names, N_COMMANDS + 2);
    const char *what = word[0] == '-' ? "option" : "command";
    err_set(&e, ERR_USAGE, "unknown %s '%s'%s", what, word, near ? "" : "; 'scout --help' lists what there is");
    err_suggest(&e, near);
    return fail(argc, argv, &e);
}

static int run_command(const struct command *c, int argc, char **argv)
{
    struct args *a;
    struct err e = {0};
    if (!args_parse(&a, c, argc, argv, &e))
        return fail(argc, argv, &e);
    int code = CLI_DONE;
    if (args_flag(a, "--help"))
        args_help(c, stdout);
    else
        code = c->main(a);
    args_free(a);
    return code;
}

static const struct command *find_command(const char *name)
{
    for (size_t i = 0; i < N_COMMANDS; i++)
        if (strcmp(name, commands[i]->name) == 0)
            return commands[i];
    return NULL;
}

static int dispatch(int argc, char **argv)
{
    if (argc < 2) {
        print_help(stderr);
        return CLI_WRONG;
    }
    const struct command *c = find_command(argv[1]);
    if (c)
        return run_command(c, argc - 2, argv + 2);
    if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0 || strcmp(argv[1], "help") == 0) {
        if (argc > 2 && !(c = find_command(argv[2])))
            return unknown(argv[2], argc, argv);
        if (c)
            args_help(c, stdout);
        else
            print_help(stdout);
        return CLI_DONE;
    }
    if (strcmp(argv[1], "--version") == 0) {
        printf("scout %s\n%s\n", cli_version(), kernels_build());
        return CLI_DONE;
    }
    return unknown(argv[1], argc, argv);
}

/* What was printed must have arrived: a script that reads half a list has to know. */
static int finish_output(int code)
{
    struct err e;
    if (fflush(stdout) != 0)
        err_errno(&e, ERR_RESOURCE, "cannot write to the standard output");
    else if (ferror(stdout)) /* an earlier write failed; its reason is gone */
        err_set(&e, ERR_RESOURCE, "cannot write to the standard output: it is incomplete");
    else
        return code;
    cli_error(NULL, &e);
    return code == CLI_DONE ? cli_exit(&e, true) : code;
}

int main(int argc, char **argv)
{
    /* A full disk limit or a closed pipe is an error of the write that meets it, with a message; not a silent death. */
    signal(SIGXFSZ, SIG_IGN);
    signal(SIGPIPE, SIG_IGN);
    return finish_output(dispatch(argc, argv));
}
