/* Renderings of a unit's matrices, and their losses. */
#include "nodes/model/render.h"

#include <math.h>
#include <string.h>

#include "nodes/format/packed.h"

#define ENCODE_ROWS 64 /* rows that one thread encodes at a time */
#define DECODE_ROWS 16 /* and decodes */

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

/* Rows [first, first + n) of a rendering as a rendering of its own. What belongs to the whole matrix (parts of rank 1)
 * is written by the piece that starts at row 0, and by the others into `spare`, one per part. */
static struct rendering rows_of(const struct rendering *r, int64_t first, int64_t n, uint64_t spare[FORMAT_PARTS])
{
    struct format_part parts[FORMAT_PARTS];
    int count = r->format->parts(r->n, r->k, r->source, parts);
    struct rendering piece = *r;
    piece.n = n;
    for (int i = 0; i < count; i++) {
        if (parts[i].rank == 2)
            piece.part[i] = (char *)r->part[i] + format_part_bytes(&parts[i]) / (uint64_t)r->n * (uint64_t)first;
        else if (first > 0)
            piece.part[i] = &spare[i];
    }
    return piece;
}

static bool encode_parallel(struct rendering *r, const float *weights, float amax, int threads, struct err *e)
{
    int64_t rows = weight_grid[r->format->code].rows > 1 ? r->n : ENCODE_ROWS; /* tiles are not cut */
    int64_t n_pieces = (r->n + rows - 1) / rows, failed = n_pieces;
#pragma omp parallel for schedule(dynamic) num_threads(threads)
    for (int64_t i = 0; i < n_pieces; i++) {
        int64_t first = i * rows, n = r->n - first < rows ? r->n - first : rows;
        uint64_t spare[FORMAT_PARTS];
        struct err mine = {0};
        struct rendering piece = rows_of(r, first, n, spare);
        if (r->format->encode(weights + first * r->k, amax, &piece, &mine))
            continue;
#pragma omp critical(quantize_encode)
        if (i < failed) {
            failed = i;
            *e = mine;
        }
    }
    if (failed < n_pieces)
        return err_context(e, "in the piece from row %lld on", (long long)(failed * rows));
    return true;
}

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

/* Encode on the host, and measure rendering minus weights by LOSS_ROWS rows. */
static bool encode_here(struct render *w, struct rendering *r, const float *weights, float amax, struct loss *l,
                        float *rows, double *square, double *energy, struct err *e)
{
    int threads = node_threads(w->node);
    *square = *energy = 0.0;
    if (!encode_parallel(r, weights, amax, threads, e))
        return false;
    for (int64_t first = 0; first < r->n; first += LOSS_ROWS) {
        int64_t count = r->n - first < LOSS_ROWS ? r->n - first : LOSS_ROWS;
        const float *source = weights + first * r->k;
#pragma omp parallel for schedule(static) num_threads(threads)
        for (int64_t row = 0; row < count; row += DECODE_ROWS) {
            int64_t some = count - row < DECODE_ROWS ? count - row : DECODE_ROWS;
            float *d = rows + row * r->k;
            r->format->decode(r, first + row, some, d);
            for (int64_t i = 0; i < some * r->k; i++)
                d[i] -= source[row * r->k + i];
        }
        struct tensor d = tensor_matrix(rows, DTYPE_F32, count, r->k);
        if (!loss_add(l, &d, square, energy, e))
            return false;
    }
    return true;
}

/* The same on an accelerator; `weights` [n,k] and `d` lie there. The codes have the bits of the host's. */
static bool encode_there(struct queue *q, struct rendering *r, const struct tensor *weights, float amax,
                         struct loss *l, struct tensor *d, double *square, double *energy, struct err *e)
{
    struct packed_matrix packed;
    if (!packed_new(q, r->format, r->n, r->k, r->source, &packed, e))
        return false;
    bool ok = q->k->encode(q, weights, amax, &packed, d, e) && packed_download(q, &packed, r, e) &&
              render_measure(q, l, d, square, energy, e);
    packed_free(q, &packed);
    return ok;
}

void render_free(struct render *w)
{
    for (int i = 0; w->renderings && i < w->n_matrices * w->n_formats; i++)
        rendering_free(&w->renderings[i]);
    mem_free(w->renderings);
    w->renderings = NULL;
}

/* One unit in work: its weights, and room for differences of rows. On an accelerator there is a copy of the matrix in
 * hand, and room for the whole of its differences. */
struct unit_work {
    float *weights;             /* [n,k] of the unit */
    float *moment, *held_out;   /* [k,k]; NULL if not needed or not there */
    float amax;                 /* of the unit */
    float *rows;                /* [LOSS_ROWS, k]; host only */
    struct tensor there, there_d; /* [n of the matrix, k] */
    struct loss *loss;          /* what losses are told by; NULL with methods, which have their own */
    struct rounding rounding;   /* with methods */
};

/* To the nearest, in one format. */
static bool render_nearest(struct render *w, struct unit_work *uw, int matrix, const float *weights, int f,
                           double *square, double *energy, struct err *e)
{
    const struct matrix *m = &w->model->matrices[matrix];
    struct rendering *r = &w->renderings[(matrix - w->first_matrix) * w->n_formats + f];
    if (!format_rendering_new(r, w->formats[f], m->n, m->k, m->dtype, e))
        return false;
    return w->q->k->on_device
               ? encode_there(w->q, r, &uw->there, uw->amax, uw->loss, &uw->there_d, square, energy, e)
               : encode_here(w, r, weights, uw->amax, uw->loss, uw->rows, square, energy, e);
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
            ? render_nearest(w, uw, matrix, weights, f, &square[f], &energy[f], e)
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
    struct tensor here = tensor_matrix(weights, DTYPE_F32, m->n, m->k);
    double square, energy;
    if (q->k->on_device &&
        (!q->k->tensor_new(q, &uw->there, DTYPE_F32, 2, here.shape, e) ||
         !q->k->tensor_new(q, &uw->there_d, DTYPE_F32, 2, here.shape, e) ||
         !q->k->upload(q, &uw->there, weights, (size_t)(m->n * m->k) * sizeof *weights, e)))
        return false;
    bool ok = render_measure(q, w->n_methods ? uw->rounding.held_out : uw->loss,
                             q->k->on_device ? &uw->there : &here, &square, &energy, e) &&
              render_formats(w, uw, matrix, weights, square, energy, e);
    q->k->tensor_free(q, &uw->there);
    q->k->tensor_free(q, &uw->there_d);
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
        (!q->k->on_device && !mem_raw(&uw->rows, (size_t)(LOSS_ROWS * u->k), e)))
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
    w->q->k->tensor_free(w->q, &uw->there);
    w->q->k->tensor_free(w->q, &uw->there_d);
    mem_free(uw->rows);
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
