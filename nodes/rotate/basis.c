/* What the bases make of weights and inputs. Everything is a list of row vectors, cut into spans that are rotated by a
 * matrix each; where the rows of a matrix are rotated instead of its columns, some columns are gathered at a time. Each
 * vector is worked on by one thread, so that the number of threads changes no bit. */
#include "nodes/rotate/basis.h"

#include <omp.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#define COLUMNS 16 /* gathered at a time */
#define PIECE 1024  /* numbers rounded at a time */

/* What happens to a vector: it has `spans` spans of one width, `share` neighbours of which are rotated alike. */
struct turn {
    const float *factors;              /* first multiplied by these; NULL: ones */
    struct rotation *const *by;        /* [spans / share]; NULL: no rotation */
    int64_t spans, share;
};

/* ---------------------------------------------------------------------------------------------------------- vectors */

static int64_t widest_core(const struct turn *t)
{
    bool is_hadamard;
    int64_t most = 1;
    for (int64_t s = 0; t->by && s < t->spans / t->share; s++) {
        int64_t p = rotation_core(t->by[s], &is_hadamard);
        most = p > most ? p : most;
    }
    return most;
}

static void turn_vector(const struct turn *t, int64_t n, double *x, double *work)
{
    for (int64_t i = 0; t->factors && i < n; i++)
        x[i] *= (double)t->factors[i];
    for (int64_t s = 0; t->by && s < t->spans; s++)
        rotation_apply(t->by[s / t->share], x + s * (n / t->spans), work);
}

/* Every row of w [n, k]. */
static bool turn_rows(const struct turn *t, int threads, int64_t n, int64_t k, double *w, struct err *e)
{
    int64_t room = widest_core(t);
    double *work;
    if (!mem_raw(&work, (size_t)(room * threads), e))
        return false;
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t i = 0; i < n; i++)
        turn_vector(t, k, w + i * k, work + room * omp_get_thread_num());
    mem_free(work);
    return true;
}

/* Every row of x [n, k], which is f32: rounded once. */
static bool turn_floats(const struct turn *t, int threads, int64_t n, int64_t k, float *x, struct err *e)
{
    int64_t room = widest_core(t) + k;
    double *work;
    if (!mem_raw(&work, (size_t)(room * threads), e))
        return false;
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t i = 0; i < n; i++) {
        double *row = work + room * omp_get_thread_num();
        for (int64_t j = 0; j < k; j++)
            row[j] = (double)x[i * k + j];
        turn_vector(t, k, row, row + k);
        for (int64_t j = 0; j < k; j++)
            x[i * k + j] = (float)row[j];
    }
    mem_free(work);
    return true;
}

/* Columns [first, first + count) of w [n, k], through `tile` [count, n]. */
static void turn_tile(const struct turn *t, int64_t n, int64_t k, int64_t first, int64_t count, double *w, double *tile,
                      double *work)
{
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = 0; j < count; j++)
            tile[j * n + i] = w[i * k + first + j];
    for (int64_t j = 0; j < count; j++)
        turn_vector(t, n, tile + j * n, work);
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = 0; j < count; j++)
            w[i * k + first + j] = tile[j * n + i];
}

/* Every column of w [n, k]. */
static bool turn_columns(const struct turn *t, int threads, int64_t n, int64_t k, double *w, struct err *e)
{
    int64_t room = widest_core(t) + COLUMNS * n;
    double *work;
    if (!mem_raw(&work, (size_t)(room * threads), e))
        return false;
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t first = 0; first < k; first += COLUMNS) {
        double *tile = work + room * omp_get_thread_num();
        turn_tile(t, n, k, first, k - first < COLUMNS ? k - first : COLUMNS, w, tile, tile + COLUMNS * n);
    }
    mem_free(work);
    return true;
}

/* ------------------------------------------------------------------------------------------------- opening, closing */

/* What the seeds of rotations are told apart by. */
enum { SEED_RESIDUAL, SEED_HEAD };

static bool read_norms(struct basis *b, struct err *e)
{
    const struct model_config *c = &b->model->config;
    char name[128];
    if (!mem_raw(&b->norms, (size_t)(2 * c->layers + 1) * (size_t)c->hidden, e))
        return false;
    for (int i = 0; i < 2 * c->layers; i++) {
        snprintf(name, sizeof name, "model.layers.%d.%s_layernorm.weight", i / 2, i % 2 ? "post_attention" : "input");
        if (!model_read_tensor(b->model, name, c->hidden, b->norms + (int64_t)i * c->hidden, e))
            return false;
    }
    return model_read_tensor(b->model, "model.norm.weight", c->hidden, b->norms + 2 * (int64_t)c->layers * c->hidden,
                             e);
}

bool basis_open(struct basis *b, const struct model *m, unsigned what, uint64_t seed, int threads, struct err *e)
{
    const struct model_config *c = &m->config;
    *b = (struct basis){.model = m, .threads = threads};
    bool ok = read_norms(b, e);
    if (what & BASIS_RESIDUAL)
        ok = ok && rotation_new(&b->residual, c->hidden, rotation_seed(seed, SEED_RESIDUAL, 0), e);
    int n_heads = c->layers * c->kv_heads;
    if (what & BASIS_HEADS)
        ok = ok && mem_new(&b->heads, (size_t)n_heads, e);
    for (int i = 0; ok && b->heads && i < n_heads; i++)
        ok = rotation_new(&b->heads[i], c->head_dim, rotation_seed(seed, SEED_HEAD, (uint64_t)i), e);
    if (!ok)
        basis_close(b);
    return ok;
}

void basis_close(struct basis *b)
{
    for (int i = 0; b->heads && i < b->model->config.layers * b->model->config.kv_heads; i++)
        rotation_free(b->heads[i]);
    mem_free(b->heads);
    rotation_free(b->residual);
    mem_free(b->norms);
    *b = (struct basis){0};
}

/* --------------------------------------------------------------------------------------------------- what is turned */

static const struct unit *unit_of(const struct basis *b, int matrix)
{
    return &b->model->units[b->model->matrices[matrix].unit];
}

/* The third matrix of the unit of queries, keys and values. */
static bool is_values(const struct basis *b, int matrix)
{
    const struct unit *u = unit_of(b, matrix);
    return u->role == ROLE_QKV && matrix == u->first + 2;
}

static bool reads_stream(const struct unit *u) { return u->role == ROLE_QKV || u->role == ROLE_GATE_UP; }
static bool writes_stream(const struct unit *u) { return u->role == ROLE_O || u->role == ROLE_DOWN; }

/* The rotations of a layer's key-value heads. */
static struct rotation *const *heads_of(const struct basis *b, const struct unit *u)
{
    return b->heads + u->layer * b->model->config.kv_heads;
}

static const float *norm_before(const struct basis *b, const struct unit *u)
{
    return b->norms + (2 * (int64_t)u->layer + (u->role == ROLE_GATE_UP)) * b->model->config.hidden;
}

static const float *final_norm(const struct basis *b)
{
    return b->norms + 2 * (int64_t)b->model->config.layers * b->model->config.hidden;
}

static struct turn stream(const struct basis *b, const float *factors)
{
    return (struct turn){.factors = factors, .by = &b->residual, .spans = 1, .share = 1};
}

/* What happens to the columns (the input) of a matrix; false: nothing. */
static bool columns_turn(const struct basis *b, const struct unit *u, unsigned what, struct turn *out)
{
    const struct model_config *c = &b->model->config;
    if (reads_stream(u) && (what & BASIS_RESIDUAL))
        *out = stream(b, norm_before(b, u));
    else if (u->role == ROLE_O && (what & BASIS_HEADS))
        *out = (struct turn){.by = heads_of(b, u), .spans = c->heads, .share = c->heads / c->kv_heads};
    else
        return false;
    return true;
}

/* The same of its rows (the output). */
static bool rows_turn(const struct basis *b, int matrix, unsigned what, struct turn *out)
{
    const struct unit *u = unit_of(b, matrix);
    if (writes_stream(u) && (what & BASIS_RESIDUAL))
        *out = stream(b, NULL);
    else if (is_values(b, matrix) && (what & BASIS_HEADS))
        *out = (struct turn){.by = heads_of(b, u), .spans = b->model->config.kv_heads, .share = 1};
    else
        return false;
    return true;
}

bool basis_changes_bias(const struct basis *b, int matrix, unsigned what)
{
    struct turn t;
    return rows_turn(b, matrix, what, &t);
}

bool basis_changes(const struct basis *b, int matrix, unsigned what)
{
    struct turn t;
    return columns_turn(b, unit_of(b, matrix), what, &t) || rows_turn(b, matrix, what, &t);
}

bool basis_matrix(const struct basis *b, int matrix, unsigned what, double *w, struct err *e)
{
    const struct matrix *m = &b->model->matrices[matrix];
    struct turn t;
    return (!columns_turn(b, unit_of(b, matrix), what, &t) || turn_rows(&t, b->threads, m->n, m->k, w, e)) &&
           (!rows_turn(b, matrix, what, &t) || turn_columns(&t, b->threads, m->n, m->k, w, e));
}

bool basis_bias(const struct basis *b, int matrix, unsigned what, double *bias, struct err *e)
{
    struct turn t;
    return !rows_turn(b, matrix, what, &t) || turn_rows(&t, 1, 1, b->model->matrices[matrix].n, bias, e);
}

bool basis_embedding(const struct basis *b, int64_t n, double *rows, struct err *e)
{
    struct turn t = stream(b, NULL);
    return turn_rows(&t, b->threads, n, b->model->config.hidden, rows, e);
}

bool basis_head(const struct basis *b, int64_t n, double *rows, struct err *e)
{
    struct turn t = stream(b, final_norm(b));
    return turn_rows(&t, b->threads, n, b->model->config.hidden, rows, e);
}

void basis_fold(const struct basis *b, int matrix, float *w)
{
    const struct unit *u = unit_of(b, matrix);
    if (!b->residual || !reads_stream(u))
        return;
    const float *g = norm_before(b, u);
    for (int64_t i = 0; i < b->model->matrices[matrix].n; i++)
        for (int64_t j = 0; j < u->k; j++)
            w[i * u->k + j] *= g[j];
}

bool basis_input(const struct basis *b, int unit, unsigned what, int64_t n, float *x, struct err *e)
{
    const struct unit *u = &b->model->units[unit];
    struct turn t;
    if (reads_stream(u) && b->residual) /* x has the norm's length, without its weights */
        t = what & BASIS_RESIDUAL ? stream(b, NULL) : (struct turn){.factors = norm_before(b, u)};
    else if (!columns_turn(b, u, what, &t))
        return true;
    return turn_floats(&t, b->threads, n, u->k, x, e);
}

/* --------------------------------------------------------------------------------------------------------- rounding */

/* To f32 toward zero, the last bit set when anything was cut off: rounding that once more, to fewer bits, gives what
 * rounding x itself would. */
static float f32_to_odd(double x)
{
    float f = (float)x;
    if ((double)f == x || isnan(f))
        return f;
    uint32_t u = f32_bits(f);
    if (isinf(f) || fabs((double)f) > fabs(x))
        u--; /* of the same sign, closer to zero */
    return f32_from_bits(u | 1u);
}

bool basis_round(const double *x, size_t n, enum dtype t, void *out, struct err *e)
{
    float piece[PIECE];
    for (size_t first = 0; first < n; first += PIECE) {
        size_t count = n - first < PIECE ? n - first : PIECE;
        for (size_t i = 0; i < count; i++)
            piece[i] = t == DTYPE_F32 ? (float)x[first + i] : f32_to_odd(x[first + i]);
        struct rendering r = {.format = &format_bf16, .n = 1, .k = (int64_t)count, .source = t,
                              .part = {(char *)out + first * dtype_bytes(t)}};
        if (!format_bf16.encode(piece, 0.0f, &r, e) || !dtype_to_f32(t, r.part[0], count, piece, e))
            return false;
        for (size_t i = 0; i < count; i++)
            if (!isfinite(piece[i]))
                return err_set(e, ERR_NUMERIC, "%g is beyond the range of %s", x[first + i], dtype_info(t)->name);
    }
    return true;
}
