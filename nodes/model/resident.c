#include "nodes/model/resident.h"

#include <string.h>

#include "engine/base/ahead.h"
#include "nodes/format/packed.h"

#define UNIT_MATRICES 4 /* the most of any unit */

/* One unit in one format. */
struct slot {
    struct packed_matrix there[UNIT_MATRICES];
    bool is_there, stays;                     /* on the device; and not only until it is used */
    void *host[UNIT_MATRICES][FORMAT_PARTS];  /* pinned copies, NULL without */
};

struct resident {
    struct resident_spec spec;
    struct slot *slots;       /* [unit, format] */
    struct ahead *reader;
    int layer;                /* that the reader is at or has read; -1: none */
    uint64_t wanted[LAYER_UNITS];
    uint64_t device_used, host_used;
    uint64_t brought, from_store;
};

static struct slot *slot_of(const struct resident *r, int unit, int format)
{
    return &r->slots[(size_t)unit * (size_t)r->spec.n_formats + (size_t)format];
}

static uint64_t unit_bytes(const struct model *m, int unit, const struct format *f)
{
    const struct unit *u = &m->units[unit];
    uint64_t bytes = 0;
    for (int i = u->first; i < u->first + u->count; i++)
        bytes += packed_bytes(f, m->matrices[i].n, m->matrices[i].k, m->matrices[i].dtype);
    return bytes;
}

void resident_sizes(const struct model *m, const char *const *names, int n_formats, uint64_t *all,
                    uint64_t *layer)
{
    uint64_t here = 0;
    *all = *layer = 0;
    for (int u = 0; u < m->n_units; u++) {
        here = u > 0 && m->units[u].layer == m->units[u - 1].layer ? here : 0;
        for (int f = 0; f < n_formats; f++) {
            const struct format *format = format_find(names[f]);
            here += format ? unit_bytes(m, u, format) : 0;
        }
        *layer = here > *layer ? here : *layer;
        *all += u + 1 == m->n_units || m->units[u + 1].layer != m->units[u].layer ? here : 0;
    }
}

/* ---------------------------------------------------------------------------------------------------- bringing */

/* A pinned copy of a rendering for the next time, if there is room; without one it is read again. */
static void keep_on_host(struct resident *r, struct queue *q, struct slot *s, int i, const struct rendering *x)
{
    struct err ignored;
    struct format_part parts[FORMAT_PARTS];
    int count = x->format->parts(x->n, x->k, x->source, parts);
    uint64_t bytes = packed_bytes(x->format, x->n, x->k, x->source);
    if (bytes > r->spec.host_bytes || r->host_used > r->spec.host_bytes - bytes)
        return;
    for (int p = 0; p < count; p++) {
        if (!q->k->host_new(q, &s->host[i][p], format_part_bytes(&parts[p]), &ignored)) {
            while (p-- > 0) {
                q->k->host_free(q, s->host[i][p]);
                s->host[i][p] = NULL;
            }
            r->spec.host_bytes = r->host_used; /* the system has no more */
            return;
        }
        memcpy(s->host[i][p], x->part[p], format_part_bytes(&parts[p]));
    }
    r->host_used += bytes;
}

static bool bring_matrix(struct resident *r, struct queue *q, struct slot *s, int matrix, int i, const char *format,
                         struct err *e)
{
    const struct matrix *m = &r->spec.model->matrices[matrix];
    struct rendering x = {.format = format_find(format), .n = m->n, .k = m->k, .source = m->dtype};
    bool is_read = !s->host[i][0];
    if (!x.format)
        return err_set(e, ERR_INPUT, "this build has no format '%s'", format);
    if (is_read && !renderings_read(r->spec.renderings, matrix, format, &x, e))
        return false;
    if (!is_read)
        memcpy(x.part, s->host[i], sizeof x.part);
    bool ok = packed_new(q, x.format, m->n, m->k, m->dtype, &s->there[i], e) &&
              packed_upload(q, &x, &s->there[i], e);
    uint64_t bytes = packed_bytes(x.format, m->n, m->k, m->dtype);
    r->brought += bytes;
    r->from_store += is_read ? bytes : 0;
    if (is_read && ok && !s->stays)
        keep_on_host(r, q, s, i, &x);
    if (is_read)
        rendering_free(&x);
    return ok;
}

static void drop(struct resident *r, struct queue *q, int unit, int format)
{
    struct slot *s = slot_of(r, unit, format);
    for (int i = 0; i < UNIT_MATRICES; i++)
        packed_free(q, &s->there[i]);
    if (s->stays)
        r->device_used -= unit_bytes(r->spec.model, unit, format_find(r->spec.format_names[format]));
    s->is_there = s->stays = false;
}

static bool bring(struct resident *r, struct queue *q, int unit, int format, struct err *e)
{
    struct slot *s = slot_of(r, unit, format);
    const struct unit *u = &r->spec.model->units[unit];
    const char *name = r->spec.format_names[format];
    const struct format *f = format_find(name);
    uint64_t bytes = f ? unit_bytes(r->spec.model, unit, f) : 0;
    if (s->is_there)
        return true;
    s->stays = r->device_used + bytes <= r->spec.device_bytes;
    r->device_used += s->stays ? bytes : 0;
    bool ok = true;
    for (int i = 0; ok && i < u->count; i++)
        ok = bring_matrix(r, q, s, u->first + i, i, name, e);
    s->is_there = ok;
    if (!ok)
        drop(r, q, unit, format);
    return ok;
}

/* The reader's thread. What it has brought is complete on the device when it says that it is done. */
static bool read_layer(void *context, struct err *e)
{
    struct resident *r = context;
    struct queue *q = r->spec.ahead;
    bool ok = q->k->enter(q, e);
    for (int role = 0; ok && role < LAYER_UNITS; role++)
        for (int f = 0; ok && f < r->spec.n_formats; f++)
            if (r->wanted[role] >> f & 1)
                ok = bring(r, q, r->layer * LAYER_UNITS + role, f, e);
    /* Also after a failure: what is there already may be used at once, and the rest may be freed. */
    struct err ignored;
    return q->k->finish(q, ok ? e : &ignored) && ok;
}

void resident_ahead(struct resident *r, int layer, const uint64_t wanted[LAYER_UNITS])
{
    struct err ignored;
    bool missing = false;
    /* What failed ahead is tried again when it is asked for, and fails there. */
    if (!ahead_wait(r->reader, &ignored))
        r->layer = -1;
    for (int role = 0; role < LAYER_UNITS; role++)
        for (int f = 0; f < r->spec.n_formats; f++)
            missing = missing || ((wanted[role] >> f & 1) && !slot_of(r, layer * LAYER_UNITS + role, f)->is_there);
    if (!missing)
        return;
    /* What was brought for earlier layers is free again only when the device has come past them. Without this wait the
     * host, which only hands work over, would bring layer after layer into memory that is not there. */
    if (!r->spec.q->k->finish(r->spec.q, &ignored))
        return;
    r->layer = layer;
    memcpy(r->wanted, wanted, sizeof r->wanted);
    ahead_start(r->reader);
}

/* ----------------------------------------------------------------------------------------------------- in use */

bool resident_load(struct resident *r, int unit, int format, struct unit_weights *out, struct err *e)
{
    const struct unit *u = &r->spec.model->units[unit];
    const struct format *f = format_find(r->spec.format_names[format]);
    struct err ignored;
    /* Only the reader's own layer is its to write; but to bring something here, it must have come to rest. */
    if (u->layer == r->layer || !slot_of(r, unit, format)->is_there)
        (void)!ahead_wait(r->reader, &ignored);
    if (!bring(r, r->spec.q, unit, format, e))
        return err_context(e, "unit '%s'", u->name);
    struct slot *s = slot_of(r, unit, format);
    bool ok = weights_unpack(r->spec.q, r->spec.model, unit, s->there, f->act, r->spec.mode, out, e);
    if (!s->stays)
        drop(r, r->spec.q, unit, format); /* in the order of the stream: after the decoding */
    return ok;
}

static void drop_all(struct resident *r)
{
    struct err ignored;
    (void)!ahead_wait(r->reader, &ignored);
    r->layer = -1;
    for (int u = 0; u < r->spec.model->n_units; u++)
        for (int f = 0; f < r->spec.n_formats; f++)
            drop(r, r->spec.q, u, f);
}

void resident_shrink(struct resident *r)
{
    drop_all(r);
    r->spec.device_bytes /= 2;
}

bool resident_new(struct resident **out, const struct resident_spec *s, struct err *e)
{
    struct resident *r;
    if (!mem_new(&r, 1, e))
        return false;
    r->spec = *s;
    r->layer = -1;
    if (!mem_new(&r->slots, (size_t)s->model->n_units * (size_t)s->n_formats, e) ||
        !ahead_new(&r->reader, read_layer, r, e)) {
        mem_free(r->slots);
        mem_free(r);
        return false;
    }
    *out = r;
    return true;
}

void resident_free(struct resident *r)
{
    if (!r)
        return;
    struct err ignored;
    drop_all(r);
    ahead_free(r->reader);
    (void)!r->spec.q->k->finish(r->spec.q, &ignored); /* copies from the pinned memory may be under way */
    for (size_t i = 0; i < (size_t)r->spec.model->n_units * (size_t)r->spec.n_formats; i++)
        for (int m = 0; m < UNIT_MATRICES; m++)
            for (int p = 0; p < FORMAT_PARTS; p++)
                r->spec.q->k->host_free(r->spec.q, r->slots[i].host[m][p]);
    mem_free(r->slots);
    mem_free(r);
}

void resident_traffic(struct resident *r, uint64_t *brought, uint64_t *from_store)
{
    struct err ignored;
    (void)!ahead_wait(r->reader, &ignored);
    *brought = r->brought;
    *from_store = r->from_store;
}
