/* dotprod: one token by instructions that multiply four bytes of a row by four bytes of the input
 * and add. Compiled by kernels_dotprod.c and kernels_i8mm.c, each with its own flags.
 *
 * Inputs are taken four at a time: two rounds of interleaving put the four bytes of a row side by
 * side. The high and the low bytes of the activations are summed apart. A strip is walked in halves
 * of 32 rows, so that the sums fit into the registers. */
#ifndef WINA_DOTPROD_H
#define WINA_DOTPROD_H

#include "neon.h"

#if defined(__ARM_FEATURE_MATMUL_INT8)
/* Unsigned times signed bytes: values are multiplied as they are stored. */
enum { MIXED_SIGNS = 1 };
WINA_INLINE int32x4_t add_products(int32x4_t acc, uint8x16_t values, int8x16_t x) {
    return vusdotq_s32(acc, values, x);
}
#else
/* Signed bytes: values of eight bits must have their offset of 128 taken off. */
enum { MIXED_SIGNS = 0 };
WINA_INLINE int32x4_t add_products(int32x4_t acc, uint8x16_t values, int8x16_t x) {
    return vdotq_s32(acc, vreinterpretq_s8_u8(values), x);
}
#endif

/* Values of eight bits, stored with 128 added. */
WINA_INLINE bool is_wide(wina_plane plane) {
    return plane == WINA_PLANE_8 || plane == WINA_PLANE_T;
}

/* Byte 4 r + i of vector k: byte 4 k + r of input i. */
WINA_INLINE uint8x16x4_t interleave(uint8x16_t a, uint8x16_t b, uint8x16_t c, uint8x16_t d) {
    const uint16x8_t ab0 = vreinterpretq_u16_u8(vzip1q_u8(a, b));
    const uint16x8_t ab1 = vreinterpretq_u16_u8(vzip2q_u8(a, b));
    const uint16x8_t cd0 = vreinterpretq_u16_u8(vzip1q_u8(c, d));
    const uint16x8_t cd1 = vreinterpretq_u16_u8(vzip2q_u8(c, d));
    return (uint8x16x4_t){
        {vreinterpretq_u8_u16(vzip1q_u16(ab0, cd0)), vreinterpretq_u8_u16(vzip2q_u16(ab0, cd0)),
         vreinterpretq_u8_u16(vzip1q_u16(ab1, cd1)), vreinterpretq_u8_u16(vzip2q_u16(ab1, cd1))}};
}

/* Four inputs of half h of a strip, interleaved. */
typedef struct quad {
    uint8x16x4_t low;  /* rows 16 h + 4 k ... */
    uint8x16x4_t high; /* rows 32 + 16 h + 4 k ... */
} quad;

/* With `packed`, high holds both values of a byte, a + 16 b. */
WINA_INLINE quad load_quad(const wina_panel *p, const uint8_t *const *col, int32_t strip, int h,
                           wina_plane plane, bool packed) {
    quad q;
    if (plane == WINA_PLANE_4) {
        const int64_t at = (int64_t)strip * 32 + 16 * h;
        q.high = interleave(vld1q_u8(col[0] + at), vld1q_u8(col[1] + at), vld1q_u8(col[2] + at),
                            vld1q_u8(col[3] + at));
#pragma GCC unroll 4
        for (int k = 0; k < 4; k++) {
            q.low.val[k] = vandq_u8(q.high.val[k], vdupq_n_u8(15));
            q.high.val[k] = packed ? q.high.val[k] : vshrq_n_u8(q.high.val[k], 4);
        }
        return q;
    }
    uint8x16x2_t v[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        v[i] = load_half(p, col[i], strip, h, plane);
        if (is_wide(plane) && !MIXED_SIGNS) {
            v[i].val[0] = veorq_u8(v[i].val[0], vdupq_n_u8(0x80));
            v[i].val[1] = veorq_u8(v[i].val[1], vdupq_n_u8(0x80));
        }
    }
    q.low = interleave(v[0].val[0], v[1].val[0], v[2].val[0], v[3].val[0]);
    q.high = interleave(v[0].val[1], v[1].val[1], v[2].val[1], v[3].val[1]);
    return q;
}

/* What sums of load_quad's values start from, so that the offset is taken off. */
WINA_INLINE int32_t start_of(const wina_layout *l, wina_plane plane, int32_t sum) {
    return is_wide(plane) && !MIXED_SIGNS ? 0 : -l->offset * sum;
}

/* Half h of a strip times the kept inputs of sub-block s, to its vectors of `dot`. */
WINA_INLINE void multiply_half(const wina_panel *p, const wina_quads *a, int32_t s,
                               const kept_block *kept, wina_plane plane, int32_t strip, int h,
                               int32x4_t *dot) {
    const bool packed = MIXED_SIGNS && plane == WINA_PLANE_4;
    const int32_t start = start_of(p->layout, plane, a->sum[s]);
    const int8_t *xh = a->hi + 4 * a->first[s], *xl = a->lo + 4 * a->first[s];
    int32x4_t hi[8], lo[8];
#pragma GCC unroll 8
    for (int v = 0; v < 8; v++) {
        hi[v] = vdupq_n_s32(0);
        lo[v] = vdupq_n_s32(packed && v >= 4 ? 17 * start : start);
    }
    for (int32_t i = 0; i < kept->n; i += 4) {
        const quad q = load_quad(p, kept->col + i, strip, h, plane, packed);
        int32_t h4, l4;
        memcpy(&h4, xh + i, sizeof h4);
        memcpy(&l4, xl + i, sizeof l4);
        const int8x16_t x_hi = vreinterpretq_s8_s32(vdupq_n_s32(h4));
        const int8x16_t x_lo = vreinterpretq_s8_s32(vdupq_n_s32(l4));
#pragma GCC unroll 4
        for (int k = 0; k < 4; k++) {
            hi[k] = add_products(hi[k], q.low.val[k], x_hi);
            lo[k] = add_products(lo[k], q.low.val[k], x_lo);
            hi[4 + k] = add_products(hi[4 + k], q.high.val[k], x_hi);
            lo[4 + k] = add_products(lo[4 + k], q.high.val[k], x_lo);
        }
    }
#pragma GCC unroll 4
    for (int k = 0; k < 4; k++) {
        const int32x4_t low = vaddq_s32(vshlq_n_s32(hi[k], 8), lo[k]);
        const int32x4_t high = vaddq_s32(vshlq_n_s32(hi[4 + k], 8), lo[4 + k]);
        dot[4 * h + k] = low;
        dot[8 + 4 * h + k] = packed ? vshrq_n_s32(vsubq_s32(high, low), 4) : high;
    }
}

WINA_INLINE void gemv_kind(const wina_panel *p, const wina_quads *a, wina_plane plane,
                           wina_scales kind, int32_t block0, int32_t block1, int32_t strip0,
                           int32_t strip1, float *y) {
    const int n_sub = wina_scales_subs(kind);
    kept_block blocks[2], *now = &blocks[0], *next = &blocks[1];
    const int32_t end = block1 * n_sub;
    gather_block(p, a, block0 * n_sub, end, now);
    for (int32_t s = block0 * n_sub; s < end; s++) {
        gather_block(p, a, s + 1, end, next);
        const block_scales scales = find_scales(p, s / n_sub);
        for (int32_t strip = strip0; now->n && strip < strip1; strip++) {
            int32x4_t dot[STRIP_VECTORS];
            multiply_half(p, a, s, now, plane, strip, 0, dot);
            multiply_half(p, a, s, now, plane, strip, 1, dot);
            prefetch_strip(next, strip, plane);
            finish_strip(&scales, kind, s % n_sub, strip, dot, a->scale[s], a->sum[s],
                         y + (int64_t)strip * WINA_STRIP);
        }
        kept_block *done = now;
        now = next, next = done;
    }
}

#endif
