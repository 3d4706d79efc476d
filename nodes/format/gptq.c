/* gptq: columns are rounded one after the other, and what one loses the ones still to come make up for (Frantar et al.
 * 2022, "GPTQ: accurate post-training quantization for generative pre-trained transformers"). Scales are taken as they
 * are, so that it serves every grid, whatever columns share one.
 *
 * With H = R R^T, R upper triangular in the order in which columns are taken, and e the errors w - q of a row, its loss
 * e^T H e is the sum over columns t of (R[t][t] e[t] + sum over s < t of R[s][t] e[s])^2. So column t is best rounded
 * from
 *     z[t] = w[t] + sum over s < t of M[t][s] e[s],   M[t][s] = R[s][t] / R[t][t]
 * which is the same as GPTQ's update by the inverse's Cholesky factor, without an inverse (it is Babai's nearest plane:
 * Chen et al. 2025, "The geometry of LLM quantization"). R is the Cholesky factor of H with rows and columns reversed,
 * reversed again. Within a block of columns sums are made column by column; what the block does to all later columns is
 * one product ("lazy blocks").
 *
 * Rows are independent, so that threads take tiles of them, and the bits do not depend on the number of threads. */
#include "nodes/format/gptq.h"

#include <stdlib.h>
#include <string.h>

#include "nodes/format/rounding.h"

#define BLOCK 128 /* columns */
#define TILE 64   /* rows */

/* The factor for one damping. */
struct factor {
    struct tensor *later;  /* [block]: panels {columns after the block, columns of the block}: M */
    float *inside;         /* [block][BLOCK][BLOCK]: M within each block; row t, column s < t */
};

struct factors {
    int64_t k, n_blocks;
    int32_t *order;        /* [k]: the column that is taken t-th */
    int n;                 /* dampings */
    struct factor factor[ROUNDING_DAMPINGS];
};

static int64_t at_most(int64_t a, int64_t b) { return a < b ? a : b; }

/* ---------------------------------------------------------------------------------------------------------- factors */

void factors_free(struct queue *q, struct factors *f)
{
    if (!f)
        return;
    for (int i = 0; i < f->n; i++) {
        for (int64_t b = 0; f->factor[i].later && b < f->n_blocks; b++)
            q->k->tensor_free(q, &f->factor[i].later[b]);
        mem_free(f->factor[i].later);
        mem_free(f->factor[i].inside);
    }
    mem_free(f->order);
    mem_free(f);
}

uint64_t gptq_bytes(const struct rounding_options *o, int64_t k, int threads)
{
    uint64_t square = (uint64_t)k * (uint64_t)k, columns = (uint64_t)k;
    uint64_t kept = (uint64_t)o->n_dampings * (square / 2 + columns * (BLOCK + 16)) * sizeof(float);
    uint64_t making = square * sizeof(double) + columns * BLOCK * sizeof(float);
    uint64_t tiles = (uint64_t)threads * (2 * TILE * columns + 3 * TILE * BLOCK) * sizeof(float);
    return kept + (making > tiles ? making : tiles);
}

struct column {
    float moment;
    int32_t index;
};

/* Descending second moment; the lower column first where they are equal. */
static int by_moment(const void *a, const void *b)
{
    const struct column *x = a, *y = b;
    if (x->moment != y->moment)
        return x->moment < y->moment ? 1 : -1;
    return x->index < y->index ? -1 : 1;
}

static bool order_columns(const struct rounding *r, int32_t *order, struct err *e)
{
    struct column *columns;
    if (!mem_raw(&columns, (size_t)r->k, e))
        return false;
    for (int64_t i = 0; i < r->k; i++)
        columns[i] = (struct column){r->moment[i * r->k + i], (int32_t)i};
    if (r->options.by_activation)
        qsort(columns, (size_t)r->k, sizeof *columns, by_moment);
    for (int64_t i = 0; i < r->k; i++)
        order[i] = columns[i].index;
    mem_free(columns);
    return true;
}

/* The lower Cholesky factor of the damped moment, in reversed order: a [k,k] f64. A column whose input was always zero
 * costs nothing however it is rounded; the damping keeps it from ruling the rest. */
static bool factorize(struct rounding *r, const int32_t *order, double damping, double *a, struct err *e)
{
    int64_t k = r->k;
    double trace = 0.0;
    for (int64_t i = 0; i < k; i++)
        trace += (double)r->moment[i * k + i];
    double add = trace > 0.0 ? damping * trace / (double)k : 1.0;
#pragma omp parallel for schedule(static) num_threads(r->q->threads)
    for (int64_t i = 0; i < k; i++) {
        const float *row = r->moment + (int64_t)order[k - 1 - i] * k;
        for (int64_t j = 0; j <= i; j++)
            a[i * k + j] = (double)row[order[k - 1 - j]];
        a[i * k + i] += add;
    }
    struct tensor t = {.data = a, .dtype = DTYPE_F64, .device = TENSOR_HOST, .rank = 2, .shape = {k, k}};
    return r->q->k->cholesky(r->q, &t, e) || err_context(e, "damping %g; a larger one helps", damping);
}

/* M[t][s] for t in [t0, t0 + n), s in [s0, s0 + m) to out [n,m], from L = a; s < t. */
static void copy_m(const double *a, int64_t k, int64_t t0, int64_t n, int64_t s0, int64_t m, float *out)
{
    for (int64_t s = 0; s < m; s++) {
        const double *row = a + (k - 1 - s0 - s) * k; /* contiguous in t */
        for (int64_t t = 0; t < n; t++) {
            int64_t column = k - 1 - t0 - t;
            out[t * m + s] = s0 + s < t0 + t ? (float)(row[column] / a[column * k + column]) : 0.0f;
        }
    }
}

/* Block `b` of one factor. */
static bool make_block(struct rounding *r, struct factor *f, const double *a, int64_t b, float *room, struct err *e)
{
    int64_t k = r->k, first = b * BLOCK, width = at_most(BLOCK, k - first), later = k - first - width;
    copy_m(a, k, first, width, first, width, room);
    for (int64_t t = 0; t < width; t++)
        memcpy(f->inside + (b * BLOCK + t) * BLOCK, room + t * width, (size_t)width * sizeof *room);
    if (later == 0)
        return true;
    copy_m(a, k, first + width, later, first, width, room);
    struct tensor m = tensor_matrix(room, DTYPE_F32, later, width);
    return r->q->k->panels_new(r->q, &f->later[b], later, width, DTYPE_F32, e) &&
           r->q->k->pack(r->q, &m, 0, &f->later[b], e);
}

static bool make_factor(struct rounding *r, struct factors *all, struct factor *f, double damping, double *a,
                        float *room, struct err *e)
{
    if (!mem_new(&f->later, (size_t)all->n_blocks, e) ||
        !mem_new(&f->inside, (size_t)(all->n_blocks * BLOCK * BLOCK), e) ||
        !factorize(r, all->order, damping, a, e))
        return false;
    for (int64_t b = 0; b < all->n_blocks; b++)
        if (!make_block(r, f, a, b, room, e))
            return false;
    return true;
}

static bool make_factors(struct rounding *r, struct err *e)
{
    struct factors *f;
    double *a = NULL;
    float *room = NULL;
    if (!mem_new(&f, 1, e))
        return false;
    f->k = r->k;
    f->n_blocks = (r->k + BLOCK - 1) / BLOCK;
    f->n = r->options.n_dampings;
    bool ok = mem_raw(&f->order, (size_t)r->k, e) && mem_raw(&a, (size_t)(r->k * r->k), e) &&
              mem_raw(&room, (size_t)(r->k * BLOCK), e) && order_columns(r, f->order, e);
    for (int i = 0; ok && i < f->n; i++)
        ok = make_factor(r, f, &f->factor[i], r->options.damping[i], a, room, e);
    mem_free(a);
    mem_free(room);
    if (!ok) {
        factors_free(r->q, f);
        return false;
    }
    r->factors = f;
    return true;
}

/* --------------------------------------------------------------------------------------------------------- rounding */

/* What a thread has: rows of a tile, columns in the order in which they are taken. */
struct tile {
    float *z;        /* [TILE][k] */
    float *product;  /* [TILE][columns after the block] */
    float *inside;   /* [BLOCK][TILE]: z of the block, a column's rows side by side */
    float *error;    /* likewise, w - q */
    float *rows;     /* [TILE][BLOCK]: the errors, row by row */
};

static bool tile_new(struct tile *t, int64_t k, struct err *e)
{
    *t = (struct tile){0};
    return mem_raw(&t->z, (size_t)(TILE * k), e) && mem_raw(&t->product, (size_t)(TILE * k), e) &&
           mem_raw(&t->inside, (size_t)(TILE * BLOCK), e) && mem_raw(&t->error, (size_t)(TILE * BLOCK), e) &&
           mem_raw(&t->rows, (size_t)(TILE * BLOCK), e);
}

static void tile_free(struct tile *t)
{
    mem_free(t->z);
    mem_free(t->product);
    mem_free(t->inside);
    mem_free(t->error);
    mem_free(t->rows);
}

/* Column `column` of rows [first, first + n) gets its codes, nearest to z; error = weights - what they decode to. */
static void round_column(struct blocks *b, const float *w, int64_t first, int64_t n, int64_t column, const float *z,
                         float *error)
{
    for (int64_t i = 0; i < n; i++) {
        int64_t row = first + i;
        float step = b->step[blocks_at(b, row, column)];
        uint8_t code = grid_code(b->grid.element, z[i] / step);
        b->code[row * b->k + column] = code;
        error[i] = w[row * b->k + column] - b->value[code] * step;
    }
}

/* The columns of one block, for one tile of rows. */
static void round_block(const struct factors *f, const struct factor *m, struct blocks *b, const float *w,
                        int64_t row, int64_t rows, int64_t block, struct tile *t)
{
    int64_t first = block * BLOCK, width = at_most(BLOCK, f->k - first);
    for (int64_t r = 0; r < rows; r++)
        for (int64_t c = 0; c < width; c++)
            t->inside[c * TILE + r] = t->z[r * f->k + first + c];
    for (int64_t c = 0; c < width; c++) {
        float *error = t->error + c * TILE;
        round_column(b, w, row, rows, f->order[first + c], t->inside + c * TILE, error);
        for (int64_t later = c + 1; later < width; later++) {
            float factor = m->inside[(first + later) * BLOCK + c], *z = t->inside + later * TILE;
            for (int64_t r = 0; r < rows; r++)
                z[r] += factor * error[r];
        }
    }
    for (int64_t r = 0; r < rows; r++)
        for (int64_t c = 0; c < width; c++)
            t->rows[r * width + c] = t->error[c * TILE + r];
}

static bool round_tile(struct queue *q, const struct factors *f, const struct factor *m, struct blocks *b,
                       const float *w, int64_t row, int64_t rows, struct tile *t, struct err *e)
{
    for (int64_t r = 0; r < rows; r++)
        for (int64_t c = 0; c < f->k; c++)
            t->z[r * f->k + c] = w[(row + r) * f->k + f->order[c]];
    for (int64_t block = 0; block < f->n_blocks; block++) {
        int64_t first = block * BLOCK, width = at_most(BLOCK, f->k - first), later = f->k - first - width;
        round_block(f, m, b, w, row, rows, block, t);
        if (later == 0)
            break;
        struct tensor x = tensor_matrix(t->rows, DTYPE_F32, rows, width);
        struct tensor y = tensor_matrix(t->product, DTYPE_F32, rows, later);
        if (!q->k->matmul(q, &x, &m->later[block], &y, e))
            return false;
        for (int64_t r = 0; r < rows; r++)
            for (int64_t c = 0; c < later; c++)
                t->z[r * f->k + first + width + c] += t->product[r * later + c];
    }
    return true;
}

/* All rows under one factor. */
static bool round_matrix(struct rounding *r, const struct factor *m, const float *w, struct blocks *b, struct err *e)
{
    bool ok = true;
#pragma omp parallel num_threads(r->q->threads)
    {
        struct queue single = *r->q;
        struct tile t;
        struct err mine = {0};
        single.threads = 1;
        bool fine = tile_new(&t, r->k, &mine);
#pragma omp for schedule(dynamic)
        for (int64_t row = 0; row < b->n; row += TILE)
            fine = fine && round_tile(&single, r->factors, m, b, w, row, at_most(TILE, b->n - row), &t, &mine);
        tile_free(&t);
        if (!fine) {
#pragma omp critical(gptq_error)
            {
                *e = mine;
                ok = false;
            }
        }
    }
    return ok;
}

/* With every damping; the codes of least loss stay. */
static bool apply(struct rounding *r, const float *w, struct blocks *b, struct err *e)
{
    struct blocks best = {0};
    double square, loss, least = 0.0;
    if (!r->factors && !make_factors(r, e))
        return false;
    int n = r->factors->n;
    if (n == 1)
        return round_matrix(r, &r->factors->factor[0], w, b, e);
    bool ok = blocks_new(&best, b->format, b->n, b->k, 0.0f, e);
    for (int i = 0; ok && i < n; i++) {
        ok = round_matrix(r, &r->factors->factor[i], w, b, e) &&
             rounding_loss(r->held_out, r->q, w, b, &square, &loss, e);
        if (ok && (i == 0 || loss < least)) {
            least = loss;
            blocks_copy(&best, b);
        }
    }
    if (ok)
        blocks_copy(b, &best);
    blocks_free(&best);
    return ok;
}

const struct rounding_method rounding_gptq = {
    .name = "gptq",
    .help = "column by column, later columns making up for the errors of earlier ones, under the scales that are there",
    .apply = apply,
};
