#include "nodes/model/replay.h"

#include <string.h>

/* Entries are few (layers times windows times live bases), so a table with linear search by hash would do; chains of a
 * fixed table keep it cheap at thousands. */
#define CHAINS 4096

struct entry {
    struct entry *next;          /* in its chain */
    struct entry *newer, *older; /* by last use */
    uint32_t window;
    int depth;
    size_t n;
    struct tensor x;
    uint64_t hash, bytes;
    bool pinned;
    uint8_t prefix[];
};

struct replay {
    struct queue *q;
    uint64_t limit, used;
    struct entry *chain[CHAINS];
    struct entry *newest, *oldest;
};

/* FNV-1a; only a place in the table depends on it. */
static uint64_t hash_of(uint32_t window, int depth, const uint8_t *prefix, size_t n)
{
    uint64_t h = 14695981039346656037u;
    for (size_t i = 0; i < n; i++)
        h = (h ^ prefix[i]) * 1099511628211u;
    h = (h ^ window) * 1099511628211u;
    return (h ^ (uint64_t)depth) * 1099511628211u;
}

static void unlink_use(struct replay *r, struct entry *x)
{
    *(x->newer ? &x->newer->older : &r->newest) = x->older;
    *(x->older ? &x->older->newer : &r->oldest) = x->newer;
}

static void link_newest(struct replay *r, struct entry *x)
{
    x->newer = NULL;
    x->older = r->newest;
    *(r->newest ? &r->newest->newer : &r->oldest) = x;
    r->newest = x;
}

static struct entry *find(struct replay *r, uint32_t window, int depth, const uint8_t *prefix, size_t n)
{
    uint64_t h = hash_of(window, depth, prefix, n);
    for (struct entry *x = r->chain[h % CHAINS]; x; x = x->next)
        if (x->hash == h && x->window == window && x->depth == depth && x->n == n && memcmp(x->prefix, prefix, n) == 0)
            return x;
    return NULL;
}

static void drop(struct replay *r, struct entry *x)
{
    struct entry **at = &r->chain[x->hash % CHAINS];
    while (*at != x)
        at = &(*at)->next;
    *at = x->next;
    unlink_use(r, x);
    r->used -= x->bytes;
    r->q->k->tensor_free(r->q, &x->x);
    mem_free(x);
}

bool replay_new(struct replay **out, struct queue *q, uint64_t bytes, struct err *e)
{
    struct replay *r;
    if (!mem_new(&r, 1, e))
        return false;
    r->q = q;
    r->limit = bytes;
    *out = r;
    return true;
}

void replay_drop(struct replay *r)
{
    while (r->newest)
        drop(r, r->newest);
    r->limit /= 2;
}

void replay_free(struct replay *r)
{
    if (!r)
        return;
    replay_drop(r);
    mem_free(r);
}

bool replay_has(struct replay *r, uint32_t window, int depth, const uint8_t *prefix, size_t n)
{
    return find(r, window, depth, prefix, n) != NULL;
}

const struct tensor *replay_find(struct replay *r, uint32_t window, int depth, const uint8_t *prefix, size_t n)
{
    struct entry *x = find(r, window, depth, prefix, n);
    if (!x)
        return NULL;
    unlink_use(r, x);
    link_newest(r, x);
    return &x->x;
}

void replay_pin(struct replay *r, uint32_t window, int depth, const uint8_t *prefix, size_t n)
{
    struct entry *x = find(r, window, depth, prefix, n);
    if (x)
        x->pinned = true;
}

void replay_unpin_all(struct replay *r)
{
    for (struct entry *x = r->newest; x; x = x->older)
        x->pinned = false;
}

/* Drop old entries until `bytes` more fit; false when pinned ones are in the way. */
static bool make_room(struct replay *r, uint64_t bytes)
{
    struct entry *x = r->oldest;
    while (r->used + bytes > r->limit && x) {
        struct entry *newer = x->newer;
        if (!x->pinned)
            drop(r, x);
        x = newer;
    }
    return r->used + bytes <= r->limit;
}

void replay_put(struct replay *r, uint32_t window, int depth, const uint8_t *prefix, size_t n, const struct tensor *x)
{
    uint64_t bytes = (uint64_t)tensor_count(x) * dtype_bytes(x->dtype);
    struct entry *new = NULL;
    struct err ignored;
    if (bytes > r->limit || find(r, window, depth, prefix, n) || !make_room(r, bytes))
        return;
    if (!mem_new_bytes((void **)&new, 1, sizeof *new + n, &ignored))
        return;
    if (!r->q->k->tensor_new(r->q, &new->x, x->dtype, x->rank, x->shape, &ignored) ||
        !r->q->k->copy(r->q, x, &new->x, &ignored)) {
        r->q->k->tensor_free(r->q, &new->x);
        mem_free(new);
        return;
    }
    new->window = window;
    new->depth = depth;
    new->n = n;
    new->bytes = bytes;
    new->hash = hash_of(window, depth, prefix, n);
    memcpy(new->prefix, prefix, n);
    new->next = r->chain[new->hash % CHAINS];
    r->chain[new->hash % CHAINS] = new;
    link_newest(r, new);
    r->used += bytes;
}
