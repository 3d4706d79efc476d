/* What servers make of each format, from their sources (export-formats; the section is at each row). A format is
 * offered where the server multiplies what was measured: the same weights, and inputs treated by the same rule. Where a
 * server takes a config for another scheme than it says, that other scheme's format is named instead.
 *
 * Left out because the server sees to it: tiles of the kernels that run weights only, and of FP8 and FP4 products, are
 * padded at load (2.1, 2.3, 2.8), so that they take any N, and any K that the format has. */
#include "nodes/format/serving.h"

#include <stdio.h>
#include <string.h>

#define WEIGHTS_ONLY \
    "vLLM multiplies it with weights only on this GPU and leaves inputs alone, whatever config.json says"
#define INPUTS_TOO "vLLM quantizes inputs on this GPU whatever config.json says of them"
/* Its DeepGEMM, taken where it is installed, rounds weight and input scales to powers of two when it loads (2.4; from
 * version 0.32 on also on Hopper). */
#define DEEP_GEMM "serve with VLLM_USE_DEEP_GEMM=0, else its scales are rounded to powers of two and the weights change"

/* 2.4: fused matrices must end at tiles; the head's loader asserts one scale per row. */
#define FP8_BLOCK \
    {.format = &format_fp8_block, .note = DEEP_GEMM, .k_multiple = 128, .seam_multiple = 128, .not_head = true}

static const struct serving_rule any[] = {{0}};

static const struct serving_rule blackwell[] = {
    FP8_BLOCK,
    /* 2.2 */
    {.format = &format_mxfp4_a16, .why = INPUTS_TOO, .instead = &format_mxfp4},
    /* 2.5; N % 32 for compute capability 12.x (vLLM 0.32, kernels/linear/mxfp8/flashinfer.py) */
    {.format = &format_mxfp8, .n_least = 128, .k_least = 128, .n_multiple = 32},
    /* 4: the scheme is chosen by the weights alone */
    {.format = &format_mxfp8_a16, .why = INPUTS_TOO, .instead = &format_mxfp8},
    /* 2.6 */
    {.format = &format_int8, .why = "Blackwell GPUs have no INT8 product in vLLM", .instead = &format_fp8},
    {0}};

static const struct serving_rule hopper[] = {
    FP8_BLOCK,
    /* 2.1, 2.2, 2.5 and 4: Marlin */
    {.format = &format_nvfp4, .why = WEIGHTS_ONLY, .instead = &format_nvfp4_a16},
    {.format = &format_mxfp4, .why = WEIGHTS_ONLY, .instead = &format_mxfp4_a16},
    {.format = &format_mxfp8, .why = WEIGHTS_ONLY, .instead = &format_mxfp8_a16},
    {0}};

static const struct serving_rule ampere[] = {
    /* 2.3 and 4: FP8 products begin with compute capability 8.9 */
    {.format = &format_fp8_block, .why = WEIGHTS_ONLY, .instead = &format_fp8_a16},
    {.format = &format_fp8, .why = WEIGHTS_ONLY, .instead = &format_fp8_a16},
    /* 6.2: loading such a head can fail there */
    {.format = &format_fp8_a16, .not_head = true},
    {.format = &format_nvfp4, .why = WEIGHTS_ONLY, .instead = &format_nvfp4_a16},
    {.format = &format_mxfp4, .why = WEIGHTS_ONLY, .instead = &format_mxfp4_a16},
    {.format = &format_mxfp8, .why = WEIGHTS_ONLY, .instead = &format_mxfp8_a16},
    {0}};

static const struct serving_profile profile_any = {"any", "no server in particular: the formats' own shapes", any};
static const struct serving_profile profile_blackwell = {
    "vllm-blackwell", "vLLM on GPUs of compute capability 10.x and 12.x: B200, B300, RTX 50", blackwell};
static const struct serving_profile profile_hopper = {
    "vllm-hopper", "vLLM on GPUs of compute capability 9.0: H100, H200", hopper};
static const struct serving_profile profile_ampere = {
    "vllm-ampere", "vLLM on GPUs of compute capability 8.0 and 8.6: A100, A10, RTX 30", ampere};

const struct serving_profile *const serving_profiles[] = {&profile_any, &profile_blackwell, &profile_hopper,
                                                          &profile_ampere, NULL};
const char *const serving_names[] = {"any", "vllm-blackwell", "vllm-hopper", "vllm-ampere", NULL};

const struct serving_profile *serving_find(const char *name)
{
    for (const struct serving_profile *const *p = serving_profiles; *p; p++)
        if (strcmp((*p)->name, name) == 0)
            return *p;
    return NULL;
}

/* -------------------------------------------------------------------------------------------------- what is offered */

const struct serving_rule *serving_rule(const struct serving_profile *p, const struct format *f)
{
    const struct serving_rule *r = p->rules;
    while (r->format && r->format != f)
        r++;
    return r; /* the last has no format, and is zero otherwise */
}

bool serving_offers(const struct serving_profile *p, const struct format *f, char why[SERVING_TEXT])
{
    const struct serving_rule *r = serving_rule(p, f);
    why[0] = '\0';
    if (!r->why)
        return true;
    snprintf(why, SERVING_TEXT, "%s does not offer '%s': %s; use '%s'", p->name, f->name, r->why, r->instead->name);
    return false;
}

void serving_add_seam(struct serving_unit *u, int64_t row)
{
    int64_t a = u->seam, b = row;
    while (b) {
        int64_t rest = a % b;
        a = b;
        b = rest;
    }
    u->seam = a;
}

/* "FORMAT wants WHAT: unit 'u' has FOUND"; false. */
static bool lacks(const struct serving_profile *p, const struct format *f, const struct serving_unit *u,
                  char why[SERVING_TEXT], const char *what, int64_t limit, const char *of, int64_t found)
{
    bool own = p == &profile_any;
    snprintf(why, SERVING_TEXT, "%s%s%s wants %s %lld %s, unit '%s' has %lld", f->name, own ? "" : " under ",
             own ? "" : p->name, what, (long long)limit, of, u->name, (long long)found);
    return false;
}

#define COLUMNS "input features"
#define ROWS "output features"
#define MULTIPLE "a multiple of"
#define LEAST "at least"

bool serving_fits(const struct serving_profile *p, const struct format *f, const struct serving_unit *u,
                  char why[SERVING_TEXT])
{
    const struct serving_rule *r = serving_rule(p, f);
    if (!serving_offers(p, f, why))
        return false;
    if (!format_fits(f, u->n, u->k))
        return lacks(&profile_any, f, u, why, MULTIPLE, f->k_multiple, COLUMNS, u->k);
    if (r->not_head && u->is_head) {
        snprintf(why, SERVING_TEXT, "%s cannot have '%s' under %s", u->name, f->name, p->name);
        return false;
    }
    if (r->k_multiple && u->k % r->k_multiple != 0)
        return lacks(p, f, u, why, MULTIPLE, r->k_multiple, COLUMNS, u->k);
    if (u->k < r->k_least)
        return lacks(p, f, u, why, LEAST, r->k_least, COLUMNS, u->k);
    if (r->n_multiple && u->n % r->n_multiple != 0)
        return lacks(p, f, u, why, MULTIPLE, r->n_multiple, ROWS, u->n);
    if (u->n < r->n_least)
        return lacks(p, f, u, why, LEAST, r->n_least, ROWS, u->n);
    if (r->seam_multiple && u->seam % r->seam_multiple != 0)
        return lacks(p, f, u, why, "its matrices fused at multiples of", r->seam_multiple, ROWS, u->seam);
    return true;
}

/* -------------------------------------------------------------------------------------------------------- fallback */

#define EIGHT_BITS_A16 &format_int8_a16, &format_fp8_a16, &format_mxfp8_a16
#define EIGHT_BITS &format_fp8, &format_int8, &format_mxfp8

/* Each begins with the format that it is for. Formats of four bits go on to those with smaller blocks, then all go on
 * to those of eight, with the same treatment of inputs first. */
static const struct format *const chains[][12] = {
    {&format_int4_g128, &format_int4_g64, &format_int4_g32, &format_nvfp4_a16, EIGHT_BITS_A16, EIGHT_BITS,
     &format_bf16},
    {&format_int4_g64, &format_int4_g32, &format_nvfp4_a16, EIGHT_BITS_A16, EIGHT_BITS, &format_bf16},
    {&format_int4_g32, &format_nvfp4_a16, EIGHT_BITS_A16, EIGHT_BITS, &format_bf16},
    {&format_mxfp4_a16, &format_nvfp4_a16, EIGHT_BITS_A16, EIGHT_BITS, &format_bf16},
    {&format_nvfp4_a16, EIGHT_BITS_A16, EIGHT_BITS, &format_bf16},
    {&format_mxfp4, &format_nvfp4, &format_nvfp4_a16, EIGHT_BITS, EIGHT_BITS_A16, &format_bf16},
    {&format_nvfp4, EIGHT_BITS, EIGHT_BITS_A16, &format_bf16},
    {&format_fp8_block, EIGHT_BITS, EIGHT_BITS_A16, &format_bf16},
    {&format_fp8, &format_int8, &format_mxfp8, EIGHT_BITS_A16, &format_bf16},
    {&format_int8, &format_fp8, &format_mxfp8, EIGHT_BITS_A16, &format_bf16},
    {&format_mxfp8, &format_fp8, &format_int8, EIGHT_BITS_A16, &format_bf16},
    {&format_int8_a16, &format_fp8_a16, &format_mxfp8_a16, EIGHT_BITS, &format_bf16},
    {&format_fp8_a16, &format_int8_a16, &format_mxfp8_a16, EIGHT_BITS, &format_bf16},
    {&format_mxfp8_a16, &format_fp8_a16, &format_int8_a16, EIGHT_BITS, &format_bf16},
    {&format_bf16}};

const struct format *const *serving_chain(const struct format *f)
{
    static const struct format *const none[] = {NULL};
    for (size_t i = 0; i < sizeof chains / sizeof *chains; i++)
        if (chains[i][0] == f)
            return chains[i] + 1;
    return none;
}

/* The nearest available one in bytes. */
static int by_bytes(int n_menu, const uint8_t *available, const uint64_t *bytes, int format)
{
    int larger = -1, largest = -1;
    for (int f = 0; f < n_menu; f++) {
        if (!available[f])
            continue;
        if (bytes[f] > bytes[format] && (larger < 0 || bytes[f] < bytes[larger]))
            larger = f;
        if (largest < 0 || bytes[f] > bytes[largest])
            largest = f;
    }
    return larger >= 0 ? larger : largest;
}

int serving_fallback(const struct format *const *menu, int n_menu, const uint8_t *available, const uint64_t *bytes,
                     int format)
{
    if (available[format])
        return format;
    for (const struct format *const *next = serving_chain(menu[format]); *next; next++)
        for (int f = 0; f < n_menu; f++)
            if (menu[f] == *next && available[f])
                return f;
    return by_bytes(n_menu, available, bytes, format);
}
