/* The batch that threads.c and embed.cpp decode on their threads: some tokens of each of some sequences, seeded. */
#ifndef DECODE_BATCH_H
#define DECODE_BATCH_H

#include "gdn_varlen.h"

#include <stdio.h>
#include <string.h>

enum { SEQUENCES = 16, STEPS = 3, H = 4, HV = 8, K = 64, V = 64, MOST_THREADS = 5 };

static struct {
    float q[STEPS][SEQUENCES * H * K], k[STEPS][SEQUENCES * H * K], v[STEPS][SEQUENCES * HV * V];
    float a[STEPS][SEQUENCES * HV], b[STEPS][SEQUENCES * HV], A_log[HV], dt_bias[HV];
} decode_inputs;

/* What decoding writes. */
typedef struct decode_result {
    float o[STEPS][SEQUENCES * HV * V], pool[SEQUENCES * HV * V * K];
} decode_result;

/* Seeded draws from [-1, 1). */
static void decode_fill(void *to, size_t bytes) {
    static uint32_t seed = 1;
    float *x = (float *)to;
    for (size_t i = 0; i < bytes / sizeof *x; i++) {
        seed = seed * 1664525u + 1013904223u;
        x[i] = (float)(seed >> 8) / 8388608.0f - 1.0f;
    }
}

/* The call that decodes one token of each sequence. */
static gdn_params decode_step(int step, decode_result *result) {
    gdn_params p;
    memset(&p, 0, sizeof p);
    p.batch_size = SEQUENCES;
    p.seq_len = 1;
    p.num_key_heads = H;
    p.num_value_heads = HV;
    p.head_k_dim = K;
    p.head_v_dim = V;
    p.A_log = gdn_f32(decode_inputs.A_log);
    p.dt_bias = gdn_f32(decode_inputs.dt_bias);
    p.q = gdn_f32(decode_inputs.q[step]);
    p.k = gdn_f32(decode_inputs.k[step]);
    p.v = gdn_f32(decode_inputs.v[step]);
    p.a = gdn_f32(decode_inputs.a[step]);
    p.b = gdn_f32(decode_inputs.b[step]);
    p.o = gdn_out_f32(result->o[step]);
    p.initial_state_source = gdn_pool_of(result->pool, GDN_F32, SEQUENCES);
    p.state_layout = GDN_STATE_VK;
    p.use_qk_l2norm_in_kernel = true;
    return p;
}

/* Decodes on this thread, for the others to be compared with. */
static gdn_status decode_alone(decode_result *result, gdn_error *error) {
    gdn_status status = GDN_OK;
    decode_fill(&decode_inputs, sizeof decode_inputs);
    for (int step = 0; step < STEPS && status == GDN_OK; step++) {
        const gdn_params p = decode_step(step, result);
        status = gdn_fused_sigmoid_gating_delta_rule_update(&p, error);
    }
    if (status != GDN_OK) printf("FAILED: %s: %s\n", error->argument, gdn_status_text(status));
    return status;
}

#endif
