#ifndef NODES_SEARCH_ARCHIVE_H
#define NODES_SEARCH_ARCHIVE_H
/* The Pareto archive: all nondominated (bytes, cost) sums of one format per unit, for a cost that is a sum over units,
 * all budgets at once, in one pass over the units, with the assignment behind each point.
 *
 * Exact while the archive of a prefix of the units stays below `limit` points. Beyond that, or when epsilon > 0, points
 * are left out, never changed: every point that is returned is the true size and cost of its assignment. What is then
 * guaranteed is said in struct archive_quality. */
#include <stdint.h>

#include "engine/base/err.h"

/* What is to be chosen. Rows are units, columns formats; NaN in `cost` marks a format that the unit cannot have. Every
 * unit has a format, costs are finite and not negative, n_formats <= 255. Borrowed until archive_free. */
struct archive_problem {
    int n_units, n_formats;
    const uint64_t *bytes; /* [unit, format] */
    const double *cost;    /* [unit, format] */
};

struct archive_options {
    double epsilon; /* >= 0; 0: exact as far as `limit` allows */
    size_t limit;   /* most points of an exact archive; 0: 200,000 */
};

struct archive_point {
    uint64_t bytes;
    double cost; /* summed in the order of the units (points of the hull, see archive.c: to a relative 1e-9) */
};

struct archive_quality {
    bool is_exact;  /* the points are all nondominated sums */
    bool is_capped; /* the limit was met, and archives were thinned to `kept` points */
    size_t kept;    /* 0 when not capped */
    double epsilon; /* for every assignment there is a point of at most its bytes and at most (1 + epsilon) times its
                       cost: the option, 0 when exact; NaN when capped, since no factor is promised then */
    double gap;     /* for no budget is the cost of the best point that fits above that of the best assignment that fits
                       by more than gap * (cost of the first point): the lesser of what the bound of the linear
                       relaxation says and of epsilon, which bounds it as no budget's best costs more than the first
                       point; 0 when exact */
};

struct archive;

bool archive_new(struct archive **out, const struct archive_problem *p, const struct archive_options *o,
                 struct err *e) ERR_CHECK;
void archive_free(struct archive *a); /* NULL is fine */
/* Bytes that it takes at most: a merge of all options at the limit, and the archives kept for the way back. */
uint64_t archive_memory(int n_units, int n_formats, size_t limit);
/* The points, bytes ascending and cost falling, both strictly. Borrowed from the archive. */
const struct archive_point *archive_points(const struct archive *a, size_t *n);
const struct archive_quality *archive_quality(const struct archive *a);
/* The assignments of n points (indices in any order, repeated or not) into out [n, unit]. They are found together in
 * one walk back through the units, so ask for many at once. Of assignments with equal sums the kept one has the fewer
 * bytes in the last unit where they differ. */
bool archive_assignments(const struct archive *a, const size_t *points, size_t n, uint8_t *out,
                         struct err *e) ERR_CHECK;

#endif
