/* The node table of `scout_fake`: the command line on node types without mathematics. */
#include "nodes/nodes.h"

#include "tests/engine/run/fake.h"

const struct node_class *const node_table[] = {&fake_value, &fake_sum,     &fake_fail,    &fake_parts, &fake_reader,
                                               &fake_needy, &fake_compute, &fake_outside, &fake_rows,  NULL};
