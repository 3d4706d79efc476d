/* Products in the hardware's own low-precision formats. A native matrix holds the codes as they are stored, its rows
 * and columns padded with zeros to what the library wants, and its scales: for FP8 one f32 a row, for NVFP4 one E4M3
 * per 16 in the order of scales.h. Rows of x go through in blocks of a fixed number, as in product.c and for the
 * same reason. */
#include <string.h>

#include "kernels/cuda/cuda.h"
#include "kernels/cuda/scales.h"
#include "kernels/shape.h"

#define BLOCK 16

static int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

/* Rows of 16 bytes and more: codes of FP8 are one a byte, of NVFP4 two. */
static int64_t padded_rows(int64_t n) { return round_up(n, 16); }
static int64_t padded_columns(enum weight_code code, int64_t k) { return round_up(k, code == CODE_NVFP4 ? 32 : 16); }
static size_t code_bytes(enum weight_code code, int64_t rows, int64_t k)
{
    return (size_t)(rows * padded_columns(code, k)) / (code == CODE_NVFP4 ? 2 : 1);
}
static size_t scale_room(enum weight_code code, int64_t rows, int64_t k)
{
    if (code == CODE_NVFP4)
        return (size_t)scale_bytes(rows, padded_columns(code, k) / BLOCK);
    return (size_t)rows * sizeof(float);
}
static enum blas_type type_of(enum weight_code code) { return code == CODE_NVFP4 ? BLAS_NVFP4 : BLAS_FP8; }

bool cuda_native_fits(struct queue *q, enum weight_code code, enum act_rule rule, int64_t n, int64_t k, bool *fits,
                      struct err *e)
{
    bool pair = (code == CODE_FP8 && rule == ACT_FP8_TOKEN) || (code == CODE_NVFP4 && rule == ACT_NVFP4);
    if (!pair || n < 1 || k < 1 || (code == CODE_NVFP4 && k % BLOCK != 0) || !cuda_native_agrees(q, code)) {
        *fits = false;
        return true;
    }
    return blas_fits(cuda_queue(q)->blas, type_of(code), cuda_queue(q)->rows, padded_rows(n), padded_columns(code, k),
                     fits, e);
}

size_t cuda_native_bytes(enum weight_code code, int64_t n, int64_t k)
{
    return code_bytes(code, padded_rows(n), k) + scale_room(code, padded_rows(n), k);
}

void cuda_native_free(struct queue *q, struct native_matrix *w)
{
    cuda_tensor_free(q, &w->codes);
    cuda_tensor_free(q, &w->scales);
    memset(w, 0, sizeof *w);
}

static bool new_zeros(struct queue *q, struct tensor *out, size_t bytes, struct err *e)
{
    int64_t shape = (int64_t)bytes;
    return cuda_tensor_new(q, out, DTYPE_U8, 1, &shape, e) &&
           cuda_ok(q, cudaMemsetAsync(out->data, 0, bytes, cuda_queue(q)->stream), "native_new", e);
}

bool cuda_native_new(struct queue *q, enum weight_code code, int64_t n, int64_t k, struct native_matrix *out,
                     struct err *e)
{
    struct native_matrix made = {.code = code, .n = n, .k = k};
    if ((code != CODE_FP8 && code != CODE_NVFP4) || n < 1 || k < 1 || (code == CODE_NVFP4 && k % BLOCK != 0))
        return err_set(e, ERR_BUG, "native_new: code %d of {%lld, %lld}", (int)code, (long long)n, (long long)k);
    if (!new_zeros(q, &made.codes, code_bytes(code, padded_rows(n), k), e) ||
        !new_zeros(q, &made.scales, scale_room(code, padded_rows(n), k), e)) {
        cuda_native_free(q, &made);
        return false;
    }
    *out = made;
    return true;
}

/* The global scale of `w` becomes that of `out`, or is it already. */
static bool take_global(struct queue *q, const struct packed_matrix *w, struct native_matrix *out, struct err *e)
{
    float global;
    if (!cuda_download(q, &global, &w->part[2], sizeof global, e))
        return false;
    if (!(global > 0.0f && global < INFINITY))
        return err_set(e, ERR_INPUT, "native_pack: global scale %g, expected positive and finite", (double)global);
    if (out->global != 0.0f && out->global != global)
        return err_set(e, ERR_INPUT, "native_pack: global scale %.9g beside %.9g: matrices of one product must share "
                       "it", (double)global, (double)out->global);
    out->global = global;
    return true;
}

bool cuda_native_pack(struct queue *q, const struct packed_matrix *w, int64_t first, struct native_matrix *out,
                      struct err *e)
{
    if (w->code != out->code || w->k != out->k || first < 0 || w->n > out->n - first)
        return err_set(e, ERR_BUG, "native_pack: code %d, rows %lld to %lld of %lld, k %lld: expected code %d, k %lld",
                       (int)w->code, (long long)first, (long long)(first + w->n), (long long)out->n, (long long)w->k,
                       (int)out->code, (long long)out->k);
    if (!cuda_check_parts(q, "native_pack", w, e) || (w->code == CODE_NVFP4 && !take_global(q, w, out, e)))
        return false;
    cudaStream_t stream = cuda_queue(q)->stream;
    size_t row = code_bytes(w->code, 1, w->k), given = (size_t)w->k / (w->code == CODE_NVFP4 ? 2 : 1);
    cudaError_t error = cudaMemcpy2DAsync((char *)out->codes.data + (size_t)first * row, row, w->part[0].data, given,
                                          given, (size_t)w->n, cudaMemcpyDeviceToDevice, stream);
    if (error != cudaSuccess)
        return cuda_ok(q, error, "native_pack", e);
    if (w->code == CODE_FP8)
        error = cudaMemcpyAsync((float *)out->scales.data + first, w->part[1].data, (size_t)w->n * sizeof(float),
                                cudaMemcpyDeviceToDevice, stream);
    else
        error = launch_place_scales(cuda_launch(q), w->part[1].data, w->n, w->k / BLOCK, first,
                                    padded_columns(w->code, w->k) / BLOCK, out->scales.data);
    return cuda_ok(q, error, "native_pack", e);
}

/* -------------------------------------------------------------------------------------------------------- products */

/* The factor of the sums: 1 / (gs_x gs_w) for NVFP4. A library may take a denormal one for zero. */
static bool alpha_of(const struct native_matrix *w, float scale, float *alpha, struct err *e)
{
    double exact = w->code == CODE_NVFP4 ? 1.0 / ((double)scale * (double)w->global) : 1.0;
    if (w->code == CODE_NVFP4 && w->global == 0.0f)
        return err_set(e, ERR_BUG, "native_matmul: no row of the weights has been packed");
    if (!(exact >= 0x1p-126 && exact < 0x1p127))
        return err_set(e, ERR_NUMERIC, "native_matmul: the global scales %g of the input and %g of the weights "
                       "multiply to what f32 cannot hold the inverse of", (double)scale, (double)w->global);
    *alpha = (float)exact;
    return true;
}

/* Rows [0, given) of x as codes in room x and scales in room x_scales, and `rows` rows in all. */
static bool encode_rows(struct queue *q, const float *x, int64_t given, int64_t rows, float scale, int bf16,
                        const struct native_matrix *w, struct err *e)
{
    struct cuda_queue *c = cuda_queue(q);
    int64_t stride = padded_columns(w->code, w->k);
    cudaError_t error;
    if (w->code == CODE_FP8)
        error = launch_fp8_codes(cuda_launch(q), x, given, w->k, rows, stride, bf16, c->x.data, c->x_scales.data);
    else
        error = launch_nvfp4_codes(cuda_launch(q), x, given, w->k, rows, stride, scale, bf16, c->x.data,
                                   c->x_scales.data);
    return cuda_ok(q, error, "native_matmul: codes", e);
}

/* The first `given` rows of the sums in room y become rows of the result. */
static bool finish_rows(struct queue *q, int64_t given, const struct native_matrix *w, float *y, struct err *e)
{
    struct cuda_queue *c = cuda_queue(q);
    int64_t stride = padded_rows(w->n);
    if (w->code == CODE_FP8)
        return cuda_ok(q, launch_scale_sums(cuda_launch(q), c->y.data, given, w->n, stride, c->x_scales.data,
                                            w->scales.data, y), "native_matmul: scales", e);
    return cuda_ok(q, cudaMemcpy2DAsync(y, (size_t)w->n * sizeof *y, c->y.data, (size_t)stride * sizeof *y,
                                        (size_t)w->n * sizeof *y, (size_t)given, cudaMemcpyDeviceToDevice, c->stream),
                   "native_matmul: rows", e);
}

static bool check_matmul(const struct queue *q, const struct tensor *x, float scale, enum dtype mode,
                         const struct native_matrix *w, const struct tensor *y, struct err *e)
{
    enum act_rule rule = w->code == CODE_NVFP4 ? ACT_NVFP4 : ACT_FP8_TOKEN;
    return shape_matrix(q, "native_matmul", "x", x, DTYPE_F32, -1, w->k, e) &&
           shape_matrix(q, "native_matmul", "y", y, DTYPE_F32, x->shape[0], w->n, e) &&
           (shape_fake_quantize(q, x, rule, scale, mode, x, e) || err_context(e, "native_matmul"));
}

/* Rows [at, at + given) of the result. */
static bool multiply_rows(struct queue *q, const struct tensor *x, int64_t at, int64_t given, float scale, int bf16,
                          const struct native_matrix *w, float alpha, struct tensor *y, struct err *e)
{
    struct cuda_queue *c = cuda_queue(q);
    int64_t rows = c->rows, n = padded_rows(w->n);
    float *out = (float *)y->data + at * w->n;
    bool straight = w->code == CODE_NVFP4 && given == rows && n == w->n;
    if ((!straight && !cuda_room(q, &c->y, (size_t)(rows * n) * sizeof(float), e)) ||
        !encode_rows(q, (const float *)x->data + at * w->k, given, rows, scale, bf16, w, e))
        return false;
    const struct blas_call call = {.type = type_of(w->code), .rows = rows, .n = n, .k = padded_columns(w->code, w->k),
                                   .x = c->x.data, .w = w->codes.data, .x_scales = c->x_scales.data,
                                   .w_scales = w->scales.data, .alpha = alpha, .y = straight ? out : c->y.data};
    if (!blas_product(c->blas, &call, e))
        return err_context(e, "cuda:%d", q->device);
    return straight || finish_rows(q, given, w, out, e);
}

bool cuda_native_matmul(struct queue *q, const struct tensor *x, float scale, enum dtype mode,
                        const struct native_matrix *w, struct tensor *y, struct err *e)
{
    struct cuda_queue *c = cuda_queue(q);
    int64_t t = x->shape[0], rows = c->rows;
    float alpha = 0.0f;
    if (!check_matmul(q, x, scale, mode, w, y, e) || !alpha_of(w, scale, &alpha, e) ||
        !cuda_room(q, &c->x, code_bytes(w->code, rows, w->k), e) ||
        !cuda_room(q, &c->x_scales, scale_room(w->code, rows, w->k), e))
        return false;
    for (int64_t at = 0; at < t; at += rows)
        if (!multiply_rows(q, x, at, t - at < rows ? t - at : rows, scale, mode == DTYPE_BF16, w, alpha, y, e))
            return false;
    return true;
}
