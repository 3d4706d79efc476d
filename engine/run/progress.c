/* The voice of a run: run.log, and the caller's stream as plain lines, JSON, or live lines redrawn in place. Which
 * nodes run and how far they are is told by the caller (run.c). */
#include "engine/run/progress.h"

#include <math.h>
#include <pthread.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

/* What waits to be written: `log_bytes` for the log, then the rest for the stream. */
struct line {
    struct line *next;
    size_t log_bytes, bytes;
    char text[];
};

/* A thread of its own writes, so that a stream that nobody reads (a pager, a stalled terminal) holds up nobody else. */
struct progress {
    pthread_t thread;
    pthread_mutex_t lock; /* of the queue; never held while something is written */
    pthread_cond_t more, drained;
    struct line *first, *last;
    bool writing, ending;
    pthread_mutex_t out;  /* of what follows */
    FILE *log, *stream;
    enum run_output output;
    size_t drawn; /* live lines now on the screen */
};

static void *write_main(void *context);

static void release(struct progress *p)
{
    if (p->log)
        fclose(p->log);
    pthread_cond_destroy(&p->more);
    pthread_cond_destroy(&p->drained);
    pthread_mutex_destroy(&p->lock);
    pthread_mutex_destroy(&p->out);
    mem_free(p);
}

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
    pthread_mutex_init(&p->out, NULL);
    pthread_cond_init(&p->more, NULL);
    pthread_cond_init(&p->drained, NULL);
    p->output = stream ? output : RUN_SILENT;
    p->stream = stream;
    int failed = pthread_create(&p->thread, NULL, write_main, p);
    if (failed) {
        release(p);
        return err_set(e, ERR_RESOURCE, "cannot start a thread: %s", strerror(failed));
    }
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

static void write_line(struct progress *p, const struct line *l)
{
    pthread_mutex_lock(&p->out);
    if (p->log) {
        fwrite(l->text, 1, l->log_bytes, p->log);
        fflush(p->log);
    }
    if (l->bytes > l->log_bytes) {
        clear_block(p);
        fwrite(l->text + l->log_bytes, 1, l->bytes - l->log_bytes, p->stream);
        fflush(p->stream);
    }
    pthread_mutex_unlock(&p->out);
}

static void *write_main(void *context)
{
    struct progress *p = context;
    pthread_mutex_lock(&p->lock);
    while (p->first || !p->ending) {
        struct line *l = p->first;
        if (!l) {
            pthread_cond_wait(&p->more, &p->lock);
            continue;
        }
        p->first = l->next;
        p->writing = true;
        pthread_mutex_unlock(&p->lock);
        write_line(p, l);
        mem_free(l);
        pthread_mutex_lock(&p->lock);
        p->writing = false;
        if (!p->first)
            pthread_cond_broadcast(&p->drained);
    }
    pthread_mutex_unlock(&p->lock);
    return NULL;
}

void progress_flush(struct progress *p)
{
    if (!p)
        return;
    pthread_mutex_lock(&p->lock);
    while (p->first || p->writing)
        pthread_cond_wait(&p->drained, &p->lock);
    pthread_mutex_unlock(&p->lock);
}

void progress_free(struct progress *p)
{
    if (!p)
        return;
    pthread_mutex_lock(&p->lock);
    p->ending = true;
    pthread_cond_signal(&p->more);
    pthread_mutex_unlock(&p->lock);
    pthread_join(p->thread, NULL);
    if (p->output == RUN_TERMINAL) {
        clear_block(p);
        fflush(p->stream);
    }
    release(p);
}

/* "name: text" on one line: newlines within become spaces. */
static void add_plain(struct str *s, const char *name, const char *text)
{
    size_t from = s->length;
    if (name)
        str_printf(s, "%s: ", name);
    str_add(s, text);
    for (size_t i = from; !s->failed && i < s->length; i++)
        if (s->text[i] == '\n' || s->text[i] == '\r')
            s->text[i] = ' ';
    str_add(s, "\n");
}

/* Put it in the queue. Without memory for it, it is lost: the run goes on. */
static void queue(struct progress *p, const struct str *s, size_t log_bytes)
{
    struct line *l = NULL;
    if (s->length == 0 || s->failed || !mem_raw_bytes((void **)&l, 1, sizeof *l + s->length, NULL))
        return;
    *l = (struct line){.log_bytes = log_bytes, .bytes = s->length};
    memcpy(l->text, s->text, s->length);
    pthread_mutex_lock(&p->lock);
    if (p->first)
        p->last->next = l;
    else
        p->first = l;
    p->last = l;
    pthread_cond_signal(&p->more);
    pthread_mutex_unlock(&p->lock);
}

void progress_event(struct progress *p, const char *name, const char *text, const char *json)
{
    if (!p)
        return;
    struct str s = {0};
    char when[32];
    time_t now = time(NULL);
    struct tm utc;
    gmtime_r(&now, &utc);
    strftime(when, sizeof when, "%Y-%m-%dT%H:%M:%SZ ", &utc);
    if (p->log) {
        str_add(&s, when);
        add_plain(&s, name, text);
    }
    size_t log_bytes = s.length;
    if (p->output == RUN_JSON)
        str_printf(&s, "%s\n", json);
    else if (p->output != RUN_SILENT)
        add_plain(&s, name, text);
    queue(p, &s, log_bytes);
    str_free(&s);
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
    pthread_mutex_lock(&p->out);
    clear_block(p);
    for (size_t i = 0; i < n && i < most; i++) {
        char text[512];
        progress_format(&lines[i], columns, text, sizeof text);
        fprintf(p->stream, "%s\n", text);
        p->drawn++;
    }
    fflush(p->stream);
    pthread_mutex_unlock(&p->out);
}

bool progress_is_live(const struct progress *p)
{
    return p && p->output == RUN_TERMINAL;
}
