/* The Pareto filter against its definition on random points with many ties, and its corner cases. */
#include "tests/check.h"

#include <math.h>

#include "nodes/search/pareto.h"
#include "nodes/search/stats.h"

#define MOST 40

static bool beats(const double *x, const double *y, size_t i, size_t j)
{
    if (isnan(x[i]) || isnan(y[i]) || x[i] > x[j] || y[i] > y[j])
        return false;
    return x[i] < x[j] || y[i] < y[j] || i < j;
}

static void it_is_what_the_definition_says(void **state)
{
    (void)state;
    struct err e;
    uint64_t seed = 7;
    for (int round = 0; round < 500; round++) {
        double x[MOST], y[MOST];
        int32_t dominated_by[MOST];
        uint32_t frontier[MOST];
        size_t n = stats_below(&seed, MOST + 1), found, expected = 0;
        for (size_t i = 0; i < n; i++) {
            x[i] = stats_below(&seed, 20) ? (double)stats_below(&seed, 12) : NAN;
            y[i] = stats_below(&seed, 20) ? (double)stats_below(&seed, 12) : NAN;
        }
        assert_ok(pareto_filter(x, y, n, dominated_by, frontier, &found, &e), e);
        for (size_t i = 0; i < n; i++) {
            long by = -1;
            bool takes_part = !isnan(x[i]) && !isnan(y[i]);
            for (size_t j = 0; j < n && takes_part; j++)
                if (j != i && beats(x, y, j, i) &&
                    (by < 0 || y[j] < y[by] || (y[j] == y[by] && beats(x, y, j, (size_t)by))))
                    by = (long)j;
            assert_int_equal(dominated_by[i], by);
            expected += takes_part && by < 0;
        }
        assert_int_equal(found, expected);
        for (size_t i = 0; i < found; i++) {
            assert_int_equal(dominated_by[frontier[i]], -1);
            if (i > 0)
                assert_true(x[frontier[i]] > x[frontier[i - 1]] && y[frontier[i]] < y[frontier[i - 1]]);
        }
    }
}

static void no_points_have_no_frontier(void **state)
{
    (void)state;
    struct err e;
    size_t found = 9;
    assert_ok(pareto_filter(NULL, NULL, 0, NULL, NULL, &found, &e), e);
    assert_int_equal(found, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(it_is_what_the_definition_says),
        cmocka_unit_test(no_points_have_no_frontier),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
