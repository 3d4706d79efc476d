#ifndef KERNELS_GRID_H
#define KERNELS_GRID_H
/* The numbers that quantized weights can be: a weight is the value of its code times a step, and a block of weights
 * shares the step. What every format stores is a grid, a line each in weight_grid[]; the functions here are the plain,
 * one-number-at-a-time definition that encoding, decoding and the kernels of every back end must agree with to the
 * bit. Where the bytes lie in a file is nodes/format's business. */
#include <stdbool.h>
#include <stdint.h>

#include "engine/base/dtype.h"

/* A weight's code and its value, both as one byte each; in a packed tensor a code of four bits takes half a byte, the
 * lower column in the low half. */
enum element {
    ELEMENT_PLAIN, /* no code: the number itself, in f32, bf16 or f16 */
    ELEMENT_E2M1,  /* 4 bits: 3 sign, 2..0 index into {0, .5, 1, 1.5, 2, 3, 4, 6} (export-formats 1.1) */
    ELEMENT_E4M3,  /* 8 bits: 7 sign, 6..3 exponent (bias 7), 2..0 mantissa; 0x7f and 0xff never occur (1.2) */
    ELEMENT_S8,    /* 8 bits: -128..127, two's complement */
    ELEMENT_U4B8,  /* 4 bits: -8..7, stored with 8 added (1.4) */
    ELEMENT_U8B128 /* 8 bits: -128..127, stored with 128 added (1.4) */
};

/* How a block's step is stored, and what it is. */
enum scale_type {
    SCALE_NONE,
    SCALE_F32,  /* step = scale */
    SCALE_BF16, /* step = scale */
    SCALE_E8M0, /* step = 2^(byte - 127); 255 never occurs (1.3) */
    SCALE_E4M3  /* step = e4m3(byte) / global, an f32 division; sign bit 0; `global` is the matrix' own (2.1) */
};

struct grid {
    enum element element;
    enum scale_type scale;
    int rows, columns; /* of a block; columns 0: the whole row. The last blocks may be cut off by the matrix' edge */
};

/* How the numbers of a weight matrix are stored, as far as kernels must know it; the formats are in nodes/format.
 * Parts: 0 the codes, 1 the scales [ceil(n / rows), ceil(k / columns)], 2 (CODE_NVFP4) the global divisor, f32 [1]. */
enum weight_code {
    CODE_PLAIN,     /* part 0: [n,k] in f32, bf16 or f16; no other part */
    CODE_FP8,       /* e4m3 [n,k], f32 per row */
    CODE_NVFP4,     /* u8 [n,k/2], e4m3 per 16 columns, f32 [1] */
    CODE_FP8_BLOCK, /* e4m3 [n,k], f32 per 128 x 128 */
    CODE_MXFP4,     /* u8 [n,k/2], u8 (e8m0) per 32 columns */
    CODE_MXFP8,     /* e4m3 [n,k], u8 (e8m0) per 32 columns */
    CODE_INT8,      /* i8 [n,k], f32 per row */
    CODE_INT8_PACKED, /* i32 [n,k/4], bf16 per row */
    CODE_INT4_G32,  /* i32 [n,k/8], bf16 per 32, 64 or 128 columns */
    CODE_INT4_G64,
    CODE_INT4_G128,
    CODE_COUNT
};
extern const struct grid weight_grid[CODE_COUNT];

/* Columns of a block in a matrix of k columns, and the size of the table of scales. */
static inline int64_t grid_columns(const struct grid *g, int64_t k) { return g->columns ? g->columns : k; }
static inline int64_t grid_scale_rows(const struct grid *g, int64_t n) { return (n + g->rows - 1) / g->rows; }
static inline int64_t grid_scale_columns(const struct grid *g, int64_t k)
{
    return (k + grid_columns(g, k) - 1) / grid_columns(g, k);
}
/* Bits of a code, 4 or 8 (PLAIN: 0), and bytes of a stored scale. */
int grid_bits(enum element t);
int grid_scale_bytes(enum scale_type t);

/* The value of a code; exact in f32. */
float grid_value(enum element t, uint8_t code);
/* All 256 of them (16 that repeat, for codes of four bits). */
void grid_values(enum element t, float out[256]);
/* The code whose value is nearest to x, ties to even; beyond the ends the last one. x is not NaN. -0 keeps its sign
 * where the element has one. */
uint8_t grid_code(enum element t, float x);
/* The largest value, and the one that round-to-nearest scales a block's largest weight to: 6, 448, and 127.5 or 7.5,
 * half a step beyond the end that has the larger magnitude, as compressed-tensors does. */
float grid_most(enum element t);

/* The step of a stored scale. `global` is the divisor of SCALE_E4M3, ignored otherwise. */
float grid_step(enum scale_type t, uint32_t scale, float global);
/* The stored scale whose step is nearest to `step` >= 0 (E8M0: in the exponent), at least the least one that is used:
 * what kernels flush to zero is never chosen (E4M3: 2^-6, byte 0x08). A step that is zero, too small for the type or
 * not finite gives the scale of grid_empty. */
uint32_t grid_scale(enum scale_type t, float step, float global);
/* The scale of a block of zeros: 1.0, or byte 0x20 (0.125) of SCALE_E4M3. */
uint32_t grid_empty(enum scale_type t);
/* Round-to-nearest's scale of a block whose largest magnitude is `amax` (finite). E8M0 rounds the exponent down unless
 * the mantissa is at least 1.75 (export-formats 2.2). */
uint32_t grid_fit(const struct grid *g, float amax, float global);
/* Does round-to-nearest give a block of that largest magnitude no scale of its own? Then it has grid_empty's, and all
 * its codes are that of +0: zeros, or, under a scale that is f32 or bf16, denormals too small to have one. */
bool grid_is_empty(const struct grid *g, float amax);
/* NVFP4's divisor for weights or inputs of that largest magnitude: 2688 / amax, 2688 = 448 (largest E4M3) * 6 (largest
 * E2M1); 1 where that is no finite number. */
static inline float grid_global(float amax)
{
    float global = amax > 0.0f ? 2688.0f / amax : 1.0f;
    return global < f32_from_bits(0x7f800000u) ? global : 1.0f;
}

#endif
