/* RMS norm, alone and after a residual addition: a block per row, which reads it twice, the second time from cache. */
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

cudaError_t launch_rmsnorm(struct launch l, float *x, const float *d, const float *w, float eps, int64_t rows,
                           int64_t h, float *y)
{
    bool fours = h % 4 == 0;
    int64_t wanted = fours ? h / 4 : h;
    int threads = WARP;
    while (threads < THREADS_MOST && threads < wanted)
        threads *= 2;
    if (rows > 0)
        LAUNCH_BLOCKS(rmsnorm, (unsigned)rows, threads, 0, l, x, d, w, eps, h, fours, y);
    return cudaGetLastError();
}
