#ifndef NODES_FORMAT_SERVING_H
#define NODES_FORMAT_SERVING_H
/* Serving profiles: which formats a server runs as they were measured, for which units, and what a unit falls back to
 * that cannot have one. All of it is data in serving.c; the profile "any" has only the formats' own shapes. Shapes are
 * those of one GPU: a server that splits matrices over several wants the multiples of every piece. */
#include "nodes/format/format.h"

#define SERVING_TEXT 512 /* bytes of a reason */

/* What a profile says of a format. */
struct serving_rule {
    const struct format *format;
    const char *why;            /* it is not offered, and why; NULL: it is */
    const struct format *instead; /* what the server runs as measured where this was meant; NULL with `why` NULL */
    const char *note;           /* offered under a condition that the user must see to; NULL: none */
    int64_t k_multiple, k_least;      /* of the unit's input features; 0: no limit but the format's own */
    int64_t n_multiple, n_least;      /* of the fused module's output features, all its matrices together */
    int64_t seam_multiple;      /* of the rows at which the fused module's matrices but the first begin */
    bool not_head;              /* not for lm_head */
};

struct serving_profile {
    const char *name;           /* "vllm-blackwell" */
    const char *summary;        /* one line */
    const struct serving_rule *rules; /* up to one without format; a format without a rule has no limit but its own */
};

extern const struct serving_profile *const serving_profiles[]; /* NULL-terminated; the first is "any" */
extern const char *const serving_names[];                      /* likewise, for parameter choices */
const struct serving_profile *serving_find(const char *name);  /* NULL when there is none */

/* What it says of a format; a rule without format, and without limits, where it says nothing. */
const struct serving_rule *serving_rule(const struct serving_profile *p, const struct format *f);

/* A unit, as far as servers look at it. */
struct serving_unit {
    const char *name; /* for reasons */
    int64_t n, k;     /* output features of all its matrices together, input features */
    int64_t seam;     /* greatest common divisor of the rows at which its matrices but the first begin; 0: one matrix */
    bool is_head;
};
/* A matrix of the unit begins at `row` > 0 of the fused module. */
void serving_add_seam(struct serving_unit *u, int64_t row);

/* Does the profile offer the format to any unit? If not, `why` says why not and which to use instead. */
bool serving_offers(const struct serving_profile *p, const struct format *f, char why[SERVING_TEXT]);
/* Can this unit have it? If not, `why` says what it lacks. */
bool serving_fits(const struct serving_profile *p, const struct format *f, const struct serving_unit *u,
                  char why[SERVING_TEXT]);

/* The formats that stand in for `f`, best first, up to NULL: smaller blocks, more bits, and bf16 at the end. Empty for
 * bf16. */
const struct format *const *serving_chain(const struct format *f);
/* What a unit has that is to be in menu[format]: that where available[format], else the first of its chain that is in
 * the menu and available, else the available one with the fewest bytes among those with more bytes, else the largest
 * available one. -1 when nothing is available. Arrays are [n_menu], in the order of the menu. */
int serving_fallback(const struct format *const *menu, int n_menu, const uint8_t *available, const uint64_t *bytes,
                     int format);

#endif
