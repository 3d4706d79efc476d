/* Weights are inverse variances; a measured difference without error decides alone. */
#include "nodes/search/pooled.h"

#include <math.h>

void pooled_combine(struct pooled *p)
{
    double own = p->measured.error * p->measured.error, other = p->predicted.error * p->predicted.error;
    p->mean = p->measured.mean;
    p->error = p->measured.error;
    if (!isfinite(own) || !isfinite(other) || !(own > 0))
        return;
    double weight = other / (own + other);
    p->mean = weight * p->measured.mean + (1 - weight) * p->predicted.mean;
    p->error = sqrt(weight * own);
}
