/* Kneedle on the example of its paper, on curves whose knee is known by construction, and on sets that have none. */
#include "tests/check.h"

#include <math.h>

#include "nodes/search/knee.h"

static struct knee find(const double *x, const double *y, size_t n, double sensitivity, bool is_log)
{
    struct err e;
    struct knee k;
    assert_ok(knee_find(x, y, n, &(struct knee_options){sensitivity, is_log}, &k, &e), e);
    return k;
}

/* Figure 2 of the paper: y = -1 / (x + 0.1) + 5 at ten points of 0..1, knee at x = 0.22; upside down, since ours
 * fall. */
static void paper_curve(double *x, double *y)
{
    for (int i = 0; i < 10; i++) {
        x[i] = i / 9.0;
        y[i] = 1 / (x[i] + 0.1);
    }
}

static void the_example_of_the_paper_has_its_knee_at_0_22(void **state)
{
    (void)state;
    double x[10], y[10];
    paper_curve(x, y);
    struct knee k = find(x, y, 10, 1, false);
    assert_true(k.is_found);
    assert_int_equal(k.at, 2);
    assert_true(fabs(x[k.at] - 0.22) < 0.005);
    /* 1 - (1/(2/9 + 0.1) - 1/1.1) / (10 - 1/1.1) - 2/9 */
    assert_true(fabs(k.difference - 0.5363985) < 1e-7);
}

static void the_scale_of_the_axes_does_not_matter(void **state)
{
    (void)state;
    double x[10], y[10];
    paper_curve(x, y);
    for (int i = 0; i < 10; i++) {
        x[i] = 4.5 + 11.5 * x[i];
        y[i] = 1e-4 * y[i] + 3;
    }
    assert_int_equal(find(x, y, 10, 1, false).at, 2);
}

static void a_sensitivity_beyond_the_curve_finds_no_knee_but_gives_the_farthest_point(void **state)
{
    (void)state;
    double x[10], y[10];
    paper_curve(x, y);
    /* d falls from 0.536 to 0, and a threshold of 0.536 - S / 9 is passed while S < 4.83 */
    assert_true(find(x, y, 10, 4.8, false).is_found);
    struct knee k = find(x, y, 10, 4.9, false);
    assert_false(k.is_found);
    assert_int_equal(k.at, 2);
}

static void of_two_knees_the_one_farther_from_the_line_wins(void **state)
{
    (void)state;
    /* d = 0, 0.375, 0.25, 0.125, 0.55, 0.3, 0: knees at 1 and 4 */
    double x[] = {0, 0.125, 0.25, 0.375, 0.4, 0.7, 1}, y[] = {1, 0.5, 0.499, 0.49, 0.05, 0.001, 0};
    struct knee k = find(x, y, 7, 0.5, false);
    assert_true(k.is_found);
    assert_int_equal(k.at, 4);
}

static void a_corner_is_found_on_a_logarithmic_scale(void **state)
{
    (void)state;
    double x[9], y[9]; /* log10 y: 0, -2, -4, then -4.1, -4.2, ...: the corner is at 2; linear y says 1 */
    for (int i = 0; i < 9; i++) {
        x[i] = i;
        y[i] = pow(10, i <= 2 ? -2.0 * i : -4 - 0.1 * (i - 2));
    }
    assert_int_equal(find(x, y, 9, 1, true).at, 2);
    assert_int_equal(find(x, y, 9, 1, false).at, 1);
}

static void the_reference_itself_is_not_on_a_logarithmic_curve(void **state)
{
    (void)state;
    double x[] = {1, 2, 3, 4, 5}, y[] = {1, 0.01, 0.008, 0.006, 0};
    assert_int_equal(find(x, y, 5, 1, true).at, 1);
    double zero[] = {0};
    assert_int_equal(find(x, zero, 1, 1, true).at, 0);
}

/* A frontier that was measured on a model of a million parameters (bpp, KL). Its last point is the reference itself,
 * with a KL of nothing but rounding: whatever that is, the knee on linear axes is the same, also without the point. On
 * a logarithmic axis it decides. */
static void a_point_at_the_noise_floor_does_not_move_the_knee_of_a_linear_scale(void **state)
{
    (void)state;
    double x[] = {4.5012, 5.2764, 6.0271, 6.7758, 7.1269, 7.4268, 7.7690, 7.9445, 8.1201, 8.5334, 9.1489, 9.8378,
                  10.6111, 11.3689, 12.1956, 12.9533, 13.7111, 14.4689, 15.2267, 16};
    double y[] = {0.0386, 0.0301, 0.0209, 0.0130, 0.0106, 0.00931, 0.00848, 0.00696, 0.00603, 0.00523, 0.00518, 0.00459,
                  0.00393, 0.00318, 0.00177, 0.00136, 0.000871, 0.000739, 0.000382, 0};
    static const double floors[] = {0, 5e-10, 5e-8, 1e-6, 1e-4};
    for (size_t i = 0; i < COUNT(floors); i++) {
        y[19] = floors[i];
        struct knee k = find(x, y, 20, 1, false);
        assert_true(k.is_found);
        assert_int_equal(k.at, 8);
    }
    assert_int_equal(find(x, y, 19, 1, false).at, 8);
    y[19] = 5e-8;
    assert_int_not_equal(find(x, y, 20, 1, true).at, find(x, y, 19, 1, true).at);
}

/* Above the line between the ends no point is where more bytes stop paying, however it bulges. */
static void a_bulge_above_the_line_is_no_knee(void **state)
{
    (void)state;
    double x[] = {0, 0.25, 0.5, 0.75, 1}, y[] = {1, 0.95, 0.55, 0.45, 0}; /* d = 0, -0.2, -0.05, -0.2, 0 */
    struct knee k = find(x, y, 5, 0.5, false);
    assert_false(k.is_found);
    assert_int_equal(k.at, 4);
    assert_true(k.difference == 0);
    y[2] = 0.45; /* the same bulge, 0.05 below the line */
    y[3] = 0.44;
    k = find(x, y, 5, 0.5, false);
    assert_true(k.is_found);
    assert_int_equal(k.at, 2);
}

static void small_and_concave_sets_have_a_defined_knee(void **state)
{
    (void)state;
    double x[] = {1, 2, 3, 4, 5}, y[] = {9, 5, 2, 1}, concave[] = {9, 8.9, 8, 1}, straight[] = {5, 4, 3, 2, 1};
    static const bool scales[] = {false, true};
    for (int i = 0; i < 2; i++) {
        struct knee one = find(x, y, 1, 1, scales[i]), two = find(x, y, 2, 1, scales[i]);
        assert_int_equal(one.at, 0);
        assert_false(one.is_found);
        assert_int_equal(two.at, 1);
        assert_false(two.is_found);
        assert_int_equal(find(x, concave, 4, 1, scales[i]).at, 3);
    }
    assert_int_equal(find(x, straight, 5, 0, false).at, 4);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_example_of_the_paper_has_its_knee_at_0_22),
        cmocka_unit_test(the_scale_of_the_axes_does_not_matter),
        cmocka_unit_test(a_sensitivity_beyond_the_curve_finds_no_knee_but_gives_the_farthest_point),
        cmocka_unit_test(of_two_knees_the_one_farther_from_the_line_wins),
        cmocka_unit_test(a_corner_is_found_on_a_logarithmic_scale),
        cmocka_unit_test(the_reference_itself_is_not_on_a_logarithmic_curve),
        cmocka_unit_test(a_point_at_the_noise_floor_does_not_move_the_knee_of_a_linear_scale),
        cmocka_unit_test(a_bulge_above_the_line_is_no_knee),
        cmocka_unit_test(small_and_concave_sets_have_a_defined_knee),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
