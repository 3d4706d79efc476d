#ifndef ENGINE_CLI_INTERRUPT_H
#define ENGINE_CLI_INTERRUPT_H
/* SIGINT and SIGTERM, taken by a thread of their own: the first asks the run to stop at its next row, the second ends
 * the process at once with exit code 130 (what was acknowledged is on the disk by then). */
#include "engine/run/run.h"

struct interrupt;

/* Call before any other thread is made: the signals are blocked in this thread and all its children. */
bool interrupt_start(struct interrupt **out, struct err *e) ERR_CHECK;
/* From now on the first signal stops `r`; NULL: from now on it ends the process. */
void interrupt_attach(struct interrupt *i, struct run *r);
void interrupt_stop(struct interrupt *i); /* NULL is fine */

#endif
