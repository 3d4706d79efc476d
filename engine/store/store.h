#ifndef ENGINE_STORE_STORE_H
#define ENGINE_STORE_STORE_H
/* The durable side of the engine: keys, immutable objects, append-only ledgers, and the run's index. Everything is HDF5
 * that any reader can open; every file carries its own digest, so damage is found before libhdf5 sees it.
 *
 *   STORE/  FORMAT  objects/ab/<key>.h5  ledger/<key>/0000.h5  tmp/  quarantine/  digests
 *   RUN/    LOCK  run.h5  run.log  (and by default the STORE, as RUN/store)
 *
 * All libhdf5 calls are made on one thread (io.h). All functions here may be called from any thread. */
#include <stdint.h>

#include "engine/base/dtype.h"
#include "engine/base/mem.h"

/* ------------------------------------------------------------------------------------------------------------ keys */

#define KEY_BYTES 32
#define KEY_TEXT 65 /* 64 hex digits and the NUL */

struct key {
    uint8_t bytes[KEY_BYTES];
};
const char *key_text(const struct key *k, char out[KEY_TEXT]);
bool key_parse(const char *text, struct key *k) ERR_CHECK;
bool key_equal(const struct key *a, const struct key *b);

/* SHA-256 over length-prefixed fields; the first field is always "format 1". */
struct key_hash;
bool key_hash_new(struct key_hash **out, struct err *e) ERR_CHECK;
void key_hash_text(struct key_hash *h, const char *text);
void key_hash_bytes(struct key_hash *h, const void *data, size_t n);
void key_hash_int(struct key_hash *h, int64_t x);
void key_hash_double(struct key_hash *h, double x); /* 16 hex digits of its bits; -0 becomes 0 */
void key_hash_key(struct key_hash *h, const struct key *k);
/* Finishes and frees. */
bool key_hash_end(struct key_hash *h, struct key *out, struct err *e) ERR_CHECK;
/* SHA-256 of n bytes. */
bool key_of_bytes(const void *data, size_t n, struct key *out, struct err *e) ERR_CHECK;

/* ----------------------------------------------------------------------------------------------------------- store */

struct store;

/* Open or create STORE at `path`. Removes temporary files whose creator is gone. ERR_RESOURCE when it is not writable
 * or the disk is full, ERR_INPUT when its FORMAT is another version's. */
bool store_open(struct store **out, const char *path, struct err *e) ERR_CHECK;
/* Read-only: nothing is created or removed (for plan, status, check). */
bool store_open_readonly(struct store **out, const char *path, struct err *e) ERR_CHECK;
void store_close(struct store *s);
const char *store_path(const struct store *s);
/* How many damaged files lie in quarantine/, each with its reason beside it. */
bool store_quarantined(struct store *s, size_t *count, struct err *e) ERR_CHECK;

/* Digest of a source: SHA-256 of a regular file's content; of a directory, over the sorted (name, digest) of the
 * regular files directly in it whose names do not start with a dot. Cached in STORE/digests by device, inode, size,
 * mtime and ctime (a file changed less than 2 s before it was hashed is not cached). With `only_cached`, *known says
 * whether it could be told without reading the content of more than 64 MiB. `progress` (may be NULL) is told bytes done
 * and total. */
struct digest_progress {
    void (*tell)(void *context, uint64_t done, uint64_t total);
    void *context;
};
bool store_source_digest(struct store *s, const char *path, bool only_cached, struct key *out, bool *known,
                         const struct digest_progress *progress, struct err *e) ERR_CHECK;

/* -------------------------------------------------------------------------------------------------- writing objects */

#define DATASET_RANK 4

/* One dataset of an object. `name` may contain '/' for groups. Strings are DTYPE_U8 with string_bytes > 0: `count`
 * fixed fields of string_bytes bytes, NUL-padded. */
struct dataset {
    const char *name;
    enum dtype dtype;
    int rank;
    uint64_t shape[DATASET_RANK];
    size_t string_bytes;     /* 0 unless the elements are strings; then dtype is DTYPE_U8 */
    const char *unit;        /* "nat", "bit", "byte", "1", "s", "token" */
    const char *axes;        /* "candidate, window": a name per dimension */
    const char *description; /* one sentence */
};

struct writer; /* an object being made; all data is kept in memory until commit */

/* `schema` is "<node type>/<version>" or the like. Nothing is visible until writer_commit. */
bool writer_new(struct writer **out, struct store *s, const struct key *key, const char *schema,
                struct err *e) ERR_CHECK;
/* Root attributes, text or number; they are part of the object's bytes. */
bool writer_text(struct writer *w, const char *name, const char *text, struct err *e) ERR_CHECK;
bool writer_double(struct writer *w, const char *name, double x, struct err *e) ERR_CHECK;
bool writer_int(struct writer *w, const char *name, int64_t x, struct err *e) ERR_CHECK;
/* A dataset whose data is copied now. */
bool writer_add(struct writer *w, const struct dataset *d, const void *data, struct err *e) ERR_CHECK;
/* A dataset whose data, allocated with mem_*, is taken over (freed by the writer, also on failure). */
bool writer_add_take(struct writer *w, const struct dataset *d, void *data, struct err *e) ERR_CHECK;
/* Strings given as an array of pointers: a 1-D dataset of n fixed-size fields, as wide as the longest. */
bool writer_add_strings(struct writer *w, const char *name, const char *const *texts, size_t n, const char *axes,
                        const char *description, struct err *e) ERR_CHECK;
/* An external link `name` to another object of the same store. */
bool writer_link(struct writer *w, const char *name, const struct key *to, struct err *e) ERR_CHECK;
/* Write, sync, publish under its key (checkpointing 6.4). If another process published the same key, theirs is verified
 * and kept. Frees the writer in every case. */
bool writer_commit(struct writer *w, struct err *e) ERR_CHECK;
void writer_abort(struct writer *w); /* NULL is fine */

/* -------------------------------------------------------------------------------------------------- reading objects */

struct object;

/* *out = the verified object, or NULL when there is none. A damaged file is moved to quarantine/ with its reason beside
 * it, and counts as absent; one that cannot be read is an error. Each file is verified once per opened store; objects
 * are counted references: object_close releases. */
bool object_open(struct object **out, struct store *s, const struct key *key, struct err *e) ERR_CHECK;
/* Is there an object of that key? Header and size are checked, not the digest. Failing to look is an error. */
bool object_exists(struct store *s, const struct key *key, bool *there, struct err *e) ERR_CHECK;
struct object *object_ref(struct object *o);
void object_close(struct object *o); /* NULL is fine */
const struct key *object_key(const struct object *o);
/* The path of the object's file, for links and messages. */
const char *object_path(const struct object *o);

/* Root attributes; false when absent or of another type. */
bool object_text(const struct object *o, const char *name, const char **out) ERR_CHECK;
bool object_double(const struct object *o, const char *name, double *out) ERR_CHECK;
bool object_int(const struct object *o, const char *name, int64_t *out) ERR_CHECK;

/* The dataset of that name, or NULL. Borrowed from the object. */
const struct dataset *object_dataset(const struct object *o, const char *name);
/* Number of datasets, and the i-th, in name order. */
size_t object_datasets(const struct object *o);
const struct dataset *object_dataset_at(const struct object *o, size_t i);
/* Elements [first, first + count) of the flattened dataset into `out`; strings count as one element of string_bytes.
 * ERR_INPUT when there is no such dataset, or its dtype is not `t`. */
bool object_read(struct object *o, const char *name, enum dtype t, uint64_t first, uint64_t count, void *out,
                 struct err *e) ERR_CHECK;
/* The whole dataset in fresh memory (mem_free); *count (may be NULL) gets the number of elements. */
bool object_read_all(struct object *o, const char *name, enum dtype t, void **out, uint64_t *count,
                     struct err *e) ERR_CHECK;
#define object_load(o, name, t, out, count, e) object_read_all((o), (name), (t), (void **)(out), (count), (e))
/* Strings of a 1-D string dataset, as NUL-terminated pointers into one block (mem_free of *out frees all). */
bool object_read_strings(struct object *o, const char *name, char ***out, uint64_t *count, struct err *e) ERR_CHECK;

/* Verify one file in full: 0 damaged or unreadable (with *e saying how), 1 fine. For `scout check`. */
bool object_verify(struct store *s, const struct key *key, struct err *e) ERR_CHECK;
/* Call `each` for every object in the store, in key order. */
bool store_each_object(struct store *s, bool (*each)(void *context, const struct key *key, struct err *e),
                       void *context, struct err *e) ERR_CHECK;

/* ---------------------------------------------------------------------------------------------------------- ledgers */

/* A ledger belongs to a measuring context (a key). Its rows are (candidate, window); a row is durable before it is
 * acknowledged. Assignments are in a table, written before their first row. One writer process at a time: others wait
 * in ledger_open. Within a process a ledger is opened once and shared, and appends are serialised. */
struct ledger;

struct ledger_spec {
    struct key context;
    const char *numeric;    /* the numeric mode, an attribute of every segment */
    uint32_t assignment_bytes; /* bytes of an assignment: one per unit */
    uint32_t slots;         /* values per row in the per-token table (window - 1) */
    const char *const *formats; /* names, for readers: assignment byte -> format */
    uint32_t n_formats;
    /* While another process writes to the ledger, or another thread opens it, ledger_open waits. It asks `stopping`
     * (NULL: never) several times a second, and says once who is waited for ("pid 12 on host since .."; NULL: nobody is
     * told). */
    bool (*stopping)(void *waiter);
    void (*waits)(void *waiter, const char *holder);
    void *waiter;
};

/* Must stay 128 bytes; on disk as an HDF5 compound with these names. */
struct ledger_row {
    uint64_t seq;          /* 1 + the row's index in its segment; 0: not written */
    uint8_t candidate[KEY_BYTES]; /* SHA-256 of the assignment's bytes */
    uint32_t window;       /* index in the token set of the context */
    uint32_t n_tokens;     /* scored positions */
    double kl_sum;         /* nats, over the scored positions */
    double kl_max;
    double nll_teacher;    /* nats, sum over the scored positions */
    double nll_candidate;
    uint32_t top1;         /* positions where both have the same most likely token */
    uint32_t slots_crc;    /* CRC-32 of the row's per-token values */
    uint8_t reserved[36];  /* zero */
    uint32_t crc;          /* CRC-32 of the bytes before it, the context key and the segment number */
};

/* ERR_STOPPED when `stopping` said so; ERR_IO when a segment could not be read (it is left as it is). */
bool ledger_open(struct ledger **out, struct store *s, const struct ledger_spec *spec, struct err *e) ERR_CHECK;
/* What was found damaged when it was opened: rows that count as absent unless they were measured again since, and
 * segments that were set aside in quarantine/. */
void ledger_damage(struct ledger *l, uint64_t *rows, size_t *segments);
void ledger_close(struct ledger *l); /* NULL is fine */
/* Copy the row of (candidate, window) into *row and its per-token values into slots (may be NULL); false if none. */
bool ledger_find(struct ledger *l, const uint8_t candidate[KEY_BYTES], uint32_t window, struct ledger_row *row,
                 float *slots);
/* Append n rows (seq and both crcs are filled in here) with their n * spec.slots values, and the assignments of their
 * candidates (n * assignment_bytes, repeated where rows share a candidate; written once). Returns when all are durable.
 * A row that exists already is ERR_BUG. */
bool ledger_append(struct ledger *l, struct ledger_row *rows, const float *slots, const uint8_t *assignments, size_t n,
                   struct err *e) ERR_CHECK;
/* Between looking which rows are missing and appending them, a measurer holds the ledger, so that no other thread of
 * this process measures the same rows meanwhile (other processes wait in ledger_open). Not recursive. */
void ledger_hold(struct ledger *l);
void ledger_release(struct ledger *l);
/* Rows now in the ledger. */
uint64_t ledger_rows(struct ledger *l);
/* Verify one segment's file ("ledger/<key>/0000.h5", under the store) without opening its ledger: how many of its rows
 * are whole, and how many are written but damaged. False when the file as a whole is damaged. For `scout check`. */
bool ledger_verify(struct store *s, const char *segment, uint64_t *rows, uint64_t *damaged, struct err *e) ERR_CHECK;

/* ----------------------------------------------------------------------------------------------------------- run.h5 */

struct index_stat {
    char name[48];   /* "layer_forwards" */
    double value;
    char unit[16];
};
struct index_node {
    const char *name, *type, *state; /* state: waiting running done reused failed blocked interrupted */
    const char *error;               /* NULL, or the message of a failed node */
    const char *device;              /* where it ran last: "cpu", "cuda:0,cuda:1"; NULL: unknown */
    bool has_key, has_result;
    struct key key;
    double seconds;                  /* NaN if it did not run */
    const struct index_stat *stats;
    size_t n_stats;
    bool has_ledger;                 /* then /live/<name> links to the ledger's segments, as far as they are there */
    struct key ledger;
};
struct index_run {
    const char *graph_name, *graph_text, *command_line, *version, *machine;
    double started; /* seconds since 1970 */
};
/* Write run_dir/run.h5 anew and rename it over the old one. Derived data: nothing is lost with it. */
bool index_write(struct store *s, const char *run_dir, const struct index_run *run, const struct index_node *nodes,
                 size_t n, struct err *e) ERR_CHECK;
/* Read the nodes of an existing run.h5, in the order in which index_write was given them; strings and stats are in
 * `arena`. */
bool index_read(const char *run_dir, struct index_run *run, struct index_node **nodes, size_t *n, struct arena *arena,
                struct err *e) ERR_CHECK;

/* Make the directory `path` with the parents that are missing; they last through a power cut. ERR_RESOURCE when it
 * cannot be made or is no directory. */
bool store_make_path(const char *path, struct err *e) ERR_CHECK;

/* RUN/LOCK: flock, kept until the process ends or run_unlock. ERR_RESOURCE says who holds it. */
struct run_lock;
bool run_lock_take(struct run_lock **out, const char *run_dir, struct err *e) ERR_CHECK;
void run_unlock(struct run_lock *l);

#endif
