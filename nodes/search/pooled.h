#ifndef NODES_SEARCH_POOLED_H
#define NODES_SEARCH_POOLED_H
/* Which of two assignments is better, by all that is known. A measured difference of KL is over the few documents of
 * the selection set; where it is a tie, choosing by it alone chooses the luck of those documents. The probes predict
 * the same difference from other documents, those of their own set, so the sampling errors of the two are independent,
 * and their mean weighted by inverse variances is better than either (Cochran 1954). Predictions leave pairs of units
 * out, too, which is in their error (probe_windows_difference). */
#include "nodes/search/stats.h"

/* Of KL, one assignment minus another, nats per position. */
struct pooled {
    struct stats_difference measured;
    struct stats_difference predicted; /* NaN: not known */
    double mean, error;                /* of both; the measured one's where the other is not known */
};
/* Share of the measured difference in the mean, of those variances; 1 where one is not known or the measured one is 0.
 * With the sums of the variances of several differences it is a share for them all: then of two assignments that are
 * compared with a third, one that is better in both ways is better in the mean, too. */
double pooled_share(double measured, double predicted);
/* Fill mean and error. */
void pooled_combine(struct pooled *p, double share);

#endif
