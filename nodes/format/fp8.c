/* fp8 and fp8_a16: E4M3 weights with an f32 multiplier per output row; inputs are quantized per token at run time, or
 * left alone (export-formats 2.3). 8 + 32/K bits a weight.
 *
 *     w = e4m3(weight) * weight_scale[n]            in f32
 *
 *     weight        e4m3 [N, K]   7 sign   6..3 exponent (bias 7)   2..0 mantissa
 *     weight_scale  f32 [N, 1]    max|row| / 448 */
#include "nodes/format/blocks.h"

static int parts(int64_t n, int64_t k, enum dtype source, struct format_part out[FORMAT_PARTS])
{
    (void)source;
    out[0] = (struct format_part){"weight", DTYPE_F8_E4M3, 2, {n, k}};
    out[1] = (struct format_part){"weight_scale", DTYPE_F32, 2, {n, 1}};
    return 2;
}

#define WEIGHTS_JSON "{\"num_bits\":8,\"type\":\"float\",\"symmetric\":true,\"strategy\":\"channel\",\"dynamic\":false}"
#define INPUT_JSON "{\"num_bits\":8,\"type\":\"float\",\"symmetric\":true,\"strategy\":\"token\",\"dynamic\":true}"

const struct format format_fp8 = {
    .name = "fp8",
    .summary = "8-bit floats with a scale per row, inputs quantized per token (W8A8)",
    .act = ACT_FP8_TOKEN,
    .code = CODE_FP8,
    .k_multiple = 1,
    .group_format = "float-quantized",
    .weights_json = WEIGHTS_JSON,
    .input_json = INPUT_JSON,
    .parts = parts,
    .encode = blocks_encode_rendering,
    .decode = blocks_decode_rendering,
};

const struct format format_fp8_a16 = {
    .name = "fp8_a16",
    .summary = "8-bit floats with a scale per row, inputs left alone (W8A16)",
    .act = ACT_NONE,
    .code = CODE_FP8,
    .k_multiple = 1,
    .group_format = "float-quantized",
    .weights_json = WEIGHTS_JSON,
    .input_json = "null",
    .parts = parts,
    .encode = blocks_encode_rendering,
    .decode = blocks_decode_rendering,
};
