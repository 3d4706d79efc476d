/* Panels and products. Panels are the weight matrix in the mode's dtype, row-major, its columns padded with zeros to a
 * multiple of 16. A product takes its rows in blocks of a fixed number, the last one filled up with zeros: then the
 * library sees one shape only, and a row's bits do not depend on how many rows came with it. */
#include "engine/base/mem.h"
#include "kernels/cuda/cuda.h"
#include "kernels/shape.h"

/* Rows that panels of n rows have room for: what is past n is zero. */
static int64_t panel_rows(int64_t n) { return (n + 3) / 4 * 4; }

bool cuda_panels_new(struct queue *q, struct tensor *out, int64_t n, int64_t k, enum dtype mode, struct err *e)
{
    if (n < 1 || k < 1)
        return err_set(e, ERR_BUG, "panels_new: {%lld, %lld}, expected at least {1, 1}", (long long)n, (long long)k);
    if (mode != DTYPE_F32 && mode != DTYPE_BF16)
        return err_set(e, ERR_BUG, "panels_new: mode %s, expected f32 or bf16", dtype_info(mode)->name);
    int64_t padded[2] = {panel_rows(n), cuda_stride(k)};
    size_t row = (size_t)padded[1] * dtype_bytes(mode);
    struct tensor made;
    if (!cuda_tensor_new(q, &made, mode, 2, padded, e))
        return false;
    if (padded[0] > n && !cuda_ok(q, cudaMemsetAsync((char *)made.data + (size_t)n * row, 0,
                                                     (size_t)(padded[0] - n) * row, cuda_queue(q)->stream),
                                  "panels_new", e)) {
        cuda_tensor_free(q, &made);
        return false;
    }
    made.layout = TENSOR_PANELS;
    made.shape[0] = n;
    made.shape[1] = k;
    *out = made;
    return true;
}

static bool is_bf16(const struct tensor *panels) { return panels->dtype == DTYPE_BF16; }

static char *panel_row(const struct tensor *panels, int64_t row)
{
    return (char *)panels->data + (size_t)(row * cuda_stride(panels->shape[1])) * dtype_bytes(panels->dtype);
}

static bool check_rows(struct queue *q, const char *name, const struct tensor *panels, int64_t first, int64_t n,
                       int64_t k, struct err *e)
{
    if (!shape_panels(q, name, "panels", panels, -1, k, e))
        return false;
    if (first < 0 || n > panels->shape[0] - first)
        return err_set(e, ERR_BUG, "%s: rows %lld to %lld of %lld", name, (long long)first, (long long)(first + n),
                       (long long)panels->shape[0]);
    return true;
}

bool cuda_pack(struct queue *q, const struct tensor *w, int64_t first, struct tensor *panels, struct err *e)
{
    struct packed_matrix plain = {.code = CODE_PLAIN, .n = w->shape[0], .k = w->shape[1], .part = {*w}};
    if (!shape_panels(q, "pack", "panels", panels, -1, -1, e) ||
        !shape_matrix(q, "pack", "w", w, DTYPE_F32, -1, panels->shape[1], e))
        return false;
    return cuda_unpack(q, &plain, first, panels, e);
}

static enum plain plain_of(enum dtype t)
{
    return t == DTYPE_F32 ? PLAIN_F32 : t == DTYPE_BF16 ? PLAIN_BF16 : PLAIN_F16;
}

/* How the codes of each element are stored. */
static const struct {
    const char *name;
    enum dtype dtype;
    int codes; /* in one of the dtype */
} stored[] = {[ELEMENT_E2M1] = {"weight_packed", DTYPE_U8, 2},
              [ELEMENT_E4M3] = {"weight", DTYPE_F8_E4M3, 1},
              [ELEMENT_S8] = {"weight", DTYPE_I8, 1},
              [ELEMENT_U4B8] = {"weight_packed", DTYPE_I32, 8},
              [ELEMENT_U8B128] = {"weight_packed", DTYPE_I32, 4}};
static const enum dtype scale_dtype[] = {[SCALE_F32] = DTYPE_F32, [SCALE_BF16] = DTYPE_BF16, [SCALE_E8M0] = DTYPE_U8,
                                         [SCALE_E4M3] = DTYPE_F8_E4M3};

bool cuda_part(enum weight_code code, int64_t n, int64_t k, int i, struct cuda_part *out)
{
    const struct grid *g = &weight_grid[code];
    if (i == 0)
        *out = (struct cuda_part){stored[g->element].name, stored[g->element].dtype, 2,
                                  {n, k / stored[g->element].codes}};
    else if (i == 1)
        *out = (struct cuda_part){"weight_scale", scale_dtype[g->scale], 2,
                                  {grid_scale_rows(g, n), grid_scale_columns(g, k)}};
    else if (i == 2 && g->scale == SCALE_E4M3)
        *out = (struct cuda_part){"weight_global_scale", DTYPE_F32, 1, {1, 1}};
    else
        return false;
    return true;
}

bool cuda_check_parts(const struct queue *q, const char *name, const struct packed_matrix *w, struct err *e)
{
    const struct tensor *p = w->part;
    struct cuda_part part;
    if ((unsigned)w->code >= CODE_COUNT)
        return err_set(e, ERR_BUG, "%s: code %d", name, (int)w->code);
    if (w->code == CODE_PLAIN) {
        enum dtype t = p[0].dtype == DTYPE_BF16 || p[0].dtype == DTYPE_F16 ? p[0].dtype : DTYPE_F32;
        return shape_matrix(q, name, "weight", &p[0], t, w->n, w->k, e);
    }
    const struct grid *g = &weight_grid[w->code];
    int64_t codes = stored[g->element].codes, multiple = g->rows == 1 && g->columns > codes ? g->columns : codes;
    if (w->k % multiple != 0)
        return err_set(e, ERR_BUG, "%s: %lld columns of code %d, expected a multiple of %lld", name, (long long)w->k,
                       (int)w->code, (long long)multiple);
    for (int i = 0; cuda_part(w->code, w->n, w->k, i, &part); i++)
        if (!(part.rank == 2 ? shape_matrix(q, name, part.name, &p[i], part.dtype, part.shape[0], part.shape[1], e)
                             : shape_vector(q, name, part.name, &p[i], part.dtype, part.shape[0], e)))
            return false;
    return true;
}

static struct coded coded_of(const struct packed_matrix *w)
{
    return (struct coded){.grid = weight_grid[w->code], .n = w->n, .k = w->k, .codes = w->part[0].data,
                          .scales = w->part[1].data, .global = w->part[2].data};
}

bool cuda_unpack(struct queue *q, const struct packed_matrix *w, int64_t first, struct tensor *panels, struct err *e)
{
    if (!cuda_check_parts(q, "unpack", w, e) || !check_rows(q, "unpack", panels, first, w->n, w->k, e))
        return false;
    struct launch l = cuda_launch(q);
    int64_t stride = cuda_stride(w->k);
    void *to = panel_row(panels, first);
    cudaError_t error;
    if (w->code == CODE_PLAIN)
        error = launch_unpack_plain(l, w->part[0].data, plain_of(w->part[0].dtype), w->n, w->k, stride, is_bf16(panels),
                                    to);
    else
        error = launch_unpack(l, coded_of(w), stride, is_bf16(panels), to);
    return cuda_ok(q, error, "unpack", e);
}

bool cuda_encode(struct queue *q, const struct tensor *w, float amax, struct packed_matrix *out, struct tensor *d,
                 struct err *e)
{
    if (!shape_matrix(q, "encode", "w", w, DTYPE_F32, out->n, out->k, e) || !cuda_check_parts(q, "encode", out, e) ||
        !shape_matrix(q, "encode", "d", d, DTYPE_F32, out->n, out->k, e))
        return false;
    if (out->code == CODE_PLAIN)
        return err_set(e, ERR_BUG, "encode: code %d is stored as it is", (int)out->code);
    bool shared = weight_grid[out->code].scale == SCALE_E4M3;
    float global = shared ? grid_global(amax) : 1.0f;
    return (!shared || cuda_upload(q, &out->part[2], &global, sizeof global, e)) &&
           cuda_ok(q, launch_encode(cuda_launch(q), w->data, coded_of(out), global, d->data), "encode", e);
}

/* All rows of x the same: then all rows of y must have the same bits, wherever the library's tiles end. Asked once for
 * every shape, on the weights and the first row that come first. The product must be kept from no one but this. */
static bool check_rows_alike(struct queue *q, const struct blas_call *call, size_t row_bytes, struct err *e)
{
    struct cuda_queue *c = cuda_queue(q);
    uint32_t differs = 0;
    if (!cuda_room(q, &c->small, sizeof differs, e) ||
        !cuda_ok(q, cudaMemsetAsync(c->small.data, 0, sizeof differs, c->stream), "product", e) ||
        !cuda_ok(q, launch_repeat(cuda_launch(q), c->x.data, call->rows, (int64_t)row_bytes), "product", e) ||
        !blas_product(c->blas, call, e) ||
        !cuda_ok(q, launch_differ(cuda_launch(q), call->y, call->rows, call->n, c->small.data), "product", e) ||
        !cuda_ok(q, cudaMemcpyAsync(&differs, c->small.data, sizeof differs, cudaMemcpyDeviceToHost, c->stream),
                 "product", e) ||
        !cuda_finish(q, e))
        return false;
    return !differs || err_set(e, ERR_DEVICE, "equal rows of a product [%lld, %lld] over %lld columns differ: a row's "
                               "bits depend on its place; do not use this device with this library",
                               (long long)call->rows, (long long)call->n, (long long)call->k);
}

/* y [T, n] = x [T, k] times n rows of panels, in blocks of `rows` rows. Rows of y that the library writes are padded to
 * a multiple of 4 (blas.h); such, and those of a block that is not full, go through a room of the queue's. */
static bool product(struct queue *q, const struct tensor *x, const struct tensor *w, int64_t first, struct tensor *y,
                    int64_t rows, struct err *e)
{
    struct cuda_queue *c = cuda_queue(q);
    int64_t t = x->shape[0], k = x->shape[1], n = y->shape[1], stride = cuda_stride(k), padded = panel_rows(n);
    struct blas_call call = {.type = is_bf16(w) ? BLAS_BF16 : BLAS_F32, .rows = rows, .n = padded, .k = stride,
                             .w = panel_row(w, first)};
    size_t row_bytes = (size_t)stride * dtype_bytes(w->dtype), width = (size_t)n * sizeof(float);
    bool is_new = blas_is_new(c->blas, call.type, rows, padded, stride);
    if (!cuda_room(q, &c->x, (size_t)rows * row_bytes, e) ||
        ((is_new || padded != n || t % rows != 0) && !cuda_room(q, &c->y, (size_t)(rows * padded) * sizeof(float), e)))
        return false;
    call.x = c->x.data;
    for (int64_t at = 0; at < t; at += rows) {
        int64_t given = t - at < rows ? t - at : rows;
        bool aside = given < rows || padded != n;
        float *out = (float *)y->data + at * n;
        struct launch l = cuda_launch(q);
        const float *from = (const float *)x->data + at * k;
        if (is_new) {
            call.y = c->y.data;
            if (!cuda_ok(q, launch_rows(l, from, given, k, rows, stride, is_bf16(w), c->x.data), "rows", e) ||
                !check_rows_alike(q, &call, row_bytes, e))
                return err_context(e, "cuda:%d", q->device);
            is_new = false;
        }
        call.y = aside ? c->y.data : out;
        if (!cuda_ok(q, launch_rows(l, from, given, k, rows, stride, is_bf16(w), c->x.data), "rows", e))
            return false;
        if (!blas_product(c->blas, &call, e))
            return err_context(e, "cuda:%d", q->device);
        if (aside && !cuda_ok(q, cudaMemcpy2DAsync(out, width, c->y.data, (size_t)padded * sizeof(float), width,
                                                   (size_t)given, cudaMemcpyDeviceToDevice, c->stream), "product", e))
            return false;
    }
    return true;
}

bool cuda_matmul(struct queue *q, const struct tensor *x, const struct tensor *w, struct tensor *y, struct err *e)
{
    if (!shape_panels(q, "matmul", "w", w, -1, -1, e) ||
        !shape_matrix(q, "matmul", "x", x, DTYPE_F32, -1, w->shape[1], e) ||
        !shape_matrix(q, "matmul", "y", y, DTYPE_F32, x->shape[0], w->shape[0], e))
        return false;
    return product(q, x, w, 0, y, cuda_queue(q)->rows, e);
}

bool cuda_matmul_part(struct queue *q, const struct tensor *x, const struct tensor *w, int64_t first, struct tensor *y,
                      struct err *e)
{
    if (!shape_matrix(q, "matmul_part", "y", y, DTYPE_F32, x->shape[0], -1, e) ||
        !check_rows(q, "matmul_part", w, first, y->shape[1], x->shape[1], e) ||
        !shape_matrix(q, "matmul_part", "x", x, DTYPE_F32, -1, w->shape[1], e))
        return false;
    return product(q, x, w, first, y, cuda_queue(q)->head_rows, e);
}
