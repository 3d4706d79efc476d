/* Expected gains in hypervolume against sums over many draws, and the staircase against brute force. */
#include "nodes/search/hypervolume.h"

#include <math.h>

#include "nodes/search/stats.h"
#include "tests/check.h"

static double uniform(uint64_t *seed) { return ((double)(stats_random(seed) >> 11) + 0.5) * 0x1p-53; }

static double normal(uint64_t *seed) { return sqrt(-2 * log(uniform(seed))) * cos(2 * M_PI * uniform(seed)); }

/* Height of the staircase at x. */
static double height(const struct staircase *s, double x)
{
    double y = s->y[0];
    for (size_t i = 0; i < s->n && s->x[i] <= x; i++)
        y = s->y[i];
    return y;
}

/* The area that one point adds, by small steps. */
static double area(const struct staircase *s, double x, double y, double high)
{
    double sum = 0, step = (high - x) / 4096;
    for (int i = 0; i < 4096; i++)
        sum += fmax(0, height(s, x + (i + 0.5) * step) - y) * step;
    return sum;
}

static void a_certain_gain_is_the_area(void **state)
{
    (void)state;
    double x[8] = {1, 2, 4, 7}, y[8] = {5, 3, 2, 0.5};
    struct staircase s = {x, y, 4};
    for (double at = 0; at < 8; at += 0.37)
        for (double value = -1; value < 6; value += 0.7)
            assert_true(fabs(hypervolume_gain(&s, at, value, 0, 8) - area(&s, at, value, 8)) < 0.02);
    assert_true(hypervolume_gain(&s, 8, 0, 0, 8) == 0);
    assert_true(hypervolume_gain(&(struct staircase){0}, 1, 0, 1, 8) == 0);
}

static void an_uncertain_gain_is_the_mean_over_draws(void **state)
{
    (void)state;
    double x[8] = {1, 2, 4}, y[8] = {5, 3, 2};
    struct staircase s = {x, y, 3};
    uint64_t seed = 4;
    for (double mean = 0; mean < 5; mean += 1.1) {
        double sum = 0;
        enum { DRAWS = 20000 };
        for (int i = 0; i < DRAWS; i++)
            sum += hypervolume_gain(&s, 1.5, mean + 0.8 * normal(&seed), 0, 6) / DRAWS;
        assert_true(fabs(hypervolume_gain(&s, 1.5, mean, 0.8, 6) - sum) < 0.05);
    }
}

static void insertion_keeps_the_lower_left(void **state)
{
    (void)state;
    enum { N = 60 };
    double x[N + 1], y[N + 1], px[N], py[N];
    struct staircase s = {x, y, 0};
    uint64_t seed = 9;
    for (int i = 0; i < N; i++) {
        px[i] = (double)stats_below(&seed, 20);
        py[i] = (double)stats_below(&seed, 20);
        hypervolume_insert(&s, px[i], py[i]);
        size_t want = 0;
        for (int j = 0; j <= i; j++) {
            bool beaten = false;
            for (int k = 0; k <= i; k++)
                beaten = beaten || (px[k] <= px[j] && py[k] <= py[j] && (px[k] < px[j] || py[k] < py[j] || k < j));
            want += !beaten;
        }
        assert_int_equal(s.n, want);
        for (size_t j = 1; j < s.n; j++)
            assert_true(s.x[j] > s.x[j - 1] && s.y[j] < s.y[j - 1]);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_certain_gain_is_the_area),
        cmocka_unit_test(an_uncertain_gain_is_the_mean_over_draws),
        cmocka_unit_test(insertion_keeps_the_lower_left),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
