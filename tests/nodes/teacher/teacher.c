/* The node type teacher against `transformers`: the loss of every window, the perplexity, and the states, by the logits
 * that they give. Golden figures are made by tools/golden_logits.py. */
#include <math.h>

#include "tests/check.h"
#include "tests/nodes/fake_node.h"

extern const struct node_class node_teacher;

/* Of a window's loss, and of the logits' range: f32 forward passes in another order. */
#define TOLERANCE 3e-6

struct world {
    char folder[256], source[512];
    struct store *store;
    struct token_set tokens;
    struct object *info, *corpus, *teacher;
    int32_t columns;
    float range;
    int32_t *column;   /* [columns] */
    float *logits;     /* [window, position, columns] */
    double *nll;       /* [window] */
    double perplexity;
};

static void *read_block(FILE *f, size_t bytes)
{
    struct err e;
    void *p;
    assert_ok(mem_new_bytes(&p, bytes, 1, &e), e);
    assert_int_equal(fread(p, 1, bytes, f), bytes);
    return p;
}

/* Ids, kept columns and logits. */
static void read_logits(struct world *w)
{
    char path[600];
    int32_t windows, window;
    snprintf(path, sizeof path, "%s/tests/golden/logits/babyllama-1m.bin", check_root());
    FILE *f = fopen(path, "rb");
    assert_non_null(f);
    assert_int_equal(fread(&windows, 4, 1, f) + fread(&window, 4, 1, f) + fread(&w->columns, 4, 1, f) +
                     fread(&w->range, 4, 1, f), 4);
    w->tokens = (struct token_set){.n = (uint32_t)windows, .window = (uint32_t)window};
    w->tokens.ids = read_block(f, (size_t)(windows * window) * 4);
    w->column = read_block(f, (size_t)w->columns * 4);
    w->logits = read_block(f, (size_t)(windows * window * w->columns) * 4);
    fclose(f);
}

/* Lengths and losses; what is past a length is padding. */
static void read_losses(struct world *w)
{
    struct err e;
    char path[600];
    snprintf(path, sizeof path, "%s/tests/golden/logits/babyllama-1m.nll", check_root());
    FILE *f = fopen(path, "r");
    assert_non_null(f);
    assert_ok(mem_new(&w->tokens.length, w->tokens.n, &e) && mem_new(&w->tokens.document, w->tokens.n, &e) &&
              mem_new(&w->nll, w->tokens.n, &e), e);
    for (uint32_t i = 0; i < w->tokens.n; i++) {
        w->tokens.document[i] = i;
        assert_int_equal(fscanf(f, "%d %lf", &w->tokens.length[i], &w->nll[i]), 2);
        assert_in_range(w->tokens.length[i], 2, w->tokens.window);
        for (uint32_t t = (uint32_t)w->tokens.length[i]; t < w->tokens.window; t++)
            w->tokens.ids[i * w->tokens.window + t] = 0;
    }
    assert_int_equal(fscanf(f, "%lf", &w->perplexity), 1);
    fclose(f);
}

static int set_up(void **state)
{
    static struct world w;
    struct err e;
    struct node n;
    char path[300];
    check_dir_make(w.folder);
    snprintf(path, sizeof path, "%s/store", w.folder);
    snprintf(w.source, sizeof w.source, "%s/data/models/babyllama-1m", check_root());
    assert_ok(store_open(&w.store, path, &e), e);
    read_logits(&w);
    read_losses(&w);
    w.info = fake_model(w.store, w.source);
    w.corpus = fake_corpus(w.store, "report", &w.tokens);
    fake_node_init(&n, &node_teacher, w.store, "teacher");
    fake_node_connect(&n, "model", "model", w.info, w.source);
    fake_node_connect_output(&n, "tokens", "corpus", "report", w.corpus);
    w.teacher = fake_node_run(&n, &e);
    if (!w.teacher)
        fail_msg("%s", e.text);
    fake_node_fini(&n);
    *state = &w;
    return 0;
}

static int tear_down(void **state)
{
    struct world *w = *state;
    if (!w) /* setting up failed */
        return 0;
    object_close(w->teacher);
    object_close(w->corpus);
    object_close(w->info);
    tokens_fini(&w->tokens);
    mem_free(w->column);
    mem_free(w->logits);
    mem_free(w->nll);
    store_close(w->store);
    check_dir_remove(w->folder);
    return 0;
}

/* ------------------------------------------------------------------------------------------------------------ tests */

static void losses_and_perplexity_are_those_of_transformers(void **state)
{
    struct world *w = *state;
    struct err e;
    double *nll, perplexity;
    int32_t *length;
    uint64_t n;
    assert_ok(object_load(w->teacher, "nll", DTYPE_F64, &nll, &n, &e), e);
    assert_int_equal(n, w->tokens.n);
    for (uint64_t i = 0; i < n; i++)
        if (!(fabs(nll[i] - w->nll[i]) <= TOLERANCE * w->nll[i]))
            fail_msg("window %llu of %d tokens: loss %.9f, transformers has %.9f", (unsigned long long)i,
                     w->tokens.length[i], nll[i], w->nll[i]);
    assert_true(object_double(w->teacher, "perplexity", &perplexity));
    if (!(fabs(perplexity / w->perplexity - 1.0) <= TOLERANCE))
        fail_msg("perplexity %.9f, transformers has %.9f", perplexity, w->perplexity);
    assert_ok(object_load(w->teacher, "length", DTYPE_I32, &length, &n, &e), e);
    assert_int_equal(n, w->tokens.n);
    assert_memory_equal(length, w->tokens.length, n * sizeof *length);
    mem_free(nll);
    mem_free(length);
}

static void states_give_the_logits_of_transformers(void **state)
{
    struct world *w = *state;
    struct err e;
    struct model *m;
    float *states, *head;
    uint64_t n;
    assert_ok(model_open(&m, w->source, &e), e);
    int64_t hidden = m->config.hidden, vocab = m->config.vocab;
    assert_true(m->config.tied);
    assert_ok(mem_raw(&head, (size_t)(vocab * hidden), &e), e);
    assert_ok(model_read_tensor(m, "model.embed_tokens.weight", vocab * hidden, head, &e), e);
    assert_ok(object_load(w->teacher, "states", DTYPE_F32, &states, &n, &e), e);
    assert_int_equal(n, (uint64_t)w->tokens.n * w->tokens.window * (uint64_t)hidden);
    for (uint32_t i = 0; i < w->tokens.n; i++)
        for (int32_t t = 0; t < w->tokens.length[i]; t++)
            for (int32_t c = 0; c < w->columns; c++) {
                int64_t at = (int64_t)i * w->tokens.window + t;
                double logit = 0, want = w->logits[at * w->columns + c];
                for (int64_t k = 0; k < hidden; k++)
                    logit += (double)states[at * hidden + k] * head[w->column[c] * hidden + k];
                if (!(fabs(logit - want) <= TOLERANCE * w->range))
                    fail_msg("window %u, position %d, token %d: logit %.7g, transformers has %.7g", i, t, w->column[c],
                             logit, want);
            }
    mem_free(states);
    mem_free(head);
    model_close(m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(losses_and_perplexity_are_those_of_transformers),
        cmocka_unit_test(states_give_the_logits_of_transformers),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
