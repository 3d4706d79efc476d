/* h += x^T x, the second moments of a linear's input. The lower triangle is cut into tiles of 96 by 96 features, one
 * task each; a task walks the rows of x in blocks of 256, packs its two strips of columns (16 features to a panel, as
 * in pack.h), forms the products of the block in f32, and adds them to h in f64. So an element of h is one chain of
 * fused multiply-adds within a block, and the blocks are added in order. */
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/lanes.h"
#include "kernels/shape.h"

#define ROWS 256 /* of x, per block */
#define SIDE 96  /* features of a tile */
#define PANELS (SIDE / LANES)

struct scratch {
    _Alignas(64) float i[PANELS][ROWS][LANES]; /* features of the tile's rows */
    _Alignas(64) float j[PANELS][ROWS][LANES]; /* features of its columns */
    _Alignas(64) float product[SIDE][SIDE];
};

/* Features [first, first + n) of `rows` rows of x [.,k]; what is missing in the last panel is zero. */
static void pack(const float *x, int64_t k, int64_t rows, int64_t first, int64_t n, float out[PANELS][ROWS][LANES])
{
    for (int64_t p = 0; p * LANES < n; p++)
        for (int64_t t = 0; t < rows; t++)
            lanes_store(out[p][t], lanes_load_upto(x + t * k + first + p * LANES, n - p * LANES, 0.0f));
}

/* Products of features [i, i + LANES_TILE_ROWS) with LANES_TILE_VECTORS panels from panel `p`. */
static void tile(struct scratch *s, int64_t i, int64_t p, int64_t rows)
{
    struct lanes acc[LANES_TILE_ROWS][LANES_TILE_VECTORS];
    LANES_UNROLL
    for (int r = 0; r < LANES_TILE_ROWS; r++) {
        LANES_UNROLL
        for (int v = 0; v < LANES_TILE_VECTORS; v++)
            acc[r][v] = lanes_zero();
    }
    lanes_tile(LANES_TILE_ROWS, LANES_TILE_VECTORS, rows, &s->i[i / LANES][0][i % LANES], 1, LANES, s->j[p][0], LANES,
               ROWS * LANES, LANES, acc);
    LANES_UNROLL
    for (int r = 0; r < LANES_TILE_ROWS; r++) {
        LANES_UNROLL
        for (int v = 0; v < LANES_TILE_VECTORS; v++)
            lanes_store(s->product[i + r] + (p + v) * LANES, acc[r][v]);
    }
}

/* h [i0 + a][j0 + b] += product[a][b] on and below the diagonal. */
static void add_product(struct scratch *s, int64_t i0, int64_t ni, int64_t j0, int64_t nj, int64_t k, double *h)
{
    for (int64_t i = 0; i < ni; i++) {
        int64_t n = i0 + i - j0 + 1 < nj ? i0 + i - j0 + 1 : nj;
        double *row = h + (i0 + i) * k + j0;
        for (int64_t j = 0; j < n; j++)
            row[j] += (double)s->product[i][j];
    }
}

static void run_tile(const float *x, int64_t t, int64_t k, int64_t i0, int64_t j0, double *h)
{
    struct scratch s;
    int64_t ni = k - i0 < SIDE ? k - i0 : SIDE, nj = k - j0 < SIDE ? k - j0 : SIDE;
    for (int64_t first = 0; first < t; first += ROWS) {
        int64_t rows = t - first < ROWS ? t - first : ROWS;
        pack(x + first * k, k, rows, i0, ni, s.i);
        pack(x + first * k, k, rows, j0, nj, s.j);
        for (int64_t i = 0; i < ni; i += LANES_TILE_ROWS)
            for (int64_t p = 0; p * LANES < nj && j0 + p * LANES < i0 + i + LANES_TILE_ROWS; p += LANES_TILE_VECTORS)
                tile(&s, i, p, rows);
        add_product(&s, i0, ni, j0, nj, k, h);
    }
}

bool CPU(gram)(struct queue *q, const struct tensor *x, struct tensor *h, struct err *e)
{
    if (!shape_queue(q, "gram", e) || !shape_matrix(q, "gram", "x", x, DTYPE_F32, -1, -1, e) ||
        !shape_matrix(q, "gram", "h", h, DTYPE_F64, x->shape[1], x->shape[1], e))
        return false;
    int64_t k = x->shape[1], side = (k + SIDE - 1) / SIDE;
#pragma omp parallel for num_threads(cpu_threads(q, tensor_count(x) * k)) schedule(dynamic)
    for (int64_t task = 0; task < side * side; task++) {
        int64_t i = task / side, j = task % side;
        if (j <= i)
            run_tile(x->data, x->shape[0], k, i * SIDE, j * SIDE, h->data);
    }
    return true;
}
