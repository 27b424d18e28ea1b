/* begin: how a token comes in: its embedding, of which the host gives no more than the number. */
#include "embedding.cuh"

/* ---- kernels ------------------------------------------------------------------------------ */

struct begin_arguments {
    const wina_cuda_step *host;
    wina_cuda_step *step;
    wina_cuda_table table;
    wina_cuda_fixed *x;
    int n;
    wina_cuda_fixed *zero;
    int n_zero;
    uint32_t *barrier;
};

__global__ void begin_kernel(const __grid_constant__ begin_arguments a) {
    WINA_CUDA_SHARED(int, token); /* one read over the bus for a block */
    if (threadIdx.x == 0)
        token = *(const volatile int32_t *)&a.host->token;
    __syncthreads();
    const volatile float *given = a.host->x;
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < a.n)
        a.x[i] = to_fixed(token < 0 ? given[i] : embedding(a.table, token, i));
    if (i < a.n_zero)
        a.zero[i] = 0;
    if (i == 0) {
        *a.barrier = 0;
        a.step->pos = *(const volatile int32_t *)&a.host->pos;
    }
}

struct embed_arguments {
    wina_cuda_table table;
    const int32_t *tokens;
    float *x;
    int n_embd, blocks; /* of a token */
};

__global__ void embed_kernel(const __grid_constant__ embed_arguments a) {
    const int t = blockIdx.x / a.blocks;
    const int i = blockIdx.x % a.blocks * blockDim.x + threadIdx.x;
    if (i < a.n_embd)
        a.x[(int64_t)t * a.n_embd + i] = embedding(a.table, a.tokens[t], i);
}

struct convert_arguments {
    wina_cuda_panel from, to;
    wina_cuda_values values;
};

/* A block per column. */
__global__ void convert_kernel(const __grid_constant__ convert_arguments a) {
    const int col = blockIdx.x;
    uint8_t *out = const_cast<uint8_t *>(panel_block(a.to, col)) + (col & 31) * a.to.col_bytes;
    for (int row = threadIdx.x; row < a.from.n_rows; row += blockDim.x) {
        const float v = panel_value(a.from, a.values, row, col);
        reinterpret_cast<uint16_t *>(out)[row] = a.to.format == WINA_CUDA_F16
                                                     ? __half_as_ushort(__float2half_rn(v))
                                                     : (uint16_t)(__float_as_uint(v) >> 16);
    }
}

/* ---- launchers ---------------------------------------------------------------------------- */

enum { THREADS = 256 };

template <class A>
static cudaError_t launch(void (*kernel)(A), const A &arguments, int n_blocks,
                          cudaStream_t stream) {
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3((unsigned)n_blocks);
    config.blockDim = dim3(THREADS);
    config.stream = stream;
    return cudaLaunchKernelEx(&config, kernel, arguments);
}

extern "C" cudaError_t wina_cuda_begin_launch(const wina_cuda_step *host_step, wina_cuda_step *step,
                                              const wina_cuda_table *table, wina_cuda_fixed *x,
                                              int32_t n_embd, wina_cuda_fixed *zero, int32_t n_zero,
                                              uint32_t *barrier, cudaStream_t stream) {
    const int n = n_embd > n_zero ? n_embd : n_zero;
    const begin_arguments a = {host_step, step, *table, x, n_embd, zero, n_zero, barrier};
    return launch(begin_kernel, a, (n + THREADS - 1) / THREADS, stream);
}

extern "C" cudaError_t wina_cuda_embed_launch(const wina_cuda_table *table, const int32_t *tokens,
                                              int32_t n_tokens, float *x, int32_t n_embd,
                                              cudaStream_t stream) {
    const int blocks = (n_embd + THREADS - 1) / THREADS;
    const embed_arguments a = {*table, tokens, x, n_embd, blocks};
    return launch(embed_kernel, a, blocks * n_tokens, stream);
}

extern "C" cudaError_t wina_cuda_convert_launch(const wina_cuda_panel *from,
                                                const wina_cuda_values *values,
                                                const wina_cuda_panel *to, cudaStream_t stream) {
    const convert_arguments a = {*from, *to, *values};
    return launch(convert_kernel, a, from->n_cols, stream);
}
