#ifndef NODES_SEARCH_PROBES_H
#define NODES_SEARCH_PROBES_H
/* Costs from the responses of adjoint probes (nodes/probe.c). A probe draws at every scored position t of a window a
 * v_t with E[v v^T] = the Fisher of the teacher's softmax there, independently of the others, and goes backward once.
 * The response of unit u in format f is a = sum over the window's positions of <g, dY>: g the gradient at the unit's
 * output, dY what the format changes of it, by its weights and by its treatment of the input. To second order the KL of
 * the window's positions is then, for an assignment x (model-architectures 13.1),
 *
 *     sum over t of KL_t  =  1/2 E[(sum over u of a[u, x_u])^2]  =  sum over u of 1/2 E[a_u^2] + sum over u < v of
 *     E[a_u a_v]
 *
 * so that one set of responses gives unary costs and all pairs. */
#include "nodes/search/candidates.h"
#include "nodes/search/stats.h"

struct probes {
    const struct menu *menu;
    uint32_t n_probes, n_windows;
    const double *response;   /* [unit, format, probe, window]; NaN where the format is not available */
    const uint32_t *tokens;   /* [window]: scored positions */
    const uint32_t *document; /* [window] */
    const double *local;      /* [unit, format, window]: the mean over probes of the sum over short blocks of positions
                                 of the squared response of the block; NULL: costs are not shrunk */
};

/* cost[unit, format] = 1/2 sum of a^2 / (probes * scored positions), nats per position, and its standard error: of the
 * ratio over documents (Cochran 1977, 6.4), or, of one document, over its windows; NaN with one window. NaN where not
 * available. Both arrays [unit, format]. */
bool probes_costs(const struct probes *p, double *cost, double *error, struct err *e) ERR_CHECK;

/* Shrinks costs and errors of probes_costs. What draws leave to chance is large, some 9 % of a cost with 8 draws in 32
 * windows: one square of a sum over all positions each. `local` has a square for every block, so it hardly varies with
 * the draws, and lacks only what distant positions share. So, in logarithms, a cost is drawn towards local * (the
 * format's mean ratio of the two), by empirical Bayes (Efron and Morris 1973): with v its own variance by the draws,
 * and S the variance of the logarithm of the ratio over the format's units, it keeps the share t / (t + v) of its
 * distance, t = max(0, S - mean of v). Where distant positions matter, the ratio varies and costs stay as they are;
 * where they do not, the noise goes. An error is that of the kept share of the responses and the rest of the local
 * squares, over documents, and of what the share may be wrong by, share (1 - share) v; that of the mean ratio, which is
 * common to a format's units, is left out. Nothing is done in a format with fewer than 3 units of a cost above 0, or
 * with one draw. `kept` [unit, format]: the share; 1 where nothing is done.
 * Against KLs of single units on other documents: tests/benchmarks.md, "Adjoint probes". */
bool probes_shrink(const struct probes *p, double *cost, double *error, double *kept, struct err *e) ERR_CHECK;

/* Pair terms. The sample second moments of 2 n responses are mostly noise; correlations r = m_ij / sqrt(m_ii m_jj) of
 * different units are shrunk to zero by one factor, the estimate of Schaefer and Strimmer (2005, "A shrinkage approach
 * to large-scale covariance matrix estimation", target D): 1 - min(1, sum of Var(r_ij) / sum of r_ij^2) over all pairs
 * of cells of different units. A pair of units is kept if in some pair of formats |r| is at least `significance` times
 * its standard error. */
struct probe_pairs {
    size_t n;
    uint32_t (*units)[2];  /* first < second, ascending */
    double *cost;          /* [pair, format of the first, format of the second]: nats per position, shrunk; 0 where not
                              available */
    double *significance;  /* [pair]: largest |r| / its standard error */
    double kept;           /* the factor, 0..1 */
    double spread;         /* standard deviation of the correlations themselves: what the r have beyond chance */
    size_t n_tested;
};
bool probes_pairs(const struct probes *p, double significance, struct probe_pairs *out, struct err *e) ERR_CHECK;
void probe_pairs_fini(struct probe_pairs *p);

/* What a node `probe` says window by window, for comparing two assignments as measured KLs are compared: paired, over
 * documents. Sums of unary costs, each the kept share of the responses and the rest of the local squares, so that its
 * mean is the (shrunk) cost. Of pairs only their spread is known well enough to be of use, and is in the errors. */
struct probe_windows {
    const struct menu *menu; /* the caller's */
    uint32_t n;
    double *cost;            /* [unit, format, window]: nats per scored position; NaN where not available */
    uint32_t *tokens, *document; /* [window] */
    double spread;           /* of correlations of units: struct probe_pairs */
    double *mean;            /* [unit, format]: nats per scored position, of all windows */
    double *sums;            /* [2, window]: scratch */
};

/* `what` names the object in messages: the node. ERR_INPUT when it was made from other renderings than the menu's. */
bool probe_windows_read(struct probe_windows *out, const struct menu *m, struct object *o, const char *what,
                        struct err *e) ERR_CHECK;
void probe_windows_fini(struct probe_windows *p);
/* Most bytes that probe_windows_read takes for that result of a node `probe`. */
uint64_t probe_windows_memory(const struct object *o);
/* Predicted KL of an assignment of available formats, to second order: nats per position. */
double probe_windows_cost(struct probe_windows *p, const uint8_t *assignment);
/* `scale` times that of a minus that of b, with its standard error and 95 % interval (NaN with one document). Costs of
 * second order are some 10 % off, all to the same side: `scale` is measured over predicted KL. The error is that over
 * the windows' documents (without what shrinking may be wrong by) and, independent of it, what pairs may add: a pair's
 * term is 2 r sqrt(c_u c_v), c being unary costs, with r of standard deviation `spread`, taken to be independent
 * between formats; so those that the two do not share have the variance (2 spread)^2 times the sum over both
 * assignments of sum over pairs with a unit that differs of c_u c_v. */
bool probe_windows_difference(struct probe_windows *p, const uint8_t *a, const uint8_t *b, double scale,
                              struct stats_difference *out, struct err *e) ERR_CHECK;

#endif
