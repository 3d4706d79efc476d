/* How fast weights get their codes on the CPU, and codes become panels, as shares of what memory gives: rates count the
 * bytes that have to move (encoding: 4 a weight read, the code and the scales written; unpacking: codes and scales
 * read, panels written), and the rate of memory is that of reading as many weights for their largest magnitude, in the
 * same round with the same threads. What is left of the weights stays in a cache: rows go through encode and energy a
 * few at a time.
 *
 *     bench_weights [threads [rounds]]         SCOUT_CPU chooses the variant */
#include "tests/bench/rounds.h"

enum { N = 8192, K = 5120, MOST_ROWS = 128 /* a multiple of fp8_block's */ };
#define CACHED (512 << 10) /* bytes of what is left, a thread */

static const char *const names[CODE_COUNT] = {
    "plain (bf16)", "fp8", "nvfp4", "fp8_block", "mxfp4", "mxfp8", "int8", "int8_a16", "int4_g32", "int4_g64",
    "int4_g128"};

struct matrix {
    struct tensor w, d, f32, bf16;
    struct packed_matrix packed;
};

static bool run_read(struct bench *b, const void *context)
{
    const struct matrix *m = context;
    float amax = 0.0f;
    return b->q.k->amax(&b->q, &m->w, &amax, &b->e);
}

/* Rows [first, first + n) of the parts. */
static struct packed_matrix rows_of(const struct packed_matrix *m, int64_t first, int64_t n)
{
    const struct grid *g = &weight_grid[m->code];
    struct packed_matrix rows = *m;
    rows.n = n;
    rows.part[0] = tensor_rows(&m->part[0], first, n);
    rows.part[1] = tensor_rows(&m->part[1], first / g->rows, grid_scale_rows(g, n));
    return rows;
}

static bool run_encode(struct bench *b, const void *context)
{
    const struct matrix *m = context;
    struct tensor d = m->d;
    double square = 0.0, energy = 0.0;
    int64_t cached = (int64_t)b->q.threads * CACHED / (4 * K);
    int64_t most = m->packed.code == CODE_FP8_BLOCK || cached > MOST_ROWS ? MOST_ROWS : cached;
    for (int64_t first = 0; first < N; first += most) {
        int64_t n = N - first < most ? N - first : most;
        struct packed_matrix rows = rows_of(&m->packed, first, n);
        struct tensor w = tensor_rows(&m->w, first, n);
        d.shape[0] = n;
        if (!b->q.k->encode(&b->q, &w, 4.0f, &rows, &d, &b->e) ||
            !b->q.k->energy(&b->q, &d, NULL, &square, &energy, &b->e))
            return false;
    }
    return square > 0.0 || err_set(&b->e, ERR_BUG, "no weight lost anything");
}

static bool run_unpack_f32(struct bench *b, const void *context)
{
    struct matrix m = *(const struct matrix *)context;
    return b->q.k->unpack(&b->q, &m.packed, 0, &m.f32, &b->e);
}

static bool run_unpack_bf16(struct bench *b, const void *context)
{
    struct matrix m = *(const struct matrix *)context;
    return b->q.k->unpack(&b->q, &m.packed, 0, &m.bf16, &b->e);
}

static contender *const runs[] = {run_read, run_unpack_f32, run_unpack_bf16, run_encode};
enum { RUNS = sizeof runs / sizeof *runs };

static bool part(struct bench *b, struct tensor *t, enum dtype type, int64_t rows, int64_t columns)
{
    return b->q.k->tensor_new(&b->q, t, type, 2, (int64_t[]){rows, columns}, &b->e);
}

static bool packed_new(struct bench *b, enum weight_code code, struct packed_matrix *m)
{
    static const enum dtype scales[] = {[SCALE_F32] = DTYPE_F32, [SCALE_BF16] = DTYPE_BF16, [SCALE_E8M0] = DTYPE_U8,
                                        [SCALE_E4M3] = DTYPE_F8_E4M3};
    const struct grid *g = &weight_grid[code];
    enum element t = g->element;
    enum dtype type = t == ELEMENT_PLAIN  ? DTYPE_BF16
                      : t == ELEMENT_E2M1 ? DTYPE_U8
                      : t == ELEMENT_E4M3 ? DTYPE_F8_E4M3
                      : t == ELEMENT_S8   ? DTYPE_I8
                                          : DTYPE_I32;
    int64_t columns = type == DTYPE_I32 ? K * grid_bits(t) / 32 : t == ELEMENT_E2M1 ? K / 2 : K;
    *m = (struct packed_matrix){.code = code, .n = N, .k = K};
    if (!part(b, &m->part[0], type, N, columns))
        return false;
    if (code == CODE_PLAIN) {
        for (int64_t i = 0; i < N * K; i++)
            ((uint16_t *)m->part[0].data)[i] = (uint16_t)(0x3f80 + i % 100);
        return true;
    }
    return part(b, &m->part[1], scales[g->scale], grid_scale_rows(g, N), grid_scale_columns(g, K)) &&
           (g->scale != SCALE_E4M3 || b->q.k->tensor_new(&b->q, &m->part[2], DTYPE_F32, 1, (int64_t[]){1}, &b->e));
}

static double bytes_of(const struct tensor *t) { return (double)tensor_count(t) * (double)dtype_bytes(t->dtype); }

static void print(const struct matrix *m, const struct times *t, int n)
{
    static const char *const what[] = {"", "to f32", "to bf16", "rtn + loss"};
    double weights = (double)N * K, packed = bytes_of(&m->packed.part[0]);
    packed += n > 3 ? bytes_of(&m->packed.part[1]) : 0.0;
    double moved[] = {4.0 * weights, packed + 4.0 * weights, packed + 2.0 * weights, packed + 4.0 * weights};
    double memory = moved[0] / median(t->s[0], t->kept);
    printf("%-12s memory %5.1f GB/s", names[m->packed.code], memory * 1e-9);
    for (int i = 1; i < n; i++) {
        double share[MOST_ROUNDS];
        for (int r = 0; r < t->kept; r++)
            share[r] = moved[i] / t->s[i][r] / (moved[0] / t->s[0][r]);
        printf("  %s %5.1f GB/s, %.2f of it", what[i], moved[i] / median(t->s[i], t->kept) * 1e-9,
               median(share, t->kept));
    }
    printf("  %d/%d\n", t->kept, t->tried);
}

static bool bench_code(struct bench *b, struct matrix *m, enum weight_code code)
{
    static struct times t;
    int n = code == CODE_PLAIN ? 3 : RUNS;
    bool ok = packed_new(b, code, &m->packed) && (code == CODE_PLAIN || run_encode(b, m)) &&
              interleave(b, runs, n, m, &t);
    if (ok)
        print(m, &t, n);
    for (int i = 0; i < 3; i++)
        drop(b, &m->packed.part[i]);
    return ok;
}

int main(int argc, char **argv)
{
    struct bench b = {.q = {.threads = argc > 1 ? atoi(argv[1]) : 2, .device = TENSOR_HOST},
                      .rounds = argc > 2 ? atoi(argv[2]) : 7};
    struct matrix m = {0};
    b.q.k = kernels_cpu(&b.e);
    if (!b.q.k || b.q.threads < 1 || b.rounds < 1 || b.rounds > MOST_ROUNDS) {
        fprintf(stderr, "bench_weights: %s\n", b.q.k ? "threads and rounds must be 1 to 99" : b.e.text);
        return 2;
    }
    printf("%s, %d threads, [%d, %d], medians of %d rounds\n", b.q.k->name, b.q.threads, N, K, b.rounds);
    bool ok = random_tensor(&b, &m.w, N, K) && part(&b, &m.d, DTYPE_F32, MOST_ROWS, K) &&
              b.q.k->panels_new(&b.q, &m.f32, N, K, DTYPE_F32, &b.e) &&
              b.q.k->panels_new(&b.q, &m.bf16, N, K, DTYPE_BF16, &b.e);
    for (enum weight_code code = CODE_PLAIN; ok && code < CODE_COUNT; code++)
        ok = bench_code(&b, &m, code);
    if (!ok)
        fprintf(stderr, "bench_weights: %s\n", b.e.text);
    drop(&b, &m.w), drop(&b, &m.d), drop(&b, &m.f32), drop(&b, &m.bf16);
    return ok ? 0 : 1;
}
