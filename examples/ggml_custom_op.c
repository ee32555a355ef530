/*
 * The operator inside a ggml graph, through ggml_custom_4d(): ggml's own threads run shares of the work items. It takes
 * the tensors of ggml_gated_delta_net() and is checked against it on the shapes of ggml's own test (normalised mean
 * squared error of outputs and states at most 1e-7), with one thread and with several (the same bits), and timed beside
 * it. Where ggml's operator copies the states into its result, this one reads slots of a pool and writes others.
 *
 *   ggml_custom_op [THREADS]
 */
#define GDN_IMPLEMENTATION
#include "gdn_varlen.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "ggml.h"
#include "ggml-cpu.h"

/* ---- The operator ----------------------------------------------------------------------------------- */

/* What the worker threads need beside the tensors; it must live as long as the graph. */
typedef struct gdn_ggml {
    size_t scratch_size; /* of each thread */
    char *scratch;
    gdn_error error; /* of the last run */
} gdn_ggml;

enum { Q, KEY, VALUE, GATE, BETA, POOL, START_SLOTS, STEP_SLOTS, NUM_SOURCES };

static gdn_tensor tensor_of(const struct ggml_tensor *x) {
    const gdn_tensor y = {x->data, GDN_F32, (ptrdiff_t)(x->nb[3] / sizeof(float)),
                          (ptrdiff_t)(x->nb[2] / sizeof(float)), (ptrdiff_t)(x->nb[1] / sizeof(float))};
    return y;
}

static gdn_params params_of(const struct ggml_tensor *dst) {
    struct ggml_tensor *const *src = dst->src;
    gdn_params p = {.batch_size = src[VALUE]->ne[3], .seq_len = src[VALUE]->ne[2]};
    gdn_preset(&p, GDN_SYSTEM_GGML);
    p.num_key_heads = src[KEY]->ne[1];
    p.num_value_heads = src[VALUE]->ne[1];
    p.head_k_dim = src[KEY]->ne[0];
    p.head_v_dim = src[VALUE]->ne[0];
    p.q = tensor_of(src[Q]);
    p.k = tensor_of(src[KEY]);
    p.v = tensor_of(src[VALUE]);
    p.a = tensor_of(src[GATE]);
    p.b = tensor_of(src[BETA]);
    p.o = gdn_output_of(dst->data, GDN_F32);
    p.initial_state_source = gdn_pool_of(src[POOL]->data, GDN_F32, src[POOL]->ne[3]);
    p.initial_state_indices = gdn_i32(src[START_SLOTS]->data);
    p.ssm_state_indices = gdn_indices_of(src[STEP_SLOTS]->data, GDN_I32, p.seq_len);
    p.is_kda = src[GATE]->ne[0] > 1;
    return p;
}

/* What ggml calls on each of its threads. */
static void compute(struct ggml_tensor *dst, int ith, int nth, void *userdata) {
    gdn_ggml *x = userdata;
    const gdn_params p = params_of(dst);
    gdn_error error;
    const gdn_status status = gdn_validate(&p, &error);
    if (ith == 0) x->error = error;
    if (status != GDN_OK) return;
    const ptrdiff_t items = gdn_num_work_items(&p);
    gdn_run_work_items(&p, items * ith / nth, items * (ith + 1) / nth, x->scratch + (size_t)ith * x->scratch_size,
                       x->scratch_size);
}

/* The node. q, k, v, g and beta as for ggml_gated_delta_net(); pool [S, S, heads, slots]; start_slots [seqs]:
 * where each sequence starts from; step_slots [tokens, seqs]: where the state after each token goes (-1: nowhere). The
 * result is [S * heads, tokens * seqs]. */
static struct ggml_tensor *gated_delta_net(struct ggml_context *context, struct ggml_tensor *const *sources,
                                           int threads, gdn_ggml *x) {
    const struct ggml_tensor *v = sources[VALUE];
    struct ggml_tensor *args[NUM_SOURCES], *dst;
    memcpy(args, sources, sizeof args);
    dst = ggml_custom_4d(context, GGML_TYPE_F32, v->ne[0] * v->ne[1], v->ne[2] * v->ne[3], 1, 1, args, NUM_SOURCES,
                         compute, GGML_N_TASKS_MAX, x);
    const gdn_params p = params_of(dst);
    x->scratch_size = gdn_scratch_size(&p);
    x->scratch = malloc((size_t)threads * x->scratch_size);
    return x->scratch == NULL ? NULL : dst;
}

/* ---- Beside ggml's own ------------------------------------------------------------------------------ */

typedef struct shape {
    int heads, size, tokens, seqs, repeat; /* value heads: heads * repeat */
    bool permuted, kda;
    int snapshots;
} shape;

static const shape tested[] = {
    {32, 128, 1, 1, 1, false, false, 1}, {32, 16, 1, 1, 1, false, false, 1},  {32, 16, 1, 1, 1, true, true, 1},
    {32, 16, 1, 1, 1, false, true, 1},   {16, 64, 1, 2, 1, false, false, 1},  {4, 64, 4, 1, 1, false, false, 1},
    {4, 64, 4, 2, 1, false, false, 1},   {8, 32, 4, 2, 2, false, false, 1},   {4, 64, 4, 2, 1, true, false, 1},
    {4, 64, 4, 1, 1, true, false, 1},    {4, 64, 1, 1, 1, false, true, 1},    {4, 64, 1, 2, 1, false, true, 1},
    {4, 16, 1, 2, 1, false, true, 1},    {4, 32, 4, 1, 1, false, true, 1},    {4, 64, 4, 2, 1, false, true, 1},
    {8, 32, 4, 2, 2, false, true, 1},    {4, 64, 4, 2, 1, true, true, 1},     {4, 16, 4, 2, 1, true, true, 1},
    {4, 64, 64, 1, 1, false, false, 1},  {4, 64, 127, 1, 1, false, false, 1}, {4, 64, 256, 1, 1, false, false, 1},
    {4, 64, 65, 1, 1, false, false, 1},  {4, 64, 100, 1, 1, false, false, 1}, {4, 64, 200, 1, 1, false, false, 1},
    {4, 64, 127, 2, 1, false, false, 1}, {4, 64, 64, 1, 1, false, true, 1},   {4, 64, 33, 1, 1, false, true, 1},
    {4, 64, 100, 1, 1, false, true, 1},  {4, 16, 2, 1, 1, false, false, 2},   {4, 32, 4, 1, 1, false, false, 4},
    {4, 64, 4, 2, 1, false, false, 4},   {8, 128, 4, 1, 1, false, false, 4},  {4, 64, 4, 2, 1, false, true, 4},
    {8, 32, 4, 2, 2, false, true, 4},    {4, 32, 8, 1, 1, false, false, 3},   {4, 64, 16, 2, 1, false, false, 4},
};

/* Of its performance test, and a batch that is decoded. */
static const shape timed[] = {
    {32, 128, 1, 1, 1, false, false, 1},   {32, 128, 1, 1, 1, false, true, 1},  {32, 128, 64, 1, 1, false, false, 1},
    {32, 128, 512, 1, 1, false, false, 1}, {32, 128, 64, 1, 1, false, true, 1}, {16, 128, 1, 32, 2, false, false, 1},
};

static uint32_t seed;

static void draw(struct ggml_tensor *x, double low, double high) {
    float *values = x->data;
    for (int64_t i = 0; i < ggml_nelements(x); i++) {
        seed = seed * 1664525u + 1013904223u;
        values[i] = (float)(low + (high - low) * (double)seed / 4294967296.0);
    }
}

static double error_of(const float *actual, const float *expected, int64_t count) {
    double squares = 0, all = 0;
    for (int64_t i = 0; i < count; i++) {
        const double e = (double)expected[i], difference = (double)actual[i] - e;
        squares += difference * difference;
        all += e * e;
    }
    return squares / all;
}

/* A graph, and the threads of ggml that run it. */
typedef struct runner {
    struct ggml_cgraph *graph;
    struct ggml_cplan plan;
} runner;

static void prepare(runner *r, struct ggml_context *context, struct ggml_tensor *result, int threads,
                    struct ggml_threadpool *pool) {
    r->graph = ggml_new_graph(context);
    ggml_build_forward_expand(r->graph, result);
    r->plan = ggml_graph_plan(r->graph, threads, pool);
    r->plan.work_data = malloc(r->plan.work_size + 1);
    if (r->plan.work_data == NULL) abort();
}

static double seconds_to_run(runner *r) {
    struct timespec begin, end;
    timespec_get(&begin, TIME_UTC);
    if (ggml_graph_compute(r->graph, &r->plan) != GGML_STATUS_SUCCESS) abort();
    timespec_get(&end, TIME_UTC);
    return (double)(end.tv_sec - begin.tv_sec) + 1e-9 * (double)(end.tv_nsec - begin.tv_nsec);
}

/* Both operators on one shape. The first run is for the results; its outputs and states go to `kept`, or are compared
 * with what is there. */
static bool compare(const shape *s, int threads, bool with_times, float **kept) {
    const int64_t S = s->size, H = s->heads, HV = H * s->repeat, T = s->tokens, N = s->seqs, K = s->snapshots;
    const size_t floats = (size_t)(2 * 2 * H * S * T * N + 4 * HV * S * T * N + (2 + 2 * K) * HV * S * S * N);
    const struct ggml_init_params memory = {.mem_size = sizeof(float) * floats + ((size_t)1 << 20)};
    struct ggml_context *context = ggml_init(memory);
    struct ggml_threadpool_params how = ggml_threadpool_params_default(threads);
    struct ggml_threadpool *pool = ggml_threadpool_new(&how);
    struct ggml_tensor *in[NUM_SOURCES];
    if (context == NULL || pool == NULL) abort();

    seed = 1; /* the same inputs for any number of threads */
    const int64_t heads[] = {H, H, HV};
    for (int i = Q; i <= VALUE; i++) {
        in[i] = s->permuted ? ggml_new_tensor_4d(context, GGML_TYPE_F32, S, T, heads[i], N)
                            : ggml_new_tensor_4d(context, GGML_TYPE_F32, S, heads[i], T, N);
        draw(in[i], i == VALUE ? -0.3 : -1.0, i == VALUE ? 5.0 : 1.0);
        if (s->permuted) in[i] = ggml_permute(context, in[i], 0, 2, 1, 3);
        if (i != VALUE) in[i] = ggml_l2_norm(context, in[i], 1e-6f);
    }
    draw(in[GATE] = ggml_new_tensor_4d(context, GGML_TYPE_F32, s->kda ? S : 1, HV, T, N), -20.0, -1e-4);
    draw(in[BETA] = ggml_new_tensor_4d(context, GGML_TYPE_F32, 1, HV, T, N), 0.0, 1.0);

    /* The first N slots hold the initial states; N for each snapshot follow, the newest first, as in ggml's result. */
    draw(in[POOL] = ggml_new_tensor_4d(context, GGML_TYPE_F32, S, S, HV, N * (1 + K)), -1.0, 1.0);
    in[START_SLOTS] = ggml_new_tensor_1d(context, GGML_TYPE_I32, N);
    in[STEP_SLOTS] = ggml_new_tensor_2d(context, GGML_TYPE_I32, T, N);
    for (int64_t n = 0; n < N; n++) {
        int32_t *slots = (int32_t *)in[STEP_SLOTS]->data + n * T;
        for (int64_t t = 0; t < T; t++) slots[t] = T - t <= K ? (int32_t)(N * (T - t) + n) : -1;
        ((int32_t *)in[START_SLOTS]->data)[n] = (int32_t)n;
    }

    gdn_ggml x = {0};
    runner ours, theirs;
    struct ggml_tensor *states =
        ggml_view_4d(context, in[POOL], S, S, HV, N, in[POOL]->nb[1], in[POOL]->nb[2], in[POOL]->nb[3], 0);
    struct ggml_tensor *expected =
        ggml_gated_delta_net(context, in[Q], in[KEY], in[VALUE], in[GATE], in[BETA], states, K);
    struct ggml_tensor *actual = gated_delta_net(context, in, threads, &x);
    if (actual == NULL) abort();
    prepare(&ours, context, actual, threads, pool);
    prepare(&theirs, context, expected, threads, pool);
    seconds_to_run(&ours);
    seconds_to_run(&theirs);
    bool good = x.error.status == GDN_OK;
    if (!good) printf("FAILED: %s: %s\n", x.error.argument, gdn_status_text(x.error.status));

    const int64_t outputs = S * HV * T * N, after = S * S * HV * N * (T < K ? T : K);
    const float *new_states = (const float *)in[POOL]->data + S * S * HV * N;
    const double o_error = error_of(actual->data, expected->data, outputs);
    const double state_error = error_of(new_states, (const float *)expected->data + outputs, after);
    good = good && o_error <= 1e-7 && state_error <= 1e-7;
    if (*kept == NULL) {
        *kept = malloc(sizeof(float) * (size_t)(outputs + after));
        if (*kept == NULL) abort();
        memcpy(*kept, actual->data, sizeof(float) * (size_t)outputs);
        memcpy(*kept + outputs, new_states, sizeof(float) * (size_t)after);
    } else if (memcmp(*kept, actual->data, sizeof(float) * (size_t)outputs) != 0 ||
               memcmp(*kept + outputs, new_states, sizeof(float) * (size_t)after) != 0) {
        printf("FAILED: other bits with %d threads\n", threads);
        good = false;
    }

    double best[2] = {INFINITY, INFINITY};
    for (double spent = 0; with_times && spent < 0.4;) {
        const double mine = seconds_to_run(&ours), other = seconds_to_run(&theirs);
        best[0] = fmin(best[0], mine);
        best[1] = fmin(best[1], other);
        spent += mine + other;
    }
    printf("%s%5d %4d %6d %4d %6d %8s %3s %9d %7d %9.1e %9.1e", good ? "" : "FAILED: ", s->heads, s->size, s->tokens,
           s->seqs, s->repeat, s->permuted ? "yes" : "", s->kda ? "yes" : "", s->snapshots, threads, o_error,
           state_error);
    if (with_times) printf(" %9.1f %9.1f %6.2f", 1e6 * best[0], 1e6 * best[1], best[1] / best[0]);
    printf("\n");
    free(x.scratch);
    free(ours.plan.work_data);
    free(theirs.plan.work_data);
    ggml_threadpool_free(pool);
    ggml_free(context);
    return good;
}

int main(int argc, char **argv) {
    const int threads = argc > 1 ? atoi(argv[1]) : 2;
    bool good = true;
    if (argc > 2 || threads < 1) return printf("usage: ggml_custom_op [THREADS]\n"), 2;
    printf("heads size tokens seqs repeat permuted kda snapshots threads  NMSE: o    states"
           "        us   us ggml  ratio\n");
    for (size_t i = 0; i < sizeof tested / sizeof tested[0]; i++) {
        float *kept = NULL;
        good = compare(&tested[i], 1, false, &kept) && good;
        if (threads > 1) good = compare(&tested[i], threads, false, &kept) && good;
        free(kept);
    }
    for (size_t i = 0; i < sizeof timed / sizeof timed[0]; i++) {
        float *kept = NULL;
        good = compare(&timed[i], threads, true, &kept) && good;
        free(kept);
    }
    printf(good ? "OK\n" : "FAILED\n");
    return good ? 0 : 1;
}
