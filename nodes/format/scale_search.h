#ifndef NODES_FORMAT_SCALE_SEARCH_H
#define NODES_FORMAT_SCALE_SEARCH_H
#include "nodes/format/rounding.h"

/* Bytes that scale_search takes for an [n,k] matrix while it runs, what kernels->matmul needs aside. */
uint64_t scale_search_bytes(const struct format *f, bool full_moment, int64_t n, int64_t k, int threads);

/* The half of scale_search that weighs errors by the whole second moment (scale_descent.c), for the other half. */

#define DESCENT_ROWS 128 /* a multiple of every grid's rows */

struct descent {
    const struct rounding *r;
    const float *w;      /* [n,k] */
    const float *weight; /* [k]: about the moment's diagonal */
    float ridge;         /* the moment's diagonal gets so many of `weight` on top */
};

/* What one thread works in. */
struct descent_room;
bool descent_room_new(struct descent_room **out, int64_t k, struct err *e) ERR_CHECK;
void descent_room_free(struct descent_room *room); /* NULL is fine */
uint64_t descent_bytes(int64_t k);                 /* that it takes */

/* The loss of each of rows [row, row + rows), at most DESCENT_ROWS, under the moment with its ridge. The queue has one
 * thread. */
bool descent_losses(const struct descent *d, struct queue *q, struct descent_room *room, const struct blocks *b,
                    int64_t row, int64_t rows, double *loss, struct err *e) ERR_CHECK;
/* Lower the loss of those rows by changing codes and scales. */
bool descent_rows(const struct descent *d, struct queue *q, struct descent_room *room, struct blocks *b, int64_t row,
                  int64_t rows, struct err *e) ERR_CHECK;

#endif
