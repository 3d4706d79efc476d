#include "nodes/model/teacher.h"

#include <string.h>

static bool check(const struct input *in, const struct token_set *tokens, int hidden, const char *numeric,
                  struct err *e)
{
    const char *of_tokens, *of_numeric;
    if (!object_text(in->object, "tokens", &of_tokens) || strcmp(of_tokens, tokens->digest) != 0)
        return err_set(e, ERR_INPUT,
                       "teacher '%s' was made on other tokens: connect `teacher` and `tokens` to the same "
                       "output of the corpus, in the same order",
                       in->node);
    if (!object_text(in->object, "numeric", &of_numeric) || strcmp(of_numeric, numeric) != 0)
        return err_set(e, ERR_INPUT,
                       "teacher '%s' was computed in '%s', this node in '%s': give both the same `numeric`", in->node,
                       of_numeric, numeric);
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
                  const char *numeric, struct err *e)
{
    return check(in, tokens, hidden, numeric, e) &&
           object_load(in->object, "states", DTYPE_F32, states, NULL, e);
}

bool teacher_model(struct model **out, const struct node *n, const struct input *in, const struct key *model,
                   struct err *e)
{
    const char *text;
    struct key of;
    bool is_rotated;
    if (!object_text(in->object, "model_key", &text) || !key_parse(text, &of))
        return err_set(e, ERR_INPUT, "'%s' does not say which model it is of: it is no teacher", in->node);
    if (key_equal(&of, model)) {
        *out = NULL;
        return true;
    }
    if (!model_is_rotated(n, model, &of, &is_rotated, e))
        return false;
    if (!is_rotated)
        return err_set(e, ERR_INPUT, "teacher '%s' is of another model than the candidates, which were not rotated from "
                       "it either", in->node);
    return model_open_upstream(out, n, &of, e) || err_context(e, "the model of teacher '%s'", in->node);
}
