/*
 * The caller's own threads: one decode batch on POSIX threads, on C11 threads and, where the compiler was told to
 * (-fopenmp), on OpenMP. embed.cpp has std::thread. The library starts none; it hands out work items, of which worker
 * ith of nth runs a share, and the bits are those of the one-thread call whatever runs them, and wherever.
 */
#define GDN_IMPLEMENTATION
#include "gdn_varlen.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#ifndef __STDC_NO_THREADS__
#include <threads.h>
#endif

/* The batch: some tokens of each of some sequences. */
enum { SEQUENCES = 16, STEPS = 3, H = 4, HV = 8, K = 64, V = 64, MOST_THREADS = 5 };

static struct {
    float q[STEPS][SEQUENCES * H * K], k[STEPS][SEQUENCES * H * K], v[STEPS][SEQUENCES * HV * V];
    float a[STEPS][SEQUENCES * HV], b[STEPS][SEQUENCES * HV], A_log[HV], dt_bias[HV];
} in;

/* What decoding writes: by one call for each step, and by threads. */
typedef struct outputs {
    float o[STEPS][SEQUENCES * HV * V], pool[SEQUENCES * HV * V * K];
} outputs;

static outputs alone, shared;

/* Draws from [-1, 1). */
static void fill_inputs(void) {
    uint32_t seed = 1;
    float *x = (float *)&in;
    for (size_t i = 0; i < sizeof in / sizeof *x; i++) {
        seed = seed * 1664525u + 1013904223u;
        x[i] = (float)(seed >> 8) / 8388608.0f - 1.0f;
    }
}

/* The call that decodes one token of each sequence. */
static gdn_params decode_step(int step, outputs *out) {
    gdn_params p = {0};
    p.batch_size = SEQUENCES;
    p.seq_len = 1;
    p.num_key_heads = H;
    p.num_value_heads = HV;
    p.head_k_dim = K;
    p.head_v_dim = V;
    p.A_log = gdn_f32(in.A_log);
    p.dt_bias = gdn_f32(in.dt_bias);
    p.q = gdn_f32(in.q[step]);
    p.k = gdn_f32(in.k[step]);
    p.v = gdn_f32(in.v[step]);
    p.a = gdn_f32(in.a[step]);
    p.b = gdn_f32(in.b[step]);
    p.o = gdn_out_f32(out->o[step]);
    p.initial_state_source = gdn_pool_of(out->pool, GDN_F32, SEQUENCES);
    p.state_layout = GDN_STATE_VK;
    p.use_qk_l2norm_in_kernel = true;
    return p;
}

/* What worker ith of nth needs to know. */
typedef struct worker {
    const gdn_params *p;
    ptrdiff_t ith, nth;
    void *scratch;
    gdn_status status;
} worker;

static void work(worker *w) {
    const ptrdiff_t items = gdn_num_work_items(w->p), first = items * w->ith / w->nth;
    w->status = gdn_run_work_items(w->p, first, items * (w->ith + 1) / w->nth, w->scratch, gdn_scratch_size(w->p));
}

static void *posix_work(void *w) {
    work(w);
    return NULL;
}

static bool on_posix_threads(worker *w, int count) {
    pthread_t threads[MOST_THREADS];
    int started = 0;
    while (started < count && pthread_create(&threads[started], NULL, posix_work, &w[started]) == 0) started++;
    for (int i = 0; i < started; i++) pthread_join(threads[i], NULL);
    return started == count;
}

#ifndef __STDC_NO_THREADS__
static int c11_work(void *w) {
    work(w);
    return 0;
}

static bool on_c11_threads(worker *w, int count) {
    thrd_t threads[MOST_THREADS];
    int started = 0;
    while (started < count && thrd_create(&threads[started], c11_work, &w[started]) == thrd_success) started++;
    for (int i = 0; i < started; i++) thrd_join(threads[i], NULL);
    return started == count;
}
#endif

#ifdef _OPENMP
static bool on_openmp(worker *w, int count) {
#pragma omp parallel for num_threads(count)
    for (int i = 0; i < count; i++) work(&w[i]);
    return true;
}
#endif

/* Decodes the batch with 1, 2, ... workers. Once gdn_validate() has accepted a call, its shares cannot fail. */
static void decode(const char *name, bool (*run)(worker *, int)) {
    for (int count = 1; count <= MOST_THREADS; count++) {
        memset(&shared, 0, sizeof shared);
        for (int step = 0; step < STEPS; step++) {
            const gdn_params p = decode_step(step, &shared);
            worker w[MOST_THREADS];
            bool done = gdn_validate(&p, NULL) == GDN_OK;
            for (int i = 0; i < count; i++)
                w[i] = (worker){&p, i, count, malloc(gdn_scratch_size(&p)), GDN_ERROR_SCRATCH};
            done = done && run(w, count);
            for (int i = 0; i < count; i++) {
                done = done && w[i].status == GDN_OK;
                free(w[i].scratch);
            }
            if (done) continue;
            printf("FAILED: %s: %d threads did not run\n", name, count);
            exit(1);
        }
        if (memcmp(&shared, &alone, sizeof shared) == 0) continue;
        printf("FAILED: %s: %d threads give other bits than one call\n", name, count);
        exit(1);
    }
    printf("%s: 1 to %d threads, the bits of the one-thread call\n", name, MOST_THREADS);
}

int main(void) {
    fill_inputs();
    for (int step = 0; step < STEPS; step++) {
        const gdn_params p = decode_step(step, &alone);
        gdn_error error;
        if (gdn_fused_sigmoid_gating_delta_rule_update(&p, &error) == GDN_OK) continue;
        printf("FAILED: %s: %s\n", error.argument, gdn_status_text(error.status));
        return 1;
    }
    decode("POSIX threads", on_posix_threads);
#ifndef __STDC_NO_THREADS__
    decode("C11 threads", on_c11_threads);
#else
    printf("C11 threads: this C library has none\n");
#endif
#ifdef _OPENMP
    decode("OpenMP", on_openmp);
#else
    printf("OpenMP: not compiled in (-fopenmp)\n");
#endif
    printf("OK\n");
    return 0;
}
