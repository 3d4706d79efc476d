/* The transpose of panels: tiles of 32 x 32 through shared memory, so that both sides are read and written by rows. */
#include "kernels/cuda/device.cuh"

#define THREADS 256
#define SIDE 32

/* w rows [n, stride], of which k columns are there, to out [k, out_stride]; zeros past n. */
template <typename T>
__global__ static void __launch_bounds__(THREADS)
    transpose(const T *w, int64_t n, int64_t k, int64_t stride, int64_t out_stride, T *out)
{
    __shared__ T tile[SIDE][SIDE + 1]; /* a column more spreads columns over the banks */
    int64_t first = (int64_t)blockIdx.x * SIDE, row = (int64_t)blockIdx.y * SIDE;
    int x = threadIdx.x % SIDE;
    for (int y = threadIdx.x / SIDE; y < SIDE; y += THREADS / SIDE)
        tile[y][x] = row + y < n && first + x < k ? w[(row + y) * stride + first + x] : (T)0;
    __syncthreads();
    for (int y = threadIdx.x / SIDE; y < SIDE; y += THREADS / SIDE)
        if (first + y < k && row + x < out_stride)
            out[(first + y) * out_stride + row + x] = tile[x][y];
}

cudaError_t launch_transpose(struct launch l, const void *w, int64_t n, int64_t k, int64_t stride, int64_t out_stride,
                             int bf16, void *out)
{
    dim3 grid((unsigned)((k + SIDE - 1) / SIDE), (unsigned)((out_stride + SIDE - 1) / SIDE));
    if (bf16)
        LAUNCH_BLOCKS(transpose<uint16_t>, grid, THREADS, 0, l, (const uint16_t *)w, n, k, stride, out_stride,
                      (uint16_t *)out);
    else
        LAUNCH_BLOCKS(transpose<uint32_t>, grid, THREADS, 0, l, (const uint32_t *)w, n, k, stride, out_stride,
                      (uint32_t *)out);
    return cudaGetLastError();
}
