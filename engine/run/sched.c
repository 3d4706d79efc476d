/* Which node starts when. Nodes whose inputs are there wait in a heap, the one on the longest path to a sink first.
 * Each gets a thread (worker.c), which opens the inputs, learns what the node needs, and then asks here to be admitted:
 * running nodes never hold more cores, memory or nodes at once than the run has, and none goes before one of higher
 * priority that is still opening its inputs. What can never fit is refused with the figures. A node of high priority
 * that waits for room is not passed over for ever: after BYPASS_MOST admissions of others, nothing starts before it. */
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/statvfs.h>

#include "engine/run/state.h"

#define BYPASS_MOST 16
/* Nodes that may have their inputs open and wait for room, beyond those that run. */
#define ASKING_MOST 8
#define DAMAGED_MOST 2
/* Nodes that may have their inputs open and wait for accelerators of one kind, beyond as many as there are. */
#define DEVICE_ASKING_MOST 2
/* Cores that one accelerator cannot do without: what a node that could use all cores leaves to each. */
#define DEVICE_CORES 2
/* Kept free beyond what a node says it will publish. */
#define DISK_SPARE (UINT64_C(64) << 20)

/* --------------------------------------------------------------------------------------------------- the ready heap */

/* True when a goes before b: longer path first, then the order of the graph. */
static bool before(const struct node *a, const struct node *b)
{
    return a->height != b->height ? a->height > b->height : a->index < b->index;
}

static bool push_ready(struct run *r, struct node *n, struct err *e)
{
    if (r->n_ready == r->ready_capacity) {
        size_t grown = r->ready_capacity ? 2 * r->ready_capacity : 64;
        if (!mem_grow(&r->ready, r->ready_capacity, grown, e))
            return false;
        r->ready_capacity = grown;
    }
    size_t i = r->n_ready++;
    for (; i > 0 && before(n, r->ready[(i - 1) / 2]); i = (i - 1) / 2)
        r->ready[i] = r->ready[(i - 1) / 2];
    r->ready[i] = n;
    n->state = STATE_READY;
    return true;
}

/* The first node that is still ready, or NULL; entries that went stale by a repair are dropped. */
static struct node *pop_ready(struct run *r)
{
    while (r->n_ready > 0) {
        struct node *top = r->ready[0], *last = r->ready[--r->n_ready];
        size_t i = 0;
        for (size_t child; (child = 2 * i + 1) < r->n_ready; i = child) {
            if (child + 1 < r->n_ready && before(r->ready[child + 1], r->ready[child]))
                child++;
            if (!before(r->ready[child], last))
                break;
            r->ready[i] = r->ready[child];
        }
        r->ready[i] = last;
        if (top->state == STATE_READY)
            return top;
    }
    return NULL;
}

/* -------------------------------------------------------------------------------------------------- states of nodes */

static void set_error(struct node *n, const struct err *why)
{
    /* Without memory for it, the state still says that it failed. */
    if (n->error || mem_new(&n->error, 1, NULL))
        *n->error = *why;
}

/* Everything that waits for `n` cannot run. Depth-first by an explicit sweep: consumers have higher indices. */
static void block_consumers(struct run *r, struct node *n)
{
    struct err why = {0};
    for (size_t i = (size_t)n->index; i < r->n; i++) {
        struct node *from = &r->nodes[i];
        if (from->state != STATE_FAILED && from->state != STATE_BLOCKED)
            continue;
        for (size_t k = 0; k < from->n_consumers; k++) {
            struct node *c = &r->nodes[from->consumers[k]];
            if (c->state != STATE_WAITING)
                continue;
            err_set(&why, ERR_INPUT, "blocked: '%s' failed", n->def->name);
            set_error(c, &why);
            c->state = STATE_BLOCKED;
            report_state(c);
        }
    }
}

static void fail_node(struct node *n, const struct err *why)
{
    n->state = STATE_FAILED;
    set_error(n, why);
    report_state(n);
    block_consumers(n->run, n);
}

/* `n` is there: its consumers miss one input fewer. */
static bool release_consumers(struct run *r, struct node *n, struct err *e)
{
    for (size_t k = 0; k < n->n_consumers; k++) {
        struct node *c = &r->nodes[n->consumers[k]];
        if (c->state == STATE_WAITING && --c->missing == 0 && !push_ready(r, c, e))
            return false;
    }
    return true;
}

static size_t count_missing(const struct run *r, const struct node *n)
{
    size_t missing = 0;
    for (size_t p = 0; n->def->class->ports && n->def->class->ports[p].name; p++)
        for (size_t i = 0; i < n->def->n_inputs[p]; i++) {
            enum node_state s = r->nodes[n->def->inputs[p][i].node].state;
            missing += s != STATE_DONE && s != STATE_REUSED;
        }
    return missing;
}

/* Count anew what every waiting or ready node misses, after states changed other than by a node finishing. */
static bool recount(struct run *r, struct err *e)
{
    for (size_t i = 0; i < r->n; i++) {
        struct node *n = &r->nodes[i];
        if (n->state != STATE_WAITING && n->state != STATE_READY)
            continue;
        bool was_ready = n->state == STATE_READY;
        n->missing = count_missing(r, n);
        if (n->missing > 0)
            n->state = STATE_WAITING;
        else if (!was_ready && !push_ready(r, n, e))
            return false;
    }
    for (size_t i = 0; i < r->n; i++)
        if (r->nodes[i].state == STATE_FAILED)
            block_consumers(r, &r->nodes[i]);
    return true;
}

/* The object of `n` is damaged or gone: make it again, and what is missing before it. */
static bool repair(struct run *r, struct node *n, struct err *e)
{
    if (n->state != STATE_DONE && n->state != STATE_REUSED)
        return true; /* another consumer came first */
    if (++n->damaged >= DAMAGED_MOST) {
        struct err why = {0};
        err_set(&why, ERR_RESOURCE, "its result was found damaged %d times in one run: check the disk and the memory",
                n->damaged);
        fail_node(n, &why);
        return true;
    }
    progress_line(r->progress, n->def->name, "its result in the store is damaged or gone: it is made again");
    n->state = STATE_UNKNOWN;
    n->wanted = n->forced = true;
    return plan_resolve(r, n->index, false, e);
}

/* -------------------------------------------------------------------------------------------------------- admission */

static uint64_t disk_free(const struct run *r)
{
    struct statvfs s;
    if (statvfs(store_path(r->store), &s) != 0)
        return UINT64_MAX; /* unknown: let the write itself find out */
    return (uint64_t)s.f_bavail * s.f_frsize;
}

/* ERR_RESOURCE with the figures when the node can never be admitted. */
static bool can_ever_fit(const struct node *n, struct err *e)
{
    char want[16], have[16];
    const struct run *r = n->run;
    uint64_t limit = n->def->memory > 0 && n->def->memory < r->memory_total ? n->def->memory : r->memory_total;
    if (n->needs.memory > limit)
        return err_set(e, ERR_RESOURCE, "it needs %s of memory, and %s: %s", str_size(n->needs.memory, want),
                       limit == r->memory_total ? "the run has" : "its `on: memory` allows", str_size(limit, have));
    if (!device_can_ever_fit(n, e))
        return false;
    uint64_t available = n->needs.disk > 0 ? disk_free(r) : UINT64_MAX;
    if (available < UINT64_MAX - DISK_SPARE && n->needs.disk > (available > DISK_SPARE ? available - DISK_SPARE : 0))
        return err_set(e, ERR_RESOURCE, "it will write %s, and '%s' has %s free (64 MiB of it are kept as a reserve)",
                       str_size(n->needs.disk, want), store_path(r->store), str_size(available, have));
    return true;
}

/* Cores to give: what it can use (0: all that are free), at most what the graph says and the run has. */
static int cores_wanted(const struct node *n, int total)
{
    int cores = n->needs.cores;
    if (n->def->threads > 0 && (cores == 0 || cores > n->def->threads))
        cores = n->def->threads;
    return cores > total ? total : cores;
}

static int jobs_most(const struct run *r)
{
    return r->options.jobs > 0 ? r->options.jobs : place_units(r->place);
}

/* Does some node but `n` wait, here or for its inputs, that will drive an accelerator? */
static bool any_device_waits(const struct run *r, const struct node *n)
{
    for (size_t i = 0; i < r->n; i++) {
        enum node_state s = r->nodes[i].state;
        if (r->nodes[i].place >= 0 && s >= STATE_WAITING && s <= STATE_ASKING && &r->nodes[i] != n)
            return true;
    }
    return false;
}

/* Cores to leave for the accelerators that have nothing to do yet, when `n` is given `devices` of them. */
static int cores_reserved(const struct run *r, const struct node *n, int devices)
{
    int idle = -devices;
    for (size_t i = 0; i < r->options.backend.n_devices; i++)
        idle += r->devices[i].usable && !r->devices[i].taken;
    return idle > 0 && any_device_waits(r, n) ? idle * DEVICE_CORES : 0;
}

static int least_of(int a, int b)
{
    return a < b ? a : b;
}

/* Cores for a node that would get accelerators, see cores_now. */
static int device_cores_now(const struct run *r, const struct node *n, int devices)
{
    int units = place_units(r->place), unused = place_unused(r->place), cores = cores_wanted(n, units);
    if (cores == 0)
        cores = least_of(device_cores(n, devices), units);
    int least = least_of(cores, DEVICE_CORES), spare = unused - cores_reserved(r, n, devices);
    return unused < least ? 0 : least_of(cores, spare > least ? spare : least);
}

/* Cores for a node that would get `devices` accelerators (0: on the CPU), or 0: it has to wait.
 *
 * A node on the CPU waits for all the cores that it asks for. One that can use all cores keeps for its whole life
 * what it is given, so it waits for most of those that drive no accelerator while something runs there: a short
 * neighbour must not leave a measurement of hours on one core. A node on an accelerator does little on its cores,
 * and the accelerator is what must not stand idle: it makes do with a few. Both leave a few for accelerators that
 * wait for work, as far as there are. Either way a node that is alone finds room. */
static int cores_now(const struct run *r, const struct node *n, int devices)
{
    int units = place_units(r->place), unused = place_unused(r->place), cores = cores_wanted(n, units);
    if (devices > 0)
        return device_cores_now(r, n, devices);
    if (cores > 0)
        return unused >= cores ? cores : 0;
    bool is_wide_enough = 2 * unused > units - r->device_cores || r->n_running == 0;
    return is_wide_enough ? unused - least_of(cores_reserved(r, n, 0), unused / 2) : 0;
}

/* What running nodes will still write counts as written; a node alone was found to fit when it asked. */
static bool has_disk(const struct run *r, const struct node *n)
{
    uint64_t available = n->needs.disk > 0 && r->n_running > 0 ? disk_free(r) : UINT64_MAX;
    return available == UINT64_MAX || (available > DISK_SPARE + r->disk_used &&
                                       n->needs.disk <= available - DISK_SPARE - r->disk_used);
}

/* What the node would get now. */
struct offer {
    int devices, cores; /* no cores: it has to wait */
};

static struct offer offer_now(const struct run *r, struct node *n)
{
    struct offer o = {.devices = device_choose(n)};
    if ((o.devices > 0 || n->place < 0) && r->n_running < (size_t)jobs_most(r) &&
        n->memory <= r->memory_total - r->memory_used && has_disk(r, n))
        o.cores = cores_now(r, n, o.devices);
    return o;
}

static void drop_asking(struct run *r, size_t i)
{
    memmove(&r->asking[i], &r->asking[i + 1], (r->n_asking - i - 1) * sizeof *r->asking);
    r->n_asking--;
}

/* Cores for the node, near the devices that it gets. */
static bool take_cores(struct run *r, struct node *n, struct offer o, struct err *e)
{
    int *near = NULL;
    if (o.devices > 0 && !mem_new(&near, (size_t)o.devices, e))
        return false;
    for (int k = 0; k < o.devices; k++)
        near[k] = r->devices[n->devices[k]].near;
    bool ok = place_take(r->place, o.cores, near, o.devices, &n->set, e);
    mem_free(near);
    return ok;
}

/* Give the node its devices, cores and memory, and wake its thread. */
static bool admit(struct run *r, size_t at, struct offer o, struct err *e)
{
    struct node *n = r->asking[at];
    if (!device_name(n, o.devices, e) || !take_cores(r, n, o, e))
        return false;
    device_take(n, o.devices);
    n->cores = o.cores;
    if (o.devices > 0)
        r->device_cores += o.cores;
    r->memory_used += n->memory;
    r->disk_used += n->needs.disk;
    r->n_running++;
    n->admitted = true;
    n->n_stats = 0; /* of a result that is remade */
    n->began = report_clock();
    n->state = STATE_RUNNING;
    drop_asking(r, at);
    report_state(n);
    pthread_cond_broadcast(&r->admitted);
    return true;
}

/* Is a node of higher priority still on its way here? Which of two threads asks first must not decide who goes
 * first. */
static bool is_preceded(const struct run *r, const struct node *n)
{
    for (size_t i = 0; i < r->n_active; i++)
        if (r->active[i]->state == STATE_OPENING && before(r->active[i], n))
            return true;
    return false;
}

/* A node that waits for an accelerator is passed over by nobody: what others take is no accelerator it could get. */
static bool waits_for_device(struct node *n)
{
    return n->place >= 0 && device_choose(n) == 0;
}

/* Admit all that fit, in order of priority (r->asking is kept sorted). */
static bool admit_all(struct run *r, struct err *e)
{
    for (size_t i = 0; i < r->n_asking;) {
        struct node *n = r->asking[i];
        if (is_preceded(r, n))
            return true;
        struct offer o = offer_now(r, n);
        if (o.cores > 0) {
            for (size_t k = 0; k < i; k++)
                r->asking[k]->bypassed += !waits_for_device(r->asking[k]);
            if (!admit(r, i, o, e))
                return false;
            continue;
        }
        if (n->bypassed >= BYPASS_MOST && !waits_for_device(n))
            return true;
        i++;
    }
    return true;
}

/* An accelerator failed: nodes that could run nowhere else need not wait for it. */
static void refuse_hopeless(struct run *r)
{
    for (size_t i = 0; i < r->n_asking;) {
        struct node *n = r->asking[i];
        struct err ignored;
        if (device_can_ever_fit(n, &ignored)) {
            i++;
            continue;
        }
        n->refused = true;
        drop_asking(r, i);
    }
    pthread_cond_broadcast(&r->admitted);
}

bool sched_ask(struct node *n, struct err *e)
{
    struct run *r = n->run;
    pthread_mutex_lock(&r->lock);
    bool ok = can_ever_fit(n, e);
    if (ok) {
        n->memory = n->def->memory > n->needs.memory ? n->def->memory : n->needs.memory;
        if (n->memory > r->memory_total)
            n->memory = r->memory_total;
        size_t i = r->n_asking++;
        for (; i > 0 && before(n, r->asking[i - 1]); i--)
            r->asking[i] = r->asking[i - 1];
        r->asking[i] = n;
        n->state = STATE_ASKING;
        pthread_cond_signal(&r->changed);
        while (!n->admitted && !n->dismissed && !n->refused)
            pthread_cond_wait(&r->admitted, &r->lock);
        ok = !n->refused || device_can_ever_fit(n, e);
    }
    pthread_mutex_unlock(&r->lock);
    return ok;
}

/* ------------------------------------------------------------------------------------------------------------ twins */

/* Is a node with the same key at work? Its result is this one's as well, so this one waits and then looks again. */
static bool has_active_twin(const struct run *r, const struct node *n)
{
    for (size_t i = 0; i < r->n_active; i++)
        if (key_equal(&r->active[i]->key, &n->key))
            return true;
    return false;
}

/* Do as many nodes as can wait for the node's accelerators? The threads that are left are for others. */
static bool is_crowded(const struct run *r, const struct node *n)
{
    int rivals = 0;
    for (size_t i = 0; i < r->n_active && n->place >= 0; i++)
        rivals += r->active[i]->place == n->place && r->active[i]->asked == n->asked;
    return rivals > 0 && rivals >= device_count(n) + DEVICE_ASKING_MOST;
}

static bool defer(struct run *r, struct node *n, struct err *e)
{
    if (r->n_deferred == r->deferred_capacity) {
        size_t grown = r->deferred_capacity ? 2 * r->deferred_capacity : 16;
        if (!mem_grow(&r->deferred, r->deferred_capacity, grown, e))
            return false;
        r->deferred_capacity = grown;
    }
    r->deferred[r->n_deferred++] = n;
    n->state = STATE_WAITING;
    n->missing = 0;
    return true;
}

/* A node ended: those that waited for it are ready to look again. */
static bool undefer(struct run *r, struct err *e)
{
    for (size_t i = 0; i < r->n_deferred; i++) {
        struct node *n = r->deferred[i];
        if (n->state == STATE_WAITING && n->missing == 0 && !push_ready(r, n, e))
            return false;
    }
    r->n_deferred = 0;
    return true;
}

/* ---------------------------------------------------------------------------------------------------- begin and end */

static size_t threads_most(const struct run *r)
{
    return (size_t)jobs_most(r) + ASKING_MOST;
}

static void drop_active(struct run *r, const struct node *n)
{
    for (size_t i = 0; i < r->n_active; i++)
        if (r->active[i] == n) {
            r->active[i] = r->active[--r->n_active];
            return;
        }
}

/* Set what the node held free, and leave no trace of this attempt. */
static void give_back(struct run *r, struct node *n)
{
    if (n->admitted) {
        place_give(r->place, n->set);
        n->set = NULL;
        if (n->n_devices > 0)
            r->device_cores -= n->cores;
        device_give(n);
        r->memory_used -= n->memory;
        r->disk_used -= n->needs.disk;
        r->n_running--;
    }
    n->admitted = n->dismissed = n->refused = false;
    n->cores = 0;
    n->memory = 0;
    n->bypassed = 0;
    n->has_ledger = false;
    n->unit[0] = '\0';
    n->time_first = NAN;
}

/* What became of the node, and what follows for others. */
static bool settle(struct run *r, struct node *n, enum worker_outcome outcome, const struct err *why, const int *broken,
                   size_t n_broken, struct err *e)
{
    switch (outcome) {
    case WORKER_DONE:
        n->state = STATE_DONE;
        n->forced = false;
        report_state(n);
        return release_consumers(r, n, e);
    case WORKER_FAILED:
        fail_node(n, why);
        return true;
    case WORKER_STOPPED:
        n->state = STATE_INTERRUPTED;
        report_state(n);
        return true;
    case WORKER_DISMISSED:
        n->state = STATE_WAITING;
        return true;
    case WORKER_REPAIR:
        n->state = STATE_WAITING;
        n->seconds = NAN;
        for (size_t i = 0; i < n_broken; i++)
            if (!repair(r, &r->nodes[broken[i]], e))
                return false;
        return recount(r, e);
    }
    return true;
}

void sched_finish(struct node *n, enum worker_outcome outcome, const struct err *why, const int *broken,
                  size_t n_broken)
{
    struct run *r = n->run;
    struct err e;
    pthread_mutex_lock(&r->lock);
    give_back(r, n);
    drop_active(r, n);
    if (outcome == WORKER_FAILED && why->code == ERR_DEVICE)
        refuse_hopeless(r);
    if (!settle(r, n, outcome, why, broken, n_broken, &e) || !undefer(r, &e))
        fail_node(n, &e);
    n->next_finished = r->finished;
    r->finished = n;
    r->index_dirty = true;
    pthread_cond_signal(&r->changed);
    pthread_mutex_unlock(&r->lock);
}

/* The next node to start, or NULL. What a twin (or another process) made meanwhile is reused on the way. */
static bool next_to_start(struct run *r, struct node **out, struct err *e)
{
    for (struct node *n; (n = pop_ready(r)); ) {
        if (has_active_twin(r, n) || is_crowded(r, n)) {
            if (!defer(r, n, e))
                return false;
            continue;
        }
        struct err why = {0};
        if (!plan_object_stands(r, n, false, true, NULL, &why)) {
            fail_node(n, &why); /* this result cannot be looked at; others may be fine */
            continue;
        }
        if (n->state != STATE_REUSED) {
            *out = n;
            return true;
        }
        report_state(n);
        if (!release_consumers(r, n, e))
            return false;
    }
    *out = NULL;
    return true;
}

/* Start threads for ready nodes while some may still wait for room. */
static bool start_ready(struct run *r, struct err *e)
{
    while (r->n_threads < threads_most(r)) {
        struct node *n;
        struct err why = {0};
        if (!next_to_start(r, &n, e))
            return false;
        if (!n)
            break;
        n->state = STATE_OPENING;
        r->n_threads++;
        r->active[r->n_active++] = n;
        if (worker_start(n, &why))
            continue;
        r->n_threads--;
        r->n_active--;
        if (r->n_threads > 0)
            return push_ready(r, n, e); /* the others end, and then there is room for its thread */
        fail_node(n, &why);
    }
    return true;
}

/* Wait for the threads that ended. The lock is given up meanwhile. */
static void join_finished(struct run *r)
{
    while (r->finished) {
        struct node *n = r->finished;
        pthread_t thread = n->thread;
        r->finished = n->next_finished;
        pthread_mutex_unlock(&r->lock);
        pthread_join(thread, NULL);
        pthread_mutex_lock(&r->lock);
        r->n_threads--;
    }
}

static void dismiss_asking(struct run *r)
{
    for (size_t i = 0; i < r->n_asking; i++)
        r->asking[i]->dismissed = true;
    r->n_asking = 0;
    pthread_cond_broadcast(&r->admitted);
}

bool sched_run(struct run *r, struct err *e)
{
    bool ok = true;
    if (!mem_new(&r->asking, threads_most(r), e) || !mem_new(&r->active, threads_most(r), e))
        return false;
    pthread_mutex_lock(&r->lock);
    ok = recount(r, e);
    while (ok) {
        join_finished(r);
        if (atomic_load(&r->stopping))
            dismiss_asking(r);
        else
            ok = start_ready(r, e) && admit_all(r, e);
        if (r->finished)
            continue;
        if (r->n_threads == 0)
            break;
        pthread_cond_wait(&r->changed, &r->lock);
    }
    if (!ok) { /* out of memory in the scheduler itself: end what runs, keep what is done */
        atomic_store(&r->stopping, true);
        for (;;) {
            dismiss_asking(r);
            join_finished(r);
            if (r->n_threads == 0)
                break;
            if (r->n_asking == 0 && !r->finished)
                pthread_cond_wait(&r->changed, &r->lock);
        }
    }
    pthread_mutex_unlock(&r->lock);
    return ok;
}
