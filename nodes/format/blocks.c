/* Codes and scales of a matrix, apart from how they are stored. */
#include "nodes/format/blocks.h"

#include <string.h>

/* ----------------------------------------------------------------------------------------------------------- making */

uint64_t blocks_bytes(const struct format *f, int64_t n, int64_t k)
{
    const struct grid *g = &weight_grid[f->code];
    uint64_t scales = (uint64_t)(grid_scale_rows(g, n) * grid_scale_columns(g, k));
    return (uint64_t)(n * k) + scales * (sizeof(uint32_t) + sizeof(float));
}

bool blocks_new(struct blocks *out, const struct format *f, int64_t n, int64_t k, float amax, struct err *e)
{
    struct blocks b = {.format = f, .grid = weight_grid[f->code], .n = n, .k = k, .global = 1.0f};
    if (b.grid.element == ELEMENT_PLAIN || !format_fits(f, n, k))
        return err_set(e, ERR_BUG, "%s has no blocks for [%lld, %lld]", f->name, (long long)n, (long long)k);
    b.columns = grid_columns(&b.grid, k);
    b.scale_rows = grid_scale_rows(&b.grid, n);
    b.scale_columns = grid_scale_columns(&b.grid, k);
    if (b.grid.scale == SCALE_E4M3)
        b.global = grid_global(amax);
    grid_values(b.grid.element, b.value);
    size_t scales = (size_t)(b.scale_rows * b.scale_columns);
    if (!mem_raw(&b.code, (size_t)(n * k), e) || !mem_raw(&b.scale, scales, e) || !mem_raw(&b.step, scales, e)) {
        blocks_free(&b);
        return err_context(e, "codes in %s", f->name);
    }
    *out = b;
    return true;
}

void blocks_free(struct blocks *b)
{
    mem_free(b->code);
    mem_free(b->scale);
    mem_free(b->step);
    *b = (struct blocks){0};
}

void blocks_copy(struct blocks *dst, const struct blocks *src)
{
    size_t scales = (size_t)(src->scale_rows * src->scale_columns);
    memcpy(dst->code, src->code, (size_t)(src->n * src->k));
    memcpy(dst->scale, src->scale, scales * sizeof *src->scale);
    memcpy(dst->step, src->step, scales * sizeof *src->step);
    dst->global = src->global;
}

/* --------------------------------------------------------------------------------------------------------- rounding */

/* A block's place in the matrix. */
struct place {
    int64_t row, rows, column, columns;
};

static struct place place_of(const struct blocks *b, int64_t scale_row, int64_t scale_column)
{
    struct place p = {.row = scale_row * b->grid.rows, .column = scale_column * b->columns};
    p.rows = b->n - p.row < b->grid.rows ? b->n - p.row : b->grid.rows;
    p.columns = b->k - p.column < b->columns ? b->k - p.column : b->columns;
    return p;
}

static float block_amax(const struct blocks *b, const float *w, struct place p)
{
    uint32_t most = 0;
    for (int64_t row = p.row; row < p.row + p.rows; row++)
        for (int64_t i = p.column; i < p.column + p.columns; i++) {
            uint32_t bits = f32_bits(w[row * b->k + i]) & 0x7fffffffu;
            most = bits > most ? bits : most;
        }
    return f32_from_bits(most);
}

/* `is_zero`: the block has no scale, and all codes are that of zero. */
static void code_block(struct blocks *b, const float *w, struct place p, float step, bool is_zero)
{
    const uint8_t zero = grid_code(b->grid.element, 0.0f);
    for (int64_t row = p.row; row < p.row + p.rows; row++)
        for (int64_t i = p.column; i < p.column + p.columns; i++)
            b->code[row * b->k + i] = is_zero ? zero : grid_code(b->grid.element, w[row * b->k + i] / step);
}

static void each_block(struct blocks *b, const float *w, int64_t first, int64_t n, bool fit)
{
    for (int64_t r = first / b->grid.rows; r * b->grid.rows < first + n; r++)
        for (int64_t c = 0; c < b->scale_columns; c++) {
            int64_t at = r * b->scale_columns + c;
            struct place p = place_of(b, r, c);
            float amax = block_amax(b, w, p);
            if (fit)
                blocks_set_scale(b, at, grid_fit(&b->grid, amax, b->global));
            code_block(b, w, p, b->step[at], fit ? grid_is_empty(&b->grid, amax) : amax == 0.0f);
        }
}

void blocks_round(struct blocks *b, const float *w, int64_t first, int64_t n) { each_block(b, w, first, n, true); }
void blocks_recode(struct blocks *b, const float *w, int64_t first, int64_t n) { each_block(b, w, first, n, false); }

void blocks_decode(const struct blocks *b, int64_t first, int64_t n, float *out)
{
    for (int64_t row = first; row < first + n; row++, out += b->k)
        for (int64_t c = 0; c < b->scale_columns; c++) {
            float step = b->step[row / b->grid.rows * b->scale_columns + c];
            int64_t end = (c + 1) * b->columns < b->k ? (c + 1) * b->columns : b->k;
            for (int64_t i = c * b->columns; i < end; i++)
                out[i] = b->value[b->code[row * b->k + i]] * step;
        }
}

/* -------------------------------------------------------------------------------------------------- the stored form */

static void store_scale(enum scale_type t, void *scales, int64_t at, uint32_t scale)
{
    if (t == SCALE_F32)
        ((uint32_t *)scales)[at] = scale;
    else if (t == SCALE_BF16)
        ((uint16_t *)scales)[at] = (uint16_t)scale;
    else
        ((uint8_t *)scales)[at] = (uint8_t)scale;
}

static uint32_t load_scale(enum scale_type t, const void *scales, int64_t at)
{
    return t == SCALE_F32    ? ((const uint32_t *)scales)[at]
           : t == SCALE_BF16 ? ((const uint16_t *)scales)[at]
                             : ((const uint8_t *)scales)[at];
}

void blocks_store(const struct blocks *b, struct rendering *r)
{
    uint8_t *codes = r->part[0];
    int64_t count = b->n * b->k, scales = b->scale_rows * b->scale_columns;
    if (grid_bits(b->grid.element) == 8)
        memcpy(codes, b->code, (size_t)count);
    else
        for (int64_t i = 0; i < count / 2; i++) /* k is even, so that no byte straddles rows */
            codes[i] = (uint8_t)(b->code[2 * i] | b->code[2 * i + 1] << 4);
    for (int64_t i = 0; i < scales; i++)
        store_scale(b->grid.scale, r->part[1], i, b->scale[i]);
    if (b->grid.scale == SCALE_E4M3)
        memcpy(r->part[2], &b->global, sizeof b->global);
}

void blocks_load(struct blocks *b, const struct rendering *r)
{
    const uint8_t *codes = r->part[0];
    int64_t count = b->n * b->k, scales = b->scale_rows * b->scale_columns;
    if (b->grid.scale == SCALE_E4M3)
        memcpy(&b->global, r->part[2], sizeof b->global);
    for (int64_t i = 0; i < count; i++)
        b->code[i] = (uint8_t)(grid_bits(b->grid.element) == 8 ? codes[i] : codes[i / 2] >> 4 * (i & 1) & 15);
    for (int64_t i = 0; i < scales; i++)
        blocks_set_scale(b, i, load_scale(b->grid.scale, r->part[1], i));
}

bool blocks_encode_rendering(const float *w, float amax, struct rendering *r, struct err *e)
{
    struct blocks b;
    float seen = 0.0f;
    if (!format_amax(w, r->n, r->k, &seen, e) || !blocks_new(&b, r->format, r->n, r->k, amax, e))
        return false;
    blocks_round(&b, w, 0, r->n);
    blocks_store(&b, r);
    blocks_free(&b);
    return true;
}

/* One block of a row, of codes of `bits` each from column `first` on. */
static void decode_block(const uint8_t *row, int bits, int64_t first, int64_t n, const float value[256], float step,
                         float *out)
{
    if (bits == 8) {
        for (int64_t i = 0; i < n; i++)
            out[i] = value[row[first + i]] * step;
        return;
    }
    row += first / 2; /* blocks of four-bit codes begin at even columns */
    for (int64_t j = 0; j < n / 2; j++) {
        out[2 * j] = value[row[j] & 15] * step;
        out[2 * j + 1] = value[row[j] >> 4] * step;
    }
}

void blocks_decode_rendering(const struct rendering *r, int64_t first, int64_t n, float *out)
{
    const struct grid *g = &weight_grid[r->format->code];
    int bits = grid_bits(g->element);
    int64_t columns = grid_columns(g, r->k), per_row = grid_scale_columns(g, r->k);
    float value[256], global = 1.0f;
    grid_values(g->element, value);
    if (g->scale == SCALE_E4M3)
        memcpy(&global, r->part[2], sizeof global);
    for (int64_t row = first; row < first + n; row++, out += r->k)
        for (int64_t c = 0; c < per_row; c++) {
            uint32_t scale = load_scale(g->scale, r->part[1], row / g->rows * per_row + c);
            int64_t start = c * columns, count = r->k - start < columns ? r->k - start : columns;
            decode_block((const uint8_t *)r->part[0] + row * r->k * bits / 8, bits, start, count, value,
                         grid_step(g->scale, scale, global), out + start);
        }
}
