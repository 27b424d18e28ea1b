/* cache: keys and values of the tokens seen so far, of a session's layers on one device.
 *
 * Types, rounding and the positions that are held are those of the CPU's cache (cpu/kvcache.h); a
 * row lies as the kernels read it. Of f16: its values, padded to 8. Of q8_0: a signed byte for
 * each, padded to 8, then the scales of its blocks of 32. */
#ifndef WINA_CUDA_CACHE_H
#define WINA_CUDA_CACHE_H

#include "engine.h"

typedef struct wina_cuda_cache {
    const wina_cuda_model *m;
    int32_t n_ctx, n_batch;
    int32_t types[2];  /* wina_cache_type of keys and of values */
    uint8_t *data[2];  /* device memory, from the model's first layer here to its last */
    int32_t held_from; /* layers with a window have no position before this one */
} wina_cuda_cache;

/* WINA_E_UNSUPPORTED for a type that is not here. `data` is the caller's to set. */
int32_t wina_cuda_cache_init(wina_cuda_cache *cache, const wina_cuda_model *m,
                             const wina_backend_params *params);
/* Bytes of keys (value: values) of all layers here before this one. */
uint64_t wina_cuda_cache_bytes(const wina_cuda_cache *cache, bool value, int32_t layer);
int32_t wina_cuda_cache_rows(const wina_cuda_cache *cache, int32_t layer);
/* Notes that positions [pos, pos + n) are about to be stored. */
void wina_cuda_cache_begin(wina_cuda_cache *cache, int32_t pos, int32_t n);
/* What attention is to know of a layer. */
void wina_cuda_cache_describe(const wina_cuda_cache *cache, int32_t layer, wina_cuda_attend *out);
/* wina_backend_ops.copy_cache. */
int32_t wina_cuda_cache_copy(const wina_cuda_cache *cache, cudaStream_t stream, int32_t layer,
                             int32_t head, bool value, int32_t pos, int32_t n, uint8_t *rows,
                             bool to_cache);

#endif
