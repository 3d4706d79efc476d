#ifndef KERNELS_CUDA_GRID_CUH
#define KERNELS_CUDA_GRID_CUH
/* Codes, steps and scales of kernels/grid.h in device code, with the bits of grid.c: each step of an expression there
 * is one here. What a format is made of is known when a kernel is compiled. */
#include "kernels/cuda/device.cuh"

template <enum element E> constexpr int element_bits = E == ELEMENT_E2M1 || E == ELEMENT_U4B8 ? 4 : 8;
template <enum element E> constexpr float element_most =
    E == ELEMENT_E2M1 ? 6.0f : E == ELEMENT_E4M3 ? 448.0f : E == ELEMENT_U4B8 ? 7.5f : 127.5f;
/* The code of +0. */
template <enum element E> constexpr uint32_t element_zero = E == ELEMENT_U4B8 ? 8 : E == ELEMENT_U8B128 ? 128 : 0;

/* The value of a code; bits above it are ignored. */
template <enum element E> __device__ static inline float element_value(uint32_t code)
{
    if constexpr (E == ELEMENT_E2M1)
        return e2m1_value(code);
    else if constexpr (E == ELEMENT_E4M3)
        return e4m3_value((uint8_t)code);
    else if constexpr (E == ELEMENT_S8)
        return (float)(int8_t)code;
    else if constexpr (E == ELEMENT_U4B8)
        return (float)((int)(code & 15u) - 8);
    else
        return (float)((int)(code & 255u) - 128);
}

/* Nearest even of what is between two whole numbers, and the nearer of them outside. */
__device__ static inline int integer_code(float x, float least, float most)
{
    x = x > least ? x : least;
    x = x < most ? x : most;
    return (int)((x + 0x1.8p23f) - 0x1.8p23f);
}

template <enum element E> __device__ static inline uint32_t element_code(float x)
{
    if constexpr (E == ELEMENT_E2M1)
        return e2m1_code(x);
    else if constexpr (E == ELEMENT_E4M3)
        return e4m3_code(round_e4m3(x));
    else if constexpr (E == ELEMENT_S8)
        return (uint32_t)integer_code(x, -128.0f, 127.0f) & 255u;
    else if constexpr (E == ELEMENT_U4B8)
        return (uint32_t)(integer_code(x, -8.0f, 7.0f) + 8);
    else
        return (uint32_t)(integer_code(x, -128.0f, 127.0f) + 128);
}

/* How a scale is stored. */
template <enum scale_type S> struct scale_word { typedef uint8_t type; };
template <> struct scale_word<SCALE_F32> { typedef uint32_t type; };
template <> struct scale_word<SCALE_BF16> { typedef uint16_t type; };

template <enum scale_type S> __device__ static inline float scale_step(uint32_t scale, float global)
{
    if constexpr (S == SCALE_F32)
        return __uint_as_float(scale);
    else if constexpr (S == SCALE_BF16)
        return __uint_as_float(scale << 16);
    else if constexpr (S == SCALE_E8M0)
        return __uint_as_float(scale ? scale << 23 : 0x00400000u); /* 2^-127 is no normal f32 */
    else
        return e4m3_value((uint8_t)scale) / global;
}

#define E4M3_LEAST 0x08u

/* grid_fit: round-to-nearest's scale of a block whose largest magnitude is `amax`, which is finite. */
template <enum element E, enum scale_type S> __device__ static inline uint32_t scale_fit(float amax, float global)
{
    float step = amax / element_most<E>;
    if constexpr (S == SCALE_F32) {
        return step > 0.0f ? __float_as_uint(step) : 0x3f800000u;
    } else if constexpr (S == SCALE_BF16) {
        uint32_t s = to_bf16(step);
        return s > 0 ? s : 0x3f80u;
    } else if constexpr (S == SCALE_E8M0) {
        int b = (int)((__float_as_uint(amax) + (1u << 21)) >> 23) - (E == ELEMENT_E2M1 ? 2 : 8);
        return amax > 0.0f ? (uint32_t)(b < 0 ? 0 : b > 254 ? 254 : b) : 127u;
    } else {
        uint32_t s = e4m3_code(round_e4m3(global * step));
        return !(amax > 0.0f) ? 0x20u : s < E4M3_LEAST ? E4M3_LEAST : s;
    }
}

/* grid_is_empty: such a block has no scale of its own, and all its codes are that of +0. */
template <enum element E, enum scale_type S> __device__ static inline bool scale_is_empty(float amax)
{
    float step = amax / element_most<E>;
    return !(amax > 0.0f) || (S == SCALE_F32 && step == 0.0f) || (S == SCALE_BF16 && to_bf16(step) == 0);
}

/* -------------------------------------------------------------------------------------------------- which of them */

/* A pair that formats have, as a type. */
template <enum element E, enum scale_type S> struct grid_kind {
    static constexpr enum element element = E;
    static constexpr enum scale_type scale = S;
    static constexpr int bits = element_bits<E>;
    static constexpr bool in_groups = bits == 4 || S == SCALE_E8M0; /* blocks are few columns of one row */
    typedef typename scale_word<S>::type word;
};

/* f(grid_kind) of the pair that `g` is made of. */
template <typename F> static inline cudaError_t grid_dispatch(const struct grid *g, F f)
{
    switch (g->element * 8 + g->scale) {
    case ELEMENT_E2M1 * 8 + SCALE_E4M3: return f(grid_kind<ELEMENT_E2M1, SCALE_E4M3>());
    case ELEMENT_E2M1 * 8 + SCALE_E8M0: return f(grid_kind<ELEMENT_E2M1, SCALE_E8M0>());
    case ELEMENT_E4M3 * 8 + SCALE_F32: return f(grid_kind<ELEMENT_E4M3, SCALE_F32>());
    case ELEMENT_E4M3 * 8 + SCALE_E8M0: return f(grid_kind<ELEMENT_E4M3, SCALE_E8M0>());
    case ELEMENT_S8 * 8 + SCALE_F32: return f(grid_kind<ELEMENT_S8, SCALE_F32>());
    case ELEMENT_U8B128 * 8 + SCALE_BF16: return f(grid_kind<ELEMENT_U8B128, SCALE_BF16>());
    case ELEMENT_U4B8 * 8 + SCALE_BF16: return f(grid_kind<ELEMENT_U4B8, SCALE_BF16>());
    default: return cudaErrorInvalidValue;
    }
}

#endif
