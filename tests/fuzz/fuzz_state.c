/* The input is a saved state, loaded into a session of a small model ($WINA_FUZZ_MODEL, or the kept
 * one); its checksum and the model's fingerprint are put right first where there is room for them.
 * What loads goes on for two tokens. */
#include <stdio.h>

#include "harness.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

/* The header's fields, as in state.c: magic 8, version 4, n_past 4, model 8, n_bytes 8, sum 8. */
enum { AT_MODEL = 16, AT_BYTES = 24, AT_SUM = 32, HEADER = 40 };

static wina_session *session;
static uint8_t valid[1 << 12];
static size_t n_valid;

static void start(void) {
    static uint8_t file[1 << 14];
    const char *path = getenv("WINA_FUZZ_MODEL");
    FILE *in = fopen(path ? path : "tests/fuzz/corpus/good.gguf", "rb");
    size_t n = in ? fread(file, 1, sizeof file, in) : 0;
    wina_model *model = NULL;
    if (in)
        fclose(in);
    wina_session_params sp;
    wina_session_params_init(&sp);
    sp.n_threads = 1;
    sp.n_ctx = 16;
    if (harness_load(file, n, 0, &model) != WINA_OK ||
        wina_session_create(model, &sp, &session) != WINA_OK ||
        wina_session_prefill(session, (const int32_t[]){1, 2, 3}, 3) != WINA_OK ||
        wina_session_save_state(session, valid, sizeof valid, &n_valid) != WINA_OK) {
        fprintf(stderr, "no model to fuzz states of: %s\n", wina_error());
        exit(1);
    }
}

/* state.c's sums, so that inputs get past their comparison. */
static uint64_t add_bytes(uint64_t h, const uint8_t *p, size_t n) {
    for (size_t i = 0; i < n; i++)
        h = (h ^ p[i]) * 0x100000001b3u;
    return h;
}

static uint64_t sum_of(const uint8_t *state, size_t n) {
    uint64_t h = add_bytes(0xcbf29ce484222325u, state, AT_SUM), word;
    const uint8_t *p = state + HEADER, *end = state + n;
    for (; (size_t)(end - p) >= sizeof word; p += sizeof word) {
        memcpy(&word, p, sizeof word);
        h = (h ^ word) * 0x9e3779b97f4a7c15u;
        h ^= h >> 29;
    }
    return add_bytes(h, p, (size_t)(end - p));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n) {
    if (!session)
        start();
    uint8_t *state = malloc(n + 1);
    if (!state)
        return 0;
    memcpy(state, data, n);
    if (n >= HEADER) {
        uint64_t sum;
        memcpy(state + AT_MODEL, valid + AT_MODEL, 8);
        sum = sum_of(state, n);
        memcpy(state + AT_SUM, &sum, sizeof sum);
    }
    /* The valid one must always load, whatever came before. */
    if (wina_session_load_state(session, valid, n_valid) != WINA_OK)
        abort();
    if (n == 0 || wina_session_load_state(session, state, n) != WINA_OK) {
        if (wina_session_prefill(session, (const int32_t[]){4}, 1) != WINA_OK)
            abort(); /* a refused state must change nothing */
    } else {
        wina_session_prefill(session, (const int32_t[]){4, 5},
                             2); /* NaN and a full context may fail */
    }
    free(state);
    return 0;
}
