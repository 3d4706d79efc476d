/* Node types for the tests of engine/run, and what the tests share. */
#include "tests/engine/run/fake.h"

#include <ftw.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "kernels/kernels.h"

atomic_int fake_runs, fake_at_once, fake_most_at_once, fake_parts_made, fake_rows_made;
char fake_states[4096];

void fake_reset(void)
{
    fake_runs = fake_at_once = fake_most_at_once = fake_parts_made = fake_rows_made = fake_shared = 0;
    fake_broken = fake_opened = 0;
}

/* ------------------------------------------------------------------------------------------------------- node types */

static void sleep_ms(int64_t ms)
{
    if (ms > 0)
        nanosleep(&(struct timespec){.tv_sec = ms / 1000, .tv_nsec = (ms % 1000) * 1000000}, NULL);
}

static void enter(void)
{
    fake_runs++;
    int now = ++fake_at_once, most = fake_most_at_once;
    while (now > most && !atomic_compare_exchange_weak(&fake_most_at_once, &most, now))
        ;
}

static void leave(void)
{
    fake_at_once--;
}

static bool write_number(struct writer *w, double x, struct err *e)
{
    const struct dataset d = {.name = "x", .dtype = DTYPE_F64, .rank = 1, .shape = {1}, .unit = "1", .axes = "one",
                              .description = "a number"};
    return writer_add(w, &d, &x, e);
}

static bool read_number(struct object *o, double *x, struct err *e)
{
    return object_read(o, "x", DTYPE_F64, 0, 1, x, e);
}

static bool add_inputs(struct node *n, double *sum, struct err *e)
{
    for (size_t i = 0; i < node_inputs(n, "in"); i++) {
        double x;
        if (!read_number(node_input(n, "in", i)->object, &x, e))
            return false;
        *sum += x;
    }
    return true;
}

static bool run_value(struct node *n, struct err *e)
{
    enter();
    double x = (double)node_int(n, "value") * node_float(n, "scale");
    for (size_t i = 0; i < node_list(n, "extra"); i++)
        x += node_list_float(n, "extra", i);
    leave();
    node_stat(n, "value", x, "1");
    return write_number(node_output(n), x, e);
}

static bool run_sum(struct node *n, struct err *e)
{
    double x = (double)node_int(n, "add");
    enter();
    bool ok = add_inputs(n, &x, e);
    node_progress(n, 1, 2, "step");
    sleep_ms(node_int(n, "ms"));
    leave();
    return ok && write_number(node_output(n), x, e);
}

static bool run_fail(struct node *n, struct err *e)
{
    enter();
    leave();
    if (strcmp(node_string(n, "how"), "resource") == 0)
        return err_set(e, ERR_RESOURCE, "no room for 3 GiB");
    return err_set(e, ERR_NUMERIC, "x[3] is NaN");
}

static bool make_part(struct node *n, const char *name, double x, struct err *e)
{
    struct object *done = NULL;
    struct writer *w = NULL;
    if (!node_part_open(n, name, &done, e))
        return false;
    if (done) {
        object_close(done);
        return true;
    }
    sleep_ms(node_int(n, "ms"));
    if (!node_part_new(n, name, &w, e))
        return false;
    if (!write_number(w, x, e)) {
        writer_abort(w);
        return false;
    }
    fake_parts_made++;
    return node_part_commit(n, w, e);
}

static bool run_parts(struct node *n, struct err *e)
{
    double x = 0;
    bool ok = true;
    enter();
    ok = add_inputs(n, &x, e);
    for (int i = 0; ok && i < 8; i++) {
        char name[16];
        snprintf(name, sizeof name, "layer.%03d", i);
        if (node_stopping(n))
            ok = node_stopped(e);
        ok = ok && make_part(n, name, x + i, e) && node_part_link(n, name, e);
    }
    leave();
    return ok && write_number(node_output(n), x, e);
}

/* Reads one part of each input. */
static bool run_reader(struct node *n, struct err *e)
{
    double sum = 0;
    enter();
    leave();
    for (size_t i = 0; i < node_inputs(n, "in"); i++) {
        struct object *part;
        double x;
        if (!object_part(node_store(n), node_input(n, "in", i)->object, "layer.002", &part, e))
            return false;
        bool ok = read_number(part, &x, e);
        object_close(part);
        if (!ok)
            return false;
        sum += x;
    }
    return write_number(node_output(n), sum, e);
}

static bool needs_needy(struct node *n, struct needs *out, struct err *e)
{
    (void)e;
    *out = (struct needs){
        .cores = (int)node_int(n, "cores"), .memory = node_size(n, "memory"), .disk = node_size(n, "disk")};
    return true;
}

static bool run_needy(struct node *n, struct err *e)
{
    enter();
    sleep_ms(node_int(n, "ms"));
    leave();
    node_stat(n, "threads", node_threads(n), "thread");
    node_stat(n, "memory", (double)node_memory(n), "byte");
    return write_number(node_output(n), 1, e);
}

static bool numerics_compute(const struct node *n, const char **out, struct err *e)
{
    (void)e;
    *out = node_kernels(n) ? node_kernels(n)->numeric_fp32 : NULL;
    return true;
}

static bool needs_compute(struct node *n, struct needs *out, struct err *e)
{
    (void)e;
    *out = (struct needs){.cores = (int)node_int(n, "cores"), .memory = 1024,
                          .devices = (int)node_int(n, "devices"), .device_memory = node_size(n, "device_memory")};
    if (strcmp(node_string(n, "takes"), "all") == 0)
        out->device_memory = node_device_memory(n);
    assert_int_equal(node_devices(n), 0);
    return true;
}

static bool run_compute(struct node *n, struct err *e)
{
    enter();
    sleep_ms(node_int(n, "ms"));
    leave();
    assert_true(node_on_device(n) == (node_devices(n) > 0));
    for (int i = 0; i < node_devices(n); i++) {
        assert_ptr_equal(node_device_queue(n, i)->k, node_kernels(n));
        if (node_device_queue(n, i)->device == node_int(n, "breaks")) {
            atomic_fetch_or(&fake_broken, 1u << node_int(n, "breaks"));
            return err_set(e, ERR_DEVICE, "kernel 'gram' failed: an illegal address");
        }
    }
    node_stat(n, "devices", node_devices(n), "device");
    node_stat(n, "device_memory", (double)node_device_memory(n), "byte");
    node_stat(n, "threads", node_threads(n), "thread");
    return write_number(node_output(n), 1, e);
}

static bool run_outside(struct node *n, struct err *e)
{
    enter();
    leave();
    FILE *f = fopen(node_string(n, "out"), "w");
    if (!f || fputs("here\n", f) < 0 || fclose(f) != 0)
        return err_errno(e, ERR_IO, "cannot write '%s'", node_string(n, "out"));
    return write_number(node_output(n), 7, e);
}

static bool stands_outside(struct node *n, struct object *result, bool quick)
{
    char text[16] = "";
    (void)result;
    FILE *f = fopen(node_string(n, "out"), "r");
    bool same = f && (quick || (fgets(text, sizeof text, f) && strcmp(text, "here\n") == 0));
    if (f)
        fclose(f);
    return same;
}

static bool one_row(struct node *n, struct ledger *l, uint32_t window, struct err *e)
{
    const uint8_t assignment[4] = {1, 2, 3, 4};
    struct key candidate;
    struct ledger_row row;
    float slots[2] = {(float)window, 1};
    if (!key_of_bytes(assignment, sizeof assignment, &candidate, e))
        return false;
    if (ledger_find(l, candidate.bytes, window, &row, NULL))
        return true;
    sleep_ms(node_int(n, "ms"));
    row = (struct ledger_row){.window = window, .n_tokens = 2, .kl_sum = 0.5 * window};
    memcpy(row.candidate, candidate.bytes, KEY_BYTES);
    fake_rows_made++;
    return ledger_append(l, &row, slots, assignment, 1, e);
}

static bool run_rows(struct node *n, struct err *e)
{
    static const char *const formats[] = {"f0", "f1", "f2", "f3", "f4"};
    const struct ledger_spec spec = {.context = *node_key(n), .numeric = "none", .assignment_bytes = 4, .slots = 2,
                                     .formats = formats, .n_formats = 5};
    struct ledger *l;
    enter();
    bool ok = ledger_open(&l, node_store(n), &spec, e);
    if (ok) {
        node_live(n, node_key(n), l);
        for (uint32_t i = 0; ok && i < (uint32_t)node_int(n, "n"); i++)
            ok = node_stopping(n) ? node_stopped(e) : one_row(n, l, i, e);
        if (ok)
            ok = write_number(node_output(n), (double)ledger_rows(l), e);
        ledger_close(l);
    }
    leave();
    return ok;
}

#define MS {.name = "ms", .type = PARAM_INT, .fallback = "0", .outside_key = true, .help = "sleep"}
static const struct port many_in[] = {{.name = "in", .many = true, .optional = true}, {0}};
static const struct param value_params[] = {{.name = "value", .type = PARAM_INT, .fallback = "1"},
                                            {.name = "scale", .type = PARAM_FLOAT, .fallback = "1"},
                                            {.name = "extra", .type = PARAM_FLOAT, .many = true, .fallback = "1, 2"},
                                            {.name = "note", .type = PARAM_STRING, .fallback = ""},
                                            {.name = "file", .type = PARAM_SOURCE, .fallback = ""},
                                            {.name = "out", .type = PARAM_PATH, .fallback = "out"},
                                            {.name = "speed", .type = PARAM_INT, .fallback = "1", .outside_key = true},
                                            {0}};
static const struct output value_outputs[] = {{"a", "one"}, {"b", "another"}, {0}};
static const struct param sum_params[] = {{.name = "add", .type = PARAM_INT, .fallback = "1"}, MS, {0}};
static const struct param ms_params[] = {MS, {0}};
static const struct param fail_params[] = {{.name = "how", .type = PARAM_STRING, .fallback = "numeric"}, {0}};
static const struct param needy_params[] = {
    {.name = "tag", .type = PARAM_INT, .fallback = "0"},
    {.name = "cores", .type = PARAM_INT, .fallback = "1", .outside_key = true},
    {.name = "memory", .type = PARAM_SIZE, .fallback = "1024", .outside_key = true},
    {.name = "disk", .type = PARAM_SIZE, .fallback = "0", .outside_key = true},
    MS,
    {0}};
static const struct param compute_params[] = {
    {.name = "tag", .type = PARAM_INT, .fallback = "0"},
    {.name = "cores", .type = PARAM_INT, .fallback = "0", .outside_key = true},
    {.name = "devices", .type = PARAM_INT, .fallback = "0", .outside_key = true},
    {.name = "device_memory", .type = PARAM_SIZE, .fallback = "1024", .outside_key = true},
    {.name = "takes", .type = PARAM_STRING, .fallback = "", .outside_key = true},
    {.name = "breaks", .type = PARAM_INT, .fallback = "-1", .outside_key = true},
    MS,
    {0}};
static const struct param outside_params[] = {{.name = "out", .type = PARAM_PATH, .fallback = "written"}, {0}};
static const struct param rows_params[] = {{.name = "n", .type = PARAM_INT, .fallback = "20"}, MS, {0}};

static bool numerics_value(const struct node *n, const char **out, struct err *e)
{
    (void)n;
    (void)e;
    *out = "fp32 fake";
    return true;
}

const struct node_class fake_value = {.name = "value", .summary = "a number", .version = 1, .params = value_params,
                                      .outputs = value_outputs, .numerics = numerics_value, .run = run_value};
const struct node_class fake_value2 = {.name = "value", .summary = "a number", .version = 2, .params = value_params,
                                       .outputs = value_outputs, .numerics = numerics_value, .run = run_value};
const struct node_class fake_sum = {
    .name = "sum", .summary = "a sum", .version = 1, .ports = many_in, .params = sum_params, .run = run_sum};
const struct node_class fake_fail = {.name = "fail", .summary = "fails", .version = 1, .ports = many_in,
                                     .params = fail_params, .run = run_fail};
const struct node_class fake_parts = {.name = "parts", .summary = "has parts", .version = 1, .ports = many_in,
                                      .params = ms_params, .run = run_parts};
const struct node_class fake_reader = {.name = "reader", .summary = "reads parts", .version = 1, .ports = many_in,
                                       .run = run_reader};
const struct node_class fake_needy = {.name = "needy", .summary = "needs", .version = 1, .ports = many_in,
                                      .params = needy_params, .needs = needs_needy, .run = run_needy};
const struct node_class fake_compute = {.name = "compute", .summary = "computes on an accelerator", .version = 1,
                                        .accelerator = true, .ports = many_in, .params = compute_params,
                                        .numerics = numerics_compute, .needs = needs_compute, .run = run_compute};
const struct node_class fake_outside = {.name = "outside", .summary = "writes a file", .version = 1, .ports = many_in,
                                        .params = outside_params, .stands = stands_outside, .run = run_outside};
const struct node_class fake_rows = {.name = "rows", .summary = "measures rows", .version = 1, .ports = many_in,
                                     .params = rows_params, .run = run_rows};
const struct node_class *const fake_table[] = {&fake_value, &fake_sum,     &fake_fail,    &fake_parts, &fake_reader,
                                               &fake_needy, &fake_compute, &fake_outside, &fake_rows,  NULL};

/* --------------------------------------------------------------------------------------------------------- back end */

#define FAKE_DEVICES 16

static const struct kernels cpu_kernels = {.name = "cpu fake", .numeric_fp32 = "fp32 cpu"};
static const struct kernels device_kernels = {.name = "cuda fake", .numeric_fp32 = "fp32 cuda fake"};
const struct kernels fake_other_kernels = {.name = "cuda other", .numeric_fp32 = "fp32 cuda other"};
atomic_uint fake_broken, fake_opened;
atomic_int fake_shared;
static atomic_int queues_on[FAKE_DEVICES];

static bool fake_open(int index, uint64_t *free_memory, struct err *e)
{
    atomic_fetch_or(&fake_opened, 1u << index);
    if (fake_broken & 1u << index)
        return err_set(e, ERR_DEVICE, "%sthe self-test failed", index ? "" : "cuda:0: ");
    *free_memory = UINT64_C(79) << 30;
    return true;
}

static bool fake_queue_new(struct queue **out, const struct kernels *k, int device, int threads, struct err *e)
{
    if (!mem_new(out, 1, e))
        return false;
    **out = (struct queue){.k = k, .threads = threads, .device = device};
    if (device != TENSOR_HOST && queues_on[device]++ > 0)
        fake_shared++;
    return true;
}

static void fake_queue_free(struct queue *q)
{
    if (q->device != TENSOR_HOST)
        queues_on[q->device]--;
    mem_free(q);
}

struct run_backend fake_backend(int n, const char *const *pci)
{
    static struct run_device devices[FAKE_DEVICES];
    assert_true(n <= FAKE_DEVICES);
    for (int i = 0; i < n; i++) {
        devices[i] = (struct run_device){.kernels = &device_kernels, .family = "cuda", .model = "Fake 80GB",
                                         .pci = pci ? pci[i] : "", .index = i, .memory = UINT64_C(80) << 30};
        snprintf(devices[i].name, sizeof devices[i].name, "cuda:%d", i);
    }
    return (struct run_backend){.kernels = &cpu_kernels, .name = "cpu fake", .devices = devices,
                                .n_devices = (size_t)n, .no_device = "no NVIDIA driver", .expects_device = true,
                                .device_open = fake_open, .queue_new = fake_queue_new, .queue_free = fake_queue_free};
}

/* ----------------------------------------------------------------------------------------------------------- graphs */

void fake_init(struct fake *f)
{
    memset(f, 0, sizeof *f);
    f->graph.name = "fake";
    f->graph.path = "fake.yaml";
}

void fake_fini(struct fake *f)
{
    arena_free(&f->graph.arena);
    mem_free(f->graph.nodes);
}

void fake_set(struct fake *f, int node, const char *param, const char *text)
{
    struct graph_node *n = &f->graph.nodes[node];
    int p = class_param(n->class, param);
    assert_true(p >= 0);
    struct value *v = &n->params[p];
    const struct param *type = &n->class->params[p];
    v->text = arena_new(&f->graph.arena, 64 * sizeof *v->text, NULL);
    v->number = arena_new(&f->graph.arena, 64 * sizeof *v->number, NULL);
    v->n = 0;
    char *copy = arena_strdup(&f->graph.arena, text, NULL), *rest = copy;
    if (!type->many) {
        v->text[v->n++] = copy;
    } else {
        for (char *word; (word = strsep(&rest, ",")); )
            v->text[v->n++] = word + strspn(word, " ");
    }
    for (size_t i = 0; i < v->n; i++)
        v->number[i] = strtod(v->text[i], NULL);
}

int fake_add(struct fake *f, const char *name, const struct node_class *c)
{
    struct arena *a = &f->graph.arena;
    if (f->graph.n_nodes == f->capacity) {
        size_t grown = f->capacity ? 2 * f->capacity : 64;
        assert_true(mem_grow(&f->graph.nodes, f->capacity, grown, NULL));
        f->capacity = grown;
    }
    int at = (int)f->graph.n_nodes++;
    struct graph_node *n = &f->graph.nodes[at];
    *n = (struct graph_node){.name = arena_strdup(a, name, NULL), .class = c, .device = "auto"};
    size_t n_params = 0, n_ports = 0;
    while (c->params && c->params[n_params].name)
        n_params++;
    while (c->ports && c->ports[n_ports].name)
        n_ports++;
    n->params = arena_new(a, (n_params + 1) * sizeof *n->params, NULL);
    n->n_inputs = arena_new(a, (n_ports + 1) * sizeof *n->n_inputs, NULL);
    n->inputs = arena_new(a, (n_ports + 1) * sizeof *n->inputs, NULL);
    for (size_t p = 0; p < n_params; p++)
        fake_set(f, at, c->params[p].name, c->params[p].fallback);
    return at;
}

void fake_connect(struct fake *f, int node, const char *port, int from, const char *output)
{
    struct graph_node *n = &f->graph.nodes[node];
    int p = class_port(n->class, port);
    assert_true(p >= 0 && from < node);
    struct graph_input *list = arena_new(&f->graph.arena, (n->n_inputs[p] + 1) * sizeof *list, NULL);
    if (n->n_inputs[p])
        memcpy(list, n->inputs[p], n->n_inputs[p] * sizeof *list);
    list[n->n_inputs[p]++] = (struct graph_input){.node = from, .output = output};
    n->inputs[p] = list;
}

void fake_thirty(struct fake *f)
{
    char name[16];
    int at[30];
    fake_init(f);
    for (int i = 0; i < 30; i++) {
        const struct node_class *c = i < 3        ? &fake_value
                                     : i % 7 == 3 ? &fake_parts
                                     : i % 7 == 5 ? &fake_rows
                                                  : &fake_sum;
        snprintf(name, sizeof name, "n%02d", i);
        at[i] = fake_add(f, name, c);
        if (i < 3) {
            snprintf(name, sizeof name, "%d", i + 1);
            fake_set(f, i, "value", name);
        } else {
            fake_set(f, i, "ms", c == &fake_sum ? "3" : "1");
            fake_connect(f, i, "in", at[i - 1 - i % 3], i - 1 - i % 3 < 3 ? "a" : "");
            fake_connect(f, i, "in", at[i / 2], i / 2 < 3 ? "b" : "");
        }
    }
}

/* ---------------------------------------------------------------------------------------------------------- running */

void fake_directory(char out[64])
{
    const char *tmp = getenv("TMPDIR");
    snprintf(out, 64, "%.40s/scout-run-XXXXXX", tmp && strlen(tmp) < 40 ? tmp : "/tmp");
    assert_non_null(mkdtemp(out));
}

static int remove_entry(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
    (void)st;
    (void)type;
    (void)ftw;
    return remove(path);
}

void fake_remove(const char *dir)
{
    nftw(dir, remove_entry, 16, FTW_DEPTH | FTW_PHYS);
}

static struct run_options merged(const char *dir, const struct run_options *more)
{
    struct run_options o = {0};
    if (more)
        o = *more;
    o.dir = dir;
    return o;
}

static void note_states(const struct run *r)
{
    size_t at = 0;
    fake_states[0] = '\0';
    for (size_t i = 0; i < run_count(r) && at + 64 < sizeof fake_states; i++) {
        struct run_view v;
        run_view(r, i, &v);
        at += (size_t)snprintf(fake_states + at, sizeof fake_states - at, "%s%s=%s", i ? " " : "", v.name, v.state);
    }
}

struct run_summary fake_run(const struct fake *f, const char *dir, const struct run_options *more)
{
    struct run_options o = merged(dir, more);
    struct run *r = NULL;
    struct run_summary s = {0};
    struct err e = {0};
    if (!run_open(&r, &f->graph, &o, &e) || !run_execute(r, &s, &e))
        fail_msg("%s (%s:%d)", e.text, e.file, e.line);
    note_states(r);
    run_close(r);
    return s;
}

void fake_plan(const struct fake *f, const char *dir, const struct run_options *more)
{
    struct run_options o = merged(dir, more);
    struct run *r = NULL;
    struct err e = {0};
    o.plan_only = true;
    if (!run_open(&r, &f->graph, &o, &e) || !run_plan(r, &e))
        fail_msg("%s (%s:%d)", e.text, e.file, e.line);
    note_states(r);
    run_close(r);
}

struct key fake_key(const struct fake *f, const char *dir, int node)
{
    return fake_key_with(f, dir, node, NULL);
}

struct key fake_key_with(const struct fake *f, const char *dir, int node, const struct run_options *more)
{
    struct run_options o = merged(dir, more);
    struct run *r = NULL;
    struct run_view v = {0};
    struct err e = {0};
    o.plan_only = true;
    if (!run_open(&r, &f->graph, &o, &e) || !run_plan(r, &e))
        fail_msg("%s (%s:%d)", e.text, e.file, e.line);
    run_view(r, (size_t)node, &v);
    if (!v.has_key)
        fail_msg("%s has no key: %s", v.name, v.reason);
    run_close(r);
    return v.key;
}

void fake_object_path(const struct fake *f, const char *dir, int node, char *out, size_t size)
{
    char text[KEY_TEXT];
    struct key k = fake_key(f, dir, node);
    key_text(&k, text);
    snprintf(out, size, "%s/store/objects/%.2s/%s.h5", dir, text, text);
}

void fake_damage(const char *path)
{
    struct stat st;
    assert_int_equal(chmod(path, 0644), 0);
    assert_int_equal(stat(path, &st), 0);
    FILE *file = fopen(path, "r+b");
    assert_non_null(file);
    fseek(file, st.st_size - 4, SEEK_SET);
    fputs("~~~~", file);
    fclose(file);
    assert_int_equal(chmod(path, 0444), 0);
}

static char *listing[4096];
static size_t n_listing, listing_root;

static int list_entry(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
    (void)ftw;
    if (type != FTW_F)
        return 0;
    FILE *f = fopen(path, "rb");
    char *data = malloc((size_t)st->st_size + 1), text[KEY_TEXT];
    struct key k;
    if (!f || !data || fread(data, 1, (size_t)st->st_size, f) != (size_t)st->st_size ||
        !key_of_bytes(data, (size_t)st->st_size, &k, NULL))
        fail_msg("cannot read '%s'", path);
    fclose(f);
    free(data);
    if (asprintf(&listing[n_listing++], "%s %s\n", path + listing_root, key_text(&k, text)) < 0)
        fail();
    return 0;
}

static int by_text(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

char *fake_objects(const char *dir)
{
    struct str all = {0};
    char path[128];
    snprintf(path, sizeof path, "%s/store/objects", dir);
    n_listing = 0;
    listing_root = strlen(path);
    nftw(path, list_entry, 16, FTW_PHYS);
    qsort(listing, n_listing, sizeof *listing, by_text);
    for (size_t i = 0; i < n_listing; i++) {
        str_add(&all, listing[i]);
        free(listing[i]);
    }
    char *out = strdup(all.text ? all.text : "");
    str_free(&all);
    return out;
}
