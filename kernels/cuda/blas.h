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
    BLAS_FP8,  /* operands in E4M3 without scales; the device decides how exactly it sums them, here and below */
    BLAS_NVFP4, /* operands in E2M1, two a byte, each with E4M3 scales per 16 in the order of scales.h */
    BLAS_MXFP8, /* operands in E4M3, each with E8M0 scales per 32 in the order of scales.h */
    BLAS_FP8_GROUP, /* operands in E4M3, each with f32 scales per 128: [ceil(k / 128), its rows] */
    BLAS_INT8   /* operands in integers of 8 bits without scales, sums and y in 32 bits */
};

/* On the current device. `stream` is where the products run. */
bool blas_new(struct blas **out, cudaStream_t stream, struct err *e) ERR_CHECK;
void blas_free(struct blas *b); /* NULL is fine */

/* y [rows, n] f32 (i32 of BLAS_INT8) = alpha x [rows, k] w^T, w [n, k]; row-major without gaps, on the device, aligned
 * to 16 bytes, and so must be every row: n a multiple of 4, or of 16 for the formats below bf16; k a multiple of 16, or
 * of 32 for NVFP4 and MXFP8. */
struct blas_call {
    enum blas_type type;
    int64_t rows, n, k;
    const void *x, *w;
    const void *x_scales, *w_scales; /* where the type has them */
    float alpha;                     /* 0: 1; 1 of BLAS_INT8 */
    void *y;
};
bool blas_product(struct blas *b, const struct blas_call *c, struct err *e) ERR_CHECK;
/* Has the library an algorithm for a product of this type and shape? It is kept for the product to come. */
bool blas_fits(struct blas *b, enum blas_type type, int64_t rows, int64_t n, int64_t k, bool *fits,
               struct err *e) ERR_CHECK;
/* Is it the first product of its shape on this queue? */
bool blas_is_new(const struct blas *b, enum blas_type type, int64_t rows, int64_t n, int64_t k);

/* One line per shape that was used: "bf16 2048x17408x5120: algorithm 66, tile 20, stages 36", into `out`; returns
 * `out`. */
const char *blas_text(const struct blas *b, char *out, size_t size);

/* The version of the library as it counts it (130002), 0 when it is not there. */
size_t blas_version(void);

#endif
