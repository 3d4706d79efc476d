/* The refit of surrogate costs: it must help on candidates that it has not seen, and do no harm with little to go
 * by. */
#include "tests/nodes/search/menus.h"

#include "nodes/search/refit.h"

/* Mean square of the relative error of predictions on fresh random candidates, and the share of pairs in the right
 * order. */
static double error_on_fresh(const struct made *x, const double *cost, double *ordered)
{
    struct candidates table;
    double predicted[200], kl[200], sum = 0;
    uint64_t seed = 77;
    made_table(x, &table);
    for (size_t i = 0; i < COUNT(kl); i++) {
        const struct candidate *c = made_random(x, &table, &seed);
        predicted[i] = 0;
        for (int u = 0; u < x->menu.n_units; u++)
            predicted[i] += cost[u * MADE_FORMATS + c->assignment[u]];
        kl[i] = made_kl(x, c->assignment);
        sum += (predicted[i] / kl[i] - 1) * (predicted[i] / kl[i] - 1);
    }
    *ordered = 0;
    for (size_t i = 0; i < COUNT(kl); i++)
        for (size_t j = 0; j < i; j++)
            *ordered += (predicted[i] < predicted[j]) == (kl[i] < kl[j]);
    *ordered /= COUNT(kl) * (COUNT(kl) - 1) / 2.0;
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
    double cost[40 * MADE_FORMATS], before_order, after_order;
    fit(&x, 60, cost, &result);
    assert_int_equal(result.n_rows, 60);
    assert_true(result.error_after < 0.7 * result.error_before);
    double before = error_on_fresh(&x, x.cost, &before_order), after = error_on_fresh(&x, cost, &after_order);
    if (!(after < 0.3 * before && after_order > before_order))
        fail_msg("error %g before, %g after; %g ordered before, %g after", before, after, before_order, after_order);
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

/* A near-lossless candidate: predicted 1e-6, measured 5e-8, of which nothing but rounding is true. Fitted with it and
 * without it, the costs must be the same but for a little. */
static void a_row_at_the_noise_floor_has_no_say(void **state)
{
    (void)state;
    struct err e;
    struct made x;
    struct candidates table;
    struct refit result[2];
    double cost[2][24 * MADE_FORMATS];
    uint64_t seed = 5;
    uint8_t full[24];
    made_init(&x, 24, 3, 9);
    made_table(&x, &table);
    for (int i = 0; i < 40; i++)
        made_random(&x, &table, &seed);
    made_measure(&x, &table, 0);
    x.cost[MADE_FORMATS - 1] = 1e-6;
    const struct candidates *tables[] = {&table};
    assert_ok(refit_costs(&x.menu, x.cost, tables, 1, NAN, cost[0], &result[0], &e), e);
    menu_uniform(&x.menu, MADE_FORMATS - 1, full);
    struct candidate *lossless = candidates_add(&table, &x.menu, full, "uniform", -1, &e);
    assert_non_null(lossless);
    made_measure(&x, &table, 40);
    lossless->kl_mean = 5e-8;
    assert_ok(refit_costs(&x.menu, x.cost, tables, 1, NAN, cost[1], &result[1], &e), e);
    assert_int_equal(result[1].n_rows, 41);
    assert_true(fabs(result[1].error_before / result[0].error_before - 1) < 0.05);
    for (int i = 0; i < 24 * MADE_FORMATS; i++)
        if (x.menu.available[i] && fabs(cost[1][i] - cost[0][i]) > 0.03 * cost[0][i])
            fail_msg("cost %d is %g, without the row %g", i, cost[1][i], cost[0][i]);
    candidates_fini(&table);
    made_fini(&x);
}

static int ascending(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void the_floor_is_a_tenth_of_the_median_and_never_below_rounding(void **state)
{
    (void)state;
    struct err e;
    struct made x;
    struct candidates table;
    struct refit result;
    double cost[10 * MADE_FORMATS], kl[21];
    uint64_t seed = 5;
    made_init(&x, 10, 2, 3);
    made_table(&x, &table);
    for (int i = 0; i < 21; i++)
        made_random(&x, &table, &seed);
    made_measure(&x, &table, 0);
    for (int i = 0; i < 21; i++)
        kl[i] = table.list[i].kl_mean;
    qsort(kl, 21, sizeof *kl, ascending);
    const struct candidates *tables[] = {&table};
    assert_ok(refit_costs(&x.menu, x.cost, tables, 1, NAN, cost, &result, &e), e);
    assert_true(fabs(result.floor - 0.1 * kl[10]) < 1e-12 * kl[10]);
    for (int i = 0; i < 21; i++)
        table.list[i].kl_mean *= 1e-7;
    assert_ok(refit_costs(&x.menu, x.cost, tables, 1, NAN, cost, &result, &e), e);
    assert_true(result.floor == 1e-7);
    candidates_fini(&table);
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
        cmocka_unit_test(a_row_at_the_noise_floor_has_no_say),
        cmocka_unit_test(the_floor_is_a_tenth_of_the_median_and_never_below_rounding),
        cmocka_unit_test(without_rows_costs_are_as_they_were),
        cmocka_unit_test(many_rows_are_cut_to_those_near_the_centre_and_give_the_same_bits),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
