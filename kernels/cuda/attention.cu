/* Causal grouped-query attention over packed sequences (model-architectures 1.4), softmax in f32, in the manner of
 * flash attention: nothing of size window x window is in memory.
 *
 * A block is one sequence, one query head and 64 queries. It walks the keys in tiles of 64 from the sequence's start:
 * scores (one chain of fused multiply-adds over the channels, then times head_dim^-1/2), running maximum m and sum of
 * exp(s - m), and the unnormalised output in registers, rescaled by exp(m_old - m_new) before the tile's p v is added.
 * Thread (ty, tx) of 16 x 16 has queries 4 ty .. 4 ty + 3, of the scores keys tx + 16 j, of the output channels
 * 4 tx .. 4 tx + 3 of every 64: so that shared memory is read in fours and without bank conflicts.
 *
 * Tiles are counted from the start of the sequence and a masked key has p = 0 exactly, so a row's bits depend only on
 * the rows before it. (Inputs are finite: 0 times an infinite v of a later row would be NaN.) */
#include "kernels/cuda/attention.cuh"

struct attention {
    const float *qkv;
    float *out;
    int64_t width, out_width; /* floats per row */
    int heads, kv_heads, d, window;
    float scale;
};

template <int D> __global__ static void __launch_bounds__(THREADS) attend(struct attention a)
{
    SHARED_FLOATS(shared);
    const int q_stride = D + 4;
    float *q = shared, *kv = q + TILE * q_stride, *p = kv + TILE * STRIDE;
    int tiles = (a.window + TILE - 1) / TILE, tx = threadIdx.x % 16, ty = threadIdx.x / 16;
    int tile = tiles - 1 - (int)blockIdx.x % tiles; /* the longest first */
    int64_t sequence = blockIdx.x / tiles;
    int head = blockIdx.y, kv_head = head / (a.heads / a.kv_heads), first = tile * TILE;
    const float *rows = a.qkv + sequence * a.window * a.width, *keys = rows + (int64_t)(a.heads + kv_head) * a.d;
    const float *values = keys + (int64_t)a.kv_heads * a.d;
    float o[D / TILE][4][4] = {}, m[4], sum[4] = {}, fade[4];
    for (int r = 0; r < 4; r++)
        m[r] = -INFINITY;
    for (int c = 0; c < D; c += TILE)
        load_tile(rows + (int64_t)head * a.d, a.width, first, a.window, c, a.d, q + c, q_stride);
    for (int key = 0; key <= first; key += TILE) {
        float s[4][4] = {};
#pragma unroll
        for (int c = 0; c < D; c += TILE) {
            __syncthreads(); /* kv has been used */
            load_tile(keys, a.width, key, a.window, c, a.d, kv, STRIDE);
            __syncthreads();
            add_scores(q + ty * 4 * q_stride + c, q_stride, kv, tx, s);
        }
        softmax(s, tx, first + ty * 4, key, a.window, a.scale, m, sum, fade);
#pragma unroll
        for (int r = 0; r < 4; r++)
#pragma unroll
            for (int j = 0; j < 4; j++)
                p[(ty * 4 + r) * STRIDE + tx + 16 * j] = s[r][j];
#pragma unroll
        for (int c = 0; c < D / TILE; c++) {
            __syncthreads();
            load_tile(values, a.width, key, a.window, c * TILE, a.d, kv, STRIDE);
            __syncthreads();
#pragma unroll
            for (int r = 0; r < 4; r++)
#pragma unroll
                for (int i = 0; i < 4; i++)
                    o[c][r][i] *= fade[r];
            add_values(p + ty * 4 * STRIDE, kv + tx * 4, o[c]);
        }
    }
    for (int c = 0; c < D / TILE; c++)
        for (int r = 0; r < 4; r++)
            for (int i = 0; i < 4; i++) {
                int row = first + ty * 4 + r, channel = c * TILE + tx * 4 + i;
                if (row < a.window && channel < a.d)
                    a.out[(sequence * a.window + row) * a.out_width + (int64_t)head * a.d + channel] =
                        o[c][r][i] / sum[r];
            }
}

template <int D> static cudaError_t launch_width(struct launch l, struct attention a, unsigned blocks)
{
    const int bytes = (TILE * (D + 4) + 2 * TILE * STRIDE) * (int)sizeof(float); /* at most 99 KiB */
    cudaError_t error =
        cudaFuncSetAttribute((const void *)attend<D>, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
    if (error != cudaSuccess)
        return error;
    LAUNCH_BLOCKS(attend<D>, dim3(blocks, (unsigned)a.heads), THREADS, bytes, l, a);
    return cudaGetLastError();
}

cudaError_t launch_attention(struct launch l, const float *qkv, int64_t rows, int heads, int kv_heads, int head_dim,
                             int window, float *out)
{
    struct attention a = {qkv, out, (int64_t)(heads + 2 * kv_heads) * head_dim, (int64_t)heads * head_dim,
                          heads, kv_heads, head_dim, window, 1.0f / sqrtf((float)head_dim)};
    unsigned blocks = (unsigned)(rows / window * ((window + TILE - 1) / TILE));
    if (rows == 0)
        return cudaSuccess;
    if (head_dim <= 64)
        return launch_width<64>(l, a, blocks);
    return head_dim <= 128 ? launch_width<128>(l, a, blocks) : launch_width<256>(l, a, blocks);
}
