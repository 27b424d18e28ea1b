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
    list_view view; /* not in registers: the sums need all there are */
    bool last;
};

/* Rows of a tile: where a lane's rows are in the panel. */
struct lane_rows {
    uint32_t row0; /* first row of the tile in the panel */
    bool exists;   /* this lane has rows */
};

template <class F>
static __device__ __forceinline__ lane_rows rows_of(const wina_cuda_gemv &g, int tile, int chunk) {
    const int first = (threadIdx.x & 31) * F::LANE_ROWS;
    return {(uint32_t)(g.row0 + chunk * g.up_row0 + tile * g.tile_rows),
            first < g.tile_rows && tile * g.tile_rows + first < g.n_rows};
}

/* acc += columns of entries [e, end) for a float format. Every slot is loaded again as soon as it
 * has been used, so that most of them are under way at any time. */
template <class F>
static __device__ __forceinline__ void multiply_floats(const wina_cuda_gemv &g, const list_view &l,
                                                       lane_rows rows, int e, int end,
                                                       float (&acc)[F::LANE_ROWS]) {
    const int lane = threadIdx.x & 31;
    const uint8_t *base =
        g.panel.data + (uint64_t)(rows.row0 + lane * F::LANE_ROWS) * (F::ROW_BITS / 8);
    const uint2 *entries = l.entries<const uint2>() + place_of(l, e);
    if (!rows.exists)
        return;
    uint4 v[F::UNROLL];
    float x[F::UNROLL];
    int left = end - e;
#pragma unroll
    for (int k = 0; k < F::UNROLL; k++) {
        x[k] = 0.0f;
        v[k] = make_uint4(0, 0, 0, 0);
        if (k < left) {
            const uint2 entry = entries[k];
            v[k] = load_stream16(base + (uint64_t)entry.x * 32);
            x[k] = __uint_as_float(entry.y);
        }
    }
#pragma unroll 1
    while (left > 0) {
        left -= F::UNROLL;
        entries += F::UNROLL;
#pragma unroll
        for (int k = 0; k < F::UNROLL; k++) {
            F::add(acc, v[k], x[k]);
            x[k] = 0.0f;
            if (k < left) {
                const uint2 entry = entries[k];
                v[k] = load_stream16(base + (uint64_t)entry.x * 32);
                x[k] = __uint_as_float(entry.y);
            }
        }
    }
}

/* The same for a quantised format: sub-block after sub-block, UNROLL pairs loaded and then
 * multiplied at a time. */
template <class F>
static __device__ __forceinline__ void multiply_pairs(const wina_cuda_gemv &g, const list_view &l,
                                                      lane_rows rows, int e, int end,
                                                      float (&acc)[F::LANE_ROWS]) {
    typedef typename F::value V;
    typedef typename F::scale S;
    constexpr int SUB = F::LIST == LIST_PAIR16 ? 16 : 32, U = F::UNROLL;
    const uint8_t *data = g.panel.data;
    const int lane = threadIdx.x & 31;
    const uint32_t strip = rows.row0 / 64 + (lane >> 2), n_rows = (uint32_t)g.panel.n_rows;
    const uint8_t *own = data + V::low_at(strip, lane);
    const int high = V::high_from_low(strip, lane, n_rows);
    const uint4 *entry = l.entries<const uint4>() + place_of(l, e);
    if (!rows.exists)
        return;
#pragma unroll 1
    while (e < end) {
        const int sub = (int)entry->w, stop = min(end, end_of_sub<F::LIST>(l, sub));
        const int block = sub * SUB / 32;
        const uint8_t *super = data + (uint64_t)(block >> 3) * g.panel.super_bytes;
        const uint8_t *scales = data + (uint64_t)column_at<8>(g.panel, block, 32) * 8;
        typename S::raw scale[V::WORDS];
#pragma unroll
        for (int j = 0; j < V::WORDS; j++)
            scale[j] = S::load(scales, super, n_rows, rows.row0 + V::scale_at(lane, j), sub);
        int dots[F::LANE_ROWS] = {0}, sum = 0;
#pragma unroll 1
        for (; e < stop; e += U, entry += U) {
            typename V::raw a[U], b[U];
            int x[U];
#pragma unroll
            for (int k = 0; k < U; k++)
                if (e + k < stop) {
                    const uint4 pair = entry[k];
                    x[k] = (int)pair.z;
                    a[k] = V::load(own + (uint64_t)pair.x * 8, high);
                    b[k] = V::load(own + (uint64_t)pair.y * 8, high);
                }
#pragma unroll
            for (int k = 0; k < U; k++)
                if (e + k < stop) {
                    dp2a_low(sum, x[k], 0x0101);
                    dot_pair<V>(dots, a[k], b[k], lane, x[k]);
                }
        }
        entry -= e - stop;
        e = stop;
        const float xs = l.scale()[block];
#pragma unroll
        for (int j = 0; j < V::WORDS; j++) {
            const bool upper = V::UPPER > 1 && j >= 2;
            S::flush(scale[j], &dots[4 * j], upper ? sum * V::UPPER : sum,
                     upper ? xs * (1.0f / V::UPPER) : xs, &acc[4 * j]);
        }
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
    const bool from_start = g.aligned || interval_of(l, first) <= t * l.n;
    float sum = __ldcg(partial_of(g, first, from_start) + slot);
#pragma unroll 4
    for (int b = first + 1; b <= last; b++)
        sum += __ldcg(partial_of(g, b, false) + slot);
    return sum;
}

static __device__ __forceinline__ void finish_row(const wina_cuda_gemv &g, int row, float sum,
                                                  float up) {
    if (row >= g.n_valid)
        return;
    if (g.epilogue == WINA_CUDA_SWIGLU)
        sum = activated(sum, g.gelu) * up;
    else
        sum *= g.out_scale;
    g.out[row] = g.out_cap > 0.0f ? g.out_cap * tanhf(sum / g.out_cap) : sum;
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
    const int shift = two ? 3 : 4;
    static_assert(GEMV_WARPS == 1 << 4, "shifts for divisions");
    float acc[F::LANE_ROWS];
#pragma unroll
    for (int k = 0; k < F::LANE_ROWS; k++)
        acc[k] = 0.0f;
    const int from = e + ((end - e) * part >> shift), to = e + ((end - e) * (part + 1) >> shift);
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
    const int in_tile = tile_row<F>(slot & 31, slot >> 5), row = t * g.tile_rows + in_tile;
    const bool has_row = has_slot && in_tile < g.tile_rows && row < g.n_rows;
    if (g.epilogue == WINA_CUDA_ADD) {
        if (has_row)
            add_row(g, row, sum);
        return;
    }
    if (e != 0 || end != l.n) { /* shared with other thread blocks */
        float *p = partial_of(g, blockIdx.x, e == 0);
        if (has_slot)
            __stcg(p + slot, sum);
        if (has_slot && two)
            __stcg(p + F::TILE + slot, up);
        int first = s.select.own.first_block, last = first + l.n_sharers - 1;
        if (!g.aligned) {
            first = owner_of(l, t * l.n);
            last = owner_of(l, t * l.n + l.n - 1);
        }
        if (!arrive_last(g, s, t, last - first + 1))
            return;
        if (has_slot)
            sum = gather(g, l, t, first, last, slot);
        if (has_slot && two)
            up = gather(g, l, t, first, last, F::TILE + slot);
    }

    if (has_row)
        finish_row(g, row, sum, up);
}

/* While a block waits for the others, what will surely be read goes to L2: the first columns of its
 * part of a dense step, and the scales of the step after the next, which are read whatever is kept.
 * Not by format, and short: fetching the code would cost more than it brings. */
#ifndef WINA_CUDA_COLUMNS_AHEAD
#define WINA_CUDA_COLUMNS_AHEAD (96 << 10) /* bytes of columns per block */
#endif

static __device__ __forceinline__ void prefetch_columns(const wina_cuda_gemv &g, tile_share own) {
    const wina_cuda_panel &p = g.panel;
    int tile = own.tile, from = 0, to = p.n_cols;
    if (g.aligned) {
        const int part = p.n_cols / own.n_blocks;
        from = part * ((int)blockIdx.x - own.first_block);
        to = from + part;
    } else {
        from = p.n_cols * g.n_tiles / (int)gridDim.x * (int)blockIdx.x;
        tile = from / p.n_cols;
        from -= tile * p.n_cols;
    }
    const uint32_t chunk =
        (uint32_t)min(g.tile_rows, g.n_rows - tile * g.tile_rows) * g.low_bits / 8;
    const uint8_t *rows = p.data + (uint64_t)(g.row0 + tile * g.tile_rows) * g.low_bits / 8;
    const uint64_t up = (uint64_t)g.up_row0 * g.low_bits / 8;
    to = min(to, from + (int)(WINA_CUDA_COLUMNS_AHEAD / (up ? 2 * chunk : chunk)));
#pragma unroll 1
    for (int c = from + (int)threadIdx.x; c < to; c += GEMV_THREADS) {
        const uint8_t *col = rows + (uint64_t)(c >> 8) * p.super_bytes + p.super_head +
                             (uint64_t)(c >> 5 & 7) * p.block_bytes +
                             (uint64_t)(c & 31) * p.col_bytes;
        prefetch_l2(col, chunk);
        if (up)
            prefetch_l2(col + up, chunk);
    }
}

static __device__ __forceinline__ void prefetch_scales(const wina_cuda_ahead &a) {
    const int b = (int)(blockIdx.x + gridDim.x * threadIdx.x);
    if (b >= a.n_blocks)
        return;
    const uint8_t *super = a.data + (uint64_t)(b >> 3) * a.super_bytes;
    prefetch_l2(super + a.scales_at + (uint64_t)(b & 7) * a.block_bytes, a.scale_bytes);
    if (a.super_head && (b & 7) == 0)
        prefetch_l2(super, a.super_head);
}

/* The block's interval, tile by tile. */
template <class F>
static __device__ __forceinline__ void run_tiles(const wina_cuda_gemv &g, gemv_shared &s,
                                                 float *red, const list_view &l, long long *marks) {
#pragma unroll 1
    for (int at = l.begin; at < l.end;) {
        int t = s.select.own.tile, e = at;
        if (!g.aligned) {
            t = at / l.n;
            e -= t * l.n;
        }
        const int end = min(e + l.end - at, l.n);
        if (at != l.begin)
            __syncthreads(); /* red is read until here */
        do_tile<F>(g, s, red, l, t, e, end, marks);
        at += end - e;
    }
}

/* Shared memory: the scores and the input, later the sums of the warps (16, TILE); then the list.
 */
template <class F>
static __device__ __noinline__ void gemv_run(const wina_cuda_gemv &g, wina_cuda_keep keep,
                                             gemv_shared &s, long long *marks) {
    const int n_blocks = (g.panel.n_cols + 31) / 32;
    float *red = shared_at<float>(0);
    list_view l;
    l.entries_at = g.scratch_bytes;
    l.masks_at = l.entries_at + g.capacity * (int)sizeof(typename list_entry<F::LIST>::type);
    l.start_at = l.masks_at + 4 * n_blocks;
    l.todo_at = l.start_at + 4 * (n_blocks + 1);
    l.scale_at = l.todo_at + 4 * n_blocks;
    make_list<F::LIST>(g, keep, s.select, red, l, s.view, marks);
    run_tiles<F>(g, s, red, s.view, marks);
}

#endif
