#ifndef NODES_SEARCH_COLUMN_H
#define NODES_SEARCH_COLUMN_H
/* One-dimensional datasets: the columns of results that are lists. */
#include "engine/store/store.h"

/* Write data[0..n) of dtype `t` as dataset `name` with these attributes; the data is copied. */
bool column_write(struct writer *w, const char *name, enum dtype t, const void *data, size_t n, const char *unit,
                  const char *axes, const char *description, struct err *e) ERR_CHECK;

#endif
