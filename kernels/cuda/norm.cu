/* RMS norm, alone and after a residual addition, and its gradient: a block per row, which reads it twice, the
 * second time from cache. */
#include "kernels/cuda/device.cuh"

#define THREADS_MOST 256

/* Four neighbours at a time when `fours`: h is then a multiple of 4 and rows are aligned. The sum of squares is one
 * chain of fused multiply-adds per thread, then the tree of block_sum; which elements a thread has depends on h
 * only. */
__device__ static float add_squares(float *x, const float *d, int64_t h, bool fours)
{
    float sum = 0.0f;
    if (fours) {
        for (int64_t i = threadIdx.x; i < h / 4; i += blockDim.x) {
            float4 v = ((float4 *)x)[i];
            if (d) {
                float4 b = ((const float4 *)d)[i];
                v.x += b.x, v.y += b.y, v.z += b.z, v.w += b.w;
                ((float4 *)x)[i] = v;
            }
            sum = fmaf(v.w, v.w, fmaf(v.z, v.z, fmaf(v.y, v.y, fmaf(v.x, v.x, sum))));
        }
        return sum;
    }
    for (int64_t i = threadIdx.x; i < h; i += blockDim.x) {
        float v = x[i];
        if (d)
            x[i] = v += d[i];
        sum = fmaf(v, v, sum);
    }
    return sum;
}

__global__ static void __launch_bounds__(THREADS_MOST)
    rmsnorm(float *x, const float *d, const float *w, float eps, int64_t h, bool fours, float *y)
{
    __shared__ float room[THREADS_MOST / WARP];
    x += blockIdx.x * h;
    y += blockIdx.x * h;
    float sum = add_squares(x, d ? d + blockIdx.x * h : NULL, h, fours);
    float s = 1.0f / sqrtf(block_sum(sum, room) / (float)h + eps);
    /* Each thread scales the elements that it has read itself, so y may be x. */
    if (fours) {
        for (int64_t i = threadIdx.x; i < h / 4; i += blockDim.x) {
            float4 v = ((const float4 *)x)[i], g = ((const float4 *)w)[i];
            ((float4 *)y)[i] = make_float4(g.x * (v.x * s), g.y * (v.y * s), g.z * (v.z * s), g.w * (v.w * s));
        }
        return;
    }
    for (int64_t i = threadIdx.x; i < h; i += blockDim.x)
        y[i] = w[i] * (x[i] * s);
}

/* Threads of a block that has `wanted` elements, or fours, to share. */
static int norm_threads(int64_t wanted)
{
    int threads = WARP;
    while (threads < THREADS_MOST && threads < wanted)
        threads *= 2;
    return threads;
}

cudaError_t launch_rmsnorm(struct launch l, float *x, const float *d, const float *w, float eps, int64_t rows,
                           int64_t h, float *y)
{
    bool fours = h % 4 == 0;
    if (rows > 0)
        LAUNCH_BLOCKS(rmsnorm, (unsigned)rows, norm_threads(fours ? h / 4 : h), 0, l, x, d, w, eps, h, fours, y);
    return cudaGetLastError();
}

/* dx += s (u - x^ mean(u x^)), u = dy w and x^ = x s. Sums are chains of fused multiply-adds per thread, then trees. */
__global__ static void __launch_bounds__(THREADS_MOST)
    rmsnorm_backward(const float *x, const float *w, float eps, const float *dy, int64_t h, float *dx)
{
    __shared__ float room[THREADS_MOST / WARP];
    float square = 0.0f, dot = 0.0f;
    x += blockIdx.x * h;
    dy += blockIdx.x * h;
    dx += blockIdx.x * h;
    for (int64_t i = threadIdx.x; i < h; i += blockDim.x) {
        square = fmaf(x[i], x[i], square);
        dot = fmaf(dy[i] * w[i], x[i], dot);
    }
    float s = 1.0f / sqrtf(block_sum(square, room) / (float)h + eps);
    float mean = block_sum(dot, room) * s / (float)h;
    for (int64_t i = threadIdx.x; i < h; i += blockDim.x)
        dx[i] += s * (dy[i] * w[i] - x[i] * s * mean);
}

cudaError_t launch_rmsnorm_backward(struct launch l, const float *x, const float *w, float eps, const float *dy,
                                    int64_t rows, int64_t h, float *dx)
{
    if (rows > 0)
        LAUNCH_BLOCKS(rmsnorm_backward, (unsigned)rows, norm_threads(h), 0, l, x, w, eps, dy, h, dx);
    return cudaGetLastError();
}
