#ifndef KERNELS_CPU_CODES_H
#define KERNELS_CPU_CODES_H
/* Lanes as bits: codes and scales between memory and numbers, for the kernels that encode and decode weights (grid.h
 * has the definitions). As in lanes.h the plain version of every operation is its specification. A lane that holds an
 * integer is a `struct lanes` like any other; nothing computes with integers as floats. */
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
LANES_INLINE struct lanes codes_sum(struct lanes a, struct lanes b)
{
    return codes_of(_mm512_add_epi32(codes_bits(a), codes_bits(b)));
}
LANES_INLINE struct lanes codes_join(struct lanes a, struct lanes b, uint32_t mask)
{
    __m512i m = _mm512_set1_epi32((int32_t)mask);
    return codes_of(_mm512_ternarylogic_epi32(codes_bits(a), codes_bits(b), m, 0xf8)); /* a | b & m */
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
LANES_INLINE __m512 codes_larger(__m512 a, __m512 b)
{
    return _mm512_max_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
}
/* Halves of pairs are folded onto each other: within quarters of the registers first, then the quarters. */
LANES_INLINE struct lanes codes_largest(const struct lanes r[LANES])
{
    __m512 u[4];
    LANES_UNROLL
    for (int i = 0; i < 4; i++) {
        __m512 a = codes_larger(r[4 * i].v, r[4 * i + 1].v), b = codes_larger(r[4 * i + 2].v, r[4 * i + 3].v);
        u[i] = _mm512_max_ps(codes_pairs(a, b, 0), codes_pairs(a, b, 1));
    }
    __m512 a = _mm512_max_ps(_mm512_shuffle_f32x4(u[0], u[1], 0x44), _mm512_shuffle_f32x4(u[0], u[1], 0xee));
    __m512 b = _mm512_max_ps(_mm512_shuffle_f32x4(u[2], u[3], 0x44), _mm512_shuffle_f32x4(u[2], u[3], 0xee));
    return (struct lanes){_mm512_max_ps(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd))};
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
LANES_INLINE struct lanes codes_sum(struct lanes a, struct lanes b)
{
    return codes_of(_mm256_add_epi32(codes_low(a), codes_low(b)), _mm256_add_epi32(codes_high(a), codes_high(b)));
}
LANES_INLINE struct lanes codes_join(struct lanes a, struct lanes b, uint32_t mask)
{
    return lanes_or(a, lanes_and(b, mask));
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
/* Low halves, in order: packing works within halves of a register, and saturates. */
LANES_INLINE __m256i codes_halves(struct lanes a, uint32_t mask)
{
    a = lanes_and(a, mask);
    return _mm256_permute4x64_epi64(_mm256_packus_epi32(codes_low(a), codes_high(a)), 0xd8);
}
LANES_INLINE __m128i codes_bytes(struct lanes a)
{
    __m256i h = codes_halves(a, 0xffu);
    return _mm_packus_epi16(_mm256_castsi256_si128(h), _mm256_extracti128_si256(h, 1));
}
LANES_INLINE void codes_store_bytes(uint8_t *p, struct lanes a)
{
    _mm_storeu_si128((__m128i *)(void *)p, codes_bytes(a));
}
LANES_INLINE void codes_store_halves(uint16_t *p, struct lanes a)
{
    _mm256_storeu_si256((__m256i *)(void *)p, codes_halves(a, 0xffffu));
}

LANES_INLINE __m256 codes_larger(__m256 a, __m256 b)
{
    return _mm256_max_ps(_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
}
/* Of eight registers. Halves of pairs are folded onto each other: within halves of the registers first. */
LANES_INLINE __m256 codes_largest8(const struct lanes r[8])
{
    __m256 u[2];
    LANES_UNROLL
    for (int i = 0; i < 2; i++) {
        const struct lanes *p = r + 4 * i;
        __m256d a = _mm256_castps_pd(codes_larger(_mm256_max_ps(p[0].a, p[0].b), _mm256_max_ps(p[1].a, p[1].b)));
        __m256d b = _mm256_castps_pd(codes_larger(_mm256_max_ps(p[2].a, p[2].b), _mm256_max_ps(p[3].a, p[3].b)));
        u[i] = _mm256_max_ps(_mm256_castpd_ps(_mm256_unpacklo_pd(a, b)), _mm256_castpd_ps(_mm256_unpackhi_pd(a, b)));
    }
    return _mm256_max_ps(_mm256_permute2f128_ps(u[0], u[1], 0x20), _mm256_permute2f128_ps(u[0], u[1], 0x31));
}
LANES_INLINE struct lanes codes_largest(const struct lanes r[LANES])
{
    return (struct lanes){codes_largest8(r), codes_largest8(r + 8)};
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
/* The same of two lanes. */
LANES_INLINE struct lanes codes_sum(struct lanes a, struct lanes b)
{
    for (int j = 0; j < LANES; j++)
        a.f[j] = f32_from_bits(f32_bits(a.f[j]) + f32_bits(b.f[j]));
    return a;
}
/* Bits of a, and those of b under a mask. */
LANES_INLINE struct lanes codes_join(struct lanes a, struct lanes b, uint32_t mask)
{
    return lanes_or(a, lanes_and(b, mask));
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
/* The low bytes, or the low halves, of the lanes. */
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
/* Lane j: lanes_largest(r[j]). No lane is NaN. */
LANES_INLINE struct lanes codes_largest(const struct lanes r[LANES])
{
    struct lanes most = lanes_all(0.0f);
    for (int j = 0; j < LANES; j++) {
        most.f[j] = r[j].f[0];
        for (int i = 1; i < LANES; i++)
            most.f[j] = r[j].f[i] > most.f[j] ? r[j].f[i] : most.f[j];
    }
    return most;
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

/* Sixteen low bytes, all below 16, in eight bytes, the lower lane in the low half. */
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
        p[j] = (uint8_t)((f32_bits(a.f[2 * j]) & 15u) | f32_bits(a.f[2 * j + 1]) << 4);
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

/* A float format's nearest value and its code (round.h: round_float). With a = |x| below `most`, a unit is the last
 * place of a's power of two, which is at least `least`. The sum with 1.5 * 2^23 + `start` units has the number of
 * units, plus `start`, in its low byte: as many as a normal number's mantissa with its leading one, and twice as many
 * where a is rounded up to the next power of two. So that number, added to the power's place in the format less one
 * leading one, is the code; `start` makes the low byte of their sum right. It is even, so that ties see no
 * difference. */
LANES_INLINE void codes_nearest_float(struct lanes x, float most, float least, float factor, const unsigned shift,
                                      const unsigned sign_shift, struct lanes *value, struct lanes *code)
{
    struct lanes a = lanes_min(lanes_all(most), lanes_abs(x));
    struct lanes power = lanes_max(lanes_and(a, 0x7f800000u), lanes_all(least));
    struct lanes magic = lanes_mul(power, lanes_all(factor)), units = lanes_add(a, magic);
    struct lanes sum = codes_sum(codes_right(power, shift), units);
    *value = codes_join(lanes_sub(units, magic), x, 0x80000000u);
    *code = codes_join(sum, codes_right(x, sign_shift), 0x80000000u >> sign_shift);
}

/* The same for integers: units are ones, and `start` is what their codes add. */
LANES_INLINE void codes_nearest_integer(struct lanes x, float least, float most, float start, struct lanes *value,
                                        struct lanes *code)
{
    struct lanes magic = lanes_all(0x1.8p23f + start);
    *code = lanes_add(round_clamp(x, least, most), magic);
    *value = lanes_sub(*code, magic);
}

/* grid_code of x in the low byte, and the value of that code; where it has a sign, zeros keep that of x, which is not
 * NaN. */
LANES_INLINE void codes_nearest(const enum element t, struct lanes x, struct lanes *value, struct lanes *code)
{
    switch (t) {
    case ELEMENT_E2M1: /* a unit is half of the power, 2^0 gives 254, and 254 + 2 is 0 in a byte */
        codes_nearest_float(x, 6.0f, 1.0f, (0x1.8p23f + 2.0f) / 2.0f, 22, 28, value, code);
        break;
    case ELEMENT_E4M3: /* an eighth; 2^-6 gives 968, and 968 + 56 is 0 */
        codes_nearest_float(x, 448.0f, 0x1p-6f, (0x1.8p23f + 56.0f) / 8.0f, 20, 24, value, code);
        break;
    case ELEMENT_S8:
        codes_nearest_integer(x, -128.0f, 127.0f, 0.0f, value, code);
        break;
    case ELEMENT_U4B8:
        codes_nearest_integer(x, -8.0f, 7.0f, 8.0f, value, code);
        break;
    default:
        codes_nearest_integer(x, -128.0f, 127.0f, 128.0f, value, code);
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
