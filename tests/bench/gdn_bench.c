/*
 * gdn_bench - how fast the operator is, held against what the machine can do
 * SPDX-License-Identifier: MIT
 *
 *     gdn_bench [--quick] [--threads N] [--isa NAME] [--case PATTERN] [--rounds N] [--seconds S] [--ggml]
 *     gdn_bench --help | --list
 *
 * On a machine that is shared, a program is slow for seconds at a time and fast again. So the cases are not measured
 * one after the other but in rounds that lie apart: every case once, then every case again. What a case is compared
 * with, the rates of the machine and ggml's operator, is measured in each of its rounds too, in turn with its own
 * calls, with the same number of threads, and the rates with the same instruction set.
 *
 * Two numbers are made of the rounds: the best, which is what the machine can do when nobody disturbs it, and the
 * median, which is what one gets. A best fraction is the best time held against the best rate, each from whatever round
 * it comes: no round flatters it by a rate that was measured in a bad moment. A median fraction is the median of the
 * fractions within the rounds, both sides of which were measured under the same conditions.
 *
 * Each round makes the inputs anew, elsewhere in memory. The first one checks every case against the oracle before it
 * is timed. --help lists the options and what is printed. Exit status 1: a result is wrong; 2: bad usage, or something
 * is missing.
 */
#define _POSIX_C_SOURCE 200809L
#include <fnmatch.h>
#include <math.h>
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
#define CHUNKED .compute = GDN_COMPUTE_F32_CHUNKS

static const bench_case cases[] = {
    {"prefill_f32", true, {QWEN, LOAD(1, 512), STATE(KV, F32), INPUTS(F32)}},
    {"prefill_vk_f32", true, {QWEN, LOAD(1, 512), STATE(VK, F32), INPUTS(F32)}},
    {"prefill_bf16", true, {QWEN, LOAD(1, 512), STATE(KV, F32), INPUTS(BF16)}},
    {"prefill_vk_bf16", false, {QWEN, LOAD(1, 512), STATE(VK, F32), INPUTS(BF16)}},
    {"prefill_f16", false, {QWEN, LOAD(1, 512), STATE(KV, F32), INPUTS(F16)}},
    {"prefill_kda", true, {QWEN, LOAD(1, 512), STATE(KV, F32), INPUTS(F32), .is_kda = true}},
    {"prefill_vk_kda", false, {QWEN, LOAD(1, 512), STATE(VK, F32), INPUTS(F32), .is_kda = true}},
    {"prefill_chunked_f32", true, {QWEN, LOAD(1, 512), STATE(KV, F32), INPUTS(F32), CHUNKED}},
    {"prefill_chunked_vk_f32", true, {QWEN, LOAD(1, 512), STATE(VK, F32), INPUTS(F32), CHUNKED}},
    {"prefill_chunked_bf16", true, {QWEN, LOAD(1, 512), STATE(KV, F32), INPUTS(BF16), CHUNKED}},
    {"prefill_chunked_kda", true, {QWEN, LOAD(1, 512), STATE(KV, F32), INPUTS(F32), .is_kda = true, CHUNKED}},

    {"prefill_T4", true, {QWEN, LOAD(1, 4), STATE(KV, F32), INPUTS(F32)}},
    {"prefill_T16", false, {QWEN, LOAD(1, 16), STATE(KV, F32), INPUTS(F32)}},
    {"prefill_T64", false, {QWEN, LOAD(1, 64), STATE(KV, F32), INPUTS(F32)}},
    {"prefill_T4096", false, {QWEN, LOAD(1, 4096), STATE(KV, F32), INPUTS(F32)}},
    {"prefill_chunked_T16", false, {QWEN, LOAD(1, 16), STATE(KV, F32), INPUTS(F32), CHUNKED}},
    {"prefill_chunked_T64", false, {QWEN, LOAD(1, 64), STATE(KV, F32), INPUTS(F32), CHUNKED}},
    {"prefill_chunked_T4096", false, {QWEN, LOAD(1, 4096), STATE(KV, F32), INPUTS(F32), CHUNKED}},
    {"prefill_t4_vk_f32", true, {QWEN, LOAD(1, 4), STATE(VK, F32), INPUTS(F32)}},
    {"steps_t4_vk_f32", true, {QWEN, LOAD(1, 4), STATE(VK, F32), INPUTS(F32), .states = STATES_STEPS}},

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
    {"olmo_30_96x192_chunked",
     true,
     {HEADS(30, 30, 96, 192), LOAD(1, 512), STATE(KV, F32), INPUTS(F32), .allow_neg_eigval = true, CHUNKED}},
    {"kda_32", false, {HEADS(32, 32, 128, 128), LOAD(1, 512), STATE(KV, F32), INPUTS(F32), .is_kda = true}},
    {"dims_64x64", true, {HEADS(16, 32, 64, 64), LOAD(1, 512), STATE(KV, F32), INPUTS(F32)}},
    {"dims_64x64_chunked", true, {HEADS(16, 32, 64, 64), LOAD(1, 512), STATE(KV, F32), INPUTS(F32), CHUNKED}},
    {"dims_vk_64x64", false, {HEADS(16, 32, 64, 64), LOAD(1, 512), STATE(VK, F32), INPUTS(F32)}},
};

#ifdef GDN_BENCH_GGML
#define GGML_QWEN(n, t) QWEN, LOAD(n, t), STATE(VK, F32), INPUTS(F32), .style = STYLE_GGML

/* Drafts of one sequence: both sides read the same states in every run and write others. */
static const bench_case ggml_cases[] = {
    {"ggml_prefill", true, {GGML_QWEN(1, 512)}},
    {"ggml_prefill_chunked", true, {GGML_QWEN(1, 512), CHUNKED}},
    {"ggml_decode", true, {GGML_QWEN(64, 1)}},
    {"ggml_decode_one", true, {GGML_QWEN(1, 1)}},
    {"ggml_short_t2", true, {GGML_QWEN(1, 2), .states = STATES_APART}},
    {"ggml_short_t4", true, {GGML_QWEN(1, 4), .states = STATES_APART}},
    {"ggml_short_t8", true, {GGML_QWEN(1, 8), .states = STATES_APART}},
    {"ggml_snapshots_t2", true, {GGML_QWEN(1, 2), .states = STATES_STEPS}},
    {"ggml_snapshots_t4", true, {GGML_QWEN(1, 4), .states = STATES_STEPS}},
    {"ggml_snapshots_t8", true, {GGML_QWEN(1, 8), .states = STATES_STEPS}},
};
#endif

typedef struct options {
    bool quick, ggml, unchecked, list;
    gdn_isa isa;
    int threads, rounds;
    double seconds; /* of one round of one case */
    const char *pattern;
} options;

/* ---- Timing ---- */

enum { MAX_RUNS = 1 << 14, MAX_ROUNDS = 1000 };

/* What is timed. */
typedef enum subject { PEAK, SCALING, VALIDATION, RUNS, PEER_RUNS, NUM_SUBJECTS } subject;

/* Seconds of each call of one kind in one round: of the uninterrupted ones, or of all if every one was interrupted. */
typedef struct timings {
    int count;
    bool uninterrupted;
    double seconds[MAX_RUNS];
} timings;

/* What is kept of the rounds of one case. */
typedef struct record {
    bool wrong;
    int rounds;
    long calls;
    double best[NUM_SUBJECTS];
    bool uninterrupted[NUM_SUBJECTS];        /* the best one was */
    double median[NUM_SUBJECTS][MAX_ROUNDS]; /* within each round */
    double nmse;
} record;

static int ascending(const void *x, const void *y) {
    const double a = *(const double *)x, b = *(const double *)y;
    return (a > b) - (a < b);
}

/* Sorts them. */
static double median(double *values, int count) {
    qsort(values, (size_t)count, sizeof *values, ascending);
    return count % 2 != 0 ? values[count / 2] : (values[count / 2 - 1] + values[count / 2]) / 2;
}

/* Median over the rounds of `factor` times one subject's seconds, over another's if there is one. */
static double median_of_rounds(const record *r, double factor, subject x, const subject *divisor) {
    double values[MAX_ROUNDS] = {0};
    for (int i = 0; i < r->rounds; i++)
        values[i] = factor * r->median[x][i] / (divisor != NULL ? r->median[*divisor][i] : 1);
    return median(values, r->rounds);
}

static double slowest_round(const record *r) {
    double slowest = 0;
    for (int i = 0; i < r->rounds; i++)
        if (r->median[RUNS][i] > slowest) slowest = r->median[RUNS][i];
    return slowest;
}

/* One round of one case. */
typedef struct measurement {
    const options *options;
    threads *threads;
    workload *w;
    double operations; /* of one call timed in PEAK */
    timings timings[NUM_SUBJECTS];
#ifdef GDN_BENCH_GGML
    peer *peer;
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

/* Processor time is wrong by up to a tenth of a millisecond where the kernel let another program run, too short as
 * often as too long, and the best would be the most wrong: such calls count only where there are no others. */
static void add(timings *t, double seconds, bool uninterrupted) {
    if (t->count > 0 && t->uninterrupted != uninterrupted) {
        if (t->uninterrupted) return;
        t->count = 0;
    }
    t->uninterrupted = uninterrupted;
    if (t->count < MAX_RUNS) t->seconds[t->count++] = seconds;
}

/* Times calls for so many seconds, at least one. */
static void time_for(measurement *m, subject x, double seconds, void (*call)(measurement *m)) {
    long interruptions = threads_interruptions(m->threads);
    double before, after;
    const double end = threads_clock(m->threads) + seconds;
    do {
        before = threads_clock(m->threads);
        call(m);
        after = threads_clock(m->threads);
        const long so_far = threads_interruptions(m->threads);
        add(&m->timings[x], after - before, so_far == interruptions);
        interruptions = so_far;
    } while (after < end);
}

/* What is compared is measured in turn, so that a machine that is slow for a while is slow for all of it. */
static void measure(measurement *m, record *r) {
    const double end = threads_now() + m->options->seconds;
    for (int x = 0; x < NUM_SUBJECTS; x++) m->timings[x].count = 0;
    do {
        time_for(m, PEAK, 0.005, multiply_and_add);
        time_for(m, SCALING, 0.005, scale_pool);
        time_for(m, VALIDATION, 0.0002, validate);
        time_for(m, RUNS, 0.01, run_workload);
#ifdef GDN_BENCH_GGML
        if (m->peer == NULL) continue;
        peer_wake(m->peer);
        peer_run(m->peer); /* not timed: its threads wake up */
        time_for(m, PEER_RUNS, 0.01, run_peer);
        peer_rest(m->peer);
#endif
    } while (threads_now() < end);
    for (int x = 0; x < NUM_SUBJECTS; x++) {
        timings *t = &m->timings[x];
        if (t->count == 0) continue;
        r->median[x][r->rounds] = median(t->seconds, t->count);
        const bool better = t->uninterrupted == r->uninterrupted[x] ? t->seconds[0] < r->best[x] : t->uninterrupted;
        if (r->rounds > 0 && !better) continue;
        r->best[x] = t->seconds[0];
        r->uninterrupted[x] = t->uninterrupted;
    }
    r->calls += m->timings[RUNS].count;
    r->rounds++;
}

static void report(const bench_case *c, const measurement *m, const record *r) {
    static const subject runs = RUNS;
    const gdn_params *p = workload_params(m->w);
    const double tokens = (double)p->seq_len, bytes = 2 * (double)workload_state_bytes(m->w);
    const double operations = 6 * (double)p->head_k_dim * (double)p->head_v_dim * (double)p->num_value_heads * tokens;
    const double share = operations / m->operations, seconds = r->best[RUNS];
    const double typical = median_of_rounds(r, 1, RUNS, NULL);
    printf("case=%s isa=%s threads=%d H=%td HV=%td K=%td V=%td N=%td T=%td tokens=%td", c->name,
           gdn_isa_name(m->options->isa), m->options->threads, p->num_key_heads, p->num_value_heads, p->head_k_dim,
           p->head_v_dim, p->num_seqs, workload_longest(m->w), p->seq_len);
    printf(" us_per_token=%.4f us_per_token_median=%.4f us_per_token_worst=%.4f", 1e6 * seconds / tokens,
           1e6 * typical / tokens, 1e6 * slowest_round(r) / tokens);
    printf(" gflops=%.2f gflops_median=%.2f", 1e-9 * operations / seconds, 1e-9 * operations / typical);
    printf(" peak_fraction=%.3f bandwidth_fraction=%.3f", share * r->best[PEAK] / seconds, r->best[SCALING] / seconds);
    printf(" peak_fraction_median=%.3f bandwidth_fraction_median=%.3f", median_of_rounds(r, share, PEAK, &runs),
           median_of_rounds(r, 1, SCALING, &runs));
    printf(" best_us=%.2f median_us=%.2f runs=%ld rounds=%d interrupted=%d", 1e6 * seconds, 1e6 * typical, r->calls,
           r->rounds, !r->uninterrupted[RUNS]);
    printf(" peak_gflops=%.1f peak_gflops_median=%.1f", 1e-9 * m->operations / r->best[PEAK],
           1e-9 * m->operations / median_of_rounds(r, 1, PEAK, NULL));
    printf(" bandwidth_gbs=%.2f bandwidth_gbs_median=%.2f", 1e-9 * bytes / r->best[SCALING],
           1e-9 * bytes / median_of_rounds(r, 1, SCALING, NULL));
    printf(" validate_us=%.2f scratch_bytes=%zu", 1e6 * r->best[VALIDATION], gdn_scratch_size(p));
    if (m->options->ggml)
        printf(" ggml_us=%.2f ggml_median_us=%.2f ratio=%.2f ratio_median=%.2f nmse=%.1e", 1e6 * r->best[PEER_RUNS],
               1e6 * median_of_rounds(r, 1, PEER_RUNS, NULL), r->best[PEER_RUNS] / seconds,
               median_of_rounds(r, 1, PEER_RUNS, &runs), r->nmse);
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
static bool meet_peer(measurement *m, record *r) {
    const gdn_params *p = workload_params(m->w);
    const size_t state = (size_t)(p->num_value_heads * p->head_k_dim * p->head_v_dim);
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
    for (ptrdiff_t before = 0; before < workload_states_left(m->w); before++)
        for (ptrdiff_t n = 0; n < p->num_seqs; n++)
            deviate(&states, workload_state(m->w, n, before), peer_states(m->peer, before) + (size_t)n * state, state);
    const double x = outputs.error / outputs.size, y = states.error / states.size;
    r->nmse = fmax(r->nmse, fmax(x, y));
    if (x <= MAX_NMSE && y <= MAX_NMSE) return true;
    fprintf(stderr, "gdn_bench: nmse between this library and ggml: o %g, states %g\n", x, y);
    return false;
}
#endif

/* ---- Program ---- */

/* One round of one case; the last one prints its line. */
static void bench(const bench_case *c, measurement *m, record *r) {
    const options *o = m->options;
    workload_shape shape = c->shape;
    if (o->quick && shape.lengths != LENGTHS_EQUAL) shape.seqs /= 16;
    m->w = workload_new(&shape, o->isa, m->threads);
    if (r->rounds == 0 && !o->unchecked)
        r->wrong = !workload_check(m->w);
    else
        workload_run(m->w); /* not timed: touches the outputs */
#ifdef GDN_BENCH_GGML
    m->peer = NULL;
    if (o->ggml) r->wrong = !meet_peer(m, r) || r->wrong;
#endif
    if (r->wrong) {
        fprintf(stderr, "gdn_bench: case %s: the result is wrong\n", c->name);
    } else {
        measure(m, r);
        if (r->rounds == o->rounds) report(c, m, r);
    }
#ifdef GDN_BENCH_GGML
    if (m->peer != NULL) peer_free(m->peer);
#endif
    workload_free(m->w);
}

static const char usage[] =
    "usage: gdn_bench [--quick] [--threads N] [--isa NAME] [--case PATTERN] [--rounds N] [--seconds S]\n"
    "                 [--ggml] [--unchecked] [--list] [--help]\n";

static const char options_text[] =
    "\n"
    "Measures every case in rounds that lie apart: all cases once, then all again.\n"
    "\n"
    "  --quick         fewer and shorter cases, 3 short rounds: seconds\n"
    "  --threads N     (1)\n"
    "  --isa NAME      plain, avx2, avx512 or neon (the one that the library would choose)\n"
    "  --case PATTERN  of the shell, such as 'decode_*'\n"
    "  --rounds N      (5)\n"
    "  --seconds S     of one round of one case (0.4; with --quick 0.08)\n"
    "  --ggml          the cases that ggml's operator can do, side by side with it; see ggml.sh\n"
    "  --unchecked     without the check against the oracle, for a build that has passed it\n"
    "  --list          prints the names of the cases and does nothing\n"
    "\n"
    "compare.sh measures two versions of the header in alternation.\n";

static const char keys_text[] =
    "\n"
    "One line for each case, key=value pairs separated by blanks:\n"
    "\n"
    "  case, isa, threads, H, HV, K, V\n"
    "  N, T, tokens        sequences, tokens of the longest one, tokens of all\n"
    "  us_per_token        of all heads\n"
    "  gflops              6*K*V for each token and value head, nothing else counted\n"
    "  peak_fraction       of peak_gflops\n"
    "  bandwidth_fraction  bytes of the states at the start, each read and written once, over bandwidth_gbs\n"
    "  best_us, median_us  of one call, validation included; with one thread its processor time, which other\n"
    "                      programs do not stretch\n"
    "  runs, rounds        calls timed, in so many rounds\n"
    "  interrupted         1: other programs ran during every call, even the best, and its time may be too short\n"
    "  peak_gflops         float32 fused multiply-adds in registers; isa=plain on x86: SSE2 without the fusing\n"
    "  bandwidth_gbs       multiplying these states in place\n"
    "  validate_us         gdn_validate() alone, best\n"
    "  scratch_bytes       of each thread\n"
    "  ggml_us, ratio      with --ggml: of one of its calls; that over best_us\n"
    "  nmse                normalised mean squared difference of outputs or states, whichever is larger\n"
    "\n"
    "..._median, median_us: the median of the rounds, in each of which the median of its calls counts; _worst: the\n"
    "slowest round. The others: the best call of all rounds. peak_fraction, bandwidth_fraction and ratio hold best\n"
    "against best, from whatever rounds; their medians are those of the fractions within each round.\n";

static bool parse_count(const char *text, long limit, int *count) {
    char *end;
    const long value = strtol(text, &end, 10);
    if (end == text || *end != '\0' || value < 1 || value > limit) return false;
    *count = (int)value;
    return true;
}

static bool parse_seconds(const char *text, double *seconds) {
    char *end;
    *seconds = strtod(text, &end);
    return end != text && *end == '\0' && *seconds > 0 && *seconds < 3600;
}

static const char *parse_isa(const char *text, gdn_isa *choice) {
    int isa = 0;
    while (isa < GDN_NUM_ISAS && strcmp(text, gdn_isa_name((gdn_isa)isa)) != 0) isa++;
    if (isa == GDN_NUM_ISAS) return "auto, plain, avx2, avx512 or neon is missing after";
    if (!gdn_isa_supported((gdn_isa)isa)) return "this CPU, or this build, lacks what was asked for by";
    *choice = isa == GDN_ISA_AUTO ? gdn_isa_selected() : (gdn_isa)isa;
    return NULL;
}

/* False: there is nothing to measure, and *status is what to exit with. */
static bool parse(int argc, char **argv, options *o, int *status) {
    const char *complaint = NULL, *argument = "";
    for (int i = 1; i < argc && complaint == NULL; i++) {
        const char *option = argv[i], *value = i + 1 < argc ? argv[i + 1] : "";
        argument = option;
        if (strcmp(option, "--help") == 0) {
            printf("%s%s%s", usage, options_text, keys_text);
            *status = 0;
            return false;
        } else if (strcmp(option, "--quick") == 0) {
            o->quick = true;
        } else if (strcmp(option, "--ggml") == 0) {
            o->ggml = true;
        } else if (strcmp(option, "--unchecked") == 0) {
            o->unchecked = true;
        } else if (strcmp(option, "--list") == 0) {
            o->list = true;
        } else if (strcmp(option, "--case") == 0 && value[0] != '\0') {
            o->pattern = argv[++i];
        } else if (strcmp(option, "--threads") == 0 || strcmp(option, "--rounds") == 0) {
            const bool rounds = option[2] == 'r';
            if (!parse_count(value, rounds ? MAX_ROUNDS : 4096, rounds ? &o->rounds : &o->threads))
                complaint = "a number from 1 is missing after";
            i++;
        } else if (strcmp(option, "--seconds") == 0) {
            if (!parse_seconds(value, &o->seconds)) complaint = "a number above 0 is missing after";
            i++;
        } else if (strcmp(option, "--isa") == 0) {
            complaint = parse_isa(value, &o->isa);
            i++;
        } else {
            complaint = "cannot make sense of";
        }
    }
#ifndef GDN_BENCH_GGML
    if (complaint == NULL && o->ggml)
        complaint = "was built without ggml (cmake -DGDN_BENCH_GGML_DIR=...), so no", argument = "--ggml";
#endif
    if (o->rounds == 0) o->rounds = o->quick ? 3 : 5;
    if (o->seconds == 0) o->seconds = o->quick ? 0.08 : 0.4;
    if (complaint == NULL) return true;
    fprintf(stderr, "gdn_bench: %s %s\n%s", complaint, argument, usage);
    *status = 2;
    return false;
}

/* All rounds of the cases chosen; the exit status. */
static int bench_all(const bench_case *const *chosen, int count, const options *o) {
    threads *t = threads_start(o->threads);
    if (t == NULL) {
        fprintf(stderr, "gdn_bench: cannot start %d threads\n", o->threads);
        return 2;
    }
    record *records = calloc((size_t)count, sizeof *records);
    measurement *m = calloc(1, sizeof *m);
    if (records == NULL || m == NULL) abort();
    m->options = o;
    m->threads = t;
    int status = 0;
    for (int round = 0; round < o->rounds; round++)
        for (int i = 0; i < count; i++)
            if (!records[i].wrong) bench(chosen[i], m, &records[i]);
    for (int i = 0; i < count; i++)
        if (records[i].wrong) status = 1;
    free(m);
    free(records);
    threads_stop(t);
    return status;
}

enum { MAX_CASES = sizeof cases / sizeof cases[0] };

int main(int argc, char **argv) {
    options o = {.isa = gdn_isa_selected(), .threads = 1, .pattern = "*"};
    int status = 0;
    if (!parse(argc, argv, &o, &status)) return status;
    const bench_case *table = cases, *chosen[MAX_CASES];
    size_t size = MAX_CASES;
#ifdef GDN_BENCH_GGML
    if (o.ggml) table = ggml_cases, size = sizeof ggml_cases / sizeof ggml_cases[0];
#endif
    int count = 0;
    for (size_t i = 0; i < size; i++)
        if ((!o.quick || table[i].quick) && fnmatch(o.pattern, table[i].name, 0) == 0) chosen[count++] = &table[i];
    if (count == 0) {
        fprintf(stderr, "gdn_bench: no case is called %s\n", o.pattern);
        return 2;
    }
    if (!o.list) return bench_all(chosen, count, &o);
    for (int i = 0; i < count; i++) printf("%s\n", chosen[i]->name);
    return 0;
}
