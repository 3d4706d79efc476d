#include "tests/engine/store/store_check.h"

#include <errno.h>
#include <math.h>
#include <pthread.h>
#include <signal.h>
#include <sys/resource.h>

#include "engine/store/sys.h"

static struct object *open_there(struct fixture *f, const struct key *k)
{
    struct object *o = NULL;
    assert_ok(object_open(&o, f->s, k, &f->e), f->e);
    assert_non_null(o);
    return o;
}

static void every_dtype_and_rank_comes_back(void **state)
{
    struct fixture *f = *state;
    uint8_t data[8 * 2 * 3 * 2 * 2], back[sizeof data];
    for (size_t i = 0; i < sizeof data; i++)
        data[i] = (uint8_t)(i * 37 + 11);
    struct key k = sample_key(1);
    struct writer *w;
    assert_ok(writer_new(&w, f->s, &k, "sample/1", &f->e), f->e);
    for (int t = 0; t < DTYPE_COUNT; t++)
        for (int rank = 0; rank <= DATASET_RANK; rank++) {
            char name[64];
            snprintf(name, sizeof name, "/%s/rank%d", dtype_info((enum dtype)t)->name, rank);
            struct dataset d = {.name = name, .dtype = (enum dtype)t, .rank = rank, .shape = {2, 3, 2, 2},
                                .unit = "nat",
                                .axes = "a", .description = "Some bytes."};
            assert_ok(writer_add(w, &d, data, &f->e), f->e);
        }
    assert_ok(writer_commit(w, &f->e), f->e);
    struct object *o = open_there(f, &k);
    const uint64_t counts[] = {1, 2, 6, 12, 24};
    assert_int_equal(object_datasets(o), DTYPE_COUNT * 5);
    for (int t = 0; t < DTYPE_COUNT; t++)
        for (int rank = 0; rank <= DATASET_RANK; rank++) {
            char name[64];
            snprintf(name, sizeof name, "%s/rank%d", dtype_info((enum dtype)t)->name, rank);
            const struct dataset *d = object_dataset(o, name);
            assert_non_null(d);
            assert_int_equal(d->rank, rank);
            assert_int_equal(d->dtype, t);
            assert_string_equal(d->unit, "nat");
            assert_string_equal(d->axes, "a");
            assert_string_equal(d->description, "Some bytes.");
            for (int i = 0; i < rank; i++)
                assert_int_equal(d->shape[i], ((int[]){2, 3, 2, 2})[i]);
            assert_ok(object_read(o, name, (enum dtype)t, 0, counts[rank], back, &f->e), f->e);
            assert_memory_equal(back, data, counts[rank] * dtype_bytes((enum dtype)t));
        }
    object_close(o);
}

static void texts_numbers_and_strings_come_back(void **state)
{
    struct fixture *f = *state;
    struct key k = sample_key(2);
    const char *text;
    double x;
    int64_t i;
    uint64_t n;
    char **strings;
    assert_ok(sample_commit(f->s, &k, &f->e), f->e);
    struct object *o = open_there(f, &k);
    assert_true(object_text(o, "parameters", &text));
    assert_string_equal(text, "{\"a\": 1}");
    assert_true(object_text(o, "schema", &text));
    assert_string_equal(text, "sample/1");
    assert_true(object_double(o, "mean", &x) && x == 0.1);
    assert_true(object_int(o, "count", &i) && i == -7);
    assert_false(object_int(o, "mean", &i));
    assert_false(object_double(o, "count", &x));
    assert_false(object_text(o, "none", &text));
    assert_ok(object_read_strings(o, "/names", &strings, &n, &f->e), f->e);
    assert_int_equal(n, 3);
    assert_string_equal(strings[0], "alpha");
    assert_string_equal(strings[1], "");
    assert_string_equal(strings[2], "gamma ray");
    mem_free(strings);
    object_close(o);
}

static void empty_datasets_and_empty_lists_work(void **state)
{
    struct fixture *f = *state;
    struct key k = sample_key(3);
    struct writer *w;
    uint64_t n = 9;
    char **strings;
    float *x;
    assert_ok(writer_new(&w, f->s, &k, "sample/1", &f->e), f->e);
    assert_ok(writer_add_strings(w, "none", NULL, 0, "name", "No names.", &f->e), f->e);
    assert_ok(writer_add(w, &(struct dataset){.name = "zero", .dtype = DTYPE_F32, .rank = 2, .shape = {5, 0}}, NULL,
                         &f->e),
              f->e);
    assert_ok(writer_text(w, "nothing", "", &f->e), f->e);
    assert_ok(writer_commit(w, &f->e), f->e);
    struct object *o = open_there(f, &k);
    assert_ok(object_read_strings(o, "none", &strings, &n, &f->e), f->e);
    assert_int_equal(n, 0);
    mem_free(strings);
    assert_ok(object_load(o, "zero", DTYPE_F32, &x, &n, &f->e), f->e);
    assert_int_equal(n, 0);
    mem_free(x);
    const char *text;
    assert_true(object_text(o, "nothing", &text));
    assert_string_equal(text, "");
    object_close(o);
    assert_ok(object_verify(f->s, &k, &f->e), f->e);
}

static void an_object_without_datasets_is_an_object(void **state)
{
    struct fixture *f = *state;
    struct key k = sample_key(4);
    struct writer *w;
    assert_ok(writer_new(&w, f->s, &k, "sample/1", &f->e), f->e);
    assert_ok(writer_commit(w, &f->e), f->e);
    struct object *o = open_there(f, &k);
    assert_int_equal(object_datasets(o), 0);
    object_close(o);
}

/* Across a second boundary, in another order of calls, in another store: no time, order or place is in the bytes. */
static void equal_contents_are_equal_bytes(void **state)
{
    struct fixture *f = *state;
    struct key k = sample_key(5);
    char path[512], other_path[300];
    size_t n[2] = {0};
    char *bytes[2];
    double x[700] = {1, 2, 3};
    for (int round = 0; round < 2; round++) {
        struct store *s;
        struct writer *w;
        snprintf(other_path, sizeof other_path, "%s/store%d", f->dir, round);
        assert_ok(store_open(&s, other_path, &f->e), f->e);
        assert_ok(writer_new(&w, s, &k, "sample/1", &f->e), f->e);
        for (int i = 0; i < 40; i++) {
            char name[32];
            int number = round ? 39 - i : i;
            snprintf(name, sizeof name, "group%d/x%d", number % 5, number);
            assert_ok(writer_add(w, &(struct dataset){.name = name, .dtype = DTYPE_F64, .rank = 1,
                                                      .shape = {(uint64_t)number * 17 % 700}}, x, &f->e), f->e);
            snprintf(name, sizeof name, "attribute%d", number);
            assert_ok(writer_int(w, name, number, &f->e), f->e);
        }
        assert_ok(writer_commit(w, &f->e), f->e);
        store_close(s);
        char text[KEY_TEXT];
        key_text(&k, text);
        snprintf(path, sizeof path, "%s/objects/%.2s/%s.h5", other_path, text, text);
        bytes[round] = check_read(path, &n[round]);
        assert_non_null(bytes[round]);
        sleep(round == 0);
    }
    assert_int_equal(n[0], n[1]);
    for (size_t i = 0; i < n[0]; i++)
        if (bytes[0][i] != bytes[1][i])
            fail_msg("the files differ at byte %zu of %zu", i, n[0]);
    free(bytes[0]);
    free(bytes[1]);
}

static void the_file_is_read_only_and_aligned(void **state)
{
    struct fixture *f = *state;
    struct key k = sample_key(6);
    struct stat st;
    char path[512];
    assert_ok(sample_commit(f->s, &k, &f->e), f->e);
    sample_path(f, &k, path);
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_mode & 07777, 0444);
    size_t n = 0;
    char *bytes = check_read(path, &n);
    float first[4] = {0, 0.25f, 0.5f, 0.75f};
    bool found = false;
    for (size_t at = 4096; at + sizeof first <= n; at += 4096)
        found = found || memcmp(bytes + at, first, sizeof first) == 0;
    assert_true(found);
    free(bytes);
}

static void wrong_use_is_told_apart(void **state)
{
    struct fixture *f = *state;
    struct key k = sample_key(7);
    struct writer *w;
    float x[4] = {0};
    struct dataset d = {.name = "x", .dtype = DTYPE_F32, .rank = 1, .shape = {4}};
    assert_ok(writer_new(&w, f->s, &k, "sample/1", &f->e), f->e);
    static const char *const bad[] = {"", "/", "//x", "x/", "x//y", ".", "..", "x/./y", "x/.."};
    for (size_t i = 0; i < COUNT(bad); i++) {
        d.name = bad[i];
        assert_err(writer_add(w, &d, x, &f->e), f->e, ERR_BUG, "is no name");
    }
    d = (struct dataset){.name = "x", .dtype = DTYPE_F32, .rank = 5};
    assert_err(writer_add(w, &d, x, &f->e), f->e, ERR_BUG, "rank 5");
    d = (struct dataset){.name = "x", .dtype = DTYPE_F32, .rank = 3,
                         .shape = {UINT64_C(1) << 32, UINT64_C(1) << 31, 3}};
    assert_err(writer_add(w, &d, x, &f->e), f->e, ERR_BUG, "overflow");
    d = (struct dataset){.name = "x", .dtype = DTYPE_F32, .rank = 1, .shape = {4}, .string_bytes = 3};
    assert_err(writer_add(w, &d, x, &f->e), f->e, ERR_BUG, "strings are of dtype u8");
    assert_ok(writer_int(w, "n", 1, &f->e), f->e);
    assert_err(writer_double(w, "n", 1, &f->e), f->e, ERR_BUG, "'n' is written twice");
    d = (struct dataset){.name = "x", .dtype = DTYPE_F32, .rank = 1, .shape = {4}};
    assert_ok(writer_add(w, &d, x, &f->e), f->e);
    d.name = "/x";
    assert_ok(writer_add(w, &d, x, &f->e), f->e);
    assert_err(writer_commit(w, &f->e), f->e, ERR_BUG, "'x' is written twice");
    assert_false(sample_exists(f, &k));
}

static void reading_says_what_does_not_fit(void **state)
{
    struct fixture *f = *state;
    struct key k = sample_key(8);
    float x[4];
    char **strings;
    uint64_t n;
    assert_ok(sample_commit(f->s, &k, &f->e), f->e);
    struct object *o = open_there(f, &k);
    assert_err(object_read(o, "none", DTYPE_F32, 0, 1, x, &f->e), f->e, ERR_INPUT, "has no dataset 'none'");
    assert_err(object_read(o, "g/large", DTYPE_F64, 0, 1, x, &f->e), f->e, ERR_INPUT, "is of dtype f32, not f64");
    assert_err(object_read(o, "g/large", DTYPE_F32, SAMPLE_LARGE - 1, 2, x, &f->e), f->e, ERR_INPUT,
               "has 3000 elements");
    assert_err(object_read(o, "g/large", DTYPE_F32, UINT64_MAX, 2, x, &f->e), f->e, ERR_INPUT, "has 3000 elements");
    assert_err(object_read_strings(o, "g/large", &strings, &n, &f->e), f->e, ERR_INPUT, "is of dtype f32");
    assert_null(object_dataset(o, "parts/one"));
    object_close(o);
}

static void the_same_object_is_opened_once_and_counted(void **state)
{
    struct fixture *f = *state;
    struct key k = sample_key(9);
    float x;
    assert_ok(sample_commit(f->s, &k, &f->e), f->e);
    struct object *a = open_there(f, &k), *b = open_there(f, &k);
    assert_ptr_equal(a, b);
    assert_ptr_equal(object_ref(a), a);
    object_close(a);
    object_close(a);
    assert_ok(object_read(b, "g/large", DTYPE_F32, 1, 1, &x, &f->e), f->e);
    object_close(b);
}

static void an_absent_object_is_null_and_no_error(void **state)
{
    struct fixture *f = *state;
    struct key k = sample_key(10);
    struct object *o = (struct object *)f;
    assert_ok(object_open(&o, f->s, &k, &f->e), f->e);
    assert_null(o);
    assert_false(sample_exists(f, &k));
    assert_err(object_verify(f->s, &k, &f->e), f->e, ERR_INPUT, "is not there");
}

/* ------------------------------------------------------------------------------------------------------------ races */

struct racer {
    struct fixture *f;
    pthread_barrier_t *start;
    unsigned round;
    bool ok;
};

static void *race(void *context)
{
    struct racer *r = context;
    struct err e = {0};
    r->ok = true;
    for (unsigned i = 0; i < 20; i++) {
        struct key k = sample_key(100 + i);
        pthread_barrier_wait(r->start);
        r->ok = r->ok && sample_commit(r->f->s, &k, &e) && sample_good(r->f->s, &k, &e);
    }
    return NULL;
}

static void threads_that_publish_the_same_key_all_succeed(void **state)
{
    struct fixture *f = *state;
    pthread_barrier_t start;
    pthread_t threads[3];
    struct racer racers[3];
    pthread_barrier_init(&start, NULL, 3);
    for (int i = 0; i < 3; i++) {
        racers[i] = (struct racer){.f = f, .start = &start};
        assert_int_equal(pthread_create(&threads[i], NULL, race, &racers[i]), 0);
    }
    for (int i = 0; i < 3; i++)
        pthread_join(threads[i], NULL);
    for (int i = 0; i < 3; i++)
        assert_true(racers[i].ok);
    pthread_barrier_destroy(&start);
    for (unsigned i = 0; i < 20; i++) {
        struct key k = sample_key(100 + i);
        assert_ok(object_verify(f->s, &k, &f->e), f->e);
    }
    assert_int_equal(folder_count(f, "quarantine", ""), 0);
    char tmp[300];
    snprintf(tmp, sizeof tmp, "%s", "tmp");
    assert_int_equal(folder_count(f, tmp, ".lock"), 1);
}

/* ----------------------------------------------------------------------------------------------------------- faults */

/* Make the n-th system call fail, n = 1, 2, ... until none does: the commit fails cleanly or succeeds, and a retry
 * without the fault succeeds. */
static void commit_survives(struct fixture *f, int error, bool sticky, bool half, unsigned first_key)
{
    unsigned failures = 0;
    for (long n = 1;; n++) {
        struct key k = sample_key(first_key + (unsigned)n);
        sys_fault_set(&(struct sys_fault){.at = n, .error = error, .sticky = sticky, .half = half});
        bool ok = sample_commit(f->s, &k, &f->e);
        bool hit = sys_fault_hit();
        sys_fault_set(NULL);
        if (!ok) {
            failures++;
            assert_true(hit);
            assert_true(f->e.text[0]);
            if (error == ENOSPC)
                assert_int_equal(f->e.code, ERR_RESOURCE);
        }
        if (sample_exists(f, &k))
            assert_ok(object_verify(f->s, &k, &f->e), f->e);
        else
            assert_false(ok);
        assert_ok(sample_commit(f->s, &k, &f->e), f->e);
        fixture_reopen(f);
        assert_true(sample_good(f->s, &k, &f->e));
        if (!hit) {
            assert_true(n > 10);
            break;
        }
    }
    assert_true(failures > 5);
    assert_int_equal(folder_count(f, "quarantine", ""), 0);
}

static void commit_survives_any_failing_call(void **state)
{
    static const int errors[] = {EIO, ENOSPC, EROFS, EMFILE, EDQUOT};
    for (unsigned i = 0; i < 4 * COUNT(errors); i++)
        commit_survives(*state, errors[i / 4], i & 1, i & 2, 1000 * (i + 1));
}

static void commit_survives_any_failing_allocation(void **state)
{
    struct fixture *f = *state;
    for (int sticky = 0; sticky < 2; sticky++)
        for (long n = 1;; n++) {
            struct key k = sample_key(50000 + (unsigned)n + 1000u * (unsigned)sticky);
            mem_fail_after(n, sticky);
            bool ok = sample_commit(f->s, &k, &f->e);
            mem_fail_after(0, false);
            if (!ok)
                assert_int_equal(f->e.code, ERR_RESOURCE);
            assert_ok(sample_commit(f->s, &k, &f->e), f->e);
            assert_true(sample_good(f->s, &k, &f->e));
            if (ok) {
                assert_true(n > 10);
                break;
            }
        }
    assert_int_equal(folder_count(f, "quarantine", ""), 0);
}

static void opening_survives_any_failing_call_and_allocation(void **state)
{
    struct fixture *f = *state;
    struct key k = sample_key(60000);
    assert_ok(sample_commit(f->s, &k, &f->e), f->e);
    static const int errors[] = {0, EMFILE, ENOMEM, EIO};
    for (size_t i = 0; i < COUNT(errors); i++)
        for (long n = 1;; n++) {
            struct object *o = NULL;
            fixture_reopen(f);
            if (errors[i])
                sys_fault_set(&(struct sys_fault){.at = n, .error = errors[i]});
            else
                mem_fail_after(n, false);
            bool ok = object_open(&o, f->s, &k, &f->e);
            bool hit = errors[i] ? sys_fault_hit() : !ok;
            sys_fault_set(NULL);
            mem_fail_after(0, false);
            object_close(o);
            if (!ok)
                assert_int_equal(f->e.code, errors[i] == EIO ? ERR_IO : ERR_RESOURCE);
            assert_true(ok == (o != NULL));
            assert_true(sample_good(f->s, &k, &f->e));
            if (!hit) {
                assert_true(n > 2);
                break;
            }
        }
    assert_int_equal(folder_count(f, "quarantine", ""), 0);
}

/* libhdf5 1.10 keeps 2 KiB for good each time that a file cannot be closed on a full disk; nothing else may leak. */
const char *__lsan_default_suppressions(void);
const char *__lsan_default_suppressions(void) { return "leak:libhdf5\n"; }

/* A file-size limit of every 512 bytes: libhdf5's own writes meet it too. */
static void a_full_disk_is_a_resource_error_with_the_figures(void **state)
{
    struct fixture *f = *state;
    struct rlimit old, limit;
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &old), 0);
    signal(SIGXFSZ, SIG_IGN);
    unsigned failures = 0;
    for (unsigned i = 0; i < 64; i++) {
        struct key k = sample_key(70000 + i);
        limit = old;
        limit.rlim_cur = 512 * i;
        assert_int_equal(setrlimit(RLIMIT_FSIZE, &limit), 0);
        bool ok = sample_commit(f->s, &k, &f->e);
        assert_int_equal(setrlimit(RLIMIT_FSIZE, &old), 0);
        if (!ok) {
            failures++;
            check_err(&f->e, ERR_RESOURCE, "are needed in", __FILE__, __LINE__);
            assert_non_null(strstr(f->e.text, "--store"));
            assert_false(sample_exists(f, &k));
        }
        assert_ok(sample_commit(f->s, &k, &f->e), f->e);
        assert_ok(object_verify(f->s, &k, &f->e), f->e);
    }
    assert_true(failures > 20 && failures < 64);
}

#define WITH(test) cmocka_unit_test_setup_teardown(test, fixture_setup, fixture_teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        WITH(every_dtype_and_rank_comes_back),
        WITH(texts_numbers_and_strings_come_back),
        WITH(empty_datasets_and_empty_lists_work),
        WITH(an_object_without_datasets_is_an_object),
        WITH(equal_contents_are_equal_bytes),
        WITH(the_file_is_read_only_and_aligned),
        WITH(wrong_use_is_told_apart),
        WITH(reading_says_what_does_not_fit),
        WITH(the_same_object_is_opened_once_and_counted),
        WITH(an_absent_object_is_null_and_no_error),
        WITH(threads_that_publish_the_same_key_all_succeed),
        WITH(commit_survives_any_failing_call),
        WITH(commit_survives_any_failing_allocation),
        WITH(opening_survives_any_failing_call_and_allocation),
        WITH(a_full_disk_is_a_resource_error_with_the_figures),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
