/* step: evaluations of a backend without a session, as session.c asks for them. */
#ifndef STEP_H
#define STEP_H

#include "forward.h"

/* n tokens in one batch from position pos on, n_dense of them dense; logits (n - from, n_vocab), or
 * NULL: those of the last token stay in the backend, if it can. */
static inline int32_t step_batch(wina_backend *b, const int32_t *tokens, int32_t n, int32_t pos,
                                 int32_t n_dense, const wina_rules *rules, int32_t from,
                                 float *logits) {
    const atomic_bool cancel = false;
    const wina_forward f = {.tokens = tokens,
                            .n_tokens = n,
                            .pos = pos,
                            .n_dense = n_dense,
                            .rules = rules,
                            .logits = logits,
                            .logits_from = from,
                            .cancel = &cancel};
    return wina_forward_run(b, &f);
}

/* One token at the rules' sparsity. */
static inline int32_t step_token(wina_backend *b, int32_t token, int32_t pos,
                                 const wina_rules *rules, float *logits) {
    return step_batch(b, &token, 1, pos, 0, rules, 0, logits);
}

#endif
