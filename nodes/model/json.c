#include "nodes/model/json.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "engine/base/mem.h"
#include "engine/base/str.h"

#define DEEPEST 64

/* Jansson allows 2048 levels; brackets are counted first, strings skipped. */
static bool check_depth(const char *text, size_t n, const char *name, struct err *e)
{
    int depth = 0;
    bool inside = false;
    for (size_t i = 0; i < n; i++) {
        if (inside && text[i] == '\\')
            i++;
        else if (text[i] == '"')
            inside = !inside;
        else if (!inside && (text[i] == '{' || text[i] == '['))
            depth++;
        else if (!inside && (text[i] == '}' || text[i] == ']'))
            depth--;
        if (depth > DEEPEST)
            return err_set(e, ERR_INPUT, "%s: nested deeper than %d levels at byte %zu", name, DEEPEST, i);
    }
    return true;
}

bool json_load_text(json_t **out, const char *text, size_t n, const char *name, struct err *e)
{
    json_error_t error;
    if (!check_depth(text, n, name, e))
        return false;
    json_t *value = json_loadb(text, n, JSON_REJECT_DUPLICATES | JSON_DECODE_ANY, &error);
    if (!value)
        return err_set(e, ERR_INPUT, "%s:%d:%d: not valid JSON: %s", name, error.line, error.column, error.text);
    *out = value;
    return true;
}

bool json_read_file(char **out, size_t *n, const char *path, size_t max_bytes, struct err *e)
{
    struct stat st;
    char *text = NULL;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0)
        return err_errno(e, ERR_INPUT, "%s", path);
    bool ok = fstat(fd, &st) == 0 || err_errno(e, ERR_IO, "%s", path);
    if (ok && !S_ISREG(st.st_mode))
        ok = err_set(e, ERR_INPUT, "%s: not a regular file", path);
    if (ok && (uint64_t)st.st_size > max_bytes)
        ok = err_set(e, ERR_INPUT, "%s: %lld bytes, at most %zu are read", path, (long long)st.st_size, max_bytes);
    ok = ok && mem_raw(&text, (size_t)st.st_size + 1, e);
    size_t got = 0;
    while (ok && got < (size_t)st.st_size) {
        ssize_t step = read(fd, text + got, (size_t)st.st_size - got);
        if (step < 0 && errno == EINTR)
            continue;
        if (step <= 0)
            ok = step < 0 ? err_errno(e, ERR_IO, "%s", path)
                          : err_set(e, ERR_INPUT, "%s: shrank while it was read", path);
        else
            got += (size_t)step;
    }
    close(fd);
    if (!ok) {
        mem_free(text);
        return false;
    }
    text[got] = '\0';
    *out = text;
    *n = got;
    return true;
}

bool json_load_file_strict(json_t **out, const char *path, size_t max_bytes, struct err *e)
{
    char *text;
    size_t n;
    if (!json_read_file(&text, &n, path, max_bytes, e))
        return false;
    bool ok = json_load_text(out, text, n, path, e);
    mem_free(text);
    return ok;
}
