#define GDN_IMPLEMENTATION
#include "gdn_varlen.h"
#include <stdio.h>

int main(void) {
    enum { TOKENS = 5, HEADS = 2, K = 8, V = 8 };
    static float q[TOKENS][HEADS][K], k[TOKENS][HEADS][K], v[TOKENS][HEADS][V], o[TOKENS][HEADS][V];
    static float a[TOKENS][HEADS], b[TOKENS][HEADS], A_log[HEADS], dt_bias[HEADS];
    const int cu_seqlens[] = {0, 3, 5};
    for (int t = 0; t < TOKENS; t++)
        for (int i = 0; i < K; i++) q[t][0][i] = k[t][0][i] = v[t][0][i] = 0.1f * (float)(t + i);

    gdn_params p = {0};
    p.batch_size = 1;
    p.seq_len = TOKENS;
    p.num_seqs = 2;
    p.num_key_heads = HEADS;
    p.num_value_heads = HEADS;
    p.head_k_dim = K;
    p.head_v_dim = V;
    p.cu_seqlens = gdn_i32(cu_seqlens);
    p.A_log = gdn_f32(A_log);
    p.dt_bias = gdn_f32(dt_bias);
    p.a = gdn_f32(a[0]);
    p.b = gdn_f32(b[0]);
    p.q = gdn_f32(q[0][0]);
    p.k = gdn_f32(k[0][0]);
    p.v = gdn_f32(v[0][0]);
    p.o = gdn_out_f32(o[0][0]);

    gdn_error error;
    if (gdn_fused_sigmoid_gating_delta_rule_update(&p, &error) != GDN_OK) {
        printf("%s: %s\n", error.argument, gdn_status_text(error.status));
        return 1;
    }
    printf("o[4][0][0] = %.9g\n", (double)o[4][0][0]);
    return 0;
}
