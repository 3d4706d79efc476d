#ifndef KERNELS_CPU_LANES_H
#define KERNELS_CPU_LANES_H
/* Sixteen f32 lanes, the one vector that every elementwise kernel is written with. Files that include this header are
 * compiled once per variant, with CPU_VARIANT naming it (plain, avx2, avx512) and CPU_AVX2 or CPU_AVX512 choosing the
 * implementation below: loops over sixteen floats, two 256-bit registers, or one of 512 bits.
 *
 * Every operation here is one correctly rounded IEEE operation per lane (or moves bits), and the horizontal ones have
 * one fixed tree, so a kernel gives the same bits in every variant. Nothing here depends on libm except the plain
 * version's fmaf, which is correctly rounded by definition. */
#include <math.h>
#include <stdint.h>
#include <string.h>

#include "engine/base/dtype.h"

#if defined(CPU_AVX512) || defined(CPU_AVX2)
#include <immintrin.h>
#endif

#define LANES 16
#define LANES_JOIN2(a, b) a##_##b
#define LANES_JOIN(a, b) LANES_JOIN2(a, b)
/* CPU(norm_rms) is norm_rms_avx512 in the library built with CPU_VARIANT=avx512. */
#define CPU(name) LANES_JOIN(name, CPU_VARIANT)

/* LANES_INLINE: everything here must melt into its caller, so that lanes stay in registers. LANES_UNROLL, before a loop
 * of constant length over a register tile: likewise. In the plain version lanes are loops themselves, and insisting
 * would only make sanitized builds take minutes a file. */
#if !defined(CPU_AVX512) && !defined(CPU_AVX2)
#define LANES_INLINE static inline __attribute__((unused))
#define LANES_UNROLL
#elif defined(__clang__)
#define LANES_INLINE static inline __attribute__((always_inline, unused))
#define LANES_UNROLL _Pragma("clang loop unroll(full)")
#else
#define LANES_INLINE static inline __attribute__((always_inline, unused))
#define LANES_UNROLL _Pragma("GCC unroll 16")
#endif

#if defined(CPU_AVX512)

/* A register tile of lanes_tile: rows, and vectors per row. 16 to 24 accumulators of the 32 registers. */
#define LANES_TILE_ROWS 8
#define LANES_TILE_VECTORS 3

struct lanes { __m512 v; };

LANES_INLINE struct lanes lanes_all(float x) { return (struct lanes){_mm512_set1_ps(x)}; }
LANES_INLINE struct lanes lanes_load(const float *p) { return (struct lanes){_mm512_loadu_ps(p)}; }
LANES_INLINE void lanes_store(float *p, struct lanes a) { _mm512_storeu_ps(p, a.v); }
LANES_INLINE struct lanes lanes_load_some(const float *p, int64_t n, float fill)
{
    return (struct lanes){_mm512_mask_loadu_ps(_mm512_set1_ps(fill), (__mmask16)((1u << n) - 1u), p)};
}
LANES_INLINE void lanes_store_some(float *p, struct lanes a, int64_t n)
{
    _mm512_mask_storeu_ps(p, (__mmask16)((1u << n) - 1u), a.v);
}
LANES_INLINE struct lanes lanes_add(struct lanes a, struct lanes b) { return (struct lanes){_mm512_add_ps(a.v, b.v)}; }
LANES_INLINE struct lanes lanes_sub(struct lanes a, struct lanes b) { return (struct lanes){_mm512_sub_ps(a.v, b.v)}; }
LANES_INLINE struct lanes lanes_mul(struct lanes a, struct lanes b) { return (struct lanes){_mm512_mul_ps(a.v, b.v)}; }
LANES_INLINE struct lanes lanes_div(struct lanes a, struct lanes b) { return (struct lanes){_mm512_div_ps(a.v, b.v)}; }
LANES_INLINE struct lanes lanes_fma(struct lanes a, struct lanes b, struct lanes c)
{
    return (struct lanes){_mm512_fmadd_ps(a.v, b.v, c.v)};
}
LANES_INLINE struct lanes lanes_max(struct lanes a, struct lanes b) { return (struct lanes){_mm512_max_ps(a.v, b.v)}; }
LANES_INLINE struct lanes lanes_min(struct lanes a, struct lanes b) { return (struct lanes){_mm512_min_ps(a.v, b.v)}; }
LANES_INLINE struct lanes lanes_if_less(struct lanes a, struct lanes b, struct lanes x, struct lanes y)
{
    return (struct lanes){_mm512_mask_blend_ps(_mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ), y.v, x.v)};
}
LANES_INLINE struct lanes lanes_and(struct lanes a, uint32_t mask)
{
    return (struct lanes){_mm512_castsi512_ps(
        _mm512_and_si512(_mm512_castps_si512(a.v), _mm512_set1_epi32((int32_t)mask)))};
}
LANES_INLINE struct lanes lanes_or(struct lanes a, struct lanes b) { return (struct lanes){_mm512_or_ps(a.v, b.v)}; }
LANES_INLINE struct lanes lanes_sqrt(struct lanes a) { return (struct lanes){_mm512_sqrt_ps(a.v)}; }
LANES_INLINE struct lanes lanes_negate(struct lanes a, uint32_t where)
{
    __m512i u = _mm512_castps_si512(a.v), sign = _mm512_set1_epi32(INT32_MIN);
    return (struct lanes){_mm512_castsi512_ps(_mm512_mask_xor_epi32(u, (__mmask16)where, u, sign))};
}
LANES_INLINE struct lanes lanes_pow2(struct lanes t)
{
    __m512i u = _mm512_slli_epi32(_mm512_castps_si512(t.v), 23);
    return (struct lanes){_mm512_castsi512_ps(_mm512_add_epi32(u, _mm512_set1_epi32(0x3f800000)))};
}
LANES_INLINE struct lanes lanes_bf16(struct lanes a)
{
    __m512i u = _mm512_castps_si512(a.v);
    __m512i odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
    u = _mm512_add_epi32(u, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    return (struct lanes){_mm512_castsi512_ps(_mm512_and_si512(u, _mm512_set1_epi32((int32_t)0xffff0000u)))};
}
/* Halves, for the horizontal operations. */
LANES_INLINE __m256 lanes_low(struct lanes a) { return _mm512_castps512_ps256(a.v); }
LANES_INLINE __m256 lanes_high(struct lanes a) { return _mm512_extractf32x8_ps(a.v, 1); }

#elif defined(CPU_AVX2)

/* Eight accumulators of the sixteen registers. */
#define LANES_TILE_ROWS 4
#define LANES_TILE_VECTORS 1

struct lanes { __m256 a, b; };

LANES_INLINE struct lanes lanes_all(float x) { return (struct lanes){_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
LANES_INLINE struct lanes lanes_load(const float *p)
{
    return (struct lanes){_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)};
}
LANES_INLINE void lanes_store(float *p, struct lanes a)
{
    _mm256_storeu_ps(p, a.a);
    _mm256_storeu_ps(p + 8, a.b);
}
LANES_INLINE struct lanes lanes_load_some(const float *p, int64_t n, float fill)
{
    float t[LANES];
    lanes_store(t, lanes_all(fill));
    memcpy(t, p, (size_t)n * sizeof *t);
    return lanes_load(t);
}
LANES_INLINE void lanes_store_some(float *p, struct lanes a, int64_t n)
{
    float t[LANES];
    lanes_store(t, a);
    memcpy(p, t, (size_t)n * sizeof *t);
}
LANES_INLINE struct lanes lanes_add(struct lanes a, struct lanes b)
{
    return (struct lanes){_mm256_add_ps(a.a, b.a), _mm256_add_ps(a.b, b.b)};
}
LANES_INLINE struct lanes lanes_sub(struct lanes a, struct lanes b)
{
    return (struct lanes){_mm256_sub_ps(a.a, b.a), _mm256_sub_ps(a.b, b.b)};
}
LANES_INLINE struct lanes lanes_mul(struct lanes a, struct lanes b)
{
    return (struct lanes){_mm256_mul_ps(a.a, b.a), _mm256_mul_ps(a.b, b.b)};
}
LANES_INLINE struct lanes lanes_div(struct lanes a, struct lanes b)
{
    return (struct lanes){_mm256_div_ps(a.a, b.a), _mm256_div_ps(a.b, b.b)};
}
LANES_INLINE struct lanes lanes_fma(struct lanes a, struct lanes b, struct lanes c)
{
    return (struct lanes){_mm256_fmadd_ps(a.a, b.a, c.a), _mm256_fmadd_ps(a.b, b.b, c.b)};
}
LANES_INLINE struct lanes lanes_max(struct lanes a, struct lanes b)
{
    return (struct lanes){_mm256_max_ps(a.a, b.a), _mm256_max_ps(a.b, b.b)};
}
LANES_INLINE struct lanes lanes_min(struct lanes a, struct lanes b)
{
    return (struct lanes){_mm256_min_ps(a.a, b.a), _mm256_min_ps(a.b, b.b)};
}
LANES_INLINE struct lanes lanes_if_less(struct lanes a, struct lanes b, struct lanes x, struct lanes y)
{
    return (struct lanes){_mm256_blendv_ps(y.a, x.a, _mm256_cmp_ps(a.a, b.a, _CMP_LT_OQ)),
                          _mm256_blendv_ps(y.b, x.b, _mm256_cmp_ps(a.b, b.b, _CMP_LT_OQ))};
}
LANES_INLINE struct lanes lanes_and(struct lanes a, uint32_t mask)
{
    __m256 m = _mm256_castsi256_ps(_mm256_set1_epi32((int32_t)mask));
    return (struct lanes){_mm256_and_ps(a.a, m), _mm256_and_ps(a.b, m)};
}
LANES_INLINE struct lanes lanes_or(struct lanes a, struct lanes b)
{
    return (struct lanes){_mm256_or_ps(a.a, b.a), _mm256_or_ps(a.b, b.b)};
}
LANES_INLINE struct lanes lanes_sqrt(struct lanes a)
{
    return (struct lanes){_mm256_sqrt_ps(a.a), _mm256_sqrt_ps(a.b)};
}
LANES_INLINE __m256 lanes_half_negate(__m256 a, uint32_t where)
{
    __m256i shift = _mm256_setr_epi32(31, 30, 29, 28, 27, 26, 25, 24); /* bit j of `where` to the sign of lane j */
    __m256i sign = _mm256_sllv_epi32(_mm256_set1_epi32((int32_t)where), shift);
    return _mm256_xor_ps(a, _mm256_and_ps(_mm256_castsi256_ps(sign), _mm256_set1_ps(-0.0f)));
}
LANES_INLINE struct lanes lanes_negate(struct lanes a, uint32_t where)
{
    return (struct lanes){lanes_half_negate(a.a, where), lanes_half_negate(a.b, where >> 8)};
}
LANES_INLINE __m256 lanes_half_pow2(__m256 t)
{
    __m256i u = _mm256_slli_epi32(_mm256_castps_si256(t), 23);
    return _mm256_castsi256_ps(_mm256_add_epi32(u, _mm256_set1_epi32(0x3f800000)));
}
LANES_INLINE struct lanes lanes_pow2(struct lanes t)
{
    return (struct lanes){lanes_half_pow2(t.a), lanes_half_pow2(t.b)};
}
LANES_INLINE __m256 lanes_half_bf16(__m256 a)
{
    __m256i u = _mm256_castps_si256(a);
    __m256i odd = _mm256_and_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(1));
    u = _mm256_add_epi32(u, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    return _mm256_castsi256_ps(_mm256_and_si256(u, _mm256_set1_epi32((int32_t)0xffff0000u)));
}
LANES_INLINE struct lanes lanes_bf16(struct lanes a)
{
    return (struct lanes){lanes_half_bf16(a.a), lanes_half_bf16(a.b)};
}
LANES_INLINE __m256 lanes_low(struct lanes a) { return a.a; }
LANES_INLINE __m256 lanes_high(struct lanes a) { return a.b; }

#else /* plain: the specification of every operation */

#define LANES_TILE_ROWS 4
#define LANES_TILE_VECTORS 1

struct lanes { float f[LANES]; };

/* `x` in every lane. */
LANES_INLINE struct lanes lanes_all(float x)
{
    struct lanes r;
    for (int j = 0; j < LANES; j++)
        r.f[j] = x;
    return r;
}
LANES_INLINE struct lanes lanes_load(const float *p)
{
    struct lanes r;
    memcpy(r.f, p, sizeof r.f);
    return r;
}
LANES_INLINE void lanes_store(float *p, struct lanes a) { memcpy(p, a.f, sizeof a.f); }
/* The first n (0 to 15) from memory, the rest `fill`; nothing past p[n - 1] is read. */
LANES_INLINE struct lanes lanes_load_some(const float *p, int64_t n, float fill)
{
    struct lanes r = lanes_all(fill);
    memcpy(r.f, p, (size_t)n * sizeof *r.f);
    return r;
}
LANES_INLINE void lanes_store_some(float *p, struct lanes a, int64_t n) { memcpy(p, a.f, (size_t)n * sizeof *a.f); }
LANES_INLINE struct lanes lanes_add(struct lanes a, struct lanes b)
{
    for (int j = 0; j < LANES; j++)
        a.f[j] = a.f[j] + b.f[j];
    return a;
}
LANES_INLINE struct lanes lanes_sub(struct lanes a, struct lanes b)
{
    for (int j = 0; j < LANES; j++)
        a.f[j] = a.f[j] - b.f[j];
    return a;
}
LANES_INLINE struct lanes lanes_mul(struct lanes a, struct lanes b)
{
    for (int j = 0; j < LANES; j++)
        a.f[j] = a.f[j] * b.f[j];
    return a;
}
LANES_INLINE struct lanes lanes_div(struct lanes a, struct lanes b)
{
    for (int j = 0; j < LANES; j++)
        a.f[j] = a.f[j] / b.f[j];
    return a;
}
/* a * b + c, rounded once */
LANES_INLINE struct lanes lanes_fma(struct lanes a, struct lanes b, struct lanes c)
{
    for (int j = 0; j < LANES; j++)
        a.f[j] = fmaf(a.f[j], b.f[j], c.f[j]);
    return a;
}
/* The larger; b where either is NaN or both are zeros. */
LANES_INLINE struct lanes lanes_max(struct lanes a, struct lanes b)
{
    for (int j = 0; j < LANES; j++)
        a.f[j] = a.f[j] > b.f[j] ? a.f[j] : b.f[j];
    return a;
}
/* The smaller; b where either is NaN or both are zeros. */
LANES_INLINE struct lanes lanes_min(struct lanes a, struct lanes b)
{
    for (int j = 0; j < LANES; j++)
        a.f[j] = a.f[j] < b.f[j] ? a.f[j] : b.f[j];
    return a;
}
/* x where a < b, else y (also where either is NaN). */
LANES_INLINE struct lanes lanes_if_less(struct lanes a, struct lanes b, struct lanes x, struct lanes y)
{
    for (int j = 0; j < LANES; j++)
        a.f[j] = a.f[j] < b.f[j] ? x.f[j] : y.f[j];
    return a;
}
/* Bits of a under a mask. */
LANES_INLINE struct lanes lanes_and(struct lanes a, uint32_t mask)
{
    for (int j = 0; j < LANES; j++)
        a.f[j] = f32_from_bits(f32_bits(a.f[j]) & mask);
    return a;
}
/* Bits of a or b. */
LANES_INLINE struct lanes lanes_or(struct lanes a, struct lanes b)
{
    for (int j = 0; j < LANES; j++)
        a.f[j] = f32_from_bits(f32_bits(a.f[j]) | f32_bits(b.f[j]));
    return a;
}
LANES_INLINE struct lanes lanes_sqrt(struct lanes a)
{
    for (int j = 0; j < LANES; j++)
        a.f[j] = sqrtf(a.f[j]);
    return a;
}
/* -a in the lanes j whose bit of `where` is set; the sign alone changes. */
LANES_INLINE struct lanes lanes_negate(struct lanes a, uint32_t where)
{
    for (int j = 0; j < LANES; j++)
        a.f[j] = f32_from_bits(f32_bits(a.f[j]) ^ (where >> j & 1u) << 31);
    return a;
}
/* 2^n where t = n + 1.5 * 2^23 and -127 < n < 128: n is in the low bits of t. */
LANES_INLINE struct lanes lanes_pow2(struct lanes t)
{
    for (int j = 0; j < LANES; j++)
        t.f[j] = f32_from_bits((f32_bits(t.f[j]) << 23) + 0x3f800000u);
    return t;
}
/* Rounded to bf16, to nearest and ties to even; finite values. */
LANES_INLINE struct lanes lanes_bf16(struct lanes a)
{
    for (int j = 0; j < LANES; j++) {
        uint32_t u = f32_bits(a.f[j]);
        a.f[j] = f32_from_bits((u + 0x7fffu + ((u >> 16) & 1u)) & 0xffff0000u);
    }
    return a;
}

#endif

/* -- horizontal: lane j with j + 8, then j + 4, j + 2, j + 1 ------------------------------------------------------- */
#if defined(CPU_AVX512) || defined(CPU_AVX2)
LANES_INLINE float lanes_sum(struct lanes a)
{
    __m256 h = _mm256_add_ps(lanes_low(a), lanes_high(a));
    __m128 q = _mm_add_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
    q = _mm_add_ps(q, _mm_movehl_ps(q, q));
    return _mm_cvtss_f32(_mm_add_ss(q, _mm_movehdup_ps(q)));
}
LANES_INLINE float lanes_largest(struct lanes a)
{
    __m256 h = _mm256_max_ps(lanes_low(a), lanes_high(a));
    __m128 q = _mm_max_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
    q = _mm_max_ps(q, _mm_movehl_ps(q, q));
    return _mm_cvtss_f32(_mm_max_ss(q, _mm_movehdup_ps(q)));
}
#else
LANES_INLINE float lanes_sum(struct lanes a)
{
    for (int half = LANES / 2; half > 0; half /= 2)
        for (int j = 0; j < half; j++)
            a.f[j] = a.f[j] + a.f[j + half];
    return a.f[0];
}
LANES_INLINE float lanes_largest(struct lanes a)
{
    for (int half = LANES / 2; half > 0; half /= 2)
        for (int j = 0; j < half; j++)
            a.f[j] = a.f[j] > a.f[j + half] ? a.f[j] : a.f[j + half];
    return a.f[0];
}
#endif

/* -- built from the above, the same in every variant --------------------------------------------------------------- */
LANES_INLINE struct lanes lanes_zero(void) { return lanes_all(0.0f); }
LANES_INLINE struct lanes lanes_abs(struct lanes a) { return lanes_and(a, 0x7fffffffu); }

/* n lanes (1 to 16) of p; a full vector without a mask. */
LANES_INLINE struct lanes lanes_load_upto(const float *p, int64_t n, float fill)
{
    return n >= LANES ? lanes_load(p) : lanes_load_some(p, n, fill);
}
LANES_INLINE void lanes_store_upto(float *p, struct lanes a, int64_t n)
{
    if (n >= LANES)
        lanes_store(p, a);
    else
        lanes_store_some(p, a, n);
}

/* e^x for x <= 88 (above that the result is not defined; NaN gives NaN). Zero below -87.33, where the result would be
 * subnormal; e^0 is exactly 1. Relative error at most 1.2e-7.
 * x = n ln2 + r: n by adding 1.5 * 2^23, which leaves the integer in the low bits; ln2 in two parts so that r is exact
 * to f32; a polynomial of degree 6 on |r| <= ln2/2 (1 + r + r^2 q(r), least largest relative error); 2^n through the
 * exponent field. */
LANES_INLINE struct lanes lanes_exp(struct lanes x)
{
    const struct lanes least = lanes_all(-87.33f), magic = lanes_all(0x1.8p23f);
    struct lanes y = lanes_max(least, x);
    struct lanes t = lanes_fma(y, lanes_all(0x1.715476p+0f), magic);
    struct lanes n = lanes_sub(t, magic);
    struct lanes r = lanes_fma(n, lanes_all(-0x1.62e4p-1f), y);
    r = lanes_fma(n, lanes_all(-0x1.7f7d1cp-20f), r);
    struct lanes p = lanes_all(0x1.6a2352p-10f);
    p = lanes_fma(p, r, lanes_all(0x1.123a6cp-7f));
    p = lanes_fma(p, r, lanes_all(0x1.5558f4p-5f));
    p = lanes_fma(p, r, lanes_all(0x1.555490p-3f));
    p = lanes_fma(p, r, lanes_all(0x1.fffffcp-2f));
    p = lanes_fma(p, r, lanes_all(1.0f));
    p = lanes_fma(p, r, lanes_all(1.0f));
    return lanes_if_less(x, least, lanes_zero(), lanes_mul(p, lanes_pow2(t)));
}

/* acc[r][v] += sum over k < depth of a[r * a_row + k * a_k] * b[k * b_k + v * b_vector + lane], one chain per element
 * over ascending k. `rows`, `vectors`, a_row and a_k are constants where it is called, so that the accumulators live in
 * registers. Of the last vector only `n` (1 to 16) lanes are read. */
LANES_INLINE void lanes_tile(const int rows, const int vectors, int64_t depth, const float *a, const int64_t a_row,
                             const int64_t a_k, const float *b, int64_t b_k, int64_t b_vector, int64_t n,
                             struct lanes acc[LANES_TILE_ROWS][LANES_TILE_VECTORS])
{
    for (int64_t k = 0; k < depth; k++) {
        struct lanes w[LANES_TILE_VECTORS];
        LANES_UNROLL
        for (int v = 0; v < vectors; v++) {
            const float *p = b + k * b_k + v * b_vector;
            w[v] = v + 1 < vectors ? lanes_load(p) : lanes_load_upto(p, n, 0.0f);
        }
        LANES_UNROLL
        for (int r = 0; r < rows; r++) {
            struct lanes x = lanes_all(a[r * a_row + k * a_k]);
            LANES_UNROLL
            for (int v = 0; v < vectors; v++)
                acc[r][v] = lanes_fma(x, w[v], acc[r][v]);
        }
    }
}

#endif
