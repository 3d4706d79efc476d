/* Making objects: a writer keeps all data in memory; commit makes the HDF5 skeleton with libhdf5, puts the data in
 * its place with plain writes, seals it with a header, and publishes it under its key (publish.c; checkpointing 6.3,
 * 6.4). Datasets and attributes are written in name order, so equal contents are equal bytes whatever the order of
 * the calls. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "engine/store/h5.h"
#include "engine/store/io.h"
#include "engine/store/store_private.h"
#include "engine/store/sys.h"

#define TEXT_MOST 60000     /* an attribute of the old format ends at 64 KiB */
#define RESERVE_FROM ((uint64_t)64 << 20) /* files from this size take their space before they are written */
#define BLOCK ((size_t)1 << 20)

struct item {
    struct dataset d;
    void *data;
    uint64_t bytes, offset;
};
struct link_item {
    const char *name, *target;
};

struct writer {
    struct store *store;
    struct key key;
    struct arena arena; /* names and texts */
    struct item *items;
    struct object_attribute *attributes;
    struct link_item *links;
    size_t n_items, room_items, n_attributes, room_attributes, n_links, room_links;
    uint64_t bytes; /* of all data */
};

/* ----------------------------------------------------------------------------------------------- filling the writer */

const char *dataset_plain_name(const char *name) { return *name == '/' ? name + 1 : name; }

bool dataset_size(const struct dataset *d, uint64_t *count, uint64_t *bytes)
{
    uint64_t n = 1;
    if (d->rank < 0 || d->rank > DATASET_RANK || d->dtype >= DTYPE_COUNT)
        return false;
    for (int i = 0; i < d->rank; i++)
        if (__builtin_mul_overflow(n, d->shape[i], &n))
            return false;
    *count = n;
    uint64_t size = d->string_bytes ? d->string_bytes : dtype_bytes(d->dtype);
    return !__builtin_mul_overflow(n, size, bytes) && *bytes < (uint64_t)1 << 60;
}

/* "a/b.c": no empty part, no "." or "..". */
static bool good_name(const char *name)
{
    for (const char *p = name;; p++) {
        size_t n = strcspn(p, "/");
        if (n == 0 || (n == 1 && p[0] == '.') || (n == 2 && p[0] == '.' && p[1] == '.'))
            return false;
        p += n;
        if (!*p)
            return true;
    }
}

bool writer_new(struct writer **out, struct store *s, const struct key *key, const char *schema, struct err *e)
{
    struct writer *w;
    char text[KEY_TEXT];
    if (s->readonly)
        return err_set(e, ERR_BUG, "%s: an object is to be written to a store that was opened read-only", s->path);
    if (!mem_new(&w, 1, e))
        return false;
    w->store = s;
    w->key = *key;
    if (!writer_text(w, "schema", schema, e) || !writer_text(w, "key", key_text(key, text), e)) {
        writer_abort(w);
        return false;
    }
    *out = w;
    return true;
}

static bool add_attribute(struct writer *w, const struct object_attribute *a, struct err *e)
{
    for (size_t i = 0; i < w->n_attributes; i++)
        if (strcmp(w->attributes[i].name, a->name) == 0)
            return err_set(e, ERR_BUG, "attribute '%s' is written twice", a->name);
    if (w->n_attributes == w->room_attributes) {
        size_t room = w->room_attributes ? 2 * w->room_attributes : 16;
        if (!mem_grow(&w->attributes, w->room_attributes, room, e))
            return false;
        w->room_attributes = room;
    }
    struct object_attribute copy = *a;
    copy.name = arena_strdup(&w->arena, a->name, e);
    copy.text = a->text ? arena_strdup(&w->arena, a->text, e) : NULL;
    if (!copy.name || (a->text && !copy.text))
        return false;
    w->attributes[w->n_attributes++] = copy;
    return true;
}

bool writer_text(struct writer *w, const char *name, const char *text, struct err *e)
{
    if (strlen(text) > TEXT_MOST)
        return err_set(e, ERR_BUG, "attribute '%s' has %zu bytes, at most %d fit; write it as a dataset", name,
                       strlen(text), TEXT_MOST);
    return add_attribute(w, &(struct object_attribute){.name = name, .kind = OBJECT_TEXT, .text = text}, e);
}

bool writer_double(struct writer *w, const char *name, double x, struct err *e)
{
    return add_attribute(w, &(struct object_attribute){.name = name, .kind = OBJECT_DOUBLE, .real = x}, e);
}

bool writer_int(struct writer *w, const char *name, int64_t x, struct err *e)
{
    return add_attribute(w, &(struct object_attribute){.name = name, .kind = OBJECT_INT, .integer = x}, e);
}

static bool add_item(struct writer *w, const struct dataset *d, void *data, uint64_t bytes, struct err *e)
{
    if (w->n_items == w->room_items) {
        size_t room = w->room_items ? 2 * w->room_items : 16;
        if (!mem_grow(&w->items, w->room_items, room, e))
            return false;
        w->room_items = room;
    }
    struct item item = {.d = *d, .data = data, .bytes = bytes};
    item.d.name = arena_strdup(&w->arena, dataset_plain_name(d->name), e);
    item.d.unit = arena_strdup(&w->arena, d->unit ? d->unit : "1", e);
    item.d.axes = arena_strdup(&w->arena, d->axes ? d->axes : "", e);
    item.d.description = arena_strdup(&w->arena, d->description ? d->description : "", e);
    if (!item.d.name || !item.d.unit || !item.d.axes || !item.d.description)
        return false;
    w->items[w->n_items++] = item;
    w->bytes += bytes;
    return true;
}

static bool check_dataset(const struct dataset *d, uint64_t *bytes, struct err *e)
{
    uint64_t count;
    if (!good_name(dataset_plain_name(d->name)))
        return err_set(e, ERR_BUG, "'%s' is no name for a dataset", d->name);
    if (!dataset_size(d, &count, bytes))
        return err_set(e, ERR_BUG, "dataset '%s': rank %d, or a shape whose bytes overflow", d->name, d->rank);
    if (d->string_bytes && d->dtype != DTYPE_U8)
        return err_set(e, ERR_BUG, "dataset '%s': strings are of dtype u8, not %s", d->name,
                       dtype_info(d->dtype)->name);
    if ((d->unit && strlen(d->unit) > TEXT_MOST) || (d->axes && strlen(d->axes) > TEXT_MOST) ||
        (d->description && strlen(d->description) > TEXT_MOST))
        return err_set(e, ERR_BUG, "dataset '%s': an attribute is longer than %d bytes", d->name, TEXT_MOST);
    return true;
}

bool writer_add_take(struct writer *w, const struct dataset *d, void *data, struct err *e)
{
    uint64_t bytes;
    if (check_dataset(d, &bytes, e) && add_item(w, d, data, bytes, e))
        return true;
    mem_free(data);
    return false;
}

bool writer_add(struct writer *w, const struct dataset *d, const void *data, struct err *e)
{
    uint64_t bytes;
    uint8_t *copy = NULL;
    if (!check_dataset(d, &bytes, e))
        return false;
    if (bytes > 0) {
        if (!mem_raw_bytes((void **)&copy, (size_t)bytes, 1, e))
            return false;
        memcpy(copy, data, (size_t)bytes);
    }
    return writer_add_take(w, d, copy, e);
}

bool writer_add_strings(struct writer *w, const char *name, const char *const *texts, size_t n, const char *axes,
                        const char *description, struct err *e)
{
    size_t width = 1;
    for (size_t i = 0; i < n; i++)
        width = strlen(texts[i]) > width ? strlen(texts[i]) : width;
    char *block = NULL;
    if (n > 0 && !mem_new_bytes((void **)&block, n, width, e))
        return false;
    for (size_t i = 0; i < n; i++)
        memcpy(block + i * width, texts[i], strlen(texts[i]));
    return writer_add_take(w, &(struct dataset){.name = name, .dtype = DTYPE_U8, .rank = 1, .shape = {n},
                                                .string_bytes = width, .unit = "1", .axes = axes,
                                                .description = description}, block, e);
}

bool writer_link(struct writer *w, const char *name, const struct key *to, struct err *e)
{
    char text[KEY_TEXT];
    if (!good_name(dataset_plain_name(name)))
        return err_set(e, ERR_BUG, "'%s' is no name for a link", name);
    if (w->n_links == w->room_links) {
        size_t room = w->room_links ? 2 * w->room_links : 16;
        if (!mem_grow(&w->links, w->room_links, room, e))
            return false;
        w->room_links = room;
    }
    key_text(to, text);
    struct link_item l = {arena_strdup(&w->arena, dataset_plain_name(name), e),
                          arena_printf(&w->arena, e, "../%.2s/%s.h5", text, text)};
    if (!l.name || !l.target)
        return false;
    w->links[w->n_links++] = l;
    return true;
}

void writer_abort(struct writer *w)
{
    if (!w)
        return;
    for (size_t i = 0; i < w->n_items; i++)
        mem_free(w->items[i].data);
    mem_free(w->items);
    mem_free(w->attributes);
    mem_free(w->links);
    arena_free(&w->arena);
    mem_free(w);
}

/* ------------------------------------------------------------------------------ the skeleton, on the libhdf5 thread */

struct skeleton {
    struct writer *w;
    const char *path;
};

static bool write_attributes(hid_t file, const struct writer *w, struct err *e)
{
    hid_t root = H5Gopen2(file, "/", H5P_DEFAULT);
    if (root < 0)
        return h5_fail(e, "cannot open the root group");
    bool ok = true;
    for (size_t i = 0; ok && i < w->n_attributes; i++) {
        const struct object_attribute *a = &w->attributes[i];
        ok = a->kind == OBJECT_TEXT  ? h5_set_text(root, a->name, a->text, e)
             : a->kind == OBJECT_INT ? h5_set_int(root, a->name, a->integer, e)
                                     : h5_set_double(root, a->name, a->real, e);
    }
    if (H5Gclose(root) < 0 && ok)
        ok = h5_fail(e, "cannot close the root group");
    return ok;
}

static bool write_dataset(hid_t file, struct item *item, struct err *e)
{
    hsize_t shape[DATASET_RANK];
    for (int i = 0; i < item->d.rank; i++)
        shape[i] = item->d.shape[i];
    hid_t type = h5_type(item->d.dtype, item->d.string_bytes);
    if (type < 0)
        return h5_fail(e, "cannot make the type of dataset '%s'", item->d.name);
    struct h5_dataset d = {.name = item->d.name, .type = type, .rank = item->d.rank, .shape = shape,
                           .unit = item->d.unit, .axes = item->d.axes, .description = item->d.description,
                           .dtype = item->d.string_bytes ? "string" : dtype_info(item->d.dtype)->name};
    bool ok = h5_reserve(file, &d, &item->offset, e);
    H5Tclose(type);
    return ok;
}

static bool write_links(hid_t file, const struct writer *w, struct err *e)
{
    hid_t creation = H5Pcreate(H5P_LINK_CREATE);
    bool ok = creation >= 0 && H5Pset_create_intermediate_group(creation, 1) >= 0;
    if (!ok)
        h5_fail(e, "cannot make a property list");
    for (size_t i = 0; ok && i < w->n_links; i++)
        if (H5Lcreate_external(w->links[i].target, "/", file, w->links[i].name, creation, H5P_DEFAULT) < 0)
            ok = h5_fail(e, "cannot make link '%s'", w->links[i].name);
    if (creation >= 0)
        H5Pclose(creation);
    return ok;
}

static bool write_skeleton(void *context, struct err *e)
{
    struct skeleton *k = context;
    hid_t file = h5_create(k->path, false, e);
    if (file < 0)
        return false;
    bool ok = write_attributes(file, k->w, e);
    for (size_t i = 0; ok && i < k->w->n_items; i++)
        ok = write_dataset(file, &k->w->items[i], e);
    ok = ok && write_links(file, k->w, e);
    if (ok && H5Fflush(file, H5F_SCOPE_GLOBAL) < 0)
        ok = h5_fail(e, "cannot flush");
    if (H5Fclose(file) < 0 && ok)
        ok = h5_fail(e, "cannot close");
    return ok;
}

/* ------------------------------------------------------------------------------------------------- data and digest */

static int by_name(const void *a, const void *b)
{
    return strcmp(((const struct item *)a)->d.name, ((const struct item *)b)->d.name);
}
static int by_attribute(const void *a, const void *b)
{
    return strcmp(((const struct object_attribute *)a)->name, ((const struct object_attribute *)b)->name);
}
static int by_link(const void *a, const void *b)
{
    return strcmp(((const struct link_item *)a)->name, ((const struct link_item *)b)->name);
}
/* Those without data first: they have no place. */
static int by_offset(const void *a, const void *b)
{
    const struct item *x = a, *y = b;
    uint64_t p = x->bytes ? x->offset : 0, q = y->bytes ? y->offset : 0;
    return p < q ? -1 : p > q;
}

static bool sort_contents(struct writer *w, struct err *e)
{
    if (w->n_items)
        qsort(w->items, w->n_items, sizeof *w->items, by_name);
    if (w->n_attributes)
        qsort(w->attributes, w->n_attributes, sizeof *w->attributes, by_attribute);
    if (w->n_links)
        qsort(w->links, w->n_links, sizeof *w->links, by_link);
    for (size_t i = 1; i < w->n_items; i++)
        if (strcmp(w->items[i - 1].d.name, w->items[i].d.name) == 0)
            return err_set(e, ERR_BUG, "dataset '%s' is written twice", w->items[i].d.name);
    return true;
}

/* Hash what libhdf5 wrote between `from` and `to`. */
static bool hash_gap(int fd, struct key_hash *h, uint8_t *block, uint64_t from, uint64_t to, struct err *e)
{
    while (from < to) {
        size_t want = to - from < BLOCK ? (size_t)(to - from) : BLOCK, got;
        if (!sys_read_at(fd, block, want, from, &got))
            return err_errno(e, ERR_IO, "cannot read back");
        if (got < want)
            return err_set(e, ERR_IO, "ends at byte %" PRIu64 " where libhdf5 promised more", from + got);
        key_hash_raw(h, block, got);
        from += got;
    }
    return true;
}

/* Put the data in its place; *digest of the body. Data is hashed from memory, so what the disk holds must be what was
 * meant, or the digest will say so. */
static bool write_data(struct writer *w, int fd, uint64_t file_bytes, struct key *digest, struct err *e)
{
    struct key_hash *h = NULL;
    uint8_t *block = NULL;
    uint64_t at = HEADER_BYTES;
    bool ok = false;
    if (!mem_raw(&block, BLOCK, e) || !key_hash_new_raw(&h, e))
        goto out;
    if (w->n_items)
        qsort(w->items, w->n_items, sizeof *w->items, by_offset);
    for (size_t i = 0; i < w->n_items; i++) {
        const struct item *item = &w->items[i];
        if (!item->bytes)
            continue;
        if (item->offset < at || item->bytes > file_bytes || item->offset > file_bytes - item->bytes) {
            err_set(e, ERR_BUG, "dataset '%s' lies at %" PRIu64 ", outside its place", item->d.name, item->offset);
            goto out;
        }
        if (!sys_write_at(fd, item->data, (size_t)item->bytes, item->offset)) {
            store_write_error(w->store, item->d.name, file_bytes, e);
            goto out;
        }
        if (!hash_gap(fd, h, block, at, item->offset, e))
            goto out;
        key_hash_raw(h, item->data, (size_t)item->bytes);
        at = item->offset + item->bytes;
    }
    if (!hash_gap(fd, h, block, at, file_bytes, e))
        goto out;
    ok = key_hash_end(h, digest, e);
    h = NULL;
out:
    key_hash_drop(h);
    mem_free(block);
    return ok;
}

/* Does libhdf5 find in the file what was to be in it? */
static bool read_back(struct writer *w, int fd, uint64_t file_bytes, struct err *e)
{
    struct object_table t;
    if (!object_table_read(&t, fd, file_bytes, e))
        return false;
    bool ok = t.n_entries == w->n_items && t.n_attributes == w->n_attributes;
    if (w->n_items)
        qsort(w->items, w->n_items, sizeof *w->items, by_name);
    for (size_t i = 0; ok && i < w->n_items; i++) {
        const struct dataset *a = &w->items[i].d, *b = &t.entries[i].d;
        ok = strcmp(a->name, b->name) == 0 && a->dtype == b->dtype && a->rank == b->rank &&
             a->string_bytes == b->string_bytes && memcmp(a->shape, b->shape,
                                                          (size_t)a->rank * sizeof *a->shape) == 0 &&
             w->items[i].bytes == t.entries[i].bytes && (!w->items[i].bytes ||
                                                         w->items[i].offset == t.entries[i].offset);
    }
    object_table_free(&t);
    return ok || err_set(e, ERR_IO, "libhdf5 does not read back what it wrote");
}

/* Skeleton, data, header, on the disk; nothing is visible yet. */
static bool write_file(struct writer *w, const char *path, struct err *e)
{
    struct header header = {0};
    struct key digest;
    struct stat st;
    int fd = -1;
    bool ok = false;
    if (!io_call(write_skeleton, &(struct skeleton){w, path}, e)) {
        if (h5_disk_full(e))
            store_add_remedy(w->store, w->bytes + HEADER_BYTES, e);
        goto out;
    }
    fd = sys_open(path, O_RDWR | O_NOFOLLOW, 0);
    if (fd < 0 || fstat(fd, &st) < 0) {
        err_errno(e, ERR_IO, "cannot open");
        goto out;
    }
    uint64_t file_bytes = (uint64_t)st.st_size;
    if (file_bytes < HEADER_BYTES) {
        err_set(e, ERR_IO, "libhdf5 left a file of %" PRIu64 " bytes", file_bytes);
        goto out;
    }
    if (file_bytes >= RESERVE_FROM && sys_fallocate(fd, file_bytes) < 0 && errno != EOPNOTSUPP) {
        store_write_error(w->store, "object", file_bytes, e);
        goto out;
    }
    if (!write_data(w, fd, file_bytes, &digest, e))
        goto out;
    header_seal(&header, HEADER_OBJECT, &w->key, file_bytes - HEADER_BYTES, &digest);
    if (!sys_write_at(fd, &header, sizeof header, 0)) {
        store_write_error(w->store, "header", file_bytes, e);
        goto out;
    }
    if (!read_back(w, fd, file_bytes, e))
        goto out;
    if (sys_fsync(fd) < 0 || sys_fchmod(fd, 0444) < 0) {
        store_write_error(w->store, "object", file_bytes, e);
        goto out;
    }
    ok = true;
out:
    if (fd >= 0 && sys_close(fd) < 0 && ok)
        ok = store_write_error(w->store, "object", w->bytes, e);
    return ok;
}

bool writer_commit(struct writer *w, struct err *e)
{
    char *temporary = NULL, text[KEY_TEXT];
    bool ok = sort_contents(w, e) && store_temporary(w->store, &temporary, e);
    if (ok) {
        ok = write_file(w, temporary, e) && publish_object(w->store, &w->key, temporary, w->bytes, e);
        if (!ok)
            unlink(temporary);
    }
    if (!ok)
        err_context(e, "object %s in '%s'", key_text(&w->key, text), w->store->path);
    mem_free(temporary);
    writer_abort(w);
    return ok;
}
