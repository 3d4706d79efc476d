/* Which CUDA devices there are, the tables for them, queues on them, and the test that each must pass once before it
 * computes anything. */
#include "kernels/devices.h"

#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

#include "engine/base/mem.h"
#include "kernels/cuda/cuda.h"
#include "kernels/cuda/library.h"

#define MOST_DEVICES 64
#define NUMERIC_TEXT 160 /* bytes of a numeric mode's name */
#define LEAST_MAJOR 8 /* compute capability 8.0: bf16 products */

/* The table is first: a queue's table is its kind. */
struct kind {
    struct kernels table;
    char name[32], fp32[NUMERIC_TEXT], bf16[NUMERIC_TEXT], native[NUMERIC_TEXT];
    atomic_int of_code[CODE_COUNT]; /* what the self-tests found out about native products */
};
enum { NATIVE_UNKNOWN, NATIVE_AGREES, NATIVE_DIFFERS };

/* The compute capabilities, times ten, from which on and before which a code is multiplied; the others have no native
 * form. */
static const struct {
    enum weight_code code;
    const char *name;
    int least, before;
} natives[] = {{CODE_FP8, "fp8", 89, 1000}, {CODE_NVFP4, "nvfp4", 100, 1000}, {CODE_FP8_BLOCK, "fp8_block", 90, 100},
               {CODE_MXFP8, "mxfp8", 100, 1000}, {CODE_INT8, "int8", LEAST_MAJOR * 10, 1000}};

/* Devices are opened side by side, one device by one thread at a time. */
struct opening {
    pthread_mutex_t lock;
    bool tested;
};

static pthread_once_t once = PTHREAD_ONCE_INIT;
static struct opening openings[MOST_DEVICES];
static struct device devices[MOST_DEVICES];
static struct kind kinds[MOST_DEVICES]; /* of device i, unless an earlier device is like it */
static char notes[MOST_DEVICES][1200]; /* of device i */
static size_t n_devices;
static char reason[256];

/* -------------------------------------------------------------------------------------------------------- discovery */

/* Rows of a product, and of a part's, that fill a device of so many multiprocessors (performance 5 and 6): on the large
 * ones 2048 x n in tiles of 128 is several waves, and a part of 512 x 8192 is two, whose logits stay in the cache. */
static void choose_sizes(struct kernels *k, int processors)
{
    bool large = processors >= 64, medium = processors >= 8;
    k->chunk_rows = large ? 4096 : medium ? 1024 : 128;
    k->head_rows = large ? 512 : medium ? 256 : 64;
    k->head_columns = large ? 8192 : medium ? 4096 : 512;
}

static int64_t product_rows(const struct kernels *k) { return k->chunk_rows / 2; }

/* "bf16 cuda sm_90 x 132 (NVIDIA H100 80GB HBM3), cublaslt 130002" */
static void numeric_name(char *out, const char *mode, const struct device *d)
{
    snprintf(out, NUMERIC_TEXT, "%s cuda sm_%d%d x %d (%.64s), cublaslt %zu", mode, d->major, d->minor, d->processors,
             d->model, blas_version());
}

/* The same bits come of the same kernels, library and chip (its model and multiprocessors decide the library's choice),
 * so these name the numeric mode. */
static void make_kind(struct kind *kind, const struct device *d)
{
    cuda_fill_table(&kind->table);
    choose_sizes(&kind->table, d->processors);
    snprintf(kind->name, sizeof kind->name, "cuda sm_%d%d", d->major, d->minor);
    numeric_name(kind->fp32, "fp32", d);
    numeric_name(kind->bf16, "bf16", d);
    numeric_name(kind->native, "native", d);
    kind->table.name = kind->name;
    kind->table.numeric_fp32 = kind->fp32;
    kind->table.numeric_bf16 = kind->bf16;
    kind->table.numeric_native = kind->native;
}

static bool alike(const struct device *a, const struct device *b)
{
    return a->major == b->major && a->minor == b->minor && a->processors == b->processors &&
           strcmp(a->model, b->model) == 0;
}

static void add_device(int index)
{
    struct cudaDeviceProp p;
    struct device *d = &devices[n_devices];
    if (cudaGetDeviceProperties(&p, index) != cudaSuccess || p.major < LEAST_MAJOR) {
        (void)cudaGetLastError();
        snprintf(reason, sizeof reason, "cuda:%d is too old or does not answer: this build needs compute capability "
                 "%d.0", index, LEAST_MAJOR);
        return;
    }
    *d = (struct device){.index = index, .major = p.major, .minor = p.minor, .processors = p.multiProcessorCount,
                         .memory = p.totalGlobalMem};
    snprintf(d->model, sizeof d->model, "%s", p.name);
    if (cudaDeviceGetPCIBusId(d->pci, sizeof d->pci, index) != cudaSuccess)
        d->pci[0] = '\0';
    for (size_t i = 0; i < n_devices; i++)
        if (alike(&devices[i], d))
            d->kernels = devices[i].kernels;
    if (!d->kernels) {
        make_kind(&kinds[n_devices], d);
        d->kernels = &kinds[n_devices].table;
    }
    n_devices++;
}

/* Why the runtime sees no device, for the user. */
static void explain(cudaError_t error)
{
    int driver = 0, runtime = 0;
    (void)cudaGetLastError();
    (void)cudaDriverGetVersion(&driver);
    (void)cudaRuntimeGetVersion(&runtime);
    if (driver == 0)
        snprintf(reason, sizeof reason, "no NVIDIA driver on this machine");
    else if (error == cudaErrorInsufficientDriver)
        snprintf(reason, sizeof reason, "the NVIDIA driver knows CUDA %d.%d, and this build needs %d.%d: update the "
                 "driver", driver / 1000, driver % 1000 / 10, runtime / 1000, runtime % 1000 / 10);
    else if (error == cudaErrorNoDevice)
        snprintf(reason, sizeof reason, "the NVIDIA driver shows no GPU (is CUDA_VISIBLE_DEVICES set?)");
    else
        snprintf(reason, sizeof reason, "CUDA does not start: %s", cudaGetErrorString(error));
}

static void discover(void)
{
    struct err e = {0};
    int n = 0;
    cudaError_t error = cudaGetDeviceCount(&n);
    if (error != cudaSuccess || n == 0) {
        explain(error != cudaSuccess ? error : cudaErrorNoDevice);
        return;
    }
    if (!library_cublaslt(&e)) {
        snprintf(reason, sizeof reason, "%.255s", e.text);
        return;
    }
    for (int i = 0; i < MOST_DEVICES; i++)
        pthread_mutex_init(&openings[i].lock, NULL);
    for (int i = 0; i < n && n_devices < MOST_DEVICES; i++)
        add_device(i);
}

const struct device *kernels_devices(size_t *n, const char **why)
{
    pthread_once(&once, discover);
    *n = n_devices;
    *why = reason;
    return devices;
}

const char *kernels_build(void) { return "CUDA " CUDA_BUILD; }

/* ----------------------------------------------------------------------------------------------------------- queues */

static const struct device *find(int index)
{
    for (size_t i = 0; i < n_devices; i++)
        if (devices[i].index == index)
            return &devices[i];
    return NULL;
}

const char *kernels_device_note(int index)
{
    const struct device *d = find(index);
    return d ? notes[d - devices] : "";
}

bool cuda_native_agrees(const struct queue *q, enum weight_code code)
{
    const struct kind *kind = (const struct kind *)q->k;
    return atomic_load(&kind->of_code[code]) == NATIVE_AGREES;
}

bool cuda_queue_open(struct queue *q, struct err *e)
{
    struct cuda_queue *c;
    const struct device *d = find(q->device);
    if (!d)
        return err_set(e, ERR_BUG, "a queue on cuda:%d, which is not there", q->device);
    if (!mem_new(&c, 1, e))
        return false;
    c->processors = d->processors;
    c->rows = product_rows(d->kernels);
    c->head_rows = d->kernels->head_rows;
    q->stream = c;
    if (!cuda_ok(q, cudaSetDevice(q->device), "cannot use the device", e) ||
        !cuda_ok(q, cudaStreamCreateWithFlags(&c->stream, cudaStreamNonBlocking), "stream", e) ||
        !blas_new(&c->blas, c->stream, e)) {
        cuda_queue_close(q);
        return err_context(e, "cuda:%d", q->device);
    }
    return true;
}

/* What the pool keeps goes back to the system: nodes that follow may compute elsewhere, and others share the device. */
static void trim_pool(int device)
{
    cudaMemPool_t pool;
    if (cudaDeviceGetDefaultMemPool(&pool, device) == cudaSuccess)
        (void)cudaMemPoolTrimTo(pool, 0);
}

void cuda_queue_close(struct queue *q)
{
    struct cuda_queue *c = cuda_queue(q);
    if (!c)
        return;
    (void)cudaSetDevice(q->device); /* whoever closes it */
    cuda_room_free(q, &c->x);
    cuda_room_free(q, &c->y);
    cuda_room_free(q, &c->small);
    cuda_room_free(q, &c->x_scales);
    cuda_solver_free(c->solver);
    blas_free(c->blas);
    if (c->stream) {
        (void)cudaStreamSynchronize(c->stream);
        (void)cudaStreamDestroy(c->stream);
        trim_pool(q->device);
        (void)cudaGetLastError(); /* who computes next must not find what failed here */
    }
    mem_free(c);
    q->stream = NULL;
}

bool cuda_twin_new(const struct queue *q, struct queue **out, struct err *e)
{
    return kernels_queue_new(out, q->k, q->device, 1, e);
}

/* -------------------------------------------------------------------------------------------------------- self-test */

#define TEST_N 256
#define TEST_K 2048
#define TEST_ROWS 8

/* Small whole numbers, of which a product is exact in every mode; their order is that of a linear congruence. */
static void fill(float *x, int64_t n, int64_t k, uint32_t seed)
{
    for (int64_t i = 0; i < n * k; i++) {
        seed = seed * 1664525u + 1013904223u;
        x[i] = (float)((int)(seed >> 24) % 9 - 4);
    }
}

/* The products of ones with ones are the number of columns, and those of whole numbers are exact: a sum that loses
 * part of k shows in either (performance 6). In f32 the ones of w are 1 + 2^-12, which tf32 does not have. A row of
 * fractions has the same bits alone and among others, in another place. */
struct test {
    struct queue *q;
    struct tensor w, x, y, panels;
    float *host_w, *host_x, *host_y, *again;
};

static bool multiply(struct test *t, int64_t rows, enum dtype mode, float *out, struct err *e)
{
    const struct kernels *k = t->q->k;
    struct tensor x = tensor_rows(&t->x, 0, rows), y = tensor_rows(&t->y, 0, rows);
    bool ok = k->upload(t->q, &t->w, t->host_w, sizeof(float) * TEST_N * TEST_K, e) &&
              k->upload(t->q, &x, t->host_x, sizeof(float) * (size_t)rows * TEST_K, e) &&
              k->panels_new(t->q, &t->panels, TEST_N, TEST_K, mode, e) && k->pack(t->q, &t->w, 0, &t->panels, e) &&
              k->matmul(t->q, &x, &t->panels, &y, e) &&
              k->download(t->q, out, &y, sizeof(float) * (size_t)rows * TEST_N, e);
    k->tensor_free(t->q, &t->panels);
    return ok;
}

static bool test_exact(struct test *t, enum dtype mode, bool ones, struct err *e)
{
    for (int64_t i = 0; i < TEST_N * TEST_K; i++)
        t->host_w[i] = mode == DTYPE_F32 ? 1.0f + 0x1p-12f : 1.0f;
    for (int64_t i = 0; i < TEST_ROWS * TEST_K; i++)
        t->host_x[i] = 1.0f;
    if (!ones) {
        fill(t->host_w, TEST_N, TEST_K, 1);
        fill(t->host_x, TEST_ROWS, TEST_K, 2);
    }
    if (!multiply(t, TEST_ROWS, mode, t->host_y, e))
        return false;
    for (int64_t r = 0; r < TEST_ROWS; r++)
        for (int64_t n = 0; n < TEST_N; n++) {
            double sum = 0.0;
            for (int64_t k = 0; k < TEST_K; k++)
                sum += (double)t->host_x[r * TEST_K + k] * (double)t->host_w[n * TEST_K + k];
            if ((double)t->host_y[r * TEST_N + n] != sum)
                return err_set(e, ERR_DEVICE, "the self-test's %s product is %g where %g is right; do not use this "
                               "device with this library", dtype_info(mode)->name,
                               (double)t->host_y[r * TEST_N + n], sum);
        }
    return true;
}

static bool test_rows(struct test *t, enum dtype mode, struct err *e)
{
    fill(t->host_w, TEST_N, TEST_K, 3);
    fill(t->host_x, TEST_ROWS, TEST_K, 4);
    for (int64_t i = 0; i < TEST_ROWS * TEST_K; i++)
        t->host_x[i] = t->host_x[i] / 3.0f + 0.01f;
    if (!multiply(t, TEST_ROWS, mode, t->host_y, e))
        return false;
    memmove(t->host_x, t->host_x + (TEST_ROWS - 1) * TEST_K, TEST_K * sizeof *t->host_x);
    if (!multiply(t, 1, mode, t->again, e))
        return false;
    if (memcmp(t->again, t->host_y + (TEST_ROWS - 1) * TEST_N, TEST_N * sizeof *t->again) != 0)
        return err_set(e, ERR_DEVICE, "the self-test found that a row's %s product depends on the rows beside it; do "
                       "not use this device with this library", dtype_info(mode)->name);
    return true;
}

static bool test_products(struct queue *q, struct err *e)
{
    struct test t = {.q = q};
    int64_t w[2] = {TEST_N, TEST_K}, x[2] = {TEST_ROWS, TEST_K}, y[2] = {TEST_ROWS, TEST_N};
    bool ok = mem_new(&t.host_w, TEST_N * TEST_K, e) && mem_new(&t.host_x, TEST_ROWS * TEST_K, e) &&
              mem_new(&t.host_y, TEST_ROWS * TEST_N, e) && mem_new(&t.again, TEST_N, e) &&
              q->k->tensor_new(q, &t.w, DTYPE_F32, 2, w, e) && q->k->tensor_new(q, &t.x, DTYPE_F32, 2, x, e) &&
              q->k->tensor_new(q, &t.y, DTYPE_F32, 2, y, e);
    static const enum dtype modes[] = {DTYPE_F32, DTYPE_BF16};
    for (size_t i = 0; ok && i < sizeof modes / sizeof *modes; i++)
        ok = test_exact(&t, modes[i], true, e) && test_exact(&t, modes[i], false, e) && test_rows(&t, modes[i], e);
    q->k->tensor_free(q, &t.w);
    q->k->tensor_free(q, &t.x);
    q->k->tensor_free(q, &t.y);
    mem_free(t.host_w);
    mem_free(t.host_x);
    mem_free(t.host_y);
    mem_free(t.again);
    return ok;
}

/* Adds a line to the device's note. Errors of the device's own begin with its name, which is said once. */
static void note(const struct device *d, const char *format, const char *text)
{
    char name[24], *to = notes[d - devices];
    size_t at = strlen(to);
    int n = snprintf(name, sizeof name, "cuda:%d: ", d->index);
    text += strncmp(text, name, (size_t)n) == 0 ? n : 0;
    snprintf(to + at, sizeof notes[0] - at, "%s%sno native %s products: %s", at > 0 ? "\n" : "", name, format, text);
}

/* A native product that does not agree is not used, on any device of the kind; the others are as good without it. */
static bool test_natives(struct queue *q, const struct device *d, struct err *e)
{
    struct kind *kind = (struct kind *)(uintptr_t)d->kernels;
    for (size_t i = 0; i < sizeof natives / sizeof *natives; i++) {
        atomic_int *found = &kind->of_code[natives[i].code];
        int unknown = NATIVE_UNKNOWN, capability = d->major * 10 + d->minor;
        if (capability < natives[i].least || capability >= natives[i].before)
            continue;
        if (cuda_native_test(q, natives[i].code, e)) {
            atomic_compare_exchange_strong(found, &unknown, NATIVE_AGREES);
            continue;
        }
        if (e->code == ERR_RESOURCE)
            return false;
        atomic_store(found, NATIVE_DIFFERS);
        note(d, natives[i].name, e->text);
    }
    return true;
}

/* What is freed stays with the pool: a layer's panels come and go thousands of times. */
static bool keep_pool(const struct queue *q, struct err *e)
{
    cudaMemPool_t pool;
    uint64_t all = UINT64_MAX;
    return cuda_ok(q, cudaDeviceGetDefaultMemPool(&pool, q->device), "memory pool", e) &&
           cuda_ok(q, cudaMemPoolSetAttribute(pool, cudaMemPoolAttrReleaseThreshold, &all), "memory pool", e);
}

bool kernels_device_open(int index, uint64_t *free_memory, struct err *e)
{
    const struct device *d = find(index);
    struct queue *q = NULL;
    size_t left = 0, total = 0;
    if (!d)
        return err_set(e, ERR_BUG, "cuda:%d is not there", index);
    struct opening *o = &openings[d - devices];
    pthread_mutex_lock(&o->lock);
    bool ok = kernels_queue_new(&q, d->kernels, index, 1, e);
    if (ok && !o->tested) {
        ok = keep_pool(q, e) &&
             ((test_products(q, e) && test_natives(q, d, e)) || err_context(e, "cuda:%d", index));
        o->tested = ok;
    }
    ok = ok && cuda_ok(q, cudaMemGetInfo(&left, &total), "memory", e);
    kernels_queue_free(q);
    pthread_mutex_unlock(&o->lock);
    if (!ok && e->code != ERR_RESOURCE)
        e->code = ERR_DEVICE;
    *free_memory = left;
    return ok;
}
