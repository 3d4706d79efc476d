/* `scout inspect`: what a checkpoint holds, unit by unit, and all that is wrong with it. What it checks is in
 * nodes/inspect; here it is asked and printed. */
#include "nodes/inspect/inspect.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "engine/cli/cli.h"

enum { MOST_TP = 32, LARGEST_TP = 4096 };

/* The sizes of all --tp, each a number or a list with commas. */
static bool read_tp(const struct args *a, int out[MOST_TP], size_t *n, struct err *e)
{
    size_t n_values;
    const char *const *values = args_values(a, "--tp", &n_values);
    *n = 0;
    for (size_t i = 0; i < n_values; i++)
        for (const char *at = values[i];; at++) {
            char *end;
            long size = *at >= '0' && *at <= '9' ? strtol(at, &end, 10) : 0;
            if (size < 1 || size > LARGEST_TP || (*end && *end != ','))
                return err_set(e, ERR_USAGE, "--tp '%s': a number from 1 to %d is expected, or several with commas",
                               values[i], LARGEST_TP);
            if (*n == MOST_TP)
                return err_set(e, ERR_USAGE, "--tp: more than %d sizes", MOST_TP);
            out[(*n)++] = (int)size;
            at = end;
            if (!*at)
                break;
        }
    return true;
}

/* ----------------------------------------------------------------------------------------------------------- tables */

static double bits(uint64_t bytes, uint64_t parameters)
{
    return parameters ? 8.0 * (double)bytes / (double)parameters : (double)NAN;
}

static void print_units(const struct inspection *x)
{
    int width = 4;
    char shape[64], error[32], bpp[32];
    for (size_t i = 0; i < x->n_units; i++)
        width = (int)strlen(x->units[i].name) > width ? (int)strlen(x->units[i].name) : width;
    width = width > 80 ? 80 : width;
    if (x->n_units > 0)
        printf("%-*s  %-13s  %16s  %8s  %12s  %8s  %s\n", width, "unit", "scheme", "shape", "matrices", "bytes", "bpp",
               "error");
    for (size_t i = 0; i < x->n_units; i++) {
        const struct inspect_unit *u = &x->units[i];
        snprintf(shape, sizeof shape, "[%lld, %lld]", (long long)u->n, (long long)u->k);
        snprintf(error, sizeof error, "%.4g", u->error);
        snprintf(bpp, sizeof bpp, "%.4f", bits(u->bytes, u->parameters));
        printf("%-*s  %-13s  %16s  %8zu  %12llu  %8s  %s\n", width, u->name, u->scheme, u->k > 0 ? shape : "-",
               u->n_matrices, (unsigned long long)u->bytes, u->parameters ? bpp : "-", isnan(u->error) ? "-" : error);
    }
}

static void print_totals(const struct inspection *x)
{
    char units[16], others[16];
    size_t n = 0;
    for (size_t i = 0; i < x->n_units; i++)
        n += x->units[i].is_counted;
    printf("%s%zu unit%s: %llu bytes (%s), %llu weights, %.6g bpp; other tensors: %llu bytes (%s); %zu tensors in %zu "
           "file%s%s\n",
           x->n_units ? "\n" : "", n, n == 1 ? "" : "s", (unsigned long long)x->unit_bytes,
           str_size(x->unit_bytes, units), (unsigned long long)x->unit_parameters,
           x->unit_parameters ? bits(x->unit_bytes, x->unit_parameters) : 0,
           (unsigned long long)(x->bytes - x->unit_bytes), str_size(x->bytes - x->unit_bytes, others), x->n_tensors,
           x->n_files, x->n_files == 1 ? "" : "s", x->is_quantized ? "" : "; not quantized by compressed-tensors");
}

static void print_findings(const struct report *r)
{
    static const char *const words[] = {[FINDING_ERROR] = "error", [FINDING_WARNING] = "warning"};
    for (size_t i = 0; i < r->n; i++) {
        const struct finding *f = &r->list[i];
        printf("%s: check %d: %s: %s; expected: %s\n", words[f->severity], f->check, f->place, f->found, f->expected);
    }
    for (int check = 1; check <= N_CHECKS; check++)
        for (int s = FINDING_ERROR; s <= FINDING_WARNING; s++)
            if (r->checks[check].count[s] > KEPT_FINDINGS)
                printf("%s: check %d: %llu more of them\n", words[s], check,
                       (unsigned long long)(r->checks[check].count[s] - KEPT_FINDINGS));
}

/* "run: 1 2 3" of those checks that were run so; nothing when there is none. */
static void print_numbers(const struct report *r, enum check_run run, const char *title, bool *is_first)
{
    bool any = false;
    for (int check = 1; check <= N_CHECKS; check++) {
        if (r->checks[check].run != run)
            continue;
        if (!any)
            printf("%s%s", *is_first ? "" : "; ", title);
        printf(" %d", check);
        any = true;
        *is_first = false;
    }
}

static void print_verdict(const struct report *r)
{
    uint64_t errors = report_count(r, FINDING_ERROR), warnings = report_count(r, FINDING_WARNING);
    bool is_first = true;
    for (int check = 1; check <= N_CHECKS; check++)
        if (r->checks[check].run != CHECK_RUN)
            printf("check %d (%s) %s: %s\n", check, report_title(check),
                   r->checks[check].run == CHECK_PARTLY ? "in part" : "not run", r->checks[check].why);
    printf("verdict: %s: %llu error%s, %llu warning%s; checks ", errors ? "broken" : "sound",
           (unsigned long long)errors, errors == 1 ? "" : "s", (unsigned long long)warnings,
           warnings == 1 ? "" : "s");
    print_numbers(r, CHECK_RUN, "run:", &is_first);
    print_numbers(r, CHECK_PARTLY, "in part:", &is_first);
    print_numbers(r, CHECK_NOT_RUN, "not run:", &is_first);
    printf("\n");
}

/* ------------------------------------------------------------------------------------------------------------- JSON */

static void add_field(struct str *s, const char *name, const char *text)
{
    str_printf(s, ",\"%s\":", name);
    str_add_json(s, text);
}

static void add_number(struct str *s, const char *name, double x)
{
    str_printf(s, ",\"%s\":", name);
    str_add_json_double(s, x);
}

static void json_unit(const struct inspect_unit *u)
{
    struct str s = {0};
    str_add(&s, "{\"event\":\"unit\"");
    add_field(&s, "unit", u->name);
    add_field(&s, "scheme", u->scheme);
    if (u->k > 0)
        str_printf(&s, ",\"rows\":%lld,\"columns\":%lld", (long long)u->n, (long long)u->k);
    str_printf(&s, ",\"matrices\":%zu,\"parameters\":%llu,\"bytes\":%llu,\"counted\":%s", u->n_matrices,
               (unsigned long long)u->parameters, (unsigned long long)u->bytes, u->is_counted ? "true" : "false");
    add_number(&s, "bpp", bits(u->bytes, u->parameters));
    add_number(&s, "error", u->error);
    add_number(&s, "largest_error", u->most);
    str_add(&s, "}");
    cli_print_json(&s, "unit");
}

static void json_finding(const struct finding *f)
{
    struct str s = {0};
    str_printf(&s, "{\"event\":\"finding\",\"check\":%d,\"severity\":\"%s\"", f->check,
               f->severity == FINDING_ERROR ? "error" : "warning");
    add_field(&s, "place", f->place);
    add_field(&s, "found", f->found);
    add_field(&s, "expected", f->expected);
    str_add(&s, "}");
    cli_print_json(&s, "finding");
}

static void json_check(const struct report *r, int check)
{
    static const char *const runs[] = {[CHECK_RUN] = "yes", [CHECK_PARTLY] = "partly", [CHECK_NOT_RUN] = "no"};
    const struct check_state *c = &r->checks[check];
    struct str s = {0};
    str_printf(&s, "{\"event\":\"check\",\"check\":%d", check);
    add_field(&s, "title", report_title(check));
    add_field(&s, "run", runs[c->run]);
    if (c->why)
        add_field(&s, "why", c->why);
    str_printf(&s, ",\"errors\":%llu,\"warnings\":%llu}", (unsigned long long)c->count[FINDING_ERROR],
               (unsigned long long)c->count[FINDING_WARNING]);
    cli_print_json(&s, "check");
}

static void print_json(const struct inspection *x)
{
    struct str s = {0};
    for (size_t i = 0; i < x->n_units; i++)
        json_unit(&x->units[i]);
    for (size_t i = 0; i < x->report.n; i++)
        json_finding(&x->report.list[i]);
    for (int check = 1; check <= N_CHECKS; check++)
        json_check(&x->report, check);
    str_printf(&s, "{\"event\":\"result\",\"errors\":%llu,\"warnings\":%llu,\"quantized\":%s",
               (unsigned long long)report_count(&x->report, FINDING_ERROR),
               (unsigned long long)report_count(&x->report, FINDING_WARNING), x->is_quantized ? "true" : "false");
    str_printf(&s, ",\"tensors\":%zu,\"bytes\":%llu", x->n_tensors, (unsigned long long)x->bytes);
    str_printf(&s, ",\"unit_bytes\":%llu,\"unit_parameters\":%llu", (unsigned long long)x->unit_bytes,
               (unsigned long long)x->unit_parameters);
    add_number(&s, "bpp", bits(x->unit_bytes, x->unit_parameters));
    str_add(&s, "}");
    cli_print_json(&s, "result");
}

static int inspect_main(const struct args *a)
{
    int tp[MOST_TP];
    struct inspect_options o = {.dir = args_operand(a, 0), .source = args_value(a, "--source"), .tp = tp};
    struct inspection *x;
    struct err e = {0};
    if (!read_tp(a, tp, &o.n_tp, &e) || !inspect_run(&x, &o, &e))
        return cli_fail(a, &e);
    if (args_flag(a, "--json")) {
        print_json(x);
    } else {
        print_units(x);
        print_totals(x);
        print_findings(&x->report);
        print_verdict(&x->report);
    }
    int code = report_count(&x->report, FINDING_ERROR) > 0 ? CLI_FAILED : CLI_DONE;
    inspection_free(x);
    return code;
}

const struct command command_inspect = {
    "inspect", "Show what a checkpoint holds, and validate it.", (const char *const[]){"DIR", NULL},
    (const struct option[]){
        {"--source", "DIR", false, "the checkpoint that it was made from: copies, shapes and errors are compared"},
        {"--tp", "N", true, "a tensor-parallel size that it is to fit; several with commas"},
        {0}},
    inspect_main};
