/* gemm_dotprod: several tokens at once by byte dot products. A block of a strip is interleaved once
 * into a buffer that stays in the first-level cache, then the tokens multiply it, four at a time,
 * eight rows at a time. The sums of a row are formed in the order that gemv uses. */
#include "dotprod.h"

enum {
    QUADS = WINA_BLOCK / 4,
    TOKENS = 4, /* that share a load of the weights */
    VECTORS = 2 /* of four rows */
};

/* One block of one strip. */
typedef struct strip_block {
    uint8x16_t q[QUADS][STRIP_VECTORS]; /* byte 4 r + i of vector v: input i of row 4 v + r */
    row_scales scales;
} strip_block;

WINA_INLINE void load_block(const wina_panel *p, wina_plane plane, wina_scales kind, int32_t block,
                            int32_t strip, strip_block *out) {
    const uint8_t *base = wina_panel_block(p, block);
    const block_scales scales = find_scales(p, block);
    for (int g = 0; g < QUADS; g++) {
        const uint8_t *col[4];
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++)
            col[i] = base + (uint64_t)(4 * g + i) * p->col_bytes;
#pragma GCC unroll 2
        for (int h = 0; h < 2; h++) {
            const quad q = load_quad(p, col, strip, h, plane, false);
#pragma GCC unroll 4
            for (int k = 0; k < 4; k++) {
                out->q[g][4 * h + k] = q.low.val[k];
                out->q[g][8 + 4 * h + k] = q.high.val[k];
            }
        }
    }
    load_row_scales(&scales, kind, strip, &out->scales);
}

/* The numbers of up to four tokens for one sub-block. */
typedef struct token_block {
    const int8_t *hi[TOKENS], *lo[TOKENS]; /* (32) of the block */
    float scale[TOKENS];
    int32_t sum[TOKENS], start[TOKENS];
} token_block;

typedef struct token_sums {
    int32x4_t hi[TOKENS][VECTORS], lo[TOKENS][VECTORS];
} token_sums;

/* Four inputs, which are 32-bit lane `lane` of xh and xl. */
WINA_INLINE void add_lane(token_sums *s, const uint8x16_t *q, const int8x16_t *xh,
                          const int8x16_t *xl, const int lane, int n) {
#pragma GCC unroll 2
    for (int v = 0; v < VECTORS; v++) {
        const int8x16_t w = vreinterpretq_s8_u8(q[v]);
#pragma GCC unroll 4
        for (int t = 0; t < n; t++) {
            s->hi[t][v] = vdotq_laneq_s32(s->hi[t][v], w, xh[t], lane);
            s->lo[t][v] = vdotq_laneq_s32(s->lo[t][v], w, xl[t], lane);
        }
    }
}

/* n tokens times one sub-block of a strip; n is a constant. */
WINA_INLINE void multiply_sub(const strip_block *w, const token_block *a, wina_scales kind, int sub,
                              int n, float *y, int64_t y_stride) {
    const int width = 32 / wina_scales_subs(kind);
    for (int r = 0; r < STRIP_VECTORS; r += VECTORS) {
        token_sums s;
#pragma GCC unroll 4
        for (int t = 0; t < n; t++)
#pragma GCC unroll 2
            for (int v = 0; v < VECTORS; v++) {
                s.hi[t][v] = vdupq_n_s32(0);
                s.lo[t][v] = vdupq_n_s32(a->start[t]);
            }
#pragma GCC unroll 2
        for (int c = sub * width; c < (sub + 1) * width; c += 16) {
            int8x16_t xh[TOKENS], xl[TOKENS];
#pragma GCC unroll 4
            for (int t = 0; t < n; t++) {
                xh[t] = vld1q_s8(a->hi[t] + c);
                xl[t] = vld1q_s8(a->lo[t] + c);
            }
            add_lane(&s, &w->q[c / 4][r], xh, xl, 0, n);
            add_lane(&s, &w->q[c / 4 + 1][r], xh, xl, 1, n);
            add_lane(&s, &w->q[c / 4 + 2][r], xh, xl, 2, n);
            add_lane(&s, &w->q[c / 4 + 3][r], xh, xl, 3, n);
        }
#pragma GCC unroll 4
        for (int t = 0; t < n; t++)
#pragma GCC unroll 2
            for (int v = 0; v < VECTORS; v++) {
                float *out = y + t * y_stride + 4 * (r + v);
                const int32x4_t dot = vaddq_s32(vshlq_n_s32(s.hi[t][v], 8), s.lo[t][v]);
                vst1q_f32(out, add_dots(vld1q_f32(out), kind, w->scales.d[sub][r + v],
                                        w->scales.m[sub][r + v], dot, a->scale[t], a->sum[t]));
            }
    }
}

WINA_INLINE void multiply_tokens(const wina_panel *p, const wina_batch *b, const strip_block *w,
                                 wina_plane plane, wina_scales kind, int32_t block, int32_t token,
                                 int n, float *y, int64_t y_stride) {
    const int n_sub = wina_scales_subs(kind), which = n_sub - 1;
    token_block a;
    for (int sub = 0; sub < n_sub; sub++) {
#pragma GCC unroll 4
        for (int t = 0; t < n; t++) {
            const int64_t x = wina_batch_at(b, block, token + t);
            const int64_t at = wina_batch_sub(b, block * n_sub + sub, token + t);
            a.hi[t] = b->hi[which] + x;
            a.lo[t] = b->lo[which] + x;
            a.scale[t] = b->scale[which][at];
            a.sum[t] = b->sum[which][at];
            a.start[t] = start_of(p->layout, plane, a.sum[t]);
        }
        multiply_sub(w, &a, kind, sub, n, y + token * y_stride, y_stride);
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
            multiply_tokens(p, b, &w, plane, kind, block, t, TOKENS, y, y_stride);
        for (; t < b->n_tokens; t++)
            multiply_tokens(p, b, &w, plane, kind, block, t, 1, y, y_stride);
    }
}

WINA_KINDS(DEFINE_GEMM)
static const neon_gemm_table GEMM = {WINA_KINDS(LIST_GEMM)};

void wina_gemm_dotprod(const wina_panel *p, const wina_batch *b, int32_t block0, int32_t block1,
                       int32_t strip0, int32_t strip1, float *y) {
    wina_gemm_strips_neon(GEMM, p, b, block0, block1, strip0, strip1, y);
}
