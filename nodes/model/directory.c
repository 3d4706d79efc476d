#include "nodes/model/directory.h"

#include <dirent.h>
#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

static int by_name(const void *a, const void *b)
{
    return strcmp(((const struct directory_file *)a)->name, ((const struct directory_file *)b)->name);
}

static bool look_at(struct directory_file *f, struct arena *a, struct store *s, const char *path, const char *name,
                    struct err *e)
{
    char file[4096];
    struct stat st;
    struct key digest;
    bool known;
    snprintf(file, sizeof file, "%s/%s", path, name);
    f->name = arena_strdup(a, name, e);
    if (!f->name)
        return false;
    if (stat(file, &st) != 0)
        return err_errno(e, ERR_IO, "cannot look at %s", file);
    if (!store_source_digest(s, file, false, &digest, &known, NULL, e))
        return false;
    f->bytes = (uint64_t)st.st_size;
    key_text(&digest, f->digest);
    return true;
}

bool directory_list(struct directory *out, struct store *s, const char *path, struct err *e)
{
    struct directory made = {0};
    DIR *d = opendir(path);
    if (!d)
        return err_errno(e, ERR_IO, "cannot list %s", path);
    size_t room = 0;
    while (readdir(d))
        room++;
    rewinddir(d);
    made.files = arena_new(&made.arena, room * sizeof *made.files, e);
    bool ok = made.files != NULL;
    for (const struct dirent *entry; ok && (entry = readdir(d));) {
        if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0)
            continue;
        if (made.n == room)
            ok = err_set(e, ERR_RESOURCE, "%s: files are being added to it while it is read", path);
        else
            ok = look_at(&made.files[made.n++], &made.arena, s, path, entry->d_name, e);
    }
    closedir(d);
    if (!ok) {
        directory_fini(&made);
        return false;
    }
    if (made.n > 1)
        qsort(made.files, made.n, sizeof *made.files, by_name);
    *out = made;
    return true;
}

void directory_fini(struct directory *d)
{
    arena_free(&d->arena);
    *d = (struct directory){0};
}

/* --------------------------------------------------------------------------------------------------- in a result */

bool directory_write(const struct directory *d, struct writer *w, struct err *e)
{
    struct arena scratch = {0};
    const char **names = arena_new(&scratch, d->n * sizeof *names, e);
    const char **digests = names ? arena_new(&scratch, d->n * sizeof *digests, e) : NULL;
    uint64_t *bytes = digests ? arena_new(&scratch, d->n * sizeof *bytes, e) : NULL;
    for (size_t i = 0; bytes && i < d->n; i++) {
        names[i] = d->files[i].name;
        digests[i] = d->files[i].digest;
        bytes[i] = d->files[i].bytes;
    }
    const struct dataset sizes = {.name = "files/bytes", .dtype = DTYPE_U64, .rank = 1, .shape = {d->n}, .unit = "byte",
        .axes = "file", .description = "size of each file"};
    bool ok = bytes &&
              writer_add_strings(w, "files/name", names, d->n, "file", "every file of the directory", e) &&
              writer_add_strings(w, "files/digest", digests, d->n, "file", "SHA-256 of each file, hex", e) &&
              writer_add(w, &sizes, bytes, e);
    arena_free(&scratch);
    return ok;
}

/* What a result lists. */
struct listed {
    char **names, **digests;
    uint64_t *bytes, n;
};

static void listed_fini(struct listed *l)
{
    mem_free(l->names);
    mem_free(l->digests);
    mem_free(l->bytes);
}

static bool read_listed(struct listed *l, struct object *result, struct err *e)
{
    uint64_t n_digests = 0, n_bytes = 0;
    *l = (struct listed){0};
    bool ok = object_read_strings(result, "files/name", &l->names, &l->n, e) &&
              object_read_strings(result, "files/digest", &l->digests, &n_digests, e) &&
              object_load(result, "files/bytes", DTYPE_U64, &l->bytes, &n_bytes, e);
    if (ok && (n_digests != l->n || n_bytes != l->n))
        ok = err_set(e, ERR_INPUT, "%s: its /files are not of one length", object_path(result));
    if (!ok)
        listed_fini(l);
    return ok;
}

/* Is the i-th file there as it is listed? Failing to look is an error. */
static bool is_as_listed(const struct listed *l, uint64_t i, struct store *s, const char *path, bool quick, bool *same,
                         struct err *e)
{
    char file[4096], text[KEY_TEXT];
    struct stat st;
    struct key digest;
    bool known;
    snprintf(file, sizeof file, "%s/%s", path, l->names[i]);
    *same = stat(file, &st) == 0 && S_ISREG(st.st_mode) && (uint64_t)st.st_size == l->bytes[i];
    if (!*same || quick)
        return true;
    if (!store_source_digest(s, file, false, &digest, &known, NULL, e))
        return false;
    *same = strcmp(key_text(&digest, text), l->digests[i]) == 0;
    return true;
}

bool directory_stands(struct store *s, const char *path, struct object *result, bool quick)
{
    struct err ignored;
    struct listed l;
    bool ok = read_listed(&l, result, &ignored), same = true;
    if (!ok)
        return false;
    for (uint64_t i = 0; ok && same && i < l.n; i++)
        ok = is_as_listed(&l, i, s, path, quick, &same, &ignored);
    listed_fini(&l);
    return ok && same;
}

bool directory_check(struct store *s, const char *path, struct object *result, const char *node, struct err *e)
{
    struct listed l;
    bool ok = read_listed(&l, result, e), same = true;
    if (!ok)
        return false;
    for (uint64_t i = 0; ok && i < l.n; i++) {
        ok = is_as_listed(&l, i, s, path, false, &same, e);
        if (ok && !same)
            ok = err_set(e, ERR_INPUT, "%s/%s is not what node '%s' wrote: run it again, and give each node that "
                         "writes one a `directory` of its own", path, l.names[i], node);
    }
    listed_fini(&l);
    return ok;
}

/* -------------------------------------------------------------------------------------- may the place be replaced? */

/* The digest that a record lists for a file; NULL if it lists none. */
static const char *recorded(const json_t *record, const char *name)
{
    size_t i;
    const json_t *entry;
    json_array_foreach(json_object_get(record, "files"), i, entry) {
        const char *have = json_string_value(json_object_get(entry, "name"));
        if (have && strcmp(have, name) == 0)
            return json_string_value(json_object_get(entry, "sha256"));
    }
    return NULL;
}

/* Is the directory what its record says, file for file? If not, `why` says what differs. */
static bool is_untouched(struct store *s, const char *path, const char *name, const char *what, char why[512],
                         struct err *e)
{
    char file[4096];
    struct directory have = {0};
    snprintf(file, sizeof file, "%s/%s", path, name);
    json_t *record = json_load_file(file, 0, NULL);
    size_t expected = json_array_size(json_object_get(record, "files"));
    bool ok = true;
    why[0] = '\0';
    if (expected == 0)
        snprintf(why, 512, "it has no %s that lists its files", name);
    else
        ok = directory_list(&have, s, path, e);
    for (size_t i = 0; ok && expected > 0 && !why[0] && i < have.n; i++) {
        const char *digest = recorded(record, have.files[i].name);
        if (strcmp(have.files[i].name, name) != 0 && (!digest || strcmp(digest, have.files[i].digest) != 0))
            snprintf(why, 512, "'%s' is %s%s", have.files[i].name, digest ? "changed" : "not of that ",
                     digest ? "" : what);
    }
    if (ok && !why[0] && have.n != expected + 1)
        snprintf(why, 512, "files of that %s are missing", what);
    directory_fini(&have);
    json_decref(record);
    return ok;
}

static bool is_empty(const char *path)
{
    DIR *d = opendir(path);
    size_t n = 0;
    while (d && readdir(d))
        n++;
    if (d)
        closedir(d);
    return d && n == 2;
}

bool directory_check_place(struct store *s, const char *path, const char *source, const char *record, const char *what,
                           bool overwrite, struct err *e)
{
    struct stat st, of_source;
    char why[512];
    if (lstat(path, &st) != 0)
        return errno == ENOENT || err_errno(e, ERR_IO, "cannot look at %s", path);
    if (stat(source, &of_source) == 0 && of_source.st_dev == st.st_dev && of_source.st_ino == st.st_ino)
        return err_set(e, ERR_INPUT, "directory '%s' is the source model itself; choose another place", path);
    if (!S_ISDIR(st.st_mode))
        return err_set(e, ERR_INPUT, "'%s' is there and is no directory; move it away or choose another place", path);
    if (overwrite || is_empty(path))
        return true;
    if (!is_untouched(s, path, record, what, why, e))
        return false;
    if (why[0])
        return err_set(e, ERR_INPUT, "directory '%s' is there and is no untouched %s of ours: %s. Move it away, set "
                       "`directory` to another place, or set `overwrite: true` to replace it", path, what, why);
    return true;
}

bool directory_is_side_file(const char *name)
{
    static const char *const names[] = {
        "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json", "merges.txt",
        "special_tokens_map.json", "added_tokens.json", "chat_template.jinja", "chat_template.json",
        "generation_config.json", "preprocessor_config.json", "video_preprocessor_config.json", "processor_config.json",
        "configuration.json"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (strcmp(name, names[i]) == 0)
            return true;
    size_t n = strlen(name);
    return strncmp(name, "LICENSE", 7) == 0 || strncmp(name, "NOTICE", 6) == 0 ||
           (n > 3 && strcmp(name + n - 3, ".py") == 0);
}
