/* Reading run.h5 back, for `status`, `explain` and the like: checked by its digest first, then read on the libhdf5
 * thread. Links are not followed; what they would say stands in attributes. */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "engine/store/h5.h"
#include "engine/store/io.h"
#include "engine/store/store_private.h"
#include "engine/store/sys.h"

#define STAT_PREFIX "stat."
#define MOST_READINGS 20 /* of an index that a run replaces while it is read */

struct found {
    int64_t order; /* in the graph; HDF5 lists groups by name */
    struct index_node node;
};

struct reading {
    int fd;
    struct index_run *run;
    struct found *nodes; /* mem_*, moved into the arena at the end */
    size_t n, room;
    struct arena *arena;
    struct err *e; /* of the callbacks */
};

/* A text of variable length, read into the arena; NULL on failure. */
static const char *keep_text(struct arena *a, char *text, struct err *e)
{
    const char *copy = arena_strdup(a, text ? text : "", e);
    if (text)
        H5free_memory(text);
    return copy;
}

static bool get_string(struct reading *r, hid_t group, const char *name, const char **out)
{
    char *text = NULL;
    hid_t attribute = H5Aopen(group, name, H5P_DEFAULT);
    hid_t type = attribute < 0 ? -1 : h5_type(DTYPE_U8, H5T_VARIABLE);
    bool ok = type >= 0 && H5Aread(attribute, type, &text) >= 0;
    if (!ok)
        h5_fail(r->e, "cannot read attribute '%s'", name);
    else
        ok = (*out = keep_text(r->arena, text, r->e)) != NULL;
    if (type >= 0)
        H5Tclose(type);
    if (attribute >= 0)
        H5Aclose(attribute);
    return ok;
}

static bool get_number(struct reading *r, hid_t group, const char *name, hid_t type, void *out)
{
    hid_t attribute = H5Aopen(group, name, H5P_DEFAULT);
    bool ok = attribute >= 0 && H5Aread(attribute, type, out) >= 0;
    if (!ok)
        h5_fail(r->e, "cannot read attribute '%s'", name);
    if (attribute >= 0)
        H5Aclose(attribute);
    return ok;
}

struct stats {
    struct reading *r;
    struct index_stat *list;
    size_t n, room;
};

static herr_t visit_attribute(hid_t group, const char *name, const H5A_info_t *info, void *context)
{
    (void)info;
    struct stats *s = context;
    const char *unit;
    char unit_name[80];
    if (strncmp(name, STAT_PREFIX, strlen(STAT_PREFIX)) != 0)
        return 0;
    const char *plain = name + strlen(STAT_PREFIX);
    if (s->n == s->room) {
        size_t room = s->room ? 2 * s->room : 8;
        if (!mem_grow(&s->list, s->room, room, s->r->e))
            return -1;
        s->room = room;
    }
    struct index_stat x = {.value = NAN};
    snprintf(x.name, sizeof x.name, "%.47s", plain);
    snprintf(unit_name, sizeof unit_name, "unit.%.47s", plain);
    if (!get_number(s->r, group, name, H5T_NATIVE_DOUBLE, &x.value) || !get_string(s->r, group, unit_name, &unit))
        return -1;
    snprintf(x.unit, sizeof x.unit, "%.15s", unit);
    s->list[s->n++] = x;
    return 0;
}

static bool read_stats(struct reading *r, hid_t group, struct index_node *x)
{
    struct stats s = {.r = r};
    hsize_t at = 0;
    r->e->code = ERR_NONE;
    bool ok = H5Aiterate2(group, H5_INDEX_NAME, H5_ITER_INC, &at, visit_attribute, &s) >= 0;
    if (!ok && r->e->code == ERR_NONE)
        h5_fail(r->e, "cannot list the attributes");
    struct index_stat *copy = ok ? arena_new(r->arena, (s.n + 1) * sizeof *copy, r->e) : NULL;
    if (copy && s.n)
        memcpy(copy, s.list, s.n * sizeof *copy);
    mem_free(s.list);
    x->stats = copy;
    x->n_stats = s.n;
    return copy != NULL;
}

static bool read_node(struct reading *r, hid_t group, struct found *found)
{
    struct index_node *x = &found->node;
    const char *key, *ledger;
    bool ok = get_string(r, group, "type", &x->type) && get_string(r, group, "state", &x->state) &&
              get_string(r, group, "key", &key) && get_string(r, group, "error", &x->error) &&
              get_number(r, group, "seconds", H5T_NATIVE_DOUBLE, &x->seconds) &&
              get_number(r, group, "order", H5T_NATIVE_INT64, &found->order) && read_stats(r, group, x);
    if (!ok)
        return false;
    if (!x->error[0])
        x->error = NULL;
    x->has_key = key_parse(key, &x->key);
    x->has_result = H5Lexists(group, "result", H5P_DEFAULT) > 0;
    if (H5Aexists(group, "device") > 0 && !get_string(r, group, "device", &x->device))
        return false;
    if (x->device && !x->device[0])
        x->device = NULL;
    if (H5Aexists(group, "ledger") <= 0)
        return true;
    ok = get_string(r, group, "ledger", &ledger);
    x->has_ledger = ok && key_parse(ledger, &x->ledger);
    return ok;
}

static herr_t visit_node(hid_t nodes, const char *name, const H5L_info_t *info, void *context)
{
    struct reading *r = context;
    if (info->type != H5L_TYPE_HARD)
        return 0;
    if (r->n == r->room) {
        size_t room = r->room ? 2 * r->room : 32;
        if (!mem_grow(&r->nodes, r->room, room, r->e))
            return -1;
        r->room = room;
    }
    struct found x = {.node.name = arena_strdup(r->arena, name, r->e)};
    hid_t group = x.node.name ? H5Gopen2(nodes, name, H5P_DEFAULT) : -1;
    if (x.node.name && group < 0)
        h5_fail(r->e, "cannot open '%s'", name);
    bool ok = group >= 0 && read_node(r, group, &x);
    if (group >= 0)
        H5Gclose(group);
    if (ok)
        r->nodes[r->n++] = x;
    else
        err_context(r->e, "node '%s'", name);
    return ok ? 0 : -1;
}

static int by_order(const void *a, const void *b)
{
    const struct found *x = a, *y = b;
    return (x->order > y->order) - (x->order < y->order);
}

static bool read_nodes(struct reading *r, hid_t file)
{
    hid_t nodes = H5Gopen2(file, "nodes", H5P_DEFAULT);
    if (nodes < 0)
        return h5_fail(r->e, "there is no group /nodes");
    r->e->code = ERR_NONE;
    bool ok = H5Literate(nodes, H5_INDEX_NAME, H5_ITER_INC, NULL, visit_node, r) >= 0;
    if (!ok && r->e->code == ERR_NONE)
        h5_fail(r->e, "cannot list /nodes");
    H5Gclose(nodes);
    if (ok && r->n)
        qsort(r->nodes, r->n, sizeof *r->nodes, by_order);
    return ok;
}

static bool read_graph(struct reading *r, hid_t file)
{
    char *text = NULL;
    hid_t dataset = H5Dopen2(file, "graph", H5P_DEFAULT), type = h5_type(DTYPE_U8, H5T_VARIABLE);
    bool ok = dataset >= 0 && type >= 0 && H5Dread(dataset, type, H5S_ALL, H5S_ALL, H5P_DEFAULT, &text) >= 0;
    if (!ok)
        h5_fail(r->e, "cannot read /graph");
    else
        ok = (r->run->graph_text = keep_text(r->arena, text, r->e)) != NULL;
    if (type >= 0)
        H5Tclose(type);
    if (dataset >= 0)
        H5Dclose(dataset);
    return ok;
}

static bool read_run(struct reading *r, hid_t file)
{
    struct index_run *x = r->run;
    hid_t group = H5Gopen2(file, "run", H5P_DEFAULT);
    if (group < 0)
        return h5_fail(r->e, "there is no group /run");
    bool ok = get_string(r, group, "graph_name", &x->graph_name) && get_string(r, group, "command_line",
                                                                               &x->command_line) &&
              get_string(r, group, "version", &x->version) && get_string(r, group, "machine", &x->machine) &&
              get_number(r, group, "started", H5T_NATIVE_DOUBLE, &x->started);
    H5Gclose(group);
    return ok && read_graph(r, file);
}

static bool read_file(void *context, struct err *e)
{
    struct reading *r = context;
    r->e = e;
    hid_t file = h5_open(r->fd, e);
    if (file < 0)
        return false;
    bool ok = read_run(r, file) && read_nodes(r, file);
    if (H5Fclose(file) < 0 && ok)
        ok = h5_fail(e, "cannot close");
    return ok;
}

/* *fd = RUN/run.h5, whole. */
static bool open_checked(const char *path, int *fd, struct err *e)
{
    struct header h;
    const char *why = NULL;
    *fd = sys_open(path, O_RDONLY, 0);
    if (*fd < 0 && errno == ENOENT)
        return err_set(e, ERR_INPUT, "%s: is not there; name a directory in which a graph has been run", path);
    if (*fd < 0)
        return err_errno(e, ERR_IO, "%s: cannot open", path);
    bool ok = header_read(*fd, HEADER_INDEX, NULL, &h, &why, e) && (why || header_check_length(*fd, &h, &why, e)) &&
              (why || header_check_body(*fd, &h, &why, e));
    if (ok && !why)
        return true;
    sys_close(*fd);
    if (!ok)
        return err_context(e, "%s", path);
    return err_set(e, ERR_INPUT, "%s: %s; run the graph again, which writes it anew (results are safe)", path, why);
}

/* Has the file of that name been replaced since it was opened? HDF5 opens no file that has no name any more. */
static bool is_replaced(int fd, const char *path)
{
    struct stat opened, named;
    return fstat(fd, &opened) == 0 && (stat(path, &named) != 0 || opened.st_ino != named.st_ino);
}

/* Read the file that has the name now; *again: it lost it meanwhile, and nothing was kept. */
static bool read_once(struct reading *r, const char *path, bool *again, struct err *e)
{
    if (!open_checked(path, &r->fd, e))
        return false;
    bool ok = io_call(read_file, r, e) || err_context(e, "%s", path);
    *again = !ok && is_replaced(r->fd, path);
    sys_close(r->fd);
    return ok;
}

bool index_read(const char *run_dir, struct index_run *run, struct index_node **nodes, size_t *n, struct arena *arena,
                struct err *e)
{
    char path[PATH_MAX];
    struct err own = {0}; /* the callbacks look at the code, and e may be NULL */
    struct index_run found = {0};
    struct reading r = {0};
    if (snprintf(path, sizeof path, "%s/run.h5", run_dir) >= (int)sizeof path)
        return err_set(e, ERR_INPUT, "the run directory's path is longer than %d bytes", PATH_MAX);
    bool ok = false, again = true;
    for (int i = 0; again && i < MOST_READINGS; i++) {
        mem_free(r.nodes);
        r = (struct reading){.run = &found, .arena = arena};
        own = (struct err){0};
        again = false;
        ok = read_once(&r, path, &again, &own);
    }
    struct index_node *copy = ok ? arena_new(arena, (r.n + 1) * sizeof *copy, &own) : NULL;
    for (size_t i = 0; copy && i < r.n; i++)
        copy[i] = r.nodes[i].node;
    mem_free(r.nodes);
    if (!copy) {
        if (e)
            *e = own;
        return false;
    }
    *run = found;
    *nodes = copy;
    *n = r.n;
    return true;
}
