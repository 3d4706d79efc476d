#ifndef ENGINE_RUN_PLACE_H
#define ENGINE_RUN_PLACE_H
/* The machine as hwloc sees it, cut into units of work: disjoint sets of cores for nodes that run side by side. A unit
 * is a core (with its hardware threads), or one hardware thread when more were asked for than there are cores. Not
 * thread-safe: the scheduler calls it under its lock, place_bind excepted. */
#include <stdint.h>

#include "engine/base/err.h"

struct place;
struct place_set; /* units taken from a place */

/* `synthetic`: an hwloc synthetic description ("numa:2 core:4 pu:2"), NULL for this machine, less what the process may
 * not use (affinity, cgroup). `threads`: units to use at most, 0 for all cores. */
bool place_new(struct place **out, const char *synthetic, int threads, struct err *e) ERR_CHECK;
void place_free(struct place *p); /* NULL is fine; all sets must have been given back */

int place_units(const struct place *p);      /* at least 1 */
int place_unused(const struct place *p);     /* units free now */
uint64_t place_memory(const struct place *p); /* bytes: the machine's, or the cgroup's limit if lower; 0 if unknown */
/* "2 cores, 1 NUMA node, 7.8 GiB". Borrowed. */
const char *place_text(const struct place *p);

/* Take n free units (1 <= n <= place_unused), on one NUMA node when one has enough, preferring the fullest such
 * node. */
bool place_take(struct place *p, int n, struct place_set **out, struct err *e) ERR_CHECK;
/* Give them back and free the set. NULL is fine. */
void place_give(struct place *p, struct place_set *s);
/* Bind the calling thread (and the threads it will make) to the set. A machine that refuses is no error. */
void place_bind(const struct place *p, const struct place_set *s);
/* "0-3,8": the hardware threads of the set, into `out`; returns `out`. */
const char *place_set_text(const struct place_set *s, char *out, size_t size);

#endif
