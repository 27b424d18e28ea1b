/* bandwidth: how fast this machine reads memory, the bound of decoding. A buffer far larger than
 * the caches, in huge pages where the system gives them, is read front to back by 1..N threads,
 * each its own part; every repetition is timed from the first thread's start to the last one's end.
 *
 *   cc -O3 -march=native -pthread tools/bandwidth.c -o bandwidth
 *   bandwidth [-t THREADS] [-m MIB] [-r REPEATS]
 *
 * Prints JSON: [{"n_threads": 1, "gb_s": median, "gb_s_min": .., "gb_s_max": ..}, ...]
 */
#define _GNU_SOURCE
#include <inttypes.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

enum { MAX_THREADS = 256, MAX_REPEATS = 1000, LANES = 64 };

typedef struct reader {
    const uint64_t *data;
    size_t n; /* a multiple of LANES */
    int repeats;
    pthread_barrier_t *barrier;
    double *seconds; /* (repeats) written by the first thread; NULL for the others */
    uint64_t sum;
} reader;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* LANES independent sums keep many loads in flight; the compiler makes vectors of them. */
static uint64_t sum_all(const uint64_t *data, size_t n) {
    uint64_t lanes[LANES] = {0}, total = 0;
    for (size_t i = 0; i < n; i += LANES)
        for (size_t k = 0; k < LANES; k++)
            lanes[k] += data[i + k];
    for (size_t k = 0; k < LANES; k++)
        total += lanes[k];
    return total;
}

static void *read_part(void *arg) {
    reader *r = arg;
    for (int i = 0; i < r->repeats; i++) {
        pthread_barrier_wait(r->barrier);
        double start = now();
        r->sum += sum_all(r->data, r->n);
        pthread_barrier_wait(r->barrier);
        if (r->seconds)
            r->seconds[i] = now() - start;
    }
    return NULL;
}

static int compare(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Runs n_threads readers over data; prints their row. Returns 0, or 1 if threads cannot be made. */
static int measure(const uint64_t *data, size_t n, int n_threads, int repeats) {
    static double seconds[MAX_REPEATS];
    reader readers[MAX_THREADS];
    pthread_t threads[MAX_THREADS];
    pthread_barrier_t barrier;
    size_t part = n / (size_t)n_threads / LANES * LANES;
    uint64_t sum = 0;
    if (pthread_barrier_init(&barrier, NULL, (unsigned)n_threads) != 0)
        return 1;
    for (int i = 0; i < n_threads; i++) {
        readers[i] =
            (reader){data + part * (size_t)i, part, repeats, &barrier, i == 0 ? seconds : NULL, 0};
        if (i > 0 && pthread_create(&threads[i], NULL, read_part, &readers[i]) != 0)
            return 1;
    }
    read_part(&readers[0]);
    sum = readers[0].sum;
    for (int i = 1; i < n_threads; i++) {
        pthread_join(threads[i], NULL);
        sum += readers[i].sum;
    }
    pthread_barrier_destroy(&barrier);
    qsort(seconds, (size_t)repeats, sizeof *seconds, compare);
    double gb = (double)(part * (size_t)n_threads * sizeof *data) / 1e9;
    printf("{\"n_threads\": %d, \"gb_s\": %.2f, \"gb_s_min\": %.2f, \"gb_s_max\": %.2f, "
           "\"checksum\": \"%016" PRIx64 "\"}",
           n_threads, gb / seconds[repeats / 2], gb / seconds[repeats - 1], gb / seconds[0], sum);
    return 0;
}

/* A number in [1, high], or exits. */
static int parse(const char *text, int high) {
    char *end;
    long value = strtol(text, &end, 10);
    if (*end != '\0' || value < 1 || value > high) {
        fprintf(stderr, "bandwidth: \"%s\" is not a number in 1..%d\n", text, high);
        exit(1);
    }
    return (int)value;
}

int main(int argc, char **argv) {
    int n_threads = 2, mib = 2048, repeats = 9, option;
    while ((option = getopt(argc, argv, "t:m:r:")) != -1) {
        if (option == 't')
            n_threads = parse(optarg, MAX_THREADS);
        else if (option == 'm')
            mib = parse(optarg, 1 << 20);
        else if (option == 'r')
            repeats = parse(optarg, MAX_REPEATS);
        else
            return 1;
    }
    size_t n_bytes = (size_t)mib << 20, n = n_bytes / sizeof(uint64_t);
    uint64_t *data =
        mmap(NULL, n_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (data == MAP_FAILED) {
        fprintf(stderr, "bandwidth: cannot allocate %d MiB\n", mib);
        return 1;
    }
    (void)madvise(data, n_bytes, MADV_HUGEPAGE); /* without huge pages it is only slower */
    for (size_t i = 0; i < n; i++)
        data[i] = i * 0x9e3779b97f4a7c15u;
    printf("[");
    for (int t = 1; t <= n_threads; t++) {
        printf(t > 1 ? ",\n " : "");
        if (measure(data, n, t, repeats) != 0) {
            fprintf(stderr, "bandwidth: cannot start %d threads\n", t);
            return 1;
        }
    }
    printf("]\n");
    return 0;
}
