/* embedding: single values of tensors of every type, equal to the scalar decoders' (dequant.c,
 * wina_panel_decode_row) bit for bit: products are rounded before anything is added. For token
 * embeddings, of which a token reads one row, and for panels that become float16 when they are
 * uploaded; projections have kernels of their own (formats.cuh). */
#ifndef WINA_CUDA_EMBEDDING_CUH
#define WINA_CUDA_EMBEDDING_CUH

#include "../dequant.h"
#include "../pack.h"
#include "common.cuh"

static __device__ __forceinline__ float half_of(uint32_t bits) {
    return __half2float(__ushort_as_half((unsigned short)bits));
}
/* Blocks of the file have any address. */
static __device__ __forceinline__ float half_at(const uint8_t *p) {
    return half_of(p[0] | p[1] << 8);
}
static __device__ __forceinline__ float e8m0_of(uint32_t e) {
    return __uint_as_float(e < 2 ? 0x00200000u << e : (e - 1) << 23);
}
/* d q - m */
static __device__ __forceinline__ float scaled_less(float d, int q, float m) {
    return __fsub_rn(__fmul_rn(d, (float)q), m);
}

/* ---- panels ------------------------------------------------------------------------------- */

static __device__ __forceinline__ const uint8_t *panel_super(const wina_cuda_panel &p, int col) {
    return p.data + (uint64_t)(col >> 8) * p.super_bytes;
}
static __device__ __forceinline__ const uint8_t *panel_block(const wina_cuda_panel &p, int col) {
    return panel_super(p, col) + p.super_head + (uint64_t)(col >> 5 & 7) * p.block_bytes;
}

/* The integer that a row's value is stored as; col: of the panel's column. */
static __device__ __forceinline__ int
stored_value(const wina_cuda_panel &p, const wina_cuda_values &l, const uint8_t *col, int row) {
    const int strip = row / 64, r = row % 64, pairs = strip * 16 + r % 16, shift = r / 16 * 2;
    if (l.low_bits == 8)
        return col[row];
    int v = l.low_bits == 2 ? col[pairs] >> shift & 3 : col[strip * 32 + r % 32] >> r / 32 * 4 & 15;
    const uint8_t *high = col + (uint64_t)p.n_rows * l.low_bits / 8;
    if (l.high_bits == 1)
        v |= (high[strip * 8 + r / 8] >> r % 8 & 1) << l.low_bits;
    else if (l.high_bits == 2)
        v |= (high[pairs] >> shift & 3) << l.low_bits;
    return l.has_table ? l.table[v] : v;
}

static __device__ inline float panel_value(const wina_cuda_panel &p, const wina_cuda_values &l,
                                           int row, int col) {
    const uint8_t *super = panel_super(p, col), *block = panel_block(p, col);
    const uint8_t *column = block + (col & 31) * p.col_bytes, *scales = block + 32 * p.col_bytes;
    if (l.scales == WINA_SCALES_F32)
        return reinterpret_cast<const float *>(column)[row];
    if (l.scales == WINA_SCALES_F16 || l.scales == WINA_SCALES_BF16) {
        const uint32_t bits = reinterpret_cast<const uint16_t *>(column)[row];
        return l.scales == WINA_SCALES_F16 ? half_of(bits) : __uint_as_float(bits << 16);
    }
    const int q = stored_value(p, l, column, row) - l.offset;
    const int r = row & 63, n = p.n_rows; /* scales stand in another order */
    const int at = (row & ~63) | (r & 3) | (r >> 2 & 12) | (r << 2 & 48);
    const bool second = l.sub == 16 && (col & 16);
    const int sub = scales[at + (second ? n : 0)];
    switch (l.scales) {
    case WINA_SCALES_D:
        return __fmul_rn(half_at(scales + 2 * at), (float)q);
    case WINA_SCALES_DM:
        return __fadd_rn(__fmul_rn(half_at(scales + 2 * at), (float)q),
                         half_at(scales + 2 * (n + at)));
    case WINA_SCALES_K_DM:
        return scaled_less(__fmul_rn(half_at(super + 2 * at), (float)scales[at]), q,
                           __fmul_rn(half_at(super + 2 * (n + at)), (float)scales[n + at]));
    case WINA_SCALES_K_DM16:
        return scaled_less(__fmul_rn(half_at(super + 2 * at), (float)(sub & 15)), q,
                           __fmul_rn(half_at(super + 2 * (n + at)), (float)(sub >> 4)));
    case WINA_SCALES_E8:
        return __fmul_rn(e8m0_of((uint32_t)sub), (float)q);
    default: /* K_D16, K_D32 */
        return __fmul_rn(__fmul_rn(half_at(super + 2 * at), (float)(int8_t)sub), (float)q);
    }
}

/* ---- rows of the file --------------------------------------------------------------------- */

static __device__ const int8_t EMBEDDING_IQ4[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                                    1,    13,   25,  38,  53,  69,  89,  113};
static __device__ const int8_t EMBEDDING_MXFP4[16] = {0, 1,  2,  3,  4,  6,  8,  12,
                                                      0, -1, -2, -3, -4, -6, -8, -12};

template <class B> static __device__ __forceinline__ const B &block_of(const uint8_t *row, int i) {
    return reinterpret_cast<const B *>(row)[i];
}
/* Value j of a block of 32: j and j + 16 share a byte. */
static __device__ __forceinline__ int nibble(const uint8_t *qs, int j) {
    return qs[j & 15] >> (j & 16) / 4 & 15;
}
static __device__ __forceinline__ int bit_of(const uint8_t *bits, int j) {
    return bits[j / 8] >> j % 8 & 1;
}
/* Runs of 32 in a super-block: two share 32 bytes as nibbles, four as pairs of bits. */
static __device__ __forceinline__ int run_nibble(const uint8_t *qs, int run, int j) {
    return qs[run / 2 * 32 + j] >> run % 2 * 4 & 15;
}
static __device__ __forceinline__ int run_pair(const uint8_t *qs, int run, int j) {
    return qs[run / 4 * 32 + j] >> run % 4 * 2 & 3;
}

/* Six-bit scale and min of a run of a Q4_K or Q5_K block. */
static __device__ __forceinline__ void k_scale(const uint8_t *s, int run, int *scale, int *min) {
    *scale = run < 4 ? s[run] & 63 : (s[run + 4] & 15) | s[run - 4] >> 6 << 4;
    *min = run < 4 ? s[run + 4] & 63 : s[run + 4] >> 4 | s[run] >> 6 << 4;
}

template <class B> static __device__ __forceinline__ float k_value(const B &b, int run, int q) {
    int scale, min;
    k_scale(b.scales, run, &scale, &min);
    return scaled_less(__fmul_rn(half_at(b.d), (float)scale), q,
                       __fmul_rn(half_at(b.dmin), (float)min));
}

static __device__ __forceinline__ int digit_of(int byte, int i) {
    const int power = i == 0 ? 1 : i == 1 ? 3 : i == 2 ? 9 : i == 3 ? 27 : 81;
    return (byte * power & 255) * 3 >> 8;
}

/* Types with super-blocks of 256; n is the value's place in its own. */
static __device__ inline float super_value(uint32_t type, const uint8_t *row, int super, int n) {
    const int run = n / 32, j = n % 32, part = n / 16;
    switch (type) {
    case WINA_DTYPE_Q2_K: {
        const wina_block_q2_k &b = block_of<wina_block_q2_k>(row, super);
        return scaled_less(__fmul_rn(half_at(b.d), (float)(b.scales[part] & 15)),
                           run_pair(b.qs, run, j),
                           __fmul_rn(half_at(b.dmin), (float)(b.scales[part] >> 4)));
    }
    case WINA_DTYPE_Q3_K: {
        const wina_block_q3_k &b = block_of<wina_block_q3_k>(row, super);
        const int scale = (b.scales[part % 8] >> part / 8 * 4 & 15) |
                          (b.scales[8 + part % 4] >> part / 4 * 2 & 3) << 4;
        const int q = run_pair(b.qs, run, j) | (b.hmask[j] >> run & 1) << 2;
        return __fmul_rn(__fmul_rn(half_at(b.d), (float)(scale - 32)), (float)(q - 4));
    }
    case WINA_DTYPE_Q4_K: {
        const wina_block_q4_k &b = block_of<wina_block_q4_k>(row, super);
        return k_value(b, run, run_nibble(b.qs, run, j));
    }
    case WINA_DTYPE_Q5_K: {
        const wina_block_q5_k &b = block_of<wina_block_q5_k>(row, super);
        return k_value(b, run, run_nibble(b.qs, run, j) | (b.qh[j] >> run & 1) << 4);
    }
    case WINA_DTYPE_Q6_K: {
        const wina_block_q6_k &b = block_of<wina_block_q6_k>(row, super);
        const int low = b.ql[run / 4 * 64 + run % 2 * 32 + j] >> run % 4 / 2 * 4 & 15;
        const int q = low | (b.qh[run / 4 * 32 + j] >> run % 4 * 2 & 3) << 4;
        return __fmul_rn(__fmul_rn(half_at(b.d), (float)(int8_t)b.scales[part]), (float)(q - 32));
    }
    case WINA_DTYPE_IQ4_XS: {
        const wina_block_iq4_xs &b = block_of<wina_block_iq4_xs>(row, super);
        const int scale = (b.scales_l[run / 2] >> run % 2 * 4 & 15) |
                          (b.scales_h[run / 4] >> run % 4 * 2 & 3) << 4;
        return __fmul_rn(__fmul_rn(half_at(b.d), (float)(scale - 32)),
                         (float)EMBEDDING_IQ4[nibble(b.qs + 16 * run, j)]);
    }
    case WINA_DTYPE_TQ1_0: {
        const wina_block_tq1_0 &b = block_of<wina_block_tq1_0>(row, super);
        const int q = n < 160   ? digit_of(b.qs[n % 32], n / 32)
                      : n < 240 ? digit_of(b.qs[32 + n % 16], (n - 160) / 16)
                                : digit_of(b.qh[n % 4], (n - 240) / 4);
        return __fmul_rn(half_at(b.d), (float)(q - 1));
    }
    default: {
        const wina_block_tq2_0 &b = block_of<wina_block_tq2_0>(row, super);
        return __fmul_rn(half_at(b.d), (float)(run_pair(b.qs, run, j) - 1));
    }
    }
}

/* Value i of a row. */
static __device__ inline float row_value(uint32_t type, const uint8_t *row, int i) {
    const int n = i / 32, j = i % 32;
    switch (type) {
    case WINA_DTYPE_F32:
        return reinterpret_cast<const float *>(row)[i];
    case WINA_DTYPE_F16:
        return half_of(reinterpret_cast<const uint16_t *>(row)[i]);
    case WINA_DTYPE_BF16:
        return __uint_as_float((uint32_t) reinterpret_cast<const uint16_t *>(row)[i] << 16);
    case WINA_DTYPE_Q8_0: {
        const wina_block_q8_0 &b = block_of<wina_block_q8_0>(row, n);
        return __fmul_rn(half_at(b.d), (float)(int8_t)b.qs[j]);
    }
    case WINA_DTYPE_Q4_0: {
        const wina_block_q4_0 &b = block_of<wina_block_q4_0>(row, n);
        return __fmul_rn(half_at(b.d), (float)(nibble(b.qs, j) - 8));
    }
    case WINA_DTYPE_Q4_1: {
        const wina_block_q4_1 &b = block_of<wina_block_q4_1>(row, n);
        return __fadd_rn(__fmul_rn(half_at(b.d), (float)nibble(b.qs, j)), half_at(b.m));
    }
    case WINA_DTYPE_Q5_0: {
        const wina_block_q5_0 &b = block_of<wina_block_q5_0>(row, n);
        return __fmul_rn(half_at(b.d), (float)((nibble(b.qs, j) | bit_of(b.qh, j) << 4) - 16));
    }
    case WINA_DTYPE_Q5_1: {
        const wina_block_q5_1 &b = block_of<wina_block_q5_1>(row, n);
        return __fadd_rn(__fmul_rn(half_at(b.d), (float)(nibble(b.qs, j) | bit_of(b.qh, j) << 4)),
                         half_at(b.m));
    }
    case WINA_DTYPE_IQ4_NL: {
        const wina_block_iq4_nl &b = block_of<wina_block_iq4_nl>(row, n);
        return __fmul_rn(half_at(b.d), (float)EMBEDDING_IQ4[nibble(b.qs, j)]);
    }
    case WINA_DTYPE_MXFP4: {
        const wina_block_mxfp4 &b = block_of<wina_block_mxfp4>(row, n);
        return __fmul_rn(e8m0_of(b.e), (float)EMBEDDING_MXFP4[nibble(b.qs, j)]);
    }
    default:
        return super_value(type, row, i / 256, i % 256);
    }
}

/* Value i of a token's embedding. */
static __device__ inline float embedding(const wina_cuda_table &t, int token, int i) {
    const float v = t.rows ? row_value(t.type, t.rows + (uint64_t)token * t.row_bytes, i)
                           : panel_value(t.panel, t.values, token, i);
    return __fmul_rn(v, t.scale);
}

#endif
