/* The topology of the machine as a list of units (cores or hardware threads) with their NUMA nodes, what lies near a
 * PCI device, and binding. The choice of sets is in place_take.c; what a node needs, and whether it may start, is the
 * scheduler's business. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "engine/base/mem.h"
#include "engine/base/str.h"
#include "engine/run/place_private.h"

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

static bool is_xml(const char *topology)
{
    size_t n = strlen(topology);
    return n > 4 && strcmp(topology + n - 4, ".xml") == 0;
}

/* PCI devices and the bridges above them are kept, to know what is near to an accelerator. The devices of the operating
 * system are not: hwloc's plug-ins would start the accelerators' own libraries to list them. */
static bool keep_pci(hwloc_topology_t topology)
{
    return hwloc_topology_set_type_filter(topology, HWLOC_OBJ_PCI_DEVICE, HWLOC_TYPE_FILTER_KEEP_IMPORTANT) == 0 &&
           hwloc_topology_set_type_filter(topology, HWLOC_OBJ_BRIDGE, HWLOC_TYPE_FILTER_KEEP_IMPORTANT) == 0;
}

static bool load_topology(struct place *p, const char *topology, struct err *e)
{
    if (hwloc_topology_init(&p->topology) != 0)
        return err_set(e, ERR_RESOURCE, "hwloc cannot start");
    p->is_machine = !topology;
    if (!keep_pci(p->topology))
        return err_set(e, ERR_BUG, "hwloc refuses to list PCI devices");
    if (topology && is_xml(topology)) {
        if (hwloc_topology_set_xml(p->topology, topology) != 0 || hwloc_topology_load(p->topology) != 0)
            return err_set(e, ERR_USAGE, "'%s' is no topology that hwloc can read: 'lstopo FILE.xml' writes one",
                           topology);
        return true;
    }
    if (topology && hwloc_topology_set_synthetic(p->topology, topology) != 0)
        return err_set(e, ERR_USAGE, "'%s' is no synthetic topology that hwloc knows", topology);
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

bool place_new(struct place **out, const char *topology, int threads, struct err *e)
{
    struct place *p;
    if (!mem_new(&p, 1, e))
        return false;
    hwloc_cpuset_t allowed = NULL;
    bool ok = false;
    if (!load_topology(p, topology, e))
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
    for (int i = 0; i < p->n_localities; i++) {
        hwloc_bitmap_free(p->localities[i].cpus);
        hwloc_bitmap_free(p->localities[i].numa);
    }
    mem_free(p->localities);
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

int place_numa_nodes(const struct place *p)
{
    return p->n_numa > 0 ? p->n_numa : 1;
}

uint64_t place_memory(const struct place *p)
{
    return p->memory;
}

const char *place_text(const struct place *p)
{
    return p->text;
}

/* ---------------------------------------------------------------------------------------------------------- devices */

bool place_is_near(const struct unit *u, const struct locality *l)
{
    return hwloc_bitmap_intersects(u->cpus, l->cpus);
}

static int units_near(const struct place *p, const struct locality *l)
{
    int n = 0;
    for (int i = 0; i < p->n; i++)
        n += place_is_near(&p->units[i], l);
    return n;
}

/* The locality with those CPUs, new or known. */
static bool add_locality(struct place *p, hwloc_obj_t o, int *out, struct err *e)
{
    for (int i = 0; i < p->n_localities; i++)
        if (hwloc_bitmap_isequal(p->localities[i].cpus, o->cpuset)) {
            *out = i;
            return true;
        }
    if (!mem_grow(&p->localities, (size_t)p->n_localities, (size_t)p->n_localities + 1, e))
        return false;
    struct locality *l = &p->localities[p->n_localities];
    *l = (struct locality){.cpus = hwloc_bitmap_dup(o->cpuset), .numa = hwloc_bitmap_dup(o->nodeset)};
    if (!l->cpus || !l->numa) {
        hwloc_bitmap_free(l->cpus);
        hwloc_bitmap_free(l->numa);
        return err_set(e, ERR_RESOURCE, "out of memory for the machine's topology");
    }
    if (units_near(p, l) == 0) { /* the process may not use those cores */
        hwloc_bitmap_free(l->cpus);
        hwloc_bitmap_free(l->numa);
        *out = PLACE_ANYWHERE;
        return true;
    }
    *out = p->n_localities++;
    return true;
}

bool place_device_near(struct place *p, const char *pci, int *near, struct err *e)
{
    hwloc_obj_t device = pci[0] ? hwloc_get_pcidev_by_busidstring(p->topology, pci) : NULL;
    hwloc_obj_t o = device ? hwloc_get_non_io_ancestor_obj(p->topology, device) : NULL;
    bool is_everywhere = o && p->n_numa > 1 && hwloc_bitmap_weight(o->nodeset) == p->n_numa;
    if (o && o->cpuset && o->nodeset && !is_everywhere)
        return add_locality(p, o, near, e);
    *near = PLACE_ANYWHERE;
    return true;
}

void place_use_device(struct place *p, int near)
{
    if (near == PLACE_ANYWHERE)
        p->n_anywhere++;
    else
        p->localities[near].n_devices++;
}

int place_device_share(const struct place *p, int near)
{
    const struct locality *l = near == PLACE_ANYWHERE ? NULL : &p->localities[near];
    int devices = p->n_anywhere, units = l ? units_near(p, l) : p->n;
    bool is_any_away = false;
    for (int i = 0; i < p->n_localities; i++)
        if (!l || hwloc_bitmap_intersects(l->cpus, p->localities[i].cpus))
            devices += p->localities[i].n_devices;
    for (int i = 0; i < p->n && !is_any_away; i++)
        is_any_away = l && place_device_of(p, &p->units[i]) < 0;
    devices += !is_any_away; /* a share for the nodes that compute on the CPU */
    return devices > 0 && units / devices > 1 ? units / devices : 1;
}

int place_device_of(const struct place *p, const struct unit *u)
{
    for (int i = 0; i < p->n_localities; i++)
        if (p->localities[i].n_devices > 0 && place_is_near(u, &p->localities[i]))
            return i;
    return -1;
}

void place_near_lists(const struct place *p, int near, char numa[PLACE_LIST], char cores[PLACE_LIST])
{
    numa[0] = cores[0] = '\0';
    hwloc_bitmap_t first = near == PLACE_ANYWHERE ? NULL : hwloc_bitmap_alloc();
    if (!first)
        return;
    for (int i = 0; i < p->n; i++)
        if (place_is_near(&p->units[i], &p->localities[near]))
            hwloc_bitmap_set(first, (unsigned)hwloc_bitmap_first(p->units[i].cpus));
    hwloc_bitmap_list_snprintf(cores, PLACE_LIST, first);
    hwloc_bitmap_list_snprintf(numa, PLACE_LIST, p->localities[near].numa);
    hwloc_bitmap_free(first);
}

const char *place_near_text(const struct place *p, int near, char *out, size_t size)
{
    char numa[PLACE_LIST], cores[PLACE_LIST];
    place_near_lists(p, near, numa, cores);
    bool is_one = strspn(numa, "0123456789") == strlen(numa);
    if (numa[0])
        snprintf(out, size, "near NUMA node%s %s (cores %s)", is_one ? "" : "s", numa, cores);
    else
        snprintf(out, size, "near no NUMA node that is known");
    return out;
}

static int by_address(const void *a, const void *b)
{
    return strcmp(((const struct place_pci *)a)->pci, ((const struct place_pci *)b)->pci);
}

size_t place_displays(const struct place *p, unsigned vendor, struct place_pci *out, size_t most)
{
    enum { PCI_DISPLAY = 0x03 }; /* the base class of VGA and of 3D controllers */
    size_t n = 0;
    for (hwloc_obj_t o = NULL; (o = hwloc_get_next_pcidev(p->topology, o)) && n < most;) {
        const struct hwloc_pcidev_attr_s *a = &o->attr->pcidev;
        if (a->vendor_id != vendor || a->class_id >> 8 != PCI_DISPLAY)
            continue;
        const char *model = hwloc_obj_get_info_by_name(o, "PCIDevice");
        snprintf(out[n].pci, sizeof out[n].pci, "%04x:%02x:%02x.%x", (unsigned)a->domain, a->bus, a->dev, a->func);
        snprintf(out[n].model, sizeof out[n].model, "%s", model ? model : "unknown model");
        n++;
    }
    qsort(out, n, sizeof *out, by_address);
    return n;
}

/* ---------------------------------------------------------------------------------------------------------- binding */

/* Memory that the thread touches first comes from the NUMA node of its cores, and from another when that one is full.
 * Cores of several nodes: from the node of the core that touches it. */
static void prefer_memory(const struct place *p, hwloc_const_cpuset_t cpus)
{
    hwloc_nodeset_t numa = hwloc_bitmap_alloc();
    if (!numa)
        return;
    hwloc_cpuset_to_nodeset(p->topology, cpus, numa);
    hwloc_membind_policy_t policy = hwloc_bitmap_weight(numa) == 1 ? HWLOC_MEMBIND_BIND : HWLOC_MEMBIND_FIRSTTOUCH;
    (void)!hwloc_set_membind(p->topology, numa, policy, HWLOC_MEMBIND_THREAD | HWLOC_MEMBIND_BYNODESET);
    hwloc_bitmap_free(numa);
}

static void bind_thread(const struct place *p, hwloc_const_cpuset_t cpus)
{
    if (!p->is_machine)
        return;
    (void)!hwloc_set_cpubind(p->topology, cpus, HWLOC_CPUBIND_THREAD);
    prefer_memory(p, cpus);
}

void place_bind(const struct place *p, const struct place_set *s)
{
    bind_thread(p, s->cpus);
}

void place_bind_near(const struct place *p, int near)
{
    hwloc_cpuset_t cpus = near == PLACE_ANYWHERE ? NULL : hwloc_bitmap_alloc();
    if (!cpus)
        return;
    for (int i = 0; i < p->n; i++)
        if (place_is_near(&p->units[i], &p->localities[near]))
            hwloc_bitmap_or(cpus, cpus, p->units[i].cpus);
    bind_thread(p, cpus);
    hwloc_bitmap_free(cpus);
}

const char *place_set_text(const struct place_set *s, char *out, size_t size)
{
    hwloc_bitmap_list_snprintf(out, size, s->cpus);
    return out;
}
