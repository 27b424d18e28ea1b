/* neon: what the NEON kernels share: loading panels, scales, the walk over kept inputs.
 *
 * A strip is 16 vectors of four rows, vector 4 l + k holding rows 16 l + 4 k ...; panels store its
 * scales at 16 k + 4 l. The low and the high halves of 16 bytes of 4-bit values are rows 16 h ...
 * and 32 + 16 h ..., so half h of a strip is what those hold, in all types. */
#ifndef WINA_NEON_H
#define WINA_NEON_H

#include <arm_neon.h>
#include <string.h>

#include "kernels.h"

#define WINA_INLINE static inline __attribute__((always_inline))

enum { STRIP_VECTORS = WINA_STRIP / 4 };

/* Bit number `at` of 16 rows and of those 32 further on, from bytes 0 and 1 and 4 and 5. Bit r of
 * byte j belongs to row 8 j + r: each byte is spread over eight rows, then every row's bit is
 * shifted to its place. */
WINA_INLINE uint8x16x2_t add_bits(uint8x16x2_t v, const uint8_t *from, const int at) {
    const int8x16_t down = {0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3, 4, 5, 6, 7};
    const int8x16_t shift = vsubq_s8(vdupq_n_s8((int8_t)at), down);
    const uint8x16_t first = {0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1};
    const uint8x16_t second = {4, 4, 4, 4, 4, 4, 4, 4, 5, 5, 5, 5, 5, 5, 5, 5};
    const uint8x8_t loaded = vld1_u8(from);
    const uint8x16_t bits = vcombine_u8(loaded, loaded), one = vdupq_n_u8((uint8_t)(1 << at));
    v.val[0] = vbslq_u8(one, vshlq_u8(vqtbl1q_u8(bits, first), shift), v.val[0]);
    v.val[1] = vbslq_u8(one, vshlq_u8(vqtbl1q_u8(bits, second), shift), v.val[1]);
    return v;
}

/* Stored values of half h of a strip: rows 16 h ... and rows 32 + 16 h ... of one input. */
WINA_INLINE uint8x16x2_t load_half(const wina_panel *p, const uint8_t *col, int32_t strip, int h,
                                   wina_plane plane) {
    if (plane == WINA_PLANE_8) {
        const uint8_t *at = col + (int64_t)strip * 64 + 16 * h;
        return (uint8x16x2_t){{vld1q_u8(at), vld1q_u8(at + 32)}};
    }
    if (plane == WINA_PLANE_2 || plane == WINA_PLANE_3) {
        uint8x16_t bits = vld1q_u8(col + (int64_t)strip * 16);
        bits = h ? vshrq_n_u8(bits, 2) : bits;
        const uint8x16x2_t v = {
            {vandq_u8(bits, vdupq_n_u8(3)), vandq_u8(vshrq_n_u8(bits, 4), vdupq_n_u8(3))}};
        return plane == WINA_PLANE_2
                   ? v
                   : add_bits(v, col + p->n_rows / 4 + (int64_t)strip * 8 + 2 * h, 2);
    }
    const uint8x16_t raw = vld1q_u8(col + (int64_t)strip * 32 + 16 * h);
    const uint8_t *high = col + p->n_rows / 2;
    if (plane == WINA_PLANE_6) {
        uint8x16_t bits = vld1q_u8(high + (int64_t)strip * 16);
        bits = h ? vshrq_n_u8(bits, 2) : bits;
        return (uint8x16x2_t){{vsliq_n_u8(raw, vandq_u8(bits, vdupq_n_u8(3)), 4),
                               vsriq_n_u8(vandq_u8(bits, vdupq_n_u8(0x30)), raw, 4)}};
    }
    uint8x16x2_t v = {{vandq_u8(raw, vdupq_n_u8(15)), vshrq_n_u8(raw, 4)}};
    if (plane == WINA_PLANE_5)
        return add_bits(v, high + (int64_t)strip * 8 + 2 * h, 4);
    if (plane == WINA_PLANE_T) {
        const uint8x16_t table = vld1q_u8(p->layout->table);
        v.val[0] = vqtbl1q_u8(table, v.val[0]);
        v.val[1] = vqtbl1q_u8(table, v.val[1]);
    }
    return v;
}

/* ---- scales ------------------------------------------------------------------------------- */

/* Scales of the vectors k, 4 + k, 8 + k and 12 + k of a strip lie together. */
typedef struct four_scales {
    float32x4_t v[4];
} four_scales;

WINA_INLINE four_scales load_halves(const uint8_t *p) {
    const float16x8_t a = vreinterpretq_f16_u8(vld1q_u8(p));
    const float16x8_t b = vreinterpretq_f16_u8(vld1q_u8(p + 16));
    return (four_scales){{vcvt_f32_f16(vget_low_f16(a)), vcvt_high_f32_f16(a),
                          vcvt_f32_f16(vget_low_f16(b)), vcvt_high_f32_f16(b)}};
}

/* d times sixteen bytes: each is put on top of a lane and read as a fraction of 2^24. */
WINA_INLINE four_scales scale_bytes(four_scales d, uint8x16_t bytes, bool is_signed) {
    uint8x16_t from = {255, 255, 255, 0, 255, 255, 255, 1, 255, 255, 255, 2, 255, 255, 255, 3};
#pragma GCC unroll 4
    for (int l = 0; l < 4; l++) {
        const uint32x4_t top = vreinterpretq_u32_u8(vqtbl1q_u8(bytes, from));
        const float32x4_t f =
            is_signed ? vcvtq_n_f32_s32(vreinterpretq_s32_u32(top), 24) : vcvtq_n_f32_u32(top, 24);
        d.v[l] = vmulq_f32(d.v[l], f);
        from = vqaddq_u8(from, vdupq_n_u8(4));
    }
    return d;
}

/* The scales of one block of a panel. */
typedef struct block_scales {
    const uint8_t *scales, *super;
    int64_t n_rows;
} block_scales;

WINA_INLINE block_scales find_scales(const wina_panel *p, int32_t block) {
    return (block_scales){wina_panel_scales(p, block), wina_panel_super(p, block), p->n_rows};
}

/* wina_e8m0_to_f32 of sixteen bytes: below 2 the result is subnormal. */
WINA_INLINE four_scales load_exponents(const uint8_t *p) {
    const uint8x16_t bytes = vld1q_u8(p);
    uint8x16_t from = {0, 255, 255, 255, 1, 255, 255, 255, 2, 255, 255, 255, 3, 255, 255, 255};
    const uint8x16_t four = {4, 0, 0, 0, 4, 0, 0, 0, 4, 0, 0, 0, 4, 0, 0, 0};
    four_scales d;
#pragma GCC unroll 4
    for (int l = 0; l < 4; l++) {
        const uint32x4_t e = vreinterpretq_u32_u8(vqtbl1q_u8(bytes, from));
        const uint32x4_t normal = vshlq_n_u32(vsubq_u32(e, vdupq_n_u32(1)), 23);
        const uint32x4_t small = vshlq_u32(vdupq_n_u32(0x00200000), vreinterpretq_s32_u32(e));
        d.v[l] = vreinterpretq_f32_u32(vbslq_u32(vcgtq_u32(e, vdupq_n_u32(1)), normal, small));
        from = vaddq_u8(from, four);
    }
    return d;
}

WINA_INLINE four_scales load_d(const block_scales *b, wina_scales kind, int64_t at, int sub) {
    const uint8_t *bytes = b->scales + (sub ? b->n_rows : 0) + at;
    if (kind == WINA_SCALES_K_DM)
        return scale_bytes(load_halves(b->super + 2 * at), vld1q_u8(bytes), false);
    if (kind == WINA_SCALES_K_D16 || kind == WINA_SCALES_K_D32)
        return scale_bytes(load_halves(b->super + 2 * at), vld1q_u8(bytes), true);
    if (kind == WINA_SCALES_K_DM16)
        return scale_bytes(load_halves(b->super + 2 * at),
                           vandq_u8(vld1q_u8(bytes), vdupq_n_u8(15)), false);
    if (kind == WINA_SCALES_E8)
        return load_exponents(bytes);
    return load_halves(b->scales + 2 * at);
}

/* Mins; those of K-quants are to be subtracted. */
WINA_INLINE four_scales load_m(const block_scales *b, wina_scales kind, int64_t at, int sub) {
    if (kind == WINA_SCALES_K_DM)
        return scale_bytes(load_halves(b->super + 2 * (b->n_rows + at)),
                           vld1q_u8(b->scales + b->n_rows + at), false);
    if (kind == WINA_SCALES_K_DM16)
        return scale_bytes(load_halves(b->super + 2 * (b->n_rows + at)),
                           vshrq_n_u8(vld1q_u8(b->scales + (sub ? b->n_rows : 0) + at), 4), false);
    return load_halves(b->scales + 2 * (b->n_rows + at));
}

/* Adds finished dot products of four rows to their sums. */
WINA_INLINE float32x4_t add_dots(float32x4_t acc, wina_scales kind, float32x4_t d, float32x4_t m,
                                 int32x4_t dot, float scale, int32_t sum) {
    acc = vfmaq_f32(acc, vmulq_n_f32(d, scale), vcvtq_f32_s32(dot));
    if (kind == WINA_SCALES_DM)
        acc = vfmaq_n_f32(acc, m, scale * (float)sum);
    if (kind == WINA_SCALES_K_DM || kind == WINA_SCALES_K_DM16)
        acc = vfmsq_n_f32(acc, m, scale * (float)sum);
    return acc;
}

/* Scales of a strip and its sub-blocks in row order, for kernels that use them several times. */
typedef struct row_scales {
    float32x4_t d[2][STRIP_VECTORS], m[2][STRIP_VECTORS];
} row_scales;

WINA_INLINE void load_row_scales(const block_scales *b, wina_scales kind, int32_t strip,
                                 row_scales *out) {
#pragma GCC unroll 4
    for (int k = 0; k < 4; k++) {
        const int64_t at = (int64_t)strip * WINA_STRIP + 16 * k;
        for (int sub = 0; sub < wina_scales_subs(kind); sub++) {
            const four_scales d = load_d(b, kind, at, sub);
            for (int l = 0; l < 4; l++)
                out->d[sub][4 * l + k] = d.v[l];
            if (!wina_scales_mins(kind))
                continue;
            const four_scales m = load_m(b, kind, at, sub);
            for (int l = 0; l < 4; l++)
                out->m[sub][4 * l + k] = m.v[l];
        }
    }
}

/* Adds the finished dot products of a strip and sub-block to its 64 sums. */
WINA_INLINE void finish_strip(const block_scales *b, wina_scales kind, int sub, int32_t strip,
                              const int32x4_t *dot, float scale, int32_t sum, float *y) {
#pragma GCC unroll 4
    for (int k = 0; k < 4; k++) {
        const int64_t at = (int64_t)strip * WINA_STRIP + 16 * k;
        const four_scales d = load_d(b, kind, at, sub);
        four_scales m = d;
        if (wina_scales_mins(kind))
            m = load_m(b, kind, at, sub);
#pragma GCC unroll 4
        for (int l = 0; l < 4; l++) {
            float *out = y + 16 * l + 4 * k;
            vst1q_f32(out,
                      add_dots(vld1q_f32(out), kind, d.v[l], m.v[l], dot[4 * l + k], scale, sum));
        }
    }
}

/* ---- kept inputs -------------------------------------------------------------------------- */

/* The kept inputs of one sub-block, found once for all strips. */
typedef struct kept_block {
    int32_t n; /* inputs, a multiple of four */
    const uint8_t *col[WINA_BLOCK];
} kept_block;

/* Sub-block s; nothing if that is `end` or beyond. */
static inline void gather_block(const wina_panel *p, const wina_quads *a, int32_t s, int32_t end,
                                kept_block *out) {
    const int n_sub = WINA_BLOCK / p->layout->sub;
    out->n = 0;
    if (s >= end)
        return;
    const wina_block_columns columns = wina_panel_columns(p, s / n_sub);
    const uint8_t *col = a->col + 4 * a->first[s];
    const int32_t n = (int32_t)(4 * (a->first[s + 1] - a->first[s]));
    for (int32_t i = 0; i < n; i++)
        out->col[i] = wina_block_column(&columns, col[i]);
    out->n = n;
}

/* While one sub-block is multiplied, the next one's kept columns are fetched. */
WINA_INLINE void prefetch_strip(const kept_block *next, int32_t strip, wina_plane plane) {
    if (plane != WINA_PLANE_8 && strip % 2 != 0)
        return; /* a cache line holds the low bits of two strips */
    const int64_t at = (int64_t)strip * (plane == WINA_PLANE_8 ? 64 : 32);
    for (int32_t i = 0; i < next->n; i++)
        __builtin_prefetch(next->col[i] + at, 0, 2);
}

/* ---- floats ------------------------------------------------------------------------------- */

/* Eight halves or bfloat16. */
WINA_INLINE float32x4x2_t widen_floats(uint8x16_t raw, wina_scales kind) {
    if (kind == WINA_SCALES_F16) {
        const float16x8_t h = vreinterpretq_f16_u8(raw);
        return (float32x4x2_t){{vcvt_f32_f16(vget_low_f16(h)), vcvt_high_f32_f16(h)}};
    }
    const uint16x8_t b = vreinterpretq_u16_u8(raw);
    return (float32x4x2_t){{vreinterpretq_f32_u32(vshll_n_u16(vget_low_u16(b), 16)),
                            vreinterpretq_f32_u32(vshll_high_n_u16(b, 16))}};
}

/* Eight values of a float panel. */
WINA_INLINE float32x4x2_t load_floats(const uint8_t *p, wina_scales kind) {
    if (kind == WINA_SCALES_F32)
        return (float32x4x2_t){
            {vreinterpretq_f32_u8(vld1q_u8(p)), vreinterpretq_f32_u8(vld1q_u8(p + 16))}};
    return widen_floats(vld1q_u8(p), kind);
}

/* ---- tables of kernels -------------------------------------------------------------------- */

/* By plane and scales; each file that has such kernels defines gemv_kind or gemm_kind, from which
 * DEFINE_ and LIST_ make the functions and the rows. A gemv adds to y, a gemm to its strip of y. */
typedef void (*neon_gemv)(const wina_panel *p, const wina_quads *a, int32_t block0, int32_t block1,
                          int32_t strip0, int32_t strip1, float *y);
typedef neon_gemv neon_gemv_table[WINA_N_PLANES][WINA_N_SCALES];
typedef wina_gemm_strip neon_gemm_table[WINA_N_PLANES][WINA_N_SCALES];

#define DEFINE_GEMV(name, plane, kind)                                                             \
    static void gemv_##name(const wina_panel *p, const wina_quads *a, int32_t block0,              \
                            int32_t block1, int32_t strip0, int32_t strip1, float *y) {            \
        gemv_kind(p, a, plane, kind, block0, block1, strip0, strip1, y);                           \
    }
#define DEFINE_GEMM(name, plane, kind)                                                             \
    static void gemm_##name(const wina_panel *p, const wina_batch *b, int32_t block0,              \
                            int32_t block1, int32_t strip, float *y, int64_t y_stride) {           \
        gemm_kind(p, b, plane, kind, block0, block1, strip, y, y_stride);                          \
    }
#define LIST_GEMV(name, plane, kind) [plane][kind] = gemv_##name,
#define LIST_GEMM(name, plane, kind) [plane][kind] = gemm_##name,

/* gemv_neon.c: panels by the kernels of a table; float panels are the same for all. */
void wina_gemv_neon(const wina_panel *panel, const wina_act *act, int32_t block0, int32_t block1,
                    int32_t strip0, int32_t strip1, bool add, float *y);
void wina_gemv_tiles_neon(const neon_gemv_table table, const wina_panel *panel, const wina_act *act,
                          int32_t block0, int32_t block1, int32_t strip0, int32_t strip1, bool add,
                          float *y);

/* gemm_neon.c */
void wina_gemm_neon(const wina_panel *panel, const wina_batch *batch, int32_t block0,
                    int32_t block1, int32_t strip0, int32_t strip1, float *y);
void wina_gemm_strips_neon(const neon_gemm_table table, const wina_panel *panel,
                           const wina_batch *batch, int32_t block0, int32_t block1, int32_t strip0,
                           int32_t strip1, float *y);

/* gemm_dotprod.c, gemm_i8mm.c */
void wina_gemm_dotprod(const wina_panel *panel, const wina_batch *batch, int32_t block0,
                       int32_t block1, int32_t strip0, int32_t strip1, float *y);
void wina_gemm_i8mm(const wina_panel *panel, const wina_batch *batch, int32_t block0,
                    int32_t block1, int32_t strip0, int32_t strip1, float *y);

/* attend_neon.c */
void wina_attend_dots_neon(const float *q, const float *k, int32_t n_dim, int32_t n_rows,
                           float scale, float *s);
void wina_attend_add_neon(float *o, const float *p, const float *v, int32_t n_dim, int32_t stride,
                          int32_t n_rows);
void wina_load_f16_neon(float *x, const void *rows, int32_t n_dim, int32_t n_rows);
void wina_store_f16_neon(void *row, const float *x, int32_t n_dim);
void wina_load_q8_0_neon(float *x, const void *rows, int32_t n_dim, int32_t n_rows);

#endif
