/* Queues on the CPU and on accelerators; without a CUDA back end there is no accelerator. */
#include "kernels/devices.h"

#include "engine/base/mem.h"

#ifdef HAVE_CUDA
#include "kernels/cuda/cuda.h"
#else
static bool cuda_queue_open(struct queue *q, struct err *e)
{
    return err_set(e, ERR_BUG, "a queue on device %d in a build without accelerators", q->device);
}
static void cuda_queue_close(struct queue *q) { (void)q; }

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

const char *kernels_device_note(int index)
{
    (void)index;
    return "";
}

const char *kernels_build(void) { return "no CUDA (built without nvcc)"; }
#endif

bool kernels_queue_new(struct queue **out, const struct kernels *k, int device, int threads, struct err *e)
{
    struct queue *q;
    if (!mem_new(&q, 1, e))
        return false;
    *q = (struct queue){.k = k, .threads = threads, .device = device};
    if (device != TENSOR_HOST && !cuda_queue_open(q, e)) {
        mem_free(q);
        return false;
    }
    *out = q;
    return true;
}

void kernels_queue_free(struct queue *q)
{
    if (q && q->device != TENSOR_HOST)
        cuda_queue_close(q);
    mem_free(q);
}
