/* The node type `export`: a chosen assignment as a compressed-tensors directory that vLLM and transformers load
 * (export-formats 2, 3, 5, 6.2, 7). Tensors keep their source names and order; a matrix in a packed format has its
 * parts in place of its `.weight`, and everything else is copied byte for byte. scout.json in it says how it came about
 * and lists the digests of all other files, which is how a later run tells an export that may be replaced from a
 * directory that somebody has changed. Before it is put in its place, all of it is read again and compared
 * (nodes/exported.h). The result object lists the tensors and the digests of all files. */
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/base/str.h"
#include "engine/node.h"
#include "nodes/exported.h"
#include "nodes/format/compressed.h"
#include "nodes/model/directory.h"
#include "nodes/model/json.h"
#include "nodes/publish.h"
#include "nodes/recipe.h"
#include "nodes/search/candidates.h"

#define RECIPE "scout.json"
#define MOST_FILES 10000
#define MOST_CONFIG ((size_t)64 << 20) /* bytes of config.json */

static const struct port ports[] = {
    {.name = "model", .types = MODEL_TYPES, .help = "the model that was quantized"},
    {.name = "renderings", .types = (const char *const[]){"quantize", NULL}, .help = "packed weights in every format"},
    {.name = "assignment", .types = (const char *const[]){"confirm", "polish", "select", NULL},
     .help = "whose chosen candidate is exported"},
    {0}};

static const struct param params[] = {
    {.name = "directory", .type = PARAM_PATH, .fallback = "export", .help = "where to put the checkpoint"},
    {.name = "overwrite", .type = PARAM_BOOL, .fallback = "false", .outside_key = true,
     .help = "replace a directory even if it is not an untouched export of ours"},
    {.name = "shard_size", .type = PARAM_SIZE, .fallback = "5GiB", .least = 1 << 20, .most = 1e15, .unit = "byte",
     .help = "most bytes of tensors in one file"},
    {0}};

/* One tensor of the artifact. */
struct item {
    const char *name;
    struct format_part shape;    /* of a part or an input scale; unused for a copy */
    const struct st_tensor *copy; /* NULL: made from the rendering of `matrix` */
    int matrix, part;            /* part -1: the input's global scale */
    uint64_t bytes;
    bool first;                  /* of the tensors of one module, which stay in one file */
    size_t file;                 /* index into names */
};

struct export {
    struct node *node;
    struct arena arena;
    struct model *model;
    struct renderings *renderings;
    struct menu menu;
    struct candidates table;
    const struct candidate *chosen;       /* in table */
    const struct format **formats;        /* [unit] */
    struct item *items;
    size_t n_items, n_weight_files;
    char **weight_files;                  /* names */
    struct directory files;               /* everything in the directory, for the result */
    struct publish *place;
    struct rendering current;             /* of current_matrix, while its parts are written */
    int current_matrix;                   /* -1: none */
    uint64_t total, done;                 /* bytes of tensors; each is written, and read again */
};

/* ----------------------------------------------------------------------------------------------------- the choice */

static bool read_choice(struct export *x, struct err *e)
{
    const struct input *in = node_input(x->node, "assignment", 0);
    struct object *table = in->object;
    uint32_t chosen;
    if (!menu_read(&x->menu, node_input(x->node, "renderings", 0)->object, e) ||
        !menu_check_renderings(&x->menu, table, in->node, e) || !candidates_read(&x->table, table, e) ||
        !object_read(table, "chosen", DTYPE_U32, 0, 1, &chosen, e))
        return false;
    if (chosen >= x->table.n)
        return err_set(e, ERR_INPUT, "'%s': candidate %u is chosen, there are %zu", in->node, chosen, x->table.n);
    x->chosen = &x->table.list[chosen];
    x->formats = arena_new(&x->arena, (size_t)x->menu.n_units * sizeof *x->formats, e);
    if (!x->formats)
        return false;
    for (int u = 0; u < x->menu.n_units; u++) {
        int f = x->chosen->assignment[u];
        if (f >= x->menu.n_formats || !x->menu.available[u * x->menu.n_formats + f])
            return err_set(e, ERR_INPUT, "candidate %u gives unit '%s' format %d, which it cannot have", chosen,
                           x->menu.unit_names[u], f);
        x->formats[u] = format_find(x->menu.format_names[f]);
        if (!x->formats[u])
            return err_set(e, ERR_INPUT, "there is no format '%s'", x->menu.format_names[f]);
    }
    return true;
}

/* -------------------------------------------------------------------------------------------- what is to be written */

static int by_place(const void *a, const void *b)
{
    const struct st_tensor *x = *(const struct st_tensor *const *)a, *y = *(const struct st_tensor *const *)b;
    if (x->file != y->file)
        return x->file < y->file ? -1 : 1;
    if (x->offset != y->offset)
        return x->offset < y->offset ? -1 : 1;
    return strcmp(x->name, y->name);
}

/* The matrix whose `.weight` this tensor is, or -1. */
static int matrix_of(const struct model *m, const char *tensor)
{
    size_t n = strlen(tensor);
    static const char suffix[] = ".weight";
    if (n < sizeof suffix || strcmp(tensor + n - (sizeof suffix - 1), suffix) != 0)
        return -1;
    n -= sizeof suffix - 1;
    for (int i = 0; i < m->n_matrices; i++)
        if (strncmp(m->matrices[i].name, tensor, n) == 0 && m->matrices[i].name[n] == '\0')
            return i;
    return -1;
}

/* The tensors in place of a matrix' weight. */
static bool add_parts(struct export *x, int matrix, struct err *e)
{
    const struct matrix *m = &x->model->matrices[matrix];
    const struct format *f = x->formats[m->unit];
    struct format_part parts[FORMAT_PARTS + 1];
    int count = f->parts(m->n, m->k, m->dtype, parts);
    if (f->static_input_scale)
        parts[count++] = (struct format_part){"input_global_scale", DTYPE_F32, 1, {1}};
    for (int i = 0; i < count; i++) {
        struct item *item = &x->items[x->n_items++];
        bool is_scale = f->static_input_scale && i == count - 1;
        *item = (struct item){.shape = parts[i], .matrix = matrix, .part = is_scale ? -1 : i, .first = i == 0,
                              .bytes = format_part_bytes(&parts[i])};
        item->name = arena_printf(&x->arena, e, "%s.%s", m->name, parts[i].suffix);
        if (!item->name)
            return false;
    }
    return true;
}

/* All tensors of the artifact in the order of the source's files. The payload of the units is checked against the
 * menu's, which is what the budget was about. */
static bool list_items(struct export *x, struct err *e)
{
    const struct safetensors *s = x->model->files;
    const struct st_tensor **sorted = arena_new(&x->arena, s->n_tensors * sizeof *sorted, e);
    x->items = sorted ? arena_new(&x->arena, s->n_tensors * (FORMAT_PARTS + 1) * sizeof *x->items, e) : NULL;
    if (!x->items)
        return false;
    for (size_t i = 0; i < s->n_tensors; i++)
        sorted[i] = &s->tensors[i];
    qsort(sorted, s->n_tensors, sizeof *sorted, by_place);
    uint64_t payload = 0;
    for (size_t i = 0; i < s->n_tensors; i++) {
        if (x->model->config.tied && strcmp(sorted[i]->name, "lm_head.weight") == 0)
            continue; /* loaders alias the embedding; a copy would only differ from it by mistake */
        size_t before = x->n_items;
        int matrix = matrix_of(x->model, sorted[i]->name);
        if (matrix >= 0 && x->formats[x->model->matrices[matrix].unit]->group_format) {
            if (!add_parts(x, matrix, e))
                return false;
        } else {
            x->items[x->n_items++] = (struct item){.name = sorted[i]->name, .copy = sorted[i], .matrix = -1,
                                                   .bytes = sorted[i]->bytes, .first = true};
        }
        for (size_t j = before; j < x->n_items; j++) {
            x->total += x->items[j].bytes;
            payload += matrix >= 0 ? x->items[j].bytes : 0;
        }
    }
    uint64_t expected = menu_bytes(&x->menu, x->chosen->assignment);
    if (payload != expected)
        return err_set(e, ERR_BUG, "the units take %llu bytes in the artifact and %llu by the menu",
                       (unsigned long long)payload, (unsigned long long)expected);
    return true;
}

/* Deal the tensors to files of at most shard_size bytes (a larger module has a file for itself), and name the files. */
static bool deal(struct export *x, struct err *e)
{
    uint64_t most = node_size(x->node, "shard_size"), bytes = 0;
    size_t file = 0;
    for (size_t i = 0; i < x->n_items;) {
        size_t end = i + 1;
        uint64_t module = x->items[i].bytes;
        for (; end < x->n_items && !x->items[end].first; end++)
            module += x->items[end].bytes;
        if (bytes > 0 && bytes + module > most) {
            file++;
            bytes = 0;
        }
        bytes += module;
        for (; i < end; i++)
            x->items[i].file = file;
    }
    x->n_weight_files = file + 1;
    if (x->n_weight_files > MOST_FILES)
        return err_set(e, ERR_INPUT, "shard_size %llu gives %zu files, at most %d are allowed; raise it",
                       (unsigned long long)most, x->n_weight_files, MOST_FILES);
    x->weight_files = arena_new(&x->arena, x->n_weight_files * sizeof *x->weight_files, e);
    for (size_t i = 0; x->weight_files && i < x->n_weight_files; i++) {
        x->weight_files[i] =
            x->n_weight_files == 1
                ? arena_strdup(&x->arena, "model.safetensors", e)
                : arena_printf(&x->arena, e, "model-%05zu-of-%05zu.safetensors", i + 1, x->n_weight_files);
        if (!x->weight_files[i])
            return false;
    }
    return x->weight_files != NULL;
}

/* ------------------------------------------------------------------------------------------------------ the weights */

static bool advance(void *export, uint64_t bytes, struct err *e)
{
    struct export *x = export;
    if (node_stopping(x->node))
        return node_stopped(e);
    x->done += bytes;
    node_progress(x->node, (double)x->done, 2.0 * (double)x->total, "byte");
    return true;
}

/* safetensors_write asks for the bytes of item self->index. Parts of a matrix follow each other, so that its rendering
 * is read once. */
static bool fill(const struct st_source *self, void *out, struct err *e)
{
    struct export *x = *(struct export *const *)self->context;
    const struct item *item = &x->items[self->index];
    if (item->copy) {
        if (!safetensors_read(x->model->files, item->copy, 0, item->bytes, out, e))
            return false;
    } else if (item->part < 0) {
        float scale = renderings_input_scale(x->renderings, x->model->matrices[item->matrix].unit);
        if (!(scale > 0.0f && scale < INFINITY))
            return err_set(e, ERR_NUMERIC, "%s would be %g; a scale must be positive and finite", item->name,
                           (double)scale);
        memcpy(out, &scale, sizeof scale);
    } else {
        const struct format *f = x->formats[x->model->matrices[item->matrix].unit];
        if (x->current_matrix != item->matrix) {
            if (x->current_matrix >= 0)
                rendering_free(&x->current);
            x->current_matrix = -1;
            if (!renderings_read(x->renderings, item->matrix, f->name, &x->current, e))
                return false;
            x->current_matrix = item->matrix;
        }
        memcpy(out, x->current.part[item->part], item->bytes);
    }
    return advance(x, item->bytes, e);
}

static bool write_weights(struct export *x, struct err *e)
{
    struct st_source *sources;
    if (!mem_new(&sources, x->n_items, e))
        return false;
    for (size_t i = 0; i < x->n_items; i++) {
        const struct item *item = &x->items[i];
        sources[i] = (struct st_source){.name = item->name, .bytes = item->bytes, .fill = fill, .context = &x,
                                        .index = (int64_t)i,
                                        .dtype = item->copy ? item->copy->dtype : item->shape.dtype,
                                        .rank = item->copy ? item->copy->rank : item->shape.rank};
        for (int d = 0; d < sources[i].rank; d++)
            sources[i].shape[d] = item->copy ? item->copy->shape[d] : item->shape.shape[d];
    }
    bool ok = true;
    for (size_t file = 0, first = 0; ok && file < x->n_weight_files; file++) {
        size_t end = first;
        while (end < x->n_items && x->items[end].file == file)
            end++;
        char path[4096];
        snprintf(path, sizeof path, "%s/%s", publish_path(x->place), x->weight_files[file]);
        ok = safetensors_write(path, sources + first, end - first, e);
        first = end;
    }
    mem_free(sources);
    return ok;
}

static bool write_index(struct export *x, struct err *e)
{
    if (x->n_weight_files == 1)
        return true;
    struct str s = {0};
    str_printf(&s, "{\n  \"metadata\": {\n    \"total_size\": %llu\n  },\n  \"weight_map\": {",
               (unsigned long long)x->total);
    for (size_t i = 0; i < x->n_items; i++) {
        str_add(&s, i ? ",\n    " : "\n    ");
        str_add_json(&s, x->items[i].name);
        str_add(&s, ": ");
        str_add_json(&s, x->weight_files[x->items[i].file]);
    }
    str_add(&s, "\n  }\n}\n");
    bool ok = str_ok(&s, e) && publish_write(x->place, "model.safetensors.index.json", s.text, s.length, e);
    str_free(&s);
    return ok;
}

/* ------------------------------------------------------------------------------------------------- the other files */

static bool write_config(struct export *x, struct err *e)
{
    const struct model *m = x->model;
    char path[4096], *text = NULL;
    size_t n_text, n = 0;
    struct str config = {0};
    bool has_head = false;
    struct compressed_module *modules;
    if (!mem_new(&modules, (size_t)m->n_matrices + 1, e))
        return false;
    for (int i = 0; i < m->n_matrices; i++) {
        modules[n++] = (struct compressed_module){m->matrices[i].name, x->formats[m->matrices[i].unit]};
        has_head = has_head || strcmp(m->matrices[i].name, "lm_head") == 0;
    }
    if (!has_head) /* a linear layer that is no unit, and listed as such also when it is tied */
        modules[n++] = (struct compressed_module){"lm_head", &format_bf16};
    snprintf(path, sizeof path, "%s/config.json", m->path);
    bool ok = json_read_file(&text, &n_text, path, MOST_CONFIG, e) &&
              compressed_config(&config, text, n_text, path, modules, n, e) &&
              publish_write(x->place, "config.json", config.text, config.length, e);
    str_free(&config);
    mem_free(text);
    mem_free(modules);
    return ok;
}

/* All that is in the half-made directory by now. */
static bool list_files(struct export *x, struct err *e)
{
    directory_fini(&x->files);
    return directory_list(&x->files, node_store(x->node), publish_path(x->place), e);
}

/* ------------------------------------------------------------------------------------------------------- scout.json */

/* {name: digest} of the source's tensors, as the model node has taken them; NULL with *e on failure. */
static json_t *source_digests(const struct export *x, struct err *e)
{
    struct object *model = node_input(x->node, "model", 0)->object;
    char **names = NULL, **digests = NULL;
    uint64_t n_names, n_digests;
    json_t *out = NULL;
    if (object_read_strings(model, "tensors/name", &names, &n_names, e) &&
        object_read_strings(model, "tensors/digest", &digests, &n_digests, e)) {
        out = json_object();
        for (uint64_t i = 0; i < n_names && i < n_digests; i++)
            json_object_set_new(out, names[i], json_string(digests[i]));
    }
    mem_free(names);
    mem_free(digests);
    return out;
}

/* Everything that scout.json says, with the files written so far. */
static bool write_recipe(struct export *x, struct err *e)
{
    json_t *assignment = json_object(), *files = json_array(), *source = source_digests(x, e), *root = NULL;
    json_t *results = source ? recipe_results(x->node, e) : NULL;
    json_t *splits = results ? recipe_splits(x->node, e) : NULL;
    json_t *measured = splits ? recipe_measured(&x->table, x->chosen, splits, e) : NULL;
    json_t *compared = measured ? recipe_compared(node_input(x->node, "assignment", 0)->object, &x->table, e) : NULL;
    char *text = NULL;
    bool ok = compared != NULL;
    uint64_t parameters = x->menu.total_parameters;
    for (int u = 0; u < x->menu.n_units; u++)
        json_object_set_new(assignment, x->menu.unit_names[u], json_string(x->formats[u]->name));
    for (size_t i = 0; i < x->files.n; i++) {
        const struct directory_file *f = &x->files.files[i];
        json_array_append_new(files, json_pack("{s:s, s:I, s:s}", "name", f->name, "bytes", (json_int_t)f->bytes,
                                               "sha256", f->digest));
    }
    if (ok)
        root = json_pack("{s:s, s:i, s:s, s:s, s:s, s:I, s:I, s:f, s:{s:I, s:s}, s:O, s:O, s:O, s:O, s:O, s:O, s:O}",
                         "tool", compressed_writer(), "version", 1, "model_type", x->model->config.model_type,
                         "serving", x->menu.serving, "numeric", x->table.numeric, "bytes",
                         (json_int_t)x->chosen->bytes, "unit_parameters", (json_int_t)parameters, "bpp",
                         menu_bpp(&x->menu, x->chosen->bytes), "candidate", "id", (json_int_t)x->chosen->id,
                         "origin", x->chosen->origin, "measured", measured, "compared", compared, "assignment",
                         assignment, "splits", splits, "recipe", results, "source_tensors", source, "files", files);
    text = root ? json_dumps(root, JSON_INDENT(2) | JSON_REAL_PRECISION(17)) : NULL;
    if (ok && !text)
        ok = err_set(e, ERR_RESOURCE, "out of memory for " RECIPE);
    ok = ok && publish_write(x->place, RECIPE, text, strlen(text), e);
    free(text);
    json_decref(root);
    json_decref(compared);
    json_decref(measured);
    json_decref(splits);
    json_decref(results);
    json_decref(source);
    json_decref(files);
    json_decref(assignment);
    return ok;
}

/* ----------------------------------------------------------------------------------------------------- the result */

static bool add_u64(struct writer *out, const char *name, const char *axis, const char *description,
                    const uint64_t *data, size_t n, struct err *e)
{
    struct dataset d = {.name = name, .dtype = DTYPE_U64, .rank = 1, .shape = {n}, .unit = "byte", .axes = axis,
                        .description = description};
    return writer_add(out, &d, data, e);
}

static bool write_result(struct export *x, struct err *e)
{
    struct writer *out = node_output(x->node);
    char model_key[KEY_TEXT];
    const char **texts = arena_new(&x->arena, x->n_items * sizeof *texts, e);
    const char **places = arena_new(&x->arena, x->n_items * sizeof *places, e);
    uint64_t *bytes = arena_new(&x->arena, x->n_items * sizeof *bytes, e), weights = 0;
    if (!texts || !places || !bytes)
        return false;
    for (size_t i = 0; i < x->n_items; i++) {
        texts[i] = x->items[i].name;
        places[i] = x->weight_files[x->items[i].file];
        bytes[i] = x->items[i].bytes;
    }
    if (!writer_add_strings(out, "tensors/name", texts, x->n_items, "tensor", "names, in the order of the files", e) ||
        !writer_add_strings(out, "tensors/file", places, x->n_items, "tensor", "the file that holds it", e) ||
        !add_u64(out, "tensors/bytes", "tensor", "payload of each tensor", bytes, x->n_items, e))
        return false;
    for (size_t i = 0; i < x->files.n; i++)
        for (size_t w = 0; w < x->n_weight_files; w++)
            weights += strcmp(x->files.files[i].name, x->weight_files[w]) == 0 ? x->files.files[i].bytes : 0;
    return directory_write(&x->files, out, e) &&
           writer_text(out, "model_key", key_text(&node_input(x->node, "model", 0)->key, model_key), e) &&
           writer_int(out, "bytes", (int64_t)x->chosen->bytes, e) &&
           writer_double(out, "bpp", menu_bpp(&x->menu, x->chosen->bytes), e) &&
           writer_int(out, "file_bytes", (int64_t)weights, e);
}

/* --------------------------------------------------------------------------------------------------------- the node */

static void close_export(struct export *x)
{
    publish_abort(x->place);
    directory_fini(&x->files);
    if (x->current_matrix >= 0)
        rendering_free(&x->current);
    renderings_close(x->renderings);
    candidates_fini(&x->table);
    menu_fini(&x->menu);
    model_close(x->model);
    arena_free(&x->arena);
}

/* What was written is what was to be written, read again by another way. */
static bool check_again(struct export *x, struct err *e)
{
    const struct exported expected = {.source = x->model, .renderings = x->renderings, .formats = x->formats,
                                      .step = advance, .context = x};
    return exported_check(publish_path(x->place), &expected, e);
}

/* Fill the half-made directory and put it in place. */
static bool publish(struct export *x, const char *directory, struct err *e)
{
    if (!publish_begin(&x->place, directory, e) || !write_weights(x, e) || !write_index(x, e) || !write_config(x, e) ||
        !check_again(x, e) || !publish_copy_some(x->place, x->model->path, directory_is_side_file, e) ||
        !list_files(x, e) || !write_recipe(x, e) || !list_files(x, e) || !write_result(x, e))
        return false;
    if (node_stopping(x->node))
        return node_stopped(e);
    struct publish *place = x->place;
    const char *path;
    if (!model_input_path(x->node, "model", &path, e)) /* the source changed while it was copied */
        return false;
    x->place = NULL;
    return publish_commit(place, e);
}

static bool run(struct node *n, struct err *e)
{
    struct export x = {.node = n, .current_matrix = -1};
    const char *directory = node_string(n, "directory");
    bool ok = model_open_input(&x.model, n, "model", e) && read_choice(&x, e) &&
              renderings_open(&x.renderings, n, "renderings", x.model, e);
    if (ok && x.menu.n_units != x.model->n_units)
        ok = err_set(e, ERR_INPUT, "the renderings have %d units, the model %s has %d", x.menu.n_units, x.model->path,
                     x.model->n_units);
    ok = ok &&
         directory_check_place(node_store(n), directory, x.model->path, RECIPE, "export", node_bool(n, "overwrite"),
                               e) &&
         list_items(&x, e) && deal(&x, e) &&
         (publish(&x, directory, e) || err_context(e, "export to %s", directory));
    if (ok) {
        char size[16];
        node_log(n, "%s: %.4f bpp, %s of tensors in %zu file%s", directory, menu_bpp(&x.menu, x.chosen->bytes),
                 str_size(x.total, size), x.n_weight_files, x.n_weight_files == 1 ? "" : "s");
    }
    close_export(&x);
    return ok;
}

/* The largest tensor as it is read and as it is written, and the renderings of its matrix. */
static bool needs(struct node *n, struct needs *out, struct err *e)
{
    struct model *m;
    if (!model_open_input(&m, n, "model", e))
        return false;
    uint64_t most = 0, all = 0;
    for (size_t i = 0; i < m->files->n_tensors; i++) {
        most = m->files->tensors[i].bytes > most ? m->files->tensors[i].bytes : most;
        all += m->files->tensors[i].bytes;
    }
    out->cores = 1;
    out->memory = 3 * most + (64u << 20); /* also of the check: two renderings of a matrix */
    out->disk = all; /* at most, and beside what it replaces; on the store's file system, mostly */
    model_close(m);
    return true;
}

static bool stands(struct node *n, struct object *result, bool quick)
{
    return directory_stands(node_store(n), node_string(n, "directory"), result, quick);
}

const struct node_class node_export = {
    .name = "export",
    .summary = "the chosen assignment as a compressed-tensors checkpoint",
    .version = 5,
    .ports = ports,
    .params = params,
    .needs = needs,
    .stands = stands,
    .run = run,
};
