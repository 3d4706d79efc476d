/* Weights from their packed forms to panels, which the products read. The f32 value of a weight has the bits of
 * nodes/format's decode (export-formats 2). */
#include "kernels/cuda/grid.cuh"

#define THREADS 256

/* A row of panels, [stride] in f32 or bf16. */
__device__ static inline void *panel(void *panels, int64_t row, int64_t stride, int bf16)
{
    return (char *)panels + row * stride * (bf16 ? 2 : 4);
}

__global__ static void unpack_plain(const void *w, enum plain type, int64_t n, int64_t k, int64_t stride, int bf16,
                                    void *panels)
{
    for (int64_t r = blockIdx.x; r < n; r += gridDim.x)
        for (int64_t i = threadIdx.x; i < stride; i += blockDim.x)
            store_as(panel(panels, r, stride, bf16), i, i < k ? plain_value(w, type, r * k + i) : 0.0f, bf16);
}

/* Without padding, bf16 in bf16 panels is a copy, sixteen bytes at a time. */
__global__ static void copy_sixteens(const uint4 *w, int64_t total, uint4 *panels)
{
    for (int64_t i = flat_first(); i < total; i += flat_step())
        panels[i] = w[i];
}

cudaError_t launch_unpack_plain(struct launch l, const void *w, enum plain type, int64_t n, int64_t k, int64_t stride,
                                int bf16, void *panels)
{
    if (k == stride && bf16 && type == PLAIN_BF16)
        LAUNCH_FLAT(copy_sixteens, flat_blocks(l, n * k / 8, THREADS), THREADS, l, (const uint4 *)w, n * k / 8,
                    (uint4 *)panels);
    else
        LAUNCH_FLAT(unpack_plain, row_blocks(l, n), row_threads(stride), l, w, type, n, k, stride, bf16, panels);
    return cudaGetLastError();
}

/* ---------------------------------------------------------------------------------------------------------- codes */

/* Codes [i, i + V) of a row, the first in the low bits; V codes are 8, 4 or 1 bytes, and i is a multiple of V. */
template <int BITS, int V> __device__ static inline uint64_t load_codes(const uint8_t *row, int64_t i)
{
    if constexpr (BITS * V == 64)
        return ((const uint64_t *)row)[i / V];
    else if constexpr (BITS * V == 32)
        return ((const uint32_t *)row)[i / V];
    else
        return row[i];
}

/* Values [i, i + V) of a row of panels. Eight of bf16 are one store, so that a warp fills 512 bytes in a row. */
template <int V> __device__ static inline void store_values(void *row, int64_t i, const float *x, int bf16)
{
    if constexpr (V == 1) {
        store_as(row, i, x[0], bf16);
    } else if (V == 8 && bf16) {
        uint32_t two[4];
        for (int j = 0; j < 4; j++)
            two[j] = to_bf16(x[2 * j % V]) | (uint32_t)to_bf16(x[(2 * j + 1) % V]) << 16;
        ((uint4 *)row)[i / 8] = make_uint4(two[0], two[1], two[2], two[3]);
    } else {
        for (int j = 0; j < V; j += 4)
            store_four(row, (i + j) / 4, make_float4(x[j], x[j + 1], x[j + 2], x[j + 3]), bf16);
    }
}

/* A thread takes V codes, which are of one block: V is 1, 4 or 8, k a multiple of it, and so is the stride. `down` and
 * `across`: a block's rows and columns as shifts of an index. */
template <typename KIND, int V>
__global__ static void unpack(struct coded w, int down, int across, int64_t stride, int bf16, void *panels)
{
    typedef typename KIND::word word;
    const float global = KIND::scale == SCALE_E4M3 ? *w.global : 1.0f;
    const int64_t columns = (w.k + ((int64_t)1 << across) - 1) >> across;
    for (int64_t r = blockIdx.x; r < w.n; r += gridDim.x) {
        const uint8_t *row = (const uint8_t *)w.codes + r * w.k * KIND::bits / 8;
        const word *scales = (const word *)w.scales + (r >> down) * columns;
        for (int64_t i = (int64_t)threadIdx.x * V; i < stride; i += (int64_t)blockDim.x * V) {
            float x[V] = {0.0f};
            if (i < w.k) {
                uint64_t codes = load_codes<KIND::bits, V>(row, i);
                float step = scale_step<KIND::scale>(scales[i >> across], global);
                for (int j = 0; j < V; j++)
                    x[j] = element_value<KIND::element>((uint32_t)(codes >> KIND::bits * j)) * step;
            }
            store_values<V>(panel(panels, r, stride, bf16), i, x, bf16);
        }
    }
}

template <typename KIND, int V>
static cudaError_t unpack_by(struct launch l, struct coded w, int64_t stride, int bf16, void *panels)
{
    LAUNCH_FLAT((unpack<KIND, V>), row_blocks(l, w.n), row_threads(stride / V), l, w, coded_shift(w.grid.rows),
                coded_shift(w.grid.columns), stride, bf16, panels);
    return cudaGetLastError();
}

cudaError_t launch_unpack(struct launch l, struct coded w, int64_t stride, int bf16, void *panels)
{
    return grid_dispatch(&w.grid, [=](auto kind) {
        typedef decltype(kind) KIND;
        if constexpr (!KIND::in_groups) { /* else k is a multiple of 16 */
            if (w.k % 4 != 0)
                return unpack_by<KIND, 1>(l, w, stride, bf16, panels);
            if (w.k % 8 != 0)
                return unpack_by<KIND, 4>(l, w, stride, bf16, panels);
        }
        return unpack_by<KIND, 8>(l, w, stride, bf16, panels);
    });
}
