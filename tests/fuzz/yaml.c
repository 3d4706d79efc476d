/* Any bytes as a graph: the loader accepts or refuses them, and prints what it refuses, without a fault or a leak.
 * Under libFuzzer (-DFUZZING) main is the fuzzer's; else this program replays the files that it is given. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tests/engine/graph/classes.h"

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t n);

static void load(const char *path, const struct graph_options *o)
{
    struct graph_errors errors;
    struct graph *g;
    if (graph_load(&g, path, o, &errors)) {
        graph_free(g);
        return;
    }
    FILE *out = fopen("/dev/null", "w");
    for (size_t i = 0; out && i < errors.n; i++)
        graph_error_print(&errors.list[i], out);
    if (out)
        fclose(out);
    graph_errors_free(&errors);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t n)
{
    char path[] = "/tmp/scout-fuzz-XXXXXX", text[256] = "";
    const char *set[] = {"window=8", text};
    struct graph_options plain = {.classes = classes};
    struct graph_options more = {.classes = classes, .variant = "fast", .set = set, .n_set = 2};
    int fd = mkstemp(path);
    if (fd < 0)
        return 0;
    bool written = write(fd, bytes, n) == (ssize_t)n;
    close(fd);
    memcpy(text, bytes, n < sizeof text ? n : sizeof text - 1); /* the same bytes as an option, too */
    if (written) {
        load(path, &plain);
        load(path, &more);
    }
    unlink(path);
    return 0;
}

#ifndef FUZZING
static int replay(const char *path)
{
    FILE *f = fopen(path, "rb");
    uint8_t *bytes = malloc((size_t)8 << 20);
    int failed = !f || !bytes;
    if (!failed)
        LLVMFuzzerTestOneInput(bytes, fread(bytes, 1, (size_t)8 << 20, f));
    if (f)
        fclose(f);
    free(bytes);
    if (failed)
        fprintf(stderr, "cannot read %s\n", path);
    return failed;
}

int main(int argc, char **argv)
{
    int failed = 0;
    for (int i = 1; i < argc; i++)
        failed += replay(argv[i]);
    printf("%d files replayed\n", argc - 1 - failed);
    return failed != 0;
}
#endif
