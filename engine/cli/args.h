#ifndef ENGINE_CLI_ARGS_H
#define ENGINE_CLI_ARGS_H
/* Command lines by table: a command lists its options as data, and gets them parsed, checked and explained. */
#include <stdint.h>
#include <stdio.h>

#include "engine/base/err.h"

struct option {
    const char *name;  /* "--dir" */
    const char *value; /* "RUN"; NULL: a flag */
    bool many;         /* may be given more than once */
    const char *help;  /* one line */
};

struct args;

struct command {
    const char *name, *summary;
    const char *const *operands;   /* "GRAPH", "[TYPE]" when it may be left out; NULL-terminated */
    const struct option *options;  /* ended by a NULL name; --help, --debug and --json are added to all */
    int (*main)(const struct args *a); /* returns the exit code */
};

/* Split argv[0..argc) (what follows the command's name) by the command's table. ERR_USAGE names the word at fault and
 * the nearest known one. The strings are borrowed. */
bool args_parse(struct args **out, const struct command *c, int argc, char **argv, struct err *e) ERR_CHECK;
void args_free(struct args *a); /* NULL is fine */

/* The whole command line as text, "scout run g.yaml --jobs 2", for the record. Borrowed from `a`. */
const char *args_line(const struct args *a);
/* The i-th operand, NULL when left out. */
const char *args_operand(const struct args *a, size_t i);
bool args_flag(const struct args *a, const char *name);
/* The value of an option, NULL when not given. */
const char *args_value(const struct args *a, const char *name);
/* All values of an option that may be given more than once; *n their number. */
const char *const *args_values(const struct args *a, const char *name, size_t *n);
/* A whole number in [least, most], 0 when not given; ERR_USAGE otherwise. */
bool args_int(const struct args *a, const char *name, int least, int most, int *out, struct err *e) ERR_CHECK;
/* A size such as 8GiB, 0 when not given. */
bool args_size(const struct args *a, const char *name, uint64_t *out, struct err *e) ERR_CHECK;
/* Usage, summary and options of a command. */
void args_help(const struct command *c, FILE *out);

#endif
