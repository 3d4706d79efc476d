#include "tests/engine/store/store_check.h"

#include <signal.h>
#include <sys/wait.h>

static void the_second_is_told_who_holds_it(void **state)
{
    (void)state;
    char dir[256], holder[64];
    struct run_lock *a, *b;
    struct err e;
    check_dir_make(dir);
    assert_ok(run_lock_take(&a, dir, &e), e);
    snprintf(holder, sizeof holder, "in use by pid %ld on ", (long)getpid());
    assert_err(run_lock_take(&b, dir, &e), e, ERR_RESOURCE, holder);
    assert_non_null(strstr(e.text, " since 2"));
    assert_non_null(strstr(e.text, "--dir"));
    run_unlock(a);
    assert_ok(run_lock_take(&b, dir, &e), e);
    run_unlock(b);
    run_unlock(NULL);
    check_dir_remove(dir);
}

static void the_lock_goes_with_its_holder(void **state)
{
    (void)state;
    char dir[256], x;
    struct run_lock *l;
    struct err e;
    int ends[2], status;
    check_dir_make(dir);
    assert_int_equal(pipe(ends), 0);
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        if (run_lock_take(&l, dir, &e) && write(ends[1], "x", 1) == 1)
            pause();
        _exit(1);
    }
    assert_int_equal(read(ends[0], &x, 1), 1);
    char holder[64];
    snprintf(holder, sizeof holder, "in use by pid %ld on ", (long)pid);
    assert_err(run_lock_take(&l, dir, &e), e, ERR_RESOURCE, holder);
    kill(pid, SIGKILL);
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_ok(run_lock_take(&l, dir, &e), e);
    run_unlock(l);
    close(ends[0]);
    close(ends[1]);
    check_dir_remove(dir);
}

static void a_missing_directory_is_named(void **state)
{
    (void)state;
    struct run_lock *l;
    struct err e;
    assert_err(run_lock_take(&l, "/nonexistent/run", &e), e, ERR_RESOURCE, "/nonexistent/run/LOCK: cannot open");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_second_is_told_who_holds_it),
        cmocka_unit_test(the_lock_goes_with_its_holder),
        cmocka_unit_test(a_missing_directory_is_named),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
