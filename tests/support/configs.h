/* The calls that most tests loop over: every option, at sizes that cross the edges of vectors and slices. */
#ifndef CONFIGS_H
#define CONFIGS_H

#include "call.h"

extern const call_config configs[];
extern const ptrdiff_t num_configs;

/* The i-th of any number of calls with options, dtypes and sizes as they come, in combinations that no table has. */
call *random_call(ptrdiff_t i);

/* Extreme numbers strewn into the inputs: each is an element in about forty. */
void strew_extremes(call *c, ptrdiff_t stream);

/* Shorthands for tables of configurations. */
#define HEADS(h, hv, k, v) .num_key_heads = (h), .num_value_heads = (hv), .head_k_dim = (k), .head_v_dim = (v)
#define FIXED(b, t) .batch_size = (b), .seq_len = (t)

#define POOL(layout, n, d) .state_layout = GDN_STATE_##layout, .initial_state_source = {.num_states = (n), .dtype = (d)}

#define CACHE(rows, steps, d) .intermediate_states_buffer = {.num_rows = (rows), .num_steps = (steps), .dtype = (d)}

#define DTYPES(all)                                                                                                    \
    .A_log.dtype = (all), .a.dtype = (all), .dt_bias.dtype = (all), .q.dtype = (all), .k.dtype = (all),                \
    .v.dtype = (all), .b.dtype = (all), .o.dtype = (all)

#endif
