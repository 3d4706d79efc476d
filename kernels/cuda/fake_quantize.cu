/* Input activations as the server would quantize them, rounded there and back, with the bits of the CPU's
 * (export-formats 1.1, 1.2, 2.1, 2.3). */
#include "kernels/cuda/device.cuh"

#define THREADS 256
#define BLOCK 16

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

/* A thread per block of 16: bs = E4M3((gs * max|x|) / 6); r = gs / bs; y = (E2M1(x * r) * bs) / gs. */
__global__ static void nvfp4_input(const float *x, int64_t blocks, float gs, int bf16, float *y)
{
    for (int64_t b = flat_first(); b < blocks; b += flat_step()) {
        float v[BLOCK], most = 0.0f;
        for (int i = 0; i < BLOCK; i += 4) {
            float4 four = ((const float4 *)(x + b * BLOCK))[i / 4];
            v[i] = load_mode(four.x, bf16), v[i + 1] = load_mode(four.y, bf16);
            v[i + 2] = load_mode(four.z, bf16), v[i + 3] = load_mode(four.w, bf16);
        }
        for (int i = 0; i < BLOCK; i++)
            most = fmaxf(most, fabsf(v[i])); /* a NaN is kept by its own element below */
        float bs = round_e4m3(gs * most / 6.0f), r = gs / bs;
        for (int i = 0; i < BLOCK; i++) {
            float back = round_e2m1(v[i] * r) * bs / gs;
            v[i] = nan_unless_finite(v[i], 0.0f < bs ? back : 0.0f);
        }
        for (int i = 0; i < BLOCK; i += 4)
            ((float4 *)(y + b * BLOCK))[i / 4] = make_float4(v[i], v[i + 1], v[i + 2], v[i + 3]);
    }
}

cudaError_t launch_nvfp4_input(struct launch l, const float *x, int64_t rows, int64_t k, float scale, int bf16,
                               float *y)
{
    int64_t blocks = rows * (k / BLOCK);
    LAUNCH_FLAT(nvfp4_input, flat_blocks(l, blocks, THREADS), THREADS, l, x, blocks, scale, bf16, y);
    return cudaGetLastError();
}

/* A block per row: s = max(max|x| / 448, 1 / (448 * 512)); y = E4M3(x / s) * s */
__global__ static void __launch_bounds__(THREADS) fp8_input(const float *x, int64_t k, int bf16, float *y)
{
    __shared__ uint32_t room[THREADS / WARP];
    x += blockIdx.x * k;
    y += blockIdx.x * k;
    float s = fp8_input_scale(x, k, bf16, room);
    for (int64_t i = threadIdx.x; i < k; i += blockDim.x) {
        float v = load_mode(x[i], bf16);
        y[i] = nan_unless_finite(v, round_e4m3(v / s) * s);
    }
}

cudaError_t launch_fp8_input(struct launch l, const float *x, int64_t rows, int64_t k, int bf16, float *y)
{
    int threads = WARP;
    while (threads < THREADS && threads < k)
        threads *= 2;
    if (rows > 0)
        LAUNCH_BLOCKS(fp8_input, (unsigned)rows, threads, 0, l, x, k, bf16, y);
    return cudaGetLastError();
}
