/* Node type `sample`: random assignments, for looking at how well a surrogate orders what is measured. `spread`: over
 * the whole range of sizes, each with its own random shares of the formats. `near`: a candidate with some units changed
 * at random. `swap`: a candidate with the formats of two units exchanged that have the same shape, one to three times,
 * so that no byte changes. Nothing here looks at costs. */
#include <math.h>
#include <string.h>

#include "nodes/nodes.h"
#include "nodes/search/candidates.h"
#include "nodes/search/stats.h"

#define TRIES 200 /* for each sample that is wanted: then there are no more, or hardly any */

struct sample {
    struct node *n;
    struct menu menu;
    uint64_t random;
    uint8_t *centre;        /* [unit]; NULL: not connected */
    struct candidates out;
};

static double uniform(struct sample *s) { return (double)(stats_random(&s->random) >> 11) * 0x1p-53; }

/* A format of the unit, other than `from`, by its weight; -1 when it has no other. */
static int draw_format(struct sample *s, int unit, const double *weight, int from)
{
    const struct menu *m = &s->menu;
    double sum = 0;
    for (int f = 0; f < m->n_formats; f++)
        sum += m->available[unit * m->n_formats + f] && f != from ? weight[f] : 0;
    double at = uniform(s) * sum;
    int last = -1;
    for (int f = 0; f < m->n_formats; f++)
        if (m->available[unit * m->n_formats + f] && f != from) {
            last = f;
            at -= weight[f];
            if (at < 0)
                break;
        }
    return last;
}

/* Shares of the formats are uniform over all shares there are: exponentials over their sum. */
static bool spread(struct sample *s, uint8_t *x)
{
    double weight[256];
    for (int f = 0; f < s->menu.n_formats; f++)
        weight[f] = -log1p(-uniform(s));
    for (int u = 0; u < s->menu.n_units; u++)
        x[u] = (uint8_t)draw_format(s, u, weight, -1);
    return true;
}

static bool near(struct sample *s, uint8_t *x)
{
    double weight[256], most = node_float(s->n, "changes") * s->menu.n_units;
    uint64_t changes = 1 + stats_below(&s->random, most > 1 ? (uint64_t)most : 1);
    for (int f = 0; f < s->menu.n_formats; f++)
        weight[f] = 1;
    memcpy(x, s->centre, (size_t)s->menu.n_units);
    for (uint64_t i = 0; i < changes; i++) {
        int u = (int)stats_below(&s->random, (uint64_t)s->menu.n_units), f = draw_format(s, u, weight, s->centre[u]);
        if (f >= 0)
            x[u] = (uint8_t)f;
    }
    double bpp = menu_bpp(&s->menu, menu_bytes(&s->menu, x)), at = menu_bpp(&s->menu, menu_bytes(&s->menu, s->centre));
    return fabs(bpp - at) <= node_float(s->n, "width");
}

static bool same_shape(const struct menu *m, int a, int b)
{
    size_t n = (size_t)m->n_formats;
    return memcmp(m->bytes + a * m->n_formats, m->bytes + b * m->n_formats, n * sizeof *m->bytes) == 0 &&
           memcmp(m->available + a * m->n_formats, m->available + b * m->n_formats, n) == 0;
}

static bool exchange(struct sample *s, uint8_t *x)
{
    int a = (int)stats_below(&s->random, (uint64_t)s->menu.n_units);
    int b = (int)stats_below(&s->random, (uint64_t)s->menu.n_units);
    if (x[a] == x[b] || !same_shape(&s->menu, a, b))
        return false;
    uint8_t kept = x[a];
    x[a] = x[b];
    x[b] = kept;
    return true;
}

/* One to three exchanges: small models have few single ones. */
static bool swap(struct sample *s, uint8_t *x)
{
    memcpy(x, s->centre, (size_t)s->menu.n_units);
    bool ok = true;
    for (uint64_t left = 1 + stats_below(&s->random, 3); ok && left > 0; left--)
        ok = exchange(s, x);
    return ok && memcmp(x, s->centre, (size_t)s->menu.n_units) != 0;
}

static bool draw_all(struct sample *s, uint8_t *x, struct err *e)
{
    static const struct {
        const char *kind;
        bool (*draw)(struct sample *s, uint8_t *x);
        bool around; /* a centre */
    } kinds[] = {{"spread", spread, false}, {"near", near, true}, {"swap", swap, true}};
    const char *wanted = node_string(s->n, "kind");
    size_t k = 0, count = (size_t)node_int(s->n, "count");
    while (strcmp(kinds[k].kind, wanted) != 0)
        k++;
    if (kinds[k].around && !s->centre)
        return err_set(e, ERR_INPUT, "samples of kind %s are taken around a candidate: connect port 'centre'", wanted);
    if (kinds[k].around && !candidates_add(&s->out, &s->menu, s->centre, "centre", -1, e))
        return false;
    for (size_t tries = 0, wanted_n = s->out.n + count; s->out.n < wanted_n && tries < TRIES * count; tries++) {
        if (kinds[k].draw(s, x) && candidates_find(&s->out, x) < 0 &&
            !candidates_add(&s->out, &s->menu, x, wanted, kinds[k].around ? 0 : -1, e))
            return false;
        if (tries % 100 == 0 && node_stopping(s->n))
            return node_stopped(e);
    }
    node_log(s->n, "%zu candidates", s->out.n);
    return true;
}

static bool read_centre(struct sample *s, struct err *e)
{
    const struct input *in = node_input(s->n, "centre", 0);
    struct candidates table;
    uint32_t chosen;
    if (!menu_check(&s->menu, in->object, in->node, e) || !candidates_read_chosen(&table, in, &chosen, e))
        return false;
    bool ok = mem_new(&s->centre, (size_t)s->menu.n_units, e);
    if (ok)
        memcpy(s->centre, table.list[chosen].assignment, (size_t)s->menu.n_units);
    candidates_fini(&table);
    return ok;
}

static bool run(struct node *n, struct err *e)
{
    struct sample s = {.n = n, .random = (uint64_t)node_int(n, "seed")};
    uint8_t *x = NULL;
    bool ok = menu_read(&s.menu, node_input(n, "renderings", 0)->object, e) &&
              candidates_init(&s.out, s.menu.n_units, 0, NULL, NULL, e) &&
              (node_inputs(n, "centre") == 0 || read_centre(&s, e)) && mem_new(&x, (size_t)s.menu.n_units, e) &&
              draw_all(&s, x, e) && candidates_write(&s.out, &s.menu, node_output(n), e);
    mem_free(x);
    mem_free(s.centre);
    candidates_fini(&s.out);
    menu_fini(&s.menu);
    return ok;
}

const struct node_class node_sample = {
    .name = "sample",
    .summary = "random assignments: over all sizes, around a candidate, or swaps of equal bytes",
    .version = 1,
    .ports = (const struct port[]){
        {"renderings", (const char *const[]){"quantize", NULL}, false, false, "formats and bytes of every unit"},
        {"centre", (const char *const[]){"select", "polish", NULL}, false, true, "whose chosen candidate is varied"},
        {0}},
    .params = (const struct param[]){
        {.name = "kind", .type = PARAM_ENUM, .fallback = "spread",
         .choices = (const char *const[]){"spread", "near", "swap", NULL}, .help = "what is drawn"},
        {.name = "count", .type = PARAM_INT, .fallback = "64", .least = 1, .most = 100000, .unit = "candidate",
         .help = "samples; fewer if there are not so many different ones"},
        {.name = "changes", .type = PARAM_FLOAT, .fallback = "0.25", .least = 0, .most = 1,
         .help = "near: largest share of the units that is changed"},
        {.name = "width", .type = PARAM_FLOAT, .fallback = "0.5", .least = 0, .most = 16,
         .help = "near: most bits per parameter from the centre"},
        {.name = "seed", .type = PARAM_INT, .fallback = "1", .least = 0, .most = 1e15, .help = "of the random numbers"},
        {0}},
    .run = run,
};
