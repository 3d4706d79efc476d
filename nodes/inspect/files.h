#ifndef NODES_INSPECT_FILES_H
#define NODES_INSPECT_FILES_H
/* The weight files of a directory, read with a parser of our own that never refuses as a whole: what is wrong with
 * headers, offsets or the index becomes a finding of check 1, and what can still be used is kept. */
#include "engine/base/dtype.h"
#include "nodes/inspect/report.h"

#define MOST_DIMENSIONS 8
#define LONGEST_NAME 1024

struct st_entry {
    const char *name;
    enum dtype dtype;          /* DTYPE_COUNT: one that the table of dtypes has not */
    const char *dtype_name;    /* as in the header */
    int rank;
    int64_t shape[MOST_DIMENSIONS];
    uint64_t elements, bytes;  /* bytes: what shape and dtype want */
    uint64_t begin, end;       /* absolute in the file */
    int file;                  /* index into shards */
    bool usable;               /* end - begin == bytes, and inside the file */
};

struct shard {
    const char *name;
    int fd;                    /* -1: cannot be read */
    uint64_t size, data;       /* of the file; where its data begin */
};

struct files {
    const char *path;          /* borrowed */
    struct arena arena;
    struct shard *shards;      /* by name; those that the index names, or all there are; mem_* */
    size_t n_shards;
    struct st_entry *tensors;  /* by name, each once; mem_* */
    size_t n_tensors;
    const char **stale;        /* *.safetensors that no index names */
    size_t n_stale;
    bool has_index, has_single; /* model.safetensors.index.json, model.safetensors */
    uint64_t bytes;            /* of all tensors */
};

/* Fails only when the directory cannot be listed (ERR_INPUT) or memory is out. */
bool files_open(struct files *f, const char *dir, struct report *r, struct err *e) ERR_CHECK;
void files_close(struct files *f);
/* NULL when there is none of that name. */
const struct st_entry *files_find(const struct files *f, const char *name);
/* `bytes` bytes of a usable tensor from byte `first`. */
bool files_read(const struct files *f, const struct st_entry *t, uint64_t first, uint64_t bytes, void *out,
                struct err *e) ERR_CHECK;

#endif
