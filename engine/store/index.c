/* Writing run.h5, the one tree for outside tools: what the run is, its nodes and their state, and links to results and
 * live ledgers. It is derived from the store and the run, so it is written anew each time and renamed over the old one;
 * readers that hold the old one keep it. Texts are of variable length here, which Python sees as str. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "engine/store/h5.h"
#include "engine/store/io.h"
#include "engine/store/store_private.h"
#include "engine/store/sys.h"

#define PATH_ROOM (PATH_MAX + 128)

struct writing {
    const struct store *store;
    const char *path;          /* of the new file */
    const char *relative;      /* from RUN to STORE */
    const struct index_run *run;
    const struct index_node *nodes;
    size_t n;
};

/* The way from directory `from` to `to`, both absolute and without links: "../store". */
static bool relative_path(const char *from, const char *to, char out[PATH_ROOM], struct err *e)
{
    size_t common = 0;
    for (size_t i = 0;; i++) {
        bool from_ends = from[i] == '/' || !from[i], to_ends = to[i] == '/' || !to[i];
        if (from_ends && to_ends)
            common = i;
        if (from[i] != to[i] || !from[i])
            break;
    }
    size_t n = 0;
    out[0] = '\0';
    for (const char *p = from + common; *p; p++)
        if (*p == '/' && p[1] && n + 4 < PATH_ROOM)
            n += (size_t)snprintf(out + n, PATH_ROOM - n, "../");
    const char *rest = to + common;
    while (*rest == '/')
        rest++;
    n += (size_t)snprintf(out + n, PATH_ROOM - n, "%s", *rest ? rest : ".");
    return n < PATH_MAX || err_set(e, ERR_INPUT, "the way from '%s' to '%s' is longer than %d bytes", from, to,
                                   PATH_MAX);
}

static hid_t make_group(hid_t parent, const char *name, struct err *e)
{
    hid_t group = H5Gcreate2(parent, name, H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT);
    if (group < 0)
        h5_fail(e, "cannot make the group '%s'", name);
    return group;
}

static bool make_link(hid_t group, const char *name, const char *target, struct err *e)
{
    return H5Lcreate_external(target, "/", group, name, H5P_DEFAULT, H5P_DEFAULT) >= 0 ||
           h5_fail(e, "cannot make the link '%s'", name);
}

static bool write_stat(hid_t group, const struct index_stat *s, struct err *e)
{
    char name[80];
    snprintf(name, sizeof name, "stat.%.47s", s->name);
    if (!h5_set_double(group, name, s->value, e))
        return false;
    snprintf(name, sizeof name, "unit.%.47s", s->name);
    return h5_set_string(group, name, s->unit, e);
}

static bool write_node(const struct writing *w, hid_t nodes, size_t order, struct err *e)
{
    const struct index_node *x = &w->nodes[order];
    char text[KEY_TEXT], target[PATH_ROOM + 128];
    hid_t group = make_group(nodes, x->name, e);
    if (group < 0)
        return false;
    bool ok = h5_set_string(group, "type", x->type, e) && h5_set_string(group, "state", x->state, e) &&
              h5_set_string(group, "key", x->has_key ? key_text(&x->key, text) : "", e) &&
              h5_set_double(group, "seconds", x->seconds, e) &&
              h5_set_string(group, "error", x->error ? x->error : "", e) &&
              h5_set_string(group, "device", x->device ? x->device : "", e) &&
              h5_set_int(group, "order", (int64_t)order, e);
    for (size_t i = 0; ok && i < x->n_stats; i++)
        ok = write_stat(group, &x->stats[i], e);
    if (ok && x->has_ledger)
        ok = h5_set_string(group, "ledger", key_text(&x->ledger, text), e);
    if (ok && x->has_result && x->has_key) {
        key_text(&x->key, text);
        snprintf(target, sizeof target, "%s/objects/%.2s/%s.h5", w->relative, text, text);
        ok = make_link(group, "result", target, e);
    }
    H5Gclose(group);
    return ok;
}

/* /live/<name>: a link per segment that is there. A number may be missing: damaged segments are set aside. */
static bool write_live(const struct writing *w, hid_t live, const struct index_node *x, struct err *e)
{
    char text[KEY_TEXT], name[24], target[PATH_ROOM + 128];
    uint32_t *numbers;
    size_t n;
    if (!ledger_list(w->store, &x->ledger, &numbers, &n, e))
        return false;
    hid_t group = make_group(live, x->name, e);
    bool ok = group >= 0;
    key_text(&x->ledger, text);
    for (size_t i = 0; ok && i < n; i++) {
        snprintf(name, sizeof name, "%04" PRIu32, numbers[i]);
        snprintf(target, sizeof target, "%s/ledger/%s/%s.h5", w->relative, text, name);
        ok = make_link(group, name, target, e);
    }
    if (group >= 0)
        H5Gclose(group);
    mem_free(numbers);
    return ok;
}

static bool write_nodes(const struct writing *w, hid_t file, struct err *e)
{
    hid_t nodes = make_group(file, "nodes", e), live = nodes < 0 ? -1 : make_group(file, "live", e);
    bool ok = live >= 0;
    for (size_t i = 0; ok && i < w->n; i++) {
        ok = write_node(w, nodes, i, e) && (!w->nodes[i].has_ledger || write_live(w, live, &w->nodes[i], e));
        if (!ok)
            err_context(e, "node '%s'", w->nodes[i].name);
    }
    if (live >= 0)
        H5Gclose(live);
    if (nodes >= 0)
        H5Gclose(nodes);
    return ok;
}

/* /graph: the text as one string; as long as it likes, so it is a dataset. */
static bool write_graph(hid_t file, const char *graph_text, struct err *e)
{
    hid_t type = h5_type(DTYPE_U8, H5T_VARIABLE), space = H5Screate(H5S_SCALAR), dataset = -1;
    if (type >= 0 && space >= 0)
        dataset = H5Dcreate2(file, "graph", type, space, H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT);
    bool ok = dataset >= 0 && H5Dwrite(dataset, type, H5S_ALL, H5S_ALL, H5P_DEFAULT, &graph_text) >= 0;
    if (dataset >= 0 && H5Dclose(dataset) < 0)
        ok = false;
    if (!ok)
        h5_fail(e, "cannot write the graph");
    if (space >= 0)
        H5Sclose(space);
    if (type >= 0)
        H5Tclose(type);
    return ok;
}

static const char *or_empty(const char *text) { return text ? text : ""; }

static bool write_run(const struct writing *w, hid_t file, struct err *e)
{
    const struct index_run *r = w->run;
    hid_t group = make_group(file, "run", e);
    if (group < 0)
        return false;
    bool ok = h5_set_string(group, "graph_name", or_empty(r->graph_name), e) &&
              h5_set_string(group, "command_line", or_empty(r->command_line), e) &&
              h5_set_string(group, "version", or_empty(r->version), e) &&
              h5_set_string(group, "machine", or_empty(r->machine), e) &&
              h5_set_string(group, "store", w->relative, e) && h5_set_double(group, "started", r->started, e);
    H5Gclose(group);
    return ok && write_graph(file, or_empty(r->graph_text), e);
}

static bool write_file(void *context, struct err *e)
{
    const struct writing *w = context;
    hid_t file = h5_create(w->path, true, e);
    if (file < 0)
        return false;
    bool ok = write_run(w, file, e) && write_nodes(w, file, e);
    if (ok && H5Fflush(file, H5F_SCOPE_GLOBAL) < 0)
        ok = h5_fail(e, "cannot flush");
    if (H5Fclose(file) < 0 && ok)
        ok = h5_fail(e, "cannot close");
    return ok;
}

/* Put the header in front, so that index_read can tell a damaged file before libhdf5 sees it. */
static bool seal(const char *path, struct err *e)
{
    struct header h = {0};
    struct key digest = {{0}}, none = {{0}};
    const char *why = NULL;
    struct stat st;
    int fd = sys_open(path, O_RDWR | O_NOFOLLOW, 0);
    if (fd < 0)
        return err_errno(e, ERR_IO, "%s: cannot open", path);
    bool ok = fstat(fd, &st) == 0 || err_errno(e, ERR_IO, "%s: cannot look at it", path);
    h.body_bytes = ok ? (uint64_t)st.st_size - HEADER_BYTES : 0;
    ok = ok && header_digest(fd, &h, &digest, &why, e);
    if (ok && why)
        ok = err_set(e, ERR_IO, "%s: %s", path, why);
    header_seal(&h, HEADER_INDEX, &none, h.body_bytes, &digest);
    if (ok && (!sys_write_at(fd, &h, sizeof h, 0) || sys_fchmod(fd, 0444) < 0 || sys_fsync(fd) < 0))
        ok = err_errno(e, ERR_IO, "%s: cannot write", path);
    if (sys_close(fd) < 0 && ok)
        ok = err_errno(e, ERR_IO, "%s: cannot close", path);
    return ok;
}

bool index_write(struct store *s, const char *run_dir, const struct index_run *run, const struct index_node *nodes,
                 size_t n, struct err *e)
{
    char absolute[PATH_MAX], relative[PATH_ROOM], temporary[PATH_ROOM], final[PATH_ROOM];
    if (!realpath(run_dir, absolute))
        return err_errno(e, ERR_IO, "%s: cannot find the run directory", run_dir);
    if (!relative_path(absolute, s->path, relative, e))
        return false;
    snprintf(temporary, sizeof temporary, "%s/run.h5.tmp", absolute);
    snprintf(final, sizeof final, "%s/run.h5", absolute);
    if (sys_unlink(temporary) < 0 && errno != ENOENT)
        return err_errno(e, ERR_IO, "%s: cannot remove what an earlier run left", temporary);
    struct writing w = {s, temporary, relative, run, nodes, n};
    bool ok = io_call(write_file, &w, e) && seal(temporary, e);
    if (ok && sys_rename(temporary, final) < 0)
        ok = err_errno(e, ERR_IO, "%s: cannot replace", final);
    if (!ok) {
        unlink(temporary);
        err_context(e, "the index is not up to date (results are safe)");
    }
    return ok;
}
