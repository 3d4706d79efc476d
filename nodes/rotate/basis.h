#ifndef NODES_ROTATE_BASIS_H
#define NODES_ROTATE_BASIS_H
/* A model of the Llama family in other bases, which leave its function as it is:
 *
 * BASIS_RESIDUAL   the residual stream x becomes x Q. RMSNorm divides by the same length, so its weights move into the
 *                  linear layers behind it (and become ones): with g those weights,
 *                      q, k, v, gate, up, head:  W -> W diag(g) Q       embedding:  E -> E Q
 *                      o, down:                  W -> Q^T W, b -> b Q
 * BASIS_HEADS      the values of key-value head c become v R_c. Attention adds up values of one head, so its output of
 *                  every query head j that reads c is in that basis too:
 *                      v:  W_c -> R_c^T W_c, b_c -> b_c R_c             o:  W_j -> W_j R_c
 *
 * Positions (RoPE) and softmax are between q and k only, whose outputs stay. Sums are in f64 and in a fixed order. */
#include "nodes/model/model.h"
#include "nodes/rotate/rotation.h"

enum { BASIS_RESIDUAL = 1, BASIS_HEADS = 2, BASIS_SETS = 4 }; /* a set of them is below BASIS_SETS */

struct basis {
    const struct model *model;
    struct rotation *residual; /* NULL: the stream stays */
    struct rotation **heads;   /* [layer, kv head]; NULL: values stay */
    float *norms;              /* [2 * layers + 1, hidden]: a layer's input and post-attention norm; the final one */
    int threads;
};
/* `what`: the set of bases that may be asked for. The model is borrowed. */
bool basis_open(struct basis *b, const struct model *m, unsigned what, uint64_t seed, int threads, struct err *e)
    ERR_CHECK;
void basis_close(struct basis *b); /* a zeroed one is fine */
/* Of what is asked below, `what` is a subset of that. */

/* Does the weight, or the bias, of a matrix change? */
bool basis_changes(const struct basis *b, int matrix, unsigned what);
bool basis_changes_bias(const struct basis *b, int matrix, unsigned what);
/* w [n, k], the weight of a matrix as the model has it, and its bias [n], in these bases. */
bool basis_matrix(const struct basis *b, int matrix, unsigned what, double *w, struct err *e) ERR_CHECK;
bool basis_bias(const struct basis *b, int matrix, unsigned what, double *bias, struct err *e) ERR_CHECK;
/* Rows [n, hidden] of the embedding, or of the head, with the residual stream in its new basis. */
bool basis_embedding(const struct basis *b, int64_t n, double *rows, struct err *e) ERR_CHECK;
bool basis_head(const struct basis *b, int64_t n, double *rows, struct err *e) ERR_CHECK;
/* A pass whose norms have no weights sees what is rotated: w [n, k] f32 of a matrix takes them in, W diag(g). Only
 * where the residual stream may be rotated; else the matrix, and the pass, stay as the model has them. */
void basis_fold(const struct basis *b, int matrix, float *w);
/* Inputs [n, k] of a unit that such a pass has seen become what its matrices read in these bases. */
bool basis_input(const struct basis *b, int unit, unsigned what, int64_t n, float *x, struct err *e) ERR_CHECK;

/* Round n numbers once, to nearest even, to f32, bf16 or f16; what is not finite then is ERR_NUMERIC. */
bool basis_round(const double *x, size_t n, enum dtype t, void *out, struct err *e) ERR_CHECK;

#endif
