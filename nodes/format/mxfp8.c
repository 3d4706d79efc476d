/* mxfp8 and mxfp8_a16: E4M3 codes in blocks of 32 along k with a power of two per block (export-formats 2.5). Where the
 * GPU multiplies MXFP8 (Blackwell) the server quantizes the inputs likewise; elsewhere it leaves them alone.
 *
 *     w = e4m3(weight) * 2^(weight_scale - 127)
 *
 * 8.25 bits a weight. Bits:
 *
 *     weight        e4m3 [N, K]   7 sign   6..3 exponent (bias 7)   2..0 mantissa
 *     weight_scale  u8 [N, K/32]  the exponent, 0..254 */
#include "nodes/format/blocks.h"

#define BLOCK 32

static int parts(int64_t n, int64_t k, enum dtype source, struct format_part out[FORMAT_PARTS])
{
    (void)source;
    out[0] = (struct format_part){"weight", DTYPE_F8_E4M3, 2, {n, k}};
    out[1] = (struct format_part){"weight_scale", DTYPE_U8, 2, {n, (k + BLOCK - 1) / BLOCK}};
    return 2;
}

#define WEIGHTS_JSON \
    "{\"num_bits\":8,\"type\":\"float\",\"symmetric\":true,\"strategy\":\"group\",\"group_size\":32," \
    "\"dynamic\":false,\"scale_dtype\":\"torch.uint8\"}"
#define INPUT_JSON \
    "{\"num_bits\":8,\"type\":\"float\",\"symmetric\":true,\"strategy\":\"group\",\"group_size\":32," \
    "\"dynamic\":true,\"scale_dtype\":\"torch.uint8\"}"

const struct format format_mxfp8 = {
    .name = "mxfp8",
    .summary = "8-bit floats in blocks of 32 with powers of two, inputs quantized likewise (W8A8)",
    .act = ACT_MXFP8,
    .code = CODE_MXFP8,
    .k_multiple = BLOCK,
    .group_format = "mxfp8-quantized",
    .weights_json = WEIGHTS_JSON,
    .input_json = INPUT_JSON,
    .parts = parts,
    .encode = blocks_encode_rendering,
    .decode = blocks_decode_rendering,
};

const struct format format_mxfp8_a16 = {
    .name = "mxfp8_a16",
    .summary = "8-bit floats in blocks of 32 with powers of two, inputs left alone (W8A16)",
    .act = ACT_NONE,
    .code = CODE_MXFP8,
    .k_multiple = BLOCK,
    .group_format = "mxfp8-quantized",
    .weights_json = WEIGHTS_JSON,
    .input_json = "null",
    .parts = parts,
    .encode = blocks_encode_rendering,
    .decode = blocks_decode_rendering,
};
