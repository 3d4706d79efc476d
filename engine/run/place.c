/* The topology of the machine as a list of units (cores or hardware threads) with their NUMA nodes, and the choice of
 * disjoint sets of them. What a node needs, and whether it may start, is the scheduler's business. */
#include "engine/run/place.h"

#include <hwloc.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "engine/base/mem.h"
#include "engine/base/str.h"

struct unit {
    hwloc_cpuset_t cpus; /* owned */
    int numa;            /* index of its first NUMA node */
    bool taken;
};

struct place {
    hwloc_topology_t topology;
    struct unit *units;
    int n, unused, n_numa;
    uint64_t memory;
    bool is_machine; /* false: synthetic, nothing can be bound */
    char text[96];
};

struct place_set {
    hwloc_cpuset_t cpus;
    int n;
    int units[]; /* indices */
};

/* The lowest limit in `file` of the control group `group` under `root` and of the groups around it. */
static uint64_t group_limit(const char *root, const char *group, const char *file)
{
    uint64_t least = UINT64_MAX;
    size_t n = strlen(group);
    for (;;) {
        char path[1024];
        unsigned long long limit;
        while (n > 0 && group[n - 1] == '/')
            n--;
        snprintf(path, sizeof path, "%s%.*s/%s", root, (int)n, group, file);
        FILE *f = fopen(path, "re");
        if (f && fscanf(f, "%llu", &limit) == 1 && limit < least) /* "max" is no number */
            least = limit;
        if (f)
            fclose(f);
        if (n == 0)
            return least;
        while (n > 0 && group[n - 1] != '/')
            n--;
    }
}

/* What control groups, of either version, let this process have (cgroups(7)); UINT64_MAX without a limit. A container
 * may show the path that its group has outside, so the root is asked in any case. */
static uint64_t cgroup_memory(void)
{
    static const char v1[] = "/sys/fs/cgroup/memory", v2[] = "/sys/fs/cgroup";
    static const char v1_file[] = "memory.limit_in_bytes", v2_file[] = "memory.max";
    uint64_t least = group_limit(v2, "", v2_file), limit = group_limit(v1, "", v1_file);
    char line[768];
    FILE *f = fopen("/proc/self/cgroup", "re");
    least = limit < least ? limit : least;
    while (f && fgets(line, sizeof line, f)) { /* hierarchy:controllers:path */
        line[strcspn(line, "\n")] = '\0';
        char *controllers = strchr(line, ':'), *path = controllers ? strchr(++controllers, ':') : NULL;
        if (!path)
            continue;
        *path++ = '\0';
        if (controllers[0] == '\0')
            limit = group_limit(v2, path, v2_file);
        else if (strcmp(controllers, "memory") == 0)
            limit = group_limit(v1, path, v1_file);
        least = limit < least ? limit : least;
    }
    if (f)
        fclose(f);
    return least;
}

/* Bytes of this machine that the process may use. Where every NUMA node is allowed, the kernel's own total counts: the
 * nodes' files leave out memory that was plugged in later. */
static uint64_t machine_memory(hwloc_topology_t topology)
{
    uint64_t bytes = hwloc_get_root_obj(topology)->total_memory, limit = cgroup_memory();
    long pages = sysconf(_SC_PHYS_PAGES), page = sysconf(_SC_PAGESIZE);
    if (hwloc_bitmap_isequal(hwloc_topology_get_topology_nodeset(topology),
                             hwloc_topology_get_complete_nodeset(topology)) &&
        pages > 0 && page > 0 && (uint64_t)pages * (uint64_t)page > bytes)
        bytes = (uint64_t)pages * (uint64_t)page;
    return limit < bytes ? limit : bytes;
}

/* The CPUs that may be used: those of the topology that the process is not kept from by its affinity. */
static hwloc_cpuset_t allowed_cpus(const struct place *p)
{
    hwloc_cpuset_t set = hwloc_bitmap_dup(hwloc_topology_get_allowed_cpuset(p->topology));
    if (!set || !p->is_machine)
        return set;
    hwloc_cpuset_t bound = hwloc_bitmap_alloc();
    if (bound && hwloc_get_cpubind(p->topology, bound, HWLOC_CPUBIND_PROCESS) == 0 &&
        hwloc_bitmap_intersects(bound, set))
        hwloc_bitmap_and(set, set, bound);
    hwloc_bitmap_free(bound);
    return set;
}

/* Make a unit of every object of `type` that has allowed CPUs. */
static bool collect_units(struct place *p, hwloc_obj_type_t type, hwloc_const_cpuset_t allowed, struct err *e)
{
    int n = hwloc_get_nbobjs_by_type(p->topology, type);
    if (n <= 0)
        return err_set(e, ERR_RESOURCE, "the machine shows no processor that this process may use");
    if (!mem_new(&p->units, (size_t)n, e))
        return false;
    for (int i = 0; i < n; i++) {
        hwloc_obj_t o = hwloc_get_obj_by_type(p->topology, type, (unsigned)i);
        if (!hwloc_bitmap_intersects(o->cpuset, allowed))
            continue;
        struct unit *u = &p->units[p->n];
        u->cpus = hwloc_bitmap_dup(o->cpuset);
        if (!u->cpus)
            return err_set(e, ERR_RESOURCE, "out of memory for the topology of %d units", n);
        hwloc_bitmap_and(u->cpus, u->cpus, allowed);
        int first = o->nodeset ? hwloc_bitmap_first(o->nodeset) : 0;
        u->numa = first < 0 ? 0 : first;
        p->n++;
    }
    return true;
}

static void drop_units(struct place *p)
{
    for (int i = 0; i < p->n; i++)
        hwloc_bitmap_free(p->units[i].cpus);
    mem_free(p->units);
    p->units = NULL;
    p->n = 0;
}

static bool load_topology(struct place *p, const char *synthetic, struct err *e)
{
    if (hwloc_topology_init(&p->topology) != 0)
        return err_set(e, ERR_RESOURCE, "hwloc cannot start");
    p->is_machine = !synthetic;
    if (synthetic && hwloc_topology_set_synthetic(p->topology, synthetic) != 0)
        return err_set(e, ERR_USAGE, "'%s' is no synthetic topology that hwloc knows", synthetic);
    if (hwloc_topology_load(p->topology) != 0)
        return err_set(e, ERR_RESOURCE, "hwloc cannot read the machine's topology");
    return true;
}

static void describe(struct place *p, bool is_core)
{
    p->memory = p->is_machine ? machine_memory(p->topology) : hwloc_get_root_obj(p->topology)->total_memory;
    p->n_numa = hwloc_get_nbobjs_by_type(p->topology, HWLOC_OBJ_NUMANODE);
    char size[16];
    snprintf(p->text, sizeof p->text, "%d %s%s, %d NUMA node%s, %s", p->n, is_core ? "core" : "hardware thread",
             p->n == 1 ? "" : "s", p->n_numa, p->n_numa == 1 ? "" : "s", str_size(p->memory, size));
}

bool place_new(struct place **out, const char *synthetic, int threads, struct err *e)
{
    struct place *p;
    if (!mem_new(&p, 1, e))
        return false;
    hwloc_cpuset_t allowed = NULL;
    bool ok = false;
    if (!load_topology(p, synthetic, e))
        goto out;
    allowed = allowed_cpus(p);
    if (!allowed) {
        err_set(e, ERR_RESOURCE, "out of memory for the machine's topology");
        goto out;
    }
    bool is_core = hwloc_get_nbobjs_by_type(p->topology, HWLOC_OBJ_CORE) > 0;
    if (!collect_units(p, is_core ? HWLOC_OBJ_CORE : HWLOC_OBJ_PU, allowed, e))
        goto out;
    if (is_core && threads > p->n) {
        drop_units(p);
        is_core = false;
        if (!collect_units(p, HWLOC_OBJ_PU, allowed, e))
            goto out;
    }
    if (p->n == 0) {
        err_set(e, ERR_RESOURCE, "the machine shows no processor that this process may use");
        goto out;
    }
    while (threads > 0 && p->n > threads)
        hwloc_bitmap_free(p->units[--p->n].cpus);
    p->unused = p->n;
    describe(p, is_core);
    ok = true;
out:
    hwloc_bitmap_free(allowed);
    if (ok)
        *out = p;
    else
        place_free(p);
    return ok;
}

void place_free(struct place *p)
{
    if (!p)
        return;
    drop_units(p);
    if (p->topology)
        hwloc_topology_destroy(p->topology);
    mem_free(p);
}

int place_units(const struct place *p)
{
    return p->n;
}

int place_unused(const struct place *p)
{
    return p->unused;
}

uint64_t place_memory(const struct place *p)
{
    return p->memory;
}

const char *place_text(const struct place *p)
{
    return p->text;
}

static int unused_on(const struct place *p, int numa)
{
    int n = 0;
    for (int i = 0; i < p->n; i++)
        n += p->units[i].numa == numa && !p->units[i].taken;
    return n;
}

/* The NUMA node with the fewest free units that still has n, or -1: wide holes are left for wide nodes. */
static int choose_numa(const struct place *p, int n)
{
    int best = -1, best_unused = 0;
    for (int i = 0; i < p->n; i++) {
        int numa = p->units[i].numa, unused = unused_on(p, numa);
        if (unused >= n && (best < 0 || unused < best_unused)) {
            best = numa;
            best_unused = unused;
        }
    }
    return best;
}

bool place_take(struct place *p, int n, struct place_set **out, struct err *e)
{
    if (n < 1 || n > p->unused)
        return err_set(e, ERR_BUG, "%d of %d free units asked for", n, p->unused);
    struct place_set *s;
    void *block;
    if (!mem_new_bytes(&block, sizeof *s + (size_t)n * sizeof *s->units, 1, e))
        return false;
    s = block;
    s->cpus = hwloc_bitmap_alloc();
    if (!s->cpus) {
        mem_free(s);
        return err_set(e, ERR_RESOURCE, "out of memory for a set of %d cores", n);
    }
    int numa = choose_numa(p, n);
    for (int i = 0; i < p->n && s->n < n; i++) {
        struct unit *u = &p->units[i];
        if (u->taken || (numa >= 0 && u->numa != numa))
            continue;
        u->taken = true;
        s->units[s->n++] = i;
        hwloc_bitmap_or(s->cpus, s->cpus, u->cpus);
    }
    p->unused -= n;
    *out = s;
    return true;
}

void place_give(struct place *p, struct place_set *s)
{
    if (!s)
        return;
    for (int i = 0; i < s->n; i++)
        p->units[s->units[i]].taken = false;
    p->unused += s->n;
    hwloc_bitmap_free(s->cpus);
    mem_free(s);
}

void place_bind(const struct place *p, const struct place_set *s)
{
    if (p->is_machine)
        (void)!hwloc_set_cpubind(p->topology, s->cpus, HWLOC_CPUBIND_THREAD);
}

const char *place_set_text(const struct place_set *s, char *out, size_t size)
{
    hwloc_bitmap_list_snprintf(out, size, s->cpus);
    return out;
}
