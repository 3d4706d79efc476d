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

#include "nodes/format/gptq.h"
#include "nodes/model/render.h"

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
     .help = "how weights are rounded, method after method from rtn (each weight to the nearest) on: scale_search, "
             "gptq, signround, refit, and last block_match. Each is undone where it does not help on held-out rows"},
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

/* ------------------------------------------------------------------------------------------------------- the menu */

static bool read_formats(struct render *w, struct err *e)
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

/* Rounding starts from rtn, which may be named first; the others follow in the order given. */
static bool read_rounding(struct render *w, struct err *e)
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

/* Units and matrices of a layer are consecutive in the model's tables. */
static bool select_layer(struct render *w, int layer, struct err *e)
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

/* ------------------------------------------------------------------------------------------------------ one layer */

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
static bool store_renderings(struct render *w, struct writer *out, struct err *e)
{
    for (int i = 0; i < w->n_matrices; i++)
        for (int f = 0; f < w->n_formats; f++) {
            struct rendering *r = &w->renderings[i * w->n_formats + f];
            if (r->format && !store_rendering(out, &w->model->matrices[w->first_matrix + i], r, e))
                return false;
        }
    return true;
}


/* A table [rows, formats] or column [rows], copied. `formats` 0: a column. */
static bool add_table(struct writer *out, const char *name, enum dtype t, int rows, int n_formats, const char *unit,
                      const char *axes, const char *description, const void *data, struct err *e)
{
    struct dataset d = {.name = name, .dtype = t, .rank = n_formats ? 2 : 1, .unit = unit, .axes = axes,
                        .shape = {(uint64_t)rows, (uint64_t)n_formats}, .description = description};
    return writer_add(out, &d, data, e);
}

/* A table [matrix, format, method]. */
static bool add_steps(const struct render *w, struct writer *out, const char *name, enum dtype t, int n_matrices,
                      const char *description, const void *data, struct err *e)
{
    struct dataset d = {.name = name, .dtype = t, .rank = 3, .unit = "1", .axes = "matrix, format, method",
                        .shape = {(uint64_t)n_matrices, (uint64_t)w->n_formats, (uint64_t)render_steps(w)},
                        .description = description};
    return render_steps(w) == 0 || writer_add(out, &d, data, e);
}

/* Losses and scales, which parts and the object hold alike. */
static bool add_results(const struct render *w, struct writer *out, int n_matrices, int n_units, struct err *e)
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
           (render_steps(w) == 0 || writer_add_strings(out, "rounding/method", (const char **)w->method_names,
                                                  (size_t)render_steps(w), "method", "methods, in their order", e)) &&
           add_table(out, "input_amax", DTYPE_F32, n_units, 0, "1", "unit",
                     "largest |x| of the unit's calibration input; 0 without a hessian", r->input_amax, e) &&
           add_table(out, "input_scale", DTYPE_F32, n_units, 0, "1", "unit",
                     "static global scale of the unit's input, a divisor: 2688 / input_amax; 0 if no format of the "
                     "unit has one", r->input_scale, e);
}

/* Names of the layer's units and matrices and the format list, so that a part explains itself. */
static bool add_names(const struct render *w, struct writer *out, struct err *e)
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

static bool new_results(struct render *w, int n_matrices, int n_units, struct err *e)
{
    size_t cells = (size_t)n_matrices * (size_t)w->n_formats, steps = cells * (size_t)render_steps(w);
    return mem_new(&w->of.weight_loss, cells, e) && mem_new(&w->of.output_loss, cells, e) &&
           mem_new(&w->of.before, steps, e) && mem_new(&w->of.after, steps, e) && mem_new(&w->of.kept, steps, e) &&
           mem_new(&w->of.input_amax, (size_t)n_units, e) && mem_new(&w->of.input_scale, (size_t)n_units, e);
}

static void free_results(struct render *w)
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

/* Is the layer in hand a block of the model? Behind the last one there may be the head. */
static bool has_block(const struct render *w) { return w->model->units[w->first_unit].role != ROLE_HEAD; }

/* block_match has nothing to do with it. */
static void note_unmatched(struct render *w)
{
    size_t cells = (size_t)(w->n_matrices * w->n_formats), steps = (size_t)render_steps(w);
    for (size_t i = 1; i <= cells; i++)
        w->of.before[i * steps - 1] = w->of.after[i * steps - 1] = NAN;
}

/* Compute and publish the part of the layer that select_layer chose. */
static bool render_layer(struct render *w, const char *part, struct err *e)
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
    if (w->match && has_block(w) && !render_match(w, hessian, e))
        goto out;
    if (w->match && !has_block(w))
        note_unmatched(w);
    if (!store_renderings(w, out, e) || !add_names(w, out, e) ||
        !add_results(w, out, w->n_matrices, w->n_units, e))
        goto out;
    struct writer *finished = out;
    out = NULL;
    ok = node_part_commit(w->node, finished, e);
out:
    free_results(w);
    render_free(w);
    writer_abort(out);
    object_close(hessian);
    return ok;
}

/* ------------------------------------------------------------------------------------------------------ the object */

/* Copy the losses and scales of one layer's part into the tables of all layers. */
static bool gather(struct render *w, struct object *part, struct err *e)
{
    uint64_t cells = (uint64_t)w->n_matrices * (uint64_t)w->n_formats, units = (uint64_t)w->n_units;
    size_t at = (size_t)w->first_matrix * (size_t)w->n_formats, unit = (size_t)w->first_unit;
    size_t methods = (size_t)render_steps(w);
    return object_read(part, "weight_loss", DTYPE_F64, 0, cells, w->of.weight_loss + at, e) &&
           object_read(part, "output_loss", DTYPE_F64, 0, cells, w->of.output_loss + at, e) &&
           (methods == 0 ||
            (object_read(part, "rounding/before", DTYPE_F64, 0, cells * methods, w->of.before + at * methods, e) &&
             object_read(part, "rounding/after", DTYPE_F64, 0, cells * methods, w->of.after + at * methods, e) &&
             object_read(part, "rounding/kept", DTYPE_U8, 0, cells * methods, w->of.kept + at * methods, e))) &&
           object_read(part, "input_amax", DTYPE_F32, 0, units, w->of.input_amax + unit, e) &&
           object_read(part, "input_scale", DTYPE_F32, 0, units, w->of.input_scale + unit, e);
}

static bool write_units(const struct render *w, struct writer *out, const char **names, int32_t *layers,
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

static bool write_matrices(const struct render *w, struct writer *out, const char **names, int32_t *units,
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
static bool write_model_key(const struct render *w, struct writer *out, struct err *e)
{
    char text[KEY_TEXT];
    return writer_text(out, "model_key", key_text(&node_input(w->node, "model", 0)->key, text), e);
}

/* A line for each format that is served under a condition, and for each that some units cannot have. */
static void tell_fallback(const struct render *w, const int32_t *fallback)
{
    const struct model *m = w->model;
    for (int f = 0; f < w->n_formats; f++) {
        const char *note = serving_rule(w->serving, w->formats[f])->note;
        char why[SERVING_TEXT] = "";
        int n = 0, instead = -1;
        if (note)
            node_log(w->node, "%s under %s: %s", w->names[f], w->serving->name, note);
        for (int u = 0; u < m->n_units; u++)
            if (!render_fits(w, &m->units[u], w->formats[f], n ? NULL : why) && n++ == 0)
                instead = fallback[u * w->n_formats + f];
        if (n > 0)
            node_log(w->node, "%d of %d units cannot have %s and would have another (%s): %s", n, m->n_units,
                     w->names[f], instead < 0 ? "none is there" : w->names[instead], why);
    }
}

/* bytes, available and fallback [unit, format]. */
static bool write_sizes(const struct render *w, struct writer *out, uint64_t *bytes, uint8_t *available,
                        int32_t *fallback, struct err *e)
{
    const struct model *m = w->model;
    for (int u = 0; u < m->n_units; u++) {
        size_t row = (size_t)u * (size_t)w->n_formats;
        for (int f = 0; f < w->n_formats; f++) {
            available[row + f] = render_fits(w, &m->units[u], w->formats[f], NULL);
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
                     "index of the format that the unit has where the format is meant; -1 if it can have none",
                     fallback,
                     e);
}

static bool write_tables(const struct render *w, struct err *e)
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
static bool assemble(struct render *w, struct err *e)
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

/* Which windows the hessian holds out; they must be those that are connected. */
static bool open_match(struct render *w, struct err *e)
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

/* Methods beyond rtn work on the host, and want rows that they do not fit. */
static bool check_methods(struct render *w, struct err *e)
{
    int64_t held_out = 0;
    if (render_steps(w) == 0)
        return true;
    if (!w->hessian)
        return err_set(e, ERR_INPUT, "rounding: '%s' weighs errors by the input's second moment: connect the port "
                       "'hessian', or round by rtn alone", w->method_names[0]);
    if (!render_held_out(w->hessian, &held_out, e))
        return false;
    if (held_out == 0)
        return err_set(e, ERR_INPUT, "rounding: '%s' is judged on calibration rows that it does not fit, and hessian "
                       "'%s' holds none out: give it a `held_out` above 0 and a calibration set of two windows or more",
                       w->method_names[0], node_input(w->node, "hessian", 0)->node);
    if (w->matches && node_inputs(w->node, "tokens") == 0)
        return err_set(e, ERR_INPUT, "rounding: 'block_match' goes through the layers: connect the calibration windows "
                       "to the port 'tokens'");
    w->host.k = kernels_cpu(e);
    return w->host.k && (!w->matches || open_match(w, e));
}

static void close_work(struct render *w)
{
    block_match_close(w->match);
    tokens_fini(&w->tokens);
    mem_free(w->held_out);
    model_close(w->model);
}

static bool open_work(struct render *w, struct node *n, struct err *e)
{
    const char *of_model;
    char key[KEY_TEXT];
    *w = (struct render){.node = n};
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
static bool make_part(struct render *w, int layer, struct err *e)
{
    char name[32];
    struct object *part = NULL;
    layer_part(layer, name);
    bool ok = select_layer(w, layer, e) && node_part_open(w->node, name, &part, e), matches = w->match && has_block(w);
    /* Also when the part is there: what leaves the layer is wanted. */
    ok = ok && (!matches || block_match_enter(w->match, layer, e));
    if (ok && !part)
        ok = render_layer(w, name, e) || err_context(e, "layer %d", layer);
    object_close(part);
    return ok && (!matches || block_match_leave(w->match, e));
}

static bool run(struct node *n, struct err *e)
{
    struct render w;
    bool ok = open_work(&w, n, e);
    if (ok) { /* the node's queue is there only while it runs */
        w.host = (struct queue){.k = w.host.k, .threads = node_threads(n), .device = TENSOR_HOST};
        w.q = render_steps(&w) > 0 ? &w.host : node_queue(n);
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
static uint64_t rendered_bytes(const struct render *w, const struct unit *u)
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
    struct render w;
    if (!open_work(&w, n, e)) {
        close_work(&w);
        return false;
    }
    uint64_t layer_bytes = 0, most_layer = 0, most_unit = 0;
    const struct kernels *kernels = render_steps(&w) > 0 ? w.host.k : node_kernels(n);
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
        if (on_device) /* weights, what is left of some rows, their parts, and the moment before it is packed */
            tensors += (unit->parameters + (uint64_t)loss_rows(kernels) * k) * sizeof(float) + bytes + square;
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
