/* memplan: how much memory a model and a session take, before they are loaded. What a plan adds up
 * is what the loader and the backend will allocate, by their own sizes. */
#ifndef WINA_MEMPLAN_H
#define WINA_MEMPLAN_H

#include "session.h"

/* n_ctx and the like with defaults filled in; params have been checked. */
wina_backend_params wina_memplan_params(const wina_model *model, const wina_session_params *params);

/* WINA_E_MEMORY with the plan in the text if it goes beyond the model's limit. The model's tensors
 * have been planned; weights need not be loaded. */
int32_t wina_memplan_check(const wina_model *model, const wina_session_params *params);

#endif
