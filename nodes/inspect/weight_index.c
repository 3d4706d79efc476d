/* model.safetensors.index.json (export-formats 7): read without a tree, since it may be large. */
#include <stdlib.h>
#include <string.h>

#include "nodes/inspect/files_private.h"
#include "nodes/inspect/scan.h"
#include "nodes/model/json.h"

#define INDEX_LIMIT (256u << 20)
#define INDEX "model.safetensors.index.json"

static int by_name(const void *a, const void *b)
{
    const struct index_line *x = a, *y = b;
    return strcmp(x->name, y->name);
}

static int by_file(const void *a, const void *b)
{
    return strcmp((*(const struct index_line *const *)a)->file, (*(const struct index_line *const *)b)->file);
}

/* Names of files repeat, so the last one is reused. */
static bool add_line(struct weight_index *x, struct files *f, const char *name, const char *file, struct err *e)
{
    if (!mem_grow_by_one(&x->lines, x->n, e))
        return false;
    bool repeats = x->n > 0 && strcmp(x->lines[x->n - 1].file, file) == 0;
    struct index_line line = {.name = arena_strdup(&f->arena, name, e)};
    line.file = repeats ? x->lines[x->n - 1].file : line.name ? arena_strdup(&f->arena, file, e) : NULL;
    if (!line.name || !line.file)
        return false;
    x->lines[x->n++] = line;
    return true;
}

/* False when memory is out. */
static bool read_map(struct weight_index *x, struct files *f, struct scan *s, struct report *r, struct err *e)
{
    struct str name = {0}, file = {0};
    size_t count = 0;
    bool ok = true;
    scan_enter(s);
    while (ok && scan_member(s, &count, &name)) {
        if (scan_peek(s) != SCAN_STRING) {
            report_error(r, 1, INDEX, "names of files", "the file of tensor '%s' is no text", name.text);
            scan_skip(s);
        } else if (scan_string(s, &file)) {
            if (!file.text[0] || strchr(file.text, '/') || strcmp(file.text, "..") == 0 || strcmp(file.text, ".") == 0)
                report_error(r, 1, INDEX, "files of this directory", "tensor '%s' is in '%s'", name.text, file.text);
            else
                ok = add_line(x, f, name.text, file.text, e);
        }
    }
    str_free(&name);
    str_free(&file);
    return ok;
}

static void read_metadata(struct weight_index *x, struct scan *s)
{
    struct str key = {0};
    size_t count = 0;
    scan_enter(s);
    while (scan_member(s, &count, &key)) {
        if (strcmp(key.text, "total_size") == 0 && scan_peek(s) == SCAN_NUMBER)
            scan_integer(s, &x->total_size, &x->has_total);
        else
            scan_skip(s);
    }
    str_free(&key);
}

static bool parse(struct weight_index *x, struct files *f, const char *text, size_t n, struct report *r, struct err *e)
{
    struct err why = {0};
    struct str key = {0};
    struct scan s;
    size_t count = 0;
    bool has_map = false, ok = true;
    scan_init(&s, text, n, INDEX, &why);
    if (scan_peek(&s) == SCAN_OBJECT) {
        scan_enter(&s);
        while (ok && scan_member(&s, &count, &key)) {
            enum scan_type type = scan_peek(&s);
            if (strcmp(key.text, "weight_map") == 0 && type == SCAN_OBJECT && !has_map) {
                has_map = true;
                ok = read_map(x, f, &s, r, e);
            } else if (strcmp(key.text, "metadata") == 0 && type == SCAN_OBJECT) {
                read_metadata(x, &s);
            } else {
                scan_skip(&s);
            }
        }
    }
    str_free(&key);
    x->readable = has_map;
    if (ok && !s.failed && !has_map)
        report_error(r, 1, INDEX, "an object `weight_map`", "there is none");
    else if (ok && !scan_end(&s))
        report_error(r, 1, INDEX, "one JSON object", "%s", why.text);
    return ok;
}

/* Every file that it names, once, by name. */
static bool add_shards(const struct weight_index *x, struct files *f, struct err *e)
{
    const struct index_line **sorted;
    if (!mem_raw(&sorted, x->n + 1, e))
        return false;
    for (size_t i = 0; i < x->n; i++)
        sorted[i] = &x->lines[i];
    qsort(sorted, x->n, sizeof *sorted, by_file);
    bool ok = true;
    for (size_t i = 0; ok && i < x->n; i++)
        if (i == 0 || strcmp(sorted[i - 1]->file, sorted[i]->file) != 0)
            ok = files_add_shard(f, sorted[i]->file, e);
    mem_free(sorted);
    return ok;
}

bool weight_index_read(struct weight_index *x, struct files *f, struct report *r, struct err *e)
{
    char path[4096], *text = NULL;
    size_t n = 0;
    struct err why = {0};
    snprintf(path, sizeof path, "%s/" INDEX, f->path);
    if (!json_read_file(&text, &n, path, INDEX_LIMIT, &why)) {
        if (why.code == ERR_RESOURCE) {
            *e = why;
            return false;
        }
        report_error(r, 1, INDEX, "a file that can be read", "%s", why.text);
        return true;
    }
    bool ok = parse(x, f, text, n, r, e) && add_shards(x, f, e);
    mem_free(text);
    if (ok && x->n > 0)
        qsort(x->lines, x->n, sizeof *x->lines, by_name);
    return ok;
}

static const struct index_line *find(const struct weight_index *x, const char *name)
{
    const struct index_line key = {.name = name};
    return x->n ? bsearch(&key, x->lines, x->n, sizeof *x->lines, by_name) : NULL;
}

void weight_index_check(const struct weight_index *x, const struct files *f, struct report *r)
{
    if (!x->readable)
        return;
    for (size_t i = 0; i < x->n; i++) {
        const struct index_line *line = &x->lines[i];
        const struct st_entry *t = files_find(f, line->name);
        if (i > 0 && strcmp(x->lines[i - 1].name, line->name) == 0)
            report_error(r, 1, line->name, "each name once", "the index has it twice");
        else if (!t)
            report_error(r, 1, line->name, "tensors that are there", "the index has it in %s, where it is not",
                         line->file);
        else if (strcmp(f->shards[t->file].name, line->file) != 0)
            report_error(r, 1, line->name, "the file that holds it", "the index has it in %s, it is in %s", line->file,
                         f->shards[t->file].name);
    }
    for (size_t i = 0; i < f->n_tensors; i++)
        if (!find(x, f->tensors[i].name))
            report_error(r, 1, f->tensors[i].name, "every tensor in the index", "it is in %s and not in the index",
                         f->shards[f->tensors[i].file].name);
    if (!x->has_total)
        report_warning(r, 1, INDEX, "`metadata`: `total_size`", "there is no such integer");
    else if (x->total_size < 0 || (uint64_t)x->total_size != f->bytes)
        report_error(r, 1, INDEX, "the sum of all tensors' bytes", "`total_size` is %lld, the tensors have %llu",
                     (long long)x->total_size, (unsigned long long)f->bytes);
}

void weight_index_fini(struct weight_index *x)
{
    mem_free(x->lines);
    *x = (struct weight_index){0};
}
