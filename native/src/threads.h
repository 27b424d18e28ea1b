/* threads: a pool for fork-join steps that last microseconds. run() hands one function to every
 * thread, the caller being thread 0, and returns when all have finished. Workers spin briefly for
 * the next step, then sleep. What a step computes must not depend on how many threads share it. */
#ifndef WINA_THREADS_H
#define WINA_THREADS_H

#include <stdint.h>

typedef struct wina_threads wina_threads;
typedef void (*wina_threads_fn)(void *arg, int32_t thread, int32_t n_threads);

/* n_threads >= 1, the caller included. */
int32_t wina_threads_create(int32_t n_threads, wina_threads **out);
void wina_threads_free(wina_threads *threads); /* accepts NULL */

/* A pool of the caller alone, of which any number of threads may be the caller. Not to be freed. */
wina_threads *wina_threads_solo(void);

int32_t wina_threads_count(const wina_threads *threads);
void wina_threads_run(wina_threads *threads, wina_threads_fn fn, void *arg);

/* The part [*begin, *end) of n items that belongs to thread of n_threads: contiguous, even. */
static inline void wina_threads_share(int64_t n, int32_t thread, int32_t n_threads, int64_t *begin,
                                      int64_t *end) {
    *begin = n * thread / n_threads;
    *end = n * (thread + 1) / n_threads;
}

/* Physical cores this process may run on; at least 1. */
int32_t wina_threads_cores(void);

#endif
