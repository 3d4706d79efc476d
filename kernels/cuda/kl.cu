/* One tile of teacher and candidate logits folded into the running KL of its rows: a block per row, columns in chunks
 * of 2048, eight to a thread. Within a chunk the sums of a thread are in f32, everything beyond in f64. */
#include "kernels/cuda/device.cuh"

#define THREADS 256
#define EACH 8
#define CHUNK (THREADS * EACH)
/* Where there is no column: its exp is 0, and finite, so that its difference is 0 and not NaN. */
#define FILL (-1e30f)

/* e^x for x <= 0 in f64, to 1e-16 of its value; 0 below -700: as kernels/cpu/kl.c. */
__device__ static double exp_f64(double x)
{
    if (!(x >= -700.0))
        return x < -700.0 ? 0.0 : x; /* NaN stays */
    double n = (x * 0x1.71547652b82fep+0 + 0x1.8p52) - 0x1.8p52;
    double r = (x - n * 0x1.62e42fee00000p-1) - n * 0x1.a39ef35793c76p-33;
    double p = 1.0;
    for (int i = 14; i >= 1; i--)
        p = 1.0 + p * r / i;
    return p * __longlong_as_double((long long)((uint64_t)((int64_t)n + 1023) << 52));
}

struct peak {
    float value;
    int32_t column;
};

/* The larger value, of equals the first column. NaN is never larger: it shows in the sums. */
__device__ static inline struct peak higher(struct peak a, struct peak b)
{
    return b.value > a.value || (b.value == a.value && b.column < a.column) ? b : a;
}

__device__ static struct peak block_peak(struct peak p, struct peak *room)
{
    for (int lane = WARP / 2; lane > 0; lane /= 2) {
        struct peak other;
        other.value = __shfl_xor_sync(ALL_LANES, p.value, lane);
        other.column = __shfl_xor_sync(ALL_LANES, p.column, lane);
        p = higher(p, other);
    }
    __syncthreads();
    if (threadIdx.x % WARP == 0)
        room[threadIdx.x / WARP] = p;
    __syncthreads();
    p = room[0];
    for (int w = 1; w < THREADS / WARP; w++)
        p = higher(p, room[w]);
    return p;
}

/* One side's running maximum and what hangs on it. All threads hold the same. */
struct side {
    double max, sum;
    float best;
    int32_t arg;
};

/* Takes the chunk's peak; returns what older sums are worth now. */
__device__ static double raise_side(struct side *s, struct peak p)
{
    if (p.value > s->best || (p.value == s->best && p.column < s->arg)) {
        s->best = p.value;
        s->arg = p.column;
    }
    if (!((double)p.value > s->max))
        return 1.0;
    double fade = exp_f64(s->max - (double)p.value); /* 0 from the initial -infinity */
    s->max = (double)p.value;
    s->sum *= fade;
    return fade;
}

__global__ static void __launch_bounds__(THREADS)
    kl(const float *s_t, const float *s_c, int64_t columns, int64_t first, struct kl_arrays state)
{
    __shared__ struct peak peaks[THREADS / WARP];
    __shared__ double room[THREADS / WARP];
    int64_t r = blockIdx.x;
    const float *t = s_t + r * columns, *c = s_c + r * columns;
    struct side teacher = {state.max_t[r], state.sum_t[r], state.best_t[r], state.arg_t[r]};
    struct side candidate = {state.max_c[r], state.sum_c[r], state.best_c[r], state.arg_c[r]};
    double cross = state.cross[r];
    for (int64_t begin = 0; begin < columns; begin += CHUNK) {
        float a[EACH], b[EACH];
        struct peak pt = {-INFINITY, INT32_MAX}, pc = {-INFINITY, INT32_MAX};
        for (int i = 0; i < EACH; i++) {
            int64_t at = begin + i * THREADS + threadIdx.x;
            bool in = at < columns;
            struct peak here_t = {in ? t[at] : FILL, (int32_t)(first + at)};
            struct peak here_c = {in ? c[at] : FILL, (int32_t)(first + at)};
            a[i] = here_t.value;
            b[i] = here_c.value;
            pt = in ? higher(pt, here_t) : pt;
            pc = in ? higher(pc, here_c) : pc;
        }
        cross *= raise_side(&teacher, block_peak(pt, peaks));
        raise_side(&candidate, block_peak(pc, peaks));
        float max_t = (float)teacher.max, max_c = (float)candidate.max, sum_t = 0.0f, sum_c = 0.0f, mixed = 0.0f;
        for (int i = 0; i < EACH; i++) {
            float p = exp_f32(a[i] - max_t);
            sum_t += p;
            sum_c += exp_f32(b[i] - max_c);
            mixed = fmaf(p, a[i] - b[i], mixed);
        }
        teacher.sum += block_sum((double)sum_t, room);
        candidate.sum += block_sum((double)sum_c, room);
        cross += block_sum((double)mixed, room);
    }
    if (threadIdx.x > 0)
        return;
    state.max_t[r] = teacher.max, state.sum_t[r] = teacher.sum;
    state.best_t[r] = teacher.best, state.arg_t[r] = teacher.arg;
    state.max_c[r] = candidate.max, state.sum_c[r] = candidate.sum;
    state.best_c[r] = candidate.best, state.arg_c[r] = candidate.arg;
    state.cross[r] = cross;
    int64_t at = state.target ? state.target[r] - first : -1;
    if (state.target && state.target[r] >= 0 && at >= 0 && at < columns) {
        state.target_t[r] = t[at];
        state.target_c[r] = c[at];
    }
}

cudaError_t launch_kl(struct launch l, const float *s_t, const float *s_c, int64_t rows, int64_t columns, int64_t first,
                      struct kl_arrays state)
{
    if (rows > 0 && columns > 0)
        LAUNCH_BLOCKS(kl, (unsigned)rows, THREADS, 0, l, s_t, s_c, columns, first, state);
    return cudaGetLastError();
}
