/* Refitting free scales to the output of a layer. */
#include "nodes/model/block_match.h"

#include <math.h>
#include <string.h>

#define LEAST_FACTOR 0.5 /* beyond these a row is no longer what was rendered, and better left alone */
#define MOST_FACTOR 2.0

struct block_match {
    const struct model *model;
    const struct token_set *tokens;
    const uint8_t *share;
    struct forward f;
    int layer;
    int64_t rows;               /* windows * slots */
    struct tensor x;            /* [rows, hidden]: what enters the layer */
    struct tensor wanted;       /* [rows, hidden]: what leaves the original */
    struct tensor outputs[LAYER_UNITS]; /* [rows, N of the unit]: the original's */
    struct tensor state;        /* [rows, hidden]: the rendered layer's */
    double added;               /* square of wanted - x over held-out tokens */
};

uint64_t block_match_bytes(const struct model *m, const struct kernels *k, const struct token_set *tokens)
{
    uint64_t rows = (uint64_t)tokens->n * tokens->window, widths = 4 * (uint64_t)m->config.hidden, panels = 0, most = 0;
    struct needs forward = {0};
    forward_needs(k, m, DTYPE_F32, (int)tokens->window, &forward);
    for (int u = 0; u < LAYER_UNITS; u++) {
        widths += (uint64_t)m->units[u].n;
        panels += m->units[u].parameters * sizeof(float);
        most = (uint64_t)m->units[u].n > most ? (uint64_t)m->units[u].n : most;
    }
    return forward.memory + rows * widths * sizeof(float) + 2 * panels + 3 * most * sizeof(double) +
           (uint64_t)tokens->window * most * sizeof(float);
}

static bool new_rows(struct block_match *b, int64_t width, struct tensor *out, struct err *e)
{
    return b->f.q->k->tensor_new(b->f.q, out, DTYPE_F32, 2, (int64_t[]){b->rows, width}, e);
}

bool block_match_open(struct block_match **out, const struct model *m, struct queue *q, const struct token_set *tokens,
                      const uint8_t *share, struct err *e)
{
    struct block_match *b;
    if (!mem_new(&b, 1, e))
        return false;
    b->model = m;
    b->tokens = tokens;
    b->share = share;
    b->rows = (int64_t)tokens->n * tokens->window;
    bool ok = forward_open(&b->f, m, q, DTYPE_F32, (int)tokens->window, e) &&
              new_rows(b, m->config.hidden, &b->x, e) && new_rows(b, m->config.hidden, &b->wanted, e) &&
              new_rows(b, m->config.hidden, &b->state, e) && forward_embed(&b->f, tokens->ids, &b->x, e);
    for (int u = 0; ok && u < LAYER_UNITS; u++)
        ok = new_rows(b, m->units[u].n, &b->outputs[u], e);
    if (!ok) {
        block_match_close(b);
        return false;
    }
    *out = b;
    return true;
}

void block_match_close(struct block_match *b)
{
    if (!b)
        return;
    struct queue *q = b->f.q;
    if (q) {
        q->k->tensor_free(q, &b->x);
        q->k->tensor_free(q, &b->wanted);
        q->k->tensor_free(q, &b->state);
        for (int u = 0; u < LAYER_UNITS; u++)
            q->k->tensor_free(q, &b->outputs[u]);
    }
    forward_close(&b->f);
    mem_free(b);
}

/* ----------------------------------------------------------------------------------------- passes through the layer */

/* What a pass keeps of the products on its way. */
struct watch {
    struct block_match *b;
    const struct unit_weights *w;
    struct tensor *outputs[LAYER_UNITS]; /* [rows, N] where they are kept; NULL where not */
    int64_t seen[LAYER_UNITS];           /* rows */
};

/* The product again, since the pass keeps its own to itself. */
static bool observe(void *context, enum unit_role role, const struct tensor *x, struct err *e)
{
    struct watch *w = context;
    struct queue *q = w->b->f.q;
    int64_t first = w->seen[role];
    w->seen[role] += x->shape[0];
    if (!w->outputs[role])
        return true;
    struct tensor y = tensor_rows(w->outputs[role], first, x->shape[0]);
    return q->k->matmul(q, x, &w->w[role].panels, &y, e);
}

/* The layer with weights `w`, from b->x to `out`; the outputs of units that `keep` names. */
static bool pass(struct block_match *b, const struct unit_weights *w, struct tensor *out,
                 struct tensor *const keep[LAYER_UNITS], struct err *e)
{
    struct watch watch = {.b = b, .w = w};
    memcpy(watch.outputs, keep, sizeof watch.outputs);
    return b->f.q->k->copy(b->f.q, &b->x, out, e) && forward_layer(&b->f, b->layer, w, out, observe, &watch, e);
}

/* Sum over the real tokens of held-out windows of (y - x)^2. */
static double square_held_out(const struct block_match *b, const struct tensor *x, const struct tensor *y)
{
    int64_t width = x->shape[1];
    double sum = 0.0;
    for (uint32_t w = 0; w < b->tokens->n; w++) {
        if (!b->share[w])
            continue;
        const float *from = (const float *)x->data + (int64_t)w * b->tokens->window * width;
        const float *to = (const float *)y->data + (int64_t)w * b->tokens->window * width;
        for (int64_t i = 0; i < b->tokens->length[w] * width; i++) {
            double d = (double)to[i] - (double)from[i];
            sum += d * d;
        }
    }
    return sum;
}

static void free_weights(struct block_match *b, struct unit_weights w[LAYER_UNITS])
{
    for (int u = 0; u < LAYER_UNITS; u++)
        unit_weights_free(b->f.q, &w[u]);
}

static bool original_weights(struct block_match *b, int unit, struct unit_weights *out, struct err *e)
{
    return weights_stored(b->f.q, b->model, b->layer * LAYER_UNITS + unit, DTYPE_F32, out, e);
}

bool block_match_enter(struct block_match *b, int layer, struct err *e)
{
    struct unit_weights w[LAYER_UNITS] = {0};
    struct tensor *keep[LAYER_UNITS];
    b->layer = layer;
    bool ok = true;
    for (int u = 0; ok && u < LAYER_UNITS; u++) {
        ok = original_weights(b, u, &w[u], e);
        keep[u] = &b->outputs[u];
    }
    ok = ok && pass(b, w, &b->wanted, keep, e);
    free_weights(b, w);
    if (ok)
        b->added = square_held_out(b, &b->x, &b->wanted);
    return ok || err_context(e, "block_match, layer %d", layer);
}

bool block_match_leave(struct block_match *b, struct err *e)
{
    return b->f.q->k->copy(b->f.q, &b->wanted, &b->x, e);
}

/* -------------------------------------------------------------------------------------------------------- the refit */

/* Is there a scale to refit, and how many rows share it? 0: none; -1: all of a unit. */
static int64_t rows_of_scale(const struct format *f)
{
    const struct grid *g = &weight_grid[f->code];
    return g->scale == SCALE_F32 || g->scale == SCALE_BF16 ? g->rows : g->scale == SCALE_E4M3 ? -1 : 0;
}

static const struct unit *unit_at(const struct block_match *b, int u)
{
    return &b->model->units[b->layer * LAYER_UNITS + u];
}

/* above[n] += y' y and below[n] += y'^2 over the fitted tokens; `lack` is what the layer's output lacks, or NULL, and
 * then y is the original's output, else y' + lack. */
static void sum_rows(const struct block_match *b, const struct tensor *have, const struct tensor *original,
                     const struct tensor *lack, double *above, double *below)
{
    int64_t width = have->shape[1];
    memset(above, 0, (size_t)width * sizeof *above);
    memset(below, 0, (size_t)width * sizeof *below);
    for (uint32_t w = 0; w < b->tokens->n; w++) {
        if (b->share[w])
            continue;
        for (int64_t t = 0; t < b->tokens->length[w]; t++) {
            int64_t at = ((int64_t)w * b->tokens->window + t) * width;
            const float *y = (const float *)have->data + at;
            const float *other = (const float *)(lack ? lack : original)->data + at;
            for (int64_t n = 0; n < width; n++) {
                double wanted = lack ? (double)y[n] + (double)other[n] : (double)other[n];
                above[n] += (double)y[n] * wanted;
                below[n] += (double)y[n] * (double)y[n];
            }
        }
    }
}

static double factor_of(double above, double below)
{
    double a = below > 0.0 ? above / below : 1.0;
    return a < LEAST_FACTOR ? LEAST_FACTOR : a > MOST_FACTOR ? MOST_FACTOR : a;
}

/* Multiply the scales of the unit's matrices. */
static bool scale_unit(const struct block_match *b, int u, struct rendering *r, const double *above,
                       const double *below, struct err *e)
{
    const struct unit *unit = unit_at(b, u);
    int first = unit_at(b, 0)->first;
    double all_above = 0.0, all_below = 0.0;
    for (int64_t n = 0; n < unit->n; n++) {
        all_above += above[n];
        all_below += below[n];
    }
    for (int i = unit->first; i < unit->first + unit->count; i++) {
        const struct matrix *m = &b->model->matrices[i];
        struct rendering *x = &r[i - first];
        struct blocks blocks;
        int64_t share = rows_of_scale(x->format);
        if (!blocks_new(&blocks, x->format, m->n, m->k, 0.0f, e))
            return false;
        blocks_load(&blocks, x);
        if (share < 0)
            blocks.global = (float)((double)blocks.global / factor_of(all_above, all_below));
        for (int64_t s = 0; share > 0 && s < blocks.scale_rows; s++) {
            double sum_above = 0.0, sum_below = 0.0;
            for (int64_t n = s * share; n < (s + 1) * share && n < m->n; n++) {
                sum_above += above[m->row + n];
                sum_below += below[m->row + n];
            }
            for (int64_t at = s * blocks.scale_columns; at < (s + 1) * blocks.scale_columns; at++) {
                float step = (float)((double)blocks.step[at] * factor_of(sum_above, sum_below));
                blocks_set_scale(&blocks, at, grid_scale(blocks.grid.scale, step, blocks.global));
            }
        }
        blocks_store(&blocks, x);
        blocks_free(&blocks);
    }
    return true;
}

/* Copies of a unit's scales, for the case that a refit does not help. The codes stay. */
struct scales {
    void *part[4][FORMAT_PARTS];
};

static bool save_scales(const struct block_match *b, int u, const struct rendering *r, struct scales *out,
                        struct err *e)
{
    const struct unit *unit = unit_at(b, u);
    *out = (struct scales){0};
    for (int i = 0; i < unit->count; i++) {
        const struct rendering *x = &r[unit->first - unit_at(b, 0)->first + i];
        struct format_part parts[FORMAT_PARTS];
        int count = x->format->parts(x->n, x->k, x->source, parts);
        for (int p = 1; p < count; p++) {
            size_t bytes = format_part_bytes(&parts[p]);
            if (!mem_raw_bytes(&out->part[i][p], bytes, 1, e))
                return false;
            memcpy(out->part[i][p], x->part[p], bytes);
        }
    }
    return true;
}

/* Exchanges them with the rendering's, and frees what is left. */
static void restore_scales(const struct block_match *b, int u, struct rendering *r, struct scales *saved)
{
    const struct unit *unit = unit_at(b, u);
    for (int i = 0; i < unit->count; i++)
        for (int p = 1; p < FORMAT_PARTS; p++) {
            struct rendering *x = &r[unit->first - unit_at(b, 0)->first + i];
            if (!saved->part[i][p])
                continue;
            mem_free(x->part[p]);
            x->part[p] = saved->part[i][p];
            saved->part[i][p] = NULL;
        }
}

static void free_scales(struct scales *s)
{
    for (int i = 0; i < 4; i++)
        for (int p = 0; p < FORMAT_PARTS; p++)
            mem_free(s->part[i][p]);
}

static bool rendered_weights(struct block_match *b, int u, const struct rendering *r, struct unit_weights *out,
                             struct err *e)
{
    const struct unit *unit = unit_at(b, u);
    const struct rendering *x = &r[unit->first - unit_at(b, 0)->first];
    *out = (struct unit_weights){.act = ACT_NONE};
    return x->format ? weights_pack(b->f.q, b->model, b->layer * LAYER_UNITS + u, x, DTYPE_F32, out, e)
                     : original_weights(b, u, out, e);
}

/* The factors of unit `u`, from a pass that keeps its output; `have` is room for it. */
static bool fit_unit(struct block_match *b, int u, const struct unit_weights *w, struct rendering *r,
                     struct tensor *have, double *above, double *below, struct err *e)
{
    struct tensor *keep[LAYER_UNITS] = {0};
    struct tensor lack = b->state;
    keep[u] = have;
    if (!pass(b, w, &b->state, keep, e))
        return false;
    bool ends = u == LAYER_UNITS - 1;
    for (int64_t i = 0; ends && i < b->rows * b->state.shape[1]; i++)
        ((float *)lack.data)[i] = ((const float *)b->wanted.data)[i] - ((const float *)b->state.data)[i];
    sum_rows(b, have, &b->outputs[u], ends ? &lack : NULL, above, below);
    return scale_unit(b, u, r, above, below, e);
}

/* The layer's squared error on held-out windows. */
static bool layer_error(struct block_match *b, const struct unit_weights *w, double *out, struct err *e)
{
    struct tensor *const none[LAYER_UNITS] = {0};
    if (!pass(b, w, &b->state, none, e))
        return false;
    *out = square_held_out(b, &b->wanted, &b->state);
    return true;
}

/* One unit: fit, look, and go back if it did not help. */
static bool refit_unit(struct block_match *b, int u, struct unit_weights *w, struct rendering *r, double *error,
                       struct rounding_step *step, struct err *e)
{
    const struct unit *unit = unit_at(b, u);
    struct scales saved = {0};
    struct tensor have = {0};
    struct unit_weights now = {0};
    double *sums = NULL, after = 0.0;
    bool ok = new_rows(b, unit->n, &have, e) && mem_raw(&sums, (size_t)(2 * unit->n), e) &&
              save_scales(b, u, r, &saved, e) && fit_unit(b, u, w, r, &have, sums, sums + unit->n, e) &&
              rendered_weights(b, u, r, &now, e);
    if (ok) {
        struct unit_weights before = w[u];
        w[u] = now;
        now = before;
        ok = layer_error(b, w, &after, e);
    }
    *step = (struct rounding_step){.before = loss_ratio(*error, b->added), .after = loss_ratio(after, b->added),
                                   .kept = ok && after < *error};
    if (step->kept) {
        *error = after;
    } else if (ok) {
        struct unit_weights worse = w[u];
        w[u] = now;
        now = worse;
        restore_scales(b, u, r, &saved);
    }
    unit_weights_free(b->f.q, &now);
    b->f.q->k->tensor_free(b->f.q, &have);
    mem_free(sums);
    free_scales(&saved);
    return ok;
}

bool block_match_refit(struct block_match *b, struct rendering *r, struct rounding_step steps[LAYER_UNITS],
                       struct err *e)
{
    struct unit_weights w[LAYER_UNITS] = {0};
    double error = 0.0;
    bool ok = true;
    for (int u = 0; ok && u < LAYER_UNITS; u++)
        ok = rendered_weights(b, u, r, &w[u], e);
    ok = ok && layer_error(b, w, &error, e);
    for (int u = 0; ok && u < LAYER_UNITS; u++) {
        const struct format *f = r[unit_at(b, u)->first - unit_at(b, 0)->first].format;
        double now = loss_ratio(error, b->added);
        steps[u] = (struct rounding_step){.before = now, .after = now};
        if (f && rows_of_scale(f) != 0)
            ok = refit_unit(b, u, w, r, &error, &steps[u], e);
    }
    free_weights(b, w);
    return ok || err_context(e, "block_match, layer %d", b->layer);
}
