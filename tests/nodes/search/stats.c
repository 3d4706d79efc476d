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

/* With one degree of freedom it is Cauchy's: P(T > t) = atan(1 / t) / pi. */
static void tails_are_those_of_the_quantiles_however_far_out(void **state)
{
    (void)state;
    static const double tails[] = {0.4, 0.025, 1e-3, 1e-6, 1e-12};
    for (size_t i = 0; i < COUNT(tails); i++) {
        double cauchy = 1 / tan(M_PI * tails[i]);
        assert_true(fabs(-stats_student(tails[i], 1) - cauchy) < 1e-9 * cauchy);
        for (double freedom = 1; freedom < 200; freedom *= 3) {
            double t = -stats_student(tails[i], freedom);
            if (fabs(stats_student_tail(t, freedom) - tails[i]) > 1e-9 * tails[i])
                fail_msg("P(t(%g) > %g) = %.12g, expected %g", freedom, t, stats_student_tail(t, freedom), tails[i]);
            assert_true(fabs(stats_student_tail(-t, freedom) - (1 - tails[i])) < 1e-9);
        }
    }
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

static void a_positive_mean_has_its_interval_on_the_scale_of_the_logarithm(void **state)
{
    (void)state;
    struct err e;
    static const double value[] = {2, 4, 6, 8}, weight[] = {1, 1, 1, 1}, none[] = {0, 0, 0, 0};
    static const uint32_t own[] = {0, 1, 2, 3}, one[] = {5, 5, 5, 5};
    double low, high, half = 3.182446305 * 2.5819888975 / 2;
    assert_ok(stats_positive_interval(value, weight, own, 4, 0.95, &low, &high, &e), e);
    assert_true(fabs(low - 5 * exp(-half / 5)) < 1e-8 && fabs(high - 5 * exp(half / 5)) < 1e-7);
    assert_ok(stats_positive_interval(none, weight, own, 4, 0.95, &low, &high, &e), e);
    assert_true(low == 0 && high == 0);
    assert_ok(stats_positive_interval(value, weight, one, 4, 0.95, &low, &high, &e), e);
    assert_true(isnan(low) && isnan(high));
}

static void a_paired_difference_is_of_the_windows_that_both_have(void **state)
{
    (void)state;
    struct err e;
    static const double a[] = {5, 1, 2, NAN, 7, 9, 4}, b[] = {4, 1, NAN, 8, 5, 5, NAN};
    static const uint32_t positions[] = {10, 20, 5, 5, 10, 40, 7}, document[] = {3, 3, 3, 1, 1, 8, 9};
    /* Documents 3, 1 and 8 with sums 10, 20 and 160 over 30, 10 and 40 positions; document 9 has nothing. */
    static const double value[] = {10, 20, 160}, weight[] = {30, 10, 40};
    static const uint32_t own[] = {0, 1, 2};
    struct stats_difference d, same;
    double low, high;
    assert_ok(stats_paired_interval(a, b, positions, document, 7, 0.9, &d, &e) &&
              stats_cluster_interval(value, weight, own, 3, 0.9, &low, &high, &e), e);
    assert_int_equal(d.documents, 3);
    assert_true(fabs(d.mean - 190.0 / 80) < 1e-12 && fabs(d.low - low) < 1e-9 && fabs(d.high - high) < 1e-9);
    assert_true(fabs((d.high - d.low) / 2 - 2.919985580 * d.error) < 1e-8); /* t(2) at 0.95 */
    assert_ok(stats_paired_interval(b, a, positions, document, 7, 0.9, &same, &e), e);
    assert_true(same.mean == -d.mean && same.low == -d.high && same.high == -d.low);
    assert_ok(stats_paired_interval(a, a, positions, document, 7, 0.9, &same, &e), e);
    assert_true(same.mean == 0 && same.low == 0 && same.high == 0);
    assert_ok(stats_paired_interval(a, b, positions, document, 2, 0.9, &d, &e), e); /* one document */
    assert_true(fabs(d.mean - 10.0 / 30) < 1e-12 && isnan(d.low) && isnan(d.high) && d.documents == 1);
    assert_ok(stats_paired_interval(a + 2, b + 2, positions, document, 2, 0.9, &d, &e), e); /* nothing in common */
    assert_true(isnan(d.mean) && isnan(d.low) && d.documents == 0);
}

static double normal(uint64_t *s)
{
    double sum = -6;
    for (int i = 0; i < 12; i++)
        sum += (double)stats_random(s) * 0x1p-64;
    return sum;
}

/* Log-normal documents, as heavy as measured (0.26) and twice as heavy, and the difference of two candidates that agree
 * on which documents are hard. tests/bench/coverage.c has the whole table. */
static void intervals_cover_when_documents_are_skewed(void **state)
{
    (void)state;
    enum { ROUNDS = 2000, MOST = 32 };
    static const struct {
        double spread, least, most; /* share of the intervals that must cover */
    } cases[] = {{0.26, 0.93, 0.97}, {0.52, 0.92, 0.97}};
    uint64_t s = 17;
    for (size_t k = 0; k < COUNT(cases); k++)
        for (uint32_t n = 4; n <= MOST; n *= 2) {
            int covered = 0, paired = 0;
            for (int round = 0; round < ROUNDS; round++) {
                struct err e;
                double a[MOST], b[MOST], weight[MOST], low, high, spread = cases[k].spread;
                uint32_t positions[MOST], document[MOST];
                struct stats_difference d;
                for (uint32_t i = 0; i < n; i++) {
                    double shared = normal(&s);
                    a[i] = exp(spread * (0.9 * shared + 0.43589 * normal(&s)) - spread * spread / 2);
                    b[i] = exp(spread * (0.9 * shared + 0.43589 * normal(&s)) - spread * spread / 2);
                    weight[i] = positions[i] = 255;
                    document[i] = i;
                }
                assert_ok(stats_paired_interval(a, b, positions, document, n, 0.95, &d, &e), e);
                paired += d.low <= 0 && 0 <= d.high;
                for (uint32_t i = 0; i < n; i++)
                    a[i] *= weight[i];
                assert_ok(stats_positive_interval(a, weight, document, n, 0.95, &low, &high, &e), e);
                covered += low <= 1 && 1 <= high;
            }
            double least = cases[k].least * ROUNDS, most = cases[k].most * ROUNDS;
            if (covered < least || covered > most || paired < 0.93 * ROUNDS || paired > 0.97 * ROUNDS)
                fail_msg("spread %g, %u documents: %d and %d of %d are covered", cases[k].spread, n, covered, paired,
                         ROUNDS);
        }
}

static void an_interval_as_text(void **state)
{
    (void)state;
    char text[STATS_TEXT];
    assert_string_equal(stats_interval_text(0.012345, 0.5, 3, text), "0.0123 to 0.5");
    assert_string_equal(stats_interval_text(-2e-9, 1, 4, text), "-2e-09 to 1");
    assert_string_equal(stats_interval_text(NAN, NAN, 4, text), "unknown: one document");
    assert_true(stats_is_tie(&(struct stats_difference){.low = -1, .high = 2}));
    assert_true(stats_is_tie(&(struct stats_difference){.low = 0, .high = 0}));
    assert_false(stats_is_tie(&(struct stats_difference){.low = 1e-9, .high = 2}));
    assert_false(stats_is_tie(&stats_no_difference));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_sequence_is_splitmix64),
        cmocka_unit_test(draws_below_a_bound_are_even),
        cmocka_unit_test(documents_are_numbered_as_they_come),
        cmocka_unit_test(a_resample_draws_as_many_as_there_are_and_again_the_same),
        cmocka_unit_test(students_t_agrees_with_the_tables),
        cmocka_unit_test(tails_are_those_of_the_quantiles_however_far_out),
        cmocka_unit_test(windows_of_their_own_documents_give_the_interval_of_a_mean),
        cmocka_unit_test(a_positive_mean_has_its_interval_on_the_scale_of_the_logarithm),
        cmocka_unit_test(a_paired_difference_is_of_the_windows_that_both_have),
        cmocka_unit_test(intervals_over_documents_cover_as_they_say),
        cmocka_unit_test(intervals_cover_when_documents_are_skewed),
        cmocka_unit_test(an_interval_as_text),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
