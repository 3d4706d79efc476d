/* Codes, steps and scales, one number at a time. */
#include "kernels/grid.h"

#define E4M3_EMPTY 0x20 /* 0.125: what compressed-tensors writes where a scale would be zero */
#define E4M3_LEAST 0x08 /* 2^-6: kernels that run weights only flush smaller scales to zero */

const struct grid weight_grid[CODE_COUNT] = {
    [CODE_PLAIN] = {ELEMENT_PLAIN, SCALE_NONE, 1, 0},
    [CODE_FP8] = {ELEMENT_E4M3, SCALE_F32, 1, 0},
    [CODE_NVFP4] = {ELEMENT_E2M1, SCALE_E4M3, 1, 16},
    [CODE_FP8_BLOCK] = {ELEMENT_E4M3, SCALE_F32, 128, 128},
    [CODE_MXFP4] = {ELEMENT_E2M1, SCALE_E8M0, 1, 32},
    [CODE_MXFP8] = {ELEMENT_E4M3, SCALE_E8M0, 1, 32},
    [CODE_INT8] = {ELEMENT_S8, SCALE_F32, 1, 0},
    [CODE_INT8_PACKED] = {ELEMENT_U8B128, SCALE_BF16, 1, 0},
    [CODE_INT4_G32] = {ELEMENT_U4B8, SCALE_BF16, 1, 32},
    [CODE_INT4_G64] = {ELEMENT_U4B8, SCALE_BF16, 1, 64},
    [CODE_INT4_G128] = {ELEMENT_U4B8, SCALE_BF16, 1, 128},
};

int grid_bits(enum element t)
{
    return t == ELEMENT_PLAIN ? 0 : t == ELEMENT_E2M1 || t == ELEMENT_U4B8 ? 4 : 8;
}

int grid_scale_bytes(enum scale_type t)
{
    return t == SCALE_NONE ? 0 : t == SCALE_F32 ? 4 : t == SCALE_BF16 ? 2 : 1;
}

/* ------------------------------------------------------------------------------------------------------------ codes */

static const float e2m1_value[8] = {0.0f, 0.5f, 1.0f, 1.5f, 2.0f, 3.0f, 4.0f, 6.0f};

float grid_value(enum element t, uint8_t code)
{
    switch (t) {
    case ELEMENT_E2M1: {
        float magnitude = e2m1_value[code & 7];
        return code & 8 ? -magnitude : magnitude;
    }
    case ELEMENT_E4M3:
        return e4m3_to_f32(code);
    case ELEMENT_S8:
        return (float)(int8_t)code;
    case ELEMENT_U4B8:
        return (float)((code & 15) - 8);
    case ELEMENT_U8B128:
        return (float)(code - 128);
    default:
        return 0.0f;
    }
}

void grid_values(enum element t, float out[256])
{
    for (int i = 0; i < 256; i++)
        out[i] = grid_value(t, (uint8_t)i);
}

/* Round to nearest, ties to the even index. The comparison that is strict sends a tie down, the other sends it up; what
 * is beyond 5 becomes 6, so that clamping to +-6 needs no step of its own. */
static uint8_t e2m1_code(float x)
{
    float a = x < 0.0f ? -x : x;
    int index = (a > 0.25f) + (a >= 0.75f) + (a > 1.25f) + (a >= 1.75f) + (a > 2.5f) + (a >= 3.5f) + (a > 5.0f);
    return (uint8_t)(index | (int)(f32_bits(x) >> 28 & 8u));
}

/* Adding and subtracting 1.5 * 2^23 leaves a multiple of one, rounded to nearest even. */
static int integer_code(float x, int least, int most)
{
    if (!(x > (float)least))
        return least;
    if (!(x < (float)most))
        return most;
    return (int)((x + 0x1.8p23f) - 0x1.8p23f);
}

uint8_t grid_code(enum element t, float x)
{
    switch (t) {
    case ELEMENT_E2M1:
        return e2m1_code(x);
    case ELEMENT_E4M3:
        return e4m3_from_f32(x);
    case ELEMENT_S8:
        return (uint8_t)integer_code(x, -128, 127);
    case ELEMENT_U4B8:
        return (uint8_t)(integer_code(x, -8, 7) + 8);
    case ELEMENT_U8B128:
        return (uint8_t)(integer_code(x, -128, 127) + 128);
    default:
        return 0;
    }
}

float grid_most(enum element t)
{
    switch (t) {
    case ELEMENT_E2M1:
        return 6.0f;
    case ELEMENT_E4M3:
        return 448.0f;
    case ELEMENT_U4B8:
        return 7.5f;
    default:
        return 127.5f;
    }
}

/* ----------------------------------------------------------------------------------------------------------- scales */

float grid_step(enum scale_type t, uint32_t scale, float global)
{
    switch (t) {
    case SCALE_F32:
        return f32_from_bits(scale);
    case SCALE_BF16:
        return f32_from_bits(scale << 16);
    case SCALE_E8M0: /* 2^-127 is no normal f32 */
        return f32_from_bits(scale ? scale << 23 : 0x00400000u);
    case SCALE_E4M3:
        return e4m3_to_f32((uint8_t)scale) / global;
    default:
        return 1.0f;
    }
}

uint32_t grid_empty(enum scale_type t)
{
    switch (t) {
    case SCALE_F32:
        return 0x3f800000u;
    case SCALE_BF16:
        return 0x3f80u;
    case SCALE_E8M0:
        return 127;
    case SCALE_E4M3:
        return E4M3_EMPTY;
    default:
        return 0;
    }
}

static uint32_t e4m3_scale(float scaled)
{
    uint8_t s = e4m3_from_f32(scaled);
    return s < E4M3_LEAST ? E4M3_LEAST : s;
}

uint32_t grid_scale(enum scale_type t, float step, float global)
{
    if (!(step > 0.0f && step < f32_from_bits(0x7f800000u)))
        return grid_empty(t);
    switch (t) {
    case SCALE_F32:
        return f32_bits(step);
    case SCALE_BF16: {
        uint16_t s = bf16_from_f32(step);
        return s > 0 && s < 0x7f80 ? s : grid_empty(t);
    }
    case SCALE_E8M0: { /* half a binade up, so that the exponent is rounded */
        uint32_t b = (f32_bits(step * 0x1.6a09e6p-1f) >> 23) + 1;
        return b > 254 ? 254 : b;
    }
    case SCALE_E4M3:
        return e4m3_scale(step * global);
    default:
        return 0;
    }
}

/* The exponent of amax, one higher from mantissa 1.75 on, less that of the largest element (4 = 2^2, 256 = 2^8). */
static uint32_t e8m0_fit(enum element t, float amax)
{
    int32_t b = (int32_t)((f32_bits(amax) + (1u << 21)) >> 23) - (t == ELEMENT_E2M1 ? 2 : 8);
    return b < 0 ? 0 : b > 254 ? 254 : (uint32_t)b;
}

uint32_t grid_fit(const struct grid *g, float amax, float global)
{
    if (!(amax > 0.0f))
        return grid_empty(g->scale);
    if (g->scale == SCALE_E8M0)
        return e8m0_fit(g->element, amax);
    if (g->scale == SCALE_E4M3)
        return e4m3_scale(global * (amax / grid_most(g->element)));
    return grid_scale(g->scale, amax / grid_most(g->element), global);
}

bool grid_is_empty(const struct grid *g, float amax)
{
    if (!(amax > 0.0f))
        return true;
    float step = amax / grid_most(g->element);
    return (g->scale == SCALE_F32 && step == 0.0f) || (g->scale == SCALE_BF16 && bf16_from_f32(step) == 0);
}
