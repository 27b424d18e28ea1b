/* piece: the readers. The blocks are described in dequant.h. */
#include "piece.h"

#include "dequant.h"

static uint16_t load_u16(const uint8_t *p) {
    return (uint16_t)(p[0] | p[1] << 8);
}

static void split_nibbles(const uint8_t *restrict qs, uint8_t *restrict q) {
    for (int i = 0; i < 16; i++) {
        q[i] = qs[i] & 15;
        q[i + 16] = qs[i] >> 4;
    }
}

static void add_fifth_bits(const uint8_t *restrict qh, uint8_t *restrict q) {
    for (int i = 0; i < 32; i++)
        q[i] |= (uint8_t)((qh[i / 8] >> (i % 8) & 1) << 4);
}

static inline void q8_0(const uint8_t *restrict row, int32_t b, int32_t r,
                        wina_pieces *restrict out) {
    uint8_t *restrict q = out->q[r];
    const wina_block_q8_0 *p = (const wina_block_q8_0 *)row + b;
    out->d[r] = load_u16(p->d);
    for (int i = 0; i < 32; i++)
        q[i] = p->qs[i] ^ 0x80;
}

static inline void q4_0(const uint8_t *restrict row, int32_t b, int32_t r,
                        wina_pieces *restrict out) {
    uint8_t *restrict q = out->q[r];
    const wina_block_q4_0 *p = (const wina_block_q4_0 *)row + b;
    out->d[r] = load_u16(p->d);
    split_nibbles(p->qs, q);
}

static inline void q4_1(const uint8_t *restrict row, int32_t b, int32_t r,
                        wina_pieces *restrict out) {
    uint8_t *restrict q = out->q[r];
    const wina_block_q4_1 *p = (const wina_block_q4_1 *)row + b;
    out->d[r] = load_u16(p->d);
    out->m[r] = load_u16(p->m);
    split_nibbles(p->qs, q);
}

static inline void q5_0(const uint8_t *restrict row, int32_t b, int32_t r,
                        wina_pieces *restrict out) {
    uint8_t *restrict q = out->q[r];
    const wina_block_q5_0 *p = (const wina_block_q5_0 *)row + b;
    out->d[r] = load_u16(p->d);
    split_nibbles(p->qs, q);
    add_fifth_bits(p->qh, q);
}

static inline void q5_1(const uint8_t *restrict row, int32_t b, int32_t r,
                        wina_pieces *restrict out) {
    uint8_t *restrict q = out->q[r];
    const wina_block_q5_1 *p = (const wina_block_q5_1 *)row + b;
    out->d[r] = load_u16(p->d);
    out->m[r] = load_u16(p->m);
    split_nibbles(p->qs, q);
    add_fifth_bits(p->qh, q);
}

/* ---- super-blocks of 256 ------------------------------------------------------------------- */

/* Run r of 32 two-bit values: bits 2 (r % 4) of 32 bytes that four runs share. */
static void take_pairs(const uint8_t *restrict qs, int run, uint8_t *restrict q) {
    const uint8_t *from = qs + run / 4 * 32;
    for (int i = 0; i < 32; i++)
        q[i] = from[i] >> run % 4 * 2 & 3;
}

/* Six-bit scale and min number j of a Q4_K or Q5_K block. */
static void k_scale(const uint8_t *s, int j, uint8_t *scale, uint8_t *min) {
    if (j < 4) {
        *scale = s[j] & 63;
        *min = s[j + 4] & 63;
    } else {
        *scale = (uint8_t)((s[j + 4] & 15) | s[j - 4] >> 6 << 4);
        *min = (uint8_t)(s[j + 4] >> 4 | s[j] >> 6 << 4);
    }
}

static inline void q2_k(const uint8_t *restrict row, int32_t b, int32_t r,
                        wina_pieces *restrict out) {
    uint8_t *restrict q = out->q[r];
    const wina_block_q2_k *p = (const wina_block_q2_k *)row + b / 8;
    out->d[r] = load_u16(p->d);
    out->m[r] = load_u16(p->dmin);
    out->s[0][r] = p->scales[b % 8 * 2];
    out->s[1][r] = p->scales[b % 8 * 2 + 1];
    take_pairs(p->qs, b % 8, q);
}

static inline void q3_k(const uint8_t *restrict row, int32_t b, int32_t r,
                        wina_pieces *restrict out) {
    uint8_t *restrict q = out->q[r];
    const wina_block_q3_k *p = (const wina_block_q3_k *)row + b / 8;
    const int run = b % 8;
    uint8_t scale[16];
    wina_dequant_q3_scales(p->scales, scale);
    out->d[r] = load_u16(p->d);
    out->s[0][r] = (uint8_t)(scale[2 * run] - 32);
    out->s[1][r] = (uint8_t)(scale[2 * run + 1] - 32);
    take_pairs(p->qs, run, q);
    for (int i = 0; i < 32; i++)
        q[i] |= (uint8_t)((p->hmask[i] >> run & 1) << 2);
}

static void read_nibbles(const uint8_t *restrict qs, int part, uint8_t *restrict q) {
    for (int i = 0; i < 32; i++)
        q[i] = part % 2 ? qs[32 * (part / 2) + i] >> 4 : qs[32 * (part / 2) + i] & 15;
}

static inline void q4_k(const uint8_t *restrict row, int32_t b, int32_t r,
                        wina_pieces *restrict out) {
    uint8_t *restrict q = out->q[r];
    const wina_block_q4_k *p = (const wina_block_q4_k *)row + b / 8;
    out->d[r] = load_u16(p->d);
    out->m[r] = load_u16(p->dmin);
    k_scale(p->scales, b % 8, &out->s[0][r], &out->s[1][r]);
    read_nibbles(p->qs, b % 8, q);
}

static inline void q5_k(const uint8_t *restrict row, int32_t b, int32_t r,
                        wina_pieces *restrict out) {
    uint8_t *restrict q = out->q[r];
    const wina_block_q5_k *p = (const wina_block_q5_k *)row + b / 8;
    out->d[r] = load_u16(p->d);
    out->m[r] = load_u16(p->dmin);
    k_scale(p->scales, b % 8, &out->s[0][r], &out->s[1][r]);
    read_nibbles(p->qs, b % 8, q);
    for (int i = 0; i < 32; i++)
        q[i] |= (uint8_t)((p->qh[i] >> b % 8 & 1) << 4);
}

static inline void q6_k(const uint8_t *restrict row, int32_t b, int32_t r,
                        wina_pieces *restrict out) {
    uint8_t *restrict q = out->q[r];
    /* 2 halves of 128; in a half, low bits of quarter k and k + 2 share bytes. */
    const wina_block_q6_k *p = (const wina_block_q6_k *)row + b / 8;
    const int j = b % 8, half = j / 4, quarter = j % 4;
    const uint8_t *ql = p->ql + 64 * half + 32 * (quarter % 2), *qh = p->qh + 32 * half;
    for (int i = 0; i < 32; i++) {
        uint8_t low = quarter < 2 ? ql[i] & 15 : ql[i] >> 4;
        q[i] = (uint8_t)(low | (qh[i] >> (2 * quarter) & 3) << 4);
    }
    out->s[0][r] = p->scales[2 * j];
    out->s[1][r] = p->scales[2 * j + 1];
    out->d[r] = load_u16(p->d);
}

static inline void iq4_xs(const uint8_t *restrict row, int32_t b, int32_t r,
                          wina_pieces *restrict out) {
    uint8_t *restrict q = out->q[r];
    const wina_block_iq4_xs *p = (const wina_block_iq4_xs *)row + b / 8;
    const int j = b % 8;
    const int scale = (p->scales_l[j / 2] >> j % 2 * 4 & 15) | (p->scales_h[j / 4] >> j % 4 * 2 & 3)
                                                                   << 4;
    out->d[r] = load_u16(p->d);
    out->s[0][r] = (uint8_t)(scale - 32);
    split_nibbles(p->qs + 16 * j, q);
}

static inline void mxfp4(const uint8_t *restrict row, int32_t b, int32_t r,
                         wina_pieces *restrict out) {
    uint8_t *restrict q = out->q[r];
    const wina_block_mxfp4 *p = (const wina_block_mxfp4 *)row + b;
    out->s[0][r] = p->e;
    split_nibbles(p->qs, q);
}

/* All blocks of the ternary types get the scale of their super-block. */
static inline void tq1_0(const uint8_t *restrict row, int32_t b, int32_t r,
                         wina_pieces *restrict out) {
    uint8_t *restrict q = out->q[r];
    const wina_block_tq1_0 *p = (const wina_block_tq1_0 *)row + b / 8;
    out->d[r] = load_u16(p->d);
    for (int i = 0; i < 32; i++) {
        const int at = (b & 7) * 32 + i, second = at - 160, last = at - 240;
        q[i] = at < 160   ? wina_dequant_digit(p->qs[at % 32], at / 32)
               : last < 0 ? wina_dequant_digit(p->qs[32 + second % 16], second / 16)
                          : wina_dequant_digit(p->qh[last % 4], last / 4);
    }
}

static inline void tq2_0(const uint8_t *restrict row, int32_t b, int32_t r,
                         wina_pieces *restrict out) {
    uint8_t *restrict q = out->q[r];
    const wina_block_tq2_0 *p = (const wina_block_tq2_0 *)row + b / 8;
    out->d[r] = load_u16(p->d);
    take_pairs(p->qs, b % 8, q);
}

/* ---- whole strips --------------------------------------------------------------------------- */

#define DEFINE(type)                                                                               \
    WINA_PIECE_READER(wina_piece_##type) {                                                         \
        for (int32_t r = 0; r < n_rows; r++)                                                       \
            type(rows + (uint64_t)r * row_bytes, b, r, out);                                       \
    }

DEFINE(q8_0)
DEFINE(q4_0)
DEFINE(q4_1)
DEFINE(q5_0)
DEFINE(q5_1)
DEFINE(q2_k)
DEFINE(q3_k)
DEFINE(q4_k)
DEFINE(q5_k)
DEFINE(q6_k)
DEFINE(iq4_xs)
DEFINE(mxfp4)
DEFINE(tq1_0)
DEFINE(tq2_0)
