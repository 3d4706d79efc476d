/* engine/run/run.c: a run that is interrupted or killed at any moment and started again ends with the same bytes; two
 * runs in one directory; what is left in run.h5 and run.log. Every run here is a child process of its own. */
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/engine/run/fake.h"

#define ROUNDS 50

static char dir[64];

static int set_up(void **state)
{
    (void)state;
    fake_directory(dir);
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    fake_remove(dir);
    return 0;
}

/* A fixed sequence of pseudo-random numbers, so that a failing round can be found again. */
static unsigned next_random(unsigned *seed)
{
    *seed = *seed * 1664525u + 1013904223u;
    return *seed >> 8;
}

/* Of a child: the run that SIGINT stops, NULL once it is over. */
struct watch {
    pthread_mutex_t lock;
    struct run *run;
};

static void *stop_on_signal(void *context)
{
    struct watch *w = context;
    sigset_t set;
    int got;
    sigemptyset(&set);
    sigaddset(&set, SIGINT);
    if (sigwait(&set, &got) == 0) {
        pthread_mutex_lock(&w->lock);
        if (w->run)
            run_stop(w->run);
        pthread_mutex_unlock(&w->lock);
    }
    return NULL;
}

static void block_signal(void)
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGINT);
    pthread_sigmask(SIG_BLOCK, &set, NULL);
}

/* Executes, with SIGINT stopping it; false when it could not start. */
static bool execute(struct run *r, struct run_summary *s, struct err *e)
{
    static struct watch w = {.lock = PTHREAD_MUTEX_INITIALIZER}; /* outlives the detached thread */
    pthread_t thread;
    w.run = r;
    pthread_create(&thread, NULL, stop_on_signal, &w);
    pthread_detach(thread);
    bool ok = run_execute(r, s, e);
    pthread_mutex_lock(&w.lock);
    w.run = NULL;
    pthread_mutex_unlock(&w.lock);
    return ok;
}

/* In a child: run the thirty nodes in `where`; the exit code is 0 done, 130 stopped, 1 some node failed, 2 no start. */
static pid_t start_child(const char *where)
{
    pid_t pid = fork();
    if (pid != 0)
        return pid;
    struct fake f;
    struct run_options o = {.dir = where, .topology = "core:4 pu:1"};
    struct run *r = NULL;
    struct run_summary s = {0};
    struct err e = {0};
    block_signal();
    fake_thirty(&f);
    if (!run_open(&r, &f.graph, &o, &e)) {
        fprintf(stderr, "child: %s\n", e.text);
        _exit(e.code == ERR_RESOURCE ? 3 : 2);
    }
    if (!execute(r, &s, &e)) {
        fprintf(stderr, "child: %s\n", e.text);
        _exit(2);
    }
    for (size_t i = 0; s.failed && i < run_count(r); i++) {
        struct run_view v;
        run_view(r, i, &v);
        if (v.error)
            fprintf(stderr, "child: %s: %s\n", v.name, v.error->text);
    }
    int code = s.failed ? 1 : s.stopped || !s.started ? 130 : 0;
    run_close(r);
    _exit(code);
}

/* Exit code, or 128 + the signal that ended it. */
static int wait_child(pid_t pid)
{
    int status;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

static void sleep_us(unsigned us)
{
    nanosleep(&(struct timespec){.tv_sec = us / 1000000, .tv_nsec = (long)(us % 1000000) * 1000}, NULL);
}

/* The objects of an undisturbed run, and how long it took. */
static char *undisturbed(unsigned *us)
{
    struct timespec a, b;
    clock_gettime(CLOCK_MONOTONIC, &a);
    assert_int_equal(wait_child(start_child(dir)), 0);
    clock_gettime(CLOCK_MONOTONIC, &b);
    *us = (unsigned)((b.tv_sec - a.tv_sec) * 1000000 + (b.tv_nsec - a.tv_nsec) / 1000);
    char *out = fake_objects(dir);
    assert_true(strlen(out) > 30 * 64);
    return out;
}

/* Disturb runs in fresh directories with `signal` at random moments until one is done, and compare; ROUNDS signals. */
static void disturb(int signal, int expected)
{
    unsigned us, seed = 12345;
    char *want = undisturbed(&us);
    char where[64];
    fake_directory(where);
    int hit = 0, complete = 0;
    for (int round = 0; round < ROUNDS || complete == 0; round++) {
        pid_t pid = start_child(where);
        if (round < ROUNDS) {
            sleep_us(next_random(&seed) % (us * 6 / 10));
            kill(pid, signal);
        }
        int code = wait_child(pid);
        if (code != 0 && code != expected)
            fail_msg("round %d ended with %d", round, code);
        hit += code == expected;
        if (code != 0)
            continue;
        complete++;
        char *got = fake_objects(where);
        assert_string_equal(got, want);
        free(got);
        fake_remove(where);
        assert_int_equal(mkdir(where, 0777), 0);
    }
    if (hit < ROUNDS / 2)
        fail_msg("only %d of %d rounds were hit", hit, ROUNDS);
    fake_remove(where);
    free(want);
}

static void killed_at_random_moments_the_bytes_are_the_same(void **state)
{
    (void)state;
    disturb(SIGKILL, 128 + SIGKILL);
}

static void interrupted_at_random_moments_the_bytes_are_the_same(void **state)
{
    (void)state;
    disturb(SIGINT, 130);
}

/* The state that a node has in run.h5. */
static const char *indexed(const struct index_node *nodes, size_t n, const char *name)
{
    for (size_t i = 0; i < n; i++)
        if (strcmp(nodes[i].name, name) == 0)
            return nodes[i].state;
    return "absent";
}

static void an_interrupted_node_is_so_in_the_index(void **state)
{
    struct fake f;
    (void)state;
    fake_init(&f);
    int v = fake_add(&f, "v", &fake_value), rows = fake_add(&f, "rows", &fake_rows), s = fake_add(&f, "s", &fake_sum);
    fake_set(&f, rows, "n", "100000");
    fake_set(&f, rows, "ms", "1");
    fake_connect(&f, rows, "in", v, "a");
    fake_connect(&f, s, "in", rows, "");
    pid_t pid = fork();
    if (pid == 0) {
        struct run_options o = {.dir = dir};
        struct run *r = NULL;
        struct run_summary sum;
        struct err e;
        block_signal();
        if (!run_open(&r, &f.graph, &o, &e))
            _exit(2);
        bool ok = execute(r, &sum, &e) && sum.stopped && sum.interrupted == 1 && sum.waiting == 1 && sum.done == 1;
        run_close(r);
        _exit(ok ? 130 : 1);
    }
    sleep_us(500000);
    kill(pid, SIGINT);
    assert_int_equal(wait_child(pid), 130);
    struct arena arena = {0};
    struct index_run run;
    struct index_node *nodes;
    size_t n;
    struct err e;
    pid = fork(); /* libhdf5 in a child, so that the next test's fork is clean */
    if (pid == 0) {
        bool ok = index_read(dir, &run, &nodes, &n, &arena, &e) && strcmp(indexed(nodes, n, "v"), "done") == 0 &&
                  strcmp(indexed(nodes, n, "rows"), "interrupted") == 0 &&
                  strcmp(indexed(nodes, n, "s"), "waiting") == 0;
        _exit(ok ? 0 : 1);
    }
    assert_int_equal(wait_child(pid), 0);
    fake_fini(&f);
}

static void a_second_run_in_the_directory_is_told_who_holds_it(void **state)
{
    struct run *r = NULL;
    struct fake f;
    struct err e = {0};
    struct run_options o = {.dir = dir};
    char expected[64];
    int ready[2];
    (void)state;
    fake_thirty(&f);
    assert_int_equal(pipe(ready), 0);
    pid_t pid = fork();
    if (pid == 0) {
        bool ok = run_open(&r, &f.graph, &o, &e);
        (void)!write(ready[1], ok ? "y" : "n", 1);
        pause();
        _exit(0);
    }
    char answer;
    assert_int_equal(read(ready[0], &answer, 1), 1);
    assert_int_equal(answer, 'y');
    pid_t second = fork();
    if (second == 0) {
        bool refused = !run_open(&r, &f.graph, &o, &e) && e.code == ERR_RESOURCE;
        snprintf(expected, sizeof expected, "%d", (int)pid);
        if (!refused || !strstr(e.text, expected) || !strstr(e.text, dir)) {
            fprintf(stderr, "second: %s\n", e.text);
            _exit(1);
        }
        _exit(3);
    }
    assert_int_equal(wait_child(second), 3);
    kill(pid, SIGKILL);
    wait_child(pid);
    assert_int_equal(wait_child(start_child(dir)), 0); /* the lock went with its holder */
    close(ready[0]);
    close(ready[1]);
    fake_fini(&f);
}

static void two_runs_share_a_store(void **state)
{
    struct fake f;
    char a[80], b[80], store[80], found[256];
    (void)state;
    fake_thirty(&f);
    snprintf(a, sizeof a, "%s/a", dir);
    snprintf(b, sizeof b, "%s/b", dir);
    snprintf(store, sizeof store, "%s/shared", dir);
    for (int i = 0; i < 2; i++) {
        pid_t pid = fork();
        if (pid == 0) {
            struct run_options o = {.store = store};
            struct run_summary s = fake_run(&f, i ? b : a, &o);
            _exit(i == 0 ? s.done + s.reused != 30 || s.done < 20 : s.reused != 30);
        }
        assert_int_equal(wait_child(pid), 0);
    }
    struct err e;
    assert_true(run_find_store(b, found, sizeof found, &e));
    assert_string_equal(found, store);
    fake_fini(&f);
}

static void the_log_has_a_timed_line_per_step(void **state)
{
    char path[96], line[512];
    int running = 0, done = 0, total = 0;
    (void)state;
    assert_int_equal(wait_child(start_child(dir)), 0);
    snprintf(path, sizeof path, "%s/run.log", dir);
    FILE *f = fopen(path, "r");
    assert_non_null(f);
    while (fgets(line, sizeof line, f)) {
        int year, month, day, hour, minute, second;
        assert_int_equal(sscanf(line, "%4d-%2d-%2dT%2d:%2d:%2dZ ", &year, &month, &day, &hour, &minute, &second), 6);
        total++;
        running += strstr(line, ": running on ") != NULL;
        done += strstr(line, ": done in ") != NULL;
    }
    fclose(f);
    assert_true(running > 20);
    assert_int_equal(running, done);
    assert_true(total >= running + done + 2);
}

static void a_directory_that_cannot_be_made_is_a_resource_error(void **state)
{
    struct fake f;
    char path[96];
    struct run *r = NULL;
    struct err e;
    (void)state;
    fake_thirty(&f);
    snprintf(path, sizeof path, "%s/file", dir);
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    fclose(file);
    struct run_options o = {.dir = path};
    assert_false(run_open(&r, &f.graph, &o, &e));
    assert_int_equal(e.code, ERR_RESOURCE);
    assert_non_null(strstr(e.text, "/file: cannot make this directory"));
    fake_fini(&f);
}

int main(void)
{
#define TEST(f) cmocka_unit_test_setup_teardown(f, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        TEST(killed_at_random_moments_the_bytes_are_the_same),
        TEST(interrupted_at_random_moments_the_bytes_are_the_same),
        TEST(an_interrupted_node_is_so_in_the_index),
        TEST(a_second_run_in_the_directory_is_told_who_holds_it),
        TEST(two_runs_share_a_store),
        TEST(the_log_has_a_timed_line_per_step),
        TEST(a_directory_that_cannot_be_made_is_a_resource_error),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
