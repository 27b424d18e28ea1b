/* session: tokens evaluated so far, and the state that goes with them. */
#ifndef WINA_SESSION_H
#define WINA_SESSION_H

#include <stdatomic.h>

#include "backend.h"

struct wina_session {
    const wina_model *model;
    wina_backend *backend;
    int32_t n_ctx, n_batch, n_threads;
    int32_t cache_types[2]; /* wina_cache_type of keys and of values */
    int32_t n_past;
    wina_sparsity sparsity;
    wina_rules rules;         /* that the sparsity amounts to */
    wina_tuning_store tuning; /* in place of the file's, if present */
    wina_tap_fn tap;
    void *tap_user;
    float *logits; /* (n_vocab) of the last token */
    bool has_logits;
    atomic_bool cancel;
    wina_stats stats;
    uint64_t decode_bytes; /* of all decoded tokens */
};

/* WINA_E_ARGUMENT names the field that is out of range. */
int32_t wina_session_check_params(const wina_model *model, const wina_session_params *params);

/* The best candidates of the last token if the backend has looked for them, or NULL; with them the
 * logits may not be needed. Until the next call on the session. */
const wina_best *wina_session_best(const wina_session *session);

#endif
