/* Costs and pairs from responses that are drawn here, with moments that are known. */
#include "nodes/search/probes.h"

#include "tests/nodes/search/objects.h"

#define UNITS 12
#define PROBES 16
#define WINDOWS 24

static double uniform(uint64_t *seed) { return ((double)(stats_random(seed) >> 11) + 0.5) * 0x1p-53; }

static double normal(uint64_t *seed) { return sqrt(-2 * log(uniform(seed))) * cos(2 * M_PI * uniform(seed)); }

struct drawn {
    struct made made;
    double *response;
    uint32_t tokens[WINDOWS], document[WINDOWS];
    struct probes p;
};

static double deviation(int unit, int format) { return format == 3 ? 0 : (1 + unit) * (format == 2 ? 0.1 : 1); }

/* Independent responses, but for units 3 and 7, which share `shared` of their variance. */
static void draw(struct drawn *d, double shared, uint64_t seed)
{
    struct err e;
    made_init(&d->made, UNITS, 1, 1);
    assert_ok(mem_new(&d->response, (size_t)UNITS * MADE_FORMATS * PROBES * WINDOWS, &e), e);
    for (uint32_t w = 0; w < WINDOWS; w++) {
        d->tokens[w] = 100 + w;
        d->document[w] = w / 2;
    }
    for (uint32_t s = 0; s < PROBES * WINDOWS; s++) {
        double common = normal(&seed);
        for (int u = 0; u < UNITS; u++) {
            double own = normal(&seed), x = u == 3 || u == 7 ? sqrt(shared) * common + sqrt(1 - shared) * own : own;
            for (int f = 0; f < MADE_FORMATS; f++) {
                size_t at = (size_t)(u * MADE_FORMATS + f) * PROBES * WINDOWS + s;
                d->response[at] = d->made.menu.available[u * MADE_FORMATS + f] ? x * deviation(u, f) : NAN;
            }
        }
    }
    d->p = (struct probes){&d->made.menu, PROBES, WINDOWS, d->response, d->tokens, d->document, NULL};
}

static void done(struct drawn *d)
{
    mem_free(d->response);
    made_fini(&d->made);
}

static void costs_are_half_the_mean_square_per_position(void **state)
{
    (void)state;
    struct err e;
    struct drawn d;
    double cost[UNITS * MADE_FORMATS], error[UNITS * MADE_FORMATS], per_token = WINDOWS / (100 * WINDOWS + 276.0);
    int inside = 0, n = 0;
    draw(&d, 0, 5);
    assert_ok(probes_costs(&d.p, cost, error, &e), e);
    for (int u = 0; u < UNITS; u++)
        for (int f = 0; f < MADE_FORMATS; f++) {
            int at = u * MADE_FORMATS + f;
            double want = 0.5 * deviation(u, f) * deviation(u, f) * per_token;
            if (!d.made.menu.available[at]) {
                assert_true(isnan(cost[at]) && isnan(error[at]));
            } else if (f == 3) {
                assert_true(cost[at] == 0 && error[at] == 0);
            } else {
                assert_true(fabs(cost[at] / want - 1) < 0.35); /* the error is sqrt(2 / 384) = 7 % */
                assert_true(error[at] > 0.02 * want && error[at] < 0.2 * want);
                inside += fabs(cost[at] - want) < 2 * error[at];
                n++;
            }
        }
    assert_true(inside > 0.8 * n);
    done(&d);
}

static void only_units_that_interact_are_paired(void **state)
{
    (void)state;
    struct err e;
    struct drawn d;
    struct probe_pairs pairs;
    draw(&d, 0.6, 6);
    assert_ok(probes_pairs(&d.p, 5, &pairs, &e), e);
    assert_int_equal(pairs.n_tested, UNITS * (UNITS - 1) / 2);
    assert_int_equal(pairs.n, 1);
    double all = 9 * UNITS * (UNITS - 1) / 2.0, share = 9 / all; /* pairs of cells that respond, and those of the two */
    assert_true(fabs(pairs.spread - 0.6 * sqrt(share)) < 0.2 * 0.6 * sqrt(share));
    assert_int_equal(pairs.units[0][0], 3);
    assert_int_equal(pairs.units[0][1], 7);
    double per_token = WINDOWS / (100 * WINDOWS + 276.0);
    const double *table = pairs.cost;
    for (int f = 0; f < MADE_FORMATS; f++)
        for (int g = 0; g < MADE_FORMATS; g++) {
            double want = pairs.kept * 0.6 * deviation(3, f) * deviation(7, g) * per_token;
            assert_true(fabs(table[f * MADE_FORMATS + g] - want) <= 0.25 * fabs(want));
        }
    probe_pairs_fini(&pairs);
    done(&d);
}

/* Nothing but noise: nearly everything is shrunk away; kept all, a pair of units is listed once, in order. */
static void noise_is_shrunk(void **state)
{
    (void)state;
    struct err e;
    struct drawn d;
    struct probe_pairs pairs;
    draw(&d, 0, 7);
    assert_ok(probes_pairs(&d.p, 0, &pairs, &e), e);
    assert_true(pairs.kept < 0.35 && pairs.spread < 0.03); /* of an r's standard error, 0.05 */
    for (size_t i = 1; i < pairs.n; i++)
        assert_true(pairs.units[i - 1][0] < pairs.units[i][0] ||
                    (pairs.units[i - 1][0] == pairs.units[i][0] && pairs.units[i - 1][1] < pairs.units[i][1]));
    probe_pairs_fini(&pairs);
    assert_ok(probes_pairs(&d.p, 6, &pairs, &e), e);
    assert_int_equal(pairs.n, 0);
    probe_pairs_fini(&pairs);
    done(&d);
}

/* The error of a shrunk cost by its definition: over documents, of two windows each, of the mixture of what the
 * responses and the local squares say of a window, and of what the share may be wrong by. */
static double shrunk_error(const struct drawn *d, const double *local, size_t cell, double share, double cost)
{
    double of[2][WINDOWS] = {{0}}, sum[2] = {0}, tokens = 0, noise = 0, squares = 0;
    for (int w = 0; w < WINDOWS; w++) {
        double all = 0;
        for (int k = 0; k < PROBES; k++) {
            double r = d->response[(cell * PROBES + (size_t)k) * WINDOWS + (size_t)w];
            of[0][w] += r * r / 2 / PROBES;
            all += r * r * r * r / 4;
        }
        of[1][w] = local[cell * WINDOWS + (size_t)w];
        noise += (all / PROBES - of[0][w] * of[0][w]) / (PROBES - 1);
        sum[0] += of[0][w];
        sum[1] += of[1][w];
        tokens += d->tokens[w];
    }
    for (int w = 0; w < WINDOWS; w += 2) {
        double apart = 0;
        for (int i = w; i < w + 2; i++)
            apart += cost * (share * tokens * of[0][i] / sum[0] + (1 - share) * tokens * of[1][i] / sum[1] -
                             d->tokens[i]);
        squares += apart * apart;
    }
    const double documents = WINDOWS / 2, v = noise / (sum[0] * sum[0]);
    return sqrt(documents / (documents - 1) * squares / (tokens * tokens) + share * (1 - share) * v * cost * cost);
}

/* Costs whose true logarithms lie `spread` around those of the local squares: errors of the logarithm before and after,
 * over units of the first format, and the share that was kept. */
static void shrink(double spread, uint64_t seed, double before_after[2], double *kept)
{
    struct err e;
    struct drawn d;
    double cost[UNITS * MADE_FORMATS], error[UNITS * MADE_FORMATS], truth[UNITS], *local;
    double old[UNITS * MADE_FORMATS], shares[UNITS * MADE_FORMATS], per_token = WINDOWS / (100 * WINDOWS + 276.0);
    draw(&d, 0, seed);
    assert_ok(mem_new(&local, (size_t)UNITS * MADE_FORMATS * WINDOWS, &e), e);
    for (int u = 0; u < UNITS; u++) {
        truth[u] = 0.5 * deviation(u, 1) * deviation(u, 1) * per_token;
        double factor = 7 * exp(-spread * normal(&seed)); /* the mean ratio may be anything */
        for (int f = 0; f < MADE_FORMATS; f++)
            for (int w = 0; w < WINDOWS; w++)
                local[(u * MADE_FORMATS + f) * WINDOWS + w] = factor * deviation(u, f) * deviation(u, f);
    }
    assert_ok(probes_costs(&d.p, cost, error, &e), e);
    memcpy(old, cost, sizeof old);
    d.p.local = local;
    assert_ok(probes_shrink(&d.p, cost, error, shares, &e), e);
    for (int u = 0; u < UNITS; u++) {
        size_t at = (size_t)(u * MADE_FORMATS + 1);
        double x = log(old[at] / truth[u]), y = log(cost[at] / truth[u]);
        before_after[0] += x * x;
        before_after[1] += y * y;
        *kept += shares[at] / UNITS;
        assert_true(shares[at + 2] == 1); /* costs nothing */
        assert_true(fabs(error[at] - shrunk_error(&d, local, at, shares[at], cost[at])) < 1e-9 * cost[at]);
        assert_true(cost[u * MADE_FORMATS + 3] == 0 || isnan(cost[u * MADE_FORMATS + 3]));
    }
    mem_free(local);
    done(&d);
}

static void costs_are_drawn_to_the_local_squares_as_far_as_those_are_right(void **state)
{
    (void)state;
    static const double spreads[] = {0, 0.1, 1};
    double error[3][2] = {{0}}, kept[3] = {0};
    for (int i = 0; i < 3; i++)
        for (uint64_t seed = 1; seed <= 10; seed++) {
            double share = 0;
            shrink(spreads[i], 100 * seed, error[i], &share);
            kept[i] += share / 10;
        }
    assert_true(kept[0] < 0.3 && kept[0] < kept[1] && kept[1] < kept[2] && kept[2] > 0.95);
    assert_true(error[0][1] < 0.4 * error[0][0]);
    assert_true(error[1][1] < error[1][0]); /* 12 units say little about a spread */
    assert_true(error[2][1] < 1.05 * error[2][0]);
}

/* What pairs may add to a difference: the variance of a sum over all pairs that the two do not share, term by term. */
static void check_spread(struct drawn *d, struct store *store, const double *cost, const double *local,
                         const uint8_t *a, const uint8_t *b, const struct stats_difference *alone)
{
    struct err e;
    struct probe_windows p;
    struct stats_difference x;
    const double spread = 0.02, scale = 1.5;
    const uint8_t *side[] = {a, b};
    double variance = 0;
    struct object *o = made_probe(&d->made, store, "spread", cost, 1, spread, d->response, local, PROBES, WINDOWS,
                                  d->tokens, d->document);
    assert_ok(probe_windows_read(&p, &d->made.menu, o, "spread", &e), e);
    for (int u = 0; u < UNITS; u++)
        for (int v = u + 1; v < UNITS; v++)
            for (int i = 0; i < 2 && (a[u] != b[u] || a[v] != b[v]); i++)
                variance += 4 * spread * spread * cost[u * MADE_FORMATS + side[i][u]] *
                            cost[v * MADE_FORMATS + side[i][v]];
    assert_ok(probe_windows_difference(&p, a, b, scale, &x, &e), e);
    double documents = x.error * x.error / scale / scale - variance, half = (x.high - x.low) / 2;
    assert_true(documents > 0 && fabs(x.mean - scale * alone->mean) < 1e-9 * fabs(x.mean));
    assert_true(fabs(half / x.error - (alone->high - alone->low) / 2 / alone->error) < 1e-9);
    p.spread = 0;
    assert_ok(probe_windows_difference(&p, a, b, scale, &x, &e), e);
    assert_true(fabs(x.error * x.error / scale / scale / documents - 1) < 1e-9);
    probe_windows_fini(&p);
    object_close(o);
}

/* The difference of two assignments, window by window, against sums done here; and what is wrong with an object. */
static void assignments_are_compared_by_windows(void **state)
{
    (void)state;
    struct err e;
    struct drawn d;
    struct probe_windows p;
    struct stats_difference x, want;
    uint8_t a[UNITS], b[UNITS];
    double of[2][WINDOWS] = {{0}}, cost[UNITS * MADE_FORMATS], error[UNITS * MADE_FORMATS], energy = 0;
    double local[UNITS * MADE_FORMATS * WINDOWS], tokens = 0;
    const double kept = 0.3;
    char folder[256], path[300];
    struct store *store;
    draw(&d, 0, 8);
    check_dir_make(folder);
    snprintf(path, sizeof path, "%s/store", folder);
    assert_ok(store_open(&store, path, &e), e);
    assert_ok(probes_costs(&d.p, cost, error, &e), e);
    for (size_t i = 0; i < COUNT(local); i++)
        local[i] = (double)(3 + i / WINDOWS % 5 + i % WINDOWS % 7);
    for (int w = 0; w < WINDOWS; w++)
        tokens += d.tokens[w];
    struct object *o = made_probe(&d.made, store, "probe", cost, kept, 0, d.response, local, PROBES, WINDOWS, d.tokens,
                                  d.document);
    assert_ok(probe_windows_read(&p, &d.made.menu, o, "probe", &e), e);
    for (int u = 0; u < UNITS; u++) {
        b[u] = 1;
        a[u] = u % 3 ? 1 : 2;
        energy += cost[u * MADE_FORMATS + b[u]];
        for (int side = 0; side < 2; side++) {
            size_t cell = (size_t)(u * MADE_FORMATS + (side ? b[u] : a[u]));
            double sum = 0;
            for (uint32_t w = 0; w < WINDOWS; w++)
                sum += local[cell * WINDOWS + w];
            for (uint32_t w = 0; w < WINDOWS; w++) {
                of[side][w] += (1 - kept) * cost[cell] * tokens * local[cell * WINDOWS + w] / sum / d.tokens[w];
                for (int k = 0; k < PROBES; k++) {
                    double r = d.response[(cell * PROBES + (size_t)k) * WINDOWS + w];
                    of[side][w] += kept * 0.5 * r * r / PROBES / d.tokens[w];
                }
            }
        }
    }
    assert_ok(stats_paired_interval(of[0], of[1], d.tokens, d.document, WINDOWS, 0.95, &want, &e), e);
    assert_true(fabs(probe_windows_cost(&p, b) - energy) < 1e-12 * energy);
    assert_ok(probe_windows_difference(&p, a, b, 1, &x, &e), e);
    assert_true(x.mean < 0 && fabs(x.mean - want.mean) < 1e-12 * fabs(want.mean) && x.documents == WINDOWS / 2);
    assert_true(fabs(x.error - want.error) < 1e-9 * want.error && fabs(x.low - want.low) < 1e-9 * fabs(want.low));
    assert_ok(probe_windows_difference(&p, a, b, 2, &x, &e), e);
    assert_true(fabs(x.mean - 2 * want.mean) < 1e-9 * fabs(want.mean) &&
                fabs(x.high - 2 * want.high) < 1e-9 * fabs(want.high));
    assert_ok(probe_windows_difference(&p, a, a, 1, &x, &e), e);
    assert_true(x.mean == 0 && x.error == 0);
    probe_windows_fini(&p);
    object_close(o);
    check_spread(&d, store, cost, local, a, b, &want);
    struct writer *w;
    struct key k = made_key("other windows");
    assert_ok(writer_new(&w, store, &k, "probe/1", &e) &&
              writer_add_strings(w, "units/name", (const char *const *)d.made.menu.unit_names, UNITS, "unit", "", &e) &&
              writer_add_strings(w, "formats/name", (const char *const *)d.made.menu.format_names, MADE_FORMATS,
                                 "format", "", &e), e);
    made_add(w, "response", DTYPE_F64, UNITS * MADE_FORMATS * PROBES, WINDOWS, d.response);
    made_add(w, "windows/tokens", DTYPE_U32, WINDOWS - 1, 0, d.tokens);
    made_add(w, "windows/document", DTYPE_U32, WINDOWS - 1, 0, d.document);
    o = made_commit(store, w, "other windows");
    assert_err(probe_windows_read(&p, &d.made.menu, o, "probe", &e), e, ERR_INPUT, "'probe' has 18432 responses for 48 "
               "pairs of unit and format in 23 windows, of which 23 have a document");
    object_close(o);
    store_close(store);
    check_dir_remove(folder);
    done(&d);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(costs_are_half_the_mean_square_per_position),
        cmocka_unit_test(only_units_that_interact_are_paired),
        cmocka_unit_test(noise_is_shrunk),
        cmocka_unit_test(costs_are_drawn_to_the_local_squares_as_far_as_those_are_right),
        cmocka_unit_test(assignments_are_compared_by_windows),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
