/* `scout check`: read every object and every ledger of a run's store in full, and name what is damaged. */
#include <dirent.h>
#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "engine/cli/cli.h"

struct tally {
    const struct args *args;
    struct store *store;
    size_t fine, damaged;
    uint64_t rows, damaged_rows;
};

/* `name`: the key of an object, or the file of a ledger's segment within the store. */
static void print_damage(const struct args *a, const char *what, const char *name, const struct err *why)
{
    if (args_flag(a, "--json")) {
        struct str s = {0};
        str_printf(&s, "{\"event\":\"damaged\",\"kind\":\"%s\",\"name\":", what);
        str_add_json(&s, name);
        str_add(&s, ",\"text\":");
        str_add_json(&s, why->text);
        str_add(&s, "}");
        cli_print_json(&s, "damaged");
    } else {
        printf("damaged %s %s: %s\n", what, name, why->text);
    }
}

static bool check_object(void *context, const struct key *key, struct err *e)
{
    struct tally *t = context;
    struct err why = {0};
    char text[KEY_TEXT];
    if (object_verify(t->store, key, &why)) {
        t->fine++;
    } else if (why.code == ERR_RESOURCE) { /* says nothing about the object */
        *e = why;
        return false;
    } else {
        t->damaged++;
        print_damage(t->args, "object", key_text(key, text), &why);
    }
    return true;
}

static int not_hidden(const struct dirent *d)
{
    return d->d_name[0] != '.';
}

/* Entries of the folder `path` in order; none when it is not there. */
static bool list_folder(const char *path, struct dirent ***out, size_t *count, struct err *e)
{
    int n = scandir(path, out, not_hidden, alphasort);
    *count = n < 0 ? 0 : (size_t)n;
    return n >= 0 || errno == ENOENT || err_errno(e, ERR_IO, "cannot list '%s'", path);
}

static void free_folder(struct dirent **entries, size_t n)
{
    for (size_t i = 0; i < n; i++)
        free(entries[i]);
    free(entries);
}

static bool check_segment(struct tally *t, const char *ledger, const char *file, struct err *e)
{
    char name[2 * NAME_MAX + 16];
    uint64_t rows = 0, damaged = 0;
    struct err why = {0};
    snprintf(name, sizeof name, "ledger/%s/%s", ledger, file);
    bool whole = ledger_verify(t->store, name, &rows, &damaged, &why);
    if (!whole && why.code == ERR_RESOURCE) {
        *e = why;
        return false;
    }
    if (whole && damaged > 0)
        err_set(&why, ERR_INPUT, "%llu of its rows are damaged: they will be measured again",
                (unsigned long long)damaged);
    if (!whole || damaged > 0)
        print_damage(t->args, "ledger", name, &why);
    t->rows += rows;
    t->damaged_rows += whole ? damaged : 1;
    return true;
}

static bool check_ledger(struct tally *t, const char *store, const char *ledger, struct err *e)
{
    char path[PATH_MAX + 2 * NAME_MAX];
    struct dirent **segments = NULL;
    size_t n;
    snprintf(path, sizeof path, "%s/ledger/%s", store, ledger);
    bool ok = list_folder(path, &segments, &n, e);
    for (size_t i = 0; ok && i < n; i++) {
        size_t length = strlen(segments[i]->d_name);
        if (length > 3 && strcmp(segments[i]->d_name + length - 3, ".h5") == 0)
            ok = check_segment(t, ledger, segments[i]->d_name, e);
    }
    free_folder(segments, n);
    return ok;
}

static bool check_ledgers(struct tally *t, const char *store, struct err *e)
{
    char path[PATH_MAX + NAME_MAX];
    struct dirent **ledgers = NULL;
    size_t n;
    snprintf(path, sizeof path, "%s/ledger", store);
    bool ok = list_folder(path, &ledgers, &n, e);
    for (size_t i = 0; ok && i < n; i++)
        ok = check_ledger(t, store, ledgers[i]->d_name, e);
    free_folder(ledgers, n);
    return ok;
}

static bool find_store(const char *dir, char *out, size_t size, struct err *e)
{
    if (!run_find_store(dir, out, size, e))
        return false;
    if (access(out, F_OK) == 0)
        return true;
    struct str path = {0};
    str_printf(&path, "%s/objects", dir);
    bool is_store = path.text && !path.failed && access(path.text, F_OK) == 0;
    str_free(&path);
    if (!is_store || snprintf(out, size, "%s", dir) >= (int)size)
        return err_set(e, ERR_INPUT, "'%s' is neither a run nor a store: there is no '%s'", dir, out);
    return true;
}

static int check_main(const struct args *a)
{
    struct tally t = {.args = a};
    struct store *s = NULL;
    struct err e = {0};
    char path[PATH_MAX];
    if (!find_store(args_operand(a, 0), path, sizeof path, &e) || !store_open_readonly(&s, path, &e))
        return cli_fail(a, &e);
    t.store = s;
    bool ok = store_each_object(s, check_object, &t, &e) && check_ledgers(&t, path, &e);
    store_close(s);
    if (!ok) {
        cli_error(a, &e);
        return cli_exit(&e, true);
    }
    const unsigned long long rows = t.rows, damaged_rows = t.damaged_rows;
    if (args_flag(a, "--json"))
        printf("{\"event\":\"result\",\"objects\":%zu,\"damaged\":%zu,\"rows\":%llu,\"damaged_rows\":%llu}\n",
               t.fine + t.damaged, t.damaged, rows, damaged_rows);
    else
        printf("%zu objects, %zu damaged; %llu ledger rows, %llu damaged; store %s\n", t.fine + t.damaged, t.damaged,
               rows, damaged_rows, path);
    return t.damaged + damaged_rows > 0 ? CLI_FAILED : CLI_DONE;
}

const struct command command_check = {
    "check", "Verify every object and ledger of a run's store in full.", (const char *const[]){"RUN", NULL},
    (const struct option[]){{0}}, check_main};
