#include "engine/store/sys.h"

#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

/* The tests' fault, the one state here that outlives a call. Off in the program. `left` counts down; the call that
 * takes it from 1 to 0 is the one that fails. */
static struct {
    atomic_long left;
    atomic_int error;
    atomic_bool armed, sticky, exit, half, hit;
} fault;

void sys_fault_set(const struct sys_fault *f)
{
    atomic_store(&fault.armed, false);
    atomic_store(&fault.hit, false);
    if (!f || f->at <= 0)
        return;
    atomic_store(&fault.left, f->at);
    atomic_store(&fault.error, f->error);
    atomic_store(&fault.sticky, f->sticky);
    atomic_store(&fault.exit, f->exit);
    atomic_store(&fault.half, f->half);
    atomic_store(&fault.armed, true);
}

bool sys_fault_hit(void) { return atomic_load(&fault.hit); }

/* Does this call have to fail? Sets errno, or ends the process unless `defer_exit` (a write has its half to do
 * first). */
static bool fails(bool defer_exit)
{
    if (!atomic_load(&fault.armed))
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
    if (fails(false))
        return -1;
    int fd;
    do
        fd = open(path, flags | O_CLOEXEC, mode);
    while (fd < 0 && errno == EINTR);
    return fd;
}

int sys_close(int fd)
{
    bool failed = fails(false);
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
    if (fails(false))
        return -1;
    int rc;
    do
        rc = fsync(fd);
    while (rc < 0 && errno == EINTR);
    return rc;
}

int sys_fdatasync(int fd)
{
    if (fails(false))
        return -1;
    int rc;
    do
        rc = fdatasync(fd);
    while (rc < 0 && errno == EINTR);
    return rc;
}

int sys_mkdir(const char *path, unsigned mode) { return fails(false) ? -1 : mkdir(path, mode); }

int sys_unlink(const char *path) { return fails(false) ? -1 : unlink(path); }

int sys_rename(const char *from, const char *to) { return fails(false) ? -1 : rename(from, to); }

int sys_rename_new(const char *from, const char *to)
{
    if (fails(false))
        return -1;
    int rc = renameat2(AT_FDCWD, from, AT_FDCWD, to, RENAME_NOREPLACE);
    if (rc == 0 || (errno != EINVAL && errno != ENOSYS))
        return rc;
    if (link(from, to) < 0) /* a file system without that flag */
        return -1;
    return unlink(from);
}

int sys_fchmod(int fd, unsigned mode) { return fails(false) ? -1 : fchmod(fd, mode); }

int sys_flock(int fd, int operation)
{
    if (fails(false))
        return -1;
    int rc;
    do
        rc = flock(fd, operation);
    while (rc < 0 && errno == EINTR);
    return rc;
}

int sys_fallocate(int fd, uint64_t bytes)
{
    if (fails(false))
        return -1;
    int error;
    do
        error = posix_fallocate(fd, 0, (off_t)bytes);
    while (error == EINTR);
    errno = error;
    return error ? -1 : 0;
}

bool sys_write_at(int fd, const void *data, size_t n, uint64_t offset)
{
    if (fails(true)) {
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
    return true;
}

bool sys_read_at(int fd, void *data, size_t n, uint64_t offset, size_t *got)
{
    if (fails(false))
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
