/* What libhdf5 says of an object file: its root attributes and datasets, with the place of their data, read once on the
 * libhdf5 thread into a table. Links to other files are neither listed nor followed. A file that is not as
 * object_write.c makes them is refused. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "engine/store/h5.h"
#include "engine/store/io.h"
#include "engine/store/store_private.h"

#define DEPTH_MOST 16
#define NAME_MOST 1024
#define TEXT_MOST 65536
#define DATASETS_MOST 1000000

struct reading {
    struct object_table *t;
    int fd;
    uint64_t file_bytes;
};

/* A walk through the groups; `e` is filled when a callback returns failure. */
struct walk {
    struct reading *r;
    char name[NAME_MOST];
    size_t length;
    int depth;
    struct err *e;
};

/* The text of attribute `name`, in the table's arena; NULL on failure. Only fixed-size strings. */
static const char *read_text(struct object_table *t, hid_t attribute, const char *name, struct err *e)
{
    hid_t type = H5Aget_type(attribute);
    char *text = NULL;
    if (type < 0 || H5Tget_class(type) != H5T_STRING || H5Tis_variable_str(type) != 0) {
        err_set(e, ERR_INPUT, "attribute '%s' is no text of fixed size", name);
    } else {
        size_t n = H5Tget_size(type);
        if (n > TEXT_MOST)
            err_set(e, ERR_INPUT, "attribute '%s' has %zu bytes", name, n);
        else
            text = arena_new(&t->arena, n + 1, e);
        if (text && H5Aread(attribute, type, text) < 0) {
            h5_fail(e, "cannot read attribute '%s'", name);
            text = NULL;
        }
    }
    if (type >= 0)
        H5Tclose(type);
    return text;
}

static const char *dataset_text(struct object_table *t, hid_t dataset, const char *name, struct err *e)
{
    hid_t attribute = H5Aopen(dataset, name, H5P_DEFAULT);
    if (attribute < 0) {
        h5_fail(e, "no attribute '%s'", name);
        return NULL;
    }
    const char *text = read_text(t, attribute, name, e);
    H5Aclose(attribute);
    return text;
}

static herr_t read_attribute(hid_t object, const char *name, const H5A_info_t *info, void *context)
{
    (void)info;
    struct walk *w = context;
    struct object_table *t = w->r->t;
    if (t->n_attributes == t->room_attributes) {
        size_t room = t->room_attributes ? 2 * t->room_attributes : 16;
        if (!mem_grow(&t->attributes, t->room_attributes, room, w->e))
            return -1;
        t->room_attributes = room;
    }
    struct object_attribute a = {.name = arena_strdup(&t->arena, name, w->e)};
    hid_t attribute = a.name ? H5Aopen(object, name, H5P_DEFAULT) : -1;
    hid_t type = attribute < 0 ? -1 : H5Aget_type(attribute);
    hid_t space = attribute < 0 ? -1 : H5Aget_space(attribute);
    H5T_class_t class = type < 0 ? H5T_NO_CLASS : H5Tget_class(type);
    bool ok = space >= 0 && H5Sget_simple_extent_npoints(space) == 1;
    if (ok && class == H5T_STRING) {
        a.kind = OBJECT_TEXT;
        a.text = read_text(t, attribute, name, w->e);
        ok = a.text != NULL;
    } else if (ok && class == H5T_INTEGER) {
        a.kind = OBJECT_INT;
        ok = H5Aread(attribute, H5T_NATIVE_INT64, &a.integer) >= 0;
    } else {
        a.kind = OBJECT_DOUBLE;
        ok = ok && class == H5T_FLOAT && H5Aread(attribute, H5T_NATIVE_DOUBLE, &a.real) >= 0;
    }
    if (ok)
        t->attributes[t->n_attributes++] = a;
    else if (a.name && a.kind != OBJECT_TEXT)
        h5_fail(w->e, "cannot read root attribute '%s'", name);
    if (space >= 0)
        H5Sclose(space);
    if (type >= 0)
        H5Tclose(type);
    if (attribute >= 0)
        H5Aclose(attribute);
    return ok ? 0 : -1;
}

/* The dtype that the attribute names, which must fit the HDF5 type. */
static bool read_dtype(hid_t dataset, const char *name, struct dataset *d)
{
    hid_t type = H5Dget_type(dataset);
    if (type < 0)
        return false;
    size_t bytes = H5Tget_size(type);
    bool ok = false;
    if (H5Tget_class(type) == H5T_STRING) {
        d->dtype = DTYPE_U8;
        d->string_bytes = bytes;
        ok = strcmp(name, "string") == 0 && H5Tis_variable_str(type) == 0;
    } else {
        for (int i = 0; i < DTYPE_COUNT && !ok; i++)
            if (strcmp(name, dtype_info((enum dtype)i)->name) == 0) {
                d->dtype = (enum dtype)i;
                ok = bytes == dtype_bytes(d->dtype);
            }
    }
    H5Tclose(type);
    return ok;
}

static bool read_shape(hid_t dataset, struct dataset *d)
{
    hsize_t shape[DATASET_RANK] = {0};
    hid_t space = H5Dget_space(dataset);
    if (space < 0)
        return false;
    d->rank = H5Sget_simple_extent_ndims(space);
    bool ok = d->rank >= 0 && d->rank <= DATASET_RANK && H5Sget_simple_extent_type(space) != H5S_NULL &&
              H5Sget_simple_extent_dims(space, shape, NULL) >= 0;
    H5Sclose(space);
    for (int i = 0; ok && i < d->rank; i++)
        d->shape[i] = shape[i];
    return ok;
}

/* Contiguous and inside the file. */
static bool read_place(hid_t dataset, uint64_t file_bytes, struct object_entry *x)
{
    hid_t creation = H5Dget_create_plist(dataset);
    if (creation < 0)
        return false;
    bool ok = H5Pget_layout(creation) == H5D_CONTIGUOUS && H5Pget_external_count(creation) == 0 &&
              dataset_size(&x->d, &x->count, &x->bytes);
    H5Pclose(creation);
    if (!ok || x->bytes == 0)
        return ok;
    haddr_t at = H5Dget_offset(dataset);
    x->offset = at;
    return at != HADDR_UNDEF && at >= HEADER_BYTES && x->bytes <= file_bytes && at <= file_bytes - x->bytes;
}

static bool read_dataset(struct walk *w, hid_t dataset)
{
    struct object_table *t = w->r->t;
    struct object_entry x = {0};
    if (t->n_entries == DATASETS_MOST)
        return err_set(w->e, ERR_INPUT, "more than %d datasets", DATASETS_MOST);
    if (t->n_entries == t->room_entries) {
        size_t room = t->room_entries ? 2 * t->room_entries : 16;
        if (!mem_grow(&t->entries, t->room_entries, room, w->e))
            return false;
        t->room_entries = room;
    }
    x.d.name = arena_strdup(&t->arena, w->name, w->e);
    x.d.unit = x.d.name ? dataset_text(t, dataset, "unit", w->e) : NULL;
    x.d.axes = x.d.unit ? dataset_text(t, dataset, "axes", w->e) : NULL;
    x.d.description = x.d.axes ? dataset_text(t, dataset, "description", w->e) : NULL;
    const char *dtype = x.d.description ? dataset_text(t, dataset, "dtype", w->e) : NULL;
    if (!dtype)
        return err_context(w->e, "dataset '%s'", w->name);
    if (!read_dtype(dataset, dtype, &x.d) || !read_shape(dataset, &x.d) || !read_place(dataset, w->r->file_bytes, &x))
        return err_set(w->e, ERR_INPUT, "dataset '%s' of dtype '%s' is not as this program writes them", w->name,
                       dtype);
    t->entries[t->n_entries++] = x;
    return true;
}

static herr_t visit(hid_t group, const char *name, const H5L_info_t *info, void *context);

static bool visit_object(struct walk *w, hid_t object)
{
    H5I_type_t type = H5Iget_type(object);
    if (type == H5I_DATASET)
        return read_dataset(w, object);
    if (type != H5I_GROUP)
        return err_set(w->e, ERR_INPUT, "'%s' is neither a group nor a dataset", w->name);
    if (w->depth == DEPTH_MOST)
        return err_set(w->e, ERR_INPUT, "groups nest more than %d deep at '%s'", DEPTH_MOST, w->name);
    w->depth++;
    w->e->code = ERR_NONE;
    bool ok = H5Literate(object, H5_INDEX_NAME, H5_ITER_INC, NULL, visit, w) >= 0;
    if (!ok && w->e->code == ERR_NONE)
        h5_fail(w->e, "cannot list the group '%s'", w->name);
    w->depth--;
    return ok;
}

static herr_t visit(hid_t group, const char *name, const H5L_info_t *info, void *context)
{
    struct walk *w = context;
    if (info->type != H5L_TYPE_HARD)
        return 0;
    size_t length = w->length, n = strlen(name);
    if (length + n + 2 > sizeof w->name) {
        err_set(w->e, ERR_INPUT, "a name is longer than %d bytes", NAME_MOST);
        return -1;
    }
    if (length)
        w->name[w->length++] = '/';
    memcpy(w->name + w->length, name, n + 1);
    w->length += n;
    hid_t object = H5Oopen(group, name, H5P_DEFAULT);
    bool ok = object >= 0 ? visit_object(w, object) : h5_fail(w->e, "cannot open '%s'", w->name);
    if (object >= 0)
        H5Oclose(object);
    w->length = length;
    w->name[length] = '\0';
    return ok ? 0 : -1;
}

static int by_name(const void *a, const void *b)
{
    return strcmp(((const struct object_entry *)a)->d.name, ((const struct object_entry *)b)->d.name);
}

static bool read_table(void *context, struct err *e)
{
    struct reading *r = context;
    struct walk w = {.r = r, .e = e};
    hid_t file = h5_open(r->fd, e), root = -1;
    if (file < 0)
        return false;
    hsize_t at = 0;
    bool ok = false;
    root = H5Gopen2(file, "/", H5P_DEFAULT);
    e->code = ERR_NONE;
    if (root < 0)
        h5_fail(e, "cannot open the root group");
    else if (H5Aiterate2(root, H5_INDEX_NAME, H5_ITER_INC, &at, read_attribute, &w) >= 0)
        ok = visit_object(&w, root);
    else if (e->code == ERR_NONE)
        h5_fail(e, "cannot list the root attributes");
    if (root >= 0)
        H5Gclose(root);
    if (H5Fclose(file) < 0 && ok)
        ok = h5_fail(e, "cannot close");
    if (ok && r->t->n_entries)
        qsort(r->t->entries, r->t->n_entries, sizeof *r->t->entries, by_name);
    return ok;
}

bool object_table_read(struct object_table *t, int fd, uint64_t file_bytes, struct err *e)
{
    struct reading r = {t, fd, file_bytes};
    struct err own = {0}; /* the callbacks look at the code, and e may be NULL */
    *t = (struct object_table){0};
    if (io_call(read_table, &r, &own))
        return true;
    object_table_free(t);
    if (e)
        *e = own;
    return false;
}

void object_table_free(struct object_table *t)
{
    mem_free(t->entries);
    mem_free(t->attributes);
    arena_free(&t->arena);
    *t = (struct object_table){0};
}
