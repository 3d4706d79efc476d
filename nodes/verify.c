/* Node type `verify`: the exported directory opened again, its packed bytes decoded, and its KL taken on each token
 * set. It shares nothing with the search but the pass itself: on the selection set its rows must equal the chosen
 * candidate's to the bit, and on the report set they are the published figure. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "nodes/model/directory.h"
#include "nodes/model/pass.h"
#include "nodes/model/teacher.h"
#include "nodes/nodes.h"
#include "nodes/search/candidates.h"
#include "nodes/search/stats.h"

#define GROUP_POSITIONS 16384

/* The figures of one token set. */
struct figures {
    uint32_t n;
    double *kl_sum, *tokens;            /* [window] */
    double nll_teacher, nll_candidate, top1, total;
    double mean, low, high;
};

struct verify {
    struct node *n;
    struct model *model; /* the exported directory */
    struct key of;       /* of the model that was exported */
    enum dtype mode;
    struct forward *f;
    struct figures figures;  /* of the set in hand */
    uint32_t first;          /* window of the group in hand */
    int compared;            /* sets whose rows were compared with the expected candidate's */
};

static bool load(void *context, int unit, int format, struct unit_weights *out, struct err *e)
{
    struct verify *v = context;
    (void)format; /* there is one: what the directory holds */
    return weights_stored(v->f->q, v->model, unit, v->mode, out, e);
}

static bool take_row(void *context, size_t candidate, size_t window, const struct pass_row *row, struct err *e)
{
    struct verify *v = context;
    struct figures *s = &v->figures;
    (void)candidate, (void)e;
    s->kl_sum[v->first + window] = row->kl_sum;
    s->tokens[v->first + window] = row->n_tokens;
    s->nll_teacher += row->nll_teacher;
    s->nll_candidate += row->nll_candidate;
    s->top1 += row->top1;
    s->total += row->n_tokens;
    return true;
}

/* `reference`: the model whose head the teacher's states go through; NULL: the exported one. */
static bool measure_set(struct verify *v, const struct token_set *tokens, const float *teacher,
                        const struct model *reference, struct err *e)
{
    struct forward f = {0};
    struct tensor head = {0};
    uint8_t *assignment = NULL;
    uint32_t *windows = NULL, group = GROUP_POSITIONS / tokens->window;
    group = group ? group : 1;
    bool ok = mem_new(&assignment, (size_t)v->model->n_units, e) && mem_new(&windows, tokens->n, e) &&
              forward_open(&f, v->model, node_queue(v->n), v->mode, (int)tokens->window, e) &&
              (!reference || forward_head(f.q, reference, v->mode, &head, e));
    struct pass p = {.f = &f, .tokens = tokens, .teacher = teacher, .teacher_head = reference ? &head : NULL,
                     .weights = {.load = load, .context = v}, .share = true, .node = v->n};
    v->f = &f;
    for (uint32_t w = 0; ok && w < tokens->n; w++)
        windows[w] = w;
    for (v->first = 0; ok && v->first < tokens->n; v->first += group) {
        uint32_t n = tokens->n - v->first < group ? tokens->n - v->first : group;
        const uint8_t *list[1] = {assignment};
        node_progress(v->n, v->first, tokens->n, "window");
        ok = node_stopping(v->n) ? node_stopped(e)
                                 : pass_run(&p, list, 1, windows + v->first, n, take_row, v, e);
    }
    if (f.q)
        f.q->k->tensor_free(f.q, &head);
    forward_close(&f);
    mem_free(assignment);
    mem_free(windows);
    return ok;
}

static bool write_column(struct writer *w, const char *set, const char *name, const double *x, uint64_t n,
                         const char *unit, const char *axes, const char *description, struct err *e)
{
    char path[160];
    snprintf(path, sizeof path, "sets/%s/%s", set, name);
    const struct dataset d = {.name = path, .dtype = DTYPE_F64, .rank = 1, .shape = {n}, .unit = unit, .axes = axes,
        .description = description};
    return writer_add(w, &d, x, e);
}

static bool write_set(struct verify *v, const char *set, const double *kl_window, struct err *e)
{
    struct writer *w = node_output(v->n);
    const struct figures *s = &v->figures;
    double perplexity = exp(s->nll_candidate / s->total), teacher = exp(s->nll_teacher / s->total);
    double top1 = s->top1 / s->total;
    char interval[64] = "[one document: no interval]";
    if (!isnan(s->low))
        snprintf(interval, sizeof interval, "[%.6f, %.6f]", s->low, s->high);
    node_log(v->n, "%s: KL %.6f nats %s over %u windows, top-1 agreement %.4f, perplexity %.4f (teacher %.4f) [%s]",
             set, s->mean, interval, s->n, top1, perplexity, teacher, node_numerics(v->n));
    return write_column(w, set, "kl_window", kl_window, s->n, "nat", "window", "mean KL over a window's positions",
                        e) &&
           write_column(w, set, "kl_mean", &s->mean, 1, "nat", "value", "mean KL over all scored positions", e) &&
           write_column(w, set, "kl_low", &s->low, 1, "nat", "value", "lower end of the 95 % interval", e) &&
           write_column(w, set, "kl_high", &s->high, 1, "nat", "value", "upper end of the 95 % interval", e) &&
           write_column(w, set, "perplexity", &perplexity, 1, "1", "value", "of the exported model", e) &&
           write_column(w, set, "perplexity_teacher", &teacher, 1, "1", "value", "of the original model", e) &&
           write_column(w, set, "top1", &top1, 1, "1", "value", "share of positions with the same likeliest token", e);
}

/* The chosen candidate of the expected table, on the same tokens, must have these very numbers. */
static bool compare(struct verify *v, const struct token_set *tokens, const char *set, const double *kl_window,
                    struct err *e)
{
    if (!node_inputs(v->n, "expect"))
        return true;
    const struct input *in = node_input(v->n, "expect", 0);
    struct candidates c;
    uint32_t chosen;
    if (!candidates_read(&c, in->object, e))
        return false;
    bool ok = object_read(in->object, "chosen", DTYPE_U32, 0, 1, &chosen, e);
    bool comparable = ok && strcmp(c.tokens, tokens->digest) == 0 && strcmp(c.numeric, node_numerics(v->n)) == 0 &&
                      chosen < c.n && c.list[chosen].kl_window;
    for (uint32_t w = 0; comparable && ok && w < tokens->n; w++)
        if (c.list[chosen].kl_window[w] != kl_window[w])
            ok = err_set(e, ERR_NUMERIC, "%s, window %u: the exported directory has KL %.17g, candidate %u of '%s' was "
                         "measured at %.17g: what is exported is not what was measured", set, w, kl_window[w], chosen,
                         in->node, c.list[chosen].kl_window[w]);
    v->compared += ok && comparable;
    if (ok && comparable)
        node_log(v->n, "%s: equal to candidate %u of '%s' in all %u windows, bit for bit", set, chosen, in->node,
                 tokens->n);
    candidates_fini(&c);
    return ok;
}

/* What the numbers mean, given the rows: means per window, and the interval over documents. */
static bool finish_set(struct verify *v, const struct token_set *tokens, const char *set, struct err *e)
{
    struct figures *s = &v->figures;
    double *kl_window;
    if (!mem_new(&kl_window, s->n, e))
        return false;
    double sum = 0;
    for (uint32_t w = 0; w < s->n; w++) {
        kl_window[w] = s->kl_sum[w] / s->tokens[w];
        sum += s->kl_sum[w];
    }
    s->mean = sum / s->total;
    bool ok = stats_positive_interval(s->kl_sum, s->tokens, tokens->document, s->n, 0.95, &s->low, &s->high, e) &&
              compare(v, tokens, set, kl_window, e) && write_set(v, set, kl_window, e);
    mem_free(kl_window);
    return ok;
}

/* "report", or "report.2" for the second set of that name: another corpus may bring one. Nothing of it is the
 * graph's. */
static void set_name(const struct verify *v, size_t i, char out[64])
{
    const char *output = node_input(v->n, "tokens", i)->output;
    int nth = 1;
    for (size_t j = 0; j < i; j++)
        nth += strcmp(node_input(v->n, "tokens", j)->output, output) == 0;
    if (nth == 1)
        snprintf(out, 64, "%.40s", output);
    else
        snprintf(out, 64, "%.40s.%d", output, nth);
}

static bool verify_set(struct verify *v, size_t i, struct err *e)
{
    char name[64];
    const struct input *in = node_input(v->n, "teacher", i), *tokens_in = node_input(v->n, "tokens", i);
    struct token_set tokens;
    struct figures *s = &v->figures;
    struct model *reference = NULL;
    float *teacher = NULL;
    if (!tokens_read(&tokens, tokens_in, e))
        return false;
    set_name(v, i, name);
    *s = (struct figures){.n = tokens.n};
    bool ok = mem_new(&s->kl_sum, s->n, e) && mem_new(&s->tokens, s->n, e);
    ok = ok && teacher_read(&teacher, in, &tokens, v->model->config.hidden, node_numerics(v->n), e) &&
         teacher_model(&reference, v->n, in, &v->of, e) &&
         /* a packed head is not the teacher's */
         (reference || v->model->head_unit < 0 || model_open_upstream(&reference, v->n, &v->of, e)) &&
         measure_set(v, &tokens, teacher, reference, e) && finish_set(v, &tokens, name, e);
    model_close(reference);
    mem_free(teacher);
    mem_free(s->kl_sum);
    mem_free(s->tokens);
    tokens_fini(&tokens);
    return ok;
}

/* Of which model the directory is an export. */
static bool read_origin(struct verify *v, const struct input *in, struct err *e)
{
    const char *text;
    return (object_text(in->object, "model_key", &text) && key_parse(text, &v->of)) ||
           err_set(e, ERR_INPUT, "'%s' does not say which model it has exported", in->node);
}

static bool run(struct node *n, struct err *e)
{
    struct verify v = {.n = n, .mode = numeric_begin(node_queue(n), node_string(n, "numeric"))};
    const char *path;
    size_t sets = node_inputs(n, "teacher");
    if (sets != node_inputs(n, "tokens"))
        return err_set(e, ERR_INPUT, "%zu teachers for %zu token sets: each token set wants its own teacher", sets,
                       node_inputs(n, "tokens"));
    /* Two exports to one place, or a hand, may have changed it since. */
    const struct input *in = node_input(n, "exported", 0);
    if (!node_input_path(n, "exported", 0, "directory", &path, e) ||
        !directory_check(node_store(n), path, in->object, in->node, e) || !read_origin(&v, in, e) ||
        !model_open(&v.model, path, e))
        return false;
    bool ok = true;
    for (size_t i = 0; ok && i < sets; i++)
        ok = verify_set(&v, i, e);
    if (ok && node_inputs(n, "expect") && !v.compared)
        ok = err_set(e, ERR_INPUT,
                     "none of the token sets is the one that '%s' was measured on in '%s': connect it, or "
                     "leave port 'expect' open",
                     node_input(n, "expect", 0)->node, node_numerics(n));
    ok = ok && writer_text(node_output(n), "numeric", node_numerics(n), e);
    model_close(v.model);
    return ok;
}

/* Is the i-th teacher of another model than the exported one? Then its head is wanted too. */
static bool is_of_other(const struct node *n, size_t i)
{
    const char *of, *exported;
    return object_text(node_input(n, "teacher", i)->object, "model_key", &of) &&
           object_text(node_input(n, "exported", 0)->object, "model_key", &exported) && strcmp(of, exported) != 0;
}

/* Teacher states of the largest set, the states of one group twice, one layer as panels, and the tables. */
static bool needs(struct node *n, struct needs *out, struct err *e)
{
    enum dtype mode = numeric_mode(node_string(n, "numeric"));
    struct model *m;
    const char *path;
    uint64_t states = 0, layer = 0;
    bool others;
    int window = 1;
    if (!node_input_path(n, "exported", 0, "directory", &path, e) || !model_open(&m, path, e))
        return false;
    for (int u = 0; u < LAYER_UNITS; u++)
        layer += m->units[u].parameters * dtype_bytes(mode);
    uint64_t head = m->head_unit >= 0 ? m->units[m->head_unit].parameters * dtype_bytes(mode) : 0;
    layer = head > layer ? head : layer;
    others = head > 0; /* then the teacher's is another one */
    for (size_t i = 0; i < node_inputs(n, "teacher"); i++) {
        const struct dataset *d = object_dataset(node_input(n, "teacher", i)->object, "states");
        uint64_t bytes = d && d->rank == 3 ? d->shape[0] * d->shape[1] * d->shape[2] * 4 : 0;
        states = bytes > states ? bytes : states;
        window = bytes && (int)d->shape[1] > window ? (int)d->shape[1] : window;
        others = others || is_of_other(n, i);
    }
    uint64_t group = (uint64_t)(GROUP_POSITIONS + window) * (uint64_t)m->config.hidden * 8;
    *out = (struct needs){.memory = states + 2 * layer / dtype_bytes(mode), .disk = 1 << 20};
    forward_needs(node_kernels(n), m, mode, window, out);
    if (others)
        forward_head_needs(node_kernels(n), m, mode, out);
    needs_tensors(node_kernels(n), out, layer + group);
    model_close(m);
    return true;
}

const struct node_class node_verify = {
    .name = "verify",
    .summary = "decode the exported directory again and take its KL, perplexity and agreement on each token set",
    .version = 2,
    .ports = (const struct port[]){
        {"exported", (const char *const[]){"export", NULL}, false, false, "the directory"},
        {"teacher", (const char *const[]){"teacher", NULL}, true, false, "the reference on each token set"},
        {"tokens", (const char *const[]){"corpus", NULL}, true, false, "token sets, in the teachers' order"},
        {"expect", (const char *const[]){"confirm", "polish", "select", NULL}, false, true,
         "the chosen candidate: its rows must equal the directory's, bit for bit"},
        {0}},
    .params = (const struct param[]){
        NUMERIC_PARAM,
        {0}},
    .accelerator = true,
    .numerics = numeric_of_node,
    .needs = needs,
    .run = run,
};
