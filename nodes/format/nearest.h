#ifndef NODES_FORMAT_NEAREST_H
#define NODES_FORMAT_NEAREST_H
/* The value of a grid that is nearest to a number, for loops that the compiler turns into vectors: no branch, no table,
 * the same arithmetic for every element. Which values there are is kernels/grid.h's business; this agrees with it.
 *
 * Neighbouring values are a spacing apart: 1 for integers; for E2M1 and E4M3 2^-1 and 2^-3 of the power of two below
 * |x|, or of the least normal number. Adding and subtracting 1.5 * 2^23 spacings leaves a multiple of one, rounded to
 * nearest and ties to even. */
#include "kernels/grid.h"

/* Before a function with such loops: gcc compiles it for wider vectors too, and the widest that the machine has is
 * taken when the program starts (clang 14 cannot name them so, and sanitizers are not there yet when the choice is
 * made). Sums in those functions are kept in NEAREST_LANES partial ones, so that every version gives the same bits. */
#if defined(__x86_64__) && !defined(__clang__) && !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
#define NEAREST_WIDE __attribute__((target_clones("default", "avx2", "arch=x86-64-v4")))
#else
#define NEAREST_WIDE
#endif
#define NEAREST_LANES 16

struct nearest {
    float least, most; /* values at the ends */
    float binade;      /* what is smaller than this power of two has its spacing */
    float spacing;     /* of the power of two 1 */
};

static inline struct nearest nearest_of(enum element t)
{
    switch (t) {
    case ELEMENT_E2M1:
        return (struct nearest){-6.0f, 6.0f, 1.0f, 0.5f};
    case ELEMENT_E4M3:
        return (struct nearest){-448.0f, 448.0f, 0x1p-6f, 0x1p-3f};
    case ELEMENT_U4B8: /* integers: none is beyond the first binade */
        return (struct nearest){-8.0f, 7.0f, 8.0f, 0x1p-3f};
    default:
        return (struct nearest){-128.0f, 127.0f, 128.0f, 0x1p-7f};
    }
}

static inline float nearest_clamp(const struct nearest *g, float x)
{
    x = x > g->least ? x : g->least;
    return x < g->most ? x : g->most;
}

/* Distance between the values around x, which lies between the ends. */
static inline float nearest_spacing(const struct nearest *g, float x)
{
    float power = f32_from_bits(f32_bits(x) & 0x7f800000u);
    return (power > g->binade ? power : g->binade) * g->spacing;
}

/* Of any x that is not NaN; zero comes out as +0. */
static inline float nearest_value(const struct nearest *g, float x)
{
    x = nearest_clamp(g, x);
    float magic = nearest_spacing(g, x) * 0x1.8p23f;
    return (x + magic) - magic;
}

#endif
