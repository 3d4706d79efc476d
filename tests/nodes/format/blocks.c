/* Codes and scales of matrices in all formats: rounded, against a walk over single weights; stored and loaded again;
 * decoded. What codes and scales of single numbers are is tests/kernels/grid.c's. */
#include "tests/nodes/format/rendered.h"

#include "nodes/format/blocks.h"

/* Rows and columns that cut off blocks where a format allows it: two rows of tiles, and the second tile of a row is of
 * 72 columns. */
#define N 130
#define CUT 200
#define WHOLE 256

static bool is_quantized(const struct format *f) { return weight_grid[f->code].element != ELEMENT_PLAIN; }
static int64_t columns_of(const struct format *f) { return f->k_multiple <= 4 ? CUT : WHOLE; }

static struct blocks blocks_of(const struct format *f, int64_t n, int64_t k, float amax)
{
    struct err e = {0};
    struct blocks b;
    assert_ok(blocks_new(&b, f, n, k, amax, &e), e);
    return b;
}

/* Gaussian, with rows of different sizes, rows and blocks of zeros of both signs, and weights far out. */
static float *weights(int64_t n, int64_t k)
{
    float *w = gaussian(n * k, 0.02f);
    for (int64_t i = 0; i < n * k; i++) {
        int64_t row = i / k, column = i % k;
        if (row % 7 == 3 || column / 16 % 5 == 4)
            w[i] = i % 2 ? 0.0f : -0.0f;
        w[i] = ldexpf(w[i], (int)(row % 11 - 5) * 3) * (i % 101 == 0 ? 40.0f : 1.0f);
    }
    return w;
}

static float largest(const float *w, int64_t n, int64_t k, int64_t stride)
{
    float most = 0.0f;
    for (int64_t row = 0; row < n; row++)
        for (int64_t i = 0; i < k; i++)
            most = fmaxf(most, fabsf(w[row * stride + i]));
    return most;
}

static struct blocks rounded(const struct format *f, const float *w, int64_t n, int64_t k)
{
    struct blocks b = blocks_of(f, n, k, largest(w, n, k, k));
    blocks_round(&b, w, 0, n);
    return b;
}

/* The scale and code of weight (row, column), from all weights of its block. */
static void expect(const struct blocks *b, const float *w, int64_t row, int64_t column, uint32_t *scale, uint8_t *code)
{
    int64_t top = row / b->grid.rows * b->grid.rows, left = column / b->columns * b->columns;
    int64_t rows = b->n - top < b->grid.rows ? b->n - top : b->grid.rows;
    int64_t columns = b->k - left < b->columns ? b->k - left : b->columns;
    float amax = largest(w + top * b->k + left, rows, columns, b->k);
    *scale = grid_fit(&b->grid, amax, b->global);
    float step = grid_step(b->grid.scale, *scale, b->global), x = w[row * b->k + column];
    *code = grid_code(b->grid.element, grid_is_empty(&b->grid, amax) ? 0.0f : x / step);
}

static void check_rounding(const struct format *f, int64_t n, int64_t k)
{
    float *w = weights(n, k);
    struct blocks b = rounded(f, w, n, k);
    for (int64_t i = 0; i < n * k; i += 3) { /* 3 and the rows' lengths have no factor in common */
        uint32_t scale;
        uint8_t code;
        int64_t row = i / k, column = i % k, at = blocks_at(&b, row, column);
        expect(&b, w, row, column, &scale, &code);
        if (b.code[i] != code || b.scale[at] != scale)
            fail_msg("%s [%lld, %lld]: weight (%lld, %lld) has code %d and scale 0x%x, expected %d and 0x%x", f->name,
                     (long long)n, (long long)k, (long long)row, (long long)column, b.code[i], b.scale[at], code,
                     scale);
    }
    blocks_free(&b);
    free(w);
}

static void every_weight_gets_the_code_of_its_block(void **state)
{
    (void)state;
    for (const struct format *const *f = formats; *f; f++) {
        if (!is_quantized(*f))
            continue;
        check_rounding(*f, N, columns_of(*f));
        check_rounding(*f, 1, (*f)->k_multiple);
        check_rounding(*f, 3, WHOLE);
    }
    check_rounding(&format_fp8_block, 300, 129);
}

static void tables_of_scales_have_a_place_per_block(void **state)
{
    (void)state;
    struct blocks b = blocks_of(&format_fp8_block, N, CUT, 1.0f);
    assert_true(b.scale_rows == 2 && b.scale_columns == 2 && b.columns == 128);
    assert_true(blocks_at(&b, 127, 127) == 0 && blocks_at(&b, 127, 128) == 1 && blocks_at(&b, 128, 0) == 2);
    blocks_free(&b);
    b = blocks_of(&format_int8, N, CUT, 1.0f);
    assert_true(b.scale_rows == N && b.scale_columns == 1 && blocks_at(&b, 5, 199) == 5);
    blocks_free(&b);
    b = blocks_of(&format_nvfp4, N, WHOLE, 0.75f);
    assert_true(b.scale_columns == 16 && b.global == 3584.0f && blocks_at(&b, 1, 16) == 17);
    blocks_free(&b);
}

/* blocks_load is the inverse of blocks_store, and both kinds of decoding give the code's value times the block's
 * step. */
static void what_is_stored_is_loaded_and_decoded_alike(void **state)
{
    (void)state;
    static float out[N * WHOLE], again[N * WHOLE];
    for (const struct format *const *f = formats; *f; f++) {
        if (!is_quantized(*f))
            continue;
        int64_t k = columns_of(*f), count = N * k;
        float *w = weights(N, k);
        struct blocks b = rounded(*f, w, N, k), loaded = blocks_of(*f, N, k, 123.0f);
        struct rendering r = rendering_of(*f, N, k, DTYPE_BF16);
        size_t scales = (size_t)(b.scale_rows * b.scale_columns);
        blocks_store(&b, &r);
        blocks_load(&loaded, &r);
        assert_memory_equal(loaded.code, b.code, (size_t)count);
        assert_memory_equal(loaded.scale, b.scale, scales * sizeof *b.scale);
        assert_memory_equal(loaded.step, b.step, scales * sizeof *b.step);
        assert_true(loaded.global == b.global);
        blocks_decode(&loaded, 0, N, out);
        (*f)->decode(&r, 0, N, again);
        for (int64_t i = 0; i < count; i++) {
            float v = grid_value(b.grid.element, b.code[i]) * b.step[blocks_at(&b, i / k, i % k)];
            assert_int_equal(f32_bits(out[i]), f32_bits(v));
            assert_int_equal(f32_bits(again[i]), f32_bits(v));
        }
        release(&r);
        r = encoded(*f, w, N, k); /* the format's own encoding is the same in one go */
        blocks_load(&loaded, &r);
        assert_memory_equal(loaded.code, b.code, (size_t)count);
        assert_memory_equal(loaded.scale, b.scale, scales * sizeof *b.scale);
        blocks_free(&b);
        blocks_free(&loaded);
        release(&r);
        free(w);
    }
}

/* Decoded weights lie on the grid: with the scales kept, rounding them changes nothing. */
static void decoded_weights_are_rounded_to_themselves(void **state)
{
    (void)state;
    static float once[N * WHOLE], twice[N * WHOLE];
    for (const struct format *const *f = formats; *f; f++) {
        if (!is_quantized(*f))
            continue;
        int64_t k = columns_of(*f);
        float *w = weights(N, k);
        struct blocks b = rounded(*f, w, N, k);
        blocks_decode(&b, 0, N, once);
        memset(b.code, 1, (size_t)(N * k));
        blocks_recode(&b, once, 0, N);
        blocks_decode(&b, 0, N, twice);
        for (int64_t i = 0; i < N * k; i++)
            if (once[i] != twice[i])
                fail_msg("%s: weight %lld is %.9g, then %.9g", (*f)->name, (long long)i, (double)once[i],
                         (double)twice[i]);
        blocks_free(&b);
        free(w);
    }
}

/* Pieces that begin with a row of blocks, in any order. */
static void pieces_of_rows_give_the_codes_of_the_whole(void **state)
{
    (void)state;
    for (const struct format *const *f = formats; *f; f++) {
        if (!is_quantized(*f))
            continue;
        int64_t k = columns_of(*f);
        float *w = weights(N, k);
        struct blocks b = rounded(*f, w, N, k), pieces = blocks_of(*f, N, k, largest(w, N, k, k));
        blocks_round(&pieces, w, 128, N - 128);
        blocks_round(&pieces, w, 0, 128);
        assert_memory_equal(pieces.code, b.code, (size_t)(N * k));
        assert_memory_equal(pieces.scale, b.scale, (size_t)(b.scale_rows * b.scale_columns) * sizeof *b.scale);
        memset(pieces.code, 1, (size_t)(N * k));
        blocks_copy(&pieces, &b);
        assert_memory_equal(pieces.code, b.code, (size_t)(N * k));
        blocks_free(&b);
        blocks_free(&pieces);
        free(w);
    }
}

static void what_has_no_blocks_is_our_mistake(void **state)
{
    (void)state;
    struct err e = {0};
    struct blocks b;
    assert_err(blocks_new(&b, &format_bf16, 4, 16, 1.0f, &e), e, ERR_BUG, "bf16");
    assert_err(blocks_new(&b, &format_int4_g128, 4, 64, 1.0f, &e), e, ERR_BUG, "int4_g128");
}

static void running_out_of_memory_leaves_nothing_behind(void **state)
{
    (void)state;
    for (long nth = 1; nth <= 3; nth++) {
        struct err e = {0};
        struct blocks b = {.n = -1};
        mem_fail_after(nth, false);
        bool ok = blocks_new(&b, &format_nvfp4, 16, 64, 1.0f, &e);
        mem_fail_after(0, false);
        assert_false(ok);
        assert_int_equal(e.code, ERR_RESOURCE);
        assert_int_equal(b.n, -1);
    }
    assert_int_equal(blocks_bytes(&format_nvfp4, 16, 64), 16 * 64 + 16 * 4 * 8);
    assert_int_equal(blocks_bytes(&format_fp8_block, N, CUT), N * CUT + 4 * 8);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_weight_gets_the_code_of_its_block),
        cmocka_unit_test(tables_of_scales_have_a_place_per_block),
        cmocka_unit_test(what_is_stored_is_loaded_and_decoded_alike),
        cmocka_unit_test(decoded_weights_are_rounded_to_themselves),
        cmocka_unit_test(pieces_of_rows_give_the_codes_of_the_whole),
        cmocka_unit_test(what_has_no_blocks_is_our_mistake),
        cmocka_unit_test(running_out_of_memory_leaves_nothing_behind),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
