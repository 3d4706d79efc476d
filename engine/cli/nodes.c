/* `scout nodes`: the node types of this build, from their tables. */
#include "nodes/nodes.h"

#include <math.h>
#include <string.h>

#include "engine/cli/cli.h"

static const char *type_name(const struct param *p)
{
    static const char *const names[] = {[PARAM_INT] = "int", [PARAM_FLOAT] = "float", [PARAM_BOOL] = "bool",
                                        [PARAM_STRING] = "text", [PARAM_ENUM] = "one of", [PARAM_SIZE] = "size",
                                        [PARAM_SOURCE] = "source", [PARAM_PATH] = "path"};
    return names[p->type];
}

static bool has_range(const struct param *p)
{
    return p->least != 0 || p->most != 0;
}

static void add_param_type(const struct param *p, struct str *s)
{
    str_add(s, p->many ? "list of " : "");
    if (p->type == PARAM_ENUM) {
        for (size_t i = 0; p->choices && p->choices[i]; i++)
            str_printf(s, "%s%s", i ? "|" : "", p->choices[i]);
    } else {
        str_add(s, type_name(p));
    }
    char least[32], most[32];
    if (has_range(p) && isinf(p->most))
        str_printf(s, ", at least %s", param_bound(p, p->least, least));
    else if (has_range(p))
        str_printf(s, " %s to %s", param_bound(p, p->least, least), param_bound(p, p->most, most));
    if (p->unit && strcmp(p->unit, "1") != 0 && p->type != PARAM_SIZE)
        str_printf(s, ", %s", p->unit);
}

static void print_type(const struct node_class *c)
{
    printf("%s (version %u): %s\n", c->name, c->version, c->summary);
    for (const struct port *p = c->ports; p && p->name; p++) {
        printf("  in    %-14s ", p->name);
        for (size_t i = 0; p->types && p->types[i]; i++)
            printf("%s%s", i ? "|" : "", p->types[i]);
        printf("%s%s%s: %s\n", p->types ? "" : "any node", p->many ? ", one or more" : "",
               p->optional ? ", optional" : "", p->help ? p->help : "");
    }
    for (const struct param *p = c->params; p && p->name; p++) {
        struct str type = {0};
        add_param_type(p, &type);
        printf("  with  %-14s %s; ", p->name, type.text ? type.text : "");
        if (p->fallback)
            printf("default %s", p->fallback[0] ? p->fallback : "none");
        else
            printf("required");
        printf("%s: %s\n", p->outside_key ? "; not in the key" : "", p->help ? p->help : "");
        str_free(&type);
    }
    for (const struct output *o = c->outputs; o && o->name; o++)
        printf("  out   %-14s %s\n", o->name, o->help ? o->help : "");
}

static void add_field(struct str *s, const char *name, const char *text)
{
    str_printf(s, ",\"%s\":", name);
    str_add_json(s, text ? text : "");
}

/* ,"name":["a","b"], and null when there is no list */
static void add_list(struct str *s, const char *name, const char *const *list)
{
    str_printf(s, ",\"%s\":%s", name, list ? "[" : "null");
    for (size_t i = 0; list && list[i]; i++) {
        str_add(s, i ? "," : "");
        str_add_json(s, list[i]);
    }
    str_add(s, list ? "]" : "");
}

static void add_port(struct str *s, const struct port *p)
{
    str_add(s, "{\"name\":");
    str_add_json(s, p->name);
    add_list(s, "types", p->types);
    str_printf(s, ",\"many\":%s,\"optional\":%s", p->many ? "true" : "false", p->optional ? "true" : "false");
    add_field(s, "help", p->help);
    str_add(s, "}");
}

static void add_param(struct str *s, const struct param *p)
{
    str_add(s, "{\"name\":");
    str_add_json(s, p->name);
    add_field(s, "type", p->type == PARAM_ENUM ? "enum" : type_name(p));
    str_printf(s, ",\"many\":%s", p->many ? "true" : "false");
    if (p->fallback)
        add_field(s, "default", p->fallback);
    if (has_range(p)) {
        str_add(s, ",\"least\":");
        str_add_json_double(s, p->least);
        str_add(s, ",\"most\":");
        str_add_json_double(s, p->most);
    }
    if (p->choices)
        add_list(s, "choices", p->choices);
    if (p->unit)
        add_field(s, "unit", p->unit);
    str_printf(s, ",\"in_key\":%s", p->outside_key || p->type == PARAM_PATH ? "false" : "true");
    add_field(s, "help", p->help);
    str_add(s, "}");
}

static void print_json(const struct node_class *c)
{
    struct str s = {0};
    str_add(&s, "{\"event\":\"type\",\"name\":");
    str_add_json(&s, c->name);
    str_printf(&s, ",\"version\":%u", c->version);
    add_field(&s, "summary", c->summary);
    str_add(&s, ",\"ports\":[");
    for (const struct port *p = c->ports; p && p->name; p++) {
        str_add(&s, p == c->ports ? "" : ",");
        add_port(&s, p);
    }
    str_add(&s, "],\"params\":[");
    for (const struct param *p = c->params; p && p->name; p++) {
        str_add(&s, p == c->params ? "" : ",");
        add_param(&s, p);
    }
    str_add(&s, "],\"outputs\":[");
    for (const struct output *o = c->outputs; o && o->name; o++) {
        str_add(&s, o == c->outputs ? "{\"name\":" : ",{\"name\":");
        str_add_json(&s, o->name);
        add_field(&s, "help", o->help);
        str_add(&s, "}");
    }
    str_add(&s, "]}");
    cli_print_json(&s, "type");
}

static bool unknown_type(const char *name, struct err *e)
{
    const char *names[256];
    size_t n = 0;
    for (; n < 256 && node_table[n]; n++)
        names[n] = node_table[n]->name;
    const char *near = str_nearest(name, names, n);
    err_set(e, ERR_USAGE, "nodes: '%s' is no node type", name);
    return err_suggest(e, near);
}

static int nodes_main(const struct args *a)
{
    const char *type = args_operand(a, 0);
    bool found = false, json = args_flag(a, "--json");
    for (size_t i = 0; node_table[i]; i++) {
        const struct node_class *c = node_table[i];
        if (type && strcmp(type, c->name) != 0)
            continue;
        found = true;
        if (json)
            print_json(c);
        else if (type)
            print_type(c);
        else
            printf("  %-12s %s\n", c->name, c->summary);
    }
    struct err e = {0};
    if (type && !found && !unknown_type(type, &e))
        return cli_fail(a, &e);
    return CLI_DONE;
}

const struct command command_nodes = {"nodes",
                                      "List the node types, or print one type's ports, parameters and outputs.",
                                      (const char *const[]){"[TYPE]", NULL}, (const struct option[]){{0}}, nodes_main};
