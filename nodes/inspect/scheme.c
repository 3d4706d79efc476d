#include "nodes/inspect/scheme.h"

#include <stdio.h>
#include <string.h>

/* A line per kind: how it is called, what the group's `format` must be, and the error to be expected. */
static const struct {
    const char *name, *format;
    double error;
} table[] = {
    [SCHEME_PLAIN] = {"plain", NULL, 0},
    [SCHEME_NVFP4] = {"nvfp4", "nvfp4-pack-quantized", 0.095},
    [SCHEME_MXFP4] = {"mxfp4", "mxfp4-pack-quantized", 0.1125},
    [SCHEME_FP8] = {"fp8", "float-quantized", 0.0265},
    [SCHEME_FP8_BLOCK] = {"fp8_block", "float-quantized", 0.0265},
    [SCHEME_MXFP8] = {"mxfp8", "mxfp8-quantized", 0.0266},
    [SCHEME_INT8] = {"int8", "int-quantized", 0.0086},
    [SCHEME_PACKED] = {"int", "pack-quantized", 0},
    [SCHEME_OTHER] = {"other", NULL, 0},
    [SCHEME_NONE] = {"none", NULL, 0},
};

const char *scheme_name(const struct scheme *s, char out[40])
{
    if (s->kind != SCHEME_PACKED) {
        snprintf(out, 40, "%s%s", table[s->kind].name, s->weight_only ? "_a16" : "");
        return out;
    }
    int n = snprintf(out, 40, "int%d%s", s->bits, s->bits == 8 ? "_a16" : "");
    if (s->group > 0)
        snprintf(out + n, 40 - (size_t)n, "_g%lld", (long long)s->group);
    else if (s->bits != 8)
        snprintf(out + n, 40 - (size_t)n, "_channel");
    return out;
}

bool scheme_stores_alike(const struct scheme *a, const struct scheme *b)
{
    return a->kind == b->kind && (a->kind != SCHEME_PACKED || (a->bits == b->bits && a->group == b->group));
}

bool scheme_equal(const struct scheme *a, const struct scheme *b)
{
    return scheme_stores_alike(a, b) && a->weight_only == b->weight_only;
}

int64_t scheme_columns(const struct scheme *s, int64_t k)
{
    switch (s->kind) {
    case SCHEME_NVFP4: return 16;
    case SCHEME_MXFP4:
    case SCHEME_MXFP8: return 32;
    case SCHEME_FP8_BLOCK: return 128;
    case SCHEME_PACKED: return s->group > 0 ? s->group : k;
    default: return k;
    }
}

/* How many pieces of `size` cover n. */
static int64_t pieces(int64_t n, int64_t size) { return size > 0 ? n / size + (n % size != 0) : 1; }

int scheme_parts(const struct scheme *s, int64_t n, int64_t k, struct scheme_part out[SCHEME_PARTS])
{
    const unsigned f32 = DTYPES(DTYPE_F32), half = DTYPES(DTYPE_BF16) | DTYPES(DTYPE_F16), u8 = DTYPES(DTYPE_U8);
    const unsigned e4m3 = DTYPES(DTYPE_F8_E4M3);
    const int64_t scales = pieces(k, scheme_columns(s, k));
    int count = 0;
    switch (s->kind) {
    case SCHEME_NVFP4:
        out[count++] = (struct scheme_part){"weight_packed", u8, 2, {n, k / 2}};
        out[count++] = (struct scheme_part){"weight_scale", e4m3, 2, {n, scales}};
        out[count++] = (struct scheme_part){"weight_global_scale", f32, 1, {1}};
        if (!s->weight_only)
            out[count++] = (struct scheme_part){"input_global_scale", f32, 1, {1}};
        break;
    case SCHEME_MXFP4:
        out[count++] = (struct scheme_part){"weight_packed", u8, 2, {n, k / 2}};
        out[count++] = (struct scheme_part){"weight_scale", u8, 2, {n, scales}};
        break;
    case SCHEME_FP8:
    case SCHEME_INT8:
        out[count++] = (struct scheme_part){"weight", s->kind == SCHEME_FP8 ? e4m3 : DTYPES(DTYPE_I8), 2, {n, k}};
        out[count++] = (struct scheme_part){"weight_scale", f32 | half, 2, {n, 1}};
        break;
    case SCHEME_FP8_BLOCK:
        out[count++] = (struct scheme_part){"weight", e4m3, 2, {n, k}};
        out[count++] = (struct scheme_part){"weight_scale", f32 | half, 2, {pieces(n, 128), scales}};
        break;
    case SCHEME_MXFP8:
        out[count++] = (struct scheme_part){"weight", e4m3, 2, {n, k}};
        out[count++] = (struct scheme_part){"weight_scale", u8, 2, {n, scales}};
        break;
    case SCHEME_PACKED:
        out[count++] = (struct scheme_part){"weight_packed", DTYPES(DTYPE_I32), 2, {n, pieces(k, 32 / s->bits)}};
        out[count++] = (struct scheme_part){"weight_scale", half, 2, {n, scales}};
        out[count++] = (struct scheme_part){"weight_shape", DTYPES(DTYPE_I64), 1, {2}};
        break;
    default: break;
    }
    return count;
}

double scheme_error(const struct scheme *s)
{
    if (s->kind != SCHEME_PACKED)
        return table[s->kind].error;
    if (s->bits == 8)
        return s->group > 0 ? 0.0065 : 0.0086;
    /* The last, of a whole row, by the same rule: a Gaussian row of 4096 reaches 3.7 deviations, so that a step is 0.49
     * of one, and its error 0.49 / sqrt(12). */
    return s->group <= 0 || s->group > 128 ? 0.142 : s->group > 64 ? 0.110 : s->group > 32 ? 0.102 : 0.094;
}

const char *scheme_format(const struct scheme *s) { return table[s->kind].format; }
