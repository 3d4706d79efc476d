/* The CPU tables and the choice among them. Each table is the one below it with what its instructions do better; plain
 * is complete and defines the results. Which one runs is decided by feature bits of CPUID and by what the operating
 * system saves of the registers (XCR0), never by the model of the CPU. */
#include "kernels/kernels.h"

#include <stdlib.h>
#include <string.h>

#include "engine/base/str.h"
#include "kernels/cpu/cpu.h"

#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

static const char *const names[] = {"plain", "avx2", "avx512", "avx512bf16", "amx"};
#define COUNT (sizeof names / sizeof *names)

/* The entries that have one version per elementwise variant, and those that have one version. */
#define ENTRIES(variant)                                                                                               \
    .tensor_new = memory_new, .tensor_free = memory_free, .upload = memory_upload, .download = memory_download,        \
    .copy = memory_copy, .finish = memory_finish, .host_new = memory_host_new, .host_free = memory_host_free,          \
    .enter = memory_finish, .chunk_rows = 512, .head_rows = 256, .head_columns = 1024,                                 \
    .panels_new = pack_panels_new, .pack = pack_fill, .unpack = unpack_##variant, .encode = encode_##variant,          \
    .embed = embed, .gram = gram_##variant, .cholesky = cholesky_##variant, .energy = energy_##variant,                \
    .rmsnorm = norm_rms_##variant, .add_rmsnorm = norm_add_rms_##variant, .add = add_##variant,                        \
    .add_bias = add_bias_##variant, .rope = rope_##variant, .attention = attention_##variant,                          \
    .swiglu = swiglu_##variant, .fake_quantize = fake_quantize_##variant, .amax = amax_##variant,                      \
    .kl_tile = kl_tile_##variant, .rmsnorm_backward = norm_backward_##variant,                                         \
    .attention_backward = attention_backward_##variant, .swiglu_backward = swiglu_backward_##variant,                  \
    .transpose = transpose_##variant, .fisher_draw = fisher_draw_##variant, .window_dots = window_dots_##variant,      \
    .subtract = subtract_##variant
#define MATMUL(variant) .matmul = matmul, .matmul_part = matmul_part_##variant

#define FP32 "fp32 cpu"          /* equal bits in every variant */
#define BF16_FMA "bf16 cpu fma"  /* likewise */

static const struct kernels tables[] = {
    {.name = "cpu plain", .numeric_fp32 = FP32, .numeric_bf16 = BF16_FMA, ENTRIES(plain), MATMUL(plain)},
#if defined(__x86_64__)
    {.name = "cpu avx2", .numeric_fp32 = FP32, .numeric_bf16 = BF16_FMA, ENTRIES(avx2), MATMUL(avx2)},
    {.name = "cpu avx512", .numeric_fp32 = FP32, .numeric_bf16 = BF16_FMA, ENTRIES(avx512), MATMUL(avx512)},
    {.name = "cpu avx512bf16", .numeric_fp32 = FP32, .numeric_bf16 = "bf16 cpu avx512bf16", ENTRIES(avx512),
     MATMUL(avx512bf16)},
    {.name = "cpu amx", .numeric_fp32 = FP32, .numeric_bf16 = "bf16 cpu amx", ENTRIES(avx512), MATMUL(amx)},
#endif
};
#define TABLES (sizeof tables / sizeof *tables)

#if defined(__x86_64__)
/* Registers of CPUID that the choice needs. */
struct features {
    unsigned leaf1_c, leaf7_b, leaf7_d, leaf7_1_a;
    uint64_t saved; /* XCR0: register sets that the operating system saves */
};

static struct features read_features(void)
{
    struct features f = {0};
    unsigned a, b, c, d;
    if (__get_cpuid(1, &a, &b, &c, &d))
        f.leaf1_c = c;
    if (__get_cpuid_count(7, 0, &a, &b, &c, &d)) {
        f.leaf7_b = b;
        f.leaf7_d = d;
    }
    if (__get_cpuid_count(7, 1, &a, &b, &c, &d))
        f.leaf7_1_a = a;
    if (f.leaf1_c & 1u << 27) { /* OSXSAVE: XGETBV may be used */
        unsigned low, high;
        __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
        f.saved = (uint64_t)high << 32 | low;
    }
    return f;
}

static bool has(unsigned reg, unsigned bits) { return (reg & bits) == bits; }
static bool saves(const struct features *f, uint64_t sets) { return (f->saved & sets) == sets; }

/* FMA (leaf 1 ECX 12), AVX (28), AVX2 (leaf 7 EBX 5); XMM and YMM saved. */
static bool has_avx2(const struct features *f)
{
    return has(f->leaf1_c, 1u << 12 | 1u << 28) && has(f->leaf7_b, 1u << 5) && saves(f, 0x6);
}

/* AVX512 F (EBX 16), DQ (17), BW (30), VL (31); also the mask and upper registers saved. */
static bool has_avx512(const struct features *f)
{
    return has_avx2(f) && has(f->leaf7_b, 1u << 16 | 1u << 17 | 1u << 30 | 1u << 31) && saves(f, 0xe6);
}

/* AMX-BF16 (EDX 22) and AMX-TILE (24); tile configuration and data (17 and 18) saved. Linux also wants to be asked,
 * once per process, for the 8 KiB of tile data: arch_prctl(ARCH_REQ_XCOMP_PERM, 18). Asking again is harmless. */
static bool has_amx(const struct features *f)
{
    const long request_permission = 0x1023, tile_data = 18;
    return has_avx512(f) && has(f->leaf7_d, 1u << 22 | 1u << 24) && saves(f, 0x60000) &&
           syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
}

static bool can_run(size_t table)
{
    struct features f = read_features();
    switch (table) {
    case 0: return true;
    case 1: return has_avx2(&f);
    case 2: return has_avx512(&f);
    case 3: return has_avx512(&f) && has(f.leaf7_1_a, 1u << 5);
    default: return has_amx(&f);
    }
}
#else
static bool can_run(size_t table) { return table == 0; }
#endif

/* The index of a name, or COUNT. */
static size_t find_name(const char *name)
{
    size_t i = 0;
    while (i < COUNT && strcmp(names[i], name) != 0)
        i++;
    return i;
}

const char *const *kernels_names(size_t *n)
{
    *n = COUNT;
    return names;
}

const struct kernels *kernels_find(const char *name)
{
    size_t i = find_name(name);
    return i < TABLES && can_run(i) ? &tables[i] : NULL;
}

/* "plain, avx2, avx512": what this machine can run. */
static void list_runnable(struct str *s)
{
    for (size_t i = 0; i < TABLES; i++)
        if (can_run(i))
            str_printf(s, "%s%s", i > 0 ? ", " : "", names[i]);
}

static void refuse(const char *name, struct err *e)
{
    struct str known = {0};
    list_runnable(&known);
    const char *list = known.text && !known.failed ? known.text : "plain";
    if (find_name(name) < COUNT) {
        err_set(e, ERR_USAGE, "SCOUT_CPU=%s: this machine cannot run it; it can run %s", name, list);
    } else {
        const char *near = str_nearest(name, names, COUNT);
        err_set(e, ERR_USAGE, "SCOUT_CPU=%s: no such CPU variant; this machine can run %s%s%s%s", name, list,
                near ? " (did you mean '" : "", near ? near : "", near ? "'?)" : "");
    }
    str_free(&known);
}

const struct kernels *kernels_cpu(struct err *e)
{
    const char *name = getenv("SCOUT_CPU");
    if (name && *name) {
        const struct kernels *k = kernels_find(name);
        if (!k)
            refuse(name, e);
        return k;
    }
    size_t best = TABLES - 1;
    while (!can_run(best))
        best--;
    return &tables[best];
}
