/* prompt: the operations of the graph for several tokens at once. Activations of a token are a row;
 * weights are decoded to float16 in pieces of bounded size and multiplied by cuBLAS or our own
 * kernel. It fills the same key/value cache as decoding. */
#ifndef WINA_CUDA_PROMPT_H
#define WINA_CUDA_PROMPT_H

#include "batch.h"
#include "engine.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct wina_cuda_prompt wina_cuda_prompt;

enum { WINA_CUDA_PROMPT_LEAST = 8 /* tokens for which a batch pays */ };

/* What decoding and prompts share; arrays of device memory by slot (layer, group, list). */
typedef struct wina_cuda_lists {
    const wina_cuda_keep *keep;
    const float *const *norms; /* host array of device vectors */
    int32_t *kept, *kept_sum;
} wina_cuda_lists;

static inline int32_t wina_cuda_slot(int32_t layer, int32_t group, int32_t list) {
    return (layer * WINA_N_GROUPS + group) * WINA_RULE_MASKS + list;
}

/* *out is NULL (and WINA_OK returned) if a projection is too wide for this device. */
int32_t wina_cuda_prompt_create(wina_cuda_model *m, const wina_cuda_lists *lists, int32_t n_batch,
                                cudaStream_t stream, wina_cuda_prompt **out);
/* Device memory it would take: 0 if there would be none. */
int32_t wina_cuda_prompt_plan(wina_cuda_model *m, int32_t n_batch, uint64_t *n_bytes);
void wina_cuda_prompt_free(wina_cuda_prompt *p); /* accepts NULL */
uint64_t wina_cuda_prompt_bytes(const wina_cuda_prompt *p);
int32_t wina_cuda_prompt_most(const wina_cuda_prompt *p); /* tokens of a batch */

/* One call each, in this order; n_dense: the first tokens are dense. masks: one list of kept inputs
 * per projection. */
cudaError_t wina_cuda_prompt_begin(wina_cuda_prompt *p, const int32_t *tokens, int32_t n_tokens,
                                   int32_t pos, int32_t n_dense, bool masks);
/* x (n_tokens, n_embd): enter() takes it in place of the embeddings, leave() is what has become of
 * it when it returns. Host memory. */
cudaError_t wina_cuda_prompt_enter(wina_cuda_prompt *p, const float *x);
cudaError_t wina_cuda_prompt_leave(wina_cuda_prompt *p, float *x);
/* What project() would multiply now, (n_tokens, n_in), into host memory; waits. */
cudaError_t wina_cuda_prompt_input(wina_cuda_prompt *p, int32_t layer, wina_group group,
                                   float *out);
/* What the head multiplies, (n_tokens, n_embd), into host memory; waits. */
cudaError_t wina_cuda_prompt_hidden(wina_cuda_prompt *p, float *out);
cudaError_t wina_cuda_prompt_project(wina_cuda_prompt *p, int32_t layer, wina_group group);
/* attend: of this layer, but for what is the batch's own. */
cudaError_t wina_cuda_prompt_attend(wina_cuda_prompt *p, wina_cuda_attend attend);
/* Logits of tokens [from, n_tokens) into host memory; waits. */
cudaError_t wina_cuda_prompt_logits(wina_cuda_prompt *p, int32_t from, float *out);

#ifdef __cplusplus
}
#endif
#endif
