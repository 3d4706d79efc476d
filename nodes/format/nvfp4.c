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
#include "nodes/format/blocks.h"

#define BLOCK 16

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
    .encode = blocks_encode_rendering,
    .decode = blocks_decode_rendering,
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
    .encode = blocks_encode_rendering,
    .decode = blocks_decode_rendering,
};
