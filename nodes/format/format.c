/* The table of formats, and what follows from it alone: sizes, fits, allocation. Each format's encoding is in its own
 * file. */
#include "nodes/format/format.h"

#include <string.h>

const struct format *const formats[] = {
    &format_int4_g128, &format_mxfp4_a16, &format_mxfp4, &format_int4_g64,
    &format_nvfp4_a16, &format_nvfp4, &format_int4_g32, &format_fp8_block, &format_int8_a16, &format_fp8_a16,
    &format_fp8, &format_int8, &format_mxfp8_a16, &format_mxfp8, &format_bf16, NULL};
const char *const format_names[] = {
    "int4_g128", "mxfp4_a16", "mxfp4", "int4_g64", "nvfp4_a16", "nvfp4",
    "int4_g32", "fp8_block", "int8_a16", "fp8_a16", "fp8", "int8", "mxfp8_a16", "mxfp8", "bf16", NULL};

const struct format *format_find(const char *name)
{
    for (const struct format *const *f = formats; *f; f++)
        if (strcmp((*f)->name, name) == 0)
            return *f;
    return NULL;
}

bool format_fits(const struct format *f, int64_t n, int64_t k)
{
    return n > 0 && k > 0 && k % f->k_multiple == 0;
}

uint64_t format_part_bytes(const struct format_part *p)
{
    uint64_t count = 1;
    for (int i = 0; i < p->rank; i++)
        count *= (uint64_t)p->shape[i];
    return count * dtype_bytes(p->dtype);
}

uint64_t format_bytes(const struct format *f, int64_t n, int64_t k, enum dtype source)
{
    struct format_part parts[FORMAT_PARTS];
    int count = f->parts(n, k, source, parts);
    uint64_t bytes = f->static_input_scale ? sizeof(float) : 0;
    for (int i = 0; i < count; i++)
        bytes += format_part_bytes(&parts[i]);
    return bytes;
}

bool format_rendering_new(struct rendering *r, const struct format *f, int64_t n, int64_t k, enum dtype source,
                          struct err *e)
{
    struct format_part parts[FORMAT_PARTS];
    struct rendering fresh = {.format = f, .n = n, .k = k, .source = source};
    int count = f->parts(n, k, source, parts);
    for (int i = 0; i < count; i++) {
        if (!mem_new_bytes(&fresh.part[i], format_part_bytes(&parts[i]), 1, e)) {
            while (i-- > 0)
                mem_free(fresh.part[i]);
            return err_context(e, "rendering in %s", f->name);
        }
    }
    if (f->stores_shape)
        memcpy(fresh.part[count - 1], (int64_t[]){n, k}, 2 * sizeof(int64_t));
    *r = fresh;
    return true;
}

bool format_amax(const float *w, int64_t n, int64_t k, float *amax, struct err *e)
{
    /* Without its sign bit a float orders like an integer, and NaN and infinity come last. */
    uint32_t most = f32_bits(*amax);
    for (int64_t row = 0; row < n; row++) {
        const float *x = w + row * k;
        for (int64_t i = 0; i < k; i++) {
            uint32_t bits = f32_bits(x[i]) & 0x7fffffffu;
            most = bits > most ? bits : most;
        }
        if (most < 0x7f800000u)
            continue;
        int64_t i = 0;
        while ((f32_bits(x[i]) & 0x7fffffffu) < 0x7f800000u)
            i++;
        return err_set(e, ERR_NUMERIC, "weight [%lld, %lld] is %s; only finite weights can be quantized",
                       (long long)row, (long long)i, x[i] != x[i] ? "NaN" : "infinite");
    }
    *amax = f32_from_bits(most);
    return true;
}
