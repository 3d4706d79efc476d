#ifndef NODES_MODEL_REPLAY_H
#define NODES_MODEL_REPLAY_H
/* The replay cache: the residual stream of one window before layer l, for a prefix of formats. Bits that come out are
 * bits that went in, so a restart from here equals a full pass. Least recently used entries give way; one thread. */
#include "nodes/model/pass.h"

/* x [slots, hidden] of (window, prefix) before layer `depth`, borrowed until the next replay_put; NULL if absent.
 * `prefix` holds the formats of all units of layers 0 .. depth-1. */
const struct tensor *replay_find(struct replay *r, uint32_t window, int depth, const uint8_t *prefix, size_t n);
/* Let go of all states, and keep half as many bytes from now on. None may be pinned or borrowed. */
void replay_drop(struct replay *r);
bool replay_has(struct replay *r, uint32_t window, int depth, const uint8_t *prefix, size_t n);
/* An entry that is there stays until replay_unpin_all: a pass pins what its lanes will begin from. */
void replay_pin(struct replay *r, uint32_t window, int depth, const uint8_t *prefix, size_t n);
void replay_unpin_all(struct replay *r);
/* Keep a copy. Quietly does nothing when the cache is too small for it; memory running out is no error either. */
void replay_put(struct replay *r, uint32_t window, int depth, const uint8_t *prefix, size_t n, const struct tensor *x);

#endif
