#include "nodes/search/knee.h"

#include <math.h>

#include "engine/base/mem.h"

/* d[i] of the normalised curve; n >= 2. The ends are set, not computed, so that they are 0 whatever the rounding. */
static void difference_curve(const double *x, const double *y, size_t n, bool is_log, double *d)
{
    double first = is_log ? log(y[0]) : y[0], last = is_log ? log(y[n - 1]) : y[n - 1];
    d[0] = d[n - 1] = 0;
    for (size_t i = 1; i + 1 < n; i++) {
        double value = is_log ? log(y[i]) : y[i];
        d[i] = 1 - (value - last) / (first - last) - (x[i] - x[0]) / (x[n - 1] - x[0]);
    }
}

/* Does d fall below the threshold of the local maximum at i before it rises again, to the next one? */
static bool is_knee(const double *d, size_t n, size_t i, double drop)
{
    for (size_t j = i + 1; j < n && d[j] <= d[j - 1]; j++)
        if (d[j] < d[i] - drop)
            return true;
    return false;
}

bool knee_find(const double *x, const double *y, size_t n, const struct knee_options *o, struct knee *out,
               struct err *e)
{
    while (o->is_log && n > 0 && !(y[n - 1] > 0)) /* y falls, so what is not positive is at the end */
        n--;
    if (n < 2) {
        *out = (struct knee){.at = 0};
        return true;
    }
    double *d;
    if (!mem_new(&d, n, e))
        return false;
    difference_curve(x, y, n, o->is_log, d);
    double drop = o->sensitivity / (double)(n - 1); /* the mean step of an axis that is normalised to 0..1 */
    struct knee best = {.at = 0};
    for (size_t i = 0; i < n; i++) {
        bool is_maximum = i > 0 && i + 1 < n && d[i] > 0 && d[i] > d[i - 1] && d[i] >= d[i + 1];
        bool found = is_maximum && is_knee(d, n, i, drop);
        if (found > best.is_found || (found == best.is_found && d[i] >= best.difference))
            best = (struct knee){.at = i, .is_found = found, .difference = d[i]};
    }
    *out = best;
    mem_free(d);
    return true;
}
