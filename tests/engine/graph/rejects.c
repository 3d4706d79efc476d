/* Broken graphs, each beside the exact text that the loader must print for it: tests/rejects/graphs/NAME.yaml and
 * NAME.txt. Adding a case needs no C. The first line of a case may be "# options: --variant V --set a=b". With
 * SCOUT_REWRITE set in the environment the texts are written instead of compared, to be read before they are
 * committed. */
#include <dirent.h>

#include "tests/check.h"
#include "tests/engine/graph/classes.h"

#define FEWEST 45
#define MOST_WORDS 16

static int is_case(const struct dirent *d)
{
    const char *dot = strrchr(d->d_name, '.');
    return dot && strcmp(dot, ".yaml") == 0;
}

/* Options from the first line of a case; the words stay in `line`. */
static struct graph_options read_options(const char *path, char line[512], const char *set[MOST_WORDS])
{
    static const char head[] = "# options: ";
    struct graph_options o = {.classes = classes, .set = set};
    FILE *f = fopen(path, "rb");
    assert_non_null(f);
    if (!fgets(line, 512, f) || strncmp(line, head, sizeof head - 1) != 0)
        line[0] = '\0';
    fclose(f);
    line[strcspn(line, "\n")] = '\0';
    char *rest = line[0] ? line + sizeof head - 1 : line, *option;
    while ((option = strsep(&rest, " "))) {
        char *value = strsep(&rest, " ");
        if (value && strcmp(option, "--variant") == 0)
            o.variant = value;
        else if (value && strcmp(option, "--set") == 0 && o.n_set < MOST_WORDS)
            set[o.n_set++] = value;
    }
    return o;
}

/* What loading `path` prints, to be freed; NULL when it loads. */
static char *print_errors(const char *path)
{
    char line[512], *text = NULL;
    const char *set[MOST_WORDS];
    struct graph_options o = read_options(path, line, set);
    struct graph_errors errors;
    struct graph *g;
    size_t n;
    if (graph_load(&g, path, &o, &errors)) {
        graph_free(g);
        return NULL;
    }
    FILE *out = open_memstream(&text, &n);
    assert_non_null(out);
    for (size_t i = 0; i < errors.n; i++)
        graph_error_print(&errors.list[i], out);
    fclose(out);
    graph_errors_free(&errors);
    return text;
}

/* True when the case says what its text says. */
static bool check_case(const char *path)
{
    char expected_path[300], *got = print_errors(path), *expected;
    bool ok;
    snprintf(expected_path, sizeof expected_path, "%.*s.txt", (int)strlen(path) - 5, path);
    if (!got) {
        print_error("%s loads, but had to be refused\n", path);
        return false;
    }
    if (getenv("SCOUT_REWRITE"))
        check_write(".", expected_path, got, strlen(got));
    expected = check_read(expected_path, NULL);
    ok = expected && strcmp(got, expected) == 0;
    if (!ok)
        print_error("%s: expected\n%sgot\n%s", path, expected ? expected : "(no .txt)\n", got);
    free(expected);
    free(got);
    return ok;
}

static void broken_graphs_are_refused_with_their_exact_messages(void **state)
{
    char folder[1024], back[1024];
    struct dirent **cases;
    int n, wrong = 0;
    (void)state;
    snprintf(folder, sizeof folder, "%s/tests/rejects/graphs", check_root());
    assert_non_null(getcwd(back, sizeof back));
    assert_int_equal(chdir(folder), 0);
    n = scandir(".", &cases, is_case, alphasort);
    for (int i = 0; i < n; i++) {
        wrong += !check_case(cases[i]->d_name);
        free(cases[i]);
    }
    free(cases);
    assert_int_equal(chdir(back), 0);
    print_message("%d broken graphs\n", n);
    assert_in_range(n, FEWEST, 10000);
    assert_int_equal(wrong, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(broken_graphs_are_refused_with_their_exact_messages)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
