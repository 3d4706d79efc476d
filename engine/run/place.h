#ifndef ENGINE_RUN_PLACE_H
#define ENGINE_RUN_PLACE_H
/* The machine as hwloc sees it, cut into units of work: disjoint sets of cores for nodes that run side by side, and
 * which of them are near an accelerator. A unit is a core (with its hardware threads), or one hardware thread when more
 * were asked for than there are cores. Not thread-safe: the scheduler calls it under its lock, the place_bind functions
 * excepted. */
#include <stdint.h>

#include "engine/base/err.h"

struct place;
struct place_set; /* units taken from a place */

#define PLACE_ANYWHERE (-1)
#define PLACE_LIST 192

/* `topology`: an hwloc synthetic description ("numa:2 core:4 pu:2"), a file of hwloc's ending in .xml, NULL for this
 * machine, less what the process may not use (affinity, cgroup). `threads`: units to use at most, 0 for all cores. */
bool place_new(struct place **out, const char *topology, int threads, struct err *e) ERR_CHECK;
void place_free(struct place *p); /* NULL is fine; all sets must have been given back */

int place_units(const struct place *p);      /* at least 1 */
int place_unused(const struct place *p);     /* units free now */
int place_numa_nodes(const struct place *p); /* at least 1 */
uint64_t place_memory(const struct place *p); /* bytes: the machine's, or the cgroup's limit if lower; 0 if unknown */
/* "2 cores, 1 NUMA node, 7.8 GiB". Borrowed. */
const char *place_text(const struct place *p);

/* *near: what the PCI device at "0000:1b:00.0" is attached to, for the calls below; PLACE_ANYWHERE when that is not
 * known ("", no such device), or no part of the machine is nearer than another, or none that may be used. */
bool place_device_near(struct place *p, const char *pci, int *near, struct err *e) ERR_CHECK;
/* A device there is in use: what drives no device keeps away from the units near it. Once per device. */
void place_use_device(struct place *p, int near);
/* Units for the work that drives one device there: those near it, divided evenly by the devices in use that share them;
 * where all units are near some device, one share more is left for other work. At least 1. */
int place_device_share(const struct place *p, int near);
/* Its NUMA nodes "0" and its cores "0-55", by the first hardware thread of each; both "" with PLACE_ANYWHERE. */
void place_near_lists(const struct place *p, int near, char numa[PLACE_LIST], char cores[PLACE_LIST]);
/* "near NUMA node 0 (cores 0-55)", into `out`; returns `out`. */
const char *place_near_text(const struct place *p, int near, char *out, size_t size);

/* PCI devices that display or compute (class 03), of one vendor: for the map of a machine without its drivers. */
struct place_pci {
    char pci[20], model[108];
};
/* Fills `out` with at most `most`, by address, and returns how many. */
size_t place_displays(const struct place *p, unsigned vendor, struct place_pci *out, size_t most);

/* Take n free units (1 <= n <= place_unused) for work that drives the devices attached to near[0..n_near), or none:
 * near those devices first, on one NUMA node when one has enough, preferring the fullest such node. */
bool place_take(struct place *p, int n, const int *near, int n_near, struct place_set **out, struct err *e) ERR_CHECK;
/* Give them back and free the set. NULL is fine. */
void place_give(struct place *p, struct place_set *s);
/* Bind the calling thread (and the threads it will make) to the set, and let it prefer memory of the set's NUMA node. A
 * machine that refuses is no error. */
void place_bind(const struct place *p, const struct place_set *s);
/* The same, to all units near a device; nothing with PLACE_ANYWHERE. */
void place_bind_near(const struct place *p, int near);
/* "0-3,8": the hardware threads of the set, into `out`; returns `out`. */
const char *place_set_text(const struct place_set *s, char *out, size_t size);

#endif
