/* run.h5. With an argument, the program is the writer for index_reader.py: it makes a run in that directory and goes on
 * appending rows and renewing the index until it is killed or its input ends. */
#include "tests/engine/store/row_check.h"

#include <errno.h>
#include <hdf5.h>
#include <math.h>
#include <poll.h>

#include "engine/store/sys.h"

static const struct index_run sample_run = {.graph_name = "quickstart", .graph_text = "scout: 1\nname: quickstart\n",
                                            .command_line = "scout run quickstart.yaml", .version = "0.1.0",
                                            .machine = "2 cores", .started = 1.7e9};

static const struct index_stat stats[] = {{"layer_forwards", 120, "layer"}, {"rows_reused", 0.5, ""}};

/* Nodes of every kind; `a` and `b` are a result and a ledger. */
static size_t make_nodes(struct index_node nodes[3], const struct key *a, const struct key *b)
{
    nodes[0] = (struct index_node){.name = "model", .type = "model", .state = "done", .has_key = true,
                                   .has_result = true,
                                   .key = *a, .seconds = 1.25, .stats = stats, .n_stats = COUNT(stats)};
    nodes[1] = (struct index_node){.name = "round.2", .type = "measure", .state = "running", .has_key = true, .key = *b,
                                   .seconds = NAN, .has_ledger = true, .ledger = *b};
    nodes[2] = (struct index_node){.name = "awaits", .type = "select", .state = "failed", .seconds = NAN,
                                   .error = "no \"rows\": \xc3\xa9"};
    return 3;
}

static bool write_sample(struct fixture *f, const char *run_dir, const char *version, struct err *e)
{
    struct index_node nodes[3];
    struct index_run run = sample_run;
    struct key a = sample_key(1), b = sample_key(2);
    run.version = version;
    size_t n = make_nodes(nodes, &a, &b);
    return index_write(f->s, run_dir, &run, nodes, n, e);
}

static void the_index_reads_back_as_it_was_written(void **state)
{
    struct fixture *f = *state;
    struct arena arena = {0};
    struct index_run run;
    struct index_node *nodes;
    struct key a = sample_key(1), b = sample_key(2);
    size_t n;
    assert_ok(write_sample(f, f->dir, "0.1.0", &f->e), f->e);
    assert_ok(index_read(f->dir, &run, &nodes, &n, &arena, &f->e), f->e);
    assert_int_equal(n, 3);
    assert_string_equal(run.graph_name, sample_run.graph_name);
    assert_string_equal(run.graph_text, sample_run.graph_text);
    assert_string_equal(run.command_line, sample_run.command_line);
    assert_string_equal(run.machine, sample_run.machine);
    assert_true(run.started == sample_run.started);
    assert_string_equal(nodes[0].name, "model");
    assert_string_equal(nodes[0].state, "done");
    assert_true(nodes[0].has_key && nodes[0].has_result && key_equal(&nodes[0].key, &a));
    assert_true(nodes[0].seconds == 1.25);
    assert_null(nodes[0].error);
    assert_int_equal(nodes[0].n_stats, 2);
    assert_string_equal(nodes[0].stats[0].name, "layer_forwards");
    assert_true(nodes[0].stats[0].value == 120);
    assert_string_equal(nodes[0].stats[0].unit, "layer");
    assert_string_equal(nodes[0].stats[1].unit, "");
    assert_string_equal(nodes[1].name, "round.2");
    assert_true(nodes[1].has_ledger && key_equal(&nodes[1].ledger, &b));
    assert_false(nodes[1].has_result);
    assert_true(isnan(nodes[1].seconds));
    assert_string_equal(nodes[2].name, "awaits"); /* in the order of the graph, not of names */
    assert_string_equal(nodes[2].error, "no \"rows\": \xc3\xa9");
    assert_false(nodes[2].has_key);
    arena_free(&arena);
}

static void an_empty_run_and_a_long_graph_are_fine(void **state)
{
    struct fixture *f = *state;
    struct arena arena = {0};
    struct index_run run = {0};
    struct index_node *nodes;
    size_t n = 9, length = 300000;
    char *text = malloc(length + 1);
    memset(text, 'x', length);
    text[length] = '\0';
    run.graph_text = text;
    assert_ok(index_write(f->s, f->dir, &run, NULL, 0, &f->e), f->e);
    assert_ok(index_read(f->dir, &run, &nodes, &n, &arena, &f->e), f->e);
    assert_int_equal(n, 0);
    assert_int_equal(strlen(run.graph_text), length);
    assert_string_equal(run.command_line, "");
    arena_free(&arena);
    free(text);
}

static void a_missing_or_damaged_index_is_said_so(void **state)
{
    struct fixture *f = *state;
    struct arena arena = {0};
    struct index_run run;
    struct index_node *nodes;
    char path[400];
    size_t n = 0, bytes = 0;
    assert_err(index_read(f->dir, &run, &nodes, &n, &arena, &f->e), f->e, ERR_INPUT, "is not there");
    assert_ok(write_sample(f, f->dir, "0.1.0", &f->e), f->e);
    snprintf(path, sizeof path, "%s/run.h5", f->dir);
    char *good = check_read(path, &bytes);
    for (size_t i = 0; i < bytes; i += 41) {
        good[i] ^= 4;
        unlink(path);
        check_write(f->dir, "run.h5", good, bytes);
        good[i] ^= 4;
        assert_err(index_read(f->dir, &run, &nodes, &n, &arena, &f->e), f->e, ERR_INPUT, "run the graph again");
    }
    for (size_t i = 0; i < bytes; i += 501) {
        unlink(path);
        check_write(f->dir, "run.h5", good, i);
        assert_err(index_read(f->dir, &run, &nodes, &n, &arena, &f->e), f->e, ERR_INPUT, "run the graph again");
    }
    free(good);
    arena_free(&arena);
}

/* Whatever fails, run.h5 is the old one or the new one, and the next write succeeds. */
static void writing_survives_any_failing_call_and_allocation(void **state)
{
    struct fixture *f = *state;
    static const int errors[] = {0, EIO, ENOSPC};
    assert_ok(write_sample(f, f->dir, "old", &f->e), f->e);
    for (size_t i = 0; i < COUNT(errors); i++)
        for (long n = 1;; n++) {
            struct arena arena = {0};
            struct index_run run;
            struct index_node *nodes;
            size_t count;
            if (errors[i])
                sys_fault_set(&(struct sys_fault){.at = n, .error = errors[i], .half = true});
            else
                mem_fail_after(n, false);
            bool ok = write_sample(f, f->dir, "new", &f->e);
            bool hit = errors[i] ? sys_fault_hit() : !ok;
            sys_fault_set(NULL);
            mem_fail_after(0, false);
            assert_ok(index_read(f->dir, &run, &nodes, &count, &arena, &f->e), f->e);
            assert_int_equal(count, 3);
            assert_true(ok || strcmp(run.version, "old") == 0);
            arena_free(&arena);
            assert_ok(write_sample(f, f->dir, "old", &f->e), f->e);
            if (!hit) {
                assert_true(n > 2);
                break;
            }
        }
}

/* Number 0000 is missing when it was set aside: the others are linked all the same. */
static void live_links_the_segments_that_are_there(void **state)
{
    struct fixture *f = *state;
    struct ledger *l;
    struct ledger_spec spec = spec_of(2);
    char from[512], to[512], text[KEY_TEXT];
    assert_ok(ledger_open(&l, f->s, &spec, &f->e), f->e);
    assert_ok(append_rows(l, 0, 3, &f->e), f->e);
    ledger_close(l);
    key_text(&spec.context, text);
    snprintf(from, sizeof from, "%s/ledger/%s/0000.h5", f->path, text);
    snprintf(to, sizeof to, "%s/ledger/%s/0003.h5", f->path, text);
    assert_int_equal(rename(from, to), 0);
    assert_ok(write_sample(f, f->dir, "0.1.0", &f->e), f->e);
    snprintf(from, sizeof from, "%s/run.h5", f->dir);
    hid_t file = H5Fopen(from, H5F_ACC_RDONLY, H5P_DEFAULT), live = H5Gopen2(file, "live/round.2", H5P_DEFAULT);
    H5G_info_t info;
    assert_true(live >= 0);
    assert_true(H5Gget_info(live, &info) >= 0);
    assert_int_equal(info.nlinks, 1);
    assert_true(H5Lexists(live, "0003", H5P_DEFAULT) > 0);
    H5Gclose(live);
    H5Fclose(file);
}

/* ---------------------------------------------------------------------------------------------- for index_reader.py */

static bool write_live(struct fixture *f, const char *run_dir, unsigned rows, struct err *e)
{
    struct index_node nodes[3];
    struct index_run run = sample_run;
    struct index_stat count = {"rows", rows, "row"};
    struct key a = sample_key(1), b = sample_key(2);
    size_t n = make_nodes(nodes, &a, &b);
    nodes[1].stats = &count;
    nodes[1].n_stats = 1;
    return index_write(f->s, run_dir, &run, nodes, n, e);
}

/* The store lies in the run directory, or beside it. A row is in the index only after it was acknowledged. */
static int write_until_input_ends(const char *run_dir, const char *store_dir)
{
    struct fixture f = {0};
    struct ledger *l;
    struct ledger_spec spec = spec_of(2);
    struct key k = sample_key(1);
    bool ok = store_open(&f.s, store_dir, &f.e) && sample_commit(f.s, &k, &f.e) && ledger_open(&l, f.s, &spec, &f.e);
    for (unsigned rows = 0; ok && rows < 100000; rows++) {
        ok = append_rows(l, rows, 1, &f.e);
        if (ok && rows % 8 == 0) {
            ok = write_live(&f, run_dir, rows + 1, &f.e);
            struct pollfd in = {.fd = 0, .events = POLLIN};
            if (rows == 0 && (printf("ready\n") < 0 || fflush(stdout)))
                return 1;
            if (poll(&in, 1, 0) > 0)
                break;
        }
    }
    if (!ok) {
        fprintf(stderr, "%s\n", f.e.text);
        return 1;
    }
    ledger_close(l);
    store_close(f.s);
    return 0;
}

#define WITH(test) cmocka_unit_test_setup_teardown(test, fixture_setup, fixture_teardown)

int main(int argc, char **argv)
{
    if (argc == 3)
        return write_until_input_ends(argv[1], argv[2]);
    const struct CMUnitTest tests[] = {
        WITH(the_index_reads_back_as_it_was_written),
        WITH(an_empty_run_and_a_long_graph_are_fine),
        WITH(a_missing_or_damaged_index_is_said_so),
        WITH(live_links_the_segments_that_are_there),
        WITH(writing_survives_any_failing_call_and_allocation),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
