#ifndef KERNELS_CUDA_BLAS_H
#define KERNELS_CUDA_BLAS_H
/* Matrix products through cuBLASLt, so that a row's bits never depend on its batch (performance 6): the same algorithm
 * for every call of a shape, found once, no split of the sum over k, and a number of rows that the caller keeps fixed.
 * A struct blas belongs to one queue. */
#include <cuda_runtime_api.h>
#include <stdint.h>

#include "engine/base/err.h"

struct blas;

enum blas_type {
    BLAS_F32,  /* operands and sums in f32, no tf32 */
    BLAS_BF16, /* operands in bf16, sums in f32 */
};

/* On the current device. `stream` is where the products run. */
bool blas_new(struct blas **out, cudaStream_t stream, struct err *e) ERR_CHECK;
void blas_free(struct blas *b); /* NULL is fine */

/* y [rows, n] f32 = x [rows, k] w^T, w [n, k]; row-major without gaps, on the device, aligned to 16 bytes; k a multiple
 * of 16. */
bool blas_product(struct blas *b, enum blas_type type, int64_t rows, int64_t n, int64_t k, const void *x, const void *w,
                  float *y, struct err *e) ERR_CHECK;

/* One line per shape that was used: "bf16 2048x17408x5120: algorithm 66, tile 20, stages 36", into `out`; returns
 * `out`. */
const char *blas_text(const struct blas *b, char *out, size_t size);

/* The version of the library as it counts it (130002), 0 when it is not there. */
size_t blas_version(void);

#endif
