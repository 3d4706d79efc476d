/* Publishing a directory: whole or not at all, over what was there, after a maker that died. */
#include "nodes/publish.h"

#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

static char place[512]; /* a fresh directory for each test */

static int set_up(void **state)
{
    (void)state;
    const char *base = getenv("TMPDIR");
    snprintf(place, sizeof place, "%s/scout-publish-XXXXXX", base ? base : "/tmp");
    return mkdtemp(place) ? 0 : -1;
}

static int tear_down(void **state)
{
    (void)state;
    char command[600];
    snprintf(command, sizeof command, "rm -rf '%s'", place);
    return system(command);
}

static const char *at(const char *name)
{
    static char paths[8][700];
    static int next;
    next = (next + 1) % 8;
    snprintf(paths[next], sizeof paths[next], "%s/%s", place, name);
    return paths[next];
}

static bool there(const char *name)
{
    struct stat s;
    return lstat(at(name), &s) == 0;
}

static void assert_content(const char *name, const char *expected)
{
    char got[64] = "";
    FILE *f = fopen(at(name), "r");
    if (!f)
        fail_msg("there is no %s", name);
    size_t n = fread(got, 1, sizeof got - 1, f);
    fclose(f);
    got[n] = '\0';
    assert_string_equal(got, expected);
}

/* Begin to publish <place>/<name> with one file. */
static struct publish *begin(const char *name, const char *content)
{
    struct err e = {0};
    struct publish *p = NULL;
    if (!publish_begin(&p, at(name), &e) || !publish_write(p, "a.txt", content, strlen(content), &e))
        fail_msg("%s", e.text);
    return p;
}

static void commit(struct publish *p)
{
    struct err e = {0};
    if (!publish_commit(p, &e))
        fail_msg("%s", e.text);
}

/* Entries of <place>. */
static int entries(void)
{
    char command[600];
    int n = -1;
    snprintf(command, sizeof command, "ls -A '%s' | wc -l", place);
    FILE *f = popen(command, "r");
    assert_non_null(f);
    assert_int_equal(fscanf(f, "%d", &n), 1);
    pclose(f);
    return n;
}

static void nothing_is_in_place_before_the_commit(void **state)
{
    (void)state;
    struct publish *p = begin("export", "one");
    assert_false(there("export"));
    commit(p);
    assert_content("export/a.txt", "one");
    assert_int_equal(entries(), 1);
}

static void a_directory_is_replaced_and_the_old_one_removed(void **state)
{
    (void)state;
    commit(begin("export", "one"));
    struct publish *p = begin("export", "two");
    assert_content("export/a.txt", "one");
    commit(p);
    assert_content("export/a.txt", "two");
    assert_int_equal(entries(), 1);
}

static void an_empty_directory_is_filled(void **state)
{
    (void)state;
    assert_int_equal(mkdir(at("export"), 0777), 0);
    commit(begin("export/", "one"));
    assert_content("export/a.txt", "one");
    assert_int_equal(entries(), 1);
}

static void missing_parents_are_made(void **state)
{
    (void)state;
    commit(begin("x/y/export", "one"));
    assert_content("x/y/export/a.txt", "one");
}

static void an_abort_leaves_nothing(void **state)
{
    (void)state;
    publish_abort(begin("export", "one"));
    assert_int_equal(entries(), 0);
    publish_abort(NULL);
}

static void what_a_dead_maker_left_is_removed_and_what_a_living_one_makes_is_not(void **state)
{
    (void)state;
    assert_int_equal(mkdir(at("export.partial-1-0"), 0777), 0);
    assert_int_equal(mkdir(at("export.partial-2-0"), 0777), 0);
    assert_int_equal(mkdir(at("export2.partial-1-0"), 0777), 0);
    assert_int_equal(mkdir(at("export.partial-3-old"), 0777), 0);
    assert_int_equal(mkdir(at("export.partial-results"), 0777), 0); /* somebody's own */
    assert_int_equal(mkdir(at("export.partial-1-0-mine"), 0777), 0);
    int living = open(at("export.partial-2-0"), O_RDONLY | O_DIRECTORY);
    assert_int_equal(flock(living, LOCK_EX), 0);
    commit(begin("export", "one"));
    assert_false(there("export.partial-1-0"));
    assert_true(there("export.partial-2-0"));
    assert_true(there("export2.partial-1-0"));
    assert_false(there("export.partial-3-old"));
    assert_true(there("export.partial-results"));
    assert_true(there("export.partial-1-0-mine"));
    close(living);
}

static void a_directory_with_folders_in_it_is_not_replaced(void **state)
{
    (void)state;
    struct err e = {0};
    assert_int_equal(mkdir(at("export"), 0777), 0);
    assert_int_equal(mkdir(at("export/inner"), 0777), 0);
    assert_false(publish_commit(begin("export", "one"), &e));
    assert_int_equal(e.code, ERR_INPUT);
    assert_non_null(strstr(e.text, "'inner'"));
    assert_true(there("export/inner"));
    assert_int_equal(entries(), 1);
}

static void a_file_in_the_place_is_not_replaced(void **state)
{
    (void)state;
    struct err e = {0};
    int fd = open(at("export"), O_WRONLY | O_CREAT, 0666);
    assert_true(fd >= 0);
    close(fd);
    assert_false(publish_commit(begin("export", "one"), &e));
    assert_non_null(strstr(e.text, "is no directory"));
    assert_int_equal(entries(), 1);
}

static void relative_places_are_refused(void **state)
{
    (void)state;
    static const char *const names[] = {"", "export", "./export", "/"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        struct err e = {0};
        struct publish *p = NULL;
        assert_false(publish_begin(&p, names[i], &e));
        assert_int_equal(e.code, ERR_INPUT);
    }
}

static void files_are_copied_byte_for_byte(void **state)
{
    (void)state;
    struct err e = {0};
    struct publish *p = begin("export", "one");
    char from[700];
    snprintf(from, sizeof from, "%s/a.txt", publish_path(p));
    assert_true(publish_copy(p, "b.txt", from, &e));
    assert_false(publish_copy(p, "c.txt", at("nowhere"), &e));
    assert_int_equal(e.code, ERR_IO);
    commit(p);
    assert_content("export/b.txt", "one");
    assert_false(there("export/c.txt"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(nothing_is_in_place_before_the_commit, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_directory_is_replaced_and_the_old_one_removed, set_up, tear_down),
        cmocka_unit_test_setup_teardown(an_empty_directory_is_filled, set_up, tear_down),
        cmocka_unit_test_setup_teardown(missing_parents_are_made, set_up, tear_down),
        cmocka_unit_test_setup_teardown(an_abort_leaves_nothing, set_up, tear_down),
        cmocka_unit_test_setup_teardown(what_a_dead_maker_left_is_removed_and_what_a_living_one_makes_is_not, set_up,
                                        tear_down),
        cmocka_unit_test_setup_teardown(a_directory_with_folders_in_it_is_not_replaced, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_file_in_the_place_is_not_replaced, set_up, tear_down),
        cmocka_unit_test_setup_teardown(relative_places_are_refused, set_up, tear_down),
        cmocka_unit_test_setup_teardown(files_are_copied_byte_for_byte, set_up, tear_down),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
