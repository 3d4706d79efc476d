/* The forward pass of the Llama family (Llama, Mistral, SmolLM2). Everything here is written against the kernel table;
 * what an architecture adds (norms of q and k, other mixers) belongs in a file beside this one. */
#include "nodes/model/forward.h"

#include <stdio.h>
#include <string.h>

#include "nodes/model/rope.h"

enum { WORK_NORM, WORK_QKV, WORK_ATTENTION, WORK_GATE_UP, WORK_PRODUCT, WORK_DELTA, WORK_COUNT };

/* Rows of the head that are widened at a time. */
#define HEAD_BLOCK 4096

enum dtype numeric_mode(const char *name) { return strcmp(name, "fp32") == 0 ? DTYPE_F32 : DTYPE_BF16; }

enum dtype numeric_begin(struct queue *q, const char *name)
{
    q->native = strcmp(name, "native") == 0;
    return numeric_mode(name);
}

bool numeric_text(const struct kernels *k, const char *name, const char **out, struct err *e)
{
    *out = strcmp(name, "native") == 0 ? k->numeric_native : strcmp(name, "bf16") == 0 ? k->numeric_bf16
                                                                                       : k->numeric_fp32;
    return *out || err_set(e, ERR_INPUT, "numeric: native is of accelerators, and this node computes with the kernels "
                           "%s; use bf16, which rounds the same numbers", k->name);
}

int64_t forward_chunk(const struct kernels *k, int window)
{
    return window >= k->chunk_rows ? window : k->chunk_rows / window * window;
}

static void work_widths(const struct model_config *c, int64_t width[WORK_COUNT])
{
    int64_t q = (int64_t)c->heads * c->head_dim, kv = (int64_t)c->kv_heads * c->head_dim;
    width[WORK_NORM] = c->hidden;
    width[WORK_QKV] = q + 2 * kv;
    width[WORK_ATTENTION] = q;
    width[WORK_GATE_UP] = 2 * (int64_t)c->intermediate;
    width[WORK_PRODUCT] = c->intermediate;
    width[WORK_DELTA] = c->hidden;
}

/* Bytes of a table [vocab, hidden] as the model stores it; as f32 if there is none of that name. */
static uint64_t stored_bytes(const struct model *m, const char *name)
{
    const struct st_tensor *t = safetensors_find(m->files, name);
    return t ? t->bytes : (uint64_t)m->config.vocab * (uint64_t)m->config.hidden * 4;
}

void forward_head_needs(const struct kernels *k, const struct model *m, enum dtype mode, struct needs *out)
{
    const struct model_config *c = &m->config;
    uint64_t stored = stored_bytes(m, c->tied ? "model.embed_tokens.weight" : "lm_head.weight");
    uint64_t block = (uint64_t)HEAD_BLOCK * (uint64_t)c->hidden * 8;
    out->memory += k->on_device ? stored : block; /* as it is read */
    needs_tensors(k, out, (uint64_t)c->vocab * (uint64_t)c->hidden * dtype_bytes(mode) + (k->on_device ? stored : 0));
}

void forward_needs(const struct kernels *k, const struct model *m, enum dtype mode, int window, struct needs *out)
{
    const struct model_config *c = &m->config;
    int64_t width[WORK_COUNT], sum = 0;
    work_widths(c, width);
    for (int i = 0; i < WORK_COUNT; i++)
        sum += width[i];
    uint64_t table = (uint64_t)c->vocab * (uint64_t)c->hidden;
    uint64_t stored = stored_bytes(m, "model.embed_tokens.weight");
    uint64_t block = k->on_device ? 0 : (uint64_t)HEAD_BLOCK * (uint64_t)c->hidden * 8;
    uint64_t stays = table * dtype_bytes(mode) + stored + (uint64_t)c->layers * (uint64_t)c->hidden * 8 +
                     (uint64_t)forward_chunk(k, window) * (uint64_t)sum * 4;
    out->memory += stored + block; /* as it is read */
    needs_tensors(k, out, stays + (k->on_device && !c->tied ? stored : 0));
}

void needs_tensors(const struct kernels *k, struct needs *out, uint64_t bytes)
{
    *(k->on_device ? &out->device_memory : &out->memory) += bytes;
}

/* A f32 vector of the model, on the device. */
static bool vector(struct forward *f, const char *name, int64_t n, struct tensor *out, struct err *e)
{
    float *host;
    if (!mem_raw(&host, (size_t)n, e))
        return false;
    bool ok = model_read_tensor(f->model, name, n, host, e) && f->q->k->tensor_new(f->q, out, DTYPE_F32, 1, &n, e) &&
              f->q->k->upload(f->q, out, host, (size_t)n * sizeof *host, e);
    mem_free(host);
    return ok;
}

static bool open_norms(struct forward *f, struct err *e)
{
    const struct model_config *c = &f->model->config;
    char name[128];
    if (!mem_new(&f->norms, (size_t)c->layers * 2, e))
        return false;
    for (int l = 0; l < c->layers; l++) {
        snprintf(name, sizeof name, "model.layers.%d.input_layernorm.weight", l);
        if (!vector(f, name, c->hidden, &f->norms[2 * l], e))
            return false;
        snprintf(name, sizeof name, "model.layers.%d.post_attention_layernorm.weight", l);
        if (!vector(f, name, c->hidden, &f->norms[2 * l + 1], e))
            return false;
    }
    return vector(f, "model.norm.weight", c->hidden, &f->final_norm, e);
}

/* The biases of a unit's matrices, end to end, when any has one. */
static bool open_bias(struct forward *f, int unit, struct err *e)
{
    const struct unit *u = &f->model->units[unit];
    bool any = false;
    for (int i = 0; i < u->count; i++)
        any = any || f->model->matrices[u->first + i].has_bias;
    if (!any)
        return true;
    float *host;
    if (!mem_new(&host, (size_t)u->n, e))
        return false;
    bool ok = true;
    for (int i = 0; ok && i < u->count; i++) {
        const struct matrix *m = &f->model->matrices[u->first + i];
        char name[512];
        snprintf(name, sizeof name, "%s.bias", m->name);
        ok = !m->has_bias || model_read_tensor(f->model, name, m->n, host + m->row, e);
    }
    ok = ok && f->q->k->tensor_new(f->q, &f->biases[unit], DTYPE_F32, 1, &u->n, e) &&
         f->q->k->upload(f->q, &f->biases[unit], host, (size_t)u->n * sizeof *host, e);
    mem_free(host);
    return ok;
}

static bool open_biases(struct forward *f, struct err *e)
{
    if (!mem_new(&f->biases, (size_t)f->model->n_units, e))
        return false;
    for (int u = 0; u < f->model->n_units; u++)
        if (!open_bias(f, u, e))
            return false;
    return true;
}

/* A table [vocab, hidden] of the model as it is stored, on the queue's device. */
static bool open_stored(struct queue *q, const struct model *m, const struct st_tensor *t, struct tensor *out,
                        struct err *e)
{
    int64_t shape[2] = {m->config.vocab, m->config.hidden};
    unsigned char *raw;
    if (!mem_raw(&raw, t->bytes, e))
        return false;
    bool ok = safetensors_read(m->files, t, 0, t->bytes, raw, e) && q->k->tensor_new(q, out, t->dtype, 2, shape, e) &&
              q->k->upload(q, out, raw, t->bytes, e);
    mem_free(raw);
    return ok;
}

/* A head's panels on the CPU, widened block by block. */
static bool pack_head(struct queue *q, const struct model *m, const struct st_tensor *head, struct tensor *panels,
                      struct err *e)
{
    const struct model_config *c = &m->config;
    unsigned char *raw = NULL;
    float *wide = NULL;
    size_t row_bytes = (size_t)c->hidden * dtype_bytes(head->dtype);
    bool ok = mem_raw(&raw, HEAD_BLOCK * row_bytes, e) && mem_raw(&wide, (size_t)(HEAD_BLOCK * c->hidden), e);
    for (int64_t first = 0; ok && first < c->vocab; first += HEAD_BLOCK) {
        int64_t n = c->vocab - first < HEAD_BLOCK ? c->vocab - first : HEAD_BLOCK;
        struct tensor rows = tensor_matrix(wide, DTYPE_F32, n, c->hidden);
        ok = safetensors_read(m->files, head, (uint64_t)first * row_bytes, (uint64_t)n * row_bytes, raw, e) &&
             dtype_to_f32(head->dtype, raw, (size_t)(n * c->hidden), wide, e) &&
             q->k->pack(q, &rows, first, panels, e);
    }
    mem_free(raw);
    mem_free(wide);
    return ok;
}

/* The same on an accelerator, from the table as it is stored: `there`, or read if that is NULL. */
static bool unpack_head(struct queue *q, const struct model *m, const struct st_tensor *head,
                        const struct tensor *there, struct tensor *panels, struct err *e)
{
    struct tensor own = {0};
    if (!there && !open_stored(q, m, head, &own, e)) {
        q->k->tensor_free(q, &own);
        return false;
    }
    struct packed_matrix w = {.code = CODE_PLAIN, .n = m->config.vocab, .k = m->config.hidden,
                              .part = {there ? *there : own}};
    bool ok = q->k->unpack(q, &w, 0, panels, e);
    q->k->tensor_free(q, &own);
    return ok;
}

/* The head as panels; `embedding`: that table, where it lies on the queue's device already. */
static bool open_head(struct queue *q, const struct model *m, enum dtype mode, const struct tensor *embedding,
                      struct tensor *out, struct err *e)
{
    const char *name = m->config.tied ? "model.embed_tokens.weight" : "lm_head.weight";
    const struct st_tensor *head = safetensors_find(m->files, name);
    struct tensor panels = {0};
    if (!head)
        return err_set(e, ERR_INPUT, "%s: no tensor '%s'", m->path, name);
    if (!q->k->panels_new(q, &panels, m->config.vocab, m->config.hidden, mode, e))
        return false;
    if (q->k->on_device ? !unpack_head(q, m, head, m->config.tied ? embedding : NULL, &panels, e)
                        : !pack_head(q, m, head, &panels, e)) {
        q->k->tensor_free(q, &panels);
        return false;
    }
    *out = panels;
    return true;
}

bool forward_head(struct queue *q, const struct model *m, enum dtype mode, struct tensor *out, struct err *e)
{
    return open_head(q, m, mode, NULL, out, e);
}

/* The embedding as it is stored, and the head as panels: the same tensor when tied. A head that is stored packed is
 * one candidate's, who brings it. */
static bool open_tables(struct forward *f, struct err *e)
{
    static const char name[] = "model.embed_tokens.weight";
    const struct st_tensor *table = safetensors_find(f->model->files, name);
    if (!table)
        return err_set(e, ERR_INPUT, "%s: no tensor '%s'", f->model->path, name);
    int head = f->model->head_unit;
    bool is_packed = head >= 0 && f->model->matrices[f->model->units[head].first].stored->group_format;
    return open_stored(f->q, f->model, table, &f->embedding, e) &&
           (is_packed || open_head(f->q, f->model, f->mode, &f->embedding, &f->head, e));
}

static bool open_rope(struct forward *f, int window, struct err *e)
{
    int64_t shape[2] = {window, f->model->config.head_dim / 2};
    size_t n = (size_t)(shape[0] * shape[1]);
    float *table;
    if (!mem_raw(&table, 2 * n, e))
        return false;
    rope_tables(&f->model->config, window, table, table + n);
    const struct kernels *k = f->q->k;
    bool ok = k->tensor_new(f->q, &f->cosine, DTYPE_F32, 2, shape, e) &&
              k->tensor_new(f->q, &f->sine, DTYPE_F32, 2, shape, e) &&
              k->upload(f->q, &f->cosine, table, n * sizeof *table, e) &&
              k->upload(f->q, &f->sine, table + n, n * sizeof *table, e);
    mem_free(table);
    return ok;
}

bool forward_open(struct forward *f, const struct model *m, struct queue *q, enum dtype mode, int window, struct err *e)
{
    const struct model_config *c = &m->config;
    *f = (struct forward){.model = m, .q = q, .mode = mode, .chunk = forward_chunk(q->k, window)};
    f->shape = (struct attention_shape){
        .heads = c->heads, .kv_heads = c->kv_heads, .head_dim = c->head_dim, .window = window};
    if (window > c->max_positions)
        return err_set(e, ERR_INPUT, "windows of %d tokens are longer than the model's %d positions (config.json: "
                       "max_position_embeddings)", window, c->max_positions);
    bool ok = open_norms(f, e) && open_biases(f, e) && open_tables(f, e) && open_rope(f, window, e);
    int64_t width[WORK_COUNT];
    work_widths(c, width);
    for (int i = 0; ok && i < WORK_COUNT; i++) {
        int64_t shape[2] = {f->chunk, width[i]};
        ok = q->k->tensor_new(q, &f->work[i], DTYPE_F32, 2, shape, e);
    }
    if (!ok)
        forward_close(f);
    return ok;
}

void forward_close(struct forward *f)
{
    if (!f->q)
        return;
    const struct kernels *k = f->q->k;
    for (int i = 0; i < WORK_COUNT; i++)
        k->tensor_free(f->q, &f->work[i]);
    for (int i = 0; f->norms && i < 2 * f->model->config.layers; i++)
        k->tensor_free(f->q, &f->norms[i]);
    for (int i = 0; f->biases && i < f->model->n_units; i++)
        k->tensor_free(f->q, &f->biases[i]);
    mem_free(f->norms);
    mem_free(f->biases);
    k->tensor_free(f->q, &f->embedding);
    k->tensor_free(f->q, &f->head);
    k->tensor_free(f->q, &f->final_norm);
    k->tensor_free(f->q, &f->cosine);
    k->tensor_free(f->q, &f->sine);
    *f = (struct forward){0};
}

bool forward_embed(struct forward *f, const int32_t *ids, struct tensor *x, struct err *e)
{
    const struct kernels *k = f->q->k;
    int64_t rows = x->shape[0];
    for (int64_t t = 0; t < rows; t++)
        if (ids[t] < 0 || ids[t] >= f->model->config.vocab)
            return err_set(e, ERR_INPUT, "token id %d is outside the model's vocabulary of %d", ids[t],
                           f->model->config.vocab);
    struct tensor device = {0};
    bool ok = k->tensor_new(f->q, &device, DTYPE_I32, 1, &rows, e) &&
              k->upload(f->q, &device, ids, (size_t)rows * sizeof *ids, e) &&
              k->embed(f->q, &f->embedding, &device, x, e);
    k->tensor_free(f->q, &device);
    return ok;
}

bool forward_linear(struct forward *f, int unit, const struct unit_weights *w, struct tensor *x, struct tensor *y,
                    struct err *e)
{
    const struct kernels *k = f->q->k;
    const struct unit *u = &f->model->units[unit];
    if (w->native.codes.data) { /* quantizes the input itself */
        if (!k->native_matmul(f->q, x, w->act_scale, f->mode, &w->native, y, e))
            return err_context(e, "unit '%s'", u->name);
        return !f->biases[unit].data || k->add_bias(f->q, y, &f->biases[unit], e);
    }
    if (w->act != ACT_NONE && !k->fake_quantize(f->q, x, w->act, w->act_scale, f->mode, x, e))
        return err_context(e, "unit '%s'", u->name);
    if (!k->matmul(f->q, x, &w->panels, y, e))
        return err_context(e, "unit '%s'", u->name);
    return !f->biases[unit].data || k->add_bias(f->q, y, &f->biases[unit], e);
}

/* Fake quantization is in place: no one reads the input again. */
static bool linear(struct forward *f, int unit, const struct unit_weights *w, struct tensor *x, struct tensor *y,
                   forward_observer observe, void *context, struct err *e)
{
    return (!observe || observe(context, f->model->units[unit].role, x, e)) && forward_linear(f, unit, w, x, y, e);
}

/* Rows that fit the work space: whole windows, at most f->chunk. */
static bool layer_chunk(struct forward *f, int layer, const struct unit_weights *w, struct tensor *x,
                        forward_observer observe, void *context, struct err *e)
{
    const struct kernels *k = f->q->k;
    struct queue *q = f->q;
    struct tensor work[WORK_COUNT];
    const int unit = layer * LAYER_UNITS;
    const float eps = f->model->config.eps;
    for (int i = 0; i < WORK_COUNT; i++)
        work[i] = tensor_rows(&f->work[i], 0, x->shape[0]);
    return k->rmsnorm(q, x, &f->norms[2 * layer], eps, &work[WORK_NORM], e) &&
           linear(f, unit + ROLE_QKV, &w[ROLE_QKV], &work[WORK_NORM], &work[WORK_QKV], observe, context, e) &&
           k->rope(q, &work[WORK_QKV], &f->shape, &f->cosine, &f->sine, e) &&
           k->attention(q, &work[WORK_QKV], &f->shape, &work[WORK_ATTENTION], e) &&
           linear(f, unit + ROLE_O, &w[ROLE_O], &work[WORK_ATTENTION], &work[WORK_DELTA], observe, context, e) &&
           k->add_rmsnorm(q, x, &work[WORK_DELTA], &f->norms[2 * layer + 1], eps, &work[WORK_NORM], e) &&
           linear(f, unit + ROLE_GATE_UP, &w[ROLE_GATE_UP], &work[WORK_NORM], &work[WORK_GATE_UP], observe, context,
                  e) &&
           k->swiglu(q, &work[WORK_GATE_UP], &work[WORK_PRODUCT], e) &&
           linear(f, unit + ROLE_DOWN, &w[ROLE_DOWN], &work[WORK_PRODUCT], &work[WORK_DELTA], observe, context, e) &&
           k->add(q, x, &work[WORK_DELTA], e);
}

bool forward_layer(struct forward *f, int layer, const struct unit_weights w[LAYER_UNITS], struct tensor *x,
                   forward_observer observe, void *context, struct err *e)
{
    int64_t rows = x->shape[0];
    for (int64_t first = 0; first < rows; first += f->chunk) {
        struct tensor part = tensor_rows(x, first, rows - first < f->chunk ? rows - first : f->chunk);
        if (!layer_chunk(f, layer, w, &part, observe, context, e))
            return err_context(e, "layer %d", layer);
    }
    return true;
}

bool forward_final(struct forward *f, const struct tensor *x, struct tensor *states, struct err *e)
{
    return f->q->k->rmsnorm(f->q, x, &f->final_norm, f->model->config.eps, states, e);
}
