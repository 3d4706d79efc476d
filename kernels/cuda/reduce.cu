/* Sums over rows and over columns: the largest magnitude, second moments, energies of weight differences, and products
 * over windows. */
#include "kernels/cuda/device.cuh"

#define THREADS 256

/* A maximum is exact, so the order in which blocks come cannot be seen. */
__global__ static void __launch_bounds__(THREADS) amax(const float *x, int64_t n, uint32_t *bits)
{
    __shared__ uint32_t room[THREADS / WARP];
    uint32_t most = 0;
    for (int64_t i = flat_first(); i < n; i += flat_step()) {
        uint32_t b = magnitude_bits(x[i]);
        most = b > most ? b : most;
    }
    most = block_most(most, room);
    if (threadIdx.x == 0)
        atomicMax(bits, most);
}

cudaError_t launch_amax(struct launch l, const float *x, int64_t n, uint32_t *bits)
{
    LAUNCH_BLOCKS(amax, flat_blocks(l, n, THREADS), THREADS, 0, l, x, n, bits);
    return cudaGetLastError();
}

/* -------------------------------------------------------------------------------------------------- second moments */

#define SIDE 64       /* features of a tile of h: 16 x 16 threads with 4 x 4 elements each */
#define STRIP 16      /* rows of x in shared memory at a time */
#define CHAIN 256     /* rows of x that one f32 chain of multiply-adds runs over, as on the CPU */

/* Features [first, first + SIDE) of `n` rows of x, zeros past k and past n. */
__device__ static void load_strip(const float *x, int64_t n, int64_t k, int64_t first, float (*out)[SIDE])
{
    for (int i = threadIdx.x; i < STRIP * SIDE; i += THREADS) {
        int t = i / SIDE, c = i % SIDE;
        out[t][c] = t < n && first + c < k ? x[t * k + first + c] : 0.0f;
    }
}

__global__ static void __launch_bounds__(THREADS) gram(const float *x, int64_t rows, int64_t k, double *h)
{
    __shared__ float left[STRIP][SIDE], right[STRIP][SIDE];
    int64_t i0 = (int64_t)blockIdx.y * SIDE, j0 = (int64_t)blockIdx.x * SIDE;
    int a = threadIdx.x / 16 * 4, b = threadIdx.x % 16 * 4;
    double sum[4][4] = {};
    float chain[4][4] = {};
    if (j0 > i0)
        return; /* above the diagonal: the whole block leaves */
    for (int r = 0; r < 4; r++)
        for (int c = 0; c < 4; c++)
            if (i0 + a + r < k && j0 + b + c <= i0 + a + r)
                sum[r][c] = h[(i0 + a + r) * k + j0 + b + c];
    for (int64_t t = 0; t < rows; t += STRIP) {
        int64_t n = rows - t < STRIP ? rows - t : STRIP;
        __syncthreads(); /* the last strip has been used */
        load_strip(x + t * k, n, k, i0, left);
        load_strip(x + t * k, n, k, j0, right);
        __syncthreads();
        for (int s = 0; s < (int)n; s++)
            for (int r = 0; r < 4; r++)
                for (int c = 0; c < 4; c++)
                    chain[r][c] = fmaf(left[s][a + r], right[s][b + c], chain[r][c]);
        if ((t + STRIP) % CHAIN != 0 && t + STRIP < rows)
            continue;
        for (int r = 0; r < 4; r++)
            for (int c = 0; c < 4; c++) {
                sum[r][c] += (double)chain[r][c];
                chain[r][c] = 0.0f;
            }
    }
    for (int r = 0; r < 4; r++)
        for (int c = 0; c < 4; c++)
            if (i0 + a + r < k && j0 + b + c <= i0 + a + r)
                h[(i0 + a + r) * k + j0 + b + c] = sum[r][c];
}

cudaError_t launch_gram(struct launch l, const float *x, int64_t rows, int64_t k, double *h)
{
    unsigned side = (unsigned)((k + SIDE - 1) / SIDE);
    LAUNCH_BLOCKS(gram, dim3(side, side), THREADS, 0, l, x, rows, k, h);
    return cudaGetLastError();
}

/* --------------------------------------------------------------------------------------------------------- energies */

__global__ static void __launch_bounds__(THREADS) energy(const float *d, const float *y, int64_t k, double *sums)
{
    __shared__ double room[THREADS / WARP];
    double square = 0.0, weighted = 0.0;
    d += blockIdx.x * k;
    y += blockIdx.x * k;
    for (int64_t i = threadIdx.x; i < k; i += blockDim.x) {
        double v = (double)d[i];
        square += v * v;
        weighted += v * (double)y[i];
    }
    square = block_sum(square, room);
    weighted = block_sum(weighted, room);
    if (threadIdx.x == 0) {
        sums[2 * blockIdx.x] = square;
        sums[2 * blockIdx.x + 1] = weighted;
    }
}

cudaError_t launch_energy(struct launch l, const float *d, const float *y, int64_t rows, int64_t k, double *sums)
{
    if (rows > 0)
        LAUNCH_BLOCKS(energy, (unsigned)rows, THREADS, 0, l, d, y, k, sums);
    return cudaGetLastError();
}

/* ------------------------------------------------------------------------------------------- products over windows */

/* A block is DOT_ROWS rows of a sequence. dots and squares have `blocks` of a sequence one after the other. */
__global__ static void __launch_bounds__(THREADS)
    block_dots(const float *a, const float *b, int64_t n, int64_t window, int64_t blocks, double *dots, double *squares)
{
    __shared__ double room[THREADS / WARP];
    int64_t first = blockIdx.x % blocks * DOT_ROWS, rows = window - first < DOT_ROWS ? window - first : DOT_ROWS;
    double dot = 0.0, square = 0.0;
    a += (blockIdx.x / blocks * window + first) * n;
    b += (blockIdx.x / blocks * window + first) * n;
    for (int64_t i = threadIdx.x; i < rows * n; i += THREADS) {
        double p = (double)a[i] * (double)b[i];
        dot += p;
        square += p * p;
    }
    dot = block_sum(dot, room);
    square = squares ? block_sum(square, room) : 0.0;
    if (threadIdx.x > 0)
        return;
    dots[blockIdx.x] = dot;
    if (squares)
        squares[blockIdx.x] = square;
}

/* The blocks of each sequence in order. */
__global__ static void add_blocks(const double *part, int64_t sequences, int64_t blocks, double *out)
{
    for (int64_t i = flat_first(); i < sequences; i += flat_step()) {
        double sum = part[i * blocks];
        for (int64_t j = 1; j < blocks; j++)
            sum += part[i * blocks + j];
        out[i] = sum;
    }
}

cudaError_t launch_dots(struct launch l, const float *a, const float *b, int64_t sequences, int64_t window, int64_t n,
                        double *part, double *dot, double *square)
{
    int64_t blocks = (window + DOT_ROWS - 1) / DOT_ROWS, all = sequences * blocks;
    if (sequences == 0)
        return cudaSuccess;
    if (blocks == 1) {
        LAUNCH_BLOCKS(block_dots, (unsigned)all, THREADS, 0, l, a, b, n, window, blocks, dot, square);
        return cudaGetLastError();
    }
    LAUNCH_BLOCKS(block_dots, (unsigned)all, THREADS, 0, l, a, b, n, window, blocks, part, square ? part + all : NULL);
    LAUNCH_FLAT(add_blocks, flat_blocks(l, sequences, THREADS), THREADS, l, part, sequences, blocks, dot);
    if (square)
        LAUNCH_FLAT(add_blocks, flat_blocks(l, sequences, THREADS), THREADS, l, part + all, sequences, blocks, square);
    return cudaGetLastError();
}

/* ------------------------------------------------------------------------------------------------ are rows alike? */

__global__ static void repeat(uint4 *x, int64_t rows, int64_t n)
{
    for (int64_t r = 1 + blockIdx.x; r < rows; r += gridDim.x)
        for (int64_t i = threadIdx.x; i < n; i += blockDim.x)
            x[r * n + i] = x[i];
}

cudaError_t launch_repeat(struct launch l, void *x, int64_t rows, int64_t row_bytes)
{
    LAUNCH_FLAT(repeat, row_blocks(l, rows), row_threads(row_bytes / 16), l, (uint4 *)x, rows, row_bytes / 16);
    return cudaGetLastError();
}

__global__ static void differ(const float *y, int64_t rows, int64_t n, uint32_t *differs)
{
    for (int64_t r = 1 + blockIdx.x; r < rows; r += gridDim.x)
        for (int64_t i = threadIdx.x; i < n; i += blockDim.x)
            if (__float_as_uint(y[r * n + i]) != __float_as_uint(y[i]))
                *differs = 1;
}

cudaError_t launch_differ(struct launch l, const float *y, int64_t rows, int64_t n, uint32_t *differs)
{
    LAUNCH_FLAT(differ, row_blocks(l, rows), row_threads(n), l, y, rows, n, differs);
    return cudaGetLastError();
}
