/* Which scheme a module's tensors are of. What quantization_config claims is a hint only: it decides where tensors
 * could be of two, and where they are of none in full, so that a single wrong tensor is told as such. */
#include <string.h>

#include "nodes/inspect/modules.h"

static bool has_dtype(const struct st_entry *t, enum dtype d) { return t && t->dtype == d; }

static bool is_float(const struct st_entry *t)
{
    return has_dtype(t, DTYPE_BF16) || has_dtype(t, DTYPE_F16) || has_dtype(t, DTYPE_F32) || has_dtype(t, DTYPE_F64);
}

/* N and K of packed integers: weight_shape says what the padding of the last word hides. */
static void packed_shape(const struct module *x, const struct files *f, int bits, int64_t *k)
{
    const struct st_entry *shape = x->param[PARAM_SHAPE];
    const int64_t per_word = 32 / bits, words = x->param[PARAM_PACKED]->shape[1];
    int64_t stored[2];
    struct err e;
    *k = words * per_word;
    if (!has_dtype(shape, DTYPE_I64) || shape->bytes != sizeof stored || !shape->usable ||
        !files_read(f, shape, 0, sizeof stored, stored, &e))
        return;
    if (stored[1] > 0 && stored[1] <= *k && stored[1] > *k - per_word)
        *k = stored[1];
}

/* N and K by the tensor that holds the codes; false when it is not there as a matrix that can be read: the size of the
 * file then bounds both. */
static bool find_shape(const struct module *x, const struct files *f, const struct scheme *s, int64_t *n, int64_t *k)
{
    bool packed = s->kind == SCHEME_NVFP4 || s->kind == SCHEME_MXFP4 || s->kind == SCHEME_PACKED;
    const struct st_entry *t = x->param[packed ? PARAM_PACKED : PARAM_WEIGHT];
    if (!t || !t->usable || t->rank != 2 || t->shape[0] <= 0 || t->shape[1] <= 0 || t->shape[1] > INT64_MAX / 32)
        return false;
    *n = t->shape[0];
    *k = t->shape[1];
    if (s->kind == SCHEME_PACKED)
        packed_shape(x, f, s->bits, k);
    else if (packed)
        *k *= 2;
    return true;
}

static enum param find_param(const char *suffix)
{
    int p = 0;
    while (strcmp(param_name((enum param)p), suffix) != 0)
        p++;
    return (enum param)p;
}

static bool fits(const struct st_entry *t, const struct scheme_part *part)
{
    if (!t || !t->usable || t->dtype == DTYPE_COUNT || !(part->dtypes & DTYPES(t->dtype)) || t->rank != part->rank)
        return false;
    for (int d = 0; d < t->rank; d++)
        if (t->shape[d] != part->shape[d])
            return false;
    return true;
}

/* Are the tensors those of `s`, all of them and no other but a bias? */
static bool is_exactly(const struct module *x, const struct files *f, const struct scheme *s)
{
    struct scheme_part parts[SCHEME_PARTS];
    int64_t n, k;
    if (!find_shape(x, f, s, &n, &k))
        return false;
    int count = scheme_parts(s, n, k, parts);
    for (int i = 0; i < count; i++)
        if (!fits(x->param[find_param(parts[i].suffix)], &parts[i]))
            return false;
    return count > 0 && x->n_tensors - (x->param[PARAM_BIAS] != NULL) == (size_t)count;
}

/* Columns that share a scale, as the shapes of codes and scales have it; -1: all. */
static int64_t group_size(const struct module *x, int64_t k)
{
    const struct st_entry *scale = x->param[PARAM_SCALE];
    if (!scale || scale->rank != 2 || scale->shape[1] <= 1)
        return -1;
    return k / scale->shape[1];
}

/* Which of two widths the words of packed integers hold follows from weight_shape. */
static struct scheme guess_packed(const struct module *x, const struct files *f)
{
    struct scheme s = {.kind = SCHEME_PACKED, .weight_only = true, .bits = 4};
    const struct st_entry *shape = x->param[PARAM_SHAPE];
    int64_t stored[2], n, k;
    struct err e;
    if (has_dtype(shape, DTYPE_I64) && shape->bytes == sizeof stored && shape->usable &&
        files_read(f, shape, 0, sizeof stored, stored, &e) && x->param[PARAM_PACKED]->rank == 2 && stored[1] > 0 &&
        stored[1] / 4 == x->param[PARAM_PACKED]->shape[1])
        s.bits = 8;
    s.group = find_shape(x, f, &s, &n, &k) ? group_size(x, k) : -1;
    return s;
}

/* By the tensors alone. */
static struct scheme guess(const struct module *x, const struct files *f)
{
    const struct st_entry *weight = x->param[PARAM_WEIGHT], *packed = x->param[PARAM_PACKED];
    const struct st_entry *scale = x->param[PARAM_SCALE];
    struct scheme s = {.kind = SCHEME_NONE};
    if (has_dtype(packed, DTYPE_I32))
        return guess_packed(x, f);
    if (has_dtype(packed, DTYPE_U8) && has_dtype(scale, DTYPE_U8) && !x->param[PARAM_GLOBAL_SCALE])
        s.kind = SCHEME_MXFP4;
    else if (has_dtype(packed, DTYPE_U8))
        s = (struct scheme){.kind = SCHEME_NVFP4, .weight_only = !x->param[PARAM_INPUT_GLOBAL_SCALE]};
    else if (!packed && is_float(weight) && !scale && !x->param[PARAM_GLOBAL_SCALE])
        s.kind = SCHEME_PLAIN;
    else if (!packed && has_dtype(weight, DTYPE_I8) && scale)
        s.kind = SCHEME_INT8;
    else if (!packed && has_dtype(weight, DTYPE_F8_E4M3) && has_dtype(scale, DTYPE_U8))
        s.kind = SCHEME_MXFP8;
    else if (!packed && has_dtype(weight, DTYPE_F8_E4M3) && scale && scale->rank == 2 && weight->rank == 2)
        s.kind = scale->shape[0] == weight->shape[0] && scale->shape[1] == 1 ? SCHEME_FP8 : SCHEME_FP8_BLOCK;
    else if (!packed && has_dtype(weight, DTYPE_F8_E4M3) && scale && scale->elements == 1)
        s.kind = SCHEME_OTHER;
    return s;
}

/* Does the tensor of codes look as in the claimed scheme? Then what else is wrong is told tensor by tensor. */
static bool has_codes_of(const struct module *x, const struct scheme *s)
{
    const struct st_entry *weight = x->param[PARAM_WEIGHT], *packed = x->param[PARAM_PACKED];
    switch (s->kind) {
    case SCHEME_NVFP4:
    case SCHEME_MXFP4: return has_dtype(packed, DTYPE_U8);
    case SCHEME_PACKED: return has_dtype(packed, DTYPE_I32);
    case SCHEME_FP8:
    case SCHEME_FP8_BLOCK:
    case SCHEME_MXFP8: return has_dtype(weight, DTYPE_F8_E4M3);
    case SCHEME_INT8: return has_dtype(weight, DTYPE_I8);
    default: return false;
    }
}

void module_classify(struct module *x, const struct files *f)
{
    struct scheme found = guess(x, f);
    if (x->claimed.kind == SCHEME_OTHER && found.kind != SCHEME_PLAIN)
        found = (struct scheme){.kind = SCHEME_OTHER};
    else if (x->claimed.kind != SCHEME_PLAIN && is_exactly(x, f, &x->claimed))
        found = x->claimed;
    else if (!is_exactly(x, f, &found) && has_codes_of(x, &x->claimed))
        found = x->claimed;
    x->stored = found;
    x->is_whole = is_exactly(x, f, &found);
    if (!find_shape(x, f, &found, &x->n, &x->k))
        x->n = x->k = 0;
}
