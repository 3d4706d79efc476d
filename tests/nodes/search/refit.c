/* The refit of surrogate costs: it must help on candidates that it has not seen, and do no harm with little to go
 * by. */
#include "tests/nodes/search/menus.h"

#include "nodes/search/refit.h"

/* Mean square of the relative error of predictions on fresh random candidates, and their rank correlation. */
static double error_on_fresh(const struct made *x, const double *cost, double *rank)
{
    struct err e;
    struct candidates table;
    double predicted[200], kl[200], sum = 0;
    uint64_t seed = 77;
    made_table(x, &table);
    for (size_t i = 0; i < COUNT(kl); i++) {
        const struct candidate *c = made_random(x, &table, &seed);
        predicted[i] = refit_predict(&x->menu, cost, c->assignment);
        kl[i] = made_kl(x, c->assignment);
        sum += (predicted[i] / kl[i] - 1) * (predicted[i] / kl[i] - 1);
    }
    assert_ok(stats_spearman(predicted, kl, COUNT(kl), rank, &e), e);
    candidates_fini(&table);
    return sum / (double)COUNT(kl);
}

static void fit(const struct made *x, size_t n_rows, double *out, struct refit *result)
{
    struct err e;
    struct candidates table;
    uint64_t seed = 5;
    made_table(x, &table);
    for (size_t i = 0; i < n_rows; i++)
        made_random(x, &table, &seed);
    made_measure(x, &table, 0);
    const struct candidates *tables[] = {&table};
    assert_ok(refit_costs(&x->menu, x->cost, tables, 1, NAN, out, result, &e), e);
    candidates_fini(&table);
}

static void measured_candidates_make_predictions_better(void **state)
{
    (void)state;
    struct made x;
    struct refit result;
    made_init(&x, 40, 3, 9);
    double cost[40 * MADE_FORMATS], before_rank, after_rank;
    fit(&x, 60, cost, &result);
    assert_int_equal(result.n_rows, 60);
    assert_true(result.error_after < 0.7 * result.error_before);
    double before = error_on_fresh(&x, x.cost, &before_rank), after = error_on_fresh(&x, cost, &after_rank);
    if (!(after < 0.3 * before && after_rank > before_rank))
        fail_msg("error %g before, %g after; rank %g before, %g after", before, after, before_rank, after_rank);
    made_fini(&x);
}

static void costs_stay_positive_and_missing_ones_missing(void **state)
{
    (void)state;
    struct made x;
    struct refit result;
    made_init(&x, 20, 300, 3);
    double cost[20 * MADE_FORMATS];
    for (size_t rows = 1; rows < 80; rows += 13) {
        fit(&x, rows, cost, &result);
        for (int i = 0; i < 20 * MADE_FORMATS; i++) {
            if (!x.menu.available[i])
                assert_true(isnan(cost[i]));
            else if (x.cost[i] == 0)
                assert_true(cost[i] == 0);
            else
                assert_true(cost[i] >= 0.0999 * result.scale * x.cost[i] &&
                            cost[i] <= 10.001 * result.scale * x.cost[i]);
        }
    }
    made_fini(&x);
}

static void a_right_surrogate_is_only_scaled(void **state)
{
    (void)state;
    struct made x;
    struct refit result;
    made_init(&x, 30, 1, 8);
    double cost[30 * MADE_FORMATS];
    for (int i = 0; i < 30 * MADE_FORMATS; i++)
        x.truth[i] = isnan(x.cost[i]) ? 0 : 2.5 * x.cost[i];
    fit(&x, 20, cost, &result);
    for (int i = 0; i < 30 * MADE_FORMATS; i++)
        if (x.menu.available[i] && fabs(cost[i] - result.scale * x.cost[i]) > 1e-6 * cost[i])
            fail_msg("cost %d is %g, scaled it would be %g", i, cost[i], result.scale * x.cost[i]);
    assert_true(result.error_before < 1e-9);
    made_fini(&x);
}

static void without_rows_costs_are_as_they_were(void **state)
{
    (void)state;
    struct made x;
    struct refit result;
    made_init(&x, 10, 2, 1);
    double cost[10 * MADE_FORMATS];
    fit(&x, 0, cost, &result);
    assert_int_equal(result.n_rows, 0);
    assert_memory_equal(cost, x.cost, sizeof cost);
    made_fini(&x);
}

static void many_rows_are_cut_to_those_near_the_centre_and_give_the_same_bits(void **state)
{
    (void)state;
    struct err e;
    struct made x;
    struct refit result;
    struct candidates table;
    uint64_t seed = 6;
    made_init(&x, 24, 3, 2);
    double one[24 * MADE_FORMATS], two[24 * MADE_FORMATS];
    made_table(&x, &table);
    for (int i = 0; i < 400; i++)
        made_random(&x, &table, &seed);
    made_measure(&x, &table, 0);
    const struct candidates *tables[] = {&table};
    assert_ok(refit_costs(&x.menu, x.cost, tables, 1, 8, one, &result, &e), e);
    assert_int_equal(result.n_rows, 256);
    assert_ok(refit_costs(&x.menu, x.cost, tables, 1, 8, two, &result, &e), e);
    assert_memory_equal(one, two, sizeof one);
    /* The same from a table of those rows alone, and not from 256 others. */
    for (int is_near = 1; is_near >= 0; is_near--) {
        struct candidates some;
        bool taken[400] = {false};
        made_table(&x, &some);
        for (int i = 0; i < 256; i++) {
            size_t at = 400;
            for (size_t k = 0; k < 400; k++)
                if (!taken[k] && (at == 400 || (is_near && fabs(table.list[k].bpp - 8) < fabs(table.list[at].bpp - 8))))
                    at = k;
            taken[at] = true;
            assert_non_null(candidates_add(&some, &x.menu, table.list[at].assignment, "some", -1, &e));
        }
        made_measure(&x, &some, 0);
        tables[0] = &some;
        assert_ok(refit_costs(&x.menu, x.cost, tables, 1, 8, two, &result, &e), e);
        assert_int_equal(memcmp(one, two, sizeof one) == 0, is_near);
        candidates_fini(&some);
    }
    candidates_fini(&table);
    made_fini(&x);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(measured_candidates_make_predictions_better),
        cmocka_unit_test(costs_stay_positive_and_missing_ones_missing),
        cmocka_unit_test(a_right_surrogate_is_only_scaled),
        cmocka_unit_test(without_rows_costs_are_as_they_were),
        cmocka_unit_test(many_rows_are_cut_to_those_near_the_centre_and_give_the_same_bits),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
