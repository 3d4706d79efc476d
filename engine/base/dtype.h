#ifndef ENGINE_BASE_DTYPE_H
#define ENGINE_BASE_DTYPE_H
/* The table of number formats that files and tensors use, and the conversions of single values. */
#include <stddef.h>
#include <stdint.h>

#include "engine/base/err.h"

enum dtype {
    DTYPE_F32, DTYPE_F64, DTYPE_BF16, DTYPE_F16, DTYPE_F8_E4M3, DTYPE_F8_E8M0,
    DTYPE_U8, DTYPE_I8, DTYPE_U16, DTYPE_I16, DTYPE_U32, DTYPE_I32, DTYPE_U64, DTYPE_I64, DTYPE_BOOL,
    DTYPE_COUNT
};

struct dtype_info {
    const char *name;        /* "bf16": the engine's name, written as the `dtype` attribute of every dataset */
    const char *safetensors; /* "BF16" */
    size_t bytes;
};
const struct dtype_info *dtype_info(enum dtype t);
size_t dtype_bytes(enum dtype t);
/* False when no dtype has that safetensors name. */
bool dtype_from_safetensors(const char *name, enum dtype *out) ERR_CHECK;

static inline float f32_from_bits(uint32_t bits) { union { uint32_t u; float f; } v = {.u = bits}; return v.f; }
static inline uint32_t f32_bits(float x) { union { float f; uint32_t u; } v = {.f = x}; return v.u; }
static inline float bf16_to_f32(uint16_t x) { return f32_from_bits((uint32_t)x << 16); }
/* Round to nearest, ties to even; NaN stays NaN. */
static inline uint16_t bf16_from_f32(float x)
{
    uint32_t u = f32_bits(x);
    if ((u & 0x7fffffffu) > 0x7f800000u)
        return (uint16_t)((u >> 16) | 0x40u);
    return (uint16_t)((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
}
float f16_to_f32(uint16_t x);
/* E4M3FN, see export-formats 1.2: 0x7f and 0xff are NaN. */
float e4m3_to_f32(uint8_t x);
/* Clamp to +-448, then round to nearest even. The argument is not NaN. */
uint8_t e4m3_from_f32(float x);
/* `n` values of any float dtype (f32, bf16, f16, f64, f8_e4m3) widened to f32. `src` need not be aligned. */
bool dtype_to_f32(enum dtype t, const void *src, size_t n, float *out, struct err *e) ERR_CHECK;

#endif
