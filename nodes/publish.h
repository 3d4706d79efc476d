#ifndef NODES_PUBLISH_H
#define NODES_PUBLISH_H
/* A directory of files that appears whole or not at all. It is filled beside its place under a name of its own, synced,
 * and renamed. What a killed process left behind is removed by the next one that publishes to the same place; a lock on
 * the half-made directory tells the dead from the living. Directories are flat: files only. */
#include "engine/base/err.h"

struct publish;

/* Make the directory to be filled, and missing parents of `target`. */
bool publish_begin(struct publish **out, const char *target, struct err *e) ERR_CHECK;
/* Where to put files until the commit. Borrowed. */
const char *publish_path(const struct publish *p);
/* Create a file with these bytes in it, synced. */
bool publish_write(struct publish *p, const char *name, const void *data, size_t n, struct err *e) ERR_CHECK;
/* Copy a file into it, synced. */
bool publish_copy(struct publish *p, const char *name, const char *from, struct err *e) ERR_CHECK;
/* Copy the files of directory `from` whose names `wanted` says yes to. */
bool publish_copy_some(struct publish *p, const char *from, bool (*wanted)(const char *name), struct err *e) ERR_CHECK;
/* Sync, and put the directory in place of `target`, which is then gone, in one step if the file system can exchange
 * names. Frees p in every case; on failure `target` is as it was, or, when only the last sync failed, replaced. */
bool publish_commit(struct publish *p, struct err *e) ERR_CHECK;
/* Remove what was made. NULL is fine. */
void publish_abort(struct publish *p);
/* Remove a flat directory; ERR_INPUT, with nothing removed, when there is a directory in it. */
bool publish_remove(const char *path, struct err *e) ERR_CHECK;

#endif
