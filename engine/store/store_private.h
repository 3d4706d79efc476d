#ifndef ENGINE_STORE_STORE_PRIVATE_H
#define ENGINE_STORE_STORE_PRIVATE_H
/* What the files of engine/store share and nobody else sees. */
#include <pthread.h>
#include <stdatomic.h>

#include "engine/store/store.h"

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the files are little-endian and written as they lie");

/* A SHA-256 of plain bytes, without field lengths; finished by key_hash_end, or given up by key_hash_drop. */
bool key_hash_new_raw(struct key_hash **out, struct err *e) ERR_CHECK;
void key_hash_raw(struct key_hash *h, const void *data, size_t n);
void key_hash_drop(struct key_hash *h); /* NULL is fine */

struct key_set {
    struct key *keys;
    bool *used;
    size_t n, capacity; /* a power of two, at least twice n */
};
bool key_set_has(const struct key_set *s, const struct key *k) ERR_CHECK;
void key_set_remove(struct key_set *s, const struct key *k); /* nothing, if it is not there */
/* Room for n more keys, so that adding them cannot fail. */
bool key_set_reserve(struct key_set *s, size_t n, struct err *e) ERR_CHECK;
bool key_set_add(struct key_set *s, const struct key *k, struct err *e) ERR_CHECK;
void key_set_free(struct key_set *s);

struct digest_entry;

struct store {
    char *path;            /* absolute */
    bool readonly;
    char *session;         /* "<boot id>-<pid>-<n>": our folder in tmp/ */
    int session_fd;        /* its lock, held while the store is open; -1 without */
    atomic_uint temporary; /* files named so far in it */

    pthread_mutex_t lock;  /* of everything below */
    pthread_cond_t changed;
    struct object *objects; /* open ones, or being opened */
    struct ledger *ledgers; /* likewise */
    struct key_set verified, damaged;
    bool fanout_synced[256]; /* objects/ has been synced since objects/xx was seen */
    struct digest_entry *digests; /* the cache of source digests, as far as `digests_read` */
    size_t n_digests, room_digests;
    bool digests_read;
};

/* "<store>/<format>" in fresh memory (mem_free). */
bool store_format(const struct store *s, char **out, struct err *e, const char *format, ...)
    __attribute__((format(printf, 4, 5))) ERR_CHECK;
bool store_object_path(const struct store *s, const struct key *k, char **out, struct err *e) ERR_CHECK;
/* A path in our part of tmp/ that nobody else uses. */
bool store_temporary(struct store *s, char **out, struct err *e) ERR_CHECK;
bool store_sync_directory(const char *path, struct err *e) ERR_CHECK;
/* mkdir that is content with a directory that is there. */
bool store_make_directory(const char *path, struct err *e) ERR_CHECK;
/* An error for a write of `bytes` bytes that failed with errno: for a full disk with the figures and the remedy. */
bool store_write_error(const struct store *s, const char *what, uint64_t bytes, struct err *e);
/* The same figures and remedy behind an error of libhdf5 that says so. Returns false. */
bool store_add_remedy(const struct store *s, uint64_t bytes, struct err *e);
/* Move store-relative `path` to quarantine/<name>.<n>.h5 with the reason beside it. A file that has vanished, or is no
 * longer the one with inode `inode` (0: any), is left alone. */
bool store_quarantine(struct store *s, const char *path, const char *name, uint64_t inode, const char *reason,
                      struct err *e) ERR_CHECK;
/* Note that the object of that key was damaged; the second time in one opened store it is an error. */
bool store_note_damage(struct store *s, const struct key *k, const char *reason, struct err *e) ERR_CHECK;

/* ------------------------------------------------------------------------- the header in front of each of our files */

#define HEADER_BYTES 4096
#define HEADER_OBJECT "SCOUTOBJ"
#define HEADER_LEDGER "SCOUTLED"
#define HEADER_INDEX "SCOUTRUN"

/* As it lies in the file, in the HDF5 user block. */
struct header {
    char magic[8];
    uint32_t format, header_bytes;
    struct key key;
    uint64_t body_bytes; /* all after the header */
    struct key digest;   /* of the body; zero in a ledger segment, whose body changes */
    uint64_t extra[16];  /* ledger segments: see segment.c */
    uint8_t zero[HEADER_BYTES - 8 - 8 - KEY_BYTES - 8 - KEY_BYTES - 16 * 8 - 4];
    uint32_t crc;        /* CRC-32 of all before */
};
_Static_assert(sizeof(struct header) == HEADER_BYTES, "the header is the user block");

void header_seal(struct header *h, const char *magic, const struct key *key, uint64_t body_bytes,
                 const struct key *digest);
/* Why the header at the start of `fd` cannot be trusted, in *why, or NULL when it can. `key` NULL: any. False when it
 * could not be read: only bytes that were read and are wrong speak against a file. */
bool header_read(int fd, const char *magic, const struct key *key, struct header *out, const char **why,
                 struct err *e) ERR_CHECK;
/* Is the file as long as its header says? *why as above. */
bool header_check_length(int fd, const struct header *h, const char **why, struct err *e) ERR_CHECK;
/* SHA-256 of everything after the header; *why as above when the file ends before. */
bool header_digest(int fd, const struct header *h, struct key *out, const char **why, struct err *e) ERR_CHECK;
/* Does the body match the header's digest? *why as above. */
bool header_check_body(int fd, const struct header *h, const char **why, struct err *e) ERR_CHECK;

/* ---------------------------------------------------------------------------------------------------- object files */

struct object_entry {
    struct dataset d;
    uint64_t offset, count, bytes;
};
enum object_value { OBJECT_TEXT, OBJECT_INT, OBJECT_DOUBLE };
struct object_attribute {
    const char *name;
    enum object_value kind;
    const char *text;
    int64_t integer;
    double real;
};
/* What libhdf5 says of an object file, read once. All of it lies in `arena`. Datasets in name order. */
struct object_table {
    struct arena arena;
    struct object_entry *entries;
    struct object_attribute *attributes;
    size_t n_entries, room_entries, n_attributes, room_attributes;
};
/* Fill *t from the file behind fd of `file_bytes` bytes; on failure *t is empty. */
bool object_table_read(struct object_table *t, int fd, uint64_t file_bytes, struct err *e) ERR_CHECK;
void object_table_free(struct object_table *t);
/* Elements of a dataset and its bytes; false when they overflow or the shape is no shape. */
bool dataset_size(const struct dataset *d, uint64_t *count, uint64_t *bytes) ERR_CHECK;
/* Names without the leading '/'. */
const char *dataset_plain_name(const char *name);
/* Open and check a file under a key, see object_read.c. *fd = -1 when there is none or it was set aside. */
bool object_file_open(struct store *s, const struct key *k, int *fd, struct err *e) ERR_CHECK;
/* Move the finished, synced file `temporary` to its name. If somebody else has published that key, theirs is verified
 * and kept; if theirs is damaged it is set aside and ours takes its place. `bytes`: about its size, for messages. */
bool publish_object(struct store *s, const struct key *key, const char *temporary, uint64_t bytes,
                    struct err *e) ERR_CHECK;
bool store_mark_verified(struct store *s, const struct key *k, struct err *e) ERR_CHECK;

/* The numbers of a ledger's segments that lie in its folder, in order; none without a folder. mem_free *out. */
bool ledger_list(const struct store *s, const struct key *context, uint32_t **out, size_t *n, struct err *e) ERR_CHECK;

/* lock.c: what stands in a lock's file, "pid 12 on host since 2026-01-01 00:00:00 UTC", as its holder wrote it. */
void lock_read_holder(int fd, char out[200]);
bool lock_write_holder(int fd, const char *path, struct err *e) ERR_CHECK;

#endif
