/* Tensors in device memory. Allocation goes through the device's pool in the order of the queue's stream, and the
 * pool keeps what was freed (devices.c raises its release threshold), so that a layer's panels cost no call to the
 * driver. */
#include <string.h>

#include "kernels/cuda/cuda.h"

bool cuda_ok(const struct queue *q, cudaError_t error, const char *what, struct err *e)
{
    if (error == cudaSuccess)
        return true;
    (void)cudaGetLastError(); /* so that the next launch does not find it again */
    return err_set(e, error == cudaErrorMemoryAllocation ? ERR_RESOURCE : ERR_DEVICE, "cuda:%d: %s: %s", q->device,
                   what, cudaGetErrorString(error));
}

void cuda_room_free(struct queue *q, struct cuda_room *room)
{
    if (room->data)
        cudaFreeAsync(room->data, cuda_queue(q)->stream);
    *room = (struct cuda_room){0};
}

bool cuda_room(struct queue *q, struct cuda_room *room, size_t bytes, struct err *e)
{
    if (room->bytes >= bytes)
        return true;
    cuda_room_free(q, room);
    if (!cuda_ok(q, cudaMallocAsync(&room->data, bytes, cuda_queue(q)->stream), "working memory", e)) {
        room->data = NULL;
        return false;
    }
    room->bytes = bytes;
    return true;
}

bool cuda_tensor_new(struct queue *q, struct tensor *out, enum dtype t, int rank, const int64_t *shape, struct err *e)
{
    if (rank < 1 || rank > 4)
        return err_set(e, ERR_BUG, "tensor_new: rank %d, expected 1 to 4", rank);
    struct tensor made = {.dtype = t, .device = q->device, .rank = rank, .owned = true};
    size_t bytes = dtype_bytes(t);
    for (int i = 0; i < rank; i++) {
        if (shape[i] < 0)
            return err_set(e, ERR_BUG, "tensor_new: dimension %d is %lld, expected at least 0", i, (long long)shape[i]);
        if (__builtin_mul_overflow(bytes, (size_t)shape[i], &bytes))
            return err_set(e, ERR_RESOURCE, "tensor_new: the number of elements exceeds the address space");
        made.shape[i] = shape[i];
    }
    /* A tensor of no elements still has a pointer, so that NULL always means "no tensor". */
    if (!cuda_ok(q, cudaMallocAsync(&made.data, bytes > 0 ? bytes : 1, cuda_queue(q)->stream), "device memory", e))
        return err_context(e, "%zu bytes", bytes);
    *out = made;
    return true;
}

void cuda_tensor_free(struct queue *q, struct tensor *t)
{
    if (t->owned && t->data)
        cudaFreeAsync(t->data, cuda_queue(q)->stream); /* of a lost device: nothing can be done about it */
    memset(t, 0, sizeof *t);
}

static bool check(const struct queue *q, const char *name, const struct tensor *t, size_t bytes, struct err *e)
{
    size_t whole = (size_t)tensor_count(t) * dtype_bytes(t->dtype);
    if (t->device != q->device || t->layout != TENSOR_ROWS || bytes != whole)
        return err_set(e, ERR_BUG, "%s: %zu bytes for a tensor of %zu bytes (layout %d, device %d)", name, bytes, whole,
                       (int)t->layout, t->device);
    return true;
}

/* From pageable memory the driver has its own copy when the call returns; `src` may then change. */
bool cuda_upload(struct queue *q, struct tensor *dst, const void *src, size_t bytes, struct err *e)
{
    return check(q, "upload", dst, bytes, e) &&
           cuda_ok(q, cudaMemcpyAsync(dst->data, src, bytes, cudaMemcpyHostToDevice, cuda_queue(q)->stream), "upload",
                   e);
}

bool cuda_download(struct queue *q, void *dst, const struct tensor *src, size_t bytes, struct err *e)
{
    return check(q, "download", src, bytes, e) &&
           cuda_ok(q, cudaMemcpyAsync(dst, src->data, bytes, cudaMemcpyDeviceToHost, cuda_queue(q)->stream), "download",
                   e) &&
           cuda_finish(q, e);
}

bool cuda_copy(struct queue *q, const struct tensor *src, struct tensor *dst, struct err *e)
{
    size_t bytes = (size_t)tensor_count(src) * dtype_bytes(src->dtype);
    if (src->dtype != dst->dtype)
        return err_set(e, ERR_BUG, "copy: from %s to %s, expected the same dtype", dtype_info(src->dtype)->name,
                       dtype_info(dst->dtype)->name);
    return check(q, "copy", src, bytes, e) && check(q, "copy", dst, bytes, e) &&
           cuda_ok(q, cudaMemcpyAsync(dst->data, src->data, bytes, cudaMemcpyDeviceToDevice, cuda_queue(q)->stream),
                   "copy", e);
}

bool cuda_finish(struct queue *q, struct err *e)
{
    return cuda_ok(q, cudaStreamSynchronize(cuda_queue(q)->stream), "a kernel or copy failed", e);
}

bool cuda_host_new(struct queue *q, void **out, size_t bytes, struct err *e)
{
    return cuda_ok(q, cudaHostAlloc(out, bytes, cudaHostAllocDefault), "pinned host memory", e) ||
           err_context(e, "%zu bytes", bytes);
}

void cuda_host_free(struct queue *q, void *p)
{
    (void)q;
    if (p)
        (void)cudaFreeHost(p);
}

bool cuda_enter(struct queue *q, struct err *e)
{
    return cuda_ok(q, cudaSetDevice(q->device), "cannot use the device", e);
}
