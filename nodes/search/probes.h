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

struct probes {
    const struct menu *menu;
    uint32_t n_probes, n_windows;
    const double *response;   /* [unit, format, probe, window]; NaN where the format is not available */
    const uint32_t *tokens;   /* [window]: scored positions */
    const uint32_t *document; /* [window] */
};

/* cost[unit, format] = 1/2 sum of a^2 / (probes * scored positions), nats per position, and its standard error: of the
 * ratio over documents (Cochran 1977, 6.4), or, of one document, over its windows; NaN with one window. NaN where not
 * available. Both arrays [unit, format]. */
bool probes_costs(const struct probes *p, double *cost, double *error, struct err *e) ERR_CHECK;

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
    size_t n_tested;
};
bool probes_pairs(const struct probes *p, double significance, struct probe_pairs *out, struct err *e) ERR_CHECK;
void probe_pairs_fini(struct probe_pairs *p);

#endif
