/* Damage: whatever is done to an object's file, the object is absent, the file is in quarantine with its reason, and
 * the key can be published again. */
#include "tests/engine/store/store_check.h"

#include <errno.h>
#include <pthread.h>

#include "engine/store/store_private.h"
#include "engine/store/sys.h"

struct damaged {
    struct fixture *f;
    struct key key;
    char path[512];
    char *bytes; /* of the good file */
    size_t n;
};

static struct damaged damaged_new(struct fixture *f)
{
    struct damaged d = {.f = f, .key = sample_key(1)};
    assert_ok(sample_commit(f->s, &d.key, &f->e), f->e);
    sample_path(f, &d.key, d.path);
    d.bytes = check_read(d.path, &d.n);
    assert_non_null(d.bytes);
    return d;
}

/* Put a damaged file there; `n` bytes of `bytes`. */
static void damaged_put(struct damaged *d, const char *bytes, size_t n)
{
    unlink(d->path);
    FILE *f = fopen(d->path, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(bytes, 1, n, f), n);
    assert_int_equal(fclose(f), 0);
}

/* The store, opened afresh, must find the damage. */
static void expect_found(struct damaged *d, const char *what, size_t where)
{
    struct fixture *f = d->f;
    struct object *o = NULL;
    int before = folder_count(f, "quarantine", ".h5");
    fixture_reopen(f);
    struct err e;
    if (object_verify(f->s, &d->key, &e))
        fail_msg("%s at %zu: verify finds nothing", what, where);
    assert_ok(object_open(&o, f->s, &d->key, &f->e), f->e);
    if (o)
        fail_msg("%s at %zu was not noticed", what, where);
    assert_int_equal(folder_count(f, "quarantine", ".h5"), before + 1);
    assert_int_equal(folder_count(f, "quarantine", ".txt"), before + 1);
    assert_false(sample_exists(f, &d->key));
}

static void any_changed_header_byte_is_found(void **state)
{
    struct damaged d = damaged_new(*state);
    for (size_t i = 0; i < HEADER_BYTES; i += i < 250 || i >= 4080 ? 1 : 61) {
        d.bytes[i] ^= (char)(1 << i % 8);
        damaged_put(&d, d.bytes, d.n);
        d.bytes[i] ^= (char)(1 << i % 8);
        expect_found(&d, "a flipped header bit", i);
    }
    free(d.bytes);
}

static void changed_body_bytes_are_found(void **state)
{
    struct damaged d = damaged_new(*state);
    for (size_t i = HEADER_BYTES; i < d.n; i += i < HEADER_BYTES + 100 ? 1 : 113) {
        d.bytes[i] ^= (char)(1 << i % 8);
        damaged_put(&d, d.bytes, d.n);
        d.bytes[i] ^= (char)(1 << i % 8);
        expect_found(&d, "a flipped body bit", i);
    }
    free(d.bytes);
}

static void any_truncation_is_found(void **state)
{
    struct damaged d = damaged_new(*state);
    for (size_t i = 0; i < d.n; i += i < 5 || i + 100 > d.n ? 1 : 97) {
        damaged_put(&d, d.bytes, i);
        expect_found(&d, "a truncation", i);
    }
    char *longer = calloc(1, d.n + 1);
    memcpy(longer, d.bytes, d.n);
    damaged_put(&d, longer, d.n + 1);
    expect_found(&d, "a byte too many", d.n);
    free(longer);
    free(d.bytes);
}

static void another_object_in_its_place_is_found(void **state)
{
    struct damaged d = damaged_new(*state);
    struct fixture *f = d.f;
    struct key other = sample_key(2);
    char path[512];
    size_t n = 0;
    assert_ok(sample_commit(f->s, &other, &f->e), f->e);
    sample_path(f, &other, path);
    char *bytes = check_read(path, &n);
    damaged_put(&d, bytes, n);
    expect_found(&d, "another key", 0);
    assert_true(sample_good(f->s, &other, &f->e));
    free(bytes);
    free(d.bytes);
}

static void what_is_no_file_is_set_aside(void **state)
{
    struct damaged d = damaged_new(*state);
    unlink(d.path);
    assert_int_equal(mkdir(d.path, 0777), 0);
    expect_found(&d, "a directory", 0);
    assert_int_equal(mkfifo(d.path, 0600), 0);
    expect_found(&d, "a fifo", 0);
    assert_int_equal(symlink("/etc/passwd", d.path), 0);
    expect_found(&d, "a link", 0);
    free(d.bytes);
}

/* A digest that fits does not help a body that is not ours. */
static void a_well_signed_file_that_is_no_object_is_refused(void **state)
{
    struct damaged d = damaged_new(*state);
    size_t lengths[] = {HEADER_BYTES, HEADER_BYTES + 1, HEADER_BYTES + 5000, d.n};
    for (size_t i = 0; i < COUNT(lengths); i++) {
        char *bytes = calloc(1, d.n);
        struct header h = {0};
        struct key digest;
        memcpy(bytes, d.bytes, d.n);
        memset(bytes + HEADER_BYTES, (int)i, 300); /* the HDF5 superblock */
        assert_ok(key_of_bytes(bytes + HEADER_BYTES, lengths[i] - HEADER_BYTES, &digest, &d.f->e), d.f->e);
        header_seal(&h, HEADER_OBJECT, &d.key, lengths[i] - HEADER_BYTES, &digest);
        memcpy(bytes, &h, sizeof h);
        damaged_put(&d, bytes, lengths[i]);
        expect_found(&d, "a signed non-object", i);
        free(bytes);
    }
    free(d.bytes);
}

static void a_set_aside_object_can_be_published_again(void **state)
{
    struct damaged d = damaged_new(*state);
    struct fixture *f = d.f;
    d.bytes[5000] ^= 1;
    damaged_put(&d, d.bytes, d.n);
    fixture_reopen(f);
    /* Without being opened first: the damage shows when the name is taken. */
    assert_ok(sample_commit(f->s, &d.key, &f->e), f->e);
    assert_true(sample_good(f->s, &d.key, &f->e));
    assert_int_equal(folder_count(f, "quarantine", ".h5"), 1);
    size_t n = 0;
    char reason[600], text[KEY_TEXT];
    snprintf(reason, sizeof reason, "%s/quarantine/%s.0.txt", f->path, key_text(&d.key, text));
    char *why = check_read(reason, &n);
    assert_non_null(why);
    assert_string_equal(why, "the body does not match its SHA-256\n");
    free(why);
    free(d.bytes);
}

static void damage_twice_in_one_run_stops_it(void **state)
{
    struct damaged d = damaged_new(*state);
    struct fixture *f = d.f;
    struct object *o;
    fixture_reopen(f);
    damaged_put(&d, d.bytes, 5000);
    assert_ok(object_open(&o, f->s, &d.key, &f->e), f->e);
    assert_null(o);
    damaged_put(&d, d.bytes, 5000);
    assert_err(object_open(&o, f->s, &d.key, &f->e), f->e, ERR_IO, "suspect the disk");
    free(d.bytes);
}

static void a_read_only_store_leaves_damage_where_it_is(void **state)
{
    struct damaged d = damaged_new(*state);
    struct store *s;
    struct object *o = (struct object *)&d;
    struct err e;
    damaged_put(&d, d.bytes, 100);
    assert_ok(store_open_readonly(&s, d.f->path, &e), e);
    assert_ok(object_open(&o, s, &d.key, &e), e);
    assert_null(o);
    assert_int_equal(access(d.path, F_OK), 0);
    store_close(s);
    free(d.bytes);
}

/* Once verified in an opened store, a file's body is not hashed again; that is the promise, and its price. */
static void a_file_is_verified_once_per_opened_store(void **state)
{
    struct damaged d = damaged_new(*state);
    struct fixture *f = d.f;
    d.bytes[d.n - 1] ^= 1;
    damaged_put(&d, d.bytes, d.n);
    struct object *o = NULL;
    assert_ok(object_open(&o, f->s, &d.key, &f->e), f->e); /* committed by this store: trusted */
    assert_non_null(o);
    object_close(o);
    d.bytes[d.n - 1] ^= 1;
    damaged_put(&d, d.bytes, d.n);
    d.bytes[d.n - 1] ^= 1;
    damaged_put(&d, d.bytes, d.n);
    expect_found(&d, "a flipped bit", d.n - 1);
    free(d.bytes);
}

/* What was verified is one file. After it was set aside, the file that another process publishes in its place is looked
 * at in full. */
static void a_file_in_the_place_of_one_set_aside_is_verified(void **state)
{
    struct damaged d = damaged_new(*state);
    struct fixture *f = d.f;
    struct object *o = NULL;
    damaged_put(&d, d.bytes, d.n - 1);
    assert_ok(object_open(&o, f->s, &d.key, &f->e), f->e);
    assert_null(o);
    d.bytes[d.n - 1] ^= 1;
    damaged_put(&d, d.bytes, d.n);
    assert_err(object_open(&o, f->s, &d.key, &f->e), f->e, ERR_IO, "does not match its SHA-256");
    free(d.bytes);
}

/* Looking may fail, and that does not make the object absent. */
static void failing_to_look_is_not_absence(void **state)
{
    static const int errors[] = {EACCES, EMFILE, ENOMEM, EIO};
    struct fixture *f = *state;
    struct key k = sample_key(1);
    assert_ok(sample_commit(f->s, &k, &f->e), f->e);
    for (size_t i = 0; i < COUNT(errors); i++)
        for (long n = 1;; n++) {
            bool there = false;
            sys_fault_set(&(struct sys_fault){.at = n, .error = errors[i]});
            bool ok = object_exists(f->s, &k, &there, &f->e), hit = sys_fault_hit();
            sys_fault_set(NULL);
            assert_true(ok == there);
            if (!hit) {
                assert_true(ok && n > 2);
                break;
            }
        }
}

struct opener {
    struct fixture *f;
    bool ok;
};

static void *open_many(void *context)
{
    struct opener *x = context;
    struct err e = {0};
    x->ok = true;
    for (unsigned i = 0; i < 200; i++) {
        struct key k = sample_key(i % 7);
        x->ok = sample_good(x->f->s, &k, &e) && x->ok;
    }
    return NULL;
}

static void threads_share_objects(void **state)
{
    struct fixture *f = *state;
    pthread_t threads[4];
    struct opener openers[4];
    for (unsigned i = 0; i < 7; i++) {
        struct key k = sample_key(i);
        assert_ok(sample_commit(f->s, &k, &f->e), f->e);
    }
    fixture_reopen(f);
    for (int i = 0; i < 4; i++) {
        openers[i] = (struct opener){.f = f};
        assert_int_equal(pthread_create(&threads[i], NULL, open_many, &openers[i]), 0);
    }
    for (int i = 0; i < 4; i++)
        pthread_join(threads[i], NULL);
    for (int i = 0; i < 4; i++)
        assert_true(openers[i].ok);
}

#define WITH(test) cmocka_unit_test_setup_teardown(test, fixture_setup, fixture_teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        WITH(any_changed_header_byte_is_found),
        WITH(changed_body_bytes_are_found),
        WITH(any_truncation_is_found),
        WITH(another_object_in_its_place_is_found),
        WITH(what_is_no_file_is_set_aside),
        WITH(a_well_signed_file_that_is_no_object_is_refused),
        WITH(a_set_aside_object_can_be_published_again),
        WITH(damage_twice_in_one_run_stops_it),
        WITH(a_read_only_store_leaves_damage_where_it_is),
        WITH(a_file_is_verified_once_per_opened_store),
        WITH(a_file_in_the_place_of_one_set_aside_is_verified),
        WITH(failing_to_look_is_not_absence),
        WITH(threads_share_objects),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
