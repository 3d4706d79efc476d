/* Targets: Python's regular expressions, and the two orders in which they are tried. */
#include "nodes/inspect/match.h"
#include "nodes/inspect/pattern.h"
#include "tests/check.h"

/* What Python's re.match(pattern, name) says. */
static const struct {
    const char *pattern, *name;
    bool matches;
} matching[] = {
    {"model", "model.layers.0", true},        /* anchored at the start and not at the end */
    {"layers", "model.layers.0", false},
    {"model$", "model.layers.0", false},
    {".*mlp.*", "model.layers.0.mlp.up_proj", true},
    {".*[.]mlp[.]up_proj$", "model.layers.0.mlp.up_proj", true},
    {".*[.]mlp[.]up_proj$", "model.layers.0.mlp.up_proj_x", false},
    {"model\\.layers\\.\\d+\\.x\\Z", "model.layers.17.x", true},
    {"(?:model|mtp)[.]", "mtp.fc", true},
    {"(?P<a>ab)(?P=a)", "abab", true},
    {"(a)\\1", "aa", true},
    {"(?i)LM_HEAD", "lm_head", true},
    {"(?!mtp).*fc", "mtp.fc", false},
    {"x{,2}y", "xxy", true},
    {"x{,2}y", "xxxy", false},
    {"[]x]+$", "]x]", true},
    {"[^]x]", "]", false},
    {"[[:alpha:]]", "a", false},              /* a set of these characters, then ']' */
    {"[[:alpha:]]", "a]", true},
    {"[:a:]$", ":", true},
    {"mo(?#a [comment)del", "model", true},
    {"\\w", "\xc3\xa9", true},
    {"\\x6dodel", "model", true},
    {"\\u006dodel", "model", true},
    {"^model", "model", true},
    {"a|b", "b", true},
    {"", "anything", true},
    {"a{2}b", "aab", true},
    {"a\\.b", "axb", false},
    {"\\w+\\W\\w+$", "ab.cd", true},
    {"\xc3\xa9", "\xc3\xa9", true},
};

static const char *const refused[] = {"(", ")", "[a", "a**", "*a", "(*ACCEPT)", "(?R)", "(?1)", "\\Qa.b\\E", "\\K",
                                      "\\h", "\\", "\\x1", "(?|a|b)", "[b-a]", "\\p{L}", "(?<n>a)", "(?P>n)", "\\R", "a(?i)b", "(?#"};

static void patterns_match_as_in_python(void **state)
{
    (void)state;
    for (size_t i = 0; i < COUNT(matching); i++) {
        struct pattern *p;
        struct err e;
        assert_ok(pattern_new(&p, matching[i].pattern, &e), e);
        if (pattern_matches(p, matching[i].name) != matching[i].matches)
            fail_msg("'%s' on '%s': expected %d", matching[i].pattern, matching[i].name, matching[i].matches);
        assert_int_equal(pattern_state(p), PATTERN_FINE);
        pattern_free(p);
    }
}

static void what_python_refuses_is_refused(void **state)
{
    (void)state;
    for (size_t i = 0; i < COUNT(refused); i++) {
        struct pattern *p;
        struct err e = {0};
        if (pattern_new(&p, refused[i], &e))
            fail_msg("'%s' was accepted", refused[i]);
        assert_int_equal(e.code, ERR_INPUT);
        assert_true(e.text[0] != '\0');
    }
}

static void a_pattern_without_end_is_given_up(void **state)
{
    struct pattern *p;
    struct err e;
    (void)state;
    assert_ok(pattern_new(&p, "(?:.|.)*[XY]$", &e), e);
    assert_false(pattern_matches(p, "model.layers.0.self_attn.q_proj.and.more.of.it"));
    assert_int_equal(pattern_state(p), PATTERN_GAVE_UP);
    pattern_free(p);
}

/* ----------------------------------------------------------------------------------------------------------- orders */

/* Groups of one target each, in this order; the group that is expected, or -1: none, -2: ignored, -3: split. */
#define ROW "RowParallelLinear"
#define COLUMN "ColumnParallelLinear"
#define QKV "QKVParallelLinear"
#define HEAD "ParallelLMHead"
static const struct {
    const char *what;
    const char *targets[4], *ignore[3];
    enum name_form form;
    const char *name, *shards[3]; /* in that form */
    const char *server_class;
    int server, ct;               /* ct: by the name in the checkpoint, which is `ct_name` or `name` */
    const char *ct_name;
} orders[] = {
    {"the first of two patterns", {"re:.*up", "re:.*mlp"}, {NULL}, FORM_CHECKPOINT, "a.mlp.up", {NULL}, ROW, 0, 1,
     NULL},
    {"a name behind a pattern", {"re:.*mlp", "a.mlp.up"}, {NULL}, FORM_CHECKPOINT, "a.mlp.up", {NULL}, ROW, 0, 1,
     NULL},
    {"a class before a name", {"Linear", "a.mlp.up"}, {NULL}, FORM_CHECKPOINT, "a.mlp.up", {NULL}, ROW, 1, 1, NULL},
    {"a class is part of a class", {"linear"}, {NULL}, FORM_CHECKPOINT, "a.b", {NULL}, COLUMN, 0, -1, NULL},
    {"no class of a head", {"Linear"}, {NULL}, FORM_CHECKPOINT, "lm_head", {NULL}, HEAD, -1, 0, NULL},
    {"a pattern on a class", {"re:.*ParallelLinear$"}, {NULL}, FORM_CHECKPOINT, "a.b", {NULL}, ROW, 0, -1, NULL},
    {"ignored by name", {"Linear"}, {"a.b"}, FORM_CHECKPOINT, "a.b", {NULL}, ROW, -2, -2, NULL},
    {"ignored by pattern", {"a.b"}, {"re:a"}, FORM_CHECKPOINT, "a.b", {NULL}, ROW, -2, -2, NULL},
    {"ignored by class", {"a.b"}, {"Linear"}, FORM_CHECKPOINT, "a.b", {NULL}, ROW, 0, -2, NULL},
    {"all shards have a target", {"a.q_proj", "a.k_proj", "a.v_proj"}, {NULL}, FORM_CHECKPOINT, "a.qkv_proj",
     {"a.q_proj", "a.k_proj", "a.v_proj"}, QKV, 0, 2, "a.v_proj"},
    {"one shard has none", {"a.q_proj", "a.k_proj"}, {NULL}, FORM_CHECKPOINT, "a.qkv_proj", {"a.q_proj", "a.k_proj",
     "a.v_proj"}, QKV, -1, 0, "a.q_proj"},
    {"the fused name itself", {"a.q_proj", "a.qkv_proj"}, {NULL}, FORM_CHECKPOINT, "a.qkv_proj", {"a.q_proj",
     "a.k_proj", "a.v_proj"}, QKV, 1, 0, "a.q_proj"},
    {"a class behind the shards", {"Linear", "re:a[.][qkv]_proj"}, {NULL}, FORM_CHECKPOINT, "a.qkv_proj",
     {"a.q_proj", "a.k_proj", "a.v_proj"}, QKV, 1, 1, "a.q_proj"},
    {"some shards ignored", {"Linear"}, {"a.k_proj"}, FORM_CHECKPOINT, "a.qkv_proj", {"a.q_proj", "a.k_proj",
     "a.v_proj"}, QKV, -3, 0, "a.q_proj"},
    {"all shards ignored", {"Linear"}, {"re:a[.][qkv]_proj"}, FORM_CHECKPOINT, "a.qkv_proj", {"a.q_proj", "a.k_proj",
     "a.v_proj"}, QKV, -2, -2, "a.q_proj"},
    {"a name is rewritten", {"model.language_model.layers.0.x"}, {NULL}, FORM_VISION,
     "language_model.model.layers.0.x", {NULL}, ROW, 0, 0, "model.language_model.layers.0.x"},
    {"in the text-only class, too", {"model.language_model.layers.0.x"}, {NULL}, FORM_TEXT, "model.layers.0.x",
     {NULL}, ROW, 0, 0, "model.language_model.layers.0.x"},
    {"a pattern is not rewritten", {"re:model[.]language_model[.]"}, {NULL}, FORM_VISION,
     "language_model.model.layers.0.x", {NULL}, ROW, -1, 0, "model.language_model.layers.0.x"},
    {"nor a name without a dot", {"lm_head"}, {NULL}, FORM_VISION, "language_model.lm_head", {NULL}, HEAD, -1, 0,
     "lm_head"},
    {"the usual pattern of a head", {"re:.*lm_head$"}, {NULL}, FORM_VISION, "language_model.lm_head", {NULL}, HEAD,
     0, 0, "lm_head"},
    {"one text in two groups: the last has it", {"a.b", "a.c", "a.b"}, {NULL}, FORM_CHECKPOINT, "a.b", {NULL}, ROW,
     2, 2, NULL},
};

static int outcome(const struct match *m)
{
    return m->kind == MATCH_GROUP ? (int)m->group : m->kind == MATCH_IGNORED ? -2 : m->kind == MATCH_SPLIT ? -3 : -1;
}

static void both_orders_are_kept(void **state)
{
    (void)state;
    for (size_t i = 0; i < COUNT(orders); i++) {
        struct quant_group groups[4] = {{0}};
        struct quant q = {.is_there = true, .groups = groups, .ignore = (const char **)orders[i].ignore};
        struct match_query query = {.name = orders[i].name, .server_class = orders[i].server_class, .class = "Linear"};
        struct report r = {0};
        struct matcher *m;
        struct err e;
        for (; q.n_groups < 4 && orders[i].targets[q.n_groups]; q.n_groups++)
            groups[q.n_groups] = (struct quant_group){.targets = (const char **)&orders[i].targets[q.n_groups],
                                                      .n_targets = 1};
        while (q.n_ignore < 3 && orders[i].ignore[q.n_ignore])
            q.n_ignore++;
        for (; query.n_shards < 3 && orders[i].shards[query.n_shards]; query.n_shards++)
            query.shards[query.n_shards] = orders[i].shards[query.n_shards];
        assert_ok(matcher_new(&m, &q, &r, &e), e);
        struct match server = matcher_server(m, orders[i].form, &query);
        struct match ct = matcher_ct(m, orders[i].ct_name ? orders[i].ct_name : orders[i].name, "Linear");
        if (outcome(&server) != orders[i].server || outcome(&ct) != orders[i].ct)
            fail_msg("%s: %d and %d, expected %d and %d", orders[i].what, outcome(&server), outcome(&ct),
                     orders[i].server, orders[i].ct);
        assert_int_equal(r.n, 0);
        matcher_free(m);
        report_fini(&r);
    }
}

static void names_have_their_forms(void **state)
{
    static const struct {
        const char *name, *vision, *text;
    } cases[] = {
        {"model.language_model.layers.0.x", "language_model.model.layers.0.x", "model.layers.0.x"},
        {"model.visual.blocks.0.x", "visual.blocks.0.x", "model.visual.blocks.0.x"},
        {"lm_head", "language_model.lm_head", "lm_head"},
        {"mtp.fc", "mtp.fc", "mtp.fc"},
    };
    char out[200];
    (void)state;
    for (size_t i = 0; i < COUNT(cases); i++) {
        form_name(FORM_CHECKPOINT, cases[i].name, out, sizeof out);
        assert_string_equal(out, cases[i].name);
        form_name(FORM_VISION, cases[i].name, out, sizeof out);
        assert_string_equal(out, cases[i].vision);
        form_name(FORM_TEXT, cases[i].name, out, sizeof out);
        assert_string_equal(out, cases[i].text);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(patterns_match_as_in_python),
        cmocka_unit_test(what_python_refuses_is_refused),
        cmocka_unit_test(a_pattern_without_end_is_given_up),
        cmocka_unit_test(both_orders_are_kept),
        cmocka_unit_test(names_have_their_forms),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
