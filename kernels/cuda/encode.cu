/* Weights to their packed forms, rounded to nearest, with what the rounding left: the bits of kernels/grid.h as
 * blocks_round of nodes/format applies it. A block is either a few columns of a row, for which some lanes of a warp are
 * enough, or a whole row or a tile; over that a block of threads goes twice, and the second time it is in a cache. */
#include "kernels/cuda/grid.cuh"

#define THREADS 256

__device__ static inline uint32_t most_of(uint32_t most, float x)
{
    uint32_t bits = magnitude_bits(x);
    return bits > most ? bits : most;
}

__device__ static inline uint32_t most_of_four(uint32_t most, float4 x)
{
    return most_of(most_of(most_of(most_of(most, x.x), x.y), x.z), x.w);
}

/* What all weights of a block share. */
struct scaled {
    uint32_t scale;
    float step;
    bool empty;
};

template <typename KIND> __device__ static inline struct scaled fit(uint32_t most, float global)
{
    struct scaled s;
    float amax = __uint_as_float(most);
    s.scale = scale_fit<KIND::element, KIND::scale>(amax, global);
    s.step = scale_step<KIND::scale>(s.scale, global);
    s.empty = scale_is_empty<KIND::element, KIND::scale>(amax);
    return s;
}

/* The code of one weight, and what is left of it. */
template <typename KIND> __device__ static inline uint32_t encode_one(float x, struct scaled s, float *left)
{
    uint32_t code = s.empty ? element_zero<KIND::element> : element_code<KIND::element>(x / s.step);
    *left = x - element_value<KIND::element>(code) * s.step;
    return code;
}

/* Four at once, from weight 4 i of the matrix on: the codes are 4 or 2 bytes. */
template <typename KIND>
__device__ static inline void encode_four(float4 x, struct scaled s, int64_t i, void *codes, float *d)
{
    float4 left;
    uint32_t four = encode_one<KIND>(x.x, s, &left.x);
    four |= encode_one<KIND>(x.y, s, &left.y) << KIND::bits;
    four |= encode_one<KIND>(x.z, s, &left.z) << 2 * KIND::bits;
    four |= encode_one<KIND>(x.w, s, &left.w) << 3 * KIND::bits;
    if constexpr (KIND::bits == 8)
        ((uint32_t *)codes)[i] = four;
    else
        ((uint16_t *)codes)[i] = (uint16_t)four;
    ((float4 *)d)[i] = left;
}

/* Blocks of 4 x `lanes` columns; rows are whole blocks, so the matrix is one row of them. */
template <typename KIND>
__global__ static void encode_groups(const float *w, int64_t fours, int lanes, float global, struct coded out, float *d)
{
    typedef typename KIND::word word;
    int lane = threadIdx.x % WARP;
    for (int64_t at = flat_first() - lane; at < fours; at += flat_step()) { /* a warp goes on as a whole */
        int64_t i = at + lane;
        float4 x = i < fours ? ((const float4 *)w)[i] : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        uint32_t most = most_of_four(0, x);
        for (int m = lanes / 2; m > 0; m /= 2) {
            uint32_t other = __shfl_xor_sync(ALL_LANES, most, m);
            most = other > most ? other : most;
        }
        if (i >= fours)
            continue;
        struct scaled s = fit<KIND>(most, global);
        encode_four<KIND>(x, s, i, out.codes, d);
        if (lane % lanes == 0)
            ((word *)out.scales)[i / lanes] = (word)s.scale;
    }
}

/* A region of the matrix that shares one scale. V columns at a time by `width` threads, the others have rows of their
 * own. */
struct region {
    int64_t first_row, end_row, first, end; /* first, end: columns over V */
    int width;
};

template <int V> __device__ static inline uint32_t region_most(const float *w, int64_t k, struct region g)
{
    uint32_t most = 0;
    for (int64_t r = g.first_row + threadIdx.x / g.width; r < g.end_row; r += blockDim.x / g.width)
        for (int64_t i = g.first + threadIdx.x % g.width; i < g.end; i += g.width) {
            if constexpr (V == 4)
                most = most_of_four(most, ((const float4 *)(w + r * k))[i]);
            else
                most = most_of(most, w[r * k + i]);
        }
    return most;
}

/* A block of threads per region; `across` regions lie side by side. */
template <typename KIND, int V>
__global__ static void __launch_bounds__(THREADS)
    encode_regions(const float *w, int64_t across, int64_t columns, int width, struct coded out, float *d)
{
    __shared__ uint32_t room[THREADS / WARP];
    typedef typename KIND::word word;
    int64_t k = out.k, down = blockIdx.x / across, right = blockIdx.x % across, rows = out.grid.rows;
    struct region g = {down * rows, (down + 1) * rows, right * columns / V, (right + 1) * columns / V, width};
    g.end_row = g.end_row < out.n ? g.end_row : out.n;
    g.end = g.end < k / V ? g.end : k / V;
    struct scaled s = fit<KIND>(block_most(region_most<V>(w, k, g), room), 1.0f);
    for (int64_t r = g.first_row + threadIdx.x / g.width; r < g.end_row; r += blockDim.x / g.width)
        for (int64_t i = g.first + threadIdx.x % g.width; i < g.end; i += g.width) {
            if constexpr (V == 4)
                encode_four<KIND>(((const float4 *)(w + r * k))[i], s, r * (k / 4) + i, out.codes, d);
            else
                ((uint8_t *)out.codes)[r * k + i] = (uint8_t)encode_one<KIND>(w[r * k + i], s, d + r * k + i);
        }
    if (threadIdx.x == 0)
        ((word *)out.scales)[blockIdx.x] = (word)s.scale;
}

template <typename KIND, int V>
static cudaError_t encode_by_regions(struct launch l, const float *w, struct coded out, float *d)
{
    int64_t columns = grid_columns(&out.grid, out.k), across = grid_scale_columns(&out.grid, out.k);
    int64_t regions = across * grid_scale_rows(&out.grid, out.n);
    int threads = WARP, width;
    while (threads < THREADS && threads * V < columns * out.grid.rows)
        threads *= 2;
    width = out.grid.rows > 1 ? WARP : threads;
    LAUNCH_BLOCKS((encode_regions<KIND, V>), (unsigned)regions, threads, 0, l, w, across, columns, width, out, d);
    return cudaGetLastError();
}

cudaError_t launch_encode(struct launch l, const float *w, struct coded out, float global, float *d)
{
    if (out.n < 1)
        return cudaSuccess;
    return grid_dispatch(&out.grid, [=](auto kind) {
        typedef decltype(kind) KIND;
        if constexpr (KIND::in_groups) {
            int64_t fours = out.n * (out.k / 4);
            LAUNCH_BLOCKS((encode_groups<KIND>), flat_blocks(l, fours, THREADS), THREADS, 0, l, w, fours,
                          out.grid.columns / 4, global, out, d);
            return cudaGetLastError();
        } else {
            return out.k % 4 == 0 ? encode_by_regions<KIND, 4>(l, w, out, d)
                                  : encode_by_regions<KIND, 1>(l, w, out, d);
        }
    });
}
