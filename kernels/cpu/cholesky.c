/* a = L L^T in place, in f64. The lower triangle is cut into tiles of 64 by 64, and their columns are done from left
 * to right: a tile is brought to where it stands after all columns before it, which is a product of two strips of
 * finished rows, and then solved with the tile on its diagonal. The tile on the next diagonal needs the rows of one
 * tile only, so the task that solves that one goes on to factor it.
 *
 * Every element is one chain of fused multiply-adds over ascending columns and one division (or square root), so its
 * bits depend neither on the tiles nor on the threads. */
#include <math.h>

#include "kernels/cpu/cpu.h"
#include "kernels/cpu/lanes.h"
#include "kernels/shape.h"

#define SIDE 64   /* of a tile */
#define DEPTH 128 /* columns of the strips, per block */

/* Eight f64 lanes, and the register tile. */
#define WIDE 8
#if defined(CPU_AVX512)
#define TILE_COLUMNS 8
#define TILE_VECTORS 2
struct wide { __m512d v; };
LANES_INLINE struct wide wide_load(const double *p) { return (struct wide){_mm512_load_pd(p)}; }
LANES_INLINE void wide_store(double *p, struct wide a) { _mm512_store_pd(p, a.v); }
LANES_INLINE struct wide wide_fma(double a, struct wide b, struct wide c)
{
    return (struct wide){_mm512_fmadd_pd(_mm512_set1_pd(a), b.v, c.v)};
}
#elif defined(CPU_AVX2)
#define TILE_COLUMNS 4
#define TILE_VECTORS 1
struct wide { __m256d a, b; };
LANES_INLINE struct wide wide_load(const double *p)
{
    return (struct wide){_mm256_load_pd(p), _mm256_load_pd(p + 4)};
}
LANES_INLINE void wide_store(double *p, struct wide a)
{
    _mm256_store_pd(p, a.a);
    _mm256_store_pd(p + 4, a.b);
}
LANES_INLINE struct wide wide_fma(double a, struct wide b, struct wide c)
{
    __m256d x = _mm256_set1_pd(a);
    return (struct wide){_mm256_fmadd_pd(x, b.a, c.a), _mm256_fmadd_pd(x, b.b, c.b)};
}
#else
#define TILE_COLUMNS 4
#define TILE_VECTORS 1
struct wide { double v[WIDE]; };
LANES_INLINE struct wide wide_load(const double *p)
{
    struct wide x;
    memcpy(x.v, p, sizeof x.v);
    return x;
}
LANES_INLINE void wide_store(double *p, struct wide a) { memcpy(p, a.v, sizeof a.v); }
LANES_INLINE struct wide wide_fma(double a, struct wide b, struct wide c)
{
    for (int i = 0; i < WIDE; i++)
        c.v[i] = fma(a, b.v[i], c.v[i]);
    return c;
}
#endif

struct scratch {
    _Alignas(64) double rows[DEPTH][SIDE];    /* of the tile: its strip of L, transposed */
    _Alignas(64) double columns[DEPTH][SIDE]; /* the strip of the rows that its columns belong to, negative */
    _Alignas(64) double tile[SIDE /* column */][SIDE /* row */];
};

/* Rows [first, first + n) and columns [k0, k0 + depth) of a, times `sign`; what is missing of 64 rows is zero. */
static void pack(const double *a, int64_t k, int64_t first, int64_t n, int64_t k0, int64_t depth, double sign,
                 double out[DEPTH][SIDE])
{
    for (int64_t r0 = 0; r0 < SIDE; r0 += WIDE) {
        const double *from = a + (first + r0) * k + k0;
        int64_t there = n - r0 < 0 ? 0 : n - r0 < WIDE ? n - r0 : WIDE;
        for (int64_t d = 0; d < depth; d++) {
            double *to = &out[d][r0]; /* a line at a time */
            for (int64_t i = 0; i < WIDE; i++)
                to[i] = i < there ? sign * from[i * k + d] : 0.0;
        }
    }
}

/* tile[c][r] += sum over d of columns[d][c] * rows[d][r], for TILE_COLUMNS by TILE_VECTORS * 8 elements. */
static void multiply(struct scratch *s, int64_t c0, int64_t r0, int64_t depth)
{
    struct wide acc[TILE_COLUMNS][TILE_VECTORS];
    LANES_UNROLL
    for (int c = 0; c < TILE_COLUMNS; c++) {
        LANES_UNROLL
        for (int v = 0; v < TILE_VECTORS; v++)
            acc[c][v] = wide_load(&s->tile[c0 + c][r0 + v * WIDE]);
    }
    for (int64_t d = 0; d < depth; d++) {
        LANES_UNROLL
        for (int c = 0; c < TILE_COLUMNS; c++) {
            LANES_UNROLL
            for (int v = 0; v < TILE_VECTORS; v++)
                acc[c][v] = wide_fma(s->columns[d][c0 + c], wide_load(&s->rows[d][r0 + v * WIDE]), acc[c][v]);
        }
    }
    LANES_UNROLL
    for (int c = 0; c < TILE_COLUMNS; c++) {
        LANES_UNROLL
        for (int v = 0; v < TILE_VECTORS; v++)
            wide_store(&s->tile[c0 + c][r0 + v * WIDE], acc[c][v]);
    }
}

/* The tile of rows from i0 and columns from j0, less the products of all columns before j0. On the diagonal what is
 * above it counts as zero. */
static void update(const double *a, int64_t k, int64_t i0, int64_t ni, int64_t j0, int64_t nj, struct scratch *s)
{
    for (int64_t c = 0; c < SIDE; c++)
        for (int64_t r = 0; r < SIDE; r++)
            s->tile[c][r] = c < nj && r < ni && j0 + c <= i0 + r ? a[(i0 + r) * k + j0 + c] : 0.0;
    for (int64_t k0 = 0; k0 < j0; k0 += DEPTH) {
        int64_t depth = j0 - k0 < DEPTH ? j0 - k0 : DEPTH;
        pack(a, k, i0, ni, k0, depth, 1.0, s->rows);
        pack(a, k, j0, nj, k0, depth, -1.0, s->columns);
        for (int64_t c = 0; c < nj; c += TILE_COLUMNS)
            for (int64_t r = 0; r < ni; r += TILE_VECTORS * WIDE)
                multiply(s, c, r, depth);
    }
}

static void put_back(double *a, int64_t k, int64_t i0, int64_t ni, int64_t j0, int64_t nj, const struct scratch *s)
{
    for (int64_t r = 0; r < ni; r++)
        for (int64_t c = 0; c < nj && j0 + c <= i0 + r; c++)
            a[(i0 + r) * k + j0 + c] = s->tile[c][r];
}

/* Column j of the tile, less the products of columns before it in the tile; `l` is row j of L from the tile's first
 * column on. */
static void reduce(struct scratch *s, int64_t j, const double *l, int64_t stride)
{
    for (int64_t p = 0; p < j; p++)
        for (int64_t r = 0; r < SIDE; r += WIDE)
            wide_store(&s->tile[j][r], wide_fma(-l[p * stride], wide_load(&s->tile[p][r]), wide_load(&s->tile[j][r])));
}

/* A tile below the diagonal becomes its part of L. */
static void solve(double *a, int64_t k, int64_t i0, int64_t ni, int64_t j0, struct scratch *s)
{
    update(a, k, i0, ni, j0, SIDE, s);
    for (int64_t j = 0; j < SIDE; j++) {
        const double *l = a + (j0 + j) * k + j0;
        reduce(s, j, l, 1);
        for (int64_t r = 0; r < SIDE; r++)
            s->tile[j][r] /= l[j];
    }
    put_back(a, k, i0, ni, j0, SIDE, s);
}

/* The tile on the diagonal becomes its part of L. Returns 0, or the order of the first minor that is not positive. */
static int64_t factor(double *a, int64_t k, int64_t i0, int64_t ni, struct scratch *s)
{
    update(a, k, i0, ni, i0, ni, s);
    for (int64_t j = 0; j < ni; j++) {
        reduce(s, j, &s->tile[0][j], SIDE);
        double pivot = s->tile[j][j];
        if (!(pivot > 0.0 && pivot < INFINITY))
            return i0 + j + 1;
        double root = sqrt(pivot);
        s->tile[j][j] = root;
        for (int64_t r = j + 1; r < SIDE; r++)
            s->tile[j][r] /= root;
    }
    put_back(a, k, i0, ni, i0, ni, s);
    return 0;
}

static int64_t size_at(int64_t k, int64_t i) { return k - i < SIDE ? k - i : SIDE; }

/* Column j0 of tiles below the diagonal, and the next tile on it. */
static int64_t run_column(struct queue *q, double *a, int64_t k, int64_t j0)
{
    int64_t tiles = (k - j0 - 1) / SIDE, bad = 0;
#pragma omp parallel for num_threads(cpu_threads(q, tiles * SIDE * SIDE * (j0 + SIDE))) schedule(dynamic)
    for (int64_t t = 0; t < tiles; t++) {
        struct scratch s;
        int64_t i0 = j0 + (t + 1) * SIDE;
        solve(a, k, i0, size_at(k, i0), j0, &s);
        if (t == 0) /* no other task writes it */
            bad = factor(a, k, i0, size_at(k, i0), &s);
    }
    return bad;
}

bool CPU(cholesky)(struct queue *q, struct tensor *t, struct err *e)
{
    if (!shape_queue(q, "cholesky", e) || !shape_matrix(q, "cholesky", "a", t, DTYPE_F64, t->shape[0], t->shape[0], e))
        return false;
    struct scratch s;
    double *a = t->data;
    int64_t k = t->shape[0], bad = k > 0 ? factor(a, k, 0, size_at(k, 0), &s) : 0;
    for (int64_t j0 = 0; bad == 0 && j0 + SIDE < k; j0 += SIDE)
        bad = run_column(q, a, k, j0);
    if (bad > 0)
        return shape_not_positive(k, bad, e);
    return true;
}
