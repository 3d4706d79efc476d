#ifndef NODES_MODEL_CONFIG_H
#define NODES_MODEL_CONFIG_H
/* config.json: the figures of a Llama-family model, and how a compressed-tensors directory says its matrices are
 * stored. */
#include <jansson.h>

#include "nodes/model/model.h"

/* Read `dir`/config.json. *json (json_decref) is the whole of it, for what else is to be read from it. */
bool config_read(struct model_config *out, json_t **json, const char *dir, struct err *e) ERR_CHECK;
/* The format that `quantization_config` gives the module (bf16 when it is absent, or the module is in `ignore` or in no
 * group). ERR_INPUT when a group is in a scheme that is not known here, or its targets are no plain names. */
bool config_stored_format(const json_t *config, const char *dir, const char *module, const struct format **out,
                          struct err *e) ERR_CHECK;
/* Check that all groups can be read, before modules are asked for. */
bool config_check_quantization(const json_t *config, const char *dir, struct err *e) ERR_CHECK;

#endif
