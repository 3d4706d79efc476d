/* int8: 8-bit integers with an f32 multiplier per output row; inputs are quantized per token at run time
 * (export-formats 2.6). 8 + 32/K bits a weight.
 *
 *     w = weight * weight_scale[n]            in f32
 *
 *     weight        i8 [N, K]     two's complement
 *     weight_scale  f32 [N, 1]    max|row| / 127.5 */
#include "nodes/format/blocks.h"

static int parts(int64_t n, int64_t k, enum dtype source, struct format_part out[FORMAT_PARTS])
{
    (void)source;
    out[0] = (struct format_part){"weight", DTYPE_I8, 2, {n, k}};
    out[1] = (struct format_part){"weight_scale", DTYPE_F32, 2, {n, 1}};
    return 2;
}

const struct format format_int8 = {
    .name = "int8",
    .summary = "8-bit integers with a scale per row, inputs quantized per token (W8A8)",
    .act = ACT_INT8_TOKEN,
    .code = CODE_INT8,
    .k_multiple = 1,
    .group_format = "int-quantized",
    .weights_json = "{\"num_bits\":8,\"type\":\"int\",\"symmetric\":true,\"strategy\":\"channel\",\"dynamic\":false}",
    .input_json = "{\"num_bits\":8,\"type\":\"int\",\"symmetric\":true,\"strategy\":\"token\",\"dynamic\":true}",
    .parts = parts,
    .encode = blocks_encode_rendering,
    .decode = blocks_decode_rendering,
};
