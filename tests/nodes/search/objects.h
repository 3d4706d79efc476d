#ifndef TESTS_NODES_SEARCH_OBJECTS_H
#define TESTS_NODES_SEARCH_OBJECTS_H
/* The made-up model of menus.h as the objects that other nodes would have made of it, in a real store. */
#include "tests/nodes/search/menus.h"

#include "engine/store/store.h"

static inline struct key made_key(const char *seed)
{
    struct err e;
    struct key k;
    assert_ok(key_of_bytes(seed, strlen(seed), &k, &e), e);
    return k;
}

static inline struct object *made_commit(struct store *s, struct writer *w, const char *seed)
{
    struct err e;
    struct object *o = NULL;
    struct key k = made_key(seed);
    assert_ok(writer_commit(w, &e) && object_open(&o, s, &k, &e), e);
    assert_non_null(o);
    return o;
}

static inline void made_add(struct writer *w, const char *name, enum dtype t, uint64_t rows, uint64_t columns,
                            const void *data)
{
    struct err e;
    assert_ok(writer_add(w, &(struct dataset){.name = name, .dtype = t, .rank = columns ? 2 : 1,
                                              .shape = {rows, columns}, .unit = "1", .axes = "", .description = ""},
                         data, &e), e);
}

/* What `quantize` would have made. Each unit has two matrices, of a quarter and three quarters of its parameters, with
 * half and seven sixths of the unit's loss, so that the mean by parameters is the unit's; with `is_output` false there
 * was no hessian, and the losses are those of the weights. */
static inline struct object *made_quantize(const struct made *x, struct store *s, const char *seed, bool is_output)
{
    struct err e;
    struct writer *w;
    struct key k = made_key(seed);
    const struct menu *m = &x->menu;
    uint64_t units = (uint64_t)m->n_units, matrices = 2 * units;
    int32_t *unit;
    int64_t *rows, *columns;
    double *loss, *none;
    assert_ok(writer_new(&w, s, &k, "quantize/1", &e) && mem_new(&unit, matrices, &e) && mem_new(&rows, matrices, &e) &&
              mem_new(&columns, matrices, &e) && mem_new(&loss, matrices * MADE_FORMATS, &e) &&
              mem_new(&none, matrices * MADE_FORMATS, &e), e);
    for (uint64_t i = 0; i < matrices; i++) {
        unit[i] = (int32_t)(i / 2);
        columns[i] = 256;
        rows[i] = (int64_t)m->parameters[i / 2] / 1024 * (i % 2 ? 3 : 1);
        for (int f = 0; f < MADE_FORMATS; f++) {
            double unit_loss = x->cost[i / 2 * MADE_FORMATS + (uint64_t)f];
            loss[i * MADE_FORMATS + (uint64_t)f] = unit_loss * (i % 2 ? 7.0 / 6 : 0.5);
            none[i * MADE_FORMATS + (uint64_t)f] = NAN;
        }
    }
    assert_ok(writer_add_strings(w, "units/name", (const char *const *)m->unit_names, units, "unit", "", &e) &&
              writer_add_strings(w, "formats/name", (const char *const *)m->format_names, MADE_FORMATS, "format", "",
                                 &e), e);
    made_add(w, "units/parameters", DTYPE_U64, units, 0, m->parameters);
    made_add(w, "units/layer", DTYPE_I32, units, 0, m->layers);
    made_add(w, "bytes", DTYPE_U64, units, MADE_FORMATS, m->bytes);
    made_add(w, "available", DTYPE_U8, units, MADE_FORMATS, m->available);
    made_add(w, "fallback", DTYPE_I32, units, MADE_FORMATS, m->fallback);
    assert_ok(writer_text(w, "serving", m->serving, &e), e);
    made_add(w, "matrices/unit", DTYPE_I32, matrices, 0, unit);
    made_add(w, "matrices/rows", DTYPE_I64, matrices, 0, rows);
    made_add(w, "matrices/columns", DTYPE_I64, matrices, 0, columns);
    made_add(w, "output_loss", DTYPE_F64, matrices, MADE_FORMATS, is_output ? loss : none);
    made_add(w, "weight_loss", DTYPE_F64, matrices, MADE_FORMATS, is_output ? none : loss);
    mem_free(none);
    mem_free(loss);
    mem_free(columns);
    mem_free(rows);
    mem_free(unit);
    return made_commit(s, w, seed);
}

/* A table as an object. */
static inline struct object *made_object(const struct made *x, const struct candidates *c, struct store *s,
                                         const char *seed)
{
    struct err e;
    struct writer *w;
    struct key k = made_key(seed);
    assert_ok(writer_new(&w, s, &k, "table/1", &e) && candidates_write(c, &x->menu, w, &e), e);
    return made_commit(s, w, seed);
}

/* What `probe` would have made of these responses [unit, format, probe, window] and local squares [unit, format,
 * window], of which `cost` [unit, format] has kept so much of the former, and with correlations of that spread. */
static inline struct object *made_probe(const struct made *x, struct store *s, const char *seed, const double *cost,
                                        double kept, double spread, const double *response, const double *local,
                                        uint64_t probes, uint64_t windows, const uint32_t *tokens,
                                        const uint32_t *document)
{
    struct err e;
    struct writer *w;
    struct key k = made_key(seed);
    uint64_t units = (uint64_t)x->menu.n_units;
    double *shares;
    assert_ok(mem_new(&shares, units * MADE_FORMATS, &e), e);
    for (uint64_t i = 0; i < units * MADE_FORMATS; i++)
        shares[i] = kept;
    assert_ok(writer_new(&w, s, &k, "probe/1", &e) &&
              writer_add_strings(w, "units/name", (const char *const *)x->menu.unit_names, units, "unit", "", &e) &&
              writer_add_strings(w, "formats/name", (const char *const *)x->menu.format_names, MADE_FORMATS, "format",
                                 "", &e), e);
    made_add(w, "cost", DTYPE_F64, units, MADE_FORMATS, cost);
    assert_ok(writer_double(w, "pairs_spread", spread, &e), e);
    made_add(w, "cost_kept", DTYPE_F64, units, MADE_FORMATS, shares);
    made_add(w, "response", DTYPE_F64, units * MADE_FORMATS, probes * windows, response);
    made_add(w, "local", DTYPE_F64, units * MADE_FORMATS, windows, local);
    made_add(w, "windows/tokens", DTYPE_U32, windows, 0, tokens);
    made_add(w, "windows/document", DTYPE_U32, windows, 0, document);
    mem_free(shares);
    return made_commit(s, w, seed);
}

#endif
