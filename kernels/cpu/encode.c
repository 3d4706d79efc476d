/* Weights rounded to nearest (grid.h): codes, scales, and what is left of every weight. A stripe is the rows that share
 * blocks; its blocks are taken sixteen at a time, one a lane, which gives their scales together; then their weights,
 * which are in the cache by now, get their codes. */
#include <assert.h>

#include "kernels/cpu/codes.h"
#include "kernels/cpu/cpu.h"
#include "kernels/shape.h"

/* The matrix in hand. */
struct job {
    const float *w; /* [n,k] */
    int64_t n, k;
    float global;
    uint8_t *codes;
    void *scales;
    float *d; /* [n,k] */
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
    case SCALE_E8M0: /* exponents as numbers, so that they can be compared; the largest element is 2^2 * 1.5 or 2^8 * 1.75 */
        exponent = codes_to_f32(codes_right(codes_add(amax, 1u << 21), 23));
        exponent = round_clamp(lanes_sub(exponent, lanes_all(t == ELEMENT_E2M1 ? 2.0f : 8.0f)), 0.0f, 254.0f);
        exponent = lanes_if_less(zero, amax, exponent, lanes_all(127.0f));
        f.scale = lanes_and(lanes_add(exponent, lanes_all(0x1p23f)), 0xffu);
        f.step = lanes_if_less(zero, exponent, codes_left(f.scale, 23), lanes_all(0x1p-127f));
        f.inverse = lanes_div(one, f.step); /* exact, so that the product with it is the quotient */
        return f;
    case SCALE_E4M3:
        v = lanes_max(lanes_all(0x1p-6f), round_e4m3(lanes_mul(lanes_all(global), quotient)));
        v = lanes_if_less(zero, amax, v, lanes_all(0.125f));
        f.scale = codes_from_value(ELEMENT_E4M3, v);
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

/* The largest magnitudes of a block's columns, sixteen side by side. */
LANES_INLINE struct lanes largest(const float *w, int64_t n, struct lanes most)
{
    int64_t i = 0;
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

LANES_INLINE void store_codes(const enum element t, uint8_t *codes, int64_t at, struct lanes v, int64_t n)
{
    struct lanes code = codes_from_value(t, v);
    if (t == ELEMENT_E2M1 || t == ELEMENT_U4B8)
        codes_store_nibbles(codes + at / 2, code); /* their blocks are multiples of sixteen columns */
    else
        codes_store_bytes_upto(codes + at, code, n);
}

/* Sixteen columns of a block from weight `at` on, n of them there. */
LANES_INLINE void encode_lanes(const enum element t, const enum scale_type s, const struct job *j, int64_t at, int64_t n,
                               struct lanes step, struct lanes inverse)
{
    struct lanes w = lanes_load_upto(j->w + at, n, 0.0f);
    struct lanes v = codes_round(t, s == SCALE_E8M0 ? lanes_mul(w, inverse) : lanes_div(w, step));
    store_codes(t, j->codes, at, v, n);
    lanes_store_upto(j->d + at, lanes_sub(w, lanes_mul(v, step)), n);
}

/* The columns [at, at + n) of a block that has no scale: codes of zero, and the weights are what is left. */
LANES_INLINE void encode_nothing(const enum element t, const struct job *j, int64_t at, int64_t n)
{
    for (int64_t i = 0; i < n; i += LANES)
        store_codes(t, j->codes, at + i, lanes_zero(), n - i);
    if (n > 0)
        memcpy(j->d + at, j->w + at, (size_t)n * sizeof *j->d);
}

/* `rows` rows from `row` on, which share `blocks` (1 to 16) blocks of `columns` columns from `first` on; the last of
 * them may be cut off. `at` is the first block's scale. */
LANES_INLINE void encode_chunk(const enum element t, const enum scale_type s, const int64_t columns, const struct job *j,
                               int64_t row, int64_t rows, int64_t first, int64_t blocks, int64_t at)
{
    struct lanes most[LANES];
    float step[LANES], inverse[LANES], some[LANES];
    for (int64_t b = 0; b < LANES; b++)
        most[b] = lanes_zero();
    for (int64_t r = row; r < row + rows; r++)
        for (int64_t b = 0; b < blocks; b++) {
            int64_t begin = first + b * columns, n = j->k - begin < columns ? j->k - begin : columns;
            most[b] = largest(j->w + r * j->k + begin, n, most[b]);
        }
    codes_transpose(most);
    for (int b = 1; b < LANES; b++)
        most[0] = lanes_max(most[0], most[b]);
    struct fitted f = fit(t, s, most[0], j->global);
    store_scales(s, j->scales, at, f.scale, blocks);
    lanes_store(step, f.step);
    lanes_store(inverse, f.inverse);
    lanes_store(some, f.some);
    for (int64_t r = row; r < row + rows; r++)
        for (int64_t b = 0; b < blocks; b++) {
            int64_t begin = first + b * columns, n = j->k - begin < columns ? j->k - begin : columns, i = 0;
            int64_t w = r * j->k + begin;
            struct lanes by = lanes_all(step[b]), with = lanes_all(inverse[b]);
            if (!(some[b] > 0.0f)) {
                encode_nothing(t, j, w, n);
                continue;
            }
            for (; i + LANES <= n; i += LANES)
                encode_lanes(t, s, j, w + i, LANES, by, with);
            if (i < n)
                encode_lanes(t, s, j, w + i, n - i, by, with);
        }
}

/* The stripe of `rows` rows from `row` on; `columns` 0: a block is the whole row. */
LANES_INLINE void encode_stripe(const enum element t, const enum scale_type s, const int64_t columns,
                                const int64_t block_rows, const struct job *j, int64_t row)
{
    int64_t rows = j->n - row < block_rows ? j->n - row : block_rows;
    int64_t per_row = columns ? (j->k + columns - 1) / columns : 1;
    for (int64_t b = 0; b < per_row; b += LANES) {
        int64_t blocks = per_row - b < LANES ? per_row - b : LANES;
        encode_chunk(t, s, columns ? columns : j->k, j, row, rows, columns * b, blocks,
                     row / block_rows * per_row + b);
    }
}

/* One kind after the other, for the compiler to make a loop of each. */
static void encode_rows(enum weight_code code, const struct job *j, int64_t row)
{
    switch (code) {
    case CODE_FP8:
        encode_stripe(ELEMENT_E4M3, SCALE_F32, 0, 1, j, row);
        break;
    case CODE_NVFP4:
        encode_stripe(ELEMENT_E2M1, SCALE_E4M3, 16, 1, j, row);
        break;
    case CODE_FP8_BLOCK:
        encode_stripe(ELEMENT_E4M3, SCALE_F32, 128, 128, j, row);
        break;
    case CODE_MXFP4:
        encode_stripe(ELEMENT_E2M1, SCALE_E8M0, 32, 1, j, row);
        break;
    case CODE_MXFP8:
        encode_stripe(ELEMENT_E4M3, SCALE_E8M0, 32, 1, j, row);
        break;
    case CODE_INT8:
        encode_stripe(ELEMENT_S8, SCALE_F32, 0, 1, j, row);
        break;
    case CODE_INT8_PACKED:
        encode_stripe(ELEMENT_U8B128, SCALE_BF16, 0, 1, j, row);
        break;
    case CODE_INT4_G32:
        encode_stripe(ELEMENT_U4B8, SCALE_BF16, 32, 1, j, row);
        break;
    case CODE_INT4_G64:
        encode_stripe(ELEMENT_U4B8, SCALE_BF16, 64, 1, j, row);
        break;
    default:
        encode_stripe(ELEMENT_U4B8, SCALE_BF16, 128, 1, j, row);
    }
}

bool CPU(encode)(struct queue *q, const struct tensor *w, float amax, struct packed_matrix *out, struct tensor *d,
                 struct err *e)
{
    if (!shape_encode(q, w, out, d, e))
        return false;
    struct job j = {.w = w->data, .n = out->n, .k = out->k, .global = 1.0f, .codes = out->part[0].data,
                    .scales = out->part[1].data, .d = d->data};
    int64_t rows = weight_grid[out->code].rows;
    if (weight_grid[out->code].scale == SCALE_E4M3) {
        j.global = grid_global(amax);
        memcpy(out->part[2].data, &j.global, sizeof j.global);
    }
#pragma omp parallel for num_threads(cpu_threads(q, j.n * j.k)) schedule(static)
    for (int64_t row = 0; row < j.n; row += rows)
        encode_rows(out->code, &j, row);
    return true;
}
