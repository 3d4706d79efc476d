/* Statistics against published values, by hand, and by simulation. */
#include "tests/check.h"

#include <math.h>

#include "nodes/search/stats.h"

static void the_sequence_is_splitmix64(void **state)
{
    (void)state;
    /* First outputs for seed 1234567 of the authors' reference code. */
    static const uint64_t expected[] = {6457827717110365317u, 3203168211198807973u, 9817491932198370423u,
                                        4593380528125082431u, 16408922859458223821u};
    uint64_t s = 1234567;
    for (size_t i = 0; i < COUNT(expected); i++)
        assert_true(stats_random(&s) == expected[i]);
}

static void draws_below_a_bound_are_even(void **state)
{
    (void)state;
    uint64_t s = 1;
    int counts[7] = {0};
    for (int i = 0; i < 70000; i++)
        counts[stats_below(&s, 7)]++;
    for (int i = 0; i < 7; i++)
        assert_in_range(counts[i], 9600, 10400); /* 10,000 +- 4.3 standard deviations */
}

static void documents_are_numbered_as_they_come(void **state)
{
    (void)state;
    struct err e;
    static const uint32_t document[] = {7, 7, 3, 900, 3, 7, 0}, expected[] = {0, 0, 1, 2, 1, 0, 3};
    uint32_t index[7], n;
    assert_ok(stats_documents(document, 7, index, &n, &e), e);
    assert_int_equal(n, 4);
    assert_memory_equal(index, expected, sizeof expected);
}

static void a_resample_draws_as_many_as_there_are_and_again_the_same(void **state)
{
    (void)state;
    uint64_t a = 42, b = 42, c = 43;
    uint32_t one[50], two[50], other[50], sum = 0;
    for (int i = 0; i < 100; i++) {
        stats_resample(&a, one, 50);
        stats_resample(&b, two, 50);
        stats_resample(&c, other, 50);
        assert_memory_equal(one, two, sizeof one);
        assert_memory_not_equal(one, other, sizeof one);
        sum = 0;
        for (int d = 0; d < 50; d++)
            sum += one[d];
        assert_int_equal(sum, 50);
    }
}

static void students_t_agrees_with_the_tables(void **state)
{
    (void)state;
    static const struct {
        double q, freedom, expected;
    } cases[] = {{0.975, 1, 12.706204736}, {0.975, 2, 4.302652730}, {0.975, 10, 2.228138852}, {0.95, 5, 2.015048373},
                 {0.995, 30, 2.749995654}, {0.975, 1000, 1.962339081}, {0.025, 10, -2.228138852}, {0.5, 3, 0}};
    for (size_t i = 0; i < COUNT(cases); i++)
        if (fabs(stats_student(cases[i].q, cases[i].freedom) - cases[i].expected) > 1e-8)
            fail_msg("t(%g, %g) = %.10g, expected %.10g", cases[i].q, cases[i].freedom,
                     stats_student(cases[i].q, cases[i].freedom), cases[i].expected);
}

static void windows_of_their_own_documents_give_the_interval_of_a_mean(void **state)
{
    (void)state;
    struct err e;
    /* Mean 5, standard deviation 2.581989, t(9) = 2.262157: half width 2.262157 * 2.581989 / sqrt(10)... with n = 4 */
    static const double value[] = {2, 4, 6, 8}, weight[] = {1, 1, 1, 1};
    static const uint32_t own[] = {0, 1, 2, 3}, one[] = {5, 5, 5, 5};
    double low, high, half = 3.182446305 * 2.5819888975 / 2;
    assert_ok(stats_cluster_interval(value, weight, own, 4, 0.95, &low, &high, &e), e);
    assert_true(fabs(low - (5 - half)) < 1e-8 && fabs(high - (5 + half)) < 1e-8);
    assert_ok(stats_cluster_interval(value, weight, one, 4, 0.95, &low, &high, &e), e);
    assert_true(isnan(low) && isnan(high));
}

/* Windows of a document share its level: an interval that took windows as independent would miss far too often. */
static void intervals_over_documents_cover_as_they_say(void **state)
{
    (void)state;
    struct err e;
    uint64_t s = 11;
    int covered = 0;
    for (int round = 0; round < 2000; round++) {
        double value[64], weight[64], low, high;
        uint32_t document[64];
        for (uint32_t w = 0; w < 64; w++) {
            static double level;
            if (w % 4 == 0) {
                level = 0;
                for (int k = 0; k < 12; k++)
                    level += (double)stats_random(&s) * 0x1p-64 - 0.5;
            }
            document[w] = w / 4;
            weight[w] = 10 + (double)(w % 3);
            value[w] = weight[w] * (3 + level + (double)stats_random(&s) * 0x1p-64 - 0.5);
        }
        assert_ok(stats_cluster_interval(value, weight, document, 64, 0.95, &low, &high, &e), e);
        covered += low <= 3 && 3 <= high;
    }
    assert_in_range(covered, 1860, 1940); /* 1900 +- 4 standard deviations */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_sequence_is_splitmix64),
        cmocka_unit_test(draws_below_a_bound_are_even),
        cmocka_unit_test(documents_are_numbered_as_they_come),
        cmocka_unit_test(a_resample_draws_as_many_as_there_are_and_again_the_same),
        cmocka_unit_test(students_t_agrees_with_the_tables),
        cmocka_unit_test(windows_of_their_own_documents_give_the_interval_of_a_mean),
        cmocka_unit_test(intervals_over_documents_cover_as_they_say),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
