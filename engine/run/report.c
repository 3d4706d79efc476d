/* What the outside sees of a run: an event per change of state, live lines, and run.h5. One thread draws and writes the
 * index, so that neither delays the scheduler. */
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "engine/run/state.h"

#define DRAW_SECONDS 0.25
#define INDEX_SECONDS 1.0
/* Writing the index may take at most this share of the time. */
#define INDEX_SHARE 0.05

struct report {
    struct run *run;
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t wake;
    bool stop;
};

double report_clock(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* ----------------------------------------------------------------------------------------------------------- events */

static void add_text(const struct node *n, struct str *s)
{
    char when[16], cores[128], size[16];
    switch (n->state) {
    case STATE_RUNNING:
        str_add(s, "running on ");
        if (n->n_devices > 0)
            str_printf(s, "%s and ", n->where);
        str_printf(s, "%d core%s (%s), %s", n->cores, n->cores == 1 ? "" : "s",
                   place_set_text(n->set, cores, sizeof cores), str_size(n->memory, size));
        break;
    case STATE_DONE:
        str_printf(s, "done in %s", str_seconds(n->seconds, when));
        break;
    case STATE_INTERRUPTED:
        str_printf(s, "interrupted after %s", str_seconds(isnan(n->seconds) ? 0 : n->seconds, when));
        break;
    case STATE_FAILED:
        str_printf(s, "failed: %s", n->error ? n->error->text : "out of memory");
        break;
    case STATE_BLOCKED:
        str_add(s, n->error ? n->error->text : "blocked");
        break;
    default:
        str_add(s, state_name(n->state));
    }
}

static void add_json(const struct node *n, struct str *s)
{
    char key[KEY_TEXT];
    str_add(s, "{\"event\":\"node\",\"node\":");
    str_add_json(s, n->def->name);
    str_printf(s, ",\"type\":\"%s\",\"state\":\"%s\"", n->def->class->name, state_name(n->state));
    if (n->has_key)
        str_printf(s, ",\"key\":\"%s\"", key_text(&n->key, key));
    if (!isnan(n->seconds)) {
        str_add(s, ",\"seconds\":");
        str_add_json_double(s, n->seconds);
    }
    if (n->where)
        str_printf(s, ",\"device\":\"%s\"", n->where);
    if (n->error) {
        str_printf(s, ",\"code\":\"%s\",\"error\":", err_name(n->error->code));
        str_add_json(s, n->error->text);
    }
    run_stats_json(n->stats, n->n_stats, s);
    str_add(s, "}");
}

void run_stats_json(const struct index_stat *stats, size_t n, struct str *s)
{
    if (n == 0)
        return;
    str_add(s, ",\"stats\":{");
    for (size_t i = 0; i < n; i++) {
        str_add(s, i ? "," : "");
        str_add_json(s, stats[i].name);
        str_add(s, ":");
        str_add_json_double(s, stats[i].value);
    }
    str_add(s, "}");
}

void report_state(struct node *n)
{
    struct str text = {0}, json = {0};
    n->run->index_dirty = true;
    add_text(n, &text);
    if (n->run->options.output == RUN_JSON)
        add_json(n, &json);
    progress_event(n->run->progress, n->def->name, text.failed || !text.text ? state_name(n->state) : text.text,
                   json.failed || !json.text ? "{\"event\":\"node\"}" : json.text);
    str_free(&text);
    str_free(&json);
}

/* ----------------------------------------------------------------------------------------------------------- run.h5 */

/* Copies of what the index says of each node, in `arena`: the originals change while the index is written. */
static bool snapshot(struct run *r, struct index_node **out, struct arena *arena, struct err *e)
{
    struct index_node *list = arena_new(arena, (r->n + 1) * sizeof *list, e);
    if (!list)
        return false;
    for (size_t i = 0; i < r->n; i++) {
        const struct node *n = &r->nodes[i];
        struct index_node *x = &list[i];
        *x = (struct index_node){.name = n->def->name, .type = n->def->class->name, .state = state_name(n->state),
                                 .has_key = n->has_key, .key = n->key, .seconds = n->seconds, .n_stats = n->n_stats,
                                 .has_ledger = n->has_ledger, .ledger = n->ledger, .device = n->where};
        x->has_result = n->state == STATE_DONE || n->state == STATE_REUSED;
        x->error = n->error && n->state == STATE_FAILED ? arena_strdup(arena, n->error->text, e) : NULL;
        struct index_stat *stats = n->n_stats ? arena_new(arena, n->n_stats * sizeof *stats, e) : NULL;
        if ((n->n_stats && !stats) || (n->error && n->state == STATE_FAILED && !x->error))
            return false;
        if (stats)
            memcpy(stats, n->stats, n->n_stats * sizeof *stats);
        x->stats = stats;
    }
    *out = list;
    return true;
}

void report_index(struct run *r)
{
    struct arena arena = {0};
    struct index_node *list;
    struct err e;
    const struct index_run about = {
        .graph_name = r->graph->name, .graph_text = r->graph->text ? r->graph->text : "",
        .command_line = r->options.command_line ? r->options.command_line : "",
        .version = r->options.version ? r->options.version : "", .machine = r->machine ? r->machine : "",
        .started = r->started,
    };
    pthread_mutex_lock(&r->lock);
    r->index_dirty = false;
    bool ok = snapshot(r, &list, &arena, &e);
    pthread_mutex_unlock(&r->lock);
    ok = ok && index_write(r->store, r->dir, &about, list, r->n, &e);
    arena_free(&arena);
    if (ok)
        return;
    pthread_mutex_lock(&r->lock);
    bool warn = !r->index_warned;
    r->index_warned = true;
    pthread_mutex_unlock(&r->lock);
    struct str line = {0};
    str_printf(&line, "warning: run.h5 was not written: %s", e.text);
    if (warn && !line.failed)
        progress_line(r->progress, NULL, line.text);
    str_free(&line);
}

/* ------------------------------------------------------------------------------------------------------- the thread */

static void draw(struct run *r)
{
    enum { MOST = 64 };
    struct progress_live lines[MOST];
    char units[MOST][16];
    size_t n = 0;
    double now = report_clock();
    if (!progress_is_live(r->progress))
        return;
    pthread_mutex_lock(&r->lock);
    for (size_t i = 0; i < r->n && n < MOST; i++) {
        const struct node *x = &r->nodes[i];
        bool hashing = x->hash_total > 0;
        if (x->state != STATE_RUNNING && !hashing)
            continue;
        memcpy(units[n], hashing ? "B hashed" : x->unit, hashing ? sizeof "B hashed" : sizeof x->unit);
        lines[n] = (struct progress_live){.name = x->def->name, .unit = units[n], .rate = NAN,
                                          .done = hashing ? x->hashed : x->done,
                                          .total = hashing ? x->hash_total : x->total, .seconds = now - x->began};
        if (!hashing && now > x->time_first && x->done > x->done_first)
            lines[n].rate = (x->done - x->done_first) / (now - x->time_first);
        n++;
    }
    pthread_mutex_unlock(&r->lock);
    progress_draw(r->progress, lines, n);
}

/* Wait until `seconds` passed or the run ended; true when it ended. */
static bool wait_end(struct report *p, double seconds)
{
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_nsec += (long)(seconds * 1e9);
    until.tv_sec += until.tv_nsec / 1000000000;
    until.tv_nsec %= 1000000000;
    pthread_mutex_lock(&p->lock);
    while (!p->stop && pthread_cond_timedwait(&p->wake, &p->lock, &until) == 0)
        ;
    bool stop = p->stop;
    pthread_mutex_unlock(&p->lock);
    return stop;
}

static void *report_main(void *context)
{
    struct report *p = context;
    struct run *r = p->run;
    double next_index = report_clock() + INDEX_SECONDS;
    while (!wait_end(p, progress_is_live(r->progress) ? DRAW_SECONDS : INDEX_SECONDS)) {
        draw(r);
        double now = report_clock();
        pthread_mutex_lock(&r->lock);
        bool due = r->index_dirty && r->planned && now >= next_index;
        pthread_mutex_unlock(&r->lock);
        if (!due)
            continue;
        report_index(r);
        double took = report_clock() - now;
        next_index = now + fmax(INDEX_SECONDS, took / INDEX_SHARE);
    }
    return NULL;
}

bool report_start(struct report **out, struct run *r, struct err *e)
{
    struct report *p;
    pthread_condattr_t attr;
    if (!mem_new(&p, 1, e))
        return false;
    p->run = r;
    pthread_mutex_init(&p->lock, NULL);
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&p->wake, &attr);
    pthread_condattr_destroy(&attr);
    int failed = pthread_create(&p->thread, NULL, report_main, p);
    if (failed) {
        pthread_cond_destroy(&p->wake);
        pthread_mutex_destroy(&p->lock);
        mem_free(p);
        return err_set(e, ERR_RESOURCE, "cannot start a thread: %s", strerror(failed));
    }
    *out = p;
    return true;
}

void report_stop(struct report *p)
{
    if (!p)
        return;
    pthread_mutex_lock(&p->lock);
    p->stop = true;
    pthread_cond_signal(&p->wake);
    pthread_mutex_unlock(&p->lock);
    pthread_join(p->thread, NULL);
    progress_flush(p->run->progress);
    progress_draw(p->run->progress, NULL, 0);
    if (p->run->planned)
        report_index(p->run);
    pthread_cond_destroy(&p->wake);
    pthread_mutex_destroy(&p->lock);
    mem_free(p);
}
