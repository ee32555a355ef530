/* Threads that wait for work: the calling thread is number 0, the others are started once. */
#ifndef THREADS_H
#define THREADS_H

typedef struct threads threads;
typedef void threads_task(void *data, int thread);

/* NULL: they cannot be started. */
threads *threads_start(int count);

/* Runs the task once on every thread; returns when all have finished. */
void threads_run(threads *t, threads_task *task, void *data);

/* Seconds to time the runs with: of one thread those that it was running, so that a busy machine does not stretch them;
 * of several those that passed, as threads_now(). */
double threads_clock(const threads *t);
double threads_now(void);

/* How often other programs have taken the processor away so far; of several threads, which the clock of the wall times,
 * always 0. */
long threads_interruptions(const threads *t);

int threads_count(const threads *t);
void threads_stop(threads *t);

#endif
