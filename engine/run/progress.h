#ifndef ENGINE_RUN_PROGRESS_H
#define ENGINE_RUN_PROGRESS_H
/* What a run says while it goes: plain lines with UTC times in RUN/run.log, and on the caller's stream plain lines,
 * JSON lines, or a block of live lines that is redrawn in place. Thread-safe, and nobody who says something waits for
 * it to be written. Failures to write are ignored: the run goes on. */
#include "engine/run/run.h"

struct progress;

/* `log_path` NULL: no log file. */
bool progress_new(struct progress **out, const char *log_path, enum run_output output, FILE *stream,
                  struct err *e) ERR_CHECK;
void progress_free(struct progress *p); /* writes what waits; NULL is fine */
/* Wait until all that was said is written. NULL is fine. */
void progress_flush(struct progress *p);

/* "name: text" (or only text when name is NULL) in the log and on the stream; in JSON an event "log". */
void progress_line(struct progress *p, const char *name, const char *text);
/* The same, but `json` (one object, no newline) stands for it on a JSON stream. */
void progress_event(struct progress *p, const char *name, const char *text, const char *json);

/* A live line of a running node. */
struct progress_live {
    const char *name;
    const char *unit;     /* "" if it said nothing yet */
    double done, total;   /* total 0: unknown */
    double rate;          /* per second, NaN: unknown */
    double seconds;       /* since it began */
};
/* Redraw the block of live lines (RUN_TERMINAL only; n == 0 clears it). */
void progress_draw(struct progress *p, const struct progress_live *lines, size_t n);
/* True when progress_draw has an effect. */
bool progress_is_live(const struct progress *p);
/* The text of one live line, at most `columns` wide, into `out`. */
void progress_format(const struct progress_live *l, int columns, char *out, size_t size);

#endif
