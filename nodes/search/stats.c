/* Statistics: the random sequence, resamples of documents, Student's t, intervals over clusters. All sums run in index
 * order, so results do not depend on anything but their arguments. */
#include "nodes/search/stats.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/base/mem.h"

/* ------------------------------------------------------------------------------------------------------- randomness */

uint64_t stats_random(uint64_t *state)
{
    uint64_t z = *state += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

uint64_t stats_below(uint64_t *state, uint64_t n)
{
    uint64_t least = -n % n, x; /* 2^64 mod n: below it, one residue more than elsewhere */
    do
        x = stats_random(state);
    while (x < least);
    return x % n;
}

/* -------------------------------------------------------------------------------------------------------- documents */

struct seen {
    uint32_t document, first; /* its first window */
};

static int by_document(const void *a, const void *b)
{
    const struct seen *x = a, *y = b;
    if (x->document != y->document)
        return x->document < y->document ? -1 : 1;
    return (x->first > y->first) - (x->first < y->first);
}

bool stats_documents(const uint32_t *document, size_t n, uint32_t *index, uint32_t *n_documents, struct err *e)
{
    struct seen *sorted;
    uint32_t *first; /* of each window: the first window of its document */
    if (!mem_new(&sorted, n, e))
        return false;
    if (!mem_new(&first, n, e)) {
        mem_free(sorted);
        return false;
    }
    for (size_t i = 0; i < n; i++)
        sorted[i] = (struct seen){document[i], (uint32_t)i};
    qsort(sorted, n, sizeof *sorted, by_document);
    for (size_t i = 0, group = 0; i < n; i++) {
        if (sorted[i].document != sorted[group].document)
            group = i;
        first[sorted[i].first] = sorted[group].first;
    }
    *n_documents = 0;
    for (size_t i = 0; i < n; i++)
        index[i] = first[i] == i ? (*n_documents)++ : index[first[i]];
    mem_free(first);
    mem_free(sorted);
    return true;
}

void stats_resample(uint64_t *state, uint32_t *counts, uint32_t n)
{
    memset(counts, 0, n * sizeof *counts);
    for (uint32_t i = 0; i < n; i++)
        counts[stats_below(state, n)]++;
}

/* ------------------------------------------------------------------------------------------------------- intervals */

/* The continued fraction of the incomplete beta function by Lentz' method (DLMF 8.17.22). */
static double beta_fraction(double x, double a, double b)
{
    const double tiny = 1e-300;
    double c = 1, d = 1 - (a + b) * x / (a + 1);
    d = 1 / (fabs(d) < tiny ? tiny : d);
    double f = d;
    for (int m = 1; m < 10000; m++) {
        for (int odd = 0; odd < 2; odd++) {
            double k = odd ? -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
                           : m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m));
            d = 1 + k * d;
            c = 1 + k / c;
            d = 1 / (fabs(d) < tiny ? tiny : d);
            c = fabs(c) < tiny ? tiny : c;
            f *= c * d;
        }
        if (fabs(c * d - 1) < 1e-15)
            break;
    }
    return f;
}

/* Regularised incomplete beta function I_x(a, b). */
static double beta(double x, double a, double b)
{
    if (x <= 0 || x >= 1)
        return x <= 0 ? 0 : 1;
    int sign; /* always positive here; lgamma_r, since lgamma writes a global */
    double front = exp(lgamma_r(a + b, &sign) - lgamma_r(a, &sign) - lgamma_r(b, &sign) + a * log(x) + b * log1p(-x));
    return x < (a + 1) / (a + b + 2) ? front * beta_fraction(x, a, b) / a : 1 - front * beta_fraction(1 - x, b, a) / b;
}

/* P(|T| > t) = I_{v / (v + t^2)}(v / 2, 1 / 2), falling in t >= 0. */
static double two_tails(double t, double freedom) { return beta(freedom / (freedom + t * t), freedom / 2, 0.5); }

double stats_student_tail(double t, double freedom)
{
    return t < 0 ? 1 - two_tails(t, freedom) / 2 : two_tails(t, freedom) / 2;
}

double stats_student(double q, double freedom)
{
    if (q > 0.5)
        return -stats_student(1 - q, freedom);
    double low = 0, high = 1;
    while (two_tails(high, freedom) > 2 * q && high < 1e150)
        high *= 2;
    for (int i = 0; i < 200 && high - low > 1e-13 * high; i++) {
        double t = low + (high - low) / 2;
        if (two_tails(t, freedom) > 2 * q)
            low = t;
        else
            high = t;
    }
    return -(low + (high - low) / 2);
}

void stats_ratio(const double *value, const double *weight, uint32_t n, struct stats_ratio *out)
{
    double values = 0, weights = 0, squares = 0;
    for (uint32_t d = 0; d < n; d++) {
        values += value[d];
        weights += weight[d];
    }
    *out = (struct stats_ratio){.mean = values / weights, .error = NAN, .documents = n};
    for (uint32_t d = 0; d < n; d++) {
        double residual = value[d] - out->mean * weight[d];
        squares += residual * residual;
    }
    if (n > 1)
        out->error = sqrt((double)n / ((double)n - 1) * squares) / weights;
}

/* The ratio over clusters of windows. A window of weight 0 takes no part, nor does a cluster without another. */
static bool cluster_ratio(const double *value, const double *weight, const uint32_t *cluster, uint32_t n,
                          struct stats_ratio *out, struct err *e)
{
    uint32_t *index, n_clusters = 0, used = 0;
    double *sums = NULL, *weights = NULL;
    if (!mem_new(&index, n, e))
        return false;
    bool ok = stats_documents(cluster, n, index, &n_clusters, e) && mem_new(&sums, n_clusters, e) &&
              mem_new(&weights, n_clusters, e);
    for (uint32_t w = 0; ok && w < n; w++) {
        sums[index[w]] += weight[w] > 0 ? value[w] : 0;
        weights[index[w]] += weight[w];
    }
    for (uint32_t c = 0; ok && c < n_clusters; c++) {
        if (!(weights[c] > 0))
            continue;
        sums[used] = sums[c];
        weights[used++] = weights[c];
    }
    if (ok)
        stats_ratio(sums, weights, used, out);
    mem_free(weights);
    mem_free(sums);
    mem_free(index);
    return ok;
}

/* Half of the interval; NaN where there is no error. */
static double half_width(const struct stats_ratio *r, double level)
{
    return r->documents < 2 ? NAN : stats_student(0.5 + level / 2, r->documents - 1) * r->error;
}

bool stats_cluster_interval(const double *value, const double *weight, const uint32_t *cluster, uint32_t n,
                            double level, double *low, double *high, struct err *e)
{
    struct stats_ratio r;
    if (!cluster_ratio(value, weight, cluster, n, &r, e))
        return false;
    *low = r.mean - half_width(&r, level);
    *high = r.mean + half_width(&r, level);
    return true;
}

bool stats_positive_interval(const double *value, const double *weight, const uint32_t *cluster, uint32_t n,
                             double level, double *low, double *high, struct err *e)
{
    struct stats_ratio r;
    if (!cluster_ratio(value, weight, cluster, n, &r, e))
        return false;
    double half = half_width(&r, level);
    bool is_positive = r.mean > 0;
    *low = is_positive ? r.mean * exp(-half / r.mean) : r.mean - half;
    *high = is_positive ? r.mean * exp(half / r.mean) : r.mean + half;
    return true;
}

const char *stats_interval_text(double low, double high, int digits, char out[STATS_TEXT])
{
    if (isnan(low) || isnan(high))
        snprintf(out, STATS_TEXT, "unknown: one document");
    else
        snprintf(out, STATS_TEXT, "%.*g to %.*g", digits, low, digits, high);
    return out;
}

const struct stats_difference stats_no_difference = {.mean = NAN, .low = NAN, .high = NAN, .error = NAN};

bool stats_is_tie(const struct stats_difference *d) { return d->low <= 0 && d->high >= 0; }

bool stats_paired_interval(const double *a, const double *b, const uint32_t *positions, const uint32_t *document,
                           uint32_t n, double level, struct stats_difference *out, struct err *e)
{
    double *value = NULL, *weight = NULL;
    struct stats_ratio r;
    bool ok = mem_new(&value, n, e) && mem_new(&weight, n, e);
    for (uint32_t w = 0; ok && w < n; w++) {
        bool is_shared = !isnan(a[w]) && !isnan(b[w]);
        weight[w] = is_shared ? positions[w] : 0;
        value[w] = is_shared ? (a[w] - b[w]) * positions[w] : 0;
    }
    ok = ok && cluster_ratio(value, weight, document, n, &r, e);
    if (ok) {
        double half = half_width(&r, level);
        *out = (struct stats_difference){.mean = r.mean, .low = r.mean - half, .high = r.mean + half,
                                         .error = r.error, .documents = r.documents};
    }
    mem_free(weight);
    mem_free(value);
    return ok;
}
