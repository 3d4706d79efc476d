/* bf16: the matrix as the source has it, byte for byte, whatever its dtype; the name is what a unit is called that is
 * left alone. Encoding from f32 gives the source's bytes back, because widening them lost nothing.
 *
 *     w = the source's value, widened to f32 */
#include "nodes/format/format.h"

#include <string.h>

/* Round to nearest, ties to even; what is too large becomes infinite. The argument is finite. */
static uint16_t f16_from_f32(float x)
{
    uint32_t u = f32_bits(x), sign = u >> 16 & 0x8000u, magnitude = u & 0x7fffffffu;
    if (magnitude >= 0x477ff000u) /* from 65520 on */
        return (uint16_t)(sign | 0x7c00u);
    if (magnitude < 0x38800000u) {
        /* Below 2^-14 the result counts steps of 2^-24; adding 0.5 puts that step at the last bit of an f32. */
        float shifted = f32_from_bits(magnitude) + 0.5f;
        return (uint16_t)(sign | (f32_bits(shifted) - 0x3f000000u));
    }
    magnitude += 0xfffu + (magnitude >> 13 & 1u);
    return (uint16_t)(sign | ((magnitude - 0x38000000u) >> 13));
}

static bool encode(const float *w, float amax, struct rendering *r, struct err *e)
{
    (void)amax;
    float seen = 0.0f;
    if (!format_amax(w, r->n, r->k, &seen, e))
        return false;
    int64_t count = r->n * r->k;
    switch (r->source) {
    case DTYPE_F32:
        memcpy(r->part[0], w, (size_t)count * sizeof *w);
        return true;
    case DTYPE_F64:
        for (int64_t i = 0; i < count; i++)
            ((double *)r->part[0])[i] = (double)w[i];
        return true;
    case DTYPE_BF16:
        for (int64_t i = 0; i < count; i++)
            ((uint16_t *)r->part[0])[i] = bf16_from_f32(w[i]);
        return true;
    case DTYPE_F16:
        for (int64_t i = 0; i < count; i++)
            ((uint16_t *)r->part[0])[i] = f16_from_f32(w[i]);
        return true;
    default:
        return err_set(e, ERR_INPUT, "a weight of dtype %s cannot be kept as it is; f32, f64, bf16 or f16 can",
                       dtype_info(r->source)->name);
    }
}

static void decode(const struct rendering *r, int64_t first, int64_t n, float *out)
{
    const char *src = (const char *)r->part[0] + (size_t)(first * r->k) * dtype_bytes(r->source);
    /* Fails only for a dtype that encode and the model's reader refuse. */
    bool ok = dtype_to_f32(r->source, src, (size_t)(n * r->k), out, NULL);
    if (!ok)
        memset(out, 0, (size_t)(n * r->k) * sizeof *out);
}

static int parts(int64_t n, int64_t k, enum dtype source, struct format_part out[FORMAT_PARTS])
{
    out[0] = (struct format_part){"weight", source, 2, {n, k}};
    return 1;
}

const struct format format_bf16 = {
    .name = "bf16",
    .summary = "left as it is in the source, in the source's dtype",
    .act = ACT_NONE,
    .k_multiple = 1,
    .weights_json = "null",
    .input_json = "null",
    .parts = parts,
    .encode = encode,
    .decode = decode,
};
