#ifndef NODES_EXPORTED_H
#define NODES_EXPORTED_H
/* An exported directory read again, before anybody relies on it. */
#include "nodes/model/renderings.h"

/* What it should hold. All of it is borrowed. */
struct exported {
    const struct model *source;
    struct renderings *renderings;
    const struct format *const *formats; /* [unit] of the source */
    /* Called with the bytes of each tensor that was compared; false with *e filled ends the check. NULL: not called. */
    bool (*step)(void *context, uint64_t bytes, struct err *e);
    void *context;
};

/* Open `directory` as a model, which checks its configuration, the shapes and types of its tensors, and that matrices
 * which a server fuses have the same NVFP4 scales; then compare all bytes: every matrix with its rendering, every other
 * tensor with the source's. A difference is ERR_NUMERIC naming tensor and byte. */
bool exported_check(const char *directory, const struct exported *x, struct err *e) ERR_CHECK;

#endif
