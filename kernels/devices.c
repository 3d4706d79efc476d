/* Without a CUDA back end there is no accelerator: what is here is the CPU's part. */
#include "kernels/devices.h"

#include "engine/base/mem.h"

#ifndef HAVE_CUDA
const struct device *kernels_devices(size_t *n, const char **why)
{
    *n = 0;
    *why = "this build has no CUDA back end (it was built without nvcc)";
    return NULL;
}

bool kernels_device_open(int index, uint64_t *free_memory, struct err *e)
{
    (void)free_memory;
    return err_set(e, ERR_BUG, "device %d was opened in a build without accelerators", index);
}

const char *kernels_build(void) { return "no CUDA (built without nvcc)"; }

static bool queue_device(struct queue *q, struct err *e)
{
    return err_set(e, ERR_BUG, "a queue on device %d in a build without accelerators", q->device);
}
static void queue_device_end(struct queue *q) { (void)q; }
#endif

bool kernels_queue_new(struct queue **out, const struct kernels *k, int device, int threads, struct err *e)
{
    struct queue *q;
    if (!mem_new(&q, 1, e))
        return false;
    *q = (struct queue){.k = k, .threads = threads, .device = device};
    if (device != TENSOR_HOST && !queue_device(q, e)) {
        mem_free(q);
        return false;
    }
    *out = q;
    return true;
}

void kernels_queue_free(struct queue *q)
{
    if (q && q->device != TENSOR_HOST)
        queue_device_end(q);
    mem_free(q);
}
