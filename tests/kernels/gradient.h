#ifndef TESTS_KERNELS_GRADIENT_H
#define TESTS_KERNELS_GRADIENT_H
/* Gradients by central differences in f64, and their comparison with f32 ones. */
#include "tests/kernels/variants.h"

/* y = f(x) of a case, in f64. */
typedef void gradient_forward(const void *context, const double *x, double *y);

static inline double *gradient_wide(const float *x, int64_t n)
{
    double *y = malloc((size_t)n * sizeof *y + (n == 0));
    assert_non_null(y);
    for (int64_t i = 0; i < n; i++)
        y[i] = (double)x[i];
    return y;
}

static inline double gradient_loss(gradient_forward *f, const void *context, const double *x, const float *dy,
                                   double *y, int64_t n_y)
{
    double sum = 0.0;
    f(context, x, y);
    for (int64_t i = 0; i < n_y; i++)
        sum += y[i] * (double)dy[i];
    return sum;
}

/* J^T dy at x [n_x], with steps of 1e-5: errors of 1e-10 of the function's third derivative and 1e-11 of its value. To
 * be freed. */
static inline double *gradient_differences(gradient_forward *f, const void *context, const float *x, int64_t n_x,
                                           const float *dy, int64_t n_y)
{
    const double step = 1e-5;
    double *at = gradient_wide(x, n_x), *y = gradient_wide(dy, n_y), *out = gradient_wide(x, n_x);
    for (int64_t i = 0; i < n_x; i++) {
        double here = at[i], low, high;
        at[i] = here - step;
        low = gradient_loss(f, context, at, dy, y, n_y);
        at[i] = here + step;
        high = gradient_loss(f, context, at, dy, y, n_y);
        at[i] = here;
        out[i] = (high - low) / (2.0 * step);
    }
    free(at), free(y);
    return out;
}

/* Every element within `bound` of the largest of `want`. */
static inline void assert_gradient(const double *want, const float *got, int64_t n, double bound, const char *what)
{
    double most = 0.0;
    for (int64_t i = 0; i < n; i++)
        most = fmax(most, fabs(want[i]));
    for (int64_t i = 0; i < n; i++)
        if (!(fabs((double)got[i] - want[i]) <= bound * most))
            fail_msg("%s: element %lld of %lld is %.9g, expected %.9g within %.3g", what, (long long)i, (long long)n,
                     (double)got[i], want[i], bound * most);
}

#endif
