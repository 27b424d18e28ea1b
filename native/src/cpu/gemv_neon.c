/* gemv_neon: one token, with what every aarch64 processor has.
 *
 * Activations are taken as whole 16-bit integers: values are widened to 16 bits and multiplied onto
 * 32-bit sums, four rows an instruction. Products of bytes would need as many instructions for the
 * two halves, and room in 16-bit sums to watch. */
#include "neon.h"

/* Eight rows of one input onto two vectors of sums. */
WINA_INLINE void add_rows(int32x4_t *acc, uint16x8_t values, int16x4_t x, const int lane) {
    const int16x8_t v = vreinterpretq_s16_u16(values);
    acc[0] = vmlal_lane_s16(acc[0], vget_low_s16(v), x, lane);
    acc[1] = vmlal_high_lane_s16(acc[1], v, x, lane);
}

/* 32 rows: 16 h ... onto the vectors from 4 h on, 32 + 16 h ... onto those from 8 + 4 h on. */
WINA_INLINE void add_half(int32x4_t *acc, uint8x16_t low, uint8x16_t high, int16x4_t x,
                          const int lane) {
    add_rows(acc, vmovl_u8(vget_low_u8(low)), x, lane);
    add_rows(acc + 2, vmovl_high_u8(low), x, lane);
    add_rows(acc + 8, vmovl_u8(vget_low_u8(high)), x, lane);
    add_rows(acc + 10, vmovl_high_u8(high), x, lane);
}

/* Bytes of two 4-bit values are not taken apart: the upper rows get the sum of both, a + 16 b, and
 * split_sums subtracts. */
WINA_INLINE void add_packed(int32x4_t *acc, uint8x16_t raw, int16x4_t x, const int lane) {
    const uint16x8_t w0 = vmovl_u8(vget_low_u8(raw)), w1 = vmovl_high_u8(raw);
    add_rows(acc, vandq_u16(w0, vdupq_n_u16(15)), x, lane);
    add_rows(acc + 2, vandq_u16(w1, vdupq_n_u16(15)), x, lane);
    add_rows(acc + 8, w0, x, lane);
    add_rows(acc + 10, w1, x, lane);
}

/* One input of a strip. */
WINA_INLINE void add_input(int32x4_t *acc, const wina_panel *p, const uint8_t *col, int32_t strip,
                           wina_plane plane, int16x4_t x, const int lane) {
    if (plane == WINA_PLANE_4) {
        const uint8x16x2_t raw = vld1q_u8_x2(col + (int64_t)strip * 32);
        add_packed(acc, raw.val[0], x, lane);
        add_packed(acc + 4, raw.val[1], x, lane);
    } else if (plane == WINA_PLANE_8) {
        const uint8x16x4_t v = vld1q_u8_x4(col + (int64_t)strip * 64);
        add_half(acc, v.val[0], v.val[2], x, lane);
        add_half(acc + 4, v.val[1], v.val[3], x, lane);
    } else {
        const uint8x16x2_t a = load_half(p, col, strip, 0, plane);
        add_half(acc, a.val[0], a.val[1], x, lane);
        const uint8x16x2_t b = load_half(p, col, strip, 1, plane);
        add_half(acc + 4, b.val[0], b.val[1], x, lane);
    }
}

WINA_INLINE void split_sums(int32x4_t *acc) {
#pragma GCC unroll 8
    for (int v = 0; v < 8; v++)
        acc[v + 8] = vshrq_n_s32(vsubq_s32(acc[v + 8], acc[v]), 4);
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
        const int32_t start = -p->layout->offset * a->sum[s];
        for (int32_t strip = strip0; now->n && strip < strip1; strip++) {
            int32x4_t acc[STRIP_VECTORS];
#pragma GCC unroll 16
            for (int v = 0; v < STRIP_VECTORS; v++)
                acc[v] = vdupq_n_s32(plane == WINA_PLANE_4 && v >= 8 ? 17 * start : start);
            for (int32_t i = 0; i < now->n; i += 4) {
                const int16x4_t x = vld1_s16(a->x + 4 * a->first[s] + i);
                add_input(acc, p, now->col[i], strip, plane, x, 0);
                add_input(acc, p, now->col[i + 1], strip, plane, x, 1);
                add_input(acc, p, now->col[i + 2], strip, plane, x, 2);
                add_input(acc, p, now->col[i + 3], strip, plane, x, 3);
            }
            prefetch_strip(next, strip, plane);
            if (plane == WINA_PLANE_4)
                split_sums(acc);
            finish_strip(&scales, kind, s % n_sub, strip, acc, a->scale[s], a->sum[s],
                         y + (int64_t)strip * WINA_STRIP);
        }
        kept_block *done = now;
        now = next, next = done;
    }
}

WINA_KINDS(DEFINE_GEMV)
static const neon_gemv_table GEMV = {WINA_KINDS(LIST_GEMV)};

/* ---- floats ------------------------------------------------------------------------------- */

/* The kept inputs of one block. */
typedef struct float_block {
    int32_t n;
    const uint8_t *col[WINA_BLOCK];
    float x[WINA_BLOCK];
} float_block;

/* Takes the block of kept input number *k and moves *k to the next block; n = 0 from n_kept on. */
static void gather_floats(const wina_panel *p, const wina_act *act, int32_t n_kept, int32_t *k,
                          float_block *out) {
    int32_t n = 0, i = *k;
    if (i < n_kept) {
        const int32_t block = act->kept[i] / WINA_BLOCK;
        for (; i < n_kept && act->kept[i] / WINA_BLOCK == block; i++, n++) {
            out->col[n] = wina_panel_column(p, block, act->kept[i] % WINA_BLOCK);
            out->x[n] = act->x[act->kept[i]];
        }
    }
    *k = i;
    out->n = n;
}

/* Sixteen rows at w times x. */
WINA_INLINE void add_floats(float32x4_t *acc, const uint8_t *w, float x, wina_scales kind) {
    if (kind == WINA_SCALES_F32) {
        const uint8x16x4_t raw = vld1q_u8_x4(w);
#pragma GCC unroll 4
        for (int v = 0; v < 4; v++)
            acc[v] = vfmaq_n_f32(acc[v], vreinterpretq_f32_u8(raw.val[v]), x);
        return;
    }
    const uint8x16x2_t raw = vld1q_u8_x2(w);
#pragma GCC unroll 2
    for (int v = 0; v < 2; v++) {
        const float32x4x2_t f = widen_floats(raw.val[v], kind);
        acc[2 * v] = vfmaq_n_f32(acc[2 * v], f.val[0], x);
        acc[2 * v + 1] = vfmaq_n_f32(acc[2 * v + 1], f.val[1], x);
    }
}

WINA_INLINE void gemv_floats_kind(const wina_panel *p, const wina_act *act, wina_scales kind,
                                  int32_t block0, int32_t block1, int32_t strip0, int32_t strip1,
                                  float *y) {
    const int64_t size = kind == WINA_SCALES_F32 ? 4 : 2, strip_bytes = WINA_STRIP * size;
    float_block blocks[2], *now = &blocks[0], *next = &blocks[1];
    int32_t k = 0, end = act->n_kept;
    while (k < end && act->kept[k] < block0 * WINA_BLOCK)
        k++;
    while (k < end && act->kept[end - 1] >= block1 * WINA_BLOCK)
        end--;
    gather_floats(p, act, end, &k, now);
    while (now->n) {
        gather_floats(p, act, end, &k, next);
        for (int32_t strip = strip0; strip < strip1; strip++) {
            float *out = y + (int64_t)strip * WINA_STRIP;
            float32x4_t acc[STRIP_VECTORS];
#pragma GCC unroll 16
            for (int v = 0; v < STRIP_VECTORS; v++)
                acc[v] = vld1q_f32(out + 4 * v);
            for (int32_t i = 0; i < now->n; i++) {
                const uint8_t *w = now->col[i] + strip * strip_bytes;
#pragma GCC unroll 4
                for (int v = 0; v < STRIP_VECTORS; v += 4)
                    add_floats(acc + v, w + 4 * v * size, now->x[i], kind);
            }
#pragma GCC unroll 16
            for (int v = 0; v < STRIP_VECTORS; v++)
                vst1q_f32(out + 4 * v, acc[v]);
            for (int32_t i = 0; i < next->n; i++)
#pragma GCC unroll 4
                for (int64_t line = 0; line < strip_bytes; line += 64)
                    __builtin_prefetch(next->col[i] + strip * strip_bytes + line, 0, 2);
        }
        float_block *done = now;
        now = next, next = done;
    }
}

static void gemv_floats(const wina_panel *p, const wina_act *act, int32_t block0, int32_t block1,
                        int32_t strip0, int32_t strip1, float *y) {
    if (p->layout->scales == WINA_SCALES_F32)
        gemv_floats_kind(p, act, WINA_SCALES_F32, block0, block1, strip0, strip1, y);
    else if (p->layout->scales == WINA_SCALES_F16)
        gemv_floats_kind(p, act, WINA_SCALES_F16, block0, block1, strip0, strip1, y);
    else
        gemv_floats_kind(p, act, WINA_SCALES_BF16, block0, block1, strip0, strip1, y);
}

/* ---- tiles -------------------------------------------------------------------------------- */

/* Rows are walked in tiles: a block of 32 inputs of a tile is 128 KiB, so that it and the next one,
 * which is being fetched, fit into the second-level cache of a small core. */
void wina_gemv_tiles_neon(const neon_gemv_table table, const wina_panel *p, const wina_act *act,
                          int32_t block0, int32_t block1, int32_t strip0, int32_t strip1, bool add,
                          float *y) {
    const wina_layout *l = p->layout;
    const int32_t tile = (int32_t)(512 / wina_layout_bits(l));
    if (!add)
        wina_gemv_clear(y, strip0, strip1);
    for (int32_t s = strip0; s < strip1; s += tile) {
        const int32_t end = s + tile < strip1 ? s + tile : strip1;
        if (l->low_bits >= 16)
            gemv_floats(p, act, block0, block1, s, end, y);
        else
            table[l->plane][l->scales](p, l->sub == 16 ? &act->by16 : &act->by32, block0, block1, s,
                                       end, y);
    }
}

void wina_gemv_neon(const wina_panel *p, const wina_act *act, int32_t block0, int32_t block1,
                    int32_t strip0, int32_t strip1, bool add, float *y) {
    wina_gemv_tiles_neon(GEMV, p, act, block0, block1, strip0, strip1, add, y);
}
