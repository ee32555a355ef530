/* A call of the library to be timed: its arrays, its run on several threads, its check against the oracle. */
#ifndef WORKLOAD_H
#define WORKLOAD_H

#include <stdbool.h>
#include <stddef.h>

#include "gdn_varlen.h"
#include "threads.h"

typedef enum workload_lengths {
    LENGTHS_EQUAL,  /* `seqs` sequences of `tokens` tokens */
    LENGTHS_MIXED,  /* of 1 to `tokens` tokens */
    LENGTHS_JOINED, /* one sequence as long as those together */
} workload_lengths;

typedef enum workload_style {
    STYLE_ENGINE, /* raw gates, q and k as projected: everything is the operator's work */
    STYLE_GGML,   /* log decay, beta, normalised q and k, tiled heads: what ggml's operator takes */
} workload_style;

typedef enum workload_states {
    STATES_IN_PLACE, /* each sequence goes on from run to run in its slot of the pool */
    STATES_APART,    /* every run from the same states; the final ones into other slots */
    STATES_STEPS,    /* the same, but the state after every token into a cache; needs sequences of one length */
} workload_states;

typedef struct workload_shape {
    int key_heads, value_heads, k_dim, v_dim, seqs, tokens;
    gdn_state_layout layout;
    gdn_dtype inputs, state; /* q, k, v, a, b and o; the pool */
    bool is_kda, allow_neg_eigval;
    workload_lengths lengths;
    workload_style style;
    workload_states states;
    gdn_compute compute;
} workload_shape;

typedef struct workload workload;

/* Seeded inputs, gates as Flash Linear Attention initialises them, one pool slot for each sequence to start from. */
workload *workload_new(const workload_shape *shape, gdn_isa isa, threads *t);

/* The call as an embedder makes it: validated, then run by all threads. */
void workload_run(workload *w);

/* One run compared with the oracle at work items from the first to the last; false: they differ, as a line on standard
 * error says. */
bool workload_check(workload *w);

const gdn_params *workload_params(const workload *w);
ptrdiff_t workload_longest(const workload *w);  /* tokens of the longest sequence */
size_t workload_state_bytes(const workload *w); /* of the states that runs start from, which begin the pool */

/* How many states a run leaves of each sequence, and where one is, so many tokens before the last: [value heads, K, V]
 * or [.., V, K]. */
ptrdiff_t workload_states_left(const workload *w);
void *workload_state(const workload *w, ptrdiff_t sequence, ptrdiff_t tokens_before);
void workload_free(workload *w);

#endif
