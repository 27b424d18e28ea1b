/* begin: the embedding's way in. */
#include "common.cuh"
#include "device.h"

/* ---- kernels ------------------------------------------------------------------------------ */

__global__ void begin_kernel(const wina_cuda_step *host, wina_cuda_step *step, wina_cuda_fixed *x,
                             int n, wina_cuda_fixed *zero, int n_zero, uint32_t *barrier) {
    const volatile float *from = host->x;
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n)
        x[i] = to_fixed(from[i]);
    if (i < n_zero)
        zero[i] = 0;
    if (i == 0) {
        *barrier = 0;
        step->pos = *(const volatile int32_t *)&host->pos;
    }
}

/* ---- launchers ---------------------------------------------------------------------------- */

extern "C" cudaError_t wina_cuda_begin_launch(const wina_cuda_step *host_step, wina_cuda_step *step,
                                              wina_cuda_fixed *x, int32_t n_embd,
                                              wina_cuda_fixed *zero, int32_t n_zero,
                                              uint32_t *barrier, cudaStream_t stream) {
    const int n = n_embd > n_zero ? n_embd : n_zero;
    begin_kernel<<<(n + 255) / 256, 256, 0, stream>>>(host_step, step, x, n_embd, zero, n_zero,
                                                      barrier);
    return cudaGetLastError();
}
