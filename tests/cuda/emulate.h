#ifndef TESTS_CUDA_EMULATE_H
#define TESTS_CUDA_EMULATE_H
/* The CUDA language as far as the .cu files of kernels/cuda use it, for a host compiler: a block's threads run one
 * after another as coroutines, each warp as far as it comes without the others, in an order that changes from
 * barrier to barrier, so that a missing barrier is likely to show. Memory that a device would leave undefined is
 * filled with NaN. What it proves is the logic of the kernels and, since they are built without contraction on both
 * sides, their bits; not that a device's compiler, memory or scheduling do as documented. */
#include <cuda_runtime_api.h>
#include <math.h>
#include <stdint.h>
#include <string.h>
#include <vector_functions.h>

#undef __shared__
#undef __launch_bounds__
#define __shared__ static thread_local
#define __launch_bounds__(...)

void emulate_check_stream(cudaStream_t s); /* is of the current device; ends the process otherwise */

namespace emulate {

struct index {
    unsigned x, y, z;
};
extern thread_local struct index thread, block, blocks, threads;
extern thread_local void *dynamic; /* SHARED_FLOATS */

void barrier();
/* Every lane of the warp gives 8 bytes and gets those of lane `from`. */
uint64_t exchange(uint64_t mine, int from);

/* Runs body() for every thread of every block; `waits`: threads may meet in barriers. */
void run(dim3 grid, dim3 block, size_t dynamic_bytes, bool waits, void (*call)(void *), void *body);

template <typename F> void launch(dim3 grid, dim3 block, size_t bytes, bool waits, F body)
{
    run(grid, block, bytes, waits, [](void *f) { (*(F *)f)(); }, &body);
}

} // namespace emulate

#define threadIdx emulate::thread
#define blockIdx emulate::block
#define blockDim emulate::threads
#define gridDim emulate::blocks
#define __syncthreads() emulate::barrier()

template <typename T> static inline T __shfl_xor_sync(unsigned, T x, int lane)
{
    uint64_t bits = 0;
    memcpy(&bits, &x, sizeof x);
    bits = emulate::exchange(bits, (int)(threadIdx.x % 32) ^ lane);
    memcpy(&x, &bits, sizeof x);
    return x;
}

static inline uint32_t __float_as_uint(float x)
{
    uint32_t u;
    memcpy(&u, &x, sizeof u);
    return u;
}
static inline float __uint_as_float(uint32_t u)
{
    float x;
    memcpy(&x, &u, sizeof x);
    return x;
}
static inline double __longlong_as_double(long long u)
{
    double x;
    memcpy(&x, &u, sizeof x);
    return x;
}
static inline uint32_t atomicMax(uint32_t *p, uint32_t x)
{
    uint32_t old = __atomic_load_n(p, __ATOMIC_RELAXED);
    while (old < x && !__atomic_compare_exchange_n(p, &old, x, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
    }
    return old;
}

#define LAUNCH_FLAT(kernel, grid, count, l, ...)                                                                       \
    emulate_check_stream((l).stream), emulate::launch(dim3(grid), dim3(count), 0, false, [=] { (kernel)(__VA_ARGS__); })
#define LAUNCH_BLOCKS(kernel, grid, count, bytes, l, ...)                                                              \
    emulate_check_stream((l).stream),                                                                                  \
        emulate::launch(dim3(grid), dim3(count), bytes, true, [=] { (kernel)(__VA_ARGS__); })
#define SHARED_FLOATS(name) float *const name = (float *)emulate::dynamic

#endif
