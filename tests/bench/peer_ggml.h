/* ggml's own operator, GGML_OP_GATED_DELTA_NET of its CPU backend, on the inputs of a workload in its style. */
#ifndef PEER_GGML_H
#define PEER_GGML_H

#include <stddef.h>

#include "gdn_varlen.h"

typedef struct peer peer;

/* Takes the states in the pool as they are now; reads q, k, v, a and b where they are. It keeps the state after every
 * token where the call does, otherwise the final one. Needs GDN_STATE_VK, float32, K = V and sequences of one length.
 * NULL: ggml refuses. */
peer *peer_new(const gdn_params *p, int threads);

/* Always from the same states, to an output and states of its own. */
void peer_run(peer *x);

/* Its threads wait busily for the next run, and would be in the way of others. */
void peer_wake(peer *x);
void peer_rest(peer *x);

const float *peer_output(const peer *x); /* [tokens, value heads, V] */
/* So many tokens before the last: [sequences, value heads, V, K]. */
const float *peer_states(const peer *x, ptrdiff_t tokens_before);
void peer_free(peer *x);

#endif
