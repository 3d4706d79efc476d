/* Publishing a directory: a half-made sibling, its lock, and the rename that puts it in place. */
#include "nodes/publish.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "engine/base/mem.h"

struct publish {
    struct arena arena;
    const char *target, *parent, *path; /* path: the half-made directory */
    int fd;                             /* of path, locked */
};

static bool sync_directory(const char *path, struct err *e)
{
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return err_errno(e, ERR_IO, "cannot open directory %s", path);
    bool ok = fsync(fd) == 0 || err_errno(e, ERR_IO, "cannot sync directory %s", path);
    close(fd);
    return ok;
}

/* Call `each` for every entry of a directory but . and .. */
static bool each_entry(const char *path, bool (*each)(const char *path, const struct dirent *d, struct err *e),
                       struct err *e)
{
    DIR *d = opendir(path);
    if (!d)
        return err_errno(e, ERR_IO, "cannot list %s", path);
    bool ok = true;
    for (const struct dirent *entry; ok && (entry = readdir(d));)
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0)
            ok = each(path, entry, e);
    closedir(d);
    return ok;
}

static bool refuse_directory(const char *path, const struct dirent *d, struct err *e)
{
    char full[4096];
    struct stat s;
    snprintf(full, sizeof full, "%s/%s", path, d->d_name);
    if (lstat(full, &s) == 0 && S_ISDIR(s.st_mode))
        return err_set(e, ERR_INPUT, "%s has a directory '%s' in it; only a directory of plain files is replaced. Move "
                       "it away or choose another place", path, d->d_name);
    return true;
}

static bool remove_file(const char *path, const struct dirent *d, struct err *e)
{
    char full[4096];
    snprintf(full, sizeof full, "%s/%s", path, d->d_name);
    return unlink(full) == 0 || errno == ENOENT || err_errno(e, ERR_IO, "cannot remove %s", full);
}

bool publish_remove(const char *path, struct err *e)
{
    if (!each_entry(path, refuse_directory, e) || !each_entry(path, remove_file, e))
        return false;
    return rmdir(path) == 0 || errno == ENOENT || err_errno(e, ERR_IO, "cannot remove %s", path);
}

/* "<pid>-<n>" or "<pid>-old": what this file puts behind the mark, and nothing that a user would. */
static bool is_own_suffix(const char *s)
{
    static const char digits[] = "0123456789";
    size_t pid = strspn(s, digits), n;
    if (pid == 0 || s[pid] != '-')
        return false;
    s += pid + 1;
    n = strspn(s, digits);
    return strcmp(s, "old") == 0 || (n > 0 && s[n] == '\0');
}

/* Remove half-made directories of this target whose maker is gone: those that nobody has locked. */
static bool remove_abandoned(const struct publish *p, struct err *e)
{
    const char *base = strrchr(p->target, '/') + 1;
    size_t n = strlen(base);
    static const char mark[] = ".partial-";
    DIR *d = opendir(p->parent);
    if (!d)
        return err_errno(e, ERR_IO, "cannot list %s", p->parent);
    bool ok = true;
    for (const struct dirent *entry; ok && (entry = readdir(d));) {
        if (strncmp(entry->d_name, base, n) != 0 || strncmp(entry->d_name + n, mark, sizeof mark - 1) != 0 ||
            !is_own_suffix(entry->d_name + n + sizeof mark - 1))
            continue;
        int fd = openat(dirfd(d), entry->d_name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
        if (fd < 0)
            continue;
        char path[4096];
        snprintf(path, sizeof path, "%s/%s", p->parent, entry->d_name);
        if (flock(fd, LOCK_EX | LOCK_NB) == 0)
            ok = publish_remove(path, e);
        close(fd);
    }
    closedir(d);
    return ok;
}

static bool make_parents(const char *path, struct err *e)
{
    char part[4096];
    snprintf(part, sizeof part, "%s", path);
    for (char *slash = strchr(part + 1, '/');; slash = strchr(slash + 1, '/')) {
        if (slash)
            *slash = '\0';
        if (mkdir(part, 0777) != 0 && errno != EEXIST)
            return err_errno(e, ERR_IO, "cannot create directory %s", part);
        if (!slash)
            return true;
        *slash = '/';
    }
}

/* Make and lock <target>.partial-<pid>-<n>. Another process may take it for abandoned before the lock is held: then
 * it is gone, and the next name is tried. */
static bool make_partial(struct publish *p, struct err *e)
{
    for (int attempt = 0; attempt < 100; attempt++) {
        char *path = arena_printf(&p->arena, e, "%s.partial-%ld-%d", p->target, (long)getpid(), attempt);
        if (!path)
            return false;
        if (mkdir(path, 0777) != 0) {
            if (errno == EEXIST)
                continue;
            return err_errno(e, ERR_IO, "cannot create directory %s", path);
        }
        int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        struct stat s;
        if (fd >= 0 && flock(fd, LOCK_EX | LOCK_NB) == 0 && fstat(fd, &s) == 0 && s.st_nlink > 0) {
            p->path = path;
            p->fd = fd;
            return true;
        }
        if (fd >= 0)
            close(fd);
    }
    return err_set(e, ERR_RESOURCE, "cannot lock a directory beside %s; is something else writing there?", p->target);
}

static void free_publish(struct publish *p)
{
    if (p->fd >= 0)
        close(p->fd);
    arena_free(&p->arena);
    mem_free(p);
}

bool publish_begin(struct publish **out, const char *target, struct err *e)
{
    struct publish *p;
    size_t n = strlen(target);
    while (n > 1 && target[n - 1] == '/')
        n--;
    if (target[0] != '/' || n < 2 || n > 3000)
        return err_set(e, ERR_INPUT, "'%s' is no place for a directory; an absolute path of at most 3000 bytes is "
                       "wanted", target);
    if (!mem_new(&p, 1, e))
        return false;
    p->fd = -1;
    char *copy = arena_strndup(&p->arena, target, n, e);
    p->target = copy;
    p->parent = copy ? arena_strndup(&p->arena, copy, (size_t)(strrchr(copy, '/') - copy), e) : NULL;
    if (p->parent && p->parent[0] == '\0')
        p->parent = "/";
    if (!p->parent || !make_parents(p->parent, e) || !remove_abandoned(p, e) || !make_partial(p, e)) {
        free_publish(p);
        return false;
    }
    *out = p;
    return true;
}

const char *publish_path(const struct publish *p)
{
    return p->path;
}

static bool write_all(int fd, const char *data, size_t n, const char *path, struct err *e)
{
    while (n > 0) {
        ssize_t done = write(fd, data, n);
        if (done < 0 && errno == EINTR)
            continue;
        if (done < 0)
            return err_errno(e, ERR_IO, "cannot write %s", path);
        data += done;
        n -= (size_t)done;
    }
    return true;
}

/* Sync and close a file that was written; false, with the file closed, when either fails. */
static bool finish_file(int fd, bool ok, const char *path, struct err *e)
{
    if (ok && fsync(fd) != 0)
        ok = err_errno(e, ERR_IO, "cannot sync %s", path);
    if (close(fd) != 0 && ok)
        ok = err_errno(e, ERR_IO, "cannot close %s", path);
    return ok;
}

static int create(const struct publish *p, const char *name, char path[4096], struct err *e)
{
    snprintf(path, 4096, "%s/%s", p->path, name);
    int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (fd < 0)
        err_errno(e, ERR_IO, "cannot create %s", path);
    return fd;
}

bool publish_write(struct publish *p, const char *name, const void *data, size_t n, struct err *e)
{
    char path[4096];
    int fd = create(p, name, path, e);
    return fd >= 0 && finish_file(fd, write_all(fd, data, n, path, e), path, e);
}

bool publish_copy(struct publish *p, const char *name, const char *from, struct err *e)
{
    char path[4096], *buffer = NULL;
    const size_t room = 1 << 20;
    int in = open(from, O_RDONLY | O_CLOEXEC), out = -1;
    bool ok = in >= 0 || err_errno(e, ERR_IO, "cannot open %s", from);
    if (!ok || !mem_raw(&buffer, room, e) || (out = create(p, name, path, e)) < 0) {
        ok = false;
        goto out;
    }
    for (;;) {
        ssize_t got = read(in, buffer, room);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            ok = err_errno(e, ERR_IO, "cannot read %s", from);
        if (got <= 0)
            break;
        if (!(ok = write_all(out, buffer, (size_t)got, path, e)))
            break;
    }
    ok = finish_file(out, ok, path, e);
out:
    mem_free(buffer);
    if (in >= 0)
        close(in);
    return ok;
}

/* What was replaced. If it cannot be removed now, the next one to publish here does it, for its name is that of a
 * half-made directory and nobody holds its lock. */
static void remove_old(const char *path)
{
    struct err ignored = {0};
    bool gone = publish_remove(path, &ignored);
    (void)gone;
}

/* Put p->path where nothing, or an empty directory, is. */
static bool move_in(const struct publish *p, struct err *e)
{
    return rename(p->path, p->target) == 0 || err_errno(e, ERR_IO, "cannot rename %s to %s", p->path, p->target);
}

/* For file systems that cannot exchange names: there is a moment with nothing in place. */
static bool swap_in_steps(const struct publish *p, struct err *e)
{
    char aside[4096];
    snprintf(aside, sizeof aside, "%s.partial-%ld-old", p->target, (long)getpid());
    if (rename(p->target, aside) != 0)
        return err_errno(e, ERR_IO, "cannot rename %s to %s", p->target, aside);
    if (!move_in(p, e)) {
        if (rename(aside, p->target) != 0)
            err_context(e, "and what was at %s is now at %s", p->target, aside);
        return false;
    }
    remove_old(aside);
    return true;
}

bool publish_copy_some(struct publish *p, const char *from, bool (*wanted)(const char *name), struct err *e)
{
    DIR *d = opendir(from);
    if (!d)
        return err_errno(e, ERR_IO, "cannot list %s", from);
    bool ok = true;
    for (const struct dirent *entry; ok && (entry = readdir(d));) {
        char path[4096];
        struct stat s;
        snprintf(path, sizeof path, "%s/%s", from, entry->d_name);
        if (wanted(entry->d_name) && stat(path, &s) == 0 && S_ISREG(s.st_mode))
            ok = publish_copy(p, entry->d_name, path, e);
    }
    closedir(d);
    return ok;
}

bool publish_commit(struct publish *p, struct err *e)
{
    struct stat s;
    bool in_place = false, ok = false;
    if (fsync(p->fd) != 0) {
        err_errno(e, ERR_IO, "cannot sync %s", p->path);
        goto out;
    }
    if (lstat(p->target, &s) != 0) {
        ok = in_place = move_in(p, e);
    } else if (!S_ISDIR(s.st_mode)) {
        err_set(e, ERR_INPUT, "%s is there and is no directory; move it away or choose another place", p->target);
    } else if (!each_entry(p->target, refuse_directory, e)) {
        ok = false;
    } else if (renameat2(AT_FDCWD, p->path, AT_FDCWD, p->target, RENAME_EXCHANGE) == 0) {
        in_place = ok = true;
        remove_old(p->path);
    } else if (errno == EINVAL || errno == ENOSYS) {
        ok = in_place = swap_in_steps(p, e);
    } else {
        err_errno(e, ERR_IO, "cannot exchange %s and %s", p->path, p->target);
    }
    ok = ok && sync_directory(p->parent, e);
out:
    if (!in_place) {
        publish_abort(p);
        return false;
    }
    free_publish(p);
    return ok;
}

void publish_abort(struct publish *p)
{
    if (!p)
        return;
    remove_old(p->path);
    free_publish(p);
}
