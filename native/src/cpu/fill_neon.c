/* Loading with NEON. Tiles are turned by rounds of interleaving as in fill_avx2.c, 16 inputs (8 of
 * 16 bits) at a time. */
#include "neon.h"

WINA_INLINE void interleave_halves(uint8x16_t *v, const int n, const int bytes) {
    uint8x16_t t[16];
#pragma GCC unroll 8
    for (int i = 0; i < n / 2; i++) {
        const uint8x16_t a = v[i], b = v[i + n / 2];
        const uint16x8_t c = vreinterpretq_u16_u8(a), d = vreinterpretq_u16_u8(b);
        t[2 * i] = bytes == 1 ? vzip1q_u8(a, b) : vreinterpretq_u8_u16(vzip1q_u16(c, d));
        t[2 * i + 1] = bytes == 1 ? vzip2q_u8(a, b) : vreinterpretq_u8_u16(vzip2q_u16(c, d));
    }
#pragma GCC unroll 16
    for (int i = 0; i < n; i++)
        v[i] = t[i];
}

/* 16 rows of bytes to 16 columns of 16 bytes. */
WINA_INLINE void store_columns_16(uint8_t *to, uint64_t stride, uint8x16_t v[16]) {
#pragma GCC unroll 4
    for (int round = 0; round < 4; round++)
        interleave_halves(v, 16, 1);
#pragma GCC unroll 16
    for (uint64_t c = 0; c < 16; c++)
        vst1q_u8(to + c * stride, v[c]);
}

/* 8 rows of bytes to 16 columns of 8 bytes. */
WINA_INLINE void store_columns_8(uint8_t *to, uint64_t stride, uint8x16_t v[8]) {
#pragma GCC unroll 3
    for (int round = 0; round < 3; round++)
        interleave_halves(v, 8, 1);
#pragma GCC unroll 8
    for (uint64_t i = 0; i < 8; i++) {
        vst1_u8(to + 2 * i * stride, vget_low_u8(v[i]));
        vst1_u8(to + (2 * i + 1) * stride, vget_high_u8(v[i]));
    }
}

/* `mask` of 16 inputs of a row from bit `shift` on, moved up by `up`. */
WINA_INLINE uint8x16_t bits_of(const uint8_t (*q)[WINA_BLOCK], int r, const int shift,
                               const int mask, const int up) {
    const uint8x16_t v = vshlq_u8(vld1q_u8(q[r]), vdupq_n_s8((int8_t)-shift));
    return vshlq_u8(vandq_u8(v, vdupq_n_u8((uint8_t)mask)), vdupq_n_s8((int8_t)up));
}

WINA_INLINE void store_pairs(uint8_t *to, uint64_t stride, const uint8_t (*q)[WINA_BLOCK],
                             const int shift) {
    uint8x16_t v[16];
#pragma GCC unroll 16
    for (int i = 0; i < 16; i++)
        v[i] = vorrq_u8(vorrq_u8(bits_of(q, i, shift, 3, 0), bits_of(q, i + 16, shift, 3, 2)),
                        vorrq_u8(bits_of(q, i + 32, shift, 3, 4), bits_of(q, i + 48, shift, 3, 6)));
    store_columns_16(to, stride, v);
}

WINA_INLINE void store_bits(uint8_t *to, uint64_t stride, const uint8_t (*q)[WINA_BLOCK],
                            const int shift) {
    uint8x16_t v[8];
#pragma GCC unroll 8
    for (int j = 0; j < 8; j++) {
        v[j] = bits_of(q, 8 * j, shift, 1, 0);
#pragma GCC unroll 7
        for (int i = 1; i < 8; i++)
            v[j] = vorrq_u8(v[j], bits_of(q, 8 * j + i, shift, 1, i));
    }
    store_columns_8(to, stride, v);
}

/* 16 inputs, whose values begin at q[0] and whose columns begin at block. */
WINA_INLINE void store_planes(const wina_panel *p, uint8_t *block, int32_t strip,
                              const uint8_t (*q)[WINA_BLOCK], const int low_bits,
                              const int high_bits) {
    const uint64_t stride = p->col_bytes;
    uint8_t *low = block + strip * 8 * low_bits;
    uint8_t *high = block + (uint64_t)p->n_rows * (uint64_t)low_bits / 8;
    uint8x16_t v[16];
    for (int r = 0; r < 64 && low_bits == 8; r += 16) {
#pragma GCC unroll 16
        for (int i = 0; i < 16; i++)
            v[i] = vld1q_u8(q[r + i]);
        store_columns_16(low + r, stride, v);
    }
    for (int r = 0; r < 32 && low_bits == 4; r += 16) {
#pragma GCC unroll 16
        for (int i = 0; i < 16; i++)
            v[i] = vorrq_u8(bits_of(q, r + i, 0, 15, 0), bits_of(q, r + i + 32, 0, 15, 4));
        store_columns_16(low + r, stride, v);
    }
    if (low_bits == 2)
        store_pairs(low, stride, q, 0);
    if (high_bits == 1)
        store_bits(high + strip * 8, stride, q, low_bits);
    if (high_bits == 2)
        store_pairs(high + strip * 16, stride, q, low_bits);
}

static void store_halves(uint8_t *to, uint64_t stride, const wina_pieces *in) {
    for (int c = 0; c < WINA_BLOCK; c += 8)
        for (int r = 0; r < WINA_STRIP; r += 8) {
            uint8x16_t v[8];
#pragma GCC unroll 8
            for (int i = 0; i < 8; i++)
                v[i] = vld1q_u8(&in->raw[r + i][2 * c]);
#pragma GCC unroll 3
            for (int round = 0; round < 3; round++)
                interleave_halves(v, 8, 2);
#pragma GCC unroll 8
            for (uint64_t i = 0; i < 8; i++)
                vst1q_u8(to + ((uint64_t)c + i) * stride + 2 * r, v[i]);
        }
}

static void store_neon(const wina_panel *p, uint8_t *block, int32_t strip, const wina_pieces *in,
                       int32_t n_cols) {
    const wina_layout *l = p->layout;
    const int planes = l->low_bits << 4 | l->high_bits;
    if (l->low_bits >= 16) {
        if (l->low_bits == 16 && n_cols == WINA_BLOCK)
            store_halves(block + (uint64_t)strip * 2 * WINA_STRIP, p->col_bytes, in);
        else
            wina_fill_ops_c.store(p, block, strip, in, n_cols);
        return;
    }
    for (int c = 0; c < WINA_BLOCK; c += 16, block += 16 * p->col_bytes) {
        const uint8_t(*q)[WINA_BLOCK] = (const uint8_t(*)[WINA_BLOCK]) & in->q[0][c];
        switch (planes) {
        case 0x80:
            store_planes(p, block, strip, q, 8, 0);
            break;
        case 0x40:
            store_planes(p, block, strip, q, 4, 0);
            break;
        case 0x41:
            store_planes(p, block, strip, q, 4, 1);
            break;
        case 0x42:
            store_planes(p, block, strip, q, 4, 2);
            break;
        case 0x20:
            store_planes(p, block, strip, q, 2, 0);
            break;
        default:
            store_planes(p, block, strip, q, 2, 1);
        }
    }
}

/* ---- squares ------------------------------------------------------------------------------ */

/* The product of two floats fits into a double, so fusing it with the sum rounds once as before. */
WINA_INLINE void add_four(float64x2_t s[2], float32x4_t w) {
    const float64x2_t low = vcvt_f64_f32(vget_low_f32(w)), high = vcvt_high_f64_f32(w);
    s[0] = vfmaq_f64(s[0], low, low);
    s[1] = vfmaq_f64(s[1], high, high);
}

/* Half the inputs of a block, from the first on: 16 registers of sums would leave none for others.
 * w (16): a row's weights. */
WINA_INLINE void load_sixteen(const wina_layout *l, const wina_pieces *in, int32_t r, int half,
                              const wina_fill_scales *k, const bool mins, float32x4_t w[4]) {
    uint8x16_t q = vld1q_u8(in->q[r] + 16 * half);
    if (l->table)
        q = vqtbl1q_u8(vld1q_u8(l->table), q);
    const uint8x8_t offset = vdup_n_u8(l->offset);
    const int16x8_t n[2] = {vreinterpretq_s16_u16(vsubl_u8(vget_low_u8(q), offset)),
                            vreinterpretq_s16_u16(vsubl_u8(vget_high_u8(q), offset))};
#pragma GCC unroll 4
    for (int v = 0; v < 4; v++) {
        const int16x4_t four = v % 2 ? vget_high_s16(n[v / 2]) : vget_low_s16(n[v / 2]);
        w[v] = vmulq_n_f32(vcvtq_f32_s32(vmovl_s16(four)), k->scale[half][r]);
        if (mins)
            w[v] = vsubq_f32(w[v], vdupq_n_f32(k->min[half][r]));
    }
}

WINA_INLINE void load_sixteen_floats(const wina_pieces *in, int32_t r, int half,
                                     const wina_scales kind, float32x4_t w[4]) {
    const int size = kind == WINA_SCALES_F32 ? 4 : 2;
#pragma GCC unroll 4
    for (int v = 0; v < 4; v++) {
        const uint8_t *at = &in->raw[r][(16 * half + 4 * v) * size];
        if (kind == WINA_SCALES_F32) {
            w[v] = vreinterpretq_f32_u8(vld1q_u8(at));
            continue;
        }
        const uint16x4_t h = vreinterpret_u16_u8(vld1_u8(at));
        w[v] = kind == WINA_SCALES_F16 ? vcvt_f32_f16(vreinterpret_f16_u16(h))
                                       : vreinterpretq_f32_u32(vshlq_n_u32(vmovl_u16(h), 16));
    }
}

static void add_squares_neon(const wina_layout *l, const wina_pieces *in, int32_t n_rows,
                             double *sums) {
    wina_fill_scales k;
    if (l->low_bits < 16)
        wina_fill_get_scales(l, in, &k);
    for (int half = 0; half < 2; half++) {
        float64x2_t s[8];
#pragma GCC unroll 8
        for (int i = 0; i < 8; i++)
            s[i] = vld1q_f64(sums + 16 * half + 2 * i);
        for (int32_t r = 0; r < n_rows; r++) {
            float32x4_t w[4];
            if (l->scales == WINA_SCALES_F32)
                load_sixteen_floats(in, r, half, WINA_SCALES_F32, w);
            else if (l->scales == WINA_SCALES_F16)
                load_sixteen_floats(in, r, half, WINA_SCALES_F16, w);
            else if (l->scales == WINA_SCALES_BF16)
                load_sixteen_floats(in, r, half, WINA_SCALES_BF16, w);
            else
                load_sixteen(l, in, r, half, &k, wina_scales_mins(l->scales), w);
#pragma GCC unroll 4
            for (int v = 0; v < 4; v++)
                add_four(s + 2 * v, w[v]);
        }
#pragma GCC unroll 8
        for (int i = 0; i < 8; i++)
            vst1q_f64(sums + 16 * half + 2 * i, s[i]);
    }
}

const wina_fill_ops wina_fill_ops_neon = {store_neon, add_squares_neon};
