/* Kernels that compute each element on its own, with the bits of kernels/cpu. All are bound by memory: neighbouring
 * threads take neighbouring elements. */
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

__global__ static void add_bias(float *y, const float *b, int64_t total, int64_t n)
{
    for (int64_t i = flat_first(); i < total; i += flat_step())
        y[i] += b[i % n];
}

cudaError_t launch_add_bias(struct launch l, float *y, const float *b, int64_t rows, int64_t n)
{
    LAUNCH_FLAT(add_bias, flat_blocks(l, rows * n, THREADS), THREADS, l, y, b, rows * n, n);
    return cudaGetLastError();
}

/* silu(x) * up; with u = e^-|x|, silu is x / (1 + u) from zero up and x u / (1 + u) below. */
__device__ static inline float gated(float x, float up)
{
    float u = exp_f32(0.0f - fabsf(x));
    return (x < 0.0f ? x * u : x) / (1.0f + u) * up;
}

__global__ static void swiglu(const float *gu, float *y, int64_t total, int64_t n)
{
    for (int64_t i = flat_first(); i < total; i += flat_step()) {
        const float *gate = gu + i / n * 2 * n + i % n;
        y[i] = gated(gate[0], gate[n]);
    }
}

/* The same for four neighbours at a time: n here counts fours. */
__global__ static void swiglu4(const float4 *gu, float4 *y, int64_t total, int64_t n)
{
    for (int64_t i = flat_first(); i < total; i += flat_step()) {
        const float4 *gate = gu + i / n * 2 * n + i % n;
        float4 g = gate[0], u = gate[n];
        y[i] = make_float4(gated(g.x, u.x), gated(g.y, u.y), gated(g.z, u.z), gated(g.w, u.w));
    }
}

cudaError_t launch_swiglu(struct launch l, const float *gu, float *y, int64_t rows, int64_t n)
{
    int64_t total = rows * n;
    if (n % 4 == 0)
        LAUNCH_FLAT(swiglu4, flat_blocks(l, total / 4, THREADS), THREADS, l, (const float4 *)gu, (float4 *)y, total / 4,
                    n / 4);
    else
        LAUNCH_FLAT(swiglu, flat_blocks(l, total, THREADS), THREADS, l, gu, y, total, n);
    return cudaGetLastError();
}

__device__ static inline float plain_value(const void *p, enum plain type, int64_t i)
{
    if (type == PLAIN_F32)
        return ((const float *)p)[i];
    uint16_t half = ((const uint16_t *)p)[i];
    return type == PLAIN_BF16 ? from_bf16(half) : from_f16(half);
}

__global__ static void embed(const void *table, enum plain type, const int32_t *ids, int64_t total, int64_t h, float *y)
{
    for (int64_t i = flat_first(); i < total; i += flat_step())
        y[i] = plain_value(table, type, ids[i / h] * h + i % h);
}

cudaError_t launch_embed(struct launch l, const void *table, enum plain type, const int32_t *ids, int64_t rows,
                         int64_t h, float *y)
{
    LAUNCH_FLAT(embed, flat_blocks(l, rows * h, THREADS), THREADS, l, table, type, ids, rows * h, h, y);
    return cudaGetLastError();
}

/* One pair of channels, i and i + half, of one of the first `rotated` heads of a row. */
__global__ static void rope(float *qkv, int64_t total, int64_t heads, int64_t rotated, int64_t half, int64_t window,
                            const float *cosine, const float *sine)
{
    for (int64_t at = flat_first(); at < total; at += flat_step()) {
        int64_t i = at % half, head = at / half % rotated, row = at / half / rotated;
        float *x = qkv + (row * heads + head) * 2 * half;
        float a = x[i], b = x[half + i], c = cosine[row % window * half + i], s = sine[row % window * half + i];
        x[i] = a * c - b * s;
        x[half + i] = b * c + a * s;
    }
}

cudaError_t launch_rope(struct launch l, float *qkv, int64_t rows, int64_t heads, int64_t rotated, int64_t head_dim,
                        int64_t window, const float *cosine, const float *sine)
{
    int64_t half = head_dim / 2, total = rows * rotated * half;
    LAUNCH_FLAT(rope, flat_blocks(l, total, THREADS), THREADS, l, qkv, total, heads, rotated, half, window, cosine,
                sine);
    return cudaGetLastError();
}

__global__ static void copy_rows(const float *x, int64_t given, int64_t k, int64_t total, int64_t stride, int bf16,
                                 void *out)
{
    for (int64_t i = flat_first(); i < total; i += flat_step()) {
        int64_t row = i / stride, column = i % stride;
        store_as(out, i, row < given && column < k ? x[row * k + column] : 0.0f, bf16);
    }
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
    int64_t total = rows * stride;
    if (k == stride && k % 4 == 0)
        LAUNCH_FLAT(copy_rows4, flat_blocks(l, total / 4, THREADS), THREADS, l, (const float4 *)x, given * k / 4,
                    total / 4, bf16, out);
    else
        LAUNCH_FLAT(copy_rows, flat_blocks(l, total, THREADS), THREADS, l, x, given, k, total, stride, bf16, out);
    return cudaGetLastError();
}
