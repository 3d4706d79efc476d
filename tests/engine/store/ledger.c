#include "tests/engine/store/row_check.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/file.h>
#include <time.h>

#include "engine/store/segment.h"
#include "engine/store/sys.h"

static struct ledger *open_it(struct fixture *f, unsigned context)
{
    struct ledger *l = NULL;
    struct ledger_spec spec = spec_of(context);
    assert_ok(ledger_open(&l, f->s, &spec, &f->e), f->e);
    return l;
}

static void expect_rows(struct ledger *l, unsigned first, unsigned n)
{
    for (unsigned i = first; i < first + n; i++)
        if (row_state(l, i) != 1)
            fail_msg("row %u is %s", i, row_state(l, i) ? "wrong" : "absent");
}

static void expect_damage(struct ledger *l, uint64_t wanted_rows, size_t wanted_segments)
{
    uint64_t rows = 99;
    size_t segments = 99;
    ledger_damage(l, &rows, &segments);
    assert_int_equal(rows, wanted_rows);
    assert_int_equal(segments, wanted_segments);
}

static int n_segments(struct fixture *f, unsigned context)
{
    char text[KEY_TEXT], name[80];
    struct key k = sample_key(context);
    snprintf(name, sizeof name, "ledger/%s", key_text(&k, text));
    return folder_count(f, name, ".h5");
}

static void segment_path(struct fixture *f, unsigned context, unsigned number, char out[512])
{
    char text[KEY_TEXT];
    struct key k = sample_key(context);
    snprintf(out, 512, "%s/ledger/%s/%04u.h5", f->path, key_text(&k, text), number);
}

static void rows_come_back_now_and_after_reopening(void **state)
{
    struct fixture *f = *state;
    struct ledger *l = open_it(f, 1);
    assert_int_equal(ledger_rows(l), 0);
    assert_int_equal(row_state(l, 0), 0);
    assert_ok(append_rows(l, 0, 1, &f->e), f->e);
    assert_ok(append_rows(l, 1, 12, &f->e), f->e);
    assert_ok(append_rows(l, 0, 0, &f->e), f->e);
    expect_rows(l, 0, 13);
    assert_int_equal(row_state(l, 13), 0);
    assert_int_equal(ledger_rows(l), 13);
    ledger_close(l);
    l = open_it(f, 1);
    assert_int_equal(ledger_rows(l), 13);
    expect_damage(l, 0, 0);
    expect_rows(l, 0, 13);
    assert_ok(append_rows(l, 13, 7, &f->e), f->e);
    expect_rows(l, 0, 20);
    assert_int_equal(n_segments(f, 1), 1);
    ledger_close(l);
    l = open_it(f, 2); /* another context knows nothing of them */
    assert_int_equal(ledger_rows(l), 0);
    ledger_close(l);
}

static void wrong_appends_are_bugs_and_change_nothing(void **state)
{
    struct fixture *f = *state;
    struct ledger *l = open_it(f, 1);
    struct ledger_row r[2];
    float slots[2 * SLOTS];
    uint8_t assignments[2 * UNITS];
    assert_ok(append_rows(l, 0, 3, &f->e), f->e);
    assert_err(append_rows(l, 2, 2, &f->e), f->e, ERR_BUG, "window 2) is in the ledger already");
    make_row(8, &r[0], slots, assignments);
    make_row(8, &r[1], slots + SLOTS, assignments + UNITS);
    assert_err(ledger_append(l, r, slots, assignments, 2, &f->e), f->e, ERR_BUG, "is in the ledger already");
    assignments[3] ^= 1;
    assert_err(ledger_append(l, r, slots, assignments, 1, &f->e), f->e, ERR_BUG, "does not belong to its assignment");
    assert_int_equal(ledger_rows(l), 3);
    struct ledger *other = NULL;
    struct ledger_spec spec = spec_of(1);
    spec.slots++;
    assert_err(ledger_open(&other, f->s, &spec, &f->e), f->e, ERR_BUG, "rows of another shape");
    ledger_close(l);
}

static void two_opens_share_one_ledger(void **state)
{
    struct fixture *f = *state;
    struct ledger *a = open_it(f, 1), *b = open_it(f, 1);
    assert_ptr_equal(a, b);
    assert_ok(append_rows(a, 0, 4, &f->e), f->e);
    ledger_close(a);
    expect_rows(b, 0, 4);
    assert_ok(append_rows(b, 4, 4, &f->e), f->e);
    ledger_close(b);
    a = open_it(f, 1);
    expect_rows(a, 0, 8);
    ledger_close(a);
}

static void a_full_segment_is_followed_by_one_of_twice_the_size(void **state)
{
    struct fixture *f = *state;
    struct ledger *l = open_it(f, 1);
    struct stat first, second;
    char path[512];
    for (unsigned i = 0; i < 3500; i += 250)
        assert_ok(append_rows(l, i, 250, &f->e), f->e);
    assert_int_equal(n_segments(f, 1), 3); /* 1024, 2048, 4096 */
    expect_rows(l, 0, 3500);
    ledger_close(l);
    l = open_it(f, 1);
    assert_int_equal(ledger_rows(l), 3500);
    expect_rows(l, 0, 3500);
    segment_path(f, 1, 0, path);
    assert_int_equal(stat(path, &first), 0);
    segment_path(f, 1, 1, path);
    assert_int_equal(stat(path, &second), 0);
    assert_true(second.st_size > first.st_size * 3 / 2);
    assert_int_equal(first.st_mode & 07777, 0644);
    assert_true(first.st_blocks * 512 >= first.st_size); /* the space is taken */
    ledger_close(l);
}

static void a_segment_stays_below_its_limit(void **state)
{
    (void)state;
    struct ledger_spec spec = spec_of(1);
    assert_int_equal(segment_capacity(&spec, 0), 1024);
    assert_int_equal(segment_capacity(&spec, 1024), 2048);
    assert_int_equal(segment_capacity(&spec, 65536), 65536);
    spec.slots = 4095;
    assert_in_range(segment_capacity(&spec, 65536) * (4095 * 4 + 192 + UNITS), 250 << 20, 256 << 20);
    spec.slots = 1u << 30;
    assert_int_equal(segment_capacity(&spec, 0), 1);
}

static void slots_and_units_may_be_none(void **state)
{
    struct fixture *f = *state;
    struct ledger_spec spec = spec_of(9);
    struct ledger *l;
    struct ledger_row r = {.window = 3, .kl_sum = 1.5}, got;
    struct key k;
    float none[1];
    spec.slots = 0;
    spec.assignment_bytes = 0;
    assert_ok(key_of_bytes(NULL, 0, &k, &f->e), f->e);
    memcpy(r.candidate, k.bytes, KEY_BYTES);
    for (int round = 0; round < 2; round++) {
        assert_ok(ledger_open(&l, f->s, &spec, &f->e), f->e);
        if (round == 0)
            assert_ok(ledger_append(l, &r, none, (const uint8_t *)none, 1, &f->e), f->e);
        assert_true(ledger_find(l, r.candidate, 3, &got, none));
        assert_true(got.kl_sum == 1.5);
        ledger_close(l);
    }
}

/* ----------------------------------------------------------------------------------------------------------- damage */

struct place {
    uint64_t rows, slots, candidates, assignments;
};

/* The offsets, from the header's extra fields. */
static struct place places_of(const char *path)
{
    size_t n = 0;
    char *bytes = check_read(path, &n);
    assert_non_null(bytes);
    struct header h;
    memcpy(&h, bytes, sizeof h);
    free(bytes);
    return (struct place){h.extra[4], h.extra[5], h.extra[6], h.extra[7]};
}

static void flip(const char *path, uint64_t at)
{
    uint8_t x;
    int fd = open(path, O_RDWR);
    assert_true(fd >= 0);
    assert_int_equal(pread(fd, &x, 1, (off_t)at), 1);
    x ^= (uint8_t)(1 << at % 8);
    assert_int_equal(pwrite(fd, &x, 1, (off_t)at), 1);
    close(fd);
}

/* After a flipped bit at `at`, exactly the rows [first, first + n) of 20 are absent; then they can be appended
 * again. */
static void expect_loss(struct fixture *f, const char *path, uint64_t at, unsigned first, unsigned n)
{
    flip(path, at);
    struct ledger *l = open_it(f, 1);
    for (unsigned i = 0; i < 20; i++) {
        int wanted = i < first || i >= first + n, got = row_state(l, i);
        if (got != wanted)
            fail_msg("byte %llu: row %u is %d, not %d", (unsigned long long)at, i, got, wanted);
    }
    assert_int_equal(ledger_rows(l), 20 - n);
    ledger_close(l);
    flip(path, at);
}

static void a_flipped_bit_costs_only_the_rows_that_it_is_in(void **state)
{
    struct fixture *f = *state;
    struct ledger *l = open_it(f, 1);
    char path[512];
    assert_ok(append_rows(l, 0, 20, &f->e), f->e);
    ledger_close(l);
    segment_path(f, 1, 0, path);
    struct place p = places_of(path);
    for (unsigned byte = 0; byte < 128; byte++)
        expect_loss(f, path, p.rows + 7 * 128 + byte, 7, 1);
    for (unsigned byte = 0; byte < 4 * SLOTS; byte++)
        expect_loss(f, path, p.slots + 11 * 4 * SLOTS + byte, 11, 1);
    for (unsigned byte = 0; byte < 64; byte++)
        expect_loss(f, path, p.candidates + 2 * 64 + byte, 10, 5);
    for (unsigned byte = 0; byte < UNITS; byte++)
        expect_loss(f, path, p.assignments + 1 * UNITS + byte, 5, 5);
}

static void lost_rows_are_appended_again(void **state)
{
    struct fixture *f = *state;
    struct ledger *l = open_it(f, 1);
    char path[512];
    assert_ok(append_rows(l, 0, 20, &f->e), f->e);
    ledger_close(l);
    segment_path(f, 1, 0, path);
    struct place p = places_of(path);
    flip(path, p.rows + 19 * 128 + 50);   /* the last row: as if torn */
    flip(path, p.slots + 4 * SLOTS * 8);  /* values of row 8 */
    flip(path, p.assignments + 2);        /* candidate 0, rows 0 to 4 */
    l = open_it(f, 1);
    assert_int_equal(ledger_rows(l), 13);
    expect_damage(l, 7, 0);
    assert_ok(append_rows(l, 0, 5, &f->e), f->e);
    assert_ok(append_rows(l, 8, 1, &f->e), f->e);
    assert_ok(append_rows(l, 19, 1, &f->e), f->e);
    expect_rows(l, 0, 20);
    assert_ok(append_rows(l, 20, 5, &f->e), f->e);
    ledger_close(l);
    l = open_it(f, 1);
    assert_int_equal(ledger_rows(l), 25);
    expect_rows(l, 0, 25);
    ledger_close(l);
}

static void values_lost_while_open_make_the_row_absent(void **state)
{
    struct fixture *f = *state;
    struct ledger *l = open_it(f, 1);
    struct ledger_row r;
    char path[512];
    float slots[SLOTS];
    uint8_t assignment[UNITS];
    assert_ok(append_rows(l, 0, 3, &f->e), f->e);
    segment_path(f, 1, 0, path);
    flip(path, places_of(path).slots + 4 * SLOTS);
    make_row(1, &r, slots, assignment);
    assert_false(ledger_find(l, r.candidate, r.window, &r, slots));
    assert_false(ledger_find(l, r.candidate, r.window, &r, NULL));
    assert_int_equal(ledger_rows(l), 2);
    assert_ok(append_rows(l, 1, 1, &f->e), f->e);
    expect_rows(l, 0, 3);
    ledger_close(l);
}

static void rows_of_another_ledger_or_place_do_not_count(void **state)
{
    struct fixture *f = *state;
    struct ledger *a = open_it(f, 1), *b = open_it(f, 2);
    char from[512], to[512];
    uint8_t record[128];
    assert_ok(append_rows(a, 0, 10, &f->e), f->e);
    assert_ok(append_rows(b, 0, 9, &f->e), f->e);
    ledger_close(a);
    ledger_close(b);
    segment_path(f, 1, 0, from);
    segment_path(f, 2, 0, to);
    struct place p = places_of(from);
    int x = open(from, O_RDONLY), y = open(to, O_RDWR);
    assert_int_equal(pread(x, record, 128, (off_t)p.rows + 9 * 128), 128);
    assert_int_equal(pwrite(y, record, 128, (off_t)p.rows + 9 * 128), 128); /* foreign, in its own place */
    assert_int_equal(pread(y, record, 128, (off_t)p.rows + 3 * 128), 128);
    assert_int_equal(pwrite(y, record, 128, (off_t)p.rows + 5 * 128), 128); /* ours, in another place */
    close(x);
    close(y);
    b = open_it(f, 2);
    assert_int_equal(ledger_rows(b), 8);
    assert_int_equal(row_state(b, 9), 0);
    assert_int_equal(row_state(b, 5), 0);
    ledger_close(b);
}

static void a_damaged_header_sets_the_segment_aside(void **state)
{
    struct fixture *f = *state;
    char path[512];
    struct ledger *l = open_it(f, 1);
    assert_ok(append_rows(l, 0, 10, &f->e), f->e);
    ledger_close(l);
    segment_path(f, 1, 0, path);
    flip(path, 40);
    l = open_it(f, 1);
    assert_int_equal(ledger_rows(l), 0);
    expect_damage(l, 0, 1);
    size_t quarantined = 0;
    assert_ok(store_quarantined(f->s, &quarantined, &f->e), f->e);
    assert_int_equal(quarantined, 1);
    assert_ok(append_rows(l, 0, 10, &f->e), f->e);
    expect_rows(l, 0, 10);
    assert_int_equal(n_segments(f, 1), 1);
    segment_path(f, 1, 1, path);
    assert_int_equal(access(path, F_OK), 0); /* the old number is not used again */
    ledger_close(l);
    fixture_reopen(f);
    l = open_it(f, 1);
    expect_rows(l, 0, 10);
    ledger_close(l);
}

static void a_cut_segment_keeps_what_is_left(void **state)
{
    struct fixture *f = *state;
    char path[512];
    struct ledger *l = open_it(f, 1);
    assert_ok(append_rows(l, 0, 10, &f->e), f->e);
    ledger_close(l);
    segment_path(f, 1, 0, path);
    struct place p = places_of(path);
    struct stat st;
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(truncate(path, st.st_size - 1), 0);
    l = open_it(f, 1);
    expect_rows(l, 0, 10);
    assert_ok(append_rows(l, 10, 10, &f->e), f->e); /* into a new one */
    assert_int_equal(n_segments(f, 1), 2);
    ledger_close(l);
    assert_int_equal(truncate(path, (off_t)p.candidates), 0);
    l = open_it(f, 1);
    for (unsigned i = 0; i < 20; i++)
        assert_int_equal(row_state(l, i), i >= 10);
    ledger_close(l);
}

static void verify_counts_whole_and_damaged_rows(void **state)
{
    struct fixture *f = *state;
    struct key k = sample_key(1);
    char path[512], name[128], text[KEY_TEXT];
    uint64_t rows = 0, damaged = 0;
    struct ledger *l = open_it(f, 1);
    assert_ok(append_rows(l, 0, 10, &f->e), f->e);
    segment_path(f, 1, 0, path);
    snprintf(name, sizeof name, "ledger/%s/0000.h5", key_text(&k, text));
    assert_ok(ledger_verify(f->s, name, &rows, &damaged, &f->e), f->e); /* while it is open */
    assert_true(rows == 10 && damaged == 0);
    flip(path, places_of(path).slots + 4 * SLOTS * 8);
    flip(path, places_of(path).rows + 3 * 128 + 60);
    assert_ok(ledger_verify(f->s, name, &rows, &damaged, &f->e), f->e);
    assert_true(rows == 8 && damaged == 2);
    flip(path, 100);
    assert_err(ledger_verify(f->s, name, &rows, &damaged, &f->e), f->e, ERR_INPUT, "does not match its CRC");
    ledger_close(l);
}

/* ----------------------------------------------------------------------------------------------------------- faults */

/* Appends that meet the n-th failing call: either acknowledged, or an error; what was acknowledged stays. */
static void appends_survive(struct fixture *f, int error, bool sticky, bool half, unsigned context)
{
    bool acknowledged[400] = {false};
    struct ledger *l = open_it(f, context);
    unsigned failures = 0;
    long n = 1;
    for (unsigned first = 0;; first += 3, n++) {
        assert_true(first + 3 <= COUNT(acknowledged));
        sys_fault_set(&(struct sys_fault){.at = n, .error = error, .sticky = sticky, .half = half});
        bool ok = append_rows(l, first, 3, &f->e);
        bool hit = sys_fault_hit();
        sys_fault_set(NULL);
        failures += !ok;
        for (unsigned i = first; i < first + 3; i++)
            acknowledged[i] = ok;
        if (!ok) {
            assert_true(hit);
            if (error == ENOSPC)
                assert_int_equal(f->e.code, ERR_RESOURCE);
        }
        for (unsigned i = 0; i < first + 3; i++)
            assert_int_equal(row_state(l, i), acknowledged[i]);
        if (!ok) { /* the same again, without the fault */
            assert_ok(append_rows(l, first, 3, &f->e), f->e);
            for (unsigned i = first; i < first + 3; i++)
                acknowledged[i] = true;
        }
        if (!hit)
            break;
        if (n % 5 == 0) {
            ledger_close(l);
            l = open_it(f, context);
        }
    }
    assert_true(n > 3);
    assert_true(!sticky || failures > 2);
    ledger_close(l);
    fixture_reopen(f);
    l = open_it(f, context);
    for (unsigned i = 0; i < COUNT(acknowledged); i++)
        assert_int_equal(row_state(l, i), acknowledged[i]);
    ledger_close(l);
}

static void appends_survive_any_failing_call(void **state)
{
    static const int errors[] = {EIO, ENOSPC};
    for (unsigned i = 0; i < 4 * COUNT(errors); i++)
        appends_survive(*state, errors[i / 4], i & 1, i & 2, 10 + i);
}

/* One refused sync is survived by going on in a new segment. */
static void a_refused_write_seals_the_segment_and_goes_on(void **state)
{
    struct fixture *f = *state;
    struct ledger *l = open_it(f, 1);
    assert_ok(append_rows(l, 0, 3, &f->e), f->e);
    sys_fault_set(&(struct sys_fault){.at = 3, .error = EIO}); /* slots, rows, fdatasync */
    bool ok = append_rows(l, 3, 1, &f->e);
    assert_true(sys_fault_hit());
    sys_fault_set(NULL);
    assert_true(ok);
    assert_int_equal(n_segments(f, 1), 2);
    expect_rows(l, 0, 4);
    ledger_close(l);
}

/* A ledger that opens although a call failed has all its rows, and what is appended to it goes over none of them; one
 * that does not open is left as it is. */
static void opening_survives_any_failing_call_and_allocation(void **state)
{
    static const int errors[] = {0, EMFILE, ENOMEM, EIO, EACCES};
    struct fixture *f = *state;
    struct ledger *l = open_it(f, 1);
    struct ledger_spec spec = spec_of(1);
    unsigned rows = 30;
    assert_ok(append_rows(l, 0, rows, &f->e), f->e);
    ledger_close(l);
    for (unsigned i = 0; i < 2 * COUNT(errors); i++)
        for (long n = 1;; n++) {
            if (errors[i / 2])
                sys_fault_set(&(struct sys_fault){.at = n, .error = errors[i / 2], .sticky = i & 1});
            else
                mem_fail_after(n, i & 1);
            bool ok = ledger_open(&l, f->s, &spec, &f->e);
            bool hit = errors[i / 2] ? sys_fault_hit() : !ok;
            sys_fault_set(NULL);
            mem_fail_after(0, false);
            if (ok) {
                expect_rows(l, 0, rows);
                assert_ok(append_rows(l, rows++, 1, &f->e), f->e);
                ledger_close(l);
            } else if (errors[i / 2] == EIO) { /* RESOURCE: of the lock's file */
                assert_true(f->e.code == ERR_IO || f->e.code == ERR_RESOURCE);
            } else if (errors[i / 2] != EACCES) {
                assert_int_equal(f->e.code, ERR_RESOURCE);
            }
            assert_int_equal(folder_count(f, "quarantine", ""), 0);
            l = open_it(f, 1);
            assert_int_equal(ledger_rows(l), rows);
            expect_rows(l, 0, rows);
            ledger_close(l);
            if (!hit) {
                assert_true(n > 3);
                break;
            }
        }
}

/* A failed read says nothing about the rows: `scout check` must not call them damaged either. */
static void verify_tells_a_failed_read_from_damage(void **state)
{
    struct fixture *f = *state;
    struct key k = sample_key(1);
    char name[128], text[KEY_TEXT];
    uint64_t rows = 0, damaged = 0;
    struct ledger *l = open_it(f, 1);
    assert_ok(append_rows(l, 0, 10, &f->e), f->e);
    ledger_close(l);
    snprintf(name, sizeof name, "ledger/%s/0000.h5", key_text(&k, text));
    for (long n = 1;; n++) {
        sys_fault_set(&(struct sys_fault){.at = n, .error = EIO});
        bool ok = ledger_verify(f->s, name, &rows, &damaged, &f->e);
        bool hit = sys_fault_hit();
        sys_fault_set(NULL);
        if (ok)
            assert_true(rows == 10 && damaged == 0);
        else
            assert_int_equal(f->e.code, ERR_IO);
        if (!hit) {
            assert_true(n > 12);
            break;
        }
    }
}

static void appends_survive_any_failing_allocation(void **state)
{
    struct fixture *f = *state;
    struct ledger *l = open_it(f, 1);
    unsigned first = 0;
    for (long n = 1;; n++, first += 700) {
        mem_fail_after(n, false);
        bool ok = append_rows(l, first, 700, &f->e);
        mem_fail_after(0, false);
        if (ok) {
            assert_true(n > 2);
            break;
        }
        assert_int_equal(f->e.code, ERR_RESOURCE);
        unsigned there = 0; /* what went into the first of two segments before the failure */
        while (there < 700 && row_state(l, first + there) == 1)
            there++;
        for (unsigned i = there; i < 700; i++)
            assert_int_equal(row_state(l, first + i), 0);
        assert_ok(append_rows(l, first + there, 700 - there, &f->e), f->e);
    }
    expect_rows(l, 0, first + 700);
    ledger_close(l);
}

/* ---------------------------------------------------------------------------------------------------------- threads */

struct worker {
    struct fixture *f;
    unsigned first;
    bool ok;
};

static void *work(void *context)
{
    struct worker *w = context;
    struct ledger *l;
    struct ledger_spec spec = spec_of(1);
    struct err e = {0};
    w->ok = ledger_open(&l, w->f->s, &spec, &e);
    for (unsigned i = 0; w->ok && i < 400; i += 4) {
        w->ok = append_rows(l, w->first + i, 4, &e);
        for (unsigned j = 0; w->ok && j < i + 4; j += 37)
            w->ok = row_state(l, w->first + j) == 1;
        w->ok = w->ok && row_state(l, (w->first + 400) % 1600 + i) >= 0; /* a neighbour's, there or not */
    }
    ledger_close(l);
    return NULL;
}

/* One thread waits for the lock of another process (here: another open file), and another thread of this process waits
 * for the first: both say so and can be stopped. */
struct waiting {
    struct fixture *f;
    atomic_bool stop;
    atomic_int told_process, told_thread, stopped;
    char process[32]; /* how the holder's text begins */
};

static bool is_stopping(void *waiter) { return atomic_load(&((struct waiting *)waiter)->stop); }

static void hear(void *waiter, const char *holder)
{
    struct waiting *w = waiter;
    w->told_process += strncmp(holder, w->process, strlen(w->process)) == 0;
    w->told_thread += strcmp(holder, "another thread of this process") == 0;
}

static void *open_and_wait(void *context)
{
    struct waiting *w = context;
    struct ledger *l;
    struct ledger_spec spec = spec_of(1);
    struct err e = {0};
    spec.stopping = is_stopping;
    spec.waits = hear;
    spec.waiter = w;
    w->stopped += !ledger_open(&l, w->f->s, &spec, &e) && e.code == ERR_STOPPED;
    return NULL;
}

static void threads_that_wait_for_a_ledger_can_be_stopped(void **state)
{
    static struct waiting w;
    pthread_t threads[2];
    char path[512];
    w = (struct waiting){.f = *state};
    ledger_close(open_it(w.f, 1));
    segment_path(w.f, 1, 0, path);
    strcpy(strrchr(path, '/'), "/LOCK");
    size_t n = 0;
    char *text = check_read(path, &n); /* what we wrote when we had it stays */
    assert_non_null(text);
    free(text);
    snprintf(w.process, sizeof w.process, "pid %ld on ", (long)getpid());
    int fd = open(path, O_RDWR);
    assert_int_equal(flock(fd, LOCK_EX | LOCK_NB), 0);
    for (int i = 0; i < 2; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, open_and_wait, &w), 0);
    for (int i = 0; i < 1000 && (!w.told_process || !w.told_thread); i++)
        nanosleep(&(struct timespec){.tv_nsec = 20000000}, NULL);
    atomic_store(&w.stop, true);
    for (int i = 0; i < 2; i++)
        pthread_join(threads[i], NULL);
    close(fd);
    assert_int_equal(w.stopped, 2);
    assert_true(w.told_process > 0);
    assert_int_equal(w.told_thread, 1);
    ledger_close(open_it(w.f, 1)); /* nothing is left of the two */
}

static void threads_append_and_find_at_the_same_time(void **state)
{
    struct fixture *f = *state;
    pthread_t threads[4];
    struct worker workers[4];
    for (unsigned i = 0; i < 4; i++) {
        workers[i] = (struct worker){.f = f, .first = 400 * i};
        assert_int_equal(pthread_create(&threads[i], NULL, work, &workers[i]), 0);
    }
    for (int i = 0; i < 4; i++)
        pthread_join(threads[i], NULL);
    for (int i = 0; i < 4; i++)
        assert_true(workers[i].ok);
    struct ledger *l = open_it(f, 1);
    assert_int_equal(ledger_rows(l), 1600);
    expect_rows(l, 0, 1600);
    ledger_close(l);
}

#define WITH(test) cmocka_unit_test_setup_teardown(test, fixture_setup, fixture_teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        WITH(rows_come_back_now_and_after_reopening),
        WITH(wrong_appends_are_bugs_and_change_nothing),
        WITH(two_opens_share_one_ledger),
        WITH(a_full_segment_is_followed_by_one_of_twice_the_size),
        WITH(a_segment_stays_below_its_limit),
        WITH(slots_and_units_may_be_none),
        WITH(a_flipped_bit_costs_only_the_rows_that_it_is_in),
        WITH(lost_rows_are_appended_again),
        WITH(values_lost_while_open_make_the_row_absent),
        WITH(rows_of_another_ledger_or_place_do_not_count),
        WITH(a_damaged_header_sets_the_segment_aside),
        WITH(a_cut_segment_keeps_what_is_left),
        WITH(verify_counts_whole_and_damaged_rows),
        WITH(appends_survive_any_failing_call),
        WITH(a_refused_write_seals_the_segment_and_goes_on),
        WITH(opening_survives_any_failing_call_and_allocation),
        WITH(verify_tells_a_failed_read_from_damage),
        WITH(appends_survive_any_failing_allocation),
        WITH(threads_that_wait_for_a_ledger_can_be_stopped),
        WITH(threads_append_and_find_at_the_same_time),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
