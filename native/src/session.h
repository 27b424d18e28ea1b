/* session: tokens evaluated so far, and the state that goes with them. */
#ifndef WINA_SESSION_H
#define WINA_SESSION_H

#include <stdatomic.h>

#include "backend.h"

struct wina_session {
    const wina_model *model;
    wina_backend *backend;
    int32_t n_ctx, n_batch, n_threads;
    int32_t n_past;
    wina_sparsity sparsity;
    float *logits; /* (n_vocab) of the last token */
    bool has_logits;
    atomic_bool cancel;
    wina_stats stats;
    uint64_t decode_bytes; /* of all decoded tokens */
};

#endif
