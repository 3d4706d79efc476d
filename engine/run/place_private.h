#ifndef ENGINE_RUN_PLACE_PRIVATE_H
#define ENGINE_RUN_PLACE_PRIVATE_H
/* What place.c and place_take.c share. */
#include <hwloc.h>

#include "engine/run/place.h"

struct unit {
    hwloc_cpuset_t cpus; /* owned */
    int numa;            /* index of its first NUMA node */
    bool taken;
};

struct locality {        /* what some device is attached to: a NUMA node, a package */
    hwloc_cpuset_t cpus; /* owned, both */
    hwloc_nodeset_t numa;
    int n_devices;       /* in use here */
};

struct place {
    hwloc_topology_t topology;
    struct unit *units;
    int n, unused, n_numa;
    struct locality *localities;
    int n_localities;
    int n_anywhere;      /* devices in use of which nobody knows what they are attached to */
    uint64_t memory;
    bool is_machine;     /* false: nothing can be bound */
    char text[96];
};

struct place_set {
    hwloc_cpuset_t cpus;
    int n;
    int units[]; /* indices */
};

bool place_is_near(const struct unit *u, const struct locality *l);
/* The first locality with a device in use that the unit is near to, or -1. */
int place_device_of(const struct place *p, const struct unit *u);

#endif
