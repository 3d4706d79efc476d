#ifndef NODES_SEARCH_SURROGATE_H
#define NODES_SEARCH_SURROGATE_H
/* A surrogate of KL as the nodes that make one (`rank`, `probe`) write it: a cost per unit and format, and optionally
 * what pairs of units add to the sum.
 *
 *     energy(x) = sum over units u of cost[u, x_u] + sum over pairs p = (u, v) of pair_cost[p, x_u, x_v]     in nats
 *
 * In an object: `cost` f64 [unit, format]; `pairs/units` u32 [pair, 2] and `pairs/cost` f64 [pair, format of the first,
 * format of the second], both or neither. */
#include "nodes/search/candidates.h"

struct surrogate {
    double *cost;          /* [unit, format]; not negative; NaN where not available */
    size_t n_pairs;        /* 0: none */
    uint32_t (*pairs)[2];  /* [pair]: units, first < second; sorted, no pair twice; NULL without pairs */
    double *pair_cost;     /* [pair, format of first, format of second]; may be negative; 0 where one of the two is not
                              available; NULL without pairs */
};

/* From the object of an input. `what` names it in messages: the node. ERR_INPUT when it was made from other renderings
 * than the menu's or its tables do not agree, ERR_NUMERIC when a cost that counts is not finite, or one of a unit is
 * negative; *out is then untouched. */
bool surrogate_read(struct surrogate *out, const struct menu *m, struct object *o, const char *what,
                    struct err *e) ERR_CHECK;
/* What port `surrogate` of a node says; L1's costs, from port `renderings`, where nothing is connected to it. */
bool surrogate_or_l1(struct surrogate *out, const struct menu *m, struct node *n, struct err *e) ERR_CHECK;
void surrogate_fini(struct surrogate *s);
/* The energy of an assignment of available formats: f64, units in order, then pairs in order. */
double surrogate_energy(const struct menu *m, const struct surrogate *s, const uint8_t *assignment);

#endif
