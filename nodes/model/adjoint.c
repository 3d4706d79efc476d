#include "nodes/model/adjoint.h"

#include <string.h>

enum { DOT, SQUARE, SUMS };

struct adjoint {
    const struct adjoint_spec *s;
    struct forward *f;
    struct queue *q;
    const struct kernels *k;
    struct backward b;
    uint32_t n;                    /* windows of the batch */
    const uint32_t *windows;
    const struct adjoint_row *rows;
    int64_t slots, batch_rows;     /* of a window; of the batch */
    struct tensor states;          /* [layer + 1, batch_rows], hidden: before each layer, and behind the last */
    struct tensor gradient;        /* [probe, batch_rows], hidden: at the output of the layer in hand */
    struct tensor *delta;          /* [role, format]: what the format changes of the unit's output, for a chunk */
    struct tensor input;           /* [chunk, widest K]: an input that may be fake-quantized */
    struct tensor sums;            /* f64 [role, format, probe, DOT or SQUARE, block of the chunk] */
    struct tensor gram[LAYER_UNITS]; /* x x^T of a unit's input, [chunk, window]: a square a window; with traces */
    struct tensor square;          /* g g^T of a window */
    struct tensor total;           /* f64 [1] */
    double *host_sums;
    uint32_t first_window;         /* of the chunk in hand, in the batch */
    int layer, probe;
};

/* ------------------------------------------------------------------------------------------------------------ sizes */

static uint64_t state_bytes(const struct model *m, uint32_t window, int n_probes)
{
    uint64_t copies = (uint64_t)m->config.layers + 1 + (uint64_t)n_probes;
    return copies * window * (uint64_t)m->config.hidden * sizeof(float);
}

uint32_t adjoint_batch(const struct adjoint_spec *s, uint64_t bytes)
{
    uint64_t n = bytes / state_bytes(s->f->model, s->tokens->window, s->n_probes);
    return n < 1 ? 1 : n > s->tokens->n ? s->tokens->n : (uint32_t)n;
}

static int64_t layer_width(const struct model *m, bool outputs)
{
    int64_t most = 0, sum = 0;
    for (int u = 0; u < LAYER_UNITS; u++) {
        sum += m->units[u].n;
        most = m->units[u].k > most ? m->units[u].k : most;
    }
    return outputs ? sum : most;
}

/* Numbers in `sums`, for chunks of so many rows. */
static size_t count_sums(int n_formats, int n_probes, int64_t chunk, uint32_t block)
{
    return (size_t)(LAYER_UNITS * n_formats * n_probes) * SUMS * (size_t)(chunk / block);
}

void adjoint_needs(const struct kernels *k, const struct model *m, enum dtype mode, uint32_t window, int n_formats,
                   int n_probes, uint32_t block, uint32_t batch, struct needs *out)
{
    uint64_t layer = 0, chunk = (uint64_t)forward_chunk(k, (int)window), most_unit = 0;
    for (int u = 0; u < LAYER_UNITS; u++) {
        layer += m->units[u].parameters * dtype_bytes(mode);
        most_unit = m->units[u].parameters > most_unit ? m->units[u].parameters : most_unit;
    }
    uint64_t head = (uint64_t)m->config.vocab * (uint64_t)m->config.hidden * dtype_bytes(mode);
    uint64_t sums = count_sums(n_formats, n_probes, (int64_t)chunk, block) * sizeof(double);
    uint64_t logits = 2 * (uint64_t)window * (uint64_t)m->config.vocab * sizeof(float);
    backward_needs(k, m, (int)window, out);
    needs_tensors(k, out, batch * state_bytes(m, window, n_probes) + ((uint64_t)n_formats + 2) * layer + 2 * head +
                              2 * logits + (LAYER_UNITS * chunk + window) * window * sizeof(float) + sums +
                              chunk * ((uint64_t)n_formats * (uint64_t)layer_width(m, true) +
                                       (uint64_t)layer_width(m, false)) * sizeof(float));
    out->memory += most_unit * sizeof(float) + sums;
}

static bool matrix_new(struct adjoint *a, struct tensor *out, int64_t rows, int64_t columns, struct err *e)
{
    return a->k->tensor_new(a->q, out, DTYPE_F32, 2, (int64_t[]){rows, columns}, e);
}

static size_t sums_count(const struct adjoint *a)
{
    return count_sums(a->s->n_formats, a->s->n_probes, a->f->chunk, a->s->block);
}

static bool open_tensors(struct adjoint *a, struct err *e)
{
    const struct model *m = a->f->model;
    const int64_t hidden = m->config.hidden;
    int64_t n_sums = (int64_t)sums_count(a);
    bool ok = backward_open(&a->b, a->f, e) &&
              matrix_new(a, &a->states, (m->config.layers + 1) * a->batch_rows, hidden, e) &&
              matrix_new(a, &a->gradient, a->s->n_probes * a->batch_rows, hidden, e) &&
              matrix_new(a, &a->input, a->f->chunk, layer_width(m, false), e) &&
              a->k->tensor_new(a->q, &a->sums, DTYPE_F64, 1, &n_sums, e) &&
              mem_new(&a->host_sums, (size_t)n_sums, e) &&
              mem_new(&a->delta, (size_t)(LAYER_UNITS * a->s->n_formats), e);
    for (int i = 0; ok && i < LAYER_UNITS * a->s->n_formats; i++)
        ok = matrix_new(a, &a->delta[i], a->f->chunk, m->units[i / a->s->n_formats].n, e);
    for (int i = 0; ok && a->s->n_traces > 0 && i < LAYER_UNITS; i++)
        ok = matrix_new(a, &a->gram[i], a->f->chunk, a->slots, e);
    if (ok && a->s->n_traces > 0)
        ok = matrix_new(a, &a->square, a->slots, a->slots, e) &&
             a->k->tensor_new(a->q, &a->total, DTYPE_F64, 1, (int64_t[]){1}, e);
    return ok;
}

static void close_tensors(struct adjoint *a)
{
    for (int i = 0; a->delta && i < LAYER_UNITS * a->s->n_formats; i++)
        a->k->tensor_free(a->q, &a->delta[i]);
    for (int i = 0; i < LAYER_UNITS; i++)
        a->k->tensor_free(a->q, &a->gram[i]);
    a->k->tensor_free(a->q, &a->square);
    a->k->tensor_free(a->q, &a->total);
    a->k->tensor_free(a->q, &a->sums);
    a->k->tensor_free(a->q, &a->input);
    a->k->tensor_free(a->q, &a->gradient);
    a->k->tensor_free(a->q, &a->states);
    backward_close(&a->b);
    mem_free(a->delta);
    mem_free(a->host_sums);
}

/* ------------------------------------------------------------------------------------------------------------ views */

static struct tensor columns_of(const struct tensor *t, int64_t rows, int64_t columns)
{
    struct tensor v = *t; /* a block of memory seen as a narrower matrix */
    v.rank = 2;
    v.shape[0] = rows;
    v.shape[1] = columns;
    v.owned = false;
    return v;
}

static struct tensor state_rows(const struct adjoint *a, int layer, int64_t first, int64_t n)
{
    return tensor_rows(&a->states, layer * a->batch_rows + first, n);
}

static struct tensor gradient_rows(const struct adjoint *a, int probe, int64_t first, int64_t n)
{
    return tensor_rows(&a->gradient, probe * a->batch_rows + first, n);
}

static size_t sums_at(const struct adjoint *a, int role, int format, int probe, int which)
{
    size_t cell = (size_t)((role * a->s->n_formats + format) * a->s->n_probes + probe);
    return (cell * SUMS + (size_t)which) * (size_t)(a->f->chunk / a->s->block);
}

static struct tensor sums_view(const struct adjoint *a, size_t at, int64_t n)
{
    struct tensor v = a->sums;
    v.data = (double *)a->sums.data + at;
    v.shape[0] = n;
    v.owned = false;
    return v;
}

static int64_t window_blocks(const struct adjoint *a) { return a->slots / a->s->block; }

/* What a draw's sums over a window's blocks add to its row; `cell` [unit, format]. */
static void take_sums(const struct adjoint *a, const double *dot, const double *square, size_t cell, int probe,
                      const struct adjoint_row *r)
{
    double sum = 0, local = 0, squares = 0;
    for (int64_t b = 0; b < window_blocks(a); b++) {
        sum += dot[b];
        local += dot[b] * dot[b];
        squares += square[b];
    }
    r->response[cell * (size_t)a->s->n_probes + (size_t)probe] = sum;
    r->local[cell] += local / a->s->n_probes;
    r->square[cell] += squares / a->s->n_probes;
}

/* ------------------------------------------------------------------------------------------------------------ draws */

/* SplitMix64's finaliser over a sum of odd multiples. */
uint64_t adjoint_seed(uint64_t seed, int probe, uint32_t window, uint32_t position)
{
    uint64_t z = seed + 0x9e3779b97f4a7c15u * ((uint64_t)probe + 1) + 0xd1b54a32d192ed03u * ((uint64_t)window + 1) +
                 0x8cb92ba72f3d8dd7u * ((uint64_t)position + 1);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    z ^= z >> 31;
    return z ? z : 1;
}

/* Positions that are not scored have no draw. seeds [slots]. */
static void window_seeds(const struct adjoint *a, int probe, uint32_t index, uint64_t *seeds)
{
    uint32_t window = a->windows[index], scored = tokens_scored(a->s->tokens, window);
    for (uint32_t t = 0; t < (uint32_t)a->slots; t++)
        seeds[t] = t < scored ? adjoint_seed(a->s->seed, probe, window, t) : 0;
}

/* What the head works with, a window at a time. */
struct head {
    struct tensor transposed;    /* panels {hidden, vocab} */
    struct tensor states, logits, draw, back; /* [slots, hidden], [slots, vocab], [slots, vocab], [slots, hidden] */
    uint64_t *seeds;
};

static bool open_head(struct adjoint *a, struct head *h, struct err *e)
{
    const struct model_config *c = &a->f->model->config;
    return a->k->panels_new(a->q, &h->transposed, c->hidden, c->vocab, a->f->mode, e) &&
           a->k->transpose(a->q, &a->f->head, &h->transposed, e) && matrix_new(a, &h->states, a->slots, c->hidden, e) &&
           matrix_new(a, &h->logits, a->slots, c->vocab, e) && matrix_new(a, &h->draw, a->slots, c->vocab, e) &&
           matrix_new(a, &h->back, a->slots, c->hidden, e) && mem_new(&h->seeds, (size_t)a->slots, e);
}

static void close_head(struct adjoint *a, struct head *h)
{
    struct tensor *all[] = {&h->transposed, &h->states, &h->logits, &h->draw, &h->back};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        a->k->tensor_free(a->q, all[i]);
    mem_free(h->seeds);
}

static bool head_logits(struct adjoint *a, struct head *h, uint32_t index, struct err *e)
{
    struct tensor x = state_rows(a, a->f->model->config.layers, index * a->slots, a->slots);
    return forward_final(a->f, &x, &h->states, e) && a->k->matmul(a->q, &h->states, &a->f->head, &h->logits, e);
}

static bool head_draw(struct adjoint *a, struct head *h, int probe, uint32_t index, struct err *e)
{
    window_seeds(a, probe, index, h->seeds);
    return a->k->copy(a->q, &h->logits, &h->draw, e) && a->k->fisher_draw(a->q, &h->draw, a->s->draw, h->seeds, e);
}

/* out [window, window] = x x^T of the rows of one window. */
static bool window_gram(struct adjoint *a, const struct tensor *x, struct tensor *out, struct err *e)
{
    struct tensor panels = {0};
    bool ok = a->k->panels_new(a->q, &panels, a->slots, x->shape[1], DTYPE_F32, e) &&
              a->k->pack(a->q, x, 0, &panels, e) && a->k->matmul(a->q, x, &panels, out, e);
    a->k->tensor_free(a->q, &panels);
    return ok;
}

/* |sum over a window's positions of g x^T|^2 = sum over s, t of (g_s . g_t) (x_s . x_t); gram: the latter. */
static bool window_trace(struct adjoint *a, const struct tensor *g, const struct tensor *gram, double *out,
                         struct err *e)
{
    double sum = 0;
    bool ok = window_gram(a, g, &a->square, e) &&
              a->k->window_dots(a->q, &a->square, gram, a->slots, &a->total, NULL, e) &&
              a->k->download(a->q, &sum, &a->total, sizeof sum, e);
    *out += sum / a->s->n_traces;
    return ok;
}

/* The draws at the logits, back through the head and the final norm. */
static bool start_gradients(struct adjoint *a, struct head *h, struct err *e)
{
    const struct model *m = a->f->model;
    const int layers = m->config.layers;
    float *zero;
    size_t n = (size_t)tensor_count(&a->gradient);
    if (!mem_new(&zero, n, e))
        return false;
    bool ok = a->k->upload(a->q, &a->gradient, zero, n * sizeof *zero, e);
    mem_free(zero);
    for (uint32_t i = 0; ok && i < a->n; i++) {
        struct tensor gram = tensor_rows(&a->gram[0], 0, a->slots);
        bool is_traced = m->head_unit >= 0 && a->s->n_traces > 0;
        ok = head_logits(a, h, i, e) && (!is_traced || window_gram(a, &h->states, &gram, e));
        for (int p = 0; ok && p < a->s->n_probes; p++) {
            struct tensor x = state_rows(a, layers, i * a->slots, a->slots);
            struct tensor dx = gradient_rows(a, p, i * a->slots, a->slots);
            ok = head_draw(a, h, p, i, e) && a->k->matmul(a->q, &h->draw, &h->transposed, &h->back, e) &&
                 a->k->rmsnorm_backward(a->q, &x, &a->f->final_norm, m->config.eps, &h->back, &dx, e);
            if (ok && is_traced && p < a->s->n_traces)
                ok = window_trace(a, &h->draw, &gram, &a->rows[i].trace[m->head_unit], e);
        }
    }
    return ok;
}

/* Responses of a head that is a unit: logits and draws are made again for each format, of which one is there at a
 * time. */
static bool head_format(struct adjoint *a, struct head *h, int format, struct err *e)
{
    const struct adjoint_spec *s = a->s;
    const int unit = a->f->model->head_unit;
    struct unit_weights w = {0};
    const int64_t blocks = window_blocks(a);
    struct tensor delta = {0}, dot = sums_view(a, 0, blocks), square = sums_view(a, (size_t)blocks, blocks);
    struct tensor both = sums_view(a, 0, SUMS * blocks);
    bool ok = s->load(s->context, unit, format, &w, e) && matrix_new(a, &delta, a->slots, a->f->model->config.vocab, e);
    for (uint32_t i = 0; ok && i < a->n; i++) {
        ok = head_logits(a, h, i, e) && forward_linear(a->f, unit, &w, &h->states, &delta, e) &&
             a->k->subtract(a->q, &delta, &h->logits, &delta, e);
        for (int p = 0; ok && p < s->n_probes; p++) {
            ok = head_draw(a, h, p, i, e) &&
                 a->k->window_dots(a->q, &h->draw, &delta, s->block, &dot, &square, e) &&
                 a->k->download(a->q, a->host_sums, &both, SUMS * (size_t)blocks * sizeof *a->host_sums, e);
            if (ok)
                take_sums(a, a->host_sums, a->host_sums + blocks, (size_t)(unit * s->n_formats + format), p,
                          &a->rows[i]);
        }
    }
    a->k->tensor_free(a->q, &delta);
    unit_weights_free(a->q, &w);
    return ok;
}

static bool run_head(struct adjoint *a, struct err *e)
{
    struct head h = {0};
    const int unit = a->f->model->head_unit;
    bool ok = open_head(a, &h, e) && start_gradients(a, &h, e);
    for (int f = 0; ok && unit >= 0 && f < a->s->n_formats; f++)
        if (!a->s->skip[unit * a->s->n_formats + f])
            ok = head_format(a, &h, f, e);
    close_head(a, &h);
    return ok || err_context(e, "the head");
}

/* ----------------------------------------------------------------------------------------------------------- layers */

/* A layer's weights: plain, transposed, and in every format that is wanted. */
struct layer_weights {
    struct unit_weights plain[LAYER_UNITS];
    struct tensor transposed[LAYER_UNITS];
    struct unit_weights *formats; /* [role, format] */
};

static void free_weights(struct adjoint *a, struct layer_weights *w)
{
    for (int u = 0; u < LAYER_UNITS; u++) {
        unit_weights_free(a->q, &w->plain[u]);
        a->k->tensor_free(a->q, &w->transposed[u]);
    }
    for (int i = 0; w->formats && i < LAYER_UNITS * a->s->n_formats; i++)
        unit_weights_free(a->q, &w->formats[i]);
    mem_free(w->formats);
}

static bool load_plain(struct adjoint *a, int layer, struct unit_weights w[LAYER_UNITS], struct err *e)
{
    bool ok = true;
    for (int u = 0; ok && u < LAYER_UNITS; u++)
        ok = weights_stored(a->q, a->f->model, layer * LAYER_UNITS + u, a->f->mode, &w[u], e);
    return ok;
}

static bool load_weights(struct adjoint *a, int layer, struct layer_weights *w, struct err *e)
{
    const struct adjoint_spec *s = a->s;
    bool ok = load_plain(a, layer, w->plain, e) && mem_new(&w->formats, (size_t)(LAYER_UNITS * s->n_formats), e);
    for (int u = 0; ok && u < LAYER_UNITS; u++) {
        int unit = layer * LAYER_UNITS + u;
        const struct unit *of = &a->f->model->units[unit];
        ok = a->k->panels_new(a->q, &w->transposed[u], of->k, of->n, a->f->mode, e) &&
             a->k->transpose(a->q, &w->plain[u].panels, &w->transposed[u], e);
        for (int f = 0; ok && f < s->n_formats; f++)
            if (!s->skip[unit * s->n_formats + f])
                ok = s->load(s->context, unit, f, &w->formats[u * s->n_formats + f], e);
    }
    return ok;
}

/* What every format changes of every unit's output, on the chunk that was computed. */
static bool form_deltas(struct adjoint *a, struct layer_weights *w, struct err *e)
{
    const struct adjoint_spec *s = a->s;
    bool ok = true;
    for (int u = 0; ok && u < LAYER_UNITS; u++) {
        struct tensor x = backward_input(&a->b, (enum unit_role)u), y = backward_output(&a->b, (enum unit_role)u);
        struct tensor copy = columns_of(&a->input, x.shape[0], x.shape[1]);
        for (int f = 0; ok && f < s->n_formats; f++) {
            struct unit_weights *of = &w->formats[u * s->n_formats + f];
            struct tensor d = tensor_rows(&a->delta[u * s->n_formats + f], 0, y.shape[0]);
            if (!unit_weights_there(of))
                continue;
            ok = a->k->copy(a->q, &x, &copy, e) &&
                 forward_linear(a->f, a->layer * LAYER_UNITS + u, of, &copy, &d, e) &&
                 a->k->subtract(a->q, &d, &y, &d, e);
        }
    }
    return ok;
}

/* The draw's share of the traces of a unit, in every window of the chunk. */
static bool add_traces(struct adjoint *a, enum unit_role role, const struct tensor *g, struct err *e)
{
    const int unit = a->layer * LAYER_UNITS + (int)role;
    bool ok = true;
    for (int64_t w = 0; ok && w < g->shape[0] / a->slots; w++) {
        struct tensor here = tensor_rows(g, w * a->slots, a->slots);
        struct tensor gram = tensor_rows(&a->gram[role], w * a->slots, a->slots);
        ok = window_trace(a, &here, &gram, &a->rows[a->first_window + w].trace[unit], e);
    }
    return ok;
}

static bool observe(void *context, enum unit_role role, const struct tensor *g, struct err *e)
{
    struct adjoint *a = context;
    const struct adjoint_spec *s = a->s;
    const int unit = a->layer * LAYER_UNITS + (int)role;
    const int64_t blocks = g->shape[0] / s->block;
    bool ok = a->probe >= s->n_traces || add_traces(a, role, g, e);
    for (int f = 0; ok && f < s->n_formats; f++) {
        if (s->skip[unit * s->n_formats + f])
            continue;
        struct tensor d = tensor_rows(&a->delta[(int)role * s->n_formats + f], 0, g->shape[0]);
        struct tensor dot = sums_view(a, sums_at(a, (int)role, f, a->probe, DOT), blocks);
        struct tensor square = sums_view(a, sums_at(a, (int)role, f, a->probe, SQUARE), blocks);
        ok = a->k->window_dots(a->q, g, &d, s->block, &dot, &square, e);
    }
    return ok;
}

/* x x^T of every unit's input, in every window of the chunk. */
static bool form_grams(struct adjoint *a, struct err *e)
{
    bool ok = true;
    for (int u = 0; ok && a->s->n_traces > 0 && u < LAYER_UNITS; u++) {
        const struct tensor x = backward_input(&a->b, (enum unit_role)u);
        for (int64_t w = 0; ok && w < x.shape[0] / a->slots; w++) {
            struct tensor here = tensor_rows(&x, w * a->slots, a->slots);
            struct tensor gram = tensor_rows(&a->gram[u], w * a->slots, a->slots);
            ok = window_gram(a, &here, &gram, e);
        }
    }
    return ok;
}

static bool store_sums(struct adjoint *a, int64_t windows, struct err *e)
{
    const struct adjoint_spec *s = a->s;
    if (!a->k->download(a->q, a->host_sums, &a->sums, sums_count(a) * sizeof *a->host_sums, e))
        return false;
    for (int u = 0; u < LAYER_UNITS; u++)
        for (int f = 0; f < s->n_formats; f++) {
            size_t at = (size_t)((a->layer * LAYER_UNITS + u) * s->n_formats + f);
            for (int p = 0; !s->skip[at] && p < s->n_probes; p++)
                for (int64_t w = 0; w < windows; w++) {
                    const double *sums = a->host_sums + w * window_blocks(a);
                    take_sums(a, sums + sums_at(a, u, f, p, DOT), sums + sums_at(a, u, f, p, SQUARE), at, p,
                              &a->rows[a->first_window + w]);
                }
        }
    return true;
}

/* Some whole windows of the batch, with all draws: responses to the gradients at the units' outputs; the gradients at
 * the layer's output become those at its input. */
static bool run_chunk(struct adjoint *a, struct layer_weights *w, int64_t first, int64_t rows, struct err *e)
{
    struct tensor x = state_rows(a, a->layer, first, rows);
    a->first_window = (uint32_t)(first / a->slots);
    bool ok = backward_recompute(&a->b, a->layer, w->plain, &x, e) && form_deltas(a, w, e) && form_grams(a, e);
    for (a->probe = 0; ok && a->probe < a->s->n_probes; a->probe++) {
        struct tensor dx = gradient_rows(a, a->probe, first, rows);
        ok = backward_layer(&a->b, a->layer, w->transposed, &x, &dx, observe, a, e);
    }
    return ok && store_sums(a, rows / a->slots, e);
}

static bool run_layer(struct adjoint *a, int layer, struct err *e)
{
    struct layer_weights w = {0};
    a->layer = layer;
    bool ok = load_weights(a, layer, &w, e);
    for (int64_t first = 0; ok && first < a->batch_rows; first += a->f->chunk) {
        int64_t rows = a->batch_rows - first < a->f->chunk ? a->batch_rows - first : a->f->chunk;
        ok = run_chunk(a, &w, first, rows, e);
    }
    free_weights(a, &w);
    return ok || err_context(e, "layer %d", layer);
}

/* Before each layer: has the run been interrupted? */
static bool go_on(const struct adjoint *a, int layers_done, struct err *e)
{
    if (a->s->progress)
        a->s->progress(a->s->context, (double)layers_done / a->f->model->config.layers);
    return !a->s->node || !node_stopping(a->s->node) || node_stopped(e);
}

/* The residual stream before every layer, kept. */
static bool run_forward(struct adjoint *a, struct err *e)
{
    const struct token_set *t = a->s->tokens;
    bool ok = true;
    for (uint32_t i = 0; ok && i < a->n; i++) {
        struct tensor x = state_rows(a, 0, i * a->slots, a->slots);
        ok = forward_embed(a->f, t->ids + (size_t)a->windows[i] * t->window, &x, e);
    }
    for (int layer = 0; ok && layer < a->f->model->config.layers; layer++) {
        struct unit_weights w[LAYER_UNITS] = {0};
        struct tensor from = state_rows(a, layer, 0, a->batch_rows), to = state_rows(a, layer + 1, 0, a->batch_rows);
        if (!go_on(a, 0, e))
            return false;
        ok = load_plain(a, layer, w, e) && a->k->copy(a->q, &from, &to, e) &&
             forward_layer(a->f, layer, w, &to, NULL, NULL, e);
        for (int u = 0; u < LAYER_UNITS; u++)
            unit_weights_free(a->q, &w[u]);
    }
    return ok;
}

bool adjoint_run(const struct adjoint_spec *s, const uint32_t *windows, uint32_t n, const struct adjoint_row *rows,
                 struct err *e)
{
    const struct model *m = s->f->model;
    struct adjoint a = {.s = s, .f = s->f, .q = s->f->q, .k = s->f->q->k, .n = n, .windows = windows, .rows = rows,
                        .slots = s->tokens->window, .batch_rows = (int64_t)n * s->tokens->window};
    size_t cells = (size_t)(m->n_units * s->n_formats);
    for (uint32_t i = 0; i < n; i++) {
        memset(rows[i].response, 0, cells * (size_t)s->n_probes * sizeof *rows[i].response);
        memset(rows[i].local, 0, cells * sizeof *rows[i].local);
        memset(rows[i].square, 0, cells * sizeof *rows[i].square);
        memset(rows[i].trace, 0, s->n_traces > 0 ? (size_t)m->n_units * sizeof *rows[i].trace : 0);
    }
    bool ok = open_tensors(&a, e) && run_forward(&a, e) && run_head(&a, e);
    for (int layer = m->config.layers; ok && layer-- > 0;)
        ok = go_on(&a, m->config.layers - 1 - layer, e) && run_layer(&a, layer, e);
    close_tensors(&a);
    return ok;
}
