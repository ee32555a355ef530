/*
 * The main demonstration: three sequences of different lengths, packed into one call, with a state pool.
 *
 * What it checks: a packed sequence has the bits of the same sequence alone, in the fixed-length form; float32 agrees
 * with float64; slots of the pool that no sequence uses keep their bits. Then it says what packing saved and how fast
 * this machine is. The last line is OK, or FAILED and what failed.
 */
#define GDN_IMPLEMENTATION
#include "gdn_varlen.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { SEQUENCES = 3, TOKENS = 115, LONGEST = 100, SLOTS = 6, H = 4, HV = 8, K = 128, V = 128, STATE = HV * K * V };

static const int lengths[SEQUENCES] = {5, 100, 10};
static const int cu_seqlens[SEQUENCES + 1] = {0, 5, 105, TOKENS};
static const int slots[SEQUENCES] = {4, 1, 3};

static float q[TOKENS][H][K], k[TOKENS][H][K], v[TOKENS][HV][V], a[TOKENS][HV], b[TOKENS][HV], A_log[HV], dt_bias[HV];
static float pool_before[SLOTS][STATE], pool[SLOTS][STATE], o[TOKENS][HV][V];
static double pool_f64[SLOTS][STATE], o_f64[TOKENS][HV][V];

static const char *failed; /* the first check that failed */

static void check(bool passed, const char *what) {
    if (!passed && failed == NULL) failed = what;
}

/* Seeded draws from [-1, 1). */
static void fill(float *x, size_t bytes) {
    static uint32_t seed = 1;
    for (size_t i = 0; i < bytes / sizeof *x; i++) {
        seed = seed * 1664525u + 1013904223u;
        x[i] = (float)(seed >> 8) / 8388608.0f - 1.0f;
    }
}

/* A call over inputs that begin at a token of the packed ones: one sequence of fixed length, for a start. */
static gdn_params params_from(int token, int count) {
    gdn_params p = {.batch_size = 1, .seq_len = count, .num_key_heads = H, .num_value_heads = HV};
    p.head_k_dim = K;
    p.head_v_dim = V;
    p.A_log = gdn_f32(A_log);
    p.dt_bias = gdn_f32(dt_bias);
    p.a = gdn_f32(a[token]);
    p.b = gdn_f32(b[token]);
    p.q = gdn_f32(q[token][0]);
    p.k = gdn_f32(k[token][0]);
    p.v = gdn_f32(v[token][0]);
    p.o = gdn_out_f32(o[0][0]);
    p.initial_state_source = gdn_pool_of(pool, GDN_F32, SLOTS);
    p.state_layout = GDN_STATE_KV;
    p.use_qk_l2norm_in_kernel = true;
    return p;
}

static gdn_params packed_params(void) {
    gdn_params p = params_from(0, TOKENS);
    p.num_seqs = SEQUENCES;
    p.cu_seqlens = gdn_i32(cu_seqlens);
    p.initial_state_indices = gdn_i32(slots);
    return p;
}

static void run(const gdn_params *p) {
    gdn_error error;
    if (gdn_fused_sigmoid_gating_delta_rule_update(p, &error) != GDN_OK) {
        printf("FAILED: %s: %s\n", error.argument, gdn_status_text(error.status));
        exit(1);
    }
}

static double element(const void *x, gdn_dtype dtype, size_t i) {
    return dtype == GDN_F64 ? ((const double *)x)[i] : (double)((const float *)x)[i];
}

/* The largest |x - y|, and that relative to the largest |y|. A NaN stays, and then passes no check. */
static double difference(const float *x, const void *y, gdn_dtype dtype, size_t count, double *relative) {
    double largest_difference = 0, largest = 0;
    for (size_t i = 0; i < count && !isnan(largest_difference); i++) {
        const double reference = element(y, dtype, i), d = fabs((double)x[i] - reference);
        if (!(d <= largest_difference)) largest_difference = d;
        if (fabs(reference) > largest) largest = fabs(reference);
    }
    if (relative != NULL) *relative = largest_difference / largest;
    return largest_difference;
}

static void show_shapes(void) {
    printf("Three sequences in one call: q, k [%d,%d,%d]  v, o [%d,%d,%d]  pool of %d states [%d,%d,%d]\n\n", TOKENS, H,
           K, TOKENS, HV, V, SLOTS, HV, K, V);
    printf("  sequence  slot   q, k          v, o          state\n");
    for (int n = 0; n < SEQUENCES; n++) {
        char q_shape[32], v_shape[32];
        snprintf(q_shape, sizeof q_shape, "[%d,%d,%d]", lengths[n], H, K);
        snprintf(v_shape, sizeof v_shape, "[%d,%d,%d]", lengths[n], HV, V);
        printf("  %8d  %4d   %-12s  %-12s  [%d,%d,%d]\n", n, slots[n], q_shape, v_shape, HV, K, V);
    }
}

static void show_differences(void) {
    memcpy(pool, pool_before, sizeof pool);
    gdn_params p = packed_params();
    run(&p);

    for (int s = 0; s < SLOTS; s++)
        for (int i = 0; i < STATE; i++) pool_f64[s][i] = (double)pool_before[s][i];
    p.compute = GDN_COMPUTE_F64;
    p.o = gdn_out_f64(o_f64[0][0]);
    p.initial_state_source = gdn_pool_of(pool_f64, GDN_F64, SLOTS);
    run(&p);

    printf("\nLargest difference between a packed sequence and\n\n");
    printf("            the same sequence alone,   its computation in float64,\n");
    printf("            in fixed-length form       relative to the largest element\n");
    printf("  sequence  o         final state      o         final state\n");
    bool used[SLOTS] = {false};
    for (int n = 0; n < SEQUENCES; n++) {
        static float o_alone[LONGEST][HV][V], state_alone[STATE];
        const int first = cu_seqlens[n], slot = slots[n];
        const size_t outputs = (size_t)lengths[n] * HV * V;
        used[slot] = true;
        memcpy(state_alone, pool_before[slot], sizeof state_alone);
        p = params_from(first, lengths[n]);
        p.o = gdn_out_f32(o_alone[0][0]);
        p.initial_state_source = gdn_pool_of(state_alone, GDN_F32, 1);
        run(&p);

        double o_error, state_error;
        const double o_change = difference(o[first][0], o_alone, GDN_F32, outputs, NULL);
        const double state_change = difference(pool[slot], state_alone, GDN_F32, STATE, NULL);
        difference(o[first][0], o_f64[first], GDN_F64, outputs, &o_error);
        difference(pool[slot], pool_f64[slot], GDN_F64, STATE, &state_error);
        printf("  %8d  %-8g  %-15g  %-8.1e  %.1e\n", n, o_change, state_change, o_error, state_error);
        check(memcmp(o[first], o_alone, outputs * sizeof(float)) == 0 && o_change == 0, "output, packed against alone");
        check(memcmp(pool[slot], state_alone, sizeof state_alone) == 0 && state_change == 0,
              "final state, packed against alone");
        check(o_error <= 1e-6, "output, float32 against float64");
        check(state_error <= 1e-6, "final state, float32 against float64");
    }

    printf("\nSlots that no sequence uses:");
    for (int s = 0; s < SLOTS; s++) {
        if (used[s]) continue;
        const bool same = memcmp(pool[s], pool_before[s], sizeof pool[s]) == 0;
        printf("  %d %s", s, same ? "unchanged" : "CHANGED");
        check(same, "a slot that no sequence uses changed");
    }
    printf("\n");
}

/* Repeats the call for half a second of processor time. */
static void show_speed(const char *what, const gdn_params *p) {
    const clock_t start = clock();
    clock_t elapsed;
    double tokens = 0;
    do {
        run(p);
        tokens += (double)(p->batch_size * p->seq_len);
        elapsed = clock() - start;
    } while (elapsed < CLOCKS_PER_SEC / 2);
    printf("  %-46s %9.0f tokens/s\n", what, tokens * (double)CLOCKS_PER_SEC / (double)elapsed);
}

int main(void) {
    fill(q[0][0], sizeof q);
    fill(k[0][0], sizeof k);
    fill(v[0][0], sizeof v);
    fill(a[0], sizeof a);
    fill(b[0], sizeof b);
    fill(A_log, sizeof A_log);
    fill(dt_bias, sizeof dt_bias);
    fill(pool_before[0], sizeof pool_before);

    show_shapes();
    show_differences();

    const int padded = SEQUENCES * LONGEST;
    printf("\nPacked: %d tokens. Padded to the longest: %d x %d = %d. Saved: %.1f %%\n", TOKENS, SEQUENCES, LONGEST,
           padded, 100.0 * (padded - TOKENS) / padded);

    printf("\nSpeed of one layer (H=%d HV=%d K=%d V=%d, float32) on one thread, instruction set %s:\n", H, HV, K, V,
           gdn_isa_name(gdn_isa_selected()));
    gdn_params p = packed_params();
    show_speed("prefill: the three sequences above", &p);
    p = params_from(0, SLOTS);
    p.batch_size = SLOTS; /* the first tokens as a batch of sequences, one token each */
    p.seq_len = 1;
    show_speed("decode: six sequences, one token each", &p);

    if (failed != NULL) {
        printf("\nFAILED: %s\n", failed);
        return 1;
    }
    printf("\nOK\n");
    return 0;
}
