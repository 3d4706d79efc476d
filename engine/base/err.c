#include "engine/base/err.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

static void fill(struct err *e, enum err_code code, const char *file, int line, const char *format, va_list args)
{
    e->code = code;
    e->input[0] = '\0';
    e->input_line = e->input_column = e->input_width = 0;
    e->file = file;
    e->line = line;
    vsnprintf(e->text, sizeof e->text, format, args);
}

bool err_set_at(struct err *e, enum err_code code, const char *file, int line, const char *format, ...)
{
    if (!e)
        return false;
    va_list args;
    va_start(args, format);
    fill(e, code, file, line, format, args);
    va_end(args);
    return false;
}

bool err_errno_at(struct err *e, enum err_code code, const char *file, int line, const char *format, ...)
{
    int cause = errno;
    if (!e)
        return false;
    if (cause == ENOSPC || cause == EDQUOT || cause == EFBIG || cause == ENOMEM || cause == EMFILE || cause == ENFILE)
        code = ERR_RESOURCE;
    va_list args;
    va_start(args, format);
    fill(e, code, file, line, format, args);
    va_end(args);
    const char *why = strerror(cause);
    size_t n = strlen(e->text), most = sizeof e->text - strlen(why) - sizeof ": ";
    n = n < most ? n : most; /* a path may be longer than the text; its cause is what helps */
    snprintf(e->text + n, sizeof e->text - n, ": %s", why);
    return false;
}

bool err_context(struct err *e, const char *format, ...)
{
    if (!e)
        return false;
    char old[sizeof e->text];
    memcpy(old, e->text, sizeof old);
    va_list args;
    va_start(args, format);
    int n = vsnprintf(e->text, sizeof e->text, format, args);
    va_end(args);
    const int most = (int)sizeof e->text / 2; /* what happened is not crowded out by where */
    n = n < 0 ? 0 : n < most ? n : most;
    snprintf(e->text + n, sizeof e->text - (size_t)n, ": %.*s", (int)sizeof e->text - n - 3, old);
    return false;
}

bool err_suggest(struct err *e, const char *near)
{
    size_t n = e && near ? strlen(e->text) : 0;
    if (n > 0)
        snprintf(e->text + n, sizeof e->text - n, "; did you mean '%s'?", near);
    return false;
}

bool err_at(struct err *e, const char *input, int line, int column, int width)
{
    if (!e)
        return false;
    snprintf(e->input, sizeof e->input, "%s", input);
    e->input_line = line;
    e->input_column = column;
    e->input_width = width;
    return false;
}

const char *err_name(enum err_code code)
{
    static const char *const names[] = {"none", "usage",  "input",   "resource", "numeric",
                                        "io",   "device", "stopped", "bug"};
    return (unsigned)code < sizeof names / sizeof *names ? names[code] : "bug";
}
