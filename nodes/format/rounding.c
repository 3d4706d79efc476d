/* The chain of rounding methods and its gate. */
#include "nodes/format/rounding.h"

#include <string.h>

#include "nodes/format/gptq.h"

#define TILE_ROWS 128 /* rows that a thread rounds or decodes at a time; a multiple of every grid's rows */

const struct rounding_method *const rounding_methods[] = {&rounding_rtn, &rounding_scale_search, &rounding_gptq,
                                                          &rounding_signround, &rounding_refit, NULL};
const char *const rounding_names[] = {"rtn", "scale_search", "gptq", "signround", "refit", "block_match", NULL};

const struct rounding_method *rounding_find(const char *name)
{
    for (const struct rounding_method *const *m = rounding_methods; *m; m++)
        if (strcmp((*m)->name, name) == 0)
            return *m;
    return NULL;
}

bool rounding_open(struct rounding *r, struct queue *q, int64_t k, const float *moment, const float *held_out,
                   const struct rounding_options *options, struct err *e)
{
    *r = (struct rounding){.q = q, .k = k, .moment = moment, .options = *options};
    if (loss_new(&r->fit, q, moment, k, e) && loss_new(&r->held_out, q, held_out, k, e))
        return true;
    rounding_close(r);
    return false;
}

void rounding_close(struct rounding *r)
{
    loss_free(r->fit);
    loss_free(r->held_out);
    factors_free(r->q, r->factors);
    *r = (struct rounding){0};
}

static void round_all(struct queue *q, const float *w, struct blocks *b)
{
#pragma omp parallel for schedule(dynamic) num_threads(q->threads)
    for (int64_t first = 0; first < b->n; first += TILE_ROWS)
        blocks_round(b, w, first, b->n - first < TILE_ROWS ? b->n - first : TILE_ROWS);
}

static bool rtn(struct rounding *r, const float *w, struct blocks *b, struct err *e)
{
    (void)e;
    round_all(r->q, w, b);
    return true;
}

const struct rounding_method rounding_rtn = {
    .name = "rtn",
    .help = "each weight to the nearest code, under scales that fit each block's largest weight",
    .apply = rtn,
};

bool rounding_loss(struct loss *l, struct queue *q, const float *w, const struct blocks *b, double *square,
                   double *energy, struct err *e)
{
    float *d;
    if (!mem_raw(&d, (size_t)(LOSS_ROWS * b->k), e))
        return false;
    bool ok = true;
    *square = *energy = 0.0;
    for (int64_t first = 0; ok && first < b->n; first += LOSS_ROWS) {
        int64_t n = b->n - first < LOSS_ROWS ? b->n - first : LOSS_ROWS;
#pragma omp parallel for schedule(static) num_threads(q->threads)
        for (int64_t row = 0; row < n; row++) {
            float *x = d + row * b->k;
            blocks_decode(b, first + row, 1, x);
            for (int64_t i = 0; i < b->k; i++)
                x[i] = w[(first + row) * b->k + i] - x[i];
        }
        struct tensor rows = tensor_matrix(d, DTYPE_F32, n, b->k);
        ok = loss_add(l, &rows, square, energy, e);
    }
    mem_free(d);
    return ok;
}

bool rounding_chain(struct rounding *r, const struct rounding_method *const *methods, int n_methods, const float *w,
                    struct blocks *b, struct rounding_step *steps, struct err *e)
{
    struct blocks undo = {0};
    double square, best;
    round_all(r->q, w, b);
    bool ok = blocks_new(&undo, b->format, b->n, b->k, 0.0f, e) &&
              rounding_loss(r->held_out, r->q, w, b, &square, &best, e);
    for (int i = 0; ok && i < n_methods; i++) {
        struct rounding_step *step = &steps[i];
        *step = (struct rounding_step){.before = best};
        blocks_copy(&undo, b);
        ok = (methods[i]->apply(r, w, b, e) && rounding_loss(r->held_out, r->q, w, b, &square, &step->after, e)) ||
             err_context(e, "%s", methods[i]->name);
        step->kept = ok && step->after < best;
        if (step->kept)
            best = step->after;
        else if (ok)
            blocks_copy(b, &undo);
    }
    blocks_free(&undo);
    return ok;
}
