/* Checks 6 and 7: codes and scales, and the decoded weights against the source's. A thread takes a layer at a time and
 * reads it in pieces; what is found goes to the layer's own record, and is told in the order of the layers. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "nodes/inspect/checks.h"
#include "nodes/inspect/decoding.h"

#define PIECE ((int64_t)1 << 18) /* weights decoded at once; a multiple of 128 */
#define SMALL_SCALE 0x08         /* E4M3 of 2^-6: kernels that run weights only flush smaller ones to zero */
#define BUCKETS 512              /* by exponent of a squared norm */

/* Rows of which something is wrong, by the exponent of their squared norm in the source, since what is nothing beside
 * the others may be lost in rounding. */
struct rows {
    uint64_t count[BUCKETS];
    int64_t first[BUCKETS];
};

/* What was found in one layer. */
struct values {
    uint64_t bad_codes, bad_scales, small_scales, not_finite;
    int64_t bad_row;                 /* the first with a bad code or scale; -1: none */
    float global, input_global;
    bool has_source, is_zero, unreadable, no_memory;
    double amax;                     /* of the source */
    double sum_source, sum_error;    /* of squares */
    double most;                     /* largest error */
    uint64_t zeroed, distorted;      /* rows that count beside the others */
    uint64_t small_zeroed, small_distorted;
    int64_t first_zeroed, first_distorted;
};

/* Sums over the row in hand. */
struct row_sums {
    double source, decoded, both, error;
};

/* A layer while it is read. */
struct pass {
    const struct subject *s;
    const struct module *x;
    struct values *v;
    struct decoding decoding;
    struct origin_view view;
    const struct st_entry *codes, *scales;
    int64_t code_stride;            /* bytes of a row of codes */
    int64_t row_scales, tile_rows;  /* scales in a row of scales; rows that share one */
    unsigned char *code_bytes, *scale_bytes, *source_bytes;
    float *source;
    double *decoded;
    struct row_sums sums;
    struct rows *zeroed, *distorted;
};

/* -------------------------------------------------------------------------------------------------------- one piece */

static void note_bad(struct values *v, uint64_t *count, int64_t row)
{
    if (v->bad_row < 0)
        v->bad_row = row;
    ++*count;
}

/* Codes that stand for no number. */
static void check_codes(struct pass *p, int64_t row, int64_t count)
{
    enum scheme_kind k = p->x->stored.kind;
    if (k != SCHEME_FP8 && k != SCHEME_FP8_BLOCK && k != SCHEME_MXFP8)
        return;
    for (int64_t i = 0; i < count; i++)
        if ((p->code_bytes[i] & 0x7f) == 0x7f)
            note_bad(p->v, &p->v->bad_codes, row);
}

/* Is any of the codes of this group, `count` columns from `first` of the piece, not zero? */
static bool has_codes(const struct pass *p, int64_t first, int64_t count)
{
    for (int64_t i = first; i < first + count; i++)
        if ((p->code_bytes[i / 2] >> (i % 2 ? 4 : 0) & 7) != 0)
            return true;
    return false;
}

/* The `n` scales of a piece of `count` columns. A scale of zero makes weights of any codes zero, so it says nothing;
 * only blocks of NVFP4 may have it. */
static void check_scales(struct pass *p, int64_t row, int64_t n, int64_t count)
{
    const size_t step = decoding_scale_bytes(&p->decoding);
    const bool is_nvfp4 = p->x->stored.kind == SCHEME_NVFP4;
    for (int64_t i = 0; i < n; i++) {
        const unsigned char *scale = p->scale_bytes + (size_t)i * step;
        double value = decoding_scale(&p->decoding, scale);
        if (!isfinite(value) || (is_nvfp4 ? *scale > 0x7e : value <= 0))
            note_bad(p->v, &p->v->bad_scales, row);
        else if (is_nvfp4 && *scale < SMALL_SCALE && has_codes(p, 16 * i, count - 16 * i < 16 ? count - 16 * i : 16))
            p->v->small_scales++;
    }
}

static bool read_source(struct pass *p, int64_t row, int64_t column, int64_t count)
{
    const struct st_tensor *t = p->view.tensor;
    const uint64_t at = p->view.first + (uint64_t)(row * p->x->k + column), size = dtype_bytes(t->dtype);
    struct err e;
    return safetensors_read(p->s->origin.source, t, at * size, (uint64_t)count * size, p->source_bytes, &e) &&
           dtype_to_f32(t->dtype, p->source_bytes, (size_t)count, p->source, &e);
}

static void compare_piece(struct pass *p, int64_t count)
{
    struct row_sums *r = &p->sums;
    struct values *v = p->v;
    for (int64_t i = 0; i < count; i++) {
        double w = (double)p->source[i], d = p->decoded[i], error = d - w;
        r->source += w * w;
        r->decoded += d * d;
        r->both += w * d;
        r->error += error * error;
        v->amax = fabs(w) > v->amax ? fabs(w) : v->amax;
        v->most = fabs(error) > v->most ? fabs(error) : v->most;
    }
}

/* Columns [column, column + count) of a row. */
static bool read_piece(struct pass *p, int64_t row, int64_t column, int64_t count)
{
    const struct decoding *d = &p->decoding;
    const int64_t per = d->columns ? d->columns : p->x->k, first = column / per;
    const int64_t n_scales = (column + count - 1) / per - first + 1;
    const int64_t step = (int64_t)decoding_scale_bytes(d);
    const int64_t code_at = row * p->code_stride + decoding_code_bytes(d, column);
    const int64_t scale_at = row / p->tile_rows * p->row_scales + first;
    struct err e;
    if (!files_read(&p->s->files, p->codes, (uint64_t)code_at, (uint64_t)decoding_code_bytes(d, count), p->code_bytes,
                    &e) ||
        !files_read(&p->s->files, p->scales, (uint64_t)(scale_at * step), (uint64_t)(n_scales * step), p->scale_bytes,
                    &e))
        return false;
    check_codes(p, row, count);
    if (row % p->tile_rows == 0)
        check_scales(p, row, n_scales, count);
    decoding_run(d, p->code_bytes, p->scale_bytes, column, count, p->decoded);
    for (int64_t i = 0; i < count; i++) {
        p->v->not_finite += !isfinite(p->decoded[i]) || fabs(p->decoded[i]) > 3.4028234e38;
        p->v->is_zero = p->v->is_zero && p->decoded[i] == 0;
    }
    if (!p->v->has_source)
        return true;
    if (!read_source(p, row, column, count))
        return false;
    compare_piece(p, count);
    return true;
}

/* -------------------------------------------------------------------------------------------------------- one layer */

static int bucket_of(double square)
{
    int exponent = 0;
    if (!(square > 0) || !isfinite(square))
        return square > 0 ? BUCKETS - 1 : 0;
    frexp(square, &exponent);
    exponent += BUCKETS / 2;
    return exponent < 0 ? 0 : exponent >= BUCKETS ? BUCKETS - 1 : exponent;
}

static void note_row(struct rows *rows, int bucket, int64_t row)
{
    if (rows->count[bucket]++ == 0)
        rows->first[bucket] = row;
}

/* Zero where the source is not; or another direction, or another length: a scale taken for its reciprocal, a sign. */
static void judge_row(struct pass *p, int64_t row)
{
    const struct row_sums *r = &p->sums;
    struct values *v = p->v;
    v->sum_source += r->source;
    v->sum_error += r->error;
    if (r->source == 0 || !isfinite(r->source) || !isfinite(r->decoded)) /* the last is told by codes and scales */
        return;
    double ratio = sqrt(r->decoded / r->source), correlation = r->both / sqrt(r->source * r->decoded);
    if (r->decoded == 0)
        note_row(p->zeroed, bucket_of(r->source), row);
    else if (!(correlation >= 0.9) || ratio < 0.8 || ratio > 1.2)
        note_row(p->distorted, bucket_of(r->source), row);
}

/* Rows whose norm is a hundredth of the usual count; the others are told, but may be what rounding leaves. */
static void sum_rows(const struct rows *rows, int least, uint64_t *count, uint64_t *small, int64_t *first)
{
    *first = -1;
    for (int b = 0; b < BUCKETS; b++) {
        if (rows->count[b] == 0)
            continue;
        if (b < least)
            *small += rows->count[b];
        else
            *count += rows->count[b];
        if (b >= least && (*first < 0 || rows->first[b] < *first))
            *first = rows->first[b];
    }
}

static bool read_rows(struct pass *p)
{
    for (int64_t row = 0; row < p->x->n; row++) {
        p->sums = (struct row_sums){0};
        for (int64_t column = 0; column < p->x->k; column += PIECE) {
            int64_t count = p->x->k - column < PIECE ? p->x->k - column : PIECE;
            if (!read_piece(p, row, column, count))
                return false;
        }
        if (p->v->has_source)
            judge_row(p, row);
    }
    const int least = bucket_of(1e-4 * p->v->sum_source / (double)p->x->n);
    sum_rows(p->zeroed, least, &p->v->zeroed, &p->v->small_zeroed, &p->v->first_zeroed);
    sum_rows(p->distorted, least, &p->v->distorted, &p->v->small_distorted, &p->v->first_distorted);
    return true;
}

static bool read_float(const struct subject *s, const struct st_entry *t, float *out)
{
    struct err e;
    return !t || files_read(&s->files, t, 0, sizeof *out, out, &e);
}

static bool allocate(struct pass *p)
{
    const size_t n = (size_t)(p->x->k < PIECE ? p->x->k : PIECE);
    return mem_raw(&p->code_bytes, n + 1, NULL) && mem_raw(&p->scale_bytes, (n + 2) * sizeof(float), NULL) &&
           mem_raw(&p->source_bytes, n * sizeof(double), NULL) && mem_raw(&p->source, n, NULL) &&
           mem_raw(&p->decoded, n, NULL) && mem_new(&p->zeroed, 1, NULL) && mem_new(&p->distorted, 1, NULL);
}

static void read_layer(const struct subject *s, const struct module *x, struct values *v)
{
    const bool packed = x->param[PARAM_PACKED] != NULL;
    struct pass p = {.s = s, .x = x, .v = v, .codes = x->param[packed ? PARAM_PACKED : PARAM_WEIGHT],
                     .scales = x->param[PARAM_SCALE]};
    *v = (struct values){.bad_row = -1, .global = 1, .input_global = 1, .is_zero = true, .unreadable = true};
    v->has_source = origin_view(&s->origin, x, &p.view) && p.view.n == x->n &&
                    p.view.k == x->k;
    if (!read_float(s, x->param[PARAM_GLOBAL_SCALE], &v->global) ||
        !read_float(s, x->param[PARAM_INPUT_GLOBAL_SCALE], &v->input_global))
        return;
    decoding_init(&p.decoding, &x->stored, p.scales->dtype, x->k, v->global);
    p.code_stride = (int64_t)(p.codes->bytes / (uint64_t)x->n);
    p.row_scales = p.scales->shape[1];
    p.tile_rows = x->stored.kind == SCHEME_FP8_BLOCK ? 128 : 1;
    v->no_memory = !allocate(&p);
    v->unreadable = v->no_memory || !read_rows(&p);
    mem_free(p.code_bytes);
    mem_free(p.scale_bytes);
    mem_free(p.source_bytes);
    mem_free(p.source);
    mem_free(p.decoded);
    mem_free(p.zeroed);
    mem_free(p.distorted);
}

/* ---------------------------------------------------------------------------------------------------------- telling */

static bool is_positive(float x) { return x > 0 && isfinite(x); }

static void tell_scales(struct subject *s, const struct module *x, const struct values *v)
{
    const bool is_nvfp4 = x->stored.kind == SCHEME_NVFP4;
    if (v->bad_codes > 0)
        report_error(s->report, 6, x->name, "no codes 0x7f or 0xff: they are NaN", "%llu of them, the first in row "
                     "%lld or behind it", (unsigned long long)v->bad_codes, (long long)v->bad_row);
    if (v->bad_scales > 0)
        report_error(s->report, 6, x->name, is_nvfp4 ? "scales from 0x00 to 0x7e" : "scales that are finite and "
                     "positive", "%llu others, the first in row %lld or behind it", (unsigned long long)v->bad_scales,
                     (long long)v->bad_row);
    if (is_nvfp4 && !is_positive(v->global))
        report_error(s->report, 6, x->name, "finite and positive", "weight_global_scale is %g", (double)v->global);
    if (is_nvfp4 && !is_positive(v->input_global))
        report_error(s->report, 6, x->name, "finite and positive", "input_global_scale is %g",
                     (double)v->input_global);
    if (v->small_scales > 0)
        report_warning(s->report, 6, x->name, "scales of at least 2^-6: kernels for weights only flush smaller ones",
                       "%llu of %llu blocks that are not zero have smaller ones", (unsigned long long)v->small_scales,
                       (unsigned long long)(x->param[PARAM_SCALE]->elements));
}

static void tell_rows(struct subject *s, const struct module *x, const struct values *v)
{
    if (v->zeroed > 0)
        report_error(s->report, 7, x->name, "rows that are zero only where the source's are", "%llu became zero, the "
                     "first is %lld", (unsigned long long)v->zeroed, (long long)v->first_zeroed);
    if (v->distorted > 0)
        report_error(s->report, 7, x->name, "rows with correlation of at least 0.9 with the source's and 0.8 to 1.2 of "
                     "their norm", "%llu are others, the first is %lld", (unsigned long long)v->distorted,
                     (long long)v->first_distorted);
    if (v->small_zeroed + v->small_distorted > 0)
        report_warning(s->report, 7, x->name, "rows that keep their direction and norm", "%llu became zero and %llu "
                       "others, all below a hundredth of the usual norm", (unsigned long long)v->small_zeroed,
                       (unsigned long long)v->small_distorted);
}

static double relative(double error, double source)
{
    return source > 0 ? sqrt(error / source) : error > 0 ? (double)INFINITY : 0;
}

static void tell_weights(struct subject *s, const struct module *x, const struct values *v)
{
    const double expected = scheme_error(&x->stored), error = relative(v->sum_error, v->sum_source);
    char name[40], want[100];
    if (v->not_finite > 0 && v->bad_codes + v->bad_scales == 0 && is_positive(v->global))
        report_error(s->report, 7, x->name, "finite weights", "%llu are not", (unsigned long long)v->not_finite);
    if (!v->has_source) {
        if (v->is_zero)
            report_warning(s->report, 7, x->name, "weights", "all of them are zero");
        return;
    }
    tell_rows(s, x, v);
    if (!(error > 2 * expected))
        return;
    snprintf(want, sizeof want, "at most twice %.4g, what %s has on normal weights", expected,
             scheme_name(&x->stored, name));
    report_add(s->report, 7, error < 0.5 ? FINDING_WARNING : FINDING_ERROR, x->name, want,
               "relative error %.4g, largest %.4g", error, v->most);
}

/* Do the two share a global scale: shards of a fused layer, or an expert's gate and the other half? */
static bool shares_global(const struct module_unit *u, const struct module *a, const struct module *b)
{
    static const char *const halves[] = {"gate_proj", "up_proj", "w1", "w3"};
    int n = 0;
    if (a == b || u->kind == UNIT_FUSED)
        return true;
    for (size_t i = 0; i < sizeof halves / sizeof *halves; i++)
        n += (strcmp(module_last(a->name), halves[i]) == 0) + (strcmp(module_last(b->name), halves[i]) == 0);
    return a->expert == b->expert && n == 2;
}

/* The global scale of NVFP4 is 2688 = 448 * 6 (what an E4M3 scale and an E2M1 code reach together) over the largest
 * weight of all that share it. Those of one expert stand beside each other. */
static void tell_global(struct subject *s, const struct module_unit *u, size_t at, const struct values *values)
{
    const struct module *x = &s->modules.list[u->modules[at]];
    double amax = 0, global = (double)values[u->modules[at]].global;
    const size_t from = u->kind == UNIT_FUSED || at < 2 ? 0 : at - 2, to = u->kind == UNIT_FUSED ? SIZE_MAX : at + 2;
    for (size_t i = from; i < u->n_modules && i <= to; i++) {
        if (!shares_global(u, x, &s->modules.list[u->modules[i]]))
            continue;
        if (!values[u->modules[i]].has_source)
            return;
        amax = values[u->modules[i]].amax > amax ? values[u->modules[i]].amax : amax;
    }
    double off = amax > 0 && isfinite(2688 / (float)amax) ? fabs(global * amax / 2688 - 1) : 0;
    /* Other writers round it to bf16 on the way; ours do not. */
    if (off > 1e-6)
        report_add(s->report, 6, off > 1.0 / 128 || s->origin.recipe ? FINDING_ERROR : FINDING_WARNING, x->name,
                   "2688 over the largest weight of all that share it",
                   "weight_global_scale is %.9g, the largest weight %.9g: their product is %.9g", global, amax,
                   global * amax);
}

static bool has_values(const struct module *x)
{
    return x->is_whole && x->n > 0 && x->k > 0 && x->stored.kind != SCHEME_PLAIN && x->stored.kind != SCHEME_OTHER &&
           x->stored.kind != SCHEME_NONE;
}

/* What keeps a check from being complete. */
static void tell_parts(struct subject *s, const struct values *values)
{
    bool broken = false, unknown = false;
    for (size_t i = 0; i < s->modules.n; i++) {
        const struct module *x = &s->modules.list[i];
        broken = broken || (x->is_linear && x->stored.kind != SCHEME_PLAIN && !has_values(x));
        unknown = unknown || (has_values(x) && !values[i].has_source);
    }
    for (int check = 6; check <= 7 && broken; check++)
        report_partly(s->report, check, "some layers have not the tensors of their scheme");
    if (!s->origin.source)
        report_partly(s->report, 7, "without --source weights are decoded, and compared with nothing");
    else if (unknown)
        report_partly(s->report, 7, "the source has no weight for some layers");
}

static void tell_unit(struct subject *s, const struct module_unit *u, const struct values *values,
                      struct inspect_unit *out)
{
    double source = 0, error = 0;
    bool compared = false;
    out->error = out->most = NAN;
    for (size_t i = 0; i < u->n_modules; i++) {
        const struct module *x = &s->modules.list[u->modules[i]];
        const struct values *v = &values[u->modules[i]];
        if (!has_values(x))
            continue;
        if (v->unreadable) {
            report_error(s->report, 7, x->name, "tensors that can be read", "one cannot");
            continue;
        }
        tell_scales(s, x, v);
        tell_weights(s, x, v);
        if (x->stored.kind == SCHEME_NVFP4 && !s->origin.is_searched && is_positive(v->global))
            tell_global(s, u, i, values);
        if (!v->has_source)
            continue;
        source += v->sum_source;
        error += v->sum_error;
        out->most = compared && out->most > v->most ? out->most : v->most;
        compared = true;
    }
    if (compared)
        out->error = relative(error, source);
}

bool check_values(struct subject *s, struct inspect_unit *out, struct err *e)
{
    struct values *values;
    const int64_t n = (int64_t)s->modules.n;
    bool ok = true;
    if (!mem_new(&values, s->modules.n + 1, e))
        return false;
#pragma omp parallel for schedule(dynamic, 1) if (s->files.bytes > WORTH_THREADS)
    for (int64_t i = 0; i < n; i++)
        if (has_values(&s->modules.list[i]))
            read_layer(s, &s->modules.list[i], &values[i]);
    for (size_t u = 0; u < s->modules.n_units; u++)
        tell_unit(s, &s->modules.units[u], values, &out[u]);
    for (int64_t i = 0; i < n; i++)
        ok = ok && !values[i].no_memory;
    tell_parts(s, values);
    mem_free(values);
    return ok || err_set(e, ERR_RESOURCE, "out of memory for decoding weights");
}
