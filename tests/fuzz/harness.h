/* harness: models from bytes in memory, for the fuzz targets and the mutation test. Programs that
 * use it are linked with --wrap for the functions of mapfile, so that a "file" is a block on the
 * heap of exactly the file's size: reading one byte too far is an error that a sanitizer sees. It
 * starts at a border of 64 bytes, which packed files ask of a mapping. */
#ifndef HARNESS_H
#define HARNESS_H

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "mapfile.h"
#include "status.h"
#include "wina.h"

static const uint8_t *harness_data;
static size_t harness_n;

int32_t __wrap_wina_mapfile_open(const char *path, wina_mapfile *out);
void __wrap_wina_mapfile_close(wina_mapfile *map);
void __wrap_wina_mapfile_release(const wina_mapfile *map, uint64_t offset, uint64_t n_bytes);

int32_t __wrap_wina_mapfile_open(const char *path, wina_mapfile *out) {
    *out = (wina_mapfile){0};
    if (harness_n == 0)
        return wina_fail(WINA_E_FORMAT, "%s: the file is empty", path);
    void *copy = NULL;
    if (posix_memalign(&copy, 64, harness_n) != 0)
        return wina_fail(WINA_E_MEMORY, "%s: out of memory", path);
    memcpy(copy, harness_data, harness_n);
    *out = (wina_mapfile){.data = copy, .n_bytes = harness_n};
    return WINA_OK;
}

void __wrap_wina_mapfile_close(wina_mapfile *map) {
    free((void *)(uintptr_t)map->data);
    *map = (wina_mapfile){0};
}

void __wrap_wina_mapfile_release(const wina_mapfile *map, uint64_t offset, uint64_t n_bytes) {
    (void)map, (void)offset, (void)n_bytes;
}

/* The bytes as a model, loaded whole by one thread on the CPU. */
static inline int32_t harness_load(const uint8_t *data, size_t n, int32_t vocab_only,
                                   wina_model **out) {
    harness_data = data;
    harness_n = n;
    wina_model_params p;
    wina_model_params_init(&p);
    p.n_threads = 1;
    p.vocab_only = vocab_only;
    p.backend = WINA_BACKEND_CPU;
    return wina_model_load("memory", &p, out);
}

/* What every inspection of a loaded model reads. */
static inline void harness_inspect(const wina_model *model) {
    wina_model_info info;
    wina_model_get_info(model, &info);
    char key[64], text[256];
    for (int32_t i = 0; i < wina_model_meta_count(model); i++)
        wina_model_get_meta(model, i, key, sizeof key, text, sizeof text);
    wina_tensor_info tensor;
    for (int32_t i = 0; i < wina_model_tensor_count(model); i++)
        wina_model_get_tensor(model, i, &tensor);
    wina_sparsity rule;
    wina_sparsity_init(&rule);
    rule.sparsity = 0.5f;
    wina_model_describe_rule(model, &rule, text, sizeof text);
}

/* The state of a session, saved and loaded again: it must fit. */
static inline void harness_state(wina_session *session) {
    size_t n = 0;
    wina_session_save_state(session, NULL, 0, &n);
    uint8_t *state = n ? malloc(n) : NULL;
    if (state && wina_session_save_state(session, state, n, &n) == WINA_OK &&
        wina_session_load_state(session, state, n) != WINA_OK)
        abort();
    free(state);
}

/* A prompt of one token and n greedy tokens after it, at 50% sparsity. Any status is fine. */
static inline int32_t harness_run(const wina_model *model, int32_t n) {
    wina_session_params sp;
    wina_session_params_init(&sp);
    sp.n_threads = 1;
    sp.n_ctx = 16;
    sp.sparsity.sparsity = 0.5f;
    wina_session *session = NULL;
    wina_stream *stream = NULL;
    int32_t status = wina_session_create(model, &sp, &session);
    if (status == WINA_OK) {
        int32_t prompt = 1;
        wina_stream_params p;
        wina_stream_params_init(&p);
        p.tokens = &prompt;
        p.n_tokens = 1;
        p.max_tokens = n;
        p.ignore_eog = 1;
        p.sampler.temperature = 0;
        status = wina_stream_create(session, &p, &stream);
    }
    for (wina_chunk c = {.finish = WINA_FINISH_NONE};
         status == WINA_OK && c.finish == WINA_FINISH_NONE;)
        status = wina_stream_next(stream, &c);
    wina_stream_free(stream);
    if (session)
        harness_state(session);
    wina_session_free(session);
    return status;
}

/* A text through the tokenizer and back, with and without control tokens. */
static inline void harness_tokenize(const wina_model *model, const char *text, size_t n) {
    int32_t tokens[512];
    char back[4096];
    for (int32_t flags = 0; flags < 4; flags++) {
        size_t n_tokens = 0, n_bytes = 0;
        int32_t status = wina_tokenize(model, text, n, flags, tokens, 512, &n_tokens);
        if (status != WINA_OK)
            continue;
        wina_detokenize(model, tokens, n_tokens, flags & 1, back, sizeof back, &n_bytes);
        for (size_t i = 0; i < n_tokens; i++)
            if (!(flags & WINA_TOKENIZE_PARSE_SPECIAL) && !(flags & WINA_TOKENIZE_ADD_SPECIAL) &&
                wina_token_is_eog(model, tokens[i]))
                abort(); /* plain text became the end of an answer */
    }
}

#endif
