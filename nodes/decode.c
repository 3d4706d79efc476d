/* Plain bf16 from packed weights: a matrix that is stored in a format has one `.weight` again, each value the
 * format's documented expression rounded to nearest even; every other tensor and file is copied byte for byte.
 * config.json is the same text without its quantization_config. */
#include "nodes/decode.h"

#include <dirent.h>
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "engine/base/str.h"
#include "nodes/model/json.h"
#include "nodes/model/model.h"
#include "nodes/publish.h"

#define CONFIG_LIMIT (16u << 20)
#define SHARD_SIZE ((uint64_t)5 << 30)
#define MOST_FILES 99999

/* One tensor to be written. */
struct item {
    const char *name;
    const struct st_tensor *copy; /* NULL: the weight of `matrix`, decoded */
    int matrix;
    uint64_t bytes;
    size_t file;                  /* counted from 0 */
};

struct decode {
    const struct decode_options *options;
    struct arena arena;
    struct model *model;
    struct item *items;           /* in the order of the files; mem_* */
    size_t n_items, n_files;
    struct publish *place;
    uint64_t total, in_file;      /* bytes: of all, of the last file so far */
};

/* ------------------------------------------------------------------------------------------------------ the tensors */

static int by_place(const void *a, const void *b)
{
    const struct st_tensor *x = *(const struct st_tensor *const *)a, *y = *(const struct st_tensor *const *)b;
    if (x->file != y->file)
        return x->file < y->file ? -1 : 1;
    if (x->offset != y->offset)
        return x->offset < y->offset ? -1 : 1;
    return strcmp(x->name, y->name);
}

/* The matrix of which this tensor is a part, its bias aside; -1 when there is none. */
static int packed_matrix(const struct model *m, const char *tensor)
{
    const char *dot = strrchr(tensor, '.');
    if (!dot || strcmp(dot, ".bias") == 0)
        return -1;
    size_t n = (size_t)(dot - tensor);
    for (int i = 0; i < m->n_matrices; i++)
        if (m->matrices[i].stored->group_format && strncmp(m->matrices[i].name, tensor, n) == 0 &&
            m->matrices[i].name[n] == '\0')
            return i;
    return -1;
}

static bool add_item(struct decode *x, const struct st_tensor *t, bool *is_done, struct err *e)
{
    int matrix = packed_matrix(x->model, t->name);
    struct item *item = &x->items[x->n_items];
    *item = (struct item){.name = t->name, .copy = t, .matrix = matrix, .bytes = t->bytes};
    if (matrix >= 0) {
        const struct matrix *m = &x->model->matrices[matrix];
        if (is_done[matrix])
            return true;
        is_done[matrix] = true;
        item->copy = NULL;
        item->bytes = 2 * (uint64_t)m->n * (uint64_t)m->k;
        item->name = arena_printf(&x->arena, e, "%s.weight", m->name);
        if (!item->name)
            return false;
    }
    uint64_t most = x->options->shard_size ? x->options->shard_size : SHARD_SIZE;
    if (x->n_files == 0 || (x->in_file > 0 && x->in_file + item->bytes > most)) {
        x->n_files++;
        x->in_file = 0;
    }
    x->in_file += item->bytes;
    item->file = x->n_files - 1;
    x->total += item->bytes;
    x->n_items++;
    return true;
}

/* In the order in which the checkpoint has them, dealt to files. */
static bool list_items(struct decode *x, struct err *e)
{
    const struct safetensors *s = x->model->files;
    const struct st_tensor **sorted = arena_new(&x->arena, (s->n_tensors + 1) * sizeof *sorted, e);
    bool *is_done = sorted ? arena_new(&x->arena, (size_t)x->model->n_matrices + 1, e) : NULL;
    if (!is_done || !mem_new(&x->items, s->n_tensors + 1, e))
        return false;
    for (size_t i = 0; i < s->n_tensors; i++)
        sorted[i] = &s->tensors[i];
    qsort(sorted, s->n_tensors, sizeof *sorted, by_place);
    for (size_t i = 0; i < s->n_tensors; i++)
        if (!add_item(x, sorted[i], is_done, e))
            return false;
    if (x->n_files > MOST_FILES)
        return err_set(e, ERR_INPUT, "--shard-size gives %zu files, at most %d are named", x->n_files, MOST_FILES);
    return true;
}

/* safetensors_write asks for the bytes of one item. */
static bool fill(const struct st_source *self, void *out, struct err *e)
{
    const struct decode *x = self->context;
    const struct item *item = &x->items[self->index];
    float *w;
    if (item->copy)
        return safetensors_read(x->model->files, item->copy, 0, item->bytes, out, e);
    const int64_t count = (int64_t)(item->bytes / 2);
    uint16_t *rounded = out;
    if (!mem_raw(&w, (size_t)count, e))
        return false;
    bool ok = model_read_matrix(x->model, item->matrix, w, e);
    if (ok) {
#pragma omp parallel for schedule(static)
        for (int64_t i = 0; i < count; i++)
            rounded[i] = bf16_from_f32(w[i]);
    }
    mem_free(w);
    return ok;
}

static void file_name(const struct decode *x, size_t file, char out[64])
{
    if (x->n_files == 1)
        snprintf(out, 64, "model.safetensors");
    else
        snprintf(out, 64, "model-%05zu-of-%05zu.safetensors", file + 1, x->n_files);
}

static bool write_weights(struct decode *x, struct err *e)
{
    struct st_source *sources;
    char path[4200], name[64];
    if (!mem_new(&sources, x->n_items + 1, e))
        return false;
    for (size_t i = 0; i < x->n_items; i++) {
        const struct item *item = &x->items[i];
        sources[i] = (struct st_source){.name = item->name, .bytes = item->bytes, .fill = fill, .context = x,
                                        .index = (int64_t)i, .dtype = item->copy ? item->copy->dtype : DTYPE_BF16,
                                        .rank = item->copy ? item->copy->rank : 2};
        for (int d = 0; item->copy && d < sources[i].rank; d++)
            sources[i].shape[d] = item->copy->shape[d];
        if (!item->copy) {
            sources[i].shape[0] = x->model->matrices[item->matrix].n;
            sources[i].shape[1] = x->model->matrices[item->matrix].k;
        }
    }
    bool ok = true;
    for (size_t file = 0, first = 0, end; ok && file < x->n_files; file++, first = end) {
        for (end = first; end < x->n_items && x->items[end].file == file;)
            end++;
        file_name(x, file, name);
        snprintf(path, sizeof path, "%s/%s", publish_path(x->place), name);
        ok = safetensors_write(path, sources + first, end - first, e);
    }
    mem_free(sources);
    return ok;
}

static bool write_index(struct decode *x, struct err *e)
{
    struct str s = {0};
    char name[64];
    if (x->n_files == 1)
        return true;
    str_printf(&s, "{\n  \"metadata\": {\n    \"total_size\": %llu\n  },\n  \"weight_map\": {",
               (unsigned long long)x->total);
    for (size_t i = 0; i < x->n_items; i++) {
        str_add(&s, i ? ",\n    " : "\n    ");
        str_add_json(&s, x->items[i].name);
        str_add(&s, ": ");
        file_name(x, x->items[i].file, name);
        str_add_json(&s, name);
    }
    str_add(&s, "\n  }\n}\n");
    bool ok = str_ok(&s, e) && publish_write(x->place, "model.safetensors.index.json", s.text, s.length, e);
    str_free(&s);
    return ok;
}

/* -------------------------------------------------------------------------------------------------- the other files */

/* Behind the string that begins at `at`. */
static size_t skip_string(const char *text, size_t at)
{
    for (at++; text[at] && text[at] != '"'; at++)
        at += text[at] == '\\' && text[at + 1];
    return at + (text[at] == '"');
}

static size_t skip_space(const char *text, size_t at) { return at + strspn(text + at, " \t\r\n"); }

/* Behind the value that begins at `at`. The text is valid JSON. */
static size_t skip_value(const char *text, size_t at)
{
    int depth = 0;
    do {
        if (text[at] == '"') {
            at = skip_string(text, at);
            continue;
        }
        depth += text[at] == '{' || text[at] == '[';
        depth -= text[at] == '}' || text[at] == ']';
        at++;
        if (depth == 0)
            at += strcspn(text + at, ",]} \t\r\n"); /* the rest of a number or word */
    } while (depth > 0 && text[at]);
    return at;
}

/* Where the top-level member `key` (as it is spelled, quotes included) begins and ends, with one of the commas beside
 * it. False when there is none. */
static bool find_member(const char *text, const char *key, size_t *from, size_t *to)
{
    size_t at = skip_space(text, 0), before = at + 1; /* behind '{' or the last value */
    at = skip_space(text, at + 1);
    while (text[at] == '"') {
        size_t begin = at, end = skip_string(text, at);
        bool found = strlen(key) == end - begin && strncmp(text + begin, key, end - begin) == 0;
        at = skip_space(text, end);
        at = skip_value(text, skip_space(text, at + 1));
        size_t comma = skip_space(text, at);
        bool is_last = text[comma] != ',';
        if (found) {
            /* The comma before it goes with it, or the one behind it when it is the first. */
            bool is_first = text[skip_space(text, before)] != ',';
            *from = is_first ? begin : before;
            *to = !is_first || is_last ? at : skip_space(text, comma + 1);
            return true;
        }
        before = at;
        at = is_last ? comma : skip_space(text, comma + 1);
    }
    return false;
}

/* The text of config.json without its quantization_config; that it is one JSON object is known. */
static bool write_config(struct decode *x, struct err *e)
{
    char path[4200], *text;
    size_t n, from = 0, to = 0;
    json_t *parsed = NULL;
    struct str s = {0};
    snprintf(path, sizeof path, "%s/config.json", x->model->path);
    if (!json_read_file(&text, &n, path, CONFIG_LIMIT, e))
        return false;
    bool ok = json_load_text(&parsed, text, n, path, e);
    bool has = ok && json_object_get(parsed, "quantization_config") != NULL;
    json_decref(parsed);
    if (ok && !(has && find_member(text, "\"quantization_config\"", &from, &to)))
        ok = err_set(e, ERR_INPUT, "%s: `quantization_config` is spelled with escapes, which is not read", path);
    if (ok) {
        str_add_bytes(&s, text, from);
        str_add_bytes(&s, text + to, n - to);
        ok = str_ok(&s, e) && publish_write(x->place, "config.json", s.text, s.length, e);
    }
    str_free(&s);
    mem_free(text);
    return ok;
}

/* Everything that is neither weights nor about the export. */
static bool is_side_file(const char *name)
{
    static const char *const names[] = {"config.json", "scout.json", "model.safetensors.index.json",
                                        "hf_quant_config.json", "quantize_config.json"};
    static const char *const ends[] = {".safetensors", ".bin", ".gguf", ".pt", ".pth", ".h5", ".msgpack", ".onnx"};
    size_t n = strlen(name);
    if (name[0] == '.')
        return false;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (strcmp(name, names[i]) == 0)
            return false;
    for (size_t i = 0; i < sizeof ends / sizeof *ends; i++)
        if (n > strlen(ends[i]) && strcmp(name + n - strlen(ends[i]), ends[i]) == 0)
            return false;
    return true;
}

static bool copy_side_files(struct decode *x, struct err *e)
{
    DIR *d = opendir(x->model->path);
    bool ok = d != NULL || err_errno(e, ERR_IO, "cannot list %s", x->model->path);
    for (const struct dirent *entry; ok && (entry = readdir(d));) {
        char path[4600];
        struct stat s;
        snprintf(path, sizeof path, "%s/%s", x->model->path, entry->d_name);
        if (is_side_file(entry->d_name) && stat(path, &s) == 0 && S_ISREG(s.st_mode))
            ok = publish_copy(x->place, entry->d_name, path, e);
    }
    if (d)
        closedir(d);
    return ok;
}

/* ---------------------------------------------------------------------------------------------------------- the run */

static bool check_place(const char *out, struct err *e)
{
    struct stat s;
    if (lstat(out, &s) == 0)
        return err_set(e, ERR_INPUT, "'%s' is there already; name a directory that is not", out);
    return errno == ENOENT || err_errno(e, ERR_INPUT, "%s", out);
}

/* A path that does not depend on the working directory, which publishing wants. */
static const char *absolute(struct decode *x, const char *path, struct err *e)
{
    char here[PATH_MAX];
    if (path[0] == '/')
        return path;
    if (!getcwd(here, sizeof here)) {
        err_errno(e, ERR_IO, "the working directory");
        return NULL;
    }
    return arena_printf(&x->arena, e, "%s/%s", here, path);
}

static bool check_model(const struct model *m, struct err *e)
{
    for (int i = 0; i < m->n_matrices; i++)
        if (m->matrices[i].stored->group_format)
            return true;
    return err_set(e, ERR_INPUT, "%s: no matrix of it is quantized; there is nothing to decode", m->path);
}

bool decode_run(const struct decode_options *o, struct decode_result *out, struct err *e)
{
    struct decode x = {.options = o};
    const char *target = NULL;
    if (strlen(o->dir) > 3000 || strlen(o->out) > 2000)
        return err_set(e, ERR_INPUT, "a path of more than 2000 bytes is not written");
    bool ok = check_place(o->out, e) && (target = absolute(&x, o->out, e)) && model_open(&x.model, o->dir, e) &&
              check_model(x.model, e) && list_items(&x, e) && publish_begin(&x.place, target, e);
    ok = ok && write_weights(&x, e) && write_index(&x, e) && write_config(&x, e) && copy_side_files(&x, e) &&
         check_place(o->out, e); /* somebody may have made it meanwhile: it is theirs */
    if (ok) {
        struct publish *place = x.place;
        x.place = NULL;
        ok = publish_commit(place, e);
    }
    if (ok) {
        *out = (struct decode_result){.bytes = x.total, .n_files = (int)x.n_files};
        for (int i = 0; i < x.model->n_matrices; i++)
            out->n_decoded += x.model->matrices[i].stored->group_format != NULL;
    }
    publish_abort(x.place);
    mem_free(x.items);
    model_close(x.model);
    arena_free(&x.arena);
    return ok;
}
