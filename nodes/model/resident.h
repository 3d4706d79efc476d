#ifndef NODES_MODEL_RESIDENT_H
#define NODES_MODEL_RESIDENT_H
/* Packed weights on an accelerator, so that a candidate costs pointers and not copies: every rendering stays there, as
 * packed as it is stored, while the memory lasts. What does not fit is brought layer by layer while the layer before it
 * is computed: from host memory that the device reads at full speed, as far as that lasts, and else from the store.
 * For the products they are decoded a layer at a time. Used by one thread; a second one brings what comes next. */
#include "nodes/model/forward.h"
#include "nodes/model/renderings.h"

struct resident;

/* All borrowed. */
struct resident_spec {
    struct queue *q, *ahead;         /* two on the device: the second is for what is brought ahead */
    const struct model *model;
    struct renderings *renderings;
    const char *const *format_names; /* format indices are into these */
    int n_formats;                   /* at most 64 */
    enum dtype mode;
    uint64_t device_bytes, host_bytes; /* that packed weights may take; what is in hand comes on top */
};

bool resident_new(struct resident **out, const struct resident_spec *s, struct err *e) ERR_CHECK;
void resident_free(struct resident *r); /* NULL is fine */
/* Bytes of all renderings of the model's units in these formats, packed, and of the largest layer of them. */
void resident_sizes(const struct model *m, const char *const *names, int n_formats, uint64_t *all,
                    uint64_t *layer);

/* Weights of `unit` in a format, the caller's. What the format does to the input is left as it is in *out. */
bool resident_load(struct resident *r, int unit, int format, struct unit_weights *out, struct err *e) ERR_CHECK;
/* Begin to bring what the units of `layer` will be asked for: a bit per format. */
void resident_ahead(struct resident *r, int layer, const uint64_t wanted[LAYER_UNITS]);
/* The device is full: let go of all that stays there, and keep half as much from now on. */
void resident_shrink(struct resident *r);

/* Bytes brought to the device so far, and of them from the store. Waits for the reader. */
void resident_traffic(struct resident *r, uint64_t *brought, uint64_t *from_store);

#endif
