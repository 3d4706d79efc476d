#ifndef NODES_ROTATE_ROTATION_H
#define NODES_ROTATE_ROTATION_H
/* Random orthogonal matrices Q of any order n that spread what they are applied to, and are cheap to apply:
 *
 *     n = 2^a p,   Q = D (S x C) / sqrt(2^a)
 *
 * with D a diagonal of random signs, S the Hadamard matrix of order 2^a after Sylvester, x the Kronecker product, and C
 * an orthogonal core of order p: 1 where n is a power of two; a Hadamard matrix after Paley (divided by sqrt(p)) for
 * the smallest p = 2^b m up to ROTATION_PALEY that has one, m the odd part of n (12, 20, 28, 36, 44, 60, ..: p - 1 or
 * p / 2 - 1 is a prime of the right residue); else, for p = m, the orthogonal factor of a random matrix. In the first
 * two cases every element of Q is +-1 / sqrt(n). The same n and seed give the same bits on every machine. */
#include <stdbool.h>
#include <stdint.h>

#include "engine/base/err.h"

#define ROTATION_PALEY 512

struct rotation;
/* n >= 1. */
bool rotation_new(struct rotation **out, int64_t n, uint64_t seed, struct err *e) ERR_CHECK;
void rotation_free(struct rotation *r); /* NULL is fine */
int64_t rotation_order(const struct rotation *r);
/* p, and whether Q is a Hadamard matrix. */
int64_t rotation_core(const struct rotation *r, bool *is_hadamard);
/* x := x Q and x := x Q^T of one row vector x [n]; work [p] is the caller's. All sums are in f64, in a fixed order. */
void rotation_apply(const struct rotation *r, double *x, double *work);
void rotation_undo(const struct rotation *r, double *x, double *work);
/* The seed of one of many rotations that share one: of the i-th of kind `kind`. */
uint64_t rotation_seed(uint64_t seed, uint64_t kind, uint64_t i);

#endif
