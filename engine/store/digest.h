#ifndef ENGINE_STORE_DIGEST_H
#define ENGINE_STORE_DIGEST_H
/* The cache of source digests that a store keeps in its file `digests`. */
#include "engine/store/store_private.h"

/* A file is what its device, inode, size and both times say, as in Git's index. */
struct digest_entry {
    uint64_t device, inode, bytes;
    int64_t mtime_ns, ctime_ns;
    struct key digest;
};

void digest_cache_free(struct store *s);

#endif
