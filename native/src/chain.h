/* chain: several backends as one. Each has some of the layers, in order; the residual stream goes
 * from one to the next through host memory. The CPU may have the first ones, GPUs the others; the
 * last computes the logits. */
#ifndef WINA_CHAIN_H
#define WINA_CHAIN_H

#include "backend.h"

/* The backend of a model that cudalib.h has placed: one GPU, or a chain. *out owns its parts. */
int32_t wina_chain_create(const wina_model *model, const wina_backend_params *params,
                          wina_backend **out);

#endif
