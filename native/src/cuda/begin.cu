/* begin: the embedding's way in. */
#include "common.cuh"
#include "device.h"

/* ---- kernels ------------------------------------------------------------------------------ */

struct begin_arguments {
    const wina_cuda_step *host;
    wina_cuda_step *step;
    wina_cuda_fixed *x;
    int n;
    wina_cuda_fixed *zero;
    int n_zero;
    uint32_t *barrier;
};

__global__ void begin_kernel(begin_arguments a) {
    const volatile float *from = a.host->x;
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < a.n)
        a.x[i] = to_fixed(from[i]);
    if (i < a.n_zero)
        a.zero[i] = 0;
    if (i == 0) {
        *a.barrier = 0;
        a.step->pos = *(const volatile int32_t *)&a.host->pos;
    }
}

/* ---- launchers ---------------------------------------------------------------------------- */

extern "C" cudaError_t wina_cuda_begin_launch(const wina_cuda_step *host_step, wina_cuda_step *step,
                                              wina_cuda_fixed *x, int32_t n_embd,
                                              wina_cuda_fixed *zero, int32_t n_zero,
                                              uint32_t *barrier, cudaStream_t stream) {
    const int n = n_embd > n_zero ? n_embd : n_zero;
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3((unsigned)(n + 255) / 256);
    config.blockDim = dim3(256);
    config.stream = stream;
    const begin_arguments a = {host_step, step, x, n_embd, zero, n_zero, barrier};
    return cudaLaunchKernelEx(&config, begin_kernel, a);
}
