/* The gradient of causal grouped-query attention (kernels/cpu/attention_backward.c has the formulas), without anything
 * of size window x window in memory. Two kernels, which both compute the probabilities again, tile by tile:
 *
 *     queries   a block is one sequence, one query head and 64 queries. It walks the keys twice: for the softmax's
 *               maximum m and sum, and for dS and dQ. m, 1 / sum and D = dO . O are left for
 *     keys      a block is one sequence, one kv head and 64 keys. It walks the query heads that share the kv head, and
 *               of each the queries from its first key on, and adds up dK and dV.
 *
 * Every sum has one order, so bits depend on nothing but the sequence. (Inputs are finite.) */
#include "kernels/cuda/attention.cuh"

#define TILE_FLOATS (TILE * STRIDE)

struct backward {
    const float *qkv, *out, *dout;
    float *dqkv, *stats; /* stats [heads, rows, 3] */
    int64_t rows, width, out_width; /* floats per row */
    int heads, kv_heads, d, window;
    float scale;
};

/* Rows of one head of one sequence in memory. */
struct rows {
    const float *at;
    int64_t width;
    int end, d; /* of the sequence, and of the head: zeros past them */
};

/* s[r][j] = row `first` + 4 ty + r of a times row `second` + tx + 16 j of b. x and y are shared tiles. */
template <int D>
__device__ static inline void products(struct rows a, int first, struct rows b, int second, float *x, float *y,
                                       float (*s)[4])
{
    int tx = threadIdx.x % 16, ty = threadIdx.x / 16;
    for (int r = 0; r < 4; r++)
        for (int j = 0; j < 4; j++)
            s[r][j] = 0.0f;
#pragma unroll
    for (int c = 0; c < D; c += TILE) {
        __syncthreads(); /* x and y have been used */
        load_tile(a.at, a.width, first, a.end, c, a.d, x, STRIDE);
        load_tile(b.at, b.width, second, b.end, c, b.d, y, STRIDE);
        __syncthreads();
        add_scores(x + ty * 4 * STRIDE, STRIDE, y, tx, s);
    }
}

/* o += w times rows `first` .. first + 63 of a; w and y are shared tiles, and w has just been written. */
template <int D>
__device__ static inline void accumulate(const float *w, struct rows a, int first, float *y, float (*o)[4][4])
{
    int tx = threadIdx.x % 16, ty = threadIdx.x / 16;
#pragma unroll
    for (int c = 0; c < D / TILE; c++) {
        __syncthreads();
        load_tile(a.at, a.width, first, a.end, c * TILE, a.d, y, STRIDE);
        __syncthreads();
        add_values(w + ty * 4 * STRIDE, y + tx * 4, o[c]);
    }
}

/* Rows 4 ty .. of `first` and channels 4 tx .. of every 64. */
template <int D>
__device__ static inline void store_rows(float *at, int64_t width, int first, int end, int d, const float (*o)[4][4])
{
    int tx = threadIdx.x % 16, ty = threadIdx.x / 16;
    for (int c = 0; c < D / TILE; c++)
        for (int r = 0; r < 4; r++)
            for (int i = 0; i < 4; i++) {
                int row = first + ty * 4 + r, channel = c * TILE + tx * 4 + i;
                if (row < end && channel < d)
                    at[row * width + channel] = o[c][r][i];
            }
}

/* dO . O of four rows, by the sixteen neighbours in a warp that share them. */
__device__ static inline void row_dots(struct rows g, struct rows o, int first, float *dot)
{
    int tx = threadIdx.x % 16;
    for (int r = 0; r < 4; r++) {
        float sum = 0.0f;
        for (int c = tx; c < g.d && first + r < g.end; c += 16)
            sum = fmaf(g.at[(first + r) * g.width + c], o.at[(first + r) * o.width + c], sum);
        for (int lane = 8; lane > 0; lane /= 2)
            sum += __shfl_xor_sync(ALL_LANES, sum, lane);
        dot[r] = sum;
    }
}

template <int D> __global__ static void __launch_bounds__(THREADS) queries(struct backward a)
{
    SHARED_FLOATS(shared);
    float *x = shared, *y = x + TILE_FLOATS, *w = y + TILE_FLOATS;
    int tiles = (a.window + TILE - 1) / TILE, tx = threadIdx.x % 16, ty = threadIdx.x / 16;
    int first = (tiles - 1 - (int)blockIdx.x % tiles) * TILE; /* the longest first */
    int64_t start = blockIdx.x / tiles * (int64_t)a.window;
    int head = blockIdx.y, kv = a.heads + head / (a.heads / a.kv_heads), mine = first + ty * 4;
    const float *base = a.qkv + start * a.width;
    int64_t at = start * a.out_width + (int64_t)head * a.d;
    struct rows q = {base + (int64_t)head * a.d, a.width, a.window, a.d};
    struct rows k = {base + (int64_t)kv * a.d, a.width, a.window, a.d};
    struct rows v = {k.at + (int64_t)a.kv_heads * a.d, a.width, a.window, a.d};
    struct rows g = {a.dout + at, a.out_width, a.window, a.d}, out = {a.out + at, a.out_width, a.window, a.d};
    float dq[D / TILE][4][4] = {}, m[4], sum[4] = {}, fade[4], dot[4], s[4][4], dp[4][4];
    for (int r = 0; r < 4; r++)
        m[r] = -INFINITY;
    for (int key = 0; key <= first; key += TILE) {
        products<D>(q, first, k, key, x, y, s);
        softmax(s, tx, mine, key, a.window, a.scale, m, sum, fade);
    }
    row_dots(g, out, mine, dot);
    for (int key = 0; key <= first; key += TILE) {
        products<D>(q, first, k, key, x, y, s);
        products<D>(g, first, v, key, x, y, dp);
        for (int r = 0; r < 4; r++)
            for (int j = 0; j < 4; j++) {
                bool seen = key + tx + 16 * j <= mine + r && mine + r < a.window;
                float p = seen ? exp_f32(s[r][j] * a.scale - m[r]) * (1.0f / sum[r]) : 0.0f;
                w[(ty * 4 + r) * STRIDE + tx + 16 * j] = p * (dp[r][j] - dot[r]) * a.scale;
            }
        accumulate<D>(w, k, key, y, dq);
    }
    store_rows<D>(a.dqkv + start * a.width + (int64_t)head * a.d, a.width, first, a.window, a.d, dq);
    for (int r = 0; r < 4 && tx == 0; r++)
        if (mine + r < a.window) {
            float *stats = a.stats + (head * a.rows + start + mine + r) * 3;
            stats[0] = m[r], stats[1] = 1.0f / sum[r], stats[2] = dot[r];
        }
}

template <int D> __global__ static void __launch_bounds__(THREADS) keys(struct backward a)
{
    SHARED_FLOATS(shared);
    float *x = shared, *y = x + TILE_FLOATS, *p = y + TILE_FLOATS, *ds = p + TILE_FLOATS;
    int tiles = (a.window + TILE - 1) / TILE, tx = threadIdx.x % 16, ty = threadIdx.x / 16;
    int first = (int)blockIdx.x % tiles * TILE; /* the longest first */
    int64_t start = blockIdx.x / tiles * (int64_t)a.window;
    int kv = blockIdx.y, group = a.heads / a.kv_heads, mine = first + ty * 4;
    const float *base = a.qkv + start * a.width;
    struct rows k = {base + (int64_t)(a.heads + kv) * a.d, a.width, a.window, a.d};
    struct rows v = {k.at + (int64_t)a.kv_heads * a.d, a.width, a.window, a.d};
    float dk[D / TILE][4][4] = {}, dv[D / TILE][4][4] = {}, s[4][4], dp[4][4];
    for (int head = kv * group; head < (kv + 1) * group; head++) {
        struct rows q = {base + (int64_t)head * a.d, a.width, a.window, a.d};
        struct rows g = {a.dout + start * a.out_width + (int64_t)head * a.d, a.out_width, a.window, a.d};
        const float *stats = a.stats + (head * a.rows + start) * 3;
        for (int query = first; query < a.window; query += TILE) {
            products<D>(k, first, q, query, x, y, s);
            products<D>(v, first, g, query, x, y, dp);
            for (int j = 0; j < 4; j++) {
                int row = query + tx + 16 * j;
                const float *of = stats + 3 * (row < a.window ? row : a.window - 1);
                for (int r = 0; r < 4; r++) {
                    int to = (ty * 4 + r) * STRIDE + tx + 16 * j;
                    bool seen = mine + r <= row && row < a.window;
                    p[to] = seen ? exp_f32(s[r][j] * a.scale - of[0]) * of[1] : 0.0f;
                    ds[to] = p[to] * (dp[r][j] - of[2]) * a.scale;
                }
            }
            accumulate<D>(p, g, query, y, dv);
            accumulate<D>(ds, q, query, y, dk);
        }
    }
    float *to = a.dqkv + start * a.width + (int64_t)(a.heads + kv) * a.d;
    store_rows<D>(to, a.width, first, a.window, a.d, dk);
    store_rows<D>(to + (int64_t)a.kv_heads * a.d, a.width, first, a.window, a.d, dv);
}

template <int D> static cudaError_t launch_width(struct launch l, struct backward a, unsigned blocks)
{
    const int bytes = 4 * TILE_FLOATS * (int)sizeof(float); /* 68 KiB */
    cudaError_t error =
        cudaFuncSetAttribute((const void *)queries<D>, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
    if (error == cudaSuccess)
        error = cudaFuncSetAttribute((const void *)keys<D>, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
    if (error != cudaSuccess)
        return error;
    LAUNCH_BLOCKS(queries<D>, dim3(blocks, (unsigned)a.heads), THREADS, bytes / 4 * 3, l, a);
    error = cudaGetLastError();
    if (error != cudaSuccess)
        return error;
    LAUNCH_BLOCKS(keys<D>, dim3(blocks, (unsigned)a.kv_heads), THREADS, bytes, l, a);
    return cudaGetLastError();
}

cudaError_t launch_attention_backward(struct launch l, const float *qkv, const float *out, const float *dout,
                                      int64_t rows, int heads, int kv_heads, int head_dim, int window, float *stats,
                                      float *dqkv)
{
    struct backward a = {qkv, out, dout, dqkv, stats, rows, (int64_t)(heads + 2 * kv_heads) * head_dim,
                         (int64_t)heads * head_dim, heads, kv_heads, head_dim, window, 1.0f / sqrtf((float)head_dim)};
    unsigned blocks = (unsigned)(rows / window * ((window + TILE - 1) / TILE));
    if (rows == 0)
        return cudaSuccess;
    if (head_dim <= 64)
        return launch_width<64>(l, a, blocks);
    return head_dim <= 128 ? launch_width<128>(l, a, blocks) : launch_width<256>(l, a, blocks);
}
