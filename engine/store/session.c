/* Temporary files and who owns them, see session.h. The lock file is made before its folder and removed after it, so a
 * folder without a lock file is nobody's. */
#include "engine/store/session.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "engine/store/sys.h"

#define LOCK_SUFFIX ".lock"

/* Does the lock that fd holds still lie at `path`? A cleaner may have removed it between our open and our lock. */
static bool still_there(int fd, const char *path)
{
    struct stat ours, named;
    return fstat(fd, &ours) == 0 && stat(path, &named) == 0 && ours.st_ino == named.st_ino &&
           ours.st_dev == named.st_dev;
}

/* *fd = the locked new lock file of session `name`, or -1 when the name is taken. */
static bool take_name(struct store *s, const char *name, int *fd, struct err *e)
{
    char *path;
    if (!store_format(s, &path, e, "tmp/%s" LOCK_SUFFIX, name))
        return false;
    bool ok = true;
    *fd = sys_open(path, O_RDWR | O_CREAT | O_EXCL, 0644);
    if (*fd < 0 && errno != EEXIST) {
        ok = store_write_error(s, path, 0, e);
    } else if (*fd >= 0) {
        bool locked = sys_flock(*fd, LOCK_EX | LOCK_NB) == 0;
        bool taken = !locked && errno == EWOULDBLOCK;
        /* Where locks are not supported, nobody can clean either: go on without. */
        if (!locked && !taken && errno != ENOLCK && errno != ENOSYS && errno != EOPNOTSUPP)
            ok = err_errno(e, ERR_IO, "%s: cannot be locked", path);
        if (!ok || taken || !still_there(*fd, path)) {
            sys_close(*fd);
            *fd = -1;
        }
    }
    mem_free(path);
    return ok;
}

/* The boot id tells the same process number before and after a restart apart. */
static void read_boot_id(char out[40])
{
    snprintf(out, 40, "boot");
    int fd = open("/proc/sys/kernel/random/boot_id", O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return;
    ssize_t n = read(fd, out, 36);
    out[n > 0 ? n : 0] = '\0';
    close(fd);
}

bool session_open(struct store *s, struct err *e)
{
    char boot[40], name[80];
    read_boot_id(boot);
    s->session_fd = -1;
    for (unsigned i = 0; s->session_fd < 0; i++) {
        if (i == 10000)
            return err_set(e, ERR_RESOURCE, "%s/tmp: no free name for temporary files; remove what is in it", s->path);
        snprintf(name, sizeof name, "%s-%ld-%u", boot, (long)getpid(), i);
        if (!take_name(s, name, &s->session_fd, e))
            return false;
    }
    char *folder = NULL;
    bool ok = mem_new(&s->session, strlen(name) + 1, e);
    if (ok) {
        memcpy(s->session, name, strlen(name) + 1);
        ok = store_format(s, &folder, e, "tmp/%s", name) && store_make_directory(folder, e);
    }
    mem_free(folder);
    if (!ok)
        session_close(s);
    return ok;
}

/* Remove a folder of plain files. */
static void remove_folder(const char *path)
{
    DIR *d = opendir(path);
    if (!d)
        return;
    for (struct dirent *entry; (entry = readdir(d));)
        if (strcmp(entry->d_name, ".") && strcmp(entry->d_name, ".."))
            unlinkat(dirfd(d), entry->d_name, 0);
    closedir(d);
    rmdir(path);
}

static void remove_session(const struct store *s, const char *name)
{
    struct err ignored;
    char *path;
    if (!store_format(s, &path, &ignored, "tmp/%s", name))
        return;
    remove_folder(path);
    mem_free(path);
    if (!store_format(s, &path, &ignored, "tmp/%s" LOCK_SUFFIX, name))
        return;
    unlink(path);
    mem_free(path);
}

void session_close(struct store *s)
{
    if (s->session)
        remove_session(s, s->session);
    if (s->session_fd >= 0)
        sys_close(s->session_fd);
    s->session_fd = -1;
    mem_free(s->session);
    s->session = NULL;
}

/* Remove session `name` if nobody holds its lock. A folder without a lock file is nobody's. */
static void clean_one(const struct store *s, const char *name)
{
    struct err ignored;
    char *path;
    if (!store_format(s, &path, &ignored, "tmp/%s" LOCK_SUFFIX, name))
        return;
    int fd = open(path, O_RDWR | O_CLOEXEC | O_NOFOLLOW);
    mem_free(path);
    if (fd < 0 ? errno == ENOENT : flock(fd, LOCK_EX | LOCK_NB) == 0)
        remove_session(s, name);
    if (fd >= 0)
        close(fd);
}

void session_clean(const struct store *s)
{
    struct err ignored;
    char *path;
    if (!store_format(s, &path, &ignored, "tmp"))
        return;
    DIR *d = opendir(path);
    mem_free(path);
    if (!d)
        return;
    for (struct dirent *entry; (entry = readdir(d));) {
        char name[256];
        snprintf(name, sizeof name, "%s", entry->d_name);
        size_t n = strlen(name), suffix = strlen(LOCK_SUFFIX);
        if (name[0] == '.')
            continue;
        if (n > suffix && strcmp(name + n - suffix, LOCK_SUFFIX) == 0)
            name[n - suffix] = '\0';
        clean_one(s, name);
    }
    closedir(d);
}
