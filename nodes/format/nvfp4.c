/* nvfp4 and nvfp4_a16: E2M1 codes in blocks of 16 along k, an E4M3 scale per block, an f32 divisor per unit
 * (export-formats 2.1). The two differ in how the server treats the input: W4A4 with a static global scale, or weights
 * only.
 *
 *     w = e2m1(code) * (e4m3(weight_scale) / weight_global_scale)          all in f32, in this order
 *
 * which is the order of compressed-tensors' dequantization, so that its f32 result has the same bits.
 * 4.5 bits a weight, and 4 (A16) or 8 bytes a matrix. Bits:
 *
 *     weight_packed        u8 [N, K/2]     byte j of a row:  7..4 code of k = 2j + 1   3..0 code of k = 2j
 *                                          code:             3 sign   2..0 index into {0, .5, 1, 1.5, 2, 3, 4, 6}
 *     weight_scale         e4m3 [N, K/16]  sign 0
 *     weight_global_scale  f32 [1]         2688 / max|w| of the unit; 2688 = 448 (largest E4M3) * 6 (largest E2M1) */
#include "nodes/format/format.h"

#include <string.h>

#define BLOCK 16
#define SCALE_ZERO_BLOCK 0x20 /* 0.125: what compressed-tensors writes where a scale would be zero */
#define SCALE_LEAST 0x08      /* 2^-6: kernels that run weights only flush smaller scales to zero */

static const float e2m1_value[16] = {0.0f,  0.5f,  1.0f,  1.5f,  2.0f,  3.0f,  4.0f,  6.0f,
                                     -0.0f, -0.5f, -1.0f, -1.5f, -2.0f, -3.0f, -4.0f, -6.0f};

/* Round to nearest, ties to the even index. The comparison that is strict sends a tie down, the other sends it up; what
 * is beyond 5 becomes 6, so that clamping to +-6 needs no step of its own. */
static uint8_t e2m1_code(float x)
{
    float a = x < 0.0f ? -x : x;
    int index = (a > 0.25f) + (a >= 0.75f) + (a > 1.25f) + (a >= 1.75f) + (a > 2.5f) + (a >= 3.5f) + (a > 5.0f);
    return (uint8_t)(index | (int)(f32_bits(x) >> 28 & 8u));
}

/* 1 where 2688 / amax is no finite number: then every scale is at its least and every code zero, which is what a unit
 * of denormals rounds to. */
static float global_scale(float amax)
{
    float gs = amax > 0.0f ? 2688.0f / amax : 1.0f;
    return gs < f32_from_bits(0x7f800000u) ? gs : 1.0f;
}

static void encode_block(const float *w, float gs, uint8_t *packed /* [8] */, uint8_t *scale)
{
    uint32_t most = 0;
    for (int i = 0; i < BLOCK; i++) {
        uint32_t bits = f32_bits(w[i]) & 0x7fffffffu;
        most = bits > most ? bits : most;
    }
    if (most == 0) {
        *scale = SCALE_ZERO_BLOCK;
        memset(packed, 0, BLOCK / 2);
        return;
    }
    uint8_t s = e4m3_from_f32(gs * (f32_from_bits(most) / 6.0f));
    *scale = s < SCALE_LEAST ? SCALE_LEAST : s;
    float step = e4m3_to_f32(*scale) / gs;
    uint8_t code[BLOCK];
    for (int i = 0; i < BLOCK; i++)
        code[i] = e2m1_code(w[i] / step);
    for (int j = 0; j < BLOCK / 2; j++)
        packed[j] = (uint8_t)(code[2 * j] | code[2 * j + 1] << 4);
}

static bool encode(const float *w, float amax, struct rendering *r, struct err *e)
{
    if (r->k % BLOCK)
        return err_set(e, ERR_BUG, "%s: K = %lld is no multiple of %d", r->format->name, (long long)r->k, BLOCK);
    float seen = 0.0f;
    if (!format_amax(w, r->n, r->k, &seen, e))
        return false;
    uint8_t *packed = r->part[0], *scale = r->part[1];
    float gs = global_scale(amax);
    memcpy(r->part[2], &gs, sizeof gs);
    int64_t n_blocks = r->n * (r->k / BLOCK);
    for (int64_t b = 0; b < n_blocks; b++)
        encode_block(w + b * BLOCK, gs, packed + b * (BLOCK / 2), scale + b);
    return true;
}

static void decode(const struct rendering *r, int64_t first, int64_t n, float *out)
{
    const uint8_t *packed = r->part[0], *scale = r->part[1];
    float gs;
    memcpy(&gs, r->part[2], sizeof gs);
    int64_t per_row = r->k / BLOCK;
    for (int64_t b = 0; b < n * per_row; b++) {
        float step = e4m3_to_f32(scale[first * per_row + b]) / gs;
        const uint8_t *p = packed + (first * per_row + b) * (BLOCK / 2);
        for (int j = 0; j < BLOCK / 2; j++) {
            out[b * BLOCK + 2 * j] = e2m1_value[p[j] & 15] * step;
            out[b * BLOCK + 2 * j + 1] = e2m1_value[p[j] >> 4] * step;
        }
    }
}

static int parts(int64_t n, int64_t k, enum dtype source, struct format_part out[FORMAT_PARTS])
{
    (void)source;
    int64_t blocks = (k + BLOCK - 1) / BLOCK;
    out[0] = (struct format_part){"weight_packed", DTYPE_U8, 2, {n, blocks * (BLOCK / 2)}};
    out[1] = (struct format_part){"weight_scale", DTYPE_F8_E4M3, 2, {n, blocks}};
    out[2] = (struct format_part){"weight_global_scale", DTYPE_F32, 1, {1}};
    return 3;
}

#define WEIGHTS_JSON \
    "{\"num_bits\":4,\"type\":\"float\",\"symmetric\":true,\"strategy\":\"tensor_group\",\"group_size\":16," \
    "\"dynamic\":false,\"scale_dtype\":\"torch.float8_e4m3fn\"}"
#define INPUT_JSON \
    "{\"num_bits\":4,\"type\":\"float\",\"symmetric\":true,\"strategy\":\"tensor_group\",\"group_size\":16," \
    "\"dynamic\":\"local\",\"scale_dtype\":\"torch.float8_e4m3fn\"}"

const struct format format_nvfp4 = {
    .name = "nvfp4",
    .summary = "4-bit floats in blocks of 16, inputs quantized likewise (W4A4)",
    .act = ACT_NVFP4,
    .code = CODE_NVFP4,
    .k_multiple = BLOCK,
    .shared_amax = true,
    .static_input_scale = true,
    .group_format = "nvfp4-pack-quantized",
    .weights_json = WEIGHTS_JSON,
    .input_json = INPUT_JSON,
    .parts = parts,
    .encode = encode,
    .decode = decode,
};

const struct format format_nvfp4_a16 = {
    .name = "nvfp4_a16",
    .summary = "4-bit floats in blocks of 16, inputs left alone (W4A16)",
    .act = ACT_NONE,
    .code = CODE_NVFP4,
    .k_multiple = BLOCK,
    .shared_amax = true,
    .group_format = "nvfp4-pack-quantized",
    .weights_json = WEIGHTS_JSON,
    .input_json = "null",
    .parts = parts,
    .encode = encode,
    .decode = decode,
};
