/* emulate: runs the kernels of decoding and of prompts on the CPU, so that their logic is checked
 * where there is no GPU.
 *
 * Every thread of a block is a fiber, in turn, on one CPU thread; all blocks run at once where they
 * wait for each other (a cooperative launch), else three at a time, in an order drawn at random. A
 * warp's collective operations and barriers are meetings of fibers, tensor cores are mma.h, cuBLAS
 * is cublas.c. It shows wrong indices, sums and orders, missing barriers between warps, what is
 * read before it is written, and deadlocks (which end the program); not how fast or how weakly
 * ordered a GPU is. EMULATE_SMS, EMULATE_GPUS and EMULATE_FREE_MB say how many multiprocessors,
 * GPUs and MB of memory there are (16, 1, 16384). While EMULATE_FAIL is set, copies fail.
 */
#ifndef WINA_CUDA_EMULATE_H
#define WINA_CUDA_EMULATE_H

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>
#include <vector_functions.h>

#ifndef __grid_constant__
#define __grid_constant__
#endif
#define __launch_bounds__(...)
#undef __noinline__
#define __noinline__

/* ---- the machine -------------------------------------------------------------------------- */

/* Of the fiber that runs. */
extern uint3 threadIdx, blockIdx;
extern dim3 gridDim, blockDim;

/* is_joint: the blocks wait for each other. */
void emulate_launch(cudaStream_t stream, dim3 grid, unsigned n_threads, size_t shared_bytes,
                    bool is_joint, std::function<void()> kernel);
void emulate_sync_block();
/* All 32 lanes give a value; returns what they gave, until the next collective. */
const uint64_t *emulate_meet(uint64_t mine);
void emulate_wait(); /* lets the others run, without progress of its own */
void emulate_progress();
uint8_t *emulate_dynamic();
uint8_t *emulate_static(size_t at);
size_t emulate_reserve(size_t n_bytes); /* of every block's static shared memory */

#define WINA_CUDA_DYNAMIC(name) uint8_t *const name = emulate_dynamic()
#define WINA_CUDA_SHARED(type, name)                                                               \
    static const size_t name##_at = emulate_reserve(sizeof(type));                                 \
    type &name = *reinterpret_cast<type *>(emulate_static(name##_at))

#define WINA_CUDA_LAUNCH(kernel, grid, n_threads, shared_bytes, stream, ...)                       \
    emulate_launch(stream, dim3(grid), n_threads, shared_bytes, false, [=] { kernel(__VA_ARGS__); })

/* ---- memory ------------------------------------------------------------------------------- */

template <class T> static inline T __ldg(const T *p) {
    return *p;
}
template <class T> static inline T __ldcg(const T *p) {
    return *p;
}
template <class T> static inline void __stcg(T *p, T v) {
    *p = v;
}
static inline long long __float2ll_rn(float f) {
    return llrintf(f);
}
static inline void __threadfence() {}
static inline long long clock64() {
    return 0;
}
template <class T> static inline T atomicAdd(T *p, T v) {
    const T before = *p;
    *p += v;
    emulate_progress();
    return before;
}
static inline uint32_t atomicMax(uint32_t *p, uint32_t v) {
    const uint32_t before = *p;
    *p = v > before ? v : before;
    return before;
}
static inline uint32_t atomicInc(uint32_t *p, uint32_t most) {
    const uint32_t before = *p;
    *p = before >= most ? 0 : before + 1;
    emulate_progress();
    return before;
}

/* ---- arithmetic --------------------------------------------------------------------------- */

static inline uint32_t __float_as_uint(float f) {
    uint32_t u;
    memcpy(&u, &f, 4);
    return u;
}
static inline float __uint_as_float(uint32_t u) {
    float f;
    memcpy(&f, &u, 4);
    return f;
}
static inline float __int_as_float(int i) {
    return __uint_as_float((uint32_t)i);
}
static inline float __fmul_rn(float a, float b) {
    return a * b;
}
static inline float __fadd_rn(float a, float b) {
    return a + b;
}
static inline float __fsub_rn(float a, float b) {
    return a - b;
}
static inline int __float2int_rn(float f) {
    return (int)rintf(f);
}
static inline int __ffs(uint32_t v) {
    return __builtin_ffs((int)v);
}
static inline int __clz(int v) {
    return v ? __builtin_clz((unsigned)v) : 32;
}
static inline int __popc(uint32_t v) {
    return __builtin_popcount(v);
}
static inline uint32_t __byte_perm(uint32_t a, uint32_t b, uint32_t selector) {
    const uint64_t bytes = (uint64_t)b << 32 | a;
    uint32_t v = 0;
    for (int i = 0; i < 4; i++)
        v |= (uint32_t)(bytes >> (8 * (selector >> (4 * i) & 7)) & 255) << (8 * i);
    return v;
}
/* acc + both 16-bit halves of x times the two bytes. */
static inline int emulated_dp2a(int acc, int x, uint32_t bytes) {
    return acc + (int16_t)(x & 0xffff) * (int)(bytes & 255) + (x >> 16) * (int)(bytes >> 8 & 255);
}
#define __expf(f)        expf(f)
#define __fdividef(a, b) ((a) / (b))
static inline float rsqrtf(float f) {
    return 1.0f / sqrtf(f);
}
template <class A, class B> static inline auto min(A a, B b) -> decltype(+a + +b) {
    return a < b ? a : b;
}
template <class A, class B> static inline auto max(A a, B b) -> decltype(+a + +b) {
    return a > b ? a : b;
}

/* ---- warps -------------------------------------------------------------------------------- */

static inline void __syncthreads() {
    emulate_sync_block();
}
static inline void __syncwarp() {
    emulate_meet(0);
}
static inline unsigned emulated_lane() {
    return threadIdx.x & 31;
}
static inline uint32_t __ballot_sync(uint32_t, bool v) {
    const uint64_t *all = emulate_meet(v);
    uint32_t who = 0;
    for (int i = 0; i < 32; i++)
        who |= (uint32_t)all[i] << i;
    return who;
}
static inline uint32_t __reduce_add_sync(uint32_t, uint32_t v) {
    const uint64_t *all = emulate_meet(v);
    uint32_t sum = 0;
    for (int i = 0; i < 32; i++)
        sum += (uint32_t)all[i];
    return sum;
}
static inline uint32_t __reduce_max_sync(uint32_t, uint32_t v) {
    const uint64_t *all = emulate_meet(v);
    uint32_t most = 0;
    for (int i = 0; i < 32; i++)
        most = std::max(most, (uint32_t)all[i]);
    return most;
}
template <class T> static inline T emulated_from(T v, unsigned lane) {
    uint64_t mine = 0;
    memcpy(&mine, &v, sizeof v);
    mine = emulate_meet(mine)[lane & 31];
    memcpy(&v, &mine, sizeof v);
    return v;
}
template <class T> static inline T __shfl_sync(uint32_t, T v, int lane) {
    return emulated_from(v, (unsigned)lane);
}
template <class T> static inline T __shfl_xor_sync(uint32_t, T v, int mask) {
    return emulated_from(v, emulated_lane() ^ (unsigned)mask);
}
template <class T> static inline T __shfl_up_sync(uint32_t, T v, int n) {
    const unsigned lane = emulated_lane();
    return emulated_from(v, lane >= (unsigned)n ? lane - (unsigned)n : lane);
}

/* ---- launches ----------------------------------------------------------------------------- */

template <class P>
static inline cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t *config, void (*kernel)(P),
                                             P argument) {
    emulate_launch(config->stream, config->gridDim, config->blockDim.x, config->dynamicSmemBytes,
                   config->numAttrs > 0, [=] { kernel(argument); });
    return cudaSuccess;
}
template <class K>
static inline cudaError_t cudaOccupancyMaxActiveClusters(int *n, K, const cudaLaunchConfig_t *) {
    *n = 0;
    return cudaErrorNotSupported;
}

#endif
