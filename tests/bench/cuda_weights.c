/* Weights that stay on the device against weights that are brought layer by layer, both by nodes/model/resident.c. It
 * asks renderings_read for what it does not have yet; here this function copies from host memory, and the linker takes
 * it in place of the one of nodes/model/renderings.c, which reads a store that 27B shapes would take minutes to fill.
 * All else, the pinned copies, the second queue and its thread, and what waits for what, is that of a run. */
#include "tests/bench/cuda_weights.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#define LAYER_MATRICES 7 /* q, k, v, o, gate, up, down */
#define MOST_LANES 4
#define MOST_RATIO 1.10  /* brought over resident, of nvfp4 for so many lanes */

const char *const bench_formats[BENCH_FORMATS] = {"nvfp4", "fp8", "int4_g32", "mxfp8", "bf16"};

struct renderings {
    const struct model *model;
    struct rendering made[BENCH_FORMATS][LAYER_MATRICES]; /* of every layer */
};

/* May be called from the thread that brings weights. */
bool renderings_read(struct renderings *r, int matrix, const char *format_name, struct rendering *out, struct err *e)
{
    const struct matrix *m = &r->model->matrices[matrix];
    struct format_part parts[FORMAT_PARTS];
    int format = 0;
    while (strcmp(bench_formats[format], format_name) != 0)
        format++;
    const struct rendering *made = &r->made[format][matrix % LAYER_MATRICES];
    if (!format_rendering_new(out, made->format, m->n, m->k, m->dtype, e))
        return false;
    int count = made->format->parts(m->n, m->k, m->dtype, parts);
    for (int i = 0; i < count; i++)
        memcpy(out->part[i], made->part[i], format_part_bytes(&parts[i]));
    return true;
}

/* ----------------------------------------------------------------------------------------------------------- making */

/* Rows [m->row, m->row + m->n) of the unit's weight: encoded from w, or as its panels have them. */
static void make_rendering(struct bench *b, const struct matrix *m, const struct tensor *w, const struct tensor *panels,
                           float amax, const struct format *f, struct rendering *out)
{
    struct err e;
    bench_must(format_rendering_new(out, f, m->n, m->k, m->dtype, &e), &e);
    struct tensor rows = tensor_rows(w, m->row, m->n);
    struct packed_matrix p = {.code = f->code, .n = m->n, .k = m->k};
    if (f->code == CODE_PLAIN) {
        p.part[0] = tensor_rows(panels, m->row, m->n);
        p.part[0].layout = TENSOR_ROWS; /* columns are a multiple of 16, so panels have no padding */
    } else {
        struct tensor d = bench_new(b, DTYPE_F32, m->n, m->k);
        bench_must(packed_new(b->q, f, m->n, m->k, m->dtype, &p, &e) &&
                       b->k->encode(b->q, &rows, amax, &p, &d, &e), &e);
        bench_free(b, &d);
    }
    bench_must(packed_download(b->q, &p, out, &e), &e);
    packed_free(b->q, &p);
}

static struct renderings *make_renderings(struct bench *b, const struct model *m, float size)
{
    struct err e;
    struct renderings *r;
    bench_must(mem_new(&r, 1, &e), &e);
    r->model = m;
    for (int u = 0; u < LAYER_UNITS; u++) {
        const struct unit *unit = &m->units[u];
        struct tensor w = bench_new(b, DTYPE_F32, unit->n, unit->k), panels = bench_panels(b, unit->n, unit->k, size);
        bench_fill(b, &w, size);
        for (int i = unit->first; i < unit->first + unit->count; i++)
            for (int f = 0; f < BENCH_FORMATS; f++)
                make_rendering(b, &m->matrices[i], &w, &panels, 4.0f * size, format_find(bench_formats[f]),
                               &r->made[f][i]);
        bench_free(b, &w);
        bench_free(b, &panels);
    }
    return r;
}

void bench_weights_open(struct bench_weights *w, struct bench *b, const struct model *m, float size)
{
    struct err e;
    *w = (struct bench_weights){.b = b, .renderings = make_renderings(b, m, size)};
    bench_must(b->k->twin_new(b->q, &w->ahead, &e), &e);
    struct resident_spec spec = {.q = b->q, .ahead = w->ahead, .model = m, .renderings = w->renderings,
                                 .format_names = bench_formats, .n_formats = BENCH_FORMATS, .mode = DTYPE_BF16,
                                 .device_bytes = UINT64_MAX};
    bench_must(resident_new(&w->resident, &spec, &e), &e);
    spec.device_bytes = 0;
    spec.host_bytes = UINT64_MAX;
    bench_must(resident_new(&w->streamed, &spec, &e), &e);
}

void bench_weights_close(struct bench_weights *w)
{
    resident_free(w->resident);
    resident_free(w->streamed);
    w->b->k->twin_free(w->ahead);
    for (int f = 0; f < BENCH_FORMATS; f++)
        for (int i = 0; i < LAYER_MATRICES; i++)
            rendering_free(&w->renderings->made[f][i]);
    mem_free(w->renderings);
}

bool bench_weights_load(struct resident *from, int unit, int format, struct unit_weights *out, struct err *e)
{
    const struct format *f = format_find(bench_formats[format]);
    *out = (struct unit_weights){.act = f->act, .act_scale = f->static_input_scale ? 2688.0f / 8.0f : 0.0f};
    return resident_load(from, unit, format, out, e);
}

/* -------------------------------------------------------------------------------------------------------- streaming */

struct sweep {
    struct forward *f;
    struct resident *from;
    int format, lanes;
};

/* The layers for all lanes, as pass.c goes through them; 0 lanes compute nothing. A pass waits long for its first layer
 * only. These few stand for the many of a whole model, and so are a ring: the first one comes while the last one is
 * computed, and each sweep brings every layer once. */
static void run_sweep(struct bench *b, void *context, int turn)
{
    struct err e;
    const struct sweep *s = context;
    const uint64_t nothing[LAYER_UNITS] = {0};
    uint64_t wanted[LAYER_UNITS];
    (void)turn;
    for (int u = 0; u < LAYER_UNITS; u++)
        wanted[u] = UINT64_C(1) << s->format;
    resident_ahead(s->from, 0, wanted); /* the last sweep has brought it, but for the first one */
    for (int l = 0; l < b->s.layers; l++) {
        struct unit_weights w[LAYER_UNITS];
        resident_ahead(s->from, (l + 1) % b->s.layers, wanted);
        for (int u = 0; u < LAYER_UNITS; u++)
            bench_must(bench_weights_load(s->from, l * LAYER_UNITS + u, s->format, &w[u], &e), &e);
        for (int i = 0; i < s->lanes; i++) {
            struct tensor x = bench_view(b, BLOCK_X, i, bench_rows(b), b->s.hidden);
            bench_must(forward_layer(s->f, l, w, &x, NULL, NULL, &e), &e);
        }
        for (int u = 0; u < LAYER_UNITS; u++)
            unit_weights_free(b->q, &w[u]);
    }
    resident_ahead(s->from, 0, nothing); /* waits until the layer that is on its way has come */
}

static uint64_t from_store(struct resident *r)
{
    uint64_t brought, read;
    resident_traffic(r, &brought, &read);
    return read;
}

static void tell_lanes(struct bench *b, struct sweep *streamed, struct sweep *resident, double bytes)
{
    char what[96], name[160];
    int lanes = streamed->lanes;
    bool judged = streamed->format == BENCH_NVFP4 && lanes == MOST_LANES;
    struct bench_ceiling other = {.run = run_sweep, .context = resident, .work = 1.0, .repeat = 1};
    struct bench_time t = bench_time(b, run_sweep, streamed, 1.0, lanes > 0 ? &other : NULL);
    snprintf(what, sizeof what, "%s, %d lane%s of %lld rows", bench_formats[streamed->format], lanes,
             lanes == 1 ? "" : "s", (long long)bench_rows(b));
    if (lanes > 0) {
        snprintf(name, sizeof name, "%s: time of a layer, weights brought / resident", what);
        bench_figure_most(b, name, 1.0 / t.share, "", judged ? MOST_RATIO : NAN);
    }
    snprintf(name, sizeof name, "%s: brought from pinned host memory%s", what, lanes > 0 ? " meanwhile" : ", alone");
    bench_figure(b, name, bytes / t.seconds * 1e-9, "GB/s", NAN);
}

void bench_weights_streamed(struct bench_weights *w, struct forward *f)
{
    static const int brought[] = {BENCH_NVFP4, BENCH_BF16}, lanes[] = {0, 1, MOST_LANES};
    struct bench *b = w->b;
    struct err e;
    for (size_t i = 0; i < sizeof brought / sizeof *brought; i++) {
        uint64_t all, layer;
        struct sweep streamed = {.f = f, .from = w->streamed, .format = brought[i]}, resident = streamed;
        resident.from = w->resident;
        run_sweep(b, &streamed, 0); /* both have what they keep from here on */
        run_sweep(b, &resident, 0);
        uint64_t read = from_store(w->streamed);
        resident_sizes(f->model, &bench_formats[brought[i]], 1, &all, &layer);
        for (size_t n = 0; n < sizeof lanes / sizeof *lanes; n++) {
            streamed.lanes = resident.lanes = lanes[n];
            tell_lanes(b, &streamed, &resident, (double)all);
        }
        bench_must(from_store(w->streamed) == read ||
                       err_set(&e, ERR_RESOURCE, "%.1f GiB of pinned host memory are not to be had",
                               (double)all * 0x1p-30), &e);
    }
}
