/* `scout formats`: what a matrix can be stored as, and what each server makes of it. */
#include "nodes/format/serving.h"

#include <string.h>

#include "engine/cli/cli.h"

/* Sizes are those of a matrix of this many rows and columns. */
#define SIDE 4096

static double bits_a_weight(const struct format *f)
{
    return 8.0 * (double)format_bytes(f, SIDE, SIDE, DTYPE_BF16) / ((double)SIDE * SIDE);
}

static const char *element_name(const struct format *f)
{
    static const char *const names[] = {[ELEMENT_PLAIN] = "the source's", [ELEMENT_E2M1] = "e2m1",
                                        [ELEMENT_E4M3] = "e4m3", [ELEMENT_S8] = "int8", [ELEMENT_U4B8] = "int4",
                                        [ELEMENT_U8B128] = "int8"};
    return names[weight_grid[f->code].element];
}

static const char *scale_name(const struct format *f)
{
    static const char *const names[] = {[SCALE_NONE] = "none", [SCALE_F32] = "f32", [SCALE_BF16] = "bf16",
                                        [SCALE_E8M0] = "e8m0", [SCALE_E4M3] = "e4m3, f32 divisor"};
    return names[weight_grid[f->code].scale];
}

static const char *input_rule(const struct format *f)
{
    static const char *const names[ACT_COUNT] = {
        [ACT_NONE] = "as they are", [ACT_NVFP4] = "e2m1 per 16, static f32 divisor", [ACT_FP8_TOKEN] = "e4m3 per token",
        [ACT_FP8_GROUP] = "e4m3 per 128", [ACT_MXFP4] = "e2m1 per 32", [ACT_MXFP8] = "e4m3 per 32",
        [ACT_INT8_TOKEN] = "int8 per token"};
    return names[f->act];
}

/* "128 x 128", "16", "row" or "-". */
static const char *block_text(const struct format *f, char out[32])
{
    const struct grid *g = &weight_grid[f->code];
    if (g->rows > 1)
        snprintf(out, 32, "%d x %d", g->rows, g->columns);
    else if (g->columns)
        snprintf(out, 32, "%d", g->columns);
    else
        snprintf(out, 32, "%s", g->element == ELEMENT_PLAIN ? "-" : "row");
    return out;
}

/* ---------------------------------------------------------------------------------------------------------- as text */

static void print_table(void)
{
    char block[32];
    printf("%-10s %6s  %-12s %-9s %-17s %-31s", "format", "bits", "code", "block", "scale", "inputs");
    for (const struct serving_profile *const *p = serving_profiles + 1; *p; p++)
        printf(p[1] ? " %-14s" : " %s", (*p)->name);
    printf("\n");
    for (const struct format *const *f = formats; *f; f++) {
        printf("%-10s %6.3f  %-12s %-9s %-17s %-31s", (*f)->name, bits_a_weight(*f), element_name(*f),
               block_text(*f, block), scale_name(*f), input_rule(*f));
        for (const struct serving_profile *const *p = serving_profiles + 1; *p; p++) {
            const struct serving_rule *r = serving_rule(*p, *f);
            char cell[32];
            snprintf(cell, sizeof cell, "%s%s", r->why ? "use " : "yes", r->why ? r->instead->name : "");
            printf(p[1] ? " %-14s" : " %s", cell);
        }
        printf("\n");
    }
    printf("bits: a weight, in a matrix of %d x %d; `scout formats FORMAT` tells reasons, shapes and stand-ins\n",
           SIDE, SIDE);
}

static void add_limit(struct str *s, const char *what, int64_t limit)
{
    if (limit > 1)
        str_printf(s, "%s%s %lld", s->length ? ", " : "", what, (long long)limit);
}

static void print_profile(const struct serving_profile *p, const struct format *f)
{
    const struct serving_rule *r = serving_rule(p, f);
    struct str s = {0};
    if (r->why) {
        printf("  %-14s not offered: %s; use %s\n", p->name, r->why, r->instead->name);
        return;
    }
    add_limit(&s, "K a multiple of", r->k_multiple ? r->k_multiple : f->k_multiple);
    add_limit(&s, "K at least", r->k_least);
    add_limit(&s, "N a multiple of", r->n_multiple);
    add_limit(&s, "N at least", r->n_least);
    add_limit(&s, "matrices fused at multiples of", r->seam_multiple);
    if (r->not_head)
        str_printf(&s, "%snot for lm_head", s.length ? ", " : "");
    printf("  %-14s %s%s%s\n", p->name, s.text ? s.text : "any shape", r->note ? "; " : "", r->note ? r->note : "");
    str_free(&s);
}

static void print_format(const struct format *f)
{
    char block[32];
    printf("%s: %s\n", f->name, f->summary);
    printf("  %-14s %s, block %s, scale %s; %.3f bits in a matrix of %d x %d\n", "weights", element_name(f),
           block_text(f, block), scale_name(f), bits_a_weight(f), SIDE, SIDE);
    printf("  %-14s %s\n", "inputs", input_rule(f));
    for (const struct serving_profile *const *p = serving_profiles; *p; p++)
        print_profile(*p, f);
    printf("  %-14s", "stand-ins");
    for (const struct format *const *c = serving_chain(f); *c; c++)
        printf(" %s", (*c)->name);
    printf("%s\n", f->group_format ? "" : " none");
}

/* ---------------------------------------------------------------------------------------------------------- as JSON */

static void add_field(struct str *s, const char *name, const char *text)
{
    str_printf(s, ",\"%s\":", name);
    if (text)
        str_add_json(s, text);
    else
        str_add(s, "null");
}

static void add_profile(struct str *s, const struct serving_profile *p, const struct format *f)
{
    const struct serving_rule *r = serving_rule(p, f);
    str_add(s, "{\"name\":");
    str_add_json(s, p->name);
    str_printf(s, ",\"offered\":%s", r->why ? "false" : "true");
    add_field(s, "why", r->why);
    add_field(s, "instead", r->instead ? r->instead->name : NULL);
    add_field(s, "note", r->note);
    str_printf(s, ",\"k_multiple\":%lld,\"k_least\":%lld,\"n_multiple\":%lld,\"n_least\":%lld,\"seam_multiple\":%lld,"
               "\"head\":%s}", (long long)(r->k_multiple ? r->k_multiple : f->k_multiple), (long long)r->k_least,
               (long long)(r->n_multiple ? r->n_multiple : 1), (long long)r->n_least,
               (long long)(r->seam_multiple ? r->seam_multiple : 1), r->why || r->not_head ? "false" : "true");
}

static void print_json(const struct format *f)
{
    const struct grid *g = &weight_grid[f->code];
    struct str s = {0};
    str_add(&s, "{\"event\":\"format\",\"name\":");
    str_add_json(&s, f->name);
    add_field(&s, "summary", f->summary);
    str_add(&s, ",\"bits\":");
    str_add_json_double(&s, bits_a_weight(f));
    add_field(&s, "code", element_name(f));
    str_printf(&s, ",\"block_rows\":%d,\"block_columns\":%d", g->rows, g->columns);
    add_field(&s, "scale", scale_name(f));
    add_field(&s, "inputs", input_rule(f));
    add_field(&s, "group_format", f->group_format);
    str_add(&s, ",\"stand_ins\":[");
    for (const struct format *const *c = serving_chain(f); *c; c++) {
        str_add(&s, c == serving_chain(f) ? "" : ",");
        str_add_json(&s, (*c)->name);
    }
    str_add(&s, "],\"serving\":[");
    for (const struct serving_profile *const *p = serving_profiles; *p; p++) {
        str_add(&s, p == serving_profiles ? "" : ",");
        add_profile(&s, *p, f);
    }
    str_add(&s, "]}");
    cli_print_json(&s, "format");
}

static int formats_main(const struct args *a)
{
    const char *name = args_operand(a, 0);
    size_t n = 0;
    struct err e = {0};
    while (format_names[n])
        n++;
    if (name && !format_find(name)) {
        err_set(&e, ERR_USAGE, "formats: '%s' is no format", name);
        err_suggest(&e, str_nearest(name, format_names, n));
        return cli_fail(a, &e);
    }
    for (const struct format *const *f = formats; *f; f++)
        if (args_flag(a, "--json") && (!name || strcmp(name, (*f)->name) == 0))
            print_json(*f);
    if (!args_flag(a, "--json") && name)
        print_format(format_find(name));
    else if (!args_flag(a, "--json"))
        print_table();
    return CLI_DONE;
}

const struct command command_formats = {
    "formats", "List the precision formats and what each server makes of them, or print one format's limits.",
    (const char *const[]){"[FORMAT]", NULL}, (const struct option[]){{0}}, formats_main};
