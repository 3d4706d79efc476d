/* Do intervals cover as often as they say, and does racing err as seldom as it says? Simulations with known truth:
 * documents of log-normal KL, and documents drawn with replacement from those of real runs (the file of the argument,
 * tests/golden/kl_documents.txt), whose mean is then the truth. Everything is seeded, so that figures are the same
 * everywhere. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "nodes/search/race.h"
#include "nodes/search/stats.h"

#define MEANS 20000   /* repetitions for an interval */
#define RACES 4000
#define MOST 64       /* documents */
#define MOST_CANDIDATES 32
#define POSITIONS 255

static const uint32_t documents[] = {4, 8, 16, 32};

/* ------------------------------------------------------------------------------------------------------------- laws */

static double uniform(uint64_t *s) { return (double)(stats_random(s) >> 11) * 0x1p-53; }

static double normal(uint64_t *s) /* Box and Muller */
{
    double u = 1 - uniform(s), v = uniform(s);
    return sqrt(-2 * log(u)) * cos(2 * M_PI * v);
}

/* KLs of candidates on documents, with means that are known. */
struct law {
    const char *name;
    double spread, own; /* log-normal: standard deviations of the logarithm of what candidates share, and of the rest */
    double odd;         /* share of documents of another kind, with four times the KL */
    const double *pool; /* [n_candidates, n_documents], or NULL: log-normal */
    size_t n_candidates, n_documents;
    bool is_null;       /* all means are made equal */
};

static double pool_mean(const struct law *l, size_t candidate)
{
    double sum = 0;
    for (size_t d = 0; d < l->n_documents; d++)
        sum += l->pool[candidate * l->n_documents + d];
    return sum / (double)l->n_documents;
}

static double true_mean(const struct law *l, size_t candidate)
{
    return l->pool && !l->is_null ? pool_mean(l, candidate) : 1;
}

/* x[candidate, document], documents apart by MOST. */
static void draw(const struct law *l, size_t candidates, uint32_t n, double *x, uint64_t *s)
{
    for (uint32_t d = 0; d < n; d++) {
        size_t at = l->pool ? stats_below(s, l->n_documents) : 0;
        double shared = l->pool ? 0 : l->spread * normal(s) - l->spread * l->spread / 2 - l->own * l->own / 2;
        double kind = !(l->odd > 0) ? 1 : (uniform(s) < l->odd ? 4 : 1) / (1 + 3 * l->odd);
        for (size_t c = 0; c < candidates; c++)
            x[c * MOST + d] = l->pool ? l->pool[c * l->n_documents + at] / (l->is_null ? pool_mean(l, c) : 1)
                                      : kind * exp(shared + l->own * normal(s));
    }
}

/* -------------------------------------------------------------------------------------------------------- intervals */

static void fail(const struct err *e)
{
    fprintf(stderr, "coverage: %s\n", e->text);
    exit(1);
}

/* Coverage of a candidate's mean by the plain interval and by the one that is used, and how often the latter lies below
 * the truth. */
static void means(const struct law *l, uint64_t seed)
{
    struct err e;
    size_t candidates = l->pool ? l->n_candidates : 1;
    printf("| %s |", l->name);
    for (size_t k = 0; k < sizeof documents / sizeof *documents; k++) {
        uint32_t n = documents[k], document[MOST];
        long plain = 0, used = 0, below = 0, all = 0;
        for (uint32_t d = 0; d < n; d++)
            document[d] = d;
        for (long round = 0; round < MEANS / (long)candidates; round++) {
            double x[MOST_CANDIDATES * MOST], weight[MOST], low, high;
            draw(l, candidates, n, x, &seed);
            for (size_t c = 0; c < candidates; c++, all++) {
                double truth = true_mean(l, c);
                for (uint32_t d = 0; d < n; d++)
                    weight[d] = POSITIONS, x[c * MOST + d] *= POSITIONS;
                if (!stats_cluster_interval(x + c * MOST, weight, document, n, 0.95, &low, &high, &e))
                    fail(&e);
                plain += low <= truth && truth <= high;
                if (!stats_positive_interval(x + c * MOST, weight, document, n, 0.95, &low, &high, &e))
                    fail(&e);
                used += low <= truth && truth <= high;
                below += high < truth;
            }
        }
        printf(" %.1f / **%.1f** (%.1f) |", 100.0 * (double)plain / (double)all, 100.0 * (double)used / (double)all,
               100.0 * (double)below / (double)all);
    }
    printf("\n");
}

/* Coverage of the differences of all pairs of candidates. */
static void differences(const struct law *l, uint64_t seed)
{
    struct err e;
    size_t candidates = l->pool ? l->n_candidates : 2, pairs = candidates * (candidates - 1) / 2;
    printf("| %s |", l->name);
    for (size_t k = 0; k < sizeof documents / sizeof *documents; k++) {
        uint32_t n = documents[k], document[MOST], positions[MOST];
        long covered = 0, all = 0;
        for (uint32_t d = 0; d < n; d++)
            document[d] = d, positions[d] = POSITIONS;
        for (long round = 0; round * (long)pairs < MEANS; round++) {
            double x[MOST_CANDIDATES * MOST];
            draw(l, candidates, n, x, &seed);
            for (size_t a = 0; a < candidates; a++)
                for (size_t b = 0; b < a; b++, all++) {
                    double truth = true_mean(l, a) - true_mean(l, b);
                    struct stats_difference d;
                    if (!stats_paired_interval(x + a * MOST, x + b * MOST, positions, document, n, 0.95, &d, &e))
                        fail(&e);
                    covered += d.low <= truth && truth <= d.high;
                }
        }
        printf(" %.1f |", 100.0 * (double)covered / (double)all);
    }
    printf("\n");
}

/* ----------------------------------------------------------------------------------------------------------- racing */

/* One race of candidates whose sizes ascend. *wrong: somebody was dropped by one that is no better. */
static void race_once(const struct law *l, size_t candidates, uint32_t n, const double *x, uint64_t seed, bool *wrong,
                      size_t *drops, size_t *saved)
{
    struct err e;
    struct candidates c;
    struct race r;
    uint32_t tokens[MOST], document[MOST];
    const struct menu menu = {.n_units = 1, .n_formats = MOST_CANDIDATES, .total_parameters = 8,
                              .bytes = (uint64_t[MOST_CANDIDATES]){0}};
    for (uint32_t d = 0; d < n; d++)
        tokens[d] = POSITIONS, document[d] = d;
    if (!candidates_init(&c, 1, n, tokens, document, &e))
        fail(&e);
    for (size_t i = 0; i < candidates; i++) {
        const uint8_t assignment[1] = {(uint8_t)i};
        menu.bytes[i] = 1000 + i;
        if (!candidates_add(&c, &menu, assignment, "archive", -1, &e))
            fail(&e);
    }
    if (!race_init(&r, &c, &(struct race_options){0.05, 3, seed}, &e))
        fail(&e);
    for (uint32_t stage = 0; stage < r.n_stages; stage++) {
        for (size_t i = 0; i < candidates; i++)
            for (uint32_t k = stage ? r.end[stage - 1] : 0; k < r.end[stage] && c.list[i].dropped_at < 0; k++) {
                c.list[i].kl_window[r.windows[k]] = x[i * MOST + r.windows[k]];
                c.list[i].n_windows++;
            }
        if (!race_look(&r, &c, stage, &e))
            fail(&e);
    }
    *wrong = false;
    *drops = r.n_drops;
    *saved = 0;
    for (size_t i = 0; i < r.n_drops; i++) {
        *wrong = *wrong || true_mean(l, r.drops[i].candidate) <= true_mean(l, r.drops[i].by);
        *saved += n - c.list[r.drops[i].candidate].n_windows;
    }
    race_fini(&r);
    candidates_fini(&c);
}

static void races(const struct law *l, size_t candidates, uint64_t seed)
{
    printf("| %s, %zu |", l->name, candidates);
    for (uint32_t n = 8; n <= MOST; n *= 2) {
        size_t wrong = 0, dropped = 0, saved = 0;
        for (int round = 0; round < RACES; round++) {
            double x[MOST_CANDIDATES * MOST];
            bool is_wrong;
            size_t drops, windows;
            draw(l, candidates, n, x, &seed);
            race_once(l, candidates, n, x, (uint64_t)round, &is_wrong, &drops, &windows);
            wrong += is_wrong;
            dropped += drops;
            saved += windows;
        }
        printf(" %.2f %% / %.2f / %.1f %% |", 100.0 * (double)wrong / RACES, (double)dropped / RACES,
               100.0 * (double)saved / ((double)RACES * (double)candidates * n));
        fflush(stdout);
    }
    printf("\n");
}

/* -------------------------------------------------------------------------------------------------------- real runs */

/* The lines of the file that begin with `model`. */
static void read_pool(const char *path, const char *model, struct law *out)
{
    static double values[2][MOST_CANDIDATES * 1024];
    static int used;
    double *pool = values[used++];
    char *line = NULL;
    size_t room = 0, n = 0, documents_of = 0;
    FILE *f = fopen(path, "r");
    if (!f) {
        fprintf(stderr, "coverage: cannot read %s\n", path);
        exit(1);
    }
    for (; getline(&line, &room, f) > 0 && n < MOST_CANDIDATES;) {
        char *at = line + strlen(model), *end;
        if (strncmp(line, model, strlen(model)) != 0)
            continue;
        size_t first = n * documents_of, count = 0;
        for (double x; x = strtod(at, &end), end > at && count < 1024; at = end)
            pool[first + count++] = x;
        documents_of = n++ == 0 ? count : documents_of;
        if (count != documents_of || count == 0) {
            fprintf(stderr, "coverage: %s: candidates of '%s' have %zu and %zu documents\n", path, model, documents_of,
                    count);
            exit(1);
        }
    }
    free(line);
    fclose(f);
    out->pool = pool;
    out->n_candidates = n;
    out->n_documents = documents_of;
}

int main(int argc, char **argv)
{
    if (argc != 2) {
        fprintf(stderr, "usage: bench_coverage tests/golden/kl_documents.txt\n");
        return 1;
    }
    struct law laws[] = {{.name = "log-normal, 0.15", .spread = 0.13, .own = 0.075},
                         {.name = "log-normal, 0.26", .spread = 0.23, .own = 0.12},
                         {.name = "log-normal, 0.52", .spread = 0.46, .own = 0.24},
                         {.name = "0.26, one in ten documents of 4 times the KL", .spread = 0.23, .own = 0.12,
                          .odd = 0.1},
                         {.name = "babyllama-1m, TinyStories"},
                         {.name = "SmolLM2-135M, WikiText"}};
    read_pool(argv[1], "babyllama-1m", &laws[4]);
    read_pool(argv[1], "SmolLM2-135M", &laws[5]);
    printf("mean KL, 95 %%: plain / used (truth above it), in %%\n\n| documents | 4 | 8 | 16 | 32 |\n"
           "|---|---|---|---|---|\n");
    for (size_t i = 0; i < sizeof laws / sizeof *laws; i++)
        means(&laws[i], 1 + i);
    printf("\npaired differences, 95 %%: coverage in %%\n\n| documents | 4 | 8 | 16 | 32 |\n|---|---|---|---|---|\n");
    for (size_t i = 0; i < sizeof laws / sizeof *laws; i++)
        differences(&laws[i], 11 + i);
    printf("\nracing at 5 %%: races with a wrong drop / drops a race / tokens saved\n\n"
           "| candidates | 8 | 16 | 32 | 64 documents |\n|---|---|---|---|---|\n");
    races(&laws[4], laws[4].n_candidates, 21);
    for (size_t i = 0; i < 6; i++) { /* the last: more candidates */
        char name[96];
        struct law null = laws[i < 5 ? i : 1];
        snprintf(name, sizeof name, "%s, all equal", null.name);
        null.name = name;
        null.is_null = true;
        races(&null, i < 5 ? 16 : 32, 31 + i);
    }
    return 0;
}
