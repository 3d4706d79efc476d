/* Reading objects: a file is opened, its header and (once per opened store) its digest are checked, and only then does
 * libhdf5 see it, once, to list what is in it (object_table.c). Data is read with plain reads at its place. Open
 * objects are shared within a store. A damaged file is set aside and counts as absent. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>
#include <sys/stat.h>

#include "engine/store/store_private.h"
#include "engine/store/sys.h"

struct object {
    struct store *store;
    struct key key;
    char *path;
    int fd; /* -1 while it is being opened */
    unsigned references;
    struct object_table table;
    struct object *next; /* in store->objects, under its lock */
};

bool store_mark_verified(struct store *s, const struct key *k, struct err *e)
{
    pthread_mutex_lock(&s->lock);
    bool ok = key_set_has(&s->verified, k) || key_set_add(&s->verified, k, e);
    pthread_mutex_unlock(&s->lock);
    return ok;
}

static bool is_verified(struct store *s, const struct key *k)
{
    pthread_mutex_lock(&s->lock);
    bool verified = key_set_has(&s->verified, k);
    pthread_mutex_unlock(&s->lock);
    return verified;
}

/* *fd = the file, or -1 with *why NULL when there is none, or -1 with *why saying why it is no file of ours. */
static bool open_plain(const char *path, int *fd, uint64_t *inode, const char **why, struct err *e)
{
    struct stat st;
    *why = NULL;
    *fd = sys_open(path, O_RDONLY | O_NOFOLLOW | O_NONBLOCK, 0);
    if (*fd < 0) {
        if (errno == ENOENT)
            return true;
        if (errno != ELOOP && errno != ENXIO)
            return err_errno(e, ERR_IO, "%s: cannot open", path);
        *inode = 0;
        *why = errno == ELOOP ? "is a symbolic link" : "cannot be opened";
        return true;
    }
    if (fstat(*fd, &st) < 0) {
        err_errno(e, ERR_IO, "%s: cannot look at it", path);
        close(*fd);
        return false;
    }
    *inode = st.st_ino;
    if (!S_ISREG(st.st_mode)) {
        *why = "is not a regular file";
        close(*fd);
        *fd = -1;
    }
    return true;
}

/* Header and length, and the digest if `digest`. */
static bool check_file(int fd, const struct key *k, bool digest, struct header *h, const char **why, struct err *e)
{
    if (!header_read(fd, HEADER_OBJECT, k, h, why, e))
        return false;
    if (!*why && !header_check_length(fd, h, why, e))
        return false;
    return *why || !digest || header_check_body(fd, h, why, e);
}

static bool set_aside(struct store *s, const struct key *k, uint64_t inode, const char *why, struct err *e)
{
    char text[KEY_TEXT], path[16 + KEY_TEXT];
    key_text(k, text);
    snprintf(path, sizeof path, "objects/%.2s/%s.h5", text, text);
    /* Whoever publishes that key next, perhaps another process, has his file looked at in full. */
    pthread_mutex_lock(&s->lock);
    key_set_remove(&s->verified, k);
    pthread_mutex_unlock(&s->lock);
    return store_quarantine(s, path, text, inode, why, e) && store_note_damage(s, k, why, e);
}

bool object_file_open(struct store *s, const struct key *k, int *fd, struct err *e)
{
    struct header h;
    const char *why;
    char *path, text[KEY_TEXT];
    uint64_t inode;
    if (!store_object_path(s, k, &path, e))
        return false;
    bool verified = is_verified(s, k);
    bool ok = open_plain(path, fd, &inode, &why, e);
    mem_free(path);
    if (!ok)
        return false;
    if (*fd >= 0 && !check_file(*fd, k, !verified, &h, &why, e)) {
        sys_close(*fd);
        return err_context(e, "object %s", key_text(k, text));
    }
    if (why) {
        if (*fd >= 0)
            sys_close(*fd);
        *fd = -1;
        return s->readonly || set_aside(s, k, inode, why, e);
    }
    if (*fd < 0 || verified || store_mark_verified(s, k, e))
        return true;
    sys_close(*fd);
    return false;
}

/* Fill a new object. *found false: absent, or damaged and set aside. */
static bool load(struct object *o, bool *found, struct err *e)
{
    struct stat st;
    struct err own;
    char text[KEY_TEXT];
    *found = false;
    int fd;
    if (!object_file_open(o->store, &o->key, &fd, e))
        return false;
    if (fd < 0)
        return true;
    if (fstat(fd, &st) < 0) {
        err_errno(e, ERR_IO, "object %s: cannot look at it", key_text(&o->key, text));
        close(fd);
        return false;
    }
    if (object_table_read(&o->table, fd, (uint64_t)st.st_size, &own)) {
        o->fd = fd;
        *found = true;
        return true;
    }
    sys_close(fd);
    if (own.code == ERR_RESOURCE) {
        if (e)
            *e = own;
        return err_context(e, "object %s", key_text(&o->key, text));
    }
    return o->store->readonly || set_aside(o->store, &o->key, st.st_ino, own.text, e);
}

static void free_object(struct object *o)
{
    if (o->fd >= 0)
        sys_close(o->fd);
    object_table_free(&o->table);
    mem_free(o->path);
    mem_free(o);
}

/* With the store's lock held. */
static void unlist(struct object *o)
{
    struct object **p = &o->store->objects;
    while (*p != o)
        p = &(*p)->next;
    *p = o->next;
}

/* With the store's lock held: the open object of that key, with one reference more, or NULL. Waits for one that is
 * being opened. */
static struct object *find_open(struct store *s, const struct key *key)
{
    for (;;) {
        struct object *o = s->objects;
        while (o && !key_equal(&o->key, key))
            o = o->next;
        if (!o)
            return NULL;
        if (o->fd >= 0) {
            o->references++;
            return o;
        }
        pthread_cond_wait(&s->changed, &s->lock);
    }
}

bool object_open(struct object **out, struct store *s, const struct key *key, struct err *e)
{
    struct object *o;
    if (!mem_new(&o, 1, e))
        return false;
    o->store = s;
    o->key = *key;
    o->fd = -1;
    o->references = 1;
    if (!store_object_path(s, key, &o->path, e)) {
        mem_free(o);
        return false;
    }
    pthread_mutex_lock(&s->lock);
    struct object *open = find_open(s, key);
    if (open) {
        pthread_mutex_unlock(&s->lock);
        free_object(o);
        *out = open;
        return true;
    }
    o->next = s->objects;
    s->objects = o;
    pthread_mutex_unlock(&s->lock);

    struct object fresh = {.store = s, .key = *key, .fd = -1}; /* others look at o->fd under the lock only */
    bool found, ok = load(&fresh, &found, e);
    pthread_mutex_lock(&s->lock);
    o->table = fresh.table;
    o->fd = fresh.fd;
    if (!ok || !found)
        unlist(o);
    pthread_cond_broadcast(&s->changed);
    pthread_mutex_unlock(&s->lock);
    if (ok && found) {
        *out = o;
        return true;
    }
    free_object(o);
    if (ok)
        *out = NULL;
    return ok;
}

bool object_exists(struct store *s, const struct key *key, bool *there, struct err *e)
{
    struct header h;
    const char *why;
    char *path, text[KEY_TEXT];
    uint64_t inode;
    int fd;
    if (!store_object_path(s, key, &path, e))
        return false;
    bool ok = open_plain(path, &fd, &inode, &why, e);
    mem_free(path);
    if (ok && fd < 0)
        *there = false;
    else if (ok) {
        ok = check_file(fd, key, false, &h, &why, e);
        sys_close(fd);
        if (ok)
            *there = !why;
        else
            err_context(e, "object %s", key_text(key, text));
    }
    return ok;
}

struct object *object_ref(struct object *o)
{
    pthread_mutex_lock(&o->store->lock);
    o->references++;
    pthread_mutex_unlock(&o->store->lock);
    return o;
}

void object_close(struct object *o)
{
    if (!o)
        return;
    struct store *s = o->store;
    pthread_mutex_lock(&s->lock);
    bool last = --o->references == 0;
    if (last)
        unlist(o);
    pthread_mutex_unlock(&s->lock);
    if (last)
        free_object(o);
}

const struct key *object_key(const struct object *o) { return &o->key; }

const char *object_path(const struct object *o) { return o->path; }

/* ------------------------------------------------------------------------------------------------------- attributes */

static const struct object_attribute *find_attribute(const struct object *o, const char *name, enum object_value kind)
{
    for (size_t i = 0; i < o->table.n_attributes; i++)
        if (strcmp(o->table.attributes[i].name, name) == 0)
            return o->table.attributes[i].kind == kind ? &o->table.attributes[i] : NULL;
    return NULL;
}

bool object_text(const struct object *o, const char *name, const char **out)
{
    const struct object_attribute *a = find_attribute(o, name, OBJECT_TEXT);
    if (a)
        *out = a->text;
    return a != NULL;
}

bool object_double(const struct object *o, const char *name, double *out)
{
    const struct object_attribute *a = find_attribute(o, name, OBJECT_DOUBLE);
    if (a)
        *out = a->real;
    return a != NULL;
}

bool object_int(const struct object *o, const char *name, int64_t *out)
{
    const struct object_attribute *a = find_attribute(o, name, OBJECT_INT);
    if (a)
        *out = a->integer;
    return a != NULL;
}

/* --------------------------------------------------------------------------------------------------------- datasets */

static const struct object_entry *find_entry(const struct object *o, const char *name)
{
    name = dataset_plain_name(name);
    size_t low = 0, high = o->table.n_entries;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        int c = strcmp(o->table.entries[middle].d.name, name);
        if (c == 0)
            return &o->table.entries[middle];
        if (c < 0)
            low = middle + 1;
        else
            high = middle;
    }
    return NULL;
}

const struct dataset *object_dataset(const struct object *o, const char *name)
{
    const struct object_entry *x = find_entry(o, name);
    return x ? &x->d : NULL;
}

size_t object_datasets(const struct object *o) { return o->table.n_entries; }

const struct dataset *object_dataset_at(const struct object *o, size_t i) { return &o->table.entries[i].d; }

/* The dataset if it is there and of that dtype. */
static const struct object_entry *typed_entry(const struct object *o, const char *name, enum dtype t, struct err *e)
{
    const struct object_entry *x = find_entry(o, name);
    if (!x)
        err_set(e, ERR_INPUT, "%s: has no dataset '%s'", o->path, name);
    else if (x->d.dtype != t)
        err_set(e, ERR_INPUT, "%s: dataset '%s' is of dtype %s, not %s", o->path, name, dtype_info(x->d.dtype)->name,
                dtype_info(t)->name);
    else
        return x;
    return NULL;
}

static bool read_elements(const struct object *o, const struct object_entry *x, uint64_t first, uint64_t count,
                          void *out,
                          struct err *e)
{
    if (first > x->count || count > x->count - first)
        return err_set(e, ERR_INPUT,
                       "%s: dataset '%s' has %" PRIu64 " elements; %" PRIu64 " from %" PRIu64 " are asked for",
                       o->path, x->d.name, x->count, count, first);
    uint64_t size = x->count ? x->bytes / x->count : 0;
    size_t got;
    if (count * size == 0)
        return true;
    if (!sys_read_at(o->fd, out, (size_t)(count * size), x->offset + first * size, &got))
        return err_errno(e, ERR_IO, "%s: cannot read dataset '%s'", o->path, x->d.name);
    if (got < count * size)
        return err_set(e, ERR_IO, "%s: dataset '%s' ends after %zu bytes; the file was cut after it was checked",
                       o->path,
                       x->d.name, got);
    return true;
}

bool object_read(struct object *o, const char *name, enum dtype t, uint64_t first, uint64_t count, void *out,
                 struct err *e)
{
    const struct object_entry *x = typed_entry(o, name, t, e);
    return x && read_elements(o, x, first, count, out, e);
}

bool object_read_all(struct object *o, const char *name, enum dtype t, void **out, uint64_t *count, struct err *e)
{
    const struct object_entry *x = typed_entry(o, name, t, e);
    uint8_t *data;
    if (!x || !mem_raw_bytes((void **)&data, x->bytes ? (size_t)x->bytes : 1, 1, e))
        return false;
    if (!read_elements(o, x, 0, x->count, data, e)) {
        mem_free(data);
        return false;
    }
    *out = data;
    if (count)
        *count = x->count;
    return true;
}

bool object_read_strings(struct object *o, const char *name, char ***out, uint64_t *count, struct err *e)
{
    const struct object_entry *x = typed_entry(o, name, DTYPE_U8, e);
    if (!x)
        return false;
    if (!x->d.string_bytes || x->d.rank != 1)
        return err_set(e, ERR_INPUT, "%s: dataset '%s' is no list of strings", o->path, name);
    size_t width = x->d.string_bytes, n = (size_t)x->count;
    char **pointers;
    /* The pointers, then the texts with room for a NUL after each. */
    if (!mem_new_bytes((void **)&pointers, n + 1, sizeof *pointers + width + 1, e))
        return false;
    char *texts = (char *)(pointers + n + 1);
    if (!read_elements(o, x, 0, n, texts, e)) {
        mem_free(pointers);
        return false;
    }
    for (size_t i = n; i-- > 0;) { /* from the last, so that none is overwritten before it has moved */
        memmove(texts + i * (width + 1), texts + i * width, width);
        texts[i * (width + 1) + width] = '\0';
    }
    for (size_t i = 0; i < n; i++)
        pointers[i] = texts + i * (width + 1);
    *out = pointers;
    *count = n;
    return true;
}

bool object_verify(struct store *s, const struct key *key, struct err *e)
{
    struct header h;
    struct object_table t;
    const char *why;
    char *path;
    uint64_t inode;
    int fd;
    if (!store_object_path(s, key, &path, e))
        return false;
    bool ok = open_plain(path, &fd, &inode, &why, e);
    if (ok && fd < 0)
        ok = err_set(e, ERR_INPUT, "%s: %s", path, why ? why : "is not there");
    else if (ok) {
        ok = check_file(fd, key, true, &h, &why, e);
        if (ok && why)
            ok = err_set(e, ERR_INPUT, "%s: %s", path, why);
        ok = ok && object_table_read(&t, fd, h.body_bytes + HEADER_BYTES, e);
        if (ok)
            object_table_free(&t);
        sys_close(fd);
    }
    mem_free(path);
    return ok;
}
