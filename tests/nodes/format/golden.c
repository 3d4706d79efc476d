/* Against compressed-tensors: what it stored of the matrices in tests/golden/formats (README.md there) decodes to its
 * own weights, bit for bit; and of the same matrices we store the same codes and scales, or ones with a smaller
 * squared error. */
#include "tests/nodes/format/rendered.h"

#include "nodes/format/blocks.h"
#include "nodes/model/safetensors.h"

/* A matrix of a golden file: its tensors are called CASE/input and so on. */
struct golden {
    const struct format *format;
    const struct safetensors *files;
    char name[64];
    struct rendering theirs;
    float *w, amax; /* [n,k] */
};

static const struct st_tensor *find(const struct golden *g, const char *suffix)
{
    char name[128];
    snprintf(name, sizeof name, "%s/%s", g->name, suffix);
    const struct st_tensor *t = safetensors_find(g->files, name);
    if (!t)
        fail_msg("%s: no tensor %s", g->format->name, name);
    return t;
}

static void load(const struct golden *g, const char *suffix, void *out, size_t bytes)
{
    struct err e = {0};
    const struct st_tensor *t = find(g, suffix);
    assert_int_equal(t->bytes, bytes);
    assert_ok(safetensors_read(g->files, t, 0, bytes, out, &e), e);
}

/* The parts that compressed-tensors stored have the types and shapes of ours. */
static void load_parts(struct golden *g, int64_t n, int64_t k)
{
    struct format_part parts[FORMAT_PARTS];
    int count = g->format->parts(n, k, DTYPE_BF16, parts);
    g->theirs = rendering_of(g->format, n, k, DTYPE_BF16);
    for (int i = 0; i < count; i++) {
        const struct st_tensor *t = find(g, parts[i].suffix);
        assert_int_equal(t->dtype, parts[i].dtype);
        assert_int_equal(t->rank, parts[i].rank);
        for (int d = 0; d < t->rank; d++)
            assert_int_equal(t->shape[d], parts[i].shape[d]);
        load(g, parts[i].suffix, g->theirs.part[i], format_part_bytes(&parts[i]));
    }
    if (g->format->stores_shape)
        assert_memory_equal(g->theirs.part[count - 1], ((int64_t[]){n, k}), 2 * sizeof(int64_t));
}

static void open_golden(struct golden *g)
{
    const struct st_tensor *input = find(g, "input");
    int64_t n = input->shape[0], k = input->shape[1];
    uint16_t *bf16 = malloc(input->bytes);
    g->w = malloc((size_t)(n * k) * sizeof *g->w);
    assert_true(bf16 && g->w);
    load(g, "input", bf16, (size_t)(n * k) * sizeof *bf16);
    widen(bf16, (size_t)(n * k), g->w);
    free(bf16);
    load(g, "amax", &g->amax, sizeof g->amax);
    load_parts(g, n, k);
}

static void close_golden(struct golden *g)
{
    release(&g->theirs);
    free(g->w);
}

static void check_decoded(struct golden *g)
{
    int64_t k = g->theirs.k, rows = find(g, "decoded_rows")->shape[0];
    int32_t *row = malloc((size_t)rows * sizeof *row);
    float *want = malloc((size_t)(rows * k) * sizeof *want), *got = malloc((size_t)k * sizeof *got);
    assert_true(row && want && got);
    load(g, "decoded_rows", row, (size_t)rows * sizeof *row);
    load(g, "decoded", want, (size_t)(rows * k) * sizeof *want);
    for (int64_t r = 0; r < rows; r++) {
        g->format->decode(&g->theirs, row[r], 1, got);
        for (int64_t i = 0; i < k; i++)
            if (f32_bits(got[i]) != f32_bits(want[r * k + i]))
                fail_msg("%s, %s: weight (%d, %lld) decodes to %.9g, compressed-tensors has %.9g", g->format->name,
                         g->name, row[r], (long long)i, (double)got[i], (double)want[r * k + i]);
    }
    free(row);
    free(want);
    free(got);
}

/* How block `at` of ours is to theirs. */
struct comparison {
    bool same_bytes, same_values; /* -0 is 0 */
    double ours, theirs;          /* squared errors */
};

static struct comparison compare(const struct blocks *a, const struct blocks *b, const float *w, int64_t at)
{
    struct comparison c = {.same_bytes = a->scale[at] == b->scale[at], .same_values = true};
    for (int64_t i = 0; i < a->n * a->k; i++) {
        if (blocks_at(a, i / a->k, i % a->k) != at)
            continue;
        double x = (double)(a->value[a->code[i]] * a->step[at]), y = (double)(b->value[b->code[i]] * b->step[at]);
        c.same_bytes = c.same_bytes && a->code[i] == b->code[i];
        c.same_values = c.same_values && x == y;
        c.ours += (x - (double)w[i]) * (x - (double)w[i]);
        c.theirs += (y - (double)w[i]) * (y - (double)w[i]);
    }
    return c;
}

static void load_blocks(struct blocks *b, const struct rendering *r, float amax)
{
    struct err e = {0};
    assert_ok(blocks_new(b, r->format, r->n, r->k, amax, &e), e);
    blocks_load(b, r);
}

/* What may differ is what the README of the files lists. */
static void check_encoded(struct golden *g, int counts[3])
{
    struct err e = {0};
    struct blocks ours, theirs;
    struct rendering r = rendering_of(g->format, g->theirs.n, g->theirs.k, DTYPE_BF16);
    bool is_step = strcmp(g->name, "global_step") == 0;
    assert_ok(g->format->encode(g->w, g->amax, &r, &e), e);
    load_blocks(&ours, &r, g->amax);
    load_blocks(&theirs, &g->theirs, g->amax);
    assert_int_equal(abs((int)(f32_bits(ours.global) - f32_bits(theirs.global))), is_step);
    for (int64_t at = 0; at < ours.scale_rows * ours.scale_columns; at++) {
        struct comparison c = compare(&ours, &theirs, g->w, at);
        bool raised = ours.grid.scale == SCALE_E4M3 && theirs.scale[at] < 0x08 && ours.scale[at] == 0x08;
        counts[c.same_bytes ? 0 : c.same_values ? 1 : 2]++;
        if (c.same_bytes || (c.same_values && !is_step) || c.ours < c.theirs || raised)
            continue;
        fail_msg("%s, %s: block %lld has scale 0x%x and squared error %.9g, compressed-tensors 0x%x and %.9g",
                 g->format->name, g->name, (long long)at, ours.scale[at], c.ours, theirs.scale[at], c.theirs);
    }
    blocks_free(&ours);
    blocks_free(&theirs);
    release(&r);
}

/* Every case of every format that has a folder of its own. */
static void each_case(void (*check)(struct golden *g, void *context), void *context)
{
    int folders = 0;
    for (const struct format *const *f = formats; *f; f++) {
        struct err e = {0};
        struct safetensors *files;
        char folder[512], probe[600];
        snprintf(folder, sizeof folder, "%s/tests/golden/formats/%s", check_root(), (*f)->name);
        snprintf(probe, sizeof probe, "%s/model.safetensors", folder);
        if (access(probe, R_OK) != 0)
            continue;
        folders++;
        assert_ok(safetensors_open(&files, folder, &e), e);
        for (size_t i = 0; i < files->n_tensors; i++) {
            struct golden g = {.format = *f, .files = files};
            const char *slash = strstr(files->tensors[i].name, "/input");
            if (!slash)
                continue;
            snprintf(g.name, sizeof g.name, "%.*s", (int)(slash - files->tensors[i].name), files->tensors[i].name);
            open_golden(&g);
            check(&g, context);
            close_golden(&g);
        }
        safetensors_close(files);
    }
    assert_int_equal(folders, 10); /* all formats but bf16 and the siblings that leave the input alone */
}

static void decode_case(struct golden *g, void *context)
{
    check_decoded(g);
    ++*(int *)context;
}

static void encode_case(struct golden *g, void *context) { check_encoded(g, context); }

static void their_tensors_decode_to_their_weights(void **state)
{
    (void)state;
    int cases = 0;
    each_case(decode_case, &cases);
    assert_in_range(cases, 120, 200);
}

static void our_codes_are_theirs_or_better(void **state)
{
    (void)state;
    int counts[3] = {0};
    each_case(encode_case, counts);
    print_message("%d blocks with the same bytes, %d that differ in signs of zero or the scale of zeros, %d others\n",
                  counts[0], counts[1], counts[2]);
    assert_true(counts[0] > 20 * counts[2]); /* and the others are no rule */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(their_tensors_decode_to_their_weights),
        cmocka_unit_test(our_codes_are_theirs_or_better),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
