#ifndef TESTS_NODES_FORMAT_PROBLEM_H
#define TESTS_NODES_FORMAT_PROBLEM_H
/* What tests of rounding methods need: a matrix, and the moments of inputs as those of real layers are. */
#include "nodes/format/rounding.h"
#include "tests/check.h"

static uint64_t state_of_random;

static inline double uniform(void)
{
    state_of_random = state_of_random * 6364136223846793005u + 1442695040888963407u;
    return (double)(state_of_random >> 11) / 9007199254740992.0;
}

static inline float normal(void)
{
    double sum = -6.0;
    for (int i = 0; i < 12; i++)
        sum += uniform();
    return (float)sum;
}

/* A matrix, and the moments of correlated inputs with a few large features: as those of real layers are. */
struct problem {
    int64_t n, k;
    float *w, *moment, *held;
};

static inline void moment_of(float *out, const float *mix, int64_t k, int64_t rows)
{
    float *x = calloc((size_t)k, sizeof *x);
    assert_non_null(x);
    memset(out, 0, (size_t)(k * k) * sizeof *out);
    for (int64_t t = 0; t < rows; t++) {
        float common[8];
        for (int i = 0; i < 8; i++)
            common[i] = normal();
        for (int64_t i = 0; i < k; i++) {
            x[i] = normal() * (i % 37 == 5 ? 6.0f : 0.5f);
            for (int j = 0; j < 8; j++)
                x[i] += mix[i * 8 + j] * common[j];
        }
        for (int64_t i = 0; i < k; i++)
            for (int64_t j = 0; j < k; j++)
                out[i * k + j] += x[i] * x[j] / (float)rows;
    }
    free(x);
}

static inline struct problem problem_new(int64_t n, int64_t k)
{
    state_of_random = (uint64_t)(n * 1000 + k);
    struct problem p = {n, k, malloc((size_t)(n * k) * 4), malloc((size_t)(k * k) * 4), malloc((size_t)(k * k) * 4)};
    float *mix = malloc((size_t)(k * 8) * sizeof *mix);
    assert_true(p.w && p.moment && p.held && mix);
    for (int64_t i = 0; i < n * k; i++)
        p.w[i] = bf16_to_f32(bf16_from_f32(normal() * 0.05f));
    for (int64_t i = 0; i < k * 8; i++)
        mix[i] = normal();
    moment_of(p.moment, mix, k, 3 * k);
    moment_of(p.held, mix, k, 2 * k);
    free(mix);
    return p;
}

static inline void problem_free(struct problem *p)
{
    free(p->w);
    free(p->moment);
    free(p->held);
}

static inline float amax_of(const struct problem *p)
{
    struct err e = {0};
    float amax = 0.0f;
    assert_ok(format_amax(p->w, p->n, p->k, &amax, &e), e);
    return amax;
}

static inline struct rounding opened(const struct problem *p, struct queue *q, struct rounding_options o)
{
    struct rounding r;
    struct err e = {0};
    assert_ok(rounding_open(&r, q, p->k, p->moment, p->held, &o, &e), e);
    return r;
}

static inline struct blocks rounded(const struct problem *p, const struct format *f)
{
    struct blocks b;
    struct err e = {0};
    assert_ok(blocks_new(&b, f, p->n, p->k, amax_of(p), &e), e);
    blocks_round(&b, p->w, 0, p->n);
    return b;
}

static inline struct queue queue_of(int threads)
{
    struct err e = {0};
    const struct kernels *k = kernels_cpu(&e);
    assert_non_null(k);
    return (struct queue){.k = k, .threads = threads, .device = TENSOR_HOST};
}

static inline double loss_of(struct rounding *r, struct loss *l, const struct problem *p, const struct blocks *b)
{
    struct err e = {0};
    double square, energy;
    assert_ok(rounding_loss(l, r->q, p->w, b, &square, &energy, &e), e);
    return energy;
}

#endif
