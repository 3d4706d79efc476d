#include "nodes/search/pareto.h"

#include <math.h>
#include <stdlib.h>

#include "engine/base/mem.h"

struct point {
    double x, y;
    uint32_t at;
};

static int by_place(const void *a, const void *b)
{
    const struct point *p = a, *q = b;
    if (p->x != q->x)
        return p->x < q->x ? -1 : 1;
    if (p->y != q->y)
        return p->y < q->y ? -1 : 1;
    return (p->at > q->at) - (p->at < q->at);
}

bool pareto_filter(const double *x, const double *y, size_t n, int32_t *dominated_by, uint32_t *frontier,
                   size_t *n_frontier, struct err *e)
{
    struct point *points;
    size_t taking_part = 0, found = 0;
    if (!mem_new(&points, n, e))
        return false;
    for (size_t i = 0; i < n; i++) {
        dominated_by[i] = -1;
        if (!isnan(x[i]) && !isnan(y[i]))
            points[taking_part++] = (struct point){x[i], y[i], (uint32_t)i};
    }
    qsort(points, taking_part, sizeof *points, by_place);
    /* Left to right: the last point of the frontier so far has the lowest y of all to the left. */
    for (size_t i = 0; i < taking_part; i++) {
        if (found > 0 && y[frontier[found - 1]] <= points[i].y)
            dominated_by[points[i].at] = (int32_t)frontier[found - 1];
        else
            frontier[found++] = points[i].at;
    }
    *n_frontier = found;
    mem_free(points);
    return true;
}
