/* best: the best logits of a token, so that the host needs no others to choose one. Logits are cut
 * into chunks; the k-th largest of the chunks' maxima is exceeded or met by at least k logits,
 * which lie in the chunks whose maximum is not below it: few, unless many logits are equal. They
 * are sorted. The weight of all logits is summed in double precision in an order that is fixed. */
#include <cfloat>

#include "common.cuh"
#include "device.h"

/* ---- kernels ------------------------------------------------------------------------------ */

enum {
    BEST_THREADS = 512,
    BEST_WARPS = BEST_THREADS / 32,
    BEST_ROOM = 2048, /* logits that are sorted, at most */
    BEST_BROKEN = -1  /* as bits: the key of what is not finite */
};

struct best_arguments {
    const float *logits;
    int n, width, n_chunks;  /* logits of a chunk */
    wina_cuda_chunk *chunks; /* (n_chunks) */
    uint32_t *arrived;
    wina_cuda_best *out;
};

struct best_shared {
    uint64_t chunks[WINA_CUDA_BEST_CHUNKS]; /* key and complement of the number */
    uint64_t list[BEST_ROOM];
    double weights[BEST_WARPS];
    int32_t n, is_last;
};

/* Integers in the order of the numbers; zeros are equal whatever their sign. */
static __device__ __forceinline__ uint32_t key_of(float v) {
    if (!(fabsf(v) <= FLT_MAX))
        return (uint32_t)BEST_BROKEN;
    const uint32_t bits = __float_as_uint(v == 0.0f ? 0.0f : v);
    return bits >> 31 ? ~bits : bits | 0x80000000u;
}
static __device__ __forceinline__ float number_of(uint32_t key) {
    return __uint_as_float(key >> 31 ? key & 0x7fffffffu : ~key);
}
/* Larger is better: the lower index where keys are equal. */
static __device__ __forceinline__ uint64_t with_index(uint32_t key, int i) {
    return (uint64_t)key << 32 | (uint32_t)~i;
}
static __device__ __forceinline__ int index_of(uint64_t v) {
    return ~(int)(uint32_t)v;
}

/* Largest first; n is a power of two. All threads of the block; what they wrote is seen. */
static __device__ void sort_all(uint64_t *v, int n) {
    for (int size = 2; size <= n; size <<= 1)
        for (int stride = size >> 1; stride; stride >>= 1) {
            __syncthreads();
            for (int i = threadIdx.x; i < n / 2; i += BEST_THREADS) {
                const int a = 2 * i - (i & (stride - 1)), b = a + stride;
                const uint64_t x = v[a], y = v[b];
                if ((x < y) == !(a & size))
                    v[a] = y, v[b] = x;
            }
        }
    __syncthreads();
}

static __device__ __forceinline__ double warp_sum_of_doubles(double v) {
    for (int offset = 16; offset; offset >>= 1)
        v += __shfl_xor_sync(0xffffffffu, v, offset);
    return v;
}

static __device__ __forceinline__ int chunk_end(const best_arguments &a, int chunk) {
    return min((chunk + 1) * a.width, a.n);
}

__global__ void best_kernel(best_arguments a) {
    WINA_CUDA_SHARED(best_shared, s);
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    for (int chunk = blockIdx.x * BEST_WARPS + warp; chunk < a.n_chunks;
         chunk += gridDim.x * BEST_WARPS) {
        uint32_t most = 0;
        for (int i = chunk * a.width + lane; i < chunk_end(a, chunk); i += 32)
            most = max(most, key_of(__ldcg(a.logits + i)));
        for (int offset = 16; offset; offset >>= 1)
            most = max(most, __shfl_xor_sync(0xffffffffu, most, offset));
        const double largest = (double)number_of(most);
        double weight = 0;
        for (int i = chunk * a.width + lane; i < chunk_end(a, chunk); i += 32)
            weight += exp((double)__ldcg(a.logits + i) - largest);
        weight = warp_sum_of_doubles(weight);
        if (lane == 0) {
            __stcg(&a.chunks[chunk].weight, weight);
            __stcg(&a.chunks[chunk].largest, most);
        }
    }
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) {
        s.is_last = atomicInc(a.arrived, gridDim.x - 1) == gridDim.x - 1;
        s.n = 0;
    }
    __syncthreads();
    if (!s.is_last)
        return;
    __threadfence();
    for (int i = threadIdx.x; i < WINA_CUDA_BEST_CHUNKS; i += BEST_THREADS)
        s.chunks[i] = i < a.n_chunks ? with_index(__ldcg(&a.chunks[i].largest), i) : 0;
    sort_all(s.chunks, WINA_CUDA_BEST_CHUNKS);
    const uint32_t first = (uint32_t)(s.chunks[0] >> 32);
    double weight = 0;
    for (int i = threadIdx.x; i < a.n_chunks; i += BEST_THREADS)
        weight += __ldcg(&a.chunks[i].weight) *
                  exp((double)number_of(__ldcg(&a.chunks[i].largest)) - (double)number_of(first));
    weight = warp_sum_of_doubles(weight);
    if (lane == 0)
        s.weights[warp] = weight;
    const int k = min(a.n, (int)WINA_MOST_BEST); /* there are as many chunks */
    const uint32_t least = (uint32_t)(s.chunks[k - 1] >> 32);
    for (int c = warp; c < a.n_chunks && (uint32_t)(s.chunks[c] >> 32) >= least; c += BEST_WARPS) {
        const int chunk = index_of(s.chunks[c]);
        for (int i = chunk * a.width + lane; i < chunk_end(a, chunk); i += 32) {
            const uint32_t key = key_of(__ldcg(a.logits + i));
            const int at = key >= least ? (int)atomicAdd(&s.n, 1) : (int)BEST_ROOM;
            if (at < BEST_ROOM)
                s.list[at] = with_index(key, i);
        }
    }
    __syncthreads();
    const int n = s.n;
    int n_sorted = 2;
    while (n_sorted < n && n_sorted < BEST_ROOM)
        n_sorted *= 2;
    for (int i = n + threadIdx.x; i < n_sorted; i += BEST_THREADS)
        s.list[i] = 0;
    sort_all(s.list, n_sorted);
    if (threadIdx.x == 0) {
        weight = 0;
        for (int w = 0; w < BEST_WARPS; w++)
            weight += s.weights[w];
        a.out->found.n = n <= BEST_ROOM ? k : 0;
        a.out->found.weight = weight;
        a.out->is_broken = first == (uint32_t)BEST_BROKEN;
    }
    for (int i = threadIdx.x; i < k; i += BEST_THREADS)
        a.out->found.all[i] = {number_of((uint32_t)(s.list[i] >> 32)), index_of(s.list[i])};
}

/* ---- launchers ---------------------------------------------------------------------------- */

extern "C" cudaError_t wina_cuda_best_launch(const float *logits, int32_t n,
                                             wina_cuda_chunk *chunks, uint32_t *arrived,
                                             wina_cuda_best *out, int32_t n_sms,
                                             cudaStream_t stream) {
    int width = (n + WINA_CUDA_BEST_CHUNKS - 1) / WINA_CUDA_BEST_CHUNKS;
    if (width > 16) /* whole rows of a warp; there are hundreds of chunks all the same */
        width = (width + 31) / 32 * 32;
    const int n_chunks = (n + width - 1) / width, most = (n_chunks + BEST_WARPS - 1) / BEST_WARPS;
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3((unsigned)(most < n_sms ? most : n_sms));
    config.blockDim = dim3(BEST_THREADS);
    config.stream = stream;
    const best_arguments a = {logits, n, width, n_chunks, chunks, arrived, out};
    return cudaLaunchKernelEx(&config, best_kernel, a);
}
