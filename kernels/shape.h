#ifndef KERNELS_SHAPE_H
#define KERNELS_SHAPE_H
/* Checks of a kernel's arguments, apart from its arithmetic. A mismatch is ERR_BUG: callers derive shapes from a model
 * that was checked before. */
#include "kernels/kernels.h"

/* `t` is a row-major matrix on the device of `q` [rows, columns] of `type`; -1 for a size that may be any. `kernel`
 * and `name` are for the message: "rmsnorm: 'y' is f32 [3, 64], expected f32 [4, 64]". */
bool shape_matrix(const struct queue *q, const char *kernel, const char *name, const struct tensor *t,
                  enum dtype type, int64_t rows, int64_t columns, struct err *e) ERR_CHECK;
/* The same for a vector of n. */
bool shape_vector(const struct queue *q, const char *kernel, const char *name, const struct tensor *t,
                  enum dtype type, int64_t n, struct err *e) ERR_CHECK;
/* `t` holds panels of {n, k} (-1: any) in f32 or bf16. */
bool shape_panels(const struct queue *q, const char *kernel, const char *name, const struct tensor *t,
                  int64_t n, int64_t k, struct err *e) ERR_CHECK;
/* The parts of `w` are those of its code (grid.h), for a number of columns that its blocks or words divide. */
bool shape_packed(const struct queue *q, const char *kernel, const struct packed_matrix *w, struct err *e) ERR_CHECK;
/* The arguments of the entries that both back ends check alike (kernels.h). */
bool shape_rope(const struct queue *q, const struct tensor *qkv, const struct attention_shape *s,
                const struct tensor *cosine, const struct tensor *sine, struct err *e) ERR_CHECK;
/* `most`: the largest head_dim that the back end has; above it is ERR_INPUT, for the model says it. */
bool shape_attention(const struct queue *q, const struct tensor *qkv, const struct attention_shape *s,
                     const struct tensor *out, int most, struct err *e) ERR_CHECK;
bool shape_attention_backward(const struct queue *q, const struct tensor *qkv, const struct attention_shape *s,
                              const struct tensor *out, const struct tensor *dout, const struct tensor *dqkv, int most,
                              struct err *e) ERR_CHECK;
bool shape_rmsnorm_backward(const struct queue *q, const struct tensor *x, const struct tensor *w,
                            const struct tensor *dy, const struct tensor *dx, struct err *e) ERR_CHECK;
bool shape_swiglu_backward(const struct queue *q, const struct tensor *gu, const struct tensor *dy,
                           const struct tensor *dgu, struct err *e) ERR_CHECK;
bool shape_transpose(const struct queue *q, const struct tensor *w, const struct tensor *out, struct err *e) ERR_CHECK;
bool shape_fisher_draw(const struct queue *q, const struct tensor *s, enum fisher_draw kind, const uint64_t *seeds,
                       struct err *e) ERR_CHECK;
bool shape_window_dots(const struct queue *q, const struct tensor *a, const struct tensor *b, int64_t window,
                       const struct tensor *dot, const struct tensor *square, struct err *e) ERR_CHECK;
bool shape_subtract(const struct queue *q, const struct tensor *a, const struct tensor *b, const struct tensor *d,
                    struct err *e) ERR_CHECK;
bool shape_fake_quantize(const struct queue *q, const struct tensor *x, enum act_rule rule, float scale,
                         enum dtype mode, const struct tensor *y, struct err *e) ERR_CHECK;
bool shape_encode(const struct queue *q, const struct tensor *w, const struct packed_matrix *out,
                  const struct tensor *d, struct err *e) ERR_CHECK;
bool shape_kl_tile(const struct queue *q, const struct tensor *s_t, const struct tensor *s_c, int64_t first,
                   struct err *e) ERR_CHECK;
/* ERR_NUMERIC with row and column of the first element of x [rows, k] that is NaN or infinite. Returns false. */
bool shape_not_finite(const float *x, int64_t rows, int64_t k, struct err *e);
/* ERR_NUMERIC: a matrix [k,k] is not positive definite, since its leading minor of that order is not. Returns false. */
bool shape_not_positive(int64_t k, int64_t order, struct err *e);
/* The queue has at least one thread. */
bool shape_queue(const struct queue *q, const char *kernel, struct err *e) ERR_CHECK;

#endif
