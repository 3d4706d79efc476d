/* The node type select: frontier, knee, how sure it is, and budgets. */
#include "tests/nodes/search/world.h"

#include "nodes/search/knee.h"
#include "nodes/search/pareto.h"
#include "nodes/search/probes.h"

/* ----------------------------------------------------------------------------- what select says, computed once more */

/* Rows whose documents do not agree on which candidate is better: KL times a factor of each (candidate, document). */
static struct object *noisy_rows(double spread)
{
    struct err e;
    struct candidates c;
    struct object *rows = measured_rows();
    assert_ok(candidates_read(&c, rows, &e), e);
    object_close(rows);
    for (size_t i = 0; i < c.n; i++) {
        double sum = 0, tokens = 0;
        for (uint32_t w = 0; w < c.n_windows; w++) {
            uint64_t seed = 1000 * i + c.window_document[w];
            c.list[i].kl_window[w] *= exp(spread * (2 * (double)stats_random(&seed) * 0x1p-64 - 1));
            sum += c.list[i].kl_window[w] * c.window_tokens[w];
            tokens += c.window_tokens[w];
        }
        c.list[i].kl_mean = sum / tokens;
    }
    char name[32]; /* what is published under a key stays */
    snprintf(name, sizeof name, "noisy %g", spread);
    rows = made_object(&world.made, &c, world.store, name);
    candidates_fini(&c);
    return rows;
}

/* The id of the knee for these KLs, without candidate `dropped` (-1: with all). */
static uint32_t scaled_knee_of(const struct candidates *c, const double *kl, long dropped, bool is_log)
{
    struct err e;
    double x[64], y[64];
    uint32_t id[64], frontier[64];
    int32_t by[64];
    size_t n = 0, found;
    struct knee knee;
    assert_in_range(c->n, 2, 64);
    for (size_t i = 0; i < c->n; i++) {
        if ((long)i == dropped)
            continue;
        x[n] = c->list[i].bpp;
        y[n] = kl[i];
        id[n++] = (uint32_t)i;
    }
    assert_ok(pareto_filter(x, y, n, by, frontier, &found, &e), e);
    double point_x[64], point_y[64];
    for (size_t i = 0; i < found; i++) {
        point_x[i] = x[frontier[i]];
        point_y[i] = y[frontier[i]];
    }
    assert_ok(knee_find(point_x, point_y, found, &(struct knee_options){.sensitivity = 1, .is_log = is_log}, &knee,
                        &e), e);
    return id[frontier[knee.at]];
}

static uint32_t knee_of(const struct candidates *c, const double *kl, long dropped)
{
    return scaled_knee_of(c, kl, dropped, false);
}

/* Share of the resamples of that seed with knee `id`. In these rows document d has the windows 2 d and 2 d + 1. */
static double mass_of(const struct candidates *c, uint32_t id, uint64_t seed, int draws, bool is_log)
{
    int same = 0;
    for (int draw = 0; draw < draws; draw++) {
        uint32_t counts[MADE_WINDOWS / 2];
        double kl[64];
        stats_resample(&seed, counts, MADE_WINDOWS / 2);
        for (size_t i = 0; i < c->n; i++) {
            double sum = 0, tokens = 0;
            for (uint32_t w = 0; w < MADE_WINDOWS; w++) {
                sum += c->list[i].kl_window[w] * c->window_tokens[w] * counts[w / 2];
                tokens += c->window_tokens[w] * counts[w / 2];
            }
            kl[i] = sum / tokens;
        }
        same += scaled_knee_of(c, kl, -1, is_log) == id;
    }
    return (double)same / draws;
}

static double load_f64(struct object *o, const char *name)
{
    struct err e;
    double x = -1;
    assert_ok(object_read(o, name, DTYPE_F64, 0, 1, &x, &e), e);
    return x;
}

static double load_mass(struct object *o) { return load_f64(o, "knee/mass"); }

/* -------------------------------------------------------------------------------------------------------- the tests */

static void select_finds_frontier_and_knee(void **state)
{
    (void)state;
    struct err e;
    struct candidates c;
    uint64_t n;
    double kl[64];
    struct object *rows = noisy_rows(0.5);
    struct object *o = run_fine(&node_select, "select", (struct setting[]){{"rows", rows, NULL}, {0}});
    assert_ok(candidates_read(&c, o, &e), e);
    uint32_t *frontier = load(o, "frontier", DTYPE_U32, &n), knee = load_one(o, "knee/id");
    int32_t *by = load(o, "dominated_by", DTYPE_I32, NULL);
    double *low = load(o, "interval/low", DTYPE_F64, NULL), *high = load(o, "interval/high", DTYPE_F64, NULL);
    for (uint64_t i = 0; i < n; i++)
        assert_int_equal(by[frontier[i]], -1);
    for (size_t i = 0; i < c.n; i++) {
        const struct candidate *x = &c.list[i];
        if (by[i] >= 0)
            assert_true(c.list[by[i]].bytes <= x->bytes && c.list[by[i]].kl_mean <= x->kl_mean);
        assert_true(low[i] <= x->kl_mean && x->kl_mean <= high[i]);
        kl[i] = x->kl_mean;
    }
    assert_int_equal(knee, knee_of(&c, kl, -1));
    assert_int_equal(load_one(o, "chosen"), knee);
    mem_free(high);
    mem_free(low);
    mem_free(by);
    mem_free(frontier);
    candidates_fini(&c);
    object_close(o);
    object_close(rows);
}

static void each_point_of_the_frontier_is_left_out_in_turn(void **state)
{
    (void)state;
    struct err e;
    struct candidates c;
    uint64_t n, n_dropped;
    double kl[64];
    struct object *rows = noisy_rows(0.5);
    struct object *o = run_fine(&node_select, "select", (struct setting[]){{"rows", rows, NULL}, {0}});
    assert_ok(candidates_read(&c, o, &e), e);
    uint32_t *frontier = load(o, "frontier", DTYPE_U32, &n), *dropped = load(o, "leave_one_out/dropped", DTYPE_U32,
                                                                            &n_dropped);
    uint32_t *without = load(o, "leave_one_out/knee", DTYPE_U32, NULL), knee = load_one(o, "knee/id");
    assert_int_equal(n_dropped, n);
    assert_memory_equal(dropped, frontier, n * sizeof *dropped);
    for (size_t i = 0; i < c.n; i++)
        kl[i] = c.list[i].kl_mean;
    size_t moved = 0;
    for (uint64_t i = 0; i < n; i++) {
        assert_int_equal(without[i], knee_of(&c, kl, (long)dropped[i]));
        moved += without[i] != knee;
    }
    assert_in_range(moved, 1, n); /* at least without the knee itself */
    mem_free(without);
    mem_free(dropped);
    mem_free(frontier);
    candidates_fini(&c);
    object_close(o);
    object_close(rows);
}

static void the_mass_is_the_share_of_resamples_with_the_same_knee(void **state)
{
    (void)state;
    struct err e;
    static const double spreads[] = {0, 0.1, 0.5};
    for (size_t i = 0; i < COUNT(spreads); i++) {
        struct candidates c;
        struct object *rows = noisy_rows(spreads[i]);
        struct object *o = run_fine(&node_select, "select", (struct setting[]){{"rows", rows, NULL},
            {"bootstrap", NULL, "400"}, {"seed", NULL, "3"}, {0}});
        assert_ok(candidates_read(&c, o, &e), e);
        double mass = load_mass(o), expected = mass_of(&c, load_one(o, "knee/id"), 3, 400, false);
        if (mass != expected)
            fail_msg("noise %g: mass %g, expected %g", spreads[i], mass, expected);
        assert_true(i == 0 ? mass == 1 : mass > 0 && mass < 1); /* without noise all documents agree */
        assert_int_equal(strstr(world.log, "it is unsure; a `budget`, `bpp` or `kl` can choose instead") != NULL,
                         mass < 0.5);
        assert_int_equal(mass < 0.5, i == 1); /* both kinds are here */
        candidates_fini(&c);
        object_close(o);
        object_close(rows);
    }
    struct object *rows = noisy_rows(0.5), *o = run_fine(&node_select, "select", (struct setting[]){
        {"rows", rows, NULL}, {"bootstrap", NULL, "0"}, {0}});
    assert_true(isnan(load_mass(o)));
    assert_non_null(strstr(world.log, "how sure that is cannot be told: bootstrap is 0"));
    object_close(o);
    object_close(rows);
}

/* Both knees are told, and `scale` says which of them counts. */
static void both_scales_have_a_knee_and_one_of_them_counts(void **state)
{
    (void)state;
    static const char *const scales[] = {"linear", "log"};
    struct object *rows = noisy_rows(0.5);
    uint32_t knee[2][2], chosen[2];
    for (int scale = 0; scale < 2; scale++) {
        struct err e;
        struct candidates c;
        double kl[64];
        const char *text;
        uint8_t found[2];
        struct object *o = run_fine(&node_select, scales[scale], (struct setting[]){{"rows", rows, NULL},
            {"scale", NULL, scales[scale]}, {"bootstrap", NULL, "200"}, {"seed", NULL, "3"}, {0}});
        assert_ok(candidates_read(&c, o, &e), e);
        for (size_t i = 0; i < c.n; i++)
            kl[i] = c.list[i].kl_mean;
        for (int k = 0; k < 2; k++) {
            char id[32], mass[32];
            snprintf(id, sizeof id, "knee/%s/id", scales[k]);
            snprintf(mass, sizeof mass, "knee/%s/mass", scales[k]);
            knee[scale][k] = load_one(o, id);
            assert_int_equal(knee[scale][k], scaled_knee_of(&c, kl, -1, k == 1));
            assert_true(load_f64(o, mass) == mass_of(&c, knee[scale][k], 3, 200, k == 1));
        }
        chosen[scale] = load_one(o, "chosen");
        assert_int_equal(load_one(o, "knee/id"), knee[scale][scale]);
        assert_int_equal(chosen[scale], knee[scale][scale]);
        assert_true(load_mass(o) == load_f64(o, scale ? "knee/log/mass" : "knee/linear/mass"));
        assert_ok(object_read(o, "knee/found", DTYPE_U8, 0, 1, &found[0], &e) &&
                  object_read(o, scale ? "knee/log/found" : "knee/linear/found", DTYPE_U8, 0, 1, &found[1], &e), e);
        assert_int_equal(found[0], found[1]);
        assert_true(object_text(o, "chosen_by", &text) && strcmp(text, "knee") == 0);
        assert_true(object_text(o, "scale", &text) && strcmp(text, scales[scale]) == 0);
        candidates_fini(&c);
        object_close(o);
    }
    assert_memory_equal(knee[0], knee[1], sizeof knee[0]);
    assert_int_not_equal(chosen[0], chosen[1]); /* else the rows would prove nothing */
    object_close(rows);
}

/* Noisy rows, with one candidate of a middling size that is far worse than all that are smaller. */
static struct object *with_a_loser(void)
{
    struct err e;
    struct candidates c;
    struct object *rows = noisy_rows(0.5);
    assert_ok(candidates_read(&c, rows, &e), e);
    object_close(rows);
    struct candidate *loser = &c.list[c.n / 2];
    for (uint32_t w = 0; w < c.n_windows; w++)
        loser->kl_window[w] = 1 + 0.01 * w;
    loser->kl_mean = 0;
    double tokens = 0;
    for (uint32_t w = 0; w < c.n_windows; w++) {
        loser->kl_mean += loser->kl_window[w] * c.window_tokens[w];
        tokens += c.window_tokens[w];
    }
    loser->kl_mean /= tokens;
    rows = made_object(&world.made, &c, world.store, "with a loser");
    candidates_fini(&c);
    return rows;
}

static void who_is_beaten_is_told_by_how_much_and_ties_are_called_ties(void **state)
{
    (void)state;
    struct err e;
    struct candidates c;
    uint64_t n;
    size_t beaten = 0, ties = 0, steps = 0;
    char text[128];
    struct object *rows = with_a_loser();
    struct object *o = run_fine(&node_select, "dominance", (struct setting[]){{"rows", rows, NULL}, {0}});
    assert_ok(candidates_read(&c, o, &e), e);
    uint32_t *frontier = load(o, "frontier", DTYPE_U32, &n);
    int32_t *by = load(o, "dominated_by", DTYPE_I32, NULL);
    uint64_t *bytes = load(o, "dominance/bytes", DTYPE_U64, NULL);
    double *kl = load(o, "dominance/kl", DTYPE_F64, NULL), *low = load(o, "dominance/low", DTYPE_F64, NULL);
    double *high = load(o, "dominance/high", DTYPE_F64, NULL), *step = load(o, "step/kl", DTYPE_F64, NULL);
    double *step_low = load(o, "step/low", DTYPE_F64, NULL), *step_high = load(o, "step/high", DTYPE_F64, NULL);
    for (size_t i = 0; i < c.n; i++) {
        struct stats_difference d;
        const struct candidate *x = &c.list[i], *y = &c.list[by[i] < 0 ? 0 : by[i]];
        if (by[i] < 0) {
            assert_true(isnan(kl[i]) && isnan(low[i]) && isnan(high[i]) && bytes[i] == 0);
            continue;
        }
        assert_ok(stats_paired_interval(x->kl_window, y->kl_window, c.window_tokens, c.window_document, c.n_windows,
                                        0.95, &d, &e), e);
        assert_true(kl[i] == d.mean && low[i] == d.low && high[i] == d.high && bytes[i] == x->bytes - y->bytes);
        assert_true(fabs(kl[i] - (x->kl_mean - y->kl_mean)) < 1e-12 && kl[i] >= 0);
        beaten++;
        ties += low[i] <= 0;
    }
    assert_true(isnan(step[0]) && isnan(step_low[0]));
    for (uint64_t i = 1; i < n; i++) {
        assert_true(fabs(step[i] - (c.list[frontier[i]].kl_mean - c.list[frontier[i - 1]].kl_mean)) < 1e-12);
        assert_true(step_low[i] <= step[i] && step[i] <= step_high[i] && step[i] < 0);
        steps += step_high[i] >= 0;
    }
    if (beaten <= ties || !ties || !steps || steps >= n - 1) /* all kinds are to be here */
        fail_msg("%zu are beaten, %zu tie; %zu of %llu steps tie", beaten, ties, steps, (unsigned long long)n - 1);
    snprintf(text, sizeof text, "%zu candidates are beaten in size and KL; %zu of them tie", beaten, ties);
    assert_non_null(strstr(world.log, text));
    size_t told = 0;
    for (const char *at = world.log; (at = strstr(at, "ties with the one above")); at++)
        told++;
    assert_int_equal(told, steps);
    mem_free(step_high);
    mem_free(step_low);
    mem_free(step);
    mem_free(high);
    mem_free(low);
    mem_free(kl);
    mem_free(bytes);
    mem_free(by);
    mem_free(frontier);
    candidates_fini(&c);
    object_close(o);
    object_close(rows);
}

/* Every dataset has the same bytes in both; but for masses where `seeds` differ. */
static void assert_equal_objects(struct object *a, struct object *b, bool seeds)
{
    assert_int_equal(object_datasets(a), object_datasets(b));
    for (size_t i = 0; i < object_datasets(a); i++) {
        const struct dataset *d = object_dataset_at(a, i);
        uint64_t n, m;
        char *x = load(a, d->name, d->dtype, &n), *y = load(b, d->name, d->dtype, &m);
        assert_int_equal(n, m);
        if (!seeds || !strstr(d->name, "/mass"))
            if (memcmp(x, y, n * (d->string_bytes ? d->string_bytes : dtype_bytes(d->dtype))) != 0)
                fail_msg("'%s' differs", d->name);
        mem_free(x);
        mem_free(y);
    }
}

static void select_is_the_same_twice_and_other_with_another_seed_only_in_mass(void **state)
{
    (void)state;
    struct object *rows = noisy_rows(0.5), *o[3];
    static const char *const seeds[] = {"1", "1", "2"};
    for (int i = 0; i < 3; i++)
        o[i] = run_fine(&node_select, "seed", (struct setting[]){{"rows", rows, NULL}, {"seed", NULL, seeds[i]}, {0}});
    assert_equal_objects(o[0], o[1], false);
    assert_equal_objects(o[0], o[2], true);
    assert_true(load_mass(o[0]) != load_mass(o[2]));
    for (int i = 0; i < 3; i++)
        object_close(o[i]);
    object_close(rows);
}

/* Rounding gives the reference itself a KL of 1e-10 or 1e-7: that must not decide what ships. */
static void the_knee_does_not_hang_on_the_noise_of_a_lossless_candidate(void **state)
{
    (void)state;
    struct err e;
    struct candidates c;
    uint32_t knees[2][3];
    struct object *rows = measured_rows();
    uint8_t full[UNITS];
    assert_ok(candidates_read(&c, rows, &e), e);
    menu_uniform(&world.made.menu, MADE_FORMATS - 1, full);
    struct candidate *lossless = &c.list[candidates_find(&c, full)];
    assert_true(lossless->kl_mean == 0);
    static const double floors[] = {0, 5e-8, 1e-10};
    for (int i = 0; i < 3; i++) {
        char name[16];
        lossless->kl_mean = floors[i];
        for (uint32_t w = 0; w < c.n_windows; w++)
            lossless->kl_window[w] = floors[i];
        snprintf(name, sizeof name, "floor %d", i);
        struct object *noisy = made_object(&world.made, &c, world.store, name);
        for (int k = 0; k < 2; k++) {
            struct setting settings[] = {{"rows", noisy, NULL}, {"scale", NULL, "log"}, {0}};
            if (k == 0)
                settings[1] = (struct setting){0}; /* as it is by default */
            struct object *o = run_fine(&node_select, name, settings);
            knees[k][i] = load_one(o, "chosen");
            object_close(o);
        }
        object_close(noisy);
    }
    assert_true(knees[0][0] == knees[0][1] && knees[0][0] == knees[0][2]);
    assert_true(knees[1][0] != knees[1][1] || knees[1][0] != knees[1][2]); /* else the rows would prove nothing */
    candidates_fini(&c);
    object_close(rows);
}

static void select_keeps_budgets_and_ceilings(void **state)
{
    (void)state;
    struct err e;
    struct candidates c;
    struct object *rows = measured_rows(), *o;
    assert_ok(candidates_read(&c, rows, &e), e);
    static const char *const bpps[] = {"5", "7.5", "9", "16"};
    for (size_t i = 0; i < COUNT(bpps); i++) {
        o = run_fine(&node_select, bpps[i], (struct setting[]){{"rows", rows, NULL}, {"bpp", NULL, bpps[i]}, {0}});
        const struct candidate *chosen = &c.list[load_one(o, "chosen")];
        assert_true(chosen->bpp <= atof(bpps[i]));
        for (size_t j = 0; j < c.n; j++)
            if (c.list[j].bpp <= atof(bpps[i]))
                assert_true(c.list[j].kl_mean >= chosen->kl_mean);
        object_close(o);
    }
    static const char *const kls[] = {"0.15", "0.05", "0.01"};
    for (size_t i = 0; i < COUNT(kls); i++) {
        o = run_fine(&node_select, kls[i], (struct setting[]){{"rows", rows, NULL}, {"kl", NULL, kls[i]}, {0}});
        const struct candidate *chosen = &c.list[load_one(o, "chosen")];
        assert_true(chosen->kl_mean <= atof(kls[i]));
        for (size_t j = 0; j < c.n; j++)
            if (c.list[j].kl_mean <= atof(kls[i]))
                assert_true(c.list[j].bytes >= chosen->bytes);
        object_close(o);
    }
    const char *text;
    char budget[32];
    snprintf(budget, sizeof budget, "%llu", (unsigned long long)c.list[0].bytes);
    o = run_fine(&node_select, "budget", (struct setting[]){{"rows", rows, NULL}, {"budget", NULL, budget}, {0}});
    const struct candidate *chosen = &c.list[load_one(o, "chosen")];
    assert_true(chosen->bytes <= c.list[0].bytes && chosen->kl_mean <= c.list[0].kl_mean);
    assert_true(object_text(o, "chosen_by", &text) && strcmp(text, "budget") == 0);
    object_close(o);
    static const struct {
        struct setting set;
        const char *message;
    } wrong[] = {{{"budget", NULL, "1000"}, "no measured candidate has at most 1000 bytes"},
                 {{"bpp", NULL, "2"}, "(2.0000 bpp), as `bpp` asks: the frontier goes from"}};
    for (size_t i = 0; i < COUNT(wrong); i++) {
        struct setting settings[] = {{"rows", rows, NULL}, wrong[i].set, {0}};
        assert_err(run_node(&node_select, "wrong", settings, &o, &e), e, ERR_INPUT, wrong[i].message);
    }
    candidates_fini(&c);
    object_close(rows);
}

/* A probe with that cost of every unit and format, give or take `noise` from document to document. */
static struct object *probe_of(const double *cost, double noise, const char *name)
{
    struct err e;
    enum { DOCUMENTS = 8, CELLS = UNITS * MADE_FORMATS };
    uint32_t tokens[DOCUMENTS], document[DOCUMENTS];
    double *response, *local;
    assert_ok(mem_new(&response, CELLS * DOCUMENTS, &e) && mem_new(&local, CELLS * DOCUMENTS, &e), e);
    for (uint32_t w = 0; w < DOCUMENTS; w++) {
        tokens[w] = 100;
        document[w] = w;
        for (uint64_t i = 0; i < CELLS; i++) {
            uint64_t seed = 100 * i + w;
            double x = cost[i] * (1 + noise * (2 * (double)stats_random(&seed) * 0x1p-64 - 1));
            local[i * DOCUMENTS + w] = 7 * cost[i] * (1 + noise * (2 * (double)stats_random(&seed) * 0x1p-64 - 1));
            response[i * DOCUMENTS + w] = sqrt(2 * x * tokens[w]); /* one draw: its square is the cost */
        }
    }
    struct object *o = made_probe(&world.made, world.store, name, cost, 0.6, 0.01, response, local, 1, DOCUMENTS,
                                  tokens, document);
    mem_free(local);
    mem_free(response);
    return o;
}

/* Within a budget the best of the lowest KL and what ties with it is chosen, by both; with probes that know the truth
 * that is better in truth. What does not tie is not even asked about, and the knee does not care. */
static void probes_have_a_say_in_ties(void **state)
{
    (void)state;
    struct err e;
    struct candidates c;
    struct object *rows = noisy_rows(0.9), *o;
    double cost[UNITS * MADE_FORMATS];
    size_t moved = 0;
    assert_ok(candidates_read(&c, rows, &e), e);
    for (int k = 0; k < UNITS * MADE_FORMATS; k++)
        cost[k] = world.made.menu.available[k] ? world.made.truth[k] : NAN;
    struct object *probe = probe_of(cost, 0.1, "probe of ties");
    uint64_t responses;
    mem_free(load(probe, "response", DTYPE_F64, &responses));
    assert_int_equal(probe_windows_memory(probe), 3 * responses * sizeof(double));
    assert_int_equal(probe_windows_memory(rows), 0);
    static const char *const bpps[] = {"5", "6", "7", "8", "9", "10"};
    for (size_t i = 0; i < COUNT(bpps); i++) {
        o = run_fine(&node_select, bpps[i], (struct setting[]){{"rows", rows, NULL}, {"bpp", NULL, bpps[i]}, {0}});
        uint32_t lowest = load_one(o, "chosen"), best = lowest;
        assert_null(object_dataset(o, "ties/id"));
        object_close(o);
        o = run_fine(&node_select, "ties", (struct setting[]){{"rows", rows, NULL}, {"bpp", NULL, bpps[i]},
                                                              {"probe", probe, NULL}, {0}});
        uint64_t n;
        uint32_t *ids = load(o, "ties/id", DTYPE_U32, &n), chosen = load_one(o, "chosen");
        double *pooled = load(o, "ties/pooled", DTYPE_F64, NULL), least = 0;
        double *measured = load(o, "ties/measured", DTYPE_F64, NULL);
        double *own = load(o, "ties/measured_error", DTYPE_F64, NULL);
        double *predicted = load(o, "ties/predicted", DTYPE_F64, NULL);
        double *other = load(o, "ties/predicted_error", DTYPE_F64, NULL);
        double kl = c.list[lowest].kl_mean, predicts = made_kl(&world.made, c.list[lowest].assignment);
        double share, all[2] = {0};
        size_t ties = 0;
        for (uint64_t k = 0; k < n; k++) {
            kl += c.list[ids[k]].kl_mean;
            all[0] += own[k] * own[k];
            all[1] += other[k] * other[k];
            predicts += made_kl(&world.made, c.list[ids[k]].assignment);
        }
        for (size_t k = 0; k < c.n; k++) {
            struct stats_difference x;
            assert_ok(stats_paired_interval(c.list[k].kl_window, c.list[lowest].kl_window, c.window_tokens,
                                            c.window_document, c.n_windows, 0.95, &x, &e), e);
            ties += k != lowest && c.list[k].bpp <= atof(bpps[i]) && stats_is_tie(&x);
        }
        assert_int_equal(n, ties);
        assert_int_equal(load_one(o, "lowest"), lowest);
        assert_true(object_double(o, "measured_share", &share));
        assert_true(n == 0 ? share == 1 : fabs(share - all[1] / (all[0] + all[1])) < 1e-12);
        for (uint64_t k = 0; k < n; k++) {
            struct stats_difference x;
            const struct candidate *t = &c.list[ids[k]], *l = &c.list[lowest];
            assert_ok(stats_paired_interval(t->kl_window, l->kl_window, c.window_tokens, c.window_document,
                                            c.n_windows, 0.95, &x, &e), e);
            assert_true(stats_is_tie(&x) && x.mean > 0 && t->bpp <= atof(bpps[i]));
            assert_true(measured[k] == x.mean && own[k] == x.error);
            double truth = kl / predicts * (made_kl(&world.made, t->assignment) - made_kl(&world.made, l->assignment));
            assert_true(fabs(predicted[k] - truth) < 6 * other[k] + 1e-9 && other[k] > 0);
            assert_true(fabs(pooled[k] - share * measured[k] - (1 - share) * predicted[k]) < 1e-12);
            if (pooled[k] < least) {
                least = pooled[k];
                best = ids[k];
            }
        }
        assert_int_equal(chosen, best);
        double before = made_kl(&world.made, c.list[lowest].assignment);
        double after = made_kl(&world.made, c.list[chosen].assignment);
        assert_true(after <= before);
        moved += after < before;
        mem_free(other);
        mem_free(predicted);
        mem_free(own);
        mem_free(measured);
        mem_free(pooled);
        mem_free(ids);
        object_close(o);
    }
    assert_true(moved > 0);
    struct object *plain = run_fine(&node_select, "plain", (struct setting[]){{"rows", rows, NULL}, {0}});
    o = run_fine(&node_select, "knee", (struct setting[]){{"rows", rows, NULL}, {"probe", probe, NULL}, {0}});
    assert_equal_objects(plain, o, false);
    object_close(o);
    object_close(plain);
    object_close(probe);
    candidates_fini(&c);
    object_close(rows);
}

static void select_needs_a_complete_row(void **state)
{
    (void)state;
    struct err e;
    struct candidates c;
    struct object *o;
    uint64_t seed = 1;
    made_table(&world.made, &c);
    made_random(&world.made, &c, &seed);
    struct object *rows = made_object(&world.made, &c, world.store, "unmeasured");
    assert_err(run_node(&node_select, "select", (struct setting[]){{"rows", rows, NULL}, {0}}, &o, &e), e, ERR_INPUT,
               "none of the 1 candidates was measured on all windows");
    object_close(rows);
    candidates_fini(&c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(select_finds_frontier_and_knee),
        cmocka_unit_test(each_point_of_the_frontier_is_left_out_in_turn),
        cmocka_unit_test(the_mass_is_the_share_of_resamples_with_the_same_knee),
        cmocka_unit_test(both_scales_have_a_knee_and_one_of_them_counts),
        cmocka_unit_test(who_is_beaten_is_told_by_how_much_and_ties_are_called_ties),
        cmocka_unit_test(select_is_the_same_twice_and_other_with_another_seed_only_in_mass),
        cmocka_unit_test(the_knee_does_not_hang_on_the_noise_of_a_lossless_candidate),
        cmocka_unit_test(select_keeps_budgets_and_ceilings),
        cmocka_unit_test(probes_have_a_say_in_ties),
        cmocka_unit_test(select_needs_a_complete_row),
    };
    return cmocka_run_group_tests(tests, world_set_up, world_tear_down);
}
