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

/* The q-quantile (0 < q < 1) of Student's t with `freedom` > 0 degrees of freedom, to 1e-9 relative. For a small upper
 * tail p take -stats_student(p): 1 - p has lost its digits. */
double stats_student(double q, double freedom);
/* P(T > t) of the same. */
double stats_student_tail(double t, double freedom);

/* A mean over documents, as a ratio. */
struct stats_ratio {
    double mean;
    double error;       /* its standard error; NaN with one document */
    uint32_t documents;
};
/* sum(value) / sum(weight) over n > 0 documents: value[d] is a sum (nats), weight[d] > 0 what it is a sum over
 * (positions). The linearised ratio (Cochran 1977, 6.4): with R the ratio, error^2 = n / (n - 1) * sum (value - R *
 * weight)^2 / (sum weight)^2. */
void stats_ratio(const double *value, const double *weight, uint32_t n, struct stats_ratio *out);

/* Confidence interval of sum(value) / sum(weight) over n windows in clusters (documents): value[w] and weight[w] are as
 * above, of a window. Student's t on stats_ratio of the clusters' sums, clusters - 1 degrees of freedom. For quantities
 * of either sign. Both ends are NaN when there are fewer than two clusters. */
bool stats_cluster_interval(const double *value, const double *weight, const uint32_t *cluster, uint32_t n,
                            double level, double *low, double *high, struct err *e) ERR_CHECK;
/* The same for a mean that cannot be negative, such as a KL: Student's t for its logarithm, so mean * exp(-+ t * error
 * / mean). Per-document KLs are skewed to the right, and then the plain interval lies too low: tests/bench/coverage.c
 * has both, for what was measured and for twice as heavy tails (tests/benchmarks.md, "Coverage"). A mean of 0 has the
 * interval 0 to 0. */
bool stats_positive_interval(const double *value, const double *weight, const uint32_t *cluster, uint32_t n,
                             double level, double *low, double *high, struct err *e) ERR_CHECK;

/* A difference of two means on the same tokens. */
struct stats_difference {
    double mean, low, high; /* nats per scored position; the ends are NaN with fewer than two documents */
    double error;           /* standard error of the mean; NaN likewise */
    uint32_t documents;
};
/* An interval over documents as text, "0.0123 to 0.0456", or, where its ends are NaN, that there is none. Returns
 * `out`. */
#define STATS_TEXT 64
const char *stats_interval_text(double low, double high, int digits, char out[STATS_TEXT]);

extern const struct stats_difference stats_no_difference; /* nothing is known of it: NaN */
/* Does the interval include 0? False where there is none. */
bool stats_is_tie(const struct stats_difference *d);
/* Mean of a minus mean of b over the windows that both have (neither is NaN), and its confidence interval of that
 * level over documents. a, b: [n] means over a window's scored positions (kl_window of two candidates), positions[w]
 * of which there are in window w, document[w] its document. Near neighbours agree about which documents are hard, so
 * this is much narrower than the interval of either (design, section 2). It is Student's t on stats_ratio, as
 * differences of two skewed KLs are much less skewed. For a one-sided test with error p take level = 1 - 2 p. With no
 * window in common the mean is NaN, too. */
bool stats_paired_interval(const double *a, const double *b, const uint32_t *positions, const uint32_t *document,
                           uint32_t n, double level, struct stats_difference *out, struct err *e) ERR_CHECK;

#endif
