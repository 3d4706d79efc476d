/* Candidates of a rotated model against the original's teacher: each side has its own head. And that a teacher of any
 * other model is refused. */
#include <math.h>

#include "nodes/model/evaluator.h"
#include "nodes/model/teacher.h"
#include "tests/nodes/rotate/place.h"

extern const struct node_class node_quantize, node_rotate, node_teacher;

#define KL_F32 2e-7     /* nats: what the kernels' figure is good to */
#define MOST_UNITS 16

static const struct node_class measuring = {
    .name = "measure",
    .ports = (const struct port[]){EVALUATOR_PORTS, {0}},
    .params = (const struct param[]){EVALUATOR_PARAMS, {0}},
};

static struct object *run_node(struct node *n)
{
    struct err e;
    struct object *o = fake_node_run(n, &e);
    if (!o)
        fail_msg("%s: %s", n->class->name, e.text);
    fake_node_fini(n);
    return o;
}

/* The teacher of a model. */
static struct object *teach(struct place *p, const char *type, struct object *model, const char *path, const char *seed)
{
    struct node n;
    fake_node_init(&n, &node_teacher, p->store, seed);
    n.numerics = "fp32 here";
    fake_node_connect(&n, "model", type, model, path);
    fake_node_connect_output(&n, "tokens", "corpus", "calibration", p->corpus);
    return run_node(&n);
}

/* Renderings in one format; bf16 leaves a model as it is. */
static struct object *render(struct place *p, const char *type, struct object *model, const char *path,
                             const char *format)
{
    struct node n;
    char seed[400];
    snprintf(seed, sizeof seed, "%s %s", path, format);
    fake_node_init(&n, &node_quantize, p->store, seed);
    n.numerics = "fp32 here";
    fake_node_connect(&n, "model", type, model, path);
    fake_node_set(&n, "formats", format);
    return run_node(&n);
}

/* A measuring node on them. */
static void connect(struct place *p, struct node *n, const char *type, struct object *model, const char *path,
                    struct object *renderings, struct object *teacher)
{
    fake_node_init(n, &measuring, p->store, "measuring");
    n->numerics = "fp32 here";
    fake_node_connect(n, "model", type, model, path);
    fake_node_connect(n, "renderings", "quantize", renderings, NULL);
    fake_node_connect(n, "teacher", "teacher", teacher, NULL);
    fake_node_connect_output(n, "tokens", "corpus", "calibration", p->corpus);
    fake_node_depend(n, "model", p->info, p->source);
}

/* KL of every window of the candidate that has all units in one format. */
static void measure(struct place *p, const char *type, struct object *model, const char *path, const char *format,
                    struct object *teacher, double kl[WINDOWS])
{
    struct err e;
    struct node n;
    struct evaluator *v;
    struct candidates table;
    uint8_t assignment[MOST_UNITS] = {0};
    struct object *renderings = render(p, type, model, path, format);
    connect(p, &n, type, model, path, renderings, teacher);
    assert_ok(evaluator_open(&v, &n, &e) && evaluator_table(v, &table, &e), e);
    assert_in_range(evaluator_menu(v)->n_units, 1, MOST_UNITS);
    assert_non_null(candidates_add(&table, evaluator_menu(v), assignment, "made", -1, &e));
    assert_ok(evaluator_measure(v, &table, 0, &e), e);
    memcpy(kl, table.list[0].kl_window, WINDOWS * sizeof *kl);
    candidates_fini(&table);
    evaluator_close(v);
    fake_node_fini(&n);
    object_close(renderings);
}

static void what_was_not_quantized_has_the_kl_that_the_rotation_told(void **state)
{
    static const char *const dtypes[] = {"dtype=f32", "dtype=bf16"};
    (void)state;
    for (size_t i = 0; i < COUNT(dtypes); i++) {
        struct place p;
        struct made made = place_small;
        made.tied = true;
        place_open(&p, &made);
        struct object *teacher = teach(&p, "model", p.info, p.source, "teacher");
        struct object *rotated = place_run(&p, true, SETTINGS("untie=true", "gate=false", "tolerance=0.1", dtypes[i]));
        double kl[WINDOWS], *told = place_column(rotated, "kl/window", DTYPE_F64, WINDOWS);
        measure(&p, "rotate", rotated, p.target, "bf16", teacher, kl);
        for (int w = 0; w < WINDOWS; w++)
            if (kl[w] != told[w] || (i == 0 && kl[w] > KL_F32) || (i == 1 && kl[w] < KL_F32))
                fail_msg("%s, window %d: KL %.17g, the node rotate told %.17g", dtypes[i], w, kl[w], told[w]);
        mem_free(told);
        object_close(rotated);
        object_close(teacher);
        place_close(&p);
    }
}

/* What decides at last is what a measuring node finds. */
static void rounded_models_have_the_kl_that_the_rotation_told(void **state)
{
    struct place p;
    struct made made = place_small;
    (void)state;
    made.weights[0] = made.weights[1] = MADE_VALUES;
    place_open(&p, &made);
    struct object *teacher = teach(&p, "model", p.info, p.source, "teacher");
    struct object *rotated = place_run(&p, true, SETTINGS("residual=false"));
    double kl[2][WINDOWS], *before = place_column(rotated, "kl/rounded_before", DTYPE_F64, WINDOWS);
    double *after = place_column(rotated, "kl/rounded_after", DTYPE_F64, WINDOWS);
    assert_true(place_figure(rotated, "kl_rounded_after") < place_figure(rotated, "kl_rounded_before"));
    measure(&p, "model", p.info, p.source, "nvfp4_a16", teacher, kl[0]);
    measure(&p, "rotate", rotated, p.target, "nvfp4_a16", teacher, kl[1]);
    for (int w = 0; w < WINDOWS; w++)
        if (kl[0][w] != before[w] || kl[1][w] != after[w])
            fail_msg("window %d: KL %.17g and %.17g, the node rotate told %.17g and %.17g", w, kl[0][w], kl[1][w],
                     before[w], after[w]);
    mem_free(before);
    mem_free(after);
    object_close(rotated);
    object_close(teacher);
    place_close(&p);
}

/* In its own teacher's eyes it is the same to the bit. */
static void a_rotated_model_may_teach_itself(void **state)
{
    struct place p;
    double kl[WINDOWS];
    (void)state;
    place_open(&p, &place_small);
    struct object *rotated = place_run(&p, true, SETTINGS("gate=false", "tolerance=0.1", "dtype=bf16"));
    struct object *teacher = teach(&p, "rotate", rotated, p.target, "teacher");
    measure(&p, "rotate", rotated, p.target, "bf16", teacher, kl);
    for (int w = 0; w < WINDOWS; w++)
        assert_true(kl[w] == 0);
    object_close(teacher);
    object_close(rotated);
    place_close(&p);
}

static void rotated_twice_it_is_still_of_the_first_teacher(void **state)
{
    struct place p;
    struct node n;
    char path[300];
    double kl[WINDOWS];
    (void)state;
    place_open(&p, &place_small);
    struct object *teacher = teach(&p, "model", p.info, p.source, "teacher");
    struct object *once = place_run(&p, true, SETTINGS("gate=false"));
    snprintf(path, sizeof path, "%s/twice", p.folder);
    fake_node_init(&n, &node_rotate, p.store, "twice");
    n.numerics = "fp32 here";
    fake_node_connect(&n, "model", "rotate", once, p.target);
    fake_node_set(&n, "gate", "false");
    fake_node_set(&n, "seed", "3");
    fake_node_set(&n, "directory", path);
    struct object *twice = run_node(&n);
    measure(&p, "rotate", twice, path, "bf16", teacher, kl);
    for (int w = 0; w < WINDOWS; w++)
        assert_true(kl[w] >= 0 && kl[w] < KL_F32);
    object_close(twice);
    object_close(once);
    object_close(teacher);
    place_close(&p);
}

static void another_teacher_and_a_changed_directory_are_refused(void **state)
{
    struct place p, other;
    struct made made = place_small;
    struct node n;
    struct err e;
    struct evaluator *v;
    char path[400];
    (void)state;
    place_open(&p, &place_small);
    made.biases = true; /* other weights of the same shapes */
    place_open(&other, &made);
    struct object *right = teach(&p, "model", p.info, p.source, "right");
    struct object *wrong = teach(&p, "model", other.info, other.source, "wrong");
    struct object *rotated = place_run(&p, true, SETTINGS("gate=false"));
    struct object *renderings = render(&p, "rotate", rotated, p.target, "bf16");
    connect(&p, &n, "rotate", rotated, p.target, renderings, wrong);
    assert_err(evaluator_open(&v, &n, &e), e, ERR_INPUT,
               "of another model than the candidates, which were not rotated");
    fake_node_fini(&n);
    /* Candidates of the original are not measured against a teacher of the rotated model either. */
    struct object *backward = teach(&p, "rotate", rotated, p.target, "backward");
    fake_node_init(&n, &measuring, p.store, "measuring");
    struct model *found;
    fake_node_connect(&n, "teacher", "teacher", backward, NULL);
    assert_err(teacher_model(&found, &n, node_input(&n, "teacher", 0), object_key(p.info), &e), e, ERR_INPUT,
               "of another model than the candidates");
    fake_node_fini(&n);
    snprintf(path, sizeof path, "%s/config.json", p.target);
    FILE *f = fopen(path, "a");
    assert_non_null(f);
    assert_true(fputs(" ", f) >= 0 && fclose(f) == 0);
    connect(&p, &n, "rotate", rotated, p.target, renderings, right);
    assert_err(evaluator_open(&v, &n, &e), e, ERR_INPUT, "config.json is not what node 'rotate' wrote");
    fake_node_fini(&n);
    object_close(backward);
    object_close(renderings);
    object_close(rotated);
    object_close(wrong);
    object_close(right);
    place_close(&other);
    place_close(&p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_was_not_quantized_has_the_kl_that_the_rotation_told),
        cmocka_unit_test(rounded_models_have_the_kl_that_the_rotation_told),
        cmocka_unit_test(a_rotated_model_may_teach_itself),
        cmocka_unit_test(rotated_twice_it_is_still_of_the_first_teacher),
        cmocka_unit_test(another_teacher_and_a_changed_directory_are_refused),
    };
    return cmocka_run_group_tests_name("rotate measure", tests, NULL, NULL);
}
