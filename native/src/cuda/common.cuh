/* common: reductions, fixed-point sums, loads that say how long data is wanted. */
#ifndef WINA_CUDA_COMMON_CUH
#define WINA_CUDA_COMMON_CUH

#include <cstdint>
#ifndef WINA_CUDA_EMULATE /* there, the command line includes tests/native/cuda/emulate/emulate.h  \
                           */
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#endif

#include "device.h"

#ifndef WINA_CUDA_EMULATE
/* A kernel's dynamic shared memory, a structure in static shared memory, and a launch of blocks
 * that do not wait for each other. */
#define WINA_CUDA_DYNAMIC(name)      extern __shared__ __align__(16) uint8_t name[]
#define WINA_CUDA_SHARED(type, name) __shared__ type name
#define WINA_CUDA_LAUNCH(kernel, grid, n_threads, shared_bytes, stream, ...)                       \
    kernel<<<grid, n_threads, shared_bytes, stream>>>(__VA_ARGS__)
#endif

/* Notes the time of one point of a phase. */
static __device__ __forceinline__ void mark(long long *marks, int i) {
    if (threadIdx.x == 0)
        marks[i] = clock64();
}

/* Start of the kernel's dynamic shared memory and sizes are multiples of 16. */
static __device__ __forceinline__ float4 &float4_at(float *p) {
    return *reinterpret_cast<float4 *>(p);
}
static __device__ __forceinline__ float4 load4(const float *constant) {
    return __ldg(reinterpret_cast<const float4 *>(constant));
}

/* Sum over a warp; every lane receives it. The order is fixed. */
static __device__ __forceinline__ float warp_sum(float v) {
#pragma unroll
    for (int offset = 16; offset; offset >>= 1)
        v += __shfl_xor_sync(0xffffffffu, v, offset);
    return v;
}

/* Inclusive prefix sum over a warp. */
static __device__ __forceinline__ uint32_t warp_scan(uint32_t v) {
    const int lane = threadIdx.x & 31;
#pragma unroll
    for (int offset = 1; offset < 32; offset <<= 1) {
        uint32_t u = __shfl_up_sync(0xffffffffu, v, offset);
        v += lane >= offset ? u : 0;
    }
    return v;
}

/* Weights are read once per token: they do not go to L1, and are the first to leave L2, so that
 * the small things of all layers (constants, activations, the young cache) stay there. */
#ifdef WINA_CUDA_EMULATE
static inline uint4 load_stream16(const void *p) {
    return *reinterpret_cast<const uint4 *>(p);
}
static inline uint2 load_stream8(const void *p) {
    return *reinterpret_cast<const uint2 *>(p);
}
static inline uint32_t load_stream4(const void *p) {
    return *reinterpret_cast<const uint32_t *>(p);
}
#else
static __device__ __forceinline__ uint64_t stream_policy() {
    uint64_t policy;
    asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
    return policy;
}
static __device__ __forceinline__ uint4 load_stream16(const void *p) {
    uint4 v;
    asm volatile("ld.global.nc.L1::no_allocate.L2::cache_hint.v4.u32 {%0,%1,%2,%3}, [%4], %5;"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(p), "l"(stream_policy()));
    return v;
}
static __device__ __forceinline__ uint2 load_stream8(const void *p) {
    uint2 v;
    asm volatile("ld.global.nc.L1::no_allocate.L2::cache_hint.v2.u32 {%0,%1}, [%2], %3;"
                 : "=r"(v.x), "=r"(v.y)
                 : "l"(p), "l"(stream_policy()));
    return v;
}
static __device__ __forceinline__ uint32_t load_stream4(const void *p) {
    uint32_t v;
    asm volatile("ld.global.nc.L1::no_allocate.L2::cache_hint.u32 %0, [%1], %2;"
                 : "=r"(v)
                 : "l"(p), "l"(stream_policy()));
    return v;
}

#endif

static __device__ __forceinline__ wina_cuda_fixed to_fixed(float v) {
    return __float2ll_rn(v * (float)WINA_CUDA_ONE);
}
/* Two conversions of 32 bits are four times as fast as one of 64. */
static __device__ __forceinline__ float from_fixed(long long v) {
    const float high = (float)(int32_t)(v >> 32), low = (float)(uint32_t)v;
    return fmaf(high, (float)(4294967296.0 / WINA_CUDA_ONE), low * (float)(1.0 / WINA_CUDA_ONE));
}
/* The gate's activation: silu, or gelu in its tanh form (0.5 (1 + tanh(u)) is the logistic function
 * of 2 u). */
static __device__ __forceinline__ float activated(float v, bool gelu) {
    const float u = gelu ? 1.5957691216f * fmaf(0.044715f * v, v * v, v) : v;
    return v / (1.0f + expf(-u));
}

/* Sums are written by other multiprocessors: they are read from L2. */
static __device__ __forceinline__ float load_fixed(const wina_cuda_fixed *p) {
    return from_fixed(__ldcg(reinterpret_cast<const long long *>(p)));
}

/* Copies 16 bytes of global memory, as L2 has them, to shared memory; wait_copies() waits for those
 * that this thread started, and shows them to it alone. */
static __device__ __forceinline__ void copy16(void *to, const void *from) {
#ifdef WINA_CUDA_EMULATE
    memcpy(to, from, 16);
#else
    asm volatile(
        "cp.async.cg.shared.global [%0], [%1], 16;" ::"r"((uint32_t)__cvta_generic_to_shared(to)),
        "l"(from)
        : "memory");
#endif
}
static __device__ __forceinline__ void copy8(void *to, const void *from) {
#ifdef WINA_CUDA_EMULATE
    memcpy(to, from, 8);
#else
    asm volatile(
        "cp.async.ca.shared.global [%0], [%1], 8;" ::"r"((uint32_t)__cvta_generic_to_shared(to)),
        "l"(from)
        : "memory");
#endif
}
static __device__ __forceinline__ void wait_copies() {
#ifndef WINA_CUDA_EMULATE
    asm volatile("cp.async.wait_all;" ::: "memory");
#endif
}

/* Starts moving n_bytes (a multiple of 16) at p to L2. One thread. */
static __device__ __forceinline__ void prefetch_l2(const void *p, uint32_t n_bytes) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(p), "r"(n_bytes) : "memory");
#else
    (void)p, (void)n_bytes;
#endif
}

#endif
