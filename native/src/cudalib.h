/* cudalib: opens libwina_cuda.so, if it is there. It is looked for next to this library or program,
 * then in lib/ beside that folder; WINA_CUDA_LIBRARY names another file. Without it everything runs
 * on the CPU. */
#ifndef WINA_CUDALIB_H
#define WINA_CUDALIB_H

#include "cuda/plugin.h"

/* *out is valid until the process ends. WINA_E_UNSUPPORTED with the reason if the library is not
 * there or was built from other sources. */
int32_t wina_cudalib_open(const wina_cuda_plugin **out);

/* Moves a loaded model to the GPUs as its backend and n_gpu_layers ask for: the last n layers, or
 * as many as fit; as few GPUs as have room, each with layers in a row (chain.h). Where they leave
 * the choice, a model that cannot run there stays on the CPU and model->backend_note says why. */
int32_t wina_cudalib_place(wina_model *model, int32_t backend, int32_t n_gpu_layers);
void wina_cudalib_remove(wina_model *model);

/* Memory of all GPUs together that a placed model takes, and a session of it would. */
typedef struct wina_cudalib_plan_bytes {
    uint64_t weights, cache, buffers;
} wina_cudalib_plan_bytes;
int32_t wina_cudalib_plan(const wina_model *model, const wina_backend_params *params,
                          wina_cudalib_plan_bytes *out);
/* What all GPUs have free, by their own account. */
int32_t wina_cudalib_free_bytes(uint64_t *n_bytes);

#endif
