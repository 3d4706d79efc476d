/* scale_search under the whole moment: block coordinate descent. The errors e = w - value * step of a row lose e^T H e;
 * with the slopes g = H e, changing the errors of a few columns by d changes the loss by
 *
 *     2 d^T g + d^T H d
 *
 * so that a candidate is judged from the slopes of its own columns and the moment between them. For each block a few
 * scales near the one it has are tried: codes to the nearest of what the block decodes to, then every code in turn to
 * the one of least loss, the others held fixed (as in Behdin et al. 2023, "QuantEase"). To stay as it is is one of the
 * choices. After SCALE_SWEEPS such sweeps over a row there are sweeps over the codes alone.
 *
 * Slopes are made anew for each piece of COLUMNS columns (one product of the rows' errors, which is nearly all of the
 * work), and kept up to date within it. All rows of a tile go through a piece side by side, a column's rows being
 * contiguous: each has its own steps and takes its own decisions, so that nothing depends on what they share a tile
 * with, and every loop is over rows.
 *
 * The moment is an estimate from few rows of input: its small eigenvalues are far too small, and what fits them fails
 * on other rows. Hence the ridge on the diagonal. */
#include <string.h>

#include "nodes/format/nearest.h"
#include "nodes/format/scale_search.h"

#define ROWS DESCENT_ROWS
#define COLUMNS 128
#define SWEEPS 4
#define SCALE_SWEEPS 2
#define NEIGHBOUR 0.03f /* how far a neighbouring scale is, where it is a float */
#define LEAST_MOMENT 0x1p-126f /* whose inverse is finite */

typedef float columns_of_rows[COLUMNS * ROWS]; /* [COLUMNS][ROWS] */

/* The scales of one block of every row, and their steps. */
struct scales {
    uint32_t scale[ROWS];
    float step[ROWS];
};

struct descent_room {
    float *error;                    /* [ROWS][k] */
    float product[ROWS * COLUMNS];   /* [rows][columns] */
    float moment[COLUMNS * COLUMNS]; /* of a piece, with its ridge */
    columns_of_rows value, slope;    /* values of codes; H e */
    columns_of_rows trial, trial_slope, change; /* of a candidate: `change` is of the errors */
    columns_of_rows best;
    struct scales own, trial_scales, best_scales;
    float gain[ROWS], least[ROWS];   /* change of the loss: of the candidate, of the best */
};

uint64_t descent_bytes(int64_t k) { return sizeof(struct descent_room) + (uint64_t)(ROWS * k) * sizeof(float); }

bool descent_room_new(struct descent_room **out, int64_t k, struct err *e)
{
    struct descent_room *room;
    if (!mem_new(&room, 1, e))
        return false;
    if (!mem_raw(&room->error, (size_t)(ROWS * k), e)) {
        mem_free(room);
        return false;
    }
    *out = room;
    return true;
}

void descent_room_free(struct descent_room *room)
{
    if (room)
        mem_free(room->error);
    mem_free(room);
}

/* Columns [first, first + columns) of the errors' product with the moment. */
static bool product(const struct descent *d, struct queue *q, struct descent_room *room, int64_t rows, int64_t first,
                    int64_t columns, struct err *e)
{
    struct tensor x = tensor_matrix(room->error, DTYPE_F32, rows, d->r->k);
    struct tensor y = tensor_matrix(room->product, DTYPE_F32, rows, columns);
    return loss_product_part(d->r->fit, q, &x, first, &y, e);
}

/* Errors of rows as they are. */
static void take_errors(const struct descent *d, struct descent_room *room, const struct blocks *b, int64_t row,
                        int64_t rows)
{
    blocks_decode(b, row, rows, room->error);
    for (int64_t i = 0; i < rows * b->k; i++)
        room->error[i] = d->w[row * b->k + i] - room->error[i];
}

bool descent_losses(const struct descent *d, struct queue *q, struct descent_room *room, const struct blocks *b,
                    int64_t row, int64_t rows, double *loss, struct err *e)
{
    int64_t k = b->k;
    take_errors(d, room, b, row, rows);
    memset(loss, 0, (size_t)rows * sizeof *loss);
    for (int64_t first = 0; first < k; first += COLUMNS) {
        int64_t columns = k - first < COLUMNS ? k - first : COLUMNS;
        if (!product(d, q, room, rows, first, columns, e))
            return false;
        for (int64_t r = 0; r < rows; r++)
            for (int64_t j = 0; j < columns; j++) {
                float error = room->error[r * k + first + j];
                float slope = room->product[r * columns + j] + d->ridge * d->weight[first + j] * error;
                loss[r] += (double)(error * slope);
            }
    }
    return true;
}

/* ---------------------------------------------------------------------------------------------- loops over the rows */

/* Columns [first, first + n) in turn: codes to those of least loss, slopes of columns [0, to) following. */
NEAREST_WIDE
static void pass(const struct nearest *grid, const float *moment, int64_t first, int64_t n, int64_t to, int64_t rows,
                 const float *step, float *value, float *slope, float *gain)
{
    float change[ROWS];
    for (int64_t j = first; j < first + n; j++) {
        const float *own = moment + j * COLUMNS;
        if (!(own[j] >= LEAST_MOMENT))
            continue;
        float inverse = 1.0f / own[j];
        for (int64_t r = 0; r < rows; r++) {
            float was = value[j * ROWS + r], g = slope[j * ROWS + r];
            float now = nearest_value(grid, was + g * inverse / step[r]);
            change[r] = (was - now) * step[r];
            gain[r] += change[r] * (change[r] * own[j] + 2.0f * g);
            value[j * ROWS + r] = now;
        }
        for (int64_t i = 0; i < to; i++)
            for (int64_t r = 0; r < rows; r++)
                slope[i * ROWS + r] += change[r] * own[i];
    }
}

/* slope[i] += sum over j < n of change[j] * moment[j][i], for i < to. */
NEAREST_WIDE
static void spread(const float *moment, int64_t n, int64_t to, int64_t rows, const float *change, float *slope)
{
    for (int64_t i = 0; i < to; i++)
        for (int64_t j = 0; j < n; j++)
            for (int64_t r = 0; r < rows; r++)
                slope[i * ROWS + r] += change[j * ROWS + r] * moment[j * COLUMNS + i];
}

/* The same weights under other steps. */
NEAREST_WIDE
static void recode(const struct nearest *grid, int64_t n, int64_t rows, const float *value, const float *step,
                   const float *trial_step, float *trial, float *change)
{
    for (int64_t j = 0; j < n; j++)
        for (int64_t r = 0; r < rows; r++) {
            float w = value[j * ROWS + r] * step[r];
            float to = nearest_value(grid, w / trial_step[r]);
            trial[j * ROWS + r] = to;
            change[j * ROWS + r] = w - to * trial_step[r];
        }
}

/* sum[r] += sum of a * (b + c) over n columns */
NEAREST_WIDE
static void dots(int64_t n, int64_t rows, const float *a, const float *b, const float *c, float *sum)
{
    for (int64_t j = 0; j < n; j++)
        for (int64_t r = 0; r < rows; r++)
            sum[r] += a[j * ROWS + r] * (b[j * ROWS + r] + c[j * ROWS + r]);
}

/* -------------------------------------------------------------------------------------------------------- one block */

/* Part of a piece in which every row has one scale. */
struct part {
    int64_t first, n; /* columns, counted from the piece's */
    int64_t rows;
};

static void set_scale(const struct blocks *b, struct scales *s, int64_t r, uint32_t scale)
{
    s->scale[r] = scale;
    s->step[r] = grid_step(b->grid.scale, scale, b->global);
}

static uint32_t neighbour(const struct blocks *b, uint32_t scale, float step, int by)
{
    switch (b->grid.scale) {
    case SCALE_E4M3: { /* from the least that kernels do not flush to zero */
        uint32_t to = scale + (uint32_t)by;
        return to < 0x08 || to > 0x7e ? scale : to;
    }
    case SCALE_E8M0: {
        uint32_t to = scale + (uint32_t)by;
        return to > 254 ? scale : to;
    }
    default:
        return grid_scale(b->grid.scale, step * (1.0f + NEIGHBOUR * (float)by), b->global);
    }
}

/* Scales of least loss for the codes that are there: with d = -s v for a change s of the step, s = v^T g / v^T H v. */
static void refit(const struct blocks *b, struct descent_room *room, const struct part *p)
{
    const float *value = room->value + p->first * ROWS;
    float along[ROWS] = {0}, across[ROWS] = {0};
    memset(room->trial_slope, 0, (size_t)(p->n * ROWS) * sizeof *room->trial_slope);
    memset(room->change, 0, (size_t)(p->n * ROWS) * sizeof *room->change);
    dots(p->n, p->rows, value, room->slope + p->first * ROWS, room->change, along);
    spread(room->moment + p->first * COLUMNS + p->first, p->n, p->n, p->rows, value, room->trial_slope);
    dots(p->n, p->rows, value, room->trial_slope, room->change, across);
    for (int64_t r = 0; r < p->rows; r++) {
        float step = room->own.step[r] + along[r] / across[r];
        bool usable = across[r] > 0.0f && step > 0.0f;
        set_scale(b, &room->trial_scales, r,
                  usable ? grid_scale(b->grid.scale, step, b->global) : room->own.scale[r]);
    }
}

/* Try the scales in trial_scales; rows for which they are the best so far remember them. */
static void try_scales(const struct nearest *grid, struct descent_room *room, const struct part *p)
{
    const float *moment = room->moment + p->first * COLUMNS + p->first, *slope = room->slope + p->first * ROWS;
    const float *step = room->trial_scales.step;
    recode(grid, p->n, p->rows, room->value + p->first * ROWS, room->own.step, step, room->trial, room->change);
    memcpy(room->trial_slope, slope, (size_t)(p->n * ROWS) * sizeof *slope);
    spread(moment, p->n, p->n, p->rows, room->change, room->trial_slope);
    memset(room->gain, 0, sizeof room->gain);
    dots(p->n, p->rows, room->change, slope, room->trial_slope, room->gain);
    pass(grid, moment, 0, p->n, p->n, p->rows, step, room->trial, room->trial_slope, room->gain);
    for (int64_t r = 0; r < p->rows; r++) {
        if (!(room->gain[r] < room->least[r]))
            continue;
        room->least[r] = room->gain[r];
        room->best_scales.scale[r] = room->trial_scales.scale[r];
        room->best_scales.step[r] = step[r];
        for (int64_t j = 0; j < p->n; j++)
            room->best[j * ROWS + r] = room->trial[j * ROWS + r];
    }
}

/* All candidates for one block of each of the tile's rows, the first of which is `row`; `piece` is its first column. */
static void search_part(const struct nearest *grid, struct blocks *b, struct descent_room *room, int64_t row,
                        int64_t piece, int64_t width, const struct part *p)
{
    float *value = room->value + p->first * ROWS;
    size_t bytes = (size_t)(p->n * ROWS) * sizeof *value;
    for (int64_t r = 0; r < p->rows; r++) {
        set_scale(b, &room->own, r, b->scale[blocks_at(b, row + r, piece + p->first)]);
        room->least[r] = 0.0f;
    }
    room->best_scales = room->own;
    memcpy(room->best, value, bytes);
    for (int i = 0; i < 3; i++) {
        static const int by[3] = {0, -1, 1};
        for (int64_t r = 0; r < p->rows; r++)
            set_scale(b, &room->trial_scales, r, neighbour(b, room->own.scale[r], room->own.step[r], by[i]));
        try_scales(grid, room, p);
    }
    if (b->grid.scale == SCALE_F32 || b->grid.scale == SCALE_BF16) {
        refit(b, room, p);
        try_scales(grid, room, p);
    }
    for (int64_t j = 0; j < p->n; j++)
        for (int64_t r = 0; r < p->rows; r++)
            room->change[j * ROWS + r] =
                value[j * ROWS + r] * room->own.step[r] - room->best[j * ROWS + r] * room->best_scales.step[r];
    spread(room->moment + p->first * COLUMNS, p->n, width, p->rows, room->change, room->slope);
    memcpy(value, room->best, bytes);
    for (int64_t r = 0; r < p->rows; r++)
        blocks_set_scale(b, blocks_at(b, row + r, piece + p->first), room->best_scales.scale[r]);
}

/* ------------------------------------------------------------------------------------------------------- the sweeps */

/* Bring in a piece: its moment, and values and slopes of the rows. */
static void open_piece(const struct descent *d, struct descent_room *room, const struct blocks *b, int64_t row,
                       int64_t rows, int64_t first, int64_t width)
{
    for (int64_t i = 0; i < width; i++) {
        memcpy(room->moment + i * COLUMNS, d->r->moment + (first + i) * b->k + first,
               (size_t)width * sizeof *room->moment);
        room->moment[i * COLUMNS + i] += d->ridge * d->weight[first + i];
    }
    for (int64_t r = 0; r < rows; r++)
        for (int64_t j = 0; j < width; j++) {
            float ridge = d->ridge * d->weight[first + j] * room->error[r * b->k + first + j];
            room->slope[j * ROWS + r] = room->product[r * width + j] + ridge;
            room->value[j * ROWS + r] = b->value[b->code[(row + r) * b->k + first + j]];
        }
}

/* Take the values back into codes and errors; returns how many codes are others. */
static int64_t close_piece(const struct descent *d, struct descent_room *room, struct blocks *b, int64_t row,
                           int64_t rows, int64_t first, int64_t width)
{
    int64_t moved = 0;
    for (int64_t r = 0; r < rows; r++)
        for (int64_t j = 0; j < width; j++) {
            int64_t at = (row + r) * b->k + first + j;
            float value = room->value[j * ROWS + r];
            if (value != b->value[b->code[at]]) {
                b->code[at] = grid_code(b->grid.element, value);
                moved++;
            }
            room->error[r * b->k + first + j] = d->w[at] - value * b->step[blocks_at(b, row + r, first + j)];
        }
    return moved;
}

/* One sweep over a piece that is open. */
static void sweep_piece(const struct nearest *grid, struct descent_room *room, struct blocks *b, int64_t row,
                        int64_t rows, int64_t first, int64_t width, bool scales)
{
    int64_t columns = b->columns < width ? b->columns : width;
    for (int64_t c = 0; c < width; c += columns) {
        struct part p = {.first = c, .n = columns, .rows = rows};
        if (scales) {
            search_part(grid, b, room, row, first, width, &p);
            continue;
        }
        for (int64_t r = 0; r < rows; r++)
            room->own.step[r] = b->step[blocks_at(b, row + r, first + c)];
        pass(grid, room->moment, p.first, p.n, width, rows, room->own.step, room->value, room->slope, room->gain);
    }
}

bool descent_rows(const struct descent *d, struct queue *q, struct descent_room *room, struct blocks *b, int64_t row,
                  int64_t rows, struct err *e)
{
    const struct nearest grid = nearest_of(b->grid.element);
    bool has_scales = b->grid.rows == 1 && b->columns <= COLUMNS; /* within a piece, and each of one row */
    int64_t moved = 1;
    take_errors(d, room, b, row, rows);
    for (int sweep = 0; sweep < SWEEPS && moved; sweep++) {
        moved = 0;
        for (int64_t first = 0; first < b->k; first += COLUMNS) {
            int64_t width = b->k - first < COLUMNS ? b->k - first : COLUMNS;
            if (!product(d, q, room, rows, first, width, e))
                return false;
            open_piece(d, room, b, row, rows, first, width);
            sweep_piece(&grid, room, b, row, rows, first, width, has_scales && sweep < SCALE_SWEEPS);
            moved += close_piece(d, room, b, row, rows, first, width);
        }
    }
    return true;
}
