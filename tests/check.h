#ifndef TESTS_CHECK_H
#define TESTS_CHECK_H
/* What several test programs need: cmocka with the headers it wants first, assertions on `struct err`, temporary
 * folders, small files, and the root of the source tree. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "engine/base/err.h"
#include "engine/base/mem.h"

#define COUNT(array) (sizeof(array) / sizeof *(array))

/* `condition` must hold; the message of `e` (a struct err, not a pointer) is printed when it does not. */
#define assert_ok(condition, e)                                                                                        \
    do {                                                                                                               \
        (e).text[0] = '\0';                                                                                            \
        if (!(condition))                                                                                              \
            fail_msg("%s failed: %s", #condition, (e).text);                                                           \
    } while (0)

/* `condition` must be false, with this code, and `part` must occur in the message. */
#define assert_err(condition, e, wanted, part)                                                                         \
    do {                                                                                                               \
        (e) = (struct err){0};                                                                                         \
        if (condition)                                                                                                 \
            fail_msg("%s succeeded, but had to fail with '%s'", #condition, (part));                                   \
        check_err(&(e), (wanted), (part), __FILE__, __LINE__);                                                         \
    } while (0)

static inline void check_err(const struct err *e, enum err_code wanted, const char *part, const char *file, int line)
{
    if (e->code == wanted && strstr(e->text, part))
        return;
    print_error("%s:%d: expected a %s error with '%s', got a %s error: %s\n", file, line, err_name(wanted), part,
                err_name(e->code), e->text);
    _fail(file, line);
}

/* The root of the source tree, as meson gives it to every test; "." when the program is started by hand from there. */
static inline const char *check_root(void)
{
    const char *root = getenv("SCOUT_ROOT");
    return root && *root ? root : ".";
}

/* Make a new folder under $TMPDIR or /tmp and put its path in `path`; check_dir_remove takes it away with its
 * content. */
static inline void check_dir_make(char path[256])
{
    const char *base = getenv("TMPDIR");
    int n = snprintf(path, 256, "%s/scout-test-XXXXXX", base && *base ? base : "/tmp");
    assert_in_range(n, 1, 255);
    assert_non_null(mkdtemp(path));
}

static inline int check_dir_remove_one(const char *path, const struct stat *st, int kind, struct FTW *ftw)
{
    (void)st, (void)kind, (void)ftw;
    return remove(path);
}

static inline void check_dir_remove(const char *path)
{
    assert_int_equal(nftw(path, check_dir_remove_one, 16, FTW_DEPTH | FTW_PHYS), 0);
}

/* Write `n` bytes to the file `folder/name`. */
static inline void check_write(const char *folder, const char *name, const void *bytes, size_t n)
{
    char path[1024];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    FILE *f = fopen(path, "wb");
    if (!f)
        fail_msg("cannot write %s", path);
    assert_int_equal(fwrite(bytes, 1, n, f), n);
    assert_int_equal(fclose(f), 0);
}

/* The whole file with a NUL after it, to be freed with free(); NULL when it cannot be opened. */
static inline char *check_read(const char *path, size_t *n)
{
    FILE *f = fopen(path, "rb");
    if (!f)
        return NULL;
    char *text = NULL;
    size_t length = 0, got;
    do {
        text = realloc(text, length + 65537);
        assert_non_null(text);
        got = fread(text + length, 1, 65536, f);
        length += got;
    } while (got);
    fclose(f);
    text[length] = '\0';
    if (n)
        *n = length;
    return text;
}

#endif
