#ifndef TESTS_KERNELS_PACKED_H
#define TESTS_KERNELS_PACKED_H
/* Packed matrices for the tests of encode and unpack, and what grid.h says of single weights. */
#include "tests/kernels/variants.h"

/* Rows and columns at the edges of blocks of every size, of vectors and of panels. */
static const int64_t packed_shapes[][2] = {{1, 1},    {3, 5},     {7, 33},    {4, 172},   {16, 15},   {2, 1000},
                                           {1, 16},   {3, 48},    {17, 32},   {3, 96},    {1, 64},    {2, 192},
                                           {1, 128},  {5, 352},   {64, 576},  {128, 128}, {129, 384}, {127, 129},
                                           {257, 130}, {130, 260}, {300, 256}, {2, 4096},  {3, 2176}};

static inline bool packed_fits(enum weight_code code, int64_t k)
{
    const struct grid *g = &weight_grid[code];
    int64_t multiple = g->rows == 1 && g->columns ? g->columns : code == CODE_INT8_PACKED ? 4 : 1;
    return k % multiple == 0;
}

static inline struct tensor packed_part(enum dtype t, int rank, int64_t rows, int64_t columns)
{
    struct tensor p = {.dtype = t, .device = TENSOR_HOST, .rank = rank, .shape = {rows, columns}};
    size_t bytes = (size_t)tensor_count(&p) * dtype_bytes(t);
    p.data = malloc(bytes); /* exactly, so that the address sanitizer sees an access past the end */
    assert_non_null(p.data);
    memset(p.data, 0x5a, bytes);
    return p;
}

static inline size_t packed_bytes(const struct packed_matrix *m, int part)
{
    return (size_t)tensor_count(&m->part[part]) * dtype_bytes(m->part[part].dtype);
}

/* The parts of an [n,k] matrix (export-formats 0), full of rubbish; `plain` is CODE_PLAIN's dtype. */
static inline struct packed_matrix packed_of(enum weight_code code, int64_t n, int64_t k, enum dtype plain)
{
    static const enum dtype scales[] = {[SCALE_F32] = DTYPE_F32, [SCALE_BF16] = DTYPE_BF16, [SCALE_E8M0] = DTYPE_U8,
                                        [SCALE_E4M3] = DTYPE_F8_E4M3};
    const struct grid *g = &weight_grid[code];
    struct packed_matrix m = {.code = code, .n = n, .k = k};
    enum dtype t = code == CODE_PLAIN ? plain : DTYPE_U8;
    int64_t columns = k;
    switch (g->element) {
    case ELEMENT_E2M1: columns = k / 2; break;
    case ELEMENT_E4M3: t = DTYPE_F8_E4M3; break;
    case ELEMENT_S8: t = DTYPE_I8; break;
    case ELEMENT_U4B8: t = DTYPE_I32, columns = k / 8; break;
    case ELEMENT_U8B128: t = DTYPE_I32, columns = k / 4; break;
    default: break;
    }
    m.part[0] = packed_part(t, 2, n, columns);
    if (code != CODE_PLAIN)
        m.part[1] = packed_part(scales[g->scale], 2, grid_scale_rows(g, n), grid_scale_columns(g, k));
    if (g->scale == SCALE_E4M3)
        m.part[2] = packed_part(DTYPE_F32, 1, 1, 1);
    return m;
}

static inline void packed_release(struct packed_matrix *m)
{
    for (size_t i = 0; i < COUNT(m->part); i++)
        free(m->part[i].data);
}

/* Where weight (row, column)'s scale is in part 1. */
static inline int64_t packed_at(const struct packed_matrix *m, int64_t row, int64_t column)
{
    const struct grid *g = &weight_grid[m->code];
    return row / g->rows * grid_scale_columns(g, m->k) + column / grid_columns(g, m->k);
}

static inline uint32_t packed_scale(const struct packed_matrix *m, int64_t at)
{
    enum scale_type t = weight_grid[m->code].scale;
    const void *scales = m->part[1].data;
    return t == SCALE_F32    ? ((const uint32_t *)scales)[at]
           : t == SCALE_BF16 ? ((const uint16_t *)scales)[at]
                             : ((const uint8_t *)scales)[at];
}

static inline uint8_t packed_code(const struct packed_matrix *m, int64_t row, int64_t column)
{
    const uint8_t *codes = m->part[0].data;
    int64_t at = row * m->k + column;
    return (uint8_t)(grid_bits(weight_grid[m->code].element) == 8 ? codes[at] : codes[at / 2] >> at % 2 * 4 & 15);
}

/* The weight that is stored. */
static inline float packed_value(const struct packed_matrix *m, int64_t row, int64_t column)
{
    const struct grid *g = &weight_grid[m->code];
    float global = g->scale == SCALE_E4M3 ? *(const float *)m->part[2].data : 1.0f, plain;
    const char *data = m->part[0].data;
    if (m->code == CODE_PLAIN) {
        enum dtype t = m->part[0].dtype;
        assert_true(dtype_to_f32(t, data + (size_t)(row * m->k + column) * dtype_bytes(t), 1, &plain, NULL));
        return plain;
    }
    return grid_value(g->element, packed_code(m, row, column)) *
           grid_step(g->scale, packed_scale(m, packed_at(m, row, column)), global);
}

#endif
