#include "tests/engine/store/store_check.h"

#include <errno.h>
#include <sys/file.h>

#include "engine/store/sys.h"

static void a_new_store_has_its_layout_and_opens_again(void **state)
{
    struct fixture *f = *state;
    struct stat st;
    static const char *const names[] = {"FORMAT", "objects", "ledger", "tmp", "quarantine"};
    for (size_t i = 0; i < COUNT(names); i++) {
        char path[400];
        snprintf(path, sizeof path, "%s/%s", f->path, names[i]);
        assert_int_equal(stat(path, &st), 0);
    }
    fixture_reopen(f);
    assert_int_equal(store_path(f->s)[0], '/');
}

static void missing_parents_are_made(void **state)
{
    struct fixture *f = *state;
    char path[400];
    struct store *s;
    snprintf(path, sizeof path, "%s/a/b/c", f->dir);
    assert_ok(store_open(&s, path, &f->e), f->e);
    store_close(s);
}

static void a_store_of_another_format_is_refused(void **state)
{
    struct fixture *f = *state;
    struct store *s;
    check_write(f->path, "FORMAT", "scout store 2\n", 14);
    assert_err(store_open(&s, f->path, &f->e), f->e, ERR_INPUT,
               "is 'scout store 2', and this program reads 'scout store 1'");
    assert_err(store_open_readonly(&s, f->path, &f->e), f->e, ERR_INPUT, "is 'scout store 2'");
    check_write(f->path, "FORMAT", "scout store 1\n", 14);
}

static void a_folder_of_somebody_else_is_refused(void **state)
{
    struct fixture *f = *state;
    struct store *s;
    char path[400];
    snprintf(path, sizeof path, "%s/home", f->dir);
    assert_int_equal(mkdir(path, 0777), 0);
    check_write(path, "letter.txt", "x", 1);
    assert_err(store_open(&s, path, &f->e), f->e, ERR_INPUT, "holds 'letter.txt' and no FORMAT");
    check_write(f->dir, "file", "x", 1);
    snprintf(path, sizeof path, "%s/file", f->dir);
    assert_err(store_open(&s, path, &f->e), f->e, ERR_RESOURCE, "cannot make this directory");
}

static void a_read_only_store_creates_nothing(void **state)
{
    struct fixture *f = *state;
    struct key k = sample_key(1);
    struct store *s;
    struct object *o = NULL;
    struct writer *w;
    char path[400];
    snprintf(path, sizeof path, "%s/none", f->dir);
    assert_ok(store_open_readonly(&s, path, &f->e), f->e); /* nothing there yet: everything is absent */
    assert_ok(object_open(&o, s, &k, &f->e), f->e);
    assert_null(o);
    store_close(s);
    assert_int_equal(access(path, F_OK), -1);
    assert_ok(sample_commit(f->s, &k, &f->e), f->e);
    assert_ok(store_open_readonly(&s, f->path, &f->e), f->e);
    assert_true(sample_good(s, &k, &f->e));
    assert_err(writer_new(&w, s, &k, "x/1", &f->e), f->e, ERR_BUG, "read-only");
    store_close(s);
    assert_int_equal(folder_count(f, "tmp", ".lock"), 1);
}

static void temporary_files_go_when_their_owner_is_gone_and_not_before(void **state)
{
    struct fixture *f = *state;
    struct store *s;
    char path[700];
    snprintf(path, sizeof path, "%s/tmp/dead", f->path);
    assert_int_equal(mkdir(path, 0777), 0);
    check_write(path, "0", "x", 1);
    snprintf(path, sizeof path, "%s/tmp", f->path);
    check_write(path, "dead.lock", "", 0);
    check_write(path, "alive.lock", "", 0);
    snprintf(path, sizeof path, "%s/tmp/alive", f->path);
    assert_int_equal(mkdir(path, 0777), 0);
    check_write(path, "0", "x", 1);
    snprintf(path, sizeof path, "%s/tmp/orphan", f->path);
    assert_int_equal(mkdir(path, 0777), 0);
    snprintf(path, sizeof path, "%s/tmp/alive.lock", f->path);
    FILE *lock = fopen(path, "r");
    assert_int_equal(flock(fileno(lock), LOCK_EX | LOCK_NB), 0);
    assert_ok(store_open(&s, f->path, &f->e), f->e);
    assert_int_equal(folder_count(f, "tmp", ""), 6); /* ours twice, and the living one */
    assert_int_equal(folder_count(f, "tmp", "alive"), 1);
    assert_int_equal(folder_count(f, "tmp/alive", "0"), 1);
    fclose(lock);
    store_close(s);
    assert_ok(store_open(&s, f->path, &f->e), f->e);
    assert_int_equal(folder_count(f, "tmp", ""), 4);
    store_close(s);
    assert_int_equal(folder_count(f, "tmp", ""), 2);
}

struct list {
    struct key keys[64];
    size_t n, stop;
};

static bool collect(void *context, const struct key *k, struct err *e)
{
    struct list *l = context;
    if (l->n == l->stop)
        return err_set(e, ERR_INPUT, "enough");
    l->keys[l->n++] = *k;
    return true;
}

static void every_object_is_visited_in_key_order(void **state)
{
    struct fixture *f = *state;
    struct list l = {.stop = 64};
    char path[600];
    for (unsigned i = 0; i < 20; i++) {
        struct key k = sample_key(i);
        assert_ok(sample_commit(f->s, &k, &f->e), f->e);
    }
    struct key k = sample_key(0);
    char text[KEY_TEXT];
    snprintf(path, sizeof path, "%s/objects/%.2s", f->path, key_text(&k, text));
    check_write(path, "notes.h5", "x", 1); /* not ours */
    check_write(path, "x", "x", 1);
    assert_ok(store_each_object(f->s, collect, &l, &f->e), f->e);
    assert_int_equal(l.n, 20);
    for (size_t i = 1; i < l.n; i++)
        assert_true(memcmp(&l.keys[i - 1], &l.keys[i], sizeof k) < 0);
    l = (struct list){.stop = 3};
    assert_err(store_each_object(f->s, collect, &l, &f->e), f->e, ERR_INPUT, "enough");
}

static void opening_survives_any_failing_call_and_allocation(void **state)
{
    struct fixture *f = *state;
    static const int errors[] = {0, EIO, ENOSPC, EACCES};
    for (size_t i = 0; i < 2 * COUNT(errors); i++)
        for (long n = 1;; n++) {
            struct store *s;
            char path[400];
            snprintf(path, sizeof path, "%s/new%zu-%ld", f->dir, i, n);
            if (errors[i / 2])
                sys_fault_set(&(struct sys_fault){.at = n, .error = errors[i / 2], .sticky = i & 1});
            else
                mem_fail_after(n, i & 1);
            bool ok = store_open(&s, path, &f->e);
            bool hit = errors[i / 2] ? sys_fault_hit() : !ok;
            sys_fault_set(NULL);
            mem_fail_after(0, false);
            if (!ok) {
                assert_true(f->e.text[0]);
                assert_ok(store_open(&s, path, &f->e), f->e);
            }
            struct key k = sample_key(1);
            assert_ok(sample_commit(s, &k, &f->e), f->e);
            store_close(s);
            if (!hit)
                break;
        }
}

#define WITH(test) cmocka_unit_test_setup_teardown(test, fixture_setup, fixture_teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        WITH(a_new_store_has_its_layout_and_opens_again),
        WITH(missing_parents_are_made),
        WITH(a_store_of_another_format_is_refused),
        WITH(a_folder_of_somebody_else_is_refused),
        WITH(a_read_only_store_creates_nothing),
        WITH(temporary_files_go_when_their_owner_is_gone_and_not_before),
        WITH(every_object_is_visited_in_key_order),
        WITH(opening_survives_any_failing_call_and_allocation),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
