/* scale_search: for each block the stored scale of least weighted error, among a few candidates and with codes to the
 * nearest; then refits of the scale by weighted least squares while they help. Round-to-nearest makes the largest
 * weight of a block exact; a little more or less is nearly always better for the rest (for E2M1, which has 4 and 6 but
 * no 5, above all to map the largest to 4). A weight's error counts by its input's second moment: with the moment's
 * diagonal alone that takes no products at all.
 *
 * With options.full_moment what comes out is then improved under all of the moment (scale_descent.c): rows start from
 * what they had or from what was found here, whichever loses less, so that the method can follow any other. */
#include "nodes/format/scale_search.h"

#include <string.h>

#include "nodes/format/nearest.h"

#define TILE DESCENT_ROWS
#define REFITS 3
/* Candidates. E4M3: all codes from two below the one for amax / 6 to one above that for amax / 4. E8M0: one exponent
 * less, or more. Float scales: steps of COARSE from 1 - BELOW to 1 + ABOVE of round-to-nearest's, then of FINE around
 * the best: a whole binade, since E4M3 values under scales that are twice as large are nearly the same. */
#define COARSE 0.03f
#define BELOW 13
#define ABOVE 7
#define FINE 0.006f
#define BESIDE 4
/* Weights of inputs that the moment has hardly seen still count as if they had this share of the mean second moment. */
#define FLOOR 0.05
#define RIDGES 4

struct search {
    const float *w;      /* [n,k] */
    const float *weight; /* [k] */
    struct nearest nearest;
};

/* A block, and what is known of it. */
struct block {
    int64_t at; /* of its scale */
    int64_t row, rows, column, columns;
    uint32_t best;  /* scale so far */
    double least;   /* its error */
    bool changed;   /* from what was there */
};

/* ---------------------------------------------------------------------------------------------------- weighted sums */

static double total(const float lane[NEAREST_LANES])
{
    double sum = 0.0;
    for (int j = 0; j < NEAREST_LANES; j++)
        sum += (double)lane[j];
    return sum;
}

/* Sum of weight * (w - nearest * step)^2. */
NEAREST_WIDE
static double error_of(const struct nearest *g, const float *w, const float *weight, int64_t n, float step)
{
    float lane[NEAREST_LANES] = {0};
    int64_t whole = n - n % NEAREST_LANES;
    for (int64_t i = 0; i < whole; i += NEAREST_LANES)
        for (int64_t j = 0; j < NEAREST_LANES; j++) {
            float d = w[i + j] - nearest_value(g, w[i + j] / step) * step;
            lane[j] += weight[i + j] * (d * d);
        }
    for (int64_t i = whole; i < n; i++) {
        float d = w[i] - nearest_value(g, w[i] / step) * step;
        lane[i - whole] += weight[i] * (d * d);
    }
    return total(lane);
}

/* Sums of weight * w * nearest and of weight * nearest^2. */
NEAREST_WIDE
static void fit_of(const struct nearest *g, const float *w, const float *weight, int64_t n, float step, double *cross,
                   double *square)
{
    float a[NEAREST_LANES] = {0}, b[NEAREST_LANES] = {0};
    int64_t whole = n - n % NEAREST_LANES;
    for (int64_t i = 0; i < whole; i += NEAREST_LANES)
        for (int64_t j = 0; j < NEAREST_LANES; j++) {
            float v = nearest_value(g, w[i + j] / step), h = weight[i + j];
            a[j] += h * (w[i + j] * v);
            b[j] += h * (v * v);
        }
    for (int64_t i = whole; i < n; i++) {
        float v = nearest_value(g, w[i] / step);
        a[i - whole] += weight[i] * (w[i] * v);
        b[i - whole] += weight[i] * (v * v);
    }
    *cross += total(a);
    *square += total(b);
}

/* -------------------------------------------------------------------------------------------------------- one block */

static float block_amax(const struct search *s, const struct blocks *b, const struct block *x)
{
    float amax = 0.0f;
    for (int64_t row = x->row; row < x->row + x->rows; row++)
        for (int64_t i = x->column; i < x->column + x->columns; i++) {
            float w = s->w[row * b->k + i], a = w < 0.0f ? -w : w;
            amax = a > amax ? a : amax;
        }
    return amax;
}

static double error_as_it_is(const struct search *s, const struct blocks *b, const struct block *x)
{
    double sum = 0.0;
    for (int64_t row = x->row; row < x->row + x->rows; row++)
        for (int64_t i = x->column; i < x->column + x->columns; i++) {
            float d = s->w[row * b->k + i] - b->value[b->code[row * b->k + i]] * b->step[x->at];
            sum += (double)(s->weight[i] * (d * d));
        }
    return sum;
}

/* Is this scale better than the best so far? */
static bool try_scale(const struct search *s, const struct blocks *b, struct block *x, uint32_t scale)
{
    float step = grid_step(b->grid.scale, scale, b->global);
    double error = 0.0;
    for (int64_t row = x->row; row < x->row + x->rows; row++)
        error += error_of(&s->nearest, s->w + row * b->k + x->column, s->weight + x->column, x->columns, step);
    if (!(error < x->least))
        return false;
    x->least = error;
    x->best = scale;
    x->changed = true;
    return true;
}

/* Least squares for the codes of the best scale, rounded to a scale that can be stored, and again from there. */
static void refit(const struct search *s, const struct blocks *b, struct block *x)
{
    for (int i = 0; i < REFITS; i++) {
        float step = grid_step(b->grid.scale, x->best, b->global);
        double cross = 0.0, square = 0.0;
        for (int64_t row = x->row; row < x->row + x->rows; row++)
            fit_of(&s->nearest, s->w + row * b->k + x->column, s->weight + x->column, x->columns, step, &cross,
                   &square);
        if (!(cross > 0.0 && square > 0.0))
            return;
        uint32_t scale = grid_scale(b->grid.scale, (float)(cross / square), b->global);
        if (scale == x->best || !try_scale(s, b, x, scale))
            return;
    }
}

/* Scales that are codes: a range of them. */
static void try_codes(const struct search *s, const struct blocks *b, struct block *x, float amax)
{
    int64_t low = grid_fit(&b->grid, amax, b->global), high = low + 1, most = 254;
    low -= 1;
    if (b->grid.scale == SCALE_E4M3) {
        high = (int64_t)grid_scale(b->grid.scale, amax / 4.0f, b->global) + 1;
        low = low - 1 < 0x08 ? 0x08 : low - 1; /* what is less, kernels flush to zero */
        most = 0x7e;
    }
    for (int64_t scale = low < 0 ? 0 : low; scale <= high && scale <= most; scale++)
        (void)try_scale(s, b, x, (uint32_t)scale);
}

static void try_floats(const struct search *s, const struct blocks *b, struct block *x, float amax)
{
    float fit = amax / grid_most(b->grid.element);
    int best = 0;
    for (int i = -BELOW; i <= ABOVE; i++)
        if (try_scale(s, b, x, grid_scale(b->grid.scale, fit * (1.0f + COARSE * (float)i), b->global)))
            best = i;
    for (int i = -BESIDE; i <= BESIDE; i++)
        if (i != 0)
            (void)try_scale(s, b, x, grid_scale(b->grid.scale, fit * (1.0f + COARSE * (float)best + FINE * (float)i),
                                                b->global));
}

static void search_block(const struct search *s, struct blocks *b, struct block *x)
{
    float amax = block_amax(s, b, x);
    if (grid_is_empty(&b->grid, amax))
        return;
    x->best = b->scale[x->at];
    x->least = error_as_it_is(s, b, x);
    x->changed = false;
    if (b->grid.scale == SCALE_E4M3 || b->grid.scale == SCALE_E8M0)
        try_codes(s, b, x, amax);
    else
        try_floats(s, b, x, amax);
    refit(s, b, x);
    if (!x->changed)
        return;
    blocks_set_scale(b, x->at, x->best);
    for (int64_t row = x->row; row < x->row + x->rows; row++)
        for (int64_t i = x->column; i < x->column + x->columns; i++)
            b->code[row * b->k + i] = grid_code(b->grid.element, s->w[row * b->k + i] / b->step[x->at]);
}

static void search_rows(const struct search *s, struct blocks *b, int64_t first, int64_t n)
{
    for (int64_t r = first / b->grid.rows; r * b->grid.rows < first + n; r++)
        for (int64_t c = 0; c < b->scale_columns; c++) {
            struct block x = {.at = r * b->scale_columns + c, .row = r * b->grid.rows, .column = c * b->columns};
            x.rows = b->n - x.row < b->grid.rows ? b->n - x.row : b->grid.rows;
            x.columns = b->k - x.column < b->columns ? b->k - x.column : b->columns;
            search_block(s, b, &x);
        }
}

static void search_all(const struct rounding *r, const struct search *s, struct blocks *b)
{
#pragma omp parallel for schedule(dynamic) num_threads(r->q->threads)
    for (int64_t first = 0; first < b->n; first += TILE)
        search_rows(s, b, first, b->n - first < TILE ? b->n - first : TILE);
}

/* ------------------------------------------------------------------------------------------------- the whole moment */

/* What a thread has. */
struct room {
    struct descent_room *descent;
    struct blocks before; /* of one tile */
    double loss[TILE], loss_before[TILE];
};

static bool room_new(struct room *room, const struct blocks *b, struct err *e)
{
    *room = (struct room){0};
    return descent_room_new(&room->descent, b->k, e) &&
           blocks_new(&room->before, b->format, b->n < TILE ? b->n : TILE, b->k, 0.0f, e);
}

static void room_free(struct room *room)
{
    descent_room_free(room->descent);
    blocks_free(&room->before);
}

/* Codes and scales of rows [from, from + rows) of `src` to those from `to` on of `dst`; both begin a block. */
static void copy_rows(struct blocks *dst, int64_t to, const struct blocks *src, int64_t from, int64_t rows)
{
    size_t scales = (size_t)(grid_scale_rows(&src->grid, rows) * src->scale_columns);
    int64_t at = from / src->grid.rows * src->scale_columns, dst_at = to / dst->grid.rows * dst->scale_columns;
    memcpy(dst->code + to * dst->k, src->code + from * src->k, (size_t)(rows * src->k));
    memcpy(dst->scale + dst_at, src->scale + at, scales * sizeof *src->scale);
    memcpy(dst->step + dst_at, src->step + at, scales * sizeof *src->step);
    dst->global = src->global;
}

/* Search a tile of rows by the diagonal; take back what does not help under the moment; descend from there. */
static bool improve_tile(const struct search *s, const struct descent *d, struct queue *q, struct room *room,
                         struct blocks *b, int64_t row, int64_t rows, struct err *e)
{
    copy_rows(&room->before, 0, b, row, rows);
    if (!descent_losses(d, q, room->descent, b, row, rows, room->loss_before, e))
        return false;
    search_rows(s, b, row, rows);
    if (!descent_losses(d, q, room->descent, b, row, rows, room->loss, e))
        return false;
    for (int64_t first = 0; first < rows; first += b->grid.rows) {
        int64_t n = rows - first < b->grid.rows ? rows - first : b->grid.rows;
        double before = 0.0, after = 0.0;
        for (int64_t i = first; i < first + n; i++) {
            before += room->loss_before[i];
            after += room->loss[i];
        }
        if (!(after < before))
            copy_rows(b, row + first, &room->before, first, n);
    }
    return descent_rows(d, q, room->descent, b, row, rows, e);
}

/* Tiles of one matrix, or the same tile with several ridges. */
struct jobs {
    const struct rounding *r;
    const struct search *search;
    int64_t n;
    struct blocks *b;       /* of all; with ridges, one each */
    const float *ridges;    /* NULL: `ridge` for all */
    float ridge;
};

static bool run_job(const struct jobs *jobs, int64_t i, struct queue *q, struct room *room, struct err *e)
{
    struct descent d = {.r = jobs->r, .w = jobs->search->w, .weight = jobs->search->weight, .ridge = jobs->ridge};
    struct blocks *b = jobs->b;
    int64_t row = i * TILE;
    if (jobs->ridges) {
        d.ridge = jobs->ridges[i];
        b += i;
        row = 0;
    }
    return improve_tile(jobs->search, &d, q, room, b, row, b->n - row < TILE ? b->n - row : TILE, e);
}

static bool run_jobs(const struct jobs *jobs, struct err *e)
{
    bool ok = true;
#pragma omp parallel num_threads(jobs->r->q->threads)
    {
        struct queue single = *jobs->r->q;
        struct room room;
        struct err mine = {0};
        single.threads = 1;
        bool fine = room_new(&room, jobs->b, &mine);
#pragma omp for schedule(dynamic)
        for (int64_t i = 0; i < jobs->n; i++)
            fine = fine && run_job(jobs, i, &single, &room, &mine);
        room_free(&room);
        if (!fine) {
#pragma omp critical(scale_search_error)
            {
                *e = mine;
                ok = false;
            }
        }
    }
    return ok;
}

/* Which ridge serves held-out rows best, by the first tile of the matrix: how far the moment can be trusted depends on
 * how many rows of input it is a mean of, and is much the same for all rows of weights. */
static bool choose_ridge(const struct rounding *r, const struct search *s, const struct blocks *b, float *ridge,
                         struct err *e)
{
    static const float ridges[RIDGES] = {0.25f, 0.5f, 1.0f, 2.0f};
    struct blocks trial[RIDGES] = {0};
    double square, loss, least = 0.0;
    int64_t rows = b->n < TILE ? b->n : TILE;
    bool ok = true;
    for (int i = 0; ok && i < RIDGES; i++) {
        ok = blocks_new(&trial[i], b->format, rows, b->k, 0.0f, e);
        if (ok)
            copy_rows(&trial[i], 0, b, 0, rows);
    }
    ok = ok && run_jobs(&(struct jobs){.r = r, .search = s, .n = RIDGES, .b = trial, .ridges = ridges}, e);
    for (int i = 0; ok && i < RIDGES; i++) {
        ok = rounding_loss(r->held_out, r->q, s->w, &trial[i], &square, &loss, e);
        if (ok && (i == 0 || loss < least)) {
            least = loss;
            *ridge = ridges[i];
        }
    }
    for (int i = 0; i < RIDGES; i++)
        blocks_free(&trial[i]);
    return ok;
}

static bool search_full(const struct rounding *r, const struct search *s, struct blocks *b, struct err *e)
{
    struct jobs jobs = {.r = r, .search = s, .n = (b->n + TILE - 1) / TILE, .b = b};
    return choose_ridge(r, s, b, &jobs.ridge, e) && run_jobs(&jobs, e);
}

uint64_t scale_search_bytes(const struct format *f, bool full_moment, int64_t n, int64_t k, int threads)
{
    int64_t rows = n < TILE ? n : TILE;
    uint64_t weight = (uint64_t)k * sizeof(float), tile = blocks_bytes(f, rows, k);
    return full_moment ? weight + RIDGES * tile + (uint64_t)threads * (descent_bytes(k) + tile) : weight;
}

/* ----------------------------------------------------------------------------------------------------------- method */

static bool search_blocks(struct rounding *r, const float *w, struct blocks *b, bool full_moment, struct err *e)
{
    float *weight;
    double trace = 0.0;
    if (!mem_raw(&weight, (size_t)b->k, e))
        return false;
    for (int64_t i = 0; i < b->k; i++)
        trace += (double)r->moment[i * b->k + i];
    for (int64_t i = 0; i < b->k; i++)
        weight[i] = r->moment[i * b->k + i] + (float)(FLOOR * trace / (double)b->k);
    struct search s = {.w = w, .weight = weight, .nearest = nearest_of(b->grid.element)};
    bool ok = true;
    if (full_moment)
        ok = search_full(r, &s, b, e);
    else
        search_all(r, &s, b);
    mem_free(weight);
    return ok;
}

static bool apply(struct rounding *r, const float *w, struct blocks *b, struct err *e)
{
    return search_blocks(r, w, b, r->options.full_moment, e);
}

static bool refit_blocks(struct rounding *r, const float *w, struct blocks *b, struct err *e)
{
    return search_blocks(r, w, b, true, e);
}

const struct rounding_method rounding_scale_search = {
    .name = "scale_search",
    .help = "for each block the scale of least error, weighted by its input's second moment; with all of the moment, "
            "scales and codes in turn",
    .apply = apply,
};

const struct rounding_method rounding_refit = {
    .name = "refit",
    .help = "after another method: scales and codes once more in turn, from what it left, under all of the moment",
    .apply = refit_blocks,
};
