/* int8_a16: 8-bit integers with a bf16 multiplier per output row, packed four to a word; inputs are left alone
 * (export-formats 2.7). 8 + 16/K bits a weight, and 16 bytes a matrix.
 *
 *     w = code * weight_scale[n]            in f32
 *
 *     weight_packed  i32 [N, K/4]   bits 8i + 7..8i: code of k = 4j + i, with 128 added; so its bytes are in the
 *                                   order of k
 *     weight_scale   bf16 [N, 1]    max|row| / 127.5
 *     weight_shape   i64 [2]        N, K */
#include "nodes/format/blocks.h"

#define WORD 4 /* codes in one */

static int parts(int64_t n, int64_t k, enum dtype source, struct format_part out[FORMAT_PARTS])
{
    (void)source;
    out[0] = (struct format_part){"weight_packed", DTYPE_I32, 2, {n, (k + WORD - 1) / WORD}};
    out[1] = (struct format_part){"weight_scale", DTYPE_BF16, 2, {n, 1}};
    out[2] = (struct format_part){"weight_shape", DTYPE_I64, 1, {2}};
    return 3;
}

const struct format format_int8_a16 = {
    .name = "int8_a16",
    .summary = "8-bit integers with a scale per row, inputs left alone (W8A16)",
    .act = ACT_NONE,
    .code = CODE_INT8_PACKED,
    .k_multiple = WORD,
    .stores_shape = true,
    .group_format = "pack-quantized",
    .weights_json = "{\"num_bits\":8,\"type\":\"int\",\"symmetric\":true,\"strategy\":\"channel\",\"dynamic\":false}",
    .input_json = "null",
    .parts = parts,
    .encode = blocks_encode_rendering,
    .decode = blocks_decode_rendering,
};
