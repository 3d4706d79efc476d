#ifndef KERNELS_CUDA_CUDA_H
#define KERNELS_CUDA_CUDA_H
/* What the C files of the CUDA back end share: a queue's own part, errors, and the entries of the table. */
#include "kernels/cuda/blas.h"
#include "kernels/cuda/launch.h"
#include "kernels/kernels.h"

/* Memory of a queue that grows with what is asked for and stays. */
struct cuda_room {
    void *data;
    size_t bytes;
};

/* queue->stream points at one of these. */
struct cuda_queue {
    cudaStream_t stream;
    struct blas *blas;
    struct solver *solver; /* NULL before the first factor */
    int processors;
    int64_t rows, head_rows;       /* rows of every product, and of every product with a part of the weights */
    struct cuda_room x, y, small;  /* operands of products, results of short ones, and values on their way home */
    struct cuda_room x_scales;     /* of x where it is codes */
};

/* The multiple that columns of panels are padded to: blas.h. */
#define CUDA_COLUMNS 16
static inline int64_t cuda_stride(int64_t k) { return (k + CUDA_COLUMNS - 1) / CUDA_COLUMNS * CUDA_COLUMNS; }

static inline struct cuda_queue *cuda_queue(const struct queue *q) { return (struct cuda_queue *)q->stream; }
static inline struct launch cuda_launch(const struct queue *q)
{
    return (struct launch){cuda_queue(q)->stream, cuda_queue(q)->processors};
}

/* True for cudaSuccess. Otherwise false with "cuda:0: <what>: <text>": ERR_RESOURCE when memory is out, else
 * ERR_DEVICE. */
bool cuda_ok(const struct queue *q, cudaError_t error, const char *what, struct err *e) ERR_CHECK;
/* At least `bytes` in *room; what was in it is lost. */
bool cuda_room(struct queue *q, struct cuda_room *room, size_t bytes, struct err *e) ERR_CHECK;
void cuda_room_free(struct queue *q, struct cuda_room *room);

/* Fills the entries of a table; names and numeric texts are the caller's. */
void cuda_fill_table(struct kernels *k);

/* devices.c: from and to queue->stream; see kernels_queue_new. */
bool cuda_queue_open(struct queue *q, struct err *e) ERR_CHECK;
void cuda_queue_close(struct queue *q);
bool cuda_twin_new(const struct queue *q, struct queue **out, struct err *e) ERR_CHECK;

/* Has every device of the queue's table that was opened multiplied that code natively, and rightly? */
bool cuda_native_agrees(const struct queue *q, enum weight_code code);

/* native.c: what this back end can multiply natively, were it for the device: the rule that belongs to a code (ACT_NONE
 * where there is none), and the bound of its products (kernels.h). */
enum act_rule cuda_native_rule(enum weight_code code);
double cuda_native_error(enum weight_code code);

/* native_test.c: compares products of that code with sums in f64 of the numbers that the codes stand for. ERR_DEVICE
 * says in one line how they differ. */
bool cuda_native_test(struct queue *q, enum weight_code code, struct err *e) ERR_CHECK;

/* memory.c */
bool cuda_tensor_new(struct queue *q, struct tensor *out, enum dtype t, int rank, const int64_t *shape,
                     struct err *e) ERR_CHECK;
void cuda_tensor_free(struct queue *q, struct tensor *t);
bool cuda_upload(struct queue *q, struct tensor *dst, const void *src, size_t bytes, struct err *e) ERR_CHECK;
bool cuda_download(struct queue *q, void *dst, const struct tensor *src, size_t bytes, struct err *e) ERR_CHECK;
bool cuda_copy(struct queue *q, const struct tensor *src, struct tensor *dst, struct err *e) ERR_CHECK;
bool cuda_finish(struct queue *q, struct err *e) ERR_CHECK;
bool cuda_host_new(struct queue *q, void **out, size_t bytes, struct err *e) ERR_CHECK;
void cuda_host_free(struct queue *q, void *p);
bool cuda_enter(struct queue *q, struct err *e) ERR_CHECK;

/* product.c */
/* Part `i` of a matrix [n,k] of a code that is not CODE_PLAIN; false when it has none, nor any after it. */
struct cuda_part {
    const char *name;
    enum dtype dtype;
    int rank;
    int64_t shape[2];
};
bool cuda_part(enum weight_code code, int64_t n, int64_t k, int i, struct cuda_part *out);
/* The parts that a code has are there in their dtypes and shapes. */
bool cuda_check_parts(const struct queue *q, const char *name, const struct packed_matrix *w, struct err *e) ERR_CHECK;
bool cuda_panels_new(struct queue *q, struct tensor *out, int64_t n, int64_t k, enum dtype mode,
                     struct err *e) ERR_CHECK;
bool cuda_pack(struct queue *q, const struct tensor *w, int64_t first, struct tensor *panels, struct err *e) ERR_CHECK;
bool cuda_unpack(struct queue *q, const struct packed_matrix *w, int64_t first, struct tensor *panels,
                 struct err *e) ERR_CHECK;
bool cuda_encode(struct queue *q, const struct tensor *w, float amax, struct packed_matrix *out, struct tensor *d,
                 struct err *e) ERR_CHECK;
bool cuda_matmul(struct queue *q, const struct tensor *x, const struct tensor *w, struct tensor *y,
                 struct err *e) ERR_CHECK;
bool cuda_matmul_part(struct queue *q, const struct tensor *x, const struct tensor *w, int64_t first, struct tensor *y,
                      struct err *e) ERR_CHECK;

/* solver.c */
struct solver;
void cuda_solver_free(struct solver *s); /* NULL is fine */
bool cuda_cholesky(struct queue *q, struct tensor *a, struct err *e) ERR_CHECK;

/* native.c */
bool cuda_native_fits(struct queue *q, enum weight_code code, enum act_rule rule, int64_t n, int64_t k, bool *fits,
                      struct err *e) ERR_CHECK;
size_t cuda_native_bytes(enum weight_code code, int64_t n, int64_t k);
bool cuda_native_new(struct queue *q, enum weight_code code, int64_t n, int64_t k, struct native_matrix *out,
                     struct err *e) ERR_CHECK;
void cuda_native_free(struct queue *q, struct native_matrix *w);
bool cuda_native_pack(struct queue *q, const struct packed_matrix *w, int64_t first, struct native_matrix *out,
                      struct err *e) ERR_CHECK;
bool cuda_native_matmul(struct queue *q, const struct tensor *x, float scale, enum dtype mode,
                        const struct native_matrix *w, struct tensor *y, struct err *e) ERR_CHECK;

#endif
