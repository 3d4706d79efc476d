/* The step block_match over all formats of a layer: formats of equal codes are refitted once, and what has new scales
 * is measured again. */
#include <string.h>

#include "nodes/model/render.h"

#define MOST_MATRICES 16 /* of a layer */

/* What a refit of its scales makes of a matrix' losses. */
static bool measure_again(struct render *w, struct object *hessian, int matrix, int f, struct err *e)
{
    const struct matrix *m = &w->model->matrices[matrix];
    const struct rendering *r = &w->renderings[(matrix - w->first_matrix) * w->n_formats + f];
    float *weights = NULL, *moment = NULL;
    struct loss *l = NULL;
    struct blocks b = {0};
    double all_square, all_energy, square, energy;
    struct queue *q = &w->host;
    bool ok = mem_raw(&weights, (size_t)(m->n * m->k), e) && model_read_matrix(w->model, matrix, weights, e) &&
              render_moment(hessian, &w->model->units[m->unit], "held_out_moment", &moment, e) &&
              loss_new(&l, q, moment, m->k, e) && blocks_new(&b, r->format, m->n, m->k, 0.0f, e);
    if (ok) {
        struct tensor whole = tensor_matrix(weights, DTYPE_F32, m->n, m->k);
        blocks_load(&b, r);
        ok = render_measure(q, l, &whole, &all_square, &all_energy, e) &&
             rounding_loss(l, q, weights, &b, &square, &energy, e);
    }
    size_t at = (size_t)(matrix - w->first_matrix) * (size_t)w->n_formats + (size_t)f;
    if (ok) {
        w->of.weight_loss[at] = loss_ratio(square, all_square);
        w->of.output_loss[at] = loss_ratio(energy, all_energy);
    }
    blocks_free(&b);
    loss_free(l);
    mem_free(moment);
    mem_free(weights);
    return ok;
}

/* Format `f` of matrix i of the layer has new scales: also those that have its codes, and its losses. */
static bool spread_scales(struct render *w, struct object *hessian, int i, int f, struct err *e)
{
    const struct rendering *from = &w->renderings[i * w->n_formats + f];
    struct format_part parts[FORMAT_PARTS];
    int count = from->format->parts(from->n, from->k, from->source, parts);
    size_t at = (size_t)(i * w->n_formats);
    if (!measure_again(w, hessian, w->first_matrix + i, f, e))
        return false;
    for (int other = f + 1; other < w->n_formats; other++) {
        struct rendering *to = &w->renderings[i * w->n_formats + other];
        if (!to->format || to->format->code != from->format->code)
            continue;
        for (int p = 1; p < count; p++)
            memcpy(to->part[p], from->part[p], format_part_bytes(&parts[p]));
        w->of.weight_loss[at + (size_t)other] = w->of.weight_loss[at + (size_t)f];
        w->of.output_loss[at + (size_t)other] = w->of.output_loss[at + (size_t)f];
    }
    return true;
}

static void note_match(struct render *w, int i, enum weight_code code, const struct rounding_step *step)
{
    for (int f = 0; f < w->n_formats; f++) {
        size_t at = ((size_t)(i * w->n_formats + f) + 1) * (size_t)render_steps(w) - 1;
        if (w->formats[f]->code != code || !w->renderings[i * w->n_formats + f].format)
            continue;
        w->of.before[at] = step->before;
        w->of.after[at] = step->after;
        w->of.kept[at] = step->kept;
    }
}

/* All matrices of the layer that have the codes of format `f`. */
static bool match_format(struct render *w, struct object *hessian, int f, struct err *e)
{
    struct rendering r[MOST_MATRICES] = {0};
    struct rounding_step steps[LAYER_UNITS];
    int first[MOST_MATRICES];
    if (w->n_matrices > MOST_MATRICES)
        return err_set(e, ERR_BUG, "a layer of %d matrices", w->n_matrices);
    for (int i = 0; i < w->n_matrices; i++) {
        first[i] = render_first_of_code(w, &w->model->units[w->model->matrices[w->first_matrix + i].unit], f);
        r[i] = w->renderings[i * w->n_formats + first[i]];
    }
    bool ok = block_match_refit(w->match, r, steps, e);
    for (int i = 0; i < w->n_matrices; i++)
        w->renderings[i * w->n_formats + first[i]] = r[i];
    for (int i = 0; ok && i < w->n_matrices; i++) {
        const struct rounding_step *step = &steps[w->model->matrices[w->first_matrix + i].unit - w->first_unit];
        if (r[i].format)
            note_match(w, i, w->formats[f]->code, step);
        if (r[i].format && step->kept)
            ok = spread_scales(w, hessian, i, first[i], e);
    }
    return ok;
}

bool render_match(struct render *w, struct object *hessian, struct err *e)
{
    for (int f = 0; f < w->n_formats; f++) {
        bool is_first = w->formats[f]->group_format != NULL;
        for (int before = 0; before < f; before++)
            is_first = is_first && w->formats[before]->code != w->formats[f]->code;
        if (node_stopping(w->node))
            return node_stopped(e);
        if (is_first && !match_format(w, hessian, f, e))
            return err_context(e, "%s", w->formats[f]->name);
    }
    return true;
}
