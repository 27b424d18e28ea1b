/* stream: generation as a sequence of chunks. A call evaluates one batch of the prompt, or chooses
 * one token: sample, look for the end, evaluate the token, hand out what textcut lets go. */
#include <stdlib.h>
#include <string.h>

#include "mem.h"
#include "sampler.h"
#include "session.h"
#include "status.h"
#include "textcut.h"

struct wina_stream {
    wina_session *session;
    wina_sampler *sampler;
    wina_textcut cut;
    int32_t *prompt; /* (n_prompt) */
    int32_t n_prompt, n_evaluated;
    int32_t max_tokens, n_generated;
    bool special, ignore_eog;
    wina_logits_fn process; /* or NULL */
    void *process_user;
    float *processed; /* (n_vocab) what it changes */
    int32_t pending;  /* token chosen but not yet evaluated, or -1 */
    bool finished;
    bool cancelled; /* while its token was evaluated with others' */
};

void wina_stream_params_init(wina_stream_params *p) {
    *p = (wina_stream_params){.max_tokens = -1};
    wina_sampler_params_init(&p->sampler);
}

static int32_t check(const wina_session *s, const wina_stream_params *p) {
    if (p->n_tokens < 1 || !p->tokens)
        return wina_fail(WINA_E_ARGUMENT, "the prompt is empty");
    if (p->max_tokens < -1)
        return wina_fail(WINA_E_ARGUMENT, "max_tokens is %d, must be -1 or more", p->max_tokens);
    if (p->n_held < 0 || p->n_held >= p->n_tokens || (p->n_held > 0 && p->n_held != s->n_past))
        return wina_fail(WINA_E_ARGUMENT,
                         "n_held is %d: the session holds %d tokens, the prompt %d", p->n_held,
                         s->n_past, p->n_tokens);
    if (p->n_tokens - p->n_held > s->n_ctx - s->n_past)
        return wina_fail(WINA_E_CONTEXT,
                         "the prompt has %d tokens, the context of %d tokens has room for %d: "
                         "raise n_ctx or shorten the prompt",
                         p->n_tokens - p->n_held, s->n_ctx, s->n_ctx - s->n_past);
    return WINA_OK;
}

int32_t wina_stream_create(wina_session *session, const wina_stream_params *p, wina_stream **out) {
    *out = NULL;
    WINA_TRY(check(session, p));
    wina_stream *s = NULL;
    WINA_TRY(wina_mem_create(1, sizeof *s, "stream", &s));
    s->session = session;
    s->n_prompt = p->n_tokens;
    s->n_evaluated = p->n_held;
    s->max_tokens = p->max_tokens;
    s->special = p->special != 0;
    s->ignore_eog = p->ignore_eog != 0;
    s->pending = -1;
    s->process = p->process;
    s->process_user = p->process_user;
    int32_t status = wina_sampler_create(&p->sampler, &s->sampler);
    if (status == WINA_OK && s->process)
        status = wina_mem_create((uint64_t)session->model->config.n_vocab, sizeof *s->processed,
                                 "logits", &s->processed);
    if (status == WINA_OK)
        status = wina_textcut_init(&s->cut, p->stop, p->n_stop);
    if (status == WINA_OK)
        status = wina_mem_create((uint64_t)p->n_tokens, sizeof *s->prompt, "prompt", &s->prompt);
    if (status != WINA_OK) {
        wina_stream_free(s);
        return status;
    }
    memcpy(s->prompt, p->tokens, (size_t)p->n_tokens * sizeof *s->prompt);
    for (int32_t i = 0; i < p->n_tokens && status == WINA_OK; i++)
        status = wina_sampler_accept(s->sampler, p->tokens[i]);
    if (status != WINA_OK) {
        wina_stream_free(s);
        return status;
    }
    *out = s;
    return WINA_OK;
}

void wina_stream_free(wina_stream *s) {
    if (!s)
        return;
    wina_sampler_free(s->sampler);
    wina_textcut_clear(&s->cut);
    free(s->prompt);
    free(s->processed);
    free(s);
}

static int32_t prefill_batch(wina_stream *s, int32_t most) {
    int32_t n = s->n_prompt - s->n_evaluated;
    if (n > s->session->n_batch)
        n = s->session->n_batch;
    if (n > most)
        n = most;
    WINA_TRY(wina_session_prefill(s->session, s->prompt + s->n_evaluated, n));
    s->n_evaluated += n;
    return WINA_OK;
}

static int32_t finish(wina_stream *s, const char *bytes, size_t n_bytes, int32_t why,
                      wina_chunk *chunk) {
    WINA_TRY(wina_textcut_add(&s->cut, bytes, n_bytes, true, &chunk->text, &chunk->n_bytes));
    s->finished = true;
    chunk->finish = s->cut.stopped ? WINA_FINISH_STOP : why;
    return WINA_OK;
}

/* The bytes of a token; most are a few bytes long, the buffer grows for the others. */
static int32_t token_bytes(const wina_stream *s, int32_t token, char **bytes, size_t *n) {
    const wina_tokenizer *t = s->session->model->tokenizer;
    uint64_t capacity = 0;
    *bytes = NULL;
    WINA_TRY(wina_mem_grow(bytes, &capacity, 256, 1, "token text"));
    int32_t status = wina_tokenizer_piece(t, token, s->special, *bytes, capacity, n);
    if (status == WINA_E_SPACE) {
        status = wina_mem_grow(bytes, &capacity, *n, 1, "token text");
        if (status == WINA_OK)
            status = wina_tokenizer_piece(t, token, s->special, *bytes, capacity, n);
    }
    if (status != WINA_OK) {
        free(*bytes);
        *bytes = NULL;
    }
    return status;
}

static int32_t choose(wina_stream *s, int32_t *token) {
    const int32_t n_vocab = s->session->model->config.n_vocab;
    const wina_best *best = s->process ? NULL : wina_session_best(s->session);
    if (best) { /* all logits only if these do not tell */
        WINA_TRY(wina_sampler_sample_best(s->sampler, best, n_vocab, token));
        if (*token >= 0)
            return wina_sampler_accept(s->sampler, *token);
    }
    const float *logits = wina_session_logits(s->session);
    if (!logits)
        return s->session->backend->status ? s->session->backend->status : WINA_E_STATE;
    if (s->process) {
        memcpy(s->processed, logits, (size_t)n_vocab * sizeof *logits);
        int32_t status = s->process(s->processed, n_vocab, s->process_user);
        if (status != WINA_OK)
            return wina_fail(status, "a logits processor failed");
        logits = s->processed;
    }
    WINA_TRY(wina_sampler_sample(s->sampler, logits, n_vocab, token));
    return wina_sampler_accept(s->sampler, *token);
}

static int32_t next_token(wina_stream *s, wina_chunk *chunk) {
    if (s->max_tokens >= 0 && s->n_generated >= s->max_tokens)
        return finish(s, "", 0, WINA_FINISH_LENGTH, chunk);
    if (s->pending >= 0) {
        if (s->session->n_past == s->session->n_ctx)
            return finish(s, "", 0, WINA_FINISH_CONTEXT, chunk);
        WINA_TRY(wina_session_decode(s->session, s->pending));
        s->pending = -1;
    }
    int32_t token;
    WINA_TRY(choose(s, &token));
    chunk->token = token;
    if (!s->ignore_eog && wina_token_is_eog(s->session->model, token))
        return finish(s, "", 0, WINA_FINISH_EOG, chunk);
    s->pending = token;
    s->n_generated++;
    chunk->n_generated = s->n_generated;
    char *bytes;
    size_t n;
    WINA_TRY(token_bytes(s, token, &bytes, &n));
    int32_t status;
    if (s->max_tokens >= 0 && s->n_generated >= s->max_tokens)
        status = finish(s, bytes, n, WINA_FINISH_LENGTH, chunk);
    else
        status = wina_textcut_add(&s->cut, bytes, n, false, &chunk->text, &chunk->n_bytes);
    free(bytes);
    if (status == WINA_OK && s->cut.stopped) {
        s->finished = true;
        chunk->finish = WINA_FINISH_STOP;
    }
    return status;
}

int32_t wina_stream_next(wina_stream *s, wina_chunk *chunk) {
    *chunk = (wina_chunk){.text = "", .token = -1, .finish = WINA_FINISH_NONE};
    chunk->n_generated = s->n_generated;
    chunk->n_prompt = s->n_evaluated;
    if (s->finished)
        return wina_fail(WINA_E_STATE, "the generation has ended");
    if (s->cancelled) {
        s->cancelled = false;
        return wina_fail(WINA_E_CANCELLED, "the evaluation was cancelled");
    }
    if (s->n_evaluated < s->n_prompt) {
        WINA_TRY(prefill_batch(s, s->n_prompt));
        chunk->n_prompt = s->n_evaluated;
        return WINA_OK;
    }
    return next_token(s, chunk);
}

/* ---- several streams ---------------------------------------------------------------------- */

int32_t wina_stream_prefill(wina_stream *s, int32_t max_tokens, int32_t *n_left) {
    *n_left = s->n_prompt - s->n_evaluated;
    if (max_tokens < 1)
        return wina_fail(WINA_E_ARGUMENT, "max_tokens is %d, must be at least 1", max_tokens);
    if (*n_left > 0)
        WINA_TRY(prefill_batch(s, max_tokens));
    *n_left = s->n_prompt - s->n_evaluated;
    return WINA_OK;
}

enum { MOST_TOGETHER = 64 };

/* Streams [0, n), at most MOST_TOGETHER. */
static int32_t decode_some(wina_stream *const *streams, int32_t n) {
    wina_session *sessions[MOST_TOGETHER];
    int32_t tokens[MOST_TOGETHER], statuses[MOST_TOGETHER], which[MOST_TOGETHER], n_ready = 0;
    for (int32_t i = 0; i < n; i++) {
        const wina_stream *s = streams[i];
        if (s->finished || s->pending < 0 || s->session->n_past == s->session->n_ctx)
            continue;
        sessions[n_ready] = s->session;
        tokens[n_ready] = s->pending;
        statuses[n_ready] = WINA_E_STATE; /* if none is evaluated */
        which[n_ready++] = i;
    }
    if (n_ready == 0)
        return WINA_OK;
    const int32_t status = wina_session_decode_batch(sessions, tokens, n_ready, statuses);
    bool any = false;
    for (int32_t i = 0; i < n_ready; i++) {
        wina_stream *s = streams[which[i]];
        any |= statuses[i] != WINA_E_STATE;
        if (statuses[i] == WINA_OK)
            s->pending = -1;
        s->cancelled = statuses[i] == WINA_E_CANCELLED;
    }
    return any ? WINA_OK : status;
}

int32_t wina_stream_decode_batch(wina_stream *const *streams, int32_t n) {
    for (int32_t i = 0; i < n; i += MOST_TOGETHER)
        WINA_TRY(decode_some(streams + i, n - i < MOST_TOGETHER ? n - i : MOST_TOGETHER));
    return WINA_OK;
}
