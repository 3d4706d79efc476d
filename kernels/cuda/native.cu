/* What products in the hardware's own formats read and what is left to do with their sums. The codes of an input are
 * those that fake_quantize.cu rounds it to. */
#include "kernels/cuda/inputs.cuh"
#include "kernels/cuda/scales.h"

#define THREADS 256
#define BLOCK 16
#define E4M3_NAN 0x7f

__device__ static inline bool is_finite(float x) { return magnitude_bits(x) < 0x7f800000u; }

/* A block per row. What is not finite becomes NaN, and so does its row of the product. */
__global__ static void __launch_bounds__(THREADS)
    fp8_codes(const float *x, int64_t given, int64_t k, int64_t stride, int bf16, uint8_t *codes, float *scales)
{
    __shared__ uint32_t room[THREADS / WARP];
    int64_t row = blockIdx.x;
    x += row * k;
    codes += row * stride;
    if (row >= given)
        k = 0;
    float s = fp8_token_input::of(row_most(x, k, bf16, room)).s;
    for (int64_t i = threadIdx.x; i < stride; i += blockDim.x) {
        float v = i < k ? load_mode(x[i], bf16) : 0.0f;
        codes[i] = is_finite(v) ? e4m3_code(round_e4m3(v / s)) : E4M3_NAN;
    }
    if (threadIdx.x == 0)
        scales[row] = s;
}

cudaError_t launch_fp8_codes(struct launch l, const float *x, int64_t given, int64_t k, int64_t rows, int64_t stride,
                             int bf16, uint8_t *codes, float *scales)
{
    LAUNCH_BLOCKS(fp8_codes, (unsigned)rows, THREADS, 0, l, x, given, k, stride, bf16, codes, scales);
    return cudaGetLastError();
}

/* Sixteen codes, the first in the low bits. E2M1 has no NaN, so a block with a number that is not finite gets NaN for
 * its scale. */
__device__ static uint64_t nvfp4_block(const float *x, float gs, int bf16, uint8_t *scale)
{
    float v[BLOCK], most = 0.0f;
    bool finite = true;
    for (int i = 0; i < BLOCK; i += 4) {
        float4 four = ((const float4 *)x)[i / 4];
        v[i] = load_mode(four.x, bf16), v[i + 1] = load_mode(four.y, bf16);
        v[i + 2] = load_mode(four.z, bf16), v[i + 3] = load_mode(four.w, bf16);
    }
    for (int i = 0; i < BLOCK; i++) {
        most = fmaxf(most, fabsf(v[i]));
        finite = finite && is_finite(v[i]);
    }
    float bs = round_e4m3(gs * most / 6.0f), r = gs / bs;
    uint64_t codes = 0;
    for (int i = 0; i < BLOCK && 0.0f < bs; i++)
        codes |= (uint64_t)e2m1_code(v[i] * r) << 4 * i;
    *scale = finite ? e4m3_code(bs) : E4M3_NAN;
    return codes;
}

/* A thread per scale, those included that only fill a tile. `across`, `stride`, `columns`: blocks per row of x, of
 * codes and of scales. */
__global__ static void nvfp4_codes(const float *x, int64_t given, int64_t across, int64_t rows, int64_t stride,
                                   int64_t total, int64_t columns, float gs, int bf16, uint8_t *codes, uint8_t *scales)
{
    for (int64_t i = flat_first(); i < total; i += flat_step()) {
        int64_t row = i / columns, b = i % columns;
        uint8_t scale = 0;
        uint64_t block = 0;
        if (row < given && b < across)
            block = nvfp4_block(x + (row * across + b) * BLOCK, gs, bf16, &scale);
        if (row < rows && b < stride)
            ((uint64_t *)codes)[row * stride + b] = block;
        scales[scale_offset(row, b, columns)] = scale;
    }
}

cudaError_t launch_nvfp4_codes(struct launch l, const float *x, int64_t given, int64_t k, int64_t rows, int64_t stride,
                               float global, int bf16, uint8_t *codes, uint8_t *scales)
{
    int64_t columns = scale_columns(stride / BLOCK), total = scale_rows(rows) * columns;
    LAUNCH_FLAT(nvfp4_codes, flat_blocks(l, total, THREADS), THREADS, l, x, given, k / BLOCK, rows, stride / BLOCK,
                total, columns, global, bf16, codes, scales);
    return cudaGetLastError();
}

__global__ static void place_scales(const uint8_t *scales, int64_t total, int64_t columns, int64_t first,
                                    int64_t stride, uint8_t *out)
{
    for (int64_t i = flat_first(); i < total; i += flat_step())
        out[scale_offset(first + i / columns, i % columns, stride)] = scales[i];
}

cudaError_t launch_place_scales(struct launch l, const uint8_t *scales, int64_t n, int64_t columns, int64_t first,
                                int64_t stride, uint8_t *out)
{
    LAUNCH_FLAT(place_scales, flat_blocks(l, n * columns, THREADS), THREADS, l, scales, n * columns, columns, first,
                stride, out);
    return cudaGetLastError();
}

/* A row of blocks per row. The row's factor comes first: a product of the two factors alone might underflow. */
__global__ static void scale_sums(const float *sums, int64_t n, int64_t stride, const float *of_row,
                                  const float *of_column, float *y)
{
    float factor = of_row[blockIdx.y];
    sums += blockIdx.y * stride;
    y += blockIdx.y * n;
    for (int64_t i = flat_first(); i < n; i += flat_step())
        y[i] = sums[i] * factor * of_column[i];
}

cudaError_t launch_scale_sums(struct launch l, const float *sums, int64_t rows, int64_t n, int64_t stride,
                              const float *of_row, const float *of_column, float *y)
{
    LAUNCH_FLAT(scale_sums, dim3(flat_blocks(l, n, THREADS), (unsigned)rows), THREADS, l, sums, n, stride, of_row,
                of_column, y);
    return cudaGetLastError();
}
