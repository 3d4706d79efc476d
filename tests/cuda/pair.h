#ifndef TESTS_CUDA_PAIR_H
#define TESTS_CUDA_PAIR_H
/* What the tests of the CUDA back end share: a queue on the plain CPU table and one on the first device, and arrays
 * that are in both places. Linked with the emulated devices or with the real ones; without a device the tests are
 * skipped. */
#include "tests/kernels/variants.h"

#include <stdio.h>

#include "kernels/devices.h"

#define SKIPPED 77 /* meson's code for it */

/* The machine's first device, opened (so self-tested), or NULL with the reason on stderr. */
static inline const struct device *first_device(void)
{
    size_t n;
    const char *why;
    uint64_t left;
    struct err e = {0};
    const struct device *d = kernels_devices(&n, &why);
    if (n == 0) {
        fprintf(stderr, "skipped: %s\n", why);
        return NULL;
    }
    if (!kernels_device_open(d->index, &left, &e))
        fail_msg("%s", e.text);
    printf("%s: %s, %.1f GiB free\n", d->kernels->numeric_bf16, d->model, (double)left / (1 << 30));
    return d;
}

struct pair {
    struct queue *cpu, *gpu;
};

static inline struct pair pair_open(void)
{
    size_t n;
    const char *why;
    struct pair p;
    struct err e = {0};
    const struct device *d = kernels_devices(&n, &why);
    assert_ok(kernels_queue_new(&p.cpu, kernels_find("plain"), TENSOR_HOST, 1, &e), e);
    assert_ok(kernels_queue_new(&p.gpu, d->kernels, d->index, 1, &e), e);
    return p;
}

static inline void pair_close(struct pair *p)
{
    struct err e = {0};
    assert_ok(p->gpu->k->finish(p->gpu, &e), e);
    kernels_queue_free(p->cpu);
    kernels_queue_free(p->gpu);
}

/* A tensor on the device with the elements of `host`. */
static inline struct tensor there(const struct pair *p, const void *host, enum dtype t, int64_t rows, int64_t columns)
{
    struct tensor out = {0};
    struct err e = {0};
    assert_ok(p->gpu->k->tensor_new(p->gpu, &out, t, columns ? 2 : 1, (int64_t[]){rows, columns}, &e), e);
    assert_ok(p->gpu->k->upload(p->gpu, &out, host, (size_t)tensor_count(&out) * dtype_bytes(t), &e), e);
    return out;
}

/* One of a shape, that nothing has been written to. */
static inline struct tensor blank(const struct pair *p, enum dtype t, int64_t rows, int64_t columns)
{
    struct tensor out = {0};
    struct err e = {0};
    assert_ok(p->gpu->k->tensor_new(p->gpu, &out, t, columns ? 2 : 1, (int64_t[]){rows, columns}, &e), e);
    size_t bytes = (size_t)tensor_count(&out) * dtype_bytes(t);
    void *poison = malloc(bytes + 1);
    assert_non_null(poison);
    memset(poison, 0xff, bytes);
    assert_ok(p->gpu->k->upload(p->gpu, &out, poison, bytes, &e), e);
    free(poison);
    return out;
}

/* Its elements on the host, to be freed; the tensor is freed. */
static inline void *back(const struct pair *p, struct tensor *t)
{
    size_t bytes = (size_t)tensor_count(t) * dtype_bytes(t->dtype);
    void *out = malloc(bytes + 1);
    struct err e = {0};
    assert_non_null(out);
    assert_ok(p->gpu->k->download(p->gpu, out, t, bytes, &e), e);
    p->gpu->k->tensor_free(p->gpu, t);
    return out;
}

static inline void drop(const struct pair *p, struct tensor *t) { p->gpu->k->tensor_free(p->gpu, t); }

/* |got - want| <= bound * scale for every element. */
static inline void assert_near(const float *want, const float *got, int64_t n, double bound, double scale,
                               const char *what)
{
    for (int64_t i = 0; i < n; i++)
        if (!(fabs((double)got[i] - (double)want[i]) <= bound * scale))
            fail_msg("%s: element %lld of %lld is %.9g, expected %.9g within %.3g", what, (long long)i, (long long)n,
                     (double)got[i], (double)want[i], bound * scale);
}

#endif
