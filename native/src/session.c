#include "session.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "chain.h"
#include "forward.h"
#include "mem.h"
#include "memplan.h"
#include "status.h"

enum { MAX_BATCH = 4096 };

void wina_sparsity_init(wina_sparsity *s) {
    *s = (wina_sparsity){.method = WINA_METHOD_WINA, .mask = WINA_MASK_GROUP, .exponent = -1};
}

void wina_session_params_init(wina_session_params *p) {
    *p = (wina_session_params){0};
    wina_sparsity_init(&p->sparsity);
}

const char *wina_cache_type_name(int32_t type) {
    static const char *const NAMES[] = {"f16", "q8_0", "f32"};
    return type >= 0 && type < (int32_t)(sizeof NAMES / sizeof NAMES[0]) ? NAMES[type] : NULL;
}

int32_t wina_session_check_params(const wina_model *model, const wina_session_params *p) {
    if (p->n_ctx < 0 || p->n_ctx > model->config.n_ctx_train)
        return wina_fail(WINA_E_ARGUMENT, "n_ctx is %d, must be in 1..%d (the model's context)",
                         p->n_ctx, model->config.n_ctx_train);
    if (p->n_batch < 0 || p->n_batch > MAX_BATCH)
        return wina_fail(WINA_E_ARGUMENT, "n_batch is %d, must be in 1..%d", p->n_batch, MAX_BATCH);
    if (p->n_threads < 0)
        return wina_fail(WINA_E_ARGUMENT, "n_threads is %d, must be at least 1", p->n_threads);
    if (!wina_cache_type_name(p->cache_type_k) || !wina_cache_type_name(p->cache_type_v))
        return wina_fail(WINA_E_ARGUMENT, "there is no type %d of the cache",
                         wina_cache_type_name(p->cache_type_k) ? p->cache_type_v : p->cache_type_k);
    return WINA_OK;
}

/* Rules for a sparsity and the tuning in force; what was there stays if it fails. */
static int32_t set_rules(wina_session *s, const wina_sparsity *sparsity) {
    const wina_rule_model model =
        wina_model_rules(s->model, s->tuning.present ? &s->tuning.tuning : NULL);
    wina_rules rules;
    WINA_TRY(wina_rules_create(&model, sparsity, &rules));
    rules.version = s->rules.version + 1;
    wina_rules_free(&s->rules);
    s->rules = rules;
    s->sparsity = *sparsity;
    return WINA_OK;
}

int32_t wina_session_create(const wina_model *model, const wina_session_params *params,
                            wina_session **out) {
    *out = NULL;
    wina_session_params p;
    wina_session_params_init(&p);
    if (params)
        p = *params;
    if (!model->weights.output_norm)
        return wina_fail(WINA_E_STATE, "the model was loaded without its weights");
    WINA_TRY(wina_session_check_params(model, &p));
    WINA_TRY(wina_memplan_check(model, &p));
    wina_session *s = NULL;
    WINA_TRY(wina_mem_create(1, sizeof *s, "session", &s));
    s->model = model;
    const wina_backend_params b = wina_memplan_params(model, &p);
    s->n_ctx = b.n_ctx, s->n_batch = b.n_batch, s->n_threads = b.n_threads;
    s->cache_types[0] = p.cache_type_k, s->cache_types[1] = p.cache_type_v;
    int32_t status = set_rules(s, &p.sparsity);
    if (status == WINA_OK)
        status =
            wina_mem_create((uint64_t)model->config.n_vocab, sizeof(float), "logits", &s->logits);
    if (status == WINA_OK)
        status = model->cuda ? wina_chain_create(model, &b, &s->backend)
                             : wina_cpu_backend_create(model, &b, &s->backend);
    if (status != WINA_OK) {
        wina_session_free(s);
        return status;
    }
    wina_session_reset_stats(s);
    *out = s;
    return WINA_OK;
}

void wina_session_free(wina_session *s) {
    if (!s)
        return;
    if (s->backend)
        s->backend->ops->free(s->backend);
    wina_rules_free(&s->rules);
    wina_tuning_free(&s->tuning);
    free(s->logits);
    free(s);
}

static bool same_sparsity(const wina_sparsity *a, const wina_sparsity *b) {
    return a->sparsity == b->sparsity && a->method == b->method && a->mask == b->mask &&
           a->budget == b->budget && a->norms == b->norms && a->exponent == b->exponent &&
           a->selection == b->selection;
}

int32_t wina_session_set_sparsity(wina_session *s, const wina_sparsity *sparsity) {
    if (!same_sparsity(sparsity, &s->sparsity))
        return set_rules(s, sparsity);
    s->sparsity.prefill = sparsity->prefill;
    return WINA_OK;
}

int32_t wina_session_set_tuning(wina_session *s, const wina_tuning *tuning) {
    const wina_tuning_store before = s->tuning;
    s->tuning = (wina_tuning_store){0};
    int32_t status = tuning ? wina_tuning_copy(tuning, &s->model->weights, &s->tuning) : WINA_OK;
    if (status == WINA_OK)
        status = set_rules(s, &s->sparsity);
    wina_tuning_store drop = before;
    if (status != WINA_OK) {
        drop = s->tuning;
        s->tuning = before;
    }
    wina_tuning_free(&drop);
    return status;
}

int32_t wina_session_get_keep(const wina_session *s, int32_t *out) {
    for (int32_t i = 0; i < s->rules.n_layer * WINA_RULE_GROUPS * WINA_RULE_MASKS; i++)
        out[i] = s->rules.rules[i].n_keep;
    return WINA_OK;
}

int32_t wina_session_set_tap(wina_session *s, wina_tap_fn tap, void *user) {
    if (tap && s->model->config.n_expert)
        return wina_fail(WINA_E_UNSUPPORTED,
                         "activations inside a mixture of experts cannot be seen");
    s->tap = tap;
    s->tap_user = user;
    return WINA_OK;
}

/* ---- evaluation --------------------------------------------------------------------------- */

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int32_t check_tokens(const wina_session *s, const int32_t *tokens, int32_t n) {
    if (n < 1 || !tokens)
        return wina_fail(WINA_E_ARGUMENT, "no tokens to evaluate");
    if (n > s->n_ctx - s->n_past)
        return wina_fail(WINA_E_CONTEXT,
                         "%d tokens do not fit: the context of %d tokens holds %d already", n,
                         s->n_ctx, s->n_past);
    for (int32_t i = 0; i < n; i++)
        if (tokens[i] < 0 || tokens[i] >= s->model->config.n_vocab)
            return wina_fail(WINA_E_ARGUMENT, "token %d at position %d is outside 0..%d", tokens[i],
                             s->n_past + i, s->model->config.n_vocab - 1);
    return WINA_OK;
}

static int32_t check_logits(const float *logits, int64_t n) {
    for (int64_t i = 0; i < n; i++)
        if (!isfinite(logits[i]))
            return wina_fail(WINA_E_NUMERIC, WINA_NOT_FINITE);
    return WINA_OK;
}

/* Tokens [done, done + n) of the call, with the logits it asks for. */
static int32_t run_batch(wina_session *s, const wina_eval *e, int32_t done, int32_t n) {
    const int32_t n_vocab = s->model->config.n_vocab;
    const int32_t n_dense = e->n_dense < 0 ? e->n_tokens : e->n_dense;
    const bool last = done + n == e->n_tokens;
    const int32_t from = e->logits && e->logits_from < done + n
                             ? (e->logits_from > done ? e->logits_from - done : 0)
                             : n;
    wina_forward f = {.tokens = e->tokens + done,
                      .n_tokens = n,
                      .pos = s->n_past + done,
                      .n_dense = n_dense > done ? n_dense - done : 0,
                      .rules = &s->rules,
                      .logits_from = from,
                      .cancel = &s->cancel,
                      .tap = s->tap,
                      .tap_user = s->tap_user};
    if (f.n_dense > n)
        f.n_dense = n;
    if (e->hidden)
        f.hidden = e->hidden + (int64_t)done * s->model->config.n_embd;
    if (from < n)
        f.logits = e->logits + (int64_t)(done + from - e->logits_from) * n_vocab;
    else if (last)
        f.logits = s->backend->ops->fetch_logits ? NULL : s->logits, f.logits_from = n - 1;
    WINA_TRY(wina_forward_run(s->backend, &f));
    if (f.logits)
        WINA_TRY(check_logits(f.logits, (int64_t)(n - f.logits_from) * n_vocab));
    if (last && f.logits && f.logits != s->logits)
        memcpy(s->logits, f.logits + (int64_t)(n - 1 - f.logits_from) * n_vocab,
               (size_t)n_vocab * sizeof *s->logits);
    s->stats.sparse_read += s->backend->counters.sparse_read;
    s->stats.sparse_total += s->backend->counters.sparse_total;
    return WINA_OK;
}

static int32_t evaluate(wina_session *s, const wina_eval *e) {
    atomic_store(&s->cancel, false);
    WINA_TRY(wina_gguf_check_unchanged(s->model->gguf));
    s->has_logits &= !s->backend->late; /* what was not fetched is lost now */
    for (int32_t done = 0, n; done < e->n_tokens; done += n) {
        n = e->n_tokens - done < s->n_batch ? e->n_tokens - done : s->n_batch;
        int32_t status = run_batch(s, e, done, n);
        if (status == WINA_OK)
            status = wina_gguf_check_unchanged(s->model->gguf);
        if (status != WINA_OK) {
            s->n_past = wina_session_n_keepable(s, s->n_past);
            return status;
        }
    }
    s->n_past += e->n_tokens;
    s->has_logits = true;
    return WINA_OK;
}

int32_t wina_session_eval(wina_session *s, const wina_eval *e) {
    WINA_TRY(check_tokens(s, e->tokens, e->n_tokens));
    if (e->logits && (e->logits_from < 0 || e->logits_from >= e->n_tokens))
        return wina_fail(WINA_E_ARGUMENT, "logits_from is %d, must be in 0..%d", e->logits_from,
                         e->n_tokens - 1);
    double start = now();
    WINA_TRY(evaluate(s, e));
    s->stats.n_prefill += e->n_tokens;
    s->stats.prefill_s += now() - start;
    return WINA_OK;
}

int32_t wina_session_prefill(wina_session *s, const int32_t *tokens, int32_t n_tokens) {
    wina_eval e = {.tokens = tokens, .n_tokens = n_tokens, .n_dense = s->sparsity.prefill ? 0 : -1};
    return wina_session_eval(s, &e);
}

int32_t wina_session_decode(wina_session *s, int32_t token) {
    WINA_TRY(check_tokens(s, &token, 1));
    wina_eval e = {.tokens = &token, .n_tokens = 1};
    double start = now();
    WINA_TRY(evaluate(s, &e));
    s->stats.n_decode++;
    s->stats.decode_s += now() - start;
    s->decode_bytes += s->backend->counters.token_bytes;
    return WINA_OK;
}

/* ---- several sessions --------------------------------------------------------------------- */

enum { MOST_MEMBERS = 64 }; /* that take a step together */

static int32_t check_sessions(wina_session *const *sessions, const int32_t *tokens, int32_t n) {
    if (n < 1 || !sessions || !tokens)
        return wina_fail(WINA_E_ARGUMENT, "no sessions to decode");
    for (int32_t i = 1; i < n; i++) {
        if (sessions[i]->model != sessions[0]->model)
            return wina_fail(WINA_E_ARGUMENT, "session %d belongs to another model", i);
        for (int32_t k = 0; k < i; k++)
            if (sessions[k] == sessions[i])
                return wina_fail(WINA_E_ARGUMENT, "sessions %d and %d are the same", k, i);
    }
    return WINA_OK;
}

/* What a member got of a step; its position moves on if it got everything. */
static int32_t finish_member(wina_session *s, double seconds) {
    if (atomic_load(&s->cancel))
        return wina_fail(WINA_E_CANCELLED, "the evaluation was cancelled");
    WINA_TRY(check_logits(s->logits, s->model->config.n_vocab));
    s->n_past++;
    s->has_logits = true;
    s->stats.n_decode++;
    s->stats.decode_s += seconds;
    s->stats.sparse_read += s->backend->counters.sparse_read;
    s->stats.sparse_total += s->backend->counters.sparse_total;
    s->decode_bytes += s->backend->counters.token_bytes;
    return WINA_OK;
}

/* One step of at most MOST_MEMBERS sessions whose tokens are checked; which[i] of the call's. */
static void step_members(wina_session *const *sessions, const int32_t *tokens, int32_t *statuses,
                         const int32_t *which, int32_t n) {
    wina_member members[MOST_MEMBERS];
    const double start = now();
    for (int32_t i = 0; i < n; i++) {
        wina_session *s = sessions[which[i]];
        atomic_store(&s->cancel, false);
        members[i] = (wina_member){s->backend, &s->rules, tokens[which[i]], s->n_past, s->logits};
    }
    const wina_gguf *file = sessions[which[0]]->model->gguf;
    int32_t status = wina_gguf_check_unchanged(file);
    if (status == WINA_OK)
        status = wina_forward_run_members(members[0].backend, members, n);
    if (status == WINA_OK)
        status = wina_gguf_check_unchanged(file);
    const double seconds = now() - start;
    for (int32_t i = 0; i < n; i++)
        statuses[which[i]] = status ? status : finish_member(sessions[which[i]], seconds);
}

/* A step of the sessions from `begin` on, as many as fit into it; returns the first that does not.
 */
static int32_t step_some(wina_session *const *sessions, const int32_t *tokens, int32_t *statuses,
                         int32_t begin, int32_t n) {
    int32_t which[MOST_MEMBERS], n_members = 0, most = MOST_MEMBERS, i = begin;
    for (; i < n && n_members < most; i++) {
        wina_session *s = sessions[i];
        if (statuses[i] != WINA_OK)
            continue;
        /* A mixture's experts gather tokens of one session. */
        if (!s->backend->ops->begin_members || s->tap || s->model->config.n_expert > 0) {
            statuses[i] = wina_session_decode(s, tokens[i]);
            continue;
        }
        if (n_members == 0 && s->n_batch < most)
            most = s->n_batch; /* what its buffers hold */
        which[n_members++] = i;
    }
    if (n_members == 1)
        statuses[which[0]] = wina_session_decode(sessions[which[0]], tokens[which[0]]);
    else if (n_members > 1)
        step_members(sessions, tokens, statuses, which, n_members);
    return i;
}

int32_t wina_session_decode_batch(wina_session *const *sessions, const int32_t *tokens, int32_t n,
                                  int32_t *statuses) {
    WINA_TRY(check_sessions(sessions, tokens, n));
    for (int32_t i = 0; i < n; i++)
        statuses[i] = check_tokens(sessions[i], &tokens[i], 1);
    for (int32_t begin = 0; begin < n;)
        begin = step_some(sessions, tokens, statuses, begin, n);
    for (int32_t i = 0; i < n; i++)
        WINA_TRY(statuses[i]);
    return WINA_OK;
}

/* ---- state -------------------------------------------------------------------------------- */

const float *wina_session_logits(const wina_session *s) {
    wina_backend *b = s->backend;
    if (s->has_logits && b->late) {
        b->ops->fetch_logits(b, s->logits);
        if (b->status != WINA_OK)
            return NULL;
    }
    return s->has_logits ? s->logits : NULL;
}

const wina_best *wina_session_best(const wina_session *s) {
    return s->has_logits && s->backend->late ? s->backend->ops->best(s->backend) : NULL;
}

int32_t wina_session_n_ctx(const wina_session *s) {
    return s->n_ctx;
}

int32_t wina_session_n_past(const wina_session *s) {
    return s->n_past;
}

int32_t wina_session_n_threads(const wina_session *s) {
    return s->n_threads;
}

/* The next token sees window - 1 positions before its own, or all that there are. */
int32_t wina_session_n_keepable(const wina_session *s, int32_t n_past) {
    const int32_t held_from = s->backend->ops->held_from(s->backend);
    if (held_from > 0 && n_past - s->model->config.window + 1 < held_from)
        return 0;
    return n_past;
}

int32_t wina_session_truncate(wina_session *s, int32_t n_past) {
    if (n_past < 0 || n_past > s->n_past)
        return wina_fail(WINA_E_ARGUMENT, "cannot keep %d tokens of %d", n_past, s->n_past);
    if (wina_session_n_keepable(s, n_past) != n_past)
        return wina_fail(
            WINA_E_STATE,
            "cannot go back to %d tokens of %d: layers with a window of %d tokens have "
            "forgotten what came before; evaluate the tokens again",
            n_past, s->n_past, s->model->config.window);
    s->n_past = n_past;
    return WINA_OK;
}

void wina_session_cancel(wina_session *s) {
    atomic_store(&s->cancel, true);
}

int32_t wina_session_get_stats(const wina_session *s, wina_stats *out) {
    *out = s->stats;
    out->kept_fraction =
        out->sparse_total ? (double)out->sparse_read / (double)out->sparse_total : 1.0;
    out->sparse_read /= 8;
    out->sparse_total /= 8;
    if (out->n_decode)
        out->bytes_per_token = (double)s->decode_bytes / (double)out->n_decode;
    out->session_bytes = s->backend->n_bytes;
    return WINA_OK;
}

void wina_session_reset_stats(wina_session *s) {
    s->stats = (wina_stats){0};
    s->decode_bytes = 0;
}
