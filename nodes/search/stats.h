#ifndef NODES_SEARCH_STATS_H
#define NODES_SEARCH_STATS_H
/* Statistics over windows that come in documents. Windows of one document resemble each other, so the document, not the
 * window, is what intervals and resamples count. A mean is a ratio: sum of values / sum of scored positions. */
#include <stddef.h>
#include <stdint.h>

#include "engine/base/err.h"

/* SplitMix64 (Steele, Lea, Flood 2014): the next 64 bits of the sequence that starts at *state = seed. */
uint64_t stats_random(uint64_t *state);
/* Uniform in 0..n-1, n > 0, without bias (values that would favour small results are drawn again). */
uint64_t stats_below(uint64_t *state, uint64_t n);

/* Documents renumbered 0..*n_documents-1 in the order of their first window: index[w] for the n windows. */
bool stats_documents(const uint32_t *document, size_t n, uint32_t *index, uint32_t *n_documents,
                     struct err *e) ERR_CHECK;
/* One bootstrap resample: how often each of n documents is drawn in n draws with replacement. Using the same counts for
 * several candidates makes their comparison paired. */
void stats_resample(uint64_t *state, uint32_t *counts, uint32_t n);

/* The q-quantile (0 < q < 1) of Student's t with `freedom` > 0 degrees of freedom, to 1e-9 relative. */
double stats_student(double q, double freedom);
/* Confidence interval of sum(value) / sum(weight) over n windows in clusters: value[w] is a sum (nats), weight[w] what
 * it is a sum over (positions). Student's t on the linearised ratio (Cochran 1977, 6.4), clusters - 1 degrees of
 * freedom: with R the ratio and d_c = sum over cluster c of (value - R * weight), variance = D / (D - 1) * sum d_c^2 /
 * (sum weight)^2. Both ends are NaN when there are fewer than two clusters. */
bool stats_cluster_interval(const double *value, const double *weight, const uint32_t *cluster, uint32_t n,
                            double level, double *low, double *high, struct err *e) ERR_CHECK;

#endif
