#ifndef KERNELS_CUDA_ATTENTION_CUH
#define KERNELS_CUDA_ATTENTION_CUH
/* What attention and its gradient share: tiles of 64 rows in shared memory, products of them in the registers of
 * 16 x 16 threads, of which (ty, tx) has rows 4 ty .. 4 ty + 3 and columns tx + 16 j, and the softmax of scores. */
#include "kernels/cuda/device.cuh"

#define THREADS 256
#define TILE 64
#define STRIDE (TILE + 4) /* floats; 4 keeps rows aligned and spreads them over the banks */

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

#endif
