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
#include "kernels/cuda/device.cuh"

#define THREADS 256
#define TILE 64
#define STRIDE (TILE + 4) /* floats; 4 keeps rows aligned and spreads them over the banks */

struct attention {
    const float *qkv;
    float *out;
    int64_t width, out_width; /* floats per row */
    int heads, kv_heads, d, window;
    float scale;
};

/* rows x TILE floats of one head's channels [c, c + TILE), zeros past the head, from row `first`, and past `end`. */
__device__ static void load_tile(const float *head, int64_t width, int first, int end, int c, int d, float *out,
                                 int stride)
{
    if (d % 4 == 0) { /* rows of qkv are aligned to 16 bytes then */
        for (int i = threadIdx.x; i < TILE * TILE / 4; i += THREADS) {
            int row = i / (TILE / 4), channel = i % (TILE / 4) * 4;
            bool in = first + row < end && c + channel < d;
            *(float4 *)(out + row * stride + channel) =
                in ? *(const float4 *)(head + (first + row) * width + c + channel)
                   : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        }
        return;
    }
    for (int i = threadIdx.x; i < TILE * TILE; i += THREADS) {
        int row = i / TILE, channel = i % TILE;
        bool in = first + row < end && c + channel < d;
        out[row * stride + channel] = in ? head[(first + row) * width + c + channel] : 0.0f;
    }
}

/* s[r][j] += q[4 ty + r] . k[tx + 16 j] over TILE channels. */
__device__ static inline void add_scores(const float *q, int q_stride, const float *k, int tx, float (*s)[4])
{
    for (int c = 0; c < TILE; c += 4) {
        float4 x[4], y[4];
#pragma unroll
        for (int r = 0; r < 4; r++) {
            x[r] = *(const float4 *)(q + r * q_stride + c);
            y[r] = *(const float4 *)(k + (tx + 16 * r) * STRIDE + c);
        }
#pragma unroll
        for (int r = 0; r < 4; r++)
#pragma unroll
            for (int j = 0; j < 4; j++)
                s[r][j] = fmaf(x[r].w, y[j].w, fmaf(x[r].z, y[j].z, fmaf(x[r].y, y[j].y, fmaf(x[r].x, y[j].x,
                                                                                           s[r][j]))));
    }
}

/* o[r] += p[4 ty + r] v over the tile's keys, for four channels. */
__device__ static inline void add_values(const float *p, const float *v, float (*o)[4])
{
    for (int k = 0; k < TILE; k += 4) {
        float4 x[4];
#pragma unroll
        for (int r = 0; r < 4; r++)
            x[r] = *(const float4 *)(p + r * STRIDE + k);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            float4 y = *(const float4 *)(v + (k + i) * STRIDE);
#pragma unroll
            for (int r = 0; r < 4; r++) {
                float w = i == 0 ? x[r].x : i == 1 ? x[r].y : i == 2 ? x[r].z : x[r].w;
                o[r][0] = fmaf(w, y.x, o[r][0]), o[r][1] = fmaf(w, y.y, o[r][1]);
                o[r][2] = fmaf(w, y.z, o[r][2]), o[r][3] = fmaf(w, y.w, o[r][3]);
            }
        }
    }
}

/* Turns the scores into exp(s - m) and updates m and sum; fade[r] is what older output is worth. The sixteen threads of
 * a row are neighbours in a warp. */
__device__ static inline void softmax(float (*s)[4], int tx, int row, int key, int window, float scale, float *m,
                                      float *sum, float *fade)
{
#pragma unroll
    for (int r = 0; r < 4; r++) {
        int last = row + r < window ? row + r : window - 1;
        float most = m[r], total = 0.0f;
#pragma unroll
        for (int j = 0; j < 4; j++) {
            s[r][j] = key + tx + 16 * j <= last ? s[r][j] * scale : -INFINITY;
            most = fmaxf(most, s[r][j]);
        }
#pragma unroll
        for (int lane = 8; lane > 0; lane /= 2)
            most = fmaxf(most, __shfl_xor_sync(ALL_LANES, most, lane));
        fade[r] = exp_f32(m[r] - most);
        m[r] = most;
#pragma unroll
        for (int j = 0; j < 4; j++)
            total += s[r][j] = exp_f32(s[r][j] - most);
#pragma unroll
        for (int lane = 8; lane > 0; lane /= 2)
            total += __shfl_xor_sync(ALL_LANES, total, lane);
        sum[r] = sum[r] * fade[r] + total;
    }
}

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
