/* The choice of units. What drives a device gets units near it, then units near no device, then those near others; what
 * drives none keeps away from devices while it can. Within such a tier a set stays on one NUMA node when one has
 * room. */
#include "engine/base/mem.h"
#include "engine/run/place_private.h"

enum { NEAR, AWAY, NEAR_OTHERS, TIERS };

static int tier_of(const struct place *p, const struct unit *u, int near)
{
    if (near != PLACE_ANYWHERE && place_is_near(u, &p->localities[near]))
        return NEAR;
    return place_device_of(p, u) < 0 ? AWAY : NEAR_OTHERS;
}

static bool is_free(const struct place *p, int i, int near, int tier)
{
    return !p->units[i].taken && tier_of(p, &p->units[i], near) == tier;
}

/* Free units of the tier, on one NUMA node, or on all (-1). */
static int count_free(const struct place *p, int near, int tier, int numa)
{
    int n = 0;
    for (int i = 0; i < p->n; i++)
        n += (numa < 0 || p->units[i].numa == numa) && is_free(p, i, near, tier);
    return n;
}

/* The NUMA node with the fewest free units of the tier that still has n, or -1: wide holes are left for wide nodes. */
static int choose_numa(const struct place *p, int n, int near, int tier)
{
    int best = -1, best_free = 0;
    for (int i = 0; i < p->n; i++) {
        int numa = p->units[i].numa;
        if (i > 0 && numa == p->units[i - 1].numa)
            continue;
        int here = count_free(p, near, tier, numa);
        if (here >= n && (best < 0 || here < best_free)) {
            best = numa;
            best_free = here;
        }
    }
    return best;
}

static void take_unit(struct place *p, int i, struct place_set *s)
{
    p->units[i].taken = true;
    p->unused--;
    s->units[s->n++] = i;
    hwloc_bitmap_or(s->cpus, s->cpus, p->units[i].cpus);
}

/* The free unit near the devices that have the most free units left each: what is left over is then fair to all. */
static int roomiest(const struct place *p, int near, int tier)
{
    int best = -1;
    double best_room = 0;
    for (int i = 0, last = -1; i < p->n; i++) {
        int at = place_device_of(p, &p->units[i]);
        if (!is_free(p, i, near, tier) || at == last)
            continue; /* the units of a locality follow each other: its first free one stands for all */
        last = at;
        double room = 0;
        for (int k = 0; k < p->n; k++)
            room += !p->units[k].taken && place_device_of(p, &p->units[k]) == at;
        room /= p->localities[at].n_devices;
        if (room > best_room) {
            best = i;
            best_room = room;
        }
    }
    return best;
}

static void take_from(struct place *p, int n, int near, int tier, struct place_set *s)
{
    int there = count_free(p, near, tier, -1);
    bool is_for_others = tier == NEAR_OTHERS, is_rest = s->n > 0;
    n = n < there ? n : there;
    int numa = is_for_others && is_rest ? -1 : choose_numa(p, n, near, tier);
    if (is_for_others && numa < 0) { /* a little from near each device, rather than all from near one */
        for (; n > 0; n--)
            take_unit(p, roomiest(p, near, tier), s);
        return;
    }
    for (int i = 0; i < p->n && n > 0; i++)
        if (is_free(p, i, near, tier) && (numa < 0 || p->units[i].numa == numa)) {
            take_unit(p, i, s);
            n--;
        }
}

bool place_take(struct place *p, int n, const int *near, int n_near, struct place_set **out, struct err *e)
{
    static const int anywhere[] = {PLACE_ANYWHERE};
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
    if (n_near == 0) {
        near = anywhere;
        n_near = 1;
    }
    for (int d = 0; d < n_near; d++) /* every device has its part of the set near to it */
        for (int tier = 0, most = n * (d + 1) / n_near; tier < TIERS && s->n < most; tier++)
            take_from(p, most - s->n, near[d], tier, s);
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
