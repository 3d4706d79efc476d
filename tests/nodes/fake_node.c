#include "tests/nodes/fake_node.h"

#include "tests/check.h"

#include <math.h>

#include "engine/base/str.h"

static struct {
    struct queue *devices[4];
    int n;
    uint64_t memory;
} place;

void fake_node_place(struct queue *const *devices, int n, uint64_t memory)
{
    assert_true(n <= (int)COUNT(place.devices));
    for (int i = 0; i < n; i++)
        place.devices[i] = devices[i];
    place.n = n;
    place.memory = memory;
}

void fake_node_init(struct node *n, const struct node_class *class, struct store *s, const char *seed)
{
    struct err e = {0};
    *n = (struct node){.class = class, .store = s, .threads = 1};
    if (!key_of_bytes(seed, strlen(seed), &n->key, &e) || !writer_new(&n->output, s, &n->key, class->name, &e))
        fail_msg("%s", e.text);
    n->queue = (struct queue){.k = kernels_cpu(&e), .threads = 1, .device = TENSOR_HOST};
    assert_non_null(n->queue.k);
    memcpy(n->devices, place.devices, sizeof n->devices);
    n->n_devices = place.n;
    n->device_memory = place.memory;
}

void fake_node_set(struct node *n, const char *param, const char *text)
{
    size_t i = 0;
    while (i < n->n_values && strcmp(n->values[i].name, param) != 0)
        i++;
    assert_true(i < FAKE_MOST && n->values[i].n < FAKE_MOST);
    n->n_values += i == n->n_values;
    n->values[i].name = param;
    n->values[i].text[n->values[i].n++] = text;
}

void fake_node_connect(struct node *n, const char *port, const char *type, struct object *object, const char *path)
{
    assert_true(n->n_inputs < FAKE_MOST);
    n->inputs[n->n_inputs].port = port;
    n->inputs[n->n_inputs].path = path;
    n->inputs[n->n_inputs].input = (struct input){.object = object, .node = type, .type = type, .output = ""};
    if (object)
        n->inputs[n->n_inputs].input.key = *object_key(object);
    n->n_inputs++;
}

void fake_node_connect_output(struct node *n, const char *port, const char *type, const char *output,
                              struct object *object)
{
    fake_node_connect(n, port, type, object, NULL);
    n->inputs[n->n_inputs - 1].input.output = output;
}

void fake_node_depend(struct node *n, const char *type, struct object *object, const char *path)
{
    assert_true(n->n_upstream < COUNT(n->upstream));
    n->upstream[n->n_upstream].key = *object_key(object);
    n->upstream[n->n_upstream].type = type;
    n->upstream[n->n_upstream++].path = path;
}

struct object *fake_node_run(struct node *n, struct err *e)
{
    struct object *out = NULL;
    n->queue.threads = n->threads;
    if (!n->class->run(n, e))
        return NULL;
    struct writer *w = n->output;
    n->output = NULL;
    if (!writer_commit(w, e) || !object_open(&out, n->store, &n->key, e))
        fail_msg("%s", e->text);
    assert_non_null(out);
    return out;
}

double fake_node_stat(const struct node *n, const char *name)
{
    for (size_t i = 0; i < n->n_stats; i++)
        if (strcmp(n->stats[i].name, name) == 0)
            return n->stats[i].value;
    fail_msg("%s told no figure '%s'", n->class->name, name);
    return 0.0;
}

void fake_node_fini(struct node *n)
{
    writer_abort(n->output);
    arena_free(&n->arena);
    *n = (struct node){0};
}

/* ---------------------------------------------------------------------------------------------------- engine/node.h */

static const struct param *declared(const struct node *n, const char *param)
{
    for (const struct param *p = n->class->params; p && p->name; p++)
        if (strcmp(p->name, param) == 0)
            return p;
    fail_msg("%s has no parameter '%s'", n->class->name, param);
    return NULL;
}

/* The i-th value; a default is a list in one text, cut at ", ". */
static const char *value(const struct node *n, const char *param, size_t i, size_t *count)
{
    const struct param *p = declared(n, param);
    for (size_t v = 0; v < n->n_values; v++) {
        if (strcmp(n->values[v].name, param) == 0) {
            *count = n->values[v].n;
            return i < *count ? n->values[v].text[i] : NULL;
        }
    }
    if (!p->many) {
        *count = 1;
        return p->fallback;
    }
    const char *found = NULL, *at = p->fallback;
    for (*count = 0; *at; (*count)++) {
        size_t length = strcspn(at, ",");
        if (*count == i)
            found = arena_strndup((struct arena *)&n->arena, at, length, NULL);
        at += length;
        at += strspn(at, ", ");
    }
    return found;
}

static const char *single(const struct node *n, const char *param)
{
    size_t count;
    const char *text = value(n, param, 0, &count);
    assert_non_null(text);
    return text;
}

const char *node_name(const struct node *n) { return n->class->name; }
int64_t node_int(const struct node *n, const char *param) { return atoll(single(n, param)); }
double node_float(const struct node *n, const char *param) { return atof(single(n, param)); }
bool node_bool(const struct node *n, const char *param) { return strcmp(single(n, param), "true") == 0; }
const char *node_string(const struct node *n, const char *param) { return single(n, param); }

uint64_t node_size(const struct node *n, const char *param)
{
    uint64_t bytes;
    assert_true(str_parse_size(single(n, param), &bytes));
    return bytes;
}

size_t node_list(const struct node *n, const char *param)
{
    size_t count;
    value(n, param, 0, &count);
    return count;
}

const char *node_list_string(const struct node *n, const char *param, size_t i)
{
    size_t count;
    return value(n, param, i, &count);
}

double node_list_float(const struct node *n, const char *param, size_t i)
{
    return atof(node_list_string(n, param, i));
}

size_t node_inputs(const struct node *n, const char *port)
{
    size_t count = 0;
    for (size_t i = 0; i < n->n_inputs; i++)
        count += strcmp(n->inputs[i].port, port) == 0;
    return count;
}

const struct input *node_input(const struct node *n, const char *port, size_t i)
{
    for (size_t j = 0; j < n->n_inputs; j++)
        if (strcmp(n->inputs[j].port, port) == 0 && i-- == 0)
            return &n->inputs[j].input;
    fail_msg("nothing is connected to port '%s'", port);
    return NULL;
}

bool node_input_path(const struct node *n, const char *port, size_t i, const char *param, const char **out,
                     struct err *e)
{
    (void)param;
    for (size_t j = 0; j < n->n_inputs; j++) {
        if (strcmp(n->inputs[j].port, port) == 0 && i-- == 0) {
            *out = n->inputs[j].path;
            return true;
        }
    }
    return err_set(e, ERR_BUG, "nothing is connected to port '%s'", port);
}

/* An input, or what the test has said. */
static const char *find_upstream(const struct node *n, const struct key *key, const char **path)
{
    for (size_t i = 0; i < n->n_inputs; i++)
        if (key_equal(&n->inputs[i].input.key, key)) {
            *path = n->inputs[i].path;
            return n->inputs[i].input.type;
        }
    for (size_t i = 0; i < n->n_upstream; i++)
        if (key_equal(&n->upstream[i].key, key)) {
            *path = n->upstream[i].path;
            return n->upstream[i].type;
        }
    return NULL;
}

bool node_upstream_type(const struct node *n, const struct key *key, const char **out, struct err *e)
{
    const char *path;
    (void)e;
    *out = find_upstream(n, key, &path);
    return true;
}

bool node_upstream_path(const struct node *n, const struct key *key, const char *param, const char **out,
                        struct err *e)
{
    (void)param;
    return find_upstream(n, key, out) || err_set(e, ERR_BUG, "it does not depend on that");
}

const struct key *node_key(const struct node *n) { return &n->key; }
const char *node_numerics(const struct node *n) { return n->numerics ? n->numerics : ""; }
const char *node_run_dir(const struct node *n) { return n->run_dir; }
struct store *node_store(const struct node *n) { return n->store; }
struct writer *node_output(struct node *n) { return n->output; }

static bool part_key(const struct key *of, const char *part, struct key *out, struct err *e)
{
    struct key_hash *h;
    if (!key_hash_new(&h, e))
        return false;
    key_hash_text(h, part);
    key_hash_key(h, of);
    return key_hash_end(h, out, e);
}

bool node_part_open(struct node *n, const char *part, struct object **out, struct err *e)
{
    struct key key;
    if (!part_key(&n->key, part, &key, e) || !object_open(out, n->store, &key, e))
        return false;
    n->parts_found += *out != NULL;
    return true;
}

bool node_part_exists(struct node *n, const char *part, bool *there, struct err *e)
{
    struct object *o;
    if (!node_part_open(n, part, &o, e))
        return false;
    n->parts_found -= o != NULL; /* asked is not used */
    *there = o != NULL;
    object_close(o);
    return true;
}

bool node_part_new(struct node *n, const char *part, struct writer **out, struct err *e)
{
    struct key key;
    n->parts_made++;
    return part_key(&n->key, part, &key, e) && writer_new(out, n->store, &key, "part", e);
}

bool node_part_commit(struct node *n, struct writer *w, struct err *e)
{
    (void)n;
    return writer_commit(w, e);
}

bool node_each_ancestor(const struct node *n, node_ancestor each, void *context, struct err *e)
{
    for (size_t i = 0; i < n->n_ancestors; i++)
        if (!each(context, &n->ancestors[i], e))
            return false;
    return true;
}

bool node_part_link(struct node *n, const char *part, struct err *e)
{
    struct key key;
    char name[64];
    snprintf(name, sizeof name, "parts/%s", part);
    return part_key(&n->key, part, &key, e) && writer_link(n->output, name, &key, e);
}

bool object_part(struct store *s, struct object *o, const char *part, struct object **out, struct err *e)
{
    struct key key;
    struct object *found = NULL;
    if (!part_key(object_key(o), part, &key, e) || !object_open(&found, s, &key, e))
        return false;
    if (!found)
        return err_set(e, ERR_INPUT, "part '%s' is missing", part);
    *out = found;
    return true;
}

const struct kernels *node_kernels(const struct node *n) { return n->n_devices ? n->devices[0]->k : n->queue.k; }
bool node_on_device(const struct node *n) { return n->n_devices > 0; }
int node_devices(const struct node *n) { return n->n_devices; }
struct queue *node_device_queue(struct node *n, int i) { return n->devices[i]; }
struct queue *node_queue(struct node *n) { return n->n_devices ? n->devices[0] : &n->queue; }
uint64_t node_device_memory(const struct node *n) { return n->device_memory; }
int node_threads(const struct node *n) { return n->threads; }
uint64_t node_memory(const struct node *n) { (void)n; return 1u << 30; }
bool node_stopping(const struct node *n)
{
    if (n->asks && *n->asks > 0)
        return --*n->asks, false;
    return n->asks || (n->stop_after > 0 && n->parts_made >= n->stop_after);
}

bool node_stopped(struct err *e) { return err_set(e, ERR_STOPPED, "interrupted"); }
void node_progress(struct node *n, double done, double total, const char *unit)
{
    (void)n;
    (void)unit;
    assert_true(done >= 0.0 && done <= total);
}
void node_log(struct node *n, const char *format, ...) { (void)n; (void)format; }
void node_stat(struct node *n, const char *name, double stat, const char *unit)
{
    size_t i = 0;
    (void)unit;
    while (i < n->n_stats && strcmp(n->stats[i].name, name) != 0)
        i++;
    assert_true(i < FAKE_MOST);
    n->n_stats += i == n->n_stats;
    snprintf(n->stats[i].name, sizeof n->stats[i].name, "%s", name);
    n->stats[i].value = stat;
}
void node_live(struct node *n, const struct key *ledger, struct ledger *l)
{
    (void)ledger;
    n->ledger = l;
}

/* -------------------------------------------------------------------------------------------------------- a hessian */

double fake_moment(int unit, int64_t i, int64_t j)
{
    double a = sin((double)(unit + 1) * (double)(i + 1)), b = sin((double)(unit + 1) * (double)(j + 1));
    return 0.5 * a * b + (i == j ? 1.0 + (double)(i % 7) : 0.0);
}

float fake_amax(int unit)
{
    return 3.5f + (float)unit;
}

static void write_moment(struct writer *part, const struct unit *unit, int seed, const char *name)
{
    struct err e;
    float *h;
    char path[256];
    assert_ok(mem_raw(&h, (size_t)(unit->k * unit->k), &e), e);
    for (int64_t i = 0; i < unit->k; i++)
        for (int64_t j = 0; j < unit->k; j++)
            h[i * unit->k + j] = (float)fake_moment(seed, i, j);
    snprintf(path, sizeof path, "%s/%s", unit->name, name);
    struct dataset d = {.name = path, .dtype = DTYPE_F32, .rank = 2, .unit = "1", .axes = "feature, feature",
                        .shape = {(uint64_t)unit->k, (uint64_t)unit->k}, .description = "E[x xT]"};
    assert_ok(writer_add_take(part, &d, h, &e), e);
}

struct object *fake_hessian(struct store *s, const struct model *m)
{
    struct err e = {0};
    struct node n;
    static const struct node_class class = {.name = "hessian"};
    fake_node_init(&n, &class, s, "hessian");
    for (int u = 0, layer = -1; u < m->n_units;) {
        struct writer *part;
        char name[64];
        snprintf(name, sizeof name, "layer.%03d", ++layer);
        assert_ok(node_part_new(&n, name, &part, &e), e);
        for (; u < m->n_units && m->units[u].layer == layer; u++) {
            const struct unit *unit = &m->units[u];
            float amax = fake_amax(u);
            char path[256];
            write_moment(part, unit, u + 50, "second_moment");
            write_moment(part, unit, u, "held_out_moment");
            snprintf(path, sizeof path, "%s/amax", unit->name);
            struct dataset d = {.name = path, .dtype = DTYPE_F32, .rank = 1, .shape = {1}, .unit = "1",
                                .axes = "input", .description = "largest |x|"};
            assert_ok(writer_add(part, &d, &amax, &e), e);
        }
        assert_ok(writer_commit(part, &e), e);
    }
    struct writer *out = n.output;
    struct object *o = NULL;
    n.output = NULL;
    const int64_t tokens[2] = {300, 100};
    struct dataset d = {.name = "tokens", .dtype = DTYPE_I64, .rank = 1, .shape = {2}, .unit = "token",
                        .axes = "share", .description = "fitted, held out"};
    assert_ok(writer_add(out, &d, tokens, &e) && writer_text(out, "what", "hessian", &e) && writer_commit(out, &e), e);
    assert_ok(object_open(&o, s, &n.key, &e) && o, e);
    fake_node_fini(&n);
    return o;
}

/* -------------------------------------------------------------------------------------------- a model and a corpus */

/* A fresh object under the key of `seed`. */
static struct writer *begin(struct store *s, const char *type, const char *seed, struct key *key)
{
    struct err e;
    struct writer *w = NULL;
    assert_ok(key_of_bytes(seed, strlen(seed), key, &e) && writer_new(&w, s, key, type, &e), e);
    return w;
}

static struct object *publish(struct store *s, struct writer *w, const struct key *key)
{
    struct err e;
    struct object *o = NULL;
    assert_ok(writer_commit(w, &e) && object_open(&o, s, key, &e) && o, e);
    return o;
}

static struct object *make_model(struct store *s, const char *seed, const char *head)
{
    static const char *const names[] = {"model.norm.weight"}, *const digests[] = {"00ff"};
    struct err e;
    struct key key;
    struct writer *w = begin(s, "model", seed, &key);
    assert_ok(writer_add_strings(w, "tensors/name", names, 1, "tensor", "names", &e) &&
              writer_add_strings(w, "tensors/digest", digests, 1, "tensor", "digests", &e) &&
              writer_text(w, "head", head, &e), e);
    return publish(s, w, &key);
}

struct object *fake_model(struct store *s, const char *path) { return make_model(s, path, "plain"); }

struct object *fake_model_with_head(struct store *s) { return make_model(s, "a model with its head", "unit"); }

static bool fill_untied(const struct st_source *self, void *out, struct err *e)
{
    const struct safetensors *from = self->context;
    return safetensors_read(from, &from->tensors[self->index], 0, self->bytes, out, e);
}

void fake_untied(const char *from, const char *to)
{
    static const char tied[] = "\"tie_word_embeddings\": true", untied[] = "\"tie_word_embeddings\": false";
    struct err e = {0};
    struct safetensors *s;
    struct st_source list[128];
    char path[700], text[8192];
    size_t n = 0;
    assert_int_equal(mkdir(to, 0777), 0);
    snprintf(path, sizeof path, "%s/config.json", from);
    char *config = check_read(path, NULL), *at = config ? strstr(config, tied) : NULL;
    assert_non_null(at);
    snprintf(text, sizeof text, "%.*s%s%s", (int)(at - config), config, untied, at + strlen(tied));
    check_write(to, "config.json", text, strlen(text));
    free(config);
    assert_ok(safetensors_open(&s, from, &e), e);
    assert_true(s->n_tensors < COUNT(list));
    for (size_t i = 0; i <= s->n_tensors; i++) {
        bool is_head = i == s->n_tensors;
        const struct st_tensor *t = is_head ? safetensors_find(s, "model.embed_tokens.weight") : &s->tensors[i];
        list[n++] = (struct st_source){.name = is_head ? "lm_head.weight" : t->name, .dtype = t->dtype, .rank = t->rank,
                                       .shape = {t->shape[0], t->rank > 1 ? t->shape[1] : 0}, .bytes = t->bytes,
                                       .fill = fill_untied, .context = s, .index = t - s->tensors};
    }
    snprintf(path, sizeof path, "%s/model.safetensors", to);
    assert_ok(safetensors_write(path, list, n, &e), e);
    safetensors_close(s);
}

void fake_tokens(struct token_set *out, uint32_t n, uint32_t window, int vocab)
{
    struct err e;
    uint32_t x = 1;
    *out = (struct token_set){.n = n, .window = window};
    assert_true(4 * n < window);
    assert_ok(mem_new(&out->ids, (size_t)n * window, &e) && mem_new(&out->length, n, &e) &&
              mem_new(&out->document, n, &e), e);
    for (uint32_t w = 0; w < n; w++) {
        out->length[w] = (int32_t)(window - 4 * w);
        out->document[w] = w / 2;
        for (int32_t t = 0; t < out->length[w]; t++) {
            x = x * 1664525u + 1013904223u;
            out->ids[w * window + (uint32_t)t] = (int32_t)((x >> 8) % (uint32_t)vocab);
        }
    }
}

struct object *fake_corpus(struct store *s, const char *output, const struct token_set *t)
{
    struct err e;
    struct key key;
    struct writer *w = begin(s, "corpus", output, &key);
    char name[96];
    snprintf(name, sizeof name, "%s/tokens", output);
    struct dataset d = {.name = name, .dtype = DTYPE_I32, .rank = 2, .shape = {t->n, t->window}, .unit = "1",
                        .axes = "window, position", .description = "token ids"};
    assert_ok(writer_add(w, &d, t->ids, &e), e);
    snprintf(name, sizeof name, "%s/length", output);
    d = (struct dataset){.name = name, .dtype = DTYPE_I32, .rank = 1, .shape = {t->n}, .unit = "token",
                         .axes = "window", .description = "real tokens"};
    assert_ok(writer_add(w, &d, t->length, &e), e);
    snprintf(name, sizeof name, "%s/document", output);
    d.dtype = DTYPE_U32;
    d.unit = "1";
    assert_ok(writer_add(w, &d, t->document, &e), e);
    return publish(s, w, &key);
}
