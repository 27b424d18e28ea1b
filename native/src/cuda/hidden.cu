/* hidden: the final norm of the residual stream, which embeddings of texts are made of. */
#include "common.cuh"

/* ---- kernels ------------------------------------------------------------------------------ */

enum { HIDDEN_THREADS = 256 };

struct hidden_sums {
    float warps[HIDDEN_THREADS / 32];
};

static __device__ __forceinline__ float input_at(const wina_cuda_hidden &h, int t, int i) {
    return h.fixed ? load_fixed(h.fixed + i) : h.x[(int64_t)t * h.n + i];
}

/* out = gain rms_norm(x); without a gain x itself. A block per token. */
__global__ void hidden_kernel(const __grid_constant__ wina_cuda_hidden h) {
    WINA_CUDA_SHARED(hidden_sums, s);
    const int t = blockIdx.x;
    float squares = 0.0f;
    for (int i = threadIdx.x; i < h.n; i += HIDDEN_THREADS) {
        const float v = input_at(h, t, i);
        squares = fmaf(v, v, squares);
    }
    squares = warp_sum(squares);
    if (threadIdx.x % 32 == 0)
        s.warps[threadIdx.x / 32] = squares;
    __syncthreads();
    float sum = 0.0f;
    for (int i = 0; i < HIDDEN_THREADS / 32; i++)
        sum += s.warps[i];
    const float factor = rsqrtf(sum / (float)h.n + h.eps);
    for (int i = threadIdx.x; i < h.n; i += HIDDEN_THREADS) {
        const float v = input_at(h, t, i);
        h.out[(int64_t)t * h.n + i] = h.gain ? v * factor * h.gain[i] : v;
    }
}

/* ---- launchers ---------------------------------------------------------------------------- */

extern "C" cudaError_t wina_cuda_hidden_launch(const wina_cuda_hidden *h, int32_t n_tokens,
                                               cudaStream_t stream) {
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3((unsigned)n_tokens);
    config.blockDim = dim3(HIDDEN_THREADS);
    config.stream = stream;
    return cudaLaunchKernelEx(&config, hidden_kernel, *h);
}
