/* batch: prompt processing on the device, several tokens at once. */
#ifndef WINA_CUDA_BATCH_H
#define WINA_CUDA_BATCH_H

#include <stdbool.h>

#include "device.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Activations of one projection for all tokens of a batch. */
typedef struct wina_cuda_prepare {
    wina_cuda_gemv gemv; /* in (n_tokens, in_stride), gain, norms, keep, in_shared; panel.n_cols */
    int64_t in_stride;
    int32_t n_dense; /* the first tokens keep all */
    uint16_t *out;   /* (n_tokens, out_stride) float16 */
    int64_t out_stride;
    float *scale;       /* (n_tokens) powers of two that `out` was divided by */
    int32_t *kept_last; /* receives the number of inputs that the last token kept, or NULL */
    int32_t *kept_sum;  /* the numbers of sparse tokens are added to it */
} wina_cuda_prepare;

/* Once per device. */
cudaError_t wina_cuda_batch_prepare(void);
cudaError_t wina_cuda_prepare_launch(const wina_cuda_prepare *p, int32_t n_tokens,
                                     cudaStream_t stream);
/* Rows and columns of a panel as out (n_cols, n_rows) float16; row0 and n_rows are multiples of 64.
 */
cudaError_t wina_cuda_decode_launch(const wina_cuda_panel *p, int32_t row0, int32_t n_rows,
                                    int32_t col0, int32_t n_cols, uint16_t *out,
                                    cudaStream_t stream);
/* y (m, n) = a (m, k) w (k, n), or (add) added to y, all row-major float16 but y; m and n multiples
 * of 16, lda, ldw and k of 8. */
cudaError_t wina_cuda_matmul_launch(const uint16_t *a, int64_t lda, const uint16_t *w, int64_t ldw,
                                    float *y, int64_t ldy, int32_t m, int32_t n, int32_t k,
                                    bool add, cudaStream_t stream);
/* x += y scale;  out = y scale + bias;  out = silu(y) y[up_row0..] (both times scale; or gelu);
 * x += gain rms_norm(y scale) factor;  y = cap tanh(y scale / cap) */
cudaError_t wina_cuda_batch_add(float *x, int64_t x_stride, const float *y, int64_t y_stride,
                                const float *scale, int32_t n, int32_t n_tokens,
                                cudaStream_t stream);
cudaError_t wina_cuda_batch_scale(float *out, int64_t out_stride, const float *y, int64_t y_stride,
                                  const float *scale, const float *bias, int32_t n,
                                  int32_t n_tokens, cudaStream_t stream);
cudaError_t wina_cuda_batch_gate(float *out, int64_t out_stride, const float *y, int64_t y_stride,
                                 const float *scale, int32_t up_row0, int32_t n, int32_t gelu,
                                 int32_t n_tokens, cudaStream_t stream);
cudaError_t wina_cuda_batch_leave(float *x, int64_t x_stride, const float *y, int64_t y_stride,
                                  const float *scale, const float *gain, float eps, float factor,
                                  int32_t n, int32_t n_tokens, cudaStream_t stream);
cudaError_t wina_cuda_batch_cap(float *y, int64_t stride, float scale, float cap, int32_t n,
                                int32_t n_tokens, cudaStream_t stream);
/* Rotation, cache and attention of tokens at positions pos and on; a->n_tokens > 1. */
cudaError_t wina_cuda_batch_attend(const wina_cuda_attend *a, int32_t pos, cudaStream_t stream);

#ifdef __cplusplus
}
#endif
#endif
