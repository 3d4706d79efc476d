#include "nodes/search/spearman.h"

#include <math.h>
#include <stdlib.h>

#include "engine/base/mem.h"

struct entry {
    double value;
    size_t at;
};

static int by_value(const void *a, const void *b)
{
    const struct entry *x = a, *y = b;
    if (x->value != y->value)
        return x->value < y->value ? -1 : 1;
    return (x->at > y->at) - (x->at < y->at);
}

/* Ranks from 0, less their mean. */
static void rank_values(const double *x, size_t n, struct entry *sorted, double *rank)
{
    for (size_t i = 0; i < n; i++)
        sorted[i] = (struct entry){x[i], i};
    qsort(sorted, n, sizeof *sorted, by_value);
    for (size_t i = 0, end; i < n; i = end) {
        for (end = i + 1; end < n && !(sorted[end].value > sorted[i].value); end++)
            ;
        for (size_t j = i; j < end; j++)
            rank[sorted[j].at] = (double)(i + end - 1) / 2 - (double)(n - 1) / 2;
    }
}

bool spearman(const double *x, const double *y, size_t n, double *out, struct err *e)
{
    struct entry *sorted = NULL;
    double *rank = NULL, xy = 0, xx = 0, yy = 0;
    for (size_t i = 0; i < n; i++)
        if (isnan(x[i]) || isnan(y[i]))
            return err_set(e, ERR_BUG, "a rank correlation of what is not a number (pair %zu)", i);
    bool ok = mem_new(&sorted, n, e) && mem_new(&rank, 2 * n, e);
    if (ok) {
        rank_values(x, n, sorted, rank);
        rank_values(y, n, sorted, rank + n);
        for (size_t i = 0; i < n; i++) {
            xy += rank[i] * rank[n + i];
            xx += rank[i] * rank[i];
            yy += rank[n + i] * rank[n + i];
        }
        *out = n >= 3 && xx > 0 && yy > 0 ? xy / sqrt(xx * yy) : NAN;
    }
    mem_free(rank);
    mem_free(sorted);
    return ok;
}
