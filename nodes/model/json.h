#ifndef NODES_MODEL_JSON_H
#define NODES_MODEL_JSON_H
/* JSON read strictly: one value, UTF-8, no duplicate keys, at most 64 levels. Errors name file, line and column. */
#include <jansson.h>

#include "engine/base/err.h"

/* The file's value; json_decref it. A file larger than max_bytes is ERR_INPUT. */
bool json_load_file_strict(json_t **out, const char *path, size_t max_bytes, struct err *e) ERR_CHECK;
/* The same of n bytes of text; `name` stands for the file in messages. */
bool json_load_text(json_t **out, const char *text, size_t n, const char *name, struct err *e) ERR_CHECK;
/* The whole of a regular file in fresh memory (mem_free), with a NUL behind it. */
bool json_read_file(char **out, size_t *n, const char *path, size_t max_bytes, struct err *e) ERR_CHECK;

#endif
