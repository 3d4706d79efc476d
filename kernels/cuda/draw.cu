/* Draws at the logits (kernels.h: fisher_draw): a block per row. A thread has eight neighbouring columns of every chunk
 * of 2048, from the first pass to the last. Sums are in f64: of labels, a thread's columns of a chunk, then the tree
 * of block_sum, then the chunks in order; of signs, all of a thread's columns, then the tree. */
#include "kernels/cuda/device.cuh"

#define THREADS 256
#define EACH 8
#define CHUNK (THREADS * EACH)

/* fisher_random of kernels.h */
__device__ static inline uint64_t random_number(uint64_t seed, uint64_t counter)
{
    uint64_t z = seed + (counter + 1) * 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

/* The largest of a row, the same in every thread. NaN is passed over: it shows in the sums. */
__device__ static float row_largest(const float *s, int64_t n, float *room)
{
    float most = -INFINITY;
    for (int64_t i = threadIdx.x; i < n; i += THREADS)
        most = fmaxf(most, s[i]);
    for (int lane = WARP / 2; lane > 0; lane /= 2)
        most = fmaxf(most, __shfl_xor_sync(ALL_LANES, most, lane));
    if (threadIdx.x % WARP == 0)
        room[threadIdx.x / WARP] = most;
    __syncthreads(); /* and all of the row has been read */
    most = room[0];
    for (int w = 1; w < THREADS / WARP; w++)
        most = fmaxf(most, room[w]);
    return most;
}

/* The sum of this thread's columns of the chunk at `begin`. */
__device__ static double own_sum(const float *s, int64_t n, int64_t begin)
{
    double sum = 0.0;
    for (int64_t i = begin + threadIdx.x * EACH; i < begin + (threadIdx.x + 1) * EACH && i < n; i++)
        sum += (double)s[i];
    return sum;
}

/* The first column of [begin, end) at which the sum from `before` on exceeds `target`; where rounding hides it, the
 * last that is not zero. part [THREADS]: the threads' sums. */
__device__ static int64_t find_column(const float *s, int64_t begin, int64_t end, const double *part, double before,
                                      double target)
{
    int64_t i = begin;
    for (int t = 0; t < THREADS - 1 && !(before + part[t] > target); t++, i += EACH)
        before += part[t];
    for (; i < end; i++) {
        before += (double)s[i];
        if (before > target)
            return i;
    }
    for (i = end - 1; i > 0 && !(s[i] > 0.0f);)
        i--;
    return i;
}

/* p - onehot(y) */
__global__ static void __launch_bounds__(THREADS) draw_label(float *s, int64_t n, const uint64_t *seeds)
{
    __shared__ float largest[THREADS / WARP];
    __shared__ double room[THREADS / WARP], part[THREADS];
    __shared__ int64_t label;
    uint64_t seed = seeds[blockIdx.x];
    s += blockIdx.x * n;
    float most = row_largest(s, n, largest);
    double total = 0.0, before = 0.0;
    for (int64_t begin = 0; begin < n; begin += CHUNK) {
        for (int64_t i = begin + threadIdx.x * EACH; i < begin + (threadIdx.x + 1) * EACH && i < n; i++)
            s[i] = exp_f32(s[i] - most);
        total += block_sum(own_sum(s, n, begin), room);
    }
    double target = (double)(random_number(seed, 0) >> 11) * 0x1p-53 * total;
    for (int64_t begin = 0; begin < n; begin += CHUNK) {
        double own = own_sum(s, n, begin), sum = block_sum(own, room);
        bool last = begin + CHUNK >= n;
        if (before + sum > target || last) { /* the same for all */
            part[threadIdx.x] = own;
            __syncthreads();
            if (threadIdx.x == 0)
                label = find_column(s, begin, last ? n : begin + CHUNK, part, before, target);
            __syncthreads();
            break;
        }
        before += sum;
    }
    float scale = seed ? (float)(1.0 / total) : 0.0f;
    for (int64_t begin = 0; begin < n; begin += CHUNK)
        for (int64_t i = begin + threadIdx.x * EACH; i < begin + (threadIdx.x + 1) * EACH && i < n; i++)
            s[i] = !seed ? 0.0f : i == label ? s[i] * scale - 1.0f : s[i] * scale;
}

/* r (t^-1/2 - r t^-3/2 sum r), r = z sqrt(exp(s - m)) and t the sum of exp(s - m): kernels/cpu/draw.c. */
__global__ static void __launch_bounds__(THREADS) draw_signs(float *s, int64_t n, const uint64_t *seeds)
{
    __shared__ float largest[THREADS / WARP];
    __shared__ double room[THREADS / WARP];
    uint64_t seed = seeds[blockIdx.x];
    s += blockIdx.x * n;
    float most = row_largest(s, n, largest);
    double total = 0.0, roots = 0.0;
    for (int64_t first = threadIdx.x * EACH; first < n; first += CHUNK) {
        uint64_t bits = random_number(seed, (uint64_t)first / 64) >> first % 64; /* eight columns are of one number */
        for (int64_t i = first; i < first + EACH && i < n; i++, bits >>= 1) {
            float p = exp_f32(s[i] - most), r = sqrtf(p);
            s[i] = bits & 1u ? -r : r;
            total += (double)p;
            roots += (double)s[i];
        }
    }
    total = block_sum(total, room);
    roots = block_sum(roots, room);
    double scale = 1.0 / sqrt(total);
    float one = (float)scale, all = (float)(roots / total * scale);
    for (int64_t first = threadIdx.x * EACH; first < n; first += CHUNK)
        for (int64_t i = first; i < first + EACH && i < n; i++)
            s[i] = seed ? s[i] * (one - s[i] * all) : 0.0f;
}

cudaError_t launch_draw(struct launch l, float *s, int64_t rows, int64_t n, int signs, const uint64_t *seeds)
{
    if (rows == 0 || n == 0)
        return cudaSuccess;
    if (signs)
        LAUNCH_BLOCKS(draw_signs, (unsigned)rows, THREADS, 0, l, s, n, seeds);
    else
        LAUNCH_BLOCKS(draw_label, (unsigned)rows, THREADS, 0, l, s, n, seeds);
    return cudaGetLastError();
}
