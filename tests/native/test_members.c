/* Streams of several sessions that step together give what each gives alone: chunks, counters and
 * logits, with settings, threads and lengths of their own. Python tests do it on larger models;
 * this one runs under sanitizers and emulation. */
#include <stdbool.h>

#include "check.h"
#include "wina.h"

enum { N = 5, N_TOKENS = 9 };

static const wina_sparsity KINDS[N] = {
    {.method = WINA_METHOD_WINA, .exponent = -1},
    {.sparsity = 0.5f, .method = WINA_METHOD_WINA, .exponent = -1},
    {.sparsity = 0.5f,
     .method = WINA_METHOD_WINA,
     .mask = WINA_MASK_PROJECTION,
     .budget = WINA_BUDGET_UNIFORM,
     .exponent = 1},
    {.sparsity = 0.25f, .method = WINA_METHOD_TEAL, .exponent = -1},
    {.sparsity = 0.75f, .method = WINA_METHOD_WINA, .exponent = -1},
};

typedef struct run {
    wina_session *sessions[N];
    wina_stream *streams[N];
} run;

static void start(const wina_model *model, int32_t n_threads, run *r) {
    const int32_t prompt[] = {1, 2, 3, 4, 5, 6};
    for (int i = 0; i < N; i++) {
        wina_session_params p;
        wina_session_params_init(&p);
        p.n_ctx = i == 3 ? 8 : 16; /* this one's context ends early */
        p.n_threads = n_threads;
        p.n_batch = i == 0 ? 3 : 4; /* so many step at once */
        p.sparsity = KINDS[i];
        wina_stream_params sp;
        wina_stream_params_init(&sp);
        sp.tokens = prompt + (i == 3);
        sp.n_tokens = 2 + i % 3;
        sp.max_tokens = i == 4 ? 3 : N_TOKENS;
        sp.ignore_eog = 1;
        sp.sampler.seed = i;
        CHECK(wina_session_create(model, &p, &r->sessions[i]) == WINA_OK);
        CHECK(wina_stream_create(r->sessions[i], &sp, &r->streams[i]) == WINA_OK);
    }
}

static void stop(run *r) {
    for (int i = 0; i < N; i++) {
        wina_stream_free(r->streams[i]);
        wina_session_free(r->sessions[i]);
    }
}

static void compare(const wina_model *model, int32_t n_threads, int32_t n_vocab) {
    run together, alone;
    bool done[N] = {false};
    start(model, n_threads, &together);
    start(model, n_threads, &alone);
    for (int i = 0; i < N; i++) {
        int32_t left = -1;
        CHECK(wina_stream_prefill(together.streams[i], 1, &left) == WINA_OK);
        CHECK(left == 1 + i % 3);
        CHECK(wina_stream_prefill(together.streams[i], 0, &left) == WINA_E_ARGUMENT);
        while (left > 0)
            CHECK(wina_stream_prefill(together.streams[i], 2, &left) == WINA_OK);
        wina_chunk c = {0};
        while (c.n_prompt < 2 + i % 3)
            CHECK(wina_stream_next(alone.streams[i], &c) == WINA_OK);
    }
    for (int step = 0; step < N_TOKENS + 2; step++) {
        CHECK(wina_stream_decode_batch(together.streams, N) == WINA_OK);
        for (int i = 0; i < N; i++) {
            wina_chunk a, b;
            const int32_t status = wina_stream_next(together.streams[i], &a);
            CHECK(status == wina_stream_next(alone.streams[i], &b));
            CHECK(status == (done[i] ? WINA_E_STATE : WINA_OK));
            if (status != WINA_OK)
                continue;
            done[i] = a.finish != WINA_FINISH_NONE;
            CHECK(a.token == b.token && a.finish == b.finish && a.n_generated == b.n_generated);
            CHECK(a.n_bytes == b.n_bytes && memcmp(a.text, b.text, a.n_bytes) == 0);
            CHECK(memcmp(wina_session_logits(together.sessions[i]),
                         wina_session_logits(alone.sessions[i]),
                         (size_t)n_vocab * sizeof(float)) == 0);
            wina_stats s, t;
            wina_session_get_stats(together.sessions[i], &s);
            wina_session_get_stats(alone.sessions[i], &t);
            CHECK(s.n_decode == t.n_decode && s.sparse_read == t.sparse_read &&
                  s.sparse_total == t.sparse_total && s.bytes_per_token == t.bytes_per_token);
        }
    }
    for (int i = 0; i < N; i++)
        CHECK(done[i]);
    stop(&together);
    stop(&alone);
}

int main(void) {
    wina_model *model = NULL;
    wina_model_info info;
    CHECK(wina_model_load("tests/fuzz/corpus/good.gguf", NULL, &model) == WINA_OK);
    if (!model)
        return check_report("test_members");
    wina_model_get_info(model, &info);
    for (int32_t n_threads = 1; n_threads <= 3; n_threads++)
        compare(model, n_threads, info.n_vocab);
    wina_model_free(model);
    return check_report("test_members");
}
