/* dequant: the blocks of the quantised formats and their scalar decoders. All members are bytes,
 * so a block may lie at any address. d and m are IEEE halves, little-endian. The order of the
 * float32 operations is part of the definition: it is gguf-py's. */
#ifndef WINA_DEQUANT_H
#define WINA_DEQUANT_H

#include <stdint.h>

/* 32 weights. Byte j of qs: weight j in the low nibble, weight j + 16 in the high one; bit j of
 * qh: bit 4 of weight j. */
typedef struct wina_block_q4_0 { /* d * (q - 8) */
    uint8_t d[2], qs[16];
} wina_block_q4_0;
typedef struct wina_block_q4_1 { /* d * q + m */
    uint8_t d[2], m[2], qs[16];
} wina_block_q4_1;
typedef struct wina_block_q5_0 { /* d * (q - 16) */
    uint8_t d[2], qh[4], qs[16];
} wina_block_q5_0;
typedef struct wina_block_q5_1 { /* d * q + m */
    uint8_t d[2], m[2], qh[4], qs[16];
} wina_block_q5_1;
typedef struct wina_block_q8_0 { /* d * q, q signed */
    uint8_t d[2], qs[32];
} wina_block_q8_0;

/* 256 weights in 8 parts of 32: (d * scale[part]) * q - dmin * min[part], scales and mins of six
 * bits. Parts 2 i and 2 i + 1 are the low and the high nibbles of qs[32 i ...]; bit `part` of
 * qh[j]: bit 4 of weight j of that part. */
typedef struct wina_block_q4_k {
    uint8_t d[2], dmin[2], scales[12], qs[128];
} wina_block_q4_k;
typedef struct wina_block_q5_k {
    uint8_t d[2], dmin[2], scales[12], qh[32], qs[128];
} wina_block_q5_k;

/* 256 weights in 16 parts of 16: (d * scale[part]) * (q - 32), signed scales of eight bits. Each
 * half of 128 weights is four runs of 32: low nibbles of ql in runs 0 and 1, high ones in 2 and 3;
 * bits 4 and 5 of run r from bits 2 r and 2 r + 1 of qh. */
typedef struct wina_block_q6_k {
    uint8_t ql[128], qh[64], scales[16], d[2];
} wina_block_q6_k;

/* 256 weights in 16 parts of 16, run r of 32 being bits 2 (r % 4) of qs[r / 4 * 32 ...]. Q2_K:
 * (d * scale) * q - dmin * min, four bits each, the scale in the low ones. Q3_K: (d * (scale - 32))
 * * (q - 4), bit 2 of run r in bit r of hmask, scales of six bits. */
typedef struct wina_block_q2_k {
    uint8_t scales[16], qs[64], d[2], dmin[2];
} wina_block_q2_k;
typedef struct wina_block_q3_k {
    uint8_t hmask[32], qs[64], scales[12], d[2];
} wina_block_q3_k;

/* Four bits that choose one of 16 integers, in the order of Q4_0. IQ4_NL: d * table[q]; IQ4_XS: 256
 * weights, (d * (scale - 32)) * table[q], six bits a scale per 32 weights, the upper two in
 * scales_h; MXFP4: e is an exponent, see wina_e8m0_to_f32. */
typedef struct wina_block_iq4_nl {
    uint8_t d[2], qs[16];
} wina_block_iq4_nl;
typedef struct wina_block_iq4_xs {
    uint8_t d[2], scales_h[2], scales_l[4], qs[128];
} wina_block_iq4_xs;
typedef struct wina_block_mxfp4 {
    uint8_t e, qs[16];
} wina_block_mxfp4;
extern const int8_t wina_dequant_iq4_values[16], wina_dequant_mxfp4_values[16];

/* 256 weights d * (q - 1), q from 0 to 2. TQ2_0: two bits, as Q2_K has them. TQ1_0: a byte is five
 * digits of base 3 as a fraction of 256 (four in qh), the first the most significant: weights
 * 32 i + j in qs[j], 160 + 16 i + j in qs[32 + j], 240 + 4 i + j in qh[j]. */
typedef struct wina_block_tq1_0 {
    uint8_t qs[48], qh[4], d[2];
} wina_block_tq1_0;
typedef struct wina_block_tq2_0 {
    uint8_t qs[64], d[2];
} wina_block_tq2_0;

/* Digit number i, 0..2, of a byte of TQ1_0. */
static inline uint8_t wina_dequant_digit(uint8_t byte, int i) {
    static const uint8_t power[5] = {1, 3, 9, 27, 81};
    /* NOLINTNEXTLINE(clang-analyzer-core*): i is what the comment above says */
    return (uint8_t)((uint8_t)(byte * power[i]) * 3 >> 8);
}

/* The sixteen scales, 0..63, of a Q3_K block. */
void wina_dequant_q3_scales(const uint8_t packed[12], uint8_t scale[16]);

/* The eight scales and mins of a Q4_K or Q5_K block. */
void wina_dequant_k_scales(const uint8_t packed[12], uint8_t scale[8], uint8_t min[8]);

/* n_blocks blocks at src to floats at dst. */
void wina_dequant_f32(const uint8_t *src, float *dst, uint64_t n_blocks);
void wina_dequant_f16(const uint8_t *src, float *dst, uint64_t n_blocks);
void wina_dequant_bf16(const uint8_t *src, float *dst, uint64_t n_blocks);
void wina_dequant_q4_0(const uint8_t *src, float *dst, uint64_t n_blocks);
void wina_dequant_q4_1(const uint8_t *src, float *dst, uint64_t n_blocks);
void wina_dequant_q5_0(const uint8_t *src, float *dst, uint64_t n_blocks);
void wina_dequant_q5_1(const uint8_t *src, float *dst, uint64_t n_blocks);
void wina_dequant_q8_0(const uint8_t *src, float *dst, uint64_t n_blocks);
void wina_dequant_q4_k(const uint8_t *src, float *dst, uint64_t n_blocks);
void wina_dequant_q5_k(const uint8_t *src, float *dst, uint64_t n_blocks);
void wina_dequant_q6_k(const uint8_t *src, float *dst, uint64_t n_blocks);
void wina_dequant_q2_k(const uint8_t *src, float *dst, uint64_t n_blocks);
void wina_dequant_q3_k(const uint8_t *src, float *dst, uint64_t n_blocks);
void wina_dequant_iq4_nl(const uint8_t *src, float *dst, uint64_t n_blocks);
void wina_dequant_iq4_xs(const uint8_t *src, float *dst, uint64_t n_blocks);
void wina_dequant_mxfp4(const uint8_t *src, float *dst, uint64_t n_blocks);
void wina_dequant_tq1_0(const uint8_t *src, float *dst, uint64_t n_blocks);
void wina_dequant_tq2_0(const uint8_t *src, float *dst, uint64_t n_blocks);

#endif
