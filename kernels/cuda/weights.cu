/* Weights between their packed forms and what the products read. The f32 value of a weight, and the codes of an encoded
 * one, have the bits of nodes/format (export-formats 2.1 and 2.3). */
#include "kernels/cuda/device.cuh"

#define THREADS 256
#define BLOCK 16

__global__ static void unpack_plain(const void *w, enum plain type, int64_t total, int64_t k, int64_t stride, int bf16,
                                    void *panels)
{
    for (int64_t i = flat_first(); i < total; i += flat_step()) {
        int64_t row = i / stride, column = i % stride;
        float x = 0.0f;
        if (column < k) {
            if (type == PLAIN_F32)
                x = ((const float *)w)[row * k + column];
            else if (type == PLAIN_BF16)
                x = from_bf16(((const uint16_t *)w)[row * k + column]);
            else
                x = from_f16(((const uint16_t *)w)[row * k + column]);
        }
        store_as(panels, i, x, bf16);
    }
}

cudaError_t launch_unpack_plain(struct launch l, const void *w, enum plain type, int64_t n, int64_t k, int64_t stride,
                                int bf16, void *panels)
{
    LAUNCH_FLAT(unpack_plain, flat_blocks(l, n * stride, THREADS), THREADS, l, w, type, n * stride, k, stride, bf16,
                panels);
    return cudaGetLastError();
}

__global__ static void unpack_fp8(const uint8_t *code, const float *scale, int64_t total, int64_t k, int64_t stride,
                                  int bf16, void *panels)
{
    for (int64_t i = flat_first(); i < total; i += flat_step()) {
        int64_t row = i / stride, column = i % stride;
        store_as(panels, i, column < k ? e4m3_value(code[row * k + column]) * scale[row] : 0.0f, bf16);
    }
}

cudaError_t launch_unpack_fp8(struct launch l, const uint8_t *code, const float *scale, int64_t n, int64_t k,
                              int64_t stride, int bf16, void *panels)
{
    LAUNCH_FLAT(unpack_fp8, flat_blocks(l, n * stride, THREADS), THREADS, l, code, scale, n * stride, k, stride, bf16,
                panels);
    return cudaGetLastError();
}

/* A thread takes the two codes of a byte. k is a multiple of 16, and so is the stride. */
__global__ static void unpack_nvfp4(const uint8_t *packed, const uint8_t *scale, const float *global, int64_t total,
                                    int64_t k, int64_t stride, int bf16, void *panels)
{
    for (int64_t i = flat_first(); i < total; i += flat_step()) {
        int64_t row = i / (stride / 2), pair = i % (stride / 2);
        float low = 0.0f, high = 0.0f;
        if (2 * pair < k) {
            uint32_t byte = packed[row * (k / 2) + pair];
            float step = e4m3_value(scale[row * (k / BLOCK) + pair / (BLOCK / 2)]) / *global;
            low = e2m1_value(byte & 15u) * step;
            high = e2m1_value(byte >> 4) * step;
        }
        if (bf16)
            ((ushort2 *)panels)[i] = make_ushort2(to_bf16(low), to_bf16(high));
        else
            ((float2 *)panels)[i] = make_float2(low, high);
    }
}

cudaError_t launch_unpack_nvfp4(struct launch l, const uint8_t *packed, const uint8_t *scale, const float *global,
                                int64_t n, int64_t k, int64_t stride, int bf16, void *panels)
{
    int64_t total = n * (stride / 2);
    LAUNCH_FLAT(unpack_nvfp4, flat_blocks(l, total, THREADS), THREADS, l, packed, scale, global, total, k, stride, bf16,
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
