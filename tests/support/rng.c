#include "rng.h"

#include <math.h>

#include "test.h"

static uint64_t next(rng *r) {
    uint64_t z = r->state += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

rng rng_stream(const ptrdiff_t *numbers, ptrdiff_t count) {
    rng r = {test_seed()};
    for (ptrdiff_t i = 0; i < count; i++) r.state = next(&r) ^ (uint64_t)numbers[i];
    return r;
}

double rng_uniform(rng *r, double low, double high) { return low + (high - low) * ((double)(next(r) >> 11) * 0x1p-53); }

/* Box and Muller; the cosine alone, so that a draw depends on nothing but the state. */
double rng_normal(rng *r) {
    double radius = sqrt(-2 * log(1 - rng_uniform(r, 0, 1)));
    return radius * cos(6.283185307179586 * rng_uniform(r, 0, 1));
}

ptrdiff_t rng_below(rng *r, ptrdiff_t bound) { return (ptrdiff_t)(next(r) % (uint64_t)bound); }
