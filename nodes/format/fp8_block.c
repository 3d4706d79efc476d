/* fp8_block: E4M3 weights with an f32 multiplier per tile of 128 x 128; inputs are quantized per token and 128 values
 * at run time (export-formats 2.4). A tile at the matrix' edge has the weights that are there. 8.002 bits a weight.
 *
 *     w = e4m3(weight) * weight_scale[n / 128][k / 128]            in f32
 *
 *     weight        e4m3 [N, K]                            7 sign   6..3 exponent (bias 7)   2..0 mantissa
 *     weight_scale  f32 [ceil(N / 128), ceil(K / 128)]     max|tile| / 448 */
#include "nodes/format/blocks.h"

#define TILE 128

static int parts(int64_t n, int64_t k, enum dtype source, struct format_part out[FORMAT_PARTS])
{
    (void)source;
    out[0] = (struct format_part){"weight", DTYPE_F8_E4M3, 2, {n, k}};
    out[1] = (struct format_part){"weight_scale", DTYPE_F32, 2, {(n + TILE - 1) / TILE, (k + TILE - 1) / TILE}};
    return 2;
}

#define WEIGHTS_JSON \
    "{\"num_bits\":8,\"type\":\"float\",\"symmetric\":true,\"strategy\":\"block\",\"block_structure\":[128,128]," \
    "\"dynamic\":false}"
#define INPUT_JSON \
    "{\"num_bits\":8,\"type\":\"float\",\"symmetric\":true,\"strategy\":\"group\",\"group_size\":128,\"dynamic\":true}"

const struct format format_fp8_block = {
    .name = "fp8_block",
    .summary = "8-bit floats with a scale per tile of 128 x 128, inputs quantized per 128 values (W8A8)",
    .act = ACT_FP8_GROUP,
    .code = CODE_FP8_BLOCK,
    .k_multiple = 1,
    .group_format = "float-quantized",
    .weights_json = WEIGHTS_JSON,
    .input_json = INPUT_JSON,
    .parts = parts,
    .encode = blocks_encode_rendering,
    .decode = blocks_decode_rendering,
};
