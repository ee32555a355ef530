/*
 * Stated error: how far the float32 computation is from float64, as a table in Markdown, over data as models have it.
 * SPDX-License-Identifier: MIT
 *
 *     accuracy [--quick]        sequences of up to 65536 tokens, which takes minutes; quick: of up to 128
 *
 * max: the largest error, relative to the largest element; L2: the root mean square error, relative to the root mean
 * square; least: L2 of a state computed in float64 and rounded once a token to what it is kept in, which is what the
 * recurrence makes of rounding alone. Exit status 1 where an error is larger than stated.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "elements.h"
#include "gdn_varlen.h"
#include "rng.h"

enum { H = 1, HV = 2, TOKENS = 512 };

typedef struct errors {
    double max, l2;
} errors;

/* One row of the table. The state is carried from call to call where `steps` is set: one token each, as in decoding. */
typedef struct row {
    const char *gate; /* see draw_gates() */
    int K, V, T;
    gdn_state_layout layout;
    gdn_dtype inputs, state, output;
    bool steps;
    gdn_compute compute;
    double longest; /* keys of any length up to this one, with beta up to 2; 0: normalised */
    double slow;    /* every log decay is this one, and beta 0.01, so that little is overwritten; 0: as `gate` says */
} row;

#define TOKEN_BY_TOKEN GDN_COMPUTE_F32, 0, 0
#define IN_CHUNKS GDN_COMPUTE_F32_CHUNKS, 0, 0
static const row rows[] = {
    /* Length. */
    {"head", 128, 64, 1, GDN_STATE_KV, GDN_F32, GDN_F32, GDN_F32, false, TOKEN_BY_TOKEN},
    {"head", 128, 64, 16, GDN_STATE_KV, GDN_F32, GDN_F32, GDN_F32, false, TOKEN_BY_TOKEN},
    {"head", 128, 64, 256, GDN_STATE_KV, GDN_F32, GDN_F32, GDN_F32, false, TOKEN_BY_TOKEN},
    {"head", 128, 64, 4096, GDN_STATE_KV, GDN_F32, GDN_F32, GDN_F32, false, TOKEN_BY_TOKEN},
    {"head", 128, 64, 65536, GDN_STATE_KV, GDN_F32, GDN_F32, GDN_F32, false, TOKEN_BY_TOKEN},
    {"head", 128, 64, 1, GDN_STATE_VK, GDN_F32, GDN_F32, GDN_F32, false, TOKEN_BY_TOKEN},
    {"head", 128, 64, 256, GDN_STATE_VK, GDN_F32, GDN_F32, GDN_F32, false, TOKEN_BY_TOKEN},
    {"head", 128, 64, 65536, GDN_STATE_VK, GDN_F32, GDN_F32, GDN_F32, false, TOKEN_BY_TOKEN},
    {"channel", 128, 64, 1, GDN_STATE_KV, GDN_F32, GDN_F32, GDN_F32, false, TOKEN_BY_TOKEN},
    {"channel", 128, 64, 256, GDN_STATE_KV, GDN_F32, GDN_F32, GDN_F32, false, TOKEN_BY_TOKEN},
    {"channel", 128, 64, 65536, GDN_STATE_KV, GDN_F32, GDN_F32, GDN_F32, false, TOKEN_BY_TOKEN},
    {"channel", 128, 64, 256, GDN_STATE_VK, GDN_F32, GDN_F32, GDN_F32, false, TOKEN_BY_TOKEN},
    {"none", 128, 64, 256, GDN_STATE_KV, GDN_F32, GDN_F32, GDN_F32, false, TOKEN_BY_TOKEN},
    {"none", 128, 64, 65536, GDN_STATE_KV, GDN_F32, GDN_F32, GDN_F32, false, TOKEN_BY_TOKEN},
    /* Size. */
    {"head", 16, 64, 1024, GDN_STATE_KV, GDN_F32, GDN_F32, GDN_F32, false, TOKEN_BY_TOKEN},
    {"head", 64, 64, 1024, GDN_STATE_KV, GDN_F32, GDN_F32, GDN_F32, false, TOKEN_BY_TOKEN},
    {"head", 128, 64, 1024, GDN_STATE_KV, GDN_F32, GDN_F32, GDN_F32, false, TOKEN_BY_TOKEN},
    {"head", 256, 64, 1024, GDN_STATE_KV, GDN_F32, GDN_F32, GDN_F32, false, TOKEN_BY_TOKEN},
    {"head", 256, 64, 1024, GDN_STATE_VK, GDN_F32, GDN_F32, GDN_F32, false, TOKEN_BY_TOKEN},
    {"channel", 256, 64, 1024, GDN_STATE_KV, GDN_F32, GDN_F32, GDN_F32, false, TOKEN_BY_TOKEN},
    /* Dtypes. */
    {"head", 128, 64, 1024, GDN_STATE_KV, GDN_BF16, GDN_F32, GDN_F32, false, TOKEN_BY_TOKEN},
    {"head", 128, 64, 1024, GDN_STATE_KV, GDN_F16, GDN_F32, GDN_F32, false, TOKEN_BY_TOKEN},
    {"channel", 128, 64, 1024, GDN_STATE_VK, GDN_BF16, GDN_F32, GDN_F32, false, TOKEN_BY_TOKEN},
    {"head", 128, 64, 1024, GDN_STATE_KV, GDN_BF16, GDN_F32, GDN_BF16, false, TOKEN_BY_TOKEN},
    {"head", 128, 64, 1024, GDN_STATE_KV, GDN_F16, GDN_F32, GDN_F16, false, TOKEN_BY_TOKEN},
    {"head", 128, 64, 1024, GDN_STATE_KV, GDN_BF16, GDN_BF16, GDN_BF16, false, TOKEN_BY_TOKEN},
    /* Half-precision states, read back at every token. */
    {"head", 128, 64, 1024, GDN_STATE_KV, GDN_BF16, GDN_F32, GDN_F32, true, TOKEN_BY_TOKEN},
    {"head", 128, 64, 1024, GDN_STATE_KV, GDN_BF16, GDN_BF16, GDN_F32, true, TOKEN_BY_TOKEN},
    {"head", 128, 64, 1024, GDN_STATE_VK, GDN_BF16, GDN_BF16, GDN_F32, true, TOKEN_BY_TOKEN},
    {"head", 128, 64, 1024, GDN_STATE_KV, GDN_F16, GDN_F16, GDN_F32, true, TOKEN_BY_TOKEN},
    /* In chunks. Both layouts give the same bits. */
    {"head", 128, 64, 16, GDN_STATE_KV, GDN_F32, GDN_F32, GDN_F32, false, IN_CHUNKS},
    {"head", 128, 64, 256, GDN_STATE_KV, GDN_F32, GDN_F32, GDN_F32, false, IN_CHUNKS},
    {"head", 128, 64, 65536, GDN_STATE_VK, GDN_F32, GDN_F32, GDN_F32, false, IN_CHUNKS},
    {"channel", 128, 64, 256, GDN_STATE_KV, GDN_F32, GDN_F32, GDN_F32, false, IN_CHUNKS},
    {"channel", 128, 64, 65536, GDN_STATE_VK, GDN_F32, GDN_F32, GDN_F32, false, IN_CHUNKS},
    {"none", 128, 64, 65536, GDN_STATE_KV, GDN_F32, GDN_F32, GDN_F32, false, IN_CHUNKS},
    {"any", 128, 64, 4096, GDN_STATE_KV, GDN_F32, GDN_F32, GDN_F32, false, IN_CHUNKS},
    {"any, channel", 128, 64, 4096, GDN_STATE_KV, GDN_F32, GDN_F32, GDN_F32, false, IN_CHUNKS},
    {"tiny", 128, 64, 256, GDN_STATE_KV, GDN_F32, GDN_F32, GDN_F32, false, IN_CHUNKS},
    {"tiny, channel", 128, 64, 256, GDN_STATE_KV, GDN_F32, GDN_F32, GDN_F32, false, IN_CHUNKS},
    {"head", 16, 64, 1024, GDN_STATE_KV, GDN_F32, GDN_F32, GDN_F32, false, IN_CHUNKS},
    {"head", 256, 64, 1024, GDN_STATE_KV, GDN_F32, GDN_F32, GDN_F32, false, IN_CHUNKS},
    {"head", 128, 64, 1024, GDN_STATE_VK, GDN_BF16, GDN_F32, GDN_BF16, false, IN_CHUNKS},
    /* Keys that are not normalised: token by token, and in chunks. */
    {"half", 128, 64, 256, GDN_STATE_KV, GDN_F32, GDN_F32, GDN_F32, false, GDN_COMPUTE_F32, 1, 0},
    {"half", 128, 64, 256, GDN_STATE_KV, GDN_F32, GDN_F32, GDN_F32, false, GDN_COMPUTE_F32_CHUNKS, 1, 0},
    {"half", 128, 64, 256, GDN_STATE_KV, GDN_F32, GDN_F32, GDN_F32, false, GDN_COMPUTE_F32, 2, 0},
    {"half", 128, 64, 256, GDN_STATE_KV, GDN_F32, GDN_F32, GDN_F32, false, GDN_COMPUTE_F32_CHUNKS, 2, 0},
    {"half", 128, 64, 16, GDN_STATE_KV, GDN_F32, GDN_F32, GDN_F32, false, GDN_COMPUTE_F32, 4, 0},
    {"half", 128, 64, 16, GDN_STATE_KV, GDN_F32, GDN_F32, GDN_F32, false, GDN_COMPUTE_F32_CHUNKS, 4, 0},
    {"tiny", 128, 64, 256, GDN_STATE_KV, GDN_F32, GDN_F32, GDN_F32, false, GDN_COMPUTE_F32, 4, 0},
    {"tiny", 128, 64, 256, GDN_STATE_KV, GDN_F32, GDN_F32, GDN_F32, false, GDN_COMPUTE_F32_CHUNKS, 4, 0},
    /* Slow, constant decays: what their rounding adds up to. */
    {"slow", 32, 8, 1024, GDN_STATE_KV, GDN_F32, GDN_F32, GDN_F32, false, GDN_COMPUTE_F32, 0, -1e-3},
    {"slow", 32, 8, 1000000, GDN_STATE_KV, GDN_F32, GDN_F32, GDN_F32, false, GDN_COMPUTE_F32, 0, -1e-2},
    {"slow", 32, 8, 1000000, GDN_STATE_KV, GDN_F32, GDN_F32, GDN_F32, false, GDN_COMPUTE_F32, 0, -1e-3},
    {"slow", 32, 8, 1000000, GDN_STATE_VK, GDN_F32, GDN_F32, GDN_F32, false, GDN_COMPUTE_F32, 0, -1e-4},
    {"slow", 32, 8, 1000000, GDN_STATE_KV, GDN_F32, GDN_F32, GDN_F32, false, GDN_COMPUTE_F32_CHUNKS, 0, -1e-4},
    {"slow", 32, 8, 1000000, GDN_STATE_KV, GDN_F32, GDN_F32, GDN_F32, false, GDN_COMPUTE_F32, 0, -3e-8},
};

static const char *dtype_name(gdn_dtype dtype) {
    return dtype == GDN_F32 ? "float32" : dtype == GDN_BF16 ? "bfloat16" : "float16";
}

/* ==== the data ===================================================================================== */

static void *allocate(size_t count, gdn_dtype dtype) {
    void *data = calloc(count, element_size((element)dtype));
    if (!data) exit((perror("accuracy"), 2));
    return data;
}

static void put(void *data, gdn_dtype dtype, ptrdiff_t i, double value) {
    element_store((element)dtype, (char *)data + (size_t)i * element_size((element)dtype), value);
}

static double get(const void *data, gdn_dtype dtype, ptrdiff_t i) {
    return element_load((element)dtype, (const char *)data + (size_t)i * element_size((element)dtype));
}

static gdn_tensor normals(rng *r, ptrdiff_t count, gdn_dtype dtype) {
    void *data = allocate((size_t)count, dtype);
    for (ptrdiff_t i = 0; i < count; i++) put(data, dtype, i, rng_normal(r));
    return gdn_tensor_of(data, dtype);
}

/* A call with its inputs, and the states before it in float64. */
typedef struct workload {
    gdn_params p;
    ptrdiff_t tokens, state_size; /* of all sequences */
    double *states;
} workload;

/* One decay for each head, or ("channel") for each K row: drawn as a model has them; "none": 1, the state never fades;
 * "any": a fifth of them 0, 1, 2^-30 each, the rest between; "tiny": 2^-30; "half": between 0.25 and 0.75. */
static void draw_gates(gdn_params *p, rng *r, const char *kind, ptrdiff_t count) {
    void *a = (void *)(uintptr_t)p->a.data;
    if (strncmp(kind, "head", 4) == 0 || strncmp(kind, "channel", 7) == 0 || strcmp(kind, "slow") == 0) return;
    p->gate_input = GDN_GATE_DECAY;
    for (ptrdiff_t i = 0; i < count; i++) {
        const double fixed[] = {0, 1, 0x1p-30, rng_uniform(r, 0, 1), rng_uniform(r, 0, 1)};
        double decay = 1;
        if (strncmp(kind, "any", 3) == 0) decay = fixed[rng_below(r, 5)];
        if (strncmp(kind, "tiny", 4) == 0) decay = 0x1p-30;
        if (strncmp(kind, "half", 4) == 0) decay = rng_uniform(r, 0.25, 0.75);
        put(a, p->a.dtype, i, decay);
    }
}

/* Rows of K elements get any length up to the longest. */
static void lengthen(const gdn_tensor *x, rng *r, ptrdiff_t rows_of_k, int K, double longest) {
    for (ptrdiff_t i = 0; i < rows_of_k; i++) {
        double squares = 0;
        for (int j = 0; j < K; j++) squares += pow(get(x->data, x->dtype, i * K + j), 2);
        const double factor = rng_uniform(r, 0, longest) / sqrt(squares);
        for (int j = 0; j < K; j++)
            put((void *)(uintptr_t)x->data, x->dtype, i * K + j, factor * get(x->data, x->dtype, i * K + j));
    }
}

/* As Qwen3-Next is initialised: A uniform in [1, 16], dt log-uniform in [0.001, 0.1], everything else normal. */
static workload workload_new(const row *x, ptrdiff_t number) {
    rng r = rng_stream(&number, 1);
    const bool channel = strstr(x->gate, "channel") != NULL;
    const ptrdiff_t N = x->T < TOKENS ? TOKENS / x->T : 1, tokens = N * x->T, gates = HV * (channel ? x->K : 1);
    workload w = {.tokens = tokens, .state_size = N * HV * x->K * x->V};
    float *A_log = (float *)allocate(HV, GDN_F32), *dt_bias = (float *)allocate((size_t)gates, GDN_F32);
    for (int i = 0; i < HV; i++) A_log[i] = (float)log(rng_uniform(&r, 1, 16));
    for (ptrdiff_t i = 0; i < gates; i++) dt_bias[i] = (float)log(expm1(exp(rng_uniform(&r, log(1e-3), log(1e-1)))));

    gdn_params *p = &w.p;
    p->batch_size = N, p->seq_len = x->T;
    p->num_key_heads = H, p->num_value_heads = HV, p->head_k_dim = x->K, p->head_v_dim = x->V;
    p->is_kda = channel;
    p->use_qk_l2norm_in_kernel = x->longest == 0;
    p->allow_neg_eigval = x->longest > 0;
    p->state_layout = x->layout;
    p->q = normals(&r, tokens * H * x->K, x->inputs);
    p->k = normals(&r, tokens * H * x->K, x->inputs);
    p->v = normals(&r, tokens * HV * x->V, x->inputs);
    p->b = normals(&r, tokens * HV, x->inputs);
    p->a = normals(&r, tokens * gates, x->inputs);
    p->A_log = gdn_f32(A_log);
    p->dt_bias = gdn_f32(dt_bias);
    draw_gates(p, &r, x->gate, tokens * gates);
    for (ptrdiff_t i = 0; i < tokens * HV && x->slow < 0; i++) {
        put((void *)(uintptr_t)p->a.data, x->inputs, i, x->slow);
        put((void *)(uintptr_t)p->b.data, x->inputs, i, 0.01);
        p->gate_input = GDN_GATE_LOG, p->beta_input = GDN_BETA_GIVEN;
    }
    if (x->longest > 0) lengthen(&p->k, &r, tokens * H, x->K, x->longest);
    w.states = (double *)allocate((size_t)w.state_size, GDN_F64);
    for (ptrdiff_t i = 0; i < w.state_size; i++) put(w.states, GDN_F64, i, 0.1 * rng_normal(&r));
    /* All computations start from the same numbers. */
    for (ptrdiff_t i = 0; i < w.state_size; i++) {
        double rounded;
        put(&rounded, x->state, 0, w.states[i]);
        w.states[i] = get(&rounded, x->state, 0);
    }
    return w;
}

static void workload_free(workload *w) {
    const gdn_tensor *const all[] = {&w->p.q, &w->p.k, &w->p.v, &w->p.a, &w->p.b, &w->p.A_log, &w->p.dt_bias};
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++) free((void *)(uintptr_t)all[i]->data);
    free(w->states);
}

/* ==== one computation ============================================================================== */

typedef struct results {
    gdn_dtype output, state;
    void *o, *states;
} results;

static gdn_tensor from_token(gdn_tensor x, ptrdiff_t t, ptrdiff_t width, ptrdiff_t T) {
    x.data = (const char *)x.data + (size_t)(t * width) * element_size((element)x.dtype);
    x.batch_stride = T * width;
    return x;
}

static void call(const gdn_params *p) {
    gdn_error error;
    if (gdn_fused_sigmoid_gating_delta_rule_update(p, &error) == GDN_OK) return;
    fprintf(stderr, "accuracy: %s: %s\n", error.argument, gdn_status_text(error.status));
    exit(2);
}

static results compute(const workload *w, gdn_compute compute, gdn_dtype output, gdn_dtype state, bool steps) {
    const ptrdiff_t T = w->p.seq_len, K = w->p.head_k_dim, V = w->p.head_v_dim, gates = HV * (w->p.is_kda ? K : 1);
    results y = {output, state, allocate((size_t)(w->tokens * HV * V), output), allocate((size_t)w->state_size, state)};
    for (ptrdiff_t i = 0; i < w->state_size; i++) put(y.states, state, i, w->states[i]);
    gdn_params p = w->p;
    p.compute = compute;
    p.initial_state_source = gdn_pool_of(y.states, state, p.batch_size);
    p.o = gdn_output_of(y.o, output);
    if (!steps) return call(&p), y;
    p.seq_len = 1;
    for (ptrdiff_t t = 0; t < T; t++) {
        p.q = from_token(w->p.q, t, H * K, T);
        p.k = from_token(w->p.k, t, H * K, T);
        p.v = from_token(w->p.v, t, HV * V, T);
        p.b = from_token(w->p.b, t, HV, T);
        p.a = from_token(w->p.a, t, gates, T);
        p.o.data = (char *)y.o + (size_t)(t * HV * V) * element_size((element)output);
        p.o.batch_stride = T * HV * V;
        call(&p);
    }
    return y;
}

static void results_free(results *x) {
    free(x->o);
    free(x->states);
}

static errors compare(const void *x, gdn_dtype dtype, const void *truth, ptrdiff_t count) {
    double largest = 0, worst = 0, sum = 0, squares = 0;
    for (ptrdiff_t i = 0; i < count; i++) {
        const double exact = get(truth, GDN_F64, i), off = fabs(get(x, dtype, i) - exact);
        largest = fmax(largest, fabs(exact));
        worst = off <= worst ? worst : off; /* a NaN stays */
        sum += exact * exact;
        squares += off * off;
    }
    return (errors){worst / largest, sqrt(squares / sum)};
}

/* ==== the table ==================================================================================== */

/* What is stated of a float32 result; a 16-bit one is rounded once more. A decay near 1 is rounded by up to 2^-25,
 * alike in each token that is remembered. */
static bool within(errors x, gdn_dtype dtype, const row *y) {
    const double half = dtype == GDN_BF16 ? 0x1p-8 : dtype == GDN_F16 ? 0x1p-11 : 0;
    const double decays = y->slow < 0 ? 0x1p-25 * fmin(y->T, -1 / y->slow) : 0;
    return x.max <= 1e-6 + half + decays && x.l2 <= 5e-7 + half + decays;
}

/* No growth beyond what the recurrence makes of a state that is rounded once a token, and otherwise exact. */
static bool near_least(errors x, errors least) { return x.l2 <= 3 * least.l2 + 5e-8; }

static int print_row(const row *x, ptrdiff_t number) {
    workload w = workload_new(x, number);
    results truth = compute(&w, GDN_COMPUTE_F64, GDN_F64, GDN_F64, false);
    results ours = compute(&w, x->compute, x->output, x->state, x->steps);
    results rounded = compute(&w, GDN_COMPUTE_F64, GDN_F64, x->steps ? x->state : GDN_F32, true);
    const errors o = compare(ours.o, ours.output, truth.o, w.tokens * HV * x->V);
    const errors s = compare(ours.states, ours.state, truth.states, w.state_size);
    const errors least = compare(rounded.states, rounded.state, truth.states, w.state_size);
    const bool half_read_back = x->steps && x->state != GDN_F32, half_stored = !x->steps && x->state != GDN_F32;
    const bool ok = (half_read_back || (within(o, x->output, x) && within(s, x->state, x))) &&
                    (half_stored || x->slow < 0 || near_least(s, least));
    char gate[64];
    if (x->slow < 0)
        snprintf(gate, sizeof gate, "%s, %g", x->gate, x->slow);
    else
        snprintf(gate, sizeof gate, x->longest > 0 ? "%s; keys to %g" : "%s", x->gate, x->longest);
    printf("| %s | %d | %d | %s | %s | %s | %s%s | %s | %.1e | %.1e | %.1e | %.1e | %.1e |%s\n",
           x->compute == GDN_COMPUTE_F32 ? "tokens" : "chunks", x->T, x->K,
           x->layout == GDN_STATE_KV ? "`[K,V]`" : "`[V,K]`", gate, dtype_name(x->inputs), dtype_name(x->state),
           x->steps ? ", each token" : "", dtype_name(x->output), o.max, o.l2, s.max, s.l2, least.l2,
           ok ? "" : " FAILED");
    fflush(stdout);
    results_free(&truth);
    results_free(&ours);
    results_free(&rounded);
    workload_free(&w);
    return !ok;
}

int main(int argc, char **argv) {
    const bool quick = argc > 1 && strcmp(argv[1], "--quick") == 0;
    int failures = 0;
    if (argc > 2 || (argc == 2 && !quick)) return fprintf(stderr, "usage: %s [--quick]\n", argv[0]), 2;
    puts("| in | T | K | states | gate | inputs | state kept in | output | o: max | o: L2 | state: max | state: L2 "
         "| least |");
    puts("|---|---|---|---|---|---|---|---|---|---|---|---|---|");
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        row x = rows[i];
        if (quick && x.T > 1024) continue;
        if (quick && x.T > 128) x.T = 128;
        failures += print_row(&x, (ptrdiff_t)i);
    }
    printf("\n%d rows above what is stated\n", failures);
    return failures > 0;
}
