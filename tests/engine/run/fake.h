#ifndef TESTS_ENGINE_RUN_FAKE_H
#define TESTS_ENGINE_RUN_FAKE_H
/* Node types without mathematics, graphs made in C, and helpers that run them: for the tests of engine/run. */
#include <stdatomic.h>

#include "engine/run/run.h"

/* value: int `value`, float `scale`, list `extra`, source `file`, path `out`, outside the key `speed`; outputs a, b.
 * sum: many inputs `in`; x = their sum + `add`; sleeps `ms` (outside the key).
 * fail: input `in` (optional); fails with the code that `how` names.
 * parts: input `in`; eight parts, each after `ms`; linked. reader: reads part layer.002 of its inputs.
 * needy: input `in` (optional); needs `cores`, `memory`, `disk`; x = 1.
 * compute: input `in` (optional); can use accelerators, `devices` at once, with `device_memory` on each, and `cores`;
 *   its numerics are its place's; fails with ERR_DEVICE on the accelerator `breaks` (-1: none).
 * outside: writes the file `out`, and stands while that file does; looked at in full, while it has the same text.
 * rows: a ledger of `n` rows, each after `ms`; stops between rows. */
extern const struct node_class fake_value, fake_value2, fake_sum, fake_fail, fake_parts, fake_reader,
    fake_needy, fake_compute, fake_outside, fake_rows;
extern const struct node_class *const fake_table[];

/* How often a node's code ran, of all nodes together and the most at once. Reset by fake_reset. */
extern atomic_int fake_runs, fake_at_once, fake_most_at_once, fake_parts_made, fake_rows_made;
void fake_reset(void);

/* A back end of `n` accelerators of one kind, cuda:0 and so on, with 80 GiB each, 1 GiB of it in use, at the addresses
 * pci[0..n) (NULL: unknown). Static: one at a time. The device in `fake_broken`'s bit i does not start. */
struct run_backend fake_backend(int n, const char *const *pci);
extern atomic_uint fake_broken, fake_opened; /* bit i: cuda:i */
extern atomic_int fake_shared;               /* times that two nodes had queues on one accelerator */
/* Another kind of accelerator than the others, for fake_backend's devices[i].kernels. */
extern const struct kernels fake_other_kernels;

struct fake {
    struct graph graph;
    size_t capacity;
};
void fake_init(struct fake *f);
void fake_fini(struct fake *f);
/* Add a node with default parameters; returns its index. Inputs must be added before it. */
int fake_add(struct fake *f, const char *name, const struct node_class *c);
/* Set a parameter to a text (elements of a list divided by ", "). */
void fake_set(struct fake *f, int node, const char *param, const char *text);
void fake_connect(struct fake *f, int node, const char *port, int from, const char *output);
/* A graph of 30 nodes of many kinds, which takes some 100 ms. */
void fake_thirty(struct fake *f);

/* A fresh directory under the system's temporary one, in `out` (64 bytes), and its removal. */
void fake_directory(char out[64]);
void fake_remove(const char *dir);
/* Run the graph in `dir`; asserts that it could start. */
struct run_summary fake_run(const struct fake *f, const char *dir, const struct run_options *more);
/* "name=state name=state ..." of the last fake_run. */
extern char fake_states[4096];
/* Plan it; fills fake_states with the planned states. */
void fake_plan(const struct fake *f, const char *dir, const struct run_options *more);
/* Key of a node, planned in `dir`. */
struct key fake_key(const struct fake *f, const char *dir, int node);
struct key fake_key_with(const struct fake *f, const char *dir, int node, const struct run_options *more);
/* Path and SHA-256 of every object under dir/store, sorted; heap (free). */
char *fake_objects(const char *dir);
/* Path of the object of a node in dir/store. */
void fake_object_path(const struct fake *f, const char *dir, int node, char *out, size_t size);
/* Overwrite bytes in the middle of a read-only file. */
void fake_damage(const char *path);

#endif
