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

/* Entry: floats: (offset of the column / 32, the float); pairs: (offsets of two columns / 8, their
 * activations of 16 bits each, the sub-block). */
template <list_kind KIND> struct list_entry { typedef uint4 type; };
template <> struct list_entry<LIST_FLOAT> { typedef uint2 type; };

template <class T> static __device__ __forceinline__ T *shared_at(int offset) {
    WINA_CUDA_DYNAMIC(memory);
    return reinterpret_cast<T *>(memory + offset);
}

struct list_view {
    /* Where these are in dynamic shared memory. Not pointers: of one that was itself read from
     * memory the compiler would not know what memory it points to. */
    int entries_at, masks_at, start_at, todo_at, scale_at;
    int n;     /* entries in the whole list */
    int first; /* of this block */
    /* The work, n_tiles * n entries in tile-major order, is cut into equal parts: the first n_long
     * thread blocks take part + 1 entries, the others part, until there is no more. Where every
     * tile has its own thread blocks, this holds inside of a tile, for n_sharers of them. */
    int work, part, n_long, n_sharers;
    int begin, end; /* this block's interval */

    /* (capacity) entry e is at place_of(e) */
    template <class T> __device__ __forceinline__ T *entries() const {
        return shared_at<T>(entries_at);
    }
    /* (n_blocks) kept inputs of a block of 32 */
    __device__ __forceinline__ uint32_t *masks() const {
        return shared_at<uint32_t>(masks_at);
    }
    /* (n_blocks + 1) entries before each block of 32 inputs */
    __device__ __forceinline__ int *start() const {
        return shared_at<int>(start_at);
    }
    /* (n_blocks) blocks that have entries in this thread block's interval */
    __device__ __forceinline__ int *todo() const {
        return shared_at<int>(todo_at);
    }
    /* pairs: (n_blocks) */
    __device__ __forceinline__ float *scale() const {
        return shared_at<float>(scale_at);
    }
};

enum { LIST_LEAST_WORK = 8 /* entries per thread block below which fewer blocks share the work */ };

/* Place of entry e. The entries of one tile stand in order. */
static __device__ __forceinline__ int place_of(const list_view &l, int e) {
    const int at = e - l.first;
    return at < 0 ? at + l.n : at;
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

/* Thread blocks of a tile that has its own: `first` and on, of which this block is in. Known before
 * the inputs are, so that its divisions cost nothing. */
static __device__ __forceinline__ tile_share own_tile(int n_tiles) {
    const int grid = (int)gridDim.x, tile = (int)blockIdx.x * n_tiles / grid;
    const int from = (tile * grid + n_tiles - 1) / n_tiles;
    return {tile, from, ((tile + 1) * grid + n_tiles - 1) / n_tiles - from};
}

static __device__ __forceinline__ void share_work(const wina_cuda_gemv &g, const tile_share &own,
                                                  list_view &l) {
    if (g.aligned) {
        const int j = (int)blockIdx.x - own.first_block;
        l.work = l.n;
        l.n_sharers = min(own.n_blocks, (l.n + LIST_LEAST_WORK - 1) / LIST_LEAST_WORK);
        l.part = (int)((unsigned)l.n / (unsigned)l.n_sharers);
        l.n_long = l.n - l.part * l.n_sharers;
        l.begin = interval_of(l, j);
        l.end = interval_of(l, j + 1);
        l.first = l.begin;
        return;
    }
    l.work = g.n_tiles * l.n;
    l.part = l.work / (int)gridDim.x;
    l.n_long = l.work - l.part * (int)gridDim.x;
    if (l.part < LIST_LEAST_WORK) {
        l.part = LIST_LEAST_WORK;
        l.n_long = 0;
    }
    l.begin = interval_of(l, (int)blockIdx.x);
    l.end = interval_of(l, (int)blockIdx.x + 1);
    l.first = l.end - l.begin < l.n ? l.begin - l.begin / l.n * l.n : 0;
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
        return sub & 1 ? l.start()[sub / 2 + 1]
                       : l.start()[sub / 2] + (__popc(l.masks()[sub / 2] & 0xffff) + 1) / 2;
    return l.start()[sub + 1];
}

/* rank: of this input among the kept ones of its sub-block, which are n_kept. */
static __device__ __forceinline__ void store_half(const list_view &l, int length, int at, int rank,
                                                  int n_kept, uint32_t column, int q, int sub) {
    at = place_of(l, at + rank / 2);
    if (at >= length)
        return;
    uint32_t *words = l.entries<uint32_t>() + 4 * at;
    int16_t *activations = reinterpret_cast<int16_t *>(words + 2);
    words[rank & 1] = column;
    activations[rank & 1] = (int16_t)q;
    if (rank & 1)
        return;
    words[3] = (uint32_t)sub;
    if (rank == n_kept - 1) {
        words[1] = column;
        activations[1] = 0;
    }
}

/* Where a column starts in a panel, in units of so many bytes. */
template <int UNIT>
static __device__ __forceinline__ uint32_t column_at(const wina_cuda_panel &p, int b, int i) {
    return ((uint32_t)b >> 3) * (uint32_t)(p.super_bytes / UNIT) + p.super_head / UNIT +
           ((uint32_t)b & 7) * (uint32_t)(p.block_bytes / UNIT) +
           (uint32_t)i * (uint32_t)(p.col_bytes / UNIT);
}

/* Block b of 32 inputs, one per lane. */
template <list_kind KIND>
static __device__ __forceinline__ void store_block(const list_view &l, const wina_cuda_panel &p,
                                                   int length, int b, uint32_t who, float h) {
    const int lane = threadIdx.x & 31;
    const bool kept = who >> lane & 1;
    const uint32_t below = who & ((1u << lane) - 1);
    if constexpr (KIND == LIST_FLOAT) {
        const int at = place_of(l, l.start()[b] + __popc(below));
        if (kept && at < length)
            l.entries<uint2>()[at] = make_uint2(column_at<32>(p, b, lane), __float_as_uint(h));
        return;
    }
    const uint32_t largest = __reduce_max_sync(0xffffffffu, kept ? __float_as_uint(fabsf(h)) : 0);
    const float top = __uint_as_float(largest);
    const int q = __float2int_rn(h * (top > 0 ? 32512.0f / top : 0.0f));
    if (lane == 0)
        l.scale()[b] = top / 32512.0f;
    /* Lanes of a sub-block, and where its entries start. */
    const uint32_t half = KIND == LIST_PAIR16 ? 0xffffu << (lane & 16) : 0xffffffffu;
    const int at =
        l.start()[b] + (KIND == LIST_PAIR16 && lane >= 16 ? (__popc(who & 0xffff) + 1) / 2 : 0);
    if (kept)
        store_half(l, length, at, __popc(below & half), __popc(who & half),
                   column_at<8>(p, b, lane), q, KIND == LIST_PAIR16 ? 2 * b + (lane >> 4) : b);
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

/* The input needs no gain and no conversion: it is copied to shared memory as it is. */
static __device__ __forceinline__ bool copies_input(const wina_cuda_gemv &g) {
    return g.in_shared && !g.fixed_in && !g.gain;
}

/* Into shared memory: what |x| is multiplied with to give a score, and (if it fits there) the gain
 * that x is multiplied with. Constants: this comes before the barrier that ends the phase before,
 * so that their latency hides behind it. */
static __device__ __forceinline__ void load_weights(const wina_cuda_gemv &g, wina_cuda_keep keep,
                                                    select_shared &s, float *weights) {
    const int n = g.panel.n_cols;
    const float *norms = is_sparse(keep, n) ? g.norms : nullptr, *gain_of = g.gain;
    const bool keeps_gain = g.in_shared && !copies_input(g);
    float *gains = weights + (n + 3) / 4 * 4;
    select_clear(s);
    if (threadIdx.x == SELECT_THREADS - 1) { /* the first one watches the barrier */
        if (g.aligned)
            s.own = own_tile(g.n_tiles);
        float2 hint = make_float2(0.0f, 0.0f);
        if (norms && g.hint)
            hint = __ldcg(reinterpret_cast<const float2 *>(g.hint));
        s.hint_center = hint.x;
        s.hint_width = hint.y;
    }
    each_four(n, [&](int i) {
        float4 gain = make_float4(1.0f, 1.0f, 1.0f, 1.0f), w = gain;
        if (gain_of)
            gain = load4(gain_of + i);
        if (norms)
            w = load4(norms + i);
        if (keeps_gain)
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
    /* in registers: stores to shared memory would make the compiler read g again */
    const bool copied = copies_input(g), keeps_input = g.in_shared && !copied;
    const float *in = g.in, *gain = g.gain;
    const wina_cuda_fixed *fixed_in = g.fixed_in;
    const float eps = g.eps;
    const auto score = [&](int i, float4 x) {
        squares = fmaf(x.x, x.x, fmaf(x.y, x.y, fmaf(x.z, x.z, fmaf(x.w, x.w, squares))));
        float4 w = float4_at(scores + i);
        w = make_float4(fabsf(x.x * w.x), fabsf(x.y * w.y), fabsf(x.z * w.z), fabsf(x.w * w.w));
        most = fmaxf(most, fmaxf(fmaxf(w.x, w.y), fmaxf(w.z, w.w)));
        float4_at(scores + i) = w;
        if (keeps_input) {
            w = float4_at(input + i);
            float4_at(input + i) = make_float4(x.x * w.x, x.y * w.y, x.z * w.z, x.w * w.w);
        }
    };
    const int first = 4 * threadIdx.x, step = 4 * SELECT_THREADS;
    if (copied) {
#pragma unroll 1
        for (int i = first; i < n; i += step)
            copy16(input + i, in + i);
        wait_copies();
        each_four(n, [&](int i) { score(i, float4_at(input + i)); });
    } else if (fixed_in) { /* two loads at a time, before any store */
#pragma unroll 1
        for (int i = first; i < n; i += 2 * step) {
            const bool more = i + step < n;
            const longlong2 *p = reinterpret_cast<const longlong2 *>(fixed_in + i);
            const longlong2 *q = more ? p + step / 2 : p;
            const longlong2 a = __ldcg(p), b = __ldcg(p + 1), c = __ldcg(q), d = __ldcg(q + 1);
            score(i,
                  make_float4(from_fixed(a.x), from_fixed(a.y), from_fixed(b.x), from_fixed(b.y)));
            if (more)
                score(i + step, make_float4(from_fixed(c.x), from_fixed(c.y), from_fixed(d.x),
                                            from_fixed(d.y)));
        }
    } else
        each_four(n, [&](int i) { score(i, __ldcg(reinterpret_cast<const float4 *>(in + i))); });
    squares = warp_sum(squares);
    const uint32_t largest = __reduce_max_sync(0xffffffffu, __float_as_uint(most));
    if (lane == 0) {
        s.warp_sum[warp] = squares;
        s.warp_max[warp] = largest;
    }
    __syncthreads();
    squares = warp_sum(lane < SELECT_WARPS ? s.warp_sum[lane] : 0.0f);
    *top = __reduce_max_sync(0xffffffffu, lane < SELECT_WARPS ? s.warp_max[lane] : 0);
    *factor = gain ? rsqrtf(squares / (float)n + eps) : 1.0f;
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
    const float center = s.hint_center / factor, width = s.hint_width;
    select_threshold t = threshold(s, scores, n, top, keep.threshold > 0.0f ? 1 : keep.n_keep,
                                   __float_as_uint(center * (1.0f - width)),
                                   center > 0.0f ? __float_as_uint(center * (1.0f + width)) : top);
    if (t.n_equal_kept != t.n_equal)
        drop_surplus(s, scores, n, t);
    return t;
}

/* Notes where the threshold was: the mean of the last tokens, and some times as far around it as it
 * moved lately. One thread of one block. */
static __device__ __forceinline__ void leave_hint(const wina_cuda_gemv &g, const select_shared &s,
                                                  uint32_t bits, float factor) {
    const float found = __uint_as_float(bits) * factor;
    float center = s.hint_center, width = 0.2f;
    if (center > 0.0f) {
        width = fmaxf(s.hint_width * 0.97f, 3.0f * fabsf(found - center) / center);
        center += 0.25f * (found - center);
    } else
        center = found;
    width = fminf(fmaxf(width, 0.01f), 0.5f);
    __stcg(reinterpret_cast<float2 *>(g.hint), make_float2(center > 0.0f ? center : 0.0f, width));
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
                                                  list_view &l, int *n_kept) {
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
            l.masks()[from + lane] = mask;
            l.start()[from + lane] = (int)((up_to - mine) & 0xffff);
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
    share_work(g, s.own, l);
    const int length = min(l.end - l.begin, l.n);
#pragma unroll 1
    for (int b = first + lane; b < last; b += 32) {
        const int count = count_entries<KIND>(l.masks()[b]), at = l.start()[b] + before;
        l.start()[b] = at;
        if (count > 0 && length > 0 && in_interval(l, length, at, count))
            l.todo()[atomicAdd(&s.n_todo, 1)] = b;
    }
    if (threadIdx.x == 0)
        l.start()[n_blocks] = l.n;
    __syncthreads();
}

/* The same for all inputs, which needs no counting; n is a multiple of 32 for pairs. */
template <list_kind KIND>
static __device__ __forceinline__ void count_dense(const wina_cuda_gemv &g, select_shared &s,
                                                   list_view &l) {
    constexpr int PER = KIND == LIST_FLOAT ? 32 : 16; /* entries of a block */
    const int n = g.panel.n_cols, n_blocks = (n + 31) / 32;
    l.n = KIND == LIST_FLOAT ? n : n / 2;
    share_work(g, s.own, l);
    const int length = min(l.end - l.begin, l.n);
    /* Blocks that the interval meets, from the one it starts in; it may wrap around, into that one
     * again. */
    const bool wraps = l.first + length > l.n; /* the last block may be a short one */
    const int from = l.first / PER,
              n_met = min((l.first - from * PER + length + PER - 1) / PER + wraps, n_blocks);
    for (int b = threadIdx.x; b <= n_blocks; b += SELECT_THREADS) {
        l.start()[b] = min(b * PER, l.n);
        if (b == n_blocks)
            break;
        l.masks()[b] = 32 * b + 32 <= n ? 0xffffffffu : (1u << (n - 32 * b)) - 1;
        if (b < n_met && length > 0)
            l.todo()[b] = from + b < n_blocks ? from + b : from + b - n_blocks;
    }
    if (threadIdx.x == 0)
        s.n_todo = length > 0 ? n_met : 0;
    __syncthreads();
}

/* Fills l, and then `out` in shared memory, from the phase's input; scores: what load_weights left.
 * All threads; ends with a barrier. */
template <list_kind KIND>
static __device__ __forceinline__ void make_list(const wina_cuda_gemv &g, wina_cuda_keep keep,
                                                 select_shared &s, float *scores, list_view &l,
                                                 list_view &out, long long *marks) {
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
    if (sparse && g.hint && blockIdx.x == 0 && threadIdx.x == 0)
        leave_hint(g, s, t.bits, factor);
    if (!sparse && (KIND == LIST_FLOAT || n % 32 == 0)) {
        count_dense<KIND>(g, s, l);
        n_kept = n;
    } else
        count_kept<KIND>(g, s, bits, t.bits, l, &n_kept);
    if (g.n_kept && blockIdx.x == 0 && threadIdx.x == 0)
        *g.n_kept = n_kept;
    mark(marks, 3);
    const int length = min(l.end - l.begin, l.n), n_todo = s.n_todo;
#pragma unroll 1
    for (int k = warp; k < n_todo; k += SELECT_WARPS) {
        const int b = l.todo()[k], i = 32 * b + lane;
        float h = 0.0f;
        if (i < n)
            h = g.in_shared ? input[i]
                            : (g.fixed_in ? load_fixed(g.fixed_in + i) : __ldcg(g.in + i)) *
                                  (g.gain ? __ldg(g.gain + i) : 1.0f);
        store_block<KIND>(l, g.panel, length, b, l.masks()[b], h * factor);
    }
    if (threadIdx.x == 0)
        out = l;
    __syncthreads();
    mark(marks, 4);
}

#endif
