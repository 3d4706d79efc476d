/* The gate: one pass over the layers shows every unit's inputs, and what each unit loses in each of the bases is taken
 * while its layer is in hand. */
#include "nodes/rotate/gate.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "nodes/format/loss.h"
#include "nodes/model/forward.h"

#define ROWS 256       /* of a product at a time */
#define DECODE_ROWS 16 /* that a thread decodes */

struct work {
    const struct gate_spec *spec;
    struct gate *g;
    struct queue *q;
    struct forward f;
    int64_t rows;             /* real positions of all windows; 0: no text */
    float *x[LAYER_UNITS];    /* [rows, k]: inputs of the layer in hand */
    int64_t seen[LAYER_UNITS], filled[LAYER_UNITS]; /* slots that have passed, rows kept */
    struct tensor stream;     /* [windows * slots, hidden] */
};

/* One unit in some bases. */
struct trial {
    int unit;
    unsigned what;
    float *w;               /* [n, k] of the unit, as it would be written */
    double *wide;           /* [n, k] of its largest matrix */
    float *d;               /* likewise: rounded less w */
    float *x, *dx;          /* [rows, k]: inputs, and q(x) - x where the format quantizes them */
    float *y, *more;        /* [ROWS, n of the largest matrix]: outputs */
    double whole[4];        /* |x W^T|^2 of each matrix, from the first trial of the unit */
    float amax;
    struct rendering r[4];
};

static const struct unit *unit_of(const struct work *k, int unit) { return &k->spec->basis->model->units[unit]; }

/* The matrices of a unit share a format. */
static bool unit_fits(const struct work *k, const struct unit *u)
{
    for (int i = u->first; i < u->first + u->count; i++) {
        const struct matrix *m = &k->spec->basis->model->matrices[i];
        if (!format_fits(k->spec->format, m->n, m->k))
            return false;
    }
    return true;
}

static int64_t most_rows(const struct model *m, const struct unit *u)
{
    int64_t most = 0;
    for (int i = u->first; i < u->first + u->count; i++)
        most = m->matrices[i].n > most ? m->matrices[i].n : most;
    return most;
}

/* --------------------------------------------------------------------------------------------------------- the sums */

/* *sum += |x W^T|^2 (+ what dx W2^T adds to it) over all rows, W [n, k] and W2 as panels; W2 NULL: only x. */
static bool add_outputs(struct work *k, const struct trial *t, int64_t width, int64_t n, const struct tensor *w,
                        const struct tensor *w2, double *sum, struct err *e)
{
    const struct kernels *kernels = k->q->k;
    double none;
    for (int64_t first = 0; first < k->rows; first += ROWS) {
        int64_t count = k->rows - first < ROWS ? k->rows - first : ROWS;
        struct tensor x = tensor_matrix(t->x + first * width, DTYPE_F32, count, width);
        struct tensor y = tensor_matrix(t->y, DTYPE_F32, count, n), more = tensor_matrix(t->more, DTYPE_F32, count, n);
        if (!kernels->matmul(k->q, &x, w, &y, e))
            return false;
        if (w2) {
            struct tensor dx = tensor_matrix(t->dx + first * width, DTYPE_F32, count, width);
            if (!kernels->matmul(k->q, &dx, w2, &more, e) || !kernels->add(k->q, &y, &more, e))
                return false;
        }
        if (!kernels->energy(k->q, &y, NULL, sum, &none, e))
            return false;
    }
    return true;
}

static bool new_panels(struct queue *q, float *w, int64_t n, int64_t k, struct tensor *out, struct err *e)
{
    struct tensor rows = tensor_matrix(w, DTYPE_F32, n, k);
    return q->k->panels_new(q, out, n, k, DTYPE_F32, e) && q->k->pack(q, &rows, 0, out, e);
}

/* |x W'^T - q(x) W^'^T|^2: with d = W^' - W' and dx = q(x) - x it is |x d^T + dx W^'^T|^2. */
static bool lost_output(struct work *k, const struct trial *t, const struct matrix *m, double *sum, struct err *e)
{
    struct queue *q = k->q;
    struct tensor d = {0}, rounded = {0};
    bool ok = new_panels(q, t->d, m->n, m->k, &d, e);
    if (ok && t->dx) {
        const float *w = t->w + m->row * m->k;
        for (int64_t i = 0; i < m->n * m->k; i++)
            t->d[i] += w[i];
        ok = new_panels(q, t->d, m->n, m->k, &rounded, e);
    }
    ok = ok && add_outputs(k, t, m->k, m->n, &d, t->dx ? &rounded : NULL, sum, e);
    q->k->tensor_free(q, &d);
    q->k->tensor_free(q, &rounded);
    return ok;
}

/* Losses of the i-th matrix of the trial's unit, whose rendering is there. */
static bool take_losses(struct work *k, struct trial *t, int i, struct err *e)
{
    const struct unit *u = unit_of(k, t->unit);
    int matrix = u->first + i;
    const struct matrix *m = &k->spec->basis->model->matrices[matrix];
    float *w = t->w + m->row * m->k;
    double square = 0.0, whole = 0.0, lost = 0.0, none = 0.0;
    struct queue *q = k->q;
#pragma omp parallel for schedule(static) num_threads(q->threads)
    for (int64_t row = 0; row < m->n; row += DECODE_ROWS) {
        int64_t some = m->n - row < DECODE_ROWS ? m->n - row : DECODE_ROWS;
        t->r[i].format->decode(&t->r[i], row, some, t->d + row * m->k);
        for (int64_t j = row * m->k; j < (row + some) * m->k; j++)
            t->d[j] -= w[j];
    }
    struct tensor d = tensor_matrix(t->d, DTYPE_F32, m->n, m->k), all = tensor_matrix(w, DTYPE_F32, m->n, m->k);
    if (!q->k->energy(q, &d, NULL, &square, &none, e) || !q->k->energy(q, &all, NULL, &whole, &none, e))
        return false;
    size_t at = (size_t)matrix * BASIS_SETS + t->what;
    k->g->weight_loss[at] = loss_ratio(square, whole);
    if (k->rows == 0)
        return true;
    if (t->what == 0) {
        struct tensor panels = {0};
        bool ok = new_panels(q, w, m->n, m->k, &panels, e) &&
                  add_outputs(k, t, m->k, m->n, &panels, NULL, &t->whole[i], e);
        q->k->tensor_free(q, &panels);
        if (!ok)
            return false;
    }
    if (!lost_output(k, t, m, &lost, e))
        return false;
    k->g->output_loss[at] = loss_ratio(lost, t->whole[i]);
    return true;
}

/* ------------------------------------------------------------------------------------------------------- one trial */

/* The unit's weights as they would be written. */
static bool make_weights(struct work *k, struct trial *t, struct err *e)
{
    const struct basis *b = k->spec->basis;
    const struct unit *u = unit_of(k, t->unit);
    t->amax = 0.0f;
    for (int i = u->first; i < u->first + u->count; i++) {
        const struct matrix *m = &b->model->matrices[i];
        float *w = t->w + m->row * u->k;
        size_t count = (size_t)(m->n * m->k);
        enum dtype written = k->spec->keep_dtypes ? m->dtype : k->spec->dtype;
        if (!model_read_matrix(b->model, i, w, e))
            return false;
        for (size_t j = 0; j < count; j++)
            t->wide[j] = (double)w[j];
        if (!basis_matrix(b, i, t->what, t->wide, e) || !basis_round(t->wide, count, written, t->d, e) ||
            !dtype_to_f32(written, t->d, count, w, e) || !format_amax(w, m->n, m->k, &t->amax, e))
            return err_context(e, "%s", m->name);
    }
    return true;
}

/* What the unit's matrices read: x, and what the format adds to it. */
static bool make_inputs(struct work *k, struct trial *t, struct err *e)
{
    const struct unit *u = unit_of(k, t->unit);
    size_t count = (size_t)(k->rows * u->k);
    const struct format *f = k->spec->format;
    if (k->rows == 0)
        return true;
    memcpy(t->x, k->x[u->role], count * sizeof *t->x);
    if (!basis_input(k->spec->basis, t->unit, t->what, k->rows, t->x, e))
        return false;
    if (!t->dx)
        return true;
    struct tensor x = tensor_matrix(t->x, DTYPE_F32, k->rows, u->k);
    struct tensor y = tensor_matrix(t->dx, DTYPE_F32, k->rows, u->k);
    float amax = 0.0f, scale = 0.0f;
    if (f->static_input_scale && !k->q->k->amax(k->q, &x, &amax, e))
        return false;
    if (f->static_input_scale) {
        k->g->input_amax[(size_t)t->unit * BASIS_SETS + t->what] = amax;
        scale = amax > 0.0f ? 2688.0f / amax : 1.0f;
    }
    if (!k->q->k->fake_quantize(k->q, &x, f->act, scale, DTYPE_F32, &y, e))
        return false;
    for (size_t i = 0; i < count; i++)
        t->dx[i] -= t->x[i];
    return true;
}

static bool run_trial(struct work *k, struct trial *t, struct err *e)
{
    const struct unit *u = unit_of(k, t->unit);
    const struct matrix *m = &k->spec->basis->model->matrices[u->first];
    if (!make_weights(k, t, e) || !make_inputs(k, t, e))
        return false;
    bool ok = true;
    for (int i = 0; ok && i < u->count; i++)
        ok = format_rendering_new(&t->r[i], k->spec->format, m[i].n, m[i].k, m[i].dtype, e);
    bool encoded[4] = {false};
    struct err why[4];
    int threads = k->q->threads < u->count ? k->q->threads : u->count;
#pragma omp parallel for schedule(static, 1) num_threads(threads) if (ok)
    for (int i = 0; i < u->count; i++)
        encoded[i] = ok && k->spec->format->encode(t->w + m[i].row * u->k, t->amax, &t->r[i], &why[i]);
    for (int i = 0; ok && i < u->count; i++)
        if (!encoded[i]) {
            *e = why[i];
            ok = err_context(e, "%s in %s", m[i].name, k->spec->format->name);
        }
    for (int i = 0; ok && i < u->count; i++)
        ok = take_losses(k, t, i, e);
    for (int i = 0; i < u->count; i++)
        rendering_free(&t->r[i]);
    return ok;
}

/* What a unit's losses depend on, of the bases. */
static unsigned bases_of(const struct unit *u)
{
    return u->role == ROLE_QKV || u->role == ROLE_O ? BASIS_RESIDUAL | BASIS_HEADS : BASIS_RESIDUAL;
}

/* What was found in bases that do not concern the unit is what was found without them. */
static void spread(struct work *k, int unit)
{
    const struct unit *u = unit_of(k, unit);
    float *amax = k->g->input_amax + (size_t)unit * BASIS_SETS;
    for (unsigned what = 0; what < BASIS_SETS; what++)
        amax[what] = amax[what & bases_of(u)];
    for (int i = u->first; i < u->first + u->count; i++)
        for (unsigned what = 0; what < BASIS_SETS; what++) {
            size_t row = (size_t)i * BASIS_SETS;
            k->g->weight_loss[row + what] = k->g->weight_loss[row + (what & bases_of(u))];
            k->g->output_loss[row + what] = k->g->output_loss[row + (what & bases_of(u))];
        }
}

static bool measure_unit(struct work *k, int unit, struct err *e)
{
    const struct model *m = k->spec->basis->model;
    const struct unit *u = &m->units[unit];
    if (!unit_fits(k, u))
        return true;
    size_t largest = (size_t)(most_rows(m, u) * u->k), inputs = (size_t)(k->rows * u->k);
    struct trial t = {.unit = unit};
    bool ok = mem_raw(&t.w, (size_t)(u->n * u->k), e) && mem_raw(&t.wide, largest, e) && mem_raw(&t.d, largest, e);
    if (k->rows > 0)
        ok = ok && mem_raw(&t.x, inputs, e) && mem_raw(&t.y, (size_t)(ROWS * most_rows(m, u)), e) &&
             mem_raw(&t.more, (size_t)(ROWS * most_rows(m, u)), e) &&
             (k->spec->format->act == ACT_NONE || mem_raw(&t.dx, inputs, e));
    for (t.what = 0; ok && t.what < BASIS_SETS; t.what++)
        if ((t.what & k->spec->what & bases_of(u)) == t.what)
            ok = run_trial(k, &t, e);
    spread(k, unit);
    mem_free(t.w);
    mem_free(t.wide);
    mem_free(t.d);
    mem_free(t.x);
    mem_free(t.dx);
    mem_free(t.y);
    mem_free(t.more);
    return ok;
}

/* ----------------------------------------------------------------------------------------------- the pass of inputs */

/* Keep the real positions of the unit's input; whole windows arrive in order. */
static bool observe(void *context, enum unit_role role, const struct tensor *x, struct err *e)
{
    struct work *k = context;
    const struct token_set *tokens = k->spec->tokens;
    int64_t slots = tokens->window, width = x->shape[1];
    for (int64_t at = 0; at < x->shape[0]; at += slots) {
        int64_t real = tokens->length[(k->seen[role] + at) / slots];
        struct tensor rows = tensor_rows(x, at, real);
        if (!k->q->k->download(k->q, k->x[role] + k->filled[role] * width, &rows,
                               (size_t)(real * width) * sizeof(float), e))
            return false;
        k->filled[role] += real;
    }
    k->seen[role] += x->shape[0];
    return true;
}

/* A unit's panels with the norm's weights in them. */
static bool load_unit(struct work *k, int unit, struct unit_weights *out, struct err *e)
{
    const struct basis *b = k->spec->basis;
    const struct unit *u = &b->model->units[unit];
    struct rendering r[4] = {0};
    bool ok = true;
    for (int i = 0; ok && i < u->count; i++) {
        const struct matrix *m = &b->model->matrices[u->first + i];
        ok = format_rendering_new(&r[i], &format_bf16, m->n, m->k, DTYPE_F32, e) &&
             model_read_matrix(b->model, u->first + i, r[i].part[0], e);
        if (ok)
            basis_fold(b, u->first + i, r[i].part[0]);
    }
    ok = ok && weights_pack(k->q, b->model, unit, r, DTYPE_F32, out, e);
    for (int i = 0; i < u->count; i++)
        rendering_free(&r[i]);
    return ok;
}

static bool show_layer(struct work *k, int layer, struct err *e)
{
    struct unit_weights w[LAYER_UNITS] = {0};
    bool ok = true;
    for (int u = 0; ok && u < LAYER_UNITS; u++) {
        k->seen[u] = k->filled[u] = 0;
        ok = load_unit(k, layer * LAYER_UNITS + u, &w[u], e);
    }
    ok = ok && forward_layer(&k->f, layer, w, &k->stream, observe, k, e);
    for (int u = 0; u < LAYER_UNITS; u++)
        unit_weights_free(k->q, &w[u]);
    return ok;
}

/* The pass's norms lose their weights, where the matrices have them. */
static bool clear_norms(struct work *k, struct err *e)
{
    const struct model_config *c = &k->spec->basis->model->config;
    float *ones;
    if (!k->spec->basis->residual)
        return true;
    if (!mem_raw(&ones, (size_t)c->hidden, e))
        return false;
    for (int i = 0; i < c->hidden; i++)
        ones[i] = 1.0f;
    bool ok = true;
    for (int i = 0; ok && i < 2 * c->layers; i++)
        ok = k->q->k->upload(k->q, &k->f.norms[i], ones, (size_t)c->hidden * sizeof *ones, e);
    mem_free(ones);
    return ok;
}

static bool open_pass(struct work *k, struct err *e)
{
    const struct gate_spec *s = k->spec;
    const struct model *m = s->basis->model;
    int64_t shape[2] = {(int64_t)s->windows * s->tokens->window, m->config.hidden};
    for (uint32_t w = 0; w < s->windows; w++)
        k->rows += s->tokens->length[w];
    bool ok = forward_open(&k->f, m, k->q, DTYPE_F32, (int)s->tokens->window, e) && clear_norms(k, e) &&
              k->q->k->tensor_new(k->q, &k->stream, DTYPE_F32, 2, shape, e) &&
              forward_embed(&k->f, s->tokens->ids, &k->stream, e);
    for (int u = 0; ok && u < LAYER_UNITS; u++)
        ok = mem_raw(&k->x[u], (size_t)(k->rows * m->units[u].k), e);
    return ok;
}

static void close_pass(struct work *k)
{
    k->q->k->tensor_free(k->q, &k->stream);
    forward_close(&k->f);
    for (int u = 0; u < LAYER_UNITS; u++)
        mem_free(k->x[u]);
}

static bool sweep(struct work *k, struct err *e)
{
    struct node *n = k->spec->node;
    int layers = k->spec->basis->model->config.layers;
    for (int layer = 0; layer < layers; layer++) {
        node_progress(n, layer, layers, "layer");
        if (node_stopping(n))
            return node_stopped(e);
        if (k->spec->tokens && !show_layer(k, layer, e))
            return false;
        for (int u = 0; u < LAYER_UNITS; u++)
            if (!measure_unit(k, layer * LAYER_UNITS + u, e))
                return err_context(e, "layer %d", layer);
    }
    node_progress(n, layers, layers, "layer");
    return true;
}

/* --------------------------------------------------------------------------------------------------- the decisions */

/* The sum over matrices [first, end) that can have the format; NaN if there is none. */
static double sum_losses(const double *loss, int first, int end, unsigned what)
{
    double sum = 0.0;
    int n = 0;
    for (int i = first; i < end; i++) {
        double x = loss[(size_t)i * BASIS_SETS + what];
        if (!isnan(x)) {
            sum += x;
            n++;
        }
    }
    return n ? sum : NAN;
}

static bool decide(struct gate *g, const struct gate_spec *s, struct err *e)
{
    const struct model *m = s->basis->model;
    const double *loss = s->tokens ? g->output_loss : g->weight_loss;
    if (isnan(sum_losses(loss, 0, g->n_matrices, 0)))
        return err_set(e, ERR_INPUT, "%s: no matrix can have format %s; choose another `gate_format`", m->path,
                       s->format->name);
    if (s->what & BASIS_RESIDUAL) {
        g->residual_before = sum_losses(loss, 0, g->n_matrices, 0);
        g->residual_after = sum_losses(loss, 0, g->n_matrices, BASIS_RESIDUAL);
        g->residual = g->residual_after < g->residual_before;
    }
    unsigned base = g->residual ? BASIS_RESIDUAL : 0;
    for (int layer = 0; (s->what & BASIS_HEADS) && layer < g->layers; layer++) {
        const struct unit *u = &m->units[layer * LAYER_UNITS];
        int first = u[ROLE_QKV].first, end = u[ROLE_O].first + u[ROLE_O].count;
        g->heads_before[layer] = sum_losses(loss, first, end, base);
        g->heads_after[layer] = sum_losses(loss, first, end, base | BASIS_HEADS);
        g->heads[layer] = g->heads_after[layer] < g->heads_before[layer];
    }
    return true;
}

bool gate_open(struct gate *out, const struct model *m, unsigned what, struct err *e)
{
    struct gate g = {.n_matrices = m->n_matrices, .n_units = m->n_units, .layers = m->config.layers,
                     .residual_before = NAN, .residual_after = NAN, .residual = what & BASIS_RESIDUAL};
    size_t cells = (size_t)m->n_matrices * BASIS_SETS, layers = (size_t)g.layers;
    if (!mem_raw(&g.weight_loss, cells, e) || !mem_raw(&g.output_loss, cells, e) ||
        !mem_new(&g.input_amax, (size_t)g.n_units * BASIS_SETS, e) ||
        !mem_raw(&g.heads_before, layers, e) || !mem_raw(&g.heads_after, layers, e) || !mem_new(&g.heads, layers, e)) {
        gate_close(&g);
        return false;
    }
    for (size_t i = 0; i < cells; i++)
        g.weight_loss[i] = g.output_loss[i] = NAN;
    for (size_t i = 0; i < layers; i++) {
        g.heads_before[i] = g.heads_after[i] = NAN;
        g.heads[i] = (what & BASIS_HEADS) != 0;
    }
    *out = g;
    return true;
}

void gate_close(struct gate *g)
{
    mem_free(g->weight_loss);
    mem_free(g->output_loss);
    mem_free(g->input_amax);
    mem_free(g->heads_before);
    mem_free(g->heads_after);
    mem_free(g->heads);
    *g = (struct gate){0};
}

bool gate_measure(struct gate *out, const struct gate_spec *spec, struct err *e)
{
    struct gate g;
    struct work k = {.spec = spec, .g = &g, .q = node_queue(spec->node)};
    if (!gate_open(&g, spec->basis->model, 0, e))
        return false;
    bool ok = (!spec->tokens || open_pass(&k, e)) && sweep(&k, e) && decide(&g, spec, e);
    close_pass(&k);
    if (!ok)
        gate_close(&g);
    else
        *out = g;
    return ok;
}

unsigned gate_bases(const struct gate *g, int layer)
{
    return (g->residual ? BASIS_RESIDUAL : 0) | (g->heads[layer] ? BASIS_HEADS : 0);
}

bool gate_is_open(const struct gate *g)
{
    bool any = g->residual;
    for (int l = 0; l < g->layers; l++)
        any = any || g->heads[l];
    return any;
}

void gate_shut(struct gate *g)
{
    g->residual = false;
    memset(g->heads, 0, (size_t)g->layers);
}

uint64_t gate_memory(const struct kernels *kernels, const struct model *m, uint32_t windows, uint32_t slots)
{
    uint64_t most = 0, layer = 0, inputs = 0, rows = (uint64_t)windows * slots;
    struct needs pass = {0};
    forward_needs(kernels, m, DTYPE_F32, (int)slots, &pass);
    for (int i = 0; i < LAYER_UNITS; i++) {
        const struct unit *u = &m->units[i];
        uint64_t k = (uint64_t)u->k, tallest = (uint64_t)most_rows(m, u);
        /* Weights, one matrix in f64, its difference, two panels and codes; inputs twice; outputs twice. */
        uint64_t bytes = 4 * u->parameters + 24 * tallest * k + rows * k * 8 + 8 * ROWS * tallest;
        most = bytes > most ? bytes : most;
        layer += 4 * u->parameters;
        inputs += rows * k * 4;
    }
    return pass.memory + layer + inputs + most + rows * (uint64_t)m->config.hidden * 4;
}

/* ---------------------------------------------------------------------------------------------------- in the result */

static bool add(struct writer *w, const char *name, enum dtype t, int n, int m, const char *axes, const char *text,
                const void *data, struct err *e)
{
    const struct dataset d = {.name = name, .dtype = t, .rank = m ? 2 : 1, .shape = {(uint64_t)n, (uint64_t)m},
                              .unit = "1", .axes = axes, .description = text};
    return writer_add(w, &d, data, e);
}

bool gate_write(const struct gate *g, struct writer *w, struct err *e)
{
    static const char *const names[BASIS_SETS] = {"none", "residual", "heads", "residual, heads"};
    const char *list[BASIS_SETS];
    uint8_t residual = g->residual;
    memcpy(list, names, sizeof list);
    return writer_add_strings(w, "gate/bases", list, BASIS_SETS, "bases", "what would be rotated", e) &&
           add(w, "gate/weight_loss", DTYPE_F64, g->n_matrices, BASIS_SETS, "matrix, bases",
               "|W - W rounded|^2 / |W|^2; NaN where it was not taken", g->weight_loss, e) &&
           add(w, "gate/output_loss", DTYPE_F64, g->n_matrices, BASIS_SETS, "matrix, bases",
               "the same of the matrix' output, with what the format does to the input", g->output_loss, e) &&
           add(w, "residual/kept", DTYPE_U8, 1, 0, "value", "is the residual stream rotated?", &residual, e) &&
           add(w, "residual/loss_before", DTYPE_F64, 1, 0, "value", "sum over all matrices without it",
               &g->residual_before, e) &&
           add(w, "residual/loss_after", DTYPE_F64, 1, 0, "value", "and with it", &g->residual_after, e) &&
           add(w, "heads/kept", DTYPE_U8, g->layers, 0, "layer", "are the layer's values rotated?", g->heads, e) &&
           add(w, "heads/loss_before", DTYPE_F64, g->layers, 0, "layer", "sum over q, k, v and o without it",
               g->heads_before, e) &&
           add(w, "heads/loss_after", DTYPE_F64, g->layers, 0, "layer", "and with it", g->heads_after, e);
}
