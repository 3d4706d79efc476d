#ifndef ENGINE_GRAPH_LOADING_H
#define ENGINE_GRAPH_LOADING_H
/* What the stages of a load share: options, memory, and the mistakes found so far. Private to engine/graph.
 *
 * Two kinds of failure are kept apart. A mistake in the text is noted by loading_problem and the load goes on, so that
 * all mistakes of a file are reported at once. What the text cannot help (memory) fills `fatal`, and the function that
 * met it returns false; every stage hands that on. */
#include "engine/base/mem.h"
#include "engine/graph/graph.h"

#define LOADING_FILE_BYTES ((size_t)4 << 20)
#define LOADING_FILES 32
#define LOADING_EVENTS 1000000
#define LOADING_DEPTH 64
#define LOADING_PARAMS 1000
#define LOADING_NODES 20000
#define LOADING_ROUNDS 64
#define LOADING_CONNECTIONS 1000000
#define LOADING_NAME 64
#define LOADING_REFERENCE 256               /* bytes of a reference: "node.round.output" */
#define LOADING_TEXT ((size_t)16 << 10)     /* bytes of one text after $(...) */
#define LOADING_ALL_TEXT ((size_t)64 << 20) /* bytes of all of them, and of all values */
#define LOADING_REPORTED 50

struct tree;

struct problem {
    struct mark mark;
    int source;       /* rank of the mark's file: files in the order of reading, then --variant, then --set */
    size_t order;     /* of finding, among equals */
    const char *text; /* with "\n" and the hint after it when there is one */
};

struct loading {
    const struct graph_options *options;
    struct arena *arena;                /* the graph's: lives as long as it */
    struct arena scratch;               /* trees, problems */
    const char *path;                   /* of the graph, as the user gave it */
    const char *sources[LOADING_FILES]; /* the files read, the graph first */
    struct tree *trees[LOADING_FILES];  /* of those, as they are written; NULL when not read to the end */
    size_t n_sources;
    struct problem *problems;
    size_t n_problems, problem_capacity;
    size_t substituted; /* bytes made by $(...) so far */
    size_t valued;      /* bytes of values so far */
    struct err fatal;   /* code is ERR_NONE until something failed that is no mistake of the text */
};

/* Note a mistake at `m`. `near` is the nearest known name, or NULL. Returns false only when memory is out. Control
 * characters in the message are replaced by '?'. */
bool loading_problem(struct loading *l, const struct mark *m, const char *near, const char *format, ...)
    __attribute__((format(printf, 4, 5))) ERR_CHECK;
/* The nearest of names[0..n), or NULL; also NULL once so many problems are there that more suggestions help nobody. */
const char *loading_nearest(const struct loading *l, const char *name, const char *const *names, size_t n);
/* Zeroed scratch memory; NULL with l->fatal filled when memory is out. */
void *loading_new(struct loading *l, size_t bytes);
/* "'text'" for a message, shortened when long. `out` has at least 64 bytes; returns `out`. */
const char *loading_shown(const char *text, char out[64]);

/* "a, b or c", each with `prefix` before it, in `out`, cut off when long; returns `out`. */
const char *loading_listed(const char *prefix, const char *const *names, size_t n, char *out, size_t size);

/* True for a name of a node or graph parameter: a letter or _, then letters, digits, _ and -, at most LOADING_NAME. */
bool loading_is_name(const char *text);
/* True when `text` is one of the words after a repeated node's dot: this, prev, past, all, last. */
bool loading_is_round_word(const char *text);
/* True for a mark that is a place in a file rather than an option or a default. */
static inline bool loading_in_file(const struct mark *m)
{
    return m->line > 0;
}

/* The path that `path` means when the file `from` says it: `path` if it is absolute or `from` is NULL, else joined to
 * the folder of `from`; "." is taken away, and ".." after a folder that is no link. In the graph's arena; NULL when
 * memory is out. */
const char *loading_join(struct loading *l, const char *from, const char *path);

#endif
