/* A store's folder: opening, its layout and format, paths in it, quarantine, and the walk over all objects. What is in
 * an object, a ledger and the digest cache is in the files of those names; temporary files are in session.c. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "engine/base/str.h"
#include "engine/store/digest.h"
#include "engine/store/session.h"
#include "engine/store/store_private.h"
#include "engine/store/sys.h"

#define FORMAT_LINE "scout store 1\n"

static const char *const folders[] = {"objects", "ledger", "tmp", "quarantine"};

/* ------------------------------------------------------------------------------------------------- paths and errors */

bool store_format(const struct store *s, char **out, struct err *e, const char *format, ...)
{
    char rest[512];
    va_list args;
    va_start(args, format);
    int n = vsnprintf(rest, sizeof rest, format, args);
    va_end(args);
    if (n < 0 || (size_t)n >= sizeof rest)
        return err_set(e, ERR_BUG, "%s: a path below the store is longer than %zu bytes", s->path, sizeof rest);
    size_t length = strlen(s->path) + (size_t)n + 2;
    char *path;
    if (!mem_new(&path, length, e))
        return false;
    snprintf(path, length, "%s/%s", s->path, rest);
    *out = path;
    return true;
}

bool store_object_path(const struct store *s, const struct key *k, char **out, struct err *e)
{
    char text[KEY_TEXT];
    key_text(k, text);
    return store_format(s, out, e, "objects/%.2s/%s.h5", text, text);
}

bool store_temporary(struct store *s, char **out, struct err *e)
{
    return store_format(s, out, e, "tmp/%s/%u", s->session, atomic_fetch_add(&s->temporary, 1));
}

bool store_add_remedy(const struct store *s, uint64_t bytes, struct err *e)
{
    if (!e)
        return false;
    char need[16], have[16];
    struct statvfs v;
    uint64_t room = statvfs(s->path, &v) == 0 ? (uint64_t)v.f_bavail * v.f_frsize : 0;
    size_t n = strlen(e->text);
    snprintf(e->text + n, sizeof e->text - n,
             "; %" PRIu64 " bytes (%s) are needed in '%s', where %s are free: make room or raise the limit there, or "
             "name another place with --store",
             bytes, str_size(bytes, need), s->path, str_size(room, have));
    return false;
}

bool store_write_error(const struct store *s, const char *what, uint64_t bytes, struct err *e)
{
    bool full = errno == ENOSPC || errno == EDQUOT || errno == EFBIG;
    bool denied = errno == EROFS || errno == EACCES || errno == EPERM;
    if (denied)
        return err_errno(e, ERR_RESOURCE, "%s: cannot write; give --store a directory that may be written to", what);
    err_errno(e, ERR_IO, "%s: cannot write", what);
    return full ? store_add_remedy(s, bytes, e) : false;
}

bool store_sync_directory(const char *path, struct err *e)
{
    int fd = sys_open(path, O_RDONLY | O_DIRECTORY, 0);
    if (fd < 0)
        return err_errno(e, ERR_IO, "%s: cannot open the directory to sync it", path);
    bool ok = sys_fsync(fd) == 0;
    if (!ok)
        err_errno(e, ERR_IO, "%s: cannot sync the directory", path);
    if (sys_close(fd) < 0 && ok)
        ok = err_errno(e, ERR_IO, "%s: cannot close the directory", path);
    return ok;
}

bool store_make_directory(const char *path, struct err *e)
{
    struct stat st;
    if (sys_mkdir(path, 0777) == 0)
        return true;
    int error = errno;
    if (error == EEXIST && stat(path, &st) == 0 && S_ISDIR(st.st_mode))
        return true;
    errno = error == EEXIST ? ENOTDIR : error;
    bool denied = errno == EROFS || errno == EACCES || errno == EPERM || errno == ENOTDIR;
    return err_errno(e, denied ? ERR_RESOURCE : ERR_IO,
                     "%s: cannot make this directory; give --store (or --dir) one that may be written to", path);
}

/* ---------------------------------------------------------------------------------------------- opening and closing */

static bool sync_parent(const char *path, struct err *e)
{
    char parent[PATH_MAX];
    const char *slash = strrchr(path, '/');
    if (!slash)
        return store_sync_directory(".", e);
    snprintf(parent, sizeof parent, "%.*s", slash == path ? 1 : (int)(slash - path), path);
    return store_sync_directory(parent, e);
}

bool store_make_path(const char *path, struct err *e)
{
    char part[PATH_MAX];
    struct stat st;
    size_t n = strlen(path);
    if (n >= sizeof part)
        return err_set(e, ERR_INPUT, "the path '%.64s...' is longer than %d bytes", path, PATH_MAX);
    for (size_t i = 1; i <= n; i++) {
        if (path[i] && path[i] != '/')
            continue;
        snprintf(part, sizeof part, "%.*s", (int)i, path);
        if (stat(part, &st) == 0 && S_ISDIR(st.st_mode))
            continue;
        if (!store_make_directory(part, e) || !sync_parent(part, e))
            return false;
    }
    return true;
}

/* Without a FORMAT, a folder with anything but ours in it is somebody else's. A FORMAT that is there now has been
 * written by another process since. */
static bool refuse_foreign(const struct store *s, struct err *e)
{
    DIR *d = opendir(s->path);
    if (!d)
        return err_errno(e, ERR_IO, "%s: cannot list the store", s->path);
    bool ok = true;
    for (struct dirent *entry; ok && (entry = readdir(d));) {
        bool ours = strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0 ||
                    strcmp(entry->d_name, "FORMAT") == 0;
        for (size_t i = 0; i < sizeof folders / sizeof *folders; i++)
            ours = ours || strcmp(entry->d_name, folders[i]) == 0;
        if (!ours)
            ok = err_set(e, ERR_INPUT, "%s: holds '%s' and no FORMAT, so it is not a store; give --store an empty or a "
                                       "new directory", s->path, entry->d_name);
    }
    closedir(d);
    return ok;
}

/* *found says whether there is a FORMAT; one that is not ours is an error. */
static bool check_format(const struct store *s, bool *found, struct err *e)
{
    char *path, text[64];
    if (!store_format(s, &path, e, "FORMAT"))
        return false;
    size_t got = 0;
    int fd = sys_open(path, O_RDONLY, 0);
    bool ok = true;
    *found = fd >= 0;
    if (fd < 0 && errno != ENOENT)
        ok = err_errno(e, ERR_IO, "%s: cannot open", path);
    if (fd >= 0 && !sys_read_at(fd, text, sizeof text - 1, 0, &got))
        ok = err_errno(e, ERR_IO, "%s: cannot read", path);
    text[got] = '\0';
    if (ok && *found && strcmp(text, FORMAT_LINE) != 0) {
        text[strcspn(text, "\n")] = '\0';
        ok = err_set(e, ERR_INPUT,
                     "%s: is '%s', and this program reads '%.*s'; give another directory with --store, or "
                                   "use the program that made this one",
                     path, text, (int)strlen(FORMAT_LINE) - 1, FORMAT_LINE);
    }
    if (fd >= 0)
        sys_close(fd);
    mem_free(path);
    return ok;
}

/* Written last, whole or not at all: it says that the folders are there. */
static bool write_format(struct store *s, struct err *e)
{
    char *path = NULL, *temporary = NULL;
    int fd = -1;
    bool ok = false;
    if (!store_format(s, &path, e, "FORMAT") || !store_temporary(s, &temporary, e))
        goto out;
    fd = sys_open(temporary, O_RDWR | O_CREAT | O_EXCL, 0644);
    if (fd < 0 || !sys_write_at(fd, FORMAT_LINE, strlen(FORMAT_LINE), 0) || sys_fsync(fd) < 0) {
        store_write_error(s, path, strlen(FORMAT_LINE), e);
        goto out;
    }
    if (sys_rename_new(temporary, path) < 0 && errno != EEXIST) {
        store_write_error(s, path, strlen(FORMAT_LINE), e);
        goto out;
    }
    ok = true;
out:
    if (fd >= 0)
        sys_close(fd);
    mem_free(path);
    mem_free(temporary);
    return ok;
}

static bool make_folders(struct store *s, struct err *e)
{
    for (size_t i = 0; i < sizeof folders / sizeof *folders; i++) {
        char *path;
        if (!store_format(s, &path, e, "%s", folders[i]))
            return false;
        bool ok = store_make_directory(path, e);
        mem_free(path);
        if (!ok)
            return false;
    }
    return true;
}

/* tmp/ and objects/ must be one file system, else nothing can be published by a rename. */
static bool check_devices(const struct store *s, struct err *e)
{
    struct stat first;
    for (size_t i = 0; i < sizeof folders / sizeof *folders; i++) {
        struct stat st;
        char *path;
        if (!store_format(s, &path, e, "%s", folders[i]))
            return false;
        bool ok = stat(path, i ? &st : &first) == 0;
        if (!ok)
            err_errno(e, ERR_IO, "%s: cannot look at it", path);
        else if (i && st.st_dev != first.st_dev)
            ok = err_set(e, ERR_INPUT, "%s: is on another file system than the store's objects; a store lies on one",
                         path);
        mem_free(path);
        if (!ok)
            return false;
    }
    return true;
}

static bool store_new(struct store **out, const char *path, bool readonly, struct err *e)
{
    struct store *s;
    if (!mem_new(&s, 1, e))
        return false;
    s->readonly = readonly;
    s->session_fd = -1;
    pthread_condattr_t attr;
    pthread_mutex_init(&s->lock, NULL);
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&s->changed, &attr);
    pthread_condattr_destroy(&attr);
    char absolute[PATH_MAX];
    if (!realpath(path, absolute)) {
        bool missing = readonly && errno == ENOENT;
        if (!missing) {
            err_errno(e, ERR_IO, "%s: cannot find the store", path);
            store_close(s);
            return false;
        }
        snprintf(absolute, sizeof absolute, "%s", path);
    }
    size_t n = strlen(absolute) + 1;
    if (!mem_new(&s->path, n, e)) {
        store_close(s);
        return false;
    }
    memcpy(s->path, absolute, n);
    *out = s;
    return true;
}

bool store_open(struct store **out, const char *path, struct err *e)
{
    struct store *s;
    bool found;
    if (!store_make_path(path, e) || !store_new(&s, path, false, e))
        return false;
    if (!check_format(s, &found, e) || (!found && !refuse_foreign(s, e)) || !make_folders(s, e) ||
        !check_devices(s, e) || !session_open(s, e) || (!found && (!sync_parent(s->path, e) || !write_format(s, e))) ||
        !store_sync_directory(s->path, e)) { /* whoever made the store may have been killed before it synced */
        store_close(s);
        return false;
    }
    session_clean(s);
    *out = s;
    return true;
}

bool store_open_readonly(struct store **out, const char *path, struct err *e)
{
    struct store *s;
    bool found;
    if (!store_new(&s, path, true, e))
        return false;
    if (!check_format(s, &found, e)) {
        store_close(s);
        return false;
    }
    *out = s;
    return true;
}

void store_close(struct store *s)
{
    if (!s)
        return;
    session_close(s);
    key_set_free(&s->verified);
    key_set_free(&s->damaged);
    digest_cache_free(s);
    pthread_cond_destroy(&s->changed);
    pthread_mutex_destroy(&s->lock);
    mem_free(s->path);
    mem_free(s);
}

const char *store_path(const struct store *s) { return s->path; }

/* ------------------------------------------------------------------------------------------------------- quarantine */

/* The reason, for whoever looks at the file later; its loss is no loss. */
static void write_reason(const char *path, const char *reason)
{
    char name[PATH_MAX];
    int n = snprintf(name, sizeof name, "%.*s.txt", (int)(strlen(path) - strlen(".h5")), path);
    int fd = n < (int)sizeof name ? sys_open(name, O_WRONLY | O_CREAT | O_TRUNC, 0644) : -1;
    if (fd < 0)
        return;
    bool ok = sys_write_at(fd, reason, strlen(reason), 0) && sys_write_at(fd, "\n", 1, strlen(reason));
    if (sys_close(fd) < 0 || !ok)
        sys_unlink(name);
}

bool store_quarantine(struct store *s, const char *path, const char *name, uint64_t inode, const char *reason,
                      struct err *e)
{
    char *from = NULL, *to = NULL, *folder = NULL;
    struct stat st;
    bool ok = false;
    if (!store_format(s, &from, e, "%s", path) || !store_format(s, &folder, e, "quarantine"))
        goto out;
    for (unsigned n = 0;; n++) {
        bool there = lstat(from, &st) == 0;
        if (!there && errno != ENOENT) {
            err_errno(e, ERR_IO, "%s: cannot look at it", from);
            goto out;
        }
        if (!there || (inode && st.st_ino != inode)) {
            ok = true; /* another process was faster */
            goto out;
        }
        mem_free(to);
        to = NULL;
        if (!store_format(s, &to, e, "quarantine/%s.%u.h5", name, n))
            goto out;
        if (sys_rename_new(from, to) == 0)
            break;
        if (errno == ENOENT)
            continue;
        if (errno != EEXIST || n == 100000) {
            err_errno(e, ERR_IO, "%s: is damaged (%s) and cannot be moved to quarantine; remove it", from, reason);
            goto out;
        }
    }
    write_reason(to, reason);
    *strrchr(from, '/') = '\0';
    ok = store_sync_directory(folder, e) && store_sync_directory(from, e);
out:
    mem_free(from);
    mem_free(to);
    mem_free(folder);
    return ok;
}

bool store_quarantined(struct store *s, size_t *count, struct err *e)
{
    char *path;
    *count = 0;
    if (!store_format(s, &path, e, "quarantine"))
        return false;
    DIR *d = opendir(path);
    bool ok = d || errno == ENOENT || err_errno(e, ERR_IO, "%s: cannot list", path);
    for (struct dirent *entry; d && (entry = readdir(d));) {
        size_t n = strlen(entry->d_name);
        *count += n > 3 && strcmp(entry->d_name + n - 3, ".h5") == 0;
    }
    if (d)
        closedir(d);
    mem_free(path);
    return ok;
}

bool store_note_damage(struct store *s, const struct key *k, const char *reason, struct err *e)
{
    char text[KEY_TEXT];
    pthread_mutex_lock(&s->lock);
    bool again = key_set_has(&s->damaged, k);
    bool ok = again || key_set_add(&s->damaged, k, e);
    pthread_mutex_unlock(&s->lock);
    if (again)
        return err_set(e, ERR_IO,
                       "object %s was damaged twice in one run (%s); suspect the disk or the memory, and look "
                                  "in '%s/quarantine'", key_text(k, text), reason, s->path);
    return ok;
}

/* ------------------------------------------------------------------------------------------------------------ walks */

static int compare_names(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

/* The sorted names in a folder that are two hex digits, or a key and ".h5"; none if there is no such folder. */
static bool list_folder(const char *path, bool keys, struct arena *a, char ***out, size_t *n, struct err *e)
{
    DIR *d = opendir(path);
    size_t room = 0;
    *n = 0;
    *out = NULL;
    if (!d)
        return errno == ENOENT || errno == ENOTDIR || err_errno(e, ERR_IO, "%s: cannot list", path);
    bool ok = true;
    for (struct dirent *entry; ok && (entry = readdir(d));) {
        size_t length = strlen(entry->d_name);
        bool fits = keys ? length == KEY_TEXT - 1 + 3 && strcmp(entry->d_name + KEY_TEXT - 1, ".h5") == 0
                         : length == 2 && entry->d_name[0] != '.';
        if (!fits)
            continue;
        if (*n == room) {
            ok = mem_grow(out, room, room ? 2 * room : 256, e);
            room = ok ? (room ? 2 * room : 256) : room;
        }
        char *name = ok ? arena_strndup(a, entry->d_name, keys ? KEY_TEXT - 1 : 2, e) : NULL;
        ok = ok && name;
        if (ok)
            (*out)[(*n)++] = name;
    }
    closedir(d);
    if (ok && *n)
        qsort(*out, *n, sizeof **out, compare_names);
    if (!ok) {
        mem_free(*out);
        *out = NULL;
    }
    return ok;
}

static bool each_in_folder(struct store *s, const char *folder, bool (*each)(void *, const struct key *, struct err *),
                           void *context, struct err *e)
{
    struct arena arena = {0};
    char *path, **names = NULL;
    size_t n = 0;
    if (!store_format(s, &path, e, "objects/%s", folder))
        return false;
    bool ok = list_folder(path, true, &arena, &names, &n, e);
    for (size_t i = 0; ok && i < n; i++) {
        struct key k;
        if (key_parse(names[i], &k) && strncmp(names[i], folder, 2) == 0)
            ok = each(context, &k, e);
    }
    mem_free(names);
    mem_free(path);
    arena_free(&arena);
    return ok;
}

bool store_each_object(struct store *s, bool (*each)(void *context, const struct key *key, struct err *e),
                       void *context,
                       struct err *e)
{
    struct arena arena = {0};
    char *path, **names = NULL;
    size_t n = 0;
    if (!store_format(s, &path, e, "objects"))
        return false;
    bool ok = list_folder(path, false, &arena, &names, &n, e);
    for (size_t i = 0; ok && i < n; i++)
        ok = each_in_folder(s, names[i], each, context, e);
    mem_free(names);
    mem_free(path);
    arena_free(&arena);
    return ok;
}
