/* Safetensors, read strictly and written. Headers are checked in whole before any tensor is given out: every rule that
 * the format states, since a file that breaks one was damaged or made to deceive. */
#include "nodes/model/safetensors.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "engine/base/str.h"
#include "nodes/model/json.h"

#define HEADER_LIMIT 100000000u /* bytes: the reference reader's */
#define NAME_LIMIT 1024
#define INDEX_LIMIT (64u << 20)

/* One file while its header is read. */
struct shard {
    const char *path;
    uint64_t data, size;       /* offset of the data section, size of the file */
    struct st_tensor *tensors; /* in arena */
    size_t n;
};

/* ------------------------------------------------------------------------------------------------- reading a header */

static bool read_exactly(int fd, const char *path, uint64_t offset, void *out, uint64_t bytes, struct err *e)
{
    for (uint64_t got = 0; got < bytes;) {
        ssize_t step = pread(fd, (char *)out + got, bytes - got, (off_t)(offset + got));
        if (step < 0 && errno == EINTR)
            continue;
        if (step < 0)
            return err_errno(e, ERR_IO, "%s", path);
        if (step == 0)
            return err_set(e, ERR_INPUT, "%s: truncated: %" PRIu64 " bytes at offset %" PRIu64 " are not all there",
                           path, bytes, offset);
        got += (uint64_t)step;
    }
    return true;
}

static bool read_shape(struct st_tensor *t, const json_t *shape, const char *path, struct err *e)
{
    uint64_t count = 1;
    if (!json_is_array(shape))
        return err_set(e, ERR_INPUT, "%s: tensor '%s': `shape` must be an array of integers", path, t->name);
    if (json_array_size(shape) > 8)
        return err_set(e, ERR_INPUT, "%s: tensor '%s' has %zu dimensions, at most 8 are read", path, t->name,
                       json_array_size(shape));
    t->rank = (int)json_array_size(shape);
    for (int i = 0; i < t->rank; i++) {
        const json_t *x = json_array_get(shape, (size_t)i);
        if (!json_is_integer(x) || json_integer_value(x) < 0)
            return err_set(e, ERR_INPUT, "%s: tensor '%s': dimension %d is no non-negative integer", path, t->name, i);
        t->shape[i] = json_integer_value(x);
        if (__builtin_mul_overflow(count, (uint64_t)t->shape[i], &count))
            return err_set(e, ERR_INPUT, "%s: tensor '%s': its shape overflows 64 bits", path, t->name);
    }
    if (__builtin_mul_overflow(count, (uint64_t)dtype_bytes(t->dtype), &t->bytes))
        return err_set(e, ERR_INPUT, "%s: tensor '%s': its shape overflows 64 bits", path, t->name);
    return true;
}

static bool read_offsets(struct st_tensor *t, const json_t *offsets, const struct shard *s, struct err *e)
{
    const json_t *begin = json_array_get(offsets, 0), *end = json_array_get(offsets, 1);
    if (json_array_size(offsets) != 2 || !json_is_integer(begin) || !json_is_integer(end) ||
        json_integer_value(begin) < 0 || json_integer_value(end) < json_integer_value(begin))
        return err_set(e, ERR_INPUT, "%s: tensor '%s': `data_offsets` must be two integers, begin <= end", s->path,
                       t->name);
    uint64_t from = (uint64_t)json_integer_value(begin), to = (uint64_t)json_integer_value(end);
    if (to - from != t->bytes)
        return err_set(e, ERR_INPUT,
                       "%s: tensor '%s': `data_offsets` span %" PRIu64 " bytes, its shape and dtype %s want %" PRIu64,
                       s->path, t->name, to - from, dtype_info(t->dtype)->safetensors, t->bytes);
    if (to > s->size - s->data)
        return err_set(e, ERR_INPUT, "%s: tensor '%s' ends at byte %" PRIu64 " of the data, which has %" PRIu64
                       ": the file is truncated or its header wrong", s->path, t->name, to, s->size - s->data);
    t->offset = s->data + from;
    return true;
}

static bool read_tensor(struct safetensors *st, struct shard *s, const char *name, const json_t *entry, struct err *e)
{
    struct st_tensor *t = &s->tensors[s->n];
    const char *dtype = json_string_value(json_object_get(entry, "dtype"));
    if (strlen(name) > NAME_LIMIT)
        return err_set(e, ERR_INPUT, "%s: a tensor's name has %zu bytes, at most %d are read", s->path, strlen(name),
                       NAME_LIMIT);
    t->name = arena_strdup(&st->arena, name, e);
    if (!t->name)
        return false;
    if (!dtype)
        return err_set(e, ERR_INPUT, "%s: tensor '%s' has no `dtype`", s->path, name);
    if (!dtype_from_safetensors(dtype, &t->dtype))
        return err_set(e, ERR_INPUT, "%s: tensor '%s' has dtype '%s', which is not known here", s->path, name, dtype);
    if (!read_shape(t, json_object_get(entry, "shape"), s->path, e) ||
        !read_offsets(t, json_object_get(entry, "data_offsets"), s, e))
        return false;
    s->n++;
    return true;
}

static int by_offset(const void *a, const void *b)
{
    const struct st_tensor *x = a, *y = b;
    if (x->offset != y->offset)
        return x->offset < y->offset ? -1 : 1;
    return (x->bytes > y->bytes) - (x->bytes < y->bytes);
}

/* Sorted by offset the tensors must cover the data exactly: no hole, no overlap, nothing behind the last. */
static bool check_tiling(struct shard *s, struct err *e)
{
    uint64_t at = s->data;
    qsort(s->tensors, s->n, sizeof *s->tensors, by_offset);
    for (size_t i = 0; i < s->n; i++) {
        const struct st_tensor *t = &s->tensors[i];
        if (t->offset < at)
            return err_set(e, ERR_INPUT, "%s: tensors '%s' and '%s' overlap", s->path, s->tensors[i - 1].name, t->name);
        if (t->offset > at)
            return err_set(e, ERR_INPUT, "%s: %" PRIu64 " bytes before tensor '%s' belong to no tensor", s->path,
                           t->offset - at, t->name);
        at += t->bytes;
    }
    if (at != s->size)
        return err_set(e, ERR_INPUT, "%s: %" PRIu64 " bytes behind the last tensor belong to no tensor", s->path,
                       s->size - at);
    return true;
}

static bool check_metadata(const json_t *metadata, const char *path, struct err *e)
{
    const char *key;
    const json_t *value;
    if (!json_is_object(metadata))
        return err_set(e, ERR_INPUT, "%s: `__metadata__` must be an object of strings", path);
    json_object_foreach((json_t *)metadata, key, value)
    {
        if (!json_is_string(value))
            return err_set(e, ERR_INPUT, "%s: `__metadata__`: '%s' is no string", path, key);
    }
    return true;
}

/* The header's length, with size and data of the shard. */
static bool read_length(int fd, struct shard *s, uint64_t *out, struct err *e)
{
    unsigned char length[8];
    uint64_t n = 0;
    struct stat status;
    if (fstat(fd, &status) != 0)
        return err_errno(e, ERR_IO, "%s", s->path);
    if (!S_ISREG(status.st_mode))
        return err_set(e, ERR_INPUT, "%s: not a regular file", s->path);
    s->size = (uint64_t)status.st_size;
    if (s->size < 8)
        return err_set(e, ERR_INPUT, "%s: truncated: it has %" PRIu64 " bytes, the length of its header alone takes 8",
                       s->path, s->size);
    if (!read_exactly(fd, s->path, 0, length, 8, e))
        return false;
    for (int i = 7; i >= 0; i--)
        n = n << 8 | length[i];
    if (n > HEADER_LIMIT)
        return err_set(e, ERR_INPUT,
                       "%s: its first 8 bytes announce a header of %" PRIu64 " bytes, at most %u are read; is "
                       "it a safetensors file?",
                       s->path, n, HEADER_LIMIT);
    if (n > s->size - 8)
        return err_set(e, ERR_INPUT, "%s: truncated: its header takes %" PRIu64 " bytes, the file has %" PRIu64
                       " behind the header's length", s->path, n, s->size - 8);
    s->data = 8 + n;
    *out = n;
    return true;
}

/* The header's text as JSON. Only spaces may pad it; the JSON reader would let any white space pass. */
static bool read_json(json_t **out, int fd, const struct shard *s, uint64_t n, struct err *e)
{
    char *text;
    char where[4200];
    snprintf(where, sizeof where, "%s: header", s->path);
    if (!mem_raw(&text, n + 1, e))
        return false;
    text[n] = '\0';
    bool ok = read_exactly(fd, s->path, 8, text, n, e);
    uint64_t end = n;
    while (end > 0 && text[end - 1] == ' ')
        end--;
    if (ok && (n == 0 || text[0] != '{'))
        ok = err_set(e, ERR_INPUT, "%s: its header does not begin with '{': no safetensors file", s->path);
    ok = ok && json_load_text(out, text, n, where, e);
    if (ok && text[end - 1] != '}') {
        json_decref(*out);
        ok = err_set(e, ERR_INPUT, "%s: its header is padded with byte 0x%02x, only spaces may pad it", s->path,
                     (unsigned char)text[end - 1]);
    }
    mem_free(text);
    return ok;
}

static bool read_header(struct safetensors *st, int fd, struct shard *s, struct err *e)
{
    uint64_t n = 0;
    json_t *header;
    if (!read_length(fd, s, &n, e) || !read_json(&header, fd, s, n, e))
        return false;
    s->tensors = arena_new(&st->arena, (json_object_size(header) + 1) * sizeof *s->tensors, e);
    bool ok = s->tensors != NULL;
    for (void *i = json_object_iter(header); ok && i; i = json_object_iter_next(header, i)) {
        const char *name = json_object_iter_key(i);
        const json_t *entry = json_object_iter_value(i);
        ok = strcmp(name, "__metadata__") == 0 ? check_metadata(entry, s->path, e) : read_tensor(st, s, name, entry, e);
    }
    json_decref(header);
    return ok && check_tiling(s, e);
}

/* -------------------------------------------------------------------------------------------------------- opening */

static int by_name(const void *a, const void *b)
{
    return strcmp(((const struct st_tensor *)a)->name, ((const struct st_tensor *)b)->name);
}

static bool add_shard(struct safetensors *st, int file, struct shard *s, struct err *e)
{
    if (!mem_grow(&st->tensors, st->n_tensors, st->n_tensors + s->n + 1, e))
        return false;
    for (size_t i = 0; i < s->n; i++) {
        st->tensors[st->n_tensors] = s->tensors[i];
        st->tensors[st->n_tensors++].file = file;
    }
    return true;
}

/* `named` is put behind the name of a file that cannot be opened. */
static bool open_shards(struct safetensors *st, const char *dir, const char *named, struct err *e)
{
    if (!mem_new(&st->fds, st->n_files, e))
        return false;
    for (size_t i = 0; i < st->n_files; i++)
        st->fds[i] = -1;
    for (size_t i = 0; i < st->n_files; i++) {
        struct shard s = {.path = arena_printf(&st->arena, e, "%s/%s", dir, st->files[i])};
        if (!s.path)
            return false;
        st->fds[i] = open(s.path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
        if (st->fds[i] < 0)
            return err_errno(e, ERR_INPUT, "%s%s", s.path, named);
        if (!read_header(st, st->fds[i], &s, e) || !add_shard(st, (int)i, &s, e))
            return false;
    }
    qsort(st->tensors, st->n_tensors, sizeof *st->tensors, by_name);
    for (size_t i = 1; i < st->n_tensors; i++)
        if (strcmp(st->tensors[i - 1].name, st->tensors[i].name) == 0)
            return err_set(e, ERR_INPUT, "%s: tensor '%s' stands in both %s and %s", dir, st->tensors[i].name,
                           st->files[st->tensors[i - 1].file], st->files[st->tensors[i].file]);
    return true;
}

static int by_text(const void *a, const void *b) { return strcmp(*(const char *const *)a, *(const char *const *)b); }

/* The different file names in the index, sorted. */
static bool list_files(struct safetensors *st, const json_t *map, const char *path, struct err *e)
{
    const char *tensor;
    const json_t *value;
    size_t n = 0;
    st->files = arena_new(&st->arena, (json_object_size(map) + 1) * sizeof *st->files, e);
    if (!st->files)
        return false;
    json_object_foreach((json_t *)map, tensor, value)
    {
        const char *file = json_string_value(value);
        if (!file)
            return err_set(e, ERR_INPUT, "%s: tensor '%s': the name of its file is no text", path, tensor);
        if (!*file || strchr(file, '/') || strstr(file, ".."))
            return err_set(e, ERR_INPUT, "%s: tensor '%s': '%s' is no plain file name in this directory", path, tensor,
                           file);
        st->files[n] = arena_strdup(&st->arena, file, e);
        if (!st->files[n++])
            return false;
    }
    qsort(st->files, n, sizeof *st->files, by_text);
    for (size_t i = 0; i < n; i++)
        if (i == 0 || strcmp(st->files[i], st->files[st->n_files - 1]) != 0)
            st->files[st->n_files++] = st->files[i];
    if (!st->n_files)
        return err_set(e, ERR_INPUT, "%s: `weight_map` names no file", path);
    return true;
}

/* Index and headers must speak of the same tensors in the same files. */
static bool check_index(const struct safetensors *st, const json_t *map, const char *path, struct err *e)
{
    const char *name;
    const json_t *value;
    json_object_foreach((json_t *)map, name, value)
    {
        const struct st_tensor *t = safetensors_find(st, name);
        if (!t || strcmp(st->files[t->file], json_string_value(value)) != 0)
            return err_set(e, ERR_INPUT, "%s: tensor '%s' is not in %s, where the index has it", path, name,
                           json_string_value(value));
    }
    for (size_t i = 0; i < st->n_tensors; i++)
        if (!json_object_get(map, st->tensors[i].name))
            return err_set(e, ERR_INPUT, "%s: tensor '%s' of %s is not in the index", path, st->tensors[i].name,
                           st->files[st->tensors[i].file]);
    return true;
}

static bool open_index(struct safetensors *st, const char *dir, const char *path, struct err *e)
{
    json_t *index;
    if (!json_load_file_strict(&index, path, INDEX_LIMIT, e))
        return false;
    const json_t *map = json_object_get(index, "weight_map");
    bool ok = json_is_object(map) || err_set(e, ERR_INPUT, "%s: no object `weight_map`", path);
    ok = ok && list_files(st, map, path, e) &&
         open_shards(st, dir, ", which model.safetensors.index.json names", e) && check_index(st, map, path, e);
    json_decref(index);
    return ok;
}

static bool open_single(struct safetensors *st, const char *dir, struct err *e)
{
    st->files = arena_new(&st->arena, sizeof *st->files, e);
    if (!st->files)
        return false;
    st->files[0] = "model.safetensors";
    st->n_files = 1;
    return open_shards(st, dir, "", e);
}

bool safetensors_open(struct safetensors **out, const char *dir, struct err *e)
{
    struct safetensors *st;
    if (!mem_new(&st, 1, e))
        return false;
    const char *index = arena_printf(&st->arena, e, "%s/model.safetensors.index.json", dir);
    const char *single = index ? arena_printf(&st->arena, e, "%s/model.safetensors", dir) : NULL;
    bool ok = single != NULL;
    bool has_index = ok && access(index, F_OK) == 0, has_single = ok && access(single, F_OK) == 0;
    if (has_index && has_single)
        ok = err_set(e, ERR_INPUT, "%s: both model.safetensors and model.safetensors.index.json are there, and readers "
                     "differ in which they take; remove one", dir);
    else if (has_index)
        ok = open_index(st, dir, index, e);
    else if (has_single)
        ok = open_single(st, dir, e);
    else if (ok)
        ok = err_set(e, ERR_INPUT, "%s: neither model.safetensors nor model.safetensors.index.json is there", dir);
    if (!ok) {
        safetensors_close(st);
        return false;
    }
    *out = st;
    return true;
}

void safetensors_close(struct safetensors *s)
{
    if (!s)
        return;
    for (size_t i = 0; s->fds && i < s->n_files; i++)
        if (s->fds[i] >= 0)
            close(s->fds[i]);
    mem_free(s->fds);
    mem_free(s->tensors);
    arena_free(&s->arena);
    mem_free(s);
}

const struct st_tensor *safetensors_find(const struct safetensors *s, const char *name)
{
    const struct st_tensor key = {.name = name};
    return s->n_tensors ? bsearch(&key, s->tensors, s->n_tensors, sizeof *s->tensors, by_name) : NULL;
}

bool safetensors_read(const struct safetensors *s, const struct st_tensor *t, uint64_t first, uint64_t bytes, void *out,
                      struct err *e)
{
    if (first > t->bytes || bytes > t->bytes - first)
        return err_set(e, ERR_BUG, "tensor '%s': bytes %" PRIu64 " + %" PRIu64 " of %" PRIu64, t->name, first, bytes,
                       t->bytes);
    return read_exactly(s->fds[t->file], s->files[t->file], t->offset + first, out, bytes, e) ||
           err_context(e, "tensor '%s'", t->name);
}

void safetensors_ahead(const struct safetensors *s, const struct st_tensor *t, uint64_t first, uint64_t bytes)
{
    /* Advice only: what fails here shows when the bytes are read. */
    (void)!posix_fadvise(s->fds[t->file], (off_t)(t->offset + first), (off_t)bytes, POSIX_FADV_WILLNEED);
}

/* -------------------------------------------------------------------------------------------------------- writing */

static bool write_exactly(int fd, const char *path, const void *data, size_t n, struct err *e)
{
    for (size_t done = 0; done < n;) {
        ssize_t step = write(fd, (const char *)data + done, n - done);
        if (step < 0 && errno == EINTR)
            continue;
        if (step < 0)
            return err_errno(e, ERR_IO, "%s: writing %zu bytes", path, n);
        done += (size_t)step;
    }
    return true;
}

static bool header_text(struct str *s, const struct st_source *tensors, size_t n, struct err *e)
{
    uint64_t at = 0;
    str_add(s, "{\"__metadata__\":{\"format\":\"pt\"}");
    for (size_t i = 0; i < n; i++) {
        const struct st_source *t = &tensors[i];
        uint64_t bytes = dtype_bytes(t->dtype);
        for (int d = 0; d < t->rank; d++)
            bytes *= (uint64_t)t->shape[d];
        if (bytes != t->bytes)
            return err_set(e, ERR_BUG, "tensor '%s' of %" PRIu64 " bytes is to be written as %" PRIu64, t->name, bytes,
                           t->bytes);
        str_add(s, ",");
        str_add_json(s, t->name);
        str_printf(s, ":{\"dtype\":\"%s\",\"shape\":[", dtype_info(t->dtype)->safetensors);
        for (int d = 0; d < t->rank; d++)
            str_printf(s, "%s%" PRId64, d ? "," : "", t->shape[d]);
        str_printf(s, "],\"data_offsets\":[%" PRIu64 ",%" PRIu64 "]}", at, at + t->bytes);
        at += t->bytes;
    }
    str_add(s, "}");
    while (s->length % 8 && !s->failed)
        str_add(s, " ");
    return str_ok(s, e);
}

static bool write_tensors(int fd, const char *path, const struct st_source *tensors, size_t n, struct err *e)
{
    for (size_t i = 0; i < n; i++) {
        unsigned char *data;
        if (!mem_raw(&data, tensors[i].bytes, e))
            return err_context(e, "tensor '%s'", tensors[i].name);
        bool ok = tensors[i].fill(&tensors[i], data, e) && write_exactly(fd, path, data, tensors[i].bytes, e);
        mem_free(data);
        if (!ok)
            return err_context(e, "tensor '%s'", tensors[i].name);
    }
    return true;
}

bool safetensors_write(const char *path, const struct st_source *tensors, size_t n, struct err *e)
{
    struct str header = {0};
    unsigned char length[8];
    int fd = -1;
    bool ok = header_text(&header, tensors, n, e);
    for (int i = 0; i < 8; i++)
        length[i] = (unsigned char)((uint64_t)header.length >> (8 * i));
    if (ok) {
        fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
        ok = fd >= 0 || err_errno(e, ERR_IO, "%s", path);
    }
    ok = ok && write_exactly(fd, path, length, 8, e) && write_exactly(fd, path, header.text, header.length, e) &&
         write_tensors(fd, path, tensors, n, e);
    if (ok && fsync(fd) != 0)
        ok = err_errno(e, ERR_IO, "%s: fsync", path);
    if (fd >= 0 && close(fd) != 0 && ok)
        ok = err_errno(e, ERR_IO, "%s: close", path);
    if (!ok && fd >= 0)
        unlink(path);
    str_free(&header);
    return ok;
}
