/* Checks 1, 3, 4 and 5 on modules: exactly the tensors of their scheme, with its types and shapes, in sizes that
 * kernels take; fused modules alike. */
#include <stdio.h>
#include <string.h>

#include "nodes/inspect/checks.h"

#define PLACE 1200

/* ---------------------------------------------------------------------------------------- the tensors of one module */

static const char *place_of(const struct module *x, const char *suffix, char out[PLACE])
{
    snprintf(out, PLACE, "%s.%s", x->name, suffix);
    return out;
}

static const struct st_entry *find_tensor(const struct module *x, const char *suffix)
{
    for (size_t i = 0; i < x->n_tensors; i++)
        if (strcmp(module_last(x->tensors[i]->name), suffix) == 0)
            return x->tensors[i];
    return NULL;
}

/* "F32 or BF16" */
static const char *list_dtypes(unsigned set, char out[64])
{
    size_t at = 0;
    out[0] = '\0';
    for (int t = 0; t < DTYPE_COUNT && at < 48; t++)
        if (set & DTYPES(t))
            at += (size_t)snprintf(out + at, 64 - at, "%s%s", at ? " or " : "", dtype_info((enum dtype)t)->safetensors);
    return out;
}

/* "[64, 4]" */
static const char *list_shape(const int64_t *shape, int rank, char out[200])
{
    size_t at = (size_t)snprintf(out, 200, "[");
    for (int d = 0; d < rank && at < 170; d++)
        at += (size_t)snprintf(out + at, 200 - at, "%s%lld", d ? ", " : "", (long long)shape[d]);
    snprintf(out + at, 200 - at, "]");
    return out;
}

static void check_part(struct subject *s, const struct module *x, const struct scheme_part *part)
{
    const struct st_entry *t = find_tensor(x, part->suffix);
    char place[PLACE], want[200], have[200], name[40];
    bool is_input = strcmp(part->suffix, "input_global_scale") == 0;
    place_of(x, part->suffix, place);
    if (!t) {
        snprintf(want, sizeof want, "a tensor of every layer in %s", scheme_name(&x->stored, name));
        report_error(s->report, is_input ? 5 : 1, place, want, "it is missing");
        return;
    }
    if (t->dtype == DTYPE_COUNT || !(part->dtypes & DTYPES(t->dtype)))
        report_error(s->report, 4, place, list_dtypes(part->dtypes, want), "dtype %s", t->dtype_name);
    if (x->n == 0)
        return; /* which shapes it should have is not known */
    if (t->rank != part->rank || memcmp(t->shape, part->shape, (size_t)part->rank * sizeof *part->shape) != 0)
        report_error(s->report, 4, place, list_shape(part->shape, part->rank, want), "shape %s",
                     list_shape(t->shape, t->rank, have));
}

/* Scales that are rounded when they are loaded no longer fit the codes. */
static void check_scale_dtype(struct subject *s, const struct module *x)
{
    const struct st_entry *t = x->param[PARAM_SCALE];
    const json_t *setting = subject_setting(s, "dtype");
    const char *name = json_string_value(setting ? setting : subject_setting(s, "torch_dtype"));
    char place[PLACE];
    if (x->stored.kind != SCHEME_PACKED || !t || !name)
        return;
    if ((t->dtype == DTYPE_BF16 && strcmp(name, "float16") == 0) ||
        (t->dtype == DTYPE_F16 && strcmp(name, "bfloat16") == 0))
        report_error(s->report, 4, place_of(x, "weight_scale", place), name,
                     "dtype %s: loading rounds it to the model's", t->dtype_name);
}

/* Tensors that the scheme has not: those that servers stumble over, and others. */
static void check_extra(struct subject *s, const struct module *x, const struct scheme_part *parts, int n)
{
    static const enum param forbidden[] = {PARAM_ZERO_POINT, PARAM_G_IDX, PARAM_INPUT_SCALE, PARAM_INPUT_ZERO_POINT,
                                           PARAM_SCALE_INV, PARAM_WEIGHT, PARAM_PACKED, PARAM_INPUT_GLOBAL_SCALE};
    char name[40], want[100];
    for (size_t i = 0; i < x->n_tensors; i++) {
        const struct st_entry *t = x->tensors[i];
        const char *suffix = module_last(t->name);
        bool belongs = t == x->param[PARAM_BIAS], is_forbidden = false;
        for (int p = 0; p < n; p++)
            belongs = belongs || strcmp(parts[p].suffix, suffix) == 0;
        for (size_t k = 0; k < sizeof forbidden / sizeof *forbidden; k++)
            is_forbidden = is_forbidden || t == x->param[forbidden[k]];
        if (belongs || (x->stored.kind == SCHEME_PLAIN && !is_forbidden)) /* a router has more than its weight */
            continue;
        snprintf(want, sizeof want, "only the tensors of %s", scheme_name(&x->stored, name));
        report_error(s->report, is_forbidden ? 5 : 1, t->name, want, "it is there%s",
                     is_forbidden ? ": servers have no such parameter" : "");
    }
}

static void check_bias(struct subject *s, const struct module *x)
{
    const struct st_entry *t = x->param[PARAM_BIAS];
    char have[200];
    if (!t || x->n == 0)
        return;
    if (t->rank != 1 || t->shape[0] != x->n)
        report_error(s->report, 4, t->name, "one value per output", "shape %s, %lld outputs",
                     list_shape(t->shape, t->rank, have), (long long)x->n);
    if (t->dtype != DTYPE_BF16 && t->dtype != DTYPE_F16 && t->dtype != DTYPE_F32)
        report_error(s->report, 4, t->name, "BF16, F16 or F32", "dtype %s", t->dtype_name);
}

/* weight_shape must say what the words hold. */
static void check_weight_shape(struct subject *s, const struct module *x)
{
    const struct st_entry *t = x->param[PARAM_SHAPE];
    int64_t stored[2];
    char want[200], have[200];
    struct err e;
    if (x->stored.kind != SCHEME_PACKED || !t || t->dtype != DTYPE_I64 || t->bytes != sizeof stored || !t->usable ||
        !files_read(&s->files, t, 0, sizeof stored, stored, &e))
        return;
    const int64_t shape[2] = {x->n, x->k};
    if (stored[0] != x->n || stored[1] != x->k)
        report_error(s->report, 4, t->name, list_shape(shape, 2, want), "it says %s", list_shape(stored, 2, have));
}

/* -------------------------------------------------------------------------------------------------- shapes and fits */

static void check_source_shape(struct subject *s, const struct module *x)
{
    struct origin_view view;
    if (x->n > 0 && origin_view(&s->origin, x, &view) && (view.n != x->n || view.k != x->k))
        report_error(s->report, 4, x->name, "the shape that it has in the source", "[%lld, %lld], there [%lld, %lld]",
                     (long long)x->n, (long long)x->k, (long long)view.n, (long long)view.k);
}

/* K in whole groups, in sizes that kernels have. */
static void check_divides(struct subject *s, const struct module *x)
{
    const int64_t columns = scheme_columns(&x->stored, x->k), group = x->stored.group;
    char name[40], want[100];
    if (x->k % columns != 0) {
        snprintf(want, sizeof want, "a multiple of %lld columns for %s", (long long)columns,
                 scheme_name(&x->stored, name));
        /* A tile at the edge may be cut where weights are not split; kernels that want whole tiles are many. */
        report_add(s->report, 4, x->stored.kind == SCHEME_FP8_BLOCK ? FINDING_WARNING : FINDING_ERROR, x->name, want,
                   "%lld columns", (long long)x->k);
    }
    if (x->stored.kind == SCHEME_PACKED && x->k % (32 / x->stored.bits) != 0)
        report_error(s->report, 4, x->name, "whole words of 32 bits", "%lld columns of %d bits", (long long)x->k,
                     x->stored.bits);
    if (x->stored.kind == SCHEME_PACKED && group > 0 && group != 32 && group != 64 && group != 128)
        report_warning(s->report, 4, x->name, "groups of 32, 64 or 128, or whole rows", "groups of %lld",
                       (long long)group);
    if (x->stored.kind == SCHEME_FP8_BLOCK && strcmp(module_last(x->name), "lm_head") == 0)
        report_error(s->report, 4, x->name, "a head that is not stored in blocks of 128 by 128: servers refuse it",
                     "it is");
}

/* How a layer is split over ranks; layers whose names do not tell are left out. */
enum split { SPLIT_NONE, SPLIT_ROWS, SPLIT_COLUMNS };

static enum split split_of(const char *name)
{
    static const char *const rows[] = {"q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "in_proj_qkv", "in_proj_z",
                                       "in_proj_b", "in_proj_a", "w1", "w3", NULL};
    static const char *const columns[] = {"o_proj", "down_proj", "out_proj", "w2", NULL};
    const char *last = module_last(name);
    for (const char *const *p = rows; *p; p++)
        if (strcmp(*p, last) == 0)
            return SPLIT_ROWS;
    for (const char *const *p = columns; *p; p++)
        if (strcmp(*p, last) == 0)
            return SPLIT_COLUMNS;
    return SPLIT_NONE;
}

/* Rows of one rank; 0 when they cannot be dealt. With more ranks than heads of keys and values, ranks share heads. */
static int64_t rows_per_rank(const struct subject *s, const struct module *x, int64_t tp)
{
    const char *last = module_last(x->name);
    int64_t heads = json_integer_value(subject_setting(s, "num_key_value_heads"));
    bool is_kv = strcmp(last, "k_proj") == 0 || strcmp(last, "v_proj") == 0;
    if (is_kv && heads > 0 && x->n % heads == 0 && tp > heads)
        return tp % heads == 0 ? x->n / heads : 0;
    return x->n % tp == 0 ? x->n / tp : 0;
}

static void check_rank(struct subject *s, const struct module *x, int64_t tp)
{
    const enum split split = split_of(x->name);
    const int64_t columns = scheme_columns(&x->stored, x->k) == x->k ? 1 : scheme_columns(&x->stored, x->k);
    char name[40];
    if (split == SPLIT_COLUMNS && (x->k % tp != 0 || x->k / tp % columns != 0))
        report_error(s->report, 4, x->name, "columns that ranks share in whole groups",
                     "%lld columns over %lld ranks, groups of %lld (%s)", (long long)x->k, (long long)tp,
                     (long long)columns, scheme_name(&x->stored, name));
    if (split != SPLIT_ROWS)
        return;
    int64_t rows = rows_per_rank(s, x, tp);
    if (rows == 0)
        report_error(s->report, 4, x->name, "rows that ranks can share", "%lld rows over %lld ranks", (long long)x->n,
                     (long long)tp);
    else if (x->stored.kind == SCHEME_FP8_BLOCK && rows % 128 != 0)
        report_error(s->report, 4, x->name, "tiles of 128 rows that no rank cuts", "%lld rows on each of %lld ranks",
                     (long long)rows, (long long)tp);
}

static void check_module(struct subject *s, struct module *x)
{
    struct scheme wanted = x->stored;
    struct scheme_part parts[SCHEME_PARTS];
    /* What is claimed to be in no scheme is told with its group, and its tensors are not judged by another. */
    if (x->stored.kind == SCHEME_NONE || x->stored.kind == SCHEME_OTHER || x->claimed.kind == SCHEME_NONE)
        return;
    if (x->stored.kind == SCHEME_NVFP4 && x->claimed.kind == SCHEME_NVFP4)
        wanted.weight_only = x->claimed.weight_only;
    x->stored = wanted;
    int n = scheme_parts(&x->stored, x->n, x->k, parts);
    if (x->stored.kind == SCHEME_PLAIN)
        parts[n++] = (struct scheme_part){.suffix = "weight"};
    else
        for (int i = 0; i < n; i++)
            check_part(s, x, &parts[i]);
    check_extra(s, x, parts, n);
    check_bias(s, x);
    check_source_shape(s, x);
    if (x->stored.kind == SCHEME_PLAIN)
        return;
    if (x->n == 0) {
        report_error(s->report, 4, x->name, "a matrix of codes that can be read", "there is none");
        return;
    }
    check_weight_shape(s, x);
    check_scale_dtype(s, x);
    check_divides(s, x);
    for (size_t i = 0; i < s->options->n_tp; i++)
        if (s->options->tp[i] > 1)
            check_rank(s, x, s->options->tp[i]);
}

/* Tiles of 128 rows must not reach from one shard into the next; MXFP8 kernels have a least size. */
static void check_unit_shape(struct subject *s, const struct module_unit *u)
{
    int64_t rows = 0, least_k = INT64_MAX;
    for (size_t i = 0; i < u->n_modules; i++) {
        const struct module *x = &s->modules.list[u->modules[i]];
        if (x->stored.kind == SCHEME_FP8_BLOCK && u->kind == UNIT_FUSED && i + 1 < u->n_modules && x->n % 128 != 0)
            report_error(s->report, 4, x->name, "a multiple of 128 rows, since the next shard follows it",
                         "%lld rows in a fused layer", (long long)x->n);
        rows += x->n > 0 ? x->n : 0;
        least_k = x->k < least_k ? x->k : least_k;
    }
    if (u->kind != UNIT_EXPERTS && s->modules.list[u->modules[0]].stored.kind == SCHEME_MXFP8 &&
        (rows < 128 || least_k < 128))
        report_warning(s->report, 4, u->name, "at least 128 rows and columns on compute capability 10.0 and up",
                       "%lld rows, %lld columns in mxfp8", (long long)rows, (long long)least_k);
}

/* Scales of the cache without a scheme for it are passed over by servers. */
static void check_cache_scales(struct subject *s, const struct module *x)
{
    static const char *const names[] = {"k_scale", "v_scale", "q_scale", NULL};
    for (const char *const *name = names; *name; name++) {
        const struct st_entry *t = find_tensor(x, *name);
        if (t && !s->quant.has_cache_scales)
            report_warning(s->report, 5, t->name, "no scales of the cache where `kv_cache_scheme` is null",
                           "it is there");
        else if (t && (t->dtype != DTYPE_F32 || t->elements != 1))
            report_error(s->report, 4, t->name, "one F32", "dtype %s, %llu values", t->dtype_name,
                         (unsigned long long)t->elements);
    }
}

void check_structure(struct subject *s)
{
    bool has_others = false;
    for (size_t i = 0; i < s->modules.n; i++) {
        struct module *x = &s->modules.list[i];
        if (x->is_linear)
            check_module(s, x);
        else
            check_cache_scales(s, x);
        has_others = has_others || x->stored.kind == SCHEME_OTHER;
    }
    for (size_t i = 0; i < s->modules.n_units; i++)
        check_unit_shape(s, &s->modules.units[i]);
    for (int check = 4; check <= 7; check++)
        if (has_others)
            report_partly(s->report, check, "some layers are in schemes that are not validated here");
}

/* ----------------------------------------------------------------------------------------------------- fused groups */

/* The bits of one F32; false when it cannot be read as such. */
static bool read_scale(const struct subject *s, const struct st_entry *t, uint32_t *bits)
{
    struct err e;
    return t && t->usable && t->dtype == DTYPE_F32 && t->bytes == sizeof *bits &&
           files_read(&s->files, t, 0, sizeof *bits, bits, &e);
}

/* Servers keep one such scale for what they fuse, the largest divisor. */
static void compare_scale(struct subject *s, const char *unit, const struct module *a, const struct module *b,
                          enum param which)
{
    uint32_t x, y;
    if (read_scale(s, a->param[which], &x) && read_scale(s, b->param[which], &y) && x != y)
        report_error(s->report, 3, unit, "equal bits: servers keep one for the whole layer",
                     "%s of %s is %.9g, of %s %.9g", param_name(which), module_last(a->name), (double)f32_from_bits(x),
                     module_last(b->name), (double)f32_from_bits(y));
}

static void compare_modules(struct subject *s, const struct module_unit *u, const struct module *a,
                            const struct module *b, bool shares_scales)
{
    char p[40], q[40];
    if (!scheme_equal(&a->stored, &b->stored)) {
        report_error(s->report, 3, u->name, u->kind == UNIT_EXPERTS ? "one scheme for all experts of a layer"
                                                                   : "one scheme for all that is fused",
                     "%s is %s, %s is %s", a->name, scheme_name(&a->stored, p), b->name, scheme_name(&b->stored, q));
    } else if (a->stored.kind == SCHEME_NVFP4 && shares_scales) {
        compare_scale(s, u->name, a, b, PARAM_GLOBAL_SCALE);
        if (!a->stored.weight_only)
            compare_scale(s, u->name, a, b, PARAM_INPUT_GLOBAL_SCALE);
    }
}

/* Are the two the gate and the other half of one expert? */
static bool is_pair(const struct module *a, const struct module *b)
{
    const char *x = module_last(a->name), *y = module_last(b->name);
    return a->expert == b->expert && ((strcmp(x, "gate_proj") == 0 && strcmp(y, "up_proj") == 0) ||
                                      (strcmp(x, "w1") == 0 && strcmp(y, "w3") == 0));
}

void check_fused(struct subject *s)
{
    for (size_t i = 0; i < s->modules.n_units; i++) {
        const struct module_unit *u = &s->modules.units[i];
        const struct module *first = &s->modules.list[u->modules[0]];
        for (size_t k = 1; k < u->n_modules; k++) {
            const struct module *x = &s->modules.list[u->modules[k]];
            compare_modules(s, u, first, x, u->kind == UNIT_FUSED);
            /* By name, an expert's gate_proj is followed by its up_proj, its w1 by w2 and w3. */
            for (size_t back = 1; u->kind == UNIT_EXPERTS && back <= 2 && back <= k; back++)
                if (is_pair(&s->modules.list[u->modules[k - back]], x) &&
                    scheme_equal(&s->modules.list[u->modules[k - back]].stored, &x->stored))
                    compare_modules(s, u, &s->modules.list[u->modules[k - back]], x, true);
        }
    }
}
