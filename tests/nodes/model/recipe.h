#ifndef TESTS_NODES_MODEL_RECIPE_H
#define TESTS_NODES_MODEL_RECIPE_H
/* Model directories made for tests: a model that ships, copied, and changed as a recipe says. A recipe is a text with a
 * command a line ('#' begins a comment); an argument ends at a space, the last one at the end of the line:
 *
 *     base NAME              start from data/models/NAME; "packed": stories260k in a mix of formats; "every_format":
 *                            babyllama-1m in all of them; "none": empty
 *     config KEY JSON        set a member of config.json; a dot goes into an object
 *     config-drop KEY
 *     write FILE TEXT        a text file
 *     hex FILE HEX           a binary file
 *     copy FILE NEW          likewise: move FILE NEW, delete FILE, mkdir FOLDER
 *     truncate FILE BYTES
 *     append FILE HEX
 *     length N               what model.safetensors says of its header's length
 *     header OLD => NEW      text of its header, the length following
 *     tensor NAME JSON       an entry of its header, data as they are; null takes it away
 *     rename NAME NEW
 *     remove NAME            a tensor with its data
 *     add NAME DTYPE SHAPE   a tensor of zeros at the end, SHAPE as JSON
 *     poke NAME OFFSET HEX   bytes of a tensor
 *     shard N                cut into N files with an index
 *     index NAME JSON        the file that the index names for a tensor; null takes it away
 *     open PATH              what is to be opened, below the directory (default: itself)
 *     then COMMAND           a command that is carried out once the model is open
 */
#include "nodes/model/model.h"
#include "tests/check.h"

struct recipe {
    const char *folder; /* where it works: its own, removed by recipe_fini */
    char path[600];     /* what is to be opened */
    char *later;        /* the commands of `then`, a line each; NULL: none */
    char own[256];
};

/* Make an empty folder. */
void recipe_init(struct recipe *r);
void recipe_fini(struct recipe *r);
/* Carry out commands; what they get wrong fails the test. */
void recipe_do(struct recipe *r, const char *commands);
/* The commands of `then`. */
void recipe_do_later(struct recipe *r);

/* The format of a unit of `m` in a packed base. "packed": nvfp4 for q,k,v, nvfp4_a16 for o, fp8 for gate and up and, in
 * odd layers, for down, which is bf16 in even ones; the last layer is bf16 throughout. "every_format": all in turn, and
 * int4_g32 where one does not fit. */
const struct format *recipe_packed_format(const char *base, const struct model *m, int unit);
/* input_global_scale of every nvfp4 unit in it. */
#define RECIPE_INPUT_SCALE 112.0f
/* The rendering of a matrix of the original in that format (rendering_free). */
void recipe_render(const char *base, const struct model *m, int matrix, struct rendering *out);

#endif
