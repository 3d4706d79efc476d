/* From libyaml's events to a tree. The text is looked over first (scan_text: encoding and directives), because libyaml
 * has no limits of its own: it is quadratic in depth and in the number of directives. Depth is bounded by stopping at
 * the 65th open bracket; the scanner never reads more than a line or 1024 characters ahead of that. */
#include "engine/graph/yaml.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <yaml.h>

#include "engine/base/str.h"

#define REMEDY "share text with 'params' or 'extends' instead"

/* A collection that is still open. */
struct frame {
    struct tree *tree;
    struct tree *key; /* of a map: the key whose value comes next; NULL before a key */
    size_t capacity;
};

struct parse {
    struct loading *l;
    const char *name;
    bool in_file;
    struct frame stack[LOADING_DEPTH];
    int depth;
    struct tree *root;
};

size_t yaml_break(const char *p, size_t left)
{
    const unsigned char *u = (const unsigned char *)p;
    if (left == 0)
        return 0;
    if (u[0] == '\r')
        return left > 1 && u[1] == '\n' ? 2 : 1;
    if (u[0] == '\n')
        return 1;
    if (left > 1 && u[0] == 0xc2 && u[1] == 0x85)
        return 2;
    return left > 2 && u[0] == 0xe2 && u[1] == 0x80 && (u[2] == 0xa8 || u[2] == 0xa9) ? 3 : 0;
}

static struct mark mark_at(const struct parse *p, int line, int column, int width)
{
    if (!p->in_file)
        return (struct mark){.file = p->name};
    return (struct mark){.file = p->name, .line = line, .column = column, .width = width > 0 ? width : 1};
}

static struct mark mark_of(const struct parse *p, yaml_mark_t start, yaml_mark_t end)
{
    int width = end.line == start.line ? (int)(end.column - start.column) : 1;
    return mark_at(p, (int)start.line + 1, (int)start.column + 1, width);
}

/* The place of a byte, for what is found before libyaml sees the text. */
static struct mark mark_of_byte(const struct parse *p, const char *text, size_t at)
{
    int line = 1, column = 1;
    for (size_t i = 0; i < at;) {
        size_t n = yaml_break(text + i, at - i);
        if (n) {
            line++;
            column = 1;
            i += n;
        } else {
            column++;
            for (i++; i < at && ((unsigned char)text[i] & 0xc0) == 0x80; i++)
                ;
        }
    }
    return mark_at(p, line, column, 1);
}

/* The first byte that does not belong to valid UTF-8; `bytes` when there is none. */
static size_t first_invalid(const char *text, size_t bytes)
{
    if (str_is_utf8(text, bytes))
        return bytes;
    size_t at = 0;
    for (size_t n = 1; n <= 4 && at + n <= bytes;) {
        if (str_is_utf8(text + at, n)) {
            at += n;
            n = 1;
        } else {
            n++;
        }
    }
    return at;
}

/* Encoding, NUL and directives, all before libyaml reads a byte. *ok says whether to go on. */
static bool scan_text(struct parse *p, const char *text, size_t bytes, bool *ok)
{
    *ok = false;
    size_t bad = first_invalid(text, bytes);
    const char *nul = memchr(text, '\0', bytes);
    if (nul && (size_t)(nul - text) < bad) {
        struct mark m = mark_of_byte(p, text, (size_t)(nul - text));
        return loading_problem(p->l, &m, NULL, "a NUL byte: this is not a text file");
    }
    if (bad < bytes) {
        struct mark m = mark_of_byte(p, text, bad);
        return loading_problem(p->l, &m, NULL, "byte 0x%02x is not valid UTF-8: save the file as UTF-8",
                               (unsigned char)text[bad]);
    }
    for (size_t at = 0; at < bytes;) { /* libyaml compares each %TAG line with all before it */
        if (text[at] == '%') {
            struct mark m = mark_of_byte(p, text, at);
            return loading_problem(p->l, &m, NULL,
                                   "a line may not start with %%: YAML directives are not part of the graph language");
        }
        while (at < bytes && !yaml_break(text + at, bytes - at))
            at++;
        at += yaml_break(text + at, bytes - at);
    }
    *ok = true;
    return true;
}

/* ------------------------------------------------------------------------------------------------------------ maps */

static int by_key(const void *a, const void *b)
{
    const struct tree_pair *const *x = a, *const *y = b;
    int order = strcmp((*x)->key->text, (*y)->key->text);
    return order ? order : *x < *y ? -1 : *x > *y;
}

bool yaml_index(struct loading *l, struct tree *map)
{
    map->sorted = loading_new(l, (map->n + 1) * sizeof *map->sorted);
    if (!map->sorted)
        return false;
    for (size_t i = 0; i < map->n; i++)
        map->sorted[i] = &map->pairs[i];
    qsort(map->sorted, map->n, sizeof *map->sorted, by_key);
    return true;
}

const struct tree_pair *yaml_pair(const struct tree *map, const char *key)
{
    if (!map || map->kind != TREE_MAP)
        return NULL;
    for (size_t low = 0, high = map->n; low < high;) {
        size_t middle = low + (high - low) / 2;
        int order = strcmp(key, map->sorted[middle]->key->text);
        if (order == 0)
            return map->sorted[middle];
        if (order < 0)
            high = middle;
        else
            low = middle + 1;
    }
    return NULL;
}

struct tree *yaml_get(const struct tree *map, const char *key)
{
    const struct tree_pair *pair = yaml_pair(map, key);
    return pair ? pair->value : NULL;
}

const char *yaml_kind(const struct tree *t)
{
    static const char *const names[] = {"a text", "null", "a list", "a map", "a mistake"};
    return names[t->kind];
}

/* Drop the later ones of equal keys, each with a problem, and index the rest. */
static bool close_map(struct parse *p, struct tree *map)
{
    if (!yaml_index(p->l, map))
        return false;
    bool found = false;
    for (size_t i = 1, first = 0; i < map->n; i++) {
        const struct tree_pair *pair = map->sorted[i];
        if (strcmp(map->sorted[first]->key->text, pair->key->text) != 0) {
            first = i;
            continue;
        }
        char shown[64];
        struct mark where = map->sorted[first]->key->mark;
        found = true;
        ((struct tree_pair *)pair)->value = NULL;
        if (!loading_problem(
                p->l, &pair->key->mark, NULL,
                "duplicate key %s, already on line %d: to override a value, use 'extends', a variant or 'params'",
                loading_shown(pair->key->text, shown), where.line))
            return false;
    }
    if (!found)
        return true;
    size_t kept = 0;
    for (size_t i = 0; i < map->n; i++)
        if (map->pairs[i].value)
            map->pairs[kept++] = map->pairs[i];
    map->n = kept;
    return yaml_index(p->l, map);
}

/* ---------------------------------------------------------------------------------------------------------- events */

static bool add_pair(struct parse *p, struct frame *f, struct tree *value)
{
    struct tree *map = f->tree, *key = f->key;
    f->key = NULL;
    if (key->kind == TREE_BAD) {
        map->is_damaged = true;
        return true;
    }
    if (map->n == f->capacity) {
        size_t capacity = f->capacity ? 2 * f->capacity : 8;
        struct tree_pair *pairs = loading_new(p->l, capacity * sizeof *pairs);
        if (!pairs)
            return false;
        if (map->n)
            memcpy(pairs, map->pairs, map->n * sizeof *pairs);
        map->pairs = pairs;
        f->capacity = capacity;
    }
    map->pairs[map->n++] = (struct tree_pair){key, value};
    return true;
}

static bool add_item(struct parse *p, struct frame *f, struct tree *item)
{
    struct tree *list = f->tree;
    if (list->n == f->capacity) {
        size_t capacity = f->capacity ? 2 * f->capacity : 8;
        struct tree **items = loading_new(p->l, capacity * sizeof *items);
        if (!items)
            return false;
        if (list->n)
            memcpy(items, list->items, list->n * sizeof *items);
        list->items = items;
        f->capacity = capacity;
    }
    list->items[list->n++] = item;
    return true;
}

/* A finished node goes to the collection that is open: as an item, a key or a value. */
static bool attach(struct parse *p, struct tree *t)
{
    if (p->depth == 0) {
        p->root = t;
        return true;
    }
    struct frame *f = &p->stack[p->depth - 1];
    if (f->tree->kind == TREE_LIST)
        return add_item(p, f, t);
    if (f->key)
        return add_pair(p, f, t);
    f->key = t;
    if (t->kind == TREE_NULL) { /* a key is text, whatever it looks like */
        t->kind = TREE_SCALAR;
    } else if (t->kind == TREE_LIST || t->kind == TREE_MAP) {
        t->kind = TREE_BAD;
        return loading_problem(p->l, &t->mark, NULL, "a key must be a plain name");
    }
    if (t->kind == TREE_SCALAR && strcmp(t->text, "<<") == 0) {
        t->kind = TREE_BAD;
        return loading_problem(p->l, &t->mark, NULL, "merge keys are not part of the graph language: " REMEDY);
    }
    return true;
}

static struct tree *new_tree(struct parse *p, enum tree_kind kind, const yaml_event_t *event)
{
    struct tree *t = loading_new(p->l, sizeof *t);
    if (t) {
        t->kind = kind;
        t->mark = mark_of(p, event->start_mark, event->end_mark);
        t->origin = p->in_file ? p->name : NULL;
    }
    return t;
}

/* Anchors and tags are refused; the node that has one is used without it, to find further mistakes. */
static bool check_extras(struct parse *p, const struct tree *t, const yaml_char_t *anchor, const yaml_char_t *tag)
{
    if (anchor && !loading_problem(p->l, &t->mark, NULL, "anchors are not part of the graph language: " REMEDY))
        return false;
    return !tag ||
           loading_problem(p->l, &t->mark, NULL,
                           "tags are not part of the graph language: a value has the type that its parameter declares");
}

static bool on_scalar(struct parse *p, const yaml_event_t *event)
{
    const char *text = (const char *)event->data.scalar.value;
    size_t n = event->data.scalar.length;
    bool plain = event->data.scalar.style == YAML_PLAIN_SCALAR_STYLE;
    bool null = plain && (n == 0 || strcmp(text, "~") == 0 || strcmp(text, "null") == 0);
    struct tree *t = new_tree(p, null ? TREE_NULL : TREE_SCALAR, event);
    if (!t || !(t->text = arena_strndup(&p->l->scratch, text, n, &p->l->fatal)))
        return false;
    if (memchr(text, '\0', n)) {
        t->kind = TREE_BAD;
        if (!loading_problem(p->l, &t->mark, NULL, "a NUL character in a text"))
            return false;
    }
    return check_extras(p, t, event->data.scalar.anchor, event->data.scalar.tag) && attach(p, t);
}

static bool on_alias(struct parse *p, const yaml_event_t *event)
{
    struct tree *t = new_tree(p, TREE_BAD, event);
    return t && loading_problem(p->l, &t->mark, NULL, "aliases are not part of the graph language: " REMEDY) &&
           attach(p, t);
}

static bool on_open(struct parse *p, const yaml_event_t *event, enum tree_kind kind, bool *stop)
{
    const yaml_char_t *anchor, *tag;
    struct tree *t = new_tree(p, kind, event);
    if (!t)
        return false;
    if (p->depth == LOADING_DEPTH) {
        *stop = true;
        return loading_problem(p->l, &t->mark, NULL, "nested more than %d deep", LOADING_DEPTH);
    }
    anchor = kind == TREE_MAP ? event->data.mapping_start.anchor : event->data.sequence_start.anchor;
    tag = kind == TREE_MAP ? event->data.mapping_start.tag : event->data.sequence_start.tag;
    p->stack[p->depth++] = (struct frame){.tree = t};
    return check_extras(p, t, anchor, tag);
}

static bool on_close(struct parse *p, const yaml_event_t *event)
{
    struct tree *t = p->stack[--p->depth].tree;
    int line = (int)event->end_mark.line + 1, column = (int)event->end_mark.column + 1;
    if (p->in_file && line == t->mark.line && column > t->mark.column)
        t->mark.width = column - t->mark.column;
    if (t->kind == TREE_MAP && !close_map(p, t))
        return false;
    return attach(p, t);
}

/* One event. *stop is set at the end and when there is no going on. */
static bool on_event(struct parse *p, const yaml_event_t *event, int *documents, bool *stop)
{
    struct mark m;
    switch (event->type) {
    case YAML_SCALAR_EVENT:
        return on_scalar(p, event);
    case YAML_ALIAS_EVENT:
        return on_alias(p, event);
    case YAML_MAPPING_START_EVENT:
        return on_open(p, event, TREE_MAP, stop);
    case YAML_SEQUENCE_START_EVENT:
        return on_open(p, event, TREE_LIST, stop);
    case YAML_MAPPING_END_EVENT:
    case YAML_SEQUENCE_END_EVENT:
        return on_close(p, event);
    case YAML_DOCUMENT_START_EVENT:
        if (++*documents == 1)
            return true;
        *stop = true;
        m = mark_of(p, event->start_mark, event->end_mark);
        return loading_problem(p->l, &m, NULL, "a second YAML document: a graph is one document");
    case YAML_STREAM_END_EVENT:
        *stop = true;
        return true;
    default:
        return true;
    }
}

/* The first byte of a character; libyaml's marks count characters. */
static char character_at(const char *text, size_t bytes, size_t index)
{
    size_t at = 0;
    for (; at < bytes && index > 0; index--)
        for (at++; at < bytes && ((unsigned char)text[at] & 0xc0) == 0x80; at++)
            ;
    return at < bytes ? text[at] : '\0';
}

/* libyaml gave up: say where and why. */
static bool syntax_problem(struct parse *p, const yaml_parser_t *y, const char *text, size_t bytes)
{
    struct mark m = mark_at(p, (int)y->problem_mark.line + 1, (int)y->problem_mark.column + 1, 1);
    const char *problem = y->problem ? y->problem : "unknown";
    if (y->error == YAML_MEMORY_ERROR)
        return err_set(&p->l->fatal, ERR_RESOURCE, "out of memory while reading '%s'", p->name);
    p->root = NULL;
    if (y->error == YAML_READER_ERROR) {
        m = mark_of_byte(p, text, y->problem_offset < bytes ? y->problem_offset : bytes);
        return loading_problem(p->l, &m, NULL, "not valid YAML: %s (character 0x%02x)", problem,
                               (unsigned)y->problem_value);
    }
    bool is_tab = strstr(problem, "cannot start any token") && character_at(text, bytes, y->problem_mark.index) == '\t';
    if (is_tab || strstr(problem, "tab character"))
        return loading_problem(p->l, &m, NULL, "a tab: indent with spaces");
    if (y->context)
        return loading_problem(p->l, &m, NULL, "not valid YAML: %s, %s", y->context, problem);
    return loading_problem(p->l, &m, NULL, "not valid YAML: %s", problem);
}

static bool parse_events(struct parse *p, const char *text, size_t bytes)
{
    yaml_parser_t y;
    int documents = 0, events = 0;
    bool ok = true, stop = false;
    if (!yaml_parser_initialize(&y))
        return err_set(&p->l->fatal, ERR_RESOURCE, "out of memory while reading '%s'", p->name);
    yaml_parser_set_encoding(&y, YAML_UTF8_ENCODING);
    yaml_parser_set_input_string(&y, (const unsigned char *)text, bytes);
    while (ok && !stop) {
        yaml_event_t event;
        if (!yaml_parser_parse(&y, &event)) {
            ok = syntax_problem(p, &y, text, bytes);
            stop = true;
            break;
        }
        if (++events > LOADING_EVENTS) {
            struct mark m = mark_of(p, event.start_mark, event.start_mark);
            stop = true;
            ok = loading_problem(p->l, &m, NULL, "the graph is too large: more than %d YAML events by here",
                                 LOADING_EVENTS);
            p->root = NULL;
        } else {
            ok = on_event(p, &event, &documents, &stop);
        }
        yaml_event_delete(&event);
    }
    yaml_parser_delete(&y);
    return ok;
}

bool yaml_parse(struct loading *l, const char *name, const char *text, size_t bytes, bool in_file, struct tree **out)
{
    struct parse p = {.l = l, .name = name, .in_file = in_file};
    bool ok;
    if (bytes >= 3 && memcmp(text, "\xef\xbb\xbf", 3) == 0) { /* a byte order mark says nothing in UTF-8 */
        text += 3;
        bytes -= 3;
    }
    *out = NULL;
    if (!scan_text(&p, text, bytes, &ok))
        return false;
    if (!ok)
        return true;
    size_t before = l->n_problems;
    if (!parse_events(&p, text, bytes))
        return false;
    if (!p.root && l->n_problems == before) { /* nothing but comments */
        p.root = loading_new(l, sizeof *p.root);
        if (!p.root)
            return false;
        *p.root = (struct tree){.kind = TREE_NULL, .mark = mark_at(&p, 1, 1, 1), .text = ""};
    }
    *out = p.root;
    return true;
}

/* ----------------------------------------------------------------------------------------------------------- files */

static bool read_all(int fd, char *text, size_t bytes)
{
    for (size_t at = 0; at < bytes;) {
        ssize_t got = read(fd, text + at, bytes - at);
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0) {
            errno = got < 0 ? errno : EIO;
            return false;
        }
        at += (size_t)got;
    }
    return true;
}

bool yaml_read(struct loading *l, struct arena *arena, const char *path, const struct mark *from, const char **text,
               size_t *bytes)
{
    struct stat st;
    bool ok = true;
    char *content = NULL;
    *text = NULL;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* opening a pipe would wait for its writer */
    if (fd < 0 || fstat(fd, &st) < 0) {
        ok = loading_problem(l, from, NULL, "cannot read graph '%s': %s", path, strerror(errno));
    } else if (!S_ISREG(st.st_mode)) {
        ok = loading_problem(l, from, NULL, "cannot read graph '%s': it is not a file", path);
    } else if ((uint64_t)st.st_size > LOADING_FILE_BYTES) {
        ok = loading_problem(l, from, NULL, "graph '%s' has %lld bytes; a graph has at most %zu", path,
                             (long long)st.st_size, LOADING_FILE_BYTES);
    } else {
        content = arena_new(arena, (size_t)st.st_size + 1, &l->fatal);
        ok = content != NULL;
        if (ok && !read_all(fd, content, (size_t)st.st_size)) {
            ok = loading_problem(l, from, NULL, "cannot read graph '%s': %s", path, strerror(errno));
            content = NULL;
        }
    }
    if (fd >= 0)
        close(fd);
    *text = content;
    *bytes = content ? (size_t)st.st_size : 0;
    return ok;
}
