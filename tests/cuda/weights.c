/* Weights of every code on a device, against the plain encoding and decoding of nodes/format: equal bytes. */
#include "tests/cuda/pair.h"

#include "nodes/format/packed.h"

/* One format of each code; those that only treat inputs otherwise are left out. */
static size_t coded_formats(const struct format *out[CODE_COUNT])
{
    size_t n = 0;
    bool seen[CODE_COUNT] = {[CODE_PLAIN] = true};
    for (size_t i = 0; formats[i]; i++)
        if (!seen[formats[i]->code]) {
            seen[formats[i]->code] = true;
            out[n++] = formats[i];
        }
    assert_int_equal(n, CODE_COUNT - 1);
    return n;
}

static void release(struct rendering *r)
{
    for (int i = 0; i < FORMAT_PARTS; i++)
        mem_free(r->part[i]);
}

/* --------------------------------------------------------------------------------------------------------- encoding */

/* A kind beside those of variants.h: steps that are powers of two, and most numbers half way between two codes. */
#define TIES NUMBERS_COUNT

static float *weights(const struct format *f, int64_t n, int64_t k, int kind)
{
    if (kind != TIES)
        return numbers(n * k, (enum numbers)kind, (uint64_t)(n + k));
    float most = grid_most(weight_grid[f->code].element), *w = numbers(n * k, ZEROS, 1);
    uint64_t seed = (uint64_t)(n * k + f->code);
    for (int64_t i = 0; i < n * k; i++) {
        float x = ldexpf((float)(next_random(&seed) % 32), (int)(next_random(&seed) % 9) - 4);
        w[i] = i % k % 16 == 0 || x > most ? most : x;
        w[i] = ldexpf(next_random(&seed) % 2 ? w[i] : -w[i], -7);
    }
    return w;
}

static void same_parts(const struct rendering *want, const struct rendering *got, const char *name)
{
    struct format_part parts[FORMAT_PARTS];
    int count = want->format->parts(want->n, want->k, want->source, parts);
    for (int i = 0; i < count; i++) {
        const unsigned char *a = want->part[i], *b = got->part[i];
        for (uint64_t at = 0; at < format_part_bytes(&parts[i]); at++)
            if (a[at] != b[at])
                fail_msg("%s: byte %llu of %s is 0x%02x, expected 0x%02x", name, (unsigned long long)at,
                         parts[i].suffix, b[at], a[at]);
    }
}

static void encode_case(const struct pair *p, const struct format *f, int64_t n, int64_t k, int kind)
{
    char name[96];
    struct err e = {0};
    struct rendering here, brought;
    struct packed_matrix packed;
    float *w = weights(f, n, k, kind), *decoded = numbers(n * k, ZEROS, 1), amax = 0.0f;
    for (int64_t i = 0; n > 2 && i < k; i++)
        w[2 * k + i] = 0.0f; /* a row of zeros among others */
    for (int64_t i = 0; n > 1 && k >= 64 && i < 32; i++)
        w[k + 32 + i] = i == 7 ? -0x1p-149f : -0.0f; /* and a part of one that almost is */
    struct tensor gw = there(p, w, DTYPE_F32, n, k), gd = blank(p, DTYPE_F32, n, k);
    CASE(name, "%s, %lld x %lld, numbers %d", f->name, (long long)n, (long long)k, kind);
    assert_ok(format_amax(w, n, k, &amax, &e), e);
    assert_ok(format_rendering_new(&here, f, n, k, DTYPE_BF16, &e), e);
    assert_ok(format_rendering_new(&brought, f, n, k, DTYPE_BF16, &e), e);
    assert_ok(f->encode(w, amax, &here, &e), e);
    assert_ok(packed_new(p->gpu, f, n, k, DTYPE_BF16, &packed, &e), e);
    assert_ok(p->gpu->k->encode(p->gpu, &gw, amax, &packed, &gd, &e), e);
    assert_ok(packed_download(p->gpu, &packed, &brought, &e), e);
    same_parts(&here, &brought, name);
    f->decode(&here, 0, n, decoded);
    for (int64_t i = 0; i < n * k; i++)
        decoded[i] = w[i] - decoded[i];
    float *d = back(p, &gd);
    assert_bits(decoded, d, n * k, name);
    release(&here), release(&brought);
    packed_free(p->gpu, &packed);
    drop(p, &gw);
    free(w), free(decoded), free(d);
}

/* Rows and columns at the edges of blocks of every size, rows that no wide load fits, and one more than the blocks of
 * an emulated device take at once. */
static const int64_t shapes[][2] = {{1, 1},    {3, 5},    {7, 33},    {4, 172},   {2, 1000},  {1, 16},    {3, 48},
                                    {2, 32},   {3, 96},   {1, 64},    {2, 192},   {1, 128},   {5, 352},   {64, 576},
                                    {128, 128}, {129, 384}, {127, 129}, {257, 130}, {130, 260}, {300, 256}, {2, 4096}};

static void encoded_weights_have_the_bytes_of_the_plain_ones(void **state)
{
    (void)state;
    struct pair p = pair_open();
    const struct format *all[CODE_COUNT];
    static const int kinds[] = {RANDOM, ZEROS, DENORMALS, LARGE, MIXED, TIES};
    size_t n = coded_formats(all);
    for (size_t f = 0; f < n; f++)
        for (size_t s = 0; s < COUNT(shapes); s++)
            for (size_t i = 0; format_fits(all[f], shapes[s][0], shapes[s][1]) && i < COUNT(kinds); i++)
                encode_case(&p, all[f], shapes[s][0], shapes[s][1], kinds[i]);
    pair_close(&p);
}

/* --------------------------------------------------------------------------------------------------------- decoding */

/* Any codes and scales that a file may hold. */
static void draw_parts(struct rendering *r)
{
    const struct grid *g = &weight_grid[r->format->code];
    struct format_part parts[FORMAT_PARTS];
    uint64_t seed = (uint64_t)(r->n * r->k + r->format->code);
    r->format->parts(r->n, r->k, r->source, parts);
    unsigned char *codes = r->part[0], *scale = r->part[1];
    for (uint64_t i = 0; i < format_part_bytes(&parts[0]); i++) {
        codes[i] = (unsigned char)(i < 256 ? i : next_random(&seed)); /* each at least once */
        if (g->element == ELEMENT_E4M3 && (codes[i] & 0x7f) == 0x7f)
            codes[i] = 0x7e;
    }
    for (int64_t i = 0; i < grid_scale_rows(g, r->n) * grid_scale_columns(g, r->k); i++) {
        uint32_t bits = next_random(&seed) ^ next_random(&seed) << 16; /* of any sign, denormals among them */
        if (g->scale == SCALE_F32)
            ((uint32_t *)r->part[1])[i] = (bits & 0x7f800000u) == 0x7f800000u ? 0x00000001u : bits;
        else if (g->scale == SCALE_BF16)
            ((uint16_t *)r->part[1])[i] = (uint16_t)((bits & 0x7f80u) == 0x7f80u ? 0x0001u : bits);
        else
            scale[i] = (unsigned char)(g->scale == SCALE_E8M0 ? bits % 255 : bits % 127);
    }
    if (g->scale == SCALE_E4M3)
        memcpy(r->part[2], &(float){1234.56f}, sizeof(float));
}

/* What the rows of panels are made of, padding and all (kernels/cuda/product.c), on the host. */
static void *raw_panels(const struct pair *p, const struct tensor *panels, bool fill, void *with)
{
    struct err e = {0};
    int64_t stride = (panels->shape[1] + 15) / 16 * 16;
    struct tensor raw = {.data = panels->data, .dtype = panels->dtype, .rank = 2, .device = panels->device,
                         .shape = {panels->shape[0], stride}};
    size_t bytes = (size_t)(panels->shape[0] * stride) * dtype_bytes(panels->dtype);
    if (!fill)
        assert_ok(p->gpu->k->download(p->gpu, with, &raw, bytes, &e), e);
    else
        assert_ok(p->gpu->k->upload(p->gpu, &raw, memset(with, 0x5a, bytes), bytes, &e), e);
    return with;
}

static void unpack_case(const struct pair *p, const struct format *f, int64_t n, int64_t k, enum dtype mode)
{
    char name[96];
    enum { BEFORE = 3, AFTER = 2 };
    struct err e = {0};
    struct rendering r;
    struct packed_matrix packed;
    struct tensor panels;
    int64_t stride = (k + 15) / 16 * 16, rows = BEFORE + n + AFTER;
    float *decoded = numbers(n * k, ZEROS, 1);
    void *got = malloc((size_t)(rows * stride) * sizeof(float));
    assert_non_null(got);
    CASE(name, "%s to %s, %lld x %lld", f->name, dtype_info(mode)->name, (long long)n, (long long)k);
    assert_ok(format_rendering_new(&r, f, n, k, DTYPE_BF16, &e), e);
    draw_parts(&r);
    f->decode(&r, 0, n, decoded);
    assert_ok(packed_new(p->gpu, f, n, k, DTYPE_BF16, &packed, &e), e);
    assert_ok(packed_upload(p->gpu, &r, &packed, &e), e);
    assert_ok(p->gpu->k->panels_new(p->gpu, &panels, rows, k, mode, &e), e);
    raw_panels(p, &panels, true, got);
    assert_ok(p->gpu->k->unpack(p->gpu, &packed, BEFORE, &panels, &e), e);
    raw_panels(p, &panels, false, got);
    for (int64_t i = 0; i < rows * stride; i++) {
        int64_t row = i / stride - BEFORE, column = i % stride;
        bool is_in = row >= 0 && row < n;
        float x = is_in && column < k ? decoded[row * k + column] : 0.0f;
        uint32_t want = !is_in ? 0x5a5a5a5au : mode == DTYPE_BF16 ? bf16_from_f32(x) : f32_bits(x);
        uint32_t is = mode == DTYPE_BF16 ? ((uint16_t *)got)[i] : ((uint32_t *)got)[i];
        if (is != (mode == DTYPE_BF16 ? want & 0xffffu : want))
            fail_msg("%s: row %lld, column %lld of the panels is 0x%x, expected 0x%x", name, (long long)row,
                     (long long)column, is, want);
    }
    release(&r);
    packed_free(p->gpu, &packed);
    drop(p, &panels);
    free(decoded), free(got);
}

static void panels_have_the_bits_that_the_formats_decode(void **state)
{
    (void)state;
    struct pair p = pair_open();
    const struct format *all[CODE_COUNT];
    size_t n = coded_formats(all);
    for (size_t f = 0; f < n; f++)
        for (size_t s = 0; s < COUNT(shapes); s++)
            for (int mode = 0; format_fits(all[f], shapes[s][0], shapes[s][1]) && mode < 2; mode++)
                unpack_case(&p, all[f], shapes[s][0], shapes[s][1], mode ? DTYPE_BF16 : DTYPE_F32);
    pair_close(&p);
}

/* --------------------------------------------------------------------------------------------------------- mistakes */

static void wrong_parts_are_reported(void **state)
{
    (void)state;
    struct pair p = pair_open();
    struct err e = {0};
    const struct kernels *k = p.gpu->k;
    struct tensor panels, w = blank(&p, DTYPE_F32, 3, 64), d = blank(&p, DTYPE_F32, 3, 64);
    struct packed_matrix m;
    assert_ok(k->panels_new(p.gpu, &panels, 3, 64, DTYPE_BF16, &e), e);
    assert_ok(packed_new(p.gpu, &format_mxfp4, 3, 64, DTYPE_BF16, &m, &e), e);
    m.code = CODE_COUNT;
    assert_err(k->unpack(p.gpu, &m, 0, &panels, &e), e, ERR_BUG, "unpack: code 11");
    m.code = CODE_NVFP4;
    assert_err(k->unpack(p.gpu, &m, 0, &panels, &e), e, ERR_BUG, "'weight_scale' is u8 of rank 2 [3, 2]");
    m.code = CODE_INT4_G64;
    assert_err(k->unpack(p.gpu, &m, 0, &panels, &e), e, ERR_BUG, "expected row-major i32 [3, 8]");
    m.code = CODE_MXFP4;
    m.k = 48;
    assert_err(k->unpack(p.gpu, &m, 0, &panels, &e), e, ERR_BUG, "48 columns of code 4, expected a multiple of 32");
    m.k = 64;
    assert_err(k->unpack(p.gpu, &m, 1, &panels, &e), e, ERR_BUG, "rows 1 to 4 of 3");
    assert_ok(k->unpack(p.gpu, &m, 0, &panels, &e), e);
    m.code = CODE_INT8_PACKED;
    m.k = 62;
    assert_err(k->unpack(p.gpu, &m, 0, &panels, &e), e, ERR_BUG, "62 columns of code 7, expected a multiple of 4");
    struct packed_matrix plain = {.code = CODE_PLAIN, .n = 3, .k = 64, .part = {w}};
    assert_err(k->encode(p.gpu, &w, 1.0f, &plain, &d, &e), e, ERR_BUG, "encode: code 0 is stored as it is");
    packed_free(p.gpu, &m);
    drop(&p, &panels), drop(&p, &w), drop(&p, &d);
    pair_close(&p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(encoded_weights_have_the_bytes_of_the_plain_ones),
        cmocka_unit_test(panels_have_the_bits_that_the_formats_decode),
        cmocka_unit_test(wrong_parts_are_reported),
    };
    return first_device() ? cmocka_run_group_tests(tests, NULL, NULL) : SKIPPED;
}
