#ifndef NODES_SEARCH_POOLED_H
#define NODES_SEARCH_POOLED_H
/* Which of two assignments is better, by all that is known. A measured difference of KL is over the few documents of
 * the selection set; where it is a tie, choosing by it alone chooses the luck of those documents. The probes predict
 * the same difference from other documents, those of their own set, so the sampling errors of the two are independent,
 * and their mean weighted by inverse variances is better than either (Cochran 1954). Predictions are wrong in other
 * ways, too: they are of second order and leave pairs out. How wrong, is what they and the measured differences
 * disagree by beyond their standard errors, as in a meta-analysis with random effects (DerSimonian and Laird 1986),
 * all of it taken to be the predictions' error. */
#include <stdbool.h>
#include <stddef.h>

#include "nodes/search/stats.h"

/* Of KL, one assignment minus another, nats per position. */
struct pooled {
    struct stats_difference measured;
    struct stats_difference predicted; /* NaN: not known */
    double mean, error;                /* of both; the measured one's where the other is not known */
};

/* What the predictions' own error in a difference is estimated from; {0}: nothing yet. Differences from a base that was
 * chosen for its low KL all contain its luck, and belong here only where there are no others. */
struct pooled_spread {
    size_t n;
    double sum; /* of (measured - predicted)^2 less both squared standard errors */
};
/* Take in a difference of which both are known; others are left out. */
void pooled_note(struct pooled_spread *s, const struct pooled *p);
/* Its standard deviation, nats: the root of the mean, 0 where that is not positive. */
double pooled_bias(const struct pooled_spread *s);
/* Fill mean and error. */
void pooled_combine(struct pooled *p, double bias);

#endif
