#ifndef ENGINE_GRAPH_YAML_H
#define ENGINE_GRAPH_YAML_H
/* YAML text to a tree of marked nodes, by libyaml's events. Only what the graph language needs of YAML is let in: maps
 * with plain keys, lists and scalars in one document; no anchors, aliases, tags, directives, merge keys or duplicate
 * keys. Limits on bytes, events and depth hold before anything is built from the text. Private to engine/graph. */
#include "engine/graph/loading.h"

enum tree_kind {
    TREE_SCALAR,
    TREE_NULL, /* plain ~, null or nothing: deletes what it overrides */
    TREE_LIST,
    TREE_MAP,
    TREE_BAD, /* a mistake was reported here; nobody looks further */
};

struct tree_pair {
    struct tree *key, *value; /* the key is a scalar */
};

struct tree {
    enum tree_kind kind;
    struct mark mark;
    const char *text;        /* of a scalar */
    const char *origin;      /* the file from which a relative path in `text` counts; NULL: the working directory */
    struct tree **items;     /* of a list */
    struct tree_pair *pairs; /* of a map, in the order of the text */
    const struct tree_pair **sorted; /* the same by key */
    size_t n;                        /* items or pairs */
    bool is_damaged;                 /* a map in which a key was refused: what seems to be missing may be that */
    struct tree *resolved;           /* of a graph parameter: its value after $(...), once known */
    bool is_resolving;
};

/* The tree of `text`, which is the content of `name` (a path, or "--set ..." when in_file is false: then marks have
 * no line). *out is NULL when mistakes left nothing to go on with, and TREE_NULL for an empty text. False: out of
 * memory. */
bool yaml_parse(struct loading *l, const char *name, const char *text, size_t bytes, bool in_file,
                struct tree **out) ERR_CHECK;
/* Read the regular file at `path` whole into *text (in `arena`, NUL-terminated). A mistake (missing, too large) is
 * noted at `from`; then *text is NULL. */
bool yaml_read(struct loading *l, struct arena *arena, const char *path, const struct mark *from, const char **text,
               size_t *bytes) ERR_CHECK;

/* The value of `key` in a map, or NULL; also NULL when `map` is NULL or no map. */
struct tree *yaml_get(const struct tree *map, const char *key);
const struct tree_pair *yaml_pair(const struct tree *map, const char *key);
/* Make the index of a map whose pairs were set; a key must not occur twice. */
bool yaml_index(struct loading *l, struct tree *map) ERR_CHECK;
/* "a map", "a list", ... for messages. */
const char *yaml_kind(const struct tree *t);
/* Bytes of the line break at `p`, of which `left` bytes are there; 0 if there is none. CR LF, LF, CR, NEL, LS, PS: as
 * libyaml counts them. */
size_t yaml_break(const char *p, size_t left);

#endif
