/* The header in front of each of our files: it says what the file is and carries the digest of the rest, so that a file
 * is checked before libhdf5 sees it. */
#include <errno.h>
#include <string.h>
#include <sys/stat.h>
#include <zlib.h>

#include "engine/store/store_private.h"
#include "engine/store/sys.h"

#define HEADER_FORMAT 1
#define BLOCK (1u << 20)

static uint32_t header_crc(const struct header *h)
{
    return (uint32_t)crc32(0, (const Bytef *)h, offsetof(struct header, crc));
}

void header_seal(struct header *h, const char *magic, const struct key *key, uint64_t body_bytes,
                 const struct key *digest)
{
    memcpy(h->magic, magic, sizeof h->magic);
    h->format = HEADER_FORMAT;
    h->header_bytes = HEADER_BYTES;
    h->key = *key;
    h->body_bytes = body_bytes;
    h->digest = *digest;
    h->crc = header_crc(h);
}

bool header_read(int fd, const char *magic, const struct key *key, struct header *out, const char **why, struct err *e)
{
    size_t got;
    *why = NULL;
    if (!sys_read_at(fd, out, sizeof *out, 0, &got)) {
        if (errno != EISDIR)
            return err_errno(e, ERR_IO, "cannot read the header");
        *why = "is a directory";
    } else if (got < sizeof *out) {
        *why = "shorter than its header";
    } else if (memcmp(out->magic, magic, sizeof out->magic) != 0) {
        *why = "does not begin with the magic word";
    } else if (out->crc != header_crc(out)) {
        *why = "the header does not match its CRC";
    } else if (out->format != HEADER_FORMAT || out->header_bytes != HEADER_BYTES) {
        *why = "the header is of another version";
    } else if (key && !key_equal(&out->key, key)) {
        *why = "holds another key";
    }
    return true;
}

bool header_check_length(int fd, const struct header *h, const char **why, struct err *e)
{
    struct stat st;
    *why = NULL;
    if (fstat(fd, &st) < 0)
        return err_errno(e, ERR_IO, "cannot look at the file");
    if ((uint64_t)st.st_size - HEADER_BYTES != h->body_bytes)
        *why = "is not as long as its header says";
    return true;
}

bool header_digest(int fd, const struct header *h, struct key *out, const char **why, struct err *e)
{
    struct key_hash *hash = NULL;
    uint8_t *block = NULL;
    bool ok = false;
    *why = NULL;
    if (!mem_raw_bytes((void **)&block, BLOCK, 1, e) || !key_hash_new_raw(&hash, e))
        goto out;
    for (uint64_t at = 0; at < h->body_bytes;) {
        size_t want = h->body_bytes - at < BLOCK ? (size_t)(h->body_bytes - at) : BLOCK, got;
        if (!sys_read_at(fd, block, want, HEADER_BYTES + at, &got)) {
            err_errno(e, ERR_IO, "cannot read the body");
            goto out;
        }
        if (got < want) {
            *why = "ends before its body does";
            ok = true;
            goto out;
        }
        key_hash_raw(hash, block, got);
        at += got;
    }
    ok = key_hash_end(hash, out, e);
    hash = NULL;
out:
    key_hash_drop(hash);
    mem_free(block);
    return ok;
}

bool header_check_body(int fd, const struct header *h, const char **why, struct err *e)
{
    struct key digest;
    if (!header_digest(fd, h, &digest, why, e))
        return false;
    if (!*why && !key_equal(&digest, &h->digest))
        *why = "the body does not match its SHA-256";
    return true;
}
