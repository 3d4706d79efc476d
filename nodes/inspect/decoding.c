#include "nodes/inspect/decoding.h"

#include <math.h>
#include <string.h>

double decode_e2m1(unsigned code)
{
    static const double magnitude[8] = {0, 0.5, 1, 1.5, 2, 3, 4, 6};
    double m = magnitude[code & 7];
    return code & 8 ? -m : m;
}

/* s eeee mmm, bias 7, no infinities. */
double decode_e4m3(unsigned byte)
{
    int exponent = byte >> 3 & 15, mantissa = byte & 7;
    double m = exponent ? ldexp(8 + mantissa, exponent - 10) : ldexp(mantissa, -9);
    if ((byte & 0x7f) == 0x7f)
        return NAN;
    return byte & 0x80 ? -m : m;
}

static bool is_4_bits(const struct scheme *s)
{
    return s->kind == SCHEME_NVFP4 || s->kind == SCHEME_MXFP4 || (s->kind == SCHEME_PACKED && s->bits == 4);
}

int64_t decoding_code_bytes(const struct decoding *d, int64_t count)
{
    return is_4_bits(&d->scheme) ? count / 2 + count % 2 : count;
}

size_t decoding_scale_bytes(const struct decoding *d) { return dtype_bytes(d->scale_dtype); }

/* A value of 16 bits with `e` exponent and `m` mantissa bits, or of 32. */
static double half_value(unsigned bits, int e, int m)
{
    unsigned mantissa = bits & ((1u << m) - 1), exponent = bits >> m & ((1u << e) - 1);
    int bias = (1 << (e - 1)) - 1;
    double v = exponent == 0 ? ldexp(mantissa, 1 - bias - m)
                             : ldexp((double)(mantissa + (1u << m)), (int)exponent - bias - m);
    if (exponent == (1u << e) - 1)
        v = mantissa ? NAN : INFINITY;
    return bits >> 15 ? -v : v;
}

double decoding_scale(const struct decoding *d, const unsigned char *scale)
{
    float f;
    switch (d->scale_dtype) {
    case DTYPE_F8_E4M3:
    case DTYPE_U8: return d->scale_value[*scale];
    case DTYPE_BF16: return half_value(scale[0] | (unsigned)scale[1] << 8, 8, 7);
    case DTYPE_F16: return half_value(scale[0] | (unsigned)scale[1] << 8, 5, 10);
    default: memcpy(&f, scale, sizeof f); return (double)f;
    }
}

static double code_value(const struct scheme *s, int c)
{
    switch (s->kind) {
    case SCHEME_NVFP4:
    case SCHEME_MXFP4: return decode_e2m1((unsigned)c & 15);
    case SCHEME_PACKED: return s->bits == 4 ? (c & 15) - 8 : c - 128;
    case SCHEME_INT8: return c < 128 ? c : c - 256;
    default: return decode_e4m3((unsigned)c);
    }
}

void decoding_init(struct decoding *d, const struct scheme *s, enum dtype scale_dtype, int64_t k, float global)
{
    int64_t columns = scheme_columns(s, k);
    *d = (struct decoding){.scheme = *s, .scale_dtype = scale_dtype, .columns = columns < k ? columns : 0,
                           .global = s->kind == SCHEME_NVFP4 ? (double)global : 1.0};
    for (int i = 0; i < 256; i++) {
        d->code_value[i] = code_value(s, i);
        d->scale_value[i] = scale_dtype == DTYPE_F8_E4M3 ? decode_e4m3((unsigned)i)
                            : i == 255                   ? (double)NAN
                                                         : ldexp(1, i - 127);
    }
}

void decoding_run(const struct decoding *d, const unsigned char *codes, const unsigned char *scales, int64_t first,
                  int64_t count, double *out)
{
    const bool small = is_4_bits(&d->scheme);
    const size_t step = decoding_scale_bytes(d);
    for (int64_t i = 0; i < count;) {
        int64_t group = d->columns ? (first + i) / d->columns - first / d->columns : 0;
        int64_t end = d->columns ? ((first + i) / d->columns + 1) * d->columns - first : count;
        double scale = decoding_scale(d, scales + (size_t)group * step) / d->global;
        end = end < count ? end : count;
        for (; i < end; i++) {
            unsigned code = small ? codes[i / 2] >> (i % 2 ? 4 : 0) & 15u : codes[i];
            out[i] = d->code_value[code] * scale;
        }
    }
}
