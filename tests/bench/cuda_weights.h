#ifndef TESTS_BENCH_CUDA_WEIGHTS_H
#define TESTS_BENCH_CUDA_WEIGHTS_H
/* Packed weights of the benchmark's model, kept and brought by the code that does it in a run (nodes/model/resident.h).
 * What fails ends the program with its message. */
#include "nodes/model/resident.h"
#include "tests/bench/cuda.h"

enum { BENCH_NVFP4, BENCH_FP8, BENCH_INT4, BENCH_MXFP8, BENCH_BF16, BENCH_FORMATS }; /* indices of formats */
extern const char *const bench_formats[BENCH_FORMATS];

struct bench_weights {
    struct bench *b;
    struct queue *ahead;            /* the second one, of both */
    struct renderings *renderings;
    struct resident *resident;      /* all that was asked for stays on the device */
    struct resident *streamed;      /* nothing stays there: it comes from pinned host memory from the second time on */
};
/* Makes random weights of standard deviation `size`, alike in all layers of `m` and equal to those of bench_panels. All
 * matrices of a unit are multiples of 16 in both directions. `m` is borrowed. */
void bench_weights_open(struct bench_weights *w, struct bench *b, const struct model *m, float size);
void bench_weights_close(struct bench_weights *w);
/* A unit as the forward pass wants it, the caller's, with what the format does to the input. */
bool bench_weights_load(struct resident *from, int unit, int format, struct unit_weights *out, struct err *e);
/* Figures: the layers of `f` with weights that are brought, beside the same with weights that stay. */
void bench_weights_streamed(struct bench_weights *w, struct forward *f);

#endif
