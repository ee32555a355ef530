/*
 * The caller's own threads: one decode batch on POSIX threads, on C11 threads and, where the compiler was told to
 * (-fopenmp), on OpenMP. embed.cpp has std::thread. The library starts none; it hands out work items, of which worker
 * ith of nth runs a share, and the bits are those of the one-thread call whatever runs them, and wherever.
 */
#define GDN_IMPLEMENTATION
#include "gdn_varlen.h"
#include "decode_batch.h"

#include <pthread.h>
#include <stdlib.h>
#ifndef __STDC_NO_THREADS__
#include <threads.h>
#endif

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

static decode_result alone, result;

/* Decodes the batch with 1, 2, ... workers. Once gdn_validate() has accepted a call, its shares cannot fail. */
static void decode(const char *name, bool (*run)(worker *, int)) {
    for (int count = 1; count <= MOST_THREADS; count++) {
        memset(&result, 0, sizeof result);
        for (int step = 0; step < STEPS; step++) {
            const gdn_params p = decode_step(step, &result);
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
        if (memcmp(&result, &alone, sizeof result) == 0) continue;
        printf("FAILED: %s: %d threads give other bits than one call\n", name, count);
        exit(1);
    }
    printf("%s: 1 to %d threads, the bits of the one-thread call\n", name, MOST_THREADS);
}

int main(void) {
    gdn_error error;
    if (decode_alone(&alone, &error) != GDN_OK) return 1;
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
