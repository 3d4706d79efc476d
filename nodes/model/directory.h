#ifndef NODES_MODEL_DIRECTORY_H
#define NODES_MODEL_DIRECTORY_H
/* A model directory that a node of the graph has written (a flat one, outside the store): which files it has, with
 * digests, as the node's object lists them under /files. Others can so tell whether it is still what was written, and a
 * later run, by a record that lies in the directory itself, whether it may be replaced. */
#include "engine/node.h"

struct directory_file {
    const char *name;
    uint64_t bytes;
    char digest[KEY_TEXT]; /* SHA-256, hex */
};

struct directory {
    struct directory_file *files; /* by name */
    size_t n;
    struct arena arena;
};

/* Every file of the directory `path`. */
bool directory_list(struct directory *out, struct store *s, const char *path, struct err *e) ERR_CHECK;
void directory_fini(struct directory *d); /* a zeroed one is fine */
/* /files/name, /files/digest and /files/bytes. */
bool directory_write(const struct directory *d, struct writer *w, struct err *e) ERR_CHECK;
/* Has every file that `result` lists the listed size and (unless `quick`) digest? For `stands`. */
bool directory_stands(struct store *s, const char *path, struct object *result, bool quick);
/* The same for another node, which reads the directory: ERR_INPUT names the file that is not what `node` wrote. */
bool directory_check(struct store *s, const char *path, struct object *result, const char *node, struct err *e)
    ERR_CHECK;
/* May a node put its directory at `path`? Only an empty directory may be there, or one whose every file is listed in
 * the JSON file `record` in it, under "files", as {"name", "sha256"}; if `overwrite`, any but the directory `source`.
 * `what` is what the node writes: "export". */
bool directory_check_place(struct store *s, const char *path, const char *source, const char *record, const char *what,
                           bool overwrite, struct err *e) ERR_CHECK;
/* Does a file of that name belong to a model beside config.json and its weights? Tokenizer, chat template, licence;
 * never an index, or the record of another tool. */
bool directory_is_side_file(const char *name);

#endif
