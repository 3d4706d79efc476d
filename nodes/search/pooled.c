#include "nodes/search/pooled.h"

#include <math.h>

double pooled_share(double measured, double predicted)
{
    return isfinite(measured) && isfinite(predicted) && measured > 0 ? predicted / (measured + predicted) : 1;
}

void pooled_combine(struct pooled *p, double share)
{
    p->mean = p->measured.mean;
    p->error = p->measured.error;
    if (share == 1)
        return;
    p->mean = share * p->measured.mean + (1 - share) * p->predicted.mean;
    p->error = hypot(share * p->measured.error, (1 - share) * p->predicted.error);
}
