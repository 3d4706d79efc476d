/* Ledgers: the rows of a measuring context in its segments, with a table in memory of which are there. Shared within
 * a process, one writer process at a time. A row counts when its own CRC, that of its per-token values and that of
 * its candidate's assignment hold; any other is absent, and is measured again. What a segment is made of is in
 * segment.c. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <time.h>
#include <unistd.h>

#include "engine/store/row_table.h"
#include "engine/store/segment.h"
#include "engine/store/sys.h"

#define WAIT_NS 200000000 /* between two looks at a lock that another process holds */

struct ledger {
    struct store *store;
    struct ledger_spec spec; /* texts in `arena` */
    struct arena arena;
    struct ledger *next;     /* in store->ledgers; this and the next two are under the store's lock */
    unsigned references;
    bool opening;
    int lock_fd;
    uint64_t damaged_rows;   /* found when it was opened, and not changed after */
    size_t damaged_segments;

    pthread_mutex_t measuring; /* ledger_hold */
    pthread_mutex_t appending; /* held through a whole append, before `lock` */
    pthread_mutex_t lock;      /* of everything below; never held while the disk is written */
    struct segment *segments;
    size_t n_segments, room_segments;
    uint32_t next_number;
    struct row_table rows;     /* `segment` of an entry is the index in `segments` */
    struct key_set candidates; /* whose assignment is in some segment */
};

/* ---------------------------------------------------------------------------------------------------------- opening */

static bool copy_spec(struct ledger *l, const struct ledger_spec *spec, struct err *e)
{
    const char **formats = arena_new(&l->arena, (spec->n_formats + 1) * sizeof *formats, e);
    l->spec = *spec;
    l->spec.numeric = formats ? arena_strdup(&l->arena, spec->numeric ? spec->numeric : "", e) : NULL;
    if (!l->spec.numeric)
        return false;
    for (uint32_t i = 0; i < spec->n_formats; i++) {
        formats[i] = arena_strdup(&l->arena, spec->formats[i], e);
        if (!formats[i])
            return false;
    }
    l->spec.formats = formats;
    l->spec.stopping = NULL; /* they are of one call of ledger_open */
    l->spec.waits = NULL;
    return true;
}

/* Tell and ask whoever waits; `told` is his that he has been told already. */
static bool go_on_waiting(const struct ledger_spec *spec, bool *told, const char *holder, struct err *e)
{
    if (!*told && spec->waits)
        spec->waits(spec->waiter, holder);
    *told = true;
    return !spec->stopping || !spec->stopping(spec->waiter) ||
           err_set(e, ERR_STOPPED, "stopped while it waited for the ledger");
}

static bool wait_for_lock(int fd, const struct ledger_spec *spec, const char *path, struct err *e)
{
    char holder[200];
    bool told = false;
    while (sys_flock(fd, LOCK_EX | LOCK_NB) < 0) {
        if (errno != EWOULDBLOCK)
            return err_errno(e, ERR_RESOURCE, "%s: cannot be locked; give --store a directory on a local disk", path);
        lock_read_holder(fd, holder);
        if (!go_on_waiting(spec, &told, holder, e))
            return false;
        nanosleep(&(struct timespec){.tv_nsec = WAIT_NS}, NULL);
    }
    return true;
}

/* Wait until no other process writes to this ledger. */
static bool take_lock(struct ledger *l, const struct ledger_spec *spec, struct err *e)
{
    char *folder = NULL, *ledgers = NULL, *path = NULL, text[KEY_TEXT];
    key_text(&l->spec.context, text);
    bool ok = store_format(l->store, &ledgers, e, "ledger") && store_format(l->store, &folder, e, "ledger/%s", text) &&
              store_format(l->store, &path, e, "ledger/%s/LOCK", text) && store_make_directory(folder, e) &&
              store_sync_directory(ledgers, e);
    if (ok) {
        l->lock_fd = sys_open(path, O_RDWR | O_CREAT, 0644);
        ok = l->lock_fd >= 0 || store_write_error(l->store, path, 0, e);
        ok = ok && wait_for_lock(l->lock_fd, spec, path, e) && lock_write_holder(l->lock_fd, path, e);
    }
    mem_free(ledgers);
    mem_free(folder);
    mem_free(path);
    return ok;
}

static bool reserve_segment(struct ledger *l, struct err *e)
{
    if (l->n_segments < l->room_segments)
        return true;
    size_t room = l->room_segments ? 2 * l->room_segments : 8;
    if (!mem_grow(&l->segments, l->room_segments, room, e))
        return false;
    l->room_segments = room;
    return true;
}

static int by_number(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return x < y ? -1 : x > y;
}

bool ledger_list(const struct store *s, const struct key *context, uint32_t **out, size_t *n, struct err *e)
{
    char *path, text[KEY_TEXT];
    size_t room = 0;
    uint32_t *numbers = NULL;
    *n = 0;
    if (!store_format(s, &path, e, "ledger/%s", key_text(context, text)))
        return false;
    DIR *d = opendir(path);
    bool ok = d || errno == ENOENT || err_errno(e, ERR_IO, "%s: cannot list", path);
    while (d && ok) {
        char *end;
        errno = 0;
        struct dirent *entry = readdir(d);
        if (!entry) {
            ok = errno == 0 || err_errno(e, ERR_IO, "%s: cannot list", path);
            break;
        }
        unsigned long number = strtoul(entry->d_name, &end, 10);
        if (strspn(entry->d_name, "0123456789") < 4 || strcmp(end, ".h5") != 0 || number >= UINT32_MAX)
            continue;
        if (*n == room) {
            size_t more = room ? 2 * room : 16;
            ok = mem_grow(&numbers, room, more, e);
            room = more;
        }
        if (ok)
            numbers[(*n)++] = (uint32_t)number;
    }
    if (d)
        closedir(d);
    mem_free(path);
    if (!ok) {
        mem_free(numbers);
        return false;
    }
    if (*n)
        qsort(numbers, *n, sizeof *numbers, by_number);
    *out = numbers;
    return true;
}

static bool open_segments(struct ledger *l, struct err *e)
{
    uint32_t *numbers;
    size_t n;
    if (!ledger_list(l->store, &l->spec.context, &numbers, &n, e))
        return false;
    bool ok = true;
    for (size_t i = 0; ok && i < n; i++) {
        bool found = false;
        ok = reserve_segment(l, e) &&
             segment_open(&l->segments[l->n_segments], &found, l->store, &l->spec, numbers[i], e);
        l->n_segments += found;
        l->damaged_segments += ok && !found;
        l->next_number = numbers[i] + 1;
    }
    mem_free(numbers);
    return ok;
}

struct scan {
    struct ledger *l;
    uint32_t segment;
};

static bool scan_candidate(void *context, const struct segment_candidate *c, struct err *e)
{
    struct key k;
    memcpy(k.bytes, c->digest, KEY_BYTES);
    return key_set_add(&((struct scan *)context)->l->candidates, &k, e);
}

static bool is_known(const struct ledger *l, const uint8_t candidate[KEY_BYTES])
{
    struct key k;
    memcpy(k.bytes, candidate, KEY_BYTES);
    return key_set_has(&l->candidates, &k);
}

static bool scan_row(void *context, const struct ledger_row *r, struct err *e)
{
    struct scan *s = context;
    if (!is_known(s->l, r->candidate)) {
        s->l->damaged_rows++;
        return true;
    }
    if (!row_table_reserve(&s->l->rows, 1, e))
        return false;
    row_table_add(&s->l->rows, r, s->segment);
    return true;
}

/* What is found counts as durable, but its writer may have been killed between writing a row, or naming a segment, and
 * syncing it: so that is done now. What the disk refuses is not trusted, and leaves the cache, so that the next to open
 * the ledger sees what the disk really holds. */
static bool sync_found(struct ledger *l, struct err *e)
{
    char *folder, text[KEY_TEXT];
    if (!store_format(l->store, &folder, e, "ledger/%s", key_text(&l->spec.context, text)))
        return false;
    bool ok = store_sync_directory(folder, e);
    mem_free(folder);
    for (size_t i = 0; ok && i < l->n_segments; i++)
        if (sys_fdatasync(l->segments[i].fd) < 0) {
            ok = err_errno(e, ERR_IO, "segment %04" PRIu32 " cannot be synced", l->segments[i].number);
            posix_fadvise(l->segments[i].fd, 0, 0, POSIX_FADV_DONTNEED);
        }
    return ok;
}

/* All candidates first: a row may be older than the assignment that replaced a damaged one. */
static bool scan_segments(struct ledger *l, struct err *e)
{
    bool ok = true;
    for (size_t i = 0; ok && i < l->n_segments; i++)
        ok = segment_scan_candidates(&l->segments[i], &l->spec, scan_candidate, &(struct scan){l, (uint32_t)i}, e);
    for (size_t i = 0; ok && i < l->n_segments; i++)
        ok = segment_scan_rows(&l->segments[i], &l->spec, scan_row, &(struct scan){l, (uint32_t)i},
                               &l->damaged_rows, e);
    return ok;
}

static void free_ledger(struct ledger *l)
{
    for (size_t i = 0; i < l->n_segments; i++)
        segment_close(&l->segments[i]);
    if (l->lock_fd >= 0)
        sys_close(l->lock_fd);
    mem_free(l->segments);
    row_table_free(&l->rows);
    key_set_free(&l->candidates);
    arena_free(&l->arena);
    pthread_mutex_destroy(&l->measuring);
    pthread_mutex_destroy(&l->appending);
    pthread_mutex_destroy(&l->lock);
    mem_free(l);
}

static bool new_ledger(struct ledger **out, struct store *s, const struct ledger_spec *spec, struct err *e)
{
    struct ledger *l;
    if (!mem_new(&l, 1, e))
        return false;
    l->store = s;
    l->references = 1;
    l->opening = true;
    l->lock_fd = -1;
    pthread_mutex_init(&l->measuring, NULL);
    pthread_mutex_init(&l->appending, NULL);
    pthread_mutex_init(&l->lock, NULL);
    if (!copy_spec(l, spec, e)) {
        free_ledger(l);
        return false;
    }
    *out = l;
    return true;
}

/* With the store's lock held. */
static void unlist(struct ledger *l)
{
    struct ledger **p = &l->store->ledgers;
    while (*p != l)
        p = &(*p)->next;
    *p = l->next;
}

/* With the store's lock held, which is given up while it waits: *out = the open ledger of that context, or NULL. One
 * that another thread is opening is waited for, and that thread may be waiting for another process. */
static bool find_open(struct ledger **out, struct store *s, const struct ledger_spec *spec, struct err *e)
{
    for (bool told = false;;) {
        struct ledger *l = s->ledgers;
        while (l && !key_equal(&l->spec.context, &spec->context))
            l = l->next;
        *out = l;
        if (!l || !l->opening)
            return true;
        struct timespec until;
        clock_gettime(CLOCK_MONOTONIC, &until);
        until.tv_nsec += WAIT_NS;
        until.tv_sec += until.tv_nsec / 1000000000;
        until.tv_nsec %= 1000000000;
        if (pthread_cond_timedwait(&s->changed, &s->lock, &until) != ETIMEDOUT)
            continue;
        pthread_mutex_unlock(&s->lock);
        bool go_on = go_on_waiting(spec, &told, "another thread of this process", e);
        pthread_mutex_lock(&s->lock);
        if (!go_on)
            return false;
    }
}

bool ledger_open(struct ledger **out, struct store *s, const struct ledger_spec *spec, struct err *e)
{
    struct ledger *l;
    char text[KEY_TEXT];
    if (s->readonly)
        return err_set(e, ERR_BUG, "%s: a ledger is to be written to a store that was opened read-only", s->path);
    if (!new_ledger(&l, s, spec, e))
        return false;
    pthread_mutex_lock(&s->lock);
    struct ledger *open;
    if (!find_open(&open, s, spec, e)) {
        pthread_mutex_unlock(&s->lock);
        free_ledger(l);
        return err_context(e, "ledger %s", key_text(&spec->context, text));
    }
    if (open) {
        bool same = open->spec.slots == spec->slots && open->spec.assignment_bytes == spec->assignment_bytes;
        open->references += same;
        pthread_mutex_unlock(&s->lock);
        free_ledger(l);
        if (!same)
            return err_set(e, ERR_BUG, "ledger %s is open with rows of another shape", key_text(&spec->context, text));
        *out = open;
        return true;
    }
    l->next = s->ledgers;
    s->ledgers = l;
    pthread_mutex_unlock(&s->lock);

    bool ok = take_lock(l, spec, e) && open_segments(l, e) && sync_found(l, e) && scan_segments(l, e);
    pthread_mutex_lock(&s->lock);
    l->opening = false;
    if (!ok)
        unlist(l);
    pthread_cond_broadcast(&s->changed);
    pthread_mutex_unlock(&s->lock);
    if (ok)
        *out = l;
    else
        free_ledger(l);
    return ok || err_context(e, "ledger %s", key_text(&spec->context, text));
}

void ledger_close(struct ledger *l)
{
    if (!l)
        return;
    pthread_mutex_lock(&l->store->lock);
    bool last = --l->references == 0;
    if (last)
        unlist(l);
    pthread_mutex_unlock(&l->store->lock);
    if (last)
        free_ledger(l);
}

void ledger_damage(struct ledger *l, uint64_t *rows, size_t *segments)
{
    *rows = l->damaged_rows;
    *segments = l->damaged_segments;
}

void ledger_hold(struct ledger *l) { pthread_mutex_lock(&l->measuring); }

void ledger_release(struct ledger *l) { pthread_mutex_unlock(&l->measuring); }

/* ---------------------------------------------------------------------------------------------------------- reading */

bool ledger_find(struct ledger *l, const uint8_t candidate[KEY_BYTES], uint32_t window, struct ledger_row *row,
                 float *slots)
{
    pthread_mutex_lock(&l->lock);
    const struct row_entry *x = row_table_find(&l->rows, candidate, window);
    struct row_entry found = x ? *x : (struct row_entry){0};
    struct segment g = {0}; /* what of it never changes: an append may be going on */
    if (x) {
        g.fd = l->segments[x->segment].fd;
        g.slots_at = l->segments[x->segment].slots_at;
    }
    pthread_mutex_unlock(&l->lock);
    if (!found.row.seq)
        return false;
    if (slots && !segment_read_slots(&g, &l->spec, &found.row, slots)) {
        pthread_mutex_lock(&l->lock);
        const struct row_entry *bad = row_table_find(&l->rows, candidate, window);
        if (bad && bad->segment == found.segment && bad->row.seq == found.row.seq)
            /* it was whole when it was opened: the disk has lost it since */
            row_table_drop(&l->rows, candidate, window);
        pthread_mutex_unlock(&l->lock);
        return false;
    }
    *row = found.row;
    return true;
}

uint64_t ledger_rows(struct ledger *l)
{
    pthread_mutex_lock(&l->lock);
    uint64_t n = l->rows.n_alive;
    pthread_mutex_unlock(&l->lock);
    return n;
}

/* -------------------------------------------------------------------------------------------------------- appending */

/* An append in hand. */
struct batch {
    struct ledger_row *rows;
    const float *slots;
    const uint8_t *assignments;
    size_t n;
    struct segment_candidate *candidates; /* room for n */
    const uint8_t **sources;              /* their assignments, room for n */
};

static bool check_batch(const struct ledger *l, const struct batch *b, struct err *e)
{
    char text[KEY_TEXT];
    for (size_t i = 0; i < b->n; i++) {
        const struct ledger_row *r = &b->rows[i];
        const uint8_t *assignment = b->assignments + i * l->spec.assignment_bytes;
        struct key k, digest;
        memcpy(k.bytes, r->candidate, KEY_BYTES);
        bool again = row_table_find(&l->rows, r->candidate, r->window) != NULL;
        for (size_t j = 0; j < i && !again; j++)
            again = b->rows[j].window == r->window && memcmp(b->rows[j].candidate, r->candidate, KEY_BYTES) == 0;
        if (again)
            return err_set(e, ERR_BUG, "row (%s, window %" PRIu32 ") is in the ledger already", key_text(&k, text),
                           r->window);
        bool new = i == 0 || memcmp(b->rows[i - 1].candidate, r->candidate, KEY_BYTES) != 0;
        if (new && !key_of_bytes(assignment, l->spec.assignment_bytes, &digest, e))
            return false;
        if (new && !key_equal(&digest, &k))
            return err_set(e, ERR_BUG,
                           "row (%s, window %" PRIu32 ") does not belong to its assignment, whose digest is "
                                       "another", key_text(&k, text), r->window);
    }
    return true;
}

/* The segment that rows go to now, made if need be. Memory for it is taken before the file is. */
static bool current_segment(struct ledger *l, struct segment **out, struct err *e)
{
    pthread_mutex_lock(&l->lock);
    bool ok = reserve_segment(l, e);
    pthread_mutex_unlock(&l->lock);
    if (!ok)
        return false;
    struct segment *last = l->n_segments ? &l->segments[l->n_segments - 1] : NULL, fresh;
    if (last && !last->sealed && last->n_rows < last->capacity && last->n_candidates < last->capacity) {
        *out = last;
        return true;
    }
    uint64_t capacity = segment_capacity(&l->spec, last && last->n_rows ? last->capacity : 0);
    if (!segment_new(&fresh, l->store, &l->spec, l->next_number, capacity, e))
        return false;
    pthread_mutex_lock(&l->lock);
    l->segments[l->n_segments++] = fresh;
    l->next_number++;
    *out = &l->segments[l->n_segments - 1];
    pthread_mutex_unlock(&l->lock);
    return true;
}

/* How many of the rows from `first` on go into segment g, and their new candidates into the batch's lists. */
static size_t plan_chunk(const struct ledger *l, const struct segment *g, struct batch *b, size_t first, size_t *n_new)
{
    size_t i = first;
    *n_new = 0;
    for (; i < b->n && g->n_rows + (i - first) < g->capacity; i++) {
        const uint8_t *digest = b->rows[i].candidate;
        bool known = is_known(l, digest);
        for (size_t j = *n_new; !known && j-- > 0;)
            known = memcmp(b->candidates[j].digest, digest, KEY_BYTES) == 0;
        if (known)
            continue;
        if (g->n_candidates + *n_new == g->capacity)
            break;
        b->candidates[*n_new] = (struct segment_candidate){0};
        memcpy(b->candidates[*n_new].digest, digest, KEY_BYTES);
        b->sources[(*n_new)++] = b->assignments + i * l->spec.assignment_bytes;
    }
    return i - first;
}

/* Take what is durable into the table. Everything was reserved before, so nothing here can fail. */
static void acknowledge(struct ledger *l, const struct segment *g, const struct batch *b, size_t first, size_t n,
                        size_t n_new)
{
    pthread_mutex_lock(&l->lock);
    for (size_t i = 0; i < n_new; i++) {
        struct key k;
        memcpy(k.bytes, b->candidates[i].digest, KEY_BYTES);
        if (!key_set_add(&l->candidates, &k, NULL))
            continue; /* not reached; the cost would be a second copy of the assignment */
    }
    for (size_t i = first; i < first + n; i++)
        row_table_add(&l->rows, &b->rows[i], (uint32_t)(g - l->segments));
    pthread_mutex_unlock(&l->lock);
}

/* Write the whole batch. A segment that the disk refuses is sealed, and the rows go to a new one, once: after a failed
 * sync nobody knows what the disk holds, so it is not tried again (checkpointing 6.5). */
static bool write_batch(struct ledger *l, struct batch *b, struct err *e)
{
    bool failed = false;
    for (size_t done = 0; done < b->n;) {
        struct segment *g;
        size_t n_new;
        if (!current_segment(l, &g, e))
            return false;
        size_t n = plan_chunk(l, g, b, done, &n_new);
        const float *slots = b->slots ? b->slots + done * l->spec.slots : NULL;
        if (segment_append(g, &l->spec, b->rows + done, slots, n, b->candidates, b->sources, n_new)) {
            acknowledge(l, g, b, done, n, n_new);
            done += n;
            continue;
        }
        int error = errno;
        g->sealed = true;
        errno = error;
        if (failed)
            return store_write_error(l->store, "ledger", n * sizeof *b->rows, e);
        failed = true;
    }
    return true;
}

bool ledger_append(struct ledger *l, struct ledger_row *rows, const float *slots, const uint8_t *assignments, size_t n,
                   struct err *e)
{
    struct batch b = {.rows = rows, .slots = slots, .assignments = assignments, .n = n};
    char text[KEY_TEXT];
    bool ok = false;
    if (n == 0)
        return true;
    pthread_mutex_lock(&l->appending);
    if (!mem_new(&b.candidates, n, e) || !mem_new(&b.sources, n, e))
        goto out;
    pthread_mutex_lock(&l->lock);
    ok = check_batch(l, &b, e) && row_table_reserve(&l->rows, n, e) && key_set_reserve(&l->candidates, n, e);
    pthread_mutex_unlock(&l->lock);
    ok = ok && write_batch(l, &b, e);
out:
    pthread_mutex_unlock(&l->appending);
    mem_free(b.sources);
    mem_free(b.candidates);
    return ok || err_context(e, "ledger %s", key_text(&l->spec.context, text));
}
