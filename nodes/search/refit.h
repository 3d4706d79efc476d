#ifndef NODES_SEARCH_REFIT_H
#define NODES_SEARCH_REFIT_H
/* The archive learns: a surrogate fitted to what was measured, with the costs it had as the prior.
 *
 * The model of a candidate's KL is h(E), E = sum over units of (1 + t[unit] + q[format]) * cost[unit, format] + (1 + s)
 * * (sum of the prior's pair costs), the pairs only if they help. First the link h, which is monotone: a sum of errors
 * over- or understates what they do together, and KL saturates,
 *
 *     h(E) = x / (1 + x / limit),  x = (g E)^power
 *
 * log g and power by weighted least squares on logarithms (power = 1 with fewer than 8 rows; else drawn a little to 1,
 * and held between 1/2 and 2). Then the limit, of a fixed grid of multiples of the largest KL: none, unless a lower one
 * leaves at most 90 % of the squares. Then t, q and s, where the link is undone: y = h^-1(KL). An error is taken as e =
 * (E - y) / (y + h^-1(floor)): relative, since KL spans decades, but not below the floor, which is the larger of
 *     1e-7 nat, what fp32 arithmetic makes of a log-probability: a KL below it is rounding;
 *     10 % of the median KL of the rows: what lies a decade below the place that is searched needs no relative
 *     accuracy, and in coarser arithmetic the noise is higher.
 * Without it a near-lossless candidate (KL 5e-8 where 1e-6 was predicted: e = 19) would outweigh all others. Measured
 * on the quickstart's model, with the second round predicted from the first, by L1 and before there was a link: the
 * error is 19 % without a floor and at 1 %, 8 % at 10 %, 9 % at 100 %.
 *
 * t, q and s are found by ridge regression with 0, that is the costs as they were, as the prior: they minimise the sum
 * over candidates of e^2 + ridge * (|t|^2 + |q|^2 + s^2). The ridge is the strongest one of a fixed grid, no fit at all
 * (t = q = s = 0) among them, whose leave-one-out error is within one standard error of the least: a prior that is
 * nearly right, as the probes' is, is not bent after noise. Measured on the quickstart's model, rank correlation of 64
 * fresh candidates around the choice: 0.984 by the probes, 0.934 refitted with the least error. Factors are held
 * between 1/10 and 10, so no cost becomes negative or free. The pairs are used if the leave-one-out predictions then
 * have a higher rank correlation with the measured KL. */
#include "nodes/search/candidates.h"
#include "nodes/search/surrogate.h"

/* h. power 0: not fitted, the identity. */
struct refit_link {
    double scale, power, limit; /* g; limit INFINITY: none */
};
double refit_kl(const struct refit_link *l, double energy);
double refit_energy(const struct refit_link *l, double kl);
double refit_slope(const struct refit_link *l, double kl); /* dh/dE where h is kl > 0 */

/* How well a surrogate orders what was measured: of the rows that were fitted. */
enum refit_score {
    REFIT_PRIOR,         /* the prior's costs */
    REFIT_PRIOR_PAIRS,   /* with its pairs */
    REFIT_FITTED,        /* refitted costs, each candidate predicted from the others */
    REFIT_FITTED_PAIRS,  /* with pairs, likewise */
    REFIT_SCORES
};
extern const char *const refit_score_names[REFIT_SCORES];

struct refit {
    size_t n_rows;       /* candidates that were fitted */
    struct refit_link link;
    double floor;        /* nats */
    double scale;        /* what refit_costs multiplied by */
    double ridge;        /* INFINITY: t = q = s = 0 */
    bool has_pairs;      /* they are used */
    double pair_factor;  /* 1 + s; 0 when they are not */
    double error_before; /* root mean square of e: with the link alone */
    double error_after;  /* the same, each candidate predicted from the others */
    double correlation[REFIT_SCORES]; /* Spearman's; NaN where there is none */
};

/* Fit to the complete rows of `tables` (n_tables of them, equal assignments may repeat and count as often) with KL > 0
 * and a summed cost > 0; of more than 256 those nearest in bpp to `centre`. prior->cost and out [unit, format] may be
 * the same array; NaN stays NaN. out is in the units of E: refit_kl makes nats of a sum. With no such row out =
 * prior->cost. Deterministic; f64. */
bool refit_surrogate(const struct menu *m, const struct surrogate *prior, const struct candidates *const *tables,
                     size_t n_tables, double centre, double *out, struct refit *result, struct err *e) ERR_CHECK;
/* The same for costs without pairs, and with out in nats near `centre`: times the slope of h at the median KL, so that
 * differences of sums are predicted differences of KL. */
bool refit_costs(const struct menu *m, const double *cost, const struct candidates *const *tables, size_t n_tables,
                 double centre, double *out, struct refit *result, struct err *e) ERR_CHECK;

#endif
