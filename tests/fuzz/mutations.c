/* Every small change of a small valid model: each truncation, each byte set to 8 values, each
 * 8-byte window of the header set to 16 boundary values. Each result is loaded, and what loads
 * generates two tokens. Run under sanitizers (make test-mutations); any status is right, any
 * report of a sanitizer is not.
 *
 *     mutations FILE [STEP]      every STEP-th change only (default 1: all) */
#include <stdio.h>
#include <time.h>

#include "harness.h"

static uint8_t *bytes; /* (n_bytes) the valid file */
static size_t n_bytes;
static unsigned long step = 1, n_made, n_run, n_loaded, n_generated;
static double slowest_s;

static double now_s(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static void try(const uint8_t *data, size_t n) {
    if (n_made++ % step != 0)
        return;
    double start = now_s();
    wina_model *model = NULL;
    n_run++;
    if (harness_load(data, n, 0, &model) == WINA_OK) {
        n_loaded++;
        harness_inspect(model);
        harness_tokenize(model, "abc ab a<|end|>d", 16);
        n_generated += harness_run(model, 2) == WINA_OK;
    } else if (!wina_error()[0]) {
        fprintf(stderr, "a failure without a reason\n");
        abort();
    }
    wina_model_free(model);
    double s = now_s() - start;
    slowest_s = s > slowest_s ? s : slowest_s;
}

static void change_bytes(void) {
    for (size_t i = 0; i < n_bytes; i++) {
        uint8_t old = bytes[i];
        const uint8_t values[] = {0,    1,          0x7F,       0x80,
                                  0xFF, old ^ 0x01, old ^ 0x80, (uint8_t)(old + 1)};
        for (size_t k = 0; k < sizeof values; k++) {
            bytes[i] = values[k];
            try(bytes, n_bytes);
        }
        bytes[i] = old;
    }
}

/* Fields lie anywhere, so every offset of the header counts as one. */
static void change_words(size_t n_header) {
    const uint64_t values[] = {0,          1,          2,          0x7FFFFFFF,       0x80000000,
                               0xFFFFFFFF, 1ull << 32, 1ull << 40, (1ull << 61) - 1, 1ull << 61,
                               1ull << 62, INT64_MAX,  1ull << 63, UINT64_MAX - 31,  UINT64_MAX - 7,
                               UINT64_MAX};
    for (size_t i = 4; i + 8 <= n_header; i++) {
        uint64_t old;
        memcpy(&old, bytes + i, 8);
        for (size_t k = 0; k < sizeof values / sizeof values[0]; k++) {
            memcpy(bytes + i, &values[k], 8);
            try(bytes, n_bytes);
        }
        memcpy(bytes + i, &old, 8);
    }
}

int main(int argc, char **argv) {
    FILE *file = argc > 1 ? fopen(argv[1], "rb") : NULL;
    static uint8_t store[1 << 16];
    if (!file || (n_bytes = fread(store, 1, sizeof store, file)) == 0) {
        fprintf(stderr, "usage: mutations FILE [STEP]\n");
        return 2;
    }
    fclose(file);
    bytes = store;
    try(bytes, n_bytes);
    if (n_generated != 1) {
        fprintf(stderr, "%s must load and run: %s\n", argv[1], wina_error());
        return 1;
    }
    step = argc > 2 ? strtoul(argv[2], NULL, 10) : 1;
    step = step ? step : 1;
    for (size_t n = 0; n < n_bytes; n++)
        try(bytes, n);
    change_bytes();
    change_words(n_bytes);
    printf("mutations: %lu of %lu files, %lu load, %lu generate, slowest %.1f ms\n", n_run, n_made,
           n_loaded, n_generated, slowest_s * 1e3);
    return 0;
}
