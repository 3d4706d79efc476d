#include "nodes/rotate/rotation.h"

#include <math.h>
#include <string.h>

#include "engine/base/mem.h"
#include "nodes/search/stats.h"

struct rotation {
    int64_t n, blocks, p;  /* n = blocks * p */
    bool is_hadamard;
    double *sign;          /* [n]: +-1 */
    double *core, *back;   /* [p, p]: C, and its transpose; NULL where p is 1 */
    double scale;          /* 1 / sqrt(blocks) */
};

/* ---------------------------------------------------------------------------------------------------- Paley's cores */

static bool is_prime(int64_t q)
{
    if (q < 2)
        return false;
    for (int64_t d = 2; d * d <= q; d++)
        if (q % d == 0)
            return false;
    return true;
}

/* A Hadamard matrix of order p: from the prime p - 1 of residue 3, or p / 2 - 1 of residue 1 (modulo 4). */
static bool is_paley_1(int64_t p) { return p % 4 == 0 && is_prime(p - 1); }
static bool is_paley_2(int64_t p) { return p % 4 == 0 && (p / 2 - 1) % 4 == 1 && is_prime(p / 2 - 1); }

/* The order of the core for n = 2^a m: the smallest 2^b m that Paley has, or m. */
static int64_t core_order(int64_t n, bool *is_hadamard)
{
    int64_t m = n;
    while (m % 2 == 0)
        m /= 2;
    *is_hadamard = true;
    if (m == 1)
        return 1;
    for (int64_t p = m; n % p == 0 && p <= ROTATION_PALEY; p *= 2)
        if (is_paley_1(p) || is_paley_2(p))
            return p;
    *is_hadamard = false;
    return m;
}

/* residue[a] = the Legendre symbol of a modulo the odd prime q: 0, 1 for squares, else -1. */
static void legendre(int64_t q, double *residue)
{
    residue[0] = 0.0;
    for (int64_t a = 1; a < q; a++)
        residue[a] = -1.0;
    for (int64_t a = 1; a < q; a++)
        residue[a * a % q] = 1.0;
}

/* Paley's conference matrix of order q + 1, element (i, j): zero on the diagonal, borders of ones (below the diagonal
 * with the sign of -1's residue), and the residues of differences. */
static double conference(const double *residue, int64_t q, int64_t i, int64_t j)
{
    if (i == j)
        return 0.0;
    if (i == 0)
        return 1.0;
    if (j == 0)
        return q % 4 == 1 ? 1.0 : -1.0;
    return residue[(i - j + q) % q];
}

/* I + C for q = 3 (mod 4); C x [1 1; 1 -1] + I x [1 -1; -1 -1] for q = 1 (mod 4). Divided by sqrt(p). */
static bool paley(int64_t p, double *out, struct err *e)
{
    bool second = !is_paley_1(p);
    int64_t q = second ? p / 2 - 1 : p - 1;
    double *residue, scale = 1.0 / sqrt((double)p);
    if (!mem_raw(&residue, (size_t)q, e))
        return false;
    legendre(q, residue);
    for (int64_t i = 0; i < p; i++)
        for (int64_t j = 0; j < p; j++) {
            double x;
            if (second) {
                double c = conference(residue, q, i / 2, j / 2);
                bool lower = i % 2 && j % 2;
                x = i / 2 == j / 2 ? (i % 2 || j % 2 ? -1.0 : 1.0) : lower ? -c : c;
            } else {
                x = i == j ? 1.0 : conference(residue, q, i, j);
            }
            out[i * p + j] = x * scale;
        }
    mem_free(residue);
    return true;
}

/* ------------------------------------------------------------------------------------------------ any other core */

/* Close to normal: twelve uniform numbers less their mean. No function of libm, whose last bits differ. */
static double nearly_normal(uint64_t *state)
{
    double sum = -6.0;
    for (int i = 0; i < 12; i++)
        sum += (double)(stats_random(state) >> 11) * 0x1p-53;
    return sum;
}

/* Rows k.. of the columns first.. of a [p, p] are reflected at the plane that v [p - k], of square length `square`, is
 * normal to. */
static void reflect(double *a, int64_t p, int64_t k, int64_t first, const double *v, double square)
{
    for (int64_t j = first; j < p && square > 0.0; j++) {
        double dot = 0.0;
        for (int64_t i = k; i < p; i++)
            dot += v[i - k] * a[i * p + j];
        dot *= 2.0 / square;
        for (int64_t i = k; i < p; i++)
            a[i * p + j] -= dot * v[i - k];
    }
}

/* The orthogonal factor of a random matrix, by Householder's reflections. */
static bool random_core(int64_t p, uint64_t *state, double *out, struct err *e)
{
    size_t n = (size_t)(p * p);
    double *a = NULL, *v = NULL, *square = NULL; /* v: row k holds the k-th normal */
    bool ok = mem_raw(&a, n, e) && mem_new(&v, n, e) && mem_new(&square, (size_t)p, e);
    for (size_t i = 0; ok && i < n; i++)
        a[i] = nearly_normal(state);
    for (int64_t k = 0; ok && k < p; k++) {
        double length = 0.0, *normal = v + k * p;
        for (int64_t i = k; i < p; i++) {
            normal[i - k] = a[i * p + k];
            length += normal[i - k] * normal[i - k];
        }
        length = sqrt(length);
        normal[0] += normal[0] < 0.0 ? -length : length;
        for (int64_t i = k; i < p; i++)
            square[k] += normal[i - k] * normal[i - k];
        reflect(a, p, k, k, normal, square[k]);
    }
    if (ok) {
        memset(out, 0, n * sizeof *out);
        for (int64_t i = 0; i < p; i++)
            out[i * p + i] = 1.0;
        for (int64_t k = p - 1; k >= 0; k--)
            reflect(out, p, k, k, v + k * p, square[k]);
    }
    mem_free(a);
    mem_free(v);
    mem_free(square);
    return ok;
}

/* ------------------------------------------------------------------------------------------------------ the whole */

static bool make_core(struct rotation *r, uint64_t *state, struct err *e)
{
    size_t n = (size_t)(r->p * r->p);
    if (r->p == 1)
        return true;
    if (!mem_raw(&r->core, n, e) || !mem_raw(&r->back, n, e) ||
        !(r->is_hadamard ? paley(r->p, r->core, e) : random_core(r->p, state, r->core, e)))
        return false;
    for (int64_t i = 0; i < r->p; i++)
        for (int64_t j = 0; j < r->p; j++)
            r->back[j * r->p + i] = r->core[i * r->p + j];
    return true;
}

bool rotation_new(struct rotation **out, int64_t n, uint64_t seed, struct err *e)
{
    struct rotation *r;
    uint64_t state = seed;
    if (!mem_new(&r, 1, e))
        return false;
    r->n = n;
    r->p = core_order(n, &r->is_hadamard);
    r->blocks = n / r->p;
    r->scale = 1.0 / sqrt((double)r->blocks);
    bool ok = mem_raw(&r->sign, (size_t)n, e);
    for (int64_t i = 0; ok && i < n; i++)
        r->sign[i] = stats_random(&state) >> 63 ? -1.0 : 1.0;
    if (!ok || !make_core(r, &state, e)) {
        rotation_free(r);
        return false;
    }
    *out = r;
    return true;
}

void rotation_free(struct rotation *r)
{
    if (!r)
        return;
    mem_free(r->sign);
    mem_free(r->core);
    mem_free(r->back);
    mem_free(r);
}

int64_t rotation_order(const struct rotation *r) { return r->n; }

int64_t rotation_core(const struct rotation *r, bool *is_hadamard)
{
    *is_hadamard = r->is_hadamard;
    return r->p;
}

/* Every block of p numbers times a core. */
static void multiply_core(const struct rotation *r, const double *core, double *x, double *work)
{
    const int64_t p = r->p;
    if (!core)
        return;
    for (int64_t b = 0; b < r->blocks; b++, x += p) {
        memset(work, 0, (size_t)p * sizeof *work);
        for (int64_t i = 0; i < p; i++)
            for (int64_t j = 0; j < p; j++)
                work[j] += x[i] * core[i * p + j];
        memcpy(x, work, (size_t)p * sizeof *work);
    }
}

/* Sylvester's matrix over the blocks, in place: sums and differences of blocks `half` apart. */
static void multiply_blocks(const struct rotation *r, double *x)
{
    const int64_t p = r->p;
    for (int64_t half = 1; half < r->blocks; half *= 2)
        for (int64_t first = 0; first < r->blocks; first += 2 * half)
            for (int64_t i = first * p; i < (first + half) * p; i++) {
                double a = x[i], b = x[i + half * p];
                x[i] = a + b;
                x[i + half * p] = a - b;
            }
    for (int64_t i = 0; i < r->n; i++)
        x[i] *= r->scale;
}

void rotation_apply(const struct rotation *r, double *x, double *work)
{
    for (int64_t i = 0; i < r->n; i++)
        x[i] *= r->sign[i];
    multiply_core(r, r->core, x, work);
    multiply_blocks(r, x);
}

void rotation_undo(const struct rotation *r, double *x, double *work)
{
    multiply_blocks(r, x);
    multiply_core(r, r->back, x, work);
    for (int64_t i = 0; i < r->n; i++)
        x[i] *= r->sign[i];
}

uint64_t rotation_seed(uint64_t seed, uint64_t kind, uint64_t i)
{
    uint64_t state = seed;
    state = stats_random(&state) ^ kind;
    state = stats_random(&state) ^ i;
    return stats_random(&state);
}
