/* Ways to run a call: all give the same bits. */
#ifndef RUN_H
#define RUN_H

#include "call.h"

typedef enum run_how {
    RUN_WHOLE,         /* one call; scratch of exactly the size asked for, full of NaN, before an unmapped page */
    RUN_MALLOC,        /* one call, without scratch */
    RUN_MISALIGNED,    /* one call, scratch at an odd address */
    RUN_ONE_RANGE,     /* all work items in one range */
    RUN_SINGLE_ITEMS,  /* one after the other */
    RUN_REVERSED,      /* the last first */
    RUN_RANDOM_RANGES, /* cut anywhere, in any order */
    RUN_THREADS,       /* several threads, a share each */
    RUN_NUM
} run_how;

extern const char *const run_names[RUN_NUM];

/* Fresh outputs, then the library, with its inputs read-only meanwhile; then assert_writes(). */
void run(call *c, run_how how);

/* Asserts that the call does the same, in float32, where one pool is read and another is written; nothing where it has
 * no pool to write. */
void run_two_pools(const call *c);

/* One call of the library, which must succeed. */
void run_params(const gdn_params *p);

/* Runs some sequences of a call in one of their own (see call_take()) and asserts that they do as they did in `c`. */
void run_sequences(const call *c, const ptrdiff_t *sequences, ptrdiff_t count, bool varlen);

/* The call in pieces that end after the given tokens of each sequence (and at its end), the state carried from piece
 * to piece through the pool; fixed length: all sequences at once, varlen: one after the other. Each piece uses the
 * next of the instruction sets that this machine has. */
void run_split(call *c, const ptrdiff_t *ends, ptrdiff_t num_ends);

#endif
