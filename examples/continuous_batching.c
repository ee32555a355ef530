/*
 * Continuous batching: requests come and go, and each step is one call over the tokens of all that are present.
 *
 * Two requests are prefilled together, packed behind cu_seqlens, and then decoded together, one token each. A third
 * arrives in the middle, prefilled in the same call that decodes the others; a fourth waits for a slot of the pool,
 * which holds three, and gets the first that is given back. Whatever company a request had, its output has the same
 * bits as when it runs alone in one call.
 */
#define GDN_IMPLEMENTATION
#include "gdn_varlen.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { H = 2, HV = 4, K = 32, V = 32, LENGTH = 16, REQUESTS = 4, SLOTS = 3 };

/* What the model's projections yield for a token. The operator reads it in place: its strides are this struct's. */
typedef struct token {
    float q[H][K], k[H][K], v[HV][V], a[HV], b[HV];
} token;
typedef float token_out[HV][V];

typedef struct request {
    int arrives, prompt, length; /* step of arrival; tokens of the prompt and in all */
    int done;                    /* tokens computed */
    token in[LENGTH];
    token_out out[LENGTH];
} request;

static float A_log[HV] = {-1.0f, -0.5f, 0.0f, 0.5f}, dt_bias[HV] = {0.3f, 0.1f, -0.1f, -0.3f};

/* Seeded draws from [-1, 1). */
static void fill(float *x, size_t bytes) {
    static uint32_t seed = 1;
    for (size_t i = 0; i < bytes / sizeof *x; i++) {
        seed = seed * 1664525u + 1013904223u;
        x[i] = (float)(seed >> 8) / 8388608.0f - 1.0f;
    }
}

static gdn_params params_of(const token *in, token_out *out, int tokens, int sequences, const int *cu_seqlens) {
    const gdn_tensor strided = {NULL, GDN_F32, 0, sizeof(token) / sizeof(float), 0};
    gdn_params p = {.batch_size = 1, .seq_len = tokens, .num_seqs = sequences, .cu_seqlens = gdn_i32(cu_seqlens)};
    p.num_key_heads = H;
    p.num_value_heads = HV;
    p.head_k_dim = K;
    p.head_v_dim = V;
    p.A_log = gdn_f32(A_log);
    p.dt_bias = gdn_f32(dt_bias);
    p.q = p.k = p.v = p.a = p.b = strided;
    p.q.data = in->q;
    p.k.data = in->k;
    p.v.data = in->v;
    p.a.data = in->a;
    p.b.data = in->b;
    p.o = gdn_out_f32(out[0][0]);
    p.use_qk_l2norm_in_kernel = true;
    return p;
}

static void run(const gdn_params *p) {
    gdn_error error;
    if (gdn_fused_sigmoid_gating_delta_rule_update(p, &error) != GDN_OK) {
        printf("FAILED: %s: %s\n", error.argument, gdn_status_text(error.status));
        exit(1);
    }
}

int main(void) {
    static request requests[REQUESTS] = {
        /* in order of arrival */
        {.arrives = 0, .prompt = 7, .length = 11},
        {.arrives = 0, .prompt = 4, .length = 16},
        {.arrives = 3, .prompt = 5, .length = 12},
        {.arrives = 3, .prompt = 6, .length = 9},
    };
    static float pool[SLOTS][HV][K][V];
    request *owner[SLOTS] = {NULL};
    for (int r = 0; r < REQUESTS; r++) fill(requests[r].in[0].q[0], sizeof requests[r].in);

    for (int step = 0, next = 0, finished = 0; finished < REQUESTS; step++) {
        static token in[SLOTS * LENGTH];
        static token_out out[SLOTS * LENGTH];
        int cu_seqlens[SLOTS + 1] = {0}, slots[SLOTS], sequences = 0;
        for (int s = 0; s < SLOTS; s++) {
            if (owner[s] == NULL && next < REQUESTS && requests[next].arrives <= step) {
                owner[s] = &requests[next++];
                memset(pool[s], 0, sizeof pool[s]); /* what the previous owner left */
            }
            if (owner[s] == NULL) continue;
            const int first = cu_seqlens[sequences], done = owner[s]->done, count = done == 0 ? owner[s]->prompt : 1;
            memcpy(&in[first], &owner[s]->in[done], (size_t)count * sizeof(token));
            slots[sequences] = s;
            cu_seqlens[++sequences] = first + count;
        }
        gdn_params p = params_of(in, out, cu_seqlens[sequences], sequences, cu_seqlens);
        p.initial_state_source = gdn_pool_of(pool, GDN_F32, SLOTS);
        p.initial_state_indices = gdn_i32(slots);
        p.state_layout = GDN_STATE_KV;
        run(&p);

        printf("step %2d:", step);
        for (int n = 0; n < sequences; n++) {
            request *x = owner[slots[n]];
            const int count = cu_seqlens[n + 1] - cu_seqlens[n];
            memcpy(&x->out[x->done], &out[cu_seqlens[n]], (size_t)count * sizeof(token_out));
            x->done += count;
            printf("  request %d in slot %d: +%d", (int)(x - requests), slots[n], count);
            if (x->done < x->length) continue;
            owner[slots[n]] = NULL;
            finished++;
        }
        printf("\n");
    }

    for (int r = 0; r < REQUESTS; r++) {
        static token_out alone[LENGTH];
        const int cu_seqlens[] = {0, requests[r].length};
        const gdn_params p = params_of(requests[r].in, alone, requests[r].length, 1, cu_seqlens);
        run(&p);
        if (memcmp(alone, requests[r].out, (size_t)requests[r].length * sizeof(token_out)) != 0) {
            printf("FAILED: request %d differs from the same request alone\n", r);
            return 1;
        }
    }
    printf("OK: every request has the bits of the same request alone in one call\n");
    return 0;
}
