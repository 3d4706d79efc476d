/* The evaluator over a real store and ledger: which rows it measures, and that what it makes is the same whatever was
 * there before. */
#include "nodes/model/evaluator.h"

#include "tests/nodes/model/world.h"

#define CANDIDATES 6 /* of which one is equal to another */
#define DISTINCT (CANDIDATES - 1)
#define ROWS (DISTINCT * WORLD_WINDOWS)
#define MOST_UNITS 64

/* A measuring node with nothing but an evaluator in it. */
static const struct node_class measuring = {
    .name = "measure",
    .ports = (const struct port[]){EVALUATOR_PORTS, {0}},
    .params = (const struct param[]){EVALUATOR_PARAMS, {0}},
};

struct run {
    struct node n;
    struct evaluator *v;
    struct candidates table;
};

static void add(struct world *w, struct candidates *table, unsigned seed)
{
    struct err e;
    uint8_t assignment[MOST_UNITS];
    assert_in_range(w->menu.n_units, 1, MOST_UNITS);
    model_world_assignment(w, seed, assignment);
    assert_ok(candidates_add(table, &w->menu, assignment, "made", -1, &e), e);
}

/* An evaluator, and a table of the candidates to be measured: the fourth is equal to the second. */
static void begin(struct run *r, struct world *w, const char *lanes)
{
    static const unsigned seeds[CANDIDATES] = {11, 12, 13, 12, 14, 15};
    struct err e;
    *r = (struct run){0};
    fake_node_init(&r->n, &measuring, w->store, "measuring");
    r->n.numerics = WORLD_NUMERICS;
    fake_node_set(&r->n, "lanes", lanes);
    model_world_connect(w, &r->n);
    assert_ok(evaluator_open(&r->v, &r->n, &e) && evaluator_table(r->v, &r->table, &e), e);
    for (size_t i = 0; i < CANDIDATES; i++)
        add(w, &r->table, seeds[i]);
}

/* What it measured and what it found; then it is gone. */
static void end(struct run *r, uint64_t measured, uint64_t reused)
{
    evaluator_close(r->v);
    candidates_fini(&r->table);
    if (fake_node_stat(&r->n, "rows_measured") != (double)measured ||
        fake_node_stat(&r->n, "rows_reused") != (double)reused)
        fail_msg("%g rows measured and %g found, expected %llu and %llu", fake_node_stat(&r->n, "rows_measured"),
                 fake_node_stat(&r->n, "rows_reused"), (unsigned long long)measured, (unsigned long long)reused);
    fake_node_fini(&r->n);
}

/* The table as the bytes of the object that a node would publish. */
static char *object_bytes(struct run *r, struct world *w, size_t *n)
{
    struct err e;
    struct object *o = NULL;
    struct writer *out = r->n.output;
    r->n.output = NULL;
    assert_ok(candidates_write(&r->table, &w->menu, out, &e) && writer_commit(out, &e) &&
              object_open(&o, w->store, &r->n.key, &e) && o, e);
    char *bytes = check_read(object_path(o), n);
    assert_non_null(bytes);
    object_close(o);
    return bytes;
}

static struct key digest_of(const struct run *r, size_t candidate)
{
    struct err e;
    struct key k;
    assert_ok(key_of_bytes(r->table.list[candidate].assignment, (size_t)r->table.n_units, &k, &e), e);
    return k;
}

/* The object of an undisturbed measure of everything. */
static char *undisturbed(size_t *n)
{
    struct err e;
    struct world w;
    struct run r;
    model_world_open(&w, "stories260k");
    begin(&r, &w, "0");
    assert_ok(evaluator_measure(r.v, &r.table, 0, &e), e);
    char *bytes = object_bytes(&r, &w, n);
    end(&r, ROWS, WORLD_WINDOWS);
    model_world_close(&w);
    return bytes;
}

/* ------------------------------------------------------------------------------------------------------------ tests */

static void rows_that_are_there_are_not_measured_again(void **state)
{
    (void)state;
    struct world w;
    struct run r;
    struct err e;
    model_world_open(&w, "stories260k");
    begin(&r, &w, "0");
    assert_ok(evaluator_measure(r.v, &r.table, 0, &e), e);
    assert_int_equal(ledger_rows(r.n.ledger), ROWS);
    double first[CANDIDATES];
    for (size_t c = 0; c < CANDIDATES; c++) {
        first[c] = r.table.list[c].kl_mean;
        assert_true(first[c] > 0.0 && candidate_is_complete(&r.table, &r.table.list[c]));
    }
    assert_ok(evaluator_measure(r.v, &r.table, 0, &e), e); /* at once */
    assert_int_equal(ledger_rows(r.n.ledger), ROWS);
    end(&r, ROWS, WORLD_WINDOWS + CANDIDATES * WORLD_WINDOWS);

    begin(&r, &w, "0"); /* and by another node */
    assert_ok(evaluator_measure(r.v, &r.table, 0, &e), e);
    assert_int_equal(ledger_rows(r.n.ledger), ROWS);
    for (size_t c = 0; c < CANDIDATES; c++)
        assert_true(r.table.list[c].kl_mean == first[c]);
    evaluator_close(r.v);
    r.v = NULL;
    assert_true(fake_node_stat(&r.n, "layer_forwards") == 0.0);
    end(&r, 0, CANDIDATES * WORLD_WINDOWS);
    model_world_close(&w);
}

static void equal_candidates_are_measured_once(void **state)
{
    (void)state;
    struct world w;
    struct run r;
    struct err e;
    model_world_open(&w, "stories260k");
    begin(&r, &w, "0");
    assert_ok(evaluator_measure(r.v, &r.table, 0, &e), e);
    const struct candidate *a = &r.table.list[1], *b = &r.table.list[3];
    assert_memory_equal(a->kl_window, b->kl_window, WORLD_WINDOWS * sizeof *a->kl_window);
    assert_true(a->kl_mean == b->kl_mean && a->kl_p99 == b->kl_p99 && a->kl_max == b->kl_max && a->top1 == b->top1);
    assert_true(a->kl_mean != r.table.list[0].kl_mean);
    end(&r, ROWS, WORLD_WINDOWS);
    model_world_close(&w);
}

/* The rows of the same assignment of a model whose head is no unit. */
static void assert_plain_rows(const double expected[WORLD_WINDOWS])
{
    struct world w;
    struct run r = {0};
    struct err e;
    model_world_open(&w, "stories260k");
    fake_node_init(&r.n, &measuring, w.store, "measuring");
    r.n.numerics = WORLD_NUMERICS;
    model_world_connect(&w, &r.n);
    assert_ok(evaluator_open(&r.v, &r.n, &e) && evaluator_table(r.v, &r.table, &e), e);
    add(&w, &r.table, 17);
    assert_ok(evaluator_measure(r.v, &r.table, 0, &e), e);
    assert_memory_equal(r.table.list[0].kl_window, expected, WORLD_WINDOWS * sizeof *expected);
    end(&r, WORLD_WINDOWS, 0);
    model_world_close(&w);
}

/* Candidates that differ only in the head travel together, and have the rows that each has alone; one with a plain head
 * has those of a model whose head is no unit. */
static void candidates_part_at_their_heads(void **state)
{
    (void)state;
    double alone[WORLD_FORMATS][WORLD_WINDOWS], forwards = 0;
    for (int together = 0; together < 2; together++) {
        struct world w;
        model_world_open_with_head(&w, "stories260k");
        for (int first = 0; first < WORLD_FORMATS; first += together ? WORLD_FORMATS : 1) {
            struct run r = {0};
            struct err e;
            fake_node_init(&r.n, &measuring, w.store, "measuring");
            r.n.numerics = WORLD_NUMERICS;
            model_world_connect(&w, &r.n);
            assert_ok(evaluator_open(&r.v, &r.n, &e) && evaluator_table(r.v, &r.table, &e), e);
            for (int f = first; f < (together ? WORLD_FORMATS : first + 1); f++) {
                uint8_t assignment[MOST_UNITS];
                model_world_assignment(&w, 17, assignment);
                assignment[w.model->head_unit] = (uint8_t)f;
                assert_ok(candidates_add(&r.table, &w.menu, assignment, "made", -1, &e), e);
            }
            assert_ok(evaluator_measure(r.v, &r.table, 0, &e), e);
            for (size_t c = 0; c < r.table.n; c++)
                if (together)
                    assert_memory_equal(r.table.list[c].kl_window, alone[c], sizeof alone[c]);
                else
                    memcpy(alone[first], r.table.list[c].kl_window, sizeof alone[first]);
            evaluator_close(r.v);
            r.v = NULL;
            forwards += fake_node_stat(&r.n, "layer_forwards");
            if (together) /* the layers once for all */
                assert_true(forwards == w.model->config.layers * WORLD_WINDOWS);
            candidates_fini(&r.table);
            fake_node_fini(&r.n);
        }
        forwards = 0;
        model_world_close(&w);
    }
    for (int f = 0; f < WORLD_FORMATS; f++)
        for (int g = 0; g < f; g++)
            assert_memory_not_equal(alone[f], alone[g], sizeof alone[f]);
    assert_plain_rows(alone[WORLD_BF16]);
}

static void only_what_comes_after_the_first_is_measured(void **state)
{
    (void)state;
    struct world w;
    struct run r;
    struct err e;
    model_world_open(&w, "stories260k");
    begin(&r, &w, "0");
    assert_ok(evaluator_measure(r.v, &r.table, CANDIDATES - 2, &e), e);
    for (size_t c = 0; c < CANDIDATES; c++)
        assert_int_equal(candidate_is_complete(&r.table, &r.table.list[c]), c >= CANDIDATES - 2);
    end(&r, 2 * WORLD_WINDOWS, 0);
    model_world_close(&w);
}

/* Windows may come in any order and in any number of calls: rows are complete once all have come, with the columns of one
 * call for all. */
static void windows_add_up_to_the_whole(void **state)
{
    static const uint32_t parts[][2] = {{2, 0}, {0, 1}}; /* window 0 twice: in two calls */
    (void)state;
    struct world w;
    struct run r, all;
    struct err e;
    model_world_open(&w, "stories260k");
    begin(&r, &w, "0");
    assert_ok(evaluator_measure_windows(r.v, &r.table, 0, &parts[0][0], 1, &e), e);
    assert_int_equal(ledger_rows(r.n.ledger), DISTINCT);
    r.table.list[0].dropped_at = 1;
    r.table.list[0].dropped_by = 2;
    assert_ok(evaluator_measure_windows(r.v, &r.table, 0, &parts[0][1], 1, &e), e);
    assert_int_equal(ledger_rows(r.n.ledger), 2 * DISTINCT - 1); /* not of the dropped one */
    for (size_t c = 0; c < CANDIDATES; c++) {
        const struct candidate *x = &r.table.list[c];
        assert_false(candidate_is_complete(&r.table, x));
        assert_int_equal(x->n_windows, c ? 2 : 1);
        assert_int_equal(x->tokens, r.table.window_tokens[2] + (c ? r.table.window_tokens[0] : 0));
        assert_true(isnan(x->kl_mean) && isnan(x->kl_p95) && isnan(x->kl_max) && isnan(x->nll_delta));
        assert_true(x->kl_window[2] > 0 && isnan(x->kl_window[1]) && isnan(x->kl_window[0]) == (c == 0));
    }
    assert_ok(evaluator_measure_windows(r.v, &r.table, 0, parts[1], 2, &e), e);
    assert_int_equal(ledger_rows(r.n.ledger), 3 * DISTINCT - 2);
    assert_false(candidate_is_complete(&r.table, &r.table.list[0]));
    begin(&all, &w, "0");
    assert_ok(evaluator_measure(all.v, &all.table, 0, &e), e);
    for (size_t c = 1; c < CANDIDATES; c++) {
        const struct candidate *x = &r.table.list[c], *y = &all.table.list[c];
        assert_true(candidate_is_complete(&r.table, x) && x->n_windows == WORLD_WINDOWS);
        assert_memory_equal(x->kl_window, y->kl_window, WORLD_WINDOWS * sizeof *x->kl_window);
        assert_true(x->kl_mean == y->kl_mean && x->kl_p95 == y->kl_p95 && x->kl_p99 == y->kl_p99 &&
                    x->kl_p999 == y->kl_p999 && x->kl_max == y->kl_max && x->nll_delta == y->nll_delta &&
                    x->top1 == y->top1 && x->tokens == y->tokens);
    }
    assert_err(evaluator_measure_windows(r.v, &r.table, 0, (const uint32_t[]){1, 1}, 2, &e), e, ERR_BUG, "twice");
    assert_err(evaluator_measure_windows(r.v, &r.table, 0, (const uint32_t[]){WORLD_WINDOWS}, 1, &e), e, ERR_BUG,
               "window 3 of 3");
    end(&all, 2, CANDIDATES * WORLD_WINDOWS - 2);
    evaluator_close(r.v);
    candidates_fini(&r.table);
    fake_node_fini(&r.n);
    model_world_close(&w);
}

static int ascending(const void *a, const void *b)
{
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

/* The columns of a complete row, taken again from the rows of the ledger. */
static void tails_and_sums_are_those_of_the_rows(void **state)
{
    (void)state;
    struct world w;
    struct run r;
    struct err e;
    model_world_open(&w, "stories260k");
    begin(&r, &w, "0");
    assert_ok(evaluator_measure(r.v, &r.table, 0, &e), e);
    for (size_t c = 0; c < CANDIDATES; c++) {
        const struct candidate *x = &r.table.list[c];
        struct key digest = digest_of(&r, c);
        float kl[WORLD_WINDOWS * (WORLD_WINDOW - 1)];
        double nll = 0, sum = 0;
        size_t n = 0, above[3] = {0};
        for (uint32_t i = 0; i < WORLD_WINDOWS; i++) {
            struct ledger_row row;
            assert_true(ledger_find(r.n.ledger, digest.bytes, i, &row, kl + n));
            nll += row.nll_candidate - row.nll_teacher;
            sum += row.kl_sum;
            n += row.n_tokens;
        }
        qsort(kl, n, sizeof *kl, ascending);
        for (size_t i = 0; i < n; i++) { /* at most the share above, and no smaller value has so few */
            above[0] += kl[i] > x->kl_p95;
            above[1] += kl[i] > x->kl_p99;
            above[2] += kl[i] > x->kl_p999;
        }
        assert_int_equal(above[0], n / 20);
        assert_int_equal(above[1], n / 100);
        assert_int_equal(above[2], n / 1000);
        assert_true((float)x->kl_max == kl[n - 1] && x->tokens == n);
        assert_true(x->nll_delta == nll / (double)n && x->nll_delta != 0 && x->kl_mean == sum / (double)n);
    }
    end(&r, ROWS, WORLD_WINDOWS);
    model_world_close(&w);
}

/* Rows are put into a fresh ledger from another one, each with a mark that no measurement could give: what has a mark
 * afterwards was not measured again, and all else was. */
static void exactly_the_missing_windows_are_measured(void **state)
{
    /* [candidate][window]: there already. The fourth candidate is the second. */
    static const bool there[CANDIDATES][WORLD_WINDOWS] = {
        {true, true, true}, {0}, {true, false, false}, {0}, {false, true, false}, {true, false, true}};
    (void)state;
    struct world from, to;
    struct run a, b;
    struct err e;
    size_t n_there = 0, slots = WORLD_WINDOW - 1;
    model_world_open(&from, "stories260k");
    model_world_open(&to, "stories260k");
    begin(&a, &from, "0");
    begin(&b, &to, "0");
    assert_ok(evaluator_measure(a.v, &a.table, 0, &e), e);
    for (size_t c = 0; c < CANDIDATES; c++) {
        for (uint32_t w = 0; w < WORLD_WINDOWS; w++) {
            struct key digest = digest_of(&a, c);
            struct ledger_row row;
            float kl[WORLD_WINDOW - 1];
            if (!there[c][w])
                continue;
            assert_true(ledger_find(a.n.ledger, digest.bytes, w, &row, kl));
            row = (struct ledger_row){.window = row.window, .n_tokens = row.n_tokens, .top1 = row.top1,
                                      .kl_sum = 1000.0 * row.n_tokens, .kl_max = row.kl_max};
            memcpy(row.candidate, digest.bytes, KEY_BYTES);
            assert_int_equal(slots, COUNT(kl));
            assert_ok(ledger_append(b.n.ledger, &row, kl, b.table.list[c].assignment, 1, &e), e);
            n_there++;
        }
    }
    assert_ok(evaluator_measure(b.v, &b.table, 0, &e), e);
    assert_int_equal(ledger_rows(b.n.ledger), ROWS);
    for (size_t c = 0; c < CANDIDATES; c++)
        for (size_t w = 0; w < WORLD_WINDOWS; w++) {
            double expected = there[c][w] ? 1000.0 : a.table.list[c].kl_window[w];
            if (b.table.list[c].kl_window[w] != expected)
                fail_msg("candidate %zu, window %zu: %.17g, expected %.17g", c, w, b.table.list[c].kl_window[w],
                         expected);
        }
    end(&b, ROWS - n_there, n_there + WORLD_WINDOWS);
    end(&a, ROWS, WORLD_WINDOWS);
    model_world_close(&to);
    model_world_close(&from);
}

/* The run is stopped at the k-th time that it asks, for every k; then the same is measured again. */
static void an_interrupted_measure_goes_on_to_the_same_bytes(void **state)
{
    (void)state;
    size_t n, m;
    char *whole = undisturbed(&n);
    int k = 0, in_the_middle = 0;
    for (bool stopped = true; stopped; k++) {
        struct world w;
        struct run r;
        struct err e = {0};
        int asks = k;
        model_world_open(&w, "stories260k");
        begin(&r, &w, "3");
        r.n.asks = &asks;
        stopped = !evaluator_measure(r.v, &r.table, 0, &e);
        if (stopped)
            assert_int_equal(e.code, ERR_STOPPED);
        uint64_t rows = ledger_rows(r.n.ledger);
        assert_true(stopped ? rows < ROWS : rows == ROWS);
        in_the_middle += rows % (3 * WORLD_WINDOWS) != 0 && rows < ROWS;
        end(&r, rows, WORLD_WINDOWS);

        begin(&r, &w, "2"); /* other batches than before */
        assert_ok(evaluator_measure(r.v, &r.table, 0, &e), e);
        assert_int_equal(ledger_rows(r.n.ledger), ROWS);
        char *bytes = object_bytes(&r, &w, &m);
        if (m != n || memcmp(whole, bytes, n) != 0)
            fail_msg("stopped at the %d-th ask, %llu rows: another object came of it", k, (unsigned long long)rows);
        free(bytes);
        end(&r, ROWS - rows, rows + WORLD_WINDOWS);
        model_world_close(&w);
    }
    assert_true(k > 10 && in_the_middle >= 4); /* between two windows of a pass too */
    free(whole);
}

static void a_format_that_a_unit_cannot_have_is_refused(void **state)
{
    (void)state;
    struct world w;
    struct run r;
    struct err e;
    model_world_open(&w, "stories260k");
    begin(&r, &w, "0");
    int unit = 0; /* 172 columns: no groups of 16 */
    while (w.menu.available[unit * WORLD_FORMATS + WORLD_NVFP4])
        unit++;
    uint8_t *assignment = r.table.list[CANDIDATES - 1].assignment, was = assignment[unit];
    assignment[unit] = WORLD_NVFP4;
    assert_err(evaluator_measure(r.v, &r.table, 0, &e), e, ERR_INPUT,
               "candidate 5: unit 'model.layers.0.mlp.down_proj' cannot have format 'nvfp4'");
    assignment[unit] = WORLD_FORMATS;
    assert_err(evaluator_measure(r.v, &r.table, 0, &e), e, ERR_INPUT, "has format index 4 of 4");
    assert_int_equal(ledger_rows(r.n.ledger), 0); /* nor were the others measured */
    assignment[unit] = was;
    assert_ok(evaluator_measure(r.v, &r.table, 0, &e), e);
    assert_int_equal(ledger_rows(r.n.ledger), ROWS);
    evaluator_close(r.v);
    candidates_fini(&r.table);
    fake_node_fini(&r.n);
    model_world_close(&w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rows_that_are_there_are_not_measured_again),
        cmocka_unit_test(equal_candidates_are_measured_once),
        cmocka_unit_test(candidates_part_at_their_heads),
        cmocka_unit_test(only_what_comes_after_the_first_is_measured),
        cmocka_unit_test(windows_add_up_to_the_whole),
        cmocka_unit_test(tails_and_sums_are_those_of_the_rows),
        cmocka_unit_test(exactly_the_missing_windows_are_measured),
        cmocka_unit_test(an_interrupted_measure_goes_on_to_the_same_bytes),
        cmocka_unit_test(a_format_that_a_unit_cannot_have_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
