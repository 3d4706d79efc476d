#ifndef KERNELS_CPU_CODES_H
#define KERNELS_CPU_CODES_H
/* Lanes as bits: codes and scales between memory and numbers, for the kernels that encode and decode weights (grid.h has
 * the definitions). As in lanes.h the plain version of every operation is its specification. A lane that holds an
 * integer is a `struct lanes` like any other; integers are never NaN to anybody, for nothing computes with them as
 * floats. */
#include "kernels/cpu/round.h"
#include "kernels/grid.h"

#if defined(CPU_AVX512)

LANES_INLINE struct lanes codes_of(__m512i u) { return (struct lanes){_mm512_castsi512_ps(u)}; }
LANES_INLINE __m512i codes_bits(struct lanes a) { return _mm512_castps_si512(a.v); }
LANES_INLINE struct lanes codes_add(struct lanes a, uint32_t b)
{
    return codes_of(_mm512_add_epi32(codes_bits(a), _mm512_set1_epi32((int32_t)b)));
}
LANES_INLINE struct lanes codes_left(struct lanes a, unsigned n)
{
    return codes_of(_mm512_slli_epi32(codes_bits(a), n));
}
LANES_INLINE struct lanes codes_right(struct lanes a, unsigned n)
{
    return codes_of(_mm512_srli_epi32(codes_bits(a), n));
}
LANES_INLINE struct lanes codes_to_f32(struct lanes a) { return (struct lanes){_mm512_cvtepi32_ps(codes_bits(a))}; }
LANES_INLINE struct lanes codes_pick(struct lanes a, const float table[16])
{
    return (struct lanes){_mm512_permutexvar_ps(codes_bits(a), _mm512_loadu_ps(table))};
}
LANES_INLINE struct lanes codes_load_bytes(const uint8_t *p)
{
    return codes_of(_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(const void *)p)));
}
LANES_INLINE struct lanes codes_load_halves(const uint16_t *p)
{
    return codes_of(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(const void *)p)));
}
LANES_INLINE void codes_store_bytes(uint8_t *p, struct lanes a)
{
    _mm_storeu_si128((__m128i *)(void *)p, _mm512_cvtepi32_epi8(codes_bits(a)));
}
LANES_INLINE void codes_store_halves(uint16_t *p, struct lanes a)
{
    _mm256_storeu_si256((__m256i *)(void *)p, _mm512_cvtepi32_epi16(codes_bits(a)));
}
LANES_INLINE __m128i codes_bytes(struct lanes a) { return _mm512_cvtepi32_epi8(codes_bits(a)); }

LANES_INLINE __m512 codes_pairs(__m512 a, __m512 b, int high)
{
    __m512d x = _mm512_castps_pd(a), y = _mm512_castps_pd(b);
    return _mm512_castpd_ps(high ? _mm512_unpackhi_pd(x, y) : _mm512_unpacklo_pd(x, y));
}
/* Squares of four first, within the quarters of the registers; then the quarters. */
LANES_INLINE void codes_transpose(struct lanes r[LANES])
{
    __m512 u[LANES];
    LANES_UNROLL
    for (int i = 0; i < LANES; i += 4) {
        __m512 a = _mm512_unpacklo_ps(r[i].v, r[i + 1].v), b = _mm512_unpackhi_ps(r[i].v, r[i + 1].v);
        __m512 c = _mm512_unpacklo_ps(r[i + 2].v, r[i + 3].v), d = _mm512_unpackhi_ps(r[i + 2].v, r[i + 3].v);
        u[i] = codes_pairs(a, c, 0);
        u[i + 1] = codes_pairs(a, c, 1);
        u[i + 2] = codes_pairs(b, d, 0);
        u[i + 3] = codes_pairs(b, d, 1);
    }
    LANES_UNROLL
    for (int i = 0; i < 4; i++) {
        __m512 a = _mm512_shuffle_f32x4(u[i], u[i + 4], 0x88), b = _mm512_shuffle_f32x4(u[i + 8], u[i + 12], 0x88);
        __m512 c = _mm512_shuffle_f32x4(u[i], u[i + 4], 0xdd), d = _mm512_shuffle_f32x4(u[i + 8], u[i + 12], 0xdd);
        r[i].v = _mm512_shuffle_f32x4(a, b, 0x88);
        r[i + 4].v = _mm512_shuffle_f32x4(c, d, 0x88);
        r[i + 8].v = _mm512_shuffle_f32x4(a, b, 0xdd);
        r[i + 12].v = _mm512_shuffle_f32x4(c, d, 0xdd);
    }
}

#elif defined(CPU_AVX2)

LANES_INLINE struct lanes codes_of(__m256i a, __m256i b)
{
    return (struct lanes){_mm256_castsi256_ps(a), _mm256_castsi256_ps(b)};
}
LANES_INLINE __m256i codes_low(struct lanes a) { return _mm256_castps_si256(a.a); }
LANES_INLINE __m256i codes_high(struct lanes a) { return _mm256_castps_si256(a.b); }
LANES_INLINE struct lanes codes_add(struct lanes a, uint32_t b)
{
    __m256i all = _mm256_set1_epi32((int32_t)b);
    return codes_of(_mm256_add_epi32(codes_low(a), all), _mm256_add_epi32(codes_high(a), all));
}
LANES_INLINE struct lanes codes_left(struct lanes a, unsigned n)
{
    return codes_of(_mm256_slli_epi32(codes_low(a), (int)n), _mm256_slli_epi32(codes_high(a), (int)n));
}
LANES_INLINE struct lanes codes_right(struct lanes a, unsigned n)
{
    return codes_of(_mm256_srli_epi32(codes_low(a), (int)n), _mm256_srli_epi32(codes_high(a), (int)n));
}
LANES_INLINE struct lanes codes_to_f32(struct lanes a)
{
    return (struct lanes){_mm256_cvtepi32_ps(codes_low(a)), _mm256_cvtepi32_ps(codes_high(a))};
}
/* Bit 3 of an index says which half of the table; it is moved to the sign, which the blend looks at. */
LANES_INLINE __m256 codes_half_pick(__m256i at, const float table[16])
{
    __m256 low = _mm256_permutevar8x32_ps(_mm256_loadu_ps(table), at);
    __m256 high = _mm256_permutevar8x32_ps(_mm256_loadu_ps(table + 8), at);
    return _mm256_blendv_ps(low, high, _mm256_castsi256_ps(_mm256_slli_epi32(at, 28)));
}
LANES_INLINE struct lanes codes_pick(struct lanes a, const float table[16])
{
    return (struct lanes){codes_half_pick(codes_low(a), table), codes_half_pick(codes_high(a), table)};
}
LANES_INLINE struct lanes codes_load_bytes(const uint8_t *p)
{
    __m128i bytes = _mm_loadu_si128((const __m128i *)(const void *)p);
    return codes_of(_mm256_cvtepu8_epi32(bytes), _mm256_cvtepu8_epi32(_mm_srli_si128(bytes, 8)));
}
LANES_INLINE struct lanes codes_load_halves(const uint16_t *p)
{
    return codes_of(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)(const void *)p)),
                    _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)(const void *)(p + 8))));
}
/* Integers below 2^16, in order: packing works within halves of a register. */
LANES_INLINE __m256i codes_halves(struct lanes a)
{
    return _mm256_permute4x64_epi64(_mm256_packus_epi32(codes_low(a), codes_high(a)), 0xd8);
}
LANES_INLINE __m128i codes_bytes(struct lanes a)
{
    __m256i h = codes_halves(a);
    return _mm_packus_epi16(_mm256_castsi256_si128(h), _mm256_extracti128_si256(h, 1));
}
LANES_INLINE void codes_store_bytes(uint8_t *p, struct lanes a)
{
    _mm_storeu_si128((__m128i *)(void *)p, codes_bytes(a));
}
LANES_INLINE void codes_store_halves(uint16_t *p, struct lanes a)
{
    _mm256_storeu_si256((__m256i *)(void *)p, codes_halves(a));
}

LANES_INLINE void codes_transpose8(__m256 r[8])
{
    __m256 u[8];
    LANES_UNROLL
    for (int i = 0; i < 8; i += 4) {
        __m256d a = _mm256_castps_pd(_mm256_unpacklo_ps(r[i], r[i + 1]));
        __m256d b = _mm256_castps_pd(_mm256_unpackhi_ps(r[i], r[i + 1]));
        __m256d c = _mm256_castps_pd(_mm256_unpacklo_ps(r[i + 2], r[i + 3]));
        __m256d d = _mm256_castps_pd(_mm256_unpackhi_ps(r[i + 2], r[i + 3]));
        u[i] = _mm256_castpd_ps(_mm256_unpacklo_pd(a, c));
        u[i + 1] = _mm256_castpd_ps(_mm256_unpackhi_pd(a, c));
        u[i + 2] = _mm256_castpd_ps(_mm256_unpacklo_pd(b, d));
        u[i + 3] = _mm256_castpd_ps(_mm256_unpackhi_pd(b, d));
    }
    LANES_UNROLL
    for (int i = 0; i < 4; i++) {
        r[i] = _mm256_permute2f128_ps(u[i], u[i + 4], 0x20);
        r[i + 4] = _mm256_permute2f128_ps(u[i], u[i + 4], 0x31);
    }
}
/* By quarters of eight by eight. */
LANES_INLINE void codes_transpose(struct lanes r[LANES])
{
    __m256 q[4][8];
    LANES_UNROLL
    for (int i = 0; i < 8; i++)
        q[0][i] = r[i].a, q[1][i] = r[i].b, q[2][i] = r[i + 8].a, q[3][i] = r[i + 8].b;
    LANES_UNROLL
    for (int i = 0; i < 4; i++)
        codes_transpose8(q[i]);
    LANES_UNROLL
    for (int i = 0; i < 8; i++) {
        r[i].a = q[0][i], r[i].b = q[2][i];
        r[i + 8].a = q[1][i], r[i + 8].b = q[3][i];
    }
}

#else

/* The bits of a lane plus b. */
LANES_INLINE struct lanes codes_add(struct lanes a, uint32_t b)
{
    for (int j = 0; j < LANES; j++)
        a.f[j] = f32_from_bits(f32_bits(a.f[j]) + b);
    return a;
}
/* The bits shifted; n is a constant. */
LANES_INLINE struct lanes codes_left(struct lanes a, unsigned n)
{
    for (int j = 0; j < LANES; j++)
        a.f[j] = f32_from_bits(f32_bits(a.f[j]) << n);
    return a;
}
LANES_INLINE struct lanes codes_right(struct lanes a, unsigned n)
{
    for (int j = 0; j < LANES; j++)
        a.f[j] = f32_from_bits(f32_bits(a.f[j]) >> n);
    return a;
}
/* Integers below 2^24 as numbers. */
LANES_INLINE struct lanes codes_to_f32(struct lanes a)
{
    for (int j = 0; j < LANES; j++)
        a.f[j] = (float)f32_bits(a.f[j]);
    return a;
}
/* table[lane]; lanes are below 16. */
LANES_INLINE struct lanes codes_pick(struct lanes a, const float table[16])
{
    for (int j = 0; j < LANES; j++)
        a.f[j] = table[f32_bits(a.f[j])];
    return a;
}
/* Sixteen bytes, or halves (two bytes each), as integers. */
LANES_INLINE struct lanes codes_load_bytes(const uint8_t *p)
{
    struct lanes r;
    for (int j = 0; j < LANES; j++)
        r.f[j] = f32_from_bits(p[j]);
    return r;
}
LANES_INLINE struct lanes codes_load_halves(const uint16_t *p)
{
    struct lanes r;
    for (int j = 0; j < LANES; j++)
        r.f[j] = f32_from_bits(p[j]);
    return r;
}
/* Integers below 2^8, or below 2^16, as so many bytes or halves. */
LANES_INLINE void codes_store_bytes(uint8_t *p, struct lanes a)
{
    for (int j = 0; j < LANES; j++)
        p[j] = (uint8_t)f32_bits(a.f[j]);
}
LANES_INLINE void codes_store_halves(uint16_t *p, struct lanes a)
{
    for (int j = 0; j < LANES; j++)
        p[j] = (uint16_t)f32_bits(a.f[j]);
}
/* Lane i of r[j] and lane j of r[i] change places. */
LANES_INLINE void codes_transpose(struct lanes r[LANES])
{
    for (int i = 0; i < LANES; i++)
        for (int j = 0; j < i; j++) {
            float t = r[i].f[j];
            r[i].f[j] = r[j].f[i];
            r[j].f[i] = t;
        }
}

#endif

/* Sixteen integers below 16 in eight bytes, the lower lane in the low half. */
#if defined(CPU_AVX512) || defined(CPU_AVX2)
LANES_INLINE void codes_store_nibbles(uint8_t *p, struct lanes a)
{
    __m128i sums = _mm_maddubs_epi16(codes_bytes(a), _mm_set1_epi16(0x1001)); /* low + 16 * high */
    _mm_storel_epi64((__m128i *)(void *)p, _mm_packus_epi16(sums, sums));
}
LANES_INLINE struct lanes codes_load_nibbles(const uint8_t *p)
{
    __m128i bytes = _mm_loadl_epi64((const __m128i *)(const void *)p), low = _mm_set1_epi8(15);
    __m128i both = _mm_unpacklo_epi8(_mm_and_si128(bytes, low), _mm_and_si128(_mm_srli_epi16(bytes, 4), low));
#if defined(CPU_AVX512)
    return codes_of(_mm512_cvtepu8_epi32(both));
#else
    return codes_of(_mm256_cvtepu8_epi32(both), _mm256_cvtepu8_epi32(_mm_srli_si128(both, 8)));
#endif
}
#else
LANES_INLINE void codes_store_nibbles(uint8_t *p, struct lanes a)
{
    for (int j = 0; j < LANES / 2; j++)
        p[j] = (uint8_t)(f32_bits(a.f[2 * j]) | f32_bits(a.f[2 * j + 1]) << 4);
}
LANES_INLINE struct lanes codes_load_nibbles(const uint8_t *p)
{
    struct lanes r;
    for (int j = 0; j < LANES; j++)
        r.f[j] = f32_from_bits(p[j / 2] >> j % 2 * 4 & 15u);
    return r;
}
#endif

/* -- built from the above, the same in every variant --------------------------------------------------------------- */

/* n (1 to 16) bytes or halves; the lanes past them are 0, and nothing past p[n - 1] is touched. */
LANES_INLINE struct lanes codes_load_bytes_upto(const uint8_t *p, int64_t n)
{
    uint8_t some[LANES] = {0};
    if (n >= LANES)
        return codes_load_bytes(p);
    memcpy(some, p, (size_t)n);
    return codes_load_bytes(some);
}
LANES_INLINE void codes_store_bytes_upto(uint8_t *p, struct lanes a, int64_t n)
{
    uint8_t some[LANES];
    if (n >= LANES) {
        codes_store_bytes(p, a);
        return;
    }
    codes_store_bytes(some, a);
    memcpy(p, some, (size_t)n);
}
LANES_INLINE struct lanes codes_load_halves_upto(const uint16_t *p, int64_t n)
{
    uint16_t some[LANES] = {0};
    if (n >= LANES)
        return codes_load_halves(p);
    memcpy(some, p, (size_t)n * sizeof *p);
    return codes_load_halves(some);
}
LANES_INLINE void codes_store_halves_upto(uint16_t *p, struct lanes a, int64_t n)
{
    uint16_t some[LANES];
    if (n >= LANES) {
        codes_store_halves(p, a);
        return;
    }
    codes_store_halves(some, a);
    memcpy(p, some, (size_t)n * sizeof *p);
}

/* The value that is nearest to x: grid_value(t, grid_code(t, x)) with the sign of x on zeros of a code that has one. */
LANES_INLINE struct lanes codes_round(const enum element t, struct lanes x)
{
    switch (t) {
    case ELEMENT_E2M1:
        return round_e2m1(x);
    case ELEMENT_E4M3:
        return round_e4m3(x);
    case ELEMENT_U4B8:
        return round_integer(x, -8.0f, 7.0f);
    default:
        return round_integer(x, -128.0f, 127.0f);
    }
}

/* The code of a float format's value. Adding a power of two whose last place is the format's least step leaves the
 * number of steps in the low bits; from the least normal on exponent and mantissa are the bits of f32, `shift` places
 * down, less `bias`. */
LANES_INLINE struct lanes codes_of_float(struct lanes v, float least, float magic, const unsigned shift, uint32_t bias)
{
    struct lanes a = lanes_abs(v);
    struct lanes few = lanes_and(lanes_add(a, lanes_all(magic)), 0xffu);
    return lanes_if_less(a, lanes_all(least), few, codes_add(codes_right(a, shift), 0u - bias));
}

/* The code of a value that codes_round gave. */
LANES_INLINE struct lanes codes_from_value(const enum element t, struct lanes v)
{
    struct lanes sign = lanes_and(v, 0x80000000u), whole = lanes_add(v, lanes_all(0x1.8p23f));
    switch (t) {
    case ELEMENT_E2M1:
        return lanes_or(codes_of_float(v, 1.0f, 0x1p22f, 22, 126u << 1), codes_right(sign, 28));
    case ELEMENT_E4M3:
        return lanes_or(codes_of_float(v, 0x1p-6f, 0x1p14f, 20, 120u << 3), codes_right(sign, 24));
    case ELEMENT_S8:
        return lanes_and(whole, 0xffu);
    case ELEMENT_U4B8:
        return lanes_and(codes_add(whole, 8), 15u);
    default:
        return lanes_and(codes_add(whole, 128), 0xffu);
    }
}

/* E4M3 codes as numbers, 0x7f and 0xff as NaN. A number below 2^-6 is one of 2^-6 and more with the same mantissa, less
 * 2^-6. */
LANES_INLINE struct lanes codes_e4m3(struct lanes code)
{
    struct lanes sign = codes_left(lanes_and(code, 0x80u), 24), bits = codes_left(lanes_and(code, 0x7fu), 20);
    struct lanes normal = codes_add(bits, 120u << 23), least = lanes_all(0x1p-6f);
    struct lanes small = lanes_sub(codes_add(bits, 121u << 23), least);
    struct lanes v = lanes_if_less(normal, least, small, normal);
    return lanes_or(lanes_if_less(normal, lanes_all(480.0f), v, lanes_all(NAN)), sign);
}

/* grid_value of codes of eight bits, and of four bits from the element's table of sixteen. */
LANES_INLINE struct lanes codes_value(const enum element t, struct lanes code, const float table[16])
{
    switch (t) {
    case ELEMENT_E4M3:
        return codes_e4m3(code);
    case ELEMENT_S8: /* two's complement: 128 added and taken off again */
        return lanes_sub(codes_to_f32(lanes_and(codes_add(code, 128), 0xffu)), lanes_all(128.0f));
    case ELEMENT_U8B128:
        return lanes_sub(codes_to_f32(code), lanes_all(128.0f));
    default:
        return codes_pick(code, table);
    }
}

#endif
