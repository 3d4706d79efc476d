/* The worked examples of export-formats 1.2 and 2, as the bytes that stand there and the weights that they are. */
#include <math.h>
#include <string.h>

#include "nodes/inspect/decoding.h"

#define MOST 48

struct example {
    const char *name;
    struct scheme scheme;
    enum dtype scale_dtype;
    int64_t k;                 /* columns */
    unsigned char codes[MOST], scales[8];
    float global;
    int n;                     /* weights that are told; the rest are zeros */
    float weights[MOST];
};

static const struct example examples[] = {
    {"NVFP4-A", {.kind = SCHEME_NVFP4}, DTYPE_F8_E4M3, 48,
     {0xf7, 0x66, 0x44, 0x22, 0x80, 0xe0, 0x1e, 0x6b, 0xd7, 0x42, 0x1e, 0x60, 0x2f, 0xb5, 0x97, 0x60},
     {0x7e, 0x67, 0x20}, 3584.0f, 32,
     {.75f, -.75f, .5f, .5f, .25f, .25f, .125f, .125f, 0, -0.0f, 0, -.5f, -.5f, .0625f, -.1875f, .5f,
      .100446425f, -.0502232127f, .0167410709f, .0334821418f, -.0669642836f, .00837053545f, 0, .0669642836f,
      -.100446425f, .0167410709f, .0502232127f, -.0251116063f, .100446425f, -.00837053545f, 0, .0669642836f}},
    {"MXFP4-A", {.kind = SCHEME_MXFP4}, DTYPE_U8, 32, {0xe7, 0x24, 0x68, 0x3e}, {0x7c}, 1, 8,
     {.75f, -.5f, .25f, .125f, -0.0f, .5f, -.5f, .1875f}},
    {"MXFP4-B", {.kind = SCHEME_MXFP4}, DTYPE_U8, 32, {0xc6, 0x12, 0x48, 0x2d}, {0x7d}, 1, 8,
     {1.0f, -.5f, .25f, .125f, -0.0f, .5f, -.75f, .25f}},
    {"FP8-A", {.kind = SCHEME_FP8}, DTYPE_F32, 10, {0x7e, 0xfe, 0x70, 0xe2, 0x50, 0x3a, 0x80, 0x78, 0x30, 0x03},
     {0x00, 0x00, 0x00, 0x3c}, 1, 10,
     {3.5f, -3.5f, 1, -.3125f, .0625f, .009765625f, -0.0f, 2, .00390625f, 4.57763671875e-5f}},
    {"FP8-B", {.kind = SCHEME_FP8}, DTYPE_F32, 6, {0x7e, 0xfa, 0x76, 0x66, 0xd6, 0x45}, {0x25, 0x49, 0x6a, 0x39}, 1, 6,
     {.100097659f, -.0714983279f, .0500488295f, .0125122074f, -.00312805185f, .000726154893f}},
    {"MXFP8-A", {.kind = SCHEME_MXFP8}, DTYPE_U8, 32, {0x7c, 0xf8, 0x72, 0x65, 0xd8, 0x30, 0x95}, {0x76}, 1, 7,
     {.75f, -.5f, .3125f, .1015625f, -.03125f, .0009765625f, -9.918212890625e-5f}},
    {"INT8-A", {.kind = SCHEME_INT8}, DTYPE_F32, 8, {0x7f, 0x81, 0x40, 0xe0, 0x0d, 0x01, 0x00, 0x9e},
     {0x81, 0x80, 0x00, 0x3c}, 1, 8,
     {.99607849f, -.99607849f, .501960814f, -.250980407f, .10196079f, .00784313772f, 0, -.768627496f}},
    {"INT4-A", {.kind = SCHEME_PACKED, .bits = 4, .group = 32}, DTYPE_BF16, 32,
     {0x1f, 0x69, 0x8b, 0x82, 0x88, 0x88, 0x88, 0x88, 0x88, 0x88, 0x88, 0x88, 0x88, 0x88, 0x88, 0x88}, {0xcd, 0x3d}, 1,
     8, {.70068359375f, -.70068359375f, .10009765625f, -.2001953125f, .30029296875f, 0, -.6005859375f, 0}},
    {"the word of 2.7", {.kind = SCHEME_PACKED, .bits = 8, .group = -1}, DTYPE_BF16, 4, {0x81, 0x7f, 0xff, 0x00},
     {0x80, 0x3f}, 1, 4, {1, -1, 127, -128}},
};

/* Spot checks of 1.2. */
static const struct {
    unsigned byte;
    double value;
} bytes[] = {{0x7e, 448}, {0x08, 0x1p-6}, {0x01, 0x1p-9}, {0x02, 0x1p-8}, {0x38, 1}, {0x58, 16}, {0x5a, 20},
             {0x20, 0.125}, {0xfe, -448}};

/* The examples were computed in f32, one rounding behind each operation. */
static bool is_close(double a, float b) { return fabs(a - (double)b) <= 1.5e-7 * fabs((double)b); }

static bool holds(const struct example *x)
{
    struct decoding d;
    double out[MOST];
    decoding_init(&d, &x->scheme, x->scale_dtype, x->k, x->global);
    decoding_run(&d, x->codes, x->scales, 0, x->k, out);
    for (int i = 0; i < x->k; i++)
        if (!is_close(out[i], i < x->n ? x->weights[i] : 0.0f))
            return false;
    return true;
}

bool decoding_examples(const char **what)
{
    for (size_t i = 0; i < sizeof bytes / sizeof *bytes; i++)
        if (decode_e4m3(bytes[i].byte) != bytes[i].value) {
            *what = "the spot checks of E4M3";
            return false;
        }
    for (size_t i = 0; i < sizeof examples / sizeof *examples; i++)
        if (!holds(&examples[i])) {
            *what = examples[i].name;
            return false;
        }
    return true;
}
