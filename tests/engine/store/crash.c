/* Killed processes: at every system call that decides what is durable, with half of a write done, and at random times.
 * The store is used in child processes only: the test itself starts no thread, so that each fork is a fresh start. */
#include "tests/engine/store/row_check.h"

#include <errno.h>
#include <signal.h>
#include <sys/wait.h>
#include <time.h>

#include "engine/store/sys.h"

/* What a child is to do. */
struct task {
    struct fixture f; /* dir and path */
    long at;          /* the call at which it dies; 0: none */
    bool half;
    unsigned acknowledged, rows, seed;
    int pipe;         /* acknowledgements go here */
};

static int run_child(int (*fn)(struct task *), struct task *t)
{
    int status;
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0)
        _exit(fn(t));
    assert_int_equal(waitpid(pid, &status, 0), pid);
    if (!WIFEXITED(status))
        fail_msg("a child died of signal %d (fault at call %ld)", WTERMSIG(status), t->at);
    return WEXITSTATUS(status);
}

static int report(const struct err *e, const char *what)
{
    fprintf(stderr, "child: %s: %s\n", what, e->text);
    return 1;
}

static void arm(const struct task *t)
{
    if (t->at)
        sys_fault_set(&(struct sys_fault){.at = t->at, .exit = true, .half = t->half});
}

/* ---------------------------------------------------------------------------------------------------------- objects */

static int commit_one(struct task *t)
{
    struct err e = {0};
    struct key k = sample_key(1);
    arm(t);
    if (!store_open(&t->f.s, t->f.path, &e) || !sample_commit(t->f.s, &k, &e))
        return report(&e, "commit");
    sys_fault_set(NULL);
    store_close(t->f.s);
    return 0;
}

/* After the death: the object is whole or absent, nothing of the dead is left, and the work can be done again. */
static int check_one(struct task *t)
{
    struct err e = {0};
    struct key k = sample_key(1);
    if (!store_open(&t->f.s, t->f.path, &e))
        return report(&e, "open");
    bool there = false;
    if (!object_exists(t->f.s, &k, &there, &e))
        return report(&e, "exists");
    if (there && (!object_verify(t->f.s, &k, &e) || !sample_good(t->f.s, &k, &e)))
        return report(&e, "a half object");
    if (!sample_commit(t->f.s, &k, &e) || !sample_good(t->f.s, &k, &e))
        return report(&e, "commit again");
    if (folder_count(&t->f, "tmp", "") != 2 || folder_count(&t->f, "tmp", ".lock") != 1)
        return report(&e, "tmp/ is not clean");
    if (folder_count(&t->f, "quarantine", "") != 0)
        return report(&e, "quarantine/ is not empty");
    store_close(t->f.s);
    return folder_count(&t->f, "tmp", "") == 0 ? 0 : report(&e, "tmp/ is not empty");
}

static void a_process_killed_at_any_call_leaves_objects_whole_or_absent(void **state)
{
    (void)state;
    for (int half = 0; half < 2; half++)
        for (long n = 1;; n++) {
            struct task t = {.at = n, .half = half};
            check_dir_make(t.f.dir);
            snprintf(t.f.path, sizeof t.f.path, "%s/store", t.f.dir);
            int status = run_child(commit_one, &t);
            assert_true(status == 0 || status == SYS_FAULT_EXIT);
            t.at = 0;
            if (run_child(check_one, &t))
                fail_msg("after a death at call %ld", n);
            check_dir_remove(t.f.dir);
            if (status == 0) {
                assert_true(n > 25);
                break;
            }
        }
}

/* ---------------------------------------------------------------------------------------------------------- ledgers */

/* Append from the first missing row on, in batches of 1 to 4, telling the pipe after each how many rows there are.
 * Every row that was acknowledged before must be there, and none may be wrong. */
static int append_on(struct task *t)
{
    struct err e = {0};
    struct ledger *l;
    struct ledger_spec spec = spec_of(1);
    unsigned next = 0, seed = t->seed;
    arm(t);
    if (!store_open(&t->f.s, t->f.path, &e) || !ledger_open(&l, t->f.s, &spec, &e))
        return report(&e, "open");
    for (int found; (found = row_state(l, next)) != 0; next++)
        if (found < 0)
            return report(&e, "a wrong row");
    if (next < t->acknowledged)
        return report(&e, "an acknowledged row is lost");
    if (t->pipe && write(t->pipe, &next, sizeof next) != sizeof next) /* open, and this many are there */
        return report(&e, "pipe");
    while (next < t->rows) {
        unsigned n = 1 + (seed = seed * 1664525 + 1013904223) / 65536 % 4;
        if (!append_rows(l, next, n, &e))
            return report(&e, "append");
        next += n;
        if (t->pipe && write(t->pipe, &next, sizeof next) != sizeof next)
            return report(&e, "pipe");
    }
    sys_fault_set(NULL);
    ledger_close(l);
    store_close(t->f.s);
    return 0;
}

/* The last number in the pipe, or `before`. */
static unsigned last_acknowledged(int fd, unsigned before)
{
    unsigned x;
    while (read(fd, &x, sizeof x) == sizeof x)
        before = x;
    return before;
}

static void a_process_killed_at_any_call_loses_no_acknowledged_row(void **state)
{
    (void)state;
    for (int half = 0; half < 2; half++)
        for (long n = 1;; n++) {
            int ends[2];
            struct task t = {.at = n, .half = half, .rows = 12, .seed = (unsigned)n};
            check_dir_make(t.f.dir);
            snprintf(t.f.path, sizeof t.f.path, "%s/store", t.f.dir);
            assert_int_equal(pipe(ends), 0);
            t.pipe = ends[1];
            int status = run_child(append_on, &t);
            assert_true(status == 0 || status == SYS_FAULT_EXIT);
            close(ends[1]);
            t.acknowledged = last_acknowledged(ends[0], 0);
            close(ends[0]);
            t.at = 0;
            t.pipe = 0;
            t.rows = t.acknowledged + 5;
            if (run_child(append_on, &t))
                fail_msg("after a death at call %ld", n);
            check_dir_remove(t.f.dir);
            if (status == 0) {
                assert_true(n > 25);
                break;
            }
        }
}

static void a_hundred_kills_at_random_times_lose_no_acknowledged_row(void **state)
{
    (void)state;
    struct task t = {.rows = 1000000};
    unsigned killed_late = 0;
    check_dir_make(t.f.dir);
    snprintf(t.f.path, sizeof t.f.path, "%s/store", t.f.dir);
    srand(7);
    for (unsigned round = 0; round < 100; round++) {
        int ends[2], status;
        assert_int_equal(pipe(ends), 0);
        t.pipe = ends[1];
        t.seed = round;
        pid_t pid = fork();
        assert_true(pid >= 0);
        if (pid == 0)
            _exit(append_on(&t));
        close(ends[1]);
        unsigned now = t.acknowledged;
        if (round % 2 && read(ends[0], &now, sizeof now) != sizeof now) /* every second one dies while it appends */
            fail_msg("round %u: the child could not open the ledger", round);
        nanosleep(&(struct timespec){.tv_nsec = rand() % 40 * 1000000}, NULL);
        kill(pid, SIGKILL);
        assert_int_equal(waitpid(pid, &status, 0), pid);
        if (!WIFSIGNALED(status))
            fail_msg("round %u: the child ended by itself with %d", round, WEXITSTATUS(status));
        now = last_acknowledged(ends[0], now);
        killed_late += now > t.acknowledged;
        t.acknowledged = now;
        close(ends[0]);
    }
    assert_true(killed_late > 10);
    t.pipe = 0;
    t.rows = t.acknowledged + 3;
    assert_int_equal(run_child(append_on, &t), 0);
    check_dir_remove(t.f.dir);
}

/* -------------------------------------------------------------------------------------------------------- processes */

static int hold_ledger(struct task *t)
{
    struct err e = {0};
    struct ledger *l;
    struct ledger_spec spec = spec_of(1);
    unsigned one = 1;
    if (!store_open(&t->f.s, t->f.path, &e) || !ledger_open(&l, t->f.s, &spec, &e) || !append_rows(l, 0, 5, &e))
        return report(&e, "first writer");
    if (write(t->pipe, &one, sizeof one) != sizeof one)
        return 1;
    nanosleep(&(struct timespec){.tv_nsec = 150000000}, NULL);
    if (!append_rows(l, 5, 5, &e))
        return report(&e, "first writer");
    ledger_close(l);
    store_close(t->f.s);
    return 0;
}

static int wait_for_ledger(struct task *t)
{
    struct err e = {0};
    struct ledger *l;
    struct ledger_spec spec = spec_of(1);
    if (!store_open(&t->f.s, t->f.path, &e) || !ledger_open(&l, t->f.s, &spec, &e))
        return report(&e, "second writer");
    bool all = ledger_rows(l) == 10;
    for (unsigned i = 0; i < 10; i++)
        all = all && row_state(l, i) == 1;
    return all ? 0 : report(&e, "the second writer came before the first had left");
}

static void a_second_process_waits_for_the_ledger_and_sees_all_rows(void **state)
{
    (void)state;
    struct task t = {0};
    int ends[2], status;
    unsigned one;
    check_dir_make(t.f.dir);
    snprintf(t.f.path, sizeof t.f.path, "%s/store", t.f.dir);
    assert_int_equal(pipe(ends), 0);
    t.pipe = ends[1];
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0)
        _exit(hold_ledger(&t));
    assert_int_equal(read(ends[0], &one, sizeof one), sizeof one);
    assert_int_equal(run_child(wait_for_ledger, &t), 0);
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    close(ends[0]);
    close(ends[1]);
    check_dir_remove(t.f.dir);
}

static bool stop_at_once(void *waiter)
{
    (void)waiter;
    return true;
}

/* The holder is the process in `seed`. */
static void check_holder(void *waiter, const char *holder)
{
    struct task *t = waiter;
    char expected[32];
    snprintf(expected, sizeof expected, "pid %u on ", t->seed);
    t->acknowledged += strncmp(holder, expected, strlen(expected)) == 0;
}

static int stop_waiting(struct task *t)
{
    struct err e = {0};
    struct ledger *l;
    struct ledger_spec spec = spec_of(1);
    spec.stopping = stop_at_once;
    spec.waits = check_holder;
    spec.waiter = t;
    if (!store_open(&t->f.s, t->f.path, &e))
        return report(&e, "open");
    bool opened = ledger_open(&l, t->f.s, &spec, &e);
    return !opened && e.code == ERR_STOPPED && t->acknowledged == 1 ? 0 : report(&e, "waiting was not stopped");
}

static void waiting_for_a_ledger_says_for_whom_and_can_be_stopped(void **state)
{
    (void)state;
    struct task t = {0};
    int ends[2], status;
    unsigned one;
    check_dir_make(t.f.dir);
    snprintf(t.f.path, sizeof t.f.path, "%s/store", t.f.dir);
    assert_int_equal(pipe(ends), 0);
    t.pipe = ends[1];
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0)
        _exit(hold_ledger(&t));
    assert_int_equal(read(ends[0], &one, sizeof one), sizeof one);
    t.seed = (unsigned)pid;
    assert_int_equal(run_child(stop_waiting, &t), 0);
    assert_int_equal(waitpid(pid, &status, 0), pid);
    close(ends[0]);
    close(ends[1]);
    check_dir_remove(t.f.dir);
}

static int commit_many(struct task *t)
{
    struct err e = {0};
    if (!store_open(&t->f.s, t->f.path, &e))
        return report(&e, "open");
    for (unsigned i = 0; i < 30; i++) {
        struct key k = sample_key(i);
        if (!sample_commit(t->f.s, &k, &e) || !sample_good(t->f.s, &k, &e))
            return report(&e, "commit");
    }
    store_close(t->f.s);
    return 0;
}

static void processes_share_a_store_and_its_tmp(void **state)
{
    (void)state;
    struct task t = {0};
    pid_t pids[3];
    check_dir_make(t.f.dir);
    snprintf(t.f.path, sizeof t.f.path, "%s/store", t.f.dir);
    for (int i = 0; i < 3; i++) {
        pids[i] = fork();
        assert_true(pids[i] >= 0);
        if (pids[i] == 0)
            _exit(commit_many(&t));
    }
    for (int i = 0; i < 3; i++) {
        int status;
        assert_int_equal(waitpid(pids[i], &status, 0), pids[i]);
        assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    }
    assert_int_equal(folder_count(&t.f, "tmp", ""), 0);
    assert_int_equal(folder_count(&t.f, "quarantine", ""), 0);
    check_dir_remove(t.f.dir);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_process_killed_at_any_call_leaves_objects_whole_or_absent),
        cmocka_unit_test(a_process_killed_at_any_call_loses_no_acknowledged_row),
        cmocka_unit_test(a_hundred_kills_at_random_times_lose_no_acknowledged_row),
        cmocka_unit_test(a_second_process_waits_for_the_ledger_and_sees_all_rows),
        cmocka_unit_test(waiting_for_a_ledger_says_for_whom_and_can_be_stopped),
        cmocka_unit_test(processes_share_a_store_and_its_tmp),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
