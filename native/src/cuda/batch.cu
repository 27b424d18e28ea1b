/* batch: the kernels of prompt processing, where weights meet many tokens at once.
 *
 * Purpose. Activations are normed, masked where a token is sparse, and rounded to float16 with a
 * power of two per token that keeps them in range; panels are decoded to float16 piece by piece;
 * tensor cores multiply (cuBLAS, or matmul_kernel below); the rest applies the scale on the way. */
#include <mma.h>

#include "attend.cuh"
#include "batch.h"
#include "list.cuh"

/* ---- activations -------------------------------------------------------------------------- */

/* Grid: tokens. out (n_tokens, out_stride): kept inputs over the token's scale, else zero. */
__global__ void __launch_bounds__(SELECT_THREADS)
    prepare_kernel(const __grid_constant__ wina_cuda_prepare p) {
    WINA_CUDA_DYNAMIC(memory);
    WINA_CUDA_SHARED(select_shared, s);
    WINA_CUDA_SHARED(wina_cuda_gemv, shared_gemv);
    const int token = blockIdx.x, n = p.gemv.panel.n_cols;
    if (threadIdx.x == 0) {
        shared_gemv = p.gemv;
        shared_gemv.in = p.gemv.in + token * p.in_stride;
    }
    __syncthreads();
    const wina_cuda_gemv &g = shared_gemv;
    const wina_cuda_keep keep = load_keep(token >= p.n_dense ? g.keep : nullptr);
    float *scores = reinterpret_cast<float *>(memory), *input = scores + (n + 3) / 4 * 4;
    uint32_t *bits = reinterpret_cast<uint32_t *>(scores), top;
    float factor;
    load_weights(g, keep, s, scores);
    __syncthreads();
    load_scores(g, s, scores, &factor, &top);
    select_threshold t = {0, 0, 0};
    if (is_sparse(keep, n))
        t = find_threshold(keep, s, bits, n, top, factor);
    float most = 0.0f;
    unsigned n_kept = 0;
    for (int i = threadIdx.x; i < n; i += SELECT_THREADS) {
        most = fmaxf(most, fabsf(input[i] * factor));
        n_kept += bits[i] >= t.bits;
    }
    const uint32_t largest = __reduce_max_sync(0xffffffffu, __float_as_uint(most));
    n_kept = __reduce_add_sync(0xffffffffu, n_kept);
    __syncthreads();
    if (threadIdx.x % 32 == 0) {
        s.warp_max[threadIdx.x / 32] = largest;
        s.warp[threadIdx.x / 32] = n_kept;
    }
    __syncthreads();
    sum_before(s.warp, &n_kept);
    if (threadIdx.x == 0 && p.kept_last) {
        if (token >= p.n_dense)
            atomicAdd(p.kept_sum, (int)n_kept);
        if (token == (int)gridDim.x - 1)
            *p.kept_last = (int)n_kept;
    }
    most = __uint_as_float(__reduce_max_sync(0xffffffffu, s.warp_max[threadIdx.x % SELECT_WARPS]));
    float scale = 1.0f;
    while (most > 16384.0f * scale && scale < 1e30f)
        scale *= 2.0f;
    __half *out = reinterpret_cast<__half *>(p.out) + token * p.out_stride;
    for (int i = threadIdx.x; i < p.out_stride; i += SELECT_THREADS)
        out[i] = __float2half_rn(i < n && bits[i] >= t.bits ? input[i] * factor / scale : 0.0f);
    if (threadIdx.x == 0)
        p.scale[token] = scale;
}

/* ---- weights ------------------------------------------------------------------------------ */

/* Two floats as float16, in a word. */
static __device__ __forceinline__ uint32_t halves_of(float a, float b) {
    const __half2 h = __floats2half2_rn(a, b);
    return *reinterpret_cast<const uint32_t *>(&h);
}

/* Rows [row0, row0 + n_rows) and columns [col0, col0 + n_cols) of a panel as out (n_cols, n_rows)
 * float16. A warp decodes a column's part of a tile; lanes store 16 bytes at a time. Grid: (tiles,
 * columns / 8). */
template <class F>
__global__ void decode_kernel(const __grid_constant__ wina_cuda_panel p, int row0, int n_rows,
                              int col0, int n_cols, __half *out) {
    const int lane = threadIdx.x % 32, c_out = blockIdx.y * 8 + threadIdx.x / 32;
    const int tile = blockIdx.x * F::TILE, c = col0 + c_out;
    if (c_out >= n_cols || tile + lane * F::LANE_ROWS >= n_rows)
        return;
    const uint8_t *super = p.data + (uint64_t)(c >> 8) * p.super_bytes;
    const uint8_t *block = super + p.super_head + (uint64_t)(c >> 5 & 7) * p.block_bytes;
    const uint8_t *col = block + (uint64_t)(c & 31) * p.col_bytes;
    __half *to = out + (int64_t)c_out * n_rows + tile;
    if constexpr (F::LIST == LIST_FLOAT) {
        float v[F::LANE_ROWS] = {};
        F::add(
            v,
            load_stream16(col + (uint64_t)(row0 + tile + lane * F::LANE_ROWS) * (F::ROW_BITS / 8)),
            1.0f);
#pragma unroll
        for (int k = 0; k < F::LANE_ROWS; k += 4)
            *reinterpret_cast<uint2 *>(to + lane * F::LANE_ROWS + k) =
                make_uint2(halves_of(v[k], v[k + 1]), halves_of(v[k + 2], v[k + 3]));
    } else {
        typedef typename F::value V;
        typedef typename F::scale S;
        const uint8_t *scales = block + p.col_bytes * 32;
        const uint32_t strip = (uint32_t)(row0 + tile) / 64 + lane / 4;
        const int high = V::high_from_low(strip, lane, (uint32_t)p.n_rows);
        uint32_t words[V::WORDS], pairs[2 * V::WORDS];
        V::unpack(V::load(col + V::low_at(strip, lane), high), lane, words);
#pragma unroll
        for (int j = 0; j < V::WORDS; j++) {
            const int q[4] = {(int)(words[j] & 255), (int)(words[j] >> 8 & 255),
                              (int)(words[j] >> 16 & 255), (int)(words[j] >> 24)};
            float v[4] = {0, 0, 0, 0};
            S::flush(
                S::load(scales, super, p.n_rows, row0 + tile + V::scale_at(lane, j), (c & 31) / 16),
                q, 1, 1.0f, v);
            pairs[2 * j] = halves_of(v[0], v[1]);
            pairs[2 * j + 1] = halves_of(v[2], v[3]);
        }
#pragma unroll
        for (int j = 0; j < V::WORDS; j += 2) /* rows of two words lie together */
            *reinterpret_cast<uint4 *>(to + V::row(lane, j)) =
                make_uint4(pairs[2 * j], pairs[2 * j + 1], pairs[2 * j + 2], pairs[2 * j + 3]);
    }
}

/* ---- product ------------------------------------------------------------------------------ */

enum { MATMUL_M = 128, MATMUL_N = 128, MATMUL_K = 32, MATMUL_PAD = 8, MATMUL_THREADS = 256 };

/* Two pieces of each operand. */
struct matmul_shared {
    alignas(32) __half a[2][MATMUL_M][MATMUL_K + MATMUL_PAD];
    alignas(32) __half w[2][MATMUL_K][MATMUL_N + MATMUL_PAD];
};

/* y (m, n) = (y +) a (m, k) w (k, n); m, n and k multiples of 16, rows of a padded with zeros to
 * MATMUL_K. Eight warps of 32 x 64 outputs; the next pieces of a and w are loaded while tensor
 * cores work on these. */
__global__ void __launch_bounds__(MATMUL_THREADS)
    matmul_kernel(const __half *a, int64_t lda, const __half *w, int64_t ldw, float *y, int64_t ldy,
                  int m, int n, int k, bool add) {
    using namespace nvcuda;
    WINA_CUDA_SHARED(matmul_shared, s);
    const int m0 = blockIdx.y * MATMUL_M, n0 = blockIdx.x * MATMUL_N, warp = threadIdx.x / 32;
    const int wm = warp / 2 * 32, wn = warp % 2 * 64;
    wmma::fragment<wmma::accumulator, 16, 16, 16, float> acc[2][4];
    for (int i = 0; i < 2; i++)
        for (int j = 0; j < 4; j++)
            if (add && m0 + wm + 16 * i < m && n0 + wn + 16 * j < n)
                wmma::load_matrix_sync(acc[i][j], y + (m0 + wm + 16 * i) * ldy + n0 + wn + 16 * j,
                                       (unsigned)ldy, wmma::mem_row_major);
            else
                wmma::fill_fragment(acc[i][j], 0.0f);
    const uint4 none = make_uint4(0, 0, 0, 0);
    uint4 next_a[2], next_w[2];
    auto fetch = [&](int k0) {
        for (int r = 0; r < 2; r++) {
            const int i = threadIdx.x + r * MATMUL_THREADS;
            const int row = m0 + i / 4, col = k0 + i % 4 * 8;
            next_a[r] =
                row < m && col < k ? *reinterpret_cast<const uint4 *>(a + row * lda + col) : none;
            const int wrow = k0 + i / 16, wcol = n0 + i % 16 * 8;
            next_w[r] = wrow < k && wcol < n
                            ? *reinterpret_cast<const uint4 *>(w + wrow * ldw + wcol)
                            : none;
        }
    };
    auto put = [&](int buffer) {
        for (int r = 0; r < 2; r++) {
            const int i = threadIdx.x + r * MATMUL_THREADS;
            *reinterpret_cast<uint4 *>(&s.a[buffer][i / 4][i % 4 * 8]) = next_a[r];
            *reinterpret_cast<uint4 *>(&s.w[buffer][i / 16][i % 16 * 8]) = next_w[r];
        }
    };
    fetch(0);
    put(0);
    __syncthreads();
    for (int k0 = 0, buffer = 0; k0 < k; k0 += MATMUL_K, buffer ^= 1) {
        if (k0 + MATMUL_K < k)
            fetch(k0 + MATMUL_K);
        for (int kk = 0; kk < MATMUL_K; kk += 16) {
            wmma::fragment<wmma::matrix_a, 16, 16, 16, __half, wmma::row_major> fa[2];
            wmma::fragment<wmma::matrix_b, 16, 16, 16, __half, wmma::row_major> fw[4];
            for (int i = 0; i < 2; i++)
                wmma::load_matrix_sync(fa[i], &s.a[buffer][wm + 16 * i][kk], MATMUL_K + MATMUL_PAD);
            for (int j = 0; j < 4; j++)
                wmma::load_matrix_sync(fw[j], &s.w[buffer][kk][wn + 16 * j], MATMUL_N + MATMUL_PAD);
            for (int i = 0; i < 2; i++)
                for (int j = 0; j < 4; j++)
                    wmma::mma_sync(acc[i][j], fa[i], fw[j], acc[i][j]);
        }
        if (k0 + MATMUL_K < k)
            put(buffer ^ 1);
        __syncthreads();
    }
    for (int i = 0; i < 2; i++)
        for (int j = 0; j < 4; j++)
            if (m0 + wm + 16 * i < m && n0 + wn + 16 * j < n)
                wmma::store_matrix_sync(y + (m0 + wm + 16 * i) * ldy + n0 + wn + 16 * j, acc[i][j],
                                        (unsigned)ldy, wmma::mem_row_major);
}

/* ---- the rest ----------------------------------------------------------------------------- */

/* Grid of all of these: (elements, tokens). x += y * scale */
__global__ void add_kernel(float *x, int64_t x_stride, const float *y, int64_t y_stride,
                           const float *scale, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x, t = blockIdx.y;
    if (i < n)
        x[t * x_stride + i] += y[t * y_stride + i] * scale[t];
}

/* out = y * scale (+ bias) */
__global__ void scale_kernel(float *out, int64_t out_stride, const float *y, int64_t y_stride,
                             const float *scale, const float *bias, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x, t = blockIdx.y;
    if (i < n)
        out[t * out_stride + i] = y[t * y_stride + i] * scale[t] + (bias ? bias[i] : 0.0f);
}

/* y = cap tanh(y scale / cap), without the cap if it is 0 */
__global__ void cap_kernel(float *y, int64_t stride, float scale, float cap, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x, t = blockIdx.y;
    if (i >= n)
        return;
    const float v = y[t * stride + i] * scale;
    y[t * stride + i] = cap > 0.0f ? cap * tanhf(v / cap) : v;
}

enum { NORM_THREADS = 256 };

struct norm_sums {
    float warps[NORM_THREADS / 32];
};

/* Sum over a block of NORM_THREADS; every thread receives it. */
static __device__ __forceinline__ float block_sum(float v) {
    WINA_CUDA_SHARED(norm_sums, sums);
    v = warp_sum(v);
    if (threadIdx.x % 32 == 0)
        sums.warps[threadIdx.x / 32] = v;
    __syncthreads();
    v = 0.0f;
    for (int i = 0; i < NORM_THREADS / 32; i++)
        v += sums.warps[i];
    return v;
}

/* x += gain rms_norm(y scale) factor; without a gain there is no norm. A block per token. */
__global__ void leave_kernel(float *x, int64_t x_stride, const float *y, int64_t y_stride,
                             const float *scale, const float *gain, float eps, float factor,
                             int n) {
    const int t = blockIdx.x;
    const float own = scale[t];
    if (gain) {
        float squares = 0.0f;
        for (int i = threadIdx.x; i < n; i += NORM_THREADS) {
            const float v = y[t * y_stride + i] * own;
            squares = fmaf(v, v, squares);
        }
        factor *= rsqrtf(block_sum(squares) / (float)n + eps);
    }
    for (int i = threadIdx.x; i < n; i += NORM_THREADS)
        x[t * x_stride + i] += y[t * y_stride + i] * own * factor * (gain ? gain[i] : 1.0f);
}

/* Norms of q and k in place. Grid: (heads of q and k, or q and k if all heads share a norm,
 * tokens). */
__global__ void qk_norm_kernel(const __grid_constant__ wina_cuda_attend a) {
    const int n_q = a.norm_all ? 1 : a.n_head, n_k = a.norm_all ? 1 : a.n_head_kv;
    const bool key = (int)blockIdx.x >= n_q;
    const int width = a.head_dim * (key ? a.n_head_kv / n_k : a.n_head / n_q);
    float *v = a.qkv + blockIdx.y * a.qkv_stride + (key ? a.k_row0 : 0) +
               (int64_t)(key ? blockIdx.x - n_q : blockIdx.x) * width;
    const float *gain = key ? a.k_norm : a.q_norm;
    float squares = 0.0f;
    for (int i = threadIdx.x; i < width; i += NORM_THREADS)
        squares = fmaf(v[i], v[i], squares);
    const float factor = rsqrtf(block_sum(squares) / (float)width + a.eps);
    for (int i = threadIdx.x; i < width; i += NORM_THREADS)
        v[i] *= factor * gain[i];
}

/* out = activated(gate) * up, both in y * scale; up starts at up_row0. */
__global__ void gate_kernel(float *out, int64_t out_stride, const float *y, int64_t y_stride,
                            const float *scale, int up_row0, bool gelu, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x, t = blockIdx.y;
    if (i >= n)
        return;
    const float gate = y[t * y_stride + i] * scale[t],
                up = y[t * y_stride + up_row0 + i] * scale[t];
    out[t * out_stride + i] = activated(gate, gelu) * up;
}

/* Queries are rotated in place, keys and values go to the cache. Grid: (heads of q and k, tokens),
 * a thread per pair of dimensions or single dimension. */
__global__ void rope_kernel(const __grid_constant__ wina_cuda_attend a, int pos0) {
    const int t = blockIdx.y, pos = pos0 + t, i = threadIdx.x;
    const bool key = (int)blockIdx.x >= a.n_head;
    const int h = key ? blockIdx.x - a.n_head : blockIdx.x;
    float *row = a.qkv + t * a.qkv_stride;
    const int64_t head = t * a.qkv_stride + (key ? a.k_row0 : 0) + (int64_t)h * a.head_dim;
    const float rotated = turned(load_turning(a, head, i, angles_of(a, pos), true));
    __syncthreads();
    if (!key) {
        if (i < a.head_dim)
            row[(int64_t)h * a.head_dim + i] = rotated;
    } else if (i - i % 32 < a.head_dim) { /* whole warps */
        const float v = i < a.head_dim ? row[a.v_row0 + (int64_t)h * a.head_dim + i] : 0.0f;
        store_element(a, false, h, pos, i, rotated);
        store_element(a, true, h, pos, i, v);
    }
}

/* Grid: (head groups, tokens). */
template <int LANES, bool F16, bool SHARE>
__global__ void __launch_bounds__(ATTEND_THREADS)
    attend_kernel(const __grid_constant__ wina_cuda_attend a, int pos0) {
    WINA_CUDA_DYNAMIC(memory);
    attend_one<LANES, F16, SHARE>(a, *reinterpret_cast<attend_shared<LANES> *>(memory),
                                  ATTEND_HEADS, blockIdx.x, 0, 1, blockIdx.y, pos0 + blockIdx.y);
}

typedef void (*attend_function)(wina_cuda_attend, int);
template <int LANES> static attend_function attend_kernel_of(bool f16, bool share) {
    return f16     ? share ? attend_kernel<LANES, true, true> : attend_kernel<LANES, true, false>
               : share ? attend_kernel<LANES, false, true>
                   : attend_kernel<LANES, false, false>;
}
static attend_function attend_kernel_of(int lanes, bool f16, bool share) {
    return lanes == 8    ? attend_kernel_of<8>(f16, share)
           : lanes == 16 ? attend_kernel_of<16>(f16, share)
                         : attend_kernel_of<32>(f16, share);
}

/* ---- launchers ---------------------------------------------------------------------------- */

extern "C" cudaError_t wina_cuda_batch_prepare(void) {
    int device = 0, most = 0;
    cudaError_t e = cudaGetDevice(&device);
    if (e == cudaSuccess)
        e = cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
    const auto allow = [&](const void *kernel) {
        cudaFuncAttributes f;
        if (e == cudaSuccess)
            e = cudaFuncGetAttributes(&f, kernel);
        if (e == cudaSuccess)
            e = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                     most - (int)f.sharedSizeBytes);
    };
    allow((const void *)prepare_kernel);
    for (int lanes = 8; lanes <= 32; lanes *= 2)
        for (int kind = 0; kind < 4; kind++)
            allow((const void *)attend_kernel_of(lanes, kind & 1, kind & 2));
    return e;
}

extern "C" cudaError_t wina_cuda_prepare_launch(const wina_cuda_prepare *p, int32_t n_tokens,
                                                cudaStream_t stream) {
    const size_t bytes = (size_t)(p->gemv.panel.n_cols + 3) / 4 * 4 * 2 * sizeof(float);
    WINA_CUDA_LAUNCH(prepare_kernel, n_tokens, SELECT_THREADS, bytes, stream, *p);
    return cudaGetLastError();
}

template <class F>
static cudaError_t decode(const wina_cuda_panel *p, int row0, int n_rows, int col0, int n_cols,
                          __half *out, cudaStream_t stream) {
    const dim3 grid((n_rows + F::TILE - 1) / F::TILE, (n_cols + 7) / 8);
    WINA_CUDA_LAUNCH(decode_kernel<F>, grid, 256, 0, stream, *p, row0, n_rows, col0, n_cols, out);
    return cudaGetLastError();
}

extern "C" cudaError_t wina_cuda_decode_launch(const wina_cuda_panel *p, int32_t row0,
                                               int32_t n_rows, int32_t col0, int32_t n_cols,
                                               uint16_t *out, cudaStream_t stream) {
    __half *to = reinterpret_cast<__half *>(out);
    switch (p->format) {
    case WINA_CUDA_F32:
        return decode<format_f32>(p, row0, n_rows, col0, n_cols, to, stream);
    case WINA_CUDA_F16:
        return decode<format_f16>(p, row0, n_rows, col0, n_cols, to, stream);
    case WINA_CUDA_BF16:
        return decode<format_bf16>(p, row0, n_rows, col0, n_cols, to, stream);
    case WINA_CUDA_Q8_0:
        return decode<format_q8_0>(p, row0, n_rows, col0, n_cols, to, stream);
    case WINA_CUDA_Q4_0:
        return decode<format_q4_0>(p, row0, n_rows, col0, n_cols, to, stream);
    case WINA_CUDA_Q4_1:
        return decode<format_q4_1>(p, row0, n_rows, col0, n_cols, to, stream);
    case WINA_CUDA_Q5_0:
        return decode<format_q5_0>(p, row0, n_rows, col0, n_cols, to, stream);
    case WINA_CUDA_Q5_1:
        return decode<format_q5_1>(p, row0, n_rows, col0, n_cols, to, stream);
    case WINA_CUDA_Q4_K:
        return decode<format_q4_k>(p, row0, n_rows, col0, n_cols, to, stream);
    case WINA_CUDA_Q5_K:
        return decode<format_q5_k>(p, row0, n_rows, col0, n_cols, to, stream);
    default:
        return decode<format_q6_k>(p, row0, n_rows, col0, n_cols, to, stream);
    }
}

extern "C" cudaError_t wina_cuda_matmul_launch(const uint16_t *a, int64_t lda, const uint16_t *w,
                                               int64_t ldw, float *y, int64_t ldy, int32_t m,
                                               int32_t n, int32_t k, bool add,
                                               cudaStream_t stream) {
    const dim3 grid((n + MATMUL_N - 1) / MATMUL_N, (m + MATMUL_M - 1) / MATMUL_M);
    WINA_CUDA_LAUNCH(matmul_kernel, grid, MATMUL_THREADS, 0, stream,
                     reinterpret_cast<const __half *>(a), lda, reinterpret_cast<const __half *>(w),
                     ldw, y, ldy, m, n, k, add);
    return cudaGetLastError();
}

static dim3 elements(int n, int n_tokens) {
    return dim3((n + 255) / 256, n_tokens);
}

extern "C" cudaError_t wina_cuda_batch_add(float *x, int64_t x_stride, const float *y,
                                           int64_t y_stride, const float *scale, int32_t n,
                                           int32_t n_tokens, cudaStream_t stream) {
    WINA_CUDA_LAUNCH(add_kernel, elements(n, n_tokens), 256, 0, stream, x, x_stride, y, y_stride,
                     scale, n);
    return cudaGetLastError();
}

extern "C" cudaError_t wina_cuda_batch_scale(float *out, int64_t out_stride, const float *y,
                                             int64_t y_stride, const float *scale,
                                             const float *bias, int32_t n, int32_t n_tokens,
                                             cudaStream_t stream) {
    WINA_CUDA_LAUNCH(scale_kernel, elements(n, n_tokens), 256, 0, stream, out, out_stride, y,
                     y_stride, scale, bias, n);
    return cudaGetLastError();
}

extern "C" cudaError_t wina_cuda_batch_gate(float *out, int64_t out_stride, const float *y,
                                            int64_t y_stride, const float *scale, int32_t up_row0,
                                            int32_t n, int32_t gelu, int32_t n_tokens,
                                            cudaStream_t stream) {
    WINA_CUDA_LAUNCH(gate_kernel, elements(n, n_tokens), 256, 0, stream, out, out_stride, y,
                     y_stride, scale, up_row0, gelu != 0, n);
    return cudaGetLastError();
}

extern "C" cudaError_t wina_cuda_batch_leave(float *x, int64_t x_stride, const float *y,
                                             int64_t y_stride, const float *scale,
                                             const float *gain, float eps, float factor, int32_t n,
                                             int32_t n_tokens, cudaStream_t stream) {
    WINA_CUDA_LAUNCH(leave_kernel, n_tokens, NORM_THREADS, 0, stream, x, x_stride, y, y_stride,
                     scale, gain, eps, factor, n);
    return cudaGetLastError();
}

extern "C" cudaError_t wina_cuda_batch_cap(float *y, int64_t stride, float scale, float cap,
                                           int32_t n, int32_t n_tokens, cudaStream_t stream) {
    WINA_CUDA_LAUNCH(cap_kernel, elements(n, n_tokens), 256, 0, stream, y, stride, scale, cap, n);
    return cudaGetLastError();
}

template <int LANES>
static cudaError_t attend(const wina_cuda_attend *a, int pos, cudaStream_t stream) {
    const int ratio = a->n_head / a->n_head_kv;
    const dim3 grid(a->n_head_kv * ((ratio + ATTEND_HEADS - 1) / ATTEND_HEADS), a->n_tokens);
    const size_t bytes = sizeof(attend_shared<LANES>);
    const attend_function kernel =
        attend_kernel_of(LANES, !a->is_q8[0] && !a->is_q8[1], shares_rows(*a));
    WINA_CUDA_LAUNCH(kernel, grid, ATTEND_THREADS, bytes, stream, *a, pos);
    return cudaGetLastError();
}

extern "C" cudaError_t wina_cuda_batch_attend(const wina_cuda_attend *a, int32_t pos,
                                              cudaStream_t stream) {
    if (a->q_norm)
        WINA_CUDA_LAUNCH(qk_norm_kernel,
                         dim3(a->norm_all ? 2 : a->n_head + a->n_head_kv, a->n_tokens),
                         NORM_THREADS, 0, stream, *a);
    WINA_CUDA_LAUNCH(rope_kernel, dim3(a->n_head + a->n_head_kv, a->n_tokens), WINA_CUDA_MAX_HEAD,
                     0, stream, *a, pos);
    const cudaError_t e = cudaGetLastError();
    if (e != cudaSuccess)
        return e;
    return a->head_pad > 128  ? attend<32>(a, pos, stream)
           : a->head_pad > 64 ? attend<16>(a, pos, stream)
                              : attend<8>(a, pos, stream);
}
