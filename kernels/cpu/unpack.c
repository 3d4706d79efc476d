/* Packed weights to panels (pack.h): sixteen rows become one panel, sixteen columns at a time. Each row's codes become
 * numbers in lanes of their own; turned over, a lane is a row, and the rows' steps are one vector. */
#include <assert.h>
#include <float.h>

#include "kernels/cpu/codes.h"
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/pack.h"
#include "kernels/shape.h"

static_assert(PACK_WIDTH == LANES, "a panel's rows are the lanes");

/* Rows [row, row + rows) of the matrix, which become those from `lane` on of one panel. */
struct strip {
    const struct packed_matrix *w;
    int64_t row, rows;
    int lane;
    bool bf16;
    float *panel; /* or of pairs of bf16, which take the same four bytes */
};

/* ---------------------------------------------------------------------------------------------------------- numbers */

/* Weights that are no codes, from weight `at` on. */
LANES_INLINE struct lanes load_plain(const struct packed_matrix *w, int64_t at, int64_t n)
{
    const char *data = w->part[0].data;
    float some[LANES] = {0};
    switch (w->part[0].dtype) {
    case DTYPE_F32:
        return lanes_load_upto((const float *)w->part[0].data + at, n, 0.0f);
    case DTYPE_BF16:
        return codes_left(codes_load_halves_upto((const uint16_t *)w->part[0].data + at, n), 16);
    default:
        data += (size_t)at * dtype_bytes(w->part[0].dtype);
        if (!dtype_to_f32(w->part[0].dtype, data, (size_t)(n < LANES ? n : LANES), some, NULL))
            return lanes_zero(); /* shape_packed lets no other dtype through */
        return lanes_load(some);
    }
}

/* Sixteen columns of a row from `first` on, n of them there, as numbers without their steps. */
LANES_INLINE struct lanes load_values(const enum element t, const struct packed_matrix *w, int64_t row, int64_t first,
                                      int64_t n, const float table[16])
{
    const uint8_t *codes = w->part[0].data;
    int64_t at = row * w->k + first;
    if (t == ELEMENT_PLAIN)
        return load_plain(w, at, n);
    if (t == ELEMENT_E2M1 || t == ELEMENT_U4B8)
        return codes_value(t, codes_load_nibbles(codes + at / 2), table);
    return codes_value(t, codes_load_bytes_upto(codes + at, n), table);
}

/* The steps of the strip's rows for the block of columns `block`, in the lanes where the rows will be. */
LANES_INLINE struct lanes load_steps(const enum scale_type s, const struct strip *p, int64_t block_rows,
                                     int64_t per_row, int64_t block, float global)
{
    uint32_t raw[LANES] = {0};
    float bits[LANES];
    const void *scales = p->w->part[1].data;
    for (int64_t r = 0; r < p->rows; r++) {
        int64_t at = (p->row + r) / block_rows * per_row + block;
        raw[p->lane + r] = s == SCALE_F32    ? ((const uint32_t *)scales)[at]
                           : s == SCALE_BF16 ? ((const uint16_t *)scales)[at]
                                             : ((const uint8_t *)scales)[at];
    }
    memcpy(bits, raw, sizeof bits);
    struct lanes scale = lanes_load(bits);
    switch (s) {
    case SCALE_BF16:
        return codes_left(scale, 16);
    case SCALE_E8M0:
        return lanes_if_less(lanes_zero(), codes_to_f32(scale), codes_left(scale, 23), lanes_all(0x1p-127f));
    case SCALE_E4M3:
        return lanes_div(codes_e4m3(scale), lanes_all(global));
    default:
        return scale;
    }
}

/* ----------------------------------------------------------------------------------------------------------- panels */

/* bf16_from_f32 of every lane, in its upper half. */
LANES_INLINE struct lanes to_bf16(struct lanes v)
{
    struct lanes a = lanes_abs(v), quiet = lanes_or(v, codes_add(lanes_zero(), 0x00400000u));
    struct lanes not_finite = lanes_if_less(lanes_all(FLT_MAX), a, v, quiet);
    return lanes_and(lanes_if_less(a, lanes_all(INFINITY), lanes_bf16(v), not_finite), 0xffff0000u);
}

/* Two columns of sixteen rows as the panel has them in bf16. */
LANES_INLINE struct lanes pair(struct lanes even, struct lanes odd)
{
    return lanes_or(codes_right(to_bf16(even), 16), to_bf16(odd));
}

/* Sixteen columns of a whole panel, whose rows are lanes, from column `first` on. */
LANES_INLINE void store_whole(const struct strip *p, int64_t first, const struct lanes v[LANES])
{
    float *to = p->panel + (p->bf16 ? first / 2 : first) * LANES;
    if (!p->bf16) {
        LANES_UNROLL
        for (int i = 0; i < LANES; i++)
            lanes_store(to + i * LANES, v[i]);
        return;
    }
    LANES_UNROLL
    for (int i = 0; i < LANES; i += 2)
        lanes_store(to + i / 2 * LANES, pair(v[i], v[i + 1]));
}

/* n (1 to 16) columns of the strip's rows only. In bf16 a last column without a pair goes beside padding, which is
 * zero. */
LANES_INLINE void store_some(const struct strip *p, int64_t first, int64_t n, struct lanes v[LANES])
{
    float *to = p->panel + (p->bf16 ? first / 2 : first) * LANES + p->lane, some[LANES];
    if (n < LANES)
        v[n] = lanes_zero();
    for (int64_t i = 0; i < n; i += 1 + p->bf16, to += LANES) {
        lanes_store(some, p->bf16 ? pair(v[i], v[i + 1]) : v[i]);
        memcpy(to, some + p->lane, (size_t)p->rows * sizeof *some);
    }
}

LANES_INLINE void times(struct lanes v[LANES], struct lanes step)
{
    LANES_UNROLL
    for (int i = 0; i < LANES; i++)
        v[i] = lanes_mul(v[i], step);
}

/* `columns` 0: a block is the whole row. */
LANES_INLINE void unpack_strip(const enum element t, const enum scale_type s, const int64_t columns,
                               const int64_t block_rows, const struct strip *p)
{
    int64_t k = p->w->k, per_row = columns ? (k + columns - 1) / columns : 1;
    float table[16], global = 1.0f;
    struct lanes step = lanes_all(1.0f), v[LANES];
    for (int i = 0; i < 16; i++)
        table[i] = grid_value(t, (uint8_t)i);
    if (s == SCALE_E4M3)
        memcpy(&global, p->w->part[2].data, sizeof global);
    for (int64_t first = 0; first < k; first += LANES) {
        if (s != SCALE_NONE && (columns ? first % columns == 0 : first == 0))
            step = load_steps(s, p, block_rows, per_row, columns ? first / columns : 0, global);
        if (p->rows == LANES && first + LANES <= k) {
            LANES_UNROLL
            for (int r = 0; r < LANES; r++)
                v[r] = load_values(t, p->w, p->row + r, first, LANES, table);
            codes_transpose(v);
            if (s != SCALE_NONE)
                times(v, step);
            store_whole(p, first, v);
            continue;
        }
        int64_t n = k - first < LANES ? k - first : LANES; /* no whole panel, or the last columns */
        for (int r = 0; r < LANES; r++)
            v[r] = lanes_zero();
        for (int64_t r = 0; r < p->rows; r++)
            v[p->lane + r] = load_values(t, p->w, p->row + r, first, n, table);
        codes_transpose(v);
        if (s != SCALE_NONE)
            times(v, step);
        store_some(p, first, n, v);
    }
}

/* One kind after the other, for the compiler to make a loop of each. */
static void unpack_rows(const struct strip *p)
{
    switch (p->w->code) {
    case CODE_PLAIN:
        unpack_strip(ELEMENT_PLAIN, SCALE_NONE, 0, 1, p);
        break;
    case CODE_FP8:
        unpack_strip(ELEMENT_E4M3, SCALE_F32, 0, 1, p);
        break;
    case CODE_NVFP4:
        unpack_strip(ELEMENT_E2M1, SCALE_E4M3, 16, 1, p);
        break;
    case CODE_FP8_BLOCK:
        unpack_strip(ELEMENT_E4M3, SCALE_F32, 128, 128, p);
        break;
    case CODE_MXFP4:
        unpack_strip(ELEMENT_E2M1, SCALE_E8M0, 32, 1, p);
        break;
    case CODE_MXFP8:
        unpack_strip(ELEMENT_E4M3, SCALE_E8M0, 32, 1, p);
        break;
    case CODE_INT8:
        unpack_strip(ELEMENT_S8, SCALE_F32, 0, 1, p);
        break;
    case CODE_INT8_PACKED:
        unpack_strip(ELEMENT_U8B128, SCALE_BF16, 0, 1, p);
        break;
    case CODE_INT4_G32:
        unpack_strip(ELEMENT_U4B8, SCALE_BF16, 32, 1, p);
        break;
    case CODE_INT4_G64:
        unpack_strip(ELEMENT_U4B8, SCALE_BF16, 64, 1, p);
        break;
    default:
        unpack_strip(ELEMENT_U4B8, SCALE_BF16, 128, 1, p);
    }
}

bool CPU(unpack)(struct queue *q, const struct packed_matrix *w, int64_t first, struct tensor *panels, struct err *e)
{
    if (!shape_queue(q, "unpack", e) || !shape_packed(q, "unpack", w, e) ||
        !shape_panels(q, "unpack", "panels", panels, -1, w->k, e))
        return false;
    if (first < 0 || w->n > panels->shape[0] - first)
        return err_set(e, ERR_BUG, "unpack: rows %lld to %lld of %lld", (long long)first, (long long)(first + w->n),
                       (long long)panels->shape[0]);
    bool bf16 = panels->dtype == DTYPE_BF16;
    int64_t stride = bf16 ? pack_stride_bf16(w->k) / 2 : pack_stride_f32(w->k); /* in units of four bytes */
    int64_t panel = first / LANES, end = pack_panels(first + w->n);
#pragma omp parallel for num_threads(cpu_threads(q, w->n * w->k)) schedule(static)
    for (int64_t i = panel; i < end; i++) {
        int64_t from = i * LANES > first ? i * LANES : first;
        int64_t to = (i + 1) * LANES < first + w->n ? (i + 1) * LANES : first + w->n;
        struct strip p = {.w = w, .row = from - first, .rows = to - from, .lane = (int)(from - i * LANES), .bf16 = bf16,
                          .panel = (float *)panels->data + i * stride};
        unpack_rows(&p);
    }
    return true;
}
