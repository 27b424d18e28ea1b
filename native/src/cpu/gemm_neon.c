/* gemm_neon: several tokens at once. A block of a strip is unpacked once into a buffer that stays
 * in the first-level cache, then the tokens multiply it, four at a time, sixteen rows at a time: as
 * many sums as the register file holds. The sums of a row are formed in the order that gemv uses.
 */
#include "neon.h"

enum {
    TOKENS = 4, /* that share a load of the weights */
    ROWS = 16
};

/* ---- quantised types ---------------------------------------------------------------------- */

/* One block of one strip. */
typedef struct strip_block {
    int16_t w[WINA_BLOCK][WINA_STRIP];
    row_scales scales;
} strip_block;

WINA_INLINE void store_widened(int16_t *out, uint8x16_t v) {
    vst1q_s16(out, vreinterpretq_s16_u16(vmovl_u8(vget_low_u8(v))));
    vst1q_s16(out + 8, vreinterpretq_s16_u16(vmovl_high_u8(v)));
}

WINA_INLINE void load_block(const wina_panel *p, wina_plane plane, wina_scales kind, int32_t block,
                            int32_t strip, strip_block *out) {
    const uint8_t *col = wina_panel_block(p, block);
    const block_scales scales = find_scales(p, block);
    for (int c = 0; c < WINA_BLOCK; c++, col += p->col_bytes)
#pragma GCC unroll 2
        for (int h = 0; h < 2; h++) {
            const uint8x16x2_t v = load_half(p, col, strip, h, plane);
            store_widened(out->w[c] + 16 * h, v.val[0]);
            store_widened(out->w[c] + 16 * h + 32, v.val[1]);
        }
    load_row_scales(&scales, kind, strip, &out->scales);
}

typedef struct token_rows {
    int32x4_t v[TOKENS][ROWS / 4];
} token_rows;

/* Input number `lane` of x for each token, times sixteen rows. */
WINA_INLINE void add_lane(token_rows *acc, const int16_t *w, const int16x4_t *x, const int lane,
                          int n) {
    const int16x8_t w0 = vld1q_s16(w), w1 = vld1q_s16(w + 8);
#pragma GCC unroll 4
    for (int t = 0; t < n; t++) {
        acc->v[t][0] = vmlal_lane_s16(acc->v[t][0], vget_low_s16(w0), x[t], lane);
        acc->v[t][1] = vmlal_high_lane_s16(acc->v[t][1], w0, x[t], lane);
        acc->v[t][2] = vmlal_lane_s16(acc->v[t][2], vget_low_s16(w1), x[t], lane);
        acc->v[t][3] = vmlal_high_lane_s16(acc->v[t][3], w1, x[t], lane);
    }
}

/* The numbers of n tokens for one sub-block. */
typedef struct token_block {
    const int16_t *x[TOKENS]; /* (32) of the block */
    float scale[TOKENS];
    int32_t sum[TOKENS];
} token_block;

/* n tokens times one sub-block of a strip; n is a constant. */
WINA_INLINE void multiply_sub(const strip_block *w, const token_block *a, wina_scales kind,
                              int32_t offset, int sub, int n, float *y, int64_t y_stride) {
    const int width = 32 / wina_scales_subs(kind);
    for (int r = 0; r < WINA_STRIP; r += ROWS) {
        token_rows acc;
#pragma GCC unroll 4
        for (int t = 0; t < n; t++)
#pragma GCC unroll 4
            for (int v = 0; v < ROWS / 4; v++)
                acc.v[t][v] = vdupq_n_s32(-offset * a->sum[t]);
        for (int c = sub * width; c < (sub + 1) * width; c += 4) {
            int16x4_t x[TOKENS];
#pragma GCC unroll 4
            for (int t = 0; t < n; t++)
                x[t] = vld1_s16(a->x[t] + c);
            add_lane(&acc, w->w[c] + r, x, 0, n);
            add_lane(&acc, w->w[c + 1] + r, x, 1, n);
            add_lane(&acc, w->w[c + 2] + r, x, 2, n);
            add_lane(&acc, w->w[c + 3] + r, x, 3, n);
        }
#pragma GCC unroll 4
        for (int t = 0; t < n; t++)
#pragma GCC unroll 4
            for (int v = 0; v < ROWS / 4; v++) {
                float *out = y + t * y_stride + r + 4 * v;
                vst1q_f32(out, add_dots(vld1q_f32(out), kind, w->scales.d[sub][r / 4 + v],
                                        w->scales.m[sub][r / 4 + v], acc.v[t][v], a->scale[t],
                                        a->sum[t]));
            }
    }
}

WINA_INLINE void multiply_tokens(const wina_panel *p, const wina_batch *b, const strip_block *w,
                                 wina_scales kind, int32_t block, int32_t token, int n, float *y,
                                 int64_t y_stride) {
    const int n_sub = wina_scales_subs(kind), which = n_sub - 1;
    token_block a;
#pragma GCC unroll 4
    for (int t = 0; t < n; t++)
        a.x[t] = b->x16[which] + wina_batch_at(b, block, token + t);
    for (int sub = 0; sub < n_sub; sub++) {
#pragma GCC unroll 4
        for (int t = 0; t < n; t++) {
            const int64_t at = wina_batch_sub(b, block * n_sub + sub, token + t);
            a.scale[t] = b->scale[which][at];
            a.sum[t] = b->sum[which][at];
        }
        multiply_sub(w, &a, kind, p->layout->offset, sub, n, y + token * y_stride, y_stride);
    }
}

WINA_INLINE void gemm_kind(const wina_panel *p, const wina_batch *b, wina_plane plane,
                           wina_scales kind, int32_t block0, int32_t block1, int32_t strip,
                           float *y, int64_t y_stride) {
    strip_block w;
    for (int32_t block = block0; block < block1; block++) {
        load_block(p, plane, kind, block, strip, &w);
        int32_t t = 0;
        for (; t + TOKENS <= b->n_tokens; t += TOKENS)
            multiply_tokens(p, b, &w, kind, block, t, TOKENS, y, y_stride);
        for (; t < b->n_tokens; t++)
            multiply_tokens(p, b, &w, kind, block, t, 1, y, y_stride);
    }
}

WINA_KINDS(DEFINE_GEMM)
static const neon_gemm_table GEMM = {WINA_KINDS(LIST_GEMM)};

/* ---- floats ------------------------------------------------------------------------------- */

typedef struct float_rows {
    float32x4_t v[TOKENS][ROWS / 4];
} float_rows;

/* Sixteen rows of one column times lane `lane` of x of each token. */
WINA_INLINE void add_column(float_rows *acc, const float *w, const float32x4_t *x, const int lane,
                            int n) {
#pragma GCC unroll 4
    for (int v = 0; v < ROWS / 4; v++) {
        const float32x4_t rows = vld1q_f32(w + 4 * v);
#pragma GCC unroll 4
        for (int t = 0; t < n; t++)
            acc->v[t][v] = vfmaq_laneq_f32(acc->v[t][v], rows, x[t], lane);
    }
}

/* n tokens times n_cols columns of a strip; n is a constant. */
WINA_INLINE void add_floats(const float (*w)[WINA_STRIP], int n_cols, const float *x,
                            int64_t x_stride, int n, float *y, int64_t y_stride) {
    for (int r = 0; r < WINA_STRIP; r += ROWS) {
        float_rows acc;
        float32x4_t four[TOKENS];
        int c = 0;
#pragma GCC unroll 4
        for (int t = 0; t < n; t++)
#pragma GCC unroll 4
            for (int v = 0; v < ROWS / 4; v++)
                acc.v[t][v] = vld1q_f32(y + t * y_stride + r + 4 * v);
        for (; c + 4 <= n_cols; c += 4) {
#pragma GCC unroll 4
            for (int t = 0; t < n; t++)
                four[t] = vld1q_f32(x + t * x_stride + c);
            add_column(&acc, w[c] + r, four, 0, n);
            add_column(&acc, w[c + 1] + r, four, 1, n);
            add_column(&acc, w[c + 2] + r, four, 2, n);
            add_column(&acc, w[c + 3] + r, four, 3, n);
        }
        for (; c < n_cols; c++) {
#pragma GCC unroll 4
            for (int t = 0; t < n; t++)
                four[t] = vdupq_n_f32(x[t * x_stride + c]);
            add_column(&acc, w[c] + r, four, 0, n);
        }
#pragma GCC unroll 4
        for (int t = 0; t < n; t++)
#pragma GCC unroll 4
            for (int v = 0; v < ROWS / 4; v++)
                vst1q_f32(y + t * y_stride + r + 4 * v, acc.v[t][v]);
    }
}

WINA_INLINE void gemm_floats_kind(const wina_panel *p, const wina_batch *b, wina_scales kind,
                                  int32_t block0, int32_t block1, int32_t strip, float *y,
                                  int64_t y_stride) {
    const int64_t size = kind == WINA_SCALES_F32 ? 4 : 2;
    float w[WINA_BLOCK][WINA_STRIP];
    for (int32_t block = block0; block < block1; block++) {
        const int32_t left = p->n_cols - block * WINA_BLOCK;
        const int32_t n = left < WINA_BLOCK ? left : WINA_BLOCK;
        const uint8_t *col = wina_panel_block(p, block) + (int64_t)strip * WINA_STRIP * size;
        for (int32_t c = 0; c < n; c++, col += p->col_bytes)
#pragma GCC unroll 8
            for (int r = 0; r < WINA_STRIP; r += 8) {
                const float32x4x2_t v = load_floats(col + r * size, kind);
                vst1q_f32(w[c] + r, v.val[0]);
                vst1q_f32(w[c] + r + 4, v.val[1]);
            }
        const float *x = b->x + wina_batch_at(b, block, 0);
        int32_t t = 0;
        for (; t + TOKENS <= b->n_tokens; t += TOKENS)
            add_floats(w, n, x + t * WINA_BLOCK, WINA_BLOCK, TOKENS, y + t * y_stride, y_stride);
        for (; t < b->n_tokens; t++)
            add_floats(w, n, x + t * WINA_BLOCK, WINA_BLOCK, 1, y + t * y_stride, y_stride);
    }
}

static void gemm_floats(const wina_panel *p, const wina_batch *b, int32_t block0, int32_t block1,
                        int32_t strip, float *y, int64_t y_stride) {
    if (p->layout->scales == WINA_SCALES_F32)
        gemm_floats_kind(p, b, WINA_SCALES_F32, block0, block1, strip, y, y_stride);
    else if (p->layout->scales == WINA_SCALES_F16)
        gemm_floats_kind(p, b, WINA_SCALES_F16, block0, block1, strip, y, y_stride);
    else
        gemm_floats_kind(p, b, WINA_SCALES_BF16, block0, block1, strip, y, y_stride);
}

/* ---- strips ------------------------------------------------------------------------------- */

void wina_gemm_strips_neon(const neon_gemm_table table, const wina_panel *p, const wina_batch *b,
                           int32_t block0, int32_t block1, int32_t strip0, int32_t strip1,
                           float *y) {
    const wina_layout *l = p->layout;
    wina_gemm_each_strip(l->low_bits >= 16 ? gemm_floats : table[l->plane][l->scales], p, b, block0,
                         block1, strip0, strip1, y);
}

void wina_gemm_neon(const wina_panel *p, const wina_batch *b, int32_t block0, int32_t block1,
                    int32_t strip0, int32_t strip1, float *y) {
    wina_gemm_strips_neon(GEMM, p, b, block0, block1, strip0, strip1, y);
}
