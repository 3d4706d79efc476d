#ifndef NODES_SEARCH_HYPERVOLUME_H
#define NODES_SEARCH_HYPERVOLUME_H
/* What a candidate can be expected to add to a frontier: the gain in hypervolume (Emmerich, Giannakoglou, Naujoks 2006,
 * "Single- and multiobjective evolutionary optimization assisted by Gaussian random field metamodels"), here with one
 * axis, the size, known exactly. */
#include <stddef.h>

/* A frontier as a staircase: x ascending, y falling, both strictly. Arrays are the caller's, with room to insert. */
struct staircase {
    double *x, *y;
    size_t n;
};

/* The expected area between the staircase and that with (x, Y), Y normal with this mean and deviation (0: certain),
 * from x to `high`: integral over x' of E[max(0, s(x') - Y)], s(x') = the y of the last step at or before x'; before
 * the first step the first one's. 0 when x >= high or the staircase is empty. */
double hypervolume_gain(const struct staircase *s, double x, double mean, double deviation, double high);
/* Put (x, y) in, unless it is beaten, and take out what it beats. Room for n + 1. */
void hypervolume_insert(struct staircase *s, double x, double y);

#endif
