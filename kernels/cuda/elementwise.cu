/* Kernels that compute each element on its own, with the bits of kernels/cpu. All are bound by memory: neighbouring
 * threads take neighbouring elements, sixteen bytes each where rows allow. */
#include "kernels/cuda/device.cuh"

#define THREADS 256

__global__ static void add(float *x, const float *d, int64_t n)
{
    for (int64_t i = flat_first(); i < n; i += flat_step())
        x[i] += d[i];
}

/* n is a multiple of 4, and the addresses are aligned to 16. */
__global__ static void add4(float4 *x, const float4 *d, int64_t n)
{
    for (int64_t i = flat_first(); i < n; i += flat_step()) {
        float4 a = x[i], b = d[i];
        a.x += b.x, a.y += b.y, a.z += b.z, a.w += b.w;
        x[i] = a;
    }
}

cudaError_t launch_add(struct launch l, float *x, const float *d, int64_t n)
{
    if (n % 4 == 0 && ((uintptr_t)x | (uintptr_t)d) % sizeof(float4) == 0)
        LAUNCH_FLAT(add4, flat_blocks(l, n / 4, THREADS), THREADS, l, (float4 *)x, (const float4 *)d, n / 4);
    else
        LAUNCH_FLAT(add, flat_blocks(l, n, THREADS), THREADS, l, x, d, n);
    return cudaGetLastError();
}

__global__ static void subtract(const float *a, const float *b, float *d, int64_t n)
{
    for (int64_t i = flat_first(); i < n; i += flat_step())
        d[i] = a[i] - b[i];
}

cudaError_t launch_subtract(struct launch l, const float *a, const float *b, float *d, int64_t n)
{
    LAUNCH_FLAT(subtract, flat_blocks(l, n, THREADS), THREADS, l, a, b, d, n);
    return cudaGetLastError();
}

__global__ static void add_bias(float *y, const float *b, int64_t rows, int64_t n)
{
    for (int64_t r = blockIdx.x; r < rows; r += gridDim.x)
        for (int64_t i = threadIdx.x; i < n; i += blockDim.x)
            y[r * n + i] += b[i];
}

cudaError_t launch_add_bias(struct launch l, float *y, const float *b, int64_t rows, int64_t n)
{
    LAUNCH_FLAT(add_bias, row_blocks(l, rows), row_threads(n), l, y, b, rows, n);
    return cudaGetLastError();
}

/* silu(x) * up; with u = e^-|x|, silu is x / (1 + u) from zero up and x u / (1 + u) below. */
__device__ static inline float gated(float x, float up)
{
    float u = exp_f32(0.0f - fabsf(x));
    return (x < 0.0f ? x * u : x) / (1.0f + u) * up;
}

__global__ static void swiglu(const float *gu, float *y, int64_t rows, int64_t n)
{
    for (int64_t r = blockIdx.x; r < rows; r += gridDim.x)
        for (int64_t i = threadIdx.x; i < n; i += blockDim.x)
            y[r * n + i] = gated(gu[r * 2 * n + i], gu[r * 2 * n + n + i]);
}

/* The same for four neighbours at a time: n here counts fours. */
__global__ static void swiglu4(const float4 *gu, float4 *y, int64_t rows, int64_t n)
{
    for (int64_t r = blockIdx.x; r < rows; r += gridDim.x)
        for (int64_t i = threadIdx.x; i < n; i += blockDim.x) {
            float4 g = gu[r * 2 * n + i], u = gu[r * 2 * n + n + i];
            y[r * n + i] = make_float4(gated(g.x, u.x), gated(g.y, u.y), gated(g.z, u.z), gated(g.w, u.w));
        }
}

cudaError_t launch_swiglu(struct launch l, const float *gu, float *y, int64_t rows, int64_t n)
{
    if (n % 4 == 0)
        LAUNCH_FLAT(swiglu4, row_blocks(l, rows), row_threads(n / 4), l, (const float4 *)gu, (float4 *)y, rows, n / 4);
    else
        LAUNCH_FLAT(swiglu, row_blocks(l, rows), row_threads(n), l, gu, y, rows, n);
    return cudaGetLastError();
}

/* With g the logistic function and h = 1 - g: silu = a g, silu' = g + a g h. dgu may be gu. */
__global__ static void swiglu_backward(const float *gu, const float *dy, float *dgu, int64_t rows, int64_t n)
{
    for (int64_t r = blockIdx.x; r < rows; r += gridDim.x)
        for (int64_t i = threadIdx.x; i < n; i += blockDim.x) {
            float a = gu[r * 2 * n + i], b = gu[r * 2 * n + n + i], d = dy[r * n + i];
            float u = exp_f32(0.0f - fabsf(a)), large = 1.0f / (1.0f + u), small = u * large;
            float g = a < 0.0f ? small : large, h = a < 0.0f ? large : small, value = a * g;
            dgu[r * 2 * n + i] = d * b * fmaf(value, h, g);
            dgu[r * 2 * n + n + i] = d * value;
        }
}

cudaError_t launch_swiglu_backward(struct launch l, const float *gu, const float *dy, float *dgu, int64_t rows,
                                   int64_t n)
{
    LAUNCH_FLAT(swiglu_backward, row_blocks(l, rows), row_threads(n), l, gu, dy, dgu, rows, n);
    return cudaGetLastError();
}

__global__ static void embed(const void *table, enum plain type, const int32_t *ids, int64_t rows, int64_t h, float *y)
{
    for (int64_t r = blockIdx.x; r < rows; r += gridDim.x)
        for (int64_t i = threadIdx.x; i < h; i += blockDim.x)
            y[r * h + i] = plain_value(table, type, ids[r] * h + i);
}

cudaError_t launch_embed(struct launch l, const void *table, enum plain type, const int32_t *ids, int64_t rows,
                         int64_t h, float *y)
{
    LAUNCH_FLAT(embed, row_blocks(l, rows), row_threads(h), l, table, type, ids, rows, h, y);
    return cudaGetLastError();
}

/* Pairs of channels, i and i + half, of the first `rotated` heads of a row. */
__global__ static void rope(float *qkv, int64_t rows, int64_t heads, int rotated, int half, int64_t window,
                            const float *cosine, const float *sine)
{
    for (int64_t r = blockIdx.x; r < rows; r += gridDim.x) {
        const float *c = cosine + r % window * half, *s = sine + r % window * half;
        for (int pair = threadIdx.x; pair < rotated * half; pair += blockDim.x) {
            int head = pair / half, i = pair % half;
            float *x = qkv + (r * heads + head) * 2 * half, a = x[i], b = x[half + i];
            x[i] = a * c[i] - b * s[i];
            x[half + i] = b * c[i] + a * s[i];
        }
    }
}

cudaError_t launch_rope(struct launch l, float *qkv, int64_t rows, int64_t heads, int64_t rotated, int64_t head_dim,
                        int64_t window, const float *cosine, const float *sine)
{
    int half = (int)(head_dim / 2);
    LAUNCH_FLAT(rope, row_blocks(l, rows), row_threads(rotated * half), l, qkv, rows, heads, (int)rotated, half, window,
                cosine, sine);
    return cudaGetLastError();
}

__global__ static void copy_rows(const float *x, int64_t given, int64_t k, int64_t rows, int64_t stride, int bf16,
                                 void *out)
{
    for (int64_t r = blockIdx.x; r < rows; r += gridDim.x)
        for (int64_t i = threadIdx.x; i < stride; i += blockDim.x)
            store_as(out, r * stride + i, r < given && i < k ? x[r * k + i] : 0.0f, bf16);
}

/* Four at a time where rows have no padding: n fours of x, zeros up to `total`. */
__global__ static void copy_rows4(const float4 *x, int64_t n, int64_t total, int bf16, void *out)
{
    for (int64_t i = flat_first(); i < total; i += flat_step()) {
        float4 v = i < n ? x[i] : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        if (bf16)
            ((ushort4 *)out)[i] = make_ushort4(to_bf16(v.x), to_bf16(v.y), to_bf16(v.z), to_bf16(v.w));
        else
            ((float4 *)out)[i] = v;
    }
}

cudaError_t launch_rows(struct launch l, const float *x, int64_t given, int64_t k, int64_t rows, int64_t stride,
                        int bf16, void *out)
{
    int64_t fours = rows * stride / 4;
    if (k == stride && k % 4 == 0)
        LAUNCH_FLAT(copy_rows4, flat_blocks(l, fours, THREADS), THREADS, l, (const float4 *)x, given * k / 4, fours,
                    bf16, out);
    else
        LAUNCH_FLAT(copy_rows, row_blocks(l, rows), row_threads(stride), l, x, given, k, rows, stride, bf16, out);
    return cudaGetLastError();
}
