/* From a group's arguments to the scheme that servers choose, in their order (export-formats 4). */
#include "nodes/inspect/quant.h"

#include <string.h>

static struct scheme of_kind(enum scheme_kind kind) { return (struct scheme){.kind = kind}; }

static struct scheme none(const char **why, const char *text)
{
    *why = text;
    return of_kind(SCHEME_NONE);
}

static struct scheme other(const char **why, const char *text)
{
    *why = text;
    return of_kind(SCHEME_OTHER);
}

static bool is_float(const struct quant_args *a, int bits, enum quant_strategy strategy, int64_t group)
{
    return a->is_there && a->is_float && a->bits == bits && a->strategy == strategy &&
           (group == 0 || a->group == group);
}

/* 8-bit weights of floats or integers by tensor, channel or block. */
static struct scheme eight_bits(const struct quant_group *g, const char **why)
{
    const struct quant_args *w = &g->weights, *in = &g->input;
    if (w->strategy == STRATEGY_TENSOR)
        return other(why, "one scale for a whole tensor");
    if (in->is_there && in->dynamic == DYNAMIC_NO)
        return other(why, "static scales of inputs");
    if (in->is_there && (in->bits != 8 || in->is_float != w->is_float))
        return none(why, "8-bit weights with inputs of another type");
    if (!w->is_float && w->strategy == STRATEGY_CHANNEL)
        return in->is_there ? of_kind(SCHEME_INT8)
                            : none(why, "8-bit integers without input_activations must be pack-quantized");
    if (w->is_float && w->strategy == STRATEGY_CHANNEL)
        return (struct scheme){.kind = SCHEME_FP8, .weight_only = !in->is_there};
    if (w->is_float && w->strategy == STRATEGY_BLOCK && w->block[0] == 128 && w->block[1] == 128)
        return (struct scheme){.kind = SCHEME_FP8_BLOCK, .weight_only = !in->is_there};
    if (w->is_float && w->strategy == STRATEGY_BLOCK)
        return other(why, "blocks that are not 128 by 128");
    if (w->is_float && w->strategy == STRATEGY_GROUP && w->group == 32)
        return none(why, "8-bit floats in groups of 32 want scale_dtype torch.uint8 (MXFP8)");
    return none(why, "this combination of type, strategy and input_activations");
}

static struct scheme packed(const struct quant_group *g, const char **why)
{
    const struct quant_args *w = &g->weights;
    if (g->input.is_there)
        return other(why, "packed integers with quantized inputs");
    if (w->reorders)
        return other(why, "columns that `actorder` moves");
    if (w->bits != 4 && w->bits != 8)
        return other(why, "packed integers of neither 4 nor 8 bits");
    return (struct scheme){.kind = SCHEME_PACKED, .weight_only = true, .bits = (int)w->bits,
                           .group = w->strategy == STRATEGY_GROUP ? w->group : -1};
}

struct scheme quant_scheme(const struct quant_group *g, const char **why)
{
    const struct quant_args *w = &g->weights, *in = &g->input;
    if (!w->is_there)
        return none(why, "there are no `weights`");
    if ((w->strategy == STRATEGY_GROUP || w->strategy == STRATEGY_TENSOR_GROUP) && w->group <= 0)
        return none(why, "groups without a size");
    if (is_float(w, 4, STRATEGY_TENSOR_GROUP, 16)) {
        if (in->is_there && !is_float(in, 4, STRATEGY_TENSOR_GROUP, 16))
            return none(why, "NVFP4 weights want input_activations null or NVFP4");
        if (!w->is_symmetric)
            return none(why, "NVFP4 that is not symmetric");
        return (struct scheme){.kind = SCHEME_NVFP4, .weight_only = !in->is_there};
    }
    if (is_float(w, 4, STRATEGY_GROUP, 32))
        return (struct scheme){.kind = SCHEME_MXFP4, .weight_only = !in->is_there};
    if (is_float(w, 8, STRATEGY_GROUP, 32) && w->has_u8_scale)
        return (struct scheme){.kind = SCHEME_MXFP8, .weight_only = !in->is_there};
    if (!w->is_symmetric)
        return other(why, "weights with zero points");
    bool is_packed = g->format && strcmp(g->format, "pack-quantized") == 0;
    if (!w->is_float && (w->strategy == STRATEGY_CHANNEL || w->strategy == STRATEGY_GROUP) && is_packed)
        return packed(g, why);
    if (w->bits == 8)
        return eight_bits(g, why);
    return none(why, "this combination of bits, type, strategy and format");
}
