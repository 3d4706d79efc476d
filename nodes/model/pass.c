/* The measuring pass: the trie of lanes through the layers, then heads and KL. The order of all arithmetic inside a row
 * is the kernels'; what this file decides (which lanes, which windows, which tiles) changes no bit of a row. */
#include "nodes/model/pass.h"

#include <math.h>
#include <string.h>
#include <time.h>

#include "nodes/model/replay.h"

/* One live residual stream: candidates order[first .. last) that have arrived and agree on all layers so far. */
struct lane {
    size_t first, last;
    struct tensor x;
};

/* The state of one pass_run. */
struct trie {
    struct pass *p;
    const uint8_t *const *assignments;
    const uint32_t *windows;
    size_t n, n_windows;
    size_t *order;   /* candidates sorted by assignment: equal prefixes are neighbours */
    int *start;      /* parallel to order: the layer at which a cached state (or the embedding) lets it begin */
    struct lane *lanes, *next;
    size_t n_lanes, n_next;
    struct unit_weights weights[LAYER_UNITS][PASS_FORMATS]; /* of the layer in hand, once loaded */
    struct unit_weights heads[PASS_FORMATS];                /* where the head is a unit */
};

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int64_t slots(const struct pass *p) { return (int64_t)p->tokens->window; }
static int64_t hidden(const struct pass *p) { return p->f->model->config.hidden; }

/* Formats of the layers before `depth` are the first depth * LAYER_UNITS bytes of an assignment. */
static size_t prefix_bytes(int depth) { return (size_t)depth * LAYER_UNITS; }

/* ----------------------------------------------------------------------------------------------- the order of lanes */

static void sort_candidates(struct trie *t)
{
    size_t units = (size_t)t->p->f->model->n_units;
    for (size_t i = 0; i < t->n; i++) { /* by insertion: n is at most some hundreds; stable */
        size_t j = i;
        for (; j > 0 && memcmp(t->assignments[t->order[j - 1]], t->assignments[i], units) > 0; j--)
            t->order[j] = t->order[j - 1];
        t->order[j] = i;
    }
}

/* The deepest layer before which all windows of the pass have a cached state of this prefix; those states are
 * pinned. */
static int deepest_start(const struct trie *t, const uint8_t *assignment)
{
    for (int depth = t->p->f->model->config.layers - 1; depth > 0; depth--) {
        size_t w = 0;
        while (w < t->n_windows &&
               replay_has(t->p->replay, t->windows[w], depth, assignment, prefix_bytes(depth)))
            w++;
        if (w < t->n_windows)
            continue;
        for (w = 0; w < t->n_windows; w++)
            replay_pin(t->p->replay, t->windows[w], depth, assignment, prefix_bytes(depth));
        return depth;
    }
    return 0;
}

static bool trie_init(struct trie *t, struct err *e)
{
    if (!mem_new(&t->order, t->n, e) || !mem_new(&t->start, t->n, e) || !mem_new(&t->lanes, t->n, e) ||
        !mem_new(&t->next, t->n, e))
        return false;
    sort_candidates(t);
    for (size_t i = 0; t->p->share && t->p->replay && i < t->n; i++)
        t->start[i] = deepest_start(t, t->assignments[t->order[i]]);
    return true;
}

static void lanes_free(struct trie *t, struct lane *lanes, size_t n)
{
    for (size_t i = 0; i < n; i++)
        t->p->f->q->k->tensor_free(t->p->f->q, &lanes[i].x);
}

static void weights_free(struct trie *t)
{
    for (int u = 0; u < LAYER_UNITS; u++)
        for (int f = 0; f < PASS_FORMATS; f++)
            unit_weights_free(t->p->f->q, &t->weights[u][f]);
}

static void trie_fini(struct trie *t)
{
    if (t->p->replay)
        replay_unpin_all(t->p->replay);
    if (t->lanes)
        lanes_free(t, t->lanes, t->n_lanes);
    if (t->next)
        lanes_free(t, t->next, t->n_next);
    weights_free(t);
    for (int f = 0; f < PASS_FORMATS; f++)
        unit_weights_free(t->p->f->q, &t->heads[f]);
    mem_free(t->order);
    mem_free(t->start);
    mem_free(t->lanes);
    mem_free(t->next);
}

/* Do the sorted candidates i and j travel together through the first `depth` layers? */
static bool together(const struct trie *t, size_t i, size_t j, int depth)
{
    return t->p->share &&
           memcmp(t->assignments[t->order[i]], t->assignments[t->order[j]], prefix_bytes(depth)) == 0;
}

/* ------------------------------------------------------------------------------------------------ the layers' sweep */

static bool new_state(struct trie *t, struct tensor *x, struct err *e)
{
    int64_t shape[2] = {(int64_t)t->n_windows * slots(t->p), hidden(t->p)};
    return t->p->f->q->k->tensor_new(t->p->f->q, x, DTYPE_F32, 2, shape, e);
}

/* The state before `depth` of the candidate at sorted place i: from the cache, or the embedding. */
static bool begin_state(struct trie *t, size_t i, int depth, struct tensor *x, struct err *e)
{
    struct pass *p = t->p;
    for (size_t w = 0; w < t->n_windows; w++) {
        struct tensor part = tensor_rows(x, (int64_t)w * slots(p), slots(p));
        if (depth == 0) {
            if (!forward_embed(p->f, p->tokens->ids + (size_t)t->windows[w] * p->tokens->window, &part, e))
                return false;
            continue;
        }
        const struct tensor *kept =
            replay_find(p->replay, t->windows[w], depth, t->assignments[t->order[i]], prefix_bytes(depth));
        if (!kept)
            return err_set(e, ERR_BUG, "replay: a state vanished during a pass");
        if (!p->f->q->k->copy(p->f->q, kept, &part, e))
            return false;
    }
    return true;
}

/* Open lanes for the candidates that begin before layer `depth`. */
static bool arrive(struct trie *t, int depth, struct err *e)
{
    for (size_t i = 0; i < t->n;) {
        size_t end = i + 1;
        if (t->start[i] != depth) {
            i++;
            continue;
        }
        while (end < t->n && together(t, i, end, depth))
            end++;
        struct lane *lane = &t->lanes[t->n_lanes];
        *lane = (struct lane){.first = i, .last = end};
        if (!new_state(t, &lane->x, e))
            return false;
        t->n_lanes++;
        if (!begin_state(t, i, depth, &lane->x, e))
            return false;
        i = end;
    }
    return true;
}

/* Unless they are there. */
static bool load_unit(struct trie *t, int unit, int format, struct unit_weights *w, struct err *e)
{
    double from = now();
    if (unit_weights_there(w))
        return true;
    if (!t->p->weights.load(t->p->weights.context, unit, format, w, e))
        return false;
    t->p->seconds[PASS_WEIGHTS] += now() - from;
    return true;
}

static bool load_weights(struct trie *t, int layer, const uint8_t *choice, struct unit_weights out[LAYER_UNITS],
                         struct err *e)
{
    for (int u = 0; u < LAYER_UNITS; u++) {
        struct unit_weights *w = &t->weights[u][choice[u]];
        if (!load_unit(t, layer * LAYER_UNITS + u, choice[u], w, e))
            return false;
        out[u] = *w;
    }
    return true;
}

/* Keep the state before `depth` if more than one candidate goes on from it, and it is one of those that are kept. */
static void keep(struct trie *t, const struct lane *lane, int depth)
{
    struct pass *p = t->p;
    if (!p->replay || !p->share || lane->last - lane->first < 2 || depth >= p->f->model->config.layers ||
        (p->keep_every > 1 && depth % p->keep_every != 0))
        return;
    for (size_t w = 0; w < t->n_windows; w++) {
        struct tensor part = tensor_rows(&lane->x, (int64_t)w * slots(p), slots(p));
        replay_put(p->replay, t->windows[w], depth, t->assignments[t->order[lane->first]], prefix_bytes(depth), &part);
    }
}

/* The next group of a lane's arrived candidates that agree on `layer` too: sorted places [*first, *last); false at the
 * end. Candidates that begin later are passed over. */
static bool next_group(const struct trie *t, const struct lane *lane, int layer, size_t *first, size_t *last)
{
    size_t i = *last;
    while (i < lane->last && t->start[i] > layer)
        i++;
    if (i >= lane->last)
        return false;
    *first = i;
    size_t end = i + 1;
    for (size_t j = end; j < lane->last && together(t, i, j, layer + 1); j++)
        if (t->start[j] <= layer)
            end = j + 1;
    *last = end;
    return true;
}

/* All groups of one lane through `layer`; the last one takes the lane's state, the others copy it. */
static bool fork_lane(struct trie *t, struct lane *lane, int layer, struct err *e)
{
    const struct kernels *k = t->p->f->q->k;
    size_t first = 0, last = lane->first, more_first = 0, more_last;
    bool more = next_group(t, lane, layer, &first, &last);
    while (more) {
        more_last = last;
        size_t this_first = first, this_last = last;
        more = next_group(t, lane, layer, &more_first, &more_last);
        struct lane *child = &t->next[t->n_next];
        *child = (struct lane){.first = this_first, .last = this_last};
        if (more) {
            if (!new_state(t, &child->x, e))
                return false;
            t->n_next++;
            if (!k->copy(t->p->f->q, &lane->x, &child->x, e))
                return false;
        } else {
            child->x = lane->x;
            lane->x = (struct tensor){0};
            t->n_next++;
        }
        struct unit_weights w[LAYER_UNITS];
        const uint8_t *choice = t->assignments[t->order[this_first]] + (size_t)layer * LAYER_UNITS;
        if (!load_weights(t, layer, choice, w, e))
            return false;
        double from = now();
        if (!forward_layer(t->p->f, layer, w, &child->x, NULL, NULL, e))
            return false;
        t->p->seconds[PASS_LAYERS] += now() - from;
        t->p->layer_forwards += t->n_windows;
        keep(t, child, layer + 1);
        first = more_first;
        last = more_last;
    }
    return true;
}

/* Says which formats `layer` will be asked for, by the candidates that have begun by then. */
static void tell_ahead(const struct trie *t, int layer)
{
    const struct pass_weights *weights = &t->p->weights;
    uint64_t wanted[LAYER_UNITS] = {0};
    if (!weights->ahead || layer >= t->p->f->model->config.layers)
        return;
    for (size_t i = 0; i < t->n; i++)
        for (int u = 0; t->start[i] <= layer && u < LAYER_UNITS; u++)
            wanted[u] |= UINT64_C(1) << t->assignments[t->order[i]][prefix_bytes(layer) + (size_t)u];
    weights->ahead(weights->context, layer, wanted);
}

static bool sweep(struct trie *t, struct err *e)
{
    struct pass *p = t->p;
    int layers = p->f->model->config.layers;
    for (int layer = 0; layer < layers; layer++) {
        if (p->node && node_stopping(p->node))
            return node_stopped(e);
        if (!arrive(t, layer, e))
            return false;
        if (layer == 0)
            tell_ahead(t, 0);
        tell_ahead(t, layer + 1);
        for (size_t i = 0; i < t->n_lanes; i++)
            if (!fork_lane(t, &t->lanes[i], layer, e))
                return false;
        p->layer_forwards_naive += (uint64_t)t->n * t->n_windows;
        lanes_free(t, t->lanes, t->n_lanes);
        struct lane *emptied = t->lanes;
        t->lanes = t->next;
        t->n_lanes = t->n_next;
        t->next = emptied;
        t->n_next = 0;
        weights_free(t);
    }
    for (size_t i = 0; i < t->n_lanes; i++)
        if (!forward_final(p->f, &t->lanes[i].x, &t->lanes[i].x, e))
            return false;
    return true;
}

/* --------------------------------------------------------------------------------------------------- heads and KL */

/* A lane's states and the head that they go through: where the head is a unit, a lane comes here once for each format
 * of the head that its candidates have. */
struct scored {
    const struct tensor *states; /* [n_windows * slots, hidden] on the device: the lane's, or `input` */
    const struct tensor *head;   /* panels [vocab, hidden] */
    struct tensor input;         /* the states as the head's format sees them, where it quantizes its input */
};

/* Running sums of a block of rows of every lane, and what comes of them for one window. */
struct heads {
    struct pass *p;
    const struct scored *lanes;
    size_t n_lanes;
    unsigned char *image;      /* [lane, KL_STATE_BYTES]: the lanes' states on the host, before and after a block */
    struct tensor sums;        /* the same on the device */
    struct tensor teacher, s_t, s_c; /* states and logits of a block of rows on the device */
    float *kl;                 /* [lane, slots] */
    struct pass_row *rows;     /* [lane] */
};

static int64_t head_rows(const struct heads *h) { return h->p->f->q->k->head_rows; }

static struct kl_state lane_state(const struct heads *h, void *block, size_t lane)
{
    return kl_state_at((unsigned char *)block + lane * KL_STATE_BYTES(head_rows(h)), head_rows(h));
}

static bool heads_init(struct heads *h, struct err *e)
{
    struct pass *p = h->p;
    const struct kernels *k = p->f->q->k;
    int64_t states[2] = {head_rows(h), hidden(p)}, logits[2] = {head_rows(h), k->head_columns};
    int64_t bytes = (int64_t)(h->n_lanes * KL_STATE_BYTES(head_rows(h)));
    return mem_new_bytes((void **)&h->image, (size_t)bytes, 1, e) &&
           mem_new(&h->kl, h->n_lanes * (size_t)slots(p), e) && mem_new(&h->rows, h->n_lanes, e) &&
           k->tensor_new(p->f->q, &h->sums, DTYPE_U8, 1, &bytes, e) &&
           k->tensor_new(p->f->q, &h->teacher, DTYPE_F32, 2, states, e) &&
           k->tensor_new(p->f->q, &h->s_t, DTYPE_F32, 2, logits, e) &&
           k->tensor_new(p->f->q, &h->s_c, DTYPE_F32, 2, logits, e);
}

static void heads_fini(struct heads *h)
{
    const struct kernels *k = h->p->f->q->k;
    mem_free(h->image);
    mem_free(h->kl);
    mem_free(h->rows);
    k->tensor_free(h->p->f->q, &h->sums);
    k->tensor_free(h->p->f->q, &h->teacher);
    k->tensor_free(h->p->f->q, &h->s_t);
    k->tensor_free(h->p->f->q, &h->s_c);
}

/* A [rows, columns] view of a buffer of logits, rows packed. */
static struct tensor tile(const struct tensor *buffer, int64_t rows, int64_t columns)
{
    struct tensor v = *buffer;
    v.owned = false;
    v.shape[0] = rows;
    v.shape[1] = columns;
    return v;
}

/* One vocabulary tile for all lanes: the teacher's logits are formed once. */
static bool head_tile(struct heads *h, int64_t row, int64_t rows, int64_t first, int64_t columns, struct err *e)
{
    struct forward *f = h->p->f;
    const struct kernels *k = f->q->k;
    struct tensor s_t = tile(&h->s_t, rows, columns), s_c = tile(&h->s_c, rows, columns);
    double from = now(), then;
    if (h->p->teacher) {
        struct tensor x = tensor_rows(&h->teacher, 0, rows);
        if (!k->matmul_part(f->q, &x, h->p->teacher_head ? h->p->teacher_head : &f->head, first, &s_t, e))
            return false;
        then = now();
        h->p->seconds[PASS_TEACHER_HEAD] += then - from;
        from = then;
    }
    for (size_t i = 0; i < h->n_lanes; i++) {
        struct tensor x = tensor_rows(h->lanes[i].states, row, rows);
        struct kl_state state = lane_state(h, h->sums.data, i);
        if (!k->matmul_part(f->q, &x, h->lanes[i].head, first, &s_c, e))
            return false;
        then = now();
        h->p->seconds[PASS_HEAD] += then - from;
        from = then;
        if (!k->kl_tile(f->q, h->p->teacher ? &s_t : &s_c, &s_c, first, &state, e))
            return false;
        then = now();
        h->p->seconds[PASS_KL] += then - from;
        from = then;
    }
    return true;
}

/* Add the finished rows of a block to each lane's figures for the window; `at` is the block's first position. */
static bool head_finish(struct heads *h, int64_t at, int64_t rows, struct err *e)
{
    for (size_t i = 0; i < h->n_lanes; i++) {
        struct kl_state s = lane_state(h, h->image, i);
        struct pass_row *r = &h->rows[i];
        float *kl = h->kl + i * (size_t)slots(h->p);
        for (int64_t t = 0; t < rows; t++) {
            double log_t = s.max_t[t] + kl_log(s.sum_t[t]), log_c = s.max_c[t] + kl_log(s.sum_c[t]);
            double x = kl_state_row(&s, t);
            if (!isfinite(x))
                return err_set(e, ERR_NUMERIC, "KL at position %lld is not finite (logits overflow?)",
                               (long long)(at + t));
            x = x > 0 ? x : 0; /* KL >= 0; what is below is rounding */
            kl[at + t] = (float)x;
            r->kl_sum += x;
            r->kl_max = x > r->kl_max ? x : r->kl_max;
            r->nll_teacher += log_t - s.target_t[t];
            r->nll_candidate += log_c - s.target_c[t];
            r->top1 += s.arg_t[t] == s.arg_c[t];
            r->n_tokens++;
        }
    }
    return true;
}

/* The sums of `rows` positions from `at` of a window, empty, and the teacher's states of them. */
static bool head_begin(struct heads *h, uint32_t window, int64_t at, int64_t rows, struct err *e)
{
    struct pass *p = h->p;
    const struct kernels *k = p->f->q->k;
    const int32_t *ids = p->tokens->ids + (size_t)window * p->tokens->window;
    for (size_t i = 0; i < h->n_lanes; i++) {
        struct kl_state state = lane_state(h, h->image, i);
        for (int64_t t = 0; t < rows; t++)
            state.target[t] = ids[at + t + 1];
        kl_state_init(&state, rows);
    }
    if (!k->upload(p->f->q, &h->sums, h->image, (size_t)tensor_count(&h->sums), e))
        return false;
    if (!p->teacher)
        return true;
    struct tensor x = tensor_rows(&h->teacher, 0, rows);
    const float *states = p->teacher + ((int64_t)window * slots(p) + at) * hidden(p);
    return k->upload(p->f->q, &x, states, (size_t)(rows * hidden(p)) * sizeof *states, e);
}

/* All scored positions of the w-th window of the pass. */
static bool head_window(struct heads *h, size_t w, uint32_t window, struct err *e)
{
    struct pass *p = h->p;
    const struct kernels *k = p->f->q->k;
    int64_t scored = tokens_scored(p->tokens, window), vocab = p->f->model->config.vocab, columns = k->head_columns;
    memset(h->rows, 0, h->n_lanes * sizeof *h->rows);
    for (int64_t at = 0; at < scored; at += head_rows(h)) {
        int64_t rows = scored - at < head_rows(h) ? scored - at : head_rows(h);
        if (!head_begin(h, window, at, rows, e))
            return false;
        for (int64_t first = 0; first < vocab; first += columns)
            if (!head_tile(h, (int64_t)w * slots(p) + at, rows, first,
                           vocab - first < columns ? vocab - first : columns, e))
                return false;
        double from = now();
        if (!k->download(p->f->q, h->image, &h->sums, (size_t)tensor_count(&h->sums), e))
            return false;
        p->seconds[PASS_KL] += now() - from;
        if (!head_finish(h, at, rows, e))
            return err_context(e, "window %u", window);
    }
    return true;
}

/* Rows of candidate c are those of lane lane_of[c]. */
static bool score(struct pass *p, const struct scored *lanes, size_t n_lanes, const size_t *lane_of, size_t n,
                  const uint32_t *windows, size_t n_windows, pass_tell tell, void *context, struct err *e)
{
    struct heads h = {.p = p, .lanes = lanes, .n_lanes = n_lanes};
    bool ok = heads_init(&h, e);
    for (size_t w = 0; ok && w < n_windows; w++) {
        if (w > 0 && p->node && node_stopping(p->node))
            ok = node_stopped(e);
        ok = ok && head_window(&h, w, windows[w], e);
        for (size_t c = 0; ok && c < n; c++) {
            struct pass_row row = h.rows[lane_of[c]];
            row.kl = h.kl + lane_of[c] * (size_t)slots(p);
            ok = tell(context, c, w, &row, e);
        }
    }
    heads_fini(&h);
    return ok;
}

/* ---------------------------------------------------------------------------------------------------- entry points */

/* The head of the candidate at sorted place i of a lane, and the lane's states as its input. */
static bool open_scored(struct trie *t, const struct lane *lane, size_t i, struct scored *out, struct err *e)
{
    struct forward *f = t->p->f;
    int unit = f->model->head_unit;
    *out = (struct scored){.states = &lane->x, .head = &f->head};
    if (unit < 0)
        return true;
    int format = t->assignments[t->order[i]][unit];
    struct unit_weights *w = &t->heads[format];
    if (!load_unit(t, unit, format, w, e))
        return false;
    out->head = &w->panels;
    if (w->act == ACT_NONE)
        return true;
    out->states = &out->input;
    return (new_state(t, &out->input, e) &&
            f->q->k->fake_quantize(f->q, &lane->x, w->act, w->act_scale, f->mode, &out->input, e)) ||
           err_context(e, "unit '%s'", f->model->units[unit].name);
}

/* Do the candidates at sorted places i and i + 1 of a lane have heads of different formats? */
static bool part_at_heads(const struct trie *t, size_t i)
{
    int unit = t->p->f->model->head_unit;
    return unit >= 0 && t->assignments[t->order[i]][unit] != t->assignments[t->order[i + 1]][unit];
}

/* Each lane with each of its heads; lane_of[c] is the place of candidate c among them. *n_out counts those that were
 * begun. */
static bool open_heads(struct trie *t, struct scored *out, size_t *n_out, size_t *lane_of, struct err *e)
{
    for (size_t l = 0; l < t->n_lanes; l++) {
        const struct lane *lane = &t->lanes[l];
        for (size_t i = lane->first; i < lane->last; i++) {
            if ((i == lane->first || part_at_heads(t, i - 1)) && !open_scored(t, lane, i, &out[(*n_out)++], e))
                return false;
            lane_of[t->order[i]] = *n_out - 1;
        }
    }
    return true;
}

bool pass_run(struct pass *p, const uint8_t *const *assignments, size_t n, const uint32_t *windows, size_t n_windows,
              pass_tell tell, void *context, struct err *e)
{
    struct trie t = {.p = p, .assignments = assignments, .windows = windows, .n = n, .n_windows = n_windows};
    struct scored *scored = NULL;
    size_t *lane_of = NULL, n_scored = 0;
    bool ok = mem_new(&scored, n, e) && mem_new(&lane_of, n, e) && trie_init(&t, e) && sweep(&t, e) &&
              open_heads(&t, scored, &n_scored, lane_of, e) &&
              score(p, scored, n_scored, lane_of, n, windows, n_windows, tell, context, e);
    for (size_t i = 0; i < n_scored; i++)
        p->f->q->k->tensor_free(p->f->q, &scored[i].input);
    trie_fini(&t);
    mem_free(scored);
    mem_free(lane_of);
    return ok;
}

bool pass_states(struct pass *p, const uint8_t *assignment, const uint32_t *windows, size_t n_windows, float *states,
                 struct err *e)
{
    struct trie t = {.p = p, .assignments = &assignment, .windows = windows, .n = 1, .n_windows = n_windows};
    size_t bytes = n_windows * (size_t)slots(p) * (size_t)hidden(p) * sizeof *states;
    bool ok = trie_init(&t, e) && sweep(&t, e) &&
              p->f->q->k->download(p->f->q, states, &t.lanes[0].x, bytes, e);
    trie_fini(&t);
    return ok;
}

bool pass_score(struct pass *p, const float *states, const uint32_t *windows, size_t n_windows, pass_tell tell,
                void *context, struct err *e)
{
    const struct kernels *k = p->f->q->k;
    int64_t shape[2] = {(int64_t)n_windows * slots(p), hidden(p)};
    struct tensor x = {0};
    const struct scored lanes[1] = {{.states = &x, .head = &p->f->head}};
    size_t lane_of[1] = {0};
    bool ok = k->tensor_new(p->f->q, &x, DTYPE_F32, 2, shape, e) &&
              k->upload(p->f->q, &x, states, (size_t)(shape[0] * shape[1]) * sizeof *states, e) &&
              score(p, lanes, 1, lane_of, 1, windows, n_windows, tell, context, e);
    k->tensor_free(p->f->q, &x);
    return ok;
}
