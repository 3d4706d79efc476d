/* Node type `teacher`: the original model's states after the final norm on every window of a token set, and its loss.
 * States are kept instead of logits: 4 * hidden bytes a position instead of 4 * vocabulary. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "nodes/model/pass.h"
#include "nodes/nodes.h"

/* Positions that go through the layers together: bounds memory. */
#define GROUP_POSITIONS 32768

struct teacher {
    struct node *n;
    struct model *model;
    struct token_set tokens;
    struct forward f;
    float *states;
    double *nll;
};

static bool load(void *context, int unit, int format, struct unit_weights *out, struct err *e)
{
    struct teacher *t = context;
    (void)format;
    return weights_stored(t->f.q, t->model, unit, t->f.mode, out, e);
}

static bool take_loss(void *context, size_t candidate, size_t window, const struct pass_row *row, struct err *e)
{
    double *nll = context;
    (void)candidate, (void)e;
    nll[window] = row->nll_teacher;
    return true;
}

static bool compute(struct teacher *t, struct err *e)
{
    struct pass p = {.f = &t->f, .tokens = &t->tokens, .weights = {.load = load, .context = t}, .share = true,
                     .node = t->n};
    uint32_t per_group = GROUP_POSITIONS / t->tokens.window;
    per_group = per_group ? per_group : 1;
    size_t row = (size_t)t->tokens.window * (size_t)t->model->config.hidden;
    uint8_t *assignment;
    uint32_t *windows;
    bool ok = mem_new(&windows, t->tokens.n, e);
    if (!ok || !mem_new(&assignment, (size_t)t->model->n_units, e)) {
        if (ok)
            mem_free(windows);
        return false;
    }
    for (uint32_t w = 0; w < t->tokens.n; w++)
        windows[w] = w;
    for (uint32_t first = 0; ok && first < t->tokens.n; first += per_group) {
        uint32_t n = t->tokens.n - first < per_group ? t->tokens.n - first : per_group;
        node_progress(t->n, first, t->tokens.n, "window");
        ok = pass_states(&p, assignment, windows + first, n, t->states + first * row, e) &&
             pass_score(&p, t->states + first * row, windows + first, n, take_loss, t->nll + first, e);
    }
    mem_free(windows);
    mem_free(assignment);
    return ok;
}

static bool publish(struct teacher *t, struct err *e)
{
    struct writer *w = node_output(t->n);
    uint32_t n = t->tokens.n;
    double nll = 0, scored = 0;
    for (uint32_t i = 0; i < n; i++) {
        nll += t->nll[i];
        scored += tokens_scored(&t->tokens, i);
    }
    double perplexity = exp(nll / scored);
    const struct dataset states = {.name = "states", .dtype = DTYPE_F32, .rank = 3, .unit = "1",
        .shape = {n, t->tokens.window, (uint64_t)t->model->config.hidden}, .axes = "window, position, feature",
        .description = "states after the final norm; positions past a window's length are padding"};
    const struct dataset loss = {.name = "nll", .dtype = DTYPE_F64, .rank = 1, .shape = {n}, .unit = "nat",
        .axes = "window", .description = "negative log likelihood of the text, summed over the scored positions"};
    const struct dataset length = {.name = "length", .dtype = DTYPE_I32, .rank = 1, .shape = {n}, .unit = "token",
        .axes = "window", .description = "real positions; all but the last are scored"};
    float *taken = t->states;
    char model_key[KEY_TEXT];
    key_text(&node_input(t->n, "model", 0)->key, model_key);
    t->states = NULL;
    node_log(t->n, "perplexity %.4f over %.0f tokens in %u windows (%s)", perplexity, scored, n, node_numerics(t->n));
    return writer_add_take(w, &states, taken, e) && writer_add(w, &loss, t->nll, e) &&
           writer_add(w, &length, t->tokens.length, e) && writer_text(w, "numeric", node_numerics(t->n), e) &&
           writer_text(w, "model_key", model_key, e) && writer_text(w, "tokens", t->tokens.digest, e) &&
           writer_double(w, "perplexity", perplexity, e);
}

static bool run(struct node *n, struct err *e)
{
    struct teacher t = {.n = n};
    bool ok = model_open_input(&t.model, n, "model", e) && tokens_read(&t.tokens, node_input(n, "tokens", 0), e) &&
              forward_open(&t.f, t.model, node_queue(n), numeric_begin(node_queue(n), node_string(n, "numeric")),
                           (int)t.tokens.window,
                           e) &&
              mem_raw(&t.states, (size_t)t.tokens.n * t.tokens.window * (size_t)t.model->config.hidden, e) &&
              mem_new(&t.nll, t.tokens.n, e) && compute(&t, e) && publish(&t, e);
    forward_close(&t.f);
    tokens_fini(&t.tokens);
    model_close(t.model);
    mem_free(t.states);
    mem_free(t.nll);
    return ok;
}

static bool needs(struct node *n, struct needs *out, struct err *e)
{
    struct model *m;
    struct token_set tokens;
    if (!model_open_input(&m, n, "model", e))
        return false;
    bool ok = tokens_read(&tokens, node_input(n, "tokens", 0), e);
    if (ok) {
        enum dtype mode = numeric_mode(node_string(n, "numeric"));
        uint64_t states = (uint64_t)tokens.n * tokens.window * (uint64_t)m->config.hidden * 4;
        uint64_t panels = 0, most_unit = 0;
        for (int u = 0; u < LAYER_UNITS; u++) {
            panels += m->units[u].parameters * dtype_bytes(mode);
            most_unit = m->units[u].parameters > most_unit ? m->units[u].parameters : most_unit;
        }
        *out = (struct needs){.memory = states + 4 * most_unit, .disk = states};
        forward_needs(node_kernels(n), m, mode, (int)tokens.window, out);
        /* States of a group twice: in the layers, and once more for its own score. */
        uint64_t group = (uint64_t)(GROUP_POSITIONS + tokens.window) * (uint64_t)m->config.hidden * 4;
        needs_tensors(node_kernels(n), out, panels + 2 * (states < group ? states : group));
        tokens_fini(&tokens);
    }
    model_close(m);
    return ok;
}

const struct node_class node_teacher = {
    .name = "teacher",
    .summary = "the reference: the model's states after the final norm on a token set, and its perplexity",
    .version = 1,
    .ports = (const struct port[]){
        {"model", MODEL_TYPES, false, false, "the original model"},
        {"tokens", (const char *const[]){"corpus", NULL}, false, false, "the windows"},
        {0}},
    .params = (const struct param[]){
        NUMERIC_PARAM,
        {0}},
    .accelerator = true,
    .numerics = numeric_of_node,
    .needs = needs,
    .run = run,
};
