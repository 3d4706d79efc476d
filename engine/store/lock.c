/* The lock of a run directory. The kernel frees it when its holder dies, however that happens; what stands in the file
 * only tells others who it is. */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <time.h>
#include <unistd.h>

#include "engine/store/store_private.h"
#include "engine/store/sys.h"

struct run_lock {
    int fd;
};

void lock_read_holder(int fd, char out[200])
{
    size_t got = 0;
    if (!sys_read_at(fd, out, 199, 0, &got))
        got = 0;
    out[got] = '\0';
    out[strcspn(out, "\n")] = '\0';
    if (!out[0])
        snprintf(out, 200, "another process");
}

bool lock_write_holder(int fd, const char *path, struct err *e)
{
    char host[80] = "", when[40], text[200];
    time_t now = time(NULL);
    struct tm tm;
    gethostname(host, sizeof host - 1);
    strftime(when, sizeof when, "%Y-%m-%d %H:%M:%S UTC", gmtime_r(&now, &tm));
    snprintf(text, sizeof text, "pid %ld on %s since %s\n", (long)getpid(), host, when);
    if (ftruncate(fd, 0) < 0 || !sys_write_at(fd, text, strlen(text), 0))
        return err_errno(e, ERR_IO, "%s: cannot write", path);
    return true;
}

bool run_lock_take(struct run_lock **out, const char *run_dir, struct err *e)
{
    char path[PATH_MAX], holder[200];
    struct run_lock *l;
    if (snprintf(path, sizeof path, "%s/LOCK", run_dir) >= (int)sizeof path)
        return err_set(e, ERR_INPUT, "the run directory's path is longer than %d bytes", PATH_MAX);
    int fd = sys_open(path, O_RDWR | O_CREAT, 0644);
    if (fd < 0)
        return err_errno(e, ERR_RESOURCE, "%s: cannot open; give --dir a directory that may be written to", path);
    bool ok = sys_flock(fd, LOCK_EX | LOCK_NB) == 0;
    if (!ok && errno == EWOULDBLOCK) {
        lock_read_holder(fd, holder);
        err_set(e, ERR_RESOURCE, "%s: in use by %s; wait for it, or give another --dir", run_dir, holder);
    } else if (!ok) {
        err_errno(e, ERR_RESOURCE, "%s: cannot be locked; give --dir a directory on a local disk", path);
    }
    ok = ok && lock_write_holder(fd, path, e) && mem_new(&l, 1, e);
    if (!ok) {
        sys_close(fd);
        return false;
    }
    l->fd = fd;
    *out = l;
    return true;
}

void run_unlock(struct run_lock *l)
{
    if (!l)
        return;
    sys_close(l->fd);
    mem_free(l);
}
