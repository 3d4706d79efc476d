/* Node type `hessian`: second moments E[x x^T] of every unit's input over a token set, and its largest magnitude. The
 * documents are divided: rounding methods fit the moments of one share and are judged by those of the other, the rows
 * held out. One part per layer is durable on its own; a killed run recomputes the forward pass up to the first missing
 * layer only. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "nodes/model/forward.h"
#include "nodes/model/tokens.h"
#include "nodes/nodes.h"

enum { FIT, HELD_OUT, SHARES };

struct hessian {
    struct node *n;
    struct model *model;
    struct token_set tokens;
    struct forward f;
    struct tensor x;      /* residual stream of all windows [windows * slots, hidden] */
    uint8_t *share;       /* [window]: which of the shares it belongs to */
    int64_t count[SHARES]; /* tokens of each; 0: there is no such share */
    /* Of the layer in hand, per unit role: */
    struct tensor moment[ROLE_COUNT][SHARES]; /* [K, K] f64, lower triangle of the sum */
    float amax[ROLE_COUNT];
    float *all_amax;      /* [unit] */
    int64_t seen[ROLE_COUNT];
};

/* A head that is a unit comes as a layer of its own, behind the last one. */
static int n_layers(const struct model *m) { return m->config.layers + (m->head_unit >= 0); }
static int n_units(const struct model *m, int layer) { return layer < m->config.layers ? LAYER_UNITS : 1; }

/* Real positions only: padding at a window's end is left out. Whole windows arrive in order. */
static bool observe(void *context, enum unit_role role, const struct tensor *x, struct err *e)
{
    struct hessian *h = context;
    const struct kernels *k = h->f.q->k;
    const int64_t slots = h->tokens.window;
    for (int64_t at = 0; at < x->shape[0]; at += slots) {
        uint32_t window = (uint32_t)((h->seen[role] + at) / slots);
        struct tensor real = tensor_rows(x, at, h->tokens.length[window]);
        if (!k->amax(h->f.q, &real, &h->amax[role], e) ||
            !k->gram(h->f.q, &real, &h->moment[role][h->share[window]], e))
            return err_context(e, "window %u", window);
    }
    h->seen[role] += x->shape[0];
    return true;
}

/* Every so many-th document is held out, or, of a single document, every so many-th window: at least one of two, and
 * about `wanted` of all. */
static bool divide(struct hessian *h, double wanted, struct err *e)
{
    const struct token_set *t = &h->tokens;
    uint32_t documents = 0;
    if (!mem_new(&h->share, t->n, e))
        return false;
    for (uint32_t w = 0; w < t->n; w++)
        documents += w == 0 || t->document[w] != t->document[w - 1];
    bool by_document = documents > 1;
    uint32_t groups = by_document ? documents : t->n, group = 0;
    uint32_t held = (uint32_t)(wanted * groups + 0.5);
    if (wanted > 0 && groups > 1 && held == 0)
        held = 1;
    for (uint32_t w = 0; w < t->n; w++) {
        group += w > 0 && (!by_document || t->document[w] != t->document[w - 1]);
        bool is_held = (uint64_t)(group + 1) * held / groups > (uint64_t)group * held / groups;
        h->share[w] = is_held ? HELD_OUT : FIT;
        h->count[h->share[w]] += t->length[w];
    }
    return true;
}

/* The mean over a share, both triangles, as f32. */
static bool write_moment(struct hessian *h, struct writer *w, const struct unit *u, enum unit_role role, int share,
                         struct err *e)
{
    char name[600];
    double *sum;
    float *mean;
    size_t k = (size_t)u->k;
    double scale = 1.0 / (double)h->count[share];
    if (!mem_raw(&sum, k * k, e))
        return false;
    if (!mem_raw(&mean, k * k, e)) {
        mem_free(sum);
        return false;
    }
    bool ok = h->f.q->k->download(h->f.q, sum, &h->moment[role][share], k * k * sizeof *sum, e);
    for (size_t i = 0; ok && i < k; i++)
        for (size_t j = 0; j <= i; j++)
            mean[i * k + j] = mean[j * k + i] = (float)(sum[i * k + j] * scale);
    mem_free(sum);
    if (!ok) {
        mem_free(mean);
        return false;
    }
    snprintf(name, sizeof name, "%s/%s", u->name, share == FIT ? "second_moment" : "held_out_moment");
    const struct dataset moment = {.name = name, .dtype = DTYPE_F32, .rank = 2, .shape = {k, k}, .unit = "1",
        .axes = "feature, feature", .description = share == FIT
            ? "E[x x^T] of the unit's input over the calibration tokens that methods fit"
            : "E[x x^T] of the unit's input over the calibration tokens that are held out"};
    return writer_add_take(w, &moment, mean, e);
}

static bool write_unit(struct hessian *h, struct writer *w, int unit, enum unit_role role, struct err *e)
{
    const struct unit *u = &h->model->units[unit];
    char name[600];
    for (int share = 0; share < SHARES; share++)
        if (h->count[share] > 0 && !write_moment(h, w, u, role, share, e))
            return false;
    snprintf(name, sizeof name, "%s/amax", u->name);
    const struct dataset amax = {.name = name, .dtype = DTYPE_F32, .rank = 1, .shape = {1}, .unit = "1",
        .axes = "value", .description = "largest magnitude of the unit's input, over all calibration tokens"};
    return writer_add(w, &amax, &h->amax[role], e);
}

static bool write_part(struct hessian *h, int layer, struct err *e)
{
    char part[32];
    struct writer *w;
    layer_part(layer, part);
    if (!node_part_new(h->n, part, &w, e))
        return false;
    for (int u = layer * LAYER_UNITS; u < layer * LAYER_UNITS + n_units(h->model, layer); u++)
        if (!write_unit(h, w, u, h->model->units[u].role, e)) {
            writer_abort(w);
            return false;
        }
    return node_part_commit(h->n, w, e);
}

static void free_moments(struct hessian *h)
{
    for (int role = 0; role < ROLE_COUNT; role++)
        for (int share = 0; share < SHARES; share++)
            h->f.q->k->tensor_free(h->f.q, &h->moment[role][share]);
}

static bool new_moment(struct hessian *h, int64_t width, struct tensor *out, struct err *e)
{
    const struct kernels *k = h->f.q->k;
    double *zero;
    if (!k->tensor_new(h->f.q, out, DTYPE_F64, 2, (int64_t[]){width, width}, e) ||
        !mem_new(&zero, (size_t)(width * width), e))
        return false;
    bool ok = k->upload(h->f.q, out, zero, (size_t)(width * width) * sizeof *zero, e);
    mem_free(zero);
    return ok;
}

/* Zeroed f64 accumulators for a layer. */
static bool new_moments(struct hessian *h, int layer, struct err *e)
{
    for (int u = layer * LAYER_UNITS; u < layer * LAYER_UNITS + n_units(h->model, layer); u++) {
        enum unit_role role = h->model->units[u].role;
        for (int share = 0; share < SHARES; share++)
            if (h->count[share] > 0 && !new_moment(h, h->model->units[u].k, &h->moment[role][share], e))
                return false;
        h->amax[role] = 0;
        h->seen[role] = 0;
    }
    return true;
}

/* The layer's part if it is there already: then only its amax is wanted. */
static bool find_part(struct hessian *h, int layer, bool *found, struct err *e)
{
    char part[32], name[600];
    struct object *o;
    layer_part(layer, part);
    if (!node_part_open(h->n, part, &o, e))
        return false;
    *found = o != NULL;
    for (int u = layer * LAYER_UNITS; o && u < layer * LAYER_UNITS + n_units(h->model, layer); u++) {
        snprintf(name, sizeof name, "%s/amax", h->model->units[u].name);
        if (!object_read(o, name, DTYPE_F32, 0, 1, &h->all_amax[u], e)) {
            object_close(o);
            return false;
        }
    }
    object_close(o);
    return true;
}

/* The residual stream through a layer, or, behind the last one, into the head. */
static bool run_forward(struct hessian *h, int layer, bool wanted, struct err *e)
{
    struct unit_weights w[LAYER_UNITS] = {0};
    if (layer == h->model->config.layers)
        return forward_final(&h->f, &h->x, &h->x, e) && (!wanted || observe(h, ROLE_HEAD, &h->x, e));
    bool ok = true;
    for (int u = 0; ok && u < LAYER_UNITS; u++)
        ok = weights_stored(h->f.q, h->model, layer * LAYER_UNITS + u, h->f.mode, &w[u], e);
    ok = ok && forward_layer(&h->f, layer, w, &h->x, wanted ? observe : NULL, h, e);
    for (int u = 0; u < LAYER_UNITS; u++)
        unit_weights_free(h->f.q, &w[u]);
    return ok;
}

static bool run_layer(struct hessian *h, int layer, bool wanted, struct err *e)
{
    bool ok = (!wanted || new_moments(h, layer, e)) && run_forward(h, layer, wanted, e) &&
              (!wanted || write_part(h, layer, e));
    for (int u = layer * LAYER_UNITS; ok && wanted && u < layer * LAYER_UNITS + n_units(h->model, layer); u++)
        h->all_amax[u] = h->amax[h->model->units[u].role];
    free_moments(h);
    return ok;
}

static bool run_layers(struct hessian *h, struct err *e)
{
    int layers = n_layers(h->model), last_missing = -1;
    bool *found;
    if (!mem_new(&found, (size_t)layers, e))
        return false;
    bool ok = true;
    for (int l = 0; ok && l < layers; l++) {
        ok = find_part(h, l, &found[l], e);
        last_missing = found[l] ? last_missing : l;
    }
    int64_t shape[2] = {(int64_t)h->tokens.n * h->tokens.window, h->model->config.hidden};
    ok = ok && h->f.q->k->tensor_new(h->f.q, &h->x, DTYPE_F32, 2, shape, e) &&
         forward_embed(&h->f, h->tokens.ids, &h->x, e);
    for (int l = 0; ok && l <= last_missing; l++) {
        node_progress(h->n, l, layers, "layer");
        ok = node_stopping(h->n) ? node_stopped(e) : run_layer(h, l, !found[l], e);
    }
    mem_free(found);
    return ok;
}

static bool publish(struct hessian *h, struct err *e)
{
    struct writer *w = node_output(h->n);
    char part[32], model_key[KEY_TEXT];
    key_text(&node_input(h->n, "model", 0)->key, model_key);
    for (int l = 0; l < n_layers(h->model); l++) {
        layer_part(l, part);
        if (!node_part_link(h->n, part, e))
            return false;
    }
    const struct dataset count = {.name = "tokens", .dtype = DTYPE_I64, .rank = 1, .shape = {SHARES}, .unit = "token",
        .axes = "share", .description = "calibration tokens that the moments are means over: fitted, held out"};
    const struct dataset amax = {.name = "amax", .dtype = DTYPE_F32, .rank = 1, .shape = {(uint64_t)h->model->n_units},
        .unit = "1", .axes = "unit", .description = "largest magnitude of each unit's input"};
    const struct dataset held_out = {.name = "windows/held_out", .dtype = DTYPE_U8, .rank = 1, .shape = {h->tokens.n},
        .unit = "1", .axes = "window", .description = "1 where the window is held out"};
    return writer_add(w, &count, h->count, e) && writer_add(w, &held_out, h->share, e) &&
           writer_text(w, "tokens", h->tokens.digest, e) && writer_add(w, &amax, h->all_amax, e) &&
           writer_text(w, "model_key", model_key, e) && writer_text(w, "numeric", node_numerics(h->n), e);
}

static bool run(struct node *n, struct err *e)
{
    struct hessian h = {.n = n};
    bool ok = model_open_input(&h.model, n, "model", e) && tokens_read(&h.tokens, node_input(n, "tokens", 0), e) &&
              divide(&h, node_float(n, "held_out"), e) &&
              forward_open(&h.f, h.model, node_queue(n), numeric_begin(node_queue(n), node_string(n, "numeric")),
                           (int)h.tokens.window, e) &&
              mem_new(&h.all_amax, (size_t)h.model->n_units, e) && run_layers(&h, e) && publish(&h, e);
    if (h.f.q) {
        h.f.q->k->tensor_free(h.f.q, &h.x);
        free_moments(&h);
    }
    forward_close(&h.f);
    tokens_fini(&h.tokens);
    model_close(h.model);
    mem_free(h.all_amax);
    mem_free(h.share);
    return ok;
}

static bool needs(struct node *n, struct needs *out, struct err *e)
{
    struct model *m;
    struct token_set tokens;
    if (!model_open_input(&m, n, "model", e))
        return false;
    bool ok = tokens_read(&tokens, node_input(n, "tokens", 0), e);
    if (ok) {
        enum dtype mode = numeric_mode(node_string(n, "numeric"));
        int shares = node_float(n, "held_out") > 0 ? SHARES : 1;
        uint64_t panels = 0, squares = 0, most_square = 0, most_unit = 0;
        for (int u = 0; u < LAYER_UNITS; u++) {
            uint64_t square = (uint64_t)m->units[u].k * (uint64_t)m->units[u].k;
            panels += m->units[u].parameters * dtype_bytes(mode);
            squares += (uint64_t)shares * square;
            most_square = square > most_square ? square : most_square;
            most_unit = m->units[u].parameters > most_unit ? m->units[u].parameters : most_unit;
        }
        /* Where the tensors lie: a layer's panels, its sums in f64, and the states of all windows. On the host: a
         * unit as it is read, the means in f32 until they are published, and one matrix of sums. */
        const struct kernels *k = node_kernels(n);
        *out = (struct needs){.memory = 4 * most_unit + 4 * squares + 8 * most_square};
        forward_needs(k, m, mode, (int)tokens.window, out);
        needs_tensors(k, out, panels + 8 * squares +
                                  (uint64_t)tokens.n * tokens.window * (uint64_t)m->config.hidden * 4);
        for (int layer = 0; ok && layer < n_layers(m); layer++) {
            char part[32];
            bool there = false;
            layer_part(layer, part);
            ok = node_part_exists(n, part, &there, e);
            out->disk += there ? 0 : 4 * squares;
        }
        tokens_fini(&tokens);
    }
    model_close(m);
    return ok;
}

const struct node_class node_hessian = {
    .name = "hessian",
    .summary = "second moments of every unit's input over the calibration windows, E[x x^T], and its largest magnitude",
    .version = 2,
    .ports = (const struct port[]){
        {"model", MODEL_TYPES, false, false, "the model"},
        {"tokens", (const char *const[]){"corpus", NULL}, false, false, "the calibration windows"},
        {0}},
    .params = (const struct param[]){
        NUMERIC_PARAM,
        {.name = "held_out", .type = PARAM_FLOAT, .fallback = "0.25", .least = 0, .most = 0.75,
         .help = "share of the documents (of a single document: of its windows) that rounding methods do not fit; what "
                 "they gain is judged on these. 0: none, and no method but rtn"},
        {0}},
    .accelerator = true,
    .numerics = numeric_of_node,
    .needs = needs,
    .run = run,
};
