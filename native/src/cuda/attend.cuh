/* attend: rotation, the key/value cache, softmax(q k / sqrt(d)) v.
 *
 * Purpose. A thread block serves up to four query heads that share a key head, over one piece of
 * the sequence. For a single token it also rotates the queries and stores the new key and value.
 * Groups of LANES lanes take one head and one position each (16 bytes of the key per lane), with
 * their own running maximum and sum; a key that four groups read comes from memory once and from L1
 * three times. The groups of a head are joined in order, and so are the pieces, by the last block
 * of a head group to arrive. */
#ifndef WINA_CUDA_ATTEND_CUH
#define WINA_CUDA_ATTEND_CUH

#include "kvrows.cuh"

enum {
    ATTEND_THREADS = 512,
    ATTEND_HEADS = 4,   /* query heads of a block */
    ATTEND_LEAST = 256, /* positions of a piece, at least */
    ATTEND_UNROLL = 4,
    ATTEND_PAIR = 2 /* positions at a time where a group takes all heads of a block */
};
#ifndef ATTEND_SHARE /* 0: never */
#define ATTEND_SHARE 1
#endif

/* A group's state over the positions it has seen. */
struct state {
    float max, sum;
    float o[8]; /* this lane's 8 dimensions, unnormalised */
};

/* Element i of row `at` and on of the token's q, k and v: sums of one token, floats of a batch. */
static __device__ __forceinline__ float element(const wina_cuda_attend &a, int64_t row, int i) {
    if (a.n_tokens > 1)
        return __ldcg(a.qkv + row + i);
    return load_fixed(a.sums + row + i) + (a.bias ? __ldg(a.bias + row + i) : 0.0f);
}

/* An element of a head's vector and what it is rotated with. Loading comes first for all elements
 * of a thread, so that their latencies overlap. */
struct turning {
    float own, other;
    float2 angle; /* cos, sin */
};

static __device__ __forceinline__ turning load_turning(const wina_cuda_attend &a, int64_t head,
                                                       int i, const float *angles, bool turns) {
    turning t = {0.0f, 0.0f, {1.0f, 0.0f}};
    if (i >= a.head_dim)
        return t;
    t.own = element(a, head, i);
    if (!turns || i >= a.rope_dim)
        return t;
    const int half = a.rope_dim / 2;
    const bool second = a.interleaved ? i & 1 : i >= half;
    const int pair = a.interleaved ? i / 2 : second ? i - half : i;
    const int distance = a.interleaved ? 1 : half;
    t.other = element(a, head, second ? i - distance : i + distance);
    t.angle = __ldg(reinterpret_cast<const float2 *>(angles) + pair);
    if (!second)
        t.angle.y = -t.angle.y;
    return t;
}

static __device__ __forceinline__ float turned(const turning &t) {
    return t.own * t.angle.x + t.other * t.angle.y;
}

static __device__ __forceinline__ const float *angles_of(const wina_cuda_attend &a, int pos) {
    return a.angles + (int64_t)pos * a.rope_dim;
}

/* First position that is seen from pos. */
static __device__ __forceinline__ int first_seen(const wina_cuda_attend &a, int pos) {
    return a.window > 0 && pos >= a.window ? pos + 1 - a.window : 0;
}

/* ---- a group for one head ------------------------------------------------------------------ */

/* cap tanh(score / cap), or the score if there is no cap. */
static __device__ __forceinline__ float capped(float score, float cap) {
    return cap > 0.0f ? cap - __fdividef(2.0f * cap, 1.0f + __expf(__fdividef(2.0f, cap) * score))
                      : score;
}

/* One position: the score, then the running softmax. */
template <int LANES, bool F16>
static __device__ __forceinline__ void add_position(state &st, const float (&q)[8], uint4 key,
                                                    uint4 value, bool exists,
                                                    const wina_cuda_attend &a) {
    float k[8], v[8], score = 0.0f;
    const float k_scale = to_floats8<F16>(key, a.is_q8[0], k);
    const float v_scale = to_floats8<F16>(value, a.is_q8[1], v);
#pragma unroll
    for (int i = 0; i < 8; i++)
        score = fmaf(q[i], k[i], score);
    if (!F16)
        score *= k_scale;
#pragma unroll
    for (int offset = LANES / 2; offset; offset >>= 1)
        score += __shfl_xor_sync(0xffffffffu, score, offset);
    if (!exists)
        return;
    score = capped(score, a.cap);
    const float max = fmaxf(st.max, score);
    const float keep = __expf(st.max - max), p = __expf(score - max);
    st.max = max;
    st.sum = fmaf(st.sum, keep, p);
    const float weight = F16 ? p : p * v_scale;
#pragma unroll
    for (int i = 0; i < 8; i++)
        st.o[i] = fmaf(st.o[i], keep, weight * v[i]);
}

/* How a block's groups are shared out: `heads` (a power of two) query heads, `groups` each. */
struct attend_shape {
    int heads, groups;
};

template <int LANES> static __device__ __forceinline__ attend_shape shape_for(int heads) {
    return {heads, ATTEND_THREADS / LANES / heads};
}

/* Shared memory of a block. */
template <int LANES> struct attend_shared {
    static constexpr int GROUPS = ATTEND_THREADS / LANES, WIDTH = LANES * 8;
    float q[ATTEND_HEADS][WIDTH]; /* rotated and scaled */
    /* (heads, groups), or (heads, warps) where a group takes all heads */
    static constexpr int STATES = ATTEND_HEADS * ATTEND_THREADS / 32;
    float o[STATES][WIDTH];
    float max[STATES], sum[STATES], weight[STATES];
    float all_max[ATTEND_HEADS], all_sum[ATTEND_HEADS];
    bool last;
};

/* Queries of the block's heads, rotated and scaled (heads that do not exist repeat the last); the
 * new key and value into the cache, if this block is to store them. */
template <int LANES>
static __device__ __forceinline__ void
load_queries(const wina_cuda_attend &a, attend_shared<LANES> &s, int64_t row, int head0,
             int n_heads, int heads, int kv_head, int pos, bool stores) {
    constexpr int WIDTH = LANES * 8, ROUNDS = ATTEND_HEADS * WIDTH / ATTEND_THREADS;
    static_assert(ATTEND_HEADS * WIDTH % ATTEND_THREADS == 0 || LANES < 16, "whole rounds");
    constexpr int N = ROUNDS > 0 ? ROUNDS : 1,
                  KV = (2 * WIDTH + ATTEND_THREADS - 1) / ATTEND_THREADS;
    const float *angles = angles_of(a, pos);
    const bool turns = a.n_tokens == 1;
    turning q[N], kv[KV];
#pragma unroll
    for (int r = 0; r < N; r++) {
        const int i = threadIdx.x + r * ATTEND_THREADS, h = i / WIDTH, d = i % WIDTH;
        const int64_t head = row + (head0 + min(h, n_heads - 1)) * a.head_dim;
        q[r] = load_turning(a, head, h < heads ? d : a.head_dim, angles, turns);
    }
#pragma unroll
    for (int r = 0; r < KV; r++) {
        const int i = threadIdx.x + r * ATTEND_THREADS, d = i % WIDTH;
        const bool key = i < WIDTH;
        const int64_t head = row + (key ? a.k_row0 : a.v_row0) + kv_head * a.head_dim;
        kv[r] = load_turning(a, head, stores && i < 2 * WIDTH ? d : a.head_dim, angles, key);
    }
#pragma unroll
    for (int r = 0; r < N; r++) {
        const int i = threadIdx.x + r * ATTEND_THREADS;
        if (i < ATTEND_HEADS * WIDTH)
            s.q[i / WIDTH][i % WIDTH] = turned(q[r]) * a.scale;
    }
#pragma unroll
    for (int r = 0; r < KV; r++) {
        const int i = threadIdx.x + r * ATTEND_THREADS, d = i % WIDTH;
        if (stores && i < 2 * WIDTH) /* whole warps */
            store_element(a, i >= WIDTH, kv_head, pos, d, turned(kv[r]));
    }
}

template <int LANES>
static __device__ __forceinline__ void put_state(attend_shared<LANES> &s, int at,
                                                 const float (&from)[8]) {
    float *o = &s.o[at][threadIdx.x % LANES * 8];
    float4_at(o) = make_float4(from[0], from[1], from[2], from[3]);
    float4_at(o + 4) = make_float4(from[4], from[5], from[6], from[7]);
}

/* ---- a group for all heads of a block ------------------------------------------------------- */

/* With four heads on the same keys a group takes a position for all of them: rows become floats
 * once, and the sums of a score's parts over the lanes end with each head's in a quarter of the
 * lanes, which then do the softmax of that head for a pair of positions at a time. */
struct state4 {
    float max, sum; /* of this lane's head */
    float o[ATTEND_HEADS][8];
};

/* A lane that has the score of head h, and the head that a lane has. */
template <int LANES> static __device__ __forceinline__ int lane_of(int h) {
    const int base = threadIdx.x % 32 & ~(LANES - 1);
    return base + (h >> 1) * (LANES / 2) + (h & 1) * (LANES / 4);
}
template <int LANES> static __device__ __forceinline__ int head_of(int lane) {
    return lane / (LANES / 4) % 4;
}

/* Sums of four values over the lanes of a group, each to those of its head. */
template <int LANES>
static __device__ __forceinline__ float spread_sums(const float (&v)[ATTEND_HEADS], int lane) {
    const bool high = lane & LANES / 2, odd = lane & LANES / 4;
    float a = high ? v[2] : v[0], b = high ? v[3] : v[1];
    a += __shfl_xor_sync(0xffffffffu, high ? v[0] : v[2], LANES / 2);
    b += __shfl_xor_sync(0xffffffffu, high ? v[1] : v[3], LANES / 2);
    float sum = odd ? b : a;
    sum += __shfl_xor_sync(0xffffffffu, odd ? a : b, LANES / 4);
#pragma unroll
    for (int offset = LANES / 8; offset; offset >>= 1)
        sum += __shfl_xor_sync(0xffffffffu, sum, offset);
    return sum;
}

/* Positions p, p + step of `slots`, those before end; slots are loaded again for the next pair. */
template <int LANES, bool F16, class ROWS, class SLOTS>
static __device__ __forceinline__ void
add_pair(state4 &st, const float (&q)[ATTEND_HEADS][8], SLOTS &slots, const ROWS &rows, int p,
         int step, int end, int lane, bool in_head, const wina_cuda_attend &a) {
    float score[ATTEND_PAIR], max = st.max;
#pragma unroll
    for (int u = 0; u < ATTEND_PAIR; u++) {
        float k[8], part[ATTEND_HEADS];
        const float scale = to_floats8<F16>(slots.key[u], a.is_q8[0], k);
#pragma unroll
        for (int h = 0; h < ATTEND_HEADS; h++) {
            part[h] = 0.0f;
#pragma unroll
            for (int i = 0; i < 8; i++)
                part[h] = fmaf(q[h][i], k[i], part[h]);
            if (!F16)
                part[h] *= scale;
        }
        score[u] = capped(spread_sums<LANES>(part, lane), a.cap);
        if (p + u * step >= end)
            score[u] = -INFINITY;
        max = fmaxf(max, score[u]);
    }
    const float base = max == -INFINITY ? 0.0f : max; /* nothing seen yet */
    const float keep = __expf(st.max - base);
    st.max = max;
    st.sum *= keep;
#pragma unroll
    for (int h = 0; h < ATTEND_HEADS; h++) {
        const float factor = __shfl_sync(0xffffffffu, keep, lane_of<LANES>(h));
#pragma unroll
        for (int i = 0; i < 8; i++)
            st.o[h][i] *= factor;
    }
#pragma unroll
    for (int u = 0; u < ATTEND_PAIR; u++) {
        float v[8];
        const float scale = to_floats8<F16>(slots.value[u], a.is_q8[1], v);
        const float weight = __expf(score[u] - base);
        st.sum += weight;
        const int next = p + (ATTEND_PAIR + u) * step;
        if (next < end && in_head)
            load_slot<F16>(slots, u, rows, next, lane, a);
#pragma unroll
        for (int h = 0; h < ATTEND_HEADS; h++) {
            float own = __shfl_sync(0xffffffffu, weight, lane_of<LANES>(h));
            own = F16 ? own : own * scale;
#pragma unroll
            for (int i = 0; i < 8; i++)
                st.o[h][i] = fmaf(own, v[i], st.o[h][i]);
        }
    }
}

/* The groups of a warp, in order; then to shared memory as (heads, warps). */
template <int LANES>
static __device__ __forceinline__ void put_states(attend_shared<LANES> &s, state4 &st) {
    constexpr int WARPS = ATTEND_THREADS / 32;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
    for (int offset = LANES; offset < 32; offset <<= 1) {
        const float max = __shfl_xor_sync(0xffffffffu, st.max, offset);
        const float sum = __shfl_xor_sync(0xffffffffu, st.sum, offset);
        const float most = fmaxf(st.max, max), base = most == -INFINITY ? 0.0f : most;
        const float own = __expf(st.max - base), other = __expf(max - base);
        st.max = most;
        st.sum = own * st.sum + other * sum;
#pragma unroll
        for (int h = 0; h < ATTEND_HEADS; h++) {
            const float w = __shfl_sync(0xffffffffu, own, lane_of<LANES>(h));
            const float x = __shfl_sync(0xffffffffu, other, lane_of<LANES>(h));
#pragma unroll
            for (int i = 0; i < 8; i++) {
                const float o = __shfl_xor_sync(0xffffffffu, st.o[h][i], offset);
                st.o[h][i] = w * st.o[h][i] + x * o;
            }
        }
    }
    if (lane >= LANES)
        return;
#pragma unroll
    for (int h = 0; h < ATTEND_HEADS; h++)
        put_state<LANES>(s, h * WARPS + warp, st.o[h]);
    if (lane % (LANES / 4) == 0) {
        s.max[head_of<LANES>(lane) * WARPS + warp] = st.max;
        s.sum[head_of<LANES>(lane) * WARPS + warp] = st.sum;
    }
}

/* ---- joining ------------------------------------------------------------------------------- */

/* Joins the states of a block in order: s.all_max, s.all_sum; weights of the states. Those without
 * positions have max = -inf and weight 0. */
template <int LANES>
static __device__ __forceinline__ void join_groups(attend_shared<LANES> &s, attend_shape shape) {
    __syncthreads();
    const int h = threadIdx.x / 32, g = threadIdx.x % 32, k = h * shape.groups + g;
    if (h < shape.heads) { /* a warp per head, a lane per group */
        const float own = g < shape.groups ? s.max[k] : -INFINITY;
        float max = own;
#pragma unroll
        for (int offset = 16; offset; offset >>= 1)
            max = fmaxf(max, __shfl_xor_sync(0xffffffffu, max, offset));
        const float w = __expf(own - max);
        const float total = warp_sum(g < shape.groups ? w * s.sum[k] : 0.0f);
        if (g < shape.groups)
            s.weight[k] = w;
        if (g == 0) {
            s.all_max[h] = max;
            s.all_sum[h] = total;
        }
    }
    __syncthreads();
}

/* Joins the pieces of a sequence in order. parts: (n_heads, n_splits, pad + 2): o, max, sum. */
template <int LANES>
static __device__ __forceinline__ void join_pieces(const wina_cuda_attend &a, const float *parts,
                                                   int n_pieces, int n_heads, float *out) {
    const int d = threadIdx.x % (LANES * 8), pad = a.head_pad;
#pragma unroll 1
    for (int h = threadIdx.x / (LANES * 8); h < n_heads; h += ATTEND_THREADS / (LANES * 8)) {
        const float *part = parts + (int64_t)h * a.n_splits * (pad + 2);
        float max = -INFINITY, sum = 0.0f, o = 0.0f;
        if (d >= a.head_dim)
            continue;
#pragma unroll 4
        for (int k = 0; k < n_pieces; k++)
            max = fmaxf(max, __ldcg(part + k * (pad + 2) + pad));
#pragma unroll 4
        for (int k = 0; k < n_pieces; k++) {
            const float *p = part + k * (pad + 2);
            const float w = __expf(__ldcg(p + pad) - max);
            sum = fmaf(w, __ldcg(p + pad + 1), sum);
            o = fmaf(w, __ldcg(p + d), o);
        }
        out[h * a.head_dim + d] = o / sum;
    }
}

/* The block's result: the output itself if the sequence is one piece, else a partial one. */
template <int LANES>
static __device__ __forceinline__ void
store_result(const wina_cuda_attend &a, const attend_shared<LANES> &s, int groups, int n_heads,
             bool whole, float *out, float *part) {
    const int d = threadIdx.x % (LANES * 8), pad = a.head_pad;
#pragma unroll 1
    for (int h = threadIdx.x / (LANES * 8); h < n_heads; h += ATTEND_THREADS / (LANES * 8)) {
        float o = 0.0f;
#pragma unroll 8
        for (int g = h * groups; g < (h + 1) * groups; g++)
            o = fmaf(s.weight[g], s.o[g][d], o);
        float *p = part + (int64_t)h * a.n_splits * (pad + 2);
        if (whole && d < a.head_dim)
            out[h * a.head_dim + d] = o / s.all_sum[h];
        else if (!whole && d < pad)
            __stcg(p + d, o);
        if (!whole && d == 0) {
            __stcg(p + pad, s.all_max[h]);
            __stcg(p + pad + 1, s.all_sum[h]);
        }
    }
}

/* One piece of the sequence for one head group of one token. SHARE: a group takes all heads. */
template <int LANES, bool F16, bool SHARE>
static __device__ __forceinline__ void attend_one(const wina_cuda_attend &a,
                                                  attend_shared<LANES> &s, int heads, int group,
                                                  int piece, int n_pieces, int token, int pos) {
    constexpr int UNROLL = SHARE ? ATTEND_PAIR : ATTEND_UNROLL;
    const attend_shape shape =
        SHARE ? attend_shape{heads, ATTEND_THREADS / 32} : shape_for<LANES>(heads);
    const int ratio = a.n_head / a.n_head_kv, per_kv = (ratio + heads - 1) / heads;
    const int kv_head = group / per_kv;
    const int head0 = kv_head * ratio + (group - kv_head * per_kv) * heads;
    const int n_heads = min(heads, (kv_head + 1) * ratio - head0);
    const int n = pos + 1;
    const int first = first_seen(a, pos);
    const int begin = first + (int)((int64_t)(n - first) * piece / n_pieces);
    const int end = first + (int)((int64_t)(n - first) * (piece + 1) / n_pieces);
    const int64_t row = token * a.qkv_stride;
    const int lane = threadIdx.x % LANES, step = SHARE ? ATTEND_THREADS / LANES : shape.groups;
    const int own_head = SHARE ? 0 : threadIdx.x / LANES % heads;
    const int own_group = SHARE ? threadIdx.x / LANES : threadIdx.x / LANES / heads;
    const attend_rows rows = {cache_row(a, false, kv_head, 0), cache_row(a, true, kv_head, 0),
                              first - first % a.n_rows};
    const bool in_head = lane * 8 < a.head_pad;
    /* The positions before this one are there already. */
    const int known = a.n_tokens == 1 ? min(end, pos) : end;
    attend_slots<UNROLL> slots;
    int p = begin + own_group;
#pragma unroll
    for (int u = 0; u < UNROLL; u++) {
        slots.key[u] = slots.value[u] = make_uint4(0, 0, 0, 0);
        if (p + u * step < known && in_head)
            load_slot<F16>(slots, u, rows, p + u * step, lane, a);
    }
    load_queries<LANES>(a, s, row, head0, n_heads, heads, kv_head, pos,
                        a.n_tokens == 1 && end == n);
    __syncthreads();
#pragma unroll
    for (int u = 0; u < UNROLL; u++)
        if (p + u * step >= known && p + u * step < end && in_head)
            load_slot<F16>(slots, u, rows, p + u * step, lane, a);
    if constexpr (SHARE) {
        float q[ATTEND_HEADS][8];
        state4 st = {-INFINITY, 0.0f, {}};
#pragma unroll
        for (int i = 0; i < 8 * ATTEND_HEADS; i++)
            q[i / 8][i % 8] = s.q[i / 8][lane * 8 + i % 8];
#pragma unroll 1
        for (; p - own_group < end; p += UNROLL * step)
            add_pair<LANES, F16>(st, q, slots, rows, p, step, end, lane, in_head, a);
        put_states<LANES>(s, st);
    } else {
        float q[8];
        state st = {-INFINITY, 0.0f, {}};
#pragma unroll
        for (int i = 0; i < 8; i++)
            q[i] = s.q[own_head][lane * 8 + i];
#pragma unroll 1
        for (; p - own_group < end; p += UNROLL * step)
#pragma unroll
            for (int u = 0; u < UNROLL; u++) {
                if (p - own_group + u * step >= end) /* for the whole block */
                    break;
                const int next = p + (UNROLL + u) * step;
                add_position<LANES, F16>(st, q, slots.key[u], slots.value[u], p + u * step < end,
                                         a);
                if (next < end && in_head)
                    load_slot<F16>(slots, u, rows, next, lane, a);
            }
        const int at = own_head * shape.groups + own_group;
        put_state<LANES>(s, at, st.o);
        if (lane == 0) {
            s.max[at] = st.max;
            s.sum[at] = st.sum;
        }
    }
    join_groups<LANES>(s, shape);
    const int64_t head = (int64_t)token * a.n_head + head0;
    float *parts = a.partial + head * a.n_splits * (a.head_pad + 2);
    float *out = a.out + head * a.head_dim;
    store_result<LANES>(a, s, shape.groups, n_heads, n_pieces == 1, out,
                        parts + piece * (a.head_pad + 2));
    if (n_pieces == 1)
        return;
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) {
        const unsigned most = (unsigned)n_pieces - 1;
        s.last = atomicInc(&a.arrived[head], most) == most;
        __threadfence();
    }
    __syncthreads();
    if (s.last)
        join_pieces<LANES>(a, parts, n_pieces, n_heads, out);
}

/* Enough heads share keys that a group should take them together. */
static __host__ __device__ __forceinline__ bool shares_rows(const wina_cuda_attend &a) {
    return ATTEND_SHARE && a.n_head / a.n_head_kv > ATTEND_HEADS / 2;
}

static __device__ __forceinline__ int attend_groups(const wina_cuda_attend &a, int heads) {
    const int ratio = a.n_head / a.n_head_kv;
    return a.n_head_kv * ((ratio + heads - 1) / heads);
}

/* All of one token's attention, shared by the blocks of the grid. */
template <int LANES, bool F16, bool SHARE>
static __device__ __noinline__ void attend_pieces(const wina_cuda_attend &a, int heads,
                                                  int n_pieces, int pos, uint8_t *memory) {
    attend_shared<LANES> &s = *reinterpret_cast<attend_shared<LANES> *>(memory);
    const int n_groups = attend_groups(a, heads);
    for (int i = blockIdx.x; i < n_groups * n_pieces; i += gridDim.x) {
        attend_one<LANES, F16, SHARE>(a, s, heads, i % n_groups, i / n_groups, n_pieces, 0, pos);
        __syncthreads();
    }
}

/* Fewer heads per block, and more blocks, as long as there are blocks. */
template <int LANES, bool F16>
static __device__ __forceinline__ void attend_run(const wina_cuda_attend &a, int pos,
                                                  uint8_t *memory) {
    constexpr int LEAST = ATTEND_THREADS / LANES > 32 ? ATTEND_THREADS / LANES / 32 : 1;
    const int n = pos + 1 - first_seen(a, pos);
    const int n_pieces = min(a.n_splits, (n + ATTEND_LEAST - 1) / ATTEND_LEAST);
    int heads = ATTEND_HEADS;
    while (heads > LEAST && attend_groups(a, heads / 2) * n_pieces <= (int)gridDim.x)
        heads /= 2;
    if (heads == ATTEND_HEADS && shares_rows(a))
        attend_pieces<LANES, F16, true>(a, heads, n_pieces, pos, memory);
    else
        attend_pieces<LANES, F16, false>(a, heads, n_pieces, pos, memory);
}

#endif
