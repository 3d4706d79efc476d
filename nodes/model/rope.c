#include "nodes/model/rope.h"

#include <math.h>

float rope_frequency(const struct model_config *c, int i)
{
    /* In f64, rounded once: the nearest f32 on every C library. */
    float base = (float)pow(c->theta, -(double)(2 * i) / c->head_dim);
    if (c->rope == ROPE_LINEAR)
        return base / (float)c->rope_factor;
    if (c->rope != ROPE_LLAMA3)
        return base;
    /* Long waves are slowed by the factor, short ones kept, those between blended. */
    const float pi = 3.14159265358979323846f;
    float wave = 2.0f * pi / base, original = (float)c->rope_original;
    if (wave < original / (float)c->rope_high)
        return base;
    if (wave > original / (float)c->rope_low)
        return base / (float)c->rope_factor;
    float t = (original / wave - (float)c->rope_low) / (float)(c->rope_high - c->rope_low);
    return (1.0f - t) * (base / (float)c->rope_factor) + t * base;
}

void rope_tables(const struct model_config *c, int window, float *cosine, float *sine)
{
    int half = c->head_dim / 2;
    for (int i = 0; i < half; i++) {
        float frequency = rope_frequency(c, i);
        for (int p = 0; p < window; p++) {
            /* The angle is rounded to f32, its cosine taken in f64: the nearest f32 on every C library. */
            double angle = (double)((float)p * frequency);
            cosine[p * half + i] = (float)cos(angle);
            sine[p * half + i] = (float)sin(angle);
        }
    }
}
