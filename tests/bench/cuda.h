#ifndef TESTS_BENCH_CUDA_H
#define TESTS_BENCH_CUDA_H
/* What the parts of bench_cuda share: a device, the ceilings that it is measured against, timing, and figures. What
 * fails ends the program with its message. */
#include "kernels/devices.h"
#include "nodes/format/packed.h"

/* The shapes of one model, and how much memory is walked through so that no cache helps. */
struct bench_shapes {
    int64_t hidden, intermediate, vocab;
    int heads, kv_heads, head_dim, windows, window;
    int layers, all_layers; /* those that there are, and those that the model they stand for has */
    int64_t square;         /* rows, columns and terms of the product that is the ceiling */
    int64_t block;          /* bytes of each block that inputs and outputs rotate through; more than twice any cache */
};

struct bench;
typedef void (*bench_run)(struct bench *b, void *context, int turn);

/* What others are told as a share of: something as fast as the device can, or another way to do the same. */
struct bench_ceiling {
    bench_run run;
    void *context;
    double work; /* FLOP, or bytes read and written, of one run */
    int repeat;  /* runs of a round */
};

enum { BLOCK_X, BLOCK_D, BLOCK_Y, BLOCKS };

struct bench {
    struct queue *q;
    const struct kernels *k;
    struct bench_shapes s;
    bool json, tiny; /* tiny: shapes for an emulated device; nothing is judged */
    float *numbers;  /* [BENCH_NUMBERS], what random tensors are made of */
    struct tensor block[BLOCKS]; /* of s.block bytes */
    struct tensor square[2];     /* bf16 panels {s.square, s.square} */
    struct bench_ceiling product, copy;
};

#define BENCH_NUMBERS 4194301 /* a prime: rows of a tensor do not repeat each other */

static inline int64_t bench_rows(const struct bench *b) { return (int64_t)b->s.windows * b->s.window; }

void bench_must(bool ok, const struct err *e);

/* -- memory -- */
struct tensor bench_new(struct bench *b, enum dtype t, int64_t rows, int64_t columns);
void bench_free(struct bench *b, struct tensor *t);
/* Random f32 numbers of standard deviation `size`; never zeros, which run faster. */
void bench_fill(struct bench *b, struct tensor *t, float size);
/* Panels of random numbers in bf16. */
struct tensor bench_panels(struct bench *b, int64_t n, int64_t k, float size);
/* The same packed in a format. */
struct packed_matrix bench_packed(struct bench *b, const struct format *f, int64_t n, int64_t k, float size);
struct tensor bench_upload(struct bench *b, enum dtype t, int64_t rows, int64_t columns, const void *host);
/* Cosines and sines [window, head_dim / 2] of positions, so that what is rotated again and again keeps its size. */
void bench_rope(struct bench *b, struct tensor *cosine, struct tensor *sine);
/* A [rows, columns] f32 part of a block, another one every turn as far as the block goes. */
struct tensor bench_view(struct bench *b, int block, int turn, int64_t rows, int64_t columns);

/* -- time -- */
struct bench_time {
    double seconds; /* of one run: the median of the rounds */
    double share;   /* of the ceiling: the median of the rounds' ratios; NaN without one */
};
/* Runs `run` in rounds of at least 10 ms, each beside a round of the ceiling; `work` is in the ceiling's unit. A run is
 * done when kernels->finish says so. */
struct bench_time bench_time(struct bench *b, bench_run run, void *context, double work,
                             const struct bench_ceiling *against);

/* -- figures -- */
/* One line; `target`: the least that is good, NaN where there is none. */
void bench_figure(const struct bench *b, const char *name, double value, const char *unit, double target);
/* The same with the most that is good. */
void bench_figure_most(const struct bench *b, const char *name, double value, const char *unit, double target);

/* -- the parts -- */
void bench_kernels(struct bench *b); /* cuda_kernels.c */
void bench_pass(struct bench *b);    /* cuda_pass.c */

#endif
