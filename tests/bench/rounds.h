#ifndef TESTS_BENCH_ROUNDS_H
#define TESTS_BENCH_ROUNDS_H
/* What the benchmarks of CPU kernels share: contenders that take turns within one process, round after round, because
 * only ratios of one run mean anything on a shared machine. A round in which another program took a core (processor
 * time below 0.95 of threads times wall time) is repeated. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "engine/base/mem.h"
#include "kernels/kernels.h"

enum { MOST_ROUNDS = 99 };

struct bench {
    struct queue q;
    int rounds;
    struct err e;
};

static inline double seconds_of(clockid_t clock)
{
    struct timespec t;
    clock_gettime(clock, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Threads of OpenMP and OpenBLAS go on spinning for a while after their work, which would be at the next one's cost. */
static inline void settle(void)
{
    nanosleep(&(struct timespec){.tv_nsec = 5000000}, NULL);
}

static inline int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* One contender: it runs once. */
typedef bool contender(struct bench *b, const void *context);

enum { MOST_CONTENDERS = 24, MOST_TRIES = 6 };

struct times {
    double s[MOST_CONTENDERS][MOST_ROUNDS]; /* of the kept rounds */
    int kept, tried;
};

/* A round: everyone once, beginning with another one each time. False in *quiet when one was disturbed. */
static inline bool round_robin(struct bench *b, contender *const *run, int n, const void *context, struct times *t,
                               bool *quiet)
{
    int first = t->tried++;
    *quiet = true;
    for (int turn = 0; turn < n; turn++) {
        int who = (turn + first) % n;
        settle();
        double from = seconds_of(CLOCK_MONOTONIC), cpu = seconds_of(CLOCK_PROCESS_CPUTIME_ID);
        if (!run[who](b, context))
            return false;
        double wall = seconds_of(CLOCK_MONOTONIC) - from;
        *quiet = *quiet && seconds_of(CLOCK_PROCESS_CPUTIME_ID) - cpu > 0.95 * b->q.threads * wall;
        t->s[who][t->kept] = wall;
    }
    return true;
}

/* Rounds until b->rounds are kept; when the machine is too busy for that, the last ones are kept as they are. */
static inline bool interleave(struct bench *b, contender *const *run, int n, const void *context, struct times *t)
{
    bool quiet;
    memset(t, 0, sizeof *t);
    if (!round_robin(b, run, n, context, t, &quiet)) /* warms up */
        return false;
    for (t->tried = 0; t->kept < b->rounds;) {
        if (!round_robin(b, run, n, context, t, &quiet))
            return false;
        t->kept += quiet || t->tried > (MOST_TRIES - 1) * b->rounds;
    }
    return true;
}

static inline double median(const double *x, int n)
{
    double sorted[MOST_ROUNDS];
    memcpy(sorted, x, (size_t)n * sizeof *x);
    qsort(sorted, (size_t)n, sizeof *sorted, by_value);
    return sorted[n / 2];
}

/* Numbers of a normal-like distribution; not zeros, which run faster than real data. */
static inline bool random_tensor(struct bench *b, struct tensor *t, int64_t rows, int64_t columns)
{
    int64_t shape[2] = {rows, columns};
    if (!b->q.k->tensor_new(&b->q, t, DTYPE_F32, 2, shape, &b->e))
        return false;
    uint32_t s = 12345;
    for (int64_t i = 0; i < rows * columns; i++) {
        float sum = 0.0f;
        for (int j = 0; j < 4; j++) {
            s = s * 1664525u + 1013904223u;
            sum += (float)(s >> 8) * 0x1p-24f - 0.5f;
        }
        ((float *)t->data)[i] = sum;
    }
    return true;
}

static inline void drop(struct bench *b, struct tensor *t) { b->q.k->tensor_free(&b->q, t); }

#endif
