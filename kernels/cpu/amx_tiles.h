#ifndef KERNELS_CPU_AMX_TILES_H
#define KERNELS_CPU_AMX_TILES_H
/* The five AMX operations that matmul_amx.c uses, on full tiles (16 rows of 64 bytes). With AMX_EMULATE they are plain
 * C after the documented operation of TDPBF16PS: inside one instruction the products of even and of odd inputs add up
 * in two chains from zero, the two are added, and that sum is added to the destination; subnormals are taken and given
 * as zeros. What the hardware does inside a multiply-add (fused or not) is not documented to the bit, so the emulation
 * proves the logic of the kernel (which data meet where), not the bits of a real AMX unit: those are `bf16 cpu amx`.
 * The tile number must be a constant, hence macros around the intrinsics. */
#include <stdint.h>
#include <string.h>

#ifdef AMX_EMULATE
#include <math.h>

#include "engine/base/dtype.h"

/* The tile registers of a thread. */
static _Thread_local uint8_t amx_tiles[8][16][64];

static inline void amx_begin(void) { memset(amx_tiles, 0x55, sizeof amx_tiles); }
static inline void amx_end(void) { memset(amx_tiles, 0xaa, sizeof amx_tiles); }
static inline void amx_zero(int tile) { memset(amx_tiles[tile], 0, sizeof amx_tiles[tile]); }
static inline void amx_load(int tile, const void *p, int64_t stride)
{
    for (int r = 0; r < 16; r++)
        memcpy(amx_tiles[tile][r], (const char *)p + r * stride, 64);
}
static inline void amx_store(int tile, void *p, int64_t stride)
{
    for (int r = 0; r < 16; r++)
        memcpy((char *)p + r * stride, amx_tiles[tile][r], 64);
}
static inline float amx_flush(float x) { return fabsf(x) < 0x1p-126f ? copysignf(0.0f, x) : x; }
static inline float amx_bf16(const uint8_t *row, int i)
{
    uint16_t u;
    memcpy(&u, row + 2 * i, sizeof u);
    return amx_flush(bf16_to_f32(u));
}
/* c[m][n] += sum over pairs k of a[m][2k] * b[k][2n] + a[m][2k+1] * b[k][2n+1] */
static inline void amx_dp(int c, int a, int b)
{
    for (int m = 0; m < 16; m++) {
        for (int n = 0; n < 16; n++) {
            float even = 0.0f, odd = 0.0f, sum;
            for (int k = 0; k < 16; k++) {
                even = amx_flush(fmaf(amx_bf16(amx_tiles[a][m], 2 * k), amx_bf16(amx_tiles[b][k], 2 * n), even));
                odd = amx_flush(fmaf(amx_bf16(amx_tiles[a][m], 2 * k + 1), amx_bf16(amx_tiles[b][k], 2 * n + 1), odd));
            }
            memcpy(&sum, amx_tiles[c][m] + 4 * n, sizeof sum);
            sum = amx_flush(amx_flush(sum) + amx_flush(even + odd));
            memcpy(amx_tiles[c][m] + 4 * n, &sum, sizeof sum);
        }
    }
}

#else
#include <immintrin.h>

/* Palette 1, eight tiles of 16 rows by 64 bytes. Per thread; begin and end of a task, so that the kernel need not keep
 * the tiles over a switch of threads. */
static inline void amx_begin(void)
{
    struct {
        uint8_t palette, start_row, reserved[14];
        uint16_t row_bytes[16];
        uint8_t rows[16];
    } config = {.palette = 1};
    _Static_assert(sizeof config == 64, "the operand of LDTILECFG");
    for (int i = 0; i < 8; i++) {
        config.row_bytes[i] = 64;
        config.rows[i] = 16;
    }
    _tile_loadconfig(&config);
}
static inline void amx_end(void) { _tile_release(); }
#define amx_zero(tile) _tile_zero(tile)
#define amx_load(tile, p, stride) _tile_loadd(tile, p, (size_t)(stride))
#define amx_store(tile, p, stride) _tile_stored(tile, p, (size_t)(stride))
#define amx_dp(c, a, b) _tile_dpbf16ps(c, a, b)
#endif

#endif
