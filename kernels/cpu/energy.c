/* Squares and energies of weight differences, in f64: sixteen sums over a row, of the columns that are equal modulo 16,
 * then their tree (lane j and j + 8, then j + 4, j + 2, j + 1), then the rows in order. A product of two f32 is exact
 * in f64, so that fused or not the bits are the same. */
#include "engine/base/mem.h"
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/lanes.h"
#include "kernels/shape.h"

#if defined(CPU_AVX512)
struct sums { __m512d low, high; };
LANES_INLINE __m512d sums_half(const float *a, const float *b, __m512d s)
{
    return _mm512_fmadd_pd(_mm512_cvtps_pd(_mm256_loadu_ps(a)), _mm512_cvtps_pd(_mm256_loadu_ps(b)), s);
}
LANES_INLINE struct sums sums_add(struct sums s, const float *a, const float *b)
{
    return (struct sums){sums_half(a, b, s.low), sums_half(a + 8, b + 8, s.high)};
}
LANES_INLINE double sums_total(struct sums s)
{
    __m512d eight = _mm512_add_pd(s.low, s.high);
    __m256d four = _mm256_add_pd(_mm512_castpd512_pd256(eight), _mm512_extractf64x4_pd(eight, 1));
    __m128d two = _mm_add_pd(_mm256_castpd256_pd128(four), _mm256_extractf128_pd(four, 1));
    return _mm_cvtsd_f64(_mm_add_sd(two, _mm_unpackhi_pd(two, two)));
}
#elif defined(CPU_AVX2)
struct sums { __m256d s[4]; };
LANES_INLINE __m256d sums_quarter(const float *a, const float *b, __m256d s)
{
    return _mm256_fmadd_pd(_mm256_cvtps_pd(_mm_loadu_ps(a)), _mm256_cvtps_pd(_mm_loadu_ps(b)), s);
}
LANES_INLINE struct sums sums_add(struct sums s, const float *a, const float *b)
{
    return (struct sums){{sums_quarter(a, b, s.s[0]), sums_quarter(a + 4, b + 4, s.s[1]),
                          sums_quarter(a + 8, b + 8, s.s[2]), sums_quarter(a + 12, b + 12, s.s[3])}};
}
LANES_INLINE double sums_total(struct sums s)
{
    __m256d four = _mm256_add_pd(_mm256_add_pd(s.s[0], s.s[2]), _mm256_add_pd(s.s[1], s.s[3]));
    __m128d two = _mm_add_pd(_mm256_castpd256_pd128(four), _mm256_extractf128_pd(four, 1));
    return _mm_cvtsd_f64(_mm_add_sd(two, _mm_unpackhi_pd(two, two)));
}
#else
struct sums { double s[LANES]; };
/* s[j] += a[j] b[j] */
LANES_INLINE struct sums sums_add(struct sums s, const float *a, const float *b)
{
    for (int j = 0; j < LANES; j++)
        s.s[j] += (double)a[j] * (double)b[j];
    return s;
}
LANES_INLINE double sums_total(struct sums s)
{
    for (int half = LANES / 2; half > 0; half /= 2)
        for (int j = 0; j < half; j++)
            s.s[j] += s.s[j + half];
    return s.s[0];
}
#endif

LANES_INLINE double row_sum(const float *a, const float *b, int64_t n)
{
    struct sums s = {0};
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES)
        s = sums_add(s, a + i, b + i);
    if (i < n) {
        float x[LANES] = {0}, y[LANES] = {0};
        memcpy(x, a + i, (size_t)(n - i) * sizeof *x);
        memcpy(y, b + i, (size_t)(n - i) * sizeof *y);
        s = sums_add(s, x, y);
    }
    return sums_total(s);
}

bool CPU(energy)(struct queue *q, const struct tensor *d, const struct tensor *y, double *square, double *energy,
                 struct err *e)
{
    if (!shape_queue(q, "energy", e) || !shape_matrix(q, "energy", "d", d, DTYPE_F32, -1, -1, e) ||
        (y && !shape_matrix(q, "energy", "y", y, DTYPE_F32, d->shape[0], d->shape[1], e)))
        return false;
    int64_t n = d->shape[0], k = d->shape[1];
    double *rows;
    if (!mem_raw(&rows, (size_t)(2 * n), e))
        return false;
#pragma omp parallel for schedule(static) num_threads(cpu_threads(q, 2 * n * k))
    for (int64_t r = 0; r < n; r++) {
        const float *x = (const float *)d->data + r * k;
        rows[2 * r] = row_sum(x, x, k);
        rows[2 * r + 1] = y ? row_sum(x, (const float *)y->data + r * k, k) : 0.0;
    }
    for (int64_t r = 0; r < n; r++) {
        *square += rows[2 * r];
        if (y)
            *energy += rows[2 * r + 1];
    }
    mem_free(rows);
    return true;
}
