/*
 * A fixed-length batch [B,T] in bfloat16, without a state pool: every sequence starts from zeros.
 *
 * Checked against the float64 computation of the same bfloat16 inputs: the operator computes in float32 and rounds
 * once, on the way out, so each element is off by half a bfloat16 unit and the float32 error, no more.
 */
#define GDN_IMPLEMENTATION
#include "gdn_varlen.h"
#include <math.h>
#include <stdio.h>
#include <string.h>

enum { B = 2, T = 20, H = 2, HV = 4, K = 64, V = 32, O_SIZE = B * T * HV * V };

static float float_of_bf16(uint16_t half) {
    const uint32_t bits = (uint32_t)half << 16;
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

/* Seeded draws from [-1, 1) with seven bits each, which bfloat16 holds exactly. */
static void fill(uint16_t *x, size_t count, uint32_t seed) {
    for (size_t i = 0; i < count; i++) {
        seed = seed * 1664525u + 1013904223u;
        const float draw = (float)(seed >> 25) / 64.0f - 1.0f;
        uint32_t bits;
        memcpy(&bits, &draw, sizeof bits);
        x[i] = (uint16_t)(bits >> 16);
    }
}

int main(void) {
    static uint16_t q[B * T * H * K], k[B * T * H * K], v[B * T * HV * V], a[B * T * HV], b[B * T * HV];
    static uint16_t A_log[HV], dt_bias[HV], o[O_SIZE];
    static double exact[O_SIZE];
    fill(q, sizeof q / sizeof *q, 1);
    fill(k, sizeof k / sizeof *k, 2);
    fill(v, sizeof v / sizeof *v, 3);
    fill(a, sizeof a / sizeof *a, 4);
    fill(b, sizeof b / sizeof *b, 5);
    fill(A_log, HV, 6);
    fill(dt_bias, HV, 7);

    gdn_params p = {
        .batch_size = B,
        .seq_len = T,
        .num_key_heads = H,
        .num_value_heads = HV,
        .head_k_dim = K,
        .head_v_dim = V,
        .A_log = gdn_bf16(A_log),
        .a = gdn_bf16(a),
        .dt_bias = gdn_bf16(dt_bias),
        .q = gdn_bf16(q),
        .k = gdn_bf16(k),
        .v = gdn_bf16(v),
        .b = gdn_bf16(b),
        .o = gdn_out_bf16(o),
        .use_qk_l2norm_in_kernel = true,
    };
    gdn_error error;
    gdn_status status = gdn_fused_sigmoid_gating_delta_rule_update(&p, &error);
    if (status == GDN_OK) {
        p.compute = GDN_COMPUTE_F64;
        p.o = gdn_out_f64(exact);
        status = gdn_fused_sigmoid_gating_delta_rule_update(&p, &error);
    }
    if (status != GDN_OK) {
        printf("FAILED: %s: %s\n", error.argument, gdn_status_text(status));
        return 1;
    }

    double largest = 0, worst = 0;
    int num_wrong = 0;
    for (int i = 0; i < O_SIZE; i++) largest = fmax(largest, fabs(exact[i]));
    for (int i = 0; i < O_SIZE; i++) {
        int exponent;
        frexp(exact[i], &exponent); /* 8 bits of precision: half a unit is 2^-9 of the power of two above */
        const double distance = fabs((double)float_of_bf16(o[i]) - exact[i]);
        const double allowed = ldexp(1, exponent - 9) + 1e-6 * largest;
        if (!(distance <= allowed)) num_wrong++; /* NaN too */
        worst = fmax(worst, distance / allowed);
    }
    printf("o [%d,%d,%d,%d] in bfloat16, o[0][0][0][0] = %g\n", B, T, HV, V, (double)float_of_bf16(o[0]));
    printf("largest error: %.3f of the allowed half unit of bfloat16, plus 1e-6 of the largest output\n", worst);
    if (num_wrong > 0) {
        printf("FAILED: %d elements are further from float64 than one rounding\n", num_wrong);
        return 1;
    }
    printf("OK\n");
    return 0;
}
