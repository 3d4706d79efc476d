#ifndef KERNELS_KERNELS_H
#define KERNELS_KERNELS_H
/* The one table of compute kernels, an instance per backend. Every entry takes a queue (the CPU's threads, or a CUDA
 * stream) and tensors that know their device, so that each pass over a model is written once (nodes/model).
 *
 * Notation: T rows (tokens), N output features, K input features, all row-major f32 unless said otherwise.
 * Contract of every entry: outputs never overlap inputs unless said; shapes are checked and a mismatch is ERR_BUG;
 * after a failure the outputs are undefined. **Row invariance**: the bits of a row of the result depend only on that
 * row's inputs and on the weights, never on T, on the row's place in the call, or on the number of threads.
 *
 * fp32 mode (f32 panels): every product is accumulated in one chain of fused multiply-adds over ascending k, so all CPU
 * variants (plain, avx2, avx512) give the same bits. bf16 mode (bf16 panels): x is rounded to bf16 on the way in,
 * products accumulate in f32 in an order that belongs to the variant; `numeric_bf16` names it. */
#include <math.h>

#include "engine/base/tensor.h"
#include "kernels/grid.h"

struct kernels;

/* Where work runs. CPU: the number of threads that one kernel may use. */
struct queue {
    const struct kernels *k;
    int threads;  /* >= 1 */
    int device;   /* TENSOR_HOST, or the accelerator's index */
    bool native;  /* its user wants products in the hardware's own formats where they fit (native_fits) */
    void *stream; /* the backend's own */
};

/* How an input activation is fake-quantized before a product: as the server's kernels do at run time (export-formats
 * 2). Every rule but NVFP4's takes its scales from the row alone. Each operation is one in f32, in the order written;
 * codes are rounded to nearest even and saturate. What is not finite in x is not finite in the result, and makes the
 * other values of its block or row anything. */
enum act_rule {
    ACT_NONE,
    /* Static global scale gs = 2688/amax; per row and 16 values: bs = E4M3((gs * max) / 6), E2M1 codes of
     * x * (gs / bs); the value is (code * bs) / gs. A block whose bs is 0 is zero. */
    ACT_NVFP4,
    /* Per row s = max(max|x| / 448, 1 / (448 * 512)), E4M3 codes of x / s; the value is code * s. */
    ACT_FP8_TOKEN,
    /* The same per row and 128 values (the last ones of a row may be fewer) with s = max(max|x|, 1e-10) / 448 (vLLM,
     * csrc/.../fp8/per_token_group_quant.cu with float scales; where DeepGEMM wants them as powers of two, on
     * Blackwell, the server's are up to twice as large). */
    ACT_FP8_GROUP,
    /* Per row and 32 values s = 2^ceil(log2(max|x| / 6)), E2M1 codes of x / s; the value is code * s. A block is zero
     * whose quotient is at most 2^-127: its scale would be the byte 0, for which the server's kernels multiply by 1
     * (FlashInfer, quantization_utils.cuh: the quotient is rounded up to E8M0; with the reciprocal's product instead of
     * the quotient, which makes no difference for bf16 inputs). */
    ACT_MXFP4,
    ACT_MXFP8, /* the same with E4M3 codes, s = 2^ceil(log2(max|x| / 448)) */
    /* Per row integers -128..127 of x * (127 / max|x|), 0 where x is 0; the value is code * (max|x| / 127), a zero
     * without a sign (vLLM, csrc/.../int8/scaled_quant.cu, dynamic_scaled_int8_quant). */
    ACT_INT8_TOKEN,
    ACT_COUNT
};
/* Columns that share a scale: K must be a multiple, except of ACT_FP8_GROUP's. 0: the whole row. */
static inline int act_block(enum act_rule rule)
{
    return rule == ACT_NVFP4 ? 16 : rule == ACT_MXFP4 || rule == ACT_MXFP8 ? 32 : rule == ACT_FP8_GROUP ? 128 : 0;
}

#define ACT_NVFP4_BLOCK 16

/* Error bounds of products in the hardware's own formats, which it sums with fewer bits than f32 has
 * (native_matmul). */
#define NATIVE_ERROR_FP8 0x1p-10
#define NATIVE_ERROR_FP8_BLOCK 0x1p-10
#define NATIVE_ERROR_NVFP4 0x1p-12
#define NATIVE_ERROR_MXFP8 0x1p-12
#define NATIVE_ERROR_INT8 0x1p-21 /* whole numbers are summed exactly; numbers, the sum and two products are rounded */

/* Attention over one packed activation: row t of `qkv` is [q heads | k heads | v heads], each head `head_dim` wide. */
struct attention_shape {
    int heads, kv_heads, head_dim;
    int window; /* rows per sequence: T is a multiple of it, and no row sees another sequence */
};

/* A draw v at the logits (fisher_draw). What is wanted of it is (v . u)^2, whose mean is the same with both. Its
 * variance over its squared mean is at most 2 with signs; with labels it is the kurtosis of u under p less 1, which a
 * label that is all but sure makes large. */
enum fisher_draw {
    FISHER_LABEL, /* p - onehot(y), y ~ p */
    FISHER_SIGN,  /* sqrt(p) z - p (sqrt(p) . z), z independent fair signs */
};

/* The random numbers of fisher_draw: number `counter` of the stream of `seed`, which is what SplitMix64 (Steele, Lea
 * and Flood, OOPSLA 2014) gives as its counter-th output when it starts from that seed; from 0. */
static inline uint64_t fisher_random(uint64_t seed, uint64_t counter)
{
    uint64_t z = seed + (counter + 1) * 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

/* Per-row running state of the fused KL; row r of every array belongs to token r of the tile. The arrays lie on the
 * queue's device. */
struct kl_state {
    double *max_t, *sum_t; /* teacher: running maximum m and sum of exp(s - m) */
    double *max_c, *sum_c; /* candidate, likewise */
    double *cross;         /* sum of exp(s_t - max_t) * (s_t - s_c) */
    float *best_t, *best_c;
    float *target_t, *target_c; /* logit of the target, set by the tile that holds it; may be NULL with `target` */
    int32_t *arg_t, *arg_c; /* index of the largest logit, lowest index on ties */
    int32_t *target;        /* id of the next token of each row; -1: none; may be NULL */
};

/* A state of `rows` rows as one block of memory, so that it is made on the host (kl_state_init), uploaded, folded into,
 * and downloaded as a whole. The block is aligned for double. */
#define KL_STATE_BYTES(rows) ((size_t)(rows) * (5 * sizeof(double) + 4 * sizeof(float) + 3 * sizeof(int32_t)))
static inline struct kl_state kl_state_at(void *block, int64_t rows)
{
    double *d = (double *)block;
    float *f = (float *)(void *)(d + 5 * rows);
    int32_t *i = (int32_t *)(void *)(f + 4 * rows);
    struct kl_state s;
    s.max_t = d, s.sum_t = d + rows, s.max_c = d + 2 * rows, s.sum_c = d + 3 * rows, s.cross = d + 4 * rows;
    s.best_t = f, s.best_c = f + rows, s.target_t = f + 2 * rows, s.target_c = f + 3 * rows;
    s.arg_t = i, s.arg_c = i + rows, s.target = i + 2 * rows;
    return s;
}

/* Rows [0, n) of a state in host memory before their first tile; targets are the caller's. A target's logit is NaN
 * until its tile is folded in. */
static inline void kl_state_init(struct kl_state *s, int64_t n)
{
    for (int64_t r = 0; r < n; r++) {
        s->max_t[r] = s->max_c[r] = -INFINITY;
        s->sum_t[r] = s->sum_c[r] = s->cross[r] = 0.0;
        s->best_t[r] = s->best_c[r] = -INFINITY;
        s->arg_t[r] = s->arg_c[r] = 0;
        if (s->target)
            s->target_t[r] = s->target_c[r] = NAN;
    }
}

/* Natural logarithm of a finite x >= 1, to 1e-15 of max(1, log x); NaN for any other x. x = 2^n m with m in [2/3, 4/3),
 * and the series of 2 atanh((m - 1) / (m + 1)). Written out so that a KL has the same bits with every libm. */
static inline double kl_log(double x)
{
    union { double f; uint64_t u; } m = {.f = x};
    if (!(x >= 1.0 && x < INFINITY))
        return NAN;
    int n = (int)(m.u >> 52) - 1023;
    m.u = (m.u & 0xfffffffffffffu) | 0x3ff0000000000000u;
    if (m.f >= 4.0 / 3.0) {
        m.f *= 0.5;
        n++;
    }
    double z = (m.f - 1.0) / (m.f + 1.0), series = 0.0; /* |z| <= 1/5 */
    for (int i = 23; i >= 1; i -= 2)
        series = series * (z * z) + 1.0 / i;
    return n * 0x1.62e42fefa39efp-1 + 2.0 * z * series;
}

/* KL(teacher || candidate) of row r in nats, after its last tile: with p = exp(s_t - max_t) / sum_t it is
 * sum p (s_t - s_c) - log-sum-exp(s_t) + log-sum-exp(s_c). It may be a rounding below zero (about 1e-7), is exactly
 * zero when both sides were the same logits, and NaN when a logit was not finite. */
static inline double kl_state_row(const struct kl_state *s, int64_t r)
{
    return s->cross[r] / s->sum_t[r] - (s->max_t[r] + kl_log(s->sum_t[r])) + (s->max_c[r] + kl_log(s->sum_c[r]));
}

/* A matrix [n,k] as its format stores it (grid.h says what the parts are), on a device. */
struct packed_matrix {
    enum weight_code code;
    int64_t n, k;
    struct tensor part[4]; /* those that it has, from the first on */
};

/* The same as a device's hardware multiplies it: the codes as they are stored, and scales in the order in which the
 * device reads them. Made by native_new; the layout is the back end's own. */
struct native_matrix {
    enum weight_code code;
    int64_t n, k;
    struct tensor codes, scales;
    float global; /* CODE_NVFP4: the divisor that all its rows share; 0 before the first native_pack */
};

struct kernels {
    const char *name;         /* "cpu plain", "cpu avx2", "cpu avx512", "cpu amx", "cuda sm_90" */
    const char *numeric_fp32; /* what a result's key says of the fp32 mode, e.g. "fp32 cpu" */
    const char *numeric_bf16; /* e.g. "bf16 cpu fma", "bf16 cpu avx512bf16", "bf16 cpu amx" */
    const char *numeric_native; /* e.g. "native cuda sm_90 x 132, cublaslt 130002" (native_matmul); NULL on the CPU */
    bool on_device;           /* its tensors are not in host memory, and its entries may return before they are done */
    /* What keeps it at full speed with activations near its caches: rows that go through a layer at a time, and the
     * rows and columns of a tile of logits. On a device they decide bits: the library chooses by the number of rows,
     * and a KL is summed tile by tile. */
    int64_t chunk_rows, head_rows, head_columns;

    /* -- memory of the backend ------------------------------------------------------------------------------------ */
    /* A tensor on the queue's device, uninitialised. On failure *out is untouched. */
    bool (*tensor_new)(struct queue *q, struct tensor *out, enum dtype t, int rank, const int64_t *shape,
                       struct err *e);
    /* Frees when owned and clears *t; a zeroed tensor is fine. */
    void (*tensor_free)(struct queue *q, struct tensor *t);
    /* Host memory that a device copies from and to at full speed; ERR_RESOURCE when there is none left. */
    bool (*host_new)(struct queue *q, void **out, size_t bytes, struct err *e);
    void (*host_free)(struct queue *q, void *p); /* NULL is fine */
    /* Before a thread uses a queue that another has made, or after it has used one of another device. A queue has one
     * user at a time. */
    bool (*enter)(struct queue *q, struct err *e);
    /* A second queue on the same device, whose work goes on beside that of `q`: for a thread that brings data. NULL on
     * the CPU. */
    bool (*twin_new)(const struct queue *q, struct queue **out, struct err *e);
    void (*twin_free)(struct queue *twin);
    /* Host to device and back; `bytes` is the whole tensor. `src` may change after the call, unless it is of host_new:
     * then after the next finish or download. */
    bool (*upload)(struct queue *q, struct tensor *dst, const void *src, size_t bytes, struct err *e);
    bool (*download)(struct queue *q, void *dst, const struct tensor *src, size_t bytes, struct err *e);
    /* dst = src on the same device; equal element counts and dtypes, contiguous rows. */
    bool (*copy)(struct queue *q, const struct tensor *src, struct tensor *dst, struct err *e);
    /* Wait until all that was asked of the queue is done; what failed meanwhile is told here (ERR_DEVICE). download
     * waits likewise. */
    bool (*finish)(struct queue *q, struct err *e);
    /* How the library's products of this queue were computed, a line each ("bf16 2048x17408x5120: algorithm 66,
     * ..."), into `out`; for a log. NULL on the CPU. */
    const char *(*products)(struct queue *q, char *out, size_t size);

    /* -- weights -------------------------------------------------------------------------------------------------- */
    /* Make the panels for matmul of an [N,K] f32 weight: `mode` DTYPE_F32 or DTYPE_BF16 (rounds to nearest even). The
     * result owns its memory, has shape {N, K}, dtype `mode` and layout TENSOR_PANELS. */
    bool (*panels_new)(struct queue *q, struct tensor *out, int64_t n, int64_t k, enum dtype mode, struct err *e);
    /* Fill rows [first, first + w->shape[0]) of `panels` from w [n,K] of f32. `first` is a multiple of 16. Rows never
     * filled read as zero on the CPU; on a device they must all be filled. */
    bool (*pack)(struct queue *q, const struct tensor *w, int64_t first, struct tensor *panels, struct err *e);

    /* Decode rows [first, first + w->n) of `panels` from a packed matrix, any first, and encode w [n,k] f32, rounded to
     * nearest, into the parts of `out` (which are there) with d [n,k] = w - decoded: the bits of grid.h. amax is the
     * largest |w| of all that share a global divisor. w is finite. Rows of a matrix can be encoded a few at a time into
     * views of its parts, so that d stays in a cache, with the same bits: as many as share no block with those that
     * follow (a multiple of the grid's rows, 128 with CODE_FP8_BLOCK, or up to the last row). */
    bool (*unpack)(struct queue *q, const struct packed_matrix *w, int64_t first, struct tensor *panels,
                   struct err *e);
    bool (*encode)(struct queue *q, const struct tensor *w, float amax, struct packed_matrix *out, struct tensor *d,
                   struct err *e);

    /* -- products ------------------------------------------------------------------------------------------------- */
    /* y[t][n] = sum_k x[t][k] * w[n][k];  x [T,K], w panels of {N,K}, y [T,N]. */
    bool (*matmul)(struct queue *q, const struct tensor *x, const struct tensor *w, struct tensor *y, struct err *e);
    /* The same for columns [first, first + y->shape[1]) of the product only; first a multiple of 16 (the head, by tiles
     * of the vocabulary). */
    bool (*matmul_part)(struct queue *q, const struct tensor *x, const struct tensor *w, int64_t first,
                        struct tensor *y, struct err *e);

    /* -- products in the hardware's own low-precision formats; all NULL on the CPU --------------------------------- */
    /* Does this device multiply an [n,k] matrix of that code natively with inputs of that rule: FP8 with ACT_FP8_TOKEN
     * from compute capability 8.9, FP8_BLOCK with ACT_FP8_GROUP on 9.0, NVFP4 with ACT_NVFP4 and MXFP8 with ACT_MXFP8
     * from 10.0, INT8 with ACT_INT8_TOKEN? False, too, before the device is opened, where its self-test did not agree
     * (kernels_device_note), and for a shape that the library has no algorithm for. The answer for a table is the same
     * on all its devices once all have been opened. */
    bool (*native_fits)(struct queue *q, enum weight_code code, enum act_rule rule, int64_t n, int64_t k, bool *fits,
                        struct err *e);
    /* Bytes that native_new takes. */
    size_t (*native_bytes)(enum weight_code code, int64_t n, int64_t k);
    /* A matrix whose rows are all zero, and which owns its memory. On failure *out is untouched. */
    bool (*native_new)(struct queue *q, enum weight_code code, int64_t n, int64_t k, struct native_matrix *out,
                       struct err *e);
    void (*native_free)(struct queue *q, struct native_matrix *w); /* a zeroed one is fine; clears it */
    /* Rows [first, first + w->n) of `out` = w; any first. ERR_INPUT when rows of another global scale are there
     * already: the device has one for a whole product. Waits for the queue with CODE_NVFP4. */
    bool (*native_pack)(struct queue *q, const struct packed_matrix *w, int64_t first, struct native_matrix *out,
                        struct err *e);
    /* y[t][n] = sum_k q(x)[t][k] * w[n][k], q the rule that belongs to the code, with the codes of fake_quantize (x
     * rounded to bf16 before in mode DTYPE_BF16); x [T,K], y [T,N] f32. `scale` is the global scale of ACT_NVFP4, 0
     * otherwise. Against the exact sum an element is off by at most NATIVE_ERROR_* of sum_k |q(x) w| for numbers of
     * mixed signs; what is not finite in x makes its row NaN. */
    bool (*native_matmul)(struct queue *q, const struct tensor *x, float scale, enum dtype mode,
                          const struct native_matrix *w, struct tensor *y, struct err *e);

    /* -- second moments, factors and energies --------------------------------------------------------------------- */
    /* h[i][j] += sum_t x[t][i] * x[t][j] for j <= i (the lower triangle; the upper is not touched); x [T,K] f32, h
     * [K,K] f64. Sums over t: one f32 FMA chain within blocks of 256 rows, blocks added in order in f64. */
    bool (*gram)(struct queue *q, const struct tensor *x, struct tensor *h, struct err *e);

    /* In place: the lower triangle of a symmetric positive definite a [K,K] f64 becomes its Cholesky factor L, a = L
     * L^T. What is above the diagonal is not read, and undefined afterwards. Not positive definite is ERR_NUMERIC
     * with the order of the first leading minor that is not. CPU: element (i, j) is a[i][j] less the products
     * L[i][k] L[j][k] in one chain of fused multiply-adds over ascending k < j, divided by L[j][j] (for i = j: its
     * square root), so equal bits in all variants. CUDA: cuSOLVER's, loaded when it is first called; ERR_DEVICE
     * where it is not installed. */
    bool (*cholesky)(struct queue *q, struct tensor *a, struct err *e);

    /* *square += sum of d^2 and, unless y is NULL, *energy += sum of d y, in f64; d, y [n,k] f32. Sums over k (CPU:
     * sixteen, of the columns equal modulo 16, and their tree), then over rows in order. */
    bool (*energy)(struct queue *q, const struct tensor *d, const struct tensor *y, double *square, double *energy,
                   struct err *e);

    /* -- elementwise and attention -------------------------------------------------------------------------------- */
    /* y[t] = table[ids[t]];  table [V,h] f32, bf16 or f16, ids i32 [T], y [T,h] f32. ids are in range. */
    bool (*embed)(struct queue *q, const struct tensor *table, const struct tensor *ids, struct tensor *y,
                  struct err *e);
    /* y = w * (x * rsqrt(mean(x^2) + eps)); w [h] f32; y may be x. */
    bool (*rmsnorm)(struct queue *q, const struct tensor *x, const struct tensor *w, float eps, struct tensor *y,
                    struct err *e);
    /* x += d, then y = rmsnorm(x); fused because both are bound by memory. */
    bool (*add_rmsnorm)(struct queue *q, struct tensor *x, const struct tensor *d, const struct tensor *w, float eps,
                        struct tensor *y, struct err *e);
    /* x += d */
    bool (*add)(struct queue *q, struct tensor *x, const struct tensor *d, struct err *e);
    /* y[t] += b for every row; b [N] f32 (the bias of a linear layer). */
    bool (*add_bias)(struct queue *q, struct tensor *y, const struct tensor *b, struct err *e);
    /* Rotate the q and k heads of `qkv` in place ("rotate half", model-architectures 1.3): row t has position t mod
     * s->window; cosine and sine are [window, head_dim/2] f32. With -sine it is its own transpose, which takes a
     * gradient back: the rotation by the opposite angle, times whatever factor both tables carry. */
    bool (*rope)(struct queue *q, struct tensor *qkv, const struct attention_shape *s, const struct tensor *cosine,
                 const struct tensor *sine, struct err *e);
    /* Causal grouped-query attention per sequence, softmax in f32; out [T, heads*head_dim]. */
    bool (*attention)(struct queue *q, const struct tensor *qkv, const struct attention_shape *s, struct tensor *out,
                      struct err *e);
    /* y[t][i] = silu(gu[t][i]) * gu[t][I + i];  gu [T, 2I] (gate, then up), y [T, I]. */
    bool (*swiglu)(struct queue *q, const struct tensor *gu, struct tensor *y, struct err *e);
    /* y = dequantize(quantize(x)) by `rule`; `scale` is the static global scale of ACT_NVFP4, 0 otherwise. K is a
     * multiple of act_block, except for ACT_FP8_GROUP. y may be x. In bf16 mode x is rounded to bf16 before (mode
     * DTYPE_BF16). */
    bool (*fake_quantize)(struct queue *q, const struct tensor *x, enum act_rule rule, float scale, enum dtype mode,
                          struct tensor *y, struct err *e);
    /* *amax = max(*amax, max|x|); NaN or infinity in x is ERR_NUMERIC naming its row and column. */
    bool (*amax)(struct queue *q, const struct tensor *x, float *amax, struct err *e);

    /* -- the KL of candidate to teacher, by tiles of the vocabulary ---------------------------------------------- */
    /* Fold one tile of logits, teacher s_t and candidate s_c, both [T, B], columns first..first+B of the vocabulary,
     * into rows [0, T) of `state`. f32 partial sums over at most 2048 columns, then f64. The same pointer
     * may be given for both: cross is then exactly 0. Tiles of a row may come in any order, but its bits depend on
     * that order. */
    bool (*kl_tile)(struct queue *q, const struct tensor *s_t, const struct tensor *s_c, int64_t first,
                    struct kl_state *state, struct err *e);

    /* -- backward (model-architectures 13.2) ---------------------------------------------------------------------- */
    /* dx += J^T dy of y = rmsnorm(x): with s = rsqrt(mean(x^2) + eps), x^ = x s and u = dy w it is
     * s (u - x^ mean(u x^)). x, dy, dx [T,h], w [h]. It accumulates, as the gradient of a residual stream does. */
    bool (*rmsnorm_backward)(struct queue *q, const struct tensor *x, const struct tensor *w, float eps,
                             const struct tensor *dy, struct tensor *dx, struct err *e);
    /* dqkv [T, (heads + 2 kv_heads) head_dim] = the gradient at `qkv`, as `attention` read it (after rope), when `dout`
     * [T, heads*head_dim] is that at its output. `out` is what `attention` gave for qkv (a head's dout . out is what
     * normalising the softmax takes off). The probabilities are computed again from qkv. A row's bits depend on its
     * sequence alone. */
    bool (*attention_backward)(struct queue *q, const struct tensor *qkv, const struct attention_shape *s,
                               const struct tensor *out, const struct tensor *dout, struct tensor *dqkv,
                               struct err *e);
    /* dgu [T,2I] = the gradient at gu of y = swiglu(gu), dy [T,I] that at y; dgu may be gu. */
    bool (*swiglu_backward)(struct queue *q, const struct tensor *gu, const struct tensor *dy, struct tensor *dgu,
                            struct err *e);
    /* out, from panels_new(q, out, K, N) in the same mode, = the transpose of panels w {N,K}: matmul(dy, out) is dy W,
     * the gradient at a linear layer's input. Exact. */
    bool (*transpose)(struct queue *q, const struct tensor *w, struct tensor *out, struct err *e);
    /* In place: a row of logits s [T,V] becomes a draw v with E[v] = 0 and E[v v^T] = diag(p) - p p^T, p = softmax(s)
     * (13.1). seeds [T] are in host memory, not of host_new, and may change after the call. Row r takes its random
     * numbers from the stream of seeds[r] (fisher_random), and becomes zero where that is 0. FISHER_LABEL: y is the
     * first column at which p's cumulative sum exceeds the upper 53 bits of number 0, as a fraction. FISHER_SIGN: z_j =
     * -1 where bit j mod 64 of number j / 64 is set. So a row's draw depends on its logits and seed only. p in f32,
     * sums in f64. A logit that is not finite makes its row NaN, but that -infinity has p = 0. */
    bool (*fisher_draw)(struct queue *q, struct tensor *s, enum fisher_draw kind, const uint64_t *seeds,
                        struct err *e);
    /* Of each of the T / window sequences i of a and b [T,N] f32: dot[i] = the sum of a b over its rows and columns,
     * square[i] = that of (a b)^2; f64 [T / window] on the queue's device, overwritten. square may be NULL. Products
     * are exact in f64, and bits depend on the sequence alone. */
    bool (*window_dots)(struct queue *q, const struct tensor *a, const struct tensor *b, int64_t window,
                        struct tensor *dot, struct tensor *square, struct err *e);
    /* d = a - b, all [T,N]; d may be a or b. */
    bool (*subtract)(struct queue *q, const struct tensor *a, const struct tensor *b, struct tensor *d, struct err *e);
};

/* The best CPU table that this machine can run, chosen by CPUID bits. The environment variable SCOUT_CPU (plain, avx2,
 * avx512, avx512bf16, amx) lowers it; a name that is unknown or that the machine lacks is ERR_USAGE. */
const struct kernels *kernels_cpu(struct err *e);
/* The table of that name, or NULL when this build or machine cannot run it. */
const struct kernels *kernels_find(const char *name);
/* All names this build knows, best last; *n is their number. */
const char *const *kernels_names(size_t *n);

#endif
