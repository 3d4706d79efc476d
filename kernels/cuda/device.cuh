#ifndef KERNELS_CUDA_DEVICE_CUH
#define KERNELS_CUDA_DEVICE_CUH
/* What the .cu files share: launching, reductions over a block, and number formats. They are built without
 * contraction (-fmad=false), so that an expression means what it says and fmaf is written where it is meant.
 *
 * With CUDA_EMULATE a host compiler takes the same files, and tests/cuda/emulate.h runs the threads of a block one
 * after another, so that a machine without a GPU can test them. */
#ifdef CUDA_EMULATE
#include "tests/cuda/emulate.h"
#else
#include <cuda_runtime.h>
/* A launch whose threads never wait for each other, and one whose threads do. The kernel may be in parentheses. */
#define LAUNCH_FLAT(kernel, grid, threads, l, ...) (kernel<<<grid, threads, 0, (l).stream>>>(__VA_ARGS__))
#define LAUNCH_BLOCKS(kernel, grid, threads, bytes, l, ...) (kernel<<<grid, threads, bytes, (l).stream>>>(__VA_ARGS__))
/* Shared memory whose size the launch gives. */
#define SHARED_FLOATS(name) extern __shared__ float4 name##_words[]; float *const name = (float *)name##_words
#endif
#include <math.h>
#include <stdint.h>

#include "kernels/cuda/launch.h"

#define WARP 32
#define ALL_LANES 0xffffffffu

/* Blocks of `threads` for n items, each thread taking some in turn: enough to fill the device several times over. */
static inline unsigned flat_blocks(struct launch l, int64_t n, int threads)
{
    int64_t most = (int64_t)l.processors * 16, wanted = (n + threads - 1) / threads;
    return (unsigned)(wanted < 1 ? 1 : wanted < most ? wanted : most);
}

/* The same for rows: a block takes some in turn, its threads their columns, so that no index needs a division. */
static inline unsigned row_blocks(struct launch l, int64_t rows)
{
    int64_t most = (int64_t)l.processors * 32;
    return (unsigned)(rows < 1 ? 1 : rows < most ? rows : most);
}
static inline int row_threads(int64_t columns) { return columns > 128 ? 256 : columns > 32 ? 128 : 32; }

/* Indices of a flat kernel's thread: for (int64_t i = flat_first(); i < n; i += flat_step()). */
__device__ static inline int64_t flat_first() { return (int64_t)blockIdx.x * blockDim.x + threadIdx.x; }
__device__ static inline int64_t flat_step() { return (int64_t)gridDim.x * blockDim.x; }

/* ------------------------------------------------------------------------------------------------------- reductions */

template <typename T> __device__ static inline T warp_sum(T x)
{
    for (int lane = WARP / 2; lane > 0; lane /= 2)
        x += __shfl_xor_sync(ALL_LANES, x, lane);
    return x;
}

/* The sum over a block of whole warps, the same in every thread: a tree in each warp, then the warps in order. `room`
 * is shared memory for one value per warp. */
template <typename T> __device__ static inline T block_sum(T x, T *room)
{
    x = warp_sum(x);
    if (blockDim.x == WARP)
        return x;
    __syncthreads(); /* the room may still be read from the last time */
    if (threadIdx.x % WARP == 0)
        room[threadIdx.x / WARP] = x;
    __syncthreads();
    x = room[0];
    for (unsigned w = 1; w < blockDim.x / WARP; w++)
        x += room[w];
    return x;
}

/* The largest magnitude as bits, in which NaN and infinity come last. */
__device__ static inline uint32_t block_most(uint32_t x, uint32_t *room)
{
    for (int lane = WARP / 2; lane > 0; lane /= 2) {
        uint32_t other = __shfl_xor_sync(ALL_LANES, x, lane);
        x = other > x ? other : x;
    }
    if (blockDim.x == WARP)
        return x;
    __syncthreads();
    if (threadIdx.x % WARP == 0)
        room[threadIdx.x / WARP] = x;
    __syncthreads();
    x = room[0];
    for (unsigned w = 1; w < blockDim.x / WARP; w++)
        x = room[w] > x ? room[w] : x;
    return x;
}

/* --------------------------------------------------------------------------------------------------- number formats */

__device__ static inline uint32_t magnitude_bits(float x) { return __float_as_uint(x) & 0x7fffffffu; }

/* To bf16, nearest even; NaN stays NaN. */
__device__ static inline uint16_t to_bf16(float x)
{
    uint32_t u = __float_as_uint(x);
    if ((u & 0x7fffffffu) > 0x7f800000u)
        return (uint16_t)((u >> 16) | 0x40u);
    return (uint16_t)((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
}
__device__ static inline float from_bf16(uint16_t x) { return __uint_as_float((uint32_t)x << 16); }

/* Half precision widened, exactly. */
__device__ static inline float from_f16(uint16_t x)
{
    uint32_t sign = (uint32_t)(x & 0x8000u) << 16, rest = x & 0x7fffu;
    if (rest >= 0x7c00u) /* infinity and NaN */
        return __uint_as_float(sign | 0x7f800000u | (rest & 0x3ffu) << 13);
    if (rest >= 0x0400u)
        return __uint_as_float(sign | ((rest << 13) + (112u << 23)));
    float small = (float)rest * 0x1p-24f;
    return __uint_as_float(sign | __float_as_uint(small));
}

/* Element i of a table in a dtype of PLAIN_*. */
__device__ static inline float plain_value(const void *p, enum plain type, int64_t i)
{
    if (type == PLAIN_F32)
        return ((const float *)p)[i];
    uint16_t half = ((const uint16_t *)p)[i];
    return type == PLAIN_BF16 ? from_bf16(half) : from_f16(half);
}

/* Stores value i of a row of panels. */
__device__ static inline void store_as(void *row, int64_t i, float x, int bf16)
{
    if (bf16)
        ((uint16_t *)row)[i] = to_bf16(x);
    else
        ((float *)row)[i] = x;
}

/* Values 4 i to 4 i + 3 of a row that is aligned for four. */
__device__ static inline void store_four(void *row, int64_t i, float4 x, int bf16)
{
    if (bf16)
        ((ushort4 *)row)[i] = make_ushort4(to_bf16(x.x), to_bf16(x.y), to_bf16(x.z), to_bf16(x.w));
    else
        ((float4 *)row)[i] = x;
}

/* x rounded to a float format of few bits, as kernels/cpu/fake_quantize.c does it: to a multiple of the last place of
 * its power of two, which is at least `least`; `factor` is 1.5 * 2^(23 + bits) for it. The sign is kept. */
__device__ static inline float round_float(float x, float least, float factor)
{
    float power = __uint_as_float(__float_as_uint(x) & 0x7f800000u);
    float magic = (power > least ? power : least) * factor;
    float rounded = (x + magic) - magic;
    return __uint_as_float(magnitude_bits(rounded) | (__float_as_uint(x) & 0x80000000u));
}
__device__ static inline float clamp_to(float x, float most)
{
    x = most < x ? most : x;
    return -most > x ? -most : x;
}
__device__ static inline float round_e4m3(float x) { return round_float(clamp_to(x, 448.0f), 0x1p-6f, 0x1.8p20f); }
__device__ static inline float round_e2m1(float x) { return round_float(clamp_to(x, 6.0f), 1.0f, 0x1.8p22f); }

/* The code of a value that E4M3 has. */
__device__ static inline uint8_t e4m3_code(float x)
{
    uint32_t u = magnitude_bits(x), sign = __float_as_uint(x) >> 24 & 0x80u;
    if (u < 0x3c800000u) /* below 2^-6: multiples of 2^-9 */
        return (uint8_t)(sign | (uint32_t)(__uint_as_float(u) * 512.0f));
    return (uint8_t)(sign | ((u >> 20) - (120u << 3)));
}
__device__ static inline float e4m3_value(uint8_t code)
{
    uint32_t sign = (uint32_t)(code & 0x80u) << 24, rest = code & 0x7fu;
    if (rest == 0x7fu)
        return __uint_as_float(sign | 0x7fc00000u);
    float x = rest < 8u ? (float)rest * 0x1p-9f : __uint_as_float((rest << 20) + (120u << 23));
    return __uint_as_float(sign | __float_as_uint(x));
}
/* {0, .5, 1, 1.5, 2, 3, 4, 6} with the sign of bit 3. */
__device__ static inline float e2m1_value(uint32_t code)
{
    uint32_t rest = code & 7u, sign = (code & 8u) << 28;
    float x = rest < 2u ? (float)rest * 0.5f : __uint_as_float((rest << 22) + (126u << 23));
    return __uint_as_float(sign | __float_as_uint(x));
}
/* Nearest of those, ties to the even index; what is beyond 5 becomes 6. */
__device__ static inline uint32_t e2m1_code(float x)
{
    float a = x < 0.0f ? -x : x;
    uint32_t index = (a > 0.25f) + (a >= 0.75f) + (a > 1.25f) + (a >= 1.75f) + (a > 2.5f) + (a >= 3.5f) + (a > 5.0f);
    return index | (__float_as_uint(x) >> 28 & 8u);
}

/* y, but NaN where x is not finite: rounding would hide that. */
__device__ static inline float nan_unless_finite(float x, float y)
{
    return __uint_as_float(__float_as_uint(y) | __float_as_uint(x - x));
}

/* Rounded to bf16 by its bits alone, as the CPU does it. */
__device__ static inline float load_mode(float x, int bf16)
{
    if (!bf16)
        return x;
    uint32_t u = __float_as_uint(x);
    u = (u + (u >> 16 & 1u) + 0x7fffu) & 0xffff0000u;
    return nan_unless_finite(x, __uint_as_float(u));
}

/* e^x with the bits of kernels/cpu/lanes.h: 0 below -87.33, error 1e-7 of its value; x <= 0 or small. */
__device__ static inline float exp_f32(float x)
{
    const float least = -87.33f, magic = 0x1.8p23f;
    float y = least > x ? least : x; /* NaN stays */
    float t = fmaf(y, 0x1.715476p+0f, magic), n = t - magic;
    float r = fmaf(n, -0x1.62e4p-1f, y);
    r = fmaf(n, -0x1.7f7d1cp-20f, r);
    float p = 0x1.6a2352p-10f;
    p = fmaf(p, r, 0x1.123a6cp-7f);
    p = fmaf(p, r, 0x1.5558f4p-5f);
    p = fmaf(p, r, 0x1.555490p-3f);
    p = fmaf(p, r, 0x1.fffffcp-2f);
    p = fmaf(p, r, 1.0f);
    p = fmaf(p, r, 1.0f);
    float power = __uint_as_float((__float_as_uint(t) << 23) + 0x3f800000u);
    return x < least ? 0.0f : p * power;
}

#endif
