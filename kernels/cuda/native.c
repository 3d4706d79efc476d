/* Products in the hardware's own low-precision formats. A native matrix holds the codes as they are stored, its rows
 * and columns padded with zeros to what the library wants, and its scales in the order in which it, or a kernel of
 * ours, reads them. Rows of x go through in blocks of a fixed number, as in product.c and for the same reason. */
#include <string.h>

#include "kernels/cuda/cuda.h"
#include "kernels/cuda/scales.h"
#include "kernels/shape.h"

enum order {
    OF_ROWS,  /* f32 [rows]: ours, on the sums */
    IN_TILES, /* a byte for each block of columns, as scales.h has them */
    OF_GROUPS /* f32 [groups of 128 columns, rows] */
};

/* How each code is multiplied, and with which inputs. A tile of weights of CODE_FP8_BLOCK has its scale repeated for
 * each of its rows: the library could take one for 128 x 128, but only if all matrices of a product began at such a
 * row. */
static const struct native {
    enum act_rule rule; /* ACT_NONE: not at all */
    enum blas_type type;
    enum order order;
    int multiple; /* that columns are padded to: at least 16 bytes */
    double error;
} natives[CODE_COUNT] = {
    [CODE_FP8] = {ACT_FP8_TOKEN, BLAS_FP8, OF_ROWS, 16, NATIVE_ERROR_FP8},
    [CODE_NVFP4] = {ACT_NVFP4, BLAS_NVFP4, IN_TILES, 32, NATIVE_ERROR_NVFP4},
    [CODE_FP8_BLOCK] = {ACT_FP8_GROUP, BLAS_FP8_GROUP, OF_GROUPS, 128, NATIVE_ERROR_FP8_BLOCK},
    [CODE_MXFP8] = {ACT_MXFP8, BLAS_MXFP8, IN_TILES, 32, NATIVE_ERROR_MXFP8},
    [CODE_INT8] = {ACT_INT8_TOKEN, BLAS_INT8, OF_ROWS, 16, NATIVE_ERROR_INT8},
};
#define MOST_INT8_COLUMNS 131071 /* so many products of -128 with -128 fit in 32 bits */

enum act_rule cuda_native_rule(enum weight_code code) { return natives[code].rule; }
double cuda_native_error(enum weight_code code) { return natives[code].error; }

static int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }
static int64_t padded_rows(int64_t n) { return round_up(n, 16); }
static int64_t padded_columns(enum weight_code code, int64_t k) { return round_up(k, natives[code].multiple); }
static size_t row_bytes(enum weight_code code, int64_t k)
{
    return (size_t)(k * grid_bits(weight_grid[code].element) / 8);
}
static size_t code_bytes(enum weight_code code, int64_t rows, int64_t k)
{
    return (size_t)rows * row_bytes(code, padded_columns(code, k));
}
/* Columns that share a scale, and how many scales a row of codes has. */
static int block_of(enum weight_code code) { return weight_grid[code].columns; }
static int64_t blocks_of(enum weight_code code, int64_t k) { return padded_columns(code, k) / block_of(code); }
static size_t scale_room(enum weight_code code, int64_t rows, int64_t k)
{
    switch (natives[code].order) {
    case IN_TILES:
        return (size_t)scale_bytes(rows, blocks_of(code, k));
    case OF_GROUPS:
        return (size_t)(rows * blocks_of(code, k)) * sizeof(float);
    default:
        return (size_t)rows * sizeof(float);
    }
}

/* Shapes that a code has, and whose sums are right. */
static bool is_possible(enum weight_code code, int64_t n, int64_t k)
{
    if ((unsigned)code >= CODE_COUNT || natives[code].rule == ACT_NONE || n < 1 || k < 1)
        return false;
    if (natives[code].order == IN_TILES && k % block_of(code) != 0)
        return false;
    return code != CODE_INT8 || k <= MOST_INT8_COLUMNS;
}

bool cuda_native_fits(struct queue *q, enum weight_code code, enum act_rule rule, int64_t n, int64_t k, bool *fits,
                      struct err *e)
{
    if (!is_possible(code, n, k) || rule != natives[code].rule || !cuda_native_agrees(q, code)) {
        *fits = false;
        return true;
    }
    return blas_fits(cuda_queue(q)->blas, natives[code].type, cuda_queue(q)->rows, padded_rows(n),
                     padded_columns(code, k), fits, e);
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
    if (!is_possible(code, n, k))
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

static cudaError_t pack_scales(struct queue *q, const struct packed_matrix *w, int64_t first,
                               struct native_matrix *out)
{
    const void *from = w->part[1].data;
    switch (natives[w->code].order) {
    case IN_TILES:
        return launch_place_scales(cuda_launch(q), from, w->n, w->k / block_of(w->code), first,
                                   blocks_of(w->code, w->k), out->scales.data);
    case OF_GROUPS:
        return launch_spread_scales(cuda_launch(q), from, w->n, blocks_of(w->code, w->k),
                                    (float *)out->scales.data + first, padded_rows(out->n));
    default:
        return cudaMemcpyAsync((float *)out->scales.data + first, from, (size_t)w->n * sizeof(float),
                               cudaMemcpyDeviceToDevice, cuda_queue(q)->stream);
    }
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
    size_t row = code_bytes(w->code, 1, w->k), given = row_bytes(w->code, w->k);
    cudaError_t error = cudaMemcpy2DAsync((char *)out->codes.data + (size_t)first * row, row, w->part[0].data, given,
                                          given, (size_t)w->n, cudaMemcpyDeviceToDevice, stream);
    if (error == cudaSuccess)
        error = pack_scales(q, w, first, out);
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
    struct launch l = cuda_launch(q);
    int64_t k = w->k, stride = padded_columns(w->code, w->k);
    void *codes = c->x.data, *scales = c->x_scales.data;
    cudaError_t error;
    if (w->code == CODE_FP8)
        error = launch_fp8_codes(l, x, given, k, rows, stride, bf16, codes, scales);
    else if (w->code == CODE_INT8)
        error = launch_int8_codes(l, x, given, k, rows, stride, bf16, codes, scales);
    else if (w->code == CODE_FP8_BLOCK)
        error = launch_fp8_group_codes(l, x, given, k, rows, stride, bf16, codes, scales);
    else if (w->code == CODE_MXFP8)
        error = launch_mxfp8_codes(l, x, given, k, rows, stride, bf16, codes, scales);
    else
        error = launch_nvfp4_codes(l, x, given, k, rows, stride, scale, bf16, codes, scales);
    return cuda_ok(q, error, "native_matmul: codes", e);
}

/* The first `given` rows of the sums in room y become rows of the result. */
static bool finish_rows(struct queue *q, int64_t given, const struct native_matrix *w, float *y, struct err *e)
{
    struct cuda_queue *c = cuda_queue(q);
    int64_t stride = padded_rows(w->n);
    if (natives[w->code].order == OF_ROWS)
        return cuda_ok(q, launch_scale_sums(cuda_launch(q), c->y.data, w->code == CODE_INT8, given, w->n, stride,
                                            c->x_scales.data, w->scales.data, y), "native_matmul: scales", e);
    return cuda_ok(q, cudaMemcpy2DAsync(y, (size_t)w->n * sizeof *y, c->y.data, (size_t)stride * sizeof *y,
                                        (size_t)w->n * sizeof *y, (size_t)given, cudaMemcpyDeviceToDevice, c->stream),
                   "native_matmul: rows", e);
}

static bool check_matmul(const struct queue *q, const struct tensor *x, float scale, enum dtype mode,
                         const struct native_matrix *w, const struct tensor *y, struct err *e)
{
    enum act_rule rule = natives[w->code].rule;
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
    bool straight = natives[w->code].order != OF_ROWS && given == rows && n == w->n;
    if ((!straight && !cuda_room(q, &c->y, (size_t)(rows * n) * sizeof(float), e)) ||
        !encode_rows(q, (const float *)x->data + at * w->k, given, rows, scale, bf16, w, e))
        return false;
    const struct blas_call call = {.type = natives[w->code].type, .rows = rows, .n = n,
                                   .k = padded_columns(w->code, w->k), .x = c->x.data, .w = w->codes.data,
                                   .x_scales = c->x_scales.data, .w_scales = w->scales.data, .alpha = alpha,
                                   .y = straight ? out : c->y.data};
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
