/* The final order of nodes: each after its inputs; among those that could come next, the one written first. */
#include <stdio.h>
#include <string.h>

#include "engine/graph/draft.h"

/* Kahn's algorithm: `waiting` counts inputs that are not placed yet; nodes with none are in a heap by index. */
struct sorting {
    const struct graph *g;
    size_t *waiting;
    size_t *first_user, *users; /* users of node i: users[first_user[i]] to users[first_user[i + 1]] */
    int *heap, *sorted;
    size_t n_heap, n_sorted;
    bool *is_placed;
};

static size_t n_ports(const struct graph_node *n)
{
    size_t ports = 0;
    while (n->n_inputs && n->class && n->class->ports && n->class->ports[ports].name)
        ports++;
    return ports;
}

static void push(struct sorting *s, int node)
{
    size_t at = s->n_heap++;
    for (; at > 0 && s->heap[(at - 1) / 2] > node; at = (at - 1) / 2)
        s->heap[at] = s->heap[(at - 1) / 2];
    s->heap[at] = node;
}

static int pop(struct sorting *s)
{
    int least = s->heap[0], last = s->heap[--s->n_heap];
    size_t at = 0;
    for (size_t child; (child = 2 * at + 1) < s->n_heap; at = child) {
        child += child + 1 < s->n_heap && s->heap[child + 1] < s->heap[child];
        if (s->heap[child] >= last)
            break;
        s->heap[at] = s->heap[child];
    }
    s->heap[at] = last;
    return least;
}

/* Who uses whom, as lists in one array. */
static bool list_users(struct loading *l, struct sorting *s)
{
    const struct graph *g = s->g;
    size_t all = 0;
    for (size_t pass = 0; pass < 2; pass++) {
        for (size_t i = 0; i < g->n_nodes; i++)
            for (size_t p = 0, ports = n_ports(&g->nodes[i]); p < ports; p++)
                for (size_t k = 0; k < g->nodes[i].n_inputs[p]; k++) {
                    size_t from = (size_t)g->nodes[i].inputs[p][k].node;
                    if (pass == 0) {
                        s->first_user[from + 1]++;
                        s->waiting[i]++;
                        all++;
                    } else {
                        s->users[s->first_user[from]++] = i;
                    }
                }
        if (pass == 0) {
            s->users = loading_new(l, (all + 1) * sizeof *s->users);
            if (!s->users)
                return false;
            for (size_t i = 0; i < g->n_nodes; i++)
                s->first_user[i + 1] += s->first_user[i];
        }
    }
    for (size_t i = g->n_nodes; i > 0; i--) /* the second pass moved each start to its end */
        s->first_user[i] = s->first_user[i - 1];
    s->first_user[0] = 0;
    return true;
}

static void place(struct sorting *s, int node)
{
    s->is_placed[node] = true;
    s->sorted[s->n_sorted++] = node;
    for (size_t u = s->first_user[node]; u < s->first_user[node + 1]; u++)
        if (--s->waiting[s->users[u]] == 0 && !s->is_placed[s->users[u]])
            push(s, (int)s->users[u]);
}

static void drain(struct sorting *s)
{
    while (s->n_heap > 0)
        place(s, pop(s));
}

/* The first input of `node` that is not placed. */
static const struct graph_input *open_input(const struct sorting *s, int node)
{
    const struct graph_node *n = &s->g->nodes[node];
    for (size_t p = 0, ports = n_ports(n); p < ports; p++)
        for (size_t k = 0; k < n->n_inputs[p]; k++)
            if (!s->is_placed[n->inputs[p][k].node])
                return &n->inputs[p][k];
    return NULL;
}

/* From a node that is not placed, inputs that are not placed lead into a circle: its nodes in `path`, in the direction
 * of the data, the one written first at the start. Returns their number. */
static size_t find_circle(const struct sorting *s, int start, int *path, size_t *seen_at)
{
    size_t n = 0, from, least;
    int node = start;
    memset(seen_at, 0, s->g->n_nodes * sizeof *seen_at);
    for (; !seen_at[node]; node = open_input(s, node)->node) {
        path[n++] = node;
        seen_at[node] = n;
    }
    from = least = seen_at[node] - 1;
    for (size_t i = from; i < n; i++)
        least = path[i] < path[least] ? i : least;
    n -= from;
    int *turned = path + s->g->n_nodes; /* the second half of the room */
    for (size_t i = 0; i < n; i++)
        turned[i] = path[from + (least - from + n - i) % n];
    memmove(path, turned, n * sizeof *path);
    return n;
}

static bool report_circle(struct loading *l, const struct sorting *s, const int *path, size_t n, struct mark *last)
{
    char text[800];
    size_t at = 0;
    struct mark m = open_input(s, path[0])->mark;
    if (m.file == last->file && m.line == last->line && m.column == last->column && m.line > 0)
        return true; /* another round of the same written nodes */
    *last = m;
    for (size_t i = 0; i < n && at < sizeof text; i++) {
        if (n > 10 && i == 8) {
            at += (size_t)snprintf(text + at, sizeof text - at, "(%zu more) -> ", n - 9);
            i = n - 1;
        }
        if (at < sizeof text)
            at += (size_t)snprintf(text + at, sizeof text - at, "%s -> ", s->g->nodes[path[i]].name);
    }
    return loading_problem(l, &m, NULL, "nodes form a circle: %s%s", text, s->g->nodes[path[0]].name);
}

/* Report a circle, take its nodes out, and go on with what that frees, until all is placed. */
static bool report_circles(struct loading *l, struct sorting *s)
{
    size_t n = s->g->n_nodes, reported = 0, *seen_at = loading_new(l, (n + 1) * sizeof *seen_at);
    int *path = loading_new(l, (2 * n + 1) * sizeof *path);
    struct mark last = {0};
    if (!seen_at || !path)
        return false;
    for (int start = 0; start < (int)n && reported < LOADING_REPORTED; start++) {
        if (s->is_placed[start])
            continue;
        size_t length = find_circle(s, start, path, seen_at);
        reported++;
        if (!report_circle(l, s, path, length, &last))
            return false;
        for (size_t i = 0; i < length; i++)
            s->is_placed[path[i]] = true;
        for (size_t i = 0; i < length; i++)
            place(s, path[i]);
        drain(s);
        start--;
    }
    return true;
}

/* Put the nodes into their final order; indices in connections follow. */
static bool permute(struct loading *l, struct graph *g, const int *sorted)
{
    struct graph_node *nodes = arena_new(l->arena, (g->n_nodes + 1) * sizeof *nodes, &l->fatal);
    int *now_at = loading_new(l, (g->n_nodes + 1) * sizeof *now_at);
    if (!nodes || !now_at)
        return false;
    for (size_t i = 0; i < g->n_nodes; i++) {
        nodes[i] = g->nodes[sorted[i]];
        now_at[sorted[i]] = (int)i;
    }
    for (size_t i = 0; i < g->n_nodes; i++)
        for (size_t p = 0, ports = n_ports(&nodes[i]); p < ports; p++)
            for (size_t k = 0; k < nodes[i].n_inputs[p]; k++)
                nodes[i].inputs[p][k].node = now_at[nodes[i].inputs[p][k].node];
    g->nodes = nodes;
    return true;
}

bool order_nodes(struct loading *l, struct graph *g)
{
    size_t n = g->n_nodes;
    struct sorting s = {.g = g};
    s.waiting = loading_new(l, (n + 1) * sizeof *s.waiting);
    s.first_user = loading_new(l, (n + 2) * sizeof *s.first_user);
    s.heap = loading_new(l, (n + 1) * sizeof *s.heap);
    s.sorted = loading_new(l, (n + 1) * sizeof *s.sorted);
    s.is_placed = loading_new(l, (n + 1) * sizeof *s.is_placed);
    if (!s.waiting || !s.first_user || !s.heap || !s.sorted || !s.is_placed || !list_users(l, &s))
        return false;
    for (size_t i = 0; i < n; i++)
        if (s.waiting[i] == 0)
            push(&s, (int)i);
    drain(&s);
    if (s.n_sorted < n)
        return report_circles(l, &s);
    return permute(l, g, s.sorted);
}
