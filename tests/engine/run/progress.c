/* engine/run/progress.c: the text of live lines, and what goes to which stream. */
#include "engine/run/progress.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static void a_live_line_says_how_far_how_fast_and_how_long(void **state)
{
    static const struct {
        struct progress_live line;
        int columns;
        const char *text;
    } cases[] = {
        {{"hessian", "layer", 3, 30, 0.5, 6}, 80, "hessian              3/30 layer  0.5/s  54.0 s left"},
        {{"measure", "row", 12000, 100000, 2000, 6}, 80, "measure              12.0k/100.0k row  2000/s  44.0 s left"},
        {{"measure", "row", 12, 0, 2, 6}, 80, "measure              12 row  2/s"},
        {{"model", "", 0, 0, NAN, 4.2}, 80, "model                4.2 s"},
        {{"measure", "row", 12, 100, 2, 6}, 24, "measure              12"},
    };
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char text[256];
        progress_format(&cases[i].line, cases[i].columns, text, sizeof text);
        assert_string_equal(text, cases[i].text);
    }
}

/* What `output` writes for one line and one event. */
static char *written(enum run_output output)
{
    char *text = NULL;
    size_t size;
    struct progress *p = NULL;
    struct err e;
    FILE *f = open_memstream(&text, &size);
    const struct progress_live live = {"n", "row", 1, 2, 1, 1};
    assert_non_null(f);
    assert_true(progress_new(&p, NULL, output, f, &e));
    progress_draw(p, &live, 1);
    progress_line(p, "n", "two\nlines \"quoted\"");
    progress_event(p, "n", "done in 1 s", "{\"event\":\"node\"}");
    progress_free(p);
    fclose(f);
    return text;
}

static void each_output_has_its_form(void **state)
{
    (void)state;
    char *plain = written(RUN_PLAIN), *json = written(RUN_JSON), *silent = written(RUN_SILENT),
         *live = written(RUN_TERMINAL);
    assert_string_equal(plain, "n: two lines \"quoted\"\nn: done in 1 s\n");
    assert_string_equal(
        json, "{\"event\":\"log\",\"node\":\"n\",\"text\":\"two\\nlines \\\"quoted\\\"\"}\n{\"event\":\"node\"}\n");
    assert_string_equal(silent, "");
    assert_string_equal(live, "n                    1/2 row  1/s  1.0 s left\n\033[1A\r\033[Jn: two lines \"quoted\"\n"
                              "n: done in 1 s\n");
    free(plain);
    free(json);
    free(silent);
    free(live);
}

static void a_log_that_cannot_be_written_is_said(void **state)
{
    struct progress *p = NULL;
    struct err e;
    (void)state;
    assert_false(progress_new(&p, "/nonexistent/run.log", RUN_SILENT, NULL, &e));
    assert_int_equal(e.code, ERR_RESOURCE);
    assert_string_equal(e.text, "cannot write the log '/nonexistent/run.log': No such file or directory");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_live_line_says_how_far_how_fast_and_how_long),
        cmocka_unit_test(each_output_has_its_form),
        cmocka_unit_test(a_log_that_cannot_be_written_is_said),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
