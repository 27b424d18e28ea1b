/* forward: the decode graph, written once over the operations of a backend. */
#ifndef WINA_FORWARD_H
#define WINA_FORWARD_H

#include <stdatomic.h>

#include "backend.h"

typedef struct wina_forward {
    const int32_t *tokens;
    int32_t n_tokens;
    int32_t pos;     /* position of the first token */
    int32_t n_dense; /* tokens of this batch that run dense */
    const wina_rules *rules;
    float *logits;       /* (n_tokens - logits_from, n_vocab); or NULL: see wina_backend_ops */
    int32_t logits_from; /* n_tokens: none are wanted */
    float *hidden;       /* (n_tokens, n_embd) normed output of the last layer, or NULL */
    const atomic_bool *cancel;
    wina_tap_fn tap; /* NULL: none */
    void *tap_user;
} wina_forward;

/* WINA_E_CANCELLED if *cancel became true; the cache then holds garbage beyond pos. */
int32_t wina_forward_run(wina_backend *backend, const wina_forward *batch);

/* One token of several sessions, in the buffers of one of their backends; it must have
 * begin_members. */
int32_t wina_forward_run_members(wina_backend *backend, const wina_member *members, int32_t n);

#endif
