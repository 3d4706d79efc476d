/* The node type `quantize`: renders every matrix in every format, with the loss of each. One part per layer
 * ("layer.003"), durable on its own and complete: the node's object is put together from the parts alone, so that a
 * killed run goes on with the next layer. A part holds
 *
 *     <matrix>/<format>/<suffix>   the packed tensors, where the matrix' unit can have the format. None for bf16: its
 *                                  tensor is the source's, which nodes/model/renderings.h reads from there
 *     matrices/name, formats/name, units/name     what the axes below are, in this layer
 *     weight_loss, output_loss     f64 [matrix, format]; NaN where the unit cannot have the format
 *     rounding/before, after       f64 [matrix, format, method]: tr(D H D^T) / tr(W H W^T) on held-out rows before and
 *     rounding/kept                after each rounding method, and u8 whether what it did was kept
 *     input_amax, input_scale      f32 [unit]; 0 where unknown or unused
 *
 * The losses are of the weights only: what a format does to the input is not in them. Output losses are on the rows
 * that the hessian holds out, when it does: on rows that no method has fitted. */
#include <math.h>
#include <omp.h>
#include <stdio.h>
#include <string.h>

#include "engine/node.h"
#include "nodes/format/gptq.h"
#include "nodes/format/packed.h"
#include "nodes/format/rounding.h"
#include "nodes/format/serving.h"
#include "nodes/model/block_match.h"
#include "nodes/model/model.h"

#define MOST_FORMATS 32
#define MOST_METHODS 8
#define MOST_MATRICES 16 /* of a layer */
#define ENCODE_ROWS 64 /* rows that one thread encodes at a time */
#define DECODE_ROWS 16 /* and decodes */

static const struct port ports[] = {
    {.name = "model", .types = MODEL_TYPES, .help = "the model to quantize"},
    {.name = "hessian", .types = (const char *const[]){"hessian", NULL}, .optional = true,
     .help = "second moments and maxima of every linear's input: for output losses and static input scales"},
    {.name = "tokens", .types = (const char *const[]){"corpus", NULL}, .optional = true,
     .help = "the calibration windows that the hessian is of: for block_match"},
    {0}};

static const struct param params[] = {
    {.name = "formats", .type = PARAM_ENUM, .many = true, .fallback = "nvfp4, fp8, bf16", .choices = format_names,
     .help = "the menu: formats that a unit may have"},
    {.name = "serving", .type = PARAM_ENUM, .fallback = "any", .choices = serving_names,
     .help = "what the result is served with, which decides the units that can have a format: `scout formats` tells"},
    {.name = "rounding", .type = PARAM_ENUM, .many = true, .fallback = "rtn", .choices = rounding_names,
     .help = "how weights are rounded, method after method from rtn (each weight to the nearest) on: scale_search, gptq, "
             "signround, and last block_match. Each is undone where it does not help on held-out rows"},
    {.name = "damping", .type = PARAM_FLOAT, .many = true, .fallback = "0.02, 0.2", .least = 1e-9, .most = 100,
     .help = "gptq: what is added to the second moment's diagonal, in units of its mean; of several the one with the "
             "least loss on held-out rows is kept, matrix by matrix"},
    {.name = "order", .type = PARAM_ENUM, .fallback = "activation",
     .choices = (const char *const[]){"activation", "column", NULL},
     .help = "gptq: columns by descending second moment of their input, or as they come"},
    {.name = "scale_weights", .type = PARAM_ENUM, .fallback = "full",
     .choices = (const char *const[]){"full", "diagonal", NULL},
     .help = "scale_search: errors weighed by all of the second moment, or by its diagonal alone"},
    {.name = "signround_steps", .type = PARAM_INT, .fallback = "200", .least = 1, .most = 10000,
     .help = "signround: steps of sign-gradient descent"},
    {0}};

/* What a run works on. */
struct work {
    struct node *node;
    struct model *model;
    struct object *hessian;  /* borrowed; NULL if not connected */
    const struct format *formats[MOST_FORMATS];
    const char *names[MOST_FORMATS];
    const struct serving_profile *serving;
    const struct rounding_method *methods[MOST_METHODS]; /* beyond rtn */
    const char *method_names[MOST_METHODS + 1];
    struct rounding_options options;
    int n_formats, n_layers, n_methods;
    bool matches;            /* block_match comes last: in method_names, not in methods */
    struct token_set tokens; /* for it */
    uint8_t *held_out;       /* [window] */
    struct block_match *match;
    struct queue host;       /* where methods beyond rtn work, wherever the node was placed */
    struct queue *q;
    int first_unit, n_units, first_matrix, n_matrices; /* of the layer in hand */
    struct rendering *renderings;                      /* [matrix, format] of the layer in hand, until they are stored */
    struct results {
        double *weight_loss, *output_loss;             /* [matrix, format] */
        double *before, *after;                        /* [matrix, format, method], block_match among them */
        uint8_t *kept;
        float *input_amax, *input_scale;               /* [unit] */
    } of;                                              /* the layer in hand, and at the end all layers */
};

/* ------------------------------------------------------------------------------------------------------- the menu */

/* Methods of which results are told. */
static int n_steps(const struct work *w) { return w->n_methods + w->matches; }

static bool read_formats(struct work *w, struct err *e)
{
    size_t n = node_list(w->node, "formats");
    char why[SERVING_TEXT];
    w->serving = serving_find(node_string(w->node, "serving"));
    if (n == 0 || n > MOST_FORMATS)
        return err_set(e, ERR_INPUT, "formats: %zu of them; 1 to %d can be given", n, MOST_FORMATS);
    for (size_t i = 0; i < n; i++) {
        w->names[i] = node_list_string(w->node, "formats", i);
        w->formats[i] = format_find(w->names[i]);
        if (!w->formats[i])
            return err_set(e, ERR_INPUT, "formats: there is no format '%s'", w->names[i]);
        for (size_t j = 0; j < i; j++)
            if (w->formats[j] == w->formats[i])
                return err_set(e, ERR_INPUT, "formats: '%s' is given twice", w->names[i]);
        if (!serving_offers(w->serving, w->formats[i], why))
            return err_set(e, ERR_INPUT, "formats: %s", why);
        if (w->formats[i]->static_input_scale && !w->hessian)
            return err_set(e, ERR_INPUT, "format '%s' quantizes inputs with a scale from calibration: connect the port "
                           "'hessian', or use '%s_a16', which leaves inputs alone", w->names[i], w->names[i]);
    }
    w->n_formats = (int)n;
    return true;
}

/* Can the unit have the format? If not, `why` (which may be NULL) says what it lacks. */
static bool unit_fits(const struct work *w, const struct unit *u, const struct format *f, char why[SERVING_TEXT])
{
    char unheard[SERVING_TEXT];
    struct serving_unit s = {.name = u->name, .n = u->n, .k = u->k, .is_head = u->role == ROLE_HEAD};
    for (int i = u->first + 1; i < u->first + u->count; i++)
        serving_add_seam(&s, w->model->matrices[i].row);
    return serving_fits(w->serving, f, &s, why ? why : unheard);
}

/* Rounding starts from rtn, which may be named first; the others follow in the order given. */
static bool read_rounding(struct work *w, struct err *e)
{
    size_t n = node_list(w->node, "rounding"), dampings = node_list(w->node, "damping");
    for (size_t i = 0; i < n; i++) {
        const char *name = node_list_string(w->node, "rounding", i);
        if (strcmp(name, "rtn") == 0 && i == 0)
            continue;
        if (strcmp(name, "rtn") == 0 || w->matches || w->n_methods == MOST_METHODS)
            return err_set(e, ERR_INPUT, "rounding: '%s' at place %zu: rtn can only be the first, block_match only the "
                           "last, and %d others can be between them", name, i + 1, MOST_METHODS);
        w->method_names[w->n_methods] = name;
        if (strcmp(name, "block_match") == 0)
            w->matches = true;
        else
            w->methods[w->n_methods++] = rounding_find(name);
    }
    if (dampings == 0 || dampings > ROUNDING_DAMPINGS)
        return err_set(e, ERR_INPUT, "damping: %zu of them; 1 to %d can be given", dampings, ROUNDING_DAMPINGS);
    for (size_t i = 0; i < dampings; i++)
        w->options.damping[i] = node_list_float(w->node, "damping", i);
    w->options.n_dampings = (int)dampings;
    w->options.by_activation = strcmp(node_string(w->node, "order"), "activation") == 0;
    w->options.full_moment = strcmp(node_string(w->node, "scale_weights"), "full") == 0;
    w->options.signround_steps = (int)node_int(w->node, "signround_steps");
    return true;
}

/* Does the hessian hold rows out? *tokens of them. */
static bool read_held_out(struct object *hessian, int64_t *tokens, struct err *e)
{
    int64_t *counts;
    uint64_t n;
    if (!object_load(hessian, "tokens", DTYPE_I64, &counts, &n, e))
        return false;
    *tokens = n > 1 ? counts[1] : 0;
    mem_free(counts);
    return true;
}

/* Units and matrices of a layer are consecutive in the model's tables. */
static bool select_layer(struct work *w, int layer, struct err *e)
{
    const struct model *m = w->model;
    w->first_unit = 0;
    while (w->first_unit < m->n_units && m->units[w->first_unit].layer != layer)
        w->first_unit++;
    w->n_units = w->n_matrices = 0;
    w->first_matrix = w->first_unit < m->n_units ? m->units[w->first_unit].first : 0;
    for (int u = w->first_unit; u < m->n_units && m->units[u].layer == layer; u++) {
        w->n_units++;
        w->n_matrices += m->units[u].count;
    }
    if (w->n_units == 0)
        return err_set(e, ERR_BUG, "%s: layer %d has no units", m->path, layer);
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

/* Square and energy of d [n,k], which lies on the queue's device. */
static bool measure(const struct queue *q, struct loss *l, const struct tensor *d, double *square, double *energy,
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
static bool encode_here(struct work *w, struct rendering *r, const float *weights, float amax, struct loss *l,
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
              measure(q, l, d, square, energy, e);
    packed_free(q, &packed);
    return ok;
}

/* Hand the parts of a rendering to the writer; they are the writer's from then on, also on failure. */
static bool store_rendering(struct writer *out, const struct matrix *m, struct rendering *r, struct err *e)
{
    struct format_part parts[FORMAT_PARTS];
    int count = r->format->parts(r->n, r->k, r->source, parts);
    bool ok = true;
    for (int i = 0; i < count; i++) {
        char name[640];
        snprintf(name, sizeof name, "%s/%s/%s", m->name, r->format->name, parts[i].suffix);
        struct dataset d = {.name = name, .dtype = parts[i].dtype, .rank = parts[i].rank, .unit = "1",
                            .shape = {(uint64_t)parts[i].shape[0], (uint64_t)parts[i].shape[1]},
                            .axes = parts[i].rank == 1 ? "tensor" : i == 0 ? "row, column" : "row, block",
                            .description = "one tensor of the rendering, as it is exported"};
        if (ok)
            ok = writer_add_take(out, &d, r->part[i], e);
        else
            mem_free(r->part[i]);
        r->part[i] = NULL;
    }
    return ok;
}

/* All renderings of the layer. */
static bool store_renderings(struct work *w, struct writer *out, struct err *e)
{
    for (int i = 0; i < w->n_matrices; i++)
        for (int f = 0; f < w->n_formats; f++) {
            struct rendering *r = &w->renderings[i * w->n_formats + f];
            if (r->format && !store_rendering(out, &w->model->matrices[w->first_matrix + i], r, e))
                return false;
        }
    return true;
}

static void free_renderings(struct work *w)
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
static bool render_nearest(struct work *w, struct unit_work *uw, int matrix, const float *weights, int f,
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
static bool render_rounded(struct work *w, struct unit_work *uw, int matrix, const float *weights, int f,
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
            !unit_fits(w, &w->model->units[m->unit], w->formats[other], NULL))
            continue;
        ok = format_rendering_new(r, w->formats[other], m->n, m->k, m->dtype, e);
        if (ok)
            blocks_store(&b, r);
    }
    blocks_free(&b);
    return ok;
}

/* Set what is known of the matrix in format `f`, of which `square` and `energy` are lost. */
static void note_losses(struct work *w, int matrix, int f, double square, double energy, double all_square,
                        double all_energy, const struct rounding_step *steps)
{
    size_t at = (size_t)(matrix - w->first_matrix) * (size_t)w->n_formats + (size_t)f;
    w->of.weight_loss[at] = loss_ratio(square, all_square);
    w->of.output_loss[at] = loss_ratio(energy, all_energy);
    for (size_t i = 0; i < (size_t)w->n_methods; i++) {
        size_t step = at * (size_t)n_steps(w) + i;
        w->of.before[step] = loss_ratio(steps[i].before, all_energy);
        w->of.after[step] = loss_ratio(steps[i].after, all_energy);
        w->of.kept[step] = steps[i].kept;
    }
}

/* Not in the menu of its unit, or the source itself. */
static void note_none(struct work *w, int matrix, int f, double weight_loss, double output_loss)
{
    size_t at = (size_t)(matrix - w->first_matrix) * (size_t)w->n_formats + (size_t)f;
    w->of.weight_loss[at] = weight_loss;
    w->of.output_loss[at] = output_loss;
    for (size_t i = 0; i < (size_t)n_steps(w); i++)
        w->of.before[at * (size_t)n_steps(w) + i] = w->of.after[at * (size_t)n_steps(w) + i] = NAN;
}

/* The first format that has the codes of format f and that the unit can have, which is f or one before it. */
static int first_of_code(const struct work *w, const struct unit *u, int f)
{
    int i = 0;
    while (i < f && (w->formats[i]->code != w->formats[f]->code || !unit_fits(w, u, w->formats[i], NULL)))
        i++;
    return i;
}

/* All formats of one matrix, which `all_square` and `all_energy` are the whole of. */
static bool render_formats(struct work *w, struct unit_work *uw, int matrix, const float *weights, double all_square,
                           double all_energy, struct err *e)
{
    const struct matrix *m = &w->model->matrices[matrix];
    const struct unit *u = &w->model->units[m->unit];
    struct rounding_step steps[MOST_FORMATS][MOST_METHODS] = {0};
    double square[MOST_FORMATS], energy[MOST_FORMATS];
    for (int f = 0; f < w->n_formats; f++) {
        int first = w->n_methods > 0 ? first_of_code(w, u, f) : f;
        if (!unit_fits(w, u, w->formats[f], NULL)) {
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

static bool render_matrix(struct work *w, int matrix, struct unit_work *uw, struct err *e)
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
    bool ok = measure(q, w->n_methods ? uw->rounding.held_out : uw->loss, q->k->on_device ? &uw->there : &here, &square,
                      &energy, e) &&
              render_formats(w, uw, matrix, weights, square, energy, e);
    q->k->tensor_free(q, &uw->there);
    q->k->tensor_free(q, &uw->there_d);
    return ok;
}

/* ------------------------------------------------------------------------------------------------------- one unit */

static bool read_moment(struct object *part, const struct unit *u, const char *which, float **moment, struct err *e)
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
static bool read_input(struct work *w, struct object *part, const struct unit *u, struct unit_work *uw, float *amax,
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
    return read_held_out(w->hessian, &held_out, e) &&
           ((held_out > 0 && w->n_methods == 0) || read_moment(part, u, "second_moment", &uw->moment, e)) &&
           (held_out == 0 || read_moment(part, u, "held_out_moment", &uw->held_out, e));
}

/* Does any format of this unit use a static scale of its input? */
static bool wants_input_scale(const struct work *w, const struct unit *u)
{
    for (int f = 0; f < w->n_formats; f++)
        if (w->formats[f]->static_input_scale && unit_fits(w, u, w->formats[f], NULL))
            return true;
    return false;
}

/* The unit's weights, their largest magnitude, and what takes losses. */
static bool open_unit(struct work *w, struct unit_work *uw, const struct unit *u, struct err *e)
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

static void close_unit(struct work *w, struct unit_work *uw)
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

static bool render_unit(struct work *w, struct object *hessian, int unit, struct err *e)
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

/* ----------------------------------------------------------------------------------------------------- block_match */

/* What a refit of its scales makes of a matrix' losses. */
static bool measure_again(struct work *w, struct object *hessian, int matrix, int f, struct err *e)
{
    const struct matrix *m = &w->model->matrices[matrix];
    const struct rendering *r = &w->renderings[(matrix - w->first_matrix) * w->n_formats + f];
    float *weights = NULL, *moment = NULL;
    struct loss *l = NULL;
    struct blocks b = {0};
    double all_square, all_energy, square, energy;
    struct queue *q = &w->host;
    bool ok = mem_raw(&weights, (size_t)(m->n * m->k), e) && model_read_matrix(w->model, matrix, weights, e) &&
              read_moment(hessian, &w->model->units[m->unit], "held_out_moment", &moment, e) &&
              loss_new(&l, q, moment, m->k, e) && blocks_new(&b, r->format, m->n, m->k, 0.0f, e);
    if (ok) {
        struct tensor whole = tensor_matrix(weights, DTYPE_F32, m->n, m->k);
        blocks_load(&b, r);
        ok = measure(q, l, &whole, &all_square, &all_energy, e) &&
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
static bool spread_scales(struct work *w, struct object *hessian, int i, int f, struct err *e)
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

static void note_match(struct work *w, int i, enum weight_code code, const struct rounding_step *step)
{
    for (int f = 0; f < w->n_formats; f++) {
        size_t at = ((size_t)(i * w->n_formats + f) + 1) * (size_t)n_steps(w) - 1;
        if (w->formats[f]->code != code || !w->renderings[i * w->n_formats + f].format)
            continue;
        w->of.before[at] = step->before;
        w->of.after[at] = step->after;
        w->of.kept[at] = step->kept;
    }
}

/* All matrices of the layer that have the codes of format `f`. */
static bool match_format(struct work *w, struct object *hessian, int f, struct err *e)
{
    struct rendering r[MOST_MATRICES] = {0};
    struct rounding_step steps[LAYER_UNITS];
    int first[MOST_MATRICES];
    if (w->n_matrices > MOST_MATRICES)
        return err_set(e, ERR_BUG, "a layer of %d matrices", w->n_matrices);
    for (int i = 0; i < w->n_matrices; i++) {
        first[i] = first_of_code(w, &w->model->units[w->model->matrices[w->first_matrix + i].unit], f);
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

static bool match_layer(struct work *w, struct object *hessian, struct err *e)
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

/* Which windows the hessian holds out; they must be those that are connected. */
static bool open_match(struct work *w, struct err *e)
{
    const char *of;
    uint64_t n;
    const struct input *tokens = node_input(w->node, "tokens", 0);
    if (!tokens_read(&w->tokens, tokens, e) ||
        !object_load(w->hessian, "windows/held_out", DTYPE_U8, &w->held_out, &n, e))
        return false;
    if (!object_text(w->hessian, "tokens", &of) || strcmp(of, w->tokens.digest) != 0 || n != w->tokens.n)
        return err_set(e, ERR_INPUT, "'%s.%s' are not the windows that hessian '%s' is of; connect those to port "
                       "'tokens'", tokens->node, tokens->output, node_input(w->node, "hessian", 0)->node);
    return true;
}

/* ------------------------------------------------------------------------------------------------------ one layer */

/* A table [rows, formats] or column [rows], copied. `formats` 0: a column. */
static bool add_table(struct writer *out, const char *name, enum dtype t, int rows, int n_formats, const char *unit,
                      const char *axes, const char *description, const void *data, struct err *e)
{
    struct dataset d = {.name = name, .dtype = t, .rank = n_formats ? 2 : 1, .unit = unit, .axes = axes,
                        .shape = {(uint64_t)rows, (uint64_t)n_formats}, .description = description};
    return writer_add(out, &d, data, e);
}

/* A table [matrix, format, method]. */
static bool add_steps(const struct work *w, struct writer *out, const char *name, enum dtype t, int n_matrices,
                      const char *description, const void *data, struct err *e)
{
    struct dataset d = {.name = name, .dtype = t, .rank = 3, .unit = "1", .axes = "matrix, format, method",
                        .shape = {(uint64_t)n_matrices, (uint64_t)w->n_formats, (uint64_t)n_steps(w)},
                        .description = description};
    return n_steps(w) == 0 || writer_add(out, &d, data, e);
}

/* Losses and scales, which parts and the object hold alike. */
static bool add_results(const struct work *w, struct writer *out, int n_matrices, int n_units, struct err *e)
{
    const struct results *r = &w->of;
    return add_table(out, "weight_loss", DTYPE_F64, n_matrices, w->n_formats, "1", "matrix, format",
                     "||dW||^2 / ||W||^2; NaN where the format is not available", r->weight_loss, e) &&
           add_table(out, "output_loss", DTYPE_F64, n_matrices, w->n_formats, "1", "matrix, format",
                     "tr(dW H dW^T) / tr(W H W^T), H the second moment of the input on held-out rows (on all, if none "
                     "are held out); NaN without a hessian or where the format is not available", r->output_loss, e) &&
           add_steps(w, out, "rounding/before", DTYPE_F64, n_matrices, "output loss before the method; of "
                     "block_match the layer's squared error, as a share of what the layer adds", r->before, e) &&
           add_steps(w, out, "rounding/after", DTYPE_F64, n_matrices, "likewise after the method", r->after, e) &&
           add_steps(w, out, "rounding/kept", DTYPE_U8, n_matrices, "1 where the method lowered the loss; where it did "
                     "not it was undone", r->kept, e) &&
           (n_steps(w) == 0 || writer_add_strings(out, "rounding/method", (const char **)w->method_names,
                                                  (size_t)n_steps(w), "method", "methods, in their order", e)) &&
           add_table(out, "input_amax", DTYPE_F32, n_units, 0, "1", "unit",
                     "largest |x| of the unit's calibration input; 0 without a hessian", r->input_amax, e) &&
           add_table(out, "input_scale", DTYPE_F32, n_units, 0, "1", "unit",
                     "static global scale of the unit's input, a divisor: 2688 / input_amax; 0 if no format of the "
                     "unit has one", r->input_scale, e);
}

/* Names of the layer's units and matrices and the format list, so that a part explains itself. */
static bool add_names(const struct work *w, struct writer *out, struct err *e)
{
    const char **names;
    int most = w->n_matrices > w->n_units ? w->n_matrices : w->n_units;
    if (!mem_new(&names, (size_t)most, e))
        return false;
    for (int i = 0; i < w->n_matrices; i++)
        names[i] = w->model->matrices[w->first_matrix + i].name;
    bool ok = writer_add_strings(out, "matrices/name", names, (size_t)w->n_matrices, "matrix", "module names", e);
    for (int i = 0; ok && i < w->n_units; i++)
        names[i] = w->model->units[w->first_unit + i].name;
    ok = ok && writer_add_strings(out, "units/name", names, (size_t)w->n_units, "unit", "unit names", e) &&
         writer_add_strings(out, "formats/name", w->names, (size_t)w->n_formats, "format", "formats, as given", e);
    mem_free(names);
    return ok;
}

static bool new_results(struct work *w, int n_matrices, int n_units, struct err *e)
{
    size_t cells = (size_t)n_matrices * (size_t)w->n_formats, steps = cells * (size_t)n_steps(w);
    return mem_new(&w->of.weight_loss, cells, e) && mem_new(&w->of.output_loss, cells, e) &&
           mem_new(&w->of.before, steps, e) && mem_new(&w->of.after, steps, e) && mem_new(&w->of.kept, steps, e) &&
           mem_new(&w->of.input_amax, (size_t)n_units, e) && mem_new(&w->of.input_scale, (size_t)n_units, e);
}

static void free_results(struct work *w)
{
    mem_free(w->of.weight_loss);
    mem_free(w->of.output_loss);
    mem_free(w->of.before);
    mem_free(w->of.after);
    mem_free(w->of.kept);
    mem_free(w->of.input_amax);
    mem_free(w->of.input_scale);
    w->of = (struct results){0};
}

/* Compute and publish the part of the layer that select_layer chose. */
static bool render_layer(struct work *w, const char *part, struct err *e)
{
    struct writer *out = NULL;
    struct object *hessian = NULL;
    bool ok = false;
    if (w->hessian && !object_part(node_store(w->node), w->hessian, part, &hessian, e))
        goto out;
    if (!node_part_new(w->node, part, &out, e) || !new_results(w, w->n_matrices, w->n_units, e) ||
        !mem_new(&w->renderings, (size_t)(w->n_matrices * w->n_formats), e))
        goto out;
    for (int u = w->first_unit; u < w->first_unit + w->n_units; u++)
        if (!render_unit(w, hessian, u, e))
            goto out;
    if (w->match && !match_layer(w, hessian, e))
        goto out;
    if (!store_renderings(w, out, e) || !add_names(w, out, e) ||
        !add_results(w, out, w->n_matrices, w->n_units, e))
        goto out;
    struct writer *finished = out;
    out = NULL;
    ok = node_part_commit(w->node, finished, e);
out:
    free_results(w);
    free_renderings(w);
    writer_abort(out);
    object_close(hessian);
    return ok;
}

/* ------------------------------------------------------------------------------------------------------ the object */

/* Copy the losses and scales of one layer's part into the tables of all layers. */
static bool gather(struct work *w, struct object *part, struct err *e)
{
    uint64_t cells = (uint64_t)w->n_matrices * (uint64_t)w->n_formats, units = (uint64_t)w->n_units;
    size_t at = (size_t)w->first_matrix * (size_t)w->n_formats, unit = (size_t)w->first_unit;
    size_t methods = (size_t)n_steps(w);
    return object_read(part, "weight_loss", DTYPE_F64, 0, cells, w->of.weight_loss + at, e) &&
           object_read(part, "output_loss", DTYPE_F64, 0, cells, w->of.output_loss + at, e) &&
           (methods == 0 ||
            (object_read(part, "rounding/before", DTYPE_F64, 0, cells * methods, w->of.before + at * methods, e) &&
             object_read(part, "rounding/after", DTYPE_F64, 0, cells * methods, w->of.after + at * methods, e) &&
             object_read(part, "rounding/kept", DTYPE_U8, 0, cells * methods, w->of.kept + at * methods, e))) &&
           object_read(part, "input_amax", DTYPE_F32, 0, units, w->of.input_amax + unit, e) &&
           object_read(part, "input_scale", DTYPE_F32, 0, units, w->of.input_scale + unit, e);
}

static bool write_units(const struct work *w, struct writer *out, const char **names, int32_t *layers,
                        uint64_t *parameters, struct err *e)
{
    const struct model *m = w->model;
    for (int u = 0; u < m->n_units; u++) {
        names[u] = m->units[u].name;
        layers[u] = m->units[u].layer;
        parameters[u] = m->units[u].parameters;
    }
    return writer_add_strings(out, "units/name", names, (size_t)m->n_units, "unit", "unit names", e) &&
           add_table(out, "units/layer", DTYPE_I32, m->n_units, 0, "1", "unit", "ordinal of the layer", layers, e) &&
           add_table(out, "units/parameters", DTYPE_U64, m->n_units, 0, "1", "unit", "weights of the unit", parameters,
                     e);
}

static bool write_matrices(const struct work *w, struct writer *out, const char **names, int32_t *units,
                           int64_t *shapes /* [2, matrix] */, struct err *e)
{
    const struct model *m = w->model;
    int n = m->n_matrices;
    for (int i = 0; i < n; i++) {
        names[i] = m->matrices[i].name;
        units[i] = m->matrices[i].unit;
        shapes[i] = m->matrices[i].n;
        shapes[n + i] = m->matrices[i].k;
    }
    return writer_add_strings(out, "matrices/name", names, (size_t)n, "matrix", "module names", e) &&
           add_table(out, "matrices/unit", DTYPE_I32, n, 0, "1", "matrix", "index of the unit", units, e) &&
           add_table(out, "matrices/rows", DTYPE_I64, n, 0, "1", "matrix", "output features", shapes, e) &&
           add_table(out, "matrices/columns", DTYPE_I64, n, 0, "1", "matrix", "input features", shapes + n, e);
}

/* Whose renderings these are, so that nobody uses them with another model of the same shapes. */
static bool write_model_key(const struct work *w, struct writer *out, struct err *e)
{
    char text[KEY_TEXT];
    return writer_text(out, "model_key", key_text(&node_input(w->node, "model", 0)->key, text), e);
}

/* A line for each format that is served under a condition, and for each that some units cannot have. */
static void tell_fallback(const struct work *w, const int32_t *fallback)
{
    const struct model *m = w->model;
    for (int f = 0; f < w->n_formats; f++) {
        const char *note = serving_rule(w->serving, w->formats[f])->note;
        char why[SERVING_TEXT] = "";
        int n = 0, instead = -1;
        if (note)
            node_log(w->node, "%s under %s: %s", w->names[f], w->serving->name, note);
        for (int u = 0; u < m->n_units; u++)
            if (!unit_fits(w, &m->units[u], w->formats[f], n ? NULL : why) && n++ == 0)
                instead = fallback[u * w->n_formats + f];
        if (n > 0)
            node_log(w->node, "%d of %d units cannot have %s and would have another (%s): %s", n, m->n_units,
                     w->names[f], instead < 0 ? "none is there" : w->names[instead], why);
    }
}

/* bytes, available and fallback [unit, format]. */
static bool write_sizes(const struct work *w, struct writer *out, uint64_t *bytes, uint8_t *available,
                        int32_t *fallback, struct err *e)
{
    const struct model *m = w->model;
    for (int u = 0; u < m->n_units; u++) {
        size_t row = (size_t)u * (size_t)w->n_formats;
        for (int f = 0; f < w->n_formats; f++) {
            available[row + f] = unit_fits(w, &m->units[u], w->formats[f], NULL);
            for (int i = m->units[u].first; i < m->units[u].first + m->units[u].count; i++)
                bytes[row + f] += format_bytes(w->formats[f], m->matrices[i].n, m->matrices[i].k, m->matrices[i].dtype);
        }
        for (int f = 0; f < w->n_formats; f++)
            fallback[row + f] = serving_fallback(w->formats, w->n_formats, available + row, bytes + row, f);
    }
    tell_fallback(w, fallback);
    return writer_text(out, "serving", w->serving->name, e) &&
           writer_add_strings(out, "formats/name", w->names, (size_t)w->n_formats, "format", "formats, as given", e) &&
           add_table(out, "bytes", DTYPE_U64, m->n_units, w->n_formats, "byte", "unit, format",
                     "payload of the unit as exported; where the format is not available, with padded blocks", bytes,
                     e) &&
           add_table(out, "available", DTYPE_U8, m->n_units, w->n_formats, "1", "unit, format",
                     "1 if the unit can have the format where it is served", available, e) &&
           add_table(out, "fallback", DTYPE_I32, m->n_units, w->n_formats, "1", "unit, format",
                     "index of the format that the unit has where the format is meant; -1 if it can have none", fallback,
                     e);
}

static bool write_tables(const struct work *w, struct err *e)
{
    const struct model *m = w->model;
    struct writer *out = node_output(w->node);
    size_t rows = (size_t)(m->n_matrices > m->n_units ? m->n_matrices : m->n_units);
    size_t cells = (size_t)m->n_units * (size_t)w->n_formats;
    struct arena scratch = {0};
    const char **names = arena_new(&scratch, rows * sizeof *names, e);
    int32_t *integers = arena_new(&scratch, rows * sizeof *integers, e);
    uint64_t *parameters = arena_new(&scratch, rows * sizeof *parameters, e);
    int64_t *shapes = arena_new(&scratch, 2 * rows * sizeof *shapes, e);
    uint64_t *bytes = arena_new(&scratch, cells * sizeof *bytes, e);
    uint8_t *available = arena_new(&scratch, cells, e);
    int32_t *fallback = arena_new(&scratch, cells * sizeof *fallback, e);
    bool ok = names && integers && parameters && shapes && bytes && available && fallback &&
              write_model_key(w, out, e) && write_units(w, out, names, integers, parameters, e) &&
              write_matrices(w, out, names, integers, shapes, e) &&
              write_sizes(w, out, bytes, available, fallback, e) &&
              add_results(w, out, m->n_matrices, m->n_units, e);
    arena_free(&scratch);
    return ok;
}

/* Put the object together from the parts, all of which are there. */
static bool assemble(struct work *w, struct err *e)
{
    bool ok = new_results(w, w->model->n_matrices, w->model->n_units, e);
    for (int layer = 0; ok && layer < w->n_layers; layer++) {
        char name[32];
        layer_part(layer, name);
        struct object *part = NULL;
        ok = select_layer(w, layer, e) && node_part_open(w->node, name, &part, e);
        if (ok && !part)
            ok = err_set(e, ERR_IO, "part '%s' was just made and is gone", name);
        ok = ok && gather(w, part, e) && node_part_link(w->node, name, e);
        object_close(part);
    }
    ok = ok && write_tables(w, e);
    free_results(w);
    return ok;
}

/* -------------------------------------------------------------------------------------------------------- the node */

/* Methods beyond rtn work on the host, and want rows that they do not fit. */
static bool check_methods(struct work *w, struct err *e)
{
    int64_t held_out = 0;
    if (n_steps(w) == 0)
        return true;
    if (!w->hessian)
        return err_set(e, ERR_INPUT, "rounding: '%s' weighs errors by the input's second moment: connect the port "
                       "'hessian', or round by rtn alone", w->method_names[0]);
    if (!read_held_out(w->hessian, &held_out, e))
        return false;
    if (held_out == 0)
        return err_set(e, ERR_INPUT, "rounding: '%s' is judged on calibration rows that it does not fit, and hessian "
                       "'%s' holds none out: give it a `held_out` above 0 and a calibration set of two windows or more",
                       w->method_names[0], node_input(w->node, "hessian", 0)->node);
    if (w->matches && node_inputs(w->node, "tokens") == 0)
        return err_set(e, ERR_INPUT, "rounding: 'block_match' goes through the layers: connect the calibration windows to "
                       "the port 'tokens'");
    w->host.k = kernels_cpu(e);
    return w->host.k && (!w->matches || open_match(w, e));
}

static void close_work(struct work *w)
{
    block_match_close(w->match);
    tokens_fini(&w->tokens);
    mem_free(w->held_out);
    model_close(w->model);
}

static bool open_work(struct work *w, struct node *n, struct err *e)
{
    const char *of_model;
    char key[KEY_TEXT];
    *w = (struct work){.node = n};
    if (node_inputs(n, "hessian") > 0)
        w->hessian = node_input(n, "hessian", 0)->object;
    if (w->hessian && object_text(w->hessian, "model_key", &of_model) &&
        strcmp(of_model, key_text(&node_input(n, "model", 0)->key, key)) != 0)
        return err_set(e, ERR_INPUT, "hessian '%s' is of another model than the one connected to port 'model'",
                       node_input(n, "hessian", 0)->node);
    if (!read_formats(w, e) || !read_rounding(w, e) || !check_methods(w, e) ||
        !model_open_input(&w->model, n, "model", e))
        return false;
    for (int u = 0; u < w->model->n_units; u++)
        if (w->model->units[u].layer >= w->n_layers)
            w->n_layers = w->model->units[u].layer + 1;
    return true;
}

/* The layer's part, unless it is there. */
static bool make_part(struct work *w, int layer, struct err *e)
{
    char name[32];
    struct object *part = NULL;
    layer_part(layer, name);
    bool ok = node_part_open(w->node, name, &part, e);
    if (ok && !part)
        ok = select_layer(w, layer, e) && (!w->match || block_match_enter(w->match, layer, e)) &&
             (render_layer(w, name, e) || err_context(e, "layer %d", layer));
    else if (ok && w->match) /* what leaves it is wanted */
        ok = block_match_enter(w->match, layer, e);
    object_close(part);
    return ok && (!w->match || block_match_leave(w->match, e));
}

static bool run(struct node *n, struct err *e)
{
    struct work w;
    bool ok = open_work(&w, n, e);
    if (ok) { /* the node's queue is there only while it runs */
        w.host = (struct queue){.k = w.host.k, .threads = node_threads(n), .device = TENSOR_HOST};
        w.q = n_steps(&w) > 0 ? &w.host : node_queue(n);
    }
    if (ok && w.matches)
        ok = block_match_open(&w.match, w.model, &w.host, &w.tokens, w.held_out, e);
    for (int layer = 0; ok && layer < w.n_layers; layer++) {
        node_progress(n, layer, w.n_layers, "layer");
        ok = node_stopping(n) ? node_stopped(e) : make_part(&w, layer, e);
    }
    if (ok)
        node_progress(n, w.n_layers, w.n_layers, "layer");
    ok = ok && assemble(&w, e);
    close_work(&w);
    return ok;
}

/* Bytes of a unit's renderings in all packed formats. */
static uint64_t rendered_bytes(const struct work *w, const struct unit *u)
{
    uint64_t bytes = 0;
    for (int i = u->first; i < u->first + u->count; i++) {
        const struct matrix *m = &w->model->matrices[i];
        for (int f = 0; f < w->n_formats; f++)
            bytes += w->formats[f]->group_format ? format_bytes(w->formats[f], m->n, m->k, m->dtype) : 0;
    }
    return bytes;
}

/* The largest layer's renderings, which the writer keeps until it is committed, and for the largest unit its weights in
 * f32 and its second moment, as read and as panels. */
static bool needs(struct node *n, struct needs *out, struct err *e)
{
    struct work w;
    if (!open_work(&w, n, e)) {
        close_work(&w);
        return false;
    }
    uint64_t layer_bytes = 0, most_layer = 0, most_unit = 0;
    const struct kernels *kernels = n_steps(&w) > 0 ? w.host.k : node_kernels(n);
    bool there = false, ok = true, on_device = kernels->on_device;
    for (int u = 0; ok && u < w.model->n_units; u++) {
        const struct unit *unit = &w.model->units[u];
        char part[32];
        layer_part(unit->layer, part);
        if (u == 0 || unit->layer != w.model->units[u - 1].layer)
            ok = node_part_exists(n, part, &there, e);
        uint64_t k = (uint64_t)unit->k, bytes = rendered_bytes(&w, unit), square = k * k * sizeof(float);
        uint64_t own = (unit->parameters + LOSS_ROWS * k) * sizeof(float) + (w.hessian ? square : 0);
        uint64_t tensors = loss_bytes(kernels, unit->k, w.hessian);
        if (w.n_methods > 0)
            own += square + tensors + LOSS_ROWS * k * sizeof(float) + 4 * unit->parameters +
                   gptq_bytes(&w.options, unit->k, omp_get_num_procs());
        if (on_device) /* weights, differences, their parts, and the moment before it is packed */
            tensors += unit->parameters * 2 * sizeof(float) + bytes + square;
        own += on_device ? 0 : tensors;
        out->device_memory = on_device && tensors > out->device_memory ? tensors : out->device_memory;
        layer_bytes = bytes + (u > 0 && w.model->units[u - 1].layer == unit->layer ? layer_bytes : 0);
        most_unit = own > most_unit ? own : most_unit;
        most_layer = layer_bytes > most_layer ? layer_bytes : most_layer;
        out->disk += there ? 0 : bytes;
    }
    out->cores = 0;
    out->memory = most_layer + most_unit + (32u << 20);
    if (w.matches)
        out->memory += block_match_bytes(w.model, kernels, &w.tokens);
    close_work(&w);
    return ok;
}

/* Output losses come from the kernels' fp32 product; the methods beyond rtn are computed on the host. */
static bool numerics(const struct node *n, const char **out, struct err *e)
{
    size_t methods = node_list(n, "rounding");
    bool nearest = methods == 0 || (methods == 1 && strcmp(node_list_string(n, "rounding", 0), "rtn") == 0);
    const struct kernels *k = nearest ? node_kernels(n) : kernels_cpu(e);
    *out = k ? k->numeric_fp32 : NULL;
    return k != NULL;
}

const struct node_class node_quantize = {
    .name = "quantize",
    .summary = "renderings of every matrix in every format, with their losses",
    .version = 3,
    .ports = ports,
    .params = params,
    .accelerator = true,
    .numerics = numerics,
    .needs = needs,
    .run = run,
};
