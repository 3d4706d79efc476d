#ifndef KERNELS_CPU_ROUND_H
#define KERNELS_CPU_ROUND_H
/* Lanes rounded to the values of a code (grid.h: enum element), branch-free: adding and subtracting 1.5 * 2^23 units of
 * the wanted last place rounds to nearest even. Numbers beyond the ends become the last value; NaN stays NaN. */
#include "kernels/cpu/lanes.h"

LANES_INLINE struct lanes round_clamp(struct lanes x, float least, float most)
{
    return lanes_max(lanes_all(least), lanes_min(lanes_all(most), x));
}

/* x rounded to a multiple of 2^step times its power of two, which is at least `least`; the sign of x is kept, also on
 * zero. `factor` is 1.5 * 2^(23 + step). |x| is at most 448. */
LANES_INLINE struct lanes round_float(struct lanes x, float least, float factor)
{
    struct lanes power = lanes_max(lanes_and(x, 0x7f800000u), lanes_all(least));
    struct lanes magic = lanes_mul(power, lanes_all(factor));
    struct lanes rounded = lanes_sub(lanes_add(x, magic), magic);
    return lanes_or(lanes_and(rounded, 0x7fffffffu), lanes_and(x, 0x80000000u));
}

/* E4M3: three bits of mantissa, least exponent -6. E2M1: one bit, least exponent 0. */
LANES_INLINE struct lanes round_e4m3(struct lanes x)
{
    return round_float(round_clamp(x, -448.0f, 448.0f), 0x1p-6f, 0x1.8p20f);
}
LANES_INLINE struct lanes round_e2m1(struct lanes x)
{
    return round_float(round_clamp(x, -6.0f, 6.0f), 1.0f, 0x1.8p22f);
}

/* Integers; zero has no sign. */
LANES_INLINE struct lanes round_integer(struct lanes x, float least, float most)
{
    struct lanes magic = lanes_all(0x1.8p23f);
    return lanes_sub(lanes_add(round_clamp(x, least, most), magic), magic);
}

#endif
