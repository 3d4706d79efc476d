#ifndef KERNELS_CUDA_INPUTS_CUH
#define KERNELS_CUDA_INPUTS_CUH
/* The rules of kernels.h for input activations (enum act_rule), a struct each: `of` makes it from the largest magnitude
 * of the numbers that share a scale, `value` is what a number becomes. Every operation is one in f32, in the order that
 * kernels/cpu/fake_quantize.c has, and so are its bits. What is not finite becomes NaN.
 *
 * For products in the hardware's own formats the same comes apart into `code` and `scale`. There what is not finite
 * makes its code NaN or, where codes have none, the scale of all that share it, and so its row of the product. */
#include "kernels/cuda/grid.cuh"

#define E4M3_NAN 0x7fu

__device__ static inline bool is_finite(float x) { return magnitude_bits(x) < 0x7f800000u; }

/* bs = E4M3((gs * max) / 6); r = gs / bs; (E2M1(x * r) * bs) / gs */
struct nvfp4_input {
    static constexpr int columns = 16; /* that share a scale */
    float gs, bs, r;
    __device__ static nvfp4_input of(float most, float gs)
    {
        float bs = round_e4m3(gs * most / 6.0f);
        return {gs, bs, gs / bs};
    }
    __device__ float value(float x) const
    {
        float back = round_e2m1(x * r) * bs / gs;
        return nan_unless_finite(x, 0.0f < bs ? back : 0.0f);
    }
    static constexpr int bits = 4;
    __device__ uint32_t code(float x) const { return 0.0f < bs ? e2m1_code(x * r) : 0u; }
    __device__ uint8_t scale(bool finite) const { return finite ? e4m3_code(bs) : E4M3_NAN; }
};

/* E4M3(x / s) * s, where a rule says what s is. */
struct e4m3_input {
    float s;
    __device__ float value(float x) const { return nan_unless_finite(x, round_e4m3(x / s) * s); }
    __device__ uint32_t code(float x) const { return is_finite(x) ? e4m3_code(round_e4m3(x / s)) : E4M3_NAN; }
    __device__ float scale() const { return s; }
};
struct fp8_token_input : e4m3_input {
    __device__ static fp8_token_input of(float most)
    {
        float scale = most / 448.0f, least = 1.0f / (448.0f * 512.0f);
        return {{scale > least ? scale : least}};
    }
};
struct fp8_group_input : e4m3_input {
    static constexpr int columns = 128;
    __device__ static fp8_group_input of(float most) { return {{(most > 1e-10f ? most : 1e-10f) / 448.0f}}; }
};

/* s = 2^ceil(log2(max / the largest element)), the quotient's exponent and one more where there is a mantissa. A
 * quotient of 2^-127 or less makes the block zero. Scaling by a power of two is exact, or so small that the code is
 * zero. */
template <enum element E> struct mx_input {
    static constexpr int columns = 32;
    float s; /* 0: the block is zero */
    __device__ static mx_input of(float most, float)
    {
        uint32_t bits = __float_as_uint(most / element_most<E>);
        return {__uint_as_float(bits > 0x00400000u ? (bits + 0x7fffffu) & 0x7f800000u : 0u)};
    }
    __device__ float value(float x) const
    {
        float scaled = x * (1.0f / s), code = E == ELEMENT_E4M3 ? round_e4m3(scaled) : round_e2m1(scaled);
        return nan_unless_finite(x, s > 0.0f ? code * s : 0.0f);
    }
    static constexpr int bits = 8; /* of E4M3, which alone is multiplied so */
    __device__ uint32_t code(float x) const
    {
        return !is_finite(x) ? E4M3_NAN : s > 0.0f ? e4m3_code(round_e4m3(x * (1.0f / s))) : 0u;
    }
    __device__ uint8_t scale(bool) const
    {
        uint32_t exponent = __float_as_uint(s) >> 23;
        return (uint8_t)(exponent < 254u ? exponent : 254u);
    }
};

/* code of (x * (127 / max)) * (max / 127), a zero without a sign. Where the first quotient is infinite, zeros stay
 * zeros. */
struct int8_token_input {
    float by, back;
    __device__ static int8_token_input of(float most) { return {127.0f / most, most / 127.0f}; }
    __device__ int whole(float x) const { return integer_code(fabsf(x) > 0.0f ? x * by : 0.0f, -128.0f, 127.0f); }
    __device__ float value(float x) const { return nan_unless_finite(x, (float)whole(x) * back); }
    __device__ uint32_t code(float x) const { return (uint32_t)whole(x) & 255u; }
    __device__ float scale() const { return is_finite(back) ? back : __uint_as_float(0x7fc00000u); }
};

/* ----------------------------------------------------------------------------------------------- largest magnitudes */

/* Of a row, the same in every thread of its block. `room` as in block_most. */
__device__ static inline float row_most(const float *x, int64_t k, int bf16, uint32_t *room)
{
    uint32_t bits = 0;
    for (int64_t i = threadIdx.x; i < k; i += blockDim.x) {
        uint32_t b = magnitude_bits(load_mode(x[i], bf16));
        bits = b > bits ? b : bits;
    }
    return __uint_as_float(block_most(bits, room));
}

/* Of what `lanes` lanes of a warp have, a power of two; all of the warp take part. NaN is passed over. */
__device__ static inline float lanes_most(float most, int lanes)
{
    for (int m = lanes / 2; m > 0; m /= 2)
        most = fmaxf(most, __shfl_xor_sync(ALL_LANES, most, m));
    return most;
}

__device__ static inline float4 load_four(const float *x, int64_t i, int bf16)
{
    float4 v = ((const float4 *)x)[i];
    return make_float4(load_mode(v.x, bf16), load_mode(v.y, bf16), load_mode(v.z, bf16), load_mode(v.w, bf16));
}
__device__ static inline float four_most(float4 v)
{
    return fmaxf(fmaxf(fabsf(v.x), fabsf(v.y)), fmaxf(fabsf(v.z), fabsf(v.w)));
}

#endif
