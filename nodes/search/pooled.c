/* Weights are inverse variances; a measured difference without error decides alone. */
#include "nodes/search/pooled.h"

#include <math.h>

static bool is_known(const struct pooled *p) { return isfinite(p->measured.error) && isfinite(p->predicted.error); }

void pooled_note(struct pooled_spread *s, const struct pooled *p)
{
    if (!is_known(p))
        return;
    double apart = p->measured.mean - p->predicted.mean;
    s->sum += apart * apart - p->measured.error * p->measured.error - p->predicted.error * p->predicted.error;
    s->n++;
}

double pooled_bias(const struct pooled_spread *s) { return s->n > 0 && s->sum > 0 ? sqrt(s->sum / (double)s->n) : 0; }

void pooled_combine(struct pooled *p, double bias)
{
    double own = p->measured.error * p->measured.error, other = p->predicted.error * p->predicted.error + bias * bias;
    p->mean = p->measured.mean;
    p->error = p->measured.error;
    if (!is_known(p) || !(own > 0))
        return;
    double weight = other / (own + other);
    p->mean = weight * p->measured.mean + (1 - weight) * p->predicted.mean;
    p->error = sqrt(weight * own);
}
