/* Racing: the schedule, what is dropped against a plain recomputation, and that its error level holds. */
#include "tests/nodes/search/menus.h"

#include "nodes/search/race.h"

#define DOCUMENTS 24
#define PER_DOCUMENT 2
#define WINDOWS (DOCUMENTS * PER_DOCUMENT)
#define CANDIDATES 14

static struct made made;

static int set_up(void **state)
{
    (void)state;
    made_init(&made, 12, 3, 1);
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    made_fini(&made);
    return 0;
}

static double uniform(uint64_t *s) { return (double)(stats_random(s) >> 11) * 0x1p-53; }

static double normal(uint64_t *s)
{
    double sum = -6;
    for (int i = 0; i < 12; i++)
        sum += uniform(s);
    return sum;
}

/* Windows of `documents` documents, of unequal length, those of a document not beside each other. */
static void windows_of(struct candidates *c, uint32_t documents)
{
    struct err e;
    uint32_t tokens[WINDOWS], document[WINDOWS], n = documents * PER_DOCUMENT;
    for (uint32_t w = 0; w < n; w++) {
        tokens[w] = 100 + 37 * (w % 5);
        document[w] = 5 + 3 * (w % documents);
    }
    assert_ok(candidates_init(c, made.menu.n_units, n, tokens, document, &e), e);
}

/* KL of the candidates on all windows: means of their own times a factor of the document that they share and one that
 * they do not. */
static void draw_rows(const struct candidates *c, const double *mean, double *kl, uint64_t *s)
{
    double shared[DOCUMENTS];
    for (int d = 0; d < DOCUMENTS; d++)
        shared[d] = exp(0.3 * normal(s) - 0.045);
    for (size_t i = 0; i < c->n; i++)
        for (uint32_t w = 0; w < c->n_windows; w++)
            kl[i * WINDOWS + w] = mean[i] * shared[(c->window_document[w] - 5) / 3] * exp(0.1 * normal(s) - 0.005);
}

/* What measuring does for a stage. */
static void measure_stage(struct candidates *c, const struct race *r, uint32_t stage, const double *kl)
{
    for (size_t i = 0; i < c->n; i++)
        for (uint32_t k = stage ? r->end[stage - 1] : 0; k < r->end[stage] && c->list[i].dropped_at < 0; k++) {
            uint32_t w = r->windows[k];
            c->list[i].kl_window[w] = kl[i * WINDOWS + w];
            c->list[i].n_windows++;
        }
}

static void run_race(struct race *r, struct candidates *c, const struct race_options *o, const double *kl)
{
    struct err e;
    assert_ok(race_init(r, c, o, &e), e);
    for (uint32_t stage = 0; stage < r->n_stages; stage++) {
        measure_stage(c, r, stage, kl);
        assert_ok(race_look(r, c, stage, &e), e);
    }
}

static void add_candidates(struct candidates *c, int n, uint64_t seed)
{
    struct err e;
    uint8_t assignment[64];
    menu_uniform(&made.menu, 0, assignment);
    assert_non_null(candidates_add(c, &made.menu, assignment, "uniform", -1, &e));
    for (int i = 1; i < n; i++)
        made_random(&made, c, &seed);
}

/* ----------------------------------------------------------------------------------------------------- the schedule */

static void documents_stay_whole_and_their_order_is_the_seeds(void **state)
{
    (void)state;
    struct err e;
    struct candidates c;
    struct race r[3];
    windows_of(&c, DOCUMENTS);
    for (int i = 0; i < 3; i++)
        assert_ok(race_init(&r[i], &c, &(struct race_options){0.05, 3, i == 2 ? 2 : 1}, &e), e);
    assert_int_equal(r[0].n_stages, 4);
    static const uint32_t documents[] = {6, 12, 18, 24};
    assert_memory_equal(r[0].documents, documents, sizeof documents);
    assert_memory_equal(r[0].windows, r[1].windows, WINDOWS * sizeof *r[0].windows);
    assert_memory_not_equal(r[0].windows, r[2].windows, WINDOWS * sizeof *r[0].windows);
    int stage_of[DOCUMENTS], seen[WINDOWS] = {0};
    memset(stage_of, -1, sizeof stage_of);
    for (uint32_t stage = 0, k = 0; stage < 4; stage++) {
        assert_int_equal(r[0].end[stage], documents[stage] * PER_DOCUMENT);
        for (; k < r[0].end[stage]; k++) {
            uint32_t w = r[0].windows[k], d = w % DOCUMENTS;
            assert_true(seen[w]++ == 0 && (stage_of[d] < 0 || stage_of[d] == (int)stage));
            stage_of[d] = (int)stage;
        }
    }
    for (int i = 0; i < 3; i++)
        race_fini(&r[i]);
    candidates_fini(&c);
}

static void no_look_is_held_on_few_documents(void **state)
{
    (void)state;
    static const struct {
        uint32_t documents;
        double level;
        int looks;
        uint32_t n_stages, first;
    } cases[] = {{1, 0.05, 3, 1, 1}, {4, 0.05, 3, 1, 4}, {5, 0.05, 3, 2, 4}, {8, 0.05, 3, 3, 4}, {8, 0, 3, 1, 8},
                 {8, 0.05, 0, 1, 8}, {9, 0.05, 64, 6, 4}, {24, 0.05, 1, 2, 12}};
    for (size_t i = 0; i < COUNT(cases); i++) {
        struct err e;
        struct candidates c;
        struct race r;
        windows_of(&c, cases[i].documents);
        assert_ok(race_init(&r, &c, &(struct race_options){cases[i].level, cases[i].looks, 1}, &e), e);
        if (r.n_stages != cases[i].n_stages || r.documents[0] != cases[i].first)
            fail_msg("case %zu: %u stages, the first after %u documents", i, r.n_stages, r.documents[0]);
        assert_int_equal(r.end[r.n_stages - 1], c.n_windows);
        race_fini(&r);
        candidates_fini(&c);
    }
}

/* -------------------------------------------------------------------------------------------------------- the tests */

/* The rival that beats candidate i, with the largest lower bound; -1: none does. */
static long winner_of(const struct candidates *c, const struct race *r, const bool *out, size_t i, double *low)
{
    struct err e;
    size_t droppable = 0;
    long winner = -1;
    for (size_t k = 0; k < c->n; k++)
        droppable += strcmp(c->list[k].origin, "uniform") != 0;
    for (size_t j = 0; j < c->n; j++) {
        const struct candidate *x = &c->list[i], *y = &c->list[j];
        struct stats_difference d;
        double rank = 1; /* of y among the rivals of x: the larger ones, and of equals the later ones, come before */
        if (j == i || y->bytes > x->bytes || out[j])
            continue;
        for (size_t k = 0; k < c->n; k++)
            rank += k != i && k != j && c->list[k].bytes <= x->bytes &&
                    (c->list[k].bytes > y->bytes || (c->list[k].bytes == y->bytes && k > j));
        double error = r->options.level / ((r->n_stages - 1) * (double)droppable * rank * (rank + 1));
        assert_ok(stats_paired_interval(x->kl_window, y->kl_window, c->window_tokens, c->window_document, c->n_windows,
                                        1 - 2 * error, &d, &e), e);
        if (d.low > 0 && (winner < 0 || d.low > *low)) {
            winner = (long)j;
            *low = d.low;
        }
    }
    return winner;
}

/* One race, each look recomputed from the rows as they were then. Returns the number of drops. */
static size_t check_race(uint64_t seed, double spread)
{
    struct err e;
    struct candidates c;
    struct race r;
    double kl[CANDIDATES * WINDOWS], mean[CANDIDATES];
    windows_of(&c, DOCUMENTS);
    add_candidates(&c, CANDIDATES, seed);
    for (size_t i = 0; i < CANDIDATES; i++)
        mean[i] = 0.01 * exp(spread * (2 * uniform(&seed) - 1));
    draw_rows(&c, mean, kl, &seed);
    assert_ok(race_init(&r, &c, &(struct race_options){0.05, 3, seed}, &e), e);
    size_t drops = 0;
    for (uint32_t stage = 0; stage < r.n_stages; stage++) {
        bool out[CANDIDATES];
        measure_stage(&c, &r, stage, kl);
        for (size_t i = 0; i < CANDIDATES; i++)
            out[i] = c.list[i].dropped_at >= 0;
        assert_ok(race_look(&r, &c, stage, &e), e);
        for (size_t i = 0; i < CANDIDATES && stage + 1 < r.n_stages; i++) {
            double low = NAN;
            long by = out[i] || i == 0 ? -1 : winner_of(&c, &r, out, i, &low);
            if ((by >= 0) != (!out[i] && c.list[i].dropped_at >= 0))
                fail_msg("look %u, candidate %zu: dropped %d, expected by %ld", stage, i, c.list[i].dropped_by, by);
            if (by < 0)
                continue;
            const struct race_drop *d = &r.drops[drops++];
            assert_true(d->candidate == i && d->by == (uint32_t)by && d->look == stage);
            assert_int_equal(c.list[i].dropped_by, by);
            assert_int_equal(c.list[i].dropped_at, r.end[stage]);
            if (fabs(d->low - low) > 1e-7 * d->difference)
                fail_msg("look %u, candidate %zu: lower bound %.12g, expected %.12g", stage, i, d->low, low);
        }
    }
    assert_int_equal(drops, r.n_drops);
    assert_int_equal(c.list[0].dropped_at, -1); /* uniform */
    race_fini(&r);
    candidates_fini(&c);
    return drops;
}

static void what_is_dropped_is_what_a_plain_recomputation_drops(void **state)
{
    (void)state;
    size_t drops = 0;
    for (uint64_t seed = 1; seed <= 60; seed++)
        drops += check_race(seed, seed % 3 ? 0.7 : 0.1);
    assert_in_range(drops, 60, 60 * CANDIDATES); /* the cases are not empty */
}

/* All means are equal: whatever is dropped is dropped in error. */
static void the_error_level_holds_where_nothing_is_better(void **state)
{
    (void)state;
    enum { RACES = 1000 };
    int wrong = 0;
    uint64_t seed = 7;
    double kl[CANDIDATES * WINDOWS], mean[CANDIDATES];
    for (int race = 0; race < RACES; race++) {
        struct candidates c;
        struct race r;
        windows_of(&c, DOCUMENTS);
        add_candidates(&c, CANDIDATES, 3);
        for (size_t i = 0; i < CANDIDATES; i++)
            mean[i] = 0.01;
        draw_rows(&c, mean, kl, &seed);
        run_race(&r, &c, &(struct race_options){0.2, 3, (uint64_t)race}, kl);
        wrong += r.n_drops > 0;
        race_fini(&r);
        candidates_fini(&c);
    }
    assert_in_range(wrong, 20, 250); /* 0.2 + 4 standard deviations at most; and the tests are not asleep */
}

static void a_candidate_that_is_plainly_worse_is_dropped_at_once_and_frees_its_windows(void **state)
{
    (void)state;
    struct candidates c;
    struct race r;
    uint64_t seed = 5;
    double kl[CANDIDATES * WINDOWS], mean[CANDIDATES];
    windows_of(&c, DOCUMENTS);
    add_candidates(&c, CANDIDATES, 3);
    size_t largest = 1;
    for (size_t i = 1; i < CANDIDATES; i++)
        largest = c.list[i].bytes > c.list[largest].bytes ? i : largest;
    for (size_t i = 0; i < CANDIDATES; i++)
        mean[i] = i == largest ? 0.2 : i == 0 ? 0.5 : 0.01;
    draw_rows(&c, mean, kl, &seed);
    run_race(&r, &c, &(struct race_options){0.05, 3, 1}, kl);
    assert_int_equal(c.list[largest].dropped_at, r.end[0]);
    assert_int_equal(c.list[largest].n_windows, r.end[0]);
    assert_true(c.list[c.list[largest].dropped_by].bytes <= c.list[largest].bytes);
    assert_int_equal(r.drops[0].candidate, largest);
    assert_true(r.drops[0].look == 0 && r.drops[0].low > 0 && r.drops[0].difference > 0.1);
    assert_false(candidate_is_complete(&c, &c.list[largest]));
    race_fini(&r);
    candidates_fini(&c);
}

static void a_row_that_is_not_there_is_an_error(void **state)
{
    (void)state;
    struct err e;
    struct candidates c;
    struct race r;
    windows_of(&c, DOCUMENTS);
    add_candidates(&c, 2, 3);
    assert_ok(race_init(&r, &c, &(struct race_options){0.05, 3, 1}, &e), e);
    assert_err(race_look(&r, &c, 0, &e), e, ERR_BUG, "candidate 0 lacks window");
    race_fini(&r);
    candidates_fini(&c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(documents_stay_whole_and_their_order_is_the_seeds),
        cmocka_unit_test(no_look_is_held_on_few_documents),
        cmocka_unit_test(what_is_dropped_is_what_a_plain_recomputation_drops),
        cmocka_unit_test(the_error_level_holds_where_nothing_is_better),
        cmocka_unit_test(a_candidate_that_is_plainly_worse_is_dropped_at_once_and_frees_its_windows),
        cmocka_unit_test(a_row_that_is_not_there_is_an_error),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
