#include "nodes/search/hypervolume.h"

#include <math.h>
#include <string.h>

/* E[max(0, d - Z)] for Z normal around 0. */
static double expected_gain(double d, double deviation)
{
    if (!(deviation > 0))
        return d > 0 ? d : 0;
    double z = d / deviation;
    return d * 0.5 * erfc(-z * M_SQRT1_2) + deviation * exp(-0.5 * z * z) * 0.5 * M_2_SQRTPI * M_SQRT1_2;
}

double hypervolume_gain(const struct staircase *s, double x, double mean, double deviation, double high)
{
    double sum = 0;
    for (size_t i = 0; i < s->n; i++) {
        double from = i == 0 || s->x[i] < x ? x : s->x[i], to = i + 1 < s->n && s->x[i + 1] < high ? s->x[i + 1] : high;
        if (to > from)
            sum += (to - from) * expected_gain(s->y[i] - mean, deviation);
    }
    return sum;
}

void hypervolume_insert(struct staircase *s, double x, double y)
{
    size_t at = 0, end;
    while (at < s->n && s->x[at] < x)
        at++;
    if ((at > 0 && s->y[at - 1] <= y) || (at < s->n && s->x[at] == x && s->y[at] <= y))
        return;
    for (end = at; end < s->n && s->y[end] >= y; end++)
        ;
    memmove(s->x + at + 1, s->x + end, (s->n - end) * sizeof *s->x);
    memmove(s->y + at + 1, s->y + end, (s->n - end) * sizeof *s->y);
    s->x[at] = x;
    s->y[at] = y;
    s->n = at + 1 + (s->n - end);
}
