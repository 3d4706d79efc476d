#ifndef NODES_SEARCH_POOLED_H
#define NODES_SEARCH_POOLED_H
/* Which of two assignments is better, by all that is known. A measured difference of KL is over the few documents of
 * the selection set; where it is a tie, choosing by it alone chooses the luck of those documents. The probes predict
 * the same difference from other documents, those of the calibration set, so the two are independent, and their mean
 * weighted by inverse variances is better than either (Cochran 1954). Predictions are wrong in other ways, too: they
 * are of second order and leave pairs out. How wrong, is estimated from many differences from one base, as in a
 * meta-analysis with random effects (DerSimonian and Laird 1986), all of it taken to be the predictions' error.
 *
 * Measured less predicted, such differences all contain the luck of the base, which is great where the base was chosen
 * for its low KL. So it is their scatter about their mean that counts, and what sampling explains of that is half of
 * their variances, the other half being the base's. */
#include <stdbool.h>
#include <stddef.h>

#include "nodes/search/stats.h"

/* Of KL, one assignment minus another, nats per position. */
struct pooled {
    struct stats_difference measured;
    struct stats_difference predicted; /* NaN: not known */
    double mean, error;                /* of both; the measured one's where the other is not known */
};

/* What the predictions' own error is estimated from; {0}: nothing yet. */
struct pooled_spread {
    size_t n;
    double sum, squares; /* of measured - predicted */
    double variance;     /* sum of both squared standard errors */
};
/* Take in a difference of which both are known; others are left out. */
void pooled_note(struct pooled_spread *s, const struct pooled *p);
/* Its standard deviation, nats, 0 where there is less scatter than sampling explains. Below POOLED_LEAST differences
 * the base's luck cannot be told from it, and the mean counts, too. */
double pooled_bias(const struct pooled_spread *s);
#define POOLED_LEAST 4
/* Fill mean and error. */
void pooled_combine(struct pooled *p, double bias);
#endif
