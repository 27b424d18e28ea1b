/* select: which inputs of a projection one token keeps, found by every block of a gemv for itself.
 *
 * score_i = |x_i gain_i| norm_i orders inputs as |h_i| norm_i does: the RMS of x is a factor common
 * to all. Scores are not negative, so their order is that of their bits. The n_keep-th largest is
 * found exactly: a histogram of bits below the largest score (2048 bins, 256 per power of two)
 * gives the bin it is in; its few members are ranked, or the bin is divided again if they are many.
 * The first histogram takes only the scores near the last token's threshold and counts those above,
 * which costs few atomics; if the threshold is not there, one of all scores follows.
 * Equal scores at the threshold are kept in rising order of the inputs.
 *
 * Loops are unrolled little: every step of a token runs through this code once, and long code is
 * fetched slowly. */
#ifndef WINA_CUDA_SELECT_CUH
#define WINA_CUDA_SELECT_CUH

#include "common.cuh"

enum {
    SELECT_THREADS = 512,
    SELECT_WARPS = SELECT_THREADS / 32,
    SELECT_BINS = 2048,
    SELECT_RANKED = 64 /* most candidates that are ranked against each other */
};

/* A tile of rows and the thread blocks that work on it. */
struct tile_share {
    int tile, first_block, n_blocks;
};

struct select_shared {
    alignas(16) uint32_t bins[SELECT_BINS];
    alignas(16) uint32_t candidates[SELECT_RANKED];
    uint32_t above[SELECT_WARPS];
    float hint_center, hint_width;
    tile_share own; /* of a step whose tiles have their own thread blocks */
    uint32_t warp[SELECT_WARPS];
    float warp_sum[SELECT_WARPS];
    uint32_t warp_max[SELECT_WARPS];
    uint32_t list_warp[SELECT_WARPS]; /* kept << 16 | entries */
    uint32_t n_candidates;
    int n_todo;
    uint32_t bin, before, in_bin;
};

/* Of the scores equal to `bits`, the first n_equal_kept in rising order are kept. */
struct select_threshold {
    uint32_t bits;
    int n_equal_kept;
    int n_equal;
};

/* Zeroes what threshold() counts in. All threads; a barrier must follow. */
static __device__ __forceinline__ void select_clear(select_shared &s) {
    *reinterpret_cast<uint4 *>(&s.bins[4 * threadIdx.x]) = make_uint4(0, 0, 0, 0);
    if (threadIdx.x < SELECT_RANKED)
        s.candidates[threadIdx.x] = 0;
    if (threadIdx.x == 0)
        s.n_candidates = 0;
}

/* Sum over the warps before this one; *total receives all. values must be behind a barrier. */
static __device__ __forceinline__ uint32_t sum_before(const uint32_t *values, uint32_t *total) {
    const unsigned lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    const uint32_t v = lane < SELECT_WARPS ? values[lane] : 0;
    *total = __reduce_add_sync(0xffffffffu, v);
    return __reduce_add_sync(0xffffffffu, lane < warp ? v : 0);
}

/* Finds the bin in which the n-th entry falls, counted from bin 0: s.bin, s.before (entries in
 * lower bins), s.in_bin; or false. Leaves the bins at zero. All threads; ends with a barrier. */
static __device__ __forceinline__ bool find_bin(select_shared &s, uint32_t n) {
    const int t = threadIdx.x;
    uint4 c = *reinterpret_cast<const uint4 *>(&s.bins[4 * t]);
    *reinterpret_cast<uint4 *>(&s.bins[4 * t]) = make_uint4(0, 0, 0, 0);
    uint32_t sum = c.x + c.y + c.z + c.w, up_to = warp_scan(sum), total;
    if ((t & 31) == 31)
        s.warp[t >> 5] = up_to;
    __syncthreads();
    up_to += sum_before(s.warp, &total);
    uint32_t before = up_to - sum;
    if (before < n && n <= up_to) {
        uint32_t i = 0, in_bin = c.x;
        if (n > before + in_bin)
            before += in_bin, in_bin = c.y, i = 1;
        if (i == 1 && n > before + in_bin)
            before += in_bin, in_bin = c.z, i = 2;
        if (i == 2 && n > before + in_bin)
            before += in_bin, in_bin = c.w, i = 3;
        s.bin = 4 * t + i;
        s.before = before;
        s.in_bin = in_bin;
    }
    __syncthreads();
    return n > 0 && n <= total;
}

/* The n-th largest of at most SELECT_RANKED candidates; every warp computes it for itself. Places
 * beyond the candidates hold zeros, which can only add to n_equal. */
static __device__ __forceinline__ select_threshold rank_candidates(const select_shared &s, int n) {
    const int lane = threadIdx.x & 31, m = (int)s.n_candidates;
    select_threshold found = {0, 0, 0};
#pragma unroll 1
    for (int at = lane; at - lane < m; at += 32) {
        const uint32_t mine = s.candidates[at];
        int greater = 0, equal = 0;
#pragma unroll 1
        for (int k = 0; k < m; k += 4) {
            const uint4 other = *reinterpret_cast<const uint4 *>(&s.candidates[k]);
            greater += (other.x > mine) + (other.y > mine) + (other.z > mine) + (other.w > mine);
            equal += (other.x == mine) + (other.y == mine) + (other.z == mine) + (other.w == mine);
        }
        const uint32_t who =
            __ballot_sync(0xffffffffu, at < m && greater < n && n <= greater + equal);
        if (who) {
            const int source = __ffs(who) - 1;
            found.bits = __shfl_sync(0xffffffffu, mine, source);
            found.n_equal_kept = n - __shfl_sync(0xffffffffu, greater, source);
            found.n_equal = __shfl_sync(0xffffffffu, equal, source);
        }
    }
    return found;
}

/* Calls f for the scores of this thread, four at a time. scores: (n) and zeros up to a multiple of
 * four. */
template <class F>
static __device__ __forceinline__ void each_score(const uint32_t *scores, int n, F f) {
#pragma unroll 2
    for (int i = 4 * threadIdx.x; i < n; i += 4 * SELECT_THREADS) {
        const uint4 v = *reinterpret_cast<const uint4 *>(scores + i);
        f(v.x);
        f(v.y);
        f(v.z);
        f(v.w);
    }
}

/* Threshold of the n_keep (1 <= n_keep <= n) largest of n scores in shared memory; top is the
 * largest; it is looked for in [low, high] first. All threads; scores and cleared bins must be
 * behind a barrier. */
static __device__ __forceinline__ select_threshold threshold(select_shared &s,
                                                             const uint32_t *scores, int n,
                                                             uint32_t top, int n_keep, uint32_t low,
                                                             uint32_t high) {
    uint32_t shift = 15, left = (uint32_t)n_keep, m;
    bool guess = high < top; /* [low, high] may be wrong */
    if (guess) {
        shift = (uint32_t)max(22 - __clz((int)(high - low)), 0);
    } else
        low = 0, high = top;
#pragma unroll 1
    for (;;) {
        const uint32_t last = high >> shift;
        const bool cut = last - (low >> shift) >= SELECT_BINS;
        uint32_t above = 0;
        each_score(scores, n, [&](uint32_t score) {
            above += score > high;
            if (score - low <= high - low)
                atomicAdd(&s.bins[min(last - (score >> shift), (uint32_t)SELECT_BINS - 1)], 1u);
        });
        if (guess) {
            above = __reduce_add_sync(0xffffffffu, above);
            if ((threadIdx.x & 31) == 0)
                s.above[threadIdx.x >> 5] = above;
        }
        __syncthreads();
        if (guess) {
            sum_before(s.above, &above);
            left = above < left ? left - above : 0;
        }
        if (!find_bin(s, left)) {
            if (!guess) /* scores that are not numbers: the result is an error anyway */
                return {0, 0, 0};
            low = 0, high = top, shift = 15, left = (uint32_t)n_keep;
            guess = false;
            continue;
        }
        guess = false;
        left -= s.before;
        m = s.in_bin;
        const uint32_t bin = s.bin, mask = (1u << shift) - 1;
        if (cut && bin == SELECT_BINS - 1) { /* below all bins: look there */
            high = (last - bin) << shift | mask;
            continue;
        }
        const uint32_t floor = (last - bin) << shift;
        low = floor > low ? floor : low;
        high = (floor | mask) < high ? (floor | mask) : high;
        if (shift == 0 || m <= SELECT_RANKED)
            break;
        shift = shift > 4 ? 4 : 0;
    }
    if (shift == 0 && m > SELECT_RANKED)
        return {low, (int)left, (int)m};
    each_score(scores, n, [&](uint32_t score) {
        if (score - low <= high - low)
            s.candidates[atomicAdd(&s.n_candidates, 1u)] = score;
    });
    __syncthreads();
    return rank_candidates(s, (int)left);
}

/* Which inputs of block b of 32 are kept, as bits. All lanes of a warp. */
static __device__ __forceinline__ uint32_t kept_of(const uint32_t *scores, int n, int b,
                                                   uint32_t threshold) {
    const int i = 32 * b + (threadIdx.x & 31);
    return __ballot_sync(0xffffffffu, i < n && scores[i] >= threshold);
}

/* Rare: more scores equal the threshold than there is room for. The surplus is set to zero, which
 * is below any threshold but zero; a threshold of zero is raised for those that stay. Every warp
 * has a stretch of the scores. All threads; ends with a barrier. */
static __device__ __forceinline__ void drop_surplus(select_shared &s, uint32_t *scores, int n,
                                                    select_threshold &t) {
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    const int part = (n + 32 * SELECT_WARPS - 1) / (32 * SELECT_WARPS) * 32;
    const int first = min(warp * part, n), last = min(first + part, n);
    uint32_t rank = 0, total;
#pragma unroll 1
    for (int i = first + lane; i - lane < last; i += 32)
        rank += i < last && scores[i] == t.bits;
    rank = __reduce_add_sync(0xffffffffu, rank);
    __syncthreads(); /* s.above may still be read, and scores */
    if (lane == 0)
        s.above[warp] = rank;
    __syncthreads();
    rank = sum_before(s.above, &total);
#pragma unroll 1
    for (int i = first + lane; i - lane < last; i += 32) {
        const bool equal = i < last && scores[i] == t.bits;
        const uint32_t who = __ballot_sync(0xffffffffu, equal);
        const int own = (int)rank + __popc(who & ((1u << lane) - 1));
        if (equal)
            scores[i] = own < t.n_equal_kept ? max(t.bits, 1u) : 0;
        rank += (uint32_t)__popc(who);
    }
    t.bits = max(t.bits, 1u);
    __syncthreads();
}

#endif
