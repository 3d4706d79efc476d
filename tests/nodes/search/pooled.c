/* Pooling a measured and a predicted difference: by hand, and on draws with a known truth. */
#include "nodes/search/pooled.h"

#include "tests/check.h"

#include <math.h>

static double uniform(uint64_t *seed) { return ((double)(stats_random(seed) >> 11) + 0.5) * 0x1p-53; }

static double normal(uint64_t *seed) { return sqrt(-2 * log(uniform(seed))) * cos(2 * M_PI * uniform(seed)); }

static struct stats_difference difference(double mean, double error)
{
    return (struct stats_difference){mean, mean - 2 * error, mean + 2 * error, error, 8};
}

static void weights_are_inverse_variances(void **state)
{
    (void)state;
    struct pooled p = {difference(1, 2), difference(-2, 1), NAN, NAN};
    pooled_combine(&p, pooled_share(4, 1)); /* weights 1/4 and 1 */
    assert_true(fabs(p.mean - (0.25 * 1 - 2) / 1.25) < 1e-15 && fabs(p.error - sqrt(1 / 1.25)) < 1e-15);
    p.predicted.error = 2;
    pooled_combine(&p, pooled_share(4, 4));
    assert_true(fabs(p.mean + 0.5) < 1e-15 && fabs(p.error - sqrt(2)) < 1e-15);
}

static void what_is_not_known_has_no_say(void **state)
{
    (void)state;
    struct pooled p = {difference(1, 2), stats_no_difference, NAN, NAN};
    pooled_combine(&p, pooled_share(4, NAN));
    assert_true(p.mean == 1 && p.error == 2);
    p = (struct pooled){difference(1, 0), difference(-2, 1), NAN, NAN}; /* as measured on all there is */
    pooled_combine(&p, pooled_share(0, 1));
    assert_true(p.mean == 1 && p.error == 0);
    p.measured = (struct stats_difference){1, NAN, NAN, NAN, 1}; /* one document */
    pooled_combine(&p, pooled_share(NAN, 1));
    assert_true(p.mean == 1 && isnan(p.error));
}

/* Of 10 candidates with small true differences the best by both has a lower truth, on average, than the best measured,
 * and than the best predicted. */
static void choosing_by_both_is_better(void **state)
{
    (void)state;
    uint64_t seed = 2;
    double sum[3] = {0};
    for (int trial = 0; trial < 4000; trial++) {
        double truth[10], measured[10], predicted[10];
        size_t lowest = 0, foreseen = 0, chosen;
        for (size_t i = 0; i < 10; i++) {
            truth[i] = normal(&seed);
            measured[i] = truth[i] + 1.5 * normal(&seed);
            predicted[i] = truth[i] + normal(&seed);
            lowest = measured[i] < measured[lowest] ? i : lowest;
            foreseen = predicted[i] < predicted[foreseen] ? i : foreseen;
        }
        double least = 0;
        chosen = lowest;
        for (size_t i = 0; i < 10; i++) {
            struct pooled p = {difference(measured[i] - measured[lowest], 1.5 * sqrt(2)),
                               difference(predicted[i] - predicted[lowest], sqrt(2)), NAN, NAN};
            pooled_combine(&p, pooled_share(4.5, 2)); /* the variances of both differences */
            if (p.mean < least) {
                least = p.mean;
                chosen = i;
            }
        }
        sum[0] += truth[chosen];
        sum[1] += truth[lowest];
        sum[2] += truth[foreseen];
    }
    assert_true(sum[0] < 1.05 * sum[1] && sum[0] < 1.02 * sum[2]); /* sums are negative */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(weights_are_inverse_variances),
        cmocka_unit_test(what_is_not_known_has_no_say),
        cmocka_unit_test(choosing_by_both_is_better),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
