/* The coroutines behind emulate.h, and the part of the CUDA runtime that kernels/cuda calls, on host memory. */
#include "tests/cuda/emulate.h"

#include <stdio.h>
#include <stdlib.h>

#include <atomic>
#include <mutex>

#include "tests/cuda/emulate_control.h"

#if defined(__SANITIZE_ADDRESS__)
#define ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define ASAN 1
#endif
#endif
#ifdef ASAN
#include <sanitizer/common_interface_defs.h>
#endif

#define MOST_THREADS 1024
#define STACK_BYTES ((size_t)128 << 10)
#define WARP 32

namespace emulate {

thread_local struct index thread, block, blocks, threads;
thread_local void *dynamic;

enum state { READY, AT_BARRIER, AT_EXCHANGE, DONE };

struct coroutine {
    void *stack, *sp;
    void *shadow; /* the address sanitizer's */
    enum state state;
    unsigned turn; /* of its exchanges: slots alternate, so that a fast lane does not overwrite what others read */
};

/* One per thread of the process that runs blocks. */
struct scheduler {
    struct coroutine all[MOST_THREADS];
    uint64_t slot[2][MOST_THREADS];
    unsigned count, current, sweep;
    void *home; /* stack pointer of run_block */
    void *home_shadow;
    const void *home_stack;
    size_t home_bytes;
    bool waits;
    void (*call)(void *);
    void *body;
};
static thread_local struct scheduler *self;

/* Threads come and go with the queues that launch from them; what they needed goes with them. */
struct end_of_thread {
    ~end_of_thread()
    {
        for (unsigned i = 0; self && i < MOST_THREADS; i++)
            free(self->all[i].stack);
        free(self);
        free(dynamic);
        self = NULL;
        dynamic = NULL;
    }
};
static thread_local struct end_of_thread cleaner;

static void fail(const char *what)
{
    fprintf(stderr, "emulated CUDA: %s (block %u,%u thread %u)\n", what, block.x, block.y, thread.x);
    abort();
}

extern "C" void emulate_switch(void **save, void *load);
/* Saves the registers that a call keeps, changes stacks, and takes up the other's (System V ABI of x86-64). */
__asm__(".text\n.type emulate_switch,@function\nemulate_switch:\n"
        "push %rbp\npush %rbx\npush %r12\npush %r13\npush %r14\npush %r15\n"
        "mov %rsp,(%rdi)\nmov %rsi,%rsp\n"
        "pop %r15\npop %r14\npop %r13\npop %r12\npop %rbx\npop %rbp\nret\n");

static void to_home(bool ends)
{
    struct scheduler *s = self;
    struct coroutine *c = &s->all[s->current];
#ifdef ASAN
    __sanitizer_start_switch_fiber(ends ? NULL : &c->shadow, s->home_stack, s->home_bytes);
#else
    (void)ends;
#endif
    emulate_switch(&c->sp, s->home);
#ifdef ASAN
    __sanitizer_finish_switch_fiber(c->shadow, NULL, NULL);
#endif
}

static void enter()
{
    struct scheduler *s = self;
#ifdef ASAN
    __sanitizer_finish_switch_fiber(NULL, &s->home_stack, &s->home_bytes);
#endif
    s->call(s->body);
    s->all[s->current].state = DONE;
    to_home(true);
    fail("a thread ran on after its end");
}

static void prepare(struct coroutine *c)
{
    if (!c->stack)
        c->stack = aligned_alloc(64, STACK_BYTES);
    void **sp = (void **)((char *)c->stack + STACK_BYTES) - 1; /* as after a call: 8 off a multiple of 16 */
    *--sp = (void *)enter;
    for (int i = 0; i < 6; i++)
        *--sp = NULL;
    c->sp = sp;
    c->state = READY;
    c->turn = 0;
}

static void resume(struct scheduler *s, unsigned i)
{
    struct coroutine *c = &s->all[i];
    s->current = i;
    thread = (struct index){i, 0, 0};
#ifdef ASAN
    __sanitizer_start_switch_fiber(&s->home_shadow, c->stack, STACK_BYTES);
#endif
    emulate_switch(&s->home, c->sp);
#ifdef ASAN
    __sanitizer_finish_switch_fiber(s->home_shadow, NULL, NULL);
#endif
}

void barrier()
{
    if (!self->waits)
        fail("a barrier in a kernel that was launched flat");
    self->all[self->current].state = AT_BARRIER;
    to_home(false);
}

uint64_t exchange(uint64_t mine, int from)
{
    struct scheduler *s = self;
    unsigned i = s->current, warp = i / WARP * WARP;
    struct coroutine *c = &s->all[i];
    if (!s->waits)
        fail("a shuffle in a kernel that was launched flat");
    unsigned turn = c->turn++ % 2;
    s->slot[turn][i] = mine;
    c->state = AT_EXCHANGE;
    to_home(false);
    return s->slot[turn][warp + (unsigned)from];
}

/* Lets a group go on if all of it wait for the same. Threads that have left do not count at a barrier; at a shuffle of
 * the whole warp they must be there. */
static bool release(struct scheduler *s, unsigned first, unsigned n, enum state what)
{
    unsigned waiting = 0, gone = 0;
    for (unsigned i = first; i < first + n; i++) {
        waiting += s->all[i].state == what;
        gone += s->all[i].state == DONE;
    }
    if (waiting == 0 || waiting + gone < n)
        return false;
    if (what == AT_EXCHANGE && gone > 0)
        fail("a shuffle without all lanes of its warp");
    for (unsigned i = first; i < first + n; i++)
        if (s->all[i].state == what)
            s->all[i].state = READY;
    return true;
}

/* One warp as far as it comes without the others, its lanes in either direction. True when it moved. */
static bool run_warp(struct scheduler *s, unsigned first, unsigned n, bool backwards)
{
    bool moved = false;
    do {
        for (unsigned k = 0; k < n; k++) {
            unsigned i = first + (backwards ? n - 1 - k : k);
            if (s->all[i].state == READY) {
                resume(s, i);
                moved = true;
            }
        }
    } while (release(s, first, n, AT_EXCHANGE));
    return moved;
}

static void run_waiting(struct scheduler *s)
{
    unsigned warps = (s->count + WARP - 1) / WARP;
    for (unsigned i = 0; i < s->count; i++)
        prepare(&s->all[i]);
    for (;;) {
        unsigned done = 0;
        bool moved = false, backwards = s->sweep++ % 2;
        for (unsigned k = 0; k < warps; k++) {
            unsigned first = (backwards ? warps - 1 - k : k) * WARP;
            moved |= run_warp(s, first, s->count - first < WARP ? s->count - first : WARP, backwards);
        }
        for (unsigned i = 0; i < s->count; i++)
            done += s->all[i].state == DONE;
        if (done == s->count)
            return;
        if (!release(s, 0, s->count, AT_BARRIER) && !moved)
            fail("the threads wait for each other for ever");
    }
}

static void run_block(struct scheduler *s, size_t bytes)
{
    if (bytes > 0)
        memset(dynamic, 0xff, bytes);
    if (s->waits) {
        run_waiting(s);
        return;
    }
    for (unsigned i = 0; i < s->count; i++) {
        thread = (struct index){i, 0, 0};
        s->current = i;
        s->call(s->body);
    }
}

void run(dim3 grid, dim3 size, size_t bytes, bool waits, void (*call)(void *), void *body)
{
    if (emulate_tick())
        return; /* a device that is lost does nothing more */
    if (size.x > MOST_THREADS || size.x == 0 || size.y * size.z != 1 || grid.x == 0 || grid.y == 0 || grid.y > 65535 ||
        bytes > 101376)
        fail("a launch that a device would refuse");
    int64_t total = (int64_t)grid.x * grid.y * grid.z;
#pragma omp parallel for schedule(dynamic)
    for (int64_t b = 0; b < total; b++) {
        if (!self) {
            self = (struct scheduler *)calloc(1, sizeof *self);
            (void)&cleaner; /* makes it, and so its end */
        }
        if (!dynamic)
            dynamic = aligned_alloc(64, (size_t)128 << 10);
        self->count = size.x;
        self->waits = waits;
        self->call = call;
        self->body = body;
        block = (struct index){(unsigned)(b % grid.x), (unsigned)(b / grid.x % grid.y),
                               (unsigned)(b / grid.x / grid.y)};
        blocks = (struct index){grid.x, grid.y, grid.z};
        threads = (struct index){size.x, 1, 1};
        run_block(self, bytes);
    }
}

} // namespace emulate

/* ---------------------------------------------------------------------------------------------------- the runtime */

#define DEVICES 2
#define DEVICE_BYTES ((uint64_t)8 << 30)

static std::mutex lock;
static uint64_t limit = UINT64_MAX, used; /* of device memory, all devices together */
static long lost_after = -1;
static std::atomic<bool> lost;
static thread_local cudaError_t last;

void emulate_limit(uint64_t bytes)
{
    std::lock_guard<std::mutex> hold(lock);
    limit = bytes;
}

uint64_t emulate_used(void)
{
    std::lock_guard<std::mutex> hold(lock);
    return used;
}

void emulate_lose_after(long launches)
{
    std::lock_guard<std::mutex> hold(lock);
    lost_after = launches;
    lost = false;
}

bool emulate_tick(void)
{
    std::lock_guard<std::mutex> hold(lock);
    if (lost_after == 0)
        lost = true;
    lost_after -= lost_after > 0;
    return lost;
}

int emulate_capability(void)
{
    int major = 9, minor = 0;
    const char *text = getenv("EMULATE_CAPABILITY");
    if (text && sscanf(text, "%d.%d", &major, &minor) != 2)
        abort();
    return major * 10 + minor;
}

static cudaError_t answer(cudaError_t e)
{
    if (e == cudaSuccess && lost)
        e = cudaErrorDevicesUnavailable;
    if (e != cudaSuccess)
        last = e;
    return e;
}

/* The size is kept before the block, so that it can be given back. */
cudaError_t cudaMallocAsync(void **p, size_t bytes, cudaStream_t stream)
{
    emulate_check_stream(stream);
    std::lock_guard<std::mutex> hold(lock);
    if (bytes > DEVICE_BYTES || bytes > limit || used > limit - bytes)
        return answer(cudaErrorMemoryAllocation);
    uint64_t *block = (uint64_t *)aligned_alloc(256, 256 + (bytes + 255) / 256 * 256);
    if (!block)
        return answer(cudaErrorMemoryAllocation);
    block[0] = bytes;
    used += bytes;
    *p = (char *)block + 256;
    memset(*p, 0xff, bytes);
    return answer(cudaSuccess);
}

cudaError_t cudaFreeAsync(void *p, cudaStream_t)
{
    std::lock_guard<std::mutex> hold(lock);
    uint64_t *block = (uint64_t *)((char *)p - 256);
    used -= block[0];
    memset(p, 0xfe, block[0]);
    free(block);
    return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, enum cudaMemcpyKind, cudaStream_t stream)
{
    emulate_check_stream(stream);
    if (bytes > 0)
        memmove(to, from, bytes);
    return answer(cudaSuccess);
}

cudaError_t cudaMemcpy2DAsync(void *to, size_t to_pitch, const void *from, size_t from_pitch, size_t width,
                              size_t height, enum cudaMemcpyKind, cudaStream_t)
{
    if (width > to_pitch || width > from_pitch)
        return answer(cudaErrorInvalidPitchValue);
    for (size_t i = 0; i < height; i++)
        memmove((char *)to + i * to_pitch, (const char *)from + i * from_pitch, width);
    return answer(cudaSuccess);
}

cudaError_t cudaMemsetAsync(void *p, int value, size_t bytes, cudaStream_t)
{
    memset(p, value, bytes);
    return answer(cudaSuccess);
}

cudaError_t cudaHostAlloc(void **p, size_t bytes, unsigned)
{
    *p = malloc(bytes);
    return answer(*p ? cudaSuccess : cudaErrorMemoryAllocation);
}
cudaError_t cudaFreeHost(void *p)
{
    free(p);
    return cudaSuccess;
}

/* What the machine's driver knows: EMULATE_DRIVER, 0 without one. */
static int driver_version(void)
{
    const char *text = getenv("EMULATE_DRIVER");
    return text ? atoi(text) : 13000;
}

cudaError_t cudaGetDeviceCount(int *n)
{
    *n = getenv("EMULATE_NO_DEVICE") ? 0 : DEVICES;
    if (driver_version() < 13000)
        return cudaErrorInsufficientDriver;
    return *n > 0 ? cudaSuccess : cudaErrorNoDevice;
}

cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *p, int)
{
    memset(p, 0, sizeof *p);
    snprintf(p->name, sizeof p->name, "emulated device");
    p->major = emulate_capability() / 10;
    p->minor = emulate_capability() % 10;
    p->multiProcessorCount = 2;
    p->totalGlobalMem = DEVICE_BYTES;
    return cudaSuccess;
}

cudaError_t cudaDeviceGetPCIBusId(char *text, int size, int index)
{
    snprintf(text, (size_t)size, "0000:%02x:00.0", index + 1);
    return cudaSuccess;
}

cudaError_t cudaMemGetInfo(size_t *left, size_t *total)
{
    std::lock_guard<std::mutex> hold(lock);
    *total = DEVICE_BYTES;
    *left = (limit < *total ? limit : *total) - used;
    return answer(cudaSuccess);
}

cudaError_t cudaGetLastError(void)
{
    cudaError_t e = answer(cudaSuccess) == cudaSuccess ? last : cudaErrorDevicesUnavailable;
    last = cudaSuccess;
    return e;
}

const char *cudaGetErrorString(cudaError_t e)
{
    if (e == cudaErrorMemoryAllocation)
        return "out of memory";
    return e == cudaErrorDevicesUnavailable ? "device lost" : "error";
}

/* A stream is the number of its device: work must be handed to it while that device is the thread's. */
static thread_local int current;

void emulate_check_stream(cudaStream_t s)
{
    if (s && *(int *)s != current) {
        fprintf(stderr, "emulated CUDA: work for a stream of device %d while %d is current\n", *(int *)s, current);
        abort();
    }
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *s, unsigned)
{
    int *device = (int *)malloc(sizeof *device);
    if (device)
        *device = current;
    *s = (cudaStream_t)device;
    return answer(*s ? cudaSuccess : cudaErrorMemoryAllocation);
}
cudaError_t cudaStreamDestroy(cudaStream_t s)
{
    free((void *)s);
    return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t) { return answer(cudaSuccess); }
cudaError_t cudaSetDevice(int device)
{
    current = device;
    return answer(cudaSuccess);
}
cudaError_t cudaDriverGetVersion(int *v)
{
    *v = driver_version();
    return cudaSuccess;
}
cudaError_t cudaRuntimeGetVersion(int *v)
{
    *v = 13000;
    return cudaSuccess;
}
cudaError_t cudaFuncSetAttribute(const void *, enum cudaFuncAttribute, int) { return answer(cudaSuccess); }
cudaError_t cudaDeviceGetDefaultMemPool(cudaMemPool_t *pool, int)
{
    *pool = NULL;
    return answer(cudaSuccess);
}
cudaError_t cudaMemPoolTrimTo(cudaMemPool_t, size_t) { return answer(cudaSuccess); }
cudaError_t cudaMemPoolSetAttribute(cudaMemPool_t, enum cudaMemPoolAttr, void *) { return answer(cudaSuccess); }
