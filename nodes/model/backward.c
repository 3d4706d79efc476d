/* The chain rule through one layer, in the order of forward.c's layer_chunk, reversed. */
#include "nodes/model/backward.h"

static void work_widths(const struct model_config *c, int64_t width[BACKWARD_COUNT])
{
    const int64_t q = (int64_t)c->heads * c->head_dim, qkv = q + 2 * (int64_t)c->kv_heads * c->head_dim;
    const int64_t hidden = c->hidden, product = c->intermediate;
    const int64_t widths[BACKWARD_COUNT] = {
        [BACKWARD_IN_QKV] = hidden, [BACKWARD_OUT_QKV] = qkv, [BACKWARD_ROTATED] = qkv,
        [BACKWARD_IN_O] = q, [BACKWARD_OUT_O] = hidden, [BACKWARD_MIDDLE] = hidden,
        [BACKWARD_IN_GATE_UP] = hidden, [BACKWARD_OUT_GATE_UP] = 2 * product, [BACKWARD_IN_DOWN] = product,
        [BACKWARD_OUT_DOWN] = hidden, [BACKWARD_D_HIDDEN] = hidden, [BACKWARD_D_QKV] = qkv,
        [BACKWARD_D_ATTENTION] = q, [BACKWARD_D_GATE_UP] = 2 * product, [BACKWARD_D_PRODUCT] = product};
    for (int i = 0; i < BACKWARD_COUNT; i++)
        width[i] = widths[i];
}

void backward_needs(const struct kernels *k, const struct model *m, int window, struct needs *out)
{
    int64_t width[BACKWARD_COUNT], sum = 0;
    work_widths(&m->config, width);
    for (int i = 0; i < BACKWARD_COUNT; i++)
        sum += width[i];
    needs_tensors(k, out, (uint64_t)(forward_chunk(k, window) * sum) * sizeof(float) +
                              (uint64_t)window * (uint64_t)m->config.head_dim * sizeof(float));
}

/* -sin, made on the host: rope is given cosine and sine as tables. */
static bool open_sine(struct backward *b, struct err *e)
{
    const struct forward *f = b->f;
    const struct kernels *k = f->q->k;
    size_t n = (size_t)tensor_count(&f->sine);
    float *sine;
    if (!mem_raw(&sine, n, e))
        return false;
    bool ok = k->download(f->q, sine, &f->sine, n * sizeof *sine, e) &&
              k->tensor_new(f->q, &b->minus_sine, DTYPE_F32, 2, f->sine.shape, e);
    for (size_t i = 0; ok && i < n; i++)
        sine[i] = -sine[i];
    ok = ok && k->upload(f->q, &b->minus_sine, sine, n * sizeof *sine, e);
    mem_free(sine);
    return ok;
}

bool backward_open(struct backward *b, struct forward *f, struct err *e)
{
    int64_t width[BACKWARD_COUNT];
    *b = (struct backward){.f = f};
    work_widths(&f->model->config, width);
    bool ok = open_sine(b, e);
    for (int i = 0; ok && i < BACKWARD_COUNT; i++)
        ok = f->q->k->tensor_new(f->q, &b->work[i], DTYPE_F32, 2, (int64_t[]){f->chunk, width[i]}, e);
    if (!ok)
        backward_close(b);
    return ok;
}

void backward_close(struct backward *b)
{
    if (!b->f)
        return;
    for (int i = 0; i < BACKWARD_COUNT; i++)
        b->f->q->k->tensor_free(b->f->q, &b->work[i]);
    b->f->q->k->tensor_free(b->f->q, &b->minus_sine);
    *b = (struct backward){0};
}

static struct tensor work(const struct backward *b, enum backward_work which)
{
    return tensor_rows(&b->work[which], 0, b->rows);
}

struct tensor backward_input(const struct backward *b, enum unit_role role)
{
    static const enum backward_work of[LAYER_UNITS] = {
        [ROLE_QKV] = BACKWARD_IN_QKV, [ROLE_O] = BACKWARD_IN_O, [ROLE_GATE_UP] = BACKWARD_IN_GATE_UP,
        [ROLE_DOWN] = BACKWARD_IN_DOWN};
    return work(b, of[role]);
}

struct tensor backward_output(const struct backward *b, enum unit_role role)
{
    static const enum backward_work of[LAYER_UNITS] = {
        [ROLE_QKV] = BACKWARD_OUT_QKV, [ROLE_O] = BACKWARD_OUT_O, [ROLE_GATE_UP] = BACKWARD_OUT_GATE_UP,
        [ROLE_DOWN] = BACKWARD_OUT_DOWN};
    return work(b, of[role]);
}

/* The unit's output from its input, both in `work`. */
static bool linear(struct backward *b, int layer, enum unit_role role, const struct unit_weights *w, struct err *e)
{
    struct tensor x = backward_input(b, role), y = backward_output(b, role);
    return forward_linear(b->f, layer * LAYER_UNITS + (int)role, w, &x, &y, e);
}

bool backward_recompute(struct backward *b, int layer, const struct unit_weights w[LAYER_UNITS],
                        const struct tensor *x, struct err *e)
{
    struct forward *f = b->f;
    struct queue *q = f->q;
    const struct kernels *k = q->k;
    const float eps = f->model->config.eps;
    b->rows = x->shape[0];
    struct tensor in_qkv = work(b, BACKWARD_IN_QKV), out_qkv = work(b, BACKWARD_OUT_QKV);
    struct tensor rotated = work(b, BACKWARD_ROTATED), in_o = work(b, BACKWARD_IN_O);
    struct tensor out_o = work(b, BACKWARD_OUT_O), middle = work(b, BACKWARD_MIDDLE);
    struct tensor in_gate_up = work(b, BACKWARD_IN_GATE_UP), out_gate_up = work(b, BACKWARD_OUT_GATE_UP);
    struct tensor in_down = work(b, BACKWARD_IN_DOWN);
    bool ok = k->rmsnorm(q, x, &f->norms[2 * layer], eps, &in_qkv, e) &&
              linear(b, layer, ROLE_QKV, &w[ROLE_QKV], e) && k->copy(q, &out_qkv, &rotated, e) &&
              k->rope(q, &rotated, &f->shape, &f->cosine, &f->sine, e) &&
              k->attention(q, &rotated, &f->shape, &in_o, e) && linear(b, layer, ROLE_O, &w[ROLE_O], e) &&
              k->copy(q, x, &middle, e) &&
              k->add_rmsnorm(q, &middle, &out_o, &f->norms[2 * layer + 1], eps, &in_gate_up, e) &&
              linear(b, layer, ROLE_GATE_UP, &w[ROLE_GATE_UP], e) && k->swiglu(q, &out_gate_up, &in_down, e) &&
              linear(b, layer, ROLE_DOWN, &w[ROLE_DOWN], e);
    return ok || err_context(e, "layer %d", layer);
}

static bool tell(backward_observer observe, void *context, enum unit_role role, const struct tensor *g, struct err *e)
{
    return !observe || observe(context, role, g, e);
}

/* From the layer's output through the MLP to the stream in the middle. */
static bool mlp(struct backward *b, int layer, const struct tensor transposed[LAYER_UNITS], struct tensor *dx,
                backward_observer observe, void *context, struct err *e)
{
    struct forward *f = b->f;
    struct queue *q = f->q;
    const struct kernels *k = q->k;
    struct tensor d_product = work(b, BACKWARD_D_PRODUCT), d_gate_up = work(b, BACKWARD_D_GATE_UP);
    struct tensor d_hidden = work(b, BACKWARD_D_HIDDEN), middle = work(b, BACKWARD_MIDDLE);
    struct tensor out_gate_up = work(b, BACKWARD_OUT_GATE_UP);
    return tell(observe, context, ROLE_DOWN, dx, e) && k->matmul(q, dx, &transposed[ROLE_DOWN], &d_product, e) &&
           k->swiglu_backward(q, &out_gate_up, &d_product, &d_gate_up, e) &&
           tell(observe, context, ROLE_GATE_UP, &d_gate_up, e) &&
           k->matmul(q, &d_gate_up, &transposed[ROLE_GATE_UP], &d_hidden, e) &&
           k->rmsnorm_backward(q, &middle, &f->norms[2 * layer + 1], f->model->config.eps, &d_hidden, dx, e);
}

/* From there through attention to the layer's input. */
static bool mixer(struct backward *b, int layer, const struct tensor transposed[LAYER_UNITS], const struct tensor *x,
                  struct tensor *dx, backward_observer observe, void *context, struct err *e)
{
    struct forward *f = b->f;
    struct queue *q = f->q;
    const struct kernels *k = q->k;
    struct tensor d_attention = work(b, BACKWARD_D_ATTENTION), d_qkv = work(b, BACKWARD_D_QKV);
    struct tensor d_hidden = work(b, BACKWARD_D_HIDDEN), rotated = work(b, BACKWARD_ROTATED);
    struct tensor in_o = work(b, BACKWARD_IN_O);
    return tell(observe, context, ROLE_O, dx, e) && k->matmul(q, dx, &transposed[ROLE_O], &d_attention, e) &&
           k->attention_backward(q, &rotated, &f->shape, &in_o, &d_attention, &d_qkv, e) &&
           k->rope(q, &d_qkv, &f->shape, &f->cosine, &b->minus_sine, e) &&
           tell(observe, context, ROLE_QKV, &d_qkv, e) &&
           k->matmul(q, &d_qkv, &transposed[ROLE_QKV], &d_hidden, e) &&
           k->rmsnorm_backward(q, x, &f->norms[2 * layer], f->model->config.eps, &d_hidden, dx, e);
}

bool backward_layer(struct backward *b, int layer, const struct tensor transposed[LAYER_UNITS], const struct tensor *x,
                    struct tensor *dx, backward_observer observe, void *context, struct err *e)
{
    if (x->shape[0] != b->rows || dx->shape[0] != b->rows)
        return err_set(e, ERR_BUG, "a layer goes backward over %lld rows, %lld were computed",
                       (long long)dx->shape[0], (long long)b->rows);
    bool ok = mlp(b, layer, transposed, dx, observe, context, e) &&
              mixer(b, layer, transposed, x, dx, observe, context, e);
    return ok || err_context(e, "gradients of layer %d", layer);
}
