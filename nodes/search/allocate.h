#ifndef NODES_SEARCH_ALLOCATE_H
#define NODES_SEARCH_ALLOCATE_H
/* Assignments at byte budgets by the rules that others use, for comparison: nothing here measures or learns. A budget
 * is a most: what is returned has at most that many bytes. */
#include "nodes/search/candidates.h"

/* The most bytes whose bits per parameter, as a candidate's column `bpp` gives them, are at most `bpp`. */
uint64_t allocate_budget(const struct menu *m, double bpp);
/* ERR_INPUT, with the least that would do, when no assignment has at most so many bytes. */
bool allocate_check_budget(const struct menu *m, uint64_t most, struct err *e) ERR_CHECK;

/* What was found within a budget. */
struct allocation {
    uint64_t most_bytes;
    uint8_t *assignment; /* [unit]; the caller's memory */
    double cost;
};

/* All of these fill cost and assignment of list[0..n), whose most_bytes and memory the caller has set; ERR_INPUT, with
 * the least that would do, when a budget is below that.
 *
 * `cost` is [unit, format], finite and at least 0 where available and NaN elsewhere; the cost of an assignment is the
 * sum over its units. */

/* The least sum of costs, exact as long as the archive (nodes/search/archive.h) stays below `limit` points. *gap: by
 * what share of the largest cost the sums may be above the optimum; 0 when exact. */
bool allocate_knapsack(const struct menu *m, const double *cost, size_t limit, struct allocation *list, size_t n,
                       double *gap, struct err *e) ERR_CHECK;
/* One format for all units (menu_uniform): of those that fit the one of the least of `uniform_cost` [format]; of equal
 * ones the one of the fewest bytes, then the first. */
bool allocate_uniform(const struct menu *m, const double *uniform_cost, struct allocation *list, size_t n,
                      struct err *e) ERR_CHECK;
/* First and last layers high. All units are in one uniform format, `low`; then units go to another one of more bytes,
 * `high`, from the outside in: those of the first layer, the last (the head, where it is a unit), the second, the last
 * but one, ..., in a layer in the order of the menu, until the first one that does not fit. Of all pairs of uniform
 * formats, and of single ones that fit, the one with the least sum of costs is taken; of equal ones the fewest
 * bytes. */
bool allocate_ends(const struct menu *m, const double *cost, struct allocation *list, size_t n,
                   struct err *e) ERR_CHECK;

/* The costs of HAWQ-V2 (Dong et al. 2020): the mean eigenvalue of the curvature in a unit's weights times the square of
 * what the format does to them. `trace` [unit] is of the Fisher of KL, nats per position; `square` [unit,
 * format] = ||dW||^2. The factor 1/2 of the second-order term is left out, as there. This is a baseline of the claims
 * that are made: it is not to be tuned. */
void allocate_trace_costs(const struct menu *m, const double *trace, const double *square, double *cost);

/* One unit at a time. The base is the uniform assignment of the least sum of `cost` (the unquantized one, where it is
 * in the menu; of equal ones the fewest bytes, then the first format's). */
void allocate_base(const struct menu *m, const double *cost, uint8_t *base);
/* Append to an empty table the base and every assignment that differs from it in one unit. */
bool allocate_singles(const struct menu *m, const uint8_t *base, struct candidates *out, struct err *e) ERR_CHECK;
/* cost[unit, format] = measured KL of that single assignment minus the lowest KL that any format of the unit has (the
 * base's own one included), nats: a shift by unit, which changes no comparison of assignments. ERR_INPUT when one of
 * them is not in `rows` or was not measured on all windows. */
bool allocate_direct_costs(const struct menu *m, const uint8_t *base, const struct candidates *rows, double *cost,
                           struct err *e) ERR_CHECK;

#endif
