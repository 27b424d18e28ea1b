/* sampler: chooses a token from logits. Order and defaults are those of llama.cpp: penalties,
 * top_k, top_p, min_p, temperature, then a draw. Only the candidates that top_k leaves are ever
 * sorted. */
#ifndef WINA_SAMPLER_H
#define WINA_SAMPLER_H

#include "wina.h"

/* Checks ranges; the error names the parameter. */
int32_t wina_sampler_check(const wina_sampler_params *params);

#endif
