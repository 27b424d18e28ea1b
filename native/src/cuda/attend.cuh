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

#include <cfloat>

#include "common.cuh"
#include "device.h"

enum {
    ATTEND_THREADS = 512,
    ATTEND_HEADS = 4,   /* query heads of a block */
    ATTEND_LEAST = 256, /* positions of a piece, at least */
    ATTEND_UNROLL = 4
};

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

/* ---- rows of the cache --------------------------------------------------------------------- */

static __device__ __forceinline__ uint8_t *cache_row(const wina_cuda_attend &a, bool value,
                                                     int kv_head, int row) {
    return a.cache[value] + ((int64_t)kv_head * a.n_rows + row) * a.row_bytes[value];
}

/* Element d of the row of `pos`, rounded as the CPU rounds it. All lanes of a warp, with 32
 * elements in a row; those behind the last are zero. */
static __device__ __forceinline__ void store_element(const wina_cuda_attend &a, bool value,
                                                     int kv_head, int pos, int d, float x) {
    uint8_t *row = cache_row(a, value, kv_head, pos % a.n_rows);
    if (!a.is_q8[value]) {
        if (d < a.head_pad)
            reinterpret_cast<uint16_t *>(row)[d] = __half_as_ushort(__float2half_rn(x));
        return;
    }
    /* Bits of magnitudes have the order of the magnitudes, with what is not finite above all. */
    const float most = __uint_as_float(__reduce_max_sync(0xffffffffu, __float_as_uint(fabsf(x))));
    const float scale = most <= FLT_MAX ? most / 127.0f : NAN;
    const float inverse = scale > 0.0f ? 1.0f / scale : 0.0f;
    const bool rounds = inverse <= FLT_MAX && inverse > 0.0f;
    if (d < a.head_pad)
        row[d] = (uint8_t)(int8_t)(rounds ? __float2int_rn(x * inverse) : 0);
    if (d % 32 == 0 && d < a.head_dim)
        reinterpret_cast<uint16_t *>(row + a.head_pad)[d / 32] =
            __half_as_ushort(__float2half_rn(scale));
}

/* A lane's 8 elements of a row: of f16 themselves, of q8_0 in x and y, their scale in z. F16: both
 * keys and values are f16. */
template <bool F16>
static __device__ __forceinline__ uint4 load_elements(const uint8_t *row, int lane, int pad,
                                                      bool is_q8) {
    if (F16 || !is_q8)
        return *reinterpret_cast<const uint4 *>(row + lane * 16);
    const uint2 bytes = *reinterpret_cast<const uint2 *>(row + lane * 8);
    return make_uint4(bytes.x, bytes.y,
                      *reinterpret_cast<const uint16_t *>(row + pad + lane / 4 * 2), 0);
}

/* The elements, but for a factor that is returned. */
template <bool F16>
static __device__ __forceinline__ float to_floats8(uint4 v, bool is_q8, float (&f)[8]) {
    const uint32_t w[4] = {v.x, v.y, v.z, v.w};
    if (F16 || !is_q8) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            float2 t = __half22float2(*reinterpret_cast<const __half2 *>(&w[i]));
            f[2 * i] = t.x, f[2 * i + 1] = t.y;
        }
        return 1.0f;
    }
#pragma unroll
    for (int i = 0; i < 8; i++) { /* a byte + 128 as the low bits of 2^23 */
        const uint32_t bits = __byte_perm(w[i / 4] ^ 0x80808080u, 0x4b000000u, 0x7440 + i % 4);
        f[i] = __uint_as_float(bits) - 8388736.0f;
    }
    return __half2float(__ushort_as_half((unsigned short)v.z));
}

/* ---- attention ----------------------------------------------------------------------------- */

/* One position: the score, then the running softmax. */
template <int LANES, bool F16>
static __device__ __forceinline__ void add_position(state &st, const float (&q)[8], uint4 key,
                                                    uint4 value, bool exists,
                                                    const wina_cuda_attend &a) {
    const float cap = a.cap;
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
    if (cap > 0.0f)
        score = cap - __fdividef(2.0f * cap, 1.0f + __expf(__fdividef(2.0f, cap) * score));
    const float max = fmaxf(st.max, score);
    const float keep = __expf(st.max - max), p = __expf(score - max);
    st.max = max;
    st.sum = fmaf(st.sum, keep, p);
    const float weight = F16 ? p : p * v_scale;
#pragma unroll
    for (int i = 0; i < 8; i++)
        st.o[i] = fmaf(st.o[i], keep, weight * v[i]);
}

/* What a group reads: ATTEND_UNROLL positions at a time, each slot loaded again as soon as it has
 * been used. */
struct attend_slots {
    uint4 key[ATTEND_UNROLL], value[ATTEND_UNROLL];
};

/* The rows of a head from a position on: positions that a token sees go round the end at most once.
 */
struct attend_rows {
    const uint8_t *keys, *values;
    int begin; /* position of row 0, at most as far back as the first one that is seen */
};

/* Slot u of position `pos`, which must be in the cache. */
template <bool F16>
static __device__ __forceinline__ void load_slot(attend_slots &s, int u, const attend_rows &rows,
                                                 int pos, int lane, const wina_cuda_attend &a) {
    int row = pos - rows.begin;
    row -= row >= a.n_rows ? a.n_rows : 0;
    s.key[u] =
        load_elements<F16>(rows.keys + (int64_t)row * a.row_bytes[0], lane, a.head_pad, a.is_q8[0]);
    s.value[u] = load_elements<F16>(rows.values + (int64_t)row * a.row_bytes[1], lane, a.head_pad,
                                    a.is_q8[1]);
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
    float o[GROUPS][WIDTH];       /* (heads, groups) */
    float max[GROUPS], sum[GROUPS], weight[GROUPS];
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

/* Joins the groups of a block in order: s.all_max, s.all_sum; weights of the groups. Groups
 * without positions have max = -inf and weight 0. */
template <int LANES>
static __device__ __forceinline__ void join_groups(attend_shared<LANES> &s, const state &st,
                                                   attend_shape shape, int head, int group) {
    const int at = head * shape.groups + group;
    float *o = &s.o[at][threadIdx.x % LANES * 8];
    float4_at(o) = make_float4(st.o[0], st.o[1], st.o[2], st.o[3]);
    float4_at(o + 4) = make_float4(st.o[4], st.o[5], st.o[6], st.o[7]);
    if (threadIdx.x % LANES == 0) {
        s.max[at] = st.max;
        s.sum[at] = st.sum;
    }
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

/* One piece of the sequence for one head group of one token. */
template <int LANES, bool F16>
static __device__ __forceinline__ void attend_one(const wina_cuda_attend &a,
                                                  attend_shared<LANES> &s, int heads, int group,
                                                  int piece, int n_pieces, int token, int pos) {
    const attend_shape shape = shape_for<LANES>(heads);
    const int ratio = a.n_head / a.n_head_kv, per_kv = (ratio + heads - 1) / heads;
    const int kv_head = group / per_kv;
    const int head0 = kv_head * ratio + (group - kv_head * per_kv) * heads;
    const int n_heads = min(heads, (kv_head + 1) * ratio - head0);
    const int n = pos + 1;
    const int first = first_seen(a, pos);
    const int begin = first + (int)((int64_t)(n - first) * piece / n_pieces);
    const int end = first + (int)((int64_t)(n - first) * (piece + 1) / n_pieces);
    const int64_t row = token * a.qkv_stride;
    const int lane = threadIdx.x % LANES, step = shape.groups;
    const int own_head = threadIdx.x / LANES % heads, own_group = threadIdx.x / LANES / heads;
    const attend_rows rows = {cache_row(a, false, kv_head, 0), cache_row(a, true, kv_head, 0),
                              first - first % a.n_rows};
    const bool in_head = lane * 8 < a.head_pad;
    /* The positions before this one are there already. */
    const int known = a.n_tokens == 1 ? min(end, pos) : end;
    attend_slots slots;
    int p = begin + own_group;
#pragma unroll
    for (int u = 0; u < ATTEND_UNROLL; u++) {
        slots.key[u] = slots.value[u] = make_uint4(0, 0, 0, 0);
        if (p + u * step < known && in_head)
            load_slot<F16>(slots, u, rows, p + u * step, lane, a);
    }
    load_queries<LANES>(a, s, row, head0, n_heads, heads, kv_head, pos,
                        a.n_tokens == 1 && end == n);
    __syncthreads();
    float q[8];
    state st = {-INFINITY, 0.0f, {0, 0, 0, 0, 0, 0, 0, 0}};
#pragma unroll
    for (int i = 0; i < 8; i++)
        q[i] = s.q[own_head][lane * 8 + i];
#pragma unroll
    for (int u = 0; u < ATTEND_UNROLL; u++)
        if (p + u * step >= known && p + u * step < end && in_head)
            load_slot<F16>(slots, u, rows, p + u * step, lane, a);
#pragma unroll 1
    for (; p - own_group < end; p += ATTEND_UNROLL * step)
#pragma unroll
        for (int u = 0; u < ATTEND_UNROLL; u++) {
            const int next = p + (ATTEND_UNROLL + u) * step;
            add_position<LANES, F16>(st, q, slots.key[u], slots.value[u], p + u * step < end, a);
            if (next < end && in_head)
                load_slot<F16>(slots, u, rows, next, lane, a);
        }
    join_groups<LANES>(s, st, shape, own_head, own_group);
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

static __device__ __forceinline__ int attend_groups(const wina_cuda_attend &a, int heads) {
    const int ratio = a.n_head / a.n_head_kv;
    return a.n_head_kv * ((ratio + heads - 1) / heads);
}

/* All of one token's attention, shared by the blocks of the grid: fewer heads per block, and more
 * blocks, as long as there are blocks. */
template <int LANES, bool F16>
static __device__ __noinline__ void attend_run(const wina_cuda_attend &a, int pos,
                                               uint8_t *memory) {
    constexpr int LEAST = ATTEND_THREADS / LANES > 32 ? ATTEND_THREADS / LANES / 32 : 1;
    attend_shared<LANES> &s = *reinterpret_cast<attend_shared<LANES> *>(memory);
    const int n = pos + 1 - first_seen(a, pos);
    const int n_pieces = min(a.n_splits, (n + ATTEND_LEAST - 1) / ATTEND_LEAST);
    int heads = ATTEND_HEADS;
    while (heads > LEAST && attend_groups(a, heads / 2) * n_pieces <= (int)gridDim.x)
        heads /= 2;
    const int n_groups = attend_groups(a, heads);
    for (int i = blockIdx.x; i < n_groups * n_pieces; i += gridDim.x) {
        attend_one<LANES, F16>(a, s, heads, i % n_groups, i / n_groups, n_pieces, 0, pos);
        __syncthreads();
    }
}

#endif
