/* The step counter `generation` is the only thing workers watch: it changes when a step is ready.
 * `pending` counts workers that have not finished the step. Sleeping workers are woken through a
 * condition variable; `n_asleep` keeps the common case free of system calls. */
#include "threads.h"

#include <limits.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>

#include "mem.h"
#include "status.h"

enum { MAX_THREADS = 512, SPINS = 20000, SPINS_BEFORE_YIELD = 2000 };

typedef struct worker {
    struct wina_threads *pool;
    pthread_t id;
    int32_t index;
} worker;

struct wina_threads {
    int32_t n_threads;
    int32_t n_started; /* workers that exist */
    wina_threads_fn fn;
    void *arg;
    _Alignas(64) atomic_uint generation;
    _Alignas(64) atomic_int pending;
    _Alignas(64) atomic_int n_asleep;
    atomic_bool stop;
    pthread_mutex_t mutex;
    pthread_cond_t wake;
    worker *workers; /* (n_threads - 1) */
};

static inline void relax(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ __volatile__("yield");
#endif
}

static void wait_for_step(wina_threads *t, unsigned seen) {
    for (int i = 0; i < SPINS; i++) {
        if (atomic_load_explicit(&t->generation, memory_order_acquire) != seen)
            return;
        relax();
        if (i > SPINS_BEFORE_YIELD && i % 256 == 0)
            sched_yield();
    }
    pthread_mutex_lock(&t->mutex);
    atomic_fetch_add(&t->n_asleep, 1);
    while (atomic_load(&t->generation) == seen)
        pthread_cond_wait(&t->wake, &t->mutex);
    atomic_fetch_sub(&t->n_asleep, 1);
    pthread_mutex_unlock(&t->mutex);
}

static void publish_step(wina_threads *t) {
    /* Sequentially consistent with n_asleep: either we see the sleeper, or it sees the step. */
    atomic_fetch_add(&t->generation, 1);
    if (atomic_load(&t->n_asleep) > 0) {
        pthread_mutex_lock(&t->mutex);
        pthread_cond_broadcast(&t->wake);
        pthread_mutex_unlock(&t->mutex);
    }
}

static void *worker_main(void *arg) {
    worker *w = arg;
    wina_threads *t = w->pool;
    for (unsigned seen = 0;; seen++) {
        wait_for_step(t, seen);
        if (atomic_load_explicit(&t->stop, memory_order_acquire))
            return NULL;
        t->fn(t->arg, w->index, t->n_threads);
        atomic_fetch_sub_explicit(&t->pending, 1, memory_order_release);
    }
}

int32_t wina_threads_create(int32_t n_threads, wina_threads **out) {
    *out = NULL;
    if (n_threads < 1 || n_threads > MAX_THREADS)
        return wina_fail(WINA_E_ARGUMENT, "n_threads is %d, must be in 1..%d", n_threads,
                         MAX_THREADS);
    wina_threads *t = NULL;
    if (posix_memalign((void **)&t, 64, sizeof *t) != 0)
        return wina_fail(WINA_E_MEMORY, "out of memory: thread pool");
    *t = (wina_threads){.n_threads = n_threads};
    pthread_mutex_init(&t->mutex, NULL);
    pthread_cond_init(&t->wake, NULL);
    int32_t status =
        wina_mem_create((uint64_t)n_threads, sizeof *t->workers, "thread pool", &t->workers);
    for (int32_t i = 1; i < n_threads && status == WINA_OK; i++) {
        worker *w = &t->workers[i - 1];
        *w = (worker){.pool = t, .index = i};
        if (pthread_create(&w->id, NULL, worker_main, w) != 0)
            status = wina_fail(WINA_E_MEMORY, "cannot start thread %d of %d", i + 1, n_threads);
        else
            t->n_started++;
    }
    if (status != WINA_OK) {
        wina_threads_free(t);
        return status;
    }
    *out = t;
    return WINA_OK;
}

void wina_threads_free(wina_threads *t) {
    if (!t)
        return;
    atomic_store_explicit(&t->stop, true, memory_order_release);
    publish_step(t);
    for (int32_t i = 0; i < t->n_started; i++)
        pthread_join(t->workers[i].id, NULL);
    pthread_cond_destroy(&t->wake);
    pthread_mutex_destroy(&t->mutex);
    free(t->workers);
    free(t);
}

wina_threads *wina_threads_solo(void) {
    static wina_threads solo = {.n_threads = 1}; /* never written */
    return &solo;
}

int32_t wina_threads_count(const wina_threads *t) {
    return t->n_threads;
}

void wina_threads_run(wina_threads *t, wina_threads_fn fn, void *arg) {
    if (t->n_threads == 1) {
        fn(arg, 0, 1);
        return;
    }
    t->fn = fn;
    t->arg = arg;
    atomic_store_explicit(&t->pending, t->n_threads - 1, memory_order_relaxed);
    publish_step(t);
    fn(arg, 0, t->n_threads);
    for (int i = 0; atomic_load_explicit(&t->pending, memory_order_acquire) > 0; i++) {
        relax();
        if (i > SPINS_BEFORE_YIELD && i % 256 == 0)
            sched_yield();
    }
}

/* Reads one small number from a file of /sys; -1 if there is none. */
static int read_sys_number(const char *format, int cpu) {
    char path[128];
    snprintf(path, sizeof path, format, cpu);
    FILE *f = fopen(path, "r");
    char text[32] = "", *end = text;
    if (f) {
        if (!fgets(text, sizeof text, f))
            text[0] = 0;
        fclose(f);
    }
    const long value = strtol(text, &end, 10);
    return end == text || value < -1 || value > INT_MAX ? -1 : (int)value;
}

int32_t wina_threads_cores(void) {
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) != 0)
        return 1;
    /* A core is a (package, core id) pair; hyperthreads share it. */
    int32_t n_cores = 0, n_cpus = 0;
    int64_t seen[CPU_SETSIZE];
    for (int cpu = 0; cpu < CPU_SETSIZE; cpu++) {
        if (!CPU_ISSET((size_t)cpu, &set))
            continue;
        n_cpus++;
        int core = read_sys_number("/sys/devices/system/cpu/cpu%d/topology/core_id", cpu);
        int package =
            read_sys_number("/sys/devices/system/cpu/cpu%d/topology/physical_package_id", cpu);
        if (core < 0)
            continue;
        /* The package is -1 where the system knows of none. */
        int64_t id = (int64_t)package * 65536 + core;
        bool known = false;
        for (int32_t i = 0; i < n_cores && !known; i++)
            known = seen[i] == id;
        if (!known)
            seen[n_cores++] = id;
    }
    return n_cores > 0 ? n_cores : n_cpus > 0 ? n_cpus : 1;
}
