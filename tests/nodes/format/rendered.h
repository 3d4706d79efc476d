#ifndef TESTS_NODES_FORMAT_RENDERED_H
#define TESTS_NODES_FORMAT_RENDERED_H
/* What the tests of formats share: renderings that are made and released, weights, and comparisons that name the
 * element. */
#include "tests/check.h"

#include <math.h>

#include "nodes/format/format.h"

static inline struct rendering rendering_of(const struct format *f, int64_t n, int64_t k, enum dtype source)
{
    struct err e = {0};
    struct rendering r = {0};
    assert_ok(format_rendering_new(&r, f, n, k, source, &e), e);
    return r;
}

static inline void release(struct rendering *r)
{
    for (int i = 0; i < FORMAT_PARTS; i++)
        mem_free(r->part[i]);
    *r = (struct rendering){0};
}

/* w [n,k] in format `f`, scales and codes by round to nearest. */
static inline struct rendering encoded(const struct format *f, const float *w, int64_t n, int64_t k)
{
    struct err e = {0};
    float amax = 0.0f;
    struct rendering r = rendering_of(f, n, k, DTYPE_BF16);
    assert_ok(format_amax(w, n, k, &amax, &e) && f->encode(w, amax, &r, &e), e);
    return r;
}

/* Bytes of part i of a rendering. */
static inline size_t part_bytes(const struct rendering *r, int i)
{
    struct format_part parts[FORMAT_PARTS];
    assert_in_range(i, 0, r->format->parts(r->n, r->k, r->source, parts) - 1);
    return (size_t)format_part_bytes(&parts[i]);
}

/* Normally distributed, rounded to bf16 (which hides what one libm's last bit differs from another's). Freed with
 * free(). */
static inline float *gaussian(int64_t count, float sigma)
{
    float *w = malloc((size_t)count * sizeof *w);
    assert_non_null(w);
    uint64_t state = 1;
    for (int64_t i = 0; i < count; i++) {
        double unit[2]; /* in (0, 1]; Box and Muller's method */
        for (int j = 0; j < 2; j++) {
            state = state * 6364136223846793005u + 1442695040888963407u;
            unit[j] = (double)((state >> 11) + 1) / 9007199254740992.0;
        }
        double x = sqrt(-2.0 * log(unit[0])) * cos(2.0 * 3.14159265358979323846 * unit[1]);
        w[i] = bf16_to_f32(bf16_from_f32((float)x * sigma));
    }
    return w;
}

static inline void widen(const uint16_t *bf16, size_t n, float *out)
{
    for (size_t i = 0; i < n; i++)
        out[i] = bf16_to_f32(bf16[i]);
}

/* Equal within `tolerance`, relatively, and of the same sign, also where zero. */
static inline void assert_floats(const float *got, const double *expected, size_t n, double tolerance)
{
    for (size_t i = 0; i < n; i++)
        if (fabs((double)got[i] - expected[i]) > tolerance * fabs(expected[i]) ||
            signbit((double)got[i]) != signbit(expected[i]))
            fail_msg("element %zu is %.9g, expected %.9g", i, (double)got[i], expected[i]);
}

#endif
