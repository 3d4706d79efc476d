#include "engine/store/sys.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

/* The tests' fault and trace, the state here that outlives a call. Off in the program. `left` counts down; the call
 * that takes it from 1 to 0 is the one that fails. */
static struct {
    _Atomic(const char *) call;
    atomic_long left;
    atomic_int error;
    atomic_bool armed, sticky, exit, half, hit;
} fault;

static struct {
    void (*tell)(void *context, const struct sys_call *c);
    void *context;
} trace;

void sys_fault_set(const struct sys_fault *f)
{
    atomic_store(&fault.armed, false);
    atomic_store(&fault.hit, false);
    if (!f || f->at <= 0)
        return;
    atomic_store(&fault.call, f->call);
    atomic_store(&fault.left, f->at);
    atomic_store(&fault.error, f->error);
    atomic_store(&fault.sticky, f->sticky);
    atomic_store(&fault.exit, f->exit);
    atomic_store(&fault.half, f->half);
    atomic_store(&fault.armed, true);
}

bool sys_fault_hit(void) { return atomic_load(&fault.hit); }

void sys_trace_set(void (*tell)(void *context, const struct sys_call *c), void *context)
{
    trace.tell = tell;
    trace.context = context;
}

/* Tell the trace of a call that returned rc on `path`, or on the file fd when that is NULL. Returns rc, errno as it
 * was. */
static int told(const char *name, int fd, const char *path, const char *to, int rc)
{
    int error = errno;
    char link[40], place[PATH_MAX];
    if (!trace.tell || rc < 0)
        return rc;
    if (!path) {
        snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
        ssize_t n = readlink(link, place, sizeof place - 1);
        place[n > 0 ? n : 0] = '\0';
        path = place;
    }
    trace.tell(trace.context, &(struct sys_call){name, path, to});
    errno = error;
    return rc;
}

/* Does this call have to fail? Sets errno, or ends the process unless `defer_exit` (a write has its half to do
 * first). */
static bool fails(const char *call, bool defer_exit)
{
    if (!atomic_load(&fault.armed))
        return false;
    const char *only = atomic_load(&fault.call);
    if (only && strcmp(only, call) != 0)
        return false;
    long left = atomic_fetch_sub(&fault.left, 1);
    if (left > 1 || (left < 1 && !atomic_load(&fault.sticky)))
        return false;
    atomic_store(&fault.hit, true);
    if (atomic_load(&fault.exit) && !defer_exit)
        _exit(SYS_FAULT_EXIT);
    errno = atomic_load(&fault.error);
    return true;
}

int sys_open(const char *path, int flags, unsigned mode)
{
    if (fails("open", false))
        return -1;
    int fd;
    do
        fd = open(path, flags | O_CLOEXEC, mode);
    while (fd < 0 && errno == EINTR);
    return fd;
}

int sys_close(int fd)
{
    bool failed = fails("close", false);
    int error = errno;
    int rc = close(fd); /* never again after EINTR: Linux has closed it by then */
    if (failed) {
        errno = error;
        return -1;
    }
    return rc < 0 && errno == EINTR ? 0 : rc;
}

int sys_fsync(int fd)
{
    if (fails("fsync", false))
        return -1;
    int rc;
    do
        rc = fsync(fd);
    while (rc < 0 && errno == EINTR);
    return told("fsync", fd, NULL, NULL, rc);
}

int sys_fdatasync(int fd)
{
    if (fails("fdatasync", false))
        return -1;
    int rc;
    do
        rc = fdatasync(fd);
    while (rc < 0 && errno == EINTR);
    return told("fdatasync", fd, NULL, NULL, rc);
}

int sys_mkdir(const char *path, unsigned mode)
{
    return fails("mkdir", false) ? -1 : told("mkdir", -1, path, NULL, mkdir(path, mode));
}

int sys_unlink(const char *path) { return fails("unlink", false) ? -1 : unlink(path); }

int sys_rename(const char *from, const char *to)
{
    return fails("rename", false) ? -1 : told("rename", -1, from, to, rename(from, to));
}

int sys_rename_new(const char *from, const char *to)
{
    if (fails("rename", false))
        return -1;
    int rc = renameat2(AT_FDCWD, from, AT_FDCWD, to, RENAME_NOREPLACE);
    if (rc < 0 && (errno == EINVAL || errno == ENOSYS)) /* a file system without that flag */
        rc = link(from, to) < 0 ? -1 : unlink(from);
    return told("rename", -1, from, to, rc);
}

int sys_fchmod(int fd, unsigned mode) { return fails("fchmod", false) ? -1 : fchmod(fd, mode); }

int sys_flock(int fd, int operation)
{
    if (fails("flock", false))
        return -1;
    int rc;
    do
        rc = flock(fd, operation);
    while (rc < 0 && errno == EINTR);
    return rc;
}

int sys_fallocate(int fd, uint64_t bytes)
{
    if (fails("fallocate", false))
        return -1;
    int error;
    do
        error = posix_fallocate(fd, 0, (off_t)bytes);
    while (error == EINTR);
    errno = error;
    return told("fallocate", fd, NULL, NULL, error ? -1 : 0);
}

bool sys_write_at(int fd, const void *data, size_t n, uint64_t offset)
{
    if (fails("write_at", true)) {
        int error = errno;
        if (atomic_load(&fault.half) && pwrite(fd, data, n / 2, (off_t)offset) < 0)
            return false;
        if (atomic_load(&fault.exit))
            _exit(SYS_FAULT_EXIT);
        errno = error;
        return false;
    }
    const char *p = data;
    while (n > 0) {
        ssize_t done = pwrite(fd, p, n, (off_t)offset);
        if (done < 0 && errno == EINTR)
            continue;
        if (done <= 0) {
            if (done == 0)
                errno = ENOSPC;
            return false;
        }
        p += done;
        n -= (size_t)done;
        offset += (uint64_t)done;
    }
    told("write_at", fd, NULL, NULL, 0);
    return true;
}

bool sys_read_at(int fd, void *data, size_t n, uint64_t offset, size_t *got)
{
    if (fails("read_at", false))
        return false;
    char *p = data;
    *got = 0;
    while (*got < n) {
        ssize_t done = pread(fd, p + *got, n - *got, (off_t)(offset + *got));
        if (done < 0 && errno == EINTR)
            continue;
        if (done < 0)
            return false;
        if (done == 0)
            break;
        *got += (size_t)done;
    }
    return true;
}
