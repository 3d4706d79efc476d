#ifndef NODES_FORMAT_BLOCKS_H
#define NODES_FORMAT_BLOCKS_H
/* A matrix in a quantized format, taken apart: a byte of code per weight and a scale per block. It is the form in which
 * rounding methods work; a rendering is the same as it is stored. Everything here is plain and on the host; the fast
 * encoding and decoding are the kernels' (kernels->encode, unpack), with the same bits. */
#include "nodes/format/format.h"

struct blocks {
    const struct format *format;
    struct grid grid;
    int64_t n, k;
    int64_t columns;                    /* of a block; the whole row where the format has one scale per row */
    int64_t scale_rows, scale_columns;  /* of the table of scales: ceil(n / grid.rows), ceil(k / columns) */
    uint8_t *code;                      /* [n,k] */
    uint32_t *scale;                    /* [scale_rows, scale_columns]: the stored bits */
    float *step;                        /* likewise: their steps */
    float global;                       /* SCALE_E4M3's divisor; 1 otherwise */
    float value[256];                   /* of a code */
};

/* For an [n,k] matrix in format `f`, which is no bf16; `amax` is the largest |w| of all that share a divisor. Codes and
 * scales are undefined. On failure nothing is left. */
bool blocks_new(struct blocks *out, const struct format *f, int64_t n, int64_t k, float amax, struct err *e) ERR_CHECK;
void blocks_free(struct blocks *b); /* a zeroed one is fine; clears it */
/* Bytes that blocks_new takes. */
uint64_t blocks_bytes(const struct format *f, int64_t n, int64_t k);
/* dst = src, both of one format and shape. */
void blocks_copy(struct blocks *dst, const struct blocks *src);

/* Index into scale and step of the block that holds weight (row, column). */
static inline int64_t blocks_at(const struct blocks *b, int64_t row, int64_t column)
{
    return row / b->grid.rows * b->scale_columns + column / b->columns;
}
static inline void blocks_set_scale(struct blocks *b, int64_t at, uint32_t scale)
{
    b->scale[at] = scale;
    b->step[at] = grid_step(b->grid.scale, scale, b->global);
}
/* Rows [first, first + n) of w [b->n, k], finite, rounded to nearest: with scales that fit each block's largest weight,
 * or with the scales that are there. `first` is a multiple of grid.rows, and so is n unless it ends at the last row. */
void blocks_round(struct blocks *b, const float *w, int64_t first, int64_t n);
void blocks_recode(struct blocks *b, const float *w, int64_t first, int64_t n);
/* Rows [first, first + n) to out [n,k]: value of the code times the step. */
void blocks_decode(const struct blocks *b, int64_t first, int64_t n, float *out);

/* To and from the stored form; the rendering has the same format and shape. */
void blocks_store(const struct blocks *b, struct rendering *r);
void blocks_load(struct blocks *b, const struct rendering *r);

/* What the table of formats uses as `encode` and `decode` of all but bf16. */
bool blocks_encode_rendering(const float *w, float amax, struct rendering *r, struct err *e) ERR_CHECK;
void blocks_decode_rendering(const struct rendering *r, int64_t first, int64_t n, float *out);

#endif
