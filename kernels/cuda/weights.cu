/* Weights between their packed forms and what the products read. The f32 value of a weight, and the codes of an encoded
 * one, have the bits of nodes/format (export-formats 2.1 and 2.3). */
#include "kernels/cuda/device.cuh"

#define THREADS 256
#define BLOCK 16

/* A row of panels, [stride] in f32 or bf16. */
__device__ static inline void *panel(void *panels, int64_t row, int64_t stride, int bf16)
{
    return (char *)panels + row * stride * (bf16 ? 2 : 4);
}

__global__ static void unpack_plain(const void *w, enum plain type, int64_t n, int64_t k, int64_t stride, int bf16,
                                    void *panels)
{
    for (int64_t r = blockIdx.x; r < n; r += gridDim.x)
        for (int64_t i = threadIdx.x; i < stride; i += blockDim.x)
            store_as(panel(panels, r, stride, bf16), i, i < k ? plain_value(w, type, r * k + i) : 0.0f, bf16);
}

/* Without padding, bf16 in bf16 panels is a copy, sixteen bytes at a time. */
__global__ static void copy_sixteens(const uint4 *w, int64_t total, uint4 *panels)
{
    for (int64_t i = flat_first(); i < total; i += flat_step())
        panels[i] = w[i];
}

cudaError_t launch_unpack_plain(struct launch l, const void *w, enum plain type, int64_t n, int64_t k, int64_t stride,
                                int bf16, void *panels)
{
    if (k == stride && bf16 && type == PLAIN_BF16)
        LAUNCH_FLAT(copy_sixteens, flat_blocks(l, n * k / 8, THREADS), THREADS, l, (const uint4 *)w, n * k / 8,
                    (uint4 *)panels);
    else
        LAUNCH_FLAT(unpack_plain, row_blocks(l, n), row_threads(stride), l, w, type, n, k, stride, bf16, panels);
    return cudaGetLastError();
}

__global__ static void unpack_fp8(const uint8_t *code, const float *scale, int64_t n, int64_t k, int64_t stride,
                                  int bf16, void *panels)
{
    for (int64_t r = blockIdx.x; r < n; r += gridDim.x)
        for (int64_t i = threadIdx.x; i < stride; i += blockDim.x)
            store_as(panel(panels, r, stride, bf16), i, i < k ? e4m3_value(code[r * k + i]) * scale[r] : 0.0f, bf16);
}

/* Four codes at a time; k is a multiple of 4. */
__global__ static void unpack_fp8_fours(const uint8_t *code, const float *scale, int64_t n, int64_t k, int64_t stride,
                                        int bf16, void *panels)
{
    for (int64_t r = blockIdx.x; r < n; r += gridDim.x)
        for (int64_t i = threadIdx.x; i < stride / 4; i += blockDim.x) {
            float4 x = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
            float s = scale[r];
            if (4 * i < k) {
                uchar4 c = ((const uchar4 *)(code + r * k))[i];
                x = make_float4(e4m3_value(c.x) * s, e4m3_value(c.y) * s, e4m3_value(c.z) * s, e4m3_value(c.w) * s);
            }
            store_four(panel(panels, r, stride, bf16), i, x, bf16);
        }
}

cudaError_t launch_unpack_fp8(struct launch l, const uint8_t *code, const float *scale, int64_t n, int64_t k,
                              int64_t stride, int bf16, void *panels)
{
    if (k % 4 == 0)
        LAUNCH_FLAT(unpack_fp8_fours, row_blocks(l, n), row_threads(stride / 4), l, code, scale, n, k, stride, bf16,
                    panels);
    else
        LAUNCH_FLAT(unpack_fp8, row_blocks(l, n), row_threads(stride), l, code, scale, n, k, stride, bf16, panels);
    return cudaGetLastError();
}

/* A thread takes the eight codes of four bytes, half a block. k is a multiple of 16, and so is the stride. */
__global__ static void unpack_nvfp4(const uint8_t *packed, const uint8_t *scale, const float *global, int64_t n,
                                    int64_t k, int64_t stride, int bf16, void *panels)
{
    float divisor = *global;
    for (int64_t r = blockIdx.x; r < n; r += gridDim.x)
        for (int64_t i = threadIdx.x; i < stride / 8; i += blockDim.x) {
            uint32_t codes = ((const uint32_t *)(packed + r * (k / 2)))[i];
            float step = e4m3_value(scale[r * (k / BLOCK) + i / 2]) / divisor, x[8];
            for (int j = 0; j < 8; j++)
                x[j] = e2m1_value(codes >> 4 * j & 15u) * step;
            void *row = panel(panels, r, stride, bf16);
            store_four(row, 2 * i, make_float4(x[0], x[1], x[2], x[3]), bf16);
            store_four(row, 2 * i + 1, make_float4(x[4], x[5], x[6], x[7]), bf16);
        }
}

cudaError_t launch_unpack_nvfp4(struct launch l, const uint8_t *packed, const uint8_t *scale, const float *global,
                                int64_t n, int64_t k, int64_t stride, int bf16, void *panels)
{
    if (k != stride)
        return cudaErrorInvalidValue; /* no shape that the format has */
    LAUNCH_FLAT(unpack_nvfp4, row_blocks(l, n), row_threads(stride / 8), l, packed, scale, global, n, k, stride, bf16,
                panels);
    return cudaGetLastError();
}

/* --------------------------------------------------------------------------------------------------------- encoding */

/* A block per row. */
__global__ static void __launch_bounds__(THREADS)
    encode_fp8(const float *w, int64_t k, uint8_t *code, float *scale, float *d)
{
    __shared__ uint32_t room[THREADS / WARP];
    uint32_t most = 0;
    int64_t at = (int64_t)blockIdx.x * k;
    for (int64_t i = threadIdx.x; i < k; i += blockDim.x) {
        uint32_t bits = magnitude_bits(w[at + i]);
        most = bits > most ? bits : most;
    }
    float s = __uint_as_float(block_most(most, room)) / 448.0f;
    bool empty = !(s > 0.0f); /* zeros, or denormals too small to have a scale */
    for (int64_t i = threadIdx.x; i < k; i += blockDim.x) {
        float x = w[at + i], rounded = empty ? 0.0f : round_e4m3(x / s);
        code[at + i] = empty ? 0 : e4m3_code(rounded);
        d[at + i] = x - rounded * (empty ? 1.0f : s);
    }
    if (threadIdx.x == 0)
        scale[blockIdx.x] = empty ? 1.0f : s;
}

cudaError_t launch_encode_fp8(struct launch l, const float *w, int64_t n, int64_t k, uint8_t *code, float *scale,
                              float *d)
{
    if (n > 0)
        LAUNCH_BLOCKS(encode_fp8, (unsigned)n, THREADS, 0, l, w, k, code, scale, d);
    return cudaGetLastError();
}

#define SCALE_ZERO_BLOCK 0x20 /* as nodes/format/nvfp4.c */
#define SCALE_LEAST 0x08

/* A thread per block of 16. */
__global__ static void encode_nvfp4(const float *w, int64_t blocks, float gs, uint8_t *packed, uint8_t *scale, float *d)
{
    for (int64_t b = flat_first(); b < blocks; b += flat_step()) {
        const float *x = w + b * BLOCK;
        uint32_t most = 0;
        for (int i = 0; i < BLOCK; i++) {
            uint32_t bits = magnitude_bits(x[i]);
            most = bits > most ? bits : most;
        }
        uint8_t s = most == 0 ? SCALE_ZERO_BLOCK : e4m3_code(round_e4m3(gs * (__uint_as_float(most) / 6.0f)));
        s = s < SCALE_LEAST ? SCALE_LEAST : s;
        float step = e4m3_value(s) / gs;
        scale[b] = s;
        for (int j = 0; j < BLOCK / 2; j++) {
            uint32_t low = most == 0 ? 0 : e2m1_code(x[2 * j] / step);
            uint32_t high = most == 0 ? 0 : e2m1_code(x[2 * j + 1] / step);
            packed[b * (BLOCK / 2) + j] = (uint8_t)(low | high << 4);
            d[b * BLOCK + 2 * j] = x[2 * j] - e2m1_value(low) * step;
            d[b * BLOCK + 2 * j + 1] = x[2 * j + 1] - e2m1_value(high) * step;
        }
    }
}

cudaError_t launch_encode_nvfp4(struct launch l, const float *w, int64_t n, int64_t k, float global, uint8_t *packed,
                                uint8_t *scale, float *d)
{
    int64_t blocks = n * (k / BLOCK);
    LAUNCH_FLAT(encode_nvfp4, flat_blocks(l, blocks, THREADS), THREADS, l, w, blocks, global, packed, scale, d);
    return cudaGetLastError();
}
