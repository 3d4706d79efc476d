#ifndef KERNELS_CPU_WIDE_H
#define KERNELS_CPU_WIDE_H
/* Sixteen f64 lanes beside those of lanes.h, for sums: equal bits in every variant, since each operation is one rounded
 * operation a lane, and the horizontal one has the tree of lanes_sum. */
#include "kernels/cpu/lanes.h"

#if defined(CPU_AVX512)
struct wide { __m512d low, high; };
LANES_INLINE struct wide wide_load(const float *p)
{
    return (struct wide){_mm512_cvtps_pd(_mm256_loadu_ps(p)), _mm512_cvtps_pd(_mm256_loadu_ps(p + 8))};
}
LANES_INLINE struct wide wide_of(struct lanes a)
{
    return (struct wide){_mm512_cvtps_pd(lanes_low(a)), _mm512_cvtps_pd(lanes_high(a))};
}
LANES_INLINE struct wide wide_add(struct wide a, struct wide b)
{
    return (struct wide){_mm512_add_pd(a.low, b.low), _mm512_add_pd(a.high, b.high)};
}
LANES_INLINE struct wide wide_mul(struct wide a, struct wide b)
{
    return (struct wide){_mm512_mul_pd(a.low, b.low), _mm512_mul_pd(a.high, b.high)};
}
LANES_INLINE struct wide wide_exact(struct wide a, struct wide b, struct wide c)
{
    return (struct wide){_mm512_fmadd_pd(a.low, b.low, c.low), _mm512_fmadd_pd(a.high, b.high, c.high)};
}
LANES_INLINE double wide_sum(struct wide a)
{
    __m512d eight = _mm512_add_pd(a.low, a.high);
    __m256d four = _mm256_add_pd(_mm512_castpd512_pd256(eight), _mm512_extractf64x4_pd(eight, 1));
    __m128d two = _mm_add_pd(_mm256_castpd256_pd128(four), _mm256_extractf128_pd(four, 1));
    return _mm_cvtsd_f64(_mm_add_sd(two, _mm_unpackhi_pd(two, two)));
}
#elif defined(CPU_AVX2)
struct wide { __m256d v[4]; };
LANES_INLINE struct wide wide_load(const float *p)
{
    return (struct wide){{_mm256_cvtps_pd(_mm_loadu_ps(p)), _mm256_cvtps_pd(_mm_loadu_ps(p + 4)),
                          _mm256_cvtps_pd(_mm_loadu_ps(p + 8)), _mm256_cvtps_pd(_mm_loadu_ps(p + 12))}};
}
LANES_INLINE struct wide wide_of(struct lanes a)
{
    return (struct wide){{_mm256_cvtps_pd(_mm256_castps256_ps128(a.a)), _mm256_cvtps_pd(_mm256_extractf128_ps(a.a, 1)),
                          _mm256_cvtps_pd(_mm256_castps256_ps128(a.b)),
                          _mm256_cvtps_pd(_mm256_extractf128_ps(a.b, 1))}};
}
LANES_INLINE struct wide wide_add(struct wide a, struct wide b)
{
    LANES_UNROLL
    for (int i = 0; i < 4; i++)
        a.v[i] = _mm256_add_pd(a.v[i], b.v[i]);
    return a;
}
LANES_INLINE struct wide wide_mul(struct wide a, struct wide b)
{
    LANES_UNROLL
    for (int i = 0; i < 4; i++)
        a.v[i] = _mm256_mul_pd(a.v[i], b.v[i]);
    return a;
}
LANES_INLINE struct wide wide_exact(struct wide a, struct wide b, struct wide c)
{
    LANES_UNROLL
    for (int i = 0; i < 4; i++)
        c.v[i] = _mm256_fmadd_pd(a.v[i], b.v[i], c.v[i]);
    return c;
}
LANES_INLINE double wide_sum(struct wide a)
{
    __m256d four = _mm256_add_pd(_mm256_add_pd(a.v[0], a.v[2]), _mm256_add_pd(a.v[1], a.v[3]));
    __m128d two = _mm_add_pd(_mm256_castpd256_pd128(four), _mm256_extractf128_pd(four, 1));
    return _mm_cvtsd_f64(_mm_add_sd(two, _mm_unpackhi_pd(two, two)));
}
#else
struct wide { double d[LANES]; };
/* Sixteen f32 numbers, widened. */
LANES_INLINE struct wide wide_load(const float *p)
{
    struct wide r;
    for (int j = 0; j < LANES; j++)
        r.d[j] = (double)p[j];
    return r;
}
LANES_INLINE struct wide wide_of(struct lanes a) { return wide_load(a.f); }
LANES_INLINE struct wide wide_add(struct wide a, struct wide b)
{
    for (int j = 0; j < LANES; j++)
        a.d[j] = a.d[j] + b.d[j];
    return a;
}
LANES_INLINE struct wide wide_mul(struct wide a, struct wide b)
{
    for (int j = 0; j < LANES; j++)
        a.d[j] = a.d[j] * b.d[j];
    return a;
}
/* a * b + c, where a * b is exact, as it is for f32 numbers: so that fused or not the bits are the same. */
LANES_INLINE struct wide wide_exact(struct wide a, struct wide b, struct wide c)
{
    for (int j = 0; j < LANES; j++)
        a.d[j] = a.d[j] * b.d[j] + c.d[j];
    return a;
}
/* Lane j with j + 8, then j + 4, j + 2, j + 1. */
LANES_INLINE double wide_sum(struct wide a)
{
    for (int half = LANES / 2; half > 0; half /= 2)
        for (int j = 0; j < half; j++)
            a.d[j] += a.d[j + half];
    return a.d[0];
}
#endif

LANES_INLINE struct wide wide_zero(void) { return wide_of(lanes_zero()); }

/* n numbers (1 to 16), and zeros. */
LANES_INLINE struct wide wide_load_upto(const float *p, int64_t n)
{
    return n >= LANES ? wide_load(p) : wide_of(lanes_load_some(p, n, 0.0f));
}

#endif
