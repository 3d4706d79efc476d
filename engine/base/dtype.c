#include "engine/base/dtype.h"

#include <math.h>
#include <string.h>

static const struct dtype_info table[DTYPE_COUNT] = {
    [DTYPE_F32] = {"f32", "F32", 4},          [DTYPE_F64] = {"f64", "F64", 8},
    [DTYPE_BF16] = {"bf16", "BF16", 2},       [DTYPE_F16] = {"f16", "F16", 2},
    [DTYPE_F8_E4M3] = {"f8_e4m3", "F8_E4M3", 1}, [DTYPE_F8_E8M0] = {"f8_e8m0", "F8_E8M0", 1},
    [DTYPE_U8] = {"u8", "U8", 1},             [DTYPE_I8] = {"i8", "I8", 1},
    [DTYPE_U16] = {"u16", "U16", 2},          [DTYPE_I16] = {"i16", "I16", 2},
    [DTYPE_U32] = {"u32", "U32", 4},          [DTYPE_I32] = {"i32", "I32", 4},
    [DTYPE_U64] = {"u64", "U64", 8},          [DTYPE_I64] = {"i64", "I64", 8},
    [DTYPE_BOOL] = {"bool", "BOOL", 1},
};

const struct dtype_info *dtype_info(enum dtype t) { return &table[t]; }

size_t dtype_bytes(enum dtype t) { return table[t].bytes; }

bool dtype_from_safetensors(const char *name, enum dtype *out)
{
    for (int t = 0; t < DTYPE_COUNT; t++)
        if (strcmp(table[t].safetensors, name) == 0) {
            *out = (enum dtype)t;
            return true;
        }
    return false;
}

float f16_to_f32(uint16_t x)
{
    uint32_t sign = (uint32_t)(x & 0x8000u) << 16, exponent = (x >> 10) & 31u, mantissa = x & 1023u;
    if (exponent == 31)
        return f32_from_bits(sign | 0x7f800000u | mantissa << 13);
    if (exponent == 0) {
        float m = ldexpf((float)mantissa, -24);
        return sign ? -m : m;
    }
    return f32_from_bits(sign | (exponent + 112) << 23 | mantissa << 13);
}

float e4m3_to_f32(uint8_t x)
{
    uint32_t exponent = (x >> 3) & 15u, mantissa = x & 7u;
    float m;
    if ((x & 0x7f) == 0x7f)
        return NAN;
    if (exponent == 0)
        m = (float)mantissa * 0x1p-9f;
    else
        m = f32_from_bits((exponent + 120) << 23 | mantissa << 20);
    return x & 0x80 ? -m : m;
}

uint8_t e4m3_from_f32(float x)
{
    uint8_t sign = f32_bits(x) >> 31 ? 0x80 : 0;
    float a = fabsf(x);
    if (a > 448.0f)
        a = 448.0f;
    if (a < 0x1p-6f) /* subnormal: steps of 2^-9; adding 1.5 * 2^14 rounds to them */
        return sign | (uint8_t)(f32_bits(a + 0x1.8p14f) & 15u);
    uint32_t u = f32_bits(a);
    u += 0x7ffffu + ((u >> 20) & 1u); /* to nearest even at 3 mantissa bits */
    return sign | (uint8_t)((u >> 20) - (120u << 3));
}

bool dtype_to_f32(enum dtype t, const void *src, size_t n, float *out, struct err *e)
{
    const unsigned char *p = src;
    uint16_t half;
    double wide;
    switch (t) {
    case DTYPE_F32:
        memcpy(out, src, n * sizeof *out);
        return true;
    case DTYPE_BF16:
        for (size_t i = 0; i < n; i++) {
            memcpy(&half, p + 2 * i, 2);
            out[i] = bf16_to_f32(half);
        }
        return true;
    case DTYPE_F16:
        for (size_t i = 0; i < n; i++) {
            memcpy(&half, p + 2 * i, 2);
            out[i] = f16_to_f32(half);
        }
        return true;
    case DTYPE_F64:
        for (size_t i = 0; i < n; i++) {
            memcpy(&wide, p + 8 * i, 8);
            out[i] = (float)wide;
        }
        return true;
    case DTYPE_F8_E4M3:
        for (size_t i = 0; i < n; i++)
            out[i] = e4m3_to_f32(p[i]);
        return true;
    default:
        return err_set(e, ERR_INPUT, "values of type %s cannot be read as f32", table[t].name);
    }
}
