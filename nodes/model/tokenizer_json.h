#ifndef NODES_MODEL_TOKENIZER_JSON_H
#define NODES_MODEL_TOKENIZER_JSON_H
/* Members of tokenizer.json's objects, typed. A member that is absent or null has the fallback; one of another type is
 * ERR_INPUT. `where` is the path of the object inside the file ("pre_tokenizer.pretokenizers[1]"). Strings are borrowed
 * from the JSON value. */
#include <jansson.h>

#include "engine/base/err.h"

bool tokenizer_json_bool(const json_t *object, const char *name, const char *where, bool fallback, bool *out,
                         struct err *e) ERR_CHECK;
/* With a NULL fallback, *out is NULL when the member is absent or null. */
bool tokenizer_json_text(const json_t *object, const char *name, const char *where, const char *fallback,
                         const char **out, struct err *e) ERR_CHECK;
/* The member `type`, which must be there. */
bool tokenizer_json_type(const json_t *object, const char *where, const char **out, struct err *e) ERR_CHECK;
/* The member `name`, a list; ERR_INPUT when it is not. */
bool tokenizer_json_list(const json_t *object, const char *name, const char *where, const json_t **out,
                         struct err *e) ERR_CHECK;

#endif
