#ifndef NODES_MODEL_DOCUMENTS_H
#define NODES_MODEL_DOCUMENTS_H
/* A text cut into documents by a declared rule. Documents are what splits and intervals count, so the rule matters. */
#include <stdint.h>

#include "engine/store/store.h"

struct document {
    const char *text;  /* not NUL-terminated */
    size_t bytes;
    uint64_t offset;   /* of its first byte (of its JSON value) in the file; the ordinal where that is not known */
    struct key digest; /* SHA-256 of the text */
};

struct documents {
    struct document *list;
    size_t n;
    size_t n_copies;   /* documents dropped because an equal one came before */
    char *text;        /* the file */
    struct arena arena;
};

enum document_rule { DOCUMENTS_SEPARATOR, DOCUMENTS_HEADING, DOCUMENTS_JSON, DOCUMENTS_LINES, DOCUMENTS_WHOLE };

/* `separator`: the line between documents (DOCUMENTS_SEPARATOR). `json_key`: the member that holds the text when a JSON
 * item is an object, "" when items are strings. Empty documents are left out. ERR_INPUT when the file is empty, holds
 * NUL or invalid UTF-8 (with the byte offset), or no document. */
bool documents_read(struct documents *out, const char *path, enum document_rule rule, const char *separator,
                    const char *json_key, struct err *e) ERR_CHECK;
void documents_fini(struct documents *d);

#endif
