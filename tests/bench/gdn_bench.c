/*
 * gdn_bench - how fast the operator is, held against what the machine can do
 * SPDX-License-Identifier: MIT
 *
 *     gdn_bench [--quick] [--threads N] [--isa NAME] [--case PATTERN] [--ggml]
 *
 * One line for each case, key=value pairs separated by blanks:
 *
 *     case, isa, threads, H, HV, K, V
 *     N, T, tokens          sequences, tokens of the longest one, tokens of all
 *     us_per_token          of all heads
 *     gflops                6*K*V for each token and value head, nothing else counted
 *     peak_fraction         of peak_gflops
 *     bandwidth_fraction    bytes of state, each read and written once, over bandwidth_gbs
 *     best_us, median_us    of one call, validation included; with one thread its processor time, which other
 *                           programs do not stretch
 *     runs                  calls timed
 *     peak_gflops           float32 fused multiply-adds in registers; isa=plain on x86: SSE2 without the fusing
 *     bandwidth_gbs         multiplying the pool in place
 *     validate_us           gdn_validate() alone
 *     scratch_bytes         of each thread
 *
 * and with --ggml, which runs the cases that ggml's operator can do:
 *
 *     ggml_us, ratio        the best of its runs; over best_us
 *     nmse                  normalised mean squared difference of the outputs or of the states, whichever is larger
 *
 * All of these are from the best of many measurements; ..._median from the medians. The rates of the machine and
 * ggml's runs are measured in turn with those of the case, with the same number of threads, and the rates with the same
 * instruction set.
 *
 * Every case is checked against the oracle before it is timed. Exit status 1: a result is wrong; 2: bad usage, or
 * something is missing.
 */
#define _POSIX_C_SOURCE 200809L
#include <fnmatch.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "gdn_varlen.h"
#include "rates.h"
#include "threads.h"
#include "workload.h"
#ifdef GDN_BENCH_GGML
#include "peer_ggml.h"
#endif

typedef struct bench_case {
    const char *name;
    bool quick; /* part of --quick, where a sixteenth of the mixed lengths is enough */
    workload_shape shape;
} bench_case;

#define HEADS(h, hv, k, v) .key_heads = (h), .value_heads = (hv), .k_dim = (k), .v_dim = (v)
#define QWEN HEADS(16, 32, 128, 128)
#define LOAD(n, t) .seqs = (n), .tokens = (t)
#define STATE(order, type) .layout = GDN_STATE_##order, .state = GDN_##type
#define INPUTS(type) .inputs = GDN_##type

static const bench_case cases[] = {
    {"prefill_f32", true, {QWEN, LOAD(1, 512), STATE(KV, F32), INPUTS(F32)}},
    {"prefill_vk_f32", true, {QWEN, LOAD(1, 512), STATE(VK, F32), INPUTS(F32)}},
    {"prefill_bf16", true, {QWEN, LOAD(1, 512), STATE(KV, F32), INPUTS(BF16)}},
    {"prefill_vk_bf16", false, {QWEN, LOAD(1, 512), STATE(VK, F32), INPUTS(BF16)}},
    {"prefill_f16", false, {QWEN, LOAD(1, 512), STATE(KV, F32), INPUTS(F16)}},
    {"prefill_kda", true, {QWEN, LOAD(1, 512), STATE(KV, F32), INPUTS(F32), .is_kda = true}},
    {"prefill_vk_kda", false, {QWEN, LOAD(1, 512), STATE(VK, F32), INPUTS(F32), .is_kda = true}},

    {"prefill_T4", true, {QWEN, LOAD(1, 4), STATE(KV, F32), INPUTS(F32)}},
    {"prefill_T16", false, {QWEN, LOAD(1, 16), STATE(KV, F32), INPUTS(F32)}},
    {"prefill_T64", false, {QWEN, LOAD(1, 64), STATE(KV, F32), INPUTS(F32)}},
    {"prefill_T4096", false, {QWEN, LOAD(1, 4096), STATE(KV, F32), INPUTS(F32)}},

    {"varlen_mix", true, {QWEN, LOAD(64, 500), STATE(KV, F32), INPUTS(F32), .lengths = LENGTHS_MIXED}},
    {"prefill_same_total", true, {QWEN, LOAD(64, 500), STATE(KV, F32), INPUTS(F32), .lengths = LENGTHS_JOINED}},

    {"decode_f32", true, {QWEN, LOAD(64, 1), STATE(KV, F32), INPUTS(F32)}},
    {"decode_vk_f32", true, {QWEN, LOAD(64, 1), STATE(VK, F32), INPUTS(F32)}},
    {"decode_bf16_state", true, {QWEN, LOAD(64, 1), STATE(KV, BF16), INPUTS(F32)}},
    {"decode_vk_bf16_state", true, {QWEN, LOAD(64, 1), STATE(VK, BF16), INPUTS(F32)}},
    {"decode_f16_state", false, {QWEN, LOAD(64, 1), STATE(KV, F16), INPUTS(F32)}},
    {"decode_vk_f16_state", false, {QWEN, LOAD(64, 1), STATE(VK, F16), INPUTS(F32)}},
    {"decode_kda", false, {QWEN, LOAD(64, 1), STATE(KV, F32), INPUTS(F32), .is_kda = true}},
    {"decode_one_in_cache", true, {QWEN, LOAD(1, 1), STATE(KV, F32), INPUTS(F32)}},
    {"decode_vk_one_in_cache", false, {QWEN, LOAD(1, 1), STATE(VK, F32), INPUTS(F32)}},
    {"decode_N2", false, {QWEN, LOAD(2, 1), STATE(KV, F32), INPUTS(F32)}},
    {"decode_N4", false, {QWEN, LOAD(4, 1), STATE(KV, F32), INPUTS(F32)}},
    {"decode_N8", false, {QWEN, LOAD(8, 1), STATE(KV, F32), INPUTS(F32)}},
    {"decode_N16", false, {QWEN, LOAD(16, 1), STATE(KV, F32), INPUTS(F32)}},
    {"decode_N32", false, {QWEN, LOAD(32, 1), STATE(KV, F32), INPUTS(F32)}},

    {"heads_16_16", false, {HEADS(16, 16, 128, 128), LOAD(1, 512), STATE(KV, F32), INPUTS(F32)}},
    {"heads_16_48", false, {HEADS(16, 48, 128, 128), LOAD(1, 512), STATE(KV, F32), INPUTS(F32)}},
    {"heads_16_64", false, {HEADS(16, 64, 128, 128), LOAD(1, 512), STATE(KV, F32), INPUTS(F32)}},
    {"olmo_30_96x192",
     true,
     {HEADS(30, 30, 96, 192), LOAD(1, 512), STATE(KV, F32), INPUTS(F32), .allow_neg_eigval = true}},
    {"kda_32", false, {HEADS(32, 32, 128, 128), LOAD(1, 512), STATE(KV, F32), INPUTS(F32), .is_kda = true}},
    {"dims_64x64", true, {HEADS(16, 32, 64, 64), LOAD(1, 512), STATE(KV, F32), INPUTS(F32)}},
    {"dims_vk_64x64", false, {HEADS(16, 32, 64, 64), LOAD(1, 512), STATE(VK, F32), INPUTS(F32)}},
};

#ifdef GDN_BENCH_GGML
static const bench_case ggml_cases[] = {
    {"ggml_prefill", true, {QWEN, LOAD(1, 512), STATE(VK, F32), INPUTS(F32), .style = STYLE_GGML}},
    {"ggml_decode", true, {QWEN, LOAD(64, 1), STATE(VK, F32), INPUTS(F32), .style = STYLE_GGML}},
    {"ggml_decode_one", true, {QWEN, LOAD(1, 1), STATE(VK, F32), INPUTS(F32), .style = STYLE_GGML}},
};
#endif

typedef struct options {
    bool quick, ggml;
    gdn_isa isa;
    int threads;
    const char *pattern;
} options;

/* ---- Timing ---- */

enum { MAX_RUNS = 1 << 14 };

/* Seconds of each call of one kind. */
typedef struct timings {
    int count;
    double seconds[MAX_RUNS];
} timings;

static int ascending(const void *x, const void *y) {
    const double a = *(const double *)x, b = *(const double *)y;
    return (a > b) - (a < b);
}

static void sort(timings *t) { qsort(t->seconds, (size_t)t->count, sizeof t->seconds[0], ascending); }

static double best(const timings *sorted) { return sorted->seconds[0]; }

static double median(const timings *sorted) {
    const int middle = sorted->count / 2;
    return sorted->count % 2 != 0 ? sorted->seconds[middle]
                                  : (sorted->seconds[middle - 1] + sorted->seconds[middle]) / 2;
}

/* All that is timed for one case. */
typedef struct measurement {
    const options *options;
    threads *threads;
    workload *w;
    double operations; /* of one call timed in peak */
    timings peak, scaling, validation, runs;
#ifdef GDN_BENCH_GGML
    peer *peer;
    timings peer_runs;
    double nmse;
#endif
} measurement;

static void multiply_and_add(measurement *m) { m->operations = rates_fma(m->threads, m->options->isa); }

static void scale_pool(measurement *m) {
    const gdn_state_pool *pool = &workload_params(m->w)->initial_state_source;
    rates_scale(m->threads, m->options->isa, pool->data, workload_state_bytes(m->w));
}

static void validate(measurement *m) { gdn_validate(workload_params(m->w), NULL); }

static void run_workload(measurement *m) { workload_run(m->w); }

#ifdef GDN_BENCH_GGML
static void run_peer(measurement *m) { peer_run(m->peer); }
#endif

/* Times calls for so many seconds, at least one. */
static void time_for(timings *t, double seconds, void (*call)(measurement *m), measurement *m) {
    double last, now = threads_clock(m->threads);
    const double end = now + seconds;
    do {
        call(m);
        last = now;
        now = threads_clock(m->threads);
        if (t->count < MAX_RUNS) t->seconds[t->count++] = now - last;
    } while (now < end);
}

/* What is compared is measured in turn, so that a machine that is slow for a while is slow for all of it. */
static void measure(measurement *m) {
    const double begin = threads_now(), enough = m->options->quick ? 0.25 : 2, too_long = 8 * enough;
    const int rounds = m->options->quick ? 3 : 5;
    double spent = 0;
    for (int i = 0; i == 0 || spent < enough || (i < rounds && spent < too_long); i++, spent = threads_now() - begin) {
        time_for(&m->peak, 0.005, multiply_and_add, m);
        time_for(&m->scaling, 0.005, scale_pool, m);
        time_for(&m->validation, 0.0002, validate, m);
        time_for(&m->runs, 0.01, run_workload, m);
#ifdef GDN_BENCH_GGML
        if (m->peer == NULL) continue;
        peer_wake(m->peer);
        peer_run(m->peer); /* not timed: its threads wake up */
        time_for(&m->peer_runs, 0.01, run_peer, m);
        peer_rest(m->peer);
#endif
    }
}

static void report(const bench_case *c, measurement *m) {
    const gdn_params *p = workload_params(m->w);
    const double tokens = (double)p->seq_len, bytes = 2 * (double)workload_state_bytes(m->w);
    const double operations = 6 * (double)p->head_k_dim * (double)p->head_v_dim * (double)p->num_value_heads * tokens;
    const double share = operations / m->operations;
    sort(&m->peak);
    sort(&m->validation);
    sort(&m->scaling);
    sort(&m->runs);
    const double seconds = best(&m->runs), typical = median(&m->runs);
    printf("case=%s isa=%s threads=%d H=%td HV=%td K=%td V=%td N=%td T=%td tokens=%td", c->name,
           gdn_isa_name(m->options->isa), m->options->threads, p->num_key_heads, p->num_value_heads, p->head_k_dim,
           p->head_v_dim, p->num_seqs, workload_longest(m->w), p->seq_len);
    printf(" us_per_token=%.4f gflops=%.2f", 1e6 * seconds / tokens, 1e-9 * operations / seconds);
    printf(" peak_fraction=%.3f bandwidth_fraction=%.3f", share * best(&m->peak) / seconds,
           best(&m->scaling) / seconds);
    printf(" peak_fraction_median=%.3f bandwidth_fraction_median=%.3f", share * median(&m->peak) / typical,
           median(&m->scaling) / typical);
    printf(" best_us=%.2f median_us=%.2f runs=%d peak_gflops=%.1f bandwidth_gbs=%.2f", 1e6 * seconds, 1e6 * typical,
           m->runs.count, 1e-9 * m->operations / best(&m->peak), 1e-9 * bytes / best(&m->scaling));
    printf(" validate_us=%.2f scratch_bytes=%zu", 1e6 * best(&m->validation), gdn_scratch_size(p));
#ifdef GDN_BENCH_GGML
    if (m->peer != NULL) {
        sort(&m->peer_runs);
        const double theirs = best(&m->peer_runs), theirs_typical = median(&m->peer_runs);
        printf(" ggml_us=%.2f ggml_median_us=%.2f ratio=%.2f ratio_median=%.2f nmse=%.1e", 1e6 * theirs,
               1e6 * theirs_typical, theirs / seconds, theirs_typical / typical, m->nmse);
    }
#endif
    printf("\n");
    fflush(stdout);
}

/* ---- ggml ---- */

#ifdef GDN_BENCH_GGML
/* ggml's own tests accept as much between two of its backends. */
static const double MAX_NMSE = 1e-7;

typedef struct deviation {
    double error, size; /* sums of squares */
} deviation;

static void deviate(deviation *d, const float *x, const float *y, size_t count) {
    for (size_t i = 0; i < count; i++) {
        const double difference = (double)x[i] - (double)y[i];
        d->error += difference * difference;
        d->size += (double)y[i] * (double)y[i];
    }
}

/* One run of each from the same states; false: the results differ. */
static bool meet_peer(measurement *m) {
    const gdn_params *p = workload_params(m->w);
    const size_t slot = (size_t)(p->num_value_heads * p->head_k_dim * p->head_v_dim);
    deviation outputs = {0, 0}, states = {0, 0};
    m->peer = peer_new(p, m->options->threads);
    if (m->peer == NULL) {
        fprintf(stderr, "gdn_bench: ggml cannot be started\n");
        exit(2);
    }
    workload_run(m->w);
    peer_wake(m->peer);
    peer_run(m->peer);
    peer_rest(m->peer);
    deviate(&outputs, p->o.data, peer_output(m->peer), (size_t)(p->seq_len * p->num_value_heads * p->head_v_dim));
    for (ptrdiff_t n = 0; n < p->num_seqs; n++) {
        const size_t from = (size_t)((const int32_t *)p->initial_state_indices.data)[n] * slot;
        deviate(&states, (const float *)p->initial_state_source.data + from, peer_states(m->peer) + (size_t)n * slot,
                slot);
    }
    const double x = outputs.error / outputs.size, y = states.error / states.size;
    m->nmse = x > y ? x : y;
    if (x <= MAX_NMSE && y <= MAX_NMSE) return true;
    fprintf(stderr, "gdn_bench: nmse between this library and ggml: o %g, states %g\n", x, y);
    return false;
}
#endif

/* ---- Program ---- */

/* One line of the report; false: the result was wrong. */
static bool bench(const bench_case *c, const options *o, threads *t) {
    workload_shape shape = c->shape;
    if (o->quick && shape.lengths != LENGTHS_EQUAL) shape.seqs /= 16;
    measurement *m = calloc(1, sizeof *m);
    if (m == NULL) abort();
    m->options = o;
    m->threads = t;
    m->w = workload_new(&shape, o->isa, t);
    bool right = workload_check(m->w);
#ifdef GDN_BENCH_GGML
    if (o->ggml) right = meet_peer(m) && right;
#endif
    if (right) {
        measure(m);
        report(c, m);
    } else {
        fprintf(stderr, "gdn_bench: case %s: the result is wrong\n", c->name);
    }
#ifdef GDN_BENCH_GGML
    if (m->peer != NULL) peer_free(m->peer);
#endif
    workload_free(m->w);
    free(m);
    return right;
}

/* 0, or the exit status; the complaint has been printed. */
static int parse(int argc, char **argv, options *o) {
    const char *complaint = NULL, *argument = "";
    for (int i = 1; i < argc && complaint == NULL; i++) {
        const char *option = argv[i], *value = i + 1 < argc ? argv[i + 1] : "";
        argument = option;
        if (strcmp(option, "--quick") == 0) {
            o->quick = true;
        } else if (strcmp(option, "--ggml") == 0) {
            o->ggml = true;
        } else if (strcmp(option, "--case") == 0 && value[0] != '\0') {
            o->pattern = argv[++i];
        } else if (strcmp(option, "--threads") == 0) {
            char *end;
            const long count = strtol(value, &end, 10);
            if (end == value || *end != '\0' || count < 1 || count > 4096)
                complaint = "a number from 1 is missing after";
            o->threads = (int)count;
            i++;
        } else if (strcmp(option, "--isa") == 0) {
            int isa = 0;
            while (isa < GDN_NUM_ISAS && strcmp(value, gdn_isa_name((gdn_isa)isa)) != 0) isa++;
            if (isa == GDN_NUM_ISAS)
                complaint = "auto, plain, avx2, avx512 or neon is missing after";
            else if (!gdn_isa_supported((gdn_isa)isa))
                complaint = "this CPU, or this build, lacks what was asked for by";
            else
                o->isa = isa == GDN_ISA_AUTO ? gdn_isa_selected() : (gdn_isa)isa;
            i++;
        } else {
            complaint = "cannot make sense of";
        }
    }
#ifndef GDN_BENCH_GGML
    if (complaint == NULL && o->ggml)
        complaint = "was built without ggml (cmake -DGDN_BENCH_GGML_DIR=...), so no", argument = "--ggml";
#endif
    if (complaint == NULL) return 0;
    fprintf(stderr, "gdn_bench: %s %s\n", complaint, argument);
    fprintf(stderr, "usage: gdn_bench [--quick] [--threads N] [--isa NAME] [--case PATTERN] [--ggml]\n");
    return 2;
}

int main(int argc, char **argv) {
    options o = {.isa = gdn_isa_selected(), .threads = 1, .pattern = "*"};
    const int status = parse(argc, argv, &o);
    if (status != 0) return status;
    threads *t = threads_start(o.threads);
    if (t == NULL) {
        fprintf(stderr, "gdn_bench: cannot start %d threads\n", o.threads);
        return 2;
    }
    const bench_case *table = cases;
    size_t count = sizeof cases / sizeof cases[0];
#ifdef GDN_BENCH_GGML
    if (o.ggml) table = ggml_cases, count = sizeof ggml_cases / sizeof ggml_cases[0];
#endif
    bool right = true;
    int done = 0;
    for (size_t i = 0; i < count; i++) {
        if ((o.quick && !table[i].quick) || fnmatch(o.pattern, table[i].name, 0) != 0) continue;
        right = bench(&table[i], &o, t) && right;
        done++;
    }
    threads_stop(t);
    if (done == 0) {
        fprintf(stderr, "gdn_bench: no case is called %s\n", o.pattern);
        return 2;
    }
    return right ? 0 : 1;
}
