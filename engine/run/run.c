/* A run from opening its directory to its summary. Keys and states are plan.c, order and room sched.c, one node's life
 * worker.c, what is shown report.c. */
#include "engine/run/run.h"

#include <errno.h>
#include <limits.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "engine/run/state.h"

/* ------------------------------------------------------------------------------------------------------ directories */

/* `path` made absolute from the working directory, without asking whether it exists. */
static char *absolute(struct arena *a, const char *path, struct err *e)
{
    char here[PATH_MAX];
    if (path[0] == '/')
        return arena_strdup(a, path, e);
    if (!getcwd(here, sizeof here)) {
        err_errno(e, ERR_IO, "cannot tell the working directory");
        return NULL;
    }
    return arena_printf(a, e, "%s/%s", here, path);
}

bool run_find_store(const char *dir, char *out, size_t size, struct err *e)
{
    struct str path = {0};
    str_printf(&path, "%s/store.path", dir);
    bool ok = str_ok(&path, e);
    FILE *f = ok ? fopen(path.text, "re") : NULL;
    if (ok && !f && errno != ENOENT && errno != ENOTDIR)
        ok = err_errno(e, ERR_INPUT, "cannot read '%s'", path.text);
    if (ok) {
        char line[PATH_MAX] = "";
        if (f && fgets(line, sizeof line, f))
            line[strcspn(line, "\n")] = '\0';
        int n = f ? snprintf(out, size, "%s", line) : snprintf(out, size, "%s/store", dir);
        ok = (n >= 0 && (size_t)n < size) || err_set(e, ERR_INPUT, "the path of the store of '%s' is too long", dir);
    }
    if (ok && f && access(out, F_OK) != 0)
        ok = err_set(e, ERR_INPUT, "'%s' says that the results are in the store '%s', which is not there: bring it "
                                   "back, give another with --store, or remove '%s' to begin with an empty one",
                     path.text, out, path.text);
    if (f)
        fclose(f);
    str_free(&path);
    return ok;
}

/* RUN/store.path says which store is used, when it is not RUN/store. Written aside and renamed: half a path would be
 * another store. */
static bool note_store(const struct run *r, struct err *e)
{
    struct str path = {0}, own = {0}, aside = {0};
    str_printf(&path, "%s/store.path", r->dir);
    str_printf(&own, "%s/store", r->dir);
    str_printf(&aside, "%s/store.path.tmp", r->dir);
    bool ok = str_ok(&path, e) && str_ok(&own, e) && str_ok(&aside, e);
    if (ok && strcmp(r->store_path, own.text) == 0) {
        unlink(path.text);
    } else if (ok) {
        FILE *f = fopen(aside.text, "we");
        bool written = f && fprintf(f, "%s\n", r->store_path) > 0;
        if ((f && fclose(f) != 0) || !written || rename(aside.text, path.text) != 0)
            ok = err_errno(e, ERR_RESOURCE, "cannot write '%s'", path.text);
    }
    str_free(&path);
    str_free(&own);
    str_free(&aside);
    return ok;
}

/* ---------------------------------------------------------------------------------------------------------- opening */

static bool check_targets(struct run *r, struct err *e)
{
    const char **names = arena_new(&r->arena, (r->n + 1) * sizeof *names, e);
    if (!names)
        return false;
    for (size_t i = 0; i < r->n; i++)
        names[i] = r->nodes[i].def->name;
    for (size_t i = 0; i < r->options.n_targets; i++) {
        int at = graph_find(r->graph, r->options.targets[i]);
        if (at < 0) {
            const char *near = str_nearest(r->options.targets[i], names, r->n);
            err_set(e, ERR_USAGE, "target '%s' is no node of graph '%s'", r->options.targets[i], r->graph->name);
            return err_suggest(e, near);
        }
        r->nodes[at].target = true;
    }
    return true;
}

static bool open_store(struct run *r, struct err *e)
{
    if (!r->options.plan_only)
        return store_open(&r->store, r->store_path, e) && (!r->options.store || note_store(r, e));
    if (access(r->store_path, F_OK) != 0)
        return true; /* nothing there yet: everything is new */
    return store_open_readonly(&r->store, r->store_path, e);
}

static bool open_directories(struct run *r, struct err *e)
{
    const struct run_options *o = &r->options;
    char found[PATH_MAX];
    char *dir = o->dir ? NULL : arena_printf(&r->arena, e, "runs/%s", r->graph->name);
    if (!o->dir && !dir)
        return false;
    r->dir = absolute(&r->arena, o->dir ? o->dir : dir, e);
    if (!r->dir)
        return false;
    if (!o->plan_only && (!store_make_path(r->dir, e) || !run_lock_take(&r->dir_lock, r->dir, e)))
        return false;
    if (!o->store && !run_find_store(r->dir, found, sizeof found, e))
        return false;
    r->store_path = absolute(&r->arena, o->store ? o->store : found, e);
    return r->store_path && open_store(r, e);
}

static bool open_log(struct run *r, struct err *e)
{
    if (r->options.plan_only)
        return true;
    struct str path = {0};
    str_printf(&path, "%s/run.log", r->dir);
    bool ok = str_ok(&path, e) && progress_new(&r->progress, path.text, r->options.output, r->options.out, e);
    str_free(&path);
    return ok;
}

bool run_open(struct run **out, const struct graph *g, const struct run_options *o, struct err *e)
{
    struct run *r;
    if (!mem_new(&r, 1, e))
        return false;
    r->graph = g;
    r->options = *o;
    r->started = (double)time(NULL);
    r->memory_total = o->memory > 0 ? o->memory : UINT64_MAX;
    pthread_mutex_init(&r->device_lock, NULL);
    pthread_mutex_init(&r->lock, NULL);
    pthread_cond_init(&r->changed, NULL);
    pthread_cond_init(&r->admitted, NULL);
    atomic_init(&r->stopping, false);
    r->n = g->n_nodes;
    if (!open_directories(r, e) || !node_build_all(r, e) || !check_targets(r, e) || !device_place_nodes(r, e) ||
        !open_log(r, e)) {
        run_close(r);
        return false;
    }
    *out = r;
    return true;
}

void run_close(struct run *r)
{
    if (!r)
        return;
    node_free_all(r);
    mem_free(r->ready);
    mem_free(r->asking);
    mem_free(r->active);
    mem_free(r->deferred);
    place_free(r->place);
    progress_free(r->progress);
    store_close(r->store);
    run_unlock(r->dir_lock);
    pthread_cond_destroy(&r->admitted);
    pthread_cond_destroy(&r->changed);
    pthread_mutex_destroy(&r->lock);
    pthread_mutex_destroy(&r->device_lock);
    arena_free(&r->arena);
    mem_free(r);
}

/* ---------------------------------------------------------------------------------------------------------- the run */

bool run_plan(struct run *r, struct err *e)
{
    return plan_states(r, e);
}

/* The first lines of the log: on what, with what, whereof. */
static bool say_machine(struct run *r, struct err *e)
{
    const char *kernels = r->options.backend.name ? r->options.backend.name : "none";
    char size[16];
    if (!place_new(&r->place, r->options.topology, r->options.threads, e) || !device_locate(r, e))
        return false;
    if (r->options.memory == 0 && place_memory(r->place) > 0)
        r->memory_total = place_memory(r->place) / 10 * 9; /* the rest is the system's, and what needs are off by */
    r->machine = arena_printf(&r->arena, e, "%s; kernels %s", place_text(r->place), kernels);
    char *line = arena_printf(&r->arena, e, "graph %s, run %s, store %s", r->graph->name, r->dir, r->store_path);
    char *machine = arena_printf(&r->arena, e, "machine: %s; nodes may use %s of memory together",
                                 r->machine ? r->machine : "",
                                 r->memory_total == UINT64_MAX ? "any amount" : str_size(r->memory_total, size));
    if (!r->machine || !line || !machine)
        return false;
    progress_line(r->progress, NULL, line);
    progress_line(r->progress, NULL, machine);
    return true;
}

static void sum_up(const struct run *r, struct run_summary *s)
{
    for (size_t i = 0; i < r->n; i++) {
        const struct node *n = &r->nodes[i];
        s->needed += n->relevant;
        s->reused += n->state == STATE_REUSED;
        s->done += n->state == STATE_DONE;
        s->failed += n->state == STATE_FAILED;
        s->blocked += n->state == STATE_BLOCKED;
        s->interrupted += n->state == STATE_INTERRUPTED;
        s->waiting += n->state == STATE_WAITING || n->state == STATE_READY;
        s->resource |= n->state == STATE_FAILED &&
                       (!n->error || n->error->code == ERR_RESOURCE || n->error->code == ERR_DEVICE);
    }
    s->stopped = atomic_load(&r->stopping) && s->interrupted + s->waiting > 0;
}

/* Times and figures of reused results are those of the run that made them, as the last index has them. */
static void carry_over(struct run *r)
{
    struct arena arena = {0};
    struct index_run run;
    struct index_node *old;
    struct err ignored;
    size_t n;
    if (!index_read(r->dir, &run, &old, &n, &arena, &ignored))
        n = 0; /* none, or damaged: it is derived */
    pthread_mutex_lock(&r->lock);
    for (size_t i = 0; i < n; i++) {
        int at = graph_find(r->graph, old[i].name);
        struct node *x = at < 0 ? NULL : &r->nodes[at];
        if (!x || x->state != STATE_REUSED || !old[i].has_key || !key_equal(&old[i].key, &x->key))
            continue;
        if (old[i].n_stats && mem_new(&x->stats, old[i].n_stats, NULL)) {
            memcpy(x->stats, old[i].stats, old[i].n_stats * sizeof *x->stats);
            x->n_stats = old[i].n_stats;
        }
        x->seconds = old[i].seconds;
        x->where = old[i].device ? arena_strdup(&r->arena, old[i].device, NULL) : NULL;
    }
    pthread_mutex_unlock(&r->lock);
    arena_free(&arena);
}

static void report_reused(struct run *r)
{
    pthread_mutex_lock(&r->lock);
    for (size_t i = 0; i < r->n; i++)
        if (r->nodes[i].state == STATE_REUSED)
            report_state(&r->nodes[i]);
    pthread_mutex_unlock(&r->lock);
    carry_over(r);
    report_index(r); /* before `planned`, from when on the report's thread writes it too */
    pthread_mutex_lock(&r->lock);
    r->planned = true;
    pthread_mutex_unlock(&r->lock);
}

bool run_execute(struct run *r, struct run_summary *summary, struct err *e)
{
    struct report *report = NULL;
    double began = report_clock();
    *summary = (struct run_summary){0};
    if (!say_machine(r, e) || !report_start(&report, r, e))
        return false;
    bool ok = run_plan(r, e) && (atomic_load(&r->stopping) || device_open_needed(r, e));
    if (ok && !atomic_load(&r->stopping)) {
        report_reused(r);
        summary->started = true;
        ok = sched_run(r, e);
    }
    report_stop(report);
    sum_up(r, summary);
    summary->seconds = report_clock() - began;
    if (!ok)
        progress_line(r->progress, NULL, e->text);
    progress_flush(r->progress);
    return ok;
}

void run_stop(struct run *r)
{
    pthread_mutex_lock(&r->lock);
    atomic_store(&r->stopping, true);
    pthread_cond_signal(&r->changed);
    pthread_mutex_unlock(&r->lock);
}

/* ------------------------------------------------------------------------------------------------------------ views */

size_t run_count(const struct run *r)
{
    return r->n;
}

static const char *planned_state(enum node_state s)
{
    return s == STATE_REUSED ? "reuse" : s == STATE_UNNEEDED ? "not needed" : s == STATE_UNKNOWN ? "unknown" : "run";
}

void run_view(const struct run *r, size_t i, struct run_view *out)
{
    const struct node *n = &r->nodes[i];
    *out = (struct run_view){
        .name = n->def->name, .type = n->def->class->name, .reason = n->reason ? n->reason : "",
        .state = r->options.plan_only ? planned_state(n->state) : state_name(n->state),
        .error = n->error, .needed = n->relevant && n->state != STATE_UNNEEDED, .has_key = n->has_key, .key = n->key,
        .seconds = n->seconds, .stats = n->stats, .n_stats = n->n_stats,
    };
}

const char *run_dir(const struct run *r)
{
    return r->dir;
}

const char *run_store_path(const struct run *r)
{
    return r->store_path;
}
