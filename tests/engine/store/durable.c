/* What a power cut would leave. The trace of the calls that decide it is played against a model of a disk that keeps
 * nothing by itself: a file's bytes last when it is synced after its last write, and a name lasts when its directory is
 * synced after it was made. When a call has returned, all that it made must last, and no file may have got its name
 * before its bytes did. */
#include "tests/engine/store/row_check.h"

#include <errno.h>
#include <limits.h>

#include "engine/store/sys.h"

#define MOST 512

struct disk {
    char files[MOST][400], names[MOST][400], synced[MOST][400]; /* written, made, synced at least once */
    bool dirty[MOST], pending[MOST];
    size_t n_files, n_names, n_synced;
    unsigned renames;
    char wrong[900]; /* what was done in the wrong order; "" if nothing */
};

static size_t place_of(char (*list)[400], size_t *n, const char *path)
{
    size_t i = 0;
    while (i < *n && strcmp(list[i], path) != 0)
        i++;
    if (i == *n) {
        assert_true(*n < MOST);
        snprintf(list[(*n)++], sizeof *list, "%s", path);
    }
    return i;
}

static bool was_synced(const struct disk *d, const char *path)
{
    bool found = false;
    for (size_t i = 0; i < d->n_synced; i++)
        found = found || strcmp(d->synced[i], path) == 0;
    return found;
}

static bool is_parent(const char *directory, const char *path)
{
    size_t n = strlen(directory);
    return strncmp(path, directory, n) == 0 && path[n] == '/' && !strchr(path + n + 1, '/');
}

static void take_sync(struct disk *d, const char *path)
{
    place_of(d->synced, &d->n_synced, path);
    d->dirty[place_of(d->files, &d->n_files, path)] = false;
    for (size_t i = 0; i < d->n_names; i++)
        if (is_parent(path, d->names[i]))
            d->pending[i] = false;
}

/* libhdf5 writes to a new file as well, unseen: so it must have been synced, and not only be without later writes. What
 * is set aside keeps the bytes that it has. */
static void take_rename(struct disk *d, const char *from, const char *to)
{
    size_t i = place_of(d->files, &d->n_files, from);
    if ((d->dirty[i] || !was_synced(d, from)) && !strstr(to, "/quarantine/"))
        snprintf(d->wrong, sizeof d->wrong, "%s got its name before its bytes were synced", to);
    d->pending[place_of(d->names, &d->n_names, from)] = true;
    d->pending[place_of(d->names, &d->n_names, to)] = true;
    d->renames++;
}

static void take(void *context, const struct sys_call *c)
{
    struct disk *d = context;
    if (strcmp(c->name, "fsync") == 0 || strcmp(c->name, "fdatasync") == 0)
        take_sync(d, c->path);
    else if (strcmp(c->name, "rename") == 0)
        take_rename(d, c->path, c->to);
    else if (strcmp(c->name, "mkdir") == 0)
        d->pending[place_of(d->names, &d->n_names, c->path)] = true;
    else
        d->dirty[place_of(d->files, &d->n_files, c->path)] = true;
}

/* What nobody misses after a power cut: temporary files, who holds a lock, cached digests, reasons of damage. */
static bool may_go(const char *path)
{
    size_t n = strlen(path);
    return (n > 4 && strcmp(path + n - 4, ".txt") == 0) || strstr(path, "/tmp/") != NULL ||
           strstr(path, "/LOCK") != NULL || strstr(path, "/digests") != NULL;
}

static void expect_lasting(const struct disk *d, const struct fixture *f)
{
    size_t skip = strlen(f->dir); /* which may lie in a /tmp/ itself */
    if (d->wrong[0])
        fail_msg("%s", d->wrong);
    for (size_t i = 0; i < d->n_files; i++)
        if (d->dirty[i] && !may_go(d->files[i] + skip))
            fail_msg("%s was written and not synced", d->files[i]);
    for (size_t i = 0; i < d->n_names; i++)
        if (d->pending[i] && !may_go(d->names[i] + skip))
            fail_msg("%s was made or moved and its directory not synced", d->names[i]);
}

static struct disk disk;

static void watch(void)
{
    disk = (struct disk){0};
    sys_trace_set(take, &disk);
}

static void expect_synced(const struct fixture *f, const char *name)
{
    char path[700];
    snprintf(path, sizeof path, "%s/%s", f->path, name);
    if (!was_synced(&disk, path))
        fail_msg("%s was not synced", path);
}

/* The folder as the kernel names it. */
static int durable_setup(void **state)
{
    static struct fixture f;
    char real[PATH_MAX];
    f = (struct fixture){0};
    check_dir_make(f.dir);
    assert_non_null(realpath(f.dir, real));
    snprintf(f.dir, sizeof f.dir, "%.255s", real);
    snprintf(f.path, sizeof f.path, "%.240s/a/b/store", f.dir);
    watch();
    assert_ok(store_open(&f.s, f.path, &f.e), f.e);
    sys_trace_set(NULL, NULL);
    *state = &f;
    return 0;
}

static int durable_teardown(void **state)
{
    sys_trace_set(NULL, NULL);
    sys_fault_set(NULL);
    return fixture_teardown(state);
}

static void a_new_store_lasts_with_the_parents_that_it_made(void **state)
{
    struct fixture *f = *state;
    expect_lasting(&disk, f);
    assert_int_equal(disk.renames, 1); /* FORMAT */
    assert_true(was_synced(&disk, f->dir));
}

static void a_published_object_lasts(void **state)
{
    struct fixture *f = *state;
    struct key k = sample_key(1);
    for (int round = 0; round < 2; round++) {
        watch();
        assert_ok(sample_commit(f->s, &k, &f->e), f->e);
        sys_trace_set(NULL, NULL);
        expect_lasting(&disk, f);
        assert_int_equal(disk.renames, 1);
        k.bytes[KEY_BYTES - 1] ^= 1; /* the second in the same folder */
    }
    watch();
    fixture_reopen(f);
    assert_true(was_synced(&disk, f->path)); /* who made the store, or objects/ab, may have been killed before */
    sys_trace_set(NULL, NULL);
    k.bytes[KEY_BYTES - 2] ^= 1;
    watch();
    assert_ok(sample_commit(f->s, &k, &f->e), f->e);
    sys_trace_set(NULL, NULL);
    expect_lasting(&disk, f);
    expect_synced(f, "objects");
}

static void what_was_set_aside_stays_there(void **state)
{
    struct fixture *f = *state;
    struct key k = sample_key(1);
    struct object *o = NULL;
    char path[512];
    assert_ok(sample_commit(f->s, &k, &f->e), f->e);
    sample_path(f, &k, path);
    assert_int_equal(truncate(path, 5000), 0);
    watch();
    assert_ok(object_open(&o, f->s, &k, &f->e), f->e);
    sys_trace_set(NULL, NULL);
    assert_null(o);
    assert_int_equal(disk.renames, 1);
    expect_lasting(&disk, f);
}

static void acknowledged_rows_last_with_their_segment(void **state)
{
    struct fixture *f = *state;
    struct ledger *l = NULL;
    struct ledger_spec spec = spec_of(1);
    watch();
    assert_ok(ledger_open(&l, f->s, &spec, &f->e), f->e);
    expect_lasting(&disk, f);
    assert_ok(append_rows(l, 0, 3, &f->e), f->e);
    expect_lasting(&disk, f);
    assert_int_equal(disk.renames, 1);
    assert_ok(append_rows(l, 3, 1100, &f->e), f->e); /* a second segment */
    expect_lasting(&disk, f);
    assert_int_equal(disk.renames, 2);
    ledger_close(l);
}

/* Its writer may have been killed between a write, or a rename, and the sync. */
static void what_is_found_in_a_ledger_is_synced_before_it_counts(void **state)
{
    struct fixture *f = *state;
    struct ledger *l = NULL;
    struct ledger_spec spec = spec_of(1);
    char name[128], text[KEY_TEXT];
    assert_ok(ledger_open(&l, f->s, &spec, &f->e), f->e);
    assert_ok(append_rows(l, 0, 3, &f->e), f->e);
    ledger_close(l);
    watch();
    assert_ok(ledger_open(&l, f->s, &spec, &f->e), f->e);
    sys_trace_set(NULL, NULL);
    expect_synced(f, "ledger");
    snprintf(name, sizeof name, "ledger/%s", key_text(&spec.context, text));
    expect_synced(f, name);
    snprintf(name, sizeof name, "ledger/%s/0000.h5", text);
    expect_synced(f, name);
    ledger_close(l);
}

static void a_found_segment_that_cannot_be_synced_does_not_count(void **state)
{
    struct fixture *f = *state;
    struct ledger *l = NULL;
    struct ledger_spec spec = spec_of(1);
    assert_ok(ledger_open(&l, f->s, &spec, &f->e), f->e);
    assert_ok(append_rows(l, 0, 3, &f->e), f->e);
    ledger_close(l);
    sys_fault_set(&(struct sys_fault){.at = 1, .call = "fdatasync", .error = EIO});
    assert_err(ledger_open(&l, f->s, &spec, &f->e), f->e, ERR_IO, "segment 0000 cannot be synced");
    sys_fault_set(NULL);
    assert_ok(ledger_open(&l, f->s, &spec, &f->e), f->e);
    assert_int_equal(ledger_rows(l), 3);
    ledger_close(l);
}

#define WITH(test) cmocka_unit_test_setup_teardown(test, durable_setup, durable_teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        WITH(a_new_store_lasts_with_the_parents_that_it_made),
        WITH(a_published_object_lasts),
        WITH(what_was_set_aside_stays_there),
        WITH(acknowledged_rows_last_with_their_segment),
        WITH(what_is_found_in_a_ledger_is_synced_before_it_counts),
        WITH(a_found_segment_that_cannot_be_synced_does_not_count),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
