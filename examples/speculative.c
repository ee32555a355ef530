/*
 * Speculative decoding: verify four draft tokens of each sequence in one call, keep those the model accepts, and go
 * on from the state after the last of them. Two ways to have that state, each checked bit for bit against decoding
 * the accepted tokens one at a time:
 *
 *   cache   the pool is only read, the state after every step goes to a cache; the accepted one is copied back.
 *   slots   every step has its own slot of the pool; the next call names how many were accepted. Nothing is copied.
 */
#define GDN_IMPLEMENTATION
#include "gdn_varlen.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { N = 2, DRAFTS = 4, ROUNDS = 3, H = 2, HV = 4, K = 32, V = 32 };

typedef float state[HV][V][K];

/* The drafts of one round. A rejected draft is replaced by another token, so every round has its own draws. */
typedef struct round_inputs {
    float q[N][DRAFTS][H][K], k[N][DRAFTS][H][K], v[N][DRAFTS][HV][V], a[N][DRAFTS][HV], b[N][DRAFTS][HV];
} round_inputs;

static round_inputs rounds[ROUNDS];
static const int accepted[ROUNDS][N] = {{2, 4}, {1, 3}, {4, 2}};
static const float A_log[HV] = {-1.0f, -0.5f, 0.0f, 0.5f}, dt_bias[HV] = {0.3f, 0.1f, -0.1f, -0.3f};

/* Seeded draws from [-1, 1). */
static void fill(float *x, size_t bytes) {
    static uint32_t seed = 1;
    for (size_t i = 0; i < bytes / sizeof *x; i++) {
        seed = seed * 1664525u + 1013904223u;
        x[i] = (float)(seed >> 8) / 8388608.0f - 1.0f;
    }
}

/* The fixed-length call over `tokens` tokens of `sequences` sequences, from token t of sequence n on. */
static gdn_params params_at(const round_inputs *in, int n, int t, int sequences, int tokens, float *o) {
    gdn_params p = {.batch_size = sequences, .seq_len = tokens, .num_key_heads = H, .num_value_heads = HV};
    p.head_k_dim = K;
    p.head_v_dim = V;
    p.A_log = gdn_f32(A_log);
    p.dt_bias = gdn_f32(dt_bias);
    p.q = gdn_f32(in->q[n][t][0]);
    p.k = gdn_f32(in->k[n][t][0]);
    p.v = gdn_f32(in->v[n][t][0]);
    p.a = gdn_f32(in->a[n][t]);
    p.b = gdn_f32(in->b[n][t]);
    p.o = gdn_out_f32(o);
    p.use_qk_l2norm_in_kernel = true;
    p.state_layout = GDN_STATE_VK;
    return p;
}

static void run(const gdn_params *p) {
    gdn_error error;
    if (gdn_fused_sigmoid_gating_delta_rule_update(p, &error) != GDN_OK) {
        printf("FAILED: %s: %s\n", error.argument, gdn_status_text(error.status));
        exit(1);
    }
}

/* Outputs and states after a round against the plain decoding, which `plain` carries from round to round. */
static void check(const char *way, int round, float o[N][DRAFTS][HV][V], state *const after[N], state plain[N]) {
    for (int n = 0; n < N; n++) {
        for (int t = 0; t < accepted[round][n]; t++) {
            float expected[HV][V];
            gdn_params p = params_at(&rounds[round], n, t, 1, 1, expected[0]);
            p.initial_state_source = gdn_pool_of(plain[n], GDN_F32, 1);
            run(&p);
            if (memcmp(expected, o[n][t], sizeof expected) == 0) continue;
            printf("FAILED: %s, round %d, sequence %d, draft %d: the output differs\n", way, round, n, t);
            exit(1);
        }
        if (memcmp(plain[n], *after[n], sizeof(state)) == 0) continue;
        printf("FAILED: %s, round %d, sequence %d: the state differs\n", way, round, n);
        exit(1);
    }
    printf("%s, round %d: accepted %d and %d of %d drafts, outputs and states equal plain decoding\n", way, round,
           accepted[round][0], accepted[round][1], DRAFTS);
}

static void with_cache(void) {
    static state pool[N], cache[N][DRAFTS], plain[N];
    static float o[N][DRAFTS][HV][V];
    for (int round = 0; round < ROUNDS; round++) {
        gdn_params p = params_at(&rounds[round], 0, 0, N, DRAFTS, o[0][0][0]);
        p.initial_state_source = gdn_pool_of(pool, GDN_F32, N);
        p.disable_state_update = true;
        p.intermediate_states_buffer = gdn_cache_of(cache, GDN_F32, N, DRAFTS);
        run(&p);
        if (memcmp(pool, plain, sizeof pool) != 0) {
            printf("FAILED: cache, round %d: the pool was written\n", round);
            exit(1);
        }
        for (int n = 0; n < N; n++) memcpy(pool[n], cache[n][accepted[round][n] - 1], sizeof(state));
        check("cache", round, o, (state *const[N]){&pool[0], &pool[1]}, plain);
    }
}

static void with_slots(void) {
    static const int slots[N][DRAFTS] = {{6, 1, 3, 0}, {2, 7, 4, 5}};
    static state pool[N * DRAFTS], plain[N];
    static float o[N][DRAFTS][HV][V];
    for (int round = 0; round < ROUNDS; round++) {
        gdn_params p = params_at(&rounds[round], 0, 0, N, DRAFTS, o[0][0][0]);
        p.initial_state_source = gdn_pool_of(pool, GDN_F32, N * DRAFTS);
        p.ssm_state_indices = gdn_indices_of(slots, GDN_I32, DRAFTS);
        if (round > 0) p.num_accepted_tokens = gdn_i32(accepted[round - 1]); /* absent: from the first slot */
        run(&p);
        state *const after[N] = {&pool[slots[0][accepted[round][0] - 1]], &pool[slots[1][accepted[round][1] - 1]]};
        check("slots", round, o, after, plain);
    }
}

int main(void) {
    fill(rounds[0].q[0][0][0], sizeof rounds);
    with_cache();
    with_slots();
    printf("OK\n");
    return 0;
}
