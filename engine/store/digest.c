/* Digests of source files, and their cache. The cache is a text file, one line a digest, each with its own CRC; lines
 * are only appended, and a damaged one is skipped: the worst that can happen is that a file is hashed again. */
#include "engine/store/digest.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>
#include <zlib.h>

#include "engine/store/sys.h"

#define BLOCK ((size_t)8 << 20)
#define LARGE ((uint64_t)64 << 20) /* what `only_cached` may read */
#define RACY_NS INT64_C(2000000000)
#define LINE_BYTES 256

/* ------------------------------------------------------------------------------------------------------------ cache */

static int64_t time_ns(struct timespec t) { return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec; }

static struct digest_entry entry_of(const struct stat *st)
{
    return (struct digest_entry){.device = st->st_dev, .inode = st->st_ino, .bytes = (uint64_t)st->st_size,
                                 .mtime_ns = time_ns(st->st_mtim), .ctime_ns = time_ns(st->st_ctim)};
}

static bool same_file(const struct digest_entry *a, const struct digest_entry *b)
{
    return a->device == b->device && a->inode == b->inode && a->bytes == b->bytes && a->mtime_ns == b->mtime_ns &&
           a->ctime_ns == b->ctime_ns;
}

static uint32_t line_crc(const char *line, size_t n) { return (uint32_t)crc32(0, (const Bytef *)line, (uInt)n); }

/* One line, its CRC last; returns its length. */
static size_t format_line(const struct digest_entry *x, char out[LINE_BYTES])
{
    char text[KEY_TEXT];
    int n = snprintf(out, LINE_BYTES, "%" PRIu64 " %" PRIu64 " %" PRIu64 " %" PRId64 " %" PRId64 " %s", x->device,
                     x->inode, x->bytes, x->mtime_ns, x->ctime_ns, key_text(&x->digest, text));
    n += snprintf(out + n, LINE_BYTES - (size_t)n, " %08" PRIx32 "\n", line_crc(out, (size_t)n));
    return (size_t)n;
}

/* False for a line that is not whole. */
static bool parse_line(const char *line, struct digest_entry *x)
{
    char text[KEY_TEXT], again[LINE_BYTES];
    if (sscanf(line, "%" SCNu64 " %" SCNu64 " %" SCNu64 " %" SCNd64 " %" SCNd64 " %64s", &x->device, &x->inode,
               &x->bytes,
               &x->mtime_ns, &x->ctime_ns, text) != 6 || !key_parse(text, &x->digest))
        return false;
    size_t n = format_line(x, again); /* the one way to write it, CRC and all */
    return strncmp(line, again, n - 1) == 0 && (line[n - 1] == '\n' || line[n - 1] == '\0');
}

static bool remember(struct store *s, const struct digest_entry *x, struct err *e)
{
    if (s->n_digests == s->room_digests) {
        size_t room = s->room_digests ? 2 * s->room_digests : 64;
        if (!mem_grow(&s->digests, s->room_digests, room, e))
            return false;
        s->room_digests = room;
    }
    s->digests[s->n_digests++] = *x;
    return true;
}

/* Once per opened store, with its lock held. A cache that cannot be read is an empty one. */
static bool load_cache(struct store *s, struct err *e)
{
    if (s->digests_read)
        return true;
    char *path, line[LINE_BYTES];
    if (!store_format(s, &path, e, "digests"))
        return false;
    FILE *f = fopen(path, "re");
    mem_free(path);
    bool ok = true;
    while (ok && f && fgets(line, sizeof line, f)) {
        struct digest_entry x;
        if (parse_line(line, &x))
            ok = remember(s, &x, e);
    }
    if (f)
        fclose(f);
    s->digests_read = ok;
    return ok;
}

/* The newest entry wins: an inode may have been used again. */
static bool find(struct store *s, const struct stat *st, struct key *out, bool *found, struct err *e)
{
    struct digest_entry wanted = entry_of(st);
    *found = false;
    pthread_mutex_lock(&s->lock);
    bool ok = load_cache(s, e);
    for (size_t i = s->n_digests; ok && i-- > 0 && !*found;)
        if (same_file(&s->digests[i], &wanted)) {
            *out = s->digests[i].digest;
            *found = true;
        }
    pthread_mutex_unlock(&s->lock);
    return ok;
}

/* Append to the file in one write, so that lines of two processes do not mix. A failure costs a second hashing only. */
static void append_line(const struct store *s, const struct digest_entry *x)
{
    struct err ignored;
    char *path, line[LINE_BYTES];
    size_t n = format_line(x, line);
    if (s->readonly || !store_format(s, &path, &ignored, "digests"))
        return;
    int fd = sys_open(path, O_WRONLY | O_CREAT | O_APPEND, 0644);
    mem_free(path);
    if (fd < 0)
        return;
    ssize_t done = write(fd, line, n);
    if (done > 0 && (size_t)done < n)
        done = write(fd, "\n", 1); /* the disk is full: end the torn line, so that the next one is whole */
    sys_close(fd);
}

static bool add(struct store *s, const struct stat *st, const struct key *digest, struct err *e)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    struct digest_entry x = entry_of(st);
    x.digest = *digest;
    /* A change within the clock's grain of the hashing would not show in the times. */
    if (time_ns(now) - x.mtime_ns < RACY_NS || time_ns(now) - x.ctime_ns < RACY_NS)
        return true;
    pthread_mutex_lock(&s->lock);
    bool ok = remember(s, &x, e);
    pthread_mutex_unlock(&s->lock);
    if (ok)
        append_line(s, &x);
    return ok;
}

void digest_cache_free(struct store *s)
{
    mem_free(s->digests);
    s->digests = NULL;
    s->n_digests = s->room_digests = 0;
    s->digests_read = false;
}

/* ---------------------------------------------------------------------------------------------------------- hashing */

/* One source file. */
struct source {
    const char *name; /* in its directory; NULL when the source is the file itself */
    char *path;
    struct stat st;
    bool known;
    struct key digest;
};

struct progress {
    const struct digest_progress *to;
    uint64_t done, total;
};

/* Hash what fd holds, which must be the file of `st` before and after. */
static bool hash_open_file(int fd, struct source *f, uint8_t *block, struct progress *p, struct err *e)
{
    struct key_hash *h;
    struct stat before, after;
    if (!key_hash_new_raw(&h, e))
        return false;
    if (fstat(fd, &before) < 0) {
        key_hash_drop(h);
        return err_errno(e, ERR_IO, "%s: cannot look at it", f->path);
    }
    size_t got = BLOCK;
    for (uint64_t at = 0; got == BLOCK; at += got) {
        if (!sys_read_at(fd, block, BLOCK, at, &got)) {
            key_hash_drop(h);
            return err_errno(e, ERR_IO, "%s: cannot read", f->path);
        }
        key_hash_raw(h, block, got);
        p->done += got;
        if (p->to && got)
            p->to->tell(p->to->context, p->done, p->total);
    }
    if (!key_hash_end(h, &f->digest, e))
        return false;
    if (fstat(fd, &after) < 0)
        return err_errno(e, ERR_IO, "%s: cannot look at it", f->path);
    struct digest_entry expected = entry_of(&f->st), a = entry_of(&before), b = entry_of(&after);
    if (!same_file(&expected, &a) || !same_file(&a, &b))
        return err_set(e, ERR_INPUT, "%s: changed while it was read; let nothing write to it and run again", f->path);
    return true;
}

static bool hash_file(struct store *s, struct source *f, struct progress *p, struct err *e)
{
    uint8_t *block;
    int fd = sys_open(f->path, O_RDONLY | O_NONBLOCK, 0);
    if (fd < 0)
        return err_errno(e, ERR_INPUT, "%s: cannot open", f->path);
    posix_fadvise(fd, 0, 0, POSIX_FADV_SEQUENTIAL);
    bool ok = mem_raw_bytes((void **)&block, BLOCK, 1, e);
    if (ok) {
        ok = hash_open_file(fd, f, block, p, e);
        mem_free(block);
    }
    sys_close(fd);
    return ok && add(s, &f->st, &f->digest, e);
}

static int compare_sources(const void *a, const void *b)
{
    return strcmp(((const struct source *)a)->name, ((const struct source *)b)->name);
}

/* Add the file `name` of directory `path` (or `path` itself) if it is a regular file, links followed. */
static bool add_source(struct arena *a, struct source **files, size_t *n, size_t *room, const char *path,
                       const char *name,
                       struct err *e)
{
    struct source f = {0};
    f.path = name ? arena_printf(a, e, "%s/%s", path, name) : arena_strdup(a, path, e);
    f.name = name ? arena_strdup(a, name, e) : NULL;
    if (!f.path || (name && !f.name))
        return false;
    if (stat(f.path, &f.st) < 0)
        return err_errno(e, ERR_INPUT, "%s: cannot look at it", f.path);
    if (!S_ISREG(f.st.st_mode))
        return name ? true : err_set(e, ERR_INPUT, "%s: is neither a file nor a directory", path);
    if (*n == *room) {
        size_t more = *room ? 2 * *room : 16;
        if (!mem_grow(files, *room, more, e))
            return false;
        *room = more;
    }
    (*files)[(*n)++] = f;
    return true;
}

/* All files of a source, sorted by name; *directory says which kind it is. */
static bool list_sources(const char *path, struct arena *a, struct source **files, size_t *n, bool *directory,
                         struct err *e)
{
    size_t room = 0;
    DIR *d = opendir(path);
    *directory = d != NULL;
    if (!d) {
        if (errno != ENOTDIR)
            return err_errno(e, ERR_INPUT, "%s: cannot open", path);
        return add_source(a, files, n, &room, path, NULL, e);
    }
    bool ok = true;
    for (struct dirent *entry; ok && (entry = readdir(d));)
        if (entry->d_name[0] != '.')
            ok = add_source(a, files, n, &room, path, entry->d_name, e);
    closedir(d);
    if (ok && *n > 1)
        qsort(*files, *n, sizeof **files, compare_sources);
    return ok;
}

/* The digest of a directory over those of its files. */
static bool combine(const struct source *files, size_t n, struct key *out, struct err *e)
{
    struct key_hash *h;
    if (!key_hash_new(&h, e))
        return false;
    key_hash_text(h, "directory");
    for (size_t i = 0; i < n; i++) {
        key_hash_text(h, files[i].name);
        key_hash_key(h, &files[i].digest);
    }
    return key_hash_end(h, out, e);
}

bool store_source_digest(struct store *s, const char *path, bool only_cached, struct key *out, bool *known,
                         const struct digest_progress *progress, struct err *e)
{
    struct arena arena = {0};
    struct source *files = NULL;
    struct progress p = {.to = progress};
    size_t n = 0;
    bool directory, ok = list_sources(path, &arena, &files, &n, &directory, e);
    for (size_t i = 0; ok && i < n; i++) {
        ok = find(s, &files[i].st, &files[i].digest, &files[i].known, e);
        p.total += files[i].known ? 0 : (uint64_t)files[i].st.st_size;
    }
    bool told = !only_cached || p.total <= LARGE;
    for (size_t i = 0; ok && told && i < n; i++)
        if (!files[i].known)
            ok = hash_file(s, &files[i], &p, e);
    struct key digest = {{0}};
    if (ok && told && directory)
        ok = combine(files, n, &digest, e);
    else if (ok && told)
        digest = files[0].digest;
    if (ok && told)
        *out = digest;
    if (ok && known)
        *known = told;
    mem_free(files);
    arena_free(&arena);
    return ok;
}
