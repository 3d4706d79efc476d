/* A piece of work at a time beside its owner, its result and its error, and an end in any state. */
#include "tests/check.h"

#include "engine/base/ahead.h"

struct job {
    int input, output, runs;
};

static bool square(void *context, struct err *e)
{
    struct job *j = context;
    j->runs++;
    if (j->input < 0)
        return err_set(e, ERR_INPUT, "%d is negative", j->input);
    j->output = j->input * j->input;
    return true;
}

static void each_start_runs_once_and_is_waited_for(void **state)
{
    (void)state;
    struct ahead *a;
    struct job j = {0};
    struct err e = {0};
    assert_ok(ahead_new(&a, square, &j, &e), e);
    assert_ok(ahead_wait(a, &e), e); /* nothing was started */
    for (int i = 1; i <= 200; i++) {
        j.input = i;
        ahead_start(a);
        assert_ok(ahead_wait(a, &e), e);
        assert_int_equal(j.output, i * i);
        assert_int_equal(j.runs, i);
        assert_ok(ahead_wait(a, &e), e); /* a second wait finds nothing */
    }
    ahead_free(a);
}

static void a_failure_is_told_to_the_one_who_waits(void **state)
{
    (void)state;
    struct ahead *a;
    struct job j = {.input = -3};
    struct err e = {0};
    assert_ok(ahead_new(&a, square, &j, &e), e);
    ahead_start(a);
    assert_err(ahead_wait(a, &e), e, ERR_INPUT, "-3 is negative");
    j.input = 4; /* and it goes on */
    ahead_start(a);
    assert_ok(ahead_wait(a, &e), e);
    assert_int_equal(j.output, 16);
    ahead_free(a);
}

static void it_ends_in_any_state(void **state)
{
    (void)state;
    struct err e = {0};
    for (int started = 0; started < 2; started++) {
        struct ahead *a;
        struct job j = {.input = 5};
        assert_ok(ahead_new(&a, square, &j, &e), e);
        if (started)
            ahead_start(a);
        ahead_free(a);
        assert_int_equal(j.runs, started); /* what was at work has ended */
    }
    ahead_free(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(each_start_runs_once_and_is_waited_for),
        cmocka_unit_test(a_failure_is_told_to_the_one_who_waits),
        cmocka_unit_test(it_ends_in_any_state),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
