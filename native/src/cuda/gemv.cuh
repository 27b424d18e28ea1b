/* gemv: rows of an input-major panel times the kept inputs of one token.
 *
 * Purpose. The step that reads the weights. Norm, selection and list (list.cuh) come first in the
 * same kernel; what happens to the sums (bias, residual, gated activation) comes last in it.
 *
 * Work is (row tiles) x (list entries), cut into equal intervals, one per multiprocessor, whatever
 * the shape. The warps of a block take equal parts of its entries; each sums its rows in registers
 * and the block adds the warps in order. A tile that several blocks share is finished by the last
 * of them to arrive, which adds their sums in the order of the blocks: the result does not depend
 * on who that is. */
#ifndef WINA_CUDA_GEMV_CUH
#define WINA_CUDA_GEMV_CUH

#include "list.cuh"

enum { GEMV_THREADS = SELECT_THREADS, GEMV_WARPS = GEMV_THREADS / 32, GEMV_MOST_ROWS = 512 };

/* ---- kernels ------------------------------------------------------------------------------ */

struct gemv_shared {
    select_shared select;
    bool last;
};

/* Rows of a tile: where a lane's rows are in the panel. */
struct lane_rows {
    uint32_t row0; /* first row of the tile in the panel */
    bool exists;   /* this lane has rows */
};

template <class F>
static __device__ __forceinline__ lane_rows rows_of(const wina_cuda_gemv &g, int tile, int chunk) {
    const int lane = threadIdx.x & 31;
    return {(uint32_t)(g.row0 + chunk * g.up_row0 + tile * F::TILE),
            tile * F::TILE + lane * F::LANE_ROWS < g.n_rows};
}

/* acc += columns of entries [e, end) for a float format. */
template <class F>
static __device__ __forceinline__ void multiply_floats(const wina_cuda_gemv &g, const list_view &l,
                                                       lane_rows rows, int e, int end,
                                                       float (&acc)[F::LANE_ROWS]) {
    const int lane = threadIdx.x & 31;
    const uint8_t *base =
        g.panel.data + (uint64_t)(rows.row0 + lane * F::LANE_ROWS) * (F::ROW_BITS / 8);
    if (!rows.exists)
        return;
    for (; e < end; e += F::UNROLL) {
        uint4 v[F::UNROLL];
        float x[F::UNROLL];
#pragma unroll
        for (int k = 0; k < F::UNROLL; k++) {
            x[k] = 0.0f;
            v[k] = make_uint4(0, 0, 0, 0);
            if (e + k < end) {
                uint2 entry = list_at(l, e + k);
                v[k] = load_stream16(base + (uint64_t)entry.x * 32);
                x[k] = __uint_as_float(entry.y);
            }
        }
#pragma unroll
        for (int k = 0; k < F::UNROLL; k++)
            F::add(acc, v[k], x[k]);
    }
}

/* The same for a quantised format: sub-block after sub-block. */
template <class F>
static __device__ __forceinline__ void multiply_pairs(const wina_cuda_gemv &g, const list_view &l,
                                                      lane_rows rows, int e, int end,
                                                      float (&acc)[F::LANE_ROWS]) {
    typedef typename F::value V;
    typedef typename F::scale S;
    constexpr int SUB = F::LIST == LIST_PAIR16 ? 16 : 32, U = F::UNROLL;
    const wina_cuda_panel &p = g.panel;
    const int lane = threadIdx.x & 31;
    const uint32_t strip = rows.row0 / 64 + (lane >> 2), n_rows = (uint32_t)p.n_rows;
    const uint32_t col_bytes = (uint32_t)p.col_bytes;
    if (!rows.exists)
        return;
    while (e < end) {
        const int sub = (int)(list_at(l, e).x & 0xffff) / SUB, block = sub * SUB / 32;
        const int stop = min(end, end_of_sub<F::LIST>(l, sub));
        const uint8_t *super = p.data + (uint64_t)(block >> 3) * p.super_bytes;
        const uint8_t *values = super + p.super_head + (uint64_t)(block & 7) * p.block_bytes;
        const uint8_t *scales = values + p.col_bytes * 32;
        typename S::raw scale[V::WORDS];
#pragma unroll
        for (int j = 0; j < V::WORDS; j++)
            scale[j] = S::load(scales, super, n_rows, rows.row0 + V::scale_at(lane, j), sub);
        int dots[F::LANE_ROWS] = {0}, sum = 0;
        for (; e < stop; e += U) {
            typename V::raw a[U], b[U];
            int x[U];
#pragma unroll
            for (int k = 0; k < U; k++) {
                a[k] = b[k] = V::zero();
                x[k] = 0;
                if (e + k < stop) {
                    const uint2 entry = list_at(l, e + k);
                    x[k] = (int)entry.y;
                    a[k] = V::load(values + (entry.x & 31) * col_bytes, strip, lane, n_rows);
                    b[k] = V::load(values + (entry.x >> 16 & 31) * col_bytes, strip, lane, n_rows);
                }
            }
#pragma unroll
            for (int k = 0; k < U; k++) {
                uint32_t wa[V::WORDS], wb[V::WORDS];
                V::unpack(a[k], lane, wa);
                V::unpack(b[k], lane, wb);
                sum += (int)(int16_t)(x[k] & 0xffff) + (x[k] >> 16);
#pragma unroll
                for (int j = 0; j < V::WORDS; j++)
                    add_pair(&dots[4 * j], wa[j], wb[j], x[k]);
            }
        }
        e = stop;
        const float xs = l.scale[block];
#pragma unroll
        for (int j = 0; j < V::WORDS; j++)
            S::flush(scale[j], &dots[4 * j], sum, xs, &acc[4 * j]);
    }
}

/* Row inside the tile of value k of a lane. */
template <class F> static __device__ __forceinline__ int tile_row(int lane, int k) {
    if constexpr (F::LIST == LIST_FLOAT)
        return lane * F::LANE_ROWS + k;
    else
        return F::value::row(lane, k / 4) + k % 4;
}

/* Where thread block b leaves its sums of a tile that it shares. */
static __device__ __forceinline__ float *partial_of(const wina_cuda_gemv &g, int b,
                                                    bool from_start) {
    return g.partial + (int64_t)(2 * b + from_start) * 2 * GEMV_MOST_ROWS;
}

/* Adds up what the sharers of tile t left for this slot. */
static __device__ __forceinline__ float gather(const wina_cuda_gemv &g, const list_view &l, int t,
                                               int first, int last, int slot) {
    /* Only the first of them can have begun at the tile's start. */
    float sum = __ldcg(partial_of(g, first, interval_of(l, first) <= t * l.n) + slot);
#pragma unroll 4
    for (int b = first + 1; b <= last; b++)
        sum += __ldcg(partial_of(g, b, false) + slot);
    return sum;
}

static __device__ __forceinline__ void finish_row(const wina_cuda_gemv &g, int row, float sum,
                                                  float up) {
    if (row >= g.n_valid)
        return;
    g.out[row] = g.epilogue == WINA_CUDA_SWIGLU ? sum / (1.0f + expf(-sum)) * up : sum;
}

/* A part of a row's sum that others add to as well. */
static __device__ __forceinline__ void add_row(const wina_cuda_gemv &g, int row, float sum) {
    if (row >= g.n_valid)
        return;
    if (!(fabsf(sum) < WINA_CUDA_MOST))
        *g.overflow = 1;
#ifdef WINA_CUDA_EMULATE
    g.sums[row] += to_fixed(sum);
#else
    asm volatile("red.relaxed.gpu.global.add.u64 [%0], %1;" ::"l"(g.sums + row), "l"(to_fixed(sum))
                 : "memory");
#endif
}

/* True in the thread block that is the last of those that share tile t to come here; it then sees
 * what the others wrote before. */
static __device__ __forceinline__ bool arrive_last(const wina_cuda_gemv &g, gemv_shared &s, int t,
                                                   int n_sharers) {
    __syncthreads();
    if (threadIdx.x == 0) {
#ifdef WINA_CUDA_EMULATE
        const unsigned before = atomicInc(&g.arrived[t], (unsigned)n_sharers - 1);
#else
        unsigned before;
        asm volatile("atom.acq_rel.gpu.global.inc.u32 %0, [%1], %2;"
                     : "=r"(before)
                     : "l"(&g.arrived[t]), "r"(n_sharers - 1)
                     : "memory");
#endif
        s.last = before == (unsigned)n_sharers - 1;
    }
    __syncthreads();
    return s.last;
}

/* Entries [e, end) of tile t: sums over the block, then the row's end or a partial sum. With two
 * chunks (gate and up) half of the warps works on each. */
template <class F>
static __device__ __forceinline__ void do_tile(const wina_cuda_gemv &g, gemv_shared &s, float *red,
                                               const list_view &l, int t, int e, int end,
                                               long long *marks) {
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, slot = threadIdx.x;
    const bool two = g.epilogue == WINA_CUDA_SWIGLU;
    const int n_part = two ? GEMV_WARPS / 2 : GEMV_WARPS, part = warp & (n_part - 1);
    float acc[F::LANE_ROWS];
#pragma unroll
    for (int k = 0; k < F::LANE_ROWS; k++)
        acc[k] = 0.0f;
    const int from = e + (end - e) * part / n_part, to = e + (end - e) * (part + 1) / n_part;
    const lane_rows rows = rows_of<F>(g, t, warp >= n_part);
    if constexpr (F::LIST == LIST_FLOAT)
        multiply_floats<F>(g, l, rows, from, to, acc);
    else
        multiply_pairs<F>(g, l, rows, from, to, acc);
    mark(marks, 5);
#pragma unroll
    for (int k = 0; k < F::LANE_ROWS; k++)
        red[warp * F::TILE + k * 32 + lane] = acc[k];
    __syncthreads();
    mark(marks, 6);
    float sum = 0, up = 0;
    const bool has_slot = slot < F::TILE;
    if (has_slot) {
#pragma unroll
        for (int w = 0; w < GEMV_WARPS / 2; w++) {
            sum += red[w * F::TILE + slot];
            up += red[(w + GEMV_WARPS / 2) * F::TILE + slot];
        }
        if (!two)
            sum += up;
    }
    const int row = t * F::TILE + tile_row<F>(slot & 31, slot >> 5);
    if (g.epilogue == WINA_CUDA_ADD) {
        if (has_slot && row < g.n_rows)
            add_row(g, row, sum);
        return;
    }
    if (e != 0 || end != l.n) { /* shared with other thread blocks */
        float *p = partial_of(g, blockIdx.x, e == 0);
        if (has_slot)
            __stcg(p + slot, sum);
        if (has_slot && two)
            __stcg(p + F::TILE + slot, up);
        const int first = owner_of(l, t * l.n), last = owner_of(l, t * l.n + l.n - 1);
        if (!arrive_last(g, s, t, last - first + 1))
            return;
        if (has_slot)
            sum = gather(g, l, t, first, last, slot);
        if (has_slot && two)
            up = gather(g, l, t, first, last, F::TILE + slot);
    }

    if (has_slot && row < g.n_rows)
        finish_row(g, row, sum, up);
}

/* While a block waits for the others: what it will surely read of its part goes to L2. That is the
 * first columns of a dense multiplication, or the scales of a sparse one, at the place where its
 * part would be if inputs were kept evenly. */
enum { GEMV_AHEAD = 96 << 10 /* bytes of columns per block */ };

template <class F>
static __device__ __forceinline__ void prefetch_part(const wina_cuda_gemv &g, wina_cuda_keep keep) {
    const wina_cuda_panel &p = g.panel;
    const int n_tiles = (g.n_rows + F::TILE - 1) / F::TILE;
    const bool dense = !is_sparse(keep, p.n_cols), two = g.epilogue == WINA_CUDA_SWIGLU;
    if (!dense) /* fetching this code would cost more than the scales are worth */
        return;
    list_view l;
    l.n = p.n_cols;
    share_work(l, n_tiles, g.aligned);
    const int t = l.begin / l.n, first = l.begin - t * l.n;
    const int length = min(l.end - l.begin, l.n - first);
    const int n_rows = min(F::TILE, g.n_rows - t * F::TILE), row0 = g.row0 + t * F::TILE;
    const uint32_t chunk = (uint32_t)(n_rows * F::LOW_BITS / 8);
    if (length <= 0)
        return;
    const int most = dense ? min(length, (int)(GEMV_AHEAD / (chunk * (two ? 2 : 1)))) : 0;
    for (int k = threadIdx.x; k < most; k += GEMV_THREADS) {
        const int c = first + k;
        const uint8_t *col = p.data + (uint64_t)(c >> 8) * p.super_bytes + p.super_head +
                             (uint64_t)(c >> 5 & 7) * p.block_bytes +
                             (uint64_t)(c & 31) * p.col_bytes;
        prefetch_l2(col + (uint64_t)row0 * F::LOW_BITS / 8, chunk);
        if (two)
            prefetch_l2(col + (uint64_t)(row0 + g.up_row0) * F::LOW_BITS / 8, chunk);
    }
    if constexpr (F::LIST != LIST_FLOAT) {
        const int b0 = first / 32, b1 = min((first + length + 31) / 32, b0 + 64);
        for (int b = b0 + (int)threadIdx.x; b < b1; b += GEMV_THREADS) {
            const uint8_t *scales = p.data + (uint64_t)(b >> 3) * p.super_bytes + p.super_head +
                                    (uint64_t)(b & 7) * p.block_bytes + 32 * p.col_bytes;
            prefetch_l2(scales + row0 * F::SCALE_WIDTH, (uint32_t)(n_rows * F::SCALE_WIDTH));
            if (two)
                prefetch_l2(scales + (row0 + g.up_row0) * F::SCALE_WIDTH,
                            (uint32_t)(n_rows * F::SCALE_WIDTH));
        }
    }
}

/* Shared memory: the scores and the input, later the sums of the warps (16, TILE); then the list.
 */
template <class F>
static __device__ __noinline__ void gemv_run(const wina_cuda_gemv &g, wina_cuda_keep keep,
                                             gemv_shared &s, uint8_t *memory, long long *marks) {
    const int n_blocks = (g.panel.n_cols + 31) / 32;
    const int n_tiles = (g.n_rows + F::TILE - 1) / F::TILE;
    float *red = reinterpret_cast<float *>(memory);
    list_view l;
    l.entries = reinterpret_cast<uint2 *>(memory + g.scratch_bytes);
    l.masks = reinterpret_cast<uint32_t *>(l.entries + g.capacity);
    l.start = reinterpret_cast<int *>(l.masks + n_blocks);
    l.todo = l.start + n_blocks + 1;
    l.scale = reinterpret_cast<float *>(l.todo + n_blocks);
    make_list<F::LIST>(g, keep, s.select, red, n_tiles, l, marks);
    for (int at = l.begin; at < l.end;) {
        const int t = at / l.n, e = at - t * l.n, end = min(e + l.end - at, l.n);
        if (at != l.begin)
            __syncthreads(); /* red is read until here */
        do_tile<F>(g, s, red, l, t, e, end, marks);
        at += end - e;
    }
}

#endif
