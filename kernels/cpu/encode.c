/* Weights rounded to nearest (grid.h): codes, scales, and what is left of every weight. Blocks are taken sixteen at a
 * time, one a lane, which gives their scales together; then their weights, which are in a cache by now, get their
 * codes. */
#include "kernels/cpu/codes.h"
#include "kernels/cpu/cpu.h"
#include "kernels/shape.h"

#define SIDE 128   /* of a square tile */
#define CHUNK 2048 /* columns of a row at a time: sixteen blocks of 128, or so many sixteens of smaller ones */
#define AHEAD 2560 /* weights: those of the next chunk are asked of memory while this one is computed */

/* The matrix in hand. */
struct job {
    const float *w; /* [n,k] */
    int64_t n, k;
    float global;
    uint8_t *codes;
    void *scales;
    float *d; /* [n,k] */
    int64_t ahead; /* so many weights from the one in hand on memory is asked for what is next */
};

/* Sixteen blocks, or fewer: scales as they are stored, steps, and their inverses where they are powers of two. A block
 * is empty where `some` is 0. */
struct fitted {
    struct lanes scale, step, inverse, some;
};

/* What grid_fit, grid_step and grid_is_empty say of blocks with these largest magnitudes. */
LANES_INLINE struct fitted fit(const enum element t, const enum scale_type s, struct lanes amax, float global)
{
    float most = t == ELEMENT_E2M1 ? 6.0f : t == ELEMENT_E4M3 ? 448.0f : t == ELEMENT_U4B8 ? 7.5f : 127.5f;
    struct lanes zero = lanes_zero(), one = lanes_all(1.0f), quotient = lanes_div(amax, lanes_all(most));
    struct fitted f = {.inverse = one, .some = amax};
    struct lanes exponent, v;
    switch (s) {
    case SCALE_E8M0: /* exponents as numbers, which can be compared; those of the largest elements are 2 and 8 */
        exponent = codes_to_f32(codes_right(codes_add(amax, 1u << 21), 23));
        exponent = round_clamp(lanes_sub(exponent, lanes_all(t == ELEMENT_E2M1 ? 2.0f : 8.0f)), 0.0f, 254.0f);
        exponent = lanes_if_less(zero, amax, exponent, lanes_all(127.0f));
        f.scale = lanes_and(lanes_add(exponent, lanes_all(0x1p23f)), 0xffu);
        f.step = lanes_if_less(zero, exponent, codes_left(f.scale, 23), lanes_all(0x1p-127f));
        f.inverse = lanes_div(one, f.step); /* exact, so that the product with it is the quotient */
        return f;
    case SCALE_E4M3:
        v = lanes_max(lanes_all(0x1p-6f), lanes_mul(lanes_all(global), quotient));
        codes_nearest(ELEMENT_E4M3, lanes_if_less(zero, amax, v, lanes_all(0.125f)), &v, &f.scale);
        f.step = lanes_div(v, lanes_all(global));
        return f;
    case SCALE_BF16:
        f.some = lanes_bf16(quotient);
        f.step = lanes_if_less(zero, f.some, f.some, one);
        f.scale = codes_right(f.step, 16);
        return f;
    default:
        f.some = quotient;
        f.scale = f.step = lanes_if_less(zero, quotient, quotient, one);
        return f;
    }
}

/* The largest magnitudes of n (at least one) columns, sixteen side by side. */
LANES_INLINE struct lanes largest(const float *w, int64_t n)
{
    struct lanes most = lanes_abs(lanes_load_upto(w, n, 0.0f));
    int64_t i = LANES;
    for (; i + LANES <= n; i += LANES)
        most = lanes_max(most, lanes_abs(lanes_load(w + i)));
    return i < n ? lanes_max(most, lanes_abs(lanes_load_some(w + i, n - i, 0.0f))) : most;
}

LANES_INLINE void store_scales(const enum scale_type s, void *scales, int64_t at, struct lanes scale, int64_t n)
{
    if (s == SCALE_F32)
        lanes_store_upto((float *)scales + at, scale, n);
    else if (s == SCALE_BF16)
        codes_store_halves_upto((uint16_t *)scales + at, scale, n);
    else
        codes_store_bytes_upto((uint8_t *)scales + at, scale, n);
}

LANES_INLINE void store_codes(const enum element t, uint8_t *codes, int64_t at, struct lanes code, int64_t n)
{
    if (t == ELEMENT_E2M1 || t == ELEMENT_U4B8)
        codes_store_nibbles(codes + (uint64_t)at / 2, code); /* their blocks are multiples of sixteen columns */
    else
        codes_store_bytes_upto(codes + at, code, n);
}

/* n (1 to 16) columns of a block, whose weights are at w; `at` is their place in the matrix. */
LANES_INLINE void encode_lanes(const enum element t, const enum scale_type s, const struct job *j, const float *w,
                               int64_t at, int64_t n, struct lanes step, struct lanes inverse)
{
    struct lanes x = lanes_load_upto(w, n, 0.0f), v, code;
    codes_nearest(t, s == SCALE_E8M0 ? lanes_mul(x, inverse) : lanes_div(x, step), &v, &code);
    store_codes(t, j->codes, at, code, n);
    lanes_store_upto(j->d + at, lanes_sub(x, lanes_mul(v, step)), n);
}

/* n columns of a block that has no scale: codes of zero, and the weights are what is left. */
LANES_INLINE void encode_nothing(const enum element t, const struct job *j, const float *w, int64_t at, int64_t n)
{
    struct lanes v, code;
    codes_nearest(t, lanes_zero(), &v, &code);
    for (int64_t i = 0; i < n; i += LANES)
        store_codes(t, j->codes, at + i, code, n - i);
    if (n > 0)
        memcpy(j->d + at, w, (size_t)n * sizeof *w);
}

/* n columns of a row, which share a block. */
LANES_INLINE void encode_run(const enum element t, const enum scale_type s, const struct job *j, const float *w,
                             int64_t at, const int64_t n, float step, float inverse, float some)
{
    struct lanes by = lanes_all(step), with = lanes_all(inverse);
    int64_t i = 0;
    if (!(some > 0.0f)) {
        encode_nothing(t, j, w, at, n);
        return;
    }
    for (; i + LANES <= n; i += LANES) {
        __builtin_prefetch(j->w + at + i + j->ahead, 0, 2);
        encode_lanes(t, s, j, w + i, at + i, LANES, by, with);
    }
    if (i < n)
        encode_lanes(t, s, j, w + i, at + i, n - i, by, with);
}

/* ----------------------------------------------------------------------------------------------------------- blocks */

/* What sixteen blocks share, each. */
struct shared {
    float step[LANES], inverse[LANES], some[LANES];
};

/* Blocks with these largest magnitudes: their scales, `blocks` (1 to 16) of them from number `at` on, and the rest. */
LANES_INLINE void fit_blocks(const enum element t, const enum scale_type s, const struct job *j,
                             const struct lanes most[LANES], int64_t at, int64_t blocks, struct shared *out)
{
    struct fitted f = fit(t, s, codes_largest(most), j->global);
    store_scales(s, j->scales, at, f.scale, blocks);
    lanes_store(out->step, f.step);
    lanes_store(out->inverse, f.inverse);
    lanes_store(out->some, f.some);
}

/* The scales of `blocks` (1 to 16) blocks of a row, each of `columns` columns, from weight w on. */
LANES_INLINE void fit_groups(const enum element t, const enum scale_type s, const int64_t columns, const struct job *j,
                             const float *w, int64_t at, const int64_t blocks, struct shared *out)
{
    struct lanes most[LANES];
    LANES_UNROLL
    for (int64_t b = 0; b < LANES; b++)
        most[b] = b < blocks ? largest(w + b * columns, columns) : lanes_zero();
    fit_blocks(t, s, j, most, at, blocks, out);
}

/* A row whose blocks have `columns` columns, all of them there. Scales take their time, but those of several sixteens
 * of blocks can be on their way at once. */
LANES_INLINE void encode_groups(const enum element t, const enum scale_type s, const int64_t columns,
                                const struct job *job, int64_t row)
{
    const struct job j = *job; /* which no store can change, as far as the compiler knows */
    const int64_t most = CHUNK / columns;
    int64_t per_row = j.k / columns;
    for (int64_t first = 0; first < per_row; first += most) {
        struct shared h[CHUNK / 16 / LANES];
        int64_t blocks = per_row - first < most ? per_row - first : most, b = 0, scale = row * per_row + first;
        int64_t at = row * j.k + first * columns;
        for (; b + LANES <= blocks; b += LANES)
            fit_groups(t, s, columns, &j, j.w + at + b * columns, scale + b, LANES, &h[b / LANES]);
        if (b < blocks)
            fit_groups(t, s, columns, &j, j.w + at + b * columns, scale + b, blocks - b, &h[b / LANES]);
        for (b = 0; b < blocks; b++) {
            const struct shared *g = &h[b / LANES];
            int64_t i = at + b * columns, lane = b % LANES;
            encode_run(t, s, &j, j.w + i, i, columns, g->step[lane], g->inverse[lane], g->some[lane]);
        }
    }
}

/* A row that is one block. */
LANES_INLINE void encode_row(const enum element t, const enum scale_type s, const struct job *job, int64_t row)
{
    const struct job j = *job;
    struct lanes most[LANES] = {largest(j.w + row * j.k, j.k)};
    struct shared h;
    fit_blocks(t, s, &j, most, row, 1, &h);
    encode_run(t, s, &j, j.w + row * j.k, row * j.k, j.k, h.step[0], h.inverse[0], h.some[0]);
}

/* The square tile from (row, column) on. Rows that lie a power of two apart would push each other out of the caches, so
 * that the weights are kept here until their scale is known. */
LANES_INLINE void encode_tile(const enum element t, const enum scale_type s, const struct job *job, int64_t row,
                              int64_t column)
{
    const struct job j = *job;
    _Alignas(64) float w[SIDE][SIDE];
    int64_t rows = j.n - row < SIDE ? j.n - row : SIDE, columns = j.k - column < SIDE ? j.k - column : SIDE;
    struct lanes most[LANES] = {lanes_zero()};
    struct shared h;
    for (int64_t r = 0; r < rows; r++) {
        memcpy(w[r], j.w + (row + r) * j.k + column, (size_t)columns * sizeof **w);
        most[0] = lanes_max(most[0], largest(w[r], columns));
    }
    fit_blocks(t, s, &j, most, row / SIDE * ((j.k + SIDE - 1) / SIDE) + column / SIDE, 1, &h);
    for (int64_t r = 0; r < rows; r++)
        encode_run(t, s, &j, w[r], (row + r) * j.k + column, columns, h.step[0], h.inverse[0], h.some[0]);
}

/* One kind after the other, for the compiler to make a loop of each. */
static void encode_task(enum weight_code code, const struct job *j, int64_t row, int64_t column)
{
    switch (code) {
    case CODE_FP8:
        encode_row(ELEMENT_E4M3, SCALE_F32, j, row);
        break;
    case CODE_NVFP4:
        encode_groups(ELEMENT_E2M1, SCALE_E4M3, 16, j, row);
        break;
    case CODE_FP8_BLOCK:
        encode_tile(ELEMENT_E4M3, SCALE_F32, j, row, column);
        break;
    case CODE_MXFP4:
        encode_groups(ELEMENT_E2M1, SCALE_E8M0, 32, j, row);
        break;
    case CODE_MXFP8:
        encode_groups(ELEMENT_E4M3, SCALE_E8M0, 32, j, row);
        break;
    case CODE_INT8:
        encode_row(ELEMENT_S8, SCALE_F32, j, row);
        break;
    case CODE_INT8_PACKED:
        encode_row(ELEMENT_U8B128, SCALE_BF16, j, row);
        break;
    case CODE_INT4_G32:
        encode_groups(ELEMENT_U4B8, SCALE_BF16, 32, j, row);
        break;
    case CODE_INT4_G64:
        encode_groups(ELEMENT_U4B8, SCALE_BF16, 64, j, row);
        break;
    default:
        encode_groups(ELEMENT_U4B8, SCALE_BF16, 128, j, row);
    }
}

bool CPU(encode)(struct queue *q, const struct tensor *w, float amax, struct packed_matrix *out, struct tensor *d,
                 struct err *e)
{
    if (!shape_encode(q, w, out, d, e))
        return false;
    struct job j = {.w = w->data, .n = out->n, .k = out->k, .global = 1.0f, .codes = out->part[0].data,
                    .scales = out->part[1].data, .d = d->data};
    const struct grid *g = &weight_grid[out->code];
    int64_t per_row = g->rows > 1 ? grid_scale_columns(g, j.k) : 1; /* tasks: rows, or tiles */
    j.ahead = g->rows > 1 ? SIDE : g->columns ? AHEAD : j.k;
    if (g->scale == SCALE_E4M3) {
        j.global = grid_global(amax);
        memcpy(out->part[2].data, &j.global, sizeof j.global);
    }
    int64_t tasks = grid_scale_rows(g, j.n) * per_row;
#pragma omp parallel for num_threads(cpu_threads(q, j.n * j.k)) schedule(static)
    for (int64_t i = 0; i < tasks; i++)
        encode_task(out->code, &j, i / per_row * g->rows, i % per_row * SIDE);
    return true;
}
