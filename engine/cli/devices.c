/* `scout devices`: what there is to compute on, and what of it this build can use. With --topology it draws the map of
 * another machine, from a file that hwloc wrote there. */
#include "kernels/devices.h"

#include <string.h>

#include "engine/cli/cli.h"
#include "engine/run/place.h"

enum { VENDOR_NVIDIA = 0x10de };

static void add_field(struct str *s, const char *name, const char *text)
{
    str_printf(s, ",\"%s\":", name);
    str_add_json(s, text);
}

static void print_machine(const struct args *a, const struct place *p)
{
    const char *file = args_value(a, "--topology");
    if (!args_flag(a, "--json")) {
        printf("%s%s: %s\n", file ? "the machine of " : "machine", file ? file : "", place_text(p));
        return;
    }
    struct str s = {0};
    str_printf(&s, "{\"event\":\"machine\",\"units\":%d,\"numa_nodes\":%d,\"memory\":%llu", place_units(p),
               place_numa_nodes(p), (unsigned long long)place_memory(p));
    add_field(&s, "text", place_text(p));
    if (file)
        add_field(&s, "topology", file);
    str_add(&s, "}");
    cli_print_json(&s, "machine");
}

/* One accelerator; `d` NULL: known by its place on the bus only. */
struct shown {
    int index;
    const char *model, *pci;
    const struct device *d;
};

static void print_device_json(const struct place *p, const struct shown *x, int near)
{
    char numa[PLACE_LIST], cores[PLACE_LIST];
    struct str s = {0};
    place_near_lists(p, near, numa, cores);
    str_printf(&s, "{\"event\":\"device\",\"name\":\"cuda:%d\",\"index\":%d", x->index, x->index);
    add_field(&s, "model", x->model);
    add_field(&s, "pci", x->pci);
    add_field(&s, "numa_nodes", numa);
    add_field(&s, "cores", cores);
    if (x->d) {
        str_printf(&s, ",\"compute\":\"%d.%d\",\"processors\":%d,\"memory\":%llu", x->d->major, x->d->minor,
                   x->d->processors, (unsigned long long)x->d->memory);
        add_field(&s, "kernels", x->d->kernels->name);
    }
    str_add(&s, "}");
    cli_print_json(&s, "device");
}

static bool print_device(const struct args *a, struct place *p, const struct shown *x, struct err *e)
{
    char near_text[2 * PLACE_LIST + 32], size[16];
    int near;
    if (!place_device_near(p, x->pci, &near, e))
        return false;
    if (args_flag(a, "--json")) {
        print_device_json(p, x, near);
        return true;
    }
    printf("cuda:%d: %s, ", x->index, x->model);
    if (x->d)
        printf("compute capability %d.%d, %d multiprocessors, %s, kernels %s, ", x->d->major, x->d->minor,
               x->d->processors, str_size(x->d->memory, size), x->d->kernels->name);
    printf("%s%s%s\n", x->pci, x->pci[0] ? ", " : "", place_near_text(p, near, near_text, sizeof near_text));
    return true;
}

/* Why there is no accelerator to use. */
static void print_none(const struct args *a, const char *why)
{
    struct str s = {0};
    if (!args_flag(a, "--json")) {
        printf("no accelerator: %s\n", why);
        return;
    }
    str_add(&s, "{\"event\":\"no_device\"");
    add_field(&s, "text", why);
    str_add(&s, "}");
    cli_print_json(&s, "no_device");
}

/* The GPUs of another machine, numbered in the order of their addresses. */
static bool print_map(const struct args *a, struct place *p, struct err *e)
{
    struct place_pci list[CLI_DEVICES_MOST];
    size_t n = place_displays(p, VENDOR_NVIDIA, list, CLI_DEVICES_MOST);
    for (size_t i = 0; i < n; i++) {
        const struct shown x = {.index = (int)i, .model = list[i].model, .pci = list[i].pci};
        if (!print_device(a, p, &x, e))
            return false;
    }
    if (n == 0)
        print_none(a, "the file lists no display or 3D device of NVIDIA's");
    return true;
}

static bool print_devices(const struct args *a, struct place *p, struct err *e)
{
    size_t n;
    const char *why = "none was found";
    const struct device *list = kernels_devices(&n, &why);
    for (size_t i = 0; i < n; i++) {
        const struct shown x = {.index = list[i].index, .model = list[i].model, .pci = list[i].pci, .d = &list[i]};
        if (!print_device(a, p, &x, e))
            return false;
    }
    if (n == 0)
        print_none(a, why);
    return true;
}

/* The CPU's tables, those that this machine can run, and which one a run would use. */
static void print_kernels(const struct args *a)
{
    size_t n;
    const char *const *names = kernels_names(&n);
    struct err e = {0};
    const struct kernels *chosen = kernels_cpu(&e);
    struct str can = {0}, cannot = {0};
    for (size_t i = 0; i < n; i++) {
        const struct kernels *k = kernels_find(names[i]);
        struct str *list = k ? &can : &cannot;
        if (args_flag(a, "--json"))
            printf("{\"event\":\"kernels\",\"name\":\"%s\",\"runs\":%s,\"chosen\":%s}\n", names[i],
                   k ? "true" : "false", k && k == chosen ? "true" : "false");
        str_printf(list, "%s%s", list->length ? ", " : "", names[i]);
    }
    if (!args_flag(a, "--json")) {
        printf("cpu: kernels %s", chosen ? chosen->name : e.text);
        printf("; this machine can run %s", can.text ? can.text : "none");
        printf("%s%s\n", cannot.length ? ", not " : "", cannot.length ? cannot.text : "");
    }
    str_free(&can);
    str_free(&cannot);
}

static void print_build(const struct args *a)
{
    struct str s = {0};
    if (!args_flag(a, "--json")) {
        printf("build: %s\n", kernels_build());
        return;
    }
    str_add(&s, "{\"event\":\"build\"");
    add_field(&s, "text", kernels_build());
    str_add(&s, "}");
    cli_print_json(&s, "build");
}

static int devices_main(const struct args *a)
{
    const char *topology = args_value(a, "--topology");
    struct place *p = NULL;
    struct err e = {0};
    int code = CLI_DONE;
    if (!place_new(&p, topology, 0, &e))
        return cli_fail(a, &e);
    print_machine(a, p);
    if (!topology) {
        print_kernels(a);
        print_build(a);
    }
    if (!(topology ? print_map(a, p, &e) : print_devices(a, p, &e)))
        code = cli_fail(a, &e);
    place_free(p);
    return code;
}

const struct command command_devices = {
    "devices", "Show the cores, NUMA nodes and accelerators of this machine, and what this build can use.",
    (const char *const[]){NULL},
    (const struct option[]){
        {"--topology", "FILE", false, "map another machine: a file that 'lstopo FILE.xml' wrote there"}, {0}},
    devices_main};
