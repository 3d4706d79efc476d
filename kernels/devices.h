#ifndef KERNELS_DEVICES_H
#define KERNELS_DEVICES_H
/* The accelerators that this build and this machine offer, and queues on them and on the CPU. */
#include "kernels/kernels.h"

struct device {
    const struct kernels *kernels; /* devices with the same table give the same bits */
    int index;                     /* "cuda:<index>" */
    char model[256];               /* "NVIDIA H100 80GB HBM3" */
    char pci[20];                  /* "0000:1b:00.0"; "" unknown */
    int major, minor;              /* compute capability */
    int processors;                /* multiprocessors */
    uint64_t memory;               /* bytes */
};

/* The devices in the order of their indices; *n may be 0, and then *why says in one line, for the user, what is
 * missing: the build, the driver or the device. Asked once per process; no context is made. */
const struct device *kernels_devices(size_t *n, const char **why);
/* Start the device from the calling thread (which is bound to cores near it) and check it: ERR_DEVICE when it fails its
 * self-test or does not answer. *free_memory: bytes that can be allocated now. Once per device and process; calling it
 * again only asks for the memory. */
bool kernels_device_open(int index, uint64_t *free_memory, struct err *e) ERR_CHECK;

/* What the self-test of an opened device has found that a user should know though the device can be used: "cuda:0: no
 * native fp8 products: ...", one line each, "" for nothing. */
const char *kernels_device_note(int index);

/* A queue whose host work uses `threads` threads: on the device with that index, or on the CPU (TENSOR_HOST). `k` is
 * the device's table, or a CPU one. */
bool kernels_queue_new(struct queue **out, const struct kernels *k, int device, int threads, struct err *e) ERR_CHECK;
void kernels_queue_free(struct queue *q); /* NULL is fine; its tensors must have been freed */

/* "CUDA 13.0 for sm_80, sm_90a, sm_100a, sm_120a", or "no CUDA (built without nvcc)": for --version. */
const char *kernels_build(void);

#endif
