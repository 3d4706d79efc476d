#ifndef NODES_SEARCH_CANDIDATES_H
#define NODES_SEARCH_CANDIDATES_H
/* The menu (which unit may have which format, at what size) and tables of candidates: the columns that every measuring,
 * choosing and exporting node shares, in memory and in objects (nodes/README.md has the layout on disk). */
#include "engine/node.h"

/* What can be chosen. Read from a `quantize` result; formats are in the order of the graph's list. */
struct menu {
    int n_units, n_formats;
    char **unit_names;        /* [unit] */
    uint64_t *parameters;     /* [unit] */
    int32_t *layers;          /* [unit] */
    char **format_names;      /* [format] */
    uint64_t *bytes;          /* [unit, format]: payload as exported */
    uint8_t *available;       /* [unit, format]: 1 when the unit can have the format where it is served */
    int32_t *fallback;        /* [unit, format]: what the unit has where the format is meant: itself if available */
    char serving[32];         /* name of the serving profile (nodes/format/serving.h) */
    uint64_t total_parameters;
    char key[KEY_TEXT];       /* of that result */
};
bool menu_read(struct menu *out, struct object *quantize, struct err *e) ERR_CHECK;
void menu_fini(struct menu *m);
/* ERR_INPUT unless the object's /units/name and /formats/name are the menu's: then a format index means the same in
 * both. `what` names the object in the message: the node. */
bool menu_check(const struct menu *m, struct object *o, const char *what, struct err *e) ERR_CHECK;
/* And unless it was made from the very renderings, where it had any as an input: costs and KLs are theirs. */
bool menu_check_renderings(const struct menu *m, struct object *o, const char *what, struct err *e) ERR_CHECK;
/* Sum of bytes of an assignment (a format index per unit). */
uint64_t menu_bytes(const struct menu *m, const uint8_t *assignment);
/* 8 * bytes / parameters. */
double menu_bpp(const struct menu *m, uint64_t bytes);
/* Every unit in `format`, or, where it cannot have it, in the format's fallback. */
void menu_uniform(const struct menu *m, int format, uint8_t *assignment);

/* One candidate. Arrays belong to the table. */
struct candidate {
    uint32_t id;              /* its index in this table */
    int32_t parent;           /* id, -1: none */
    const char *origin;       /* "uniform", "archive", "flip", "polish": a string constant or in the table's arena */
    uint8_t *assignment;      /* [unit] */
    uint64_t bytes;
    double bpp;
    /* Measured; NaN and 0 before. */
    double *kl_window;        /* [window] mean over the window's scored positions; NaN where not measured; NULL if the
                                 table has no windows */
    uint32_t n_windows;       /* measured */
    uint64_t tokens;          /* scored positions of the windows measured */
    /* Of complete rows alone; NaN in others, so that nothing compares different windows. */
    double kl_mean;           /* nats per scored position */
    double kl_p95, kl_p99, kl_p999, kl_max; /* over scored positions: nearest rank */
    double nll_delta;         /* its mean negative log-likelihood minus the teacher's, nats per scored position */
    double top1;              /* share of scored positions */
    int32_t dropped_at, dropped_by; /* racing: -1 */
};

struct candidates {
    int n_units;
    uint32_t n_windows;       /* 0 in a list of proposals */
    uint32_t *window_tokens;  /* [window]: scored positions of each; NULL if no windows */
    uint32_t *window_document;/* [window]: index of the document: the unit of intervals */
    struct candidate *list;
    size_t n, capacity;
    char numeric[160];        /* the numeric mode, "" in a list of proposals */
    char tokens[KEY_TEXT];    /* digest of the token set that was measured on; the attribute `tokens`; "" likewise */
    char context[KEY_TEXT];   /* key of the measuring context (the ledger's): model, renderings, teacher, tokens and
                                 numeric mode; the attribute `context`; "" likewise */
    struct arena arena;
};
/* `n_windows` may be 0. window arrays are copied. */
bool candidates_init(struct candidates *c, int n_units, uint32_t n_windows, const uint32_t *window_tokens,
                     const uint32_t *window_document, struct err *e) ERR_CHECK;
void candidates_fini(struct candidates *c);
/* Measured on all of the table's windows, with a finite KL? Only such rows may decide anything. */
bool candidate_is_complete(const struct candidates *c, const struct candidate *x);
/* 95 % interval of its mean KL over the documents of the table's windows (stats_positive_interval), nats; both NaN when
 * it is not complete, or when there is one document. */
bool candidate_interval(const struct candidates *c, const struct candidate *x, double *low, double *high,
                        struct err *e) ERR_CHECK;
/* Index of an equal assignment, or -1. */
long candidates_find(const struct candidates *c, const uint8_t *assignment);
/* Append (also when an equal one is there); bytes and bpp from the menu. The pointer is good until the next append. */
struct candidate *candidates_add(struct candidates *c, const struct menu *m, const uint8_t *assignment,
                                 const char *origin, int32_t parent, struct err *e);
/* From an object: measured columns are read when they are there. */
bool candidates_read(struct candidates *c, struct object *o, struct err *e) ERR_CHECK;
/* The table of an input that chooses one of its candidates, and the id of that one. ERR_INPUT when there is no such
 * candidate. */
bool candidates_read_chosen(struct candidates *c, const struct input *in, uint32_t *chosen, struct err *e) ERR_CHECK;
/* Union of several tables (each a node's input), equal assignments once, first one wins, a measured one over an
 * unmeasured one; parents are renumbered. ERR_INPUT when a table is of other units, formats or renderings than the
 * menu's, or when they were not measured in one context: on different windows, in different numeric modes, with other
 * teachers or models. */
bool candidates_read_rows(struct candidates *c, const struct menu *m, struct node *n, const char *port,
                          struct err *e) ERR_CHECK;
/* The same of the assignments alone: nothing in it is measured, so it does not matter where and how they were; sizes
 * are the menu's. ERR_INPUT also when a unit has a format that it cannot have. */
bool candidates_read_assignments(struct candidates *c, const struct menu *m, struct node *n, const char *port,
                                 struct err *e) ERR_CHECK;
/* Write all columns with /units and /formats beside them. */
bool candidates_write(const struct candidates *c, const struct menu *m, struct writer *w, struct err *e) ERR_CHECK;

#endif
