#include "nodes/rotate/write.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/base/str.h"
#include "nodes/model/directory.h"
#include "nodes/model/json.h"
#include "nodes/model/tokens.h"

#define CONFIG_LIMIT (16u << 20)
#define BLOCK_NUMBERS ((int64_t)1 << 21) /* of a table, rotated at a time */

/* What a tensor is in the model. TENSOR_OTHER: nothing that it computes with. */
enum kind { TENSOR_OTHER, TENSOR_EMBEDDING, TENSOR_HEAD, TENSOR_NORM, TENSOR_WEIGHT, TENSOR_BIAS };

struct item {
    const char *name;
    const struct st_tensor *source;
    enum kind kind;
    int matrix;           /* of a weight or bias */
    enum dtype dtype;     /* as it is written */
    unsigned bases;       /* that it is written in */
};

struct writing {
    const struct write_spec *spec;
    const struct model *model;
    struct arena arena;
    struct item *items;
    size_t n;
    uint64_t done, total; /* bytes */
};

bool write_unties(const struct write_spec *s) { return s->gate->residual && s->basis->model->config.tied; }

/* -------------------------------------------------------------------------------------------- what is to be written */

static int by_place(const void *a, const void *b)
{
    const struct item *x = a, *y = b;
    if (x->source->file != y->source->file)
        return x->source->file < y->source->file ? -1 : 1;
    return (x->source->offset > y->source->offset) - (x->source->offset < y->source->offset);
}

/* The item of that name becomes what `kind` says; it is there if the model could be opened. */
static void mark(struct writing *w, enum kind kind, int matrix, const char *name)
{
    const struct st_tensor *t = safetensors_find(w->model->files, name);
    if (!t)
        return;
    struct item *x = &w->items[t - w->model->files->tensors];
    *x = (struct item){.name = t->name, .source = t, .kind = kind, .matrix = matrix,
                       .dtype = w->spec->keep_dtypes ? t->dtype : w->spec->dtype};
    unsigned residual = w->spec->gate->residual ? BASIS_RESIDUAL : 0;
    x->bases = kind == TENSOR_WEIGHT || kind == TENSOR_BIAS
                   ? gate_bases(w->spec->gate, w->model->units[w->model->matrices[matrix].unit].layer)
                   : residual;
}

static void mark_all(struct writing *w)
{
    const struct model *m = w->model;
    char name[600];
    mark(w, TENSOR_EMBEDDING, -1, "model.embed_tokens.weight");
    if (!m->config.tied)
        mark(w, TENSOR_HEAD, -1, "lm_head.weight");
    mark(w, TENSOR_NORM, -1, "model.norm.weight");
    for (int i = 0; i < 2 * m->config.layers; i++) {
        snprintf(name, sizeof name, "model.layers.%d.%s_layernorm.weight", i / 2, i % 2 ? "post_attention" : "input");
        mark(w, TENSOR_NORM, -1, name);
    }
    for (int i = 0; i < m->n_matrices; i++) {
        snprintf(name, sizeof name, "%s.weight", m->matrices[i].name);
        mark(w, TENSOR_WEIGHT, i, name);
        snprintf(name, sizeof name, "%s.bias", m->matrices[i].name);
        if (m->matrices[i].has_bias)
            mark(w, TENSOR_BIAS, i, name);
    }
}

static uint64_t item_bytes(const struct item *x)
{
    return x->source->bytes / dtype_bytes(x->source->dtype) * dtype_bytes(x->dtype);
}

/* All tensors, in the order of the source's files. A head of its own is the last. */
static bool list_items(struct writing *w, struct err *e)
{
    const struct safetensors *s = w->model->files;
    w->items = arena_new(&w->arena, (s->n_tensors + 1) * sizeof *w->items, e);
    if (!w->items)
        return false;
    for (size_t i = 0; i < s->n_tensors; i++)
        w->items[i] = (struct item){.name = s->tensors[i].name, .source = &s->tensors[i],
                                    .dtype = s->tensors[i].dtype, .matrix = -1};
    mark_all(w);
    const struct st_tensor *table = safetensors_find(s, "model.embed_tokens.weight");
    struct item head = w->items[table - s->tensors];
    for (size_t i = 0; i < s->n_tensors; i++) /* a copy of the embedding under the head's name is not the head */
        if (!w->model->config.tied || strcmp(s->tensors[i].name, "lm_head.weight") != 0)
            w->items[w->n++] = w->items[i];
    qsort(w->items, w->n, sizeof *w->items, by_place);
    if (write_unties(w->spec)) {
        head.name = "lm_head.weight";
        head.kind = TENSOR_HEAD;
        w->items[w->n++] = head;
    }
    for (size_t i = 0; i < w->n; i++)
        w->total += item_bytes(&w->items[i]);
    return true;
}

/* The file that holds an item, as an index into the source's. */
static int file_of(const struct writing *w, size_t i)
{
    bool is_new = i + 1 == w->n && write_unties(w->spec);
    return is_new ? (int)w->model->files->n_files - 1 : w->items[i].source->file;
}

/* ------------------------------------------------------------------------------------------------------ the tensors */

/* Numbers [first, first + n) of the source, widened. */
static bool read_numbers(const struct writing *w, const struct st_tensor *t, uint64_t first, size_t n, double *out,
                         struct err *e)
{
    size_t size = dtype_bytes(t->dtype);
    unsigned char *raw = NULL;
    float *narrow = NULL;
    bool ok = mem_raw(&raw, n * size, e) && mem_raw(&narrow, n, e) &&
              safetensors_read(w->model->files, t, first * size, n * size, raw, e) &&
              dtype_to_f32(t->dtype, raw, n, narrow, e);
    for (size_t i = 0; ok && i < n; i++)
        out[i] = (double)narrow[i];
    mem_free(raw);
    mem_free(narrow);
    return ok;
}

/* Does the item's content change? */
static bool is_turned(const struct writing *w, const struct item *x)
{
    switch (x->kind) {
    case TENSOR_WEIGHT: return basis_changes(w->spec->basis, x->matrix, x->bases);
    case TENSOR_BIAS: return basis_changes_bias(w->spec->basis, x->matrix, x->bases);
    case TENSOR_OTHER: return false;
    default: return x->bases & BASIS_RESIDUAL;
    }
}

/* The `n` numbers of a whole tensor, or of rows of a table. */
static bool turn(const struct writing *w, const struct item *x, size_t n, double *numbers, struct err *e)
{
    const struct basis *b = w->spec->basis;
    int64_t rows = (int64_t)n / w->model->config.hidden;
    switch (x->kind) {
    case TENSOR_EMBEDDING: return basis_embedding(b, rows, numbers, e);
    case TENSOR_HEAD: return basis_head(b, rows, numbers, e);
    case TENSOR_WEIGHT: return basis_matrix(b, x->matrix, x->bases, numbers, e);
    case TENSOR_BIAS: return basis_bias(b, x->matrix, x->bases, numbers, e);
    default:
        for (size_t i = 0; i < n; i++) /* the norm's weights are in the matrices behind it */
            numbers[i] = 1.0;
        return true;
    }
}

/* Numbers at a time: whole matrices, tables by rows. */
static size_t piece_of(const struct writing *w, const struct item *x, size_t n)
{
    int64_t rows = BLOCK_NUMBERS / w->model->config.hidden;
    size_t piece = (size_t)(rows > 0 ? rows : 1) * (size_t)w->model->config.hidden;
    bool is_table = x->kind == TENSOR_EMBEDDING || x->kind == TENSOR_HEAD;
    return is_table && piece < n ? piece : n;
}

static bool make(const struct writing *w, const struct item *x, unsigned char *out, struct err *e)
{
    size_t n = x->source->bytes / dtype_bytes(x->source->dtype), piece = piece_of(w, x, n);
    double *numbers;
    if (!mem_raw(&numbers, piece, e))
        return false;
    bool ok = true, turned = is_turned(w, x);
    for (size_t first = 0; ok && first < n; first += piece) {
        size_t count = n - first < piece ? n - first : piece;
        if (node_stopping(w->spec->node))
            ok = node_stopped(e);
        ok = ok && read_numbers(w, x->source, first, count, numbers, e) &&
             (!turned || turn(w, x, count, numbers, e)) &&
             basis_round(numbers, count, x->dtype, out + first * dtype_bytes(x->dtype), e);
    }
    mem_free(numbers);
    return ok || err_context(e, "tensor '%s'", x->name);
}

/* safetensors_write asks for the bytes of item self->index. */
static bool fill(const struct st_source *self, void *out, struct err *e)
{
    struct writing *w = *(struct writing *const *)self->context;
    const struct item *x = &w->items[self->index];
    if (node_stopping(w->spec->node))
        return node_stopped(e);
    bool as_it_is = x->dtype == x->source->dtype && !is_turned(w, x);
    if (as_it_is ? !safetensors_read(w->model->files, x->source, 0, x->source->bytes, out, e) : !make(w, x, out, e))
        return false;
    w->done += item_bytes(x);
    node_progress(w->spec->node, (double)w->done, (double)w->total, "byte");
    return true;
}

static bool write_weights(struct writing *w, struct publish *place, struct err *e)
{
    struct st_source *sources = arena_new(&w->arena, w->n * sizeof *sources, e);
    if (!sources)
        return false;
    for (size_t i = 0; i < w->n; i++) {
        const struct item *x = &w->items[i];
        sources[i] = (struct st_source){.name = x->name, .dtype = x->dtype, .rank = x->source->rank, .fill = fill,
                                        .bytes = item_bytes(x), .context = &w, .index = (int64_t)i};
        memcpy(sources[i].shape, x->source->shape, sizeof sources[i].shape);
    }
    for (size_t file = 0, first = 0; file < w->model->files->n_files; file++) {
        char path[4096];
        size_t end = first;
        while (end < w->n && file_of(w, end) == (int)file)
            end++;
        snprintf(path, sizeof path, "%s/%s", publish_path(place), w->model->files->files[file]);
        if (end > first && !safetensors_write(path, sources + first, end - first, e))
            return false;
        first = end;
    }
    return true;
}

static bool write_index(const struct writing *w, struct publish *place, struct err *e)
{
    const struct safetensors *s = w->model->files;
    struct str text = {0};
    if (s->n_files == 1 && strcmp(s->files[0], "model.safetensors") == 0)
        return true;
    str_printf(&text, "{\n  \"metadata\": {\n    \"total_size\": %llu\n  },\n  \"weight_map\": {",
               (unsigned long long)w->total);
    for (size_t i = 0; i < w->n; i++) {
        str_add(&text, i ? ",\n    " : "\n    ");
        str_add_json(&text, w->items[i].name);
        str_add(&text, ": ");
        str_add_json(&text, s->files[file_of(w, i)]);
    }
    str_add(&text, "\n  }\n}\n");
    bool ok = str_ok(&text, e) &&
              publish_write(place, "model.safetensors.index.json", text.text, text.length, e);
    str_free(&text);
    return ok;
}

/* ------------------------------------------------------------------------------------------------- the other files */

/* config.json, byte for byte, unless the head or the dtype is another. */
static bool write_config(const struct writing *w, struct publish *place, struct err *e)
{
    const struct write_spec *s = w->spec;
    char path[4096], *text = NULL, *changed = NULL;
    size_t n = 0;
    json_t *config = NULL;
    snprintf(path, sizeof path, "%s/config.json", w->model->path);
    bool ok = json_read_file(&text, &n, path, CONFIG_LIMIT, e);
    if (ok && s->keep_dtypes && !write_unties(s))
        ok = publish_write(place, "config.json", text, n, e);
    else if (ok && (ok = json_load_text(&config, text, n, path, e))) {
        const char *key = json_object_get(config, "dtype") ? "dtype" : "torch_dtype";
        if (write_unties(s))
            json_object_set_new(config, "tie_word_embeddings", json_false());
        if (!s->keep_dtypes)
            json_object_set_new(config, key, json_string(s->dtype == DTYPE_F32 ? "float32" : "bfloat16"));
        changed = json_dumps(config, JSON_INDENT(2) | JSON_REAL_PRECISION(17));
        ok = changed ? publish_write(place, "config.json", changed, strlen(changed), e)
                     : err_set(e, ERR_RESOURCE, "out of memory for config.json");
    }
    json_decref(config);
    free(changed);
    mem_free(text);
    return ok;
}

/* ----------------------------------------------------------------------------------------------------- entry points */

bool write_model(const struct write_spec *s, struct publish *place, struct err *e)
{
    struct writing w = {.spec = s, .model = s->basis->model};
    bool ok = list_items(&w, e) && write_weights(&w, place, e) && write_index(&w, place, e) &&
              write_config(&w, place, e) &&
              publish_copy_some(place, w.model->path, directory_is_side_file, e);
    arena_free(&w.arena);
    return ok;
}

uint64_t write_bytes(const struct model *m, bool keep_dtypes, enum dtype dtype, bool untie)
{
    uint64_t bytes = 0;
    const struct st_tensor *table = safetensors_find(m->files, "model.embed_tokens.weight");
    for (size_t i = 0; i < m->files->n_tensors; i++) {
        const struct st_tensor *t = &m->files->tensors[i];
        uint64_t own = keep_dtypes ? t->bytes : t->bytes / dtype_bytes(t->dtype) * dtype_bytes(dtype);
        bytes += own > t->bytes ? own : t->bytes;
        bytes += untie && t == table ? own : 0;
    }
    return bytes;
}

uint64_t write_memory(const struct model *m)
{
    uint64_t most = 0;
    for (size_t i = 0; i < m->files->n_tensors; i++) {
        const struct st_tensor *t = &m->files->tensors[i];
        uint64_t n = t->bytes / dtype_bytes(t->dtype);
        most = n > most ? n : most;
    }
    /* The tensor as it is written, in f64, as f32 and as it was read. */
    return most * (4 + 8 + 4 + 4) + ((uint64_t)32 << 20);
}
