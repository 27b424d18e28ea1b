/* The pool runs every step on every thread exactly once, after pauses too. */
#include <stdatomic.h>
#include <unistd.h>

#include "check.h"
#include "threads.h"
#include "wina.h"

typedef struct tally {
    atomic_int calls;
    atomic_int by_thread[8];
    long sum[8];
} tally;

static void step(void *arg, int32_t thread, int32_t n_threads) {
    tally *t = arg;
    atomic_fetch_add(&t->calls, 1);
    atomic_fetch_add(&t->by_thread[thread], 1);
    int64_t begin, end;
    wina_threads_share(1000, thread, n_threads, &begin, &end);
    t->sum[thread] = 0;
    for (int64_t i = begin; i < end; i++)
        t->sum[thread] += i;
}

int main(void) {
    for (int32_t n = 1; n <= 5; n++) {
        wina_threads *threads;
        CHECK(wina_threads_create(n, &threads) == WINA_OK);
        CHECK(wina_threads_count(threads) == n);
        tally t = {0};
        int n_wrong = 0;
        for (int i = 0; i < 2000; i++) {
            wina_threads_run(threads, step, &t);
            long sum = 0;
            for (int32_t j = 0; j < n; j++)
                sum += t.sum[j];
            n_wrong += sum != 999 * 1000 / 2 || atomic_load(&t.calls) != (i + 1) * n;
            if (i % 500 == 0)
                usleep(5000); /* workers fall asleep */
        }
        CHECK(n_wrong == 0);
        for (int32_t j = 0; j < n; j++)
            CHECK(atomic_load(&t.by_thread[j]) == 2000);
        wina_threads_free(threads);
    }
    wina_threads *none;
    CHECK(wina_threads_create(0, &none) != WINA_OK && none == NULL);
    CHECK(wina_threads_cores() >= 1);
    return check_report("threads");
}
