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

#endif
