#ifndef KERNELS_CUDA_SCALES_H
#define KERNELS_CUDA_SCALES_H
/* The order in which cuBLASLt reads the scales of blocks along k, for C and for device code: VEC16_UE4M3 (NVFP4) and
 * VEC32_UE8M0 (MXFP4, MXFP8) alike, for it knows only rows and columns of one-byte scales, not how many numbers one
 * is for. Scales lie in tiles of 128 rows by 4 columns, 512 bytes each, tiles in row-major order. In a tile the four
 * rows r, r + 32, r + 64 and r + 96 share 16 bytes:
 *
 *     byte   0..3            4..7             8..11            12..15           16..19 ...
 *            row 0, c 0..3   row 32, c 0..3   row 64, c 0..3   row 96, c 0..3   row 1, c 0..3 ...
 *
 * What fills the last tiles up must be zero. (cuBLAS manual, "1D block scaling factors layout") */
#include <stdint.h>

#ifdef __CUDACC__
#define SCALES_INLINE __host__ __device__ static inline
#else
#define SCALES_INLINE static inline
#endif

#define SCALE_TILE_ROWS 128
#define SCALE_TILE_COLUMNS 4

SCALES_INLINE int64_t scale_rows(int64_t rows)
{
    return (rows + SCALE_TILE_ROWS - 1) / SCALE_TILE_ROWS * SCALE_TILE_ROWS;
}
SCALES_INLINE int64_t scale_columns(int64_t columns)
{
    return (columns + SCALE_TILE_COLUMNS - 1) / SCALE_TILE_COLUMNS * SCALE_TILE_COLUMNS;
}
/* Bytes of the scales of [rows, columns] blocks. */
SCALES_INLINE int64_t scale_bytes(int64_t rows, int64_t columns) { return scale_rows(rows) * scale_columns(columns); }

/* Where the scale of block (row, column) is, of a matrix with `columns` blocks a row. */
SCALES_INLINE int64_t scale_offset(int64_t row, int64_t column, int64_t columns)
{
    int64_t tile = row / SCALE_TILE_ROWS * (scale_columns(columns) / SCALE_TILE_COLUMNS) + column / SCALE_TILE_COLUMNS;
    return tile * (SCALE_TILE_ROWS * SCALE_TILE_COLUMNS) + row % 32 * 16 + row / 32 % 4 * 4 +
           column % SCALE_TILE_COLUMNS;
}

#endif
