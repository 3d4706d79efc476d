/* What products in the hardware's own formats read and what is left to do with their sums. The codes of an input are
 * those that fake_quantize.cu rounds it to. */
#include "kernels/cuda/inputs.cuh"
#include "kernels/cuda/scales.h"

#define THREADS 256

/* A block per row, with one scale. */
template <typename INPUT>
__global__ static void __launch_bounds__(THREADS)
    row_codes(const float *x, int64_t given, int64_t k, int64_t stride, int bf16, uint8_t *codes, float *scales)
{
    __shared__ uint32_t room[THREADS / WARP];
    int64_t row = blockIdx.x;
    x += row * k;
    codes += row * stride;
    if (row >= given)
        k = 0;
    const INPUT g = INPUT::of(row_most(x, k, bf16, room));
    for (int64_t i = threadIdx.x; i < stride; i += blockDim.x)
        codes[i] = (uint8_t)g.code(i < k ? load_mode(x[i], bf16) : 0.0f);
    if (threadIdx.x == 0)
        scales[row] = g.scale();
}

cudaError_t launch_fp8_codes(struct launch l, const float *x, int64_t given, int64_t k, int64_t rows, int64_t stride,
                             int bf16, uint8_t *codes, float *scales)
{
    LAUNCH_BLOCKS((row_codes<fp8_token_input>), (unsigned)rows, THREADS, 0, l, x, given, k, stride, bf16, codes,
                  scales);
    return cudaGetLastError();
}
cudaError_t launch_int8_codes(struct launch l, const float *x, int64_t given, int64_t k, int64_t rows, int64_t stride,
                              int bf16, uint8_t *codes, float *scales)
{
    LAUNCH_BLOCKS((row_codes<int8_token_input>), (unsigned)rows, THREADS, 0, l, x, given, k, stride, bf16, codes,
                  scales);
    return cudaGetLastError();
}

/* A warp per 128 columns. */
__global__ static void __launch_bounds__(THREADS)
    group_codes(const float *x, int64_t given, int64_t k, int64_t rows, int64_t stride, int bf16, uint8_t *codes,
                float *scales)
{
    constexpr int each = fp8_group_input::columns / WARP;
    int lane = threadIdx.x % WARP;
    for (int64_t r = blockIdx.x; r < rows; r += gridDim.x)
        for (int64_t group = threadIdx.x / WARP; group < stride / fp8_group_input::columns;
             group += blockDim.x / WARP) {
            float v[each], most = 0.0f;
            for (int j = 0; j < each; j++) {
                int64_t i = group * fp8_group_input::columns + j * WARP + lane;
                v[j] = r < given && i < k ? load_mode(x[r * k + i], bf16) : 0.0f;
                most = fmaxf(most, fabsf(v[j]));
            }
            const fp8_group_input g = fp8_group_input::of(lanes_most(most, WARP));
            for (int j = 0; j < each; j++)
                codes[r * stride + group * fp8_group_input::columns + j * WARP + lane] = (uint8_t)g.code(v[j]);
            if (lane == 0)
                scales[group * rows + r] = g.scale();
        }
}

cudaError_t launch_fp8_group_codes(struct launch l, const float *x, int64_t given, int64_t k, int64_t rows,
                                   int64_t stride, int bf16, uint8_t *codes, float *scales)
{
    LAUNCH_BLOCKS(group_codes, row_blocks(l, rows), row_threads(stride / 4), 0, l, x, given, k, rows, stride, bf16,
                  codes, scales);
    return cudaGetLastError();
}

/* Four codes of each lane, and of the lanes of a block one scale; those are included that only fill a tile. `columns`:
 * scales of a row, whole tiles of them. A row of x is whole blocks, and so is one of codes. */
template <typename INPUT>
__global__ static void __launch_bounds__(THREADS)
    block_codes(const float *x, int64_t given, int64_t k, int64_t rows, int64_t stride, int64_t columns, float gs,
                int bf16, uint8_t *codes, uint8_t *scales)
{
    constexpr int lanes = INPUT::columns / 4;
    int lane = threadIdx.x % WARP;
    for (int64_t r = blockIdx.x; r < scale_rows(rows); r += gridDim.x)
        for (int64_t at = threadIdx.x - lane; at < columns * lanes; at += blockDim.x) { /* a warp goes on as a whole */
            int64_t i = at + lane;
            bool there = r < given && 4 * i < k;
            float4 v = there ? load_four(x + r * k, i, bf16) : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
            bool finite = is_finite(v.x) && is_finite(v.y) && is_finite(v.z) && is_finite(v.w);
            finite = lanes_most(finite ? 0.0f : 1.0f, lanes) == 0.0f;
            const INPUT g = INPUT::of(lanes_most(four_most(v), lanes), gs);
            uint32_t four = g.code(v.x) | g.code(v.y) << INPUT::bits | g.code(v.z) << 2 * INPUT::bits |
                            g.code(v.w) << 3 * INPUT::bits;
            if (r < rows && 4 * i < stride) {
                if (INPUT::bits == 8)
                    ((uint32_t *)codes)[r * (stride / 4) + i] = four;
                else
                    ((uint16_t *)codes)[r * (stride / 4) + i] = (uint16_t)four;
            }
            if (lane % lanes == 0 && i < columns * lanes)
                scales[scale_offset(r, i / lanes, columns)] = g.scale(finite);
        }
}

template <typename INPUT>
static cudaError_t launch_block_codes(struct launch l, const float *x, int64_t given, int64_t k, int64_t rows,
                                      int64_t stride, float gs, int bf16, uint8_t *codes, uint8_t *scales)
{
    int64_t columns = scale_columns(stride / INPUT::columns);
    LAUNCH_BLOCKS((block_codes<INPUT>), row_blocks(l, scale_rows(rows)), row_threads(stride / 4), 0, l, x, given, k,
                  rows, stride, columns, gs, bf16, codes, scales);
    return cudaGetLastError();
}

cudaError_t launch_mxfp8_codes(struct launch l, const float *x, int64_t given, int64_t k, int64_t rows, int64_t stride,
                               int bf16, uint8_t *codes, uint8_t *scales)
{
    return launch_block_codes<mx_input<ELEMENT_E4M3>>(l, x, given, k, rows, stride, 1.0f, bf16, codes, scales);
}
cudaError_t launch_nvfp4_codes(struct launch l, const float *x, int64_t given, int64_t k, int64_t rows, int64_t stride,
                               float global, int bf16, uint8_t *codes, uint8_t *scales)
{
    return launch_block_codes<nvfp4_input>(l, x, given, k, rows, stride, global, bf16, codes, scales);
}

/* ------------------------------------------------------------------------------------------------ scales of weights */

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

__global__ static void spread_scales(const float *scales, int64_t n, int64_t groups, float *out, int64_t stride)
{
    for (int64_t group = blockIdx.x; group < groups; group += gridDim.x)
        for (int64_t r = threadIdx.x; r < n; r += blockDim.x)
            out[group * stride + r] = scales[r / 128 * groups + group];
}

cudaError_t launch_spread_scales(struct launch l, const float *scales, int64_t n, int64_t groups, float *out,
                                 int64_t stride)
{
    LAUNCH_FLAT(spread_scales, row_blocks(l, groups), row_threads(n), l, scales, n, groups, out, stride);
    return cudaGetLastError();
}

/* ------------------------------------------------------------------------------------------------------------- sums */

/* A row of blocks per row. The row's factor comes first: a product of the two factors alone might underflow. */
template <typename SUM>
__global__ static void scale_sums(const SUM *sums, int64_t n, int64_t stride, const float *of_row,
                                  const float *of_column, float *y)
{
    float factor = of_row[blockIdx.y];
    sums += blockIdx.y * stride;
    y += blockIdx.y * n;
    for (int64_t i = flat_first(); i < n; i += flat_step())
        y[i] = (float)sums[i] * factor * of_column[i];
}

cudaError_t launch_scale_sums(struct launch l, const void *sums, int whole, int64_t rows, int64_t n, int64_t stride,
                              const float *of_row, const float *of_column, float *y)
{
    const dim3 grid(flat_blocks(l, n, THREADS), (unsigned)rows);
    if (whole)
        LAUNCH_FLAT(scale_sums<int32_t>, grid, THREADS, l, (const int32_t *)sums, n, stride, of_row, of_column, y);
    else
        LAUNCH_FLAT(scale_sums<float>, grid, THREADS, l, (const float *)sums, n, stride, of_row, of_column, y);
    return cudaGetLastError();
}
