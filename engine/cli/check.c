/* `scout check`: read every object and every ledger of a run's store in full, and name what is damaged. */
#include <dirent.h>
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
        str_printf(&s, "{\"event\":\"damaged\",\"kind\":\"%s\",\"name\":\"%s\",\"text\":", what, name);
        str_add_json(&s, why->text);
        str_add(&s, "}");
        printf("%s\n", s.text && !s.failed ? s.text : "{\"event\":\"damaged\"}");
        str_free(&s);
    } else {
        printf("damaged %s %s: %s\n", what, name, why->text);
    }
}

static bool check_object(void *context, const struct key *key, struct err *e)
{
    struct tally *t = context;
    struct err why = {0};
    char text[KEY_TEXT];
    (void)e;
    if (object_verify(t->store, key, &why)) {
        t->fine++;
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
static size_t list_folder(const char *path, struct dirent ***out)
{
    int n = scandir(path, out, not_hidden, alphasort);
    if (n < 0)
        *out = NULL;
    return n < 0 ? 0 : (size_t)n;
}

static void check_segment(struct tally *t, const char *ledger, const char *file)
{
    char name[2 * NAME_MAX + 16];
    uint64_t rows = 0, damaged = 0;
    struct err why = {0};
    snprintf(name, sizeof name, "ledger/%s/%s", ledger, file);
    bool whole = ledger_verify(t->store, name, &rows, &damaged, &why);
    if (whole && damaged > 0)
        err_set(&why, ERR_INPUT, "%llu of its rows are damaged: they will be measured again",
                (unsigned long long)damaged);
    if (!whole || damaged > 0)
        print_damage(t->args, "ledger", name, &why);
    t->rows += rows;
    t->damaged_rows += whole ? damaged : 1;
}

static void check_ledgers(struct tally *t, const char *store)
{
    char path[PATH_MAX + 2 * NAME_MAX];
    struct dirent **ledgers, **segments;
    snprintf(path, sizeof path, "%s/ledger", store);
    size_t n = list_folder(path, &ledgers);
    for (size_t i = 0; i < n; i++) {
        snprintf(path, sizeof path, "%s/ledger/%s", store, ledgers[i]->d_name);
        size_t m = list_folder(path, &segments);
        for (size_t k = 0; k < m; k++) {
            size_t length = strlen(segments[k]->d_name);
            if (length > 3 && strcmp(segments[k]->d_name + length - 3, ".h5") == 0)
                check_segment(t, ledgers[i]->d_name, segments[k]->d_name);
            free(segments[k]);
        }
        free(segments);
        free(ledgers[i]);
    }
    free(ledgers);
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
    bool ok = store_each_object(s, check_object, &t, &e);
    if (ok)
        check_ledgers(&t, path);
    store_close(s);
    if (!ok) {
        cli_error(a, &e);
        return CLI_FAILED;
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
