/* `scout status`: a run's index as a table, of a run that goes on or of one that ended. It takes no lock and opens no
 * result, so it disturbs nobody and is quick whatever the size of the results. */
#include <errno.h>
#include <math.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <time.h>
#include <unistd.h>

#include "engine/cli/cli.h"

/* Does a process hold RUN/LOCK? Asked of /proc/locks: trying the lock could make a starting run fail. */
static bool is_held(const char *dir)
{
    struct str path = {0};
    struct stat st;
    str_printf(&path, "%s/LOCK", dir);
    bool there = path.text && !path.failed && stat(path.text, &st) == 0;
    str_free(&path);
    FILE *f = there ? fopen("/proc/locks", "re") : NULL;
    if (!f)
        return false;
    char line[256], kind[16];
    bool held = false;
    while (!held && fgets(line, sizeof line, f)) {
        unsigned major_number, minor_number;
        unsigned long long inode;
        if (sscanf(line, "%*s %15s %*s %*s %*s %x:%x:%llu", kind, &major_number, &minor_number, &inode) == 4)
            held = strcmp(kind, "FLOCK") == 0 && inode == st.st_ino && major_number == major(st.st_dev) &&
                   minor_number == minor(st.st_dev);
    }
    fclose(f);
    return held;
}

static void print_json(const struct index_node *n)
{
    char key[KEY_TEXT];
    struct str s = {0};
    str_add(&s, "{\"event\":\"node\",\"node\":");
    str_add_json(&s, n->name);
    str_printf(&s, ",\"type\":\"%s\",\"state\":\"%s\"", n->type, n->state);
    if (n->has_key)
        str_printf(&s, ",\"key\":\"%s\"", key_text(&n->key, key));
    str_add(&s, ",\"seconds\":");
    str_add_json_double(&s, n->seconds);
    if (n->error && n->error[0]) {
        str_add(&s, ",\"error\":");
        str_add_json(&s, n->error);
    }
    run_stats_json(n->stats, n->n_stats, &s);
    str_add(&s, "}");
    cli_print_json(&s, "node");
}

struct count {
    const char *state;
    size_t n;
};

static void print_totals(const struct args *a, const struct index_run *run, const struct index_node *nodes, size_t n,
                         bool held)
{
    struct count counts[] = {{"done", 0}, {"reused", 0}, {"running", 0}, {"waiting", 0}, {"failed", 0}, {"blocked", 0},
                             {"interrupted", 0}};
    const size_t n_counts = sizeof counts / sizeof *counts;
    for (size_t i = 0; i < n; i++)
        for (size_t k = 0; k < n_counts; k++)
            counts[k].n += strcmp(nodes[i].state, counts[k].state) == 0;
    if (args_flag(a, "--json")) {
        printf("{\"event\":\"result\",\"live\":%s", held ? "true" : "false");
        for (size_t k = 0; k < n_counts; k++)
            printf(",\"%s\":%zu", counts[k].state, counts[k].n);
        printf("}\n");
        return;
    }
    printf("graph %s: ", run->graph_name);
    bool first = true;
    for (size_t k = 0; k < n_counts; k++)
        if (counts[k].n > 0) {
            printf("%s%zu %s", first ? "" : ", ", counts[k].n, counts[k].state);
            first = false;
        }
    printf("; %s\n", held ? "a process is running it" : "no process is running it");
}

/* Print the run as it is now. *live: go on watching. */
static bool show(const struct args *a, const char *dir, bool *live, struct err *e)
{
    struct arena arena = {0};
    struct index_run run = {0};
    struct index_node *nodes = NULL;
    size_t n = 0;
    int width = 4;
    *live = is_held(dir);
    bool ok = index_read(dir, &run, &nodes, &n, &arena, e);
    for (size_t i = 0; ok && i < n; i++)
        if ((int)strlen(nodes[i].name) > width)
            width = (int)strlen(nodes[i].name);
    if (ok && args_flag(a, "--watch") && !args_flag(a, "--json") && isatty(STDOUT_FILENO))
        printf("\033[H\033[2J");
    for (size_t i = 0; ok && i < n; i++) {
        if (args_flag(a, "--json"))
            print_json(&nodes[i]);
        else
            cli_print_node(width, nodes[i].name, nodes[i].state, nodes[i].seconds, nodes[i].stats,
                           nodes[i].n_stats, nodes[i].error);
    }
    if (ok)
        print_totals(a, &run, nodes, n, *live);
    fflush(stdout);
    arena_free(&arena);
    return ok;
}

static int status_main(const struct args *a)
{
    const char *dir = args_operand(a, 0);
    struct err e = {0};
    bool live = true;
    if (!cli_check_run(dir, &e))
        return cli_fail(a, &e);
    while (live) {
        if (!show(a, dir, &live, &e))
            return cli_fail(a, &e);
        if (!args_flag(a, "--watch") || ferror(stdout)) /* nobody sees it any more */
            break;
        if (live)
            nanosleep(&(struct timespec){.tv_sec = 1}, NULL);
    }
    return CLI_DONE;
}

const struct command command_status = {
    "status", "Show the nodes of a run, while it goes or after it ended.", (const char *const[]){"RUN", NULL},
    (const struct option[]){{"--watch", NULL, false, "show it again every second, until the run ends"}, {0}},
    status_main};
