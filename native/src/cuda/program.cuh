/* program: the steps of one token as one kernel that stays on the device.
 *
 * Purpose. A token of a large model is 160 dependent steps, each a few microseconds of reading
 * weights. As kernels of their own they spend as long again on starting, on fetching code and on
 * waiting for constants. Here one block per multiprocessor runs them all: a step's parameters and
 * constants are loaded while the blocks still wait for one another at the end of the step before.
 */
#ifndef WINA_CUDA_PROGRAM_CUH
#define WINA_CUDA_PROGRAM_CUH

#include "attend.cuh"
#include "gemv.cuh"

enum { PROGRAM_THREADS = GEMV_THREADS };
static_assert((int)PROGRAM_THREADS == (int)ATTEND_THREADS, "one block size for all steps");

/* ---- kernels ------------------------------------------------------------------------------ */

struct program_shared {
    gemv_shared gemv;
    alignas(16) wina_cuda_phase phases[2]; /* under way, next */
    wina_cuda_keep keeps[2];               /* of them */
    int pos;
    long long marks[WINA_CUDA_N_MARKS + 1];
};

/* The barrier of all blocks in two halves. What a block wrote before arrive() is seen by all after
 * wait(); `target` is the number of arrivals since the program's start. */
static __device__ __forceinline__ void barrier_arrive(uint32_t *barrier) {
    __syncthreads();
    if (threadIdx.x == 0)
#ifdef WINA_CUDA_EMULATE
        atomicAdd(barrier, 1u);
#else
        asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(barrier) : "memory");
#endif
}

static __device__ __forceinline__ uint32_t barrier_read(const uint32_t *barrier) {
    uint32_t seen;
#ifdef WINA_CUDA_EMULATE
    emulate_wait();
    seen = *barrier;
#else
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(seen) : "l"(barrier) : "memory");
#endif
    return seen;
}

static __device__ __forceinline__ void barrier_wait(const uint32_t *barrier, uint32_t target) {
    if (threadIdx.x == 0)
        while (barrier_read(barrier) < target) {
        }
    __syncthreads();
}

/* Parameters of a phase on their way to shared memory: registers that wait for them would have to
 * be saved, because a phase needs all there are. They are there after wait_copies() and a barrier.
 */
enum { PHASE_WORDS = sizeof(wina_cuda_phase) / 8 };
static_assert(sizeof(wina_cuda_phase) % 8 == 0 && (int)PHASE_WORDS < (int)PROGRAM_THREADS,
              "a word per thread, and one for keep");

static __device__ __forceinline__ void fetch_phase(wina_cuda_phase &to, const wina_cuda_phase *from,
                                                   wina_cuda_keep &keep,
                                                   const wina_cuda_keep *keep_from) {
    if (threadIdx.x < PHASE_WORDS)
        copy8(reinterpret_cast<uint64_t *>(&to) + threadIdx.x,
              reinterpret_cast<const uint64_t *>(from) + threadIdx.x);
    if (threadIdx.x == PHASE_WORDS) {
        if (keep_from)
            copy8(&keep, keep_from);
        else
            keep = {INT32_MAX, 0.0f};
    }
}

/* Formats as bits. A kernel with few of them is compiled better: the code of all formats in one
 * kernel makes every one of them save and restore registers that another uses. */
static constexpr __host__ __device__ uint32_t bit_of(int format) {
    return 1u << format;
}
enum : uint32_t { FORMATS_ALL = bit_of(WINA_CUDA_N_FORMATS) - 1 };

/* The instance of the panel's format, of those that FORMATS has. */
template <uint32_t FORMATS>
static __device__ __forceinline__ void run_gemv(const wina_cuda_gemv &g, wina_cuda_keep keep,
                                                gemv_shared &s, long long *marks) {
#define RUN(NAME, FORMAT)                                                                          \
    if constexpr ((FORMATS & bit_of(NAME)) != 0)                                                   \
        if (FORMATS == bit_of(NAME) || g.panel.format == NAME)                                     \
            return gemv_run<FORMAT>(g, keep, s, marks);
    RUN(WINA_CUDA_F16, format_f16)
    RUN(WINA_CUDA_Q8_0, format_q8_0)
    RUN(WINA_CUDA_Q4_0, format_q4_0)
    RUN(WINA_CUDA_Q4_K, format_q4_k)
    RUN(WINA_CUDA_Q6_K, format_q6_k)
    RUN(WINA_CUDA_Q5_K, format_q5_k)
    RUN(WINA_CUDA_BF16, format_bf16)
    RUN(WINA_CUDA_F32, format_f32)
    RUN(WINA_CUDA_Q4_1, format_q4_1)
    RUN(WINA_CUDA_Q5_0, format_q5_0)
    RUN(WINA_CUDA_Q5_1, format_q5_1)
#undef RUN
}

static __device__ __forceinline__ void run_attend(const wina_cuda_attend &a, int pos,
                                                  uint8_t *memory) {
    const bool f16 = !a.is_q8[0] && !a.is_q8[1];
#define RUN(LANES)                                                                                 \
    return f16 ? attend_run<LANES, true>(a, pos, memory) : attend_run<LANES, false>(a, pos, memory)
    if (a.head_pad > 128)
        RUN(32);
    if (a.head_pad > 64)
        RUN(16);
    RUN(8);
#undef RUN
}

static __device__ __forceinline__ void run_swiglu(const wina_cuda_swiglu &w) {
    for (int i = blockIdx.x * PROGRAM_THREADS + threadIdx.x; i < w.n;
         i += gridDim.x * PROGRAM_THREADS) {
        const float gate = __ldcg(w.gate + i);
        w.out[i] = activated(gate, w.gelu) * __ldcg(w.up + i);
    }
}

/* Sum over the block; every thread receives it. sums: (PROGRAM_THREADS / 32) of shared memory,
 * free again at the next barrier. */
static __device__ __forceinline__ float block_sum(float v, float *sums) {
    const int lane = threadIdx.x & 31;
    v = warp_sum(v);
    if (lane == 0)
        sums[threadIdx.x >> 5] = v;
    __syncthreads();
    return warp_sum(lane < PROGRAM_THREADS / 32 ? sums[lane] : 0.0f);
}

/* A block per head, or per all heads. */
static __device__ __noinline__ void run_qk_norm(const wina_cuda_qk_norm &w, float *sums) {
    const int n_q = w.norm_all ? 1 : w.n_head, n_k = w.norm_all ? 1 : w.n_head_kv;
    for (int h = blockIdx.x; h < n_q + n_k; h += gridDim.x) {
        const bool key = h >= n_q;
        const int n = w.head_dim * (key ? w.n_head_kv / n_k : w.n_head / n_q);
        const int row0 = key ? w.k_row0 + (h - n_q) * n : h * n;
        const float *gain = key ? w.k_norm : w.q_norm;
        float squares = 0.0f;
        for (int i = threadIdx.x; i < n; i += PROGRAM_THREADS) {
            const float v = load_fixed(w.sums + row0 + i) + (w.bias ? w.bias[row0 + i] : 0.0f);
            squares = fmaf(v, v, squares);
        }
        const float factor = rsqrtf(block_sum(squares, sums) / (float)n + w.eps);
        for (int i = threadIdx.x; i < n; i += PROGRAM_THREADS) {
            const float bias = w.bias ? w.bias[row0 + i] : 0.0f;
            const float v = load_fixed(w.sums + row0 + i) + bias;
            w.sums[row0 + i] = to_fixed(v * factor * __ldg(gain + i) - bias);
        }
        __syncthreads();
    }
}

/* Every block finds the norm for itself and adds its part. sums: as for block_sum(). */
static __device__ __noinline__ void run_leave(const wina_cuda_leave &w, float *sums) {
    float factor = w.scale;
    if (w.gain) {
        float squares = 0.0f;
        for (int i = threadIdx.x; i < w.n; i += PROGRAM_THREADS) {
            const float v = load_fixed(w.add + i);
            squares = fmaf(v, v, squares);
        }
        factor *= rsqrtf(block_sum(squares, sums) / (float)w.n + w.eps);
    }
    for (int i = blockIdx.x * PROGRAM_THREADS + threadIdx.x; i < w.n;
         i += gridDim.x * PROGRAM_THREADS) {
        const float v = load_fixed(w.add + i) * factor * (w.gain ? __ldg(w.gain + i) : 1.0f);
        if (!(fabsf(v) < WINA_CUDA_MOST))
            *w.overflow = 1;
        w.x[i] = __ldcg(reinterpret_cast<const long long *>(w.x + i)) + to_fixed(v);
    }
}

template <uint32_t FORMATS>
__global__ void __launch_bounds__(PROGRAM_THREADS, 1)
    program_kernel(const __grid_constant__ wina_cuda_program p) {
    WINA_CUDA_DYNAMIC(memory);
    WINA_CUDA_SHARED(program_shared, s);
    float *scores = reinterpret_cast<float *>(memory);
    fetch_phase(s.phases[0], p.phases, s.keeps[0], p.first_keep);
    if (threadIdx.x == 0)
        s.pos = p.step->pos;
    wait_copies();
    __syncthreads();
    if (s.phases[0].kind == WINA_CUDA_GEMV)
        load_weights(s.phases[0].u.gemv, s.keeps[0], s.gemv.select, scores);
    __syncthreads();
#pragma unroll 1
    for (int i = 0; i < p.n_phases; i++) {
        const wina_cuda_phase &now = s.phases[i & 1], &next = s.phases[~i & 1];
        mark(s.marks, 0);
        if (i + 1 < p.n_phases)
            fetch_phase(s.phases[~i & 1], p.phases + i + 1, s.keeps[~i & 1], now.next_keep);
        for (int k = blockIdx.x * PROGRAM_THREADS + threadIdx.x; k < now.n_zero;
             k += gridDim.x * PROGRAM_THREADS)
            now.zero[k] = 0;
        if (now.kind == WINA_CUDA_GEMV)
            run_gemv<FORMATS>(now.u.gemv, s.keeps[i & 1], s.gemv, s.marks);
        else if (now.kind == WINA_CUDA_ATTEND)
            run_attend(now.u.attend, s.pos, memory);
        else if (now.kind == WINA_CUDA_LEAVE)
            run_leave(now.u.leave, s.gemv.select.warp_sum);
        else if (now.kind == WINA_CUDA_QK_NORM)
            run_qk_norm(now.u.qk_norm, s.gemv.select.warp_sum);
        else
            run_swiglu(now.u.swiglu);
        const bool is_gemv = now.kind == WINA_CUDA_GEMV; /* `now` is overwritten soon */
        mark(s.marks, 7);
        if (i + 1 < p.n_phases) {
            wait_copies();
            barrier_arrive(p.barrier);
            if (next.kind == WINA_CUDA_GEMV) {
                load_weights(next.u.gemv, s.keeps[~i & 1], s.gemv.select, scores);
                if (!is_sparse(s.keeps[~i & 1], next.u.gemv.panel.n_cols))
                    prefetch_columns(next.u.gemv, own_tile(next.u.gemv.n_tiles));
            }
            prefetch_scales(now.ahead);
            barrier_wait(p.barrier, gridDim.x * (uint32_t)(i + 1));
        }
        if (p.times && blockIdx.x == 5 % gridDim.x && threadIdx.x == 0) {
            long long *sum = p.times[i].marks;
            if (is_gemv)
                for (int k = 0; k < 7; k++)
                    sum[k] += s.marks[k + 1] - s.marks[k];
            else
                sum[4] += s.marks[7] - s.marks[0];
            sum[7] += clock64() - s.marks[7];
        }
    }
}

/* ---- instances ---------------------------------------------------------------------------- */

typedef void (*program_function)(wina_cuda_program);
struct program_instance {
    uint32_t formats;
    program_function kernel;
};
template <uint32_t... SETS> struct program_instances {
    static constexpr int N = sizeof...(SETS);
    static const program_instance *get() {
        static const program_instance all[] = {{SETS, program_kernel<SETS>}..., {0, nullptr}};
        return all;
    }
};

/* Each file compiles some; a list ends with formats 0. */
const program_instance *program_instances_float(); /* program_float.cu */
const program_instance *program_instances_block(); /* program_block.cu */
const program_instance *program_instances_k();     /* program_k.cu */

#endif
