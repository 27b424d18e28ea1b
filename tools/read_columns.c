/* read_columns: what skipping columns can save on this machine, whatever multiplies them. A buffer
 * far larger than the caches, in huge pages where the system gives them, is cut into columns of
 * which some are kept at random; reading those is timed against reading everything.
 *
 *   cc -O2 -pthread tools/read_columns.c -o read_columns
 *   read_columns BYTES KEPT THREADS [ROUNDS]      column length, share that is kept, 1..64 threads
 *
 * The ways take turns; times are those of the threads' processors, so that other programs disturb
 * them less, and every ratio is the median over the rounds. */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>

enum { LINE = 64, MAX_THREADS = 64, MAX_ROUNDS = 500, BUFFER = 150 << 20 };

typedef struct way {
    const char *name;
    int ahead;    /* columns that are fetched ahead; 0: none */
    int shuffled; /* columns that change places with each other; 1: none do */
} way;

static const way WAYS[] = {
    {"everything, front to back", 0, 0}, {"kept columns, no fetching", 0, 1},
    {"kept columns, 3 ahead", 3, 1},     {"kept columns, 12 ahead", 12, 1},
    {"kept columns, 48 ahead", 48, 1},   {"any order of 64 columns, 12 ahead", 12, 64},
    {"any order, 24 ahead", 24, BUFFER},
};
enum { N_WAYS = sizeof WAYS / sizeof *WAYS };

typedef struct reader {
    const uint8_t *data;
    const size_t *kept; /* where columns begin; NULL: everything is read */
    size_t begin, end;  /* columns of `kept`, or bytes */
    size_t n_bytes;     /* of a column */
    int ahead;
    pthread_barrier_t *barrier;
    double seconds;
    uint64_t sum;
} reader;

static double processor_seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* One word of every line: the memory is what is measured. */
static uint64_t sum_lines(const uint8_t *data, size_t begin, size_t end) {
    uint64_t sum = 0;
    for (size_t at = begin / LINE * LINE; at < end; at += LINE)
        sum += *(const uint64_t *)(const void *)(data + at);
    return sum;
}

static void *run_reader(void *arg) {
    reader *r = arg;
    pthread_barrier_wait(r->barrier);
    const double start = processor_seconds();
    if (!r->kept)
        r->sum = sum_lines(r->data, r->begin, r->end);
    for (size_t i = r->begin; r->kept && i < r->end; i++) {
        const size_t next = i + (size_t)r->ahead;
        if (r->ahead && next < r->end)
            for (size_t at = r->kept[next] / LINE * LINE; at < r->kept[next] + r->n_bytes;
                 at += LINE)
                __builtin_prefetch(r->data + at, 0, 2);
        r->sum += sum_lines(r->data, r->kept[i], r->kept[i] + r->n_bytes);
    }
    r->seconds = processor_seconds() - start;
    return NULL;
}

/* Mean seconds of a thread. */
static double measure(const reader *whole, size_t n, int n_threads) {
    static volatile uint64_t sum; /* or nothing would have to be read */
    pthread_t threads[MAX_THREADS];
    reader readers[MAX_THREADS];
    pthread_barrier_t barrier;
    double seconds = 0;
    pthread_barrier_init(&barrier, NULL, (unsigned)n_threads);
    for (int i = 0; i < n_threads; i++) {
        readers[i] = *whole;
        readers[i].begin = n * (size_t)i / (size_t)n_threads;
        readers[i].end = n * (size_t)(i + 1) / (size_t)n_threads;
        readers[i].barrier = &barrier;
        if (pthread_create(&threads[i], NULL, run_reader, &readers[i]) != 0)
            exit(1);
    }
    for (int i = 0; i < n_threads; i++) {
        pthread_join(threads[i], NULL);
        seconds += readers[i].seconds / n_threads;
        sum += readers[i].sum;
    }
    pthread_barrier_destroy(&barrier);
    return seconds;
}

static int compare(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

int main(int argc, char **argv) {
    static double ratio[N_WAYS][MAX_ROUNDS];
    const size_t n_bytes = argc > 3 ? strtoul(argv[1], NULL, 10) : 0;
    const double share = argc > 3 ? strtod(argv[2], NULL) : 0;
    const int n_threads = argc > 3 ? atoi(argv[3]) : 0, n_rounds = argc > 4 ? atoi(argv[4]) : 15;
    if (n_bytes < LINE || n_bytes > BUFFER || share <= 0 || share > 1 || n_threads < 1 ||
        n_threads > MAX_THREADS || n_rounds < 1 || n_rounds > MAX_ROUNDS)
        return fputs("usage: read_columns BYTES KEPT THREADS [ROUNDS]\n", stderr), 2;
    uint8_t *data = mmap(NULL, BUFFER, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    const size_t n_cols = BUFFER / n_bytes;
    size_t *kept[N_WAYS] = {NULL}, n_kept = 0;
    if (data == MAP_FAILED)
        return fputs("read_columns: out of memory\n", stderr), 1;
    (void)madvise(data, BUFFER, MADV_HUGEPAGE);
    for (size_t i = 0; i < BUFFER; i += sizeof(uint64_t))
        *(uint64_t *)(void *)(data + i) = i;
    for (int w = 1; w < N_WAYS; w++) {
        if (!(kept[w] = malloc(n_cols * sizeof *kept[w])))
            return fputs("read_columns: out of memory\n", stderr), 1;
        srand(1);
        n_kept = 0;
        for (size_t i = 0; i < n_cols; i++)
            if (rand() <= share * RAND_MAX)
                kept[w][n_kept++] = i * n_bytes;
        for (size_t i = 0; i < n_kept; i++) {
            const size_t first = i / (size_t)WAYS[w].shuffled * (size_t)WAYS[w].shuffled;
            const size_t other = first + (size_t)rand() % (i - first + 1), moved = kept[w][i];
            kept[w][i] = kept[w][other];
            kept[w][other] = moved;
        }
    }
    for (int round = 0; round < n_rounds; round++)
        for (int w = 0; w < N_WAYS; w++) {
            const reader r = {
                .data = data, .kept = kept[w], .n_bytes = n_bytes, .ahead = WAYS[w].ahead};
            ratio[w][round] = measure(&r, w ? n_kept : BUFFER, n_threads);
        }
    for (int w = N_WAYS - 1; w >= 0; w--)
        for (int round = 0; round < n_rounds; round++)
            ratio[w][round] /= ratio[0][round];
    for (int w = 1; w < N_WAYS; w++) {
        qsort(ratio[w], (size_t)n_rounds, sizeof **ratio, compare);
        printf("%-34s %.2f of the time of %s\n", WAYS[w].name, ratio[w][n_rounds / 2],
               WAYS[0].name);
    }
    return 0;
}
