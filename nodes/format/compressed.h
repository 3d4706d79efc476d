#ifndef NODES_FORMAT_COMPRESSED_H
#define NODES_FORMAT_COMPRESSED_H
/* What a compressed-tensors directory says of itself: the quantization_config in its config.json
 * (export-formats section 3). */
#include "engine/base/str.h"
#include "nodes/format/format.h"

/* One linear layer, by its module name ("model.layers.0.self_attn.q_proj"), and how it is stored. */
struct compressed_module {
    const char *name;
    const struct format *format;
};

/* Append to `out` the text of a source's config.json (n bytes; `path` is for messages) with a quantization_config added
 * behind its last member; every byte before it stays. A group per format that occurs, in the order of the menu; its
 * targets are exact names in the order given; modules without a group_format are listed in `ignore`. When no module is
 * quantized, the text is appended unchanged. ERR_INPUT when the text is no JSON object or describes a model that is
 * quantized already. */
bool compressed_config(struct str *out, const char *text, size_t n, const char *path,
                       const struct compressed_module *modules, size_t n_modules, struct err *e) ERR_CHECK;
/* scout's version, as recorded in what it exports. */
const char *compressed_writer(void);

#endif
