/* Panels of packed weights against grid.h, weight by weight, at the places that kernels/cpu/pack.h gives them. */
#include "tests/kernels/packed.h"

#include "kernels/cpu/pack.h"

/* Any codes and scales that a file may hold. */
static void draw(struct packed_matrix *m, uint64_t seed)
{
    const struct grid *g = &weight_grid[m->code];
    unsigned char *codes = m->part[0].data, *scale = m->part[1].data;
    for (size_t i = 0; i < packed_bytes(m, 0); i++) {
        codes[i] = (unsigned char)(i < 256 ? i : next_random(&seed)); /* each at least once */
        if (g->element == ELEMENT_E4M3 && (codes[i] & 0x7f) == 0x7f)
            codes[i] = 0x7e;
    }
    if (m->code == CODE_PLAIN)
        return;
    for (int64_t i = 0; i < tensor_count(&m->part[1]); i++) {
        uint32_t bits = next_random(&seed) ^ next_random(&seed) << 16; /* of any sign, denormals among them */
        if (g->scale == SCALE_F32)
            ((uint32_t *)m->part[1].data)[i] = (bits & 0x7f800000u) == 0x7f800000u ? 0x00000001u : bits;
        else if (g->scale == SCALE_BF16)
            ((uint16_t *)m->part[1].data)[i] = (uint16_t)((bits & 0x7f80u) == 0x7f80u ? 0x0001u : bits);
        else
            scale[i] = (unsigned char)(g->scale == SCALE_E8M0 ? bits % 255 : bits % 127);
    }
    if (m->part[2].data)
        *(float *)m->part[2].data = 1234.56f;
}

/* The bits of weight (row, column) in panels of `mode`; a place that no weight has is not asked for. */
static uint32_t at(const struct tensor *panels, int64_t row, int64_t column)
{
    int64_t k = panels->shape[1], p = row / PACK_WIDTH, j = row % PACK_WIDTH;
    if (panels->dtype == DTYPE_F32)
        return ((const uint32_t *)panels->data)[p * pack_stride_f32(k) + column * PACK_WIDTH + j];
    return ((const uint16_t *)panels->data)[p * pack_stride_bf16(k) + (column / 2 * PACK_WIDTH + j) * 2 + column % 2];
}

static uint32_t in_mode(float x, enum dtype mode) { return mode == DTYPE_F32 ? f32_bits(x) : bf16_from_f32(x); }

/* `m` among rows that are there already: `before` ones, and some after. */
static void check(const struct packed_matrix *m, int64_t before, enum dtype mode)
{
    enum { AFTER = 5 };
    const struct kernels *all[8];
    size_t n_variants = variants(all);
    struct err e = {0};
    int64_t rows = before + m->n + AFTER;
    float *others = numbers(rows * m->k, RANDOM, 9);
    for (size_t v = 0; v < n_variants; v++) {
        struct queue q = variant_queue(all[v], 1 + (int)v % 3);
        struct tensor panels, w = tensor_matrix(others, DTYPE_F32, rows, m->k);
        assert_ok(all[v]->panels_new(&q, &panels, rows, m->k, mode, &e), e);
        assert_ok(all[v]->pack(&q, &w, 0, &panels, &e), e);
        assert_ok(all[v]->unpack(&q, m, before, &panels, &e), e);
        for (int64_t row = 0; row < (rows + 15) / 16 * 16; row++)
            for (int64_t i = 0; i < (mode == DTYPE_BF16 ? (m->k + 1) / 2 * 2 : m->k); i++) {
                bool mine = row >= before && row < before + m->n && i < m->k, is_padding = row >= rows || i >= m->k;
                float x = mine ? packed_value(m, row - before, i) : is_padding ? 0.0f : others[row * m->k + i];
                uint32_t want = in_mode(x, mode), got = at(&panels, row, i);
                if (want != got)
                    fail_msg("%s, code %d [%lld, %lld] from row %lld on, %s: weight (%lld, %lld) is 0x%x, expected "
                             "0x%x", all[v]->name, (int)m->code, (long long)m->n, (long long)m->k, (long long)before,
                             dtype_info(mode)->name, (long long)row, (long long)i, got, want);
            }
        all[v]->tensor_free(&q, &panels);
    }
    free(others);
}

static void every_code_shape_and_place_gives_the_values_of_the_grid(void **state)
{
    (void)state;
    for (enum weight_code code = CODE_FP8; code < CODE_COUNT; code++)
        for (size_t s = 0; s < COUNT(packed_shapes); s++) {
            int64_t n = packed_shapes[s][0], k = packed_shapes[s][1];
            if (!packed_fits(code, k))
                continue;
            struct packed_matrix m = packed_of(code, n, k, DTYPE_F32);
            draw(&m, (uint64_t)(n * k) + code);
            for (int mode = 0; mode < 2; mode++) {
                check(&m, 0, mode ? DTYPE_BF16 : DTYPE_F32);
                check(&m, s % 3 ? 16 : 3, mode ? DTYPE_BF16 : DTYPE_F32); /* 3: rows of two matrices in one panel */
            }
            packed_release(&m);
        }
}

/* As they are in a checkpoint: every number of two bytes, and f32 that is not finite or between two numbers of bf16. */
static void plain_weights_keep_every_number(void **state)
{
    (void)state;
    static const enum dtype types[] = {DTYPE_BF16, DTYPE_F16, DTYPE_F32};
    for (size_t t = 0; t < COUNT(types); t++)
        for (int mode = 0; mode < 2; mode++) {
            struct packed_matrix m = packed_of(CODE_PLAIN, 65536 / 128, 128, types[t]), odd;
            for (uint32_t i = 0; i < 65536; i++) {
                if (types[t] == DTYPE_F32)
                    ((uint32_t *)m.part[0].data)[i] = i << 16 | (i * 40503u & 0xffffu);
                else
                    ((uint16_t *)m.part[0].data)[i] = (uint16_t)i;
                if (types[t] == DTYPE_F32 && i < 8) /* exact ties, and NaN that rounds to none */
                    ((uint32_t *)m.part[0].data)[i] = i < 4 ? (0x3f80u + i) << 16 | 0x8000u : 0x7fffffffu - i;
            }
            check(&m, 0, mode ? DTYPE_BF16 : DTYPE_F32);
            odd = m;
            odd.n = 5, odd.k = 37;
            odd.part[0].shape[0] = 5, odd.part[0].shape[1] = 37;
            check(&odd, 0, mode ? DTYPE_BF16 : DTYPE_F32);
            check(&odd, 14, mode ? DTYPE_BF16 : DTYPE_F32);
            packed_release(&m);
        }
}

/* E4M3 has a code for NaN, which no encoder writes: should a file have it, it must be seen. */
static void nan_stays_nan(void **state)
{
    (void)state;
    const struct kernels *all[8];
    size_t n_variants = variants(all);
    struct err e = {0};
    struct packed_matrix m = packed_of(CODE_FP8, 2, 1, DTYPE_F32);
    memcpy(m.part[0].data, ((const uint8_t[]){0x7f, 0xff}), 2);
    memcpy(m.part[1].data, ((const float[]){1.0f, 1.0f}), 8);
    for (size_t v = 0; v < n_variants; v++)
        for (int mode = 0; mode < 2; mode++) {
            struct queue q = variant_queue(all[v], 1);
            struct tensor panels;
            assert_ok(all[v]->panels_new(&q, &panels, 2, 1, mode ? DTYPE_BF16 : DTYPE_F32, &e), e);
            assert_ok(all[v]->unpack(&q, &m, 0, &panels, &e), e);
            for (int row = 0; row < 2; row++) {
                uint32_t bits = at(&panels, row, 0);
                assert_true(isnan(mode ? bf16_to_f32((uint16_t)bits) : f32_from_bits(bits)));
            }
            all[v]->tensor_free(&q, &panels);
        }
    packed_release(&m);
}

static void wrong_arguments_are_reported(void **state)
{
    (void)state;
    const struct kernels *k = kernels_find("plain");
    struct queue q = variant_queue(k, 1);
    struct err e;
    struct tensor panels;
    struct packed_matrix m = packed_of(CODE_MXFP4, 3, 64, DTYPE_F32);
    assert_ok(k->panels_new(&q, &panels, 3, 64, DTYPE_BF16, &e), e);
    m.code = CODE_COUNT;
    assert_err(k->unpack(&q, &m, 0, &panels, &e), e, ERR_BUG, "unpack: code 11");
    m.code = CODE_NVFP4;
    assert_err(k->unpack(&q, &m, 0, &panels, &e), e, ERR_BUG, "'weight_scale' is u8 of rank 2 [3, 2]");
    m.code = CODE_INT4_G64;
    assert_err(k->unpack(&q, &m, 0, &panels, &e), e, ERR_BUG, "expected row-major i32 [3, 8]");
    m.code = CODE_MXFP4;
    m.k = 48;
    assert_err(k->unpack(&q, &m, 0, &panels, &e), e, ERR_BUG, "48 columns of code 4, expected a multiple of 32");
    m.k = 64;
    assert_err(k->unpack(&q, &m, 1, &panels, &e), e, ERR_BUG, "rows 1 to 4 of 3");
    assert_err(k->unpack(&q, &m, -1, &panels, &e), e, ERR_BUG, "rows -1 to 2 of 3");
    k->tensor_free(&q, &panels);
    packed_release(&m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_code_shape_and_place_gives_the_values_of_the_grid),
        cmocka_unit_test(plain_weights_keep_every_number),
        cmocka_unit_test(nan_stays_nan),
        cmocka_unit_test(wrong_arguments_are_reported),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
