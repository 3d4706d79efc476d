#ifndef ENGINE_BASE_ERR_H
#define ENGINE_BASE_ERR_H
/* The one error type of the tree. The caller owns it on its stack, so that even running out of memory can be
 * reported. A function that can fail returns bool, takes `struct err *e` last, and fills it only when it fails. */
#include <stdbool.h>
#include <stddef.h>

enum err_code {
    ERR_NONE = 0,
    ERR_USAGE,     /* the command line */
    ERR_INPUT,     /* a graph, model, tokenizer, text or object that is wrong */
    ERR_RESOURCE,  /* disk, memory, device, directory in use */
    ERR_NUMERIC,   /* NaN or infinity in a result, or a result that contradicts another */
    ERR_IO,        /* a system call failed on a file */
    ERR_DEVICE,    /* the accelerator failed */
    ERR_STOPPED,   /* interrupted; what was done is kept and the run is resumable */
    ERR_BUG,       /* we are wrong */
};

struct err {
    enum err_code code;
    char text[1024];              /* for the user: what is wrong, which values, what would be right */
    char input[512];              /* the graph file at fault, "" if none */
    int input_line, input_column; /* in that file, from 1; 0 if unknown */
    int input_width;              /* characters to underline, 0 if unknown */
    const char *file;             /* where in our C it was raised */
    int line;
};

#define ERR_CHECK __attribute__((warn_unused_result))

/* Fill `*e` (which may be NULL) with a code and a printf-style text. Always returns false:
 * `return err_set(e, ERR_INPUT, "...")`. */
#define err_set(e, code, ...) err_set_at((e), (code), __FILE__, __LINE__, __VA_ARGS__)
bool err_set_at(struct err *e, enum err_code code, const char *file, int line, const char *format, ...)
    __attribute__((format(printf, 5, 6)));

/* Like err_set, with ": " and the text of `errno` appended; ENOSPC, EDQUOT, EFBIG, ENOMEM, EMFILE and ENFILE become
 * ERR_RESOURCE whatever `code` says. */
#define err_errno(e, code, ...) err_errno_at((e), (code), __FILE__, __LINE__, __VA_ARGS__)
bool err_errno_at(struct err *e, enum err_code code, const char *file, int line, const char *format, ...)
    __attribute__((format(printf, 5, 6)));

/* Put "<text>: " in front of the message. Returns false. */
bool err_context(struct err *e, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Put "; did you mean '<near>'?" behind the message, unless `near` is NULL. Returns false. */
bool err_suggest(struct err *e, const char *near);

/* Say where in a graph file the cause lies (line and column from 1). Returns false. */
bool err_at(struct err *e, const char *input, int line, int column, int width);

/* "input", "resource", ...: the word for a code, used in --json. */
const char *err_name(enum err_code code);

#endif
