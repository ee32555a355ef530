/* Seeded random numbers: splitmix64, so that the data is the same on every machine. */
#ifndef RNG_H
#define RNG_H

#include <stddef.h>
#include <stdint.h>

typedef struct rng {
    uint64_t state;
} rng;

/* A stream of its own for each list of numbers, under test_seed(). */
rng rng_stream(const ptrdiff_t *numbers, ptrdiff_t count);

double rng_uniform(rng *r, double low, double high);
double rng_normal(rng *r);
ptrdiff_t rng_below(rng *r, ptrdiff_t bound); /* 0 .. bound-1 */

#endif
