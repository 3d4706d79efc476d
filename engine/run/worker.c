/* The life of one node, on a thread of its own: open the inputs, learn what it needs, wait to be admitted, bind to the
 * cores it was given, run, publish. A thread per node, because the threads that a kernel's parallel loops use are made
 * by it and inherit its cores. */
#include <string.h>

#include "engine/base/tensor.h"
#include "engine/run/state.h"

#define DEFAULT_MEMORY (UINT64_C(64) << 20)

/* Indices of nodes whose objects were found damaged or gone. */
struct broken {
    int *list;
    size_t n;
};

static bool add_broken(struct broken *b, int node, struct err *e)
{
    if (!mem_grow(&b->list, b->n, b->n + 1, e))
        return false;
    b->list[b->n++] = node;
    return true;
}

static size_t n_ports(const struct node *n)
{
    size_t p = 0;
    while (n->def->class->ports && n->def->class->ports[p].name)
        p++;
    return p;
}

static void close_inputs(struct node *n)
{
    for (size_t p = 0, ports = n_ports(n); p < ports; p++)
        for (size_t i = 0; i < n->def->n_inputs[p]; i++) {
            object_close(n->inputs[p][i].object);
            n->inputs[p][i].object = NULL;
        }
}

/* Open every input; producers whose object or a part of it is not there go to *b. */
static bool open_inputs(struct node *n, struct broken *b, struct err *e)
{
    for (size_t p = 0, ports = n_ports(n); p < ports; p++)
        for (size_t i = 0; i < n->def->n_inputs[p]; i++) {
            int from = n->def->inputs[p][i].node;
            struct object **o = &n->inputs[p][i].object;
            bool there = true;
            if (!object_open(o, n->run->store, &n->run->nodes[from].key, e) ||
                (*o && !node_parts_exist(n, *o, &there, e)))
                return err_context(e, "the result of '%s'", n->inputs[p][i].node);
            if ((!*o || !there) && !add_broken(b, from, e))
                return false;
        }
    return true;
}

/* After a failure: was it because a part of an input had been damaged? The store has set it aside by now. */
static bool find_broken_parts(struct node *n, struct broken *b)
{
    struct err ignored;
    for (size_t p = 0, ports = n_ports(n); p < ports; p++)
        for (size_t i = 0; i < n->def->n_inputs[p]; i++) {
            bool there = true;
            struct object *o = n->inputs[p][i].object;
            if (o && node_parts_exist(n, o, &there, &ignored) && !there)
                (void)!add_broken(b, n->def->inputs[p][i].node, &ignored);
        }
    return b->n > 0;
}

/* The attributes that say how an object came about. All of it went into the key, so equal keys have equal bytes. */
static bool write_record(struct node *n, struct err *e)
{
    const struct node_class *c = n->def->class;
    struct str parameters = {0}, inputs = {0}, sources = {0};
    bool ok = node_record_parameters(n, &parameters, e) && node_record_inputs(n, &inputs, e) &&
              node_record_sources(n, &sources, e) && writer_text(n->output, "node_type", c->name, e) &&
              writer_int(n->output, "code_version", c->version, e) &&
              writer_text(n->output, "numerics", node_numerics(n), e) &&
              writer_text(n->output, "parameters", parameters.text ? parameters.text : "", e) &&
              writer_text(n->output, "inputs", inputs.text ? inputs.text : "", e) &&
              writer_text(n->output, "data_files", sources.text ? sources.text : "", e);
    str_free(&parameters);
    str_free(&inputs);
    str_free(&sources);
    return ok;
}

static bool publish(struct node *n, struct err *e)
{
    struct writer *w = n->output;
    n->output = NULL;
    if (!node_upstream_stands(n, e) || (n->parts.length > 0 && !writer_text(w, "parts", n->parts.text, e))) {
        writer_abort(w);
        return false;
    }
    return writer_commit(w, e);
}

/* A queue on every device it was given, or one on the CPU. */
static bool open_queues(struct node *n, struct err *e)
{
    const struct run_backend *b = &n->run->options.backend;
    for (int i = 0; b->queue_new && i < (n->n_devices > 0 ? n->n_devices : 1); i++) {
        int device = n->n_devices > 0 ? b->devices[n->devices[i]].index : TENSOR_HOST;
        if (!b->queue_new(&n->queues[i], node_kernels(n), device, n->cores, e))
            return false;
    }
    return true;
}

static void close_queues(struct node *n)
{
    for (int i = 0; i < (n->n_devices > 0 ? n->n_devices : 1); i++) {
        if (n->queues[i])
            n->run->options.backend.queue_free(n->queues[i]);
        n->queues[i] = NULL;
    }
}

/* Run the type's code into a new object and publish it. */
static bool make_object(struct node *n, struct err *e)
{
    const struct node_class *c = n->def->class;
    char schema[160];
    snprintf(schema, sizeof schema, "%s/%u", c->name, c->version);
    bool ok = open_queues(n, e) && writer_new(&n->output, n->run->store, &n->key, schema, e) && write_record(n, e) &&
              c->run(n, e) && publish(n, e);
    writer_abort(n->output);
    n->output = NULL;
    close_queues(n);
    str_free(&n->parts);
    n->parts = (struct str){0};
    return ok;
}

static bool ask_needs(struct node *n, struct err *e)
{
    n->needs = (struct needs){.cores = 1, .memory = DEFAULT_MEMORY};
    if (!n->def->class->needs)
        return true;
    n->needs = (struct needs){0};
    return n->def->class->needs(n, &n->needs, e);
}

/* Once admitted. */
static enum worker_outcome run_admitted(struct node *n, struct broken *b, struct err *e)
{
    place_bind(n->run->place, n->set);
    bool ok = make_object(n, e);
    double ended = report_clock();
    pthread_mutex_lock(&n->run->lock);
    n->seconds = ended - n->began;
    pthread_mutex_unlock(&n->run->lock);
    if (ok)
        return WORKER_DONE;
    if (e->code == ERR_STOPPED)
        return WORKER_STOPPED;
    if (e->code == ERR_DEVICE) {
        device_fail(n, e);
        return WORKER_FAILED;
    }
    return find_broken_parts(n, b) ? WORKER_REPAIR : WORKER_FAILED;
}

static enum worker_outcome live(struct node *n, struct broken *b, struct err *e)
{
    if (!open_inputs(n, b, e))
        return WORKER_FAILED;
    if (b->n > 0)
        return WORKER_REPAIR;
    if (!device_open_for(n, e))
        return WORKER_FAILED;
    if (!ask_needs(n, e))
        return e->code == ERR_STOPPED ? WORKER_STOPPED : find_broken_parts(n, b) ? WORKER_REPAIR : WORKER_FAILED;
    if (!sched_ask(n, e))
        return WORKER_FAILED;
    if (!n->admitted)
        return WORKER_DISMISSED;
    return run_admitted(n, b, e);
}

static void *worker_main(void *context)
{
    struct node *n = context;
    struct broken b = {0};
    struct err e = {0};
    enum worker_outcome outcome = live(n, &b, &e);
    close_inputs(n);
    sched_finish(n, outcome, &e, b.list, b.n);
    mem_free(b.list);
    return NULL;
}

bool worker_start(struct node *n, struct err *e)
{
    int failed = pthread_create(&n->thread, NULL, worker_main, n);
    if (failed)
        return err_set(e, ERR_RESOURCE, "cannot start a thread for it: %s", strerror(failed));
    return true;
}
