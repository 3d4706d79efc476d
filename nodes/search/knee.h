#ifndef NODES_SEARCH_KNEE_H
#define NODES_SEARCH_KNEE_H
/* The knee of a falling convex curve by Kneedle (Satopaa, Albrecht, Irwin, Raghavan, "Finding a 'Kneedle' in a
 * Haystack", 2011): where more bytes stop paying. The curve is a measured frontier, so its points are used as they are,
 * without the paper's smoothing spline. */
#include <stddef.h>

#include "engine/base/err.h"

struct knee_options {
    double sensitivity; /* S of the paper (1 there): how far d must fall below a knee's, in mean steps of x */
    bool is_log;        /* take the logarithm of y: points with y <= 0 (the reference itself) are not on the curve.
                           The paper's axes are linear. On a logarithmic one a point of the lowest y sets the scale,
                           so one at the noise floor of y can decide where the knee is */
};

struct knee {
    size_t at;          /* index of the knee */
    bool is_found;      /* false: no point passes the test of the paper, and `at` is the fallback */
    double difference;  /* of the normalised curve from the line between its ends, at the knee; 0..1 if convex */
};

/* x[0..n) strictly ascending, y strictly falling, n >= 1. Both are normalised to 0..1, and the difference curve is
 * d = 1 - y - x: 0 at both ends, positive where the curve is below the line between them. A local maximum of d above 0
 * is a knee if d falls below max - S * mean(dx) before it rises to the next local maximum. Of several knees the one
 * with the largest d wins; without any, the point with the largest d; ties go to the lower y. So with one point it is
 * that one, with two the one of lower y, and on a curve that is nowhere below the line its last one. If no point is on
 * a logarithmic curve (all y are <= 0) it is the first point. */
bool knee_find(const double *x, const double *y, size_t n, const struct knee_options *o, struct knee *out,
               struct err *e) ERR_CHECK;

/* The parameters of a node type that looks for a knee: the same for all, so that they see the same one. */
#define KNEE_PARAMS \
    {.name = "sensitivity", .type = PARAM_FLOAT, .fallback = "1", .least = 0, .most = 1000, .unit = "1", \
     .help = "Kneedle's S: how far the curve must fall below a knee, in mean steps; larger is more cautious"}, \
    {.name = "scale", .type = PARAM_ENUM, .fallback = "linear", \
     .choices = (const char *const[]){"linear", "log", NULL}, .help = "of KL, when the knee is looked for"}

#endif
