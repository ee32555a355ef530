/* Comparisons of calls that have run; each fails the test with the place of the first or worst difference. */
#ifndef COMPARE_H
#define COMPARE_H

#include "call.h"

/* Float32 against the oracle, relative to the largest element, where a configuration does not say otherwise. */
#define USUAL_TOLERANCE 1e-6

/* o, pool and cache of two calls of one shape have the same bits; memory layouts may differ. */
void assert_same(const call *x, const call *y);

/* The same for what sequence nx of x and sequence ny of y wrote. */
void assert_same_sequence(const call *x, ptrdiff_t nx, const call *y, ptrdiff_t ny);

/* One array of both, as a whole. */
void assert_same_array(const call *x, const call *y, call_array which);

/* What was written is within `tolerance` of the largest element of its array; 16-bit arrays are compared with the
 * rounded expectation: 99 % equal, the others one step away (or within `tolerance`). NaN and infinities must be in
 * the same places. */
void assert_close(const call *actual, const call *expected, double tolerance);

/* Nothing was written that the contract does not let be written: rows without a sequence, padded rows, slots and
 * cache entries of nobody, gaps between elements. Rows under GDN_PADDING_ZERO are zero. */
void assert_writes(const call *c);

#endif
