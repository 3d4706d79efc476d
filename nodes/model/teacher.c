#include "nodes/model/teacher.h"

#include <string.h>

static bool check(const struct input *in, const struct token_set *tokens, int hidden, const char *numeric,
                  const struct key *model_key, struct err *e)
{
    const char *of_tokens, *of_numeric, *of_model;
    char key[KEY_TEXT];
    if (!object_text(in->object, "tokens", &of_tokens) || strcmp(of_tokens, tokens->digest) != 0)
        return err_set(e, ERR_INPUT,
                       "teacher '%s' was made on other tokens: connect `teacher` and `tokens` to the same "
                       "output of the corpus, in the same order",
                       in->node);
    if (!object_text(in->object, "numeric", &of_numeric) || strcmp(of_numeric, numeric) != 0)
        return err_set(e, ERR_INPUT,
                       "teacher '%s' was computed in '%s', this node in '%s': give both the same `numeric`", in->node,
                       of_numeric, numeric);
    if (model_key && object_text(in->object, "model_key", &of_model) &&
        strcmp(of_model, key_text(model_key, key)) != 0)
        return err_set(e, ERR_INPUT, "teacher '%s' is of another model than the one connected to port 'model'",
                       in->node);
    const struct dataset *d = object_dataset(in->object, "states");
    if (!d || d->rank != 3 || d->shape[0] != tokens->n || d->shape[1] != tokens->window ||
        d->shape[2] != (uint64_t)hidden)
        return err_set(e, ERR_INPUT,
                       "teacher '%s' has no states of %u windows of %u positions of %d features: it is of "
                       "another model",
                       in->node, tokens->n, tokens->window, hidden);
    return true;
}

bool teacher_read(float **states, const struct input *in, const struct token_set *tokens, int hidden,
                  const char *numeric, const struct key *model_key, struct err *e)
{
    return check(in, tokens, hidden, numeric, model_key, e) &&
           object_load(in->object, "states", DTYPE_F32, states, NULL, e);
}
