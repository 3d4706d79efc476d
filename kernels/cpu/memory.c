/* Tensors in host memory: made, freed, and copied by the CPU backend. */
#include <string.h>

#include "engine/base/mem.h"
#include "kernels/cpu/cpu.h"

bool memory_new(struct queue *q, struct tensor *out, enum dtype t, int rank, const int64_t *shape, struct err *e)
{
    (void)q;
    if (rank < 1 || rank > 4)
        return err_set(e, ERR_BUG, "tensor_new: rank %d, expected 1 to 4", rank);
    struct tensor made = {.dtype = t, .device = TENSOR_HOST, .rank = rank, .owned = true};
    size_t count = 1;
    for (int i = 0; i < rank; i++) {
        if (shape[i] < 0)
            return err_set(e, ERR_BUG, "tensor_new: dimension %d is %lld, expected at least 0", i, (long long)shape[i]);
        if (__builtin_mul_overflow(count, (size_t)shape[i], &count))
            return err_set(e, ERR_RESOURCE, "tensor_new: the number of elements exceeds the address space");
        made.shape[i] = shape[i];
    }
    /* A tensor of no elements still has a pointer, so that NULL always means "no tensor". */
    if (!mem_raw_bytes(&made.data, count > 0 ? count : 1, dtype_bytes(t), e))
        return false;
    *out = made;
    return true;
}

void memory_free(struct queue *q, struct tensor *t)
{
    (void)q;
    if (t->owned)
        mem_free(t->data);
    memset(t, 0, sizeof *t);
}

static bool check_copy(const char *name, const struct tensor *t, size_t bytes, struct err *e)
{
    size_t whole = (size_t)tensor_count(t) * dtype_bytes(t->dtype);
    if (t->device != TENSOR_HOST || t->layout != TENSOR_ROWS || bytes != whole)
        return err_set(e, ERR_BUG, "%s: %zu bytes for a tensor of %zu bytes (layout %d, device %d)", name, bytes, whole,
                       (int)t->layout, t->device);
    return true;
}

bool memory_upload(struct queue *q, struct tensor *dst, const void *src, size_t bytes, struct err *e)
{
    (void)q;
    if (!check_copy("upload", dst, bytes, e))
        return false;
    if (bytes > 0)
        memcpy(dst->data, src, bytes);
    return true;
}

bool memory_download(struct queue *q, void *dst, const struct tensor *src, size_t bytes, struct err *e)
{
    (void)q;
    if (!check_copy("download", src, bytes, e))
        return false;
    if (bytes > 0)
        memcpy(dst, src->data, bytes);
    return true;
}

bool memory_copy(struct queue *q, const struct tensor *src, struct tensor *dst, struct err *e)
{
    (void)q;
    size_t bytes = (size_t)tensor_count(src) * dtype_bytes(src->dtype);
    if (src->dtype != dst->dtype)
        return err_set(e, ERR_BUG, "copy: from %s to %s, expected the same dtype", dtype_info(src->dtype)->name,
                       dtype_info(dst->dtype)->name);
    if (!check_copy("copy", src, bytes, e) || !check_copy("copy", dst, bytes, e))
        return false;
    if (bytes > 0)
        memmove(dst->data, src->data, bytes);
    return true;
}

bool memory_finish(struct queue *q, struct err *e)
{
    (void)q, (void)e; /* every entry is done when it returns */
    return true;
}

bool memory_host_new(struct queue *q, void **out, size_t bytes, struct err *e)
{
    (void)q;
    return mem_raw_bytes(out, bytes, 1, e);
}

void memory_host_free(struct queue *q, void *p)
{
    (void)q;
    mem_free(p);
}
