/* gemm_i8mm: several tokens at once by byte matrix products: two rows by two tokens over eight
 * inputs an instruction. A block of a strip is interleaved once into a buffer that stays in the
 * first-level cache, then the tokens multiply it, two at a time, sixteen rows at a time; a block of
 * two tokens stays in registers. The sums of a row are formed in the order that gemv uses. */
#include "neon.h"

enum {
    OCTETS = WINA_BLOCK / 8,
    PAIRS = WINA_STRIP / 2, /* of rows */
    TILE = 8                /* pairs of rows multiplied at once */
};

/* One block of one strip: eight inputs of row 2 v, then of row 2 v + 1. */
typedef struct strip_block {
    uint8x16_t w[OCTETS][PAIRS];
    row_scales scales;
} strip_block;

WINA_INLINE uint16x8x2_t zip_bytes(uint8x16_t a, uint8x16_t b) {
    return (uint16x8x2_t){
        {vreinterpretq_u16_u8(vzip1q_u8(a, b)), vreinterpretq_u16_u8(vzip2q_u8(a, b))}};
}

/* Sixteen rows of eight inputs v[0 .. 8) to eight pairs of rows. */
WINA_INLINE void interleave_octet(const uint8x16_t *v, uint8x16_t *out) {
    const uint16x8x2_t ab = zip_bytes(v[0], v[1]), cd = zip_bytes(v[2], v[3]);
    const uint16x8x2_t ef = zip_bytes(v[4], v[5]), gh = zip_bytes(v[6], v[7]);
#pragma GCC unroll 2
    for (int i = 0; i < 2; i++) {
        const uint32x4_t first0 = vreinterpretq_u32_u16(vzip1q_u16(ab.val[i], cd.val[i]));
        const uint32x4_t first1 = vreinterpretq_u32_u16(vzip2q_u16(ab.val[i], cd.val[i]));
        const uint32x4_t last0 = vreinterpretq_u32_u16(vzip1q_u16(ef.val[i], gh.val[i]));
        const uint32x4_t last1 = vreinterpretq_u32_u16(vzip2q_u16(ef.val[i], gh.val[i]));
        out[4 * i] = vreinterpretq_u8_u32(vzip1q_u32(first0, last0));
        out[4 * i + 1] = vreinterpretq_u8_u32(vzip2q_u32(first0, last0));
        out[4 * i + 2] = vreinterpretq_u8_u32(vzip1q_u32(first1, last1));
        out[4 * i + 3] = vreinterpretq_u8_u32(vzip2q_u32(first1, last1));
    }
}

WINA_INLINE void load_block(const wina_panel *p, wina_plane plane, wina_scales kind, int32_t block,
                            int32_t strip, strip_block *out) {
    const uint8_t *base = wina_panel_block(p, block);
    const block_scales scales = find_scales(p, block);
    for (int o = 0; o < OCTETS; o++)
#pragma GCC unroll 2
        for (int h = 0; h < 2; h++) {
            uint8x16_t low[8], high[8];
#pragma GCC unroll 8
            for (int i = 0; i < 8; i++) {
                const uint8x16x2_t v =
                    load_half(p, base + (uint64_t)(8 * o + i) * p->col_bytes, strip, h, plane);
                low[i] = v.val[0];
                high[i] = v.val[1];
            }
            interleave_octet(low, &out->w[o][8 * h]);
            interleave_octet(high, &out->w[o][16 + 8 * h]);
        }
    load_row_scales(&scales, kind, strip, &out->scales);
}

/* Two tokens and one sub-block: eight inputs of the first, then of the second token. */
typedef struct token_pair {
    int8x16_t hi[OCTETS], lo[OCTETS];
    int32x4_t start; /* of the sums: the offset taken off, for each token twice */
    float scale[2];
    int32_t sum[2];
    float *y[2];
} token_pair;

WINA_INLINE int8x16_t load_pair(const int8_t *a, const int8_t *b) {
    return vcombine_s8(vld1_s8(a), vld1_s8(b));
}

/* Sub-block `sub` of a block of the tokens t0 and t1. */
WINA_INLINE void load_tokens(const wina_batch *b, const wina_panel *p, int which, int32_t block,
                             int32_t sub, int32_t t0, int32_t t1, token_pair *out) {
    const int64_t x0 = wina_batch_at(b, block, t0) + 16 * sub;
    const int64_t x1 = wina_batch_at(b, block, t1) + 16 * sub;
    const int64_t s0 = wina_batch_sub(b, block * (which + 1) + sub, t0);
    const int64_t s1 = wina_batch_sub(b, block * (which + 1) + sub, t1);
#pragma GCC unroll 4
    for (int o = 0; o < OCTETS / (which + 1); o++) {
        out->hi[o] = load_pair(b->hi[which] + x0 + 8 * o, b->hi[which] + x1 + 8 * o);
        out->lo[o] = load_pair(b->lo[which] + x0 + 8 * o, b->lo[which] + x1 + 8 * o);
    }
    out->scale[0] = b->scale[which][s0];
    out->scale[1] = b->scale[which][s1];
    out->sum[0] = b->sum[which][s0];
    out->sum[1] = b->sum[which][s1];
    const int32x2_t start = {-p->layout->offset * out->sum[0], -p->layout->offset * out->sum[1]};
    out->start = vcombine_s32(start, start);
}

WINA_INLINE void finish_token(const strip_block *w, wina_scales kind, int sub, const token_pair *x,
                              int t, int v, int32x4_t dot) {
    float *out = x->y[t] + 4 * v;
    vst1q_f32(out, add_dots(vld1q_f32(out), kind, w->scales.d[sub][v], w->scales.m[sub][v], dot,
                            x->scale[t], x->sum[t]));
}

/* Two tokens, or only the first of a pair of the same, times one sub-block of a strip. */
WINA_INLINE void multiply_pair(const strip_block *w, wina_scales kind, int sub, const token_pair *x,
                               int n) {
    const int n_octets = OCTETS / wina_scales_subs(kind);
    for (int tile = 0; tile < PAIRS / TILE; tile++) {
        int32x4_t hi[TILE], lo[TILE];
#pragma GCC unroll 8
        for (int v = 0; v < TILE; v++) {
            hi[v] = vdupq_n_s32(0);
            lo[v] = x->start;
        }
#pragma GCC unroll 4
        for (int o = 0; o < n_octets; o++)
#pragma GCC unroll 8
            for (int v = 0; v < TILE; v++) {
                const uint8x16_t rows = w->w[sub * n_octets + o][tile * TILE + v];
                hi[v] = vusmmlaq_s32(hi[v], rows, x->hi[o]);
                lo[v] = vusmmlaq_s32(lo[v], rows, x->lo[o]);
            }
#pragma GCC unroll 4
        for (int v = 0; v < TILE; v += 2) {
            const int32x4_t a = vaddq_s32(vshlq_n_s32(hi[v], 8), lo[v]);
            const int32x4_t b = vaddq_s32(vshlq_n_s32(hi[v + 1], 8), lo[v + 1]);
            finish_token(w, kind, sub, x, 0, tile * TILE / 2 + v / 2, vuzp1q_s32(a, b));
            if (n > 1)
                finish_token(w, kind, sub, x, 1, tile * TILE / 2 + v / 2, vuzp2q_s32(a, b));
        }
    }
}

WINA_INLINE void gemm_kind(const wina_panel *p, const wina_batch *b, wina_plane plane,
                           wina_scales kind, int32_t block0, int32_t block1, int32_t strip,
                           float *y, int64_t y_stride) {
    const int n_sub = wina_scales_subs(kind);
    strip_block w;
    for (int32_t block = block0; block < block1; block++) {
        load_block(p, plane, kind, block, strip, &w);
        for (int32_t t = 0; t < b->n_tokens; t += 2) {
            const int32_t last = t + 1 < b->n_tokens ? t + 1 : t;
            token_pair x = {.y = {y + t * y_stride, y + last * y_stride}};
            for (int sub = 0; sub < n_sub; sub++) {
                load_tokens(b, p, n_sub - 1, block, sub, t, last, &x);
                if (last > t)
                    multiply_pair(&w, kind, sub, &x, 2);
                else
                    multiply_pair(&w, kind, sub, &x, 1);
            }
        }
    }
}

WINA_KINDS(DEFINE_GEMM)
static const neon_gemm_table GEMM = {WINA_KINDS(LIST_GEMM)};

void wina_gemm_i8mm(const wina_panel *p, const wina_batch *b, int32_t block0, int32_t block1,
                    int32_t strip0, int32_t strip1, float *y) {
    wina_gemm_strips_neon(GEMM, p, b, block0, block1, strip0, strip1, y);
}
