/* Graphs that load: what merging, $(...), typing, unrolling and ordering make of a text. */
#include "tests/check.h"
#include "tests/engine/graph/classes.h"

static char folder[256];

static int setup(void **state)
{
    (void)state;
    check_dir_make(folder);
    check_write(folder, "text.txt", "words\n", 6);
    check_write(folder, "other.txt", "words\n", 6);
    assert_int_equal(chdir(folder), 0);
    assert_int_equal(mkdir("sub", 0755), 0);
    check_write(folder, "sub/text.txt", "words\n", 6);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    assert_int_equal(chdir("/"), 0);
    check_dir_remove(folder);
    return 0;
}

/* Load the text as "g.yaml" in the folder; every error is printed when it does not load. */
static struct graph *load_with(const char *text, const char *variant, const char *const *set, size_t n_set)
{
    struct graph_options o = {.variant = variant, .set = set, .n_set = n_set, .classes = classes};
    struct graph_errors errors;
    struct graph *g = NULL;
    check_write(folder, "g.yaml", text, strlen(text));
    if (graph_load(&g, "g.yaml", &o, &errors))
        return g;
    for (size_t i = 0; i < errors.n; i++)
        graph_error_print(&errors.list[i], stderr);
    graph_errors_free(&errors);
    fail_msg("the graph does not load");
    return NULL;
}

static struct graph *load(const char *text)
{
    return load_with(text, NULL, NULL, 0);
}

/* A parameter as "text, text". */
static const char *param(const struct graph *g, const char *node, const char *name, char out[512])
{
    int at = graph_find(g, node);
    size_t n = 0;
    assert_true(at >= 0);
    int p = class_param(g->nodes[at].class, name);
    assert_true(p >= 0);
    const struct value *v = &g->nodes[at].params[p];
    out[0] = '\0';
    for (size_t i = 0; i < v->n; i++)
        n += (size_t)snprintf(out + n, 512 - n, "%s%s", i ? ", " : "", v->text[i]);
    return out;
}

#define assert_param(g, node, name, expected)                                                                          \
    do {                                                                                                               \
        char found[512];                                                                                               \
        assert_string_equal(param((g), (node), (name), found), (expected));                                            \
    } while (0)

/* The nodes in order: "model corpus hessian". */
static const char *order(const struct graph *g, char out[1024])
{
    size_t n = 0;
    out[0] = '\0';
    for (size_t i = 0; i < g->n_nodes; i++)
        n += (size_t)snprintf(out + n, 1024 - n, "%s%s", i ? " " : "", g->nodes[i].name);
    return out;
}

/* What a port is connected to: "corpus.report" or "a.1 a.2". */
static const char *inputs(const struct graph *g, const char *node, const char *port, char out[1024])
{
    const struct graph_node *n = &g->nodes[graph_find(g, node)];
    int p = class_port(n->class, port);
    size_t at = 0;
    out[0] = '\0';
    for (size_t i = 0; i < n->n_inputs[p]; i++) {
        const struct graph_input *in = &n->inputs[p][i];
        at += (size_t)snprintf(out + at, 1024 - at, "%s%s%s%s", i ? " " : "", g->nodes[in->node].name,
                               *in->output ? "." : "", in->output);
    }
    return out;
}

#define assert_inputs(g, node, port, expected)                                                                         \
    do {                                                                                                               \
        char found[1024];                                                                                              \
        assert_string_equal(inputs((g), (node), (port), found), (expected));                                           \
    } while (0)

static void a_small_graph_has_its_nodes_params_inputs_and_marks(void **state)
{
    (void)state;
    struct graph *g =
        load("scout: 1\nname: small\nnodes:\n"
             "  corpus: {type: corpus, with: {text: text.txt, window: 128}, on: {device: 'cuda:1', threads: 3,"
             " memory: 2GiB}}\n"
             "  list: {type: list, in: {of: [corpus.report, corpus], one: corpus.calibration}}\n");
    assert_string_equal(g->name, "small");
    assert_string_equal(g->path, "g.yaml");
    assert_non_null(strstr(g->text, "name: small"));
    const struct graph_node *n = &g->nodes[0];
    assert_string_equal(n->name, "corpus");
    assert_ptr_equal(n->class, &class_corpus);
    assert_string_equal(n->device, "cuda:1");
    assert_int_equal(n->threads, 3);
    assert_int_equal(n->memory, 2ull << 30);
    assert_string_equal(n->mark.file, "g.yaml");
    assert_int_equal(n->mark.line, 4);
    assert_int_equal(n->mark.column, 3);
    assert_int_equal(n->mark.width, 6);
    const struct value *window = &n->params[class_param(n->class, "window")];
    assert_true(window->number[0] == 128);
    assert_int_equal(window->mark.column, 57);
    assert_null(n->params[class_param(n->class, "cache")].mark.file);
    assert_inputs(g, "list", "of", "corpus.report corpus");
    assert_inputs(g, "list", "one", "corpus.calibration");
    assert_string_equal(g->nodes[1].device, "auto");
    assert_int_equal(graph_find(g, "none"), -1);
    graph_free(g);
}

static void values_are_typed_by_their_parameter_and_canonical(void **state)
{
    (void)state;
    static const char head[] =
        "scout: 1\nnodes:\n  m: {type: model, with: {path: sub}}\n"
        "  c: {type: corpus, with: {text: text.txt, window: %s, documents: %s, cache: %s}}\n"
        "  h: {type: hessian, in: {model: m, tokens: c.report}, with: {damping: %s, exact: %s}}\n"
        "  q: {type: quantize, in: {model: m}, with: {formats: %s, weights: %s}}\n";
    static const struct {
        const char *in[7], *out[7];
    } cases[] = {
        {{"0064", "no", "2MiB", "0.1", "true", "[bf16, fp8]", "[1, 2.5e-1]"},
         {"64", "no", "2097152", "0.10000000000000001", "true", "bf16, fp8", "1, 0.25"}},
        {{"'8'", "'null'", "1048576", "1e-3", "false", "fp8", "[]"},
         {"8", "null", "1048576", "0.001", "false", "fp8", ""}},
        {{"null", "~", "null", "-0", "null", "null", "null"},
         {"256", "", "67108864", "0", "false", "nvfp4, fp8, bf16", ""}},
        {{"2", "\"a\\tb\"", "1.5 MiB", ".5", "'true'", "[fp8]", "-3"},
         {"2", "a\tb", "1572864", "0.5", "true", "fp8", "-3"}},
        {{"\"16\"", "$$(x)", "4M", "1", "true", "[nvfp4]", "1e300"},
         {"16", "$(x)", "4194304", "1", "true", "nvfp4", "1.0000000000000001e+300"}},
    };
    static const char *const names[7][2] = {{"c", "window"}, {"c", "documents"}, {"c", "cache"},  {"h", "damping"},
                                            {"h", "exact"},  {"q", "formats"},   {"q", "weights"}};
    for (size_t i = 0; i < COUNT(cases); i++) {
        char text[1024];
        const char *const *in = cases[i].in;
        snprintf(text, sizeof text, head, in[0], in[1], in[2], in[3], in[4], in[5], in[6]);
        struct graph *g = load(text);
        for (size_t k = 0; k < 7; k++)
            assert_param(g, names[k][0], names[k][1], cases[i].out[k]);
        graph_free(g);
    }
}

static void graph_parameters_fill_values_and_parts_of_values(void **state)
{
    (void)state;
    struct graph *g =
        load("scout: 1\n"
             "params: {size: 12, menu: [fp8, bf16], name: text, file: $(name).txt, type: corpus, n: 2, w: $(size)}\n"
             "name: run-$(size)\n"
             "nodes:\n"
             "  c: {type: $(type), with: {text: $(file), window: $(w)8, documents: 'a$(size)$$(b)$(n)$'}}\n"
             "  m: {type: model, repeat: $(n), with: {path: sub}}\n"
             "  q: {type: quantize, in: {model: m.$(n)}, with: {formats: $(menu)}, on: {threads: $(n)}}\n");
    assert_string_equal(g->name, "run-12");
    assert_param(g, "c", "window", "128");
    assert_param(g, "c", "documents", "a12$(b)2$");
    assert_param(g, "q", "formats", "fp8, bf16");
    assert_inputs(g, "q", "model", "m.2");
    assert_int_equal(g->nodes[graph_find(g, "q")].threads, 2);
    graph_free(g);
}

static void sources_are_absolute_and_relative_to_the_file_that_says_them(void **state)
{
    (void)state;
    static const char base[] = "scout: 1\nparams: {file: text.txt, dir: .}\nnodes:\n"
                               "  a: {type: corpus, with: {text: text.txt}}\n"
                               "  b: {type: corpus, with: {text: $(file)}}\n"
                               "  c: {type: corpus, with: {text: $(dir)/./text.txt}}\n";
    static const char *const set[] = {"nodes.a.with.text=sub/../sub//text.txt"};
    char real[512], expected[600];
    assert_non_null(getcwd(real, sizeof real));
    check_write(folder, "sub/base.yaml", base, strlen(base));
    struct graph *g =
        load("scout: 1\nextends: sub/base.yaml\nparams: {dir: sub/..}\nnodes: {b: {with: {text: ./other.txt}}}\n");
    snprintf(expected, sizeof expected, "%s/sub/text.txt", real);
    assert_param(g, "a", "text", expected);
    snprintf(expected, sizeof expected, "%s/other.txt", real);
    assert_param(g, "b", "text", expected);
    snprintf(expected, sizeof expected, "%s/text.txt", real);
    assert_param(g, "c", "text", expected);
    graph_free(g);
    g = load_with("scout: 1\nextends: sub/base.yaml\n", NULL, set, 1);
    snprintf(expected, sizeof expected, "%s/sub/text.txt", real);
    assert_param(g, "a", "text", expected);
    assert_param(g, "b", "text", expected);
    graph_free(g);
}

/* link -> far/near: link/.. is far, whatever the text looks like. */
static void dots_after_a_link_lead_to_where_it_points(void **state)
{
    (void)state;
    char real[512], expected[600];
    assert_non_null(getcwd(real, sizeof real));
    assert_int_equal(mkdir("far", 0755) | mkdir("far/near", 0755) | symlink("far/near", "link"), 0);
    check_write(folder, "far/text.txt", "far\n", 4);
    struct graph *g = load("scout: 1\nnodes:\n  a: {type: corpus, with: {text: link/../text.txt}}\n"
                           "  b: {type: corpus, with: {text: far/near/../../far/./text.txt}}\n");
    snprintf(expected, sizeof expected, "%s/link/../text.txt", real);
    assert_param(g, "a", "text", expected);
    snprintf(expected, sizeof expected, "%s/far/text.txt", real);
    assert_param(g, "b", "text", expected);
    graph_free(g);
    static const char round[] = "scout: 1\nextends: ../link/../round.yaml\n";
    struct graph_options o = {.classes = classes};
    struct graph_errors errors;
    check_write(folder, "far/round.yaml", round, strlen(round));
    assert_false(graph_load(&g, "far/round.yaml", &o, &errors));
    assert_non_null(strstr(errors.list[0].text, "circle"));
    graph_errors_free(&errors);
}

static void layers_merge_base_file_variant_set(void **state)
{
    (void)state;
    static const char base[] =
        "scout: 1\nname: base\nparams: {window: 2, cache: 1MiB}\nnodes:\n"
        "  c: {type: corpus, with: {text: ../text.txt, window: $(window), cache: $(cache), documents: base}}\n"
        "  gone: {type: list}\n"
        "variants:\n  wide: {params: {window: 4}}\n";
    static const char top[] =
        "scout: 1\nextends: sub/base.yaml\nparams: {window: 3}\n"
        "nodes: {gone: null, c: {with: {documents: ~}}, more: {type: list, in: {of: [c.report, c.selection]}}}\n"
        "variants:\n  wide: {name: wide, nodes: {more: {in: {of: c}}, new: {type: list}}}\n"
        "  none: {nodes: {more: ~}}\n";
    static const char *const set[] = {"window=5", "params.cache=2MiB",
                                      "nodes.c.with.documents=", "nodes.more.in.of=[c.report]"};
    char names[1024];
    check_write(folder, "sub/base.yaml", base, strlen(base));
    struct graph *g = load(top);
    assert_string_equal(g->name, "base");
    assert_string_equal(order(g, names), "c more");
    assert_param(g, "c", "window", "3");
    assert_param(g, "c", "documents", "");
    assert_inputs(g, "more", "of", "c.report c.selection");
    assert_string_equal(g->nodes[0].mark.file, "sub/base.yaml");
    graph_free(g);
    g = load_with(top, "wide", NULL, 0);
    assert_string_equal(g->name, "wide");
    assert_string_equal(order(g, names), "c more new");
    assert_param(g, "c", "window", "4");
    assert_inputs(g, "more", "of", "c");
    graph_free(g);
    g = load_with(top, "none", NULL, 0);
    assert_string_equal(order(g, names), "c");
    graph_free(g);
    g = load_with(top, "wide", set, 4);
    assert_param(g, "c", "window", "5");
    assert_param(g, "c", "cache", "2097152");
    assert_inputs(g, "more", "of", "c.report");
    assert_null(g->nodes[0].params[class_param(&class_corpus, "cache")].mark.file);
    graph_free(g);
}

static void set_takes_texts_as_they_stand(void **state)
{
    (void)state;
    static const char *const cases[][2] = {
        {"a # b", "a # b"}, {"# x", "# x"}, {"a: b", "a: b"},   {"- a", "- a"}, {"&a", "&a"},     {"!t", "!t"},
        {"%x", "%x"},       {"", ""},       {"'a # b'", "a # b"}, {"\"\\t\"", "\t"}, {"null", ""}, {"~", ""},
        {"nulls", "nulls"}, {" x ", " x "}, {"$(p)", "8"},      {"a]", "a]"},   {"|", "|"},
    };
    for (size_t i = 0; i < COUNT(cases); i++) {
        char text[64];
        const char *const set[] = {text};
        snprintf(text, sizeof text, "nodes.c.with.documents=%s", cases[i][0]);
        struct graph *g = load_with("scout: 1\nparams: {p: 8}\nnodes:\n"
                                    "  c: {type: corpus, with: {text: text.txt, window: $(p), documents: x}}\n",
                                    NULL, set, 1);
        assert_param(g, "c", "documents", cases[i][1]);
        graph_free(g);
    }
}

static void repeated_nodes_are_unrolled_and_their_references_follow(void **state)
{
    (void)state;
    char names[1024];
    struct graph *g =
        load("scout: 1\nnodes:\n"
             "  m: {type: model, with: {path: sub}}\n"
             "  c: {type: corpus, with: {text: text.txt}}\n"
             "  t: {type: teacher, in: {model: m, tokens: c.report}}\n"
             "  q: {type: quantize, in: {model: m}}\n"
             "  propose: {type: frontier, repeat: 3, in: {renderings: q, rows: measure.past}}\n"
             "  measure: {type: measure, repeat: 3, in: {teacher: t, candidates: [propose.this, measure.prev],"
             " after: measure.prev}}\n"
             "  select: {type: select, in: {rows: [measure.all, measure.2, measure.last]}, with: {budget: 1}}\n"
             "  o: {type: corpus, repeat: 2, in: {tokenizer: m}, with: {text: text.txt}}\n"
             "  l: {type: list, repeat: 2, in: {of: [o.all, o.this.report, o.prev.selection, o.1], one: propose.2}}\n");
    assert_string_equal(order(g, names),
                        "m c t q propose.1 measure.1 propose.2 measure.2 propose.3 measure.3 select o.1 o.2 "
                        "l.1 l.2");
    assert_inputs(g, "propose.1", "rows", "");
    assert_inputs(g, "propose.2", "rows", "measure.1");
    assert_inputs(g, "propose.3", "rows", "measure.1 measure.2");
    assert_inputs(g, "measure.1", "candidates", "propose.1");
    assert_inputs(g, "measure.3", "candidates", "propose.3 measure.2");
    assert_inputs(g, "measure.1", "after", "");
    assert_inputs(g, "measure.2", "after", "measure.1");
    assert_inputs(g, "select", "rows", "measure.1 measure.2 measure.3 measure.2 measure.3");
    assert_inputs(g, "l.1", "of", "o.1 o.2 o.1.report o.1");
    assert_inputs(g, "l.2", "of", "o.1 o.2 o.2.report o.1.selection o.1");
    assert_inputs(g, "l.2", "one", "propose.2");
    graph_free(g);
}

static void ties_keep_the_order_of_the_text(void **state)
{
    (void)state;
    char names[1024];
    struct graph *g = load("scout: 1\nnodes:\n"
                           "  z: {type: list, in: {of: [b, y]}}\n  y: {type: list}\n  x: {type: list, in: {of: w}}\n"
                           "  b: {type: list}\n  w: {type: list}\n  a: {type: list}\n");
    assert_string_equal(order(g, names), "y b z w x a");
    graph_free(g);
}

static void an_optional_port_may_stay_open(void **state)
{
    (void)state;
    struct graph *g = load("scout: 1\nnodes:\n  c:\n    type: corpus\n    in:\n    with: {text: text.txt}\n    on: ~\n"
                           "  l: {type: list, in: {of: []}}\n");
    assert_inputs(g, "c", "tokenizer", "");
    assert_inputs(g, "l", "of", "");
    graph_free(g);
}

static void a_graph_without_a_name_is_called_as_its_file(void **state)
{
    (void)state;
    struct graph *g = load("scout: 1\nnodes: {a: {type: list}}\n");
    assert_string_equal(g->name, "g");
    graph_free(g);
    static const char *const files[][2] = {{"a b.c.yaml", "a_b.c"}, {".yaml", "_yaml"}, {"\xc3\xa9\n.x", "___"}};
    for (size_t i = 0; i < COUNT(files); i++) {
        struct graph_options o = {.classes = classes};
        struct graph_errors errors;
        check_write(folder, files[i][0], "scout: 1\nnodes: {a: {type: list}}\n", 34);
        assert_true(graph_load(&g, files[i][0], &o, &errors));
        assert_string_equal(g->name, files[i][1]);
        graph_free(g);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_small_graph_has_its_nodes_params_inputs_and_marks),
        cmocka_unit_test(values_are_typed_by_their_parameter_and_canonical),
        cmocka_unit_test(graph_parameters_fill_values_and_parts_of_values),
        cmocka_unit_test(sources_are_absolute_and_relative_to_the_file_that_says_them),
        cmocka_unit_test(dots_after_a_link_lead_to_where_it_points),
        cmocka_unit_test(layers_merge_base_file_variant_set),
        cmocka_unit_test(set_takes_texts_as_they_stand),
        cmocka_unit_test(repeated_nodes_are_unrolled_and_their_references_follow),
        cmocka_unit_test(ties_keep_the_order_of_the_text),
        cmocka_unit_test(an_optional_port_may_stay_open),
        cmocka_unit_test(a_graph_without_a_name_is_called_as_its_file),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
