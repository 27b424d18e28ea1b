/* Processor time of a decoded token at the start of a context and behind a long one.
 *
 *   cc -O2 -Inative/include -Inative/src tools/time_depth.c build/lib/libwina.a -lm -pthread -ldl -o time_depth
 *   time_depth MODEL DEPTH [f16|f32]
 *
 * The context is not evaluated: keys and values are random numbers in a state that is made up here
 * (the format of native/src/state.c), so that the measurement takes seconds. One thread; the time
 * is that of the thread and not the clock's, so other programs on the machine disturb it less.
 * Models with sliding windows are refused. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <wina.h>

#include "statehash.h"

enum { HEADER = 56, N_TOKENS = 8, N_ROUNDS = 3 };

static void must(int32_t status) {
    if (status == WINA_OK)
        return;
    fprintf(stderr, "time_depth: %s\n", wina_error());
    exit(1);
}

static double thread_seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* A state of `depth` tokens, from one of none. */
static unsigned char *make_state(wina_session *session, int32_t depth, uint64_t rows, int wide) {
    size_t n = 0;
    const uint64_t n_bytes = HEADER + rows;
    unsigned char *state = malloc(n_bytes);
    must(state ? wina_session_save_state(session, state, HEADER, &n) : WINA_E_MEMORY);
    memcpy(state + 12, &depth, sizeof depth);
    memcpy(state + 40, &n_bytes, sizeof n_bytes);
    uint32_t r = 1;
    for (uint64_t i = HEADER; i < n_bytes; i += wide ? 4 : 2) {
        r = r * 1664525u + 1013904223u;
        const uint16_t half = (uint16_t)(0x2800 | (r >> 16 & 0x83ff)); /* 0.03 to 0.06 */
        const float single = (float)(int32_t)r * 0x1p-36f;
        memcpy(state + i, wide ? (const void *)&single : (const void *)&half, wide ? 4 : 2);
    }
    const uint64_t head = wina_statehash_bytes(WINA_STATEHASH_START, state, HEADER - 8);
    const uint64_t sum = wina_statehash_words(head, state + HEADER, rows);
    memcpy(state + HEADER - 8, &sum, sizeof sum);
    return state;
}

int main(int argc, char **argv) {
    const int32_t depth = argc > 2 ? atoi(argv[2]) : 0;
    const int wide = argc > 3 && strcmp(argv[3], "f32") == 0;
    wina_model *model = NULL;
    wina_session *session = NULL;
    wina_session_params p;
    wina_model_info info;
    if (depth < 1)
        return fputs("usage: time_depth MODEL DEPTH [f16|f32]\n", stderr), 2;
    wina_session_params_init(&p);
    p.n_ctx = depth + N_TOKENS + 1;
    p.n_threads = 1;
    p.cache_type_k = p.cache_type_v = wide ? WINA_CACHE_F32 : WINA_CACHE_F16;
    must(wina_model_load(argv[1], NULL, &model));
    must(wina_session_create(model, &p, &session));
    must(wina_model_get_info(model, &info));
    const uint64_t rows = (uint64_t)info.kv_bytes_per_token * (uint64_t)depth * (wide ? 2 : 1);
    unsigned char *state = make_state(session, depth, rows, wide);
    for (int round = 0; round < N_ROUNDS; round++) {
        double seconds[2];
        for (int deep = 0; deep < 2; deep++) {
            must(wina_session_truncate(session, 0));
            if (deep)
                must(wina_session_load_state(session, state, HEADER + rows));
            must(wina_session_decode(session, 1));
            const double start = thread_seconds();
            for (int32_t i = 0; i < N_TOKENS; i++)
                must(wina_session_decode(session, 2 + i));
            seconds[deep] = (thread_seconds() - start) / N_TOKENS;
        }
        printf("depth 0: %.1f ms, depth %d: %.1f ms a token\n", 1e3 * seconds[0], depth,
               1e3 * seconds[1]);
        fflush(stdout);
    }
    free(state);
    wina_session_free(session);
    wina_model_free(model);
    return 0;
}
