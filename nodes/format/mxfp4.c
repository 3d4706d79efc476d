/* mxfp4 and mxfp4_a16: E2M1 codes in blocks of 32 along k with a power of two per block (export-formats 2.2). The
 * server quantizes the inputs likewise where its GPU multiplies MXFP4 (Blackwell), whatever config.json says of them,
 * and leaves them alone elsewhere: which of the two a checkpoint is, is the serving profile's to say.
 *
 *     w = e2m1(code) * 2^(weight_scale - 127)
 *
 * 4.25 bits a weight. Bits:
 *
 *     weight_packed  u8 [N, K/2]   as nvfp4's
 *     weight_scale   u8 [N, K/32]  the exponent, 0..254 */
#include "nodes/format/blocks.h"

#define BLOCK 32

static int parts(int64_t n, int64_t k, enum dtype source, struct format_part out[FORMAT_PARTS])
{
    (void)source;
    int64_t blocks = (k + BLOCK - 1) / BLOCK;
    out[0] = (struct format_part){"weight_packed", DTYPE_U8, 2, {n, blocks * (BLOCK / 2)}};
    out[1] = (struct format_part){"weight_scale", DTYPE_U8, 2, {n, blocks}};
    return 2;
}

#define WEIGHTS_JSON \
    "{\"num_bits\":4,\"type\":\"float\",\"symmetric\":true,\"strategy\":\"group\",\"group_size\":32," \
    "\"dynamic\":false,\"scale_dtype\":\"torch.uint8\"}"
#define INPUT_JSON \
    "{\"num_bits\":4,\"type\":\"float\",\"symmetric\":true,\"strategy\":\"group\",\"group_size\":32," \
    "\"dynamic\":true,\"scale_dtype\":\"torch.uint8\"}"

const struct format format_mxfp4 = {
    .name = "mxfp4",
    .summary = "4-bit floats in blocks of 32 with powers of two, inputs quantized likewise (W4A4)",
    .act = ACT_MXFP4,
    .code = CODE_MXFP4,
    .k_multiple = BLOCK,
    .group_format = "mxfp4-pack-quantized",
    .weights_json = WEIGHTS_JSON,
    .input_json = INPUT_JSON,
    .parts = parts,
    .encode = blocks_encode_rendering,
    .decode = blocks_decode_rendering,
};

const struct format format_mxfp4_a16 = {
    .name = "mxfp4_a16",
    .summary = "4-bit floats in blocks of 32 with powers of two, inputs left alone (W4A16)",
    .act = ACT_NONE,
    .code = CODE_MXFP4,
    .k_multiple = BLOCK,
    .group_format = "mxfp4-pack-quantized",
    .weights_json = WEIGHTS_JSON,
    .input_json = "null",
    .parts = parts,
    .encode = blocks_encode_rendering,
    .decode = blocks_decode_rendering,
};
