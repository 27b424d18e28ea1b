/* dequant: scalar decoders, one per format, in the order of operations of gguf-py so that results
 * agree bit for bit: multiply in float32, round, then add. Nothing here may be fused into a
 * multiply-add (the build forbids it) or reordered. */
#include "dequant.h"

#include <string.h>

#include "dtype.h"

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "GGUF data is little-endian");

static float half_at(const uint8_t *p) {
    return wina_f16_to_f32((uint16_t)(p[0] | p[1] << 8));
}

void wina_dequant_f32(const uint8_t *src, float *dst, uint64_t n_blocks) {
    memcpy(dst, src, (size_t)(n_blocks * sizeof *dst));
}

/* Two bytes wherever they lie. */
typedef uint16_t any_u16 __attribute__((aligned(1), may_alias));

/* wina_f16_to_f32 without branches, so that compilers make vectors of it. */
void wina_dequant_f16(const uint8_t *restrict src, float *restrict dst, uint64_t n_blocks) {
    const any_u16 *halves = (const any_u16 *)(const void *)src;
    for (uint64_t i = 0; i < n_blocks; i++) {
        const uint32_t h = halves[i], size = h & 0x7fffu, sign = (h & 0x8000u) << 16;
        union {
            float f;
            uint32_t u;
        } small = {(float)(int32_t)size * 0x1p-24f}, all; /* below 2^-14: a multiple of 2^-24 */
        const uint32_t is_small = 0u - (size < 0x400u), is_special = 0u - (size >= 0x7c00u);
        const uint32_t usual = (size << 13) + (112u << 23) + ((112u << 23) & is_special);
        all.u = (small.u & is_small) | (usual & ~is_small) | sign;
        dst[i] = all.f;
    }
}

void wina_dequant_bf16(const uint8_t *src, float *dst, uint64_t n_blocks) {
    for (uint64_t i = 0; i < n_blocks; i++)
        dst[i] = wina_bf16_to_f32((uint16_t)(src[2 * i] | src[2 * i + 1] << 8));
}

void wina_dequant_q4_0(const uint8_t *src, float *dst, uint64_t n_blocks) {
    const wina_block_q4_0 *b = (const wina_block_q4_0 *)src;
    for (uint64_t i = 0; i < n_blocks; i++, b++, dst += 32) {
        float d = half_at(b->d);
        for (int j = 0; j < 16; j++) {
            dst[j] = d * (float)((b->qs[j] & 15) - 8);
            dst[j + 16] = d * (float)((b->qs[j] >> 4) - 8);
        }
    }
}

void wina_dequant_q4_1(const uint8_t *src, float *dst, uint64_t n_blocks) {
    const wina_block_q4_1 *b = (const wina_block_q4_1 *)src;
    for (uint64_t i = 0; i < n_blocks; i++, b++, dst += 32) {
        float d = half_at(b->d), m = half_at(b->m);
        for (int j = 0; j < 16; j++) {
            dst[j] = d * (float)(b->qs[j] & 15) + m;
            dst[j + 16] = d * (float)(b->qs[j] >> 4) + m;
        }
    }
}

/* Weight j (0..31) of a block with five bits, 0..31. */
static int five_bits(const uint8_t *qs, const uint8_t *qh, int j) {
    int low = j < 16 ? qs[j] & 15 : qs[j - 16] >> 4;
    return low | ((qh[j / 8] >> (j % 8)) & 1) << 4;
}

void wina_dequant_q5_0(const uint8_t *src, float *dst, uint64_t n_blocks) {
    const wina_block_q5_0 *b = (const wina_block_q5_0 *)src;
    for (uint64_t i = 0; i < n_blocks; i++, b++, dst += 32) {
        float d = half_at(b->d);
        for (int j = 0; j < 32; j++)
            dst[j] = d * (float)(five_bits(b->qs, b->qh, j) - 16);
    }
}

void wina_dequant_q5_1(const uint8_t *src, float *dst, uint64_t n_blocks) {
    const wina_block_q5_1 *b = (const wina_block_q5_1 *)src;
    for (uint64_t i = 0; i < n_blocks; i++, b++, dst += 32) {
        float d = half_at(b->d), m = half_at(b->m);
        for (int j = 0; j < 32; j++)
            dst[j] = d * (float)five_bits(b->qs, b->qh, j) + m;
    }
}

void wina_dequant_q8_0(const uint8_t *src, float *dst, uint64_t n_blocks) {
    const wina_block_q8_0 *b = (const wina_block_q8_0 *)src;
    for (uint64_t i = 0; i < n_blocks; i++, b++, dst += 32) {
        float d = half_at(b->d);
        for (int j = 0; j < 32; j++)
            dst[j] = d * (float)(int8_t)b->qs[j];
    }
}

/* Bytes 0-3 hold scales 0-3 and bytes 4-7 mins 0-3 in their low six bits; the nibbles of bytes
 * 8-11 are the low bits of scales (low nibble) and mins (high nibble) 4-7, whose upper two bits
 * are on top of bytes 0-3 and 4-7. */
void wina_dequant_k_scales(const uint8_t packed[12], uint8_t scale[8], uint8_t min[8]) {
    for (int j = 0; j < 4; j++) {
        uint8_t s = packed[j], m = packed[j + 4], both = packed[j + 8];
        scale[j] = s & 63;
        min[j] = m & 63;
        scale[j + 4] = (uint8_t)((both & 15) | (s >> 6) << 4);
        min[j + 4] = (uint8_t)(both >> 4 | (m >> 6) << 4);
    }
}

void wina_dequant_q4_k(const uint8_t *src, float *dst, uint64_t n_blocks) {
    const wina_block_q4_k *b = (const wina_block_q4_k *)src;
    for (uint64_t i = 0; i < n_blocks; i++, b++) {
        float d = half_at(b->d), dmin = half_at(b->dmin);
        uint8_t scale[8], min[8];
        wina_dequant_k_scales(b->scales, scale, min);
        for (int part = 0; part < 8; part++, dst += 32) {
            const uint8_t *qs = b->qs + part / 2 * 32;
            int shift = part % 2 * 4;
            float ds = d * (float)scale[part], dm = dmin * (float)min[part];
            for (int j = 0; j < 32; j++)
                dst[j] = ds * (float)(qs[j] >> shift & 15) - dm;
        }
    }
}

void wina_dequant_q5_k(const uint8_t *src, float *dst, uint64_t n_blocks) {
    const wina_block_q5_k *b = (const wina_block_q5_k *)src;
    for (uint64_t i = 0; i < n_blocks; i++, b++) {
        float d = half_at(b->d), dmin = half_at(b->dmin);
        uint8_t scale[8], min[8];
        wina_dequant_k_scales(b->scales, scale, min);
        for (int part = 0; part < 8; part++, dst += 32) {
            const uint8_t *qs = b->qs + part / 2 * 32;
            int shift = part % 2 * 4;
            float ds = d * (float)scale[part], dm = dmin * (float)min[part];
            for (int j = 0; j < 32; j++) {
                int q = (qs[j] >> shift & 15) | (b->qh[j] >> part & 1) << 4;
                dst[j] = ds * (float)q - dm;
            }
        }
    }
}

void wina_dequant_q6_k(const uint8_t *src, float *dst, uint64_t n_blocks) {
    const wina_block_q6_k *b = (const wina_block_q6_k *)src;
    for (uint64_t i = 0; i < n_blocks; i++, b++) {
        float d = half_at(b->d);
        for (int run = 0; run < 8; run++, dst += 32) {
            const uint8_t *ql = b->ql + run / 4 * 64 + run % 2 * 32;
            const uint8_t *qh = b->qh + run / 4 * 32;
            int low_shift = run % 4 / 2 * 4, high_shift = run % 4 * 2;
            for (int j = 0; j < 32; j++) {
                float ds = d * (float)(int8_t)b->scales[run * 2 + j / 16];
                int q = (ql[j] >> low_shift & 15) | (qh[j] >> high_shift & 3) << 4;
                dst[j] = ds * (float)(q - 32);
            }
        }
    }
}

const int8_t wina_dequant_iq4_values[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                            1,    13,   25,  38,  53,  69,  89,  113};
/* Twice 0, 0.5, 1, 1.5, 2, 3, 4, 6 and their negatives. */
const int8_t wina_dequant_mxfp4_values[16] = {0, 1,  2,  3,  4,  6,  8,  12,
                                              0, -1, -2, -3, -4, -6, -8, -12};

void wina_dequant_q2_k(const uint8_t *src, float *dst, uint64_t n_blocks) {
    const wina_block_q2_k *b = (const wina_block_q2_k *)src;
    for (uint64_t i = 0; i < n_blocks; i++, b++) {
        float d = half_at(b->d), dmin = half_at(b->dmin);
        for (int part = 0; part < 16; part++, dst += 16) {
            const uint8_t *qs = b->qs + part / 8 * 32 + part % 2 * 16;
            float ds = d * (float)(b->scales[part] & 15), dm = dmin * (float)(b->scales[part] >> 4);
            for (int j = 0; j < 16; j++)
                dst[j] = ds * (float)(qs[j] >> part / 2 % 4 * 2 & 3) - dm;
        }
    }
}

/* Low bits of scales 0-7 and 8-15 in the nibbles of bytes 0-7, the upper two bits of scale j in
 * byte 8 + j % 4 from bit 2 (j / 4) on. */
void wina_dequant_q3_scales(const uint8_t packed[12], uint8_t scale[16]) {
    for (int j = 0; j < 16; j++)
        scale[j] = (uint8_t)((packed[j % 8] >> j / 8 * 4 & 15) |
                             (packed[8 + j % 4] >> j / 4 * 2 & 3) << 4);
}

void wina_dequant_q3_k(const uint8_t *src, float *dst, uint64_t n_blocks) {
    const wina_block_q3_k *b = (const wina_block_q3_k *)src;
    for (uint64_t i = 0; i < n_blocks; i++, b++) {
        float d = half_at(b->d);
        uint8_t scale[16];
        wina_dequant_q3_scales(b->scales, scale);
        for (int part = 0; part < 16; part++, dst += 16) {
            const uint8_t *qs = b->qs + part / 8 * 32 + part % 2 * 16;
            const uint8_t *high = b->hmask + part % 2 * 16;
            float ds = d * (float)(scale[part] - 32);
            for (int j = 0; j < 16; j++) {
                int q = (qs[j] >> part / 2 % 4 * 2 & 3) | (high[j] >> part / 2 & 1) << 2;
                dst[j] = ds * (float)(q - 4);
            }
        }
    }
}

/* 32 weights d * table[q] */
static void decode_table(const uint8_t *qs, float d, const int8_t table[16], float *dst) {
    for (int j = 0; j < 16; j++) {
        dst[j] = d * (float)table[qs[j] & 15];
        dst[j + 16] = d * (float)table[qs[j] >> 4];
    }
}

void wina_dequant_iq4_nl(const uint8_t *src, float *dst, uint64_t n_blocks) {
    const wina_block_iq4_nl *b = (const wina_block_iq4_nl *)src;
    for (uint64_t i = 0; i < n_blocks; i++, b++, dst += 32)
        decode_table(b->qs, half_at(b->d), wina_dequant_iq4_values, dst);
}

void wina_dequant_iq4_xs(const uint8_t *src, float *dst, uint64_t n_blocks) {
    const wina_block_iq4_xs *b = (const wina_block_iq4_xs *)src;
    for (uint64_t i = 0; i < n_blocks; i++, b++)
        for (int part = 0; part < 8; part++, dst += 32) {
            int scale = (b->scales_l[part / 2] >> part % 2 * 4 & 15) |
                        (b->scales_h[part / 4] >> part % 4 * 2 & 3) << 4;
            decode_table(b->qs + 16 * part, half_at(b->d) * (float)(scale - 32),
                         wina_dequant_iq4_values, dst);
        }
}

void wina_dequant_mxfp4(const uint8_t *src, float *dst, uint64_t n_blocks) {
    const wina_block_mxfp4 *b = (const wina_block_mxfp4 *)src;
    for (uint64_t i = 0; i < n_blocks; i++, b++, dst += 32)
        decode_table(b->qs, wina_e8m0_to_f32(b->e), wina_dequant_mxfp4_values, dst);
}

void wina_dequant_tq1_0(const uint8_t *src, float *dst, uint64_t n_blocks) {
    const wina_block_tq1_0 *b = (const wina_block_tq1_0 *)src;
    for (uint64_t i = 0; i < n_blocks; i++, b++) {
        float d = half_at(b->d);
        for (int j = 0; j < 160; j++)
            *dst++ = d * (float)(wina_dequant_digit(b->qs[j % 32], j / 32) - 1);
        for (int j = 0; j < 80; j++)
            *dst++ = d * (float)(wina_dequant_digit(b->qs[32 + j % 16], j / 16) - 1);
        for (int j = 0; j < 16; j++)
            *dst++ = d * (float)(wina_dequant_digit(b->qh[j % 4], j / 4) - 1);
    }
}

void wina_dequant_tq2_0(const uint8_t *src, float *dst, uint64_t n_blocks) {
    const wina_block_tq2_0 *b = (const wina_block_tq2_0 *)src;
    for (uint64_t i = 0; i < n_blocks; i++, b++) {
        float d = half_at(b->d);
        for (int run = 0; run < 8; run++, dst += 32)
            for (int j = 0; j < 32; j++)
                dst[j] = d * (float)((b->qs[run / 4 * 32 + j] >> run % 4 * 2 & 3) - 1);
    }
}
