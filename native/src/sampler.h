/* sampler: chooses a token from logits. Order and defaults are those of llama.cpp: penalties,
 * top_k, top_p, min_p, temperature, then a draw. The vocabulary is never sorted: top_k keeps a
 * heap, and top_p sorts only what can be in its part. */
#ifndef WINA_SAMPLER_H
#define WINA_SAMPLER_H

#include "candidates.h"
#include "wina.h"

/* Checks ranges; the error names the parameter. */
int32_t wina_sampler_check(const wina_sampler_params *params);

/* Chooses from the best of n_vocab logits the token that wina_sampler_sample would choose from all
 * of them. *token is -1, and nothing has changed, if these do not tell. */
int32_t wina_sampler_sample_best(wina_sampler *sampler, const wina_best *best, int32_t n_vocab,
                                 int32_t *token);

#endif
