/* What a graph may cost: sizes and depths that are refused quickly, a large graph, and memory that runs out
 * anywhere. */
#include <time.h>

#include "engine/base/str.h"
#include "tests/check.h"
#include "tests/engine/graph/classes.h"

static char folder[256];

static int setup(void **state)
{
    (void)state;
    check_dir_make(folder);
    check_write(folder, "text.txt", "words\n", 6);
    return chdir(folder);
}

static int teardown(void **state)
{
    (void)state;
    assert_int_equal(chdir("/"), 0);
    check_dir_remove(folder);
    return 0;
}

static double seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void repeat(struct str *s, const char *text, size_t n)
{
    while (n--)
        str_add(s, text);
}

/* The text must be refused within a minute of this process's own time (it is milliseconds; what is quadratic takes many
 * minutes, and sanitizers on a busy machine take seconds), and some message must hold `part`. Frees s. */
static void refuse(struct str *s, const char *part)
{
    struct graph_options o = {.classes = classes};
    struct graph_errors errors;
    struct graph *g;
    bool found = false;
    double start;
    assert_false(s->failed);
    check_write(folder, "g.yaml", s->text, s->length);
    start = seconds();
    assert_false(graph_load(&g, "g.yaml", &o, &errors));
    double took = seconds() - start;
    for (size_t i = 0; i < errors.n; i++)
        found = found || strstr(errors.list[i].text, part);
    if (!found)
        fail_msg("expected '%s', got '%s'", part, errors.list[0].text);
    if (took > 60)
        fail_msg("'%s' took %g s", part, took);
    graph_errors_free(&errors);
    str_free(s);
}

static void deep_nesting_is_refused_before_it_costs_time(void **state)
{
    (void)state;
    static const char *const openings[] = {"[", "{", "- ", "? ", "[\n", "{a: ", "{? ", "[[\n ", "{\"a\": {b: ["};
    for (size_t i = 0; i < COUNT(openings); i++) {
        struct str s = {0};
        str_add(&s, "scout: 1\nnodes:\n  ");
        repeat(&s, openings[i], 80000);
        refuse(&s, "");
    }
    struct str s = {0};
    str_add(&s, "a: ");
    repeat(&s, "[", 80000);
    refuse(&s, "nested more than 64 deep");
}

static void many_directives_are_refused_before_libyaml_compares_them(void **state)
{
    (void)state;
    struct str s = {0};
    for (int i = 0; i < 100000; i++)
        str_printf(&s, "%%TAG !a%d! x\n", i);
    refuse(&s, "directives");
}

static void too_much_of_anything_is_refused(void **state)
{
    (void)state;
    struct str s = {0};
    repeat(&s, "# a comment of thirty-two bytes\n", (4 << 20) / 32 + 1);
    refuse(&s, "a graph has at most 4194304");
    str_add(&s, "scout: 1\nname: [");
    repeat(&s, "a,", 1000001);
    refuse(&s, "more than 1000000 YAML events");
    str_add(&s, "scout: 1\nparams:\n");
    for (int i = 0; i < 1001; i++)
        str_printf(&s, "  p%d: 1\n", i);
    refuse(&s, "more than 1000 graph parameters");
    str_add(&s, "scout: 1\nnodes:\n");
    for (int i = 0; i < 313; i++)
        str_printf(&s, "  n%d: {type: list, repeat: 64}\n", i);
    refuse(&s, "more than 20000 nodes");
    str_add(&s, "scout: 1\nnodes:\n  a: {type: list, repeat: 64}\n  b: {type: list, repeat: 64, in: {of: [");
    repeat(&s, "a.all, ", 300);
    str_add(&s, "]}}\n");
    refuse(&s, "more than 1000000 connections");
}

/* One long text or list, said whole by thousands of nodes: what they make of it counts, not what is written. */
static void a_long_parameter_that_all_nodes_say_is_refused(void **state)
{
    (void)state;
    static const struct {
        const char *piece; /* of the parameter */
        int pieces;
        const char *node, *part;
    } cases[] = {
        {"0123456789", 300000, "{type: corpus, with: {text: text.txt, documents: $(p)}}",
         "take more than 67108864 bytes"},
        {"0123456789", 300000, "{type: corpus, with: {text: $(p)}}", "take more than 67108864 bytes"},
        {"0123456789", 300000, "{type: list, in: {of: $(p)}}", "there is no node"},
        {"0123456789", 300000, "{type: $(p)}", "there is no node type"},
        {"1, ", 300000, "{type: quantize, with: {weights: $(p)}}", "take more than 67108864 bytes"},
        {"n0, ", 300000, "{type: list, in: {of: $(p)}}", "more than 1000000 connections"},
    };
    for (size_t i = 0; i < COUNT(cases); i++) {
        struct str s = {0};
        bool is_list = strchr(cases[i].piece, ',');
        str_printf(&s, "scout: 1\nparams:\n  p: %s", is_list ? "[" : "");
        repeat(&s, cases[i].piece, (size_t)cases[i].pieces);
        str_printf(&s, "%s\nnodes:\n", is_list ? "]" : "");
        for (int k = 0; k < 9000; k++)
            str_printf(&s, "  n%d: %s\n", k, cases[i].node);
        refuse(&s, cases[i].part);
    }
}

/* 40,000 unknown names, duplicate keys and circles: quadratic work would show. */
static void many_mistakes_are_quick_to_report(void **state)
{
    (void)state;
    struct str s = {0};
    str_add(&s, "scout: 1\nnodes:\n");
    for (int i = 0; i < 12000; i++)
        str_printf(&s, "  node_with_a_long_name_%d: {typ: lst}\n", i % 9000);
    refuse(&s, "and ");
    str_add(&s, "scout: 1\nnodes:\n");
    for (int i = 0; i < 9000; i++)
        str_printf(&s, "  n%d: {type: list, in: {of: m%d}}\n", i, i);
    refuse(&s, "and 8950 more");
    str_add(&s, "scout: 1\nnodes:\n");
    for (int i = 0; i < 9000; i++)
        str_printf(&s, "  n%d: {type: list, in: {of: n%d}}\n", i, i ^ 1);
    refuse(&s, "circle");
    str_add(&s, "scout: 1\nparams: {p0: 1");
    for (int i = 1; i < 1000; i++)
        str_printf(&s, ", p%d: $(p%d)", i, i + 1);
    str_add(&s, "}\nnodes: {}\n");
    refuse(&s, "p1000");
}

static void load_timed(const char *what, struct str *s, size_t nodes)
{
    struct graph_options o = {.classes = classes};
    struct graph_errors errors;
    struct graph *g;
    assert_false(s->failed);
    check_write(folder, "g.yaml", s->text, s->length);
    double start = seconds();
    if (!graph_load(&g, "g.yaml", &o, &errors))
        fail_msg("%s", errors.list[0].text);
    print_message("%zu nodes (%s): %.3f s\n", g->n_nodes, what, seconds() - start);
    assert_int_equal(g->n_nodes, nodes);
    for (size_t i = 0; i < g->n_nodes; i++)
        for (size_t k = 0; k < g->nodes[i].n_inputs[0]; k++)
            assert_true(g->nodes[i].inputs[0][k].node < (int)i);
    graph_free(g);
    str_free(s);
}

static void ten_thousand_nodes_load(void **state)
{
    (void)state;
    struct str s = {0};
    str_add(&s, "scout: 1\nnodes:\n");
    for (int i = 0; i < 200; i++)
        str_printf(&s, "  n%d: {type: list, repeat: 50, in: {of: [n%d.prev, n%d.prev]}}\n", i, (i + 1) % 200,
                   (i * 7 + 3) % 200);
    load_timed("unrolled", &s, 10000);
    str_add(&s, "scout: 1\nnodes:\n");
    for (int i = 0; i < 9990; i++)
        str_printf(&s, "  n%d: {type: list, in: {of: n%d}}\n", i, i + 1);
    str_add(&s, "  n9990: {type: list}\n");
    load_timed("written, in reverse", &s, 9991);
    str_add(&s, "scout: 1\nnodes:\n  m: {type: model, with: {path: .}}\n");
    for (int i = 1; i < 10000; i++)
        str_printf(&s, "  c%d: {type: corpus, in: {tokenizer: m}, with: {text: text.txt, window: %d, documents: a}}\n",
                   i, i + 1);
    load_timed("with parameters", &s, 10000);
}

/* The n-th request fails, for every n, once and from then on: a clean error each time, and what is left is nothing (the
 * address sanitizer looks). */
static void every_allocation_may_fail(void **state)
{
    (void)state;
    static const char base[] = "scout: 1\nparams: {n: 3, w: 6$(n), file: ./text.txt}\nnodes:\n"
                               "  c: {type: corpus, with: {text: $(file), window: $(w)}}\n";
    static const char text[] = "scout: 1\nextends: base.yaml\nnodes:\n"
                               "  q: {type: list, repeat: $(n), in: {of: [q.past, c.report]}}\n"
                               "  s: {type: list, in: {of: q.all}}\n"
                               "variants: {x: {nodes: {s: {in: {one: q.last}}}}}\n";
    static const char bad[] = "scout: 1\nextends: base.yaml\nnodes:\n  q: {type: lits, in: {of: [d, c.reprot]}}\n"
                              "  r: {type: list, in: {of: [d, c.reprot, r]}}\n";
    static const char *const set[] = {"w=32", "nodes.c.with.documents=x"};
    struct graph_options o = {.variant = "x", .set = set, .n_set = 2, .classes = classes}, plain = {.classes = classes};
    check_write(folder, "base.yaml", base, sizeof base - 1);
    check_write(folder, "g.yaml", text, sizeof text - 1);
    check_write(folder, "bad.yaml", bad, sizeof bad - 1);
    for (int sticky = 0; sticky < 2; sticky++)
        for (int is_bad = 0; is_bad < 2; is_bad++) {
            bool done = false;
            long n = 1;
            for (; !done && n < 10000; n++) {
                struct graph_errors errors = {0};
                struct graph *g = NULL;
                mem_fail_after(n, sticky);
                bool ok = graph_load(&g, is_bad ? "bad.yaml" : "g.yaml", is_bad ? &plain : &o, &errors);
                mem_fail_after(0, false);
                assert_true(ok || errors.n > 0);
                done = ok || errors.list[0].code == ERR_INPUT;
                if (ok)
                    graph_free(g);
                else if (!done)
                    assert_int_equal(errors.list[0].code, ERR_RESOURCE);
                graph_errors_free(&errors);
            }
            assert_true(done);
            assert_true(n > 3);
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(deep_nesting_is_refused_before_it_costs_time),
        cmocka_unit_test(many_directives_are_refused_before_libyaml_compares_them),
        cmocka_unit_test(too_much_of_anything_is_refused),
        cmocka_unit_test(a_long_parameter_that_all_nodes_say_is_refused),
        cmocka_unit_test(many_mistakes_are_quick_to_report),
        cmocka_unit_test(ten_thousand_nodes_load),
        cmocka_unit_test(every_allocation_may_fail),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
