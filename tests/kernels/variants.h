#ifndef TESTS_KERNELS_VARIANTS_H
#define TESTS_KERNELS_VARIANTS_H
/* What the kernel tests share: the tables that this machine can run, numbers of several kinds, and comparisons that
 * print the first difference. */
#include "tests/check.h"

#include <math.h>

#include "kernels/kernels.h"

/* The tables that can run here, plain first. Returns their number. Asked once: in a virtual machine CPUID is slow. */
static inline size_t variants(const struct kernels *out[8])
{
    static const struct kernels *found[8];
    static size_t n;
    size_t n_names;
    const char *const *names = kernels_names(&n_names);
    if (n == 0) {
        for (size_t i = 0; i < n_names; i++) {
            found[n] = kernels_find(names[i]);
            n += found[n] != NULL;
        }
    }
    memcpy(out, found, sizeof found);
    return n;
}

static inline struct queue variant_queue(const struct kernels *k, int threads)
{
    return (struct queue){.k = k, .threads = threads, .device = TENSOR_HOST};
}

/* Kinds of numbers. MIXED has magnitudes from 2^-40 to 2^8, INTEGERS are -4 to 4 (sums of them are exact). */
enum numbers { RANDOM, ZEROS, DENORMALS, LARGE, MIXED, INTEGERS, NUMBERS_COUNT };

static inline uint32_t next_random(uint64_t *s)
{
    *s = *s * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(*s >> 33);
}

static inline float random_number(enum numbers kind, uint64_t *s)
{
    float unit = (float)next_random(s) * 0x1p-30f - 1.0f; /* -1 to 1 */
    switch (kind) {
    case ZEROS: return unit < 0.0f ? -0.0f : 0.0f;
    case DENORMALS: return unit * 0x1p-128f;
    case LARGE: return unit * 0x1p60f;
    case MIXED: return ldexpf(unit, (int)(next_random(s) % 49) - 40);
    case INTEGERS: return (float)((int)(next_random(s) % 9) - 4);
    default: return unit;
    }
}

/* `n` numbers, to be freed with free(). Exactly n, so that the address sanitizer sees an access past the end. */
static inline float *numbers(int64_t n, enum numbers kind, uint64_t seed)
{
    float *x = malloc((size_t)n * sizeof *x + (n == 0));
    assert_non_null(x);
    uint64_t s = seed * 7919u + 1u;
    for (int64_t i = 0; i < n; i++)
        x[i] = random_number(kind, &s);
    return x;
}

static inline float *copy_of(const float *x, int64_t n)
{
    float *y = malloc((size_t)n * sizeof *y + (n == 0));
    assert_non_null(y);
    if (n > 0)
        memcpy(y, x, (size_t)n * sizeof *y);
    return y;
}

/* `got` has the bits of `want`; `what` names the case. */
static inline void assert_bits(const float *want, const float *got, int64_t n, const char *what)
{
    for (int64_t i = 0; i < n; i++)
        if (f32_bits(want[i]) != f32_bits(got[i]))
            fail_msg("%s: element %lld of %lld is %.9g (0x%08x), expected %.9g (0x%08x)", what, (long long)i,
                     (long long)n, (double)got[i], f32_bits(got[i]), (double)want[i], f32_bits(want[i]));
}

/* A printf-style name of a case, valid until the next call on the same buffer. */
#define CASE(buffer, ...) (snprintf((buffer), sizeof(buffer), __VA_ARGS__), (buffer))

#endif
