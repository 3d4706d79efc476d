/* The voice of a run: run.log, and the caller's stream as plain lines, JSON, or live lines redrawn in place. Which
 * nodes run and how far they are is told by the caller (run.c). */
#include "engine/run/progress.h"

#include <math.h>
#include <pthread.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

struct progress {
    pthread_mutex_t lock;
    FILE *log, *stream;
    enum run_output output;
    size_t drawn; /* live lines now on the screen */
};

bool progress_new(struct progress **out, const char *log_path, enum run_output output, FILE *stream, struct err *e)
{
    struct progress *p;
    if (!mem_new(&p, 1, e))
        return false;
    if (log_path) {
        p->log = fopen(log_path, "ae");
        if (!p->log) {
            mem_free(p);
            return err_errno(e, ERR_RESOURCE, "cannot write the log '%s'", log_path);
        }
    }
    pthread_mutex_init(&p->lock, NULL);
    p->output = stream ? output : RUN_SILENT;
    p->stream = stream;
    *out = p;
    return true;
}

/* Put the cursor where the live block began and clear what follows. */
static void clear_block(struct progress *p)
{
    if (p->drawn > 0)
        fprintf(p->stream, "\033[%zuA\r\033[J", p->drawn);
    p->drawn = 0;
}

void progress_free(struct progress *p)
{
    if (!p)
        return;
    if (p->output == RUN_TERMINAL) {
        clear_block(p);
        fflush(p->stream);
    }
    if (p->log)
        fclose(p->log);
    pthread_mutex_destroy(&p->lock);
    mem_free(p);
}

/* "name: text" on one line: newlines within become spaces. */
static void print_line(FILE *f, const char *name, const char *text)
{
    if (name)
        fprintf(f, "%s: ", name);
    for (const char *c = text; *c; c++)
        fputc(*c == '\n' || *c == '\r' ? ' ' : *c, f);
    fputc('\n', f);
}

void progress_event(struct progress *p, const char *name, const char *text, const char *json)
{
    if (!p)
        return;
    char when[32];
    time_t now = time(NULL);
    struct tm utc;
    gmtime_r(&now, &utc);
    strftime(when, sizeof when, "%Y-%m-%dT%H:%M:%SZ ", &utc);
    pthread_mutex_lock(&p->lock);
    if (p->log) {
        fputs(when, p->log);
        print_line(p->log, name, text);
        fflush(p->log);
    }
    if (p->output == RUN_JSON) {
        fprintf(p->stream, "%s\n", json);
    } else if (p->output != RUN_SILENT) {
        clear_block(p);
        print_line(p->stream, name, text);
    }
    if (p->output != RUN_SILENT)
        fflush(p->stream);
    pthread_mutex_unlock(&p->lock);
}

void progress_line(struct progress *p, const char *name, const char *text)
{
    if (!p)
        return;
    struct str json = {0};
    if (p->output == RUN_JSON) {
        str_add(&json, "{\"event\":\"log\",");
        if (name) {
            str_add(&json, "\"node\":");
            str_add_json(&json, name);
            str_add(&json, ",");
        }
        str_add(&json, "\"text\":");
        str_add_json(&json, text);
        str_add(&json, "}");
    }
    progress_event(p, name, text, json.failed || !json.text ? "{\"event\":\"log\"}" : json.text);
    str_free(&json);
}

/* A count with at most four figures before the point: "950", "12.3k", "4.5M". */
static void short_number(double x, char out[16])
{
    static const char suffix[] = " kMGTP";
    int s = 0;
    while (fabs(x) >= 10000 && suffix[s + 1]) {
        x /= 1000;
        s++;
    }
    if (s == 0)
        snprintf(out, 16, fabs(x) < 10 && x != floor(x) ? "%.1f" : "%.0f", x);
    else
        snprintf(out, 16, "%.1f%c", x, suffix[s]);
}

void progress_format(const struct progress_live *l, int columns, char *out, size_t size)
{
    char line[512], when[16], done[16], total[16], rate[16];
    int at = snprintf(line, sizeof line, "%-20s ", l->name);
    if (!l->unit[0]) {
        snprintf(line + at, sizeof line - (size_t)at, "%s", str_seconds(l->seconds, when));
    } else {
        short_number(l->done, done);
        at += snprintf(line + at, sizeof line - (size_t)at, "%s", done);
        if (l->total > 0) {
            short_number(l->total, total);
            at += snprintf(line + at, sizeof line - (size_t)at, "/%s", total);
        }
        at += snprintf(line + at, sizeof line - (size_t)at, " %s", l->unit);
        if (l->rate > 0 && isfinite(l->rate)) {
            short_number(l->rate, rate);
            at += snprintf(line + at, sizeof line - (size_t)at, "  %s/s", rate);
            if (l->total > l->done)
                snprintf(line + at, sizeof line - (size_t)at, "  %s left",
                         str_seconds((l->total - l->done) / l->rate, when));
        }
    }
    size_t keep = columns > 1 ? (size_t)columns - 1 : 0;
    if (keep < strlen(line))
        line[keep] = '\0';
    snprintf(out, size, "%s", line);
}

void progress_draw(struct progress *p, const struct progress_live *lines, size_t n)
{
    if (!progress_is_live(p))
        return;
    struct winsize w = {0};
    int columns = 80, rows = 24;
    if (ioctl(fileno(p->stream), TIOCGWINSZ, &w) == 0 && w.ws_col > 0) {
        columns = w.ws_col;
        rows = w.ws_row;
    }
    size_t most = rows > 4 ? (size_t)rows - 2 : 2;
    pthread_mutex_lock(&p->lock);
    clear_block(p);
    for (size_t i = 0; i < n && i < most; i++) {
        char text[512];
        progress_format(&lines[i], columns, text, sizeof text);
        fprintf(p->stream, "%s\n", text);
        p->drawn++;
    }
    fflush(p->stream);
    pthread_mutex_unlock(&p->lock);
}

bool progress_is_live(const struct progress *p)
{
    return p && p->output == RUN_TERMINAL;
}
