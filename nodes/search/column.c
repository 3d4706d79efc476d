#include "nodes/search/column.h"

bool column_write(struct writer *w, const char *name, enum dtype t, const void *data, size_t n, const char *unit,
                  const char *axes, const char *description, struct err *e)
{
    return writer_add(w, &(struct dataset){.name = name, .dtype = t, .rank = 1, .shape = {n}, .unit = unit,
                                           .axes = axes, .description = description}, data, e);
}
