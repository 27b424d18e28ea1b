/* list: the first half of every gemv: RMS norm, scores, selection, and the list of kept inputs in
 * shared memory, in rising order.
 *
 * All blocks of a gemv find the same inputs and cut the work, (row tiles) x (entries of the list),
 * into equal intervals in tile-major order; a block lists only the entries of its own interval.
 * For quantised formats an entry is a pair of inputs of one sub-block and their activations,
 * rounded to 16 bits with one scale per block of 32; an odd one out is paired with a zero. */
#ifndef WINA_CUDA_LIST_CUH
#define WINA_CUDA_LIST_CUH

#include "device.h"
#include "formats.cuh"
#include "select.cuh"

/* Entry: floats: (offset of the column / 32, the float); pairs: (two inputs, 16 bits each; their
 * activations, 16 bits each). */
struct list_view {
    uint2 *entries;  /* (capacity) a ring: entry e is at (e - first) mod n */
    uint32_t *masks; /* (n_blocks) kept inputs of a block of 32 */
    int *start;      /* (n_blocks + 1) entries before each block of 32 inputs */
    int *todo;       /* (n_blocks) blocks that have entries in this thread block's interval */
    float *scale;    /* pairs: (n_blocks) */
    int n;           /* entries in the whole list */
    int first;       /* of this block */
    /* The work, n_tiles * n entries in tile-major order, is cut into equal parts: the first n_long
     * thread blocks take part + 1 entries, the others part, until there is no more. */
    int work, part, n_long;
    int begin, end; /* this block's interval */
};

enum { LIST_LEAST_WORK = 8 /* entries per thread block below which fewer blocks share the work */ };

static __device__ __forceinline__ uint2 list_at(const list_view &l, int e) {
    int at = e - l.first;
    return l.entries[at < 0 ? at + l.n : at];
}

/* Where the interval of thread block b begins. */
static __device__ __forceinline__ int interval_of(const list_view &l, int b) {
    return min(b * l.part + min(b, l.n_long), l.work);
}

/* The thread block whose interval holds entry `at` of the work. */
static __device__ __forceinline__ int owner_of(const list_view &l, int at) {
    const unsigned length = (unsigned)l.part + 1, in_long = length * (unsigned)l.n_long;
    if ((unsigned)at < in_long)
        return (int)((unsigned)at / length);
    return l.n_long + (int)(((unsigned)at - in_long) / (unsigned)l.part);
}

/* aligned: every tile has its own thread blocks, and no block works on two tiles. */
static __device__ __forceinline__ void share_work(list_view &l, int n_tiles, bool aligned) {
    l.work = n_tiles * l.n;
    if (aligned) {
        const int grid = (int)gridDim.x, b = (int)blockIdx.x;
        const int tile = b * n_tiles / grid;
        const int from = (tile * grid + n_tiles - 1) / n_tiles;
        const int to = ((tile + 1) * grid + n_tiles - 1) / n_tiles;
        l.first = l.n * (b - from) / (to - from);
        l.begin = tile * l.n + l.first;
        l.end = tile * l.n + l.n * (b - from + 1) / (to - from);
        return;
    }
    l.part = l.work / (int)gridDim.x;
    l.n_long = l.work - l.part * (int)gridDim.x;
    if (l.part < LIST_LEAST_WORK) {
        l.part = LIST_LEAST_WORK;
        l.n_long = 0;
    }
    l.begin = interval_of(l, (int)blockIdx.x);
    l.end = interval_of(l, (int)blockIdx.x + 1);
    l.first = l.begin - l.begin / l.n * l.n;
}

/* Entries of a block of 32 inputs given which are kept; of its first sub-block. */
template <list_kind KIND> static __device__ __forceinline__ int count_entries(uint32_t who) {
    if constexpr (KIND == LIST_FLOAT)
        return __popc(who);
    if constexpr (KIND == LIST_PAIR32)
        return (__popc(who) + 1) / 2;
    return (__popc(who & 0xffff) + 1) / 2 + (__popc(who >> 16) + 1) / 2;
}

/* Last entry + 1 of a sub-block. */
template <list_kind KIND>
static __device__ __forceinline__ int end_of_sub(const list_view &l, int sub) {
    if constexpr (KIND == LIST_PAIR16)
        return sub & 1 ? l.start[sub / 2 + 1]
                       : l.start[sub / 2] + (__popc(l.masks[sub / 2] & 0xffff) + 1) / 2;
    return l.start[sub + 1];
}

/* rank: of this input among the kept ones of its sub-block, which are n_kept. */
static __device__ __forceinline__ void store_half(const list_view &l, int length, int at, int rank,
                                                  int n_kept, int input, int q) {
    at += rank / 2 - l.first;
    at += at < 0 ? l.n : 0;
    if (at >= length)
        return;
    uint16_t *inputs = reinterpret_cast<uint16_t *>(&l.entries[at].x);
    int16_t *activations = reinterpret_cast<int16_t *>(&l.entries[at].y);
    inputs[rank & 1] = (uint16_t)input;
    activations[rank & 1] = (int16_t)q;
    if (rank == n_kept - 1 && rank % 2 == 0) {
        inputs[1] = (uint16_t)input;
        activations[1] = 0;
    }
}

/* Block b of 32 inputs, one per lane. */
template <list_kind KIND>
static __device__ __forceinline__ void store_block(const list_view &l, const wina_cuda_panel &p,
                                                   int length, int b, uint32_t who, float h) {
    const int lane = threadIdx.x & 31, input = 32 * b + lane;
    const bool kept = who >> lane & 1;
    const uint32_t below = who & ((1u << lane) - 1);
    if constexpr (KIND == LIST_FLOAT) {
        int at = l.start[b] + __popc(below) - l.first;
        at += at < 0 ? l.n : 0;
        const uint32_t column = ((uint32_t)b >> 3) * (uint32_t)(p.super_bytes / 32) +
                                ((uint32_t)b & 7) * (uint32_t)(p.block_bytes / 32) +
                                (uint32_t)lane * (uint32_t)(p.col_bytes / 32);
        if (kept && at < length)
            l.entries[at] = make_uint2(column, __float_as_uint(h));
        return;
    }
    const uint32_t largest = __reduce_max_sync(0xffffffffu, kept ? __float_as_uint(fabsf(h)) : 0);
    const float top = __uint_as_float(largest);
    const int q = __float2int_rn(h * (top > 0 ? 32512.0f / top : 0.0f));
    if (lane == 0)
        l.scale[b] = top / 32512.0f;
    /* Lanes of a sub-block, and where its entries start. */
    const uint32_t half = KIND == LIST_PAIR16 ? 0xffffu << (lane & 16) : 0xffffffffu;
    const int at =
        l.start[b] + (KIND == LIST_PAIR16 && lane >= 16 ? (__popc(who & 0xffff) + 1) / 2 : 0);
    if (kept)
        store_half(l, length, at, __popc(below & half), __popc(who & half), input, q);
}

static __device__ __forceinline__ wina_cuda_keep load_keep(const wina_cuda_keep *p) {
    if (!p)
        return {INT32_MAX, 0.0f};
    const int2 v = __ldg(reinterpret_cast<const int2 *>(p));
    return {v.x, __int_as_float(v.y)};
}
static __device__ __forceinline__ bool is_sparse(wina_cuda_keep keep, int n) {
    return keep.n_keep < n || keep.threshold > 0.0f;
}

/* Calls f for every fourth input of this thread's fours. Vectors are padded to fours with zeros. */
template <class F> static __device__ __forceinline__ void each_four(int n, F f) {
#pragma unroll 2
    for (int i = 4 * threadIdx.x; i < n; i += 4 * SELECT_THREADS)
        f(i);
}

/* Into shared memory: what |x| is multiplied with to give a score, and (if it fits there) the gain
 * that x is multiplied with. Constants: this comes before the barrier that ends the phase before,
 * so that their latency hides behind it. */
static __device__ __forceinline__ void load_weights(const wina_cuda_gemv &g, wina_cuda_keep keep,
                                                    select_shared &s, float *weights) {
    const int n = g.panel.n_cols;
    const float *norms = is_sparse(keep, n) ? g.norms : nullptr;
    float *gains = weights + (n + 3) / 4 * 4;
    select_clear(s);
    each_four(n, [&](int i) {
        float4 gain = make_float4(1.0f, 1.0f, 1.0f, 1.0f), w = gain;
        if (g.gain)
            gain = load4(g.gain + i);
        if (norms)
            w = load4(norms + i);
        if (g.in_shared)
            float4_at(gains + i) = gain;
        float4_at(weights + i) =
            make_float4(w.x * gain.x, w.y * gain.y, w.z * gain.z, w.w * gain.w);
    });
}

/* Weights in shared memory become scores, gains the input times its gain. *factor: the RMS norm's,
 * *top: the largest score. All threads; ends with a barrier. */
static __device__ __forceinline__ void load_scores(const wina_cuda_gemv &g, select_shared &s,
                                                   float *scores, float *factor, uint32_t *top) {
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, n = g.panel.n_cols;
    float *input = scores + (n + 3) / 4 * 4;
    float squares = 0, most = 0;
    each_four(n, [&](int i) {
        float4 x;
        if (g.fixed_in) {
            const longlong2 *p = reinterpret_cast<const longlong2 *>(g.fixed_in + i);
            const longlong2 a = __ldcg(p), b = __ldcg(p + 1);
            x = make_float4(from_fixed(a.x), from_fixed(a.y), from_fixed(b.x), from_fixed(b.y));
        } else
            x = __ldcg(reinterpret_cast<const float4 *>(g.in + i));
        squares = fmaf(x.x, x.x, fmaf(x.y, x.y, fmaf(x.z, x.z, fmaf(x.w, x.w, squares))));
        float4 w = float4_at(scores + i);
        w = make_float4(fabsf(x.x * w.x), fabsf(x.y * w.y), fabsf(x.z * w.z), fabsf(x.w * w.w));
        most = fmaxf(most, fmaxf(fmaxf(w.x, w.y), fmaxf(w.z, w.w)));
        float4_at(scores + i) = w;
        if (g.in_shared) {
            w = float4_at(input + i);
            float4_at(input + i) = make_float4(x.x * w.x, x.y * w.y, x.z * w.z, x.w * w.w);
        }
    });
    squares = warp_sum(squares);
    const uint32_t largest = __reduce_max_sync(0xffffffffu, __float_as_uint(most));
    if (lane == 0) {
        s.warp_sum[warp] = squares;
        s.warp_max[warp] = largest;
    }
    __syncthreads();
    squares = 0;
#pragma unroll 1
    for (int w = 0; w < SELECT_WARPS; w++)
        squares += s.warp_sum[w];
    *top = __reduce_max_sync(0xffffffffu, lane < SELECT_WARPS ? s.warp_max[lane] : 0);
    *factor = g.gain ? 1.0f / sqrtf(squares / (float)n + g.eps) : 1.0f;
}

/* The threshold that a sparse token's kept inputs reach; scores lack the RMS norm's factor. All
 * threads. */
static __device__ __forceinline__ select_threshold find_threshold(wina_cuda_keep keep,
                                                                  select_shared &s,
                                                                  uint32_t *scores, int n,
                                                                  uint32_t top, float factor) {
    if (keep.threshold > 0.0f) {
        const uint32_t cut = max(__float_as_uint(keep.threshold / factor), 1u);
        if (top >= cut)
            return {cut, 0, 0};
    }
    select_threshold t = threshold(s, scores, n, top, keep.threshold > 0.0f ? 1 : keep.n_keep);
    if (t.n_equal_kept != t.n_equal)
        drop_surplus(scores, n, t);
    return t;
}

/* True if entries [at, at + count) meet the first `length` of this thread block's interval. */
static __device__ __forceinline__ bool in_interval(const list_view &l, int length, int at,
                                                   int count) {
    at -= l.first;
    at += at < 0 ? l.n : 0;
    return at < length || at + count > l.n;
}

/* Finds what is kept of each block of 32: masks, starts, blocks to do. Warp w has blocks
 * [w per, (w + 1) per), its lane k block w per + k (and + 32, + 64, ...). Returns
 * *n_kept and ends with a barrier. */
template <list_kind KIND>
static __device__ __forceinline__ void count_kept(const wina_cuda_gemv &g, select_shared &s,
                                                  const uint32_t *scores, uint32_t threshold,
                                                  int n_tiles, list_view &l, int *n_kept) {
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, n = g.panel.n_cols;
    const int n_blocks = (n + 31) / 32, per = (n_blocks + SELECT_WARPS - 1) / SELECT_WARPS;
    const int first = warp * per, last = min(first + per, n_blocks);
    uint32_t totals = 0;
#pragma unroll 1
    for (int from = first; from < last; from += 32) {
        uint32_t mask = 0;
        const int to = min(from + 32, last);
#pragma unroll 4
        for (int b = from; b < to; b++) {
            const uint32_t who = kept_of(scores, n, b, threshold);
            mask = lane == b - from ? who : mask;
        }
        const uint32_t mine = (uint32_t)__popc(mask) << 16 | (uint32_t)count_entries<KIND>(mask);
        const uint32_t up_to = totals + warp_scan(mine);
        if (from + lane < to) {
            l.masks[from + lane] = mask;
            l.start[from + lane] = (int)((up_to - mine) & 0xffff);
        }
        totals = __shfl_sync(0xffffffffu, up_to, 31);
    }
    if (lane == 0)
        s.list_warp[warp] = totals;
    if (threadIdx.x == 0)
        s.n_todo = 0;
    __syncthreads();
    uint32_t all;
    const int before = (int)(sum_before(s.list_warp, &all) & 0xffff);
    l.n = (int)(all & 0xffff);
    *n_kept = (int)(all >> 16);
    share_work(l, n_tiles, g.aligned);
    const int length = min(l.end - l.begin, l.n);
#pragma unroll 1
    for (int b = first + lane; b < last; b += 32) {
        const int count = count_entries<KIND>(l.masks[b]), at = l.start[b] + before;
        l.start[b] = at;
        if (count > 0 && length > 0 && in_interval(l, length, at, count))
            l.todo[atomicAdd(&s.n_todo, 1)] = b;
    }
    if (threadIdx.x == 0)
        l.start[n_blocks] = l.n;
    __syncthreads();
}

/* The same for all inputs, which needs no counting; n is a multiple of 32 for pairs. */
template <list_kind KIND>
static __device__ __forceinline__ void count_dense(const wina_cuda_gemv &g, select_shared &s,
                                                   int n_tiles, list_view &l) {
    constexpr int PER = KIND == LIST_FLOAT ? 32 : 16; /* entries of a block */
    const int n = g.panel.n_cols, n_blocks = (n + 31) / 32;
    l.n = KIND == LIST_FLOAT ? n : n / 2;
    share_work(l, n_tiles, g.aligned);
    const int length = min(l.end - l.begin, l.n);
    /* Blocks that the interval meets, from the one it starts in; it may wrap around, into that one
     * again. */
    const bool wraps = l.first + length > l.n; /* the last block may be a short one */
    const int from = l.first / PER,
              n_met = min((l.first - from * PER + length + PER - 1) / PER + wraps, n_blocks);
    for (int b = threadIdx.x; b <= n_blocks; b += SELECT_THREADS) {
        l.start[b] = min(b * PER, l.n);
        if (b == n_blocks)
            break;
        l.masks[b] = 32 * b + 32 <= n ? 0xffffffffu : (1u << (n - 32 * b)) - 1;
        if (b < n_met && length > 0)
            l.todo[b] = from + b < n_blocks ? from + b : from + b - n_blocks;
    }
    if (threadIdx.x == 0)
        s.n_todo = length > 0 ? n_met : 0;
    __syncthreads();
}

/* Fills l from the phase's input; scores: what load_weights left. All threads; ends with a
 * barrier. */
template <list_kind KIND>
static __device__ __forceinline__ void make_list(const wina_cuda_gemv &g, wina_cuda_keep keep,
                                                 select_shared &s, float *scores, int n_tiles,
                                                 list_view &l, long long *marks) {
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, n = g.panel.n_cols;
    const float *input = scores + (n + 3) / 4 * 4;
    uint32_t *bits = reinterpret_cast<uint32_t *>(scores);
    float factor;
    uint32_t top;
    int n_kept;
    load_scores(g, s, scores, &factor, &top);
    mark(marks, 1);
    const bool sparse = is_sparse(keep, n);
    select_threshold t = {0, 0, 0};
    if (sparse)
        t = find_threshold(keep, s, bits, n, top, factor);
    mark(marks, 2);
    if (!sparse && (KIND == LIST_FLOAT || n % 32 == 0)) {
        count_dense<KIND>(g, s, n_tiles, l);
        n_kept = n;
    } else
        count_kept<KIND>(g, s, bits, t.bits, n_tiles, l, &n_kept);
    if (g.n_kept && blockIdx.x == 0 && threadIdx.x == 0)
        *g.n_kept = n_kept;
    mark(marks, 3);
    const int length = min(l.end - l.begin, l.n), n_todo = s.n_todo;
#pragma unroll 1
    for (int k = warp; k < n_todo; k += SELECT_WARPS) {
        const int b = l.todo[k], i = 32 * b + lane;
        float h = 0.0f;
        if (i < n)
            h = g.in_shared ? input[i]
                            : (g.fixed_in ? load_fixed(g.fixed_in + i) : __ldcg(g.in + i)) *
                                  (g.gain ? __ldg(g.gain + i) : 1.0f);
        store_block<KIND>(l, g.panel, length, b, l.masks[b], h * factor);
    }
    __syncthreads();
    mark(marks, 4);
}

#endif
