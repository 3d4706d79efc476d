#include "tests/engine/store/store_check.h"

#include <fcntl.h>
#include <time.h>

/* Make a file look as if it had been written a minute ago; its ctime still says now. */
static void age(const char *folder, const char *name)
{
    char path[1024];
    struct timespec times[2];
    clock_gettime(CLOCK_REALTIME, &times[0]);
    times[0].tv_sec -= 60;
    times[1] = times[0];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    assert_int_equal(utimensat(AT_FDCWD, path, times, 0), 0);
}

static struct key digest_of(struct fixture *f, const char *path)
{
    struct key k;
    bool known = false;
    assert_ok(store_source_digest(f->s, path, false, &k, &known, NULL, &f->e), f->e);
    assert_true(known);
    return k;
}

static void expect(struct key k, const char *text)
{
    char out[KEY_TEXT];
    assert_string_equal(key_text(&k, out), text);
}

static void a_file_has_the_sha256_of_its_content(void **state)
{
    struct fixture *f = *state;
    char path[400];
    check_write(f->dir, "a.txt", "alpha", 5);
    snprintf(path, sizeof path, "%s/a.txt", f->dir);
    expect(digest_of(f, path), "8ed3f6ad685b959ead7022518e1af76cd816f8e8ec7ccdda1ed4018e8f2223f8");
}

/* Both digests are Python's hashlib's. */
static void a_directory_is_its_sorted_files_without_dot_files_and_folders(void **state)
{
    struct fixture *f = *state;
    char path[400], inner[420];
    snprintf(path, sizeof path, "%s/source", f->dir);
    snprintf(inner, sizeof inner, "%s/inner", path);
    assert_int_equal(mkdir(path, 0777), 0);
    assert_int_equal(mkdir(inner, 0777), 0);
    check_write(path, "b.txt", "beta", 4);
    check_write(path, "a.txt", "alpha", 5);
    check_write(path, ".hidden", "x", 1);
    check_write(inner, "deep.txt", "x", 1);
    struct key k = digest_of(f, path);
    expect(k, "6d2e59a71f1414518109a39e8c94920cf666a68b6f231a2a246aa73c422f2d32");
    check_write(path, "c.txt", "", 0);
    struct key more = digest_of(f, path);
    assert_false(key_equal(&k, &more));
}

static void a_link_in_a_directory_counts_as_what_it_points_to(void **state)
{
    struct fixture *f = *state;
    char path[400], link[420];
    snprintf(path, sizeof path, "%s/source", f->dir);
    snprintf(link, sizeof link, "%s/a.txt", path);
    assert_int_equal(mkdir(path, 0777), 0);
    check_write(f->dir, "elsewhere", "alpha", 5);
    assert_int_equal(symlink("../elsewhere", link), 0);
    check_write(path, "b.txt", "beta", 4);
    expect(digest_of(f, path), "6d2e59a71f1414518109a39e8c94920cf666a68b6f231a2a246aa73c422f2d32");
}

static void a_change_of_content_is_noticed(void **state)
{
    struct fixture *f = *state;
    char path[400];
    check_write(f->dir, "a.txt", "alpha", 5);
    snprintf(path, sizeof path, "%s/a.txt", f->dir);
    struct key before = digest_of(f, path);
    check_write(f->dir, "a.txt", "alphb", 5); /* the same length, within the grain of the clock */
    struct key after = digest_of(f, path);
    assert_false(key_equal(&before, &after));
}

static void a_file_changed_a_moment_ago_is_not_cached(void **state)
{
    struct fixture *f = *state;
    char path[400];
    check_write(f->dir, "a.txt", "alpha", 5);
    age(f->dir, "a.txt"); /* but its ctime is fresh */
    snprintf(path, sizeof path, "%s/a.txt", f->dir);
    digest_of(f, path);
    snprintf(path, sizeof path, "%s/digests", f->path);
    assert_null(check_read(path, NULL));
}

static void count_bytes(void *context, uint64_t done, uint64_t total)
{
    assert_true(done <= total);
    *(uint64_t *)context = done;
}

/* Waits until the file is old enough to be cached; then damages the cache line by line. */
static void a_cached_file_is_not_read_again_and_damaged_lines_are_skipped(void **state)
{
    struct fixture *f = *state;
    char path[400], cache[400];
    uint64_t read = 0;
    struct digest_progress progress = {count_bytes, &read};
    struct key k;
    check_write(f->dir, "a.txt", "alpha", 5);
    snprintf(path, sizeof path, "%s/a.txt", f->dir);
    snprintf(cache, sizeof cache, "%s/digests", f->path);
    nanosleep(&(struct timespec){.tv_sec = 2, .tv_nsec = 200000000}, NULL);
    assert_ok(store_source_digest(f->s, path, false, &k, NULL, &progress, &f->e), f->e);
    assert_int_equal(read, 5);
    for (int reopened = 0; reopened < 2; reopened++) {
        read = 0;
        assert_ok(store_source_digest(f->s, path, true, &k, NULL, &progress, &f->e), f->e);
        assert_int_equal(read, 0);
        expect(k, "8ed3f6ad685b959ead7022518e1af76cd816f8e8ec7ccdda1ed4018e8f2223f8");
        fixture_reopen(f);
    }
    size_t n = 0;
    char *text = check_read(cache, &n);
    assert_non_null(text);
    for (size_t i = 0; i < n - 1; i++) {
        text[i] ^= 1;
        check_write(f->path, "digests", text, n);
        text[i] ^= 1;
        fixture_reopen(f);
        read = 0;
        assert_ok(store_source_digest(f->s, path, false, &k, NULL, &progress, &f->e), f->e);
        if (read != 5)
            fail_msg("a flipped bit in byte %zu of the cache was not noticed", i);
        expect(k, "8ed3f6ad685b959ead7022518e1af76cd816f8e8ec7ccdda1ed4018e8f2223f8");
    }
    free(text);
}

static void a_large_unknown_source_is_not_read_when_only_cached_is_asked(void **state)
{
    struct fixture *f = *state;
    char path[400];
    struct key k;
    bool known = true;
    uint64_t read = 0;
    check_write(f->dir, "large", "", 0);
    snprintf(path, sizeof path, "%s/large", f->dir);
    assert_int_equal(truncate(path, ((off_t)64 << 20) + 1), 0);
    struct digest_progress progress = {count_bytes, &read};
    assert_ok(store_source_digest(f->s, path, true, &k, &known, &progress, &f->e), f->e);
    assert_false(known);
    assert_int_equal(read, 0);
    assert_int_equal(truncate(path, 1000), 0);
    assert_ok(store_source_digest(f->s, path, true, &k, &known, &progress, &f->e), f->e);
    assert_true(known);
    assert_int_equal(read, 1000);
}

static void what_is_no_file_is_named(void **state)
{
    struct fixture *f = *state;
    char path[400];
    struct key k;
    snprintf(path, sizeof path, "%s/none", f->dir);
    assert_err(store_source_digest(f->s, path, false, &k, NULL, NULL, &f->e), f->e, ERR_INPUT, "/none: cannot open");
    assert_int_equal(mkfifo(path, 0600), 0);
    assert_err(store_source_digest(f->s, path, false, &k, NULL, NULL, &f->e), f->e, ERR_INPUT,
               "neither a file nor a directory");
}

static void every_failed_allocation_is_reported(void **state)
{
    struct fixture *f = *state;
    struct key k = {{0}};
    check_write(f->dir, "a.txt", "alpha", 5);
    for (long n = 1;; n++) {
        mem_fail_after(n, false);
        bool ok = store_source_digest(f->s, f->dir, false, &k, NULL, NULL, &f->e);
        mem_fail_after(0, false);
        if (ok) {
            assert_true(n > 3);
            break;
        }
        assert_int_equal(f->e.code, ERR_RESOURCE);
    }
    struct key again = digest_of(f, f->dir);
    assert_true(key_equal(&k, &again));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(a_file_has_the_sha256_of_its_content, fixture_setup, fixture_teardown),
        cmocka_unit_test_setup_teardown(a_directory_is_its_sorted_files_without_dot_files_and_folders, fixture_setup,
                                        fixture_teardown),
        cmocka_unit_test_setup_teardown(a_link_in_a_directory_counts_as_what_it_points_to, fixture_setup,
                                        fixture_teardown),
        cmocka_unit_test_setup_teardown(a_change_of_content_is_noticed, fixture_setup, fixture_teardown),
        cmocka_unit_test_setup_teardown(a_file_changed_a_moment_ago_is_not_cached, fixture_setup, fixture_teardown),
        cmocka_unit_test_setup_teardown(a_cached_file_is_not_read_again_and_damaged_lines_are_skipped, fixture_setup,
                                        fixture_teardown),
        cmocka_unit_test_setup_teardown(a_large_unknown_source_is_not_read_when_only_cached_is_asked, fixture_setup,
                                        fixture_teardown),
        cmocka_unit_test_setup_teardown(what_is_no_file_is_named, fixture_setup, fixture_teardown),
        cmocka_unit_test_setup_teardown(every_failed_allocation_is_reported, fixture_setup, fixture_teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
