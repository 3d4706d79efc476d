/* From renderings to what the products read. The f32 form of a unit never exists in whole. */
#include "nodes/format/packed.h"
#include "nodes/model/forward.h"

#include <omp.h>
#include <stdatomic.h>
#include <string.h>

#define BLOCK_ROWS 64 /* a multiple of 16, as kernels->pack wants */

/* Rows [first, first + n) of the unit's fused matrix to out [n, K]; they may straddle its matrices. */
static void decode_rows(const struct model *m, const struct unit *u, const struct rendering *r, int64_t first,
                        int64_t n, float *out)
{
    for (int i = 0; i < u->count; i++) {
        const struct matrix *x = &m->matrices[u->first + i];
        int64_t begin = first > x->row ? first : x->row;
        int64_t end = first + n < x->row + x->n ? first + n : x->row + x->n;
        if (begin < end)
            r[i].format->decode(&r[i], begin - x->row, end - begin, out + (begin - first) * u->k);
    }
}

void unit_weights_free(struct queue *q, struct unit_weights *w)
{
    q->k->tensor_free(q, &w->panels);
    if (w->native.codes.data)
        q->k->native_free(q, &w->native);
    *w = (struct unit_weights){0};
}

bool weights_unpack(struct queue *q, const struct model *m, int unit, const struct packed_matrix *packed,
                    enum act_rule rule, enum dtype mode, struct unit_weights *out, struct err *e)
{
    const struct unit *u = &m->units[unit];
    struct tensor panels = {0};
    struct native_matrix native = {0};
    bool is_native = false;
    bool wanted = q->native && u->role != ROLE_HEAD; /* the head is multiplied by tiles of its rows */
    if (wanted && !q->k->native_fits(q, packed[0].code, rule, u->n, u->k, &is_native, e))
        return err_context(e, "unit '%s'", u->name);
    bool ok = is_native ? q->k->native_new(q, packed[0].code, u->n, u->k, &native, e)
                        : q->k->panels_new(q, &panels, u->n, u->k, mode, e);
    for (int i = 0; ok && i < u->count; i++) {
        int64_t row = m->matrices[u->first + i].row;
        ok = is_native ? q->k->native_pack(q, &packed[i], row, &native, e)
                       : q->k->unpack(q, &packed[i], row, &panels, e);
    }
    out->panels = panels;
    out->native = native;
    if (!ok) {
        unit_weights_free(q, out);
        return err_context(e, "unit '%s'", u->name);
    }
    return true;
}

/* On an accelerator: the packed parts go there as they are. */
static bool pack_there(struct queue *q, const struct model *m, int unit, const struct rendering *r, enum dtype mode,
                       struct unit_weights *out, struct err *e)
{
    const struct unit *u = &m->units[unit];
    struct packed_matrix packed[4] = {0};
    bool ok = true;
    for (int i = 0; ok && i < u->count; i++) {
        const struct matrix *x = &m->matrices[u->first + i];
        ok = packed_new(q, r[i].format, x->n, x->k, r[i].source, &packed[i], e) &&
             packed_upload(q, &r[i], &packed[i], e);
    }
    ok = ok && weights_unpack(q, m, unit, packed, r[0].format->act, mode, out, e);
    for (int i = 0; i < u->count; i++)
        packed_free(q, &packed[i]);
    return ok;
}

/* On the CPU: decoded by rows, and packed block by block. */
static bool pack_here(struct queue *q, const struct model *m, int unit, const struct rendering *r, enum dtype mode,
                      struct tensor *panels, struct err *e)
{
    const struct unit *u = &m->units[unit];
    struct tensor p = {0};
    float *rows;
    size_t block = (size_t)(BLOCK_ROWS * u->k);
    if (!mem_raw(&rows, block * (size_t)q->threads, e))
        return false;
    if (!q->k->panels_new(q, &p, u->n, u->k, mode, e)) {
        mem_free(rows);
        return false;
    }
    int64_t blocks = (u->n + BLOCK_ROWS - 1) / BLOCK_ROWS;
    atomic_bool failed = false;
    struct err first_error = {0};
#pragma omp parallel num_threads(q->threads)
    {
        /* Each thread packs its own blocks on a queue of one thread. */
        struct queue single = *q;
        single.threads = 1;
        float *mine = rows + block * (size_t)omp_get_thread_num();
#pragma omp for schedule(static)
        for (int64_t b = 0; b < blocks; b++) {
            int64_t first = b * BLOCK_ROWS, n = u->n - first < BLOCK_ROWS ? u->n - first : BLOCK_ROWS;
            struct tensor w = tensor_matrix(mine, DTYPE_F32, n, u->k);
            struct err local = {0};
            decode_rows(m, u, r, first, n, mine);
            if (!atomic_load(&failed) && !q->k->pack(&single, &w, first, &p, &local) && !atomic_exchange(&failed, true))
                first_error = local;
        }
    }
    mem_free(rows);
    if (atomic_load(&failed)) {
        *e = first_error;
        q->k->tensor_free(q, &p);
        return err_context(e, "unit '%s'", u->name);
    }
    *panels = p;
    return true;
}

bool weights_pack(struct queue *q, const struct model *m, int unit, const struct rendering *r, enum dtype mode,
                  struct unit_weights *out, struct err *e)
{
    return q->k->on_device ? pack_there(q, m, unit, r, mode, out, e) : pack_here(q, m, unit, r, mode, &out->panels, e);
}

bool weights_stored(struct queue *q, const struct model *m, int unit, enum dtype mode, struct unit_weights *out,
                    struct err *e)
{
    const struct unit *u = &m->units[unit];
    struct rendering r[4] = {0};
    bool ok = true;
    for (int i = 0; ok && i < u->count; i++)
        ok = model_read_rendering(m, u->first + i, &r[i], e);
    *out = (struct unit_weights){.act = ACT_NONE};
    if (ok) {
        const struct format *f = m->matrices[u->first].stored;
        out->act = f->act;
        ok = !f->static_input_scale || model_input_scale(m, unit, &out->act_scale, e);
    }
    ok = ok && weights_pack(q, m, unit, r, mode, out, e);
    for (int i = 0; i < u->count; i++)
        rendering_free(&r[i]);
    return ok;
}
