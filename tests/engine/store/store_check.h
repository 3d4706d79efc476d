#ifndef TESTS_STORE_CHECK_H
#define TESTS_STORE_CHECK_H
/* What the tests of engine/store share: a temporary store, and one object with something of everything in it. */
#include "tests/check.h"

#include <dirent.h>
#include <openssl/evp.h>

#include "engine/store/store.h"

struct fixture {
    char dir[256], path[300]; /* a temporary folder, and a store in it */
    struct store *s;
    struct err e;
};

static inline int fixture_setup(void **state)
{
    static struct fixture f;
    f = (struct fixture){0};
    check_dir_make(f.dir);
    snprintf(f.path, sizeof f.path, "%s/store", f.dir);
    assert_ok(store_open(&f.s, f.path, &f.e), f.e);
    *state = &f;
    return 0;
}

static inline int fixture_teardown(void **state)
{
    struct fixture *f = *state;
    store_close(f->s);
    check_dir_remove(f->dir);
    return 0;
}

/* Close and open again, which forgets what was verified. */
static inline void fixture_reopen(struct fixture *f)
{
    store_close(f->s);
    f->s = NULL;
    assert_ok(store_open(&f->s, f->path, &f->e), f->e);
}

static inline struct key sample_key(unsigned n)
{
    struct key k = {{0}};
    EVP_Digest(&n, sizeof n, k.bytes, NULL, EVP_sha256(), NULL); /* not ours: our memory may be made to fail */
    return k;
}

static inline void sample_path(const struct fixture *f, const struct key *k, char out[512])
{
    char text[KEY_TEXT];
    key_text(k, text);
    snprintf(out, 512, "%s/objects/%.2s/%s.h5", f->path, text, text);
}

#define SAMPLE_LARGE 3000

/* Publish an object of a few datasets under `k`. */
static inline bool sample_commit(struct store *s, const struct key *k, struct err *e)
{
    static const char *const names[] = {"alpha", "", "gamma ray"};
    float large[SAMPLE_LARGE];
    for (int i = 0; i < SAMPLE_LARGE; i++)
        large[i] = (float)i * 0.25f;
    uint16_t half[3] = {0x3f80, 0x4000, 0xc000};
    struct writer *w;
    if (!writer_new(&w, s, k, "sample/1", e))
        return false;
    if (writer_text(w, "parameters", "{\"a\": 1}", e) && writer_double(w, "mean", 0.1, e) &&
        writer_int(w, "count", -7, e) &&
        writer_add(w, &(struct dataset){.name = "g/large", .dtype = DTYPE_F32, .rank = 2,
                                        .shape = {3, SAMPLE_LARGE / 3}, .unit = "nat", .axes = "row, column",
                                        .description = "A ramp."}, large, e) &&
        writer_add(w, &(struct dataset){.name = "g/half", .dtype = DTYPE_BF16, .rank = 1, .shape = {3}}, half, e) &&
        writer_add(w, &(struct dataset){.name = "empty", .dtype = DTYPE_F64, .rank = 2, .shape = {0, 4}}, NULL, e) &&
        writer_add_strings(w, "names", names, COUNT(names), "name", "Names.", e) && writer_link(w, "parts/one", k, e))
        return writer_commit(w, e);
    writer_abort(w);
    return false;
}

/* Is the sample under `k` there, with the right values? Can be asked in a child process: nothing of cmocka here. */
static inline bool sample_good(struct store *s, const struct key *k, struct err *e)
{
    struct object *o = NULL;
    float x[2] = {0};
    int64_t count = 0;
    if (!object_open(&o, s, k, e) || !o)
        return false;
    bool ok = object_datasets(o) == 4 && object_int(o, "count", &count) && count == -7 &&
              object_read(o, "g/large", DTYPE_F32, SAMPLE_LARGE - 2, 2, x, e) && x[0] == (SAMPLE_LARGE - 2) * 0.25f &&
              x[1] == (SAMPLE_LARGE - 1) * 0.25f;
    object_close(o);
    return ok;
}

static inline bool sample_exists(struct fixture *f, const struct key *k)
{
    bool there = false;
    assert_ok(object_exists(f->s, k, &there, &f->e), f->e);
    return there;
}

/* Number of entries of the store's folder `name` that end in `suffix`; -1 when there is no such folder. */
static inline int folder_count(const struct fixture *f, const char *name, const char *suffix)
{
    char path[600];
    snprintf(path, sizeof path, "%s/%s", f->path, name);
    DIR *d = opendir(path);
    if (!d)
        return -1;
    int n = 0;
    for (struct dirent *x; (x = readdir(d));) {
        size_t a = strlen(x->d_name), b = strlen(suffix);
        n += x->d_name[0] != '.' && a >= b && strcmp(x->d_name + a - b, suffix) == 0;
    }
    closedir(d);
    return n;
}

#endif
