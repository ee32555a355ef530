/*
 * A model in llama.cpp without the backend and with it: prefill, decode, several sequences in one batch, and drafts
 * that are rolled back to snapshots of the state. Logits agree within a normalised mean squared error of 1e-8, every
 * greedy token is the same, and not all bits are: that would be a backend that is not used.
 *
 *   test_model MODEL LIBRARY                      compares
 *   test_model MODEL LIBRARY THREADS SECONDS      times both in turn, SECONDS for each case: processor time of one
 *                                                 thread, which other programs disturb less, else the clock's
 *   test_model MODEL                              runs with what GGML_BACKEND_PATH names, for GGML_SCHED_DEBUG=2
 */
#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "ggml-backend.h"
#include "llama.h"

enum { BATCH = 1024, SEQS = 8, DRAFTS = 3 };

/* ---- llama.cpp -------------------------------------------------------------------------------------- */

static struct llama_model *model;
static struct llama_batch batch;
static int vocab;

static struct llama_context *new_context(int threads, uint32_t snapshots) {
    struct llama_context_params params = llama_context_default_params();
    params.n_ctx = 2 * BATCH * SEQS;
    params.n_batch = params.n_ubatch = BATCH;
    params.n_seq_max = SEQS;
    params.n_rs_seq = snapshots;
    params.n_threads = params.n_threads_batch = threads;
    struct llama_context *context = llama_init_from_model(model, params);
    if (context == NULL) exit(1);
    return context;
}

/* Some token, always the same for the same place. */
static void add(int seq, int position) {
    const int i = batch.n_tokens++;
    batch.token[i] = (int)(((unsigned)seq * 7919u + (unsigned)position * 104729u + 13u) % (unsigned)vocab);
    batch.pos[i] = position;
    batch.n_seq_id[i] = 1;
    batch.seq_id[i][0] = seq;
    batch.logits[i] = 1;
}

static void decode(struct llama_context *context) {
    const int status = llama_decode(context, batch);
    if (status != 0) {
        printf("FAILED: llama_decode returned %d\n", status);
        exit(1);
    }
}

/* ---- Comparing -------------------------------------------------------------------------------------- */

/* Rows of logits, in the order in which they were computed. */
typedef struct logits {
    float *rows;
    int count;
} logits;

/* Decodes the batch and keeps all of its logits. */
static void step(struct llama_context *context, logits *all) {
    const size_t row = (size_t)vocab * sizeof *all->rows;
    decode(context);
    all->rows = realloc(all->rows, (size_t)(all->count + batch.n_tokens) * row);
    if (all->rows == NULL) abort();
    for (int i = 0; i < batch.n_tokens; i++)
        memcpy(all->rows + (size_t)all->count++ * (size_t)vocab, llama_get_logits_ith(context, i), row);
    batch.n_tokens = 0;
}

static void prefill(struct llama_context *context, logits *all) {
    for (int t = 0; t < 200; t++) add(0, t);
    step(context, all);
}

static void prefill_and_decode(struct llama_context *context, logits *all) {
    prefill(context, all);
    for (int t = 200; t < 224; t++) {
        add(0, t);
        step(context, all);
    }
}

static void several_sequences(struct llama_context *context, logits *all) {
    static const int lengths[] = {64, 10, 33, 100};
    for (int s = 0; s < 4; s++)
        for (int t = 0; t < lengths[s]; t++) add(s, t);
    step(context, all);
    for (int i = 0; i < 8; i++) {
        for (int s = 0; s < 4; s++) add(s, lengths[s] + i);
        step(context, all);
    }
}

/* Two sequences verify drafts, of which all but the first are given up, and go on with other tokens. */
static void drafts(struct llama_context *context, logits *all) {
    for (int s = 0; s < 2; s++)
        for (int t = 0; t < 100; t++) add(s, t);
    step(context, all);
    for (int round = 0; round < 3; round++) {
        const int begin = 100 + 2 * round;
        for (int s = 0; s < 2; s++)
            for (int t = 0; t <= DRAFTS; t++) add(s, begin + t);
        step(context, all);
        for (int s = 0; s < 2; s++)
            if (!llama_memory_seq_rm(llama_get_memory(context), s, begin + 1, -1)) {
                printf("FAILED: no roll back\n");
                exit(1);
            }
        for (int s = 0; s < 2; s++) add(s, begin + 1);
        step(context, all);
    }
}

typedef struct scenario {
    const char *name;
    void (*run)(struct llama_context *, logits *);
    uint32_t snapshots;
} scenario;

static const scenario scenarios[] = {
    {"prefill of 200 tokens", prefill, 0},
    {"decode after it", prefill_and_decode, 0},
    {"four sequences", several_sequences, 0},
    {"drafts, snapshots", drafts, DRAFTS},
};
enum { NUM_SCENARIOS = sizeof scenarios / sizeof *scenarios };

static logits logits_of(const scenario *s, int threads) {
    logits all = {NULL, 0};
    struct llama_context *context = new_context(threads, s->snapshots);
    s->run(context, &all);
    llama_free(context);
    return all;
}

static int greedy(const float *row) {
    int best = 0;
    for (int i = 1; i < vocab; i++)
        if (row[i] > row[best]) best = i;
    return best;
}

static bool compare(const scenario *s, const logits *without, const logits *with) {
    double squares = 0, all = 0;
    int other_tokens = 0;
    for (int r = 0; r < with->count; r++) {
        const float *x = with->rows + (size_t)r * (size_t)vocab, *y = without->rows + (size_t)r * (size_t)vocab;
        for (int i = 0; i < vocab; i++) {
            squares += ((double)x[i] - (double)y[i]) * ((double)x[i] - (double)y[i]);
            all += (double)y[i] * (double)y[i];
        }
        other_tokens += greedy(x) != greedy(y);
    }
    const double error = squares / all; /* NaN where a logit is */
    const bool good = error > 0 && error <= 1e-8 && other_tokens == 0;
    printf("%-24s %5d rows of logits, error %.1e, %d other greedy tokens%s%s\n", s->name, with->count, error,
           other_tokens, good ? "" : "  FAILED", squares > 0 ? "" : ": the same bits, the backend is not used");
    return good;
}

/* ---- Timing ----------------------------------------------------------------------------------------- */

typedef struct timed {
    const char *name;
    int seqs, prompt; /* tokens of each sequence in one batch; 0: decode, after 64 */
} timed;

static bool one_thread;

static double now(void) {
    struct timespec time;
    if (one_thread) return (double)clock() / CLOCKS_PER_SEC;
    timespec_get(&time, TIME_UTC);
    return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

static double seconds_to_decode(struct llama_context *context) {
    const double begin = now();
    decode(context);
    llama_synchronize(context);
    return now() - begin;
}

/* One measurement: a batch of tokens whose last logits alone are asked for. */
static double seconds_of(const timed *x, struct llama_context *context, int *position) {
    const int tokens = x->prompt > 0 ? x->prompt : 1;
    if (x->prompt > 0 || *position == 0 || *position > BATCH) {
        llama_memory_clear(llama_get_memory(context), true);
        *position = 0;
    }
    const int begin = x->prompt > 0 ? 0 : *position, warm_up = x->prompt == 0 && begin == 0 ? 64 : 0;
    for (int pass = warm_up > 0 ? 0 : 1;; pass++) {
        batch.n_tokens = 0;
        for (int s = 0; s < x->seqs; s++)
            for (int t = 0; t < (pass == 0 ? warm_up : tokens); t++) {
                add(s, begin + (pass == 0 ? 0 : warm_up) + t);
                batch.logits[batch.n_tokens - 1] = t == tokens - 1;
            }
        if (pass == 0) {
            decode(context);
            continue;
        }
        *position = begin + warm_up + tokens;
        return seconds_to_decode(context);
    }
}

static int compare_doubles(const void *x, const void *y) {
    const double a = *(const double *)x, b = *(const double *)y;
    return (a > b) - (a < b);
}

static void time_both(struct llama_context *without, struct llama_context *with, double seconds) {
    static const timed cases[] = {{"prefill 512", 1, 512},
                                  {"prefill 64", 1, 64},
                                  {"prefill 8 x 64", 8, 64},
                                  {"decode 1", 1, 0},
                                  {"decode 8", 8, 0}};
    enum { MOST = 10000 };
    static double times[2][MOST], ratios[MOST];
    printf("%-16s %14s %14s %12s %14s\n", "case", "best ms", "without", "ratio", "median ratio");
    for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
        int n = 0, position[2] = {0, 0};
        for (double spent = 0; n < MOST && (n < 3 || spent < seconds); n++) {
            times[0][n] = seconds_of(&cases[c], with, &position[0]);
            times[1][n] = seconds_of(&cases[c], without, &position[1]);
            ratios[n] = times[1][n] / times[0][n];
            spent += times[0][n] + times[1][n];
        }
        for (int i = 0; i < 2; i++) qsort(times[i], (size_t)n, sizeof(double), compare_doubles);
        qsort(ratios, (size_t)n, sizeof(double), compare_doubles);
        printf("%-16s %14.3f %14.3f %12.3f %14.3f\n", cases[c].name, 1e3 * times[0][0], 1e3 * times[1][0],
               times[1][0] / times[0][0], ratios[n / 2]);
        fflush(stdout);
    }
}

/* ---- The program ------------------------------------------------------------------------------------ */

static void errors_only(enum ggml_log_level level, const char *text, void *unused) {
    (void)unused;
    if (level == GGML_LOG_LEVEL_ERROR) fputs(text, stderr);
}

static bool load(const char *library) {
    if (ggml_backend_load(library) != NULL) return true;
    printf("FAILED: %s is not loaded\n", library);
    return false;
}

int main(int argc, char **argv) {
    if (argc < 2 || argc > 5 || argc == 4) return printf("usage: test_model MODEL [LIBRARY [THREADS SECONDS]]\n"), 2;
    if (argc > 2) llama_log_set(errors_only, NULL);
    ggml_backend_load_all();
    llama_backend_init();
    model = llama_model_load_from_file(argv[1], llama_model_default_params());
    if (model == NULL) return 1;
    vocab = llama_vocab_n_tokens(llama_model_get_vocab(model));
    batch = llama_batch_init(BATCH, 0, 1);

    bool good = true;
    if (argc == 2) {
        free(logits_of(&scenarios[1], 1).rows);
    } else if (argc == 3) {
        logits without[2][NUM_SCENARIOS];
        for (int threads = 1; threads <= 2; threads++)
            for (int i = 0; i < NUM_SCENARIOS; i++) without[threads - 1][i] = logits_of(&scenarios[i], threads);
        if (!load(argv[2])) return 1;
        for (int threads = 1; threads <= 2; threads++)
            for (int i = 0; i < NUM_SCENARIOS; i++) {
                logits with = logits_of(&scenarios[i], threads);
                good = compare(&scenarios[i], &without[threads - 1][i], &with) && good;
                free(with.rows);
                free(without[threads - 1][i].rows);
            }
        printf(good ? "OK\n" : "FAILED\n");
    } else {
        one_thread = atoi(argv[3]) == 1;
        struct llama_context *without = new_context(atoi(argv[3]), 0);
        if (!load(argv[2])) return 1;
        struct llama_context *with = new_context(atoi(argv[3]), 0);
        time_both(without, with, atof(argv[4]));
        llama_free(with);
        llama_free(without);
    }
    llama_batch_free(batch);
    llama_model_free(model);
    llama_backend_free();
    return good ? 0 : 1;
}
