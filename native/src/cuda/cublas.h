/* cublas: the one function of cuBLAS that prompt processing uses, if the library is on this
 * machine: next to the system's libraries, or in a Python package that LD_LIBRARY_PATH names.
 * WINA_CUBLAS names another file; WINA_CUBLAS=none does without. */
#ifndef WINA_CUDA_CUBLAS_H
#define WINA_CUDA_CUBLAS_H

#include <stdbool.h>
#include <stdint.h>

#include <cuda_runtime_api.h>

typedef struct wina_cublas wina_cublas;

/* NULL if the library is not there or does not start. */
wina_cublas *wina_cublas_open(cudaStream_t stream, void *workspace, uint64_t workspace_bytes);
void wina_cublas_close(wina_cublas *c); /* accepts NULL */

/* y (m, n) = a (m, k) w (k, n), or (add) added to y, row-major, float16 in and float out. False on
 * failure. */
bool wina_cublas_multiply(wina_cublas *c, const uint16_t *a, int64_t lda, const uint16_t *w,
                          int64_t ldw, float *y, int64_t ldy, int32_t m, int32_t n, int32_t k,
                          bool add);

#endif
