/* Renderings of a unit's matrices, and their losses. */
#include "nodes/model/render.h"

#include <math.h>
#include <string.h>

#include "nodes/format/packed.h"

bool render_fits(const struct render *w, const struct unit *u, const struct format *f, char why[SERVING_TEXT])
{
    char unheard[SERVING_TEXT];
    struct serving_unit s = {.name = u->name, .n = u->n, .k = u->k, .is_head = u->role == ROLE_HEAD};
    for (int i = u->first + 1; i < u->first + u->count; i++)
        serving_add_seam(&s, w->model->matrices[i].row);
    return serving_fits(w->serving, f, &s, why ? why : unheard);
}

bool render_held_out(struct object *hessian, int64_t *tokens, struct err *e)
{
    int64_t *counts;
    uint64_t n;
    if (!object_load(hessian, "tokens", DTYPE_I64, &counts, &n, e))
        return false;
    *tokens = n > 1 ? counts[1] : 0;
    mem_free(counts);
    return true;
}

/* ----------------------------------------------------------------------------------------------------- one matrix */

bool render_measure(const struct queue *q, struct loss *l, const struct tensor *d, double *square, double *energy,
                    struct err *e)
{
    int64_t most = loss_rows(q->k);
    *square = *energy = 0.0;
    for (int64_t first = 0; first < d->shape[0]; first += most) {
        struct tensor rows = tensor_rows(d, first, d->shape[0] - first < most ? d->shape[0] - first : most);
        if (!loss_add(l, &rows, square, energy, e))
            return false;
    }
    return true;
}

/* Encode weights [n,k], which lie on the queue's device, and measure what is left of them, by as many rows as `left`
 * has room for. The codes have the same bits everywhere. */
static bool encode(struct queue *q, struct rendering *r, const struct tensor *weights, float amax, struct loss *l,
                   const struct tensor *left, double *square, double *energy, struct err *e)
{
    struct packed_matrix packed = packed_borrow(r);
    bool ok = !q->k->on_device || packed_new(q, r->format, r->n, r->k, r->source, &packed, e);
    *square = *energy = 0.0;
    for (int64_t first = 0; ok && first < r->n; first += left->shape[0]) {
        int64_t n = r->n - first < left->shape[0] ? r->n - first : left->shape[0];
        struct packed_matrix rows = packed_rows(&packed, first, n);
        struct tensor w = tensor_rows(weights, first, n), d = tensor_rows(left, 0, n);
        ok = q->k->encode(q, &w, amax, &rows, &d, e) && loss_add(l, &d, square, energy, e);
    }
    if (q->k->on_device) {
        ok = ok && packed_download(q, &packed, r, e);
        packed_free(q, &packed);
    }
    return ok;
}

void render_free(struct render *w)
{
    for (int i = 0; w->renderings && i < w->n_matrices * w->n_formats; i++)
        rendering_free(&w->renderings[i]);
    mem_free(w->renderings);
    w->renderings = NULL;
}

/* One unit in work: its weights, and room for what is left of some rows of them. On an accelerator there is a copy of
 * the matrix in hand. */
struct unit_work {
    float *weights;             /* [n,k] of the unit */
    float *moment, *held_out;   /* [k,k]; NULL if not needed or not there */
    float amax;                 /* of the unit */
    struct tensor matrix;       /* [n,k] of the matrix in hand, where the queue's kernels can read it */
    struct tensor left;         /* [loss_rows, k] */
    struct loss *loss;          /* what losses are told by; NULL with methods, which have their own */
    struct rounding rounding;   /* with methods */
};

/* To the nearest, in one format. */
static bool render_nearest(struct render *w, struct unit_work *uw, int matrix, int f, double *square, double *energy,
                           struct err *e)
{
    const struct matrix *m = &w->model->matrices[matrix];
    struct rendering *r = &w->renderings[(matrix - w->first_matrix) * w->n_formats + f];
    return format_rendering_new(r, w->formats[f], m->n, m->k, m->dtype, e) &&
           encode(w->q, r, &uw->matrix, uw->amax, uw->loss, &uw->left, square, energy, e);
}

/* By the chain of methods; all formats that have the codes of format `f` get them. */
static bool render_rounded(struct render *w, struct unit_work *uw, int matrix, const float *weights, int f,
                           struct rounding_step *steps, double *square, double *energy, struct err *e)
{
    const struct matrix *m = &w->model->matrices[matrix];
    struct blocks b = {0};
    bool ok = blocks_new(&b, w->formats[f], m->n, m->k, uw->amax, e) &&
              rounding_chain(&uw->rounding, w->methods, w->n_methods, weights, &b, steps, e) &&
              rounding_loss(uw->rounding.held_out, w->q, weights, &b, square, energy, e);
    for (int other = f; ok && other < w->n_formats; other++) {
        struct rendering *r = &w->renderings[(matrix - w->first_matrix) * w->n_formats + other];
        if (w->formats[other]->code != w->formats[f]->code ||
            !render_fits(w, &w->model->units[m->unit], w->formats[other], NULL))
            continue;
        ok = format_rendering_new(r, w->formats[other], m->n, m->k, m->dtype, e);
        if (ok)
            blocks_store(&b, r);
    }
    blocks_free(&b);
    return ok;
}

/* Set what is known of the matrix in format `f`, of which `square` and `energy` are lost. */
static void note_losses(struct render *w, int matrix, int f, double square, double energy, double all_square,
                        double all_energy, const struct rounding_step *steps)
{
    size_t at = (size_t)(matrix - w->first_matrix) * (size_t)w->n_formats + (size_t)f;
    w->of.weight_loss[at] = loss_ratio(square, all_square);
    w->of.output_loss[at] = loss_ratio(energy, all_energy);
    for (size_t i = 0; i < (size_t)w->n_methods; i++) {
        size_t step = at * (size_t)render_steps(w) + i;
        w->of.before[step] = loss_ratio(steps[i].before, all_energy);
        w->of.after[step] = loss_ratio(steps[i].after, all_energy);
        w->of.kept[step] = steps[i].kept;
    }
}

/* Not in the menu of its unit, or the source itself. */
static void note_none(struct render *w, int matrix, int f, double weight_loss, double output_loss)
{
    size_t at = (size_t)(matrix - w->first_matrix) * (size_t)w->n_formats + (size_t)f;
    w->of.weight_loss[at] = weight_loss;
    w->of.output_loss[at] = output_loss;
    for (size_t i = 0; i < (size_t)render_steps(w); i++)
        w->of.before[at * (size_t)render_steps(w) + i] = w->of.after[at * (size_t)render_steps(w) + i] = NAN;
}

int render_first_of_code(const struct render *w, const struct unit *u, int f)
{
    int i = 0;
    while (i < f && (w->formats[i]->code != w->formats[f]->code || !render_fits(w, u, w->formats[i], NULL)))
        i++;
    return i;
}

/* All formats of one matrix, which `all_square` and `all_energy` are the whole of. */
static bool render_formats(struct render *w, struct unit_work *uw, int matrix, const float *weights, double all_square,
                           double all_energy, struct err *e)
{
    const struct matrix *m = &w->model->matrices[matrix];
    const struct unit *u = &w->model->units[m->unit];
    struct rounding_step steps[MOST_FORMATS][MOST_METHODS] = {0};
    double square[MOST_FORMATS], energy[MOST_FORMATS];
    for (int f = 0; f < w->n_formats; f++) {
        int first = w->n_methods > 0 ? render_first_of_code(w, u, f) : f;
        if (!render_fits(w, u, w->formats[f], NULL)) {
            note_none(w, matrix, f, NAN, NAN);
            continue;
        }
        if (!w->formats[f]->group_format) { /* the source itself */
            note_none(w, matrix, f, 0.0, w->hessian ? 0.0 : NAN);
            continue;
        }
        bool ok = first < f || (w->n_methods == 0
            ? render_nearest(w, uw, matrix, f, &square[f], &energy[f], e)
            : render_rounded(w, uw, matrix, weights, f, steps[f], &square[f], &energy[f], e));
        if (!ok)
            return err_context(e, "%s in %s", m->name, w->formats[f]->name);
        note_losses(w, matrix, f, square[first], energy[first], all_square, all_energy, steps[first]);
    }
    return true;
}

static bool render_matrix(struct render *w, int matrix, struct unit_work *uw, struct err *e)
{
    const struct matrix *m = &w->model->matrices[matrix];
    struct queue *q = w->q;
    float *weights = uw->weights + m->row * m->k;
    double square, energy;
    uw->matrix = tensor_matrix(weights, DTYPE_F32, m->n, m->k);
    if (q->k->on_device &&
        (!q->k->tensor_new(q, &uw->matrix, DTYPE_F32, 2, (int64_t[]){m->n, m->k}, e) ||
         !q->k->upload(q, &uw->matrix, weights, (size_t)(m->n * m->k) * sizeof *weights, e)))
        return false;
    bool ok = render_measure(q, w->n_methods ? uw->rounding.held_out : uw->loss, &uw->matrix, &square, &energy, e) &&
              render_formats(w, uw, matrix, weights, square, energy, e);
    q->k->tensor_free(q, &uw->matrix);
    return ok;
}

/* ------------------------------------------------------------------------------------------------------- one unit */

bool render_moment(struct object *part, const struct unit *u, const char *which, float **moment, struct err *e)
{
    char name[640];
    uint64_t count;
    snprintf(name, sizeof name, "%s/%s", u->name, which);
    if (!object_load(part, name, DTYPE_F32, moment, &count, e))
        return false;
    if (count != (uint64_t)(u->k * u->k))
        return err_set(e, ERR_INPUT, "%s: '%s' has %llu values, the unit's input has %lld features; the hessian is of "
                       "another model", object_path(part), name, (unsigned long long)count, (long long)u->k);
    return true;
}

/* The moments that are needed of a unit's input, and its largest value, from the hessian's part of the layer. */
static bool read_input(struct render *w, struct object *part, const struct unit *u, struct unit_work *uw, float *amax,
                       struct err *e)
{
    char name[640];
    int64_t held_out;
    snprintf(name, sizeof name, "%s/amax", u->name);
    if (!object_read(part, name, DTYPE_F32, 0, 1, amax, e))
        return false;
    if (!(*amax >= 0.0f && *amax < INFINITY))
        return err_set(e, ERR_NUMERIC, "%s: '%s' is %g; the largest input must be finite", object_path(part), name,
                       (double)*amax);
    return render_held_out(w->hessian, &held_out, e) &&
           ((held_out > 0 && w->n_methods == 0) || render_moment(part, u, "second_moment", &uw->moment, e)) &&
           (held_out == 0 || render_moment(part, u, "held_out_moment", &uw->held_out, e));
}

/* Does any format of this unit use a static scale of its input? */
static bool wants_input_scale(const struct render *w, const struct unit *u)
{
    for (int f = 0; f < w->n_formats; f++)
        if (w->formats[f]->static_input_scale && render_fits(w, u, w->formats[f], NULL))
            return true;
    return false;
}

/* The unit's weights, their largest magnitude, and what takes losses. */
static bool open_unit(struct render *w, struct unit_work *uw, const struct unit *u, struct err *e)
{
    struct queue *q = w->q;
    bool ok = w->n_methods > 0
                  ? rounding_open(&uw->rounding, q, u->k, uw->moment, uw->held_out, &w->options, e)
                  : loss_new(&uw->loss, q, uw->held_out ? uw->held_out : uw->moment, u->k, e);
    if (!ok || !mem_raw(&uw->weights, (size_t)(u->n * u->k), e) ||
        (w->n_methods == 0 &&
         !q->k->tensor_new(q, &uw->left, DTYPE_F32, 2, (int64_t[]){loss_rows(q->k), u->k}, e)))
        return false;
    for (int i = u->first; i < u->first + u->count; i++) {
        const struct matrix *m = &w->model->matrices[i];
        float *at = uw->weights + m->row * u->k;
        if (!model_read_matrix(w->model, i, at, e))
            return false;
        if (!format_amax(at, m->n, m->k, &uw->amax, e))
            return err_context(e, "%s", m->name);
    }
    return true;
}

static void close_unit(struct render *w, struct unit_work *uw)
{
    w->q->k->tensor_free(w->q, &uw->matrix);
    w->q->k->tensor_free(w->q, &uw->left);
    mem_free(uw->weights);
    loss_free(uw->loss);
    rounding_close(&uw->rounding);
    mem_free(uw->moment);
    mem_free(uw->held_out);
}

bool render_unit(struct render *w, struct object *hessian, int unit, struct err *e)
{
    const struct unit *u = &w->model->units[unit];
    struct unit_work uw = {0};
    float input_amax = 0.0f;
    bool ok = !hessian || read_input(w, hessian, u, &uw, &input_amax, e);
    w->of.input_amax[unit - w->first_unit] = input_amax;
    w->of.input_scale[unit - w->first_unit] = wants_input_scale(w, u) ? grid_global(input_amax) : 0.0f;
    ok = ok && open_unit(w, &uw, u, e);
    for (int i = u->first; ok && i < u->first + u->count; i++)
        ok = node_stopping(w->node) ? node_stopped(e) : render_matrix(w, i, &uw, e);
    close_unit(w, &uw);
    return ok;
}
