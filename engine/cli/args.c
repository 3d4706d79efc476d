/* The parser of command lines: `--name value`, `--name=value`, flags, operands in any order, `--` before operands that
 * begin with a dash. Nothing is abbreviated, so that a script keeps its meaning when options are added. */
#include "engine/cli/args.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "engine/base/mem.h"
#include "engine/base/str.h"

static const struct option common[] = {
    {"--json", NULL, false, "one JSON object per line"},
    {"--debug", NULL, false, "say where in the program an error was raised"},
    {"--help", NULL, false, "this text"},
};
enum { N_COMMON = sizeof common / sizeof *common, OPTIONS_MOST = 32 };

struct values {
    const struct option *option;
    const char **list;
    size_t n;
};

struct args {
    const struct command *command;
    struct values options[OPTIONS_MOST];
    size_t n_options;
    const char **operands;
    size_t n_operands, operands_most;
    struct str line;
};

static size_t count_operands(const struct command *c)
{
    size_t n = 0;
    while (c->operands && c->operands[n])
        n++;
    return n;
}

static void print_usage(const struct command *c, struct str *s)
{
    str_printf(s, "scout %s", c->name);
    for (size_t i = 0; i < count_operands(c); i++)
        str_printf(s, " %s", c->operands[i]);
}

static struct values *find(struct args *a, const char *name, size_t length)
{
    for (size_t i = 0; i < a->n_options; i++)
        if (strlen(a->options[i].option->name) == length && strncmp(a->options[i].option->name, name, length) == 0)
            return &a->options[i];
    return NULL;
}

static bool unknown_option(const struct args *a, const char *word, size_t length, struct err *e)
{
    const char *names[OPTIONS_MOST];
    char shown[128];
    for (size_t i = 0; i < a->n_options; i++)
        names[i] = a->options[i].option->name;
    snprintf(shown, sizeof shown, "%.*s", (int)(length < 100 ? length : 100), word);
    const char *near = str_nearest(shown, names, a->n_options);
    if (!near)
        return err_set(e, ERR_USAGE, "%s: unknown option '%s'; 'scout %s --help' lists them", a->command->name, shown,
                       a->command->name);
    err_set(e, ERR_USAGE, "%s: unknown option '%s'", a->command->name, shown);
    return err_suggest(e, near);
}

/* One word that begins with a dash, `-h` being short for --help. *used is set when the next word was its value. */
static bool parse_option(struct args *a, const char *word, const char *next, bool *used, struct err *e)
{
    if (strcmp(word, "-h") == 0)
        word = "--help";
    const char *equals = strchr(word, '=');
    size_t length = equals ? (size_t)(equals - word) : strlen(word);
    struct values *v = find(a, word, length);
    if (!v)
        return unknown_option(a, word, length, e);
    const struct option *o = v->option;
    *used = false;
    if (!o->value && equals)
        return err_set(e, ERR_USAGE, "%s: option '%s' takes no value", a->command->name, o->name);
    const char *value = !o->value ? "" : equals ? equals + 1 : next;
    bool is_option = o->value && !equals && next && strncmp(next, "--", 2) == 0; /* forgotten: "--dir --json" */
    if (o->value && (!value || !*value || is_option))
        return err_set(e, ERR_USAGE, "%s: option '%s' needs a value: %s %s", a->command->name, o->name, o->name,
                       o->value);
    if (o->value && v->n > 0 && !o->many)
        return err_set(e, ERR_USAGE, "%s: option '%s' is given twice", a->command->name, o->name);
    if (!mem_grow(&v->list, v->n, v->n + 1, e))
        return false;
    *used = o->value && !equals;
    v->list[v->n++] = value;
    return true;
}

static bool parse_operand(struct args *a, const char *word, struct err *e)
{
    if (a->n_operands == a->operands_most)
        return err_set(e, ERR_USAGE, "%s: unexpected argument '%s'", a->command->name, word);
    if (!*word)
        return err_set(e, ERR_USAGE, "%s: %s is empty", a->command->name, a->command->operands[a->n_operands]);
    a->operands[a->n_operands++] = word;
    return true;
}

static bool parse_words(struct args *a, int argc, char **argv, struct err *e)
{
    bool only_operands = false;
    for (int i = 0; i < argc; i++) {
        bool used = false;
        if (!only_operands && strcmp(argv[i], "--") == 0) {
            only_operands = true;
        } else if (!only_operands && argv[i][0] == '-' && argv[i][1]) {
            if (!parse_option(a, argv[i], i + 1 < argc ? argv[i + 1] : NULL, &used, e))
                return false;
            i += used;
        } else if (!parse_operand(a, argv[i], e)) {
            return false;
        }
    }
    if (args_flag(a, "--help") || a->n_operands == a->operands_most)
        return true;
    const char *missing = a->command->operands[a->n_operands];
    if (missing[0] == '[')
        return true;
    struct str usage = {0};
    print_usage(a->command, &usage);
    err_set(e, ERR_USAGE, "%s: %s is missing; usage: %s [OPTION]...", a->command->name, missing,
            usage.text ? usage.text : "");
    str_free(&usage);
    return false;
}

bool args_parse(struct args **out, const struct command *c, int argc, char **argv, struct err *e)
{
    struct args *a;
    if (!mem_new(&a, 1, e))
        return false;
    a->command = c;
    for (const struct option *o = c->options; o && o->name; o++) {
        assert(a->n_options < OPTIONS_MOST - N_COMMON);
        a->options[a->n_options++].option = o;
    }
    for (size_t i = 0; i < N_COMMON; i++)
        a->options[a->n_options++].option = &common[i];
    a->operands_most = count_operands(c);
    str_printf(&a->line, "scout %s", c->name);
    for (int i = 0; i < argc; i++)
        str_printf(&a->line, " %s", argv[i]);
    if (!mem_new(&a->operands, a->operands_most + 1, e) || !parse_words(a, argc, argv, e)) {
        args_free(a);
        return false;
    }
    *out = a;
    return true;
}

void args_free(struct args *a)
{
    if (!a)
        return;
    for (size_t i = 0; i < a->n_options; i++)
        mem_free(a->options[i].list);
    mem_free(a->operands);
    str_free(&a->line);
    mem_free(a);
}

const char *args_line(const struct args *a)
{
    return a->line.text && !a->line.failed ? a->line.text : a->command->name;
}

const char *args_operand(const struct args *a, size_t i)
{
    return i < a->n_operands ? a->operands[i] : NULL;
}

const char *const *args_values(const struct args *a, const char *name, size_t *n)
{
    const struct values *v = find((struct args *)a, name, strlen(name));
    *n = v ? v->n : 0;
    return v ? v->list : NULL;
}

bool args_flag(const struct args *a, const char *name)
{
    size_t n;
    args_values(a, name, &n);
    return n > 0;
}

const char *args_value(const struct args *a, const char *name)
{
    size_t n;
    const char *const *list = args_values(a, name, &n);
    return n > 0 ? list[n - 1] : NULL;
}

bool args_int(const struct args *a, const char *name, int least, int most, int *out, struct err *e)
{
    const char *text = args_value(a, name);
    char *end;
    if (!text) {
        *out = 0;
        return true;
    }
    errno = 0;
    long x = strtol(text, &end, 10);
    if (errno || *end || end == text || x < least || x > most)
        return err_set(e, ERR_USAGE, "%s: option '%s': '%s' is no whole number from %d to %d", a->command->name, name,
                       text, least, most);
    *out = (int)x;
    return true;
}

bool args_size(const struct args *a, const char *name, uint64_t *out, struct err *e)
{
    const char *text = args_value(a, name);
    uint64_t bytes = 0;
    if (text && (!str_parse_size(text, &bytes) || bytes == 0))
        return err_set(e, ERR_USAGE, "%s: option '%s': '%s' is no size such as 512MiB or 8GiB", a->command->name, name,
                       text);
    *out = bytes;
    return true;
}

static void print_option(const struct option *o, FILE *out)
{
    char left[64];
    snprintf(left, sizeof left, "%s%s%s", o->name, o->value ? " " : "", o->value ? o->value : "");
    fprintf(out, "  %-24s %s%s\n", left, o->help, o->many ? " (may be repeated)" : "");
}

void args_help(const struct command *c, FILE *out)
{
    struct str usage = {0};
    print_usage(c, &usage);
    fprintf(out, "usage: %s [OPTION]...\n\n%s\n\noptions:\n", usage.text ? usage.text : "", c->summary);
    for (const struct option *o = c->options; o && o->name; o++)
        print_option(o, out);
    for (size_t i = 0; i < N_COMMON; i++)
        print_option(&common[i], out);
    str_free(&usage);
}
