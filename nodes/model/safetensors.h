#ifndef NODES_MODEL_SAFETENSORS_H
#define NODES_MODEL_SAFETENSORS_H
/* Safetensors files, read strictly (model-architectures 11) and written. A `struct safetensors` is the union of all
 * shards of a directory; tensors are read with pread. */
#include <stdint.h>

#include "engine/base/dtype.h"
#include "engine/base/mem.h"

struct st_tensor {
    const char *name;
    enum dtype dtype;
    int rank;
    int64_t shape[8];
    uint64_t bytes;
    int file;          /* index into files */
    uint64_t offset;   /* absolute in that file */
};

struct safetensors {
    struct st_tensor *tensors; /* sorted by name */
    size_t n_tensors;
    const char **files;        /* names inside the directory, sorted */
    int *fds;
    size_t n_files;
    struct arena arena;
};

/* Opens model.safetensors, or every shard that model.safetensors.index.json names, and checks all headers. */
bool safetensors_open(struct safetensors **out, const char *dir, struct err *e) ERR_CHECK;
void safetensors_close(struct safetensors *s);
/* NULL when there is none of that name. */
const struct st_tensor *safetensors_find(const struct safetensors *s, const char *name);
/* `bytes` bytes of the tensor from byte `first`, as stored. A short read is ERR_INPUT: the file was truncated. */
bool safetensors_read(const struct safetensors *s, const struct st_tensor *t, uint64_t first, uint64_t bytes, void *out,
                      struct err *e) ERR_CHECK;
/* Those bytes, and what follows them in the file, will be asked for soon: the kernel may read them meanwhile. */
void safetensors_ahead(const struct safetensors *s, const struct st_tensor *t, uint64_t first, uint64_t bytes);

/* One tensor to be written; its bytes are asked for when their turn comes, so that no more than one tensor is in
 * memory. */
struct st_source {
    const char *name;
    enum dtype dtype;
    int rank;
    int64_t shape[8];
    uint64_t bytes;
    /* Fill `out` with the tensor's bytes. */
    bool (*fill)(const struct st_source *self, void *out, struct err *e);
    const void *context;
    int64_t index;
};
/* Write one file: header padded with spaces to a multiple of 8, tensors in the given order without gaps, metadata
 * {"format":"pt"}; synced. */
bool safetensors_write(const char *path, const struct st_source *tensors, size_t n, struct err *e) ERR_CHECK;

#endif
