/* Rank correlation by definition: against counted ranks, and on values known by hand. */
#include "nodes/search/spearman.h"

#include <math.h>

#include "nodes/search/stats.h"
#include "tests/check.h"

static double rank_of(const double *x, size_t n, size_t i)
{
    double rank = 0;
    for (size_t j = 0; j < n; j++)
        rank += x[j] < x[i] ? 1 : x[j] == x[i] ? 0.5 : 0;
    return rank;
}

static double by_definition(const double *x, const double *y, size_t n)
{
    double sx = 0, sy = 0, xy = 0, xx = 0, yy = 0;
    for (size_t i = 0; i < n; i++) {
        sx += rank_of(x, n, i) / (double)n;
        sy += rank_of(y, n, i) / (double)n;
    }
    for (size_t i = 0; i < n; i++) {
        double a = rank_of(x, n, i) - sx, b = rank_of(y, n, i) - sy;
        xy += a * b;
        xx += a * a;
        yy += b * b;
    }
    return xy / sqrt(xx * yy);
}

static void it_is_the_correlation_of_ranks(void **state)
{
    (void)state;
    uint64_t seed = 3;
    double x[50], y[50], got;
    struct err e;
    for (size_t n = 3; n < 50; n++) {
        for (size_t i = 0; i < n; i++) {
            x[i] = (double)stats_below(&seed, 12); /* ties */
            y[i] = x[i] + (double)stats_below(&seed, 15);
        }
        x[0] = -1;
        y[1] = -1;
        assert_ok(spearman(x, y, n, &got, &e), e);
        assert_true(fabs(got - by_definition(x, y, n)) < 1e-12);
    }
}

static void ends_and_edges(void **state)
{
    (void)state;
    struct err e;
    double got, up[] = {1, 2, 30, 400}, down[] = {9, 3, 2, -5}, flat[] = {1, 1, 1, 1}, none[] = {1, NAN, 2, 3};
    assert_ok(spearman(up, up, 4, &got, &e), e);
    assert_true(fabs(got - 1) < 1e-15);
    assert_ok(spearman(up, down, 4, &got, &e), e);
    assert_true(fabs(got + 1) < 1e-15);
    assert_ok(spearman(up, flat, 4, &got, &e), e);
    assert_true(isnan(got));
    assert_ok(spearman(up, up, 2, &got, &e), e);
    assert_true(isnan(got));
    assert_err(spearman(up, none, 4, &got, &e), e, ERR_BUG, "pair 1");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(it_is_the_correlation_of_ranks),
        cmocka_unit_test(ends_and_edges),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
