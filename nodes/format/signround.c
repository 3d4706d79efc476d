/* signround: rounding learned by sign gradients (after Cheng et al. 2023, "SignRound"), on the quadratic loss instead
 * of a model's outputs. Each weight has an offset of at most half a spacing that is added before it is rounded, each
 * scale a clip factor in [0.5, 1]:
 *
 *     value = nearest(x + offset * spacing(x)),  x = anchor / step,
 *     step = that of the stored scale nearest to clip * first step
 *
 * and gradients go through the rounding as if it were not there. With errors e = w - value * step and slopes g = H e,
 * more value for weight j is good where g[j] > 0. An offset moves by
 *
 *     rate * cut(mean of g[j] / (H[j][j] * step * spacing)),  rate = (1 - t / steps) / steps at step t
 *
 * where what is averaged is the move that would be best for that weight alone, in spacings, over some 1 / (1 - INERTIA)
 * steps, and cut at CUT. A bare sign in place of the cut, as published, makes correlated weights overshoot together,
 * step after step, and loses a quarter to a third more. Clip factors do move by the sign. Of all steps each row keeps
 * the one of least loss; the first is what was there.
 *
 * A step takes one product of the errors with the moment. It is dominated: what it comes to, gptq and scale_search
 * under the whole moment undercut by some 12 to 25 % in a twentieth of the time, and after gptq it gains a few per cent
 * where scale_search gains ten (tests/benchmarks.md). It is here to compare with. */
#include <math.h>
#include <string.h>

#include "nodes/format/nearest.h"
#include "nodes/format/signround.h"

#define ROWS 128 /* of a tile; a multiple of every grid's rows */
#define INERTIA 0.9f
#define CUT 3.0f
#define CLIP_LEAST 0.5f
#define CLIP_RATE 0.1f       /* of the offsets' rate, where a row has a scale every 128 columns or less */
#define CLIP_RATE_WIDE 0.01f /* where more weights share one */

struct sign {
    const struct rounding *r;
    const float *w;
    struct blocks *b;
    struct nearest nearest;
    float *inverse; /* [k]: 1 / H[j][j], 0 where there is nothing to divide by */
};

/* Rows in work; what is per scale is of the tile's scale rows. */
struct tile {
    float *anchor, *offset, *move, *error, *slope; /* [ROWS][k] */
    uint8_t *best;                                 /* [ROWS][k]: codes */
    float *first_step, *step, *clip;               /* [scale] */
    uint32_t *scale, *best_scale;                  /* [scale] */
    double loss[ROWS], least[ROWS];
    int64_t row, rows;
};

static size_t most_scales(const struct blocks *b)
{
    return (size_t)((ROWS + b->grid.rows - 1) / b->grid.rows * b->scale_columns);
}

uint64_t signround_bytes(const struct format *f, int64_t k, int threads)
{
    const struct grid *g = &weight_grid[f->code];
    uint64_t scales = (uint64_t)(grid_scale_rows(g, ROWS) * grid_scale_columns(g, k));
    uint64_t tile = (uint64_t)(ROWS * k) * (5 * sizeof(float) + 1) + scales * 5 * sizeof(float) + sizeof(struct tile);
    return (uint64_t)threads * tile + (uint64_t)k * sizeof(float);
}

static bool tile_new(struct tile *t, const struct blocks *b, struct err *e)
{
    size_t n = (size_t)(ROWS * b->k), scales = most_scales(b);
    memset(t, 0, sizeof *t);
    return mem_raw(&t->anchor, n, e) && mem_raw(&t->offset, n, e) && mem_raw(&t->move, n, e) &&
           mem_raw(&t->error, n, e) && mem_raw(&t->slope, n, e) && mem_raw(&t->best, n, e) &&
           mem_raw(&t->first_step, scales, e) && mem_raw(&t->step, scales, e) && mem_raw(&t->clip, scales, e) &&
           mem_raw(&t->scale, scales, e) && mem_raw(&t->best_scale, scales, e);
}

static void tile_free(struct tile *t)
{
    mem_free(t->anchor);
    mem_free(t->offset);
    mem_free(t->move);
    mem_free(t->error);
    mem_free(t->slope);
    mem_free(t->best);
    mem_free(t->first_step);
    mem_free(t->step);
    mem_free(t->clip);
    mem_free(t->scale);
    mem_free(t->best_scale);
}

/* ----------------------------------------------------------------------------------------- loops over the weights */

static inline float rounded(const struct nearest *g, float x, float offset)
{
    x = nearest_clamp(g, x);
    return nearest_value(g, x + offset * nearest_spacing(g, x));
}

/* A run of weights in one row that share a step. */
struct run {
    const float *w, *anchor, *inverse, *slope;
    float *offset, *move, *error;
    int64_t n;
};

NEAREST_WIDE
static void take_errors(const struct nearest *g, const struct run *x, float step)
{
    for (int64_t i = 0; i < x->n; i++)
        x->error[i] = x->w[i] - rounded(g, x->anchor[i] / step, x->offset[i]) * step;
}

/* One weight: moves its offset; returns its part of the slope along the step, g d(value * step) / d step. */
static inline float move_one(const struct nearest *g, const struct run *x, int64_t i, float step, float rate)
{
    float at = x->anchor[i] / step, slope = x->slope[i], value = rounded(g, at, x->offset[i]);
    float inside = at > g->least && at < g->most ? 1.0f : 0.0f; /* beyond the ends nothing changes with the offset */
    float wanted = slope * x->inverse[i] / (step * nearest_spacing(g, nearest_clamp(g, at)));
    float move = INERTIA * x->move[i] + (1.0f - INERTIA) * wanted;
    float cut = move > CUT ? CUT : move < -CUT ? -CUT : move;
    float offset = x->offset[i] + inside * rate * cut;
    x->move[i] = move;
    x->offset[i] = offset > 0.5f ? 0.5f : offset < -0.5f ? -0.5f : offset;
    return slope * (value - inside * at);
}

NEAREST_WIDE
static double move_offsets(const struct nearest *g, const struct run *x, float step, float rate)
{
    float lane[NEAREST_LANES] = {0};
    double sum = 0.0;
    int64_t whole = x->n - x->n % NEAREST_LANES;
    for (int64_t i = 0; i < whole; i += NEAREST_LANES)
        for (int64_t j = 0; j < NEAREST_LANES; j++)
            lane[j] += move_one(g, x, i + j, step, rate);
    for (int64_t i = whole; i < x->n; i++)
        lane[i - whole] += move_one(g, x, i, step, rate);
    for (int j = 0; j < NEAREST_LANES; j++)
        sum += (double)lane[j];
    return sum;
}

/* -------------------------------------------------------------------------------------------------------- a tile */

static struct run run_of(const struct sign *s, const struct tile *t, int64_t row, int64_t column)
{
    int64_t k = s->b->k, at = row * k + column;
    return (struct run){
        .w = s->w + (t->row + row) * k + column, .anchor = t->anchor + at, .inverse = s->inverse + column,
        .slope = t->slope + at, .offset = t->offset + at, .move = t->move + at, .error = t->error + at,
        .n = k - column < s->b->columns ? k - column : s->b->columns};
}

/* The number nearest to x that rounds to `value`, a little inside. */
static float within_cell(const struct nearest *g, float x, float value)
{
    if (nearest_value(g, x) == value)
        return x;
    float away = (x > value) == (value > 0.0f) ? value : value * (1.0f - 0x1p-20f); /* cells are narrower towards 0 */
    float half = 0.499f * nearest_spacing(g, away);
    return x > value ? value + half : value - half;
}

static void begin(const struct sign *s, struct tile *t)
{
    const struct blocks *b = s->b;
    int64_t first = t->row / b->grid.rows * b->scale_columns;
    int64_t scales = grid_scale_rows(&b->grid, t->rows) * b->scale_columns;
    for (int64_t i = 0; i < scales; i++) {
        t->scale[i] = t->best_scale[i] = b->scale[first + i];
        t->first_step[i] = t->step[i] = b->step[first + i];
        t->clip[i] = 1.0f;
    }
    memcpy(t->best, b->code + t->row * b->k, (size_t)(t->rows * b->k));
    memset(t->offset, 0, (size_t)(t->rows * b->k) * sizeof *t->offset);
    memset(t->move, 0, (size_t)(t->rows * b->k) * sizeof *t->move);
    for (int64_t r = 0; r < t->rows; r++)
        for (int64_t i = 0; i < b->k; i++) {
            float step = b->step[blocks_at(b, t->row + r, i)], value = b->value[t->best[r * b->k + i]];
            float w = s->w[(t->row + r) * b->k + i];
            t->anchor[r * b->k + i] = within_cell(&s->nearest, w / step, value) * step;
            t->error[r * b->k + i] = w - value * step;
        }
}

static bool take_losses(const struct sign *s, struct queue *q, struct tile *t, struct err *e)
{
    int64_t k = s->b->k;
    struct tensor x = tensor_matrix(t->error, DTYPE_F32, t->rows, k);
    struct tensor y = tensor_matrix(t->slope, DTYPE_F32, t->rows, k);
    if (!loss_product(s->r->fit, q, &x, &y, e))
        return false;
    for (int64_t r = 0; r < t->rows; r++) {
        double sum = 0.0;
        for (int64_t i = 0; i < k; i++)
            sum += (double)(t->error[r * k + i] * t->slope[r * k + i]);
        t->loss[r] = sum;
    }
    return true;
}

/* Rows of one scale row: remember where they are if that is the best so far. */
static void keep(const struct sign *s, struct tile *t, int64_t scale_row)
{
    const struct blocks *b = s->b;
    int64_t first = scale_row * b->grid.rows, at = scale_row * b->scale_columns;
    int64_t end = first + b->grid.rows < t->rows ? first + b->grid.rows : t->rows;
    double loss = 0.0, least = 0.0;
    for (int64_t r = first; r < end; r++) {
        loss += t->loss[r];
        least += t->least[r];
    }
    if (!(loss < least))
        return;
    memcpy(t->best_scale + at, t->scale + at, (size_t)b->scale_columns * sizeof *t->scale);
    for (int64_t r = first; r < end; r++) {
        t->least[r] = t->loss[r];
        for (int64_t i = 0; i < b->k; i++) {
            float x = t->anchor[r * b->k + i] / t->step[at + i / b->columns];
            t->best[r * b->k + i] = grid_code(b->grid.element, rounded(&s->nearest, x, t->offset[r * b->k + i]));
        }
    }
}

/* One step of a scale and of what it scales. */
static void move_block(const struct sign *s, struct tile *t, int64_t scale_row, int64_t scale_column, float rate)
{
    const struct blocks *b = s->b;
    int64_t at = scale_row * b->scale_columns + scale_column, first = scale_row * b->grid.rows;
    int64_t end = first + b->grid.rows < t->rows ? first + b->grid.rows : t->rows;
    double slope = 0.0;
    for (int64_t r = first; r < end; r++) {
        struct run x = run_of(s, t, r, scale_column * b->columns);
        slope += move_offsets(&s->nearest, &x, t->step[at], rate);
    }
    float clip_rate = rate * (b->grid.rows == 1 && b->columns <= 128 ? CLIP_RATE : CLIP_RATE_WIDE);
    float clip = t->clip[at] + (slope > 0.0 ? clip_rate : slope < 0.0 ? -clip_rate : 0.0f);
    t->clip[at] = clip > 1.0f ? 1.0f : clip < CLIP_LEAST ? CLIP_LEAST : clip;
    if (t->clip[at] < 1.0f) {
        t->scale[at] = grid_scale(b->grid.scale, t->first_step[at] * t->clip[at], b->global);
        t->step[at] = grid_step(b->grid.scale, t->scale[at], b->global);
    }
    for (int64_t r = first; r < end; r++) {
        struct run x = run_of(s, t, r, scale_column * b->columns);
        take_errors(&s->nearest, &x, t->step[at]);
    }
}

static bool learn_tile(const struct sign *s, struct queue *q, struct tile *t, struct err *e)
{
    struct blocks *b = s->b;
    int steps = s->r->options.signround_steps;
    int64_t scale_rows = grid_scale_rows(&b->grid, t->rows);
    begin(s, t);
    if (!take_losses(s, q, t, e))
        return false;
    memcpy(t->least, t->loss, sizeof t->least);
    for (int step = 0; step < steps; step++) {
        float rate = (1.0f - (float)step / (float)steps) / (float)steps;
        for (int64_t i = 0; i < scale_rows; i++)
            for (int64_t c = 0; c < b->scale_columns; c++)
                move_block(s, t, i, c, rate);
        if (!take_losses(s, q, t, e))
            return false;
        for (int64_t i = 0; i < scale_rows; i++)
            keep(s, t, i);
    }
    int64_t first = t->row / b->grid.rows * b->scale_columns;
    for (int64_t i = 0; i < scale_rows * b->scale_columns; i++)
        blocks_set_scale(b, first + i, t->best_scale[i]);
    memcpy(b->code + t->row * b->k, t->best, (size_t)(t->rows * b->k));
    return true;
}

/* -------------------------------------------------------------------------------------------------------- method */

static bool learn(const struct sign *s, struct err *e)
{
    bool ok = true;
#pragma omp parallel num_threads(s->r->q->threads)
    {
        struct queue single = *s->r->q;
        struct tile t;
        struct err mine = {0};
        single.threads = 1;
        bool fine = tile_new(&t, s->b, &mine);
#pragma omp for schedule(dynamic)
        for (int64_t row = 0; row < s->b->n; row += ROWS) {
            t.row = row;
            t.rows = s->b->n - row < ROWS ? s->b->n - row : ROWS;
            fine = fine && learn_tile(s, &single, &t, &mine);
        }
        tile_free(&t);
        if (!fine) {
#pragma omp critical(signround_error)
            {
                *e = mine;
                ok = false;
            }
        }
    }
    return ok;
}

static bool apply(struct rounding *r, const float *w, struct blocks *b, struct err *e)
{
    struct sign s = {.r = r, .w = w, .b = b, .nearest = nearest_of(b->grid.element)};
    if (!mem_raw(&s.inverse, (size_t)b->k, e))
        return false;
    for (int64_t i = 0; i < b->k; i++) {
        float own = r->moment[i * b->k + i];
        s.inverse[i] = own >= 0x1p-126f ? 1.0f / own : 0.0f; /* finite */
    }
    bool ok = learn(&s, e);
    mem_free(s.inverse);
    return ok;
}

const struct rounding_method rounding_signround = {
    .name = "signround",
    .help = "rounding offsets and clip factors by sign gradients; slow, and gptq or scale_search do better",
    .apply = apply,
};
