/* Encoding against a walk over single blocks and weights with grid.h: equal bytes of all parts, and equal bits of what
 * is left, in every variant, with any number of threads, and piece by piece. */
#include "tests/kernels/packed.h"

/* A kind beside those of variants.h: steps that are powers of two, and most numbers half way between two codes. */
#define TIES NUMBERS_COUNT

static float *weights(enum weight_code code, int64_t n, int64_t k, int kind)
{
    float *w = numbers(n * k, kind == TIES ? ZEROS : (enum numbers)kind, (uint64_t)(n + k));
    uint64_t seed = (uint64_t)(n * k) + code;
    float most = grid_most(weight_grid[code].element);
    for (int64_t i = 0; kind == TIES && i < n * k; i++) {
        float x = ldexpf((float)(next_random(&seed) % 32), (int)(next_random(&seed) % 9) - 4);
        w[i] = i % k % 16 == 0 || x > most ? most : x;
        w[i] = ldexpf(next_random(&seed) % 2 ? w[i] : -w[i], -7);
    }
    for (int64_t i = 0; n > 2 && i < k; i++)
        w[2 * k + i] = i % 2 ? 0.0f : -0.0f; /* a row of zeros among others */
    for (int64_t i = 0; n > 1 && k >= 64 && i < 32; i++)
        w[k + 32 + i] = i == 7 ? -0x1p-149f : -0.0f; /* and a part of one that almost is */
    return w;
}

/* Sizes of the block that weight (row, column) lies in. */
struct block {
    int64_t row, rows, column, columns;
};

static struct block block_of(const struct packed_matrix *m, int64_t row, int64_t column)
{
    const struct grid *g = &weight_grid[m->code];
    int64_t columns = grid_columns(g, m->k);
    struct block b = {.row = row / g->rows * g->rows, .column = column / columns * columns};
    b.rows = m->n - b.row < g->rows ? m->n - b.row : g->rows;
    b.columns = m->k - b.column < columns ? m->k - b.column : columns;
    return b;
}

/* What grid.h makes of a block, stored, and what is left. */
static void encode_block(struct packed_matrix *m, const float *w, struct block b, float global, float *d)
{
    const struct grid *g = &weight_grid[m->code];
    int64_t at = packed_at(m, b.row, b.column);
    float amax = 0.0f;
    for (int64_t r = b.row; r < b.row + b.rows; r++)
        for (int64_t i = b.column; i < b.column + b.columns; i++)
            amax = fmaxf(amax, fabsf(w[r * m->k + i]));
    uint32_t scale = grid_fit(g, amax, global);
    float step = grid_step(g->scale, scale, global);
    if (g->scale == SCALE_F32)
        ((uint32_t *)m->part[1].data)[at] = scale;
    else if (g->scale == SCALE_BF16)
        ((uint16_t *)m->part[1].data)[at] = (uint16_t)scale;
    else
        ((uint8_t *)m->part[1].data)[at] = (uint8_t)scale;
    for (int64_t r = b.row; r < b.row + b.rows; r++)
        for (int64_t i = b.column; i < b.column + b.columns; i++) {
            int64_t place = r * m->k + i;
            uint8_t *codes = m->part[0].data;
            uint8_t code = grid_code(g->element, grid_is_empty(g, amax) ? 0.0f : w[place] / step);
            if (grid_bits(g->element) == 8)
                codes[place] = code;
            else
                codes[place / 2] = (uint8_t)(place % 2 ? codes[place / 2] | code << 4 : code);
            d[place] = w[place] - grid_value(g->element, code) * step;
        }
}

static void encode_plainly(struct packed_matrix *m, const float *w, float amax, float *d)
{
    float global = weight_grid[m->code].scale == SCALE_E4M3 ? grid_global(amax) : 1.0f;
    if (m->part[2].data)
        *(float *)m->part[2].data = global;
    for (int64_t row = 0; row < m->n; row += weight_grid[m->code].rows)
        for (int64_t column = 0; column < m->k; column += grid_columns(&weight_grid[m->code], m->k))
            encode_block(m, w, block_of(m, row, column), global, d);
}

static void same_parts(const struct packed_matrix *want, const struct packed_matrix *got, const char *name)
{
    for (int i = 0; i < 3 && want->part[i].data; i++) {
        const unsigned char *a = want->part[i].data, *b = got->part[i].data;
        for (size_t at = 0; at < packed_bytes(want, i); at++)
            if (a[at] != b[at])
                fail_msg("%s: byte %zu of part %d is 0x%02x, expected 0x%02x", name, at, i, b[at], a[at]);
    }
}

/* Rows [first, first + n) as a matrix of their own; what belongs to the whole is shared. */
static struct packed_matrix rows_of(const struct packed_matrix *m, int64_t first, int64_t n)
{
    const struct grid *g = &weight_grid[m->code];
    struct packed_matrix rows = *m;
    rows.n = n;
    rows.part[0] = tensor_rows(&m->part[0], first, n);
    rows.part[1] = tensor_rows(&m->part[1], first / g->rows, grid_scale_rows(g, n));
    return rows;
}

static void check(enum weight_code code, int64_t n, int64_t k, int kind, float amax_factor)
{
    const struct kernels *all[8];
    size_t n_variants = variants(all);
    struct err e = {0};
    float *w = weights(code, n, k, kind), *left = numbers(n * k, RANDOM, 1), *d = numbers(n * k, RANDOM, 2);
    float amax = 0.0f;
    struct packed_matrix want = packed_of(code, n, k, DTYPE_F32), got = packed_of(code, n, k, DTYPE_F32);
    for (int64_t i = 0; i < n * k; i++)
        amax = fmaxf(amax, fabsf(w[i]) * amax_factor);
    encode_plainly(&want, w, amax, left);
    for (size_t v = 0; v < n_variants; v++) {
        char name[128];
        struct queue q = variant_queue(all[v], 1 + (int)v % 3);
        struct tensor in = tensor_matrix(w, DTYPE_F32, n, k), out = tensor_matrix(d, DTYPE_F32, n, k);
        CASE(name, "%s, code %d, %lld x %lld, numbers %d", all[v]->name, (int)code, (long long)n, (long long)k, kind);
        assert_ok(all[v]->encode(&q, &in, amax, &got, &out, &e), e);
        same_parts(&want, &got, name);
        assert_bits(left, d, n * k, name);
    }
    packed_release(&want), packed_release(&got);
    free(w), free(left), free(d);
}

static void every_code_shape_and_kind_follows_the_grid(void **state)
{
    (void)state;
    for (enum weight_code code = CODE_FP8; code < CODE_COUNT; code++)
        for (size_t s = 0; s < COUNT(packed_shapes); s++)
            for (int kind = 0; packed_fits(code, packed_shapes[s][1]) && kind <= TIES; kind++)
                check(code, packed_shapes[s][0], packed_shapes[s][1], kind, 1.0f);
}

/* Steps so small that weights saturate, and so large that block scales are raised to the least that is used. */
static void a_divisor_of_other_matrices_is_taken_as_it_is(void **state)
{
    (void)state;
    for (int kind = 0; kind < NUMBERS_COUNT; kind++) {
        check(CODE_NVFP4, 5, 352, kind, 0.01f);
        check(CODE_NVFP4, 5, 352, kind, 1e4f);
        check(CODE_NVFP4, 5, 352, kind, 0.0f);
    }
}

static void pieces_of_rows_and_threads_give_the_same_bytes(void **state)
{
    (void)state;
    enum { N = 300, K = 384 };
    const struct kernels *all[8];
    size_t n_variants = variants(all);
    struct err e = {0};
    for (enum weight_code code = CODE_FP8; code < CODE_COUNT; code++) {
        float *w = weights(code, N, K, MIXED), *left = numbers(N * K, RANDOM, 1), *d = numbers(N * K, RANDOM, 2);
        struct packed_matrix want = packed_of(code, N, K, DTYPE_F32);
        encode_plainly(&want, w, 1.0f, left);
        for (size_t v = 0; v < n_variants; v++)
            for (int threads = 1; threads <= 4; threads++) {
                struct queue q = variant_queue(all[v], threads);
                struct packed_matrix got = packed_of(code, N, K, DTYPE_F32);
                int64_t piece = threads % 2 ? N : code == CODE_FP8_BLOCK ? 128 : 7;
                for (int64_t first = 0; first < N; first += piece) {
                    int64_t n = N - first < piece ? N - first : piece;
                    struct packed_matrix rows = rows_of(&got, first, n);
                    struct tensor in = tensor_matrix(w + first * K, DTYPE_F32, n, K);
                    struct tensor out = tensor_matrix(d + first * K, DTYPE_F32, n, K);
                    assert_ok(all[v]->encode(&q, &in, 1.0f, &rows, &out, &e), e);
                }
                same_parts(&want, &got, all[v]->name);
                assert_bits(left, d, N * K, all[v]->name);
                packed_release(&got);
            }
        packed_release(&want);
        free(w), free(left), free(d);
    }
}

static void wrong_arguments_are_reported(void **state)
{
    (void)state;
    const struct kernels *k = kernels_find("plain");
    struct queue q = variant_queue(k, 1);
    struct err e;
    float x[3 * 64] = {0}, y[3 * 64];
    struct tensor w = tensor_matrix(x, DTYPE_F32, 3, 64), d = tensor_matrix(y, DTYPE_F32, 3, 64);
    struct tensor few = tensor_matrix(y, DTYPE_F32, 2, 64);
    struct packed_matrix m = packed_of(CODE_MXFP4, 3, 64, DTYPE_F32), plain = {.n = 3, .k = 64, .part = {d}};
    assert_err(k->encode(&q, &w, 1.0f, &m, &few, &e), e, ERR_BUG, "'d'");
    assert_err(k->encode(&q, &few, 1.0f, &m, &d, &e), e, ERR_BUG, "'w'");
    assert_err(k->encode(&q, &w, 1.0f, &plain, &d, &e), e, ERR_BUG, "code 0 is stored as it is");
    m.code = CODE_NVFP4;
    assert_err(k->encode(&q, &w, 1.0f, &m, &d, &e), e, ERR_BUG, "'weight_scale'");
    m.code = CODE_COUNT;
    assert_err(k->encode(&q, &w, 1.0f, &m, &d, &e), e, ERR_BUG, "code 11");
    packed_release(&m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_code_shape_and_kind_follows_the_grid),
        cmocka_unit_test(a_divisor_of_other_matrices_is_taken_as_it_is),
        cmocka_unit_test(pieces_of_rows_and_threads_give_the_same_bytes),
        cmocka_unit_test(wrong_arguments_are_reported),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
