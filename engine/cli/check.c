/* `scout check`: read every object and every ledger of a run's store in full, and name what is damaged. */
#include <limits.h>
#include <unistd.h>

#include "engine/cli/cli.h"

struct tally {
    const struct args *args;
    struct store *store;
    size_t fine, damaged;
};

static void print_damage(const struct args *a, const char *what, const char *name, const struct err *why)
{
    if (args_flag(a, "--json")) {
        struct str s = {0};
        str_printf(&s, "{\"event\":\"damaged\",\"kind\":\"%s\",\"key\":\"%s\",\"text\":", what, name);
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
    struct tally objects = {.args = a};
    struct store *s = NULL;
    struct err e = {0};
    char path[PATH_MAX];
    if (!find_store(args_operand(a, 0), path, sizeof path, &e) || !store_open_readonly(&s, path, &e))
        return cli_fail(a, &e);
    objects.store = s;
    bool ok = store_each_object(s, check_object, &objects, &e);
    store_close(s);
    if (!ok) {
        cli_error(a, &e);
        return CLI_FAILED;
    }
    size_t damaged = objects.damaged;
    if (args_flag(a, "--json"))
        printf("{\"event\":\"result\",\"objects\":%zu,\"damaged\":%zu}\n", objects.fine + objects.damaged, damaged);
    else
        printf("%zu objects, %zu damaged; store %s\n", objects.fine + objects.damaged, damaged, path);
    return damaged > 0 ? CLI_FAILED : CLI_DONE;
}

const struct command command_check = {
    "check", "Verify every object and ledger of a run's store in full.", (const char *const[]){"RUN", NULL},
    (const struct option[]){{0}}, check_main};
