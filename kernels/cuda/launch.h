#ifndef KERNELS_CUDA_LAUNCH_H
#define KERNELS_CUDA_LAUNCH_H
/* The device kernels as C sees them: raw device pointers and sizes that entries.c has checked. A launcher only enqueues
 * and returns the launch's status. All matrices are row-major. In C++ this is the interface of the .cu files.
 *
 * No bit of a row depends on the number of rows or of processors: each row (or element) is computed by one block (or
 * thread) in an order of its own. */
#include <cuda_runtime_api.h>
#include <stdint.h>

#include "kernels/grid.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Where to launch: the number of multiprocessors only decides how many blocks share the work. */
struct launch {
    cudaStream_t stream;
    int processors;
};

/* -- elementwise.cu: bits of the CPU's ----------------------------------------------------------------------------- */
cudaError_t launch_add(struct launch l, float *x, const float *d, int64_t n);
cudaError_t launch_subtract(struct launch l, const float *a, const float *b, float *d, int64_t n);
cudaError_t launch_add_bias(struct launch l, float *y, const float *b, int64_t rows, int64_t n);
cudaError_t launch_swiglu(struct launch l, const float *gu, float *y, int64_t rows, int64_t n);
cudaError_t launch_swiglu_backward(struct launch l, const float *gu, const float *dy, float *dgu, int64_t rows,
                                   int64_t n);
/* table [V,h] in a dtype of PLAIN_*. */
enum plain { PLAIN_F32, PLAIN_BF16, PLAIN_F16 };
cudaError_t launch_embed(struct launch l, const void *table, enum plain type, const int32_t *ids, int64_t rows,
                         int64_t h, float *y);
cudaError_t launch_rope(struct launch l, float *qkv, int64_t rows, int64_t heads, int64_t rotated, int64_t head_dim,
                        int64_t window, const float *cosine, const float *sine);
/* out [rows, stride] = x [given, k] in f32 or bf16 (to nearest even), with zeros past the given rows and past k. */
cudaError_t launch_rows(struct launch l, const float *x, int64_t given, int64_t k, int64_t rows, int64_t stride,
                        int bf16, void *out);

/* -- norm.cu ------------------------------------------------------------------------------------------------------- */
/* x += d unless d is NULL; y = w * (x / sqrt(mean(x^2) + eps)). y may be x when d is NULL. */
cudaError_t launch_rmsnorm(struct launch l, float *x, const float *d, const float *w, float eps, int64_t rows,
                           int64_t h, float *y);

cudaError_t launch_rmsnorm_backward(struct launch l, const float *x, const float *w, float eps, const float *dy,
                                    int64_t rows, int64_t h, float *dx);

/* -- attention.cu, attention_backward.cu --------------------------------------------------------------------------- */
#define ATTENTION_HEAD_DIM 256 /* the largest */
cudaError_t launch_attention(struct launch l, const float *qkv, int64_t rows, int heads, int kv_heads, int head_dim,
                             int window, float *out);
/* Working memory: ATTENTION_STATS f32 per row and head. */
#define ATTENTION_STATS 3
cudaError_t launch_attention_backward(struct launch l, const float *qkv, const float *out, const float *dout,
                                      int64_t rows, int heads, int kv_heads, int head_dim, int window, float *stats,
                                      float *dqkv);

/* -- fake_quantize.cu: bits of the CPU's; k a multiple of the columns that share a scale, but for fp8 and int8 ----- */
cudaError_t launch_round(struct launch l, const float *x, int64_t n, int bf16, float *y);
cudaError_t launch_nvfp4_input(struct launch l, const float *x, int64_t rows, int64_t k, float scale, int bf16,
                               float *y);
cudaError_t launch_mxfp4_input(struct launch l, const float *x, int64_t rows, int64_t k, int bf16, float *y);
cudaError_t launch_mxfp8_input(struct launch l, const float *x, int64_t rows, int64_t k, int bf16, float *y);
cudaError_t launch_fp8_input(struct launch l, const float *x, int64_t rows, int64_t k, int bf16, float *y);
cudaError_t launch_fp8_group_input(struct launch l, const float *x, int64_t rows, int64_t k, int bf16, float *y);
cudaError_t launch_int8_input(struct launch l, const float *x, int64_t rows, int64_t k, int bf16, float *y);

/* -- reduce.cu ----------------------------------------------------------------------------------------------------- */
/* *bits = max(*bits, bits of max|x|); at least 0x7f800000 when an element is not finite. Exact. */
cudaError_t launch_amax(struct launch l, const float *x, int64_t n, uint32_t *bits);
/* h [k,k] += x^T x on and below the diagonal, with the bits of the CPU's. */
cudaError_t launch_gram(struct launch l, const float *x, int64_t rows, int64_t k, double *h);
/* sums[2 r] = sum of d[r]^2, sums[2 r + 1] = sum of d[r] y[r], in f64. */
cudaError_t launch_energy(struct launch l, const float *d, const float *y, int64_t rows, int64_t k, double *sums);
/* Of each sequence of `window` rows the sum of a b in f64 and, unless square is NULL, that of (a b)^2. `part` is for
 * two f64 per DOT_ROWS rows of a sequence, or what is left of them. */
#define DOT_ROWS 8
cudaError_t launch_dots(struct launch l, const float *a, const float *b, int64_t sequences, int64_t window, int64_t n,
                        double *part, double *dot, double *square);

/* Copies the first row over the others; row_bytes a multiple of 16. */
cudaError_t launch_repeat(struct launch l, void *x, int64_t rows, int64_t row_bytes);
/* *differs = 1 if some row of y [rows, n] has other bits than the first. */
cudaError_t launch_differ(struct launch l, const float *y, int64_t rows, int64_t n, uint32_t *differs);

/* -- kl.cu --------------------------------------------------------------------------------------------------------- */
/* The arrays of struct kl_state. */
struct kl_arrays {
    double *max_t, *sum_t, *max_c, *sum_c, *cross;
    float *best_t, *best_c, *target_t, *target_c;
    int32_t *arg_t, *arg_c;
    const int32_t *target;
};
cudaError_t launch_kl(struct launch l, const float *s_t, const float *s_c, int64_t rows, int64_t columns, int64_t first,
                      struct kl_arrays state);

/* -- draw.cu ------------------------------------------------------------------------------------------------------- */
/* In place, a draw of fisher_draw for each row of logits s [rows, n]; seeds on the device. */
cudaError_t launch_draw(struct launch l, float *s, int64_t rows, int64_t n, int signs, const uint64_t *seeds);

/* -- transpose.cu -------------------------------------------------------------------------------------------------- */
/* out [k, out_stride] = the transpose of w [n, stride], of which k columns count; zeros past n. */
cudaError_t launch_transpose(struct launch l, const void *w, int64_t n, int64_t k, int64_t stride, int64_t out_stride,
                             int bf16, void *out);

/* -- unpack.cu, encode.cu ------------------------------------------------------------------------------------------ */
/* A quantized matrix [n,k] as its format stores it (kernels/grid.h), of any code but CODE_PLAIN. */
struct coded {
    struct grid grid;
    int64_t n, k; /* k is a multiple of grid.columns where a block is of one row and not the whole of it */
    void *codes, *scales;
    const float *global; /* the divisor of SCALE_E4M3, on the device */
};
/* i >> coded_shift(size) is the block of index i, for blocks of `size`, a power of two; 0: all are of one. */
static inline int coded_shift(int size)
{
    int shift = 0;
    while (1 << shift < size)
        shift++;
    return size > 0 ? shift : 62;
}
/* Weights to rows of panels [., stride] in f32 or bf16 (to nearest even); columns past k become zero. The f32 value of
 * a weight is that of its format's `decode`. */
cudaError_t launch_unpack_plain(struct launch l, const void *w, enum plain type, int64_t n, int64_t k, int64_t stride,
                                int bf16, void *panels);
cudaError_t launch_unpack(struct launch l, struct coded w, int64_t stride, int bf16, void *panels);
/* w [n,k] to codes and scales with the bits of the format's `encode`, and d = w - decoded. The divisor is given here,
 * and out.global is not touched. */
cudaError_t launch_encode(struct launch l, const float *w, struct coded out, float global, float *d);

/* -- native.cu: operands of products in the hardware's own formats, with the codes of fake_quantize.cu ------------- */
/* Rows [0, given) of x [given, k] as codes [rows, stride] and a scale per row; zeros past the given rows and past k. */
cudaError_t launch_fp8_codes(struct launch l, const float *x, int64_t given, int64_t k, int64_t rows, int64_t stride,
                             int bf16, uint8_t *codes, float *scales);
cudaError_t launch_int8_codes(struct launch l, const float *x, int64_t given, int64_t k, int64_t rows, int64_t stride,
                              int bf16, uint8_t *codes, float *scales);
/* The same with scales [stride / 128, rows] per 128 columns; stride a multiple of 128. */
cudaError_t launch_fp8_group_codes(struct launch l, const float *x, int64_t given, int64_t k, int64_t rows,
                                   int64_t stride, int bf16, uint8_t *codes, float *scales);
/* The same with scales per 32 in the order of scales.h for all its tiles, */
cudaError_t launch_mxfp8_codes(struct launch l, const float *x, int64_t given, int64_t k, int64_t rows, int64_t stride,
                               int bf16, uint8_t *codes, uint8_t *scales);
/* and per 16, with two codes a byte, [rows, stride / 2]. */
cudaError_t launch_nvfp4_codes(struct launch l, const float *x, int64_t given, int64_t k, int64_t rows, int64_t stride,
                               float global, int bf16, uint8_t *codes, uint8_t *scales);
/* scales [n, columns] as stored, to rows [first, first + n) of the order of scales.h, `stride` columns a row. */
cudaError_t launch_place_scales(struct launch l, const uint8_t *scales, int64_t n, int64_t columns, int64_t first,
                                int64_t stride, uint8_t *out);
/* scales [ceil(n / 128), groups] of tiles, to out [groups, stride]: one for each of n rows. */
cudaError_t launch_spread_scales(struct launch l, const float *scales, int64_t n, int64_t groups, float *out,
                                 int64_t stride);
/* y [rows, n] = sums [rows, stride], which are f32 or, with `whole`, i32, times a factor per row and one per column. */
cudaError_t launch_scale_sums(struct launch l, const void *sums, int whole, int64_t rows, int64_t n, int64_t stride,
                              const float *of_row, const float *of_column, float *y);

#ifdef __cplusplus
}
#endif
#endif
