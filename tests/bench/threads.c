#define _POSIX_C_SOURCE 200809L
#define _DARWIN_C_SOURCE /* the counters of getrusage() */
#include "threads.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <time.h>

/* How often a waiting thread looks before it offers its processor to others, and before it sleeps: the first for the
 * calls of one round, which follow each other at once; the second soon, so as not to disturb what runs in between. */
enum { EAGER = 1 << 16, PATIENT = EAGER + 1000 };

typedef struct worker {
    threads *owner;
    int number;
    pthread_t handle;
} worker;

struct threads {
    int count;
    worker *workers; /* [count]; the first one is the caller */
    pthread_mutex_t mutex;
    pthread_cond_t wake;
    atomic_uint round; /* counts the tasks handed out; changes under the mutex */
    atomic_int busy;
    threads_task *task; /* NULL: the end */
    void *data;
};

static void pause_after(int looks) {
    if (looks >= EAGER) sched_yield();
}

static void *work(void *argument) {
    const worker *me = argument;
    threads *t = me->owner;
    for (unsigned seen = 0;; seen++) {
        for (int i = 0; i < PATIENT && atomic_load(&t->round) == seen; i++) pause_after(i);
        if (atomic_load(&t->round) == seen) {
            pthread_mutex_lock(&t->mutex);
            while (atomic_load(&t->round) == seen) pthread_cond_wait(&t->wake, &t->mutex);
            pthread_mutex_unlock(&t->mutex);
        }
        if (t->task == NULL) return NULL;
        t->task(t->data, me->number);
        atomic_fetch_sub(&t->busy, 1);
    }
}

static void hand_out(threads *t, threads_task *task, void *data) {
    t->task = task;
    t->data = data;
    atomic_store(&t->busy, t->count - 1);
    pthread_mutex_lock(&t->mutex);
    atomic_fetch_add(&t->round, 1);
    pthread_cond_broadcast(&t->wake);
    pthread_mutex_unlock(&t->mutex);
}

threads *threads_start(int count) {
    threads *t = calloc(1, sizeof *t);
    worker *workers = calloc((size_t)count, sizeof *workers);
    if (t == NULL || workers == NULL) {
        free(t);
        free(workers);
        return NULL;
    }
    t->workers = workers;
    pthread_mutex_init(&t->mutex, NULL);
    pthread_cond_init(&t->wake, NULL);
    for (t->count = 1; t->count < count; t->count++) {
        worker *w = &workers[t->count];
        w->owner = t;
        w->number = t->count;
        if (pthread_create(&w->handle, NULL, work, w) != 0) {
            threads_stop(t);
            return NULL;
        }
    }
    return t;
}

void threads_run(threads *t, threads_task *task, void *data) {
    if (t->count > 1) hand_out(t, task, data);
    task(data, 0);
    for (int i = 0; t->count > 1 && atomic_load(&t->busy) > 0; i += i < EAGER) pause_after(i);
}

static double read_clock(clockid_t clock) {
    struct timespec now;
    clock_gettime(clock, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

double threads_now(void) { return read_clock(CLOCK_MONOTONIC); }

double threads_clock(const threads *t) { return read_clock(t->count == 1 ? CLOCK_THREAD_CPUTIME_ID : CLOCK_MONOTONIC); }

long threads_interruptions(const threads *t) {
    struct rusage usage;
    return t->count == 1 && getrusage(RUSAGE_SELF, &usage) == 0 ? usage.ru_nivcsw : 0;
}

int threads_count(const threads *t) { return t->count; }

void threads_stop(threads *t) {
    hand_out(t, NULL, NULL);
    for (int i = 1; i < t->count; i++) pthread_join(t->workers[i].handle, NULL);
    pthread_cond_destroy(&t->wake);
    pthread_mutex_destroy(&t->mutex);
    free(t->workers);
    free(t);
}
