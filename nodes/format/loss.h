#ifndef NODES_FORMAT_LOSS_H
#define NODES_FORMAT_LOSS_H
/* How much a difference of weights is worth: its square, and its energy tr(D H D^T) under the second moment H of the
 * layer's input, which is the mean square that it adds to the layer's output. */
#include "kernels/kernels.h"

/* Rows that one loss_add takes at most: on an accelerator as many as its products want. A multiple of every grid's
 * rows, so that a matrix can be encoded as many at a time. */
#define LOSS_ROWS 256
static inline int64_t loss_rows(const struct kernels *k) { return k->on_device ? k->chunk_rows : LOSS_ROWS; }

struct loss;

/* For rows of `k` weights whose input has the second moment `moment` [k,k] f32 (host, symmetric); NULL: energies are
 * NaN. `moment` is not needed after the call. Works on the queue's device and threads. */
bool loss_new(struct loss **out, struct queue *q, const float *moment, int64_t k, struct err *e) ERR_CHECK;
void loss_free(struct loss *l); /* NULL is fine */
/* Bytes of the tensors that loss_new makes. */
uint64_t loss_bytes(const struct kernels *kernels, int64_t k, bool with_moment);
/* *square += sum of d^2, *energy += tr(d H d^T), for d [n,k] f32 on the queue's device, n <= loss_rows. The product
 * d H is in f32 (kernels->matmul, fp32 mode), the sums over k and then over rows are in f64 (kernels->energy). */
bool loss_add(struct loss *l, const struct tensor *d, double *square, double *energy, struct err *e) ERR_CHECK;
/* y = d H, both [n,k] f32 on the queue's device, n <= loss_rows; the loss has a moment. From several threads at once
 * when each gives a queue of its own. */
bool loss_product(const struct loss *l, struct queue *q, const struct tensor *d, struct tensor *y, struct err *e)
    ERR_CHECK;
/* Columns [first, first + y->shape[1]) of the same; first is a multiple of 16. */
bool loss_product_part(const struct loss *l, struct queue *q, const struct tensor *d, int64_t first, struct tensor *y,
                       struct err *e) ERR_CHECK;
/* part / whole; 0 when nothing is lost or there was nothing to lose, NaN when either is NaN. */
double loss_ratio(double part, double whole);

#endif
