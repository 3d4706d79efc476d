#include "kernels/shape.h"

#include <math.h>
#include <stdio.h>

static const char *size_text(int64_t n, char out[24])
{
    if (n < 0)
        snprintf(out, 24, "any");
    else
        snprintf(out, 24, "%lld", (long long)n);
    return out;
}

static bool mismatch(const struct queue *q, const char *kernel, const char *name, const struct tensor *t,
                     const char *expected, struct err *e)
{
    return err_set(e, ERR_BUG, "%s: '%s' is %s of rank %d [%lld, %lld] in layout %d on device %d, expected %s on "
                   "device %d",
                   kernel,
                   name, dtype_info(t->dtype)->name, t->rank, (long long)t->shape[0],
                   (long long)(t->rank > 1 ? t->shape[1] : 1), (int)t->layout, t->device, expected, q->device);
}

static bool is_size(int64_t size, int64_t expected)
{
    return size >= 0 && (expected < 0 || size == expected);
}

bool shape_matrix(const struct queue *q, const char *kernel, const char *name, const struct tensor *t,
                  enum dtype type, int64_t rows, int64_t columns, struct err *e)
{
    if (t->dtype == type && t->layout == TENSOR_ROWS && t->device == q->device && t->rank == 2 &&
        is_size(t->shape[0], rows) && is_size(t->shape[1], columns))
        return true;
    char expected[96], r[24], c[24];
    snprintf(expected, sizeof expected, "row-major %s [%s, %s]", dtype_info(type)->name, size_text(rows, r),
             size_text(columns, c));
    return mismatch(q, kernel, name, t, expected, e);
}

bool shape_vector(const struct queue *q, const char *kernel, const char *name, const struct tensor *t,
                  enum dtype type, int64_t n, struct err *e)
{
    if (t->dtype == type && t->layout == TENSOR_ROWS && t->device == q->device && t->rank == 1 &&
        is_size(t->shape[0], n))
        return true;
    char expected[96], r[24];
    snprintf(expected, sizeof expected, "%s [%s]", dtype_info(type)->name, size_text(n, r));
    return mismatch(q, kernel, name, t, expected, e);
}

bool shape_panels(const struct queue *q, const char *kernel, const char *name, const struct tensor *t,
                  int64_t n, int64_t k, struct err *e)
{
    if ((t->dtype == DTYPE_F32 || t->dtype == DTYPE_BF16) && t->layout == TENSOR_PANELS && t->device == q->device &&
        t->rank == 2 && is_size(t->shape[0], n) && is_size(t->shape[1], k))
        return true;
    char expected[96], r[24], c[24];
    snprintf(expected, sizeof expected, "panels f32 or bf16 {%s, %s}", size_text(n, r), size_text(k, c));
    return mismatch(q, kernel, name, t, expected, e);
}

bool shape_queue(const struct queue *q, const char *kernel, struct err *e)
{
    if (q->threads >= 1)
        return true;
    return err_set(e, ERR_BUG, "%s: the queue has %d threads, expected at least 1", kernel, q->threads);
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

bool shape_packed(const struct queue *q, const char *kernel, const struct packed_matrix *w, struct err *e)
{
    const struct tensor *p = w->part;
    if ((unsigned)w->code >= CODE_COUNT)
        return err_set(e, ERR_BUG, "%s: code %d", kernel, (int)w->code);
    if (w->code == CODE_PLAIN) {
        enum dtype t = p[0].dtype == DTYPE_BF16 || p[0].dtype == DTYPE_F16 ? p[0].dtype : DTYPE_F32;
        return shape_matrix(q, kernel, "weight", &p[0], t, w->n, w->k, e);
    }
    const struct grid *g = &weight_grid[w->code];
    int64_t codes = stored[g->element].codes, multiple = g->rows == 1 && g->columns > codes ? g->columns : codes;
    if (w->k % multiple != 0)
        return err_set(e, ERR_BUG, "%s: %lld columns of code %d, expected a multiple of %lld", kernel, (long long)w->k,
                       (int)w->code, (long long)multiple);
    return shape_matrix(q, kernel, stored[g->element].name, &p[0], stored[g->element].dtype, w->n, w->k / codes, e) &&
           shape_matrix(q, kernel, "weight_scale", &p[1], scale_dtype[g->scale], grid_scale_rows(g, w->n),
                        grid_scale_columns(g, w->k), e) &&
           (g->scale != SCALE_E4M3 || shape_vector(q, kernel, "weight_global_scale", &p[2], DTYPE_F32, 1, e));
}

bool shape_encode(const struct queue *q, const struct tensor *w, const struct packed_matrix *out,
                  const struct tensor *d, struct err *e)
{
    if (!shape_queue(q, "encode", e) || !shape_matrix(q, "encode", "w", w, DTYPE_F32, out->n, out->k, e) ||
        !shape_packed(q, "encode", out, e) || !shape_matrix(q, "encode", "d", d, DTYPE_F32, out->n, out->k, e))
        return false;
    return out->code != CODE_PLAIN || err_set(e, ERR_BUG, "encode: code %d is stored as it is", (int)out->code);
}

bool shape_rope(const struct queue *q, const struct tensor *qkv, const struct attention_shape *s,
                const struct tensor *cosine, const struct tensor *sine, struct err *e)
{
    int64_t d = s->head_dim, half = d / 2, width = (int64_t)s->heads + 2 * (int64_t)s->kv_heads;
    if (s->heads < 1 || s->kv_heads < 1 || d < 2 || d % 2 != 0 || s->window < 1)
        return err_set(e, ERR_BUG, "rope: %d and %d heads of %lld, window %d: expected positive and an even head",
                       s->heads, s->kv_heads, (long long)d, s->window);
    return shape_queue(q, "rope", e) && shape_matrix(q, "rope", "qkv", qkv, DTYPE_F32, -1, width * d, e) &&
           shape_matrix(q, "rope", "cosine", cosine, DTYPE_F32, s->window, half, e) &&
           shape_matrix(q, "rope", "sine", sine, DTYPE_F32, s->window, half, e);
}

bool shape_attention(const struct queue *q, const struct tensor *qkv, const struct attention_shape *s,
                     const struct tensor *out, int most, struct err *e)
{
    if (s->heads < 1 || s->kv_heads < 1 || s->heads % s->kv_heads != 0 || s->head_dim < 1 || s->window < 1)
        return err_set(e, ERR_BUG, "attention: %d heads over %d of %d, window %d: expected positive, and kv_heads to "
                       "divide heads", s->heads, s->kv_heads, s->head_dim, s->window);
    if (s->head_dim > most)
        return err_set(e, ERR_INPUT, "attention: head_dim %d is above %d, the largest this backend supports",
                       s->head_dim, most);
    int64_t d = s->head_dim, t = qkv->shape[0];
    if (!shape_queue(q, "attention", e) ||
        !shape_matrix(q, "attention", "qkv", qkv, DTYPE_F32, -1, (s->heads + 2 * (int64_t)s->kv_heads) * d, e) ||
        !shape_matrix(q, "attention", "out", out, DTYPE_F32, t, s->heads * d, e))
        return false;
    if (t % s->window != 0)
        return err_set(e, ERR_BUG, "attention: %lld rows, expected a multiple of the window %d", (long long)t,
                       s->window);
    return true;
}

bool shape_attention_backward(const struct queue *q, const struct tensor *qkv, const struct attention_shape *s,
                              const struct tensor *out, const struct tensor *dout, const struct tensor *dqkv, int most,
                              struct err *e)
{
    return (shape_attention(q, qkv, s, out, most, e) || err_context(e, "attention_backward")) &&
           shape_matrix(q, "attention_backward", "dout", dout, DTYPE_F32, out->shape[0], out->shape[1], e) &&
           shape_matrix(q, "attention_backward", "dqkv", dqkv, DTYPE_F32, qkv->shape[0], qkv->shape[1], e);
}

bool shape_rmsnorm_backward(const struct queue *q, const struct tensor *x, const struct tensor *w,
                            const struct tensor *dy, const struct tensor *dx, struct err *e)
{
    const char *name = "rmsnorm_backward";
    return shape_queue(q, name, e) && shape_matrix(q, name, "x", x, DTYPE_F32, -1, -1, e) &&
           shape_vector(q, name, "w", w, DTYPE_F32, x->shape[1], e) &&
           shape_matrix(q, name, "dy", dy, DTYPE_F32, x->shape[0], x->shape[1], e) &&
           shape_matrix(q, name, "dx", dx, DTYPE_F32, x->shape[0], x->shape[1], e);
}

bool shape_swiglu_backward(const struct queue *q, const struct tensor *gu, const struct tensor *dy,
                           const struct tensor *dgu, struct err *e)
{
    const char *name = "swiglu_backward";
    return shape_queue(q, name, e) && shape_matrix(q, name, "dy", dy, DTYPE_F32, -1, -1, e) &&
           shape_matrix(q, name, "gu", gu, DTYPE_F32, dy->shape[0], 2 * dy->shape[1], e) &&
           shape_matrix(q, name, "dgu", dgu, DTYPE_F32, dy->shape[0], 2 * dy->shape[1], e);
}

bool shape_transpose(const struct queue *q, const struct tensor *w, const struct tensor *out, struct err *e)
{
    if (!shape_queue(q, "transpose", e) || !shape_panels(q, "transpose", "w", w, -1, -1, e) ||
        !shape_panels(q, "transpose", "out", out, w->shape[1], w->shape[0], e))
        return false;
    return w->dtype == out->dtype || err_set(e, ERR_BUG, "transpose: from %s to %s, expected the same mode",
                                             dtype_info(w->dtype)->name, dtype_info(out->dtype)->name);
}

bool shape_fisher_draw(const struct queue *q, const struct tensor *s, enum fisher_draw kind, const uint64_t *seeds,
                       struct err *e)
{
    if (!shape_queue(q, "fisher_draw", e) || !shape_matrix(q, "fisher_draw", "s", s, DTYPE_F32, -1, -1, e))
        return false;
    if (kind != FISHER_LABEL && kind != FISHER_SIGN)
        return err_set(e, ERR_BUG, "fisher_draw: there is no draw %d", (int)kind);
    return seeds || s->shape[0] == 0 || err_set(e, ERR_BUG, "fisher_draw: no seeds");
}

bool shape_window_dots(const struct queue *q, const struct tensor *a, const struct tensor *b, int64_t window,
                       const struct tensor *dot, const struct tensor *square, struct err *e)
{
    if (!shape_queue(q, "window_dots", e) || !shape_matrix(q, "window_dots", "a", a, DTYPE_F32, -1, -1, e) ||
        !shape_matrix(q, "window_dots", "b", b, DTYPE_F32, a->shape[0], a->shape[1], e))
        return false;
    if (window < 1 || a->shape[0] % window != 0)
        return err_set(e, ERR_BUG, "window_dots: %lld rows, expected a multiple of the window %lld",
                       (long long)a->shape[0], (long long)window);
    int64_t n = a->shape[0] / window;
    return shape_vector(q, "window_dots", "dot", dot, DTYPE_F64, n, e) &&
           (!square || shape_vector(q, "window_dots", "square", square, DTYPE_F64, n, e));
}

bool shape_subtract(const struct queue *q, const struct tensor *a, const struct tensor *b, const struct tensor *d,
                    struct err *e)
{
    return shape_queue(q, "subtract", e) && shape_matrix(q, "subtract", "a", a, DTYPE_F32, -1, -1, e) &&
           shape_matrix(q, "subtract", "b", b, DTYPE_F32, a->shape[0], a->shape[1], e) &&
           shape_matrix(q, "subtract", "d", d, DTYPE_F32, a->shape[0], a->shape[1], e);
}

static const char *const rule_names[ACT_COUNT] = {
    [ACT_NONE] = "no rule", [ACT_NVFP4] = "nvfp4", [ACT_FP8_TOKEN] = "fp8", [ACT_FP8_GROUP] = "fp8 in groups",
    [ACT_MXFP4] = "mxfp4", [ACT_MXFP8] = "mxfp8", [ACT_INT8_TOKEN] = "int8"};

bool shape_fake_quantize(const struct queue *q, const struct tensor *x, enum act_rule rule, float scale,
                         enum dtype mode, const struct tensor *y, struct err *e)
{
    if (!shape_queue(q, "fake_quantize", e) || !shape_matrix(q, "fake_quantize", "x", x, DTYPE_F32, -1, -1, e) ||
        !shape_matrix(q, "fake_quantize", "y", y, DTYPE_F32, x->shape[0], x->shape[1], e))
        return false;
    if (mode != DTYPE_F32 && mode != DTYPE_BF16)
        return err_set(e, ERR_BUG, "fake_quantize: mode %s, expected f32 or bf16", dtype_info(mode)->name);
    if (rule < ACT_NONE || rule >= ACT_COUNT)
        return err_set(e, ERR_BUG, "fake_quantize: there is no rule %d", (int)rule);
    int block = rule == ACT_FP8_GROUP ? 0 : act_block(rule);
    if (block && x->shape[1] % block != 0)
        return err_set(e, ERR_BUG, "fake_quantize: %lld columns for %s, expected a multiple of %d",
                       (long long)x->shape[1], rule_names[rule], block);
    if (rule == ACT_NVFP4 && !(scale > 0.0f && isfinite(scale)))
        return err_set(e, ERR_BUG, "fake_quantize: global scale %g for nvfp4, expected positive and finite",
                       (double)scale);
    if (rule != ACT_NVFP4 && scale != 0.0f)
        return err_set(e, ERR_BUG, "fake_quantize: global scale %g for %s, which has none: expected 0", (double)scale,
                       rule_names[rule]);
    return true;
}

bool shape_kl_tile(const struct queue *q, const struct tensor *s_t, const struct tensor *s_c, int64_t first,
                   struct err *e)
{
    if (!shape_queue(q, "kl_tile", e) || !shape_matrix(q, "kl_tile", "s_t", s_t, DTYPE_F32, -1, -1, e) ||
        !shape_matrix(q, "kl_tile", "s_c", s_c, DTYPE_F32, s_t->shape[0], s_t->shape[1], e))
        return false;
    if (first < 0 || first + s_t->shape[1] > INT32_MAX)
        return err_set(e, ERR_BUG, "kl_tile: columns from %lld of %lld, expected an index below 2^31", (long long)first,
                       (long long)s_t->shape[1]);
    return true;
}

bool shape_not_finite(const float *x, int64_t rows, int64_t k, struct err *e)
{
    for (int64_t i = 0; i < rows * k; i++)
        if (!isfinite(x[i]))
            return err_set(e, ERR_NUMERIC, "%s at row %lld, column %lld of a matrix [%lld, %lld]",
                           isnan(x[i]) ? "NaN" : "infinity", (long long)(i / k), (long long)(i % k), (long long)rows,
                           (long long)k);
    return err_set(e, ERR_BUG, "a matrix [%lld, %lld] was said not to be finite, and is", (long long)rows,
                   (long long)k);
}

bool shape_not_positive(int64_t k, int64_t order, struct err *e)
{
    return err_set(e, ERR_NUMERIC, "a matrix [%lld, %lld] is not positive definite: its leading minor of order %lld is "
                   "not positive", (long long)k, (long long)k, (long long)order);
}
