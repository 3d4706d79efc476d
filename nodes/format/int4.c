/* int4_g32, int4_g64 and int4_g128: 4-bit integers with a bf16 multiplier per group of columns, packed eight to a word;
 * inputs are left alone (export-formats 2.8). 4 + 16/group bits a weight, and 16 bytes a matrix.
 *
 *     w = code * weight_scale[n][k / group]            in f32
 *
 *     weight_packed  i32 [N, K/8]        bits 4i + 3..4i: code of k = 8j + i, with 8 added; so the lower k is
 *                                        in a byte's low half
 *     weight_scale   bf16 [N, K/group]   max|group| / 7.5
 *     weight_shape   i64 [2]             N, K */
#include "nodes/format/blocks.h"

#define WORD 8 /* codes in one */

static int parts(int64_t n, int64_t k, int64_t group, struct format_part out[FORMAT_PARTS])
{
    int64_t groups = (k + group - 1) / group;
    out[0] = (struct format_part){"weight_packed", DTYPE_I32, 2, {n, groups * group / WORD}};
    out[1] = (struct format_part){"weight_scale", DTYPE_BF16, 2, {n, groups}};
    out[2] = (struct format_part){"weight_shape", DTYPE_I64, 1, {2}};
    return 3;
}

/* One format of that group size. */
#define FORMAT(group)                                                                                                  \
    static int parts_##group(int64_t n, int64_t k, enum dtype source, struct format_part out[FORMAT_PARTS])            \
    {                                                                                                                  \
        (void)source;                                                                                                  \
        return parts(n, k, group, out);                                                                                \
    }                                                                                                                  \
    const struct format format_int4_g##group = {                                                                       \
        .name = "int4_g" #group,                                                                                       \
        .summary = "4-bit integers in groups of " #group ", inputs left alone (W4A16)",                                \
        .act = ACT_NONE,                                                                                               \
        .code = CODE_INT4_G##group,                                                                                    \
        .k_multiple = group,                                                                                           \
        .stores_shape = true,                                                                                          \
        .group_format = "pack-quantized",                                                                              \
        .weights_json = "{\"num_bits\":4,\"type\":\"int\",\"symmetric\":true,\"strategy\":\"group\","                       \
                        "\"group_size\":" #group ",\"dynamic\":false}",                                                                         \
        .input_json = "null",                                                                                          \
        .parts = parts_##group,                                                                                        \
        .encode = blocks_encode_rendering,                                                                             \
        .decode = blocks_decode_rendering,                                                                             \
    }
FORMAT(32);
FORMAT(64);
FORMAT(128);
