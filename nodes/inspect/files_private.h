#ifndef NODES_INSPECT_FILES_PRIVATE_H
#define NODES_INSPECT_FILES_PRIVATE_H
/* Between files.c and weight_index.c. */
#include "engine/base/str.h"
#include "nodes/inspect/files.h"

/* One line of model.safetensors.index.json. */
struct index_line {
    const char *name;
    const char *file;
};

struct weight_index {
    struct index_line *lines; /* by name; mem_* */
    size_t n;
    int64_t total_size;
    bool readable, has_total;
};

/* Read it, with findings, and make the files that it names the shards of `f`. False when memory is out. */
bool weight_index_read(struct weight_index *x, struct files *f, struct report *r, struct err *e) ERR_CHECK;
/* Against what the headers say. */
void weight_index_check(const struct weight_index *x, const struct files *f, struct report *r);
void weight_index_fini(struct weight_index *x);

bool files_add_shard(struct files *f, const char *name, struct err *e) ERR_CHECK;

/* Room for one more behind `n` elements; lists double. */
#define mem_grow_by_one(list, n, e) \
    (((n) & ((n) - 1)) != 0 || mem_grow((list), (n), (n) ? 2 * (n) : 1, (e)))

#endif
