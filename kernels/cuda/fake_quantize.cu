/* Input activations as the server would quantize them, rounded there and back, with the bits of the CPU's
 * (export-formats 1 and 2). */
#include "kernels/cuda/inputs.cuh"

#define THREADS 256

__global__ static void round_all(const float *x, int64_t n, int bf16, float *y)
{
    for (int64_t i = flat_first(); i < n; i += flat_step())
        y[i] = load_mode(x[i], bf16);
}

cudaError_t launch_round(struct launch l, const float *x, int64_t n, int bf16, float *y)
{
    LAUNCH_FLAT(round_all, flat_blocks(l, n, THREADS), THREADS, l, x, n, bf16, y);
    return cudaGetLastError();
}

/* Rows of whole groups, so that x is one row of them: a lane takes four numbers, and its neighbours the others of their
 * group. */
template <typename INPUT>
__global__ static void groups(const float *x, int64_t fours, float gs, int bf16, float *y)
{
    int lane = threadIdx.x % WARP;
    for (int64_t at = flat_first() - lane; at < fours; at += flat_step()) { /* a warp goes on as a whole */
        int64_t i = at + lane;
        float4 v = i < fours ? load_four(x, i, bf16) : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        const INPUT g = INPUT::of(lanes_most(four_most(v), INPUT::columns / 4), gs);
        if (i < fours)
            ((float4 *)y)[i] = make_float4(g.value(v.x), g.value(v.y), g.value(v.z), g.value(v.w));
    }
}

template <typename INPUT>
static cudaError_t launch_groups(struct launch l, const float *x, int64_t rows, int64_t k, float gs, int bf16, float *y)
{
    int64_t fours = rows * (k / 4);
    if (k % INPUT::columns != 0)
        return cudaErrorInvalidValue;
    LAUNCH_BLOCKS((groups<INPUT>), flat_blocks(l, fours, THREADS), THREADS, 0, l, x, fours, gs, bf16, y);
    return cudaGetLastError();
}

cudaError_t launch_nvfp4_input(struct launch l, const float *x, int64_t rows, int64_t k, float scale, int bf16,
                               float *y)
{
    return launch_groups<nvfp4_input>(l, x, rows, k, scale, bf16, y);
}
cudaError_t launch_mxfp4_input(struct launch l, const float *x, int64_t rows, int64_t k, int bf16, float *y)
{
    return launch_groups<mx_input<ELEMENT_E2M1>>(l, x, rows, k, 1.0f, bf16, y);
}
cudaError_t launch_mxfp8_input(struct launch l, const float *x, int64_t rows, int64_t k, int bf16, float *y)
{
    return launch_groups<mx_input<ELEMENT_E4M3>>(l, x, rows, k, 1.0f, bf16, y);
}

/* A warp per 128 numbers of a row, the last of which may be fewer: no width is too odd. */
__global__ static void __launch_bounds__(THREADS)
    group_of_row(const float *x, int64_t rows, int64_t k, int bf16, float *y)
{
    constexpr int each = fp8_group_input::columns / WARP;
    int lane = threadIdx.x % WARP;
    for (int64_t r = blockIdx.x; r < rows; r += gridDim.x)
        for (int64_t first = threadIdx.x / WARP * fp8_group_input::columns; first < k;
             first += blockDim.x * each) {
            float v[each], most = 0.0f;
            for (int j = 0; j < each; j++) {
                int64_t i = first + j * WARP + lane;
                v[j] = i < k ? load_mode(x[r * k + i], bf16) : 0.0f;
                most = fmaxf(most, fabsf(v[j]));
            }
            const fp8_group_input g = fp8_group_input::of(lanes_most(most, WARP));
            for (int j = 0; j < each; j++) {
                int64_t i = first + j * WARP + lane;
                if (i < k)
                    y[r * k + i] = g.value(v[j]);
            }
        }
}

cudaError_t launch_fp8_group_input(struct launch l, const float *x, int64_t rows, int64_t k, int bf16, float *y)
{
    LAUNCH_BLOCKS(group_of_row, row_blocks(l, rows), row_threads(k / 4), 0, l, x, rows, k, bf16, y);
    return cudaGetLastError();
}

/* A block per row, with one scale. */
template <typename INPUT>
__global__ static void __launch_bounds__(THREADS) whole_row(const float *x, int64_t k, int bf16, float *y)
{
    __shared__ uint32_t room[THREADS / WARP];
    x += blockIdx.x * k;
    y += blockIdx.x * k;
    const INPUT g = INPUT::of(row_most(x, k, bf16, room));
    for (int64_t i = threadIdx.x; i < k; i += blockDim.x)
        y[i] = g.value(load_mode(x[i], bf16));
}

template <typename INPUT>
static cudaError_t launch_whole_rows(struct launch l, const float *x, int64_t rows, int64_t k, int bf16, float *y)
{
    int threads = WARP;
    while (threads < THREADS && threads < k)
        threads *= 2;
    if (rows > 0)
        LAUNCH_BLOCKS((whole_row<INPUT>), (unsigned)rows, threads, 0, l, x, k, bf16, y);
    return cudaGetLastError();
}

cudaError_t launch_fp8_input(struct launch l, const float *x, int64_t rows, int64_t k, int bf16, float *y)
{
    return launch_whole_rows<fp8_token_input>(l, x, rows, k, bf16, y);
}
cudaError_t launch_int8_input(struct launch l, const float *x, int64_t rows, int64_t k, int bf16, float *y)
{
    return launch_whole_rows<int8_token_input>(l, x, rows, k, bf16, y);
}
