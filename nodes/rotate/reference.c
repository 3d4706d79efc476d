#include "nodes/rotate/reference.h"

#include <string.h>

/* One form of the model on its way through a pass. */
struct form {
    const struct model *model;
    struct forward f;
    const struct format *by;
    const float *amax;
    double *kl_window, sum;
};

static bool unit_fits(const struct model *m, const struct unit *u, const struct format *f)
{
    for (int i = u->first; i < u->first + u->count; i++)
        if (!format_fits(f, m->matrices[i].n, m->matrices[i].k))
            return false;
    return true;
}

/* The renderings of a unit, rounded to nearest; those made are in r also when it fails. */
static bool render(const struct form *x, const struct unit *u, struct rendering r[4], struct err *e)
{
    const struct matrix *m = &x->model->matrices[u->first];
    float *w, amax = 0.0f;
    if (!mem_raw(&w, (size_t)u->parameters, e))
        return false;
    bool ok = true;
    for (int i = 0; ok && i < u->count; i++)
        ok = model_read_matrix(x->model, u->first + i, w + m[i].row * u->k, e) &&
             format_amax(w + m[i].row * u->k, m[i].n, m[i].k, &amax, e);
    for (int i = 0; ok && i < u->count; i++)
        ok = (format_rendering_new(&r[i], x->by, m[i].n, m[i].k, m[i].dtype, e) &&
              x->by->encode(w + m[i].row * u->k, amax, &r[i], e)) ||
             err_context(e, "%s in %s", m[i].name, x->by->name);
    mem_free(w);
    return ok;
}

static bool load(void *context, int unit, int format, struct unit_weights *out, struct err *e)
{
    struct form *x = context;
    const struct unit *u = &x->model->units[unit];
    struct rendering r[4] = {0};
    (void)format;
    if (!x->by || !unit_fits(x->model, u, x->by))
        return weights_stored(x->f.q, x->model, unit, DTYPE_F32, out, e);
    *out = (struct unit_weights){.act = x->by->act};
    if (x->by->static_input_scale)
        out->act_scale = x->amax[unit] > 0.0f ? 2688.0f / x->amax[unit] : 1.0f;
    bool ok = render(x, u, r, e) && weights_pack(x->f.q, x->model, unit, r, DTYPE_F32, out, e);
    for (int i = 0; i < u->count; i++)
        rendering_free(&r[i]);
    return ok;
}

static bool take_row(void *context, size_t candidate, size_t window, const struct pass_row *row, struct err *e)
{
    struct form *x = context;
    (void)candidate, (void)e;
    x->kl_window[window] = row->kl_sum / row->n_tokens;
    x->sum += row->kl_sum;
    return true;
}

/* `format` indices mean nothing here: all are 0. */
static bool new_assignment(const struct model *m, uint8_t **out, struct err *e)
{
    return mem_new(out, (size_t)m->n_units, e);
}

bool reference_open(struct reference *out, struct node *node, const struct model *m, const struct token_set *tokens,
                    uint32_t n, struct err *e)
{
    struct reference r = {.node = node, .model = m, .tokens = tokens, .n = n};
    struct form x = {.model = m};
    uint8_t *assignment = NULL;
    size_t row = (size_t)tokens->window * (size_t)m->config.hidden;
    bool ok = new_assignment(m, &assignment, e) && mem_new(&r.windows, n, e) && mem_raw(&r.states, n * row, e) &&
              forward_open(&x.f, m, node_queue(node), DTYPE_F32, (int)tokens->window, e);
    for (uint32_t w = 0; ok && w < n; w++)
        r.windows[w] = w;
    struct pass p = {.f = &x.f, .tokens = tokens, .weights = {.load = load, .context = &x}, .share = true,
                     .node = node};
    ok = ok && pass_states(&p, assignment, r.windows, n, r.states, e);
    r.f = x.f;
    mem_free(assignment);
    if (!ok) {
        reference_close(&r);
        return false;
    }
    *out = r;
    return true;
}

void reference_close(struct reference *r)
{
    forward_close(&r->f);
    mem_free(r->windows);
    mem_free(r->states);
    *r = (struct reference){0};
}

bool reference_kl(struct reference *r, const struct model *m, const struct format *by, const float *amax,
                  double *kl_window, double *kl, struct err *e)
{
    struct form x = {.model = m, .by = by, .amax = amax, .kl_window = kl_window};
    uint8_t *assignment = NULL;
    double scored = 0.0;
    bool ok = new_assignment(m, &assignment, e) &&
              forward_open(&x.f, m, node_queue(r->node), DTYPE_F32, (int)r->tokens->window, e);
    struct pass p = {.f = &x.f, .tokens = r->tokens, .teacher = r->states, .teacher_head = &r->f.head,
                     .weights = {.load = load, .context = &x}, .share = true, .node = r->node};
    const uint8_t *list[1] = {assignment};
    ok = ok && pass_run(&p, list, 1, r->windows, r->n, take_row, &x, e);
    for (uint32_t w = 0; w < r->n; w++)
        scored += tokens_scored(r->tokens, w);
    *kl = x.sum / scored;
    forward_close(&x.f);
    mem_free(assignment);
    return ok;
}

uint64_t reference_memory(const struct kernels *k, const struct model *m, uint32_t n, uint32_t slots)
{
    uint64_t layer = 0, most = 0, states = (uint64_t)n * slots * (uint64_t)m->config.hidden * 4;
    struct needs pass = {0};
    for (int u = 0; u < LAYER_UNITS; u++) {
        layer += m->units[u].parameters * 4;
        most = m->units[u].parameters > most ? m->units[u].parameters : most;
    }
    forward_needs(k, m, DTYPE_F32, (int)slots, &pass);
    /* A layer's panels, and a unit's weights and codes; the reference's states, and those of the pass twice. */
    return 2 * pass.memory + layer + 8 * most + 3 * states;
}
