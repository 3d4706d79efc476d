/* Listing, headers (export-formats 7), and the union of all shards. The index is in weight_index.c. */
#include "nodes/inspect/files.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "nodes/inspect/files_private.h"
#include "nodes/inspect/scan.h"

#define HEADER_LIMIT 100000000u /* bytes: the reference reader's */

/* dtypes of safetensors that the engine's table has not, by the bits of a value. */
static const struct {
    const char *name;
    unsigned bits;
} other_dtypes[] = {{"F8_E5M2", 8}, {"F8_E4M3FNUZ", 8}, {"F8_E5M2FNUZ", 8}, {"F4", 4}, {"F6_E2M3", 6}, {"F6_E3M2", 6},
                    {"C64", 64}};

/* One file while its header is read. */
struct reading {
    struct files *files;
    struct report *report;
    struct err *e;        /* out of memory */
    int file;
    const char *name;     /* of the file */
    size_t first;         /* of its tensors */
    struct str key, text; /* scratch */
    bool ok;              /* false: *e is set */
};

/* ------------------------------------------------------------------------------------------------- reading a header */

static bool read_exactly(int fd, const char *name, uint64_t offset, void *out, uint64_t bytes, struct err *e)
{
    for (uint64_t got = 0; got < bytes;) {
        ssize_t step = pread(fd, (char *)out + got, bytes - got, (off_t)(offset + got));
        if (step < 0 && errno == EINTR)
            continue;
        if (step < 0)
            return err_errno(e, ERR_IO, "%s", name);
        if (step == 0)
            return err_set(e, ERR_INPUT, "%s: it was truncated while it was read", name);
        got += (uint64_t)step;
    }
    return true;
}

bool files_read(const struct files *f, const struct st_entry *t, uint64_t first, uint64_t bytes, void *out,
                struct err *e)
{
    const struct shard *s = &f->shards[t->file];
    if (!t->usable || first > t->bytes || bytes > t->bytes - first)
        return err_set(e, ERR_BUG, "tensor '%s': its bytes are not to be read", t->name);
    return read_exactly(s->fd, s->name, t->begin + first, out, bytes, e);
}

static bool set_dtype(struct st_entry *t, const char *name, unsigned *bits)
{
    *bits = 0;
    if (dtype_from_safetensors(name, &t->dtype)) {
        t->dtype_name = dtype_info(t->dtype)->safetensors;
        *bits = 8 * (unsigned)dtype_bytes(t->dtype);
        return true;
    }
    t->dtype = DTYPE_COUNT;
    for (size_t i = 0; i < sizeof other_dtypes / sizeof *other_dtypes; i++)
        if (strcmp(other_dtypes[i].name, name) == 0) {
            t->dtype_name = other_dtypes[i].name;
            *bits = other_dtypes[i].bits;
        }
    return *bits > 0;
}

/* An array of at most `most` integers that are not negative; their number, or -1 (the value is skipped). */
static int read_integers(struct scan *s, int64_t *out, int most)
{
    size_t count = 0;
    int n = 0;
    if (scan_peek(s) != SCAN_ARRAY) {
        scan_skip(s);
        return -1;
    }
    scan_enter(s);
    while (scan_element(s, &count)) {
        int64_t x = -1;
        bool fits = false;
        if (scan_peek(s) == SCAN_NUMBER)
            scan_integer(s, &x, &fits);
        else
            scan_skip(s);
        if (n < 0 || n == most || !fits || x < 0)
            n = -1;
        else
            out[n++] = x;
    }
    return n;
}

/* Elements and bytes of a tensor by its shape; false when they overflow. */
static bool measure(struct st_entry *t, unsigned bits)
{
    uint64_t total;
    t->elements = 1;
    for (int d = 0; d < t->rank; d++)
        if (__builtin_mul_overflow(t->elements, (uint64_t)t->shape[d], &t->elements))
            return false;
    if (__builtin_mul_overflow(t->elements, (uint64_t)bits, &total))
        return false;
    t->bytes = total / 8;
    return total % 8 == 0 && t->elements <= INT64_MAX;
}

/* What an entry says, taken together; a finding for what cannot be. */
static void add_tensor(struct reading *x, struct st_entry *t, const char *dtype, int n_shape, int n_offsets,
                       const int64_t offsets[2])
{
    const struct shard *shard = &x->files->shards[x->file];
    unsigned bits = 0;
    if (!dtype || !set_dtype(t, dtype, &bits)) {
        report_error(x->report, 1, t->name, "a dtype that safetensors has", "%s: dtype %s", x->name,
                     dtype ? dtype : "is missing or no text");
        return;
    }
    if (n_shape < 0 || n_offsets != 2) {
        report_error(x->report, 1, t->name, "at most 8 integers that are not negative; two offsets",
                     "%s: `%s` is malformed", x->name, n_shape < 0 ? "shape" : "data_offsets");
        return;
    }
    t->rank = n_shape;
    t->file = x->file;
    uint64_t begin = (uint64_t)offsets[0], end = (uint64_t)offsets[1];
    if (!measure(t, bits)) {
        report_error(x->report, 1, t->name, "a size of whole bytes below 2^63", "%s: its shape gives no such size",
                     x->name);
        return;
    }
    t->usable = begin <= end && end - begin == t->bytes && end <= shard->size - shard->data;
    if (begin > end || end - begin != t->bytes)
        report_error(x->report, 1, t->name, "offsets that span what shape and dtype want",
                     "%s: offsets [%llu, %llu], %llu bytes wanted", x->name, (unsigned long long)begin,
                     (unsigned long long)end, (unsigned long long)t->bytes);
    else if (!t->usable)
        report_error(x->report, 1, t->name, "tensors inside the file",
                     "%s: it ends at byte %llu of the data, which have %llu", x->name, (unsigned long long)end,
                     (unsigned long long)(shard->size - shard->data));
    t->begin = shard->data + (t->usable ? begin : 0);
    t->end = t->begin + (t->usable ? t->bytes : 0);
    if (!mem_grow_by_one(&x->files->tensors, x->files->n_tensors, x->e)) {
        x->ok = false;
        return;
    }
    x->files->tensors[x->files->n_tensors++] = *t;
}

/* {"dtype": .., "shape": [..], "data_offsets": [..]}, the key being in x->key. */
static void read_entry(struct reading *x, struct scan *s)
{
    struct st_entry t = {0};
    char dtype[32] = "";
    int n_shape = -1, n_offsets = -1;
    int64_t offsets[2] = {0, 0};
    size_t count = 0, length = x->key.length;
    if (length > LONGEST_NAME) {
        report_error(x->report, 1, x->name, "names of at most 1024 bytes", "a tensor's name has %zu bytes", length);
        scan_skip(s);
        return;
    }
    t.name = arena_strdup(&x->files->arena, x->key.text, x->e);
    if (!t.name) {
        x->ok = false;
        return;
    }
    if (scan_peek(s) != SCAN_OBJECT) {
        report_error(x->report, 1, t.name, "an object", "%s: its entry is none", x->name);
        scan_skip(s);
        return;
    }
    scan_enter(s);
    while (scan_member(s, &count, &x->key)) {
        if (strcmp(x->key.text, "dtype") == 0 && scan_peek(s) == SCAN_STRING) {
            if (scan_string(s, &x->text))
                snprintf(dtype, sizeof dtype, "%.31s", x->text.text);
        } else if (strcmp(x->key.text, "shape") == 0) {
            n_shape = read_integers(s, t.shape, MOST_DIMENSIONS);
        } else if (strcmp(x->key.text, "data_offsets") == 0) {
            n_offsets = read_integers(s, offsets, 2);
        } else {
            scan_skip(s);
        }
    }
    if (!s->failed)
        add_tensor(x, &t, dtype[0] ? dtype : NULL, n_shape, n_offsets, offsets);
}

/* transformers refuses a file whose metadata do not say for which framework it is. */
static void read_metadata(struct reading *x, struct scan *s)
{
    size_t count = 0;
    bool is_pt = false, is_text = true;
    if (scan_peek(s) != SCAN_OBJECT) {
        report_error(x->report, 1, x->name, "an object of texts", "`__metadata__` is none");
        scan_skip(s);
        return;
    }
    scan_enter(s);
    while (scan_member(s, &count, &x->key)) {
        bool is_format = strcmp(x->key.text, "format") == 0;
        if (scan_peek(s) == SCAN_STRING && scan_string(s, &x->text)) {
            is_pt = is_pt || (is_format && strcmp(x->text.text, "pt") == 0);
        } else {
            is_text = false;
            scan_skip(s);
        }
    }
    if (!s->failed && !is_text)
        report_error(x->report, 1, x->name, "an object of texts", "`__metadata__` holds a value that is no text");
    if (!s->failed && !is_pt)
        report_warning(x->report, 1, x->name, "\"format\": \"pt\"", "`__metadata__` does not say so");
}

static void parse_header(struct reading *x, const char *text, size_t n)
{
    struct err why = {0};
    struct scan s;
    size_t count = 0;
    bool has_metadata = false;
    scan_init(&s, text, n, "header", &why);
    if (scan_peek(&s) == SCAN_OBJECT && text[0] == '{') {
        scan_enter(&s);
        while (x->ok && scan_member(&s, &count, &x->key)) {
            bool is_metadata = strcmp(x->key.text, "__metadata__") == 0;
            has_metadata = has_metadata || is_metadata;
            if (is_metadata)
                read_metadata(x, &s);
            else
                read_entry(x, &s);
        }
    } else if (!s.failed) {
        s.failed = true;
        err_set(&why, ERR_INPUT, "header: it does not begin with '{'");
    }
    if (!x->ok)
        return;
    if (!scan_end(&s)) {
        if (why.code == ERR_RESOURCE) {
            *x->e = why;
            x->ok = false;
        }
        report_error(x->report, 1, x->name, "one JSON object", "%s", why.text);
    } else if (!has_metadata) {
        report_warning(x->report, 1, x->name, "\"__metadata__\": {\"format\": \"pt\"}", "its header has no metadata");
    }
}

/* Length and alignment; then the text. False when there is no header to be parsed. */
static bool open_header(struct reading *x, char **text, uint64_t *n)
{
    struct shard *s = &x->files->shards[x->file];
    unsigned char length[8];
    struct err why = {0};
    uint64_t bytes = 0;
    if (s->size < 8 || !read_exactly(s->fd, s->name, 0, length, 8, &why)) {
        report_error(x->report, 1, x->name, "a safetensors file", "it has %llu bytes", (unsigned long long)s->size);
        return false;
    }
    for (int i = 7; i >= 0; i--)
        bytes = bytes << 8 | length[i];
    if (bytes > HEADER_LIMIT || bytes > s->size - 8) {
        report_error(x->report, 1, x->name, "a header inside the file, of at most 100 MB",
                     "its first 8 bytes announce a header of %llu bytes, the file has %llu", (unsigned long long)bytes,
                     (unsigned long long)s->size);
        return false;
    }
    if (bytes % 8 != 0)
        report_error(x->report, 1, x->name, "data that begin at a multiple of 8 bytes", "they begin at byte %llu",
                     (unsigned long long)(bytes + 8));
    s->data = 8 + bytes;
    if (!mem_raw(text, bytes + 1, x->e)) {
        x->ok = false;
        return false;
    }
    (*text)[bytes] = '\0';
    if (!read_exactly(s->fd, s->name, 8, *text, bytes, &why)) {
        report_error(x->report, 1, x->name, "a file that can be read", "%s", why.text);
        mem_free(*text);
        return false;
    }
    *n = bytes;
    return true;
}

static void check_padding(struct reading *x, const char *text, uint64_t n)
{
    uint64_t end = n;
    while (end > 0 && text[end - 1] == ' ')
        end--;
    if (end > 0 && strchr("\t\r\n", text[end - 1]))
        report_error(x->report, 1, x->name, "a header padded with spaces", "it ends with byte 0x%02x",
                     (unsigned)(unsigned char)text[end - 1]);
}

static int by_begin(const void *a, const void *b)
{
    const struct st_entry *x = a, *y = b;
    if (x->usable != y->usable)
        return x->usable ? -1 : 1;
    if (x->begin != y->begin)
        return x->begin < y->begin ? -1 : 1;
    if (x->end != y->end)
        return x->end < y->end ? -1 : 1;
    return strcmp(x->name, y->name);
}

/* By offset the tensors must cover the data exactly. Only said when every one of them is where the file ends at most:
 * else the cause is told already. */
static void check_tiling(struct reading *x)
{
    const struct shard *s = &x->files->shards[x->file];
    size_t n = x->files->n_tensors - x->first;
    struct st_entry *list = n > 0 ? x->files->tensors + x->first : NULL;
    uint64_t at = s->data;
    if (n > 0)
        qsort(list, n, sizeof *list, by_begin);
    for (size_t i = 0; i < n; i++) {
        if (!list[i].usable)
            return;
        if (list[i].begin != at)
            report_error(x->report, 1, list[i].name, "tensors that follow each other without gaps",
                         "%s: %s of %llu bytes before it", x->name, list[i].begin < at ? "an overlap" : "a hole",
                         (unsigned long long)(list[i].begin < at ? at - list[i].begin : list[i].begin - at));
        at = list[i].end > at ? list[i].end : at;
    }
    if (at != s->size)
        report_error(x->report, 1, x->name, "no bytes behind the last tensor", "%llu bytes belong to no tensor",
                     (unsigned long long)(s->size - at));
}

/* One shard: open it, read its header, add its tensors. False when memory is out. */
static bool read_shard(struct files *f, int file, struct report *r, struct err *e)
{
    struct shard *s = &f->shards[file];
    struct reading x = {.files = f, .report = r, .e = e, .file = file, .name = s->name, .first = f->n_tensors,
                        .ok = true};
    char path[4096], *text = NULL;
    uint64_t n = 0;
    struct stat st;
    snprintf(path, sizeof path, "%s/%s", f->path, s->name);
    s->fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (s->fd < 0 && (errno == EMFILE || errno == ENFILE))
        return err_errno(e, ERR_RESOURCE, "%s", path);
    if (s->fd < 0 || fstat(s->fd, &st) != 0 || !S_ISREG(st.st_mode)) {
        report_error(r, 1, s->name, "a file that can be read", "%s", s->fd < 0 ? strerror(errno) : "it is no file");
        return true;
    }
    s->size = (uint64_t)st.st_size;
    if (!open_header(&x, &text, &n))
        return x.ok;
    parse_header(&x, text, n);
    check_padding(&x, text, n);
    mem_free(text);
    str_free(&x.key);
    str_free(&x.text);
    if (x.ok)
        check_tiling(&x);
    return x.ok;
}

/* -------------------------------------------------------------------------------------------------------- the union */

static int by_name(const void *a, const void *b)
{
    const struct st_entry *x = a, *y = b;
    int order = strcmp(x->name, y->name);
    return order ? order : (x->file > y->file) - (x->file < y->file);
}

static void unite(struct files *f, struct report *r)
{
    size_t kept = 0;
    if (f->n_tensors > 0)
        qsort(f->tensors, f->n_tensors, sizeof *f->tensors, by_name);
    for (size_t i = 0; i < f->n_tensors; i++) {
        const struct st_entry *t = &f->tensors[i];
        if (kept > 0 && strcmp(f->tensors[kept - 1].name, t->name) == 0) {
            report_error(r, 1, t->name, "each name once", "it stands in %s and in %s",
                         f->shards[f->tensors[kept - 1].file].name, f->shards[t->file].name);
            continue;
        }
        f->bytes += t->usable ? t->bytes : 0;
        f->tensors[kept++] = *t;
    }
    f->n_tensors = kept;
}

const struct st_entry *files_find(const struct files *f, const char *name)
{
    size_t low = 0, high = f->n_tensors;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        int order = strcmp(f->tensors[middle].name, name);
        if (order == 0)
            return &f->tensors[middle];
        if (order < 0)
            low = middle + 1;
        else
            high = middle;
    }
    return NULL;
}

/* ---------------------------------------------------------------------------------------------------- the directory */

bool files_add_shard(struct files *f, const char *name, struct err *e)
{
    if (!mem_grow_by_one(&f->shards, f->n_shards, e))
        return false;
    const char *copy = arena_strdup(&f->arena, name, e);
    if (!copy)
        return false;
    f->shards[f->n_shards++] = (struct shard){.name = copy, .fd = -1};
    return true;
}

static int is_weights(const struct dirent *d)
{
    size_t n = strlen(d->d_name);
    return d->d_name[0] != '.' && n > 12 && strcmp(d->d_name + n - 12, ".safetensors") == 0;
}

/* Those on the disk that are no shard. */
static bool list_stale(struct files *f, struct dirent **found, size_t n, struct err *e)
{
    f->stale = arena_new(&f->arena, (n + 1) * sizeof *f->stale, e);
    if (!f->stale)
        return false;
    for (size_t i = 0; i < n; i++) {
        bool named = false;
        for (size_t s = 0; s < f->n_shards && !named; s++)
            named = strcmp(f->shards[s].name, found[i]->d_name) == 0;
        if (named)
            continue;
        f->stale[f->n_stale] = arena_strdup(&f->arena, found[i]->d_name, e);
        if (!f->stale[f->n_stale++])
            return false;
    }
    return true;
}

static bool choose_shards(struct files *f, struct dirent **found, size_t n, struct weight_index *index,
                          struct report *r, struct err *e)
{
    if (f->has_index)
        return weight_index_read(index, f, r, e) && (f->n_shards == 0 || list_stale(f, found, n, e));
    for (size_t i = 0; i < n; i++)
        if (!files_add_shard(f, found[i]->d_name, e))
            return false;
    if (n == 0)
        report_error(r, 1, ".", "model.safetensors, or shards and an index", "there is no *.safetensors");
    else if (n > 1)
        report_error(r, 1, ".", "model.safetensors.index.json", "%zu *.safetensors and no index", n);
    else if (!f->has_single)
        report_error(r, 1, f->shards[0].name, "model.safetensors", "the only weight file has another name");
    return true;
}

bool files_open(struct files *f, const char *dir, struct report *r, struct err *e)
{
    struct dirent **found = NULL;
    struct weight_index index = {0};
    char path[4096];
    *f = (struct files){.path = dir};
    int n = scandir(dir, &found, is_weights, alphasort);
    if (n < 0)
        return err_errno(e, ERR_INPUT, "cannot read the directory %s", dir);
    snprintf(path, sizeof path, "%s/model.safetensors.index.json", dir);
    f->has_index = access(path, F_OK) == 0;
    snprintf(path, sizeof path, "%s/model.safetensors", dir);
    f->has_single = access(path, F_OK) == 0;
    bool ok = choose_shards(f, found, (size_t)n, &index, r, e);
    for (int i = 0; i < n; i++)
        free(found[i]);
    free(found);
    for (size_t i = 0; ok && i < f->n_shards; i++)
        ok = read_shard(f, (int)i, r, e);
    if (ok) {
        unite(f, r);
        if (f->has_index)
            weight_index_check(&index, f, r);
    }
    weight_index_fini(&index);
    if (!ok)
        files_close(f);
    return ok;
}

void files_close(struct files *f)
{
    for (size_t i = 0; i < f->n_shards; i++)
        if (f->shards[i].fd >= 0)
            close(f->shards[i].fd);
    mem_free(f->shards);
    mem_free(f->tensors);
    arena_free(&f->arena);
    *f = (struct files){0};
}
