#include "nodes/model/tokenizer_json.h"

bool tokenizer_json_bool(const json_t *object, const char *name, const char *where, bool fallback, bool *out,
                         struct err *e)
{
    const json_t *value = json_object_get(object, name);
    if (value && !json_is_boolean(value) && !json_is_null(value))
        return err_set(e, ERR_INPUT, "%s.%s must be true or false", where, name);
    *out = json_is_boolean(value) ? json_is_true(value) : fallback;
    return true;
}

bool tokenizer_json_text(const json_t *object, const char *name, const char *where, const char *fallback,
                         const char **out, struct err *e)
{
    const json_t *value = json_object_get(object, name);
    if (value && !json_is_string(value) && !json_is_null(value))
        return err_set(e, ERR_INPUT, "%s.%s must be a string", where, name);
    *out = json_is_string(value) ? json_string_value(value) : fallback;
    return true;
}

bool tokenizer_json_type(const json_t *object, const char *where, const char **out, struct err *e)
{
    if (!json_is_object(object))
        return err_set(e, ERR_INPUT, "%s must be an object with a 'type'", where);
    if (!tokenizer_json_text(object, "type", where, NULL, out, e))
        return false;
    return *out || err_set(e, ERR_INPUT, "%s has no 'type'", where);
}

bool tokenizer_json_list(const json_t *object, const char *name, const char *where, const json_t **out, struct err *e)
{
    const json_t *value = json_object_get(object, name);
    if (!json_is_array(value))
        return err_set(e, ERR_INPUT, "%s.%s must be a list", where, name);
    *out = value;
    return true;
}
