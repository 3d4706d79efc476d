/* `struct node`: building one per node of the graph, and everything of engine/node.h that a node type calls. When a
 * node runs, and with which cores, is decided in sched.c; its thread is in worker.c; its key in plan.c. */
#include "engine/node.h"

#include <assert.h>
#include <dirent.h>
#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "engine/run/state.h"

static size_t count_ports(const struct node_class *c)
{
    size_t n = 0;
    while (c->ports && c->ports[n].name)
        n++;
    return n;
}

static size_t count_params(const struct node_class *c)
{
    size_t n = 0;
    while (c->params && c->params[n].name)
        n++;
    return n;
}

/* ------------------------------------------------------------------------------------------------------- building */

/* The values of parameter p as the node sees them: paths to write to are relative to RUN. */
static bool build_values(struct node *n, size_t p, const char *const **out, struct err *e)
{
    const struct value *v = &n->def->params[p];
    if (n->def->class->params[p].type != PARAM_PATH) {
        *out = (const char *const *)v->text;
        return true;
    }
    const char **text = arena_new(&n->run->arena, (v->n + 1) * sizeof *text, e);
    if (!text)
        return false;
    for (size_t i = 0; i < v->n; i++) {
        text[i] = v->text[i];
        if (text[i][0] && text[i][0] != '/')
            text[i] = arena_printf(&n->run->arena, e, "%s/%s", n->run->dir, v->text[i]);
        if (!text[i])
            return false;
    }
    *out = text;
    return true;
}

static bool build_params(struct node *n, struct err *e)
{
    size_t n_params = count_params(n->def->class), n_sources = 0;
    const char *const **text = arena_new(&n->run->arena, (n_params + 1) * sizeof *text, e);
    if (!text)
        return false;
    for (size_t p = 0; p < n_params; p++) {
        if (!build_values(n, p, &text[p], e))
            return false;
        if (n->def->class->params[p].type == PARAM_SOURCE)
            n_sources += n->def->params[p].n;
    }
    n->text = text;
    n->sources = arena_new(&n->run->arena, (n_sources + 1) * sizeof *n->sources, e);
    if (!n->sources)
        return false;
    for (size_t p = 0; p < n_params; p++) {
        if (n->def->class->params[p].type != PARAM_SOURCE)
            continue;
        for (size_t i = 0; i < n->def->params[p].n; i++)
            n->sources[n->n_sources++] = (struct source){.param = (int)p, .path = text[p][i]};
    }
    return true;
}

static bool build_inputs(struct node *n, struct err *e)
{
    size_t n_ports = count_ports(n->def->class);
    n->inputs = arena_new(&n->run->arena, (n_ports + 1) * sizeof *n->inputs, e);
    if (!n->inputs)
        return false;
    for (size_t p = 0; p < n_ports; p++) {
        n->inputs[p] = arena_new(&n->run->arena, (n->def->n_inputs[p] + 1) * sizeof **n->inputs, e);
        if (!n->inputs[p])
            return false;
        for (size_t i = 0; i < n->def->n_inputs[p]; i++) {
            const struct graph_input *in = &n->def->inputs[p][i];
            const struct graph_node *from = &n->run->graph->nodes[in->node];
            n->inputs[p][i] = (struct input){.node = from->name, .type = from->class->name, .output = in->output};
            n->run->nodes[in->node].n_consumers++;
        }
    }
    return true;
}

/* Fill the lists of consumers (counted by build_inputs), and the heights from the sinks up. */
static bool build_consumers(struct run *r, struct err *e)
{
    for (size_t i = 0; i < r->n; i++) {
        struct node *n = &r->nodes[i];
        n->consumers = arena_new(&r->arena, (n->n_consumers + 1) * sizeof *n->consumers, e);
        if (!n->consumers)
            return false;
        n->n_consumers = 0;
    }
    for (size_t i = 0; i < r->n; i++) {
        const struct graph_node *def = r->nodes[i].def;
        for (size_t p = 0, n_ports = count_ports(def->class); p < n_ports; p++)
            for (size_t k = 0; k < def->n_inputs[p]; k++) {
                struct node *from = &r->nodes[def->inputs[p][k].node];
                from->consumers[from->n_consumers++] = (int)i;
            }
    }
    for (size_t i = r->n; i-- > 0;) {
        struct node *n = &r->nodes[i];
        n->height = 1;
        for (size_t k = 0; k < n->n_consumers; k++)
            if (r->nodes[n->consumers[k]].height >= n->height)
                n->height = r->nodes[n->consumers[k]].height + 1;
    }
    return true;
}

bool node_build_all(struct run *r, struct err *e)
{
    r->n = r->graph->n_nodes;
    if (!mem_new(&r->nodes, r->n + 1, e))
        return false;
    for (size_t i = 0; i < r->n; i++) {
        struct node *n = &r->nodes[i];
        n->run = r;
        n->def = &r->graph->nodes[i];
        n->index = (int)i;
        n->seconds = n->time_first = NAN;
        if (!build_params(n, e) || !build_inputs(n, e))
            return false;
    }
    return build_consumers(r, e);
}

void node_free_all(struct run *r)
{
    for (size_t i = 0; r->nodes && i < r->n; i++) {
        struct node *n = &r->nodes[i];
        mem_free(n->stats);
        mem_free(n->error);
        str_free(&n->parts);
    }
    mem_free(r->nodes);
    r->nodes = NULL;
}

const char *state_name(enum node_state s)
{
    static const char *const names[STATE_COUNT] = {
        [STATE_UNKNOWN] = "waiting", [STATE_UNNEEDED] = "waiting", [STATE_REUSED] = "reused",
        [STATE_WAITING] = "waiting", [STATE_READY] = "waiting", [STATE_OPENING] = "waiting", [STATE_ASKING] = "waiting",
        [STATE_RUNNING] = "running", [STATE_DONE] = "done", [STATE_FAILED] = "failed", [STATE_BLOCKED] = "blocked",
        [STATE_INTERRUPTED] = "interrupted",
    };
    return names[s];
}

/* ------------------------------------------------------------------------------------------------------- parameters */

const char *node_name(const struct node *n)
{
    return n->def->name;
}

/* The index of a parameter that the class must have declared: asking for another is a mistake in the node's code. */
static int declared(const struct node *n, const char *param)
{
    int p = class_param(n->def->class, param);
    assert(p >= 0 && "a parameter that the node type does not declare");
    return p;
}

static const struct value *values(const struct node *n, const char *param, size_t i)
{
    const struct value *v = &n->def->params[declared(n, param)];
    assert(i < v->n);
    return v;
}

int64_t node_int(const struct node *n, const char *param)
{
    return strtoll(values(n, param, 0)->text[0], NULL, 10);
}

double node_float(const struct node *n, const char *param)
{
    return values(n, param, 0)->number[0];
}

bool node_bool(const struct node *n, const char *param)
{
    return values(n, param, 0)->number[0] != 0;
}

uint64_t node_size(const struct node *n, const char *param)
{
    return (uint64_t)values(n, param, 0)->number[0];
}

const char *node_string(const struct node *n, const char *param)
{
    return node_list_string(n, param, 0);
}

size_t node_list(const struct node *n, const char *param)
{
    return n->def->params[declared(n, param)].n;
}

const char *node_list_string(const struct node *n, const char *param, size_t i)
{
    int p = declared(n, param);
    assert(i < n->def->params[p].n);
    return n->text[p][i];
}

double node_list_float(const struct node *n, const char *param, size_t i)
{
    return values(n, param, i)->number[i];
}

/* ----------------------------------------------------------------------------------------------------------- inputs */

static int declared_port(const struct node *n, const char *port)
{
    int p = class_port(n->def->class, port);
    assert(p >= 0 && "a port that the node type does not declare");
    return p;
}

size_t node_inputs(const struct node *n, const char *port)
{
    return n->def->n_inputs[declared_port(n, port)];
}

const struct input *node_input(const struct node *n, const char *port, size_t i)
{
    int p = declared_port(n, port);
    assert(i < n->def->n_inputs[p]);
    return &n->inputs[p][i];
}

static void hash_stat(struct key_hash *h, const char *name, const struct stat *st)
{
    key_hash_text(h, name);
    key_hash_int(h, (int64_t)st->st_dev);
    key_hash_int(h, (int64_t)st->st_ino);
    key_hash_int(h, st->st_size);
    key_hash_int(h, st->st_mtim.tv_sec);
    key_hash_int(h, st->st_mtim.tv_nsec);
    key_hash_int(h, st->st_ctim.tv_sec);
    key_hash_int(h, st->st_ctim.tv_nsec);
}

static int not_hidden(const struct dirent *d)
{
    return d->d_name[0] != '.';
}

/* The files directly in a directory, sorted, as store_source_digest sees them. */
static bool stamp_directory(struct key_hash *h, const char *path, struct err *e)
{
    struct dirent **list;
    int n = scandir(path, &list, not_hidden, alphasort);
    if (n < 0)
        return err_errno(e, ERR_INPUT, "cannot read the directory '%s'", path);
    bool ok = true;
    for (int i = 0; i < n; i++) {
        struct str file = {0};
        struct stat st;
        str_printf(&file, "%s/%s", path, list[i]->d_name);
        if (!ok || !str_ok(&file, e))
            ok = false;
        else if (stat(file.text, &st) != 0)
            ok = err_errno(e, ERR_INPUT, "cannot read '%s'", file.text);
        else if (S_ISREG(st.st_mode))
            hash_stat(h, list[i]->d_name, &st);
        str_free(&file);
        free(list[i]);
    }
    free(list);
    return ok;
}

bool node_stamp(const char *path, struct key *out, struct err *e)
{
    struct stat st;
    struct key_hash *h;
    if (stat(path, &st) != 0)
        return err_errno(e, ERR_INPUT, "cannot read '%s'", path);
    if (!key_hash_new(&h, e))
        return false;
    bool ok = true;
    if (S_ISDIR(st.st_mode))
        ok = stamp_directory(h, path, e);
    else
        hash_stat(h, "", &st);
    struct key key;
    struct err ignored;
    return key_hash_end(h, &key, ok ? e : &ignored) && ok && (*out = key, true);
}

static bool source_stands(const struct source *s, struct err *e)
{
    struct key now;
    if (!s->path[0] || !s->known)
        return true;
    if (!node_stamp(s->path, &now, e))
        return false;
    if (!key_equal(&now, &s->stamp))
        return err_set(e, ERR_INPUT, "'%s' changed while the run was going: start the run again", s->path);
    return true;
}

bool node_sources_stand(const struct node *n, struct err *e)
{
    for (size_t i = 0; i < n->n_sources; i++)
        if (!source_stands(&n->sources[i], e))
            return false;
    return true;
}

bool node_path(const struct node *n, const char *param, const char **out, struct err *e)
{
    int at = class_param(n->def->class, param);
    if (at < 0)
        return err_set(e, ERR_BUG, "node type '%s' has no parameter '%s'", n->def->class->name, param);
    for (size_t s = 0; s < n->n_sources; s++)
        if (n->sources[s].param == at && !source_stands(&n->sources[s], e))
            return err_context(e, "node '%s'", n->def->name);
    *out = n->text[at][0];
    return true;
}

bool node_input_path(const struct node *n, const char *port, size_t i, const char *param, const char **out,
                     struct err *e)
{
    int p = declared_port(n, port);
    assert(i < n->def->n_inputs[p]);
    return node_path(&n->run->nodes[n->def->inputs[p][i].node], param, out, e);
}

/* ---------------------------------------------------------------------------------------- key, store, result, parts */

const struct key *node_key(const struct node *n)
{
    return &n->key;
}

const char *node_numerics(const struct node *n)
{
    return n->numerics ? n->numerics : "";
}

const char *node_run_dir(const struct node *n)
{
    return n->run->dir;
}

struct store *node_store(const struct node *n)
{
    return n->run->store;
}

struct writer *node_output(struct node *n)
{
    return n->output;
}

bool node_part_key(const struct key *node, const char *part, struct key *out, struct err *e)
{
    struct key_hash *h;
    if (!key_hash_new(&h, e))
        return false;
    key_hash_key(h, node);
    key_hash_text(h, "part");
    key_hash_text(h, part);
    return key_hash_end(h, out, e);
}

bool node_part_open(struct node *n, const char *part, struct object **out, struct err *e)
{
    struct key key;
    return node_part_key(&n->key, part, &key, e) && object_open(out, n->run->store, &key, e);
}

bool node_part_exists(struct node *n, const char *part, bool *there, struct err *e)
{
    struct key key;
    return node_part_key(&n->key, part, &key, e) && object_exists(n->run->store, &key, there, e);
}

bool node_part_new(struct node *n, const char *part, struct writer **out, struct err *e)
{
    struct key key;
    char schema[160], text[KEY_TEXT];
    struct writer *w;
    snprintf(schema, sizeof schema, "%s/%u/part", n->def->class->name, n->def->class->version);
    if (!node_part_key(&n->key, part, &key, e) || !writer_new(&w, n->run->store, &key, schema, e))
        return false;
    if (!writer_text(w, "part", part, e) || !writer_text(w, "node_type", n->def->class->name, e) ||
        !writer_text(w, "part_of", key_text(&n->key, text), e)) {
        writer_abort(w);
        return false;
    }
    *out = w;
    return true;
}

bool node_part_link(struct node *n, const char *part, struct err *e)
{
    struct key key;
    struct str name = {0};
    str_printf(&name, "parts/%s", part);
    bool ok = str_ok(&name, e) && node_part_key(&n->key, part, &key, e) && writer_link(n->output, name.text, &key, e);
    str_free(&name);
    if (!ok)
        return false;
    str_printf(&n->parts, "%s\n", part);
    return str_ok(&n->parts, e);
}

bool node_parts_exist(const struct node *n, struct object *o, bool *there, struct err *e)
{
    const char *list;
    *there = true;
    if (!object_text(o, "parts", &list))
        return true;
    while (*list && *there) {
        size_t length = strcspn(list, "\n");
        char name[256];
        struct key key;
        snprintf(name, sizeof name, "%.*s", (int)length, list);
        if (!node_part_key(object_key(o), name, &key, e) || !object_exists(n->run->store, &key, there, e))
            return false;
        list += length + (list[length] == '\n');
    }
    return true;
}

bool object_part(struct store *s, struct object *o, const char *part, struct object **out, struct err *e)
{
    struct key key;
    char text[KEY_TEXT];
    struct object *found = NULL;
    if (!node_part_key(object_key(o), part, &key, e) || !object_open(&found, s, &key, e))
        return err_context(e, "part '%s' of object %.12s", part, key_text(object_key(o), text));
    if (!found)
        return err_set(e, ERR_INPUT,
                       "part '%s' of object %.12s is missing or was damaged: run again, it is then remade", part,
                       key_text(object_key(o), text));
    *out = found;
    return true;
}

void node_live(struct node *n, const struct key *ledger, struct ledger *l)
{
    (void)l; /* may be closed before the node ends: its segments are looked for in the store */
    pthread_mutex_lock(&n->run->lock);
    n->has_ledger = true;
    n->ledger = *ledger;
    n->run->index_dirty = true;
    pthread_mutex_unlock(&n->run->lock);
}

/* -------------------------------------------------------------------------------------------- computing and telling */

const struct kernels *node_kernels(const struct node *n)
{
    const struct run_backend *b = &n->run->options.backend;
    return n->place < 0 ? b->kernels : b->devices[n->place].kernels;
}

bool node_on_device(const struct node *n)
{
    return n->place >= 0;
}

int node_devices(const struct node *n)
{
    return n->n_devices;
}

struct queue *node_device_queue(struct node *n, int i)
{
    assert(i >= 0 && i < n->n_devices);
    return n->queues[i];
}

struct queue *node_queue(struct node *n)
{
    return n->queues[0];
}

uint64_t node_device_memory(const struct node *n)
{
    pthread_mutex_lock(&n->run->lock);
    uint64_t bytes = device_memory(n);
    pthread_mutex_unlock(&n->run->lock);
    return bytes;
}

int node_threads(const struct node *n)
{
    return n->cores > 0 ? n->cores : 1;
}

/* Before it is admitted (in `needs`): what it may ask for. */
uint64_t node_memory(const struct node *n)
{
    if (n->memory > 0)
        return n->memory;
    return n->def->memory > 0 ? n->def->memory : n->run->memory_total;
}

bool node_stopping(const struct node *n)
{
    return atomic_load(&n->run->stopping);
}

bool node_stopped(struct err *e)
{
    return err_set(e, ERR_STOPPED, "interrupted; what was done is kept");
}

void node_progress(struct node *n, double done, double total, const char *unit)
{
    pthread_mutex_lock(&n->run->lock);
    if (isnan(n->time_first) || strcmp(n->unit, unit) != 0 || done < n->done) {
        n->time_first = report_clock();
        n->done_first = done;
        snprintf(n->unit, sizeof n->unit, "%s", unit);
    }
    n->done = done;
    n->total = total;
    pthread_mutex_unlock(&n->run->lock);
}

void node_log(struct node *n, const char *format, ...)
{
    char line[2048];
    va_list args;
    va_start(args, format);
    vsnprintf(line, sizeof line, format, args);
    va_end(args);
    progress_line(n->run->progress, n->def->name, line);
}

void node_stat(struct node *n, const char *name, double value, const char *unit)
{
    pthread_mutex_lock(&n->run->lock);
    size_t i = 0;
    while (i < n->n_stats && strcmp(n->stats[i].name, name) != 0)
        i++;
    /* A figure that finds no memory is dropped: it is no part of the result. */
    if (i == n->n_stats && mem_grow(&n->stats, n->n_stats, n->n_stats + 1, NULL))
        n->n_stats++;
    if (i < n->n_stats) {
        snprintf(n->stats[i].name, sizeof n->stats[i].name, "%s", name);
        snprintf(n->stats[i].unit, sizeof n->stats[i].unit, "%s", unit ? unit : "1");
        n->stats[i].value = value;
    }
    pthread_mutex_unlock(&n->run->lock);
}
