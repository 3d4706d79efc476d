/* Accelerators: which nodes are placed on them, starting them, who has which, and what follows when one fails. A node's
 * placement names a kind of device (one kernel table) or a single device; it is decided before the keys are made and
 * never depends on what is free, since the kind is part of a key. Devices of the kind are handed out as they come. */
#include <stdlib.h>
#include <string.h>

#include "engine/run/state.h"

/* Of the memory that is free on a device, nodes may use all but this part: allocators round up. */
#define DEVICE_RESERVE_PERCENT 5

static const struct run_device *about(const struct run *r, int i)
{
    return &r->options.backend.devices[i];
}

static int n_devices(const struct run *r)
{
    return (int)r->options.backend.n_devices;
}

/* -------------------------------------------------------------------------------------------------------- placement */

static bool is_auto(const char *word)
{
    return !word || strcmp(word, "auto") == 0;
}

/* "cuda" or "cuda:1" */
static bool is_accelerator(const char *word)
{
    return strncmp(word, "cuda", 4) == 0 &&
           (!word[4] || (word[4] == ':' && word[5] && strspn(word + 5, "0123456789") == strlen(word + 5)));
}

/* The device that `word` names, or the first of the family; -1: none. */
static int find_device(const struct run *r, const char *word)
{
    const char *colon = strchr(word, ':');
    size_t length = colon ? (size_t)(colon - word) : strlen(word);
    for (int i = 0; i < n_devices(r); i++) {
        const struct run_device *d = about(r, i);
        if (strlen(d->family) == length && strncmp(d->family, word, length) == 0 &&
            (!colon || strtol(colon + 1, NULL, 10) == d->index))
            return i;
    }
    return -1;
}

/* "device 'cuda:5': ..." with what there is instead. */
static bool not_there(const struct run *r, const char *word, struct err *e)
{
    const char *why = r->options.backend.no_device ? r->options.backend.no_device : "this machine has no accelerator";
    if (n_devices(r) == 0)
        return err_set(e, ERR_RESOURCE, "device '%s': %s; use --device cpu", word, why);
    struct str names = {0};
    for (int i = 0; i < n_devices(r); i++)
        str_printf(&names, "%s%s", i ? ", " : "", about(r, i)->name);
    err_set(e, ERR_RESOURCE, "device '%s' is not there: this machine has %s", word, names.text ? names.text : "others");
    str_free(&names);
    return false;
}

static bool place_node(struct run *r, struct node *n, const char *word, struct err *e)
{
    n->place = -1;
    if (!n->def->class->accelerator || (!is_auto(word) && strcmp(word, "cpu") == 0))
        return true;
    n->asked = is_auto(word) ? ASKED_AUTO : strchr(word, ':') ? ASKED_DEVICE : ASKED_KIND;
    if (n->asked != ASKED_AUTO)
        n->place = find_device(r, word);
    else if (n_devices(r) > 0)
        n->place = 0;
    if (n->place < 0 && n->asked != ASKED_AUTO) {
        not_there(r, word, e);
        return err_context(e, "node '%s'", n->def->name);
    }
    return true;
}

/* The run's own list of the back end's devices. */
static bool keep_devices(struct run *r, struct err *e)
{
    size_t n = r->options.backend.n_devices;
    struct run_device *copy = arena_new(&r->arena, (n + 1) * sizeof *copy, e);
    r->devices = arena_new(&r->arena, (n + 1) * sizeof *r->devices, e);
    if (!copy || !r->devices)
        return false;
    for (size_t i = 0; i < n; i++) {
        copy[i] = r->options.backend.devices[i];
        r->devices[i] = (struct accelerator){.about = &copy[i], .near = PLACE_ANYWHERE};
    }
    r->options.backend.devices = copy;
    return true;
}

bool device_place_nodes(struct run *r, struct err *e)
{
    const char *option = r->options.device;
    if (!keep_devices(r, e))
        return false;
    if (!is_auto(option) && strcmp(option, "cpu") != 0) {
        if (!is_accelerator(option))
            return err_set(e, ERR_USAGE, "device '%s' is none of auto, cpu, cuda, cuda:N", option);
        if (find_device(r, option) < 0)
            return not_there(r, option, e);
    }
    for (size_t i = 0; i < r->n; i++) {
        struct node *n = &r->nodes[i];
        if (!place_node(r, n, is_auto(option) ? n->def->device : option, e))
            return false;
        size_t room = n->place < 0 ? 1 : (size_t)n_devices(r);
        n->devices = arena_new(&r->arena, room * sizeof *n->devices, e);
        n->queues = arena_new(&r->arena, room * sizeof *n->queues, e);
        if (!n->devices || !n->queues)
            return false;
    }
    return true;
}

/* May the node be given device i, as far as its placement goes? */
static bool is_place(const struct node *n, int i)
{
    if (n->place < 0 || n->asked == ASKED_DEVICE)
        return n->place == i;
    return about(n->run, i)->kernels == about(n->run, n->place)->kernels;
}

/* ---------------------------------------------------------------------------------------------------------- opening */

struct opening {
    struct run *run;
    int device;
    pthread_t thread;
    bool has_thread, ok;
    uint64_t free_memory;
    struct err why;
};

static void *opening_main(void *context)
{
    struct opening *o = context;
    struct run *r = o->run;
    place_bind_near(r->place, r->devices[o->device].near);
    o->ok = r->options.backend.device_open(about(r, o->device)->index, &o->free_memory, &o->why);
    return NULL;
}

/* "cuda:0: NVIDIA H100 80GB HBM3, 0000:1b:00.0, near NUMA node 0 (cores 0-55), 78.2 GiB of 79.6 GiB free" */
static void say_device(const struct run *r, int i)
{
    const struct run_device *d = about(r, i);
    const struct accelerator *a = &r->devices[i];
    char near[2 * PLACE_LIST + 32], memory[16], available[16];
    struct str line = {0};
    str_printf(&line, "%s: %s, %s%s%s, ", d->name, d->model, d->pci, d->pci[0] ? ", " : "",
               place_near_text(r->place, a->near, near, sizeof near));
    if (a->usable)
        str_printf(&line, "%s of %s free", str_size(a->free_memory, available), str_size(d->memory, memory));
    else
        str_printf(&line, "%s, %s", str_size(d->memory, memory), a->tried ? "left out" : "not used");
    progress_line(r->progress, NULL, line.failed || !line.text ? d->name : line.text);
    str_free(&line);
    const char *note = a->usable && r->options.backend.device_note ? r->options.backend.device_note(d->index) : "";
    if (note[0])
        progress_line(r->progress, NULL, note);
}

/* Why a device is not usable, without its name, which the back end may have put in front. */
static const char *cause(const struct accelerator *a)
{
    size_t n = strlen(a->about->name);
    bool is_named = strncmp(a->why.text, a->about->name, n) == 0 && strncmp(a->why.text + n, ": ", 2) == 0;
    return is_named ? a->why.text + n + 2 : a->why.text;
}

static void say_left_out(const struct run *r, int i)
{
    struct str line = {0};
    str_printf(&line, "warning: %s is left out: %s", about(r, i)->name, cause(&r->devices[i]));
    progress_line(r->progress, NULL, line.failed || !line.text ? "warning: an accelerator is left out" : line.text);
    str_free(&line);
}

/* Start those that `is_wanted` says and that were not tried, all at once. device_lock held. */
static bool open_devices(struct run *r, const bool *is_wanted, struct err *e)
{
    struct opening *list;
    if (!mem_new(&list, (size_t)n_devices(r) + 1, e))
        return false;
    for (int i = 0; i < n_devices(r); i++) {
        struct opening *o = &list[i];
        *o = (struct opening){.run = r, .device = i};
        if (!is_wanted[i] || r->devices[i].tried)
            continue;
        int failed = pthread_create(&o->thread, NULL, opening_main, o);
        o->has_thread = !failed;
        if (failed)
            err_set(&o->why, ERR_RESOURCE, "cannot start a thread for it: %s", strerror(failed));
    }
    for (int i = 0; i < n_devices(r); i++) {
        struct accelerator *a = &r->devices[i];
        if (!is_wanted[i] || a->tried)
            continue;
        if (list[i].has_thread)
            pthread_join(list[i].thread, NULL);
        pthread_mutex_lock(&r->lock);
        a->tried = true;
        a->usable = list[i].ok;
        a->free_memory = list[i].free_memory;
        a->why = list[i].why;
        if (a->usable)
            place_use_device(r->place, a->near);
        pthread_mutex_unlock(&r->lock);
        if (!a->usable)
            say_left_out(r, i);
    }
    mem_free(list);
    return true;
}

/* ERR_DEVICE when the node is placed on accelerators of which none works. Lock held. */
static bool any_works(const struct node *n, struct err *e)
{
    const struct run *r = n->run;
    int first = -1, count = 0;
    for (int i = 0; i < n_devices(r); i++) {
        if (!is_place(n, i))
            continue;
        if (r->devices[i].usable)
            return true;
        first = first < 0 ? i : first;
        count++;
    }
    if (first < 0)
        return true; /* on the CPU */
    const struct accelerator *a = &r->devices[first];
    err_set(e, a->why.code, "%s: %.900s", a->about->name, cause(a));
    return count > 1 ? err_context(e, "none of %d accelerators works", count) : false;
}

bool device_open_for(struct node *n, struct err *e)
{
    struct run *r = n->run;
    bool *wanted;
    if (n->place < 0)
        return true;
    if (!mem_new(&wanted, (size_t)n_devices(r), e))
        return false;
    for (int i = 0; i < n_devices(r); i++)
        wanted[i] = is_place(n, i);
    pthread_mutex_lock(&r->device_lock);
    bool ok = open_devices(r, wanted, e);
    pthread_mutex_lock(&r->lock);
    ok = ok && any_works(n, e);
    pthread_mutex_unlock(&r->lock);
    pthread_mutex_unlock(&r->device_lock);
    mem_free(wanted);
    return ok;
}

bool device_locate(struct run *r, struct err *e)
{
    for (int i = 0; i < n_devices(r); i++)
        if (!place_device_near(r->place, about(r, i)->pci, &r->devices[i].near, e))
            return false;
    return true;
}

/* A run that could have used an accelerator says why it does not. */
static void say_none(const struct run *r, bool is_missed)
{
    const struct run_backend *b = &r->options.backend;
    struct str line = {0};
    if (!is_missed || !b->expects_device || !b->no_device)
        return;
    str_printf(&line, "no accelerator: %s; everything computes on the CPU", b->no_device);
    progress_line(r->progress, NULL, line.failed || !line.text ? b->no_device : line.text);
    str_free(&line);
}

/* Does every node that may run anywhere have an accelerator that works, if there are any? */
static bool nobody_is_stranded(struct run *r, struct err *e)
{
    struct err why;
    bool ok = true;
    pthread_mutex_lock(&r->lock);
    for (size_t k = 0; ok && k < r->n; k++) {
        const struct node *n = &r->nodes[k];
        ok = n->state != STATE_WAITING || n->asked != ASKED_AUTO || any_works(n, &why);
    }
    pthread_mutex_unlock(&r->lock);
    return ok || err_set(e, why.code, "%.900s; --device cpu computes on the CPU", why.text);
}

bool device_open_needed(struct run *r, struct err *e)
{
    bool is_missed = false, ok = true;
    bool *wanted;
    if (!mem_new(&wanted, (size_t)n_devices(r) + 1, e))
        return false;
    for (size_t k = 0; k < r->n; k++) {
        const struct node *n = &r->nodes[k];
        if (n->state != STATE_WAITING)
            continue;
        is_missed |= n->asked == ASKED_AUTO;
        for (int i = 0; i < n_devices(r); i++)
            wanted[i] |= is_place(n, i);
    }
    pthread_mutex_lock(&r->device_lock);
    ok = open_devices(r, wanted, e);
    pthread_mutex_unlock(&r->device_lock);
    mem_free(wanted);
    for (int i = 0; ok && i < n_devices(r); i++)
        say_device(r, i);
    say_none(r, is_missed && n_devices(r) == 0);
    return ok && nobody_is_stranded(r, e);
}

/* -------------------------------------------------------------------------------------------------------- admission */

static uint64_t usable_memory(const struct accelerator *a)
{
    return a->free_memory / 100 * (100 - DEVICE_RESERVE_PERCENT);
}

/* The usable device with the most memory that the node may get, or -1. */
static int roomiest(const struct node *n)
{
    const struct run *r = n->run;
    int best = -1;
    for (int i = 0; i < n_devices(r); i++)
        if (is_place(n, i) && r->devices[i].usable &&
            (best < 0 || r->devices[i].free_memory > r->devices[best].free_memory))
            best = i;
    return best;
}

bool device_can_ever_fit(const struct node *n, struct err *e)
{
    char want[16], have[16];
    int best = roomiest(n);
    if (n->place < 0 || !any_works(n, e))
        return n->place < 0;
    const struct accelerator *a = &n->run->devices[best];
    if (n->needs.device_memory > usable_memory(a))
        return err_set(e, ERR_RESOURCE, "it needs %s of device memory, and %s has %s free (%d %% of it are kept as a "
                       "reserve)", str_size(n->needs.device_memory, want), a->about->name,
                       str_size(a->free_memory, have), DEVICE_RESERVE_PERCENT);
    return true;
}

int device_choose(struct node *n)
{
    const struct run *r = n->run;
    int most = n->needs.devices > 1 ? n->needs.devices : 1, count = 0;
    for (int i = 0; i < n_devices(r) && count < most; i++) {
        const struct accelerator *a = &r->devices[i];
        if (is_place(n, i) && a->usable && !a->taken && n->needs.device_memory <= usable_memory(a))
            n->devices[count++] = i;
    }
    return count;
}

uint64_t device_memory(const struct node *n)
{
    const struct accelerator *devices = n->run->devices;
    int best = n->n_devices > 0 ? n->devices[0] : roomiest(n);
    if (best < 0)
        return 0;
    uint64_t least = usable_memory(&devices[best]);
    for (int k = 1; k < n->n_devices; k++)
        if (usable_memory(&devices[n->devices[k]]) < least)
            least = usable_memory(&devices[n->devices[k]]);
    return least;
}

int device_count(const struct node *n)
{
    int count = 0;
    for (int i = 0; i < n_devices(n->run); i++)
        count += is_place(n, i) && n->run->devices[i].usable;
    return count;
}

int device_cores(const struct node *n, int count)
{
    int cores = 0;
    for (int k = 0; k < count; k++)
        cores += place_device_share(n->run->place, n->run->devices[n->devices[k]].near);
    return cores;
}

void device_take(struct node *n, int count)
{
    for (int k = 0; k < count; k++)
        n->run->devices[n->devices[k]].taken = true;
    n->n_devices = count;
}

void device_give(struct node *n)
{
    for (int k = 0; k < n->n_devices; k++)
        n->run->devices[n->devices[k]].taken = false;
    n->n_devices = 0;
}

bool device_name(struct node *n, int count, struct err *e)
{
    struct str names = {0};
    for (int k = 0; k < count; k++)
        str_printf(&names, "%s%s", k ? "," : "", about(n->run, n->devices[k])->name);
    const char *where = "cpu";
    if (count > 0)
        where = str_ok(&names, e) ? arena_strdup(&n->run->arena, names.text, e) : NULL;
    str_free(&names);
    if (where)
        n->where = where;
    return where != NULL;
}

/* ---------------------------------------------------------------------------------------------------------- failing */

/* A single device is asked nothing: it has said so. Of several, those that no longer answer failed; all, if all do. */
static void find_failed(const struct node *n, bool *failed)
{
    const struct run_backend *b = &n->run->options.backend;
    bool any = false;
    for (int k = 0; k < n->n_devices && n->n_devices > 1; k++) {
        uint64_t memory;
        struct err ignored;
        failed[k] = !b->device_open(about(n->run, n->devices[k])->index, &memory, &ignored);
        any |= failed[k];
    }
    for (int k = 0; k < n->n_devices && !any; k++)
        failed[k] = true;
}

void device_fail(struct node *n, struct err *e)
{
    struct run *r = n->run;
    bool *failed;
    struct err why = *e, ignored;
    if (n->n_devices == 0 || !mem_new(&failed, (size_t)n->n_devices, &ignored))
        return;
    pthread_mutex_lock(&r->device_lock);
    find_failed(n, failed);
    pthread_mutex_unlock(&r->device_lock);
    pthread_mutex_lock(&r->lock);
    for (int k = 0; k < n->n_devices; k++) {
        struct accelerator *a = &r->devices[n->devices[k]];
        if (!failed[k])
            continue;
        a->usable = false;
        err_set(&a->why, ERR_DEVICE, "it failed while '%s' ran: %.500s; the same command goes on from what was done",
                n->def->name, why.text);
    }
    pthread_mutex_unlock(&r->lock);
    mem_free(failed);
    err_set(e, ERR_DEVICE, "%s failed: %.500s; what was done is kept, and the same command goes on from there",
            n->where ? n->where : "an accelerator", why.text);
}
