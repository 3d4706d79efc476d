/* fp8: E4M3 weights with an f32 multiplier per output row; inputs are quantized per token at run time
 * (export-formats 2.3). 8 + 32/K bits a weight.
 *
 *     w = e4m3(weight) * weight_scale[n]            in f32
 *
 *     weight        e4m3 [N, K]   7 sign   6..3 exponent (bias 7)   2..0 mantissa
 *     weight_scale  f32 [N, 1]    max|row| / 448 */
#include "nodes/format/format.h"

#include <string.h>

static void encode_row(const float *w, int64_t k, uint8_t *code, float *scale)
{
    uint32_t most = 0;
    for (int64_t i = 0; i < k; i++) {
        uint32_t bits = f32_bits(w[i]) & 0x7fffffffu;
        most = bits > most ? bits : most;
    }
    float s = f32_from_bits(most) / 448.0f;
    if (!(s > 0.0f)) { /* a row of zeros, or of denormals too small to have a scale */
        *scale = 1.0f;
        memset(code, 0, (size_t)k);
        return;
    }
    *scale = s;
    for (int64_t i = 0; i < k; i++)
        code[i] = e4m3_from_f32(w[i] / s);
}

static bool encode(const float *w, float amax, struct rendering *r, struct err *e)
{
    (void)amax;
    float seen = 0.0f;
    if (!format_amax(w, r->n, r->k, &seen, e))
        return false;
    uint8_t *code = r->part[0];
    float *scale = r->part[1];
    for (int64_t row = 0; row < r->n; row++)
        encode_row(w + row * r->k, r->k, code + row * r->k, scale + row);
    return true;
}

static void decode(const struct rendering *r, int64_t first, int64_t n, float *out)
{
    const uint8_t *code = (const uint8_t *)r->part[0] + first * r->k;
    const float *scale = (const float *)r->part[1] + first;
    float value[256];
    for (int i = 0; i < 256; i++)
        value[i] = e4m3_to_f32((uint8_t)i);
    for (int64_t row = 0; row < n; row++)
        for (int64_t i = 0; i < r->k; i++)
            out[row * r->k + i] = value[code[row * r->k + i]] * scale[row];
}

static int parts(int64_t n, int64_t k, enum dtype source, struct format_part out[FORMAT_PARTS])
{
    (void)source;
    out[0] = (struct format_part){"weight", DTYPE_F8_E4M3, 2, {n, k}};
    out[1] = (struct format_part){"weight_scale", DTYPE_F32, 2, {n, 1}};
    return 2;
}

const struct format format_fp8 = {
    .name = "fp8",
    .summary = "8-bit floats with a scale per row, inputs quantized per token (W8A8)",
    .act = ACT_FP8_TOKEN,
    .code = CODE_FP8,
    .k_multiple = 1,
    .group_format = "float-quantized",
    .weights_json = "{\"num_bits\":8,\"type\":\"float\",\"symmetric\":true,\"strategy\":\"channel\",\"dynamic\":false}",
    .input_json = "{\"num_bits\":8,\"type\":\"float\",\"symmetric\":true,\"strategy\":\"token\",\"dynamic\":true}",
    .parts = parts,
    .encode = encode,
    .decode = decode,
};
