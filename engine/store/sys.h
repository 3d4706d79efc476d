#ifndef ENGINE_STORE_SYS_H
#define ENGINE_STORE_SYS_H
/* The system calls that decide what is durable, behind thin wrappers, so that a test can make the n-th one fail or end
 * the process there. Outside tests they only restart what a signal interrupted. All but the counted ones set errno and
 * return as the plain calls do. */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

int sys_open(const char *path, int flags, unsigned mode); /* O_CLOEXEC is added */
int sys_close(int fd);
int sys_fsync(int fd);
int sys_fdatasync(int fd);
int sys_mkdir(const char *path, unsigned mode);
int sys_unlink(const char *path);
int sys_rename(const char *from, const char *to);
/* Rename that fails with EEXIST when `to` exists. */
int sys_rename_new(const char *from, const char *to);
int sys_fchmod(int fd, unsigned mode);
int sys_flock(int fd, int operation);
/* Reserve the first `bytes` bytes of the file on the disk; what is there stays, what is new reads as zero. */
int sys_fallocate(int fd, uint64_t bytes);
/* All n bytes, however many calls that takes; false with errno set. */
bool sys_write_at(int fd, const void *data, size_t n, uint64_t offset);
/* Up to n bytes, fewer only at the end of the file: *got says how many. False with errno set. */
bool sys_read_at(int fd, void *data, size_t n, uint64_t offset, size_t *got);

/* For tests: what happens at the `at`-th wrapper call from now (1 is the next). */
struct sys_fault {
    long at;          /* 0: nothing */
    const char *call; /* calls of that name only ("fdatasync"); NULL: all */
    int error;        /* errno of the call that fails */
    bool sticky;      /* all later calls fail too */
    bool exit;        /* instead of failing, the process ends there at once, as if killed */
    bool half;        /* a write does half of its bytes first */
};
/* NULL: off. */
void sys_fault_set(const struct sys_fault *f);
/* Has the fault happened since it was set? */
bool sys_fault_hit(void);
#define SYS_FAULT_EXIT 86 /* the exit status of a process that a fault ended */

/* For tests: one call that has been made and has succeeded, of those that decide what a power cut leaves. */
struct sys_call {
    const char *name; /* "mkdir", "rename", "write_at", "fallocate", "fsync", "fdatasync" */
    const char *path; /* of the file or directory; of a file by its number, where it lay then */
    const char *to;   /* of a rename, else NULL */
};
/* `tell` hears of each; NULL: off. Not while another thread is in a call. */
void sys_trace_set(void (*tell)(void *context, const struct sys_call *c), void *context);

#endif
