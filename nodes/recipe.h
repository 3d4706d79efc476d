#ifndef NODES_RECIPE_H
#define NODES_RECIPE_H
/* The parts of scout.json that say how an exported directory came about. Each returns a new reference, or NULL with *e.
 * Nothing in them depends on what a graph calls its nodes, on paths or on time: equal exports have equal bytes. */
#include <jansson.h>

#include "engine/node.h"
#include "nodes/search/candidates.h"

/* Every result that the node depends on, by type and key: [{type, key, code_version, numerics, parameters: {name:
 * value}, inputs: [{port, key, output}], sources: {parameter: SHA-256}}]. */
json_t *recipe_results(const struct node *n, struct err *e);

/* The token sets of every corpus that the node depends on, with the documents behind them: [{corpus: key, calibration:
 * {windows, positions, tokens_digest, documents: [SHA-256]}, selection: .., report: ..}]. */
json_t *recipe_splits(const struct node *n, struct err *e);

/* What was measured of candidate `c` of `table`, with its 95 % interval over documents; figures that are unknown are
 * null. `splits` is what recipe_splits gave: it tells which set that was. */
json_t *recipe_measured(const struct candidates *table, const struct candidate *c, const json_t *splits, struct err *e);

/* Which way the choice's comparison with baselines went, of an object with `compared/name`, a `confirm`: {stands:
 * bool, compared: [{name, bytes, bpp, kl_mean, difference, low, high}]}, a difference being the baseline's KL minus the
 * choice's. null of any other object. */
json_t *recipe_compared(struct object *assignment, const struct candidates *table, struct err *e);

#endif
