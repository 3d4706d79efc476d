/* `scout decode`: a compressed-tensors checkpoint as a plain one. */
#include "nodes/decode.h"

#include "engine/cli/cli.h"

static int decode_main(const struct args *a)
{
    struct decode_options o = {.dir = args_operand(a, 0), .out = args_operand(a, 1)};
    struct decode_result r = {0};
    struct err e = {0};
    char size[16];
    if (!args_size(a, "--shard-size", &o.shard_size, &e) || !decode_run(&o, &r, &e))
        return cli_fail(a, &e);
    if (args_flag(a, "--json")) {
        struct str s = {0};
        str_printf(&s, "{\"event\":\"result\",\"matrices\":%d,\"bytes\":%llu,\"files\":%d,\"directory\":", r.n_decoded,
                   (unsigned long long)r.bytes, r.n_files);
        str_add_json(&s, o.out);
        str_add(&s, "}");
        cli_print_json(&s, "result");
    } else {
        printf("%s: %d matrices decoded to bf16, %s of tensors in %d file%s\n", o.out, r.n_decoded,
               str_size(r.bytes, size), r.n_files, r.n_files == 1 ? "" : "s");
    }
    return CLI_DONE;
}

const struct command command_decode = {
    "decode", "Write a compressed checkpoint as a plain one in bf16.", (const char *const[]){"DIR", "OUT", NULL},
    (const struct option[]){{"--shard-size", "SIZE", false, "most bytes of tensors in one file (default: 5GiB)"}, {0}},
    decode_main};
