/* The entries of the table that are one kernel each: their shapes are checked here, as kernels.h has them. */
#include <math.h>

#include "engine/base/mem.h"
#include "kernels/cuda/cuda.h"
#include "kernels/devices.h"
#include "kernels/shape.h"

static bool cuda_gram(struct queue *q, const struct tensor *x, struct tensor *h, struct err *e)
{
    if (!shape_matrix(q, "gram", "x", x, DTYPE_F32, -1, -1, e) ||
        !shape_matrix(q, "gram", "h", h, DTYPE_F64, x->shape[1], x->shape[1], e))
        return false;
    return cuda_ok(q, launch_gram(cuda_launch(q), x->data, x->shape[0], x->shape[1], h->data), "gram", e);
}

/* `bytes` of the queue's small room, on the host. */
static bool bring(struct queue *q, void *to, size_t bytes, const char *what, struct err *e)
{
    return cuda_ok(q, cudaMemcpyAsync(to, cuda_queue(q)->small.data, bytes, cudaMemcpyDeviceToHost,
                                      cuda_queue(q)->stream), what, e) &&
           cuda_finish(q, e);
}

static bool cuda_energy(struct queue *q, const struct tensor *d, const struct tensor *y, double *square, double *energy,
                        struct err *e)
{
    if (!shape_matrix(q, "energy", "d", d, DTYPE_F32, -1, -1, e) ||
        (y && !shape_matrix(q, "energy", "y", y, DTYPE_F32, d->shape[0], d->shape[1], e)))
        return false;
    double *rows;
    int64_t n = d->shape[0];
    size_t bytes = (size_t)(2 * n) * sizeof *rows;
    if (!cuda_room(q, &cuda_queue(q)->small, bytes, e) || !mem_raw(&rows, (size_t)(2 * n), e))
        return false;
    bool ok = cuda_ok(q, launch_energy(cuda_launch(q), d->data, y ? y->data : d->data, n, d->shape[1],
                                       cuda_queue(q)->small.data), "energy", e) &&
              bring(q, rows, bytes, "energy", e);
    for (int64_t r = 0; ok && r < n; r++) {
        *square += rows[2 * r];
        if (y)
            *energy += rows[2 * r + 1];
    }
    mem_free(rows);
    return ok;
}

static bool cuda_embed(struct queue *q, const struct tensor *table, const struct tensor *ids, struct tensor *y,
                       struct err *e)
{
    enum dtype t = table->dtype == DTYPE_BF16 || table->dtype == DTYPE_F16 ? table->dtype : DTYPE_F32;
    if (!shape_matrix(q, "embed", "table", table, t, -1, -1, e) ||
        !shape_vector(q, "embed", "ids", ids, DTYPE_I32, -1, e) ||
        !shape_matrix(q, "embed", "y", y, DTYPE_F32, ids->shape[0], table->shape[1], e))
        return false;
    enum plain type = t == DTYPE_F32 ? PLAIN_F32 : t == DTYPE_BF16 ? PLAIN_BF16 : PLAIN_F16;
    return cuda_ok(q, launch_embed(cuda_launch(q), table->data, type, ids->data, ids->shape[0], table->shape[1],
                                   y->data), "embed", e);
}

static bool check_norm(const struct queue *q, const char *name, const struct tensor *x, const struct tensor *w,
                       const struct tensor *y, struct err *e)
{
    return shape_matrix(q, name, "x", x, DTYPE_F32, -1, -1, e) &&
           shape_vector(q, name, "w", w, DTYPE_F32, x->shape[1], e) &&
           shape_matrix(q, name, "y", y, DTYPE_F32, x->shape[0], x->shape[1], e);
}

static bool cuda_rmsnorm(struct queue *q, const struct tensor *x, const struct tensor *w, float eps, struct tensor *y,
                         struct err *e)
{
    return check_norm(q, "rmsnorm", x, w, y, e) &&
           cuda_ok(q, launch_rmsnorm(cuda_launch(q), x->data, NULL, w->data, eps, x->shape[0], x->shape[1], y->data),
                   "rmsnorm", e);
}

static bool cuda_add_rmsnorm(struct queue *q, struct tensor *x, const struct tensor *d, const struct tensor *w,
                             float eps, struct tensor *y, struct err *e)
{
    return check_norm(q, "add_rmsnorm", x, w, y, e) &&
           shape_matrix(q, "add_rmsnorm", "d", d, DTYPE_F32, x->shape[0], x->shape[1], e) &&
           cuda_ok(q, launch_rmsnorm(cuda_launch(q), x->data, d->data, w->data, eps, x->shape[0], x->shape[1],
                                     y->data), "add_rmsnorm", e);
}

static bool cuda_add(struct queue *q, struct tensor *x, const struct tensor *d, struct err *e)
{
    return shape_matrix(q, "add", "x", x, DTYPE_F32, -1, -1, e) &&
           shape_matrix(q, "add", "d", d, DTYPE_F32, x->shape[0], x->shape[1], e) &&
           cuda_ok(q, launch_add(cuda_launch(q), x->data, d->data, tensor_count(x)), "add", e);
}

static bool cuda_add_bias(struct queue *q, struct tensor *y, const struct tensor *b, struct err *e)
{
    return shape_matrix(q, "add_bias", "y", y, DTYPE_F32, -1, -1, e) &&
           shape_vector(q, "add_bias", "b", b, DTYPE_F32, y->shape[1], e) &&
           cuda_ok(q, launch_add_bias(cuda_launch(q), y->data, b->data, y->shape[0], y->shape[1]), "add_bias", e);
}

static bool cuda_rope(struct queue *q, struct tensor *qkv, const struct attention_shape *s, const struct tensor *cosine,
                      const struct tensor *sine, struct err *e)
{
    if (!shape_rope(q, qkv, s, cosine, sine, e))
        return false;
    int64_t d = s->head_dim, rotated = (int64_t)s->heads + s->kv_heads, heads = rotated + s->kv_heads;
    return cuda_ok(q, launch_rope(cuda_launch(q), qkv->data, qkv->shape[0], heads, rotated, d, s->window, cosine->data,
                                  sine->data), "rope", e);
}

static bool cuda_attention(struct queue *q, const struct tensor *qkv, const struct attention_shape *s,
                           struct tensor *out, struct err *e)
{
    if (!shape_attention(q, qkv, s, out, ATTENTION_HEAD_DIM, e))
        return false;
    return cuda_ok(q, launch_attention(cuda_launch(q), qkv->data, qkv->shape[0], s->heads, s->kv_heads,
                                       s->head_dim, s->window, out->data), "attention", e);
}

static bool cuda_swiglu(struct queue *q, const struct tensor *gu, struct tensor *y, struct err *e)
{
    return shape_matrix(q, "swiglu", "y", y, DTYPE_F32, -1, -1, e) &&
           shape_matrix(q, "swiglu", "gu", gu, DTYPE_F32, y->shape[0], 2 * y->shape[1], e) &&
           cuda_ok(q, launch_swiglu(cuda_launch(q), gu->data, y->data, y->shape[0], y->shape[1]), "swiglu", e);
}

static bool cuda_rmsnorm_backward(struct queue *q, const struct tensor *x, const struct tensor *w, float eps,
                                  const struct tensor *dy, struct tensor *dx, struct err *e)
{
    return shape_rmsnorm_backward(q, x, w, dy, dx, e) &&
           cuda_ok(q, launch_rmsnorm_backward(cuda_launch(q), x->data, w->data, eps, dy->data, x->shape[0], x->shape[1],
                                              dx->data), "rmsnorm_backward", e);
}

static bool cuda_attention_backward(struct queue *q, const struct tensor *qkv, const struct attention_shape *s,
                                    const struct tensor *out, const struct tensor *dout, struct tensor *dqkv,
                                    struct err *e)
{
    if (!shape_attention_backward(q, qkv, s, out, dout, dqkv, ATTENTION_HEAD_DIM, e))
        return false;
    size_t stats = (size_t)(qkv->shape[0] * s->heads) * ATTENTION_STATS * sizeof(float);
    return cuda_room(q, &cuda_queue(q)->small, stats, e) &&
           cuda_ok(q, launch_attention_backward(cuda_launch(q), qkv->data, out->data, dout->data, qkv->shape[0],
                                                s->heads, s->kv_heads, s->head_dim, s->window,
                                                cuda_queue(q)->small.data, dqkv->data), "attention_backward", e);
}

static bool cuda_swiglu_backward(struct queue *q, const struct tensor *gu, const struct tensor *dy, struct tensor *dgu,
                                 struct err *e)
{
    return shape_swiglu_backward(q, gu, dy, dgu, e) &&
           cuda_ok(q, launch_swiglu_backward(cuda_launch(q), gu->data, dy->data, dgu->data, dy->shape[0], dy->shape[1]),
                   "swiglu_backward", e);
}

static bool cuda_transpose(struct queue *q, const struct tensor *w, struct tensor *out, struct err *e)
{
    return shape_transpose(q, w, out, e) &&
           cuda_ok(q, launch_transpose(cuda_launch(q), w->data, w->shape[0], w->shape[1], cuda_stride(w->shape[1]),
                                       cuda_stride(w->shape[0]), w->dtype == DTYPE_BF16, out->data), "transpose", e);
}

static bool cuda_fisher_draw(struct queue *q, struct tensor *s, enum fisher_draw kind, const uint64_t *seeds,
                             struct err *e)
{
    if (!shape_fisher_draw(q, s, kind, seeds, e))
        return false;
    size_t bytes = (size_t)s->shape[0] * sizeof *seeds;
    if (bytes == 0)
        return true;
    if (!cuda_room(q, &cuda_queue(q)->small, bytes, e))
        return false;
    void *there = cuda_queue(q)->small.data;
    return cuda_ok(q, cudaMemcpyAsync(there, seeds, bytes, cudaMemcpyHostToDevice, cuda_queue(q)->stream),
                   "fisher_draw", e) &&
           cuda_ok(q, launch_draw(cuda_launch(q), s->data, s->shape[0], s->shape[1], kind == FISHER_SIGN, there),
                   "fisher_draw", e);
}

static bool cuda_window_dots(struct queue *q, const struct tensor *a, const struct tensor *b, int64_t window,
                             struct tensor *dot, struct tensor *square, struct err *e)
{
    if (!shape_window_dots(q, a, b, window, dot, square, e))
        return false;
    int64_t sequences = a->shape[0] / window, parts = 2 * sequences * ((window + DOT_ROWS - 1) / DOT_ROWS);
    return cuda_room(q, &cuda_queue(q)->small, (size_t)parts * sizeof(double), e) &&
           cuda_ok(q, launch_dots(cuda_launch(q), a->data, b->data, sequences, window, a->shape[1],
                                  cuda_queue(q)->small.data, dot->data, square ? square->data : NULL),
                   "window_dots", e);
}

static bool cuda_subtract(struct queue *q, const struct tensor *a, const struct tensor *b, struct tensor *d,
                          struct err *e)
{
    return shape_subtract(q, a, b, d, e) &&
           cuda_ok(q, launch_subtract(cuda_launch(q), a->data, b->data, d->data, tensor_count(a)), "subtract", e);
}

/* Those that take nothing but the input. */
static cudaError_t (*const launch_input[ACT_COUNT])(struct launch, const float *, int64_t, int64_t, int, float *) = {
    [ACT_FP8_TOKEN] = launch_fp8_input,    [ACT_FP8_GROUP] = launch_fp8_group_input,
    [ACT_MXFP4] = launch_mxfp4_input,      [ACT_MXFP8] = launch_mxfp8_input,
    [ACT_INT8_TOKEN] = launch_int8_input,
};

static bool cuda_fake_quantize(struct queue *q, const struct tensor *x, enum act_rule rule, float scale,
                               enum dtype mode, struct tensor *y, struct err *e)
{
    if (!shape_fake_quantize(q, x, rule, scale, mode, y, e))
        return false;
    struct launch l = cuda_launch(q);
    int64_t rows = x->shape[0], k = x->shape[1];
    int bf16 = mode == DTYPE_BF16;
    cudaError_t error;
    if (rule == ACT_NVFP4)
        error = launch_nvfp4_input(l, x->data, rows, k, scale, bf16, y->data);
    else if (rule == ACT_NONE)
        error = launch_round(l, x->data, rows * k, bf16, y->data);
    else
        error = launch_input[rule](l, x->data, rows, k, bf16, y->data);
    return cuda_ok(q, error, "fake_quantize", e);
}

/* Which element it was, found on the host: this ends the node anyway. */
static bool report_amax(struct queue *q, const struct tensor *x, struct err *e)
{
    float *host;
    int64_t n = tensor_count(x);
    if (!mem_raw(&host, (size_t)n, e))
        return false;
    if (cuda_download(q, host, x, (size_t)n * sizeof *host, e))
        shape_not_finite(host, x->shape[0], x->shape[1], e);
    mem_free(host);
    return false;
}

static bool cuda_amax(struct queue *q, const struct tensor *x, float *amax, struct err *e)
{
    uint32_t bits;
    if (!shape_matrix(q, "amax", "x", x, DTYPE_F32, -1, -1, e) ||
        !cuda_room(q, &cuda_queue(q)->small, sizeof bits, e))
        return false;
    void *at = cuda_queue(q)->small.data;
    if (!cuda_ok(q, cudaMemsetAsync(at, 0, sizeof bits, cuda_queue(q)->stream), "amax", e) ||
        !cuda_ok(q, launch_amax(cuda_launch(q), x->data, tensor_count(x), at), "amax", e) ||
        !bring(q, &bits, sizeof bits, "amax", e))
        return false;
    float most = f32_from_bits(bits);
    if (!isfinite(most))
        return report_amax(q, x, e);
    *amax = most > *amax ? most : *amax;
    return true;
}

static bool cuda_kl_tile(struct queue *q, const struct tensor *s_t, const struct tensor *s_c, int64_t first,
                         struct kl_state *s, struct err *e)
{
    if (!shape_kl_tile(q, s_t, s_c, first, e))
        return false;
    struct kl_arrays a = {s->max_t, s->sum_t, s->max_c, s->sum_c, s->cross, s->best_t, s->best_c, s->target_t,
                          s->target_c, s->arg_t, s->arg_c, s->target};
    return cuda_ok(q, launch_kl(cuda_launch(q), s_t->data, s_c->data, s_t->shape[0], s_t->shape[1], first, a),
                   "kl_tile", e);
}

static const char *cuda_products(struct queue *q, char *out, size_t size)
{
    return blas_text(cuda_queue(q)->blas, out, size);
}

void cuda_fill_table(struct kernels *k)
{
    k->on_device = true;
    k->tensor_new = cuda_tensor_new, k->tensor_free = cuda_tensor_free;
    k->upload = cuda_upload, k->download = cuda_download, k->copy = cuda_copy, k->finish = cuda_finish;
    k->host_new = cuda_host_new, k->host_free = cuda_host_free, k->enter = cuda_enter;
    k->products = cuda_products;
    k->twin_new = cuda_twin_new, k->twin_free = kernels_queue_free;
    k->panels_new = cuda_panels_new, k->pack = cuda_pack, k->unpack = cuda_unpack, k->encode = cuda_encode;
    k->matmul = cuda_matmul, k->matmul_part = cuda_matmul_part;
    k->native_fits = cuda_native_fits, k->native_bytes = cuda_native_bytes;
    k->native_new = cuda_native_new, k->native_free = cuda_native_free;
    k->native_pack = cuda_native_pack, k->native_matmul = cuda_native_matmul;
    k->gram = cuda_gram, k->cholesky = cuda_cholesky, k->energy = cuda_energy;
    k->embed = cuda_embed, k->rmsnorm = cuda_rmsnorm, k->add_rmsnorm = cuda_add_rmsnorm;
    k->add = cuda_add, k->add_bias = cuda_add_bias, k->rope = cuda_rope, k->attention = cuda_attention;
    k->swiglu = cuda_swiglu, k->fake_quantize = cuda_fake_quantize, k->amax = cuda_amax, k->kl_tile = cuda_kl_tile;
    k->rmsnorm_backward = cuda_rmsnorm_backward, k->attention_backward = cuda_attention_backward;
    k->swiglu_backward = cuda_swiglu_backward, k->transpose = cuda_transpose;
    k->fisher_draw = cuda_fisher_draw, k->window_dots = cuda_window_dots, k->subtract = cuda_subtract;
}
