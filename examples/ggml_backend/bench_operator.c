/*
 * The operator on ggml's CPU backend and on the one of ggml_gdn.c, in turn, on the same tensors: a line for each shape
 * with both times (the best of the rounds), their ratio, the error against the other one, and whether the backend takes
 * the shape in a graph. Exit status 1: an error of more than 1e-7, or a shape that it takes is slower.
 *
 *   bench_operator LIBRARY [THREADS [SECONDS]]       SECONDS for each shape, default 0.5
 */
#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "ggml-alloc.h"
#include "ggml-backend.h"
#include "ggml.h"

typedef struct shape {
    int64_t key_heads, heads, size, tokens, seqs, snapshots;
    bool kda;
} shape;

static const shape shapes[] = {
    {32, 32, 128, 1, 1, 1, false},   {16, 32, 128, 1, 1, 1, false},  {16, 16, 128, 1, 1, 1, false},
    {32, 32, 128, 1, 1, 1, true},    {16, 32, 128, 1, 8, 1, false},  {16, 32, 128, 1, 32, 1, false},
    {16, 32, 128, 1, 1, 4, false},   {8, 8, 128, 1, 1, 1, false},    {16, 16, 64, 1, 1, 1, false},
    {16, 16, 64, 2, 1, 1, false},    {4, 4, 64, 1, 1, 1, false},     {4, 4, 16, 1, 1, 1, false},
    {16, 16, 16, 1, 32, 1, true},    {16, 16, 24, 1, 16, 1, false},  {16, 16, 8, 32, 4, 1, false},
    {16, 32, 128, 2, 1, 1, false},   {16, 32, 128, 4, 1, 1, false},  {16, 32, 128, 7, 1, 1, false},
    {16, 32, 128, 8, 1, 1, false},   {16, 32, 128, 16, 1, 1, false}, {16, 32, 128, 32, 1, 1, false},
    {32, 32, 128, 4, 1, 1, true},    {32, 32, 128, 8, 1, 1, true},   {16, 32, 128, 4, 8, 1, false},
    {16, 32, 128, 8, 8, 1, false},   {16, 16, 64, 4, 1, 1, false},   {16, 16, 64, 8, 1, 1, false},
    {16, 16, 64, 16, 1, 1, false},   {32, 32, 64, 8, 4, 1, false},   {32, 32, 64, 32, 1, 4, false},
    {16, 32, 128, 2, 1, 2, false},   {16, 32, 128, 4, 1, 4, false},  {16, 32, 128, 8, 1, 8, false},
    {16, 32, 128, 4, 8, 4, false},   {32, 32, 128, 4, 1, 4, true},   {16, 32, 128, 8, 1, 4, false},
    {16, 32, 128, 64, 1, 4, false},  {16, 32, 128, 64, 1, 1, false}, {16, 32, 128, 512, 1, 1, false},
    {16, 32, 128, 128, 4, 1, false}, {32, 32, 128, 64, 1, 1, true},  {32, 32, 128, 512, 1, 1, true},
};

static uint32_t seed = 1;

static struct ggml_tensor *input(struct ggml_context *context, int64_t n0, int64_t n1, int64_t n2, int64_t n3) {
    return ggml_new_tensor_4d(context, GGML_TYPE_F32, n0, n1, n2, n3);
}

/* Uniform; `unit`: rows of length 1, as llama.cpp normalises q and k. */
static void draw(struct ggml_tensor *x, double low, double high, bool unit) {
    float *values = x->data;
    for (int64_t i = 0; i < ggml_nelements(x); i++) {
        seed = seed * 1664525u + 1013904223u;
        values[i] = (float)(low + (high - low) * (double)seed / 4294967296.0);
    }
    for (int64_t row = 0; unit && row < ggml_nrows(x); row++, values += x->ne[0]) {
        double sum = 0;
        for (int64_t i = 0; i < x->ne[0]; i++) sum += (double)values[i] * (double)values[i];
        for (int64_t i = 0; i < x->ne[0]; i++) values[i] = (float)((double)values[i] / sqrt(sum));
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

static double seconds_to_run(ggml_backend_t backend, struct ggml_cgraph *graph) {
    struct timespec begin, end;
    timespec_get(&begin, TIME_UTC);
    if (ggml_backend_graph_compute(backend, graph) != GGML_STATUS_SUCCESS) exit(1);
    timespec_get(&end, TIME_UTC);
    return (double)(end.tv_sec - begin.tv_sec) + 1e-9 * (double)(end.tv_nsec - begin.tv_nsec);
}

static bool run(const shape *s, ggml_backend_t cpu, ggml_backend_t gdn, double seconds) {
    const struct ggml_init_params memory = {.mem_size = 32 * ggml_tensor_overhead() + ggml_graph_overhead(),
                                            .no_alloc = true};
    struct ggml_context *context = ggml_init(memory);
    struct ggml_tensor *q = input(context, s->size, s->key_heads, s->tokens, s->seqs);
    struct ggml_tensor *k = input(context, s->size, s->key_heads, s->tokens, s->seqs);
    struct ggml_tensor *v = input(context, s->size, s->heads, s->tokens, s->seqs);
    struct ggml_tensor *g = input(context, s->kda ? s->size : 1, s->heads, s->tokens, s->seqs);
    struct ggml_tensor *beta = input(context, 1, s->heads, s->tokens, s->seqs);
    struct ggml_tensor *states = input(context, s->size, s->size, s->heads, s->seqs);
    struct ggml_tensor *result = ggml_gated_delta_net(context, q, k, v, g, beta, states, s->snapshots);
    struct ggml_cgraph *graph = ggml_new_graph(context);
    ggml_build_forward_expand(graph, result);
    ggml_backend_buffer_t buffer = ggml_backend_alloc_ctx_tensors(context, cpu);
    if (buffer == NULL) abort();
    draw(q, -1, 1, true);
    draw(k, -1, 1, true);
    draw(v, -0.3, 5, false);
    draw(g, -2, -1e-4, false);
    draw(beta, 0, 1, false);
    draw(states, -1, 1, false);

    /* What ggml leaves unwritten, where there are fewer tokens than snapshots, nobody may write. */
    const size_t size = ggml_nbytes(result);
    float *expected = malloc(size);
    if (expected == NULL) abort();
    memset(result->data, 0x40, size);
    seconds_to_run(cpu, graph);
    memcpy(expected, result->data, size);
    memset(result->data, 0x40, size);
    seconds_to_run(gdn, graph);
    const int64_t outputs = ggml_nelements(v), of_states = ggml_nelements(states);
    const int64_t written = s->tokens < s->snapshots ? s->tokens : s->snapshots, end = outputs + written * of_states;
    const double o_error = error_of(result->data, expected, outputs);
    const double state_error = error_of((float *)result->data + outputs, expected + outputs, written * of_states);
    bool good = o_error <= 1e-7 && state_error <= 1e-7 &&
                memcmp((float *)result->data + end, expected + end, size - (size_t)end * sizeof *expected) == 0;
    free(expected);

    /* A shape that it takes and that looks slower gets more rounds: other programs may have been in the way. */
    const bool taken = ggml_backend_supports_op(gdn, result);
    double best[2] = {HUGE_VAL, HUGE_VAL};
    for (double spent = 0; spent < seconds || (taken && best[1] < best[0] && spent < 30 * seconds);) {
        const double here = seconds_to_run(gdn, graph), there = seconds_to_run(cpu, graph);
        best[0] = fmin(best[0], here);
        best[1] = fmin(best[1], there);
        spent += here + there;
    }
    const double ratio = best[1] / best[0];
    if (taken && ratio < 0.95) good = false;
    printf("%4d %5d %4d %6d %4d %9d %3s %9.1f %9.1f %6.2f %5s %8.1e %8.1e%s\n", (int)s->key_heads, (int)s->heads,
           (int)s->size, (int)s->tokens, (int)s->seqs, (int)s->snapshots, s->kda ? "yes" : "", 1e6 * best[0],
           1e6 * best[1], ratio, taken ? "yes" : "", o_error, state_error, good ? "" : "  FAILED");
    fflush(stdout);
    ggml_backend_buffer_free(buffer);
    ggml_free(context);
    return good;
}

/* A backend of the device, with that many threads. */
static ggml_backend_t backend_of(ggml_backend_dev_t device, int threads) {
    ggml_backend_t backend = device == NULL ? NULL : ggml_backend_dev_init(device, NULL);
    if (backend == NULL) return NULL;
    void *address =
        ggml_backend_reg_get_proc_address(ggml_backend_dev_backend_reg(device), "ggml_backend_set_n_threads");
    ggml_backend_set_n_threads_t set_n_threads;
    memcpy(&set_n_threads, &address, sizeof address);
    if (set_n_threads == NULL) return NULL;
    set_n_threads(backend, threads);
    return backend;
}

int main(int argc, char **argv) {
    if (argc < 2 || argc > 4) return printf("usage: bench_operator LIBRARY [THREADS [SECONDS]]\n"), 2;
    const int threads = argc > 2 ? atoi(argv[2]) : 1;
    const double seconds = argc > 3 ? atof(argv[3]) : 0.5;
    ggml_backend_load_all();
    ggml_backend_reg_t registry = ggml_backend_load(argv[1]);
    if (registry == NULL) return printf("FAILED: %s is not loaded\n", argv[1]), 1;
    ggml_backend_t cpu = backend_of(ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU), threads);
    ggml_backend_t gdn = backend_of(ggml_backend_reg_dev_get(registry, 0), threads);
    if (cpu == NULL || gdn == NULL) return printf("FAILED: no backend\n"), 1;
    printf("ggml %s, %d threads\n   H    HV size tokens seqs snapshots kda        us  us, ggml  ratio taken   error: "
           "o, states\n",
           ggml_version(), threads);
    bool good = true;
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) good = run(&shapes[i], cpu, gdn, seconds) && good;
    ggml_backend_free(gdn);
    ggml_backend_free(cpu);
    printf(good ? "OK\n" : "FAILED\n");
    return good ? 0 : 1;
}
