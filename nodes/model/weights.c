/* From renderings to what the products read. The f32 form of a unit never exists in whole. */
#include "nodes/format/packed.h"
#include "nodes/model/forward.h"
#include "nodes/model/renderings.h"

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

bool weights_pack(struct queue *q, const struct model *m, int unit, const struct rendering *r, enum dtype mode,
                  struct unit_weights *out, struct err *e)
{
    const struct unit *u = &m->units[unit];
    struct packed_matrix packed[4] = {0};
    bool ok = true;
    for (int i = 0; ok && i < u->count; i++)
        ok = packed_open(q, &r[i], &packed[i], e);
    ok = ok && weights_unpack(q, m, unit, packed, r[0].format->act, mode, out, e);
    for (int i = 0; i < u->count; i++)
        packed_free(q, &packed[i]);
    return ok;
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
