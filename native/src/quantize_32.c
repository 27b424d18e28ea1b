/* quantize_32: the formats with blocks of 32 and one scale, in half precision, each. Without an
 * importance an error counts alike in every weight. */
#include <math.h>
#include <string.h>

#include "dequant.h"
#include "dtype.h"
#include "quantize.h"

enum { BLOCK = 32 };

static void put_half(uint8_t out[2], float f) {
    uint16_t h = wina_f32_to_f16(f);
    out[0] = (uint8_t)h;
    out[1] = (uint8_t)(h >> 8);
}

static float rounded(float f) {
    return wina_f16_to_f32(wina_f32_to_f16(f));
}

static void take_part(const float *x, const float *importance, float variance,
                      wina_quantize_part *p) {
    p->n = BLOCK;
    memcpy(p->x, x, BLOCK * sizeof *x);
    for (int i = 0; i < BLOCK; i++)
        p->w[i] = importance ? importance[i] * sqrtf(variance + x[i] * x[i]) : 1;
}

/* The integers of block k and its scale; then they are the nearest for the scale as stored. */
static float fit_symmetric(const float *x, const float *importance, float variance, int64_t k,
                           int half, uint8_t *q) {
    wina_quantize_part p;
    float scale;
    take_part(x + k * BLOCK, importance ? importance + k * BLOCK : NULL, variance, &p);
    wina_quantize_symmetric(&p, half, &scale, q);
    float d = rounded(scale);
    wina_quantize_nearest(&p, 2 * half - 1, d, -(float)half * d, q);
    return scale;
}

static float fit_affine(const float *x, const float *importance, float variance, int64_t k, int top,
                        float *low, uint8_t *q) {
    wina_quantize_part p;
    float scale;
    take_part(x + k * BLOCK, importance ? importance + k * BLOCK : NULL, variance, &p);
    wina_quantize_affine(&p, top, 1, &scale, low, q);
    wina_quantize_nearest(&p, top, rounded(scale), rounded(*low), q);
    return scale;
}

static void put_nibbles(const uint8_t *q, uint8_t qs[16]) {
    for (int j = 0; j < 16; j++)
        qs[j] = (uint8_t)((q[j] & 15) | (q[j + 16] & 15) << 4);
}

static void put_fifth_bits(const uint8_t *q, uint8_t qh[4]) {
    memset(qh, 0, 4);
    for (int j = 0; j < BLOCK; j++)
        qh[j / 8] |= (uint8_t)(q[j] >> 4 << j % 8);
}

void wina_quantize_q4_0(const float *x, const float *importance, float variance, uint8_t *dst,
                        int64_t n_blocks) {
    wina_block_q4_0 *out = (wina_block_q4_0 *)dst;
    for (int64_t k = 0; k < n_blocks; k++, out++) {
        uint8_t q[BLOCK];
        put_half(out->d, fit_symmetric(x, importance, variance, k, 8, q));
        put_nibbles(q, out->qs);
    }
}

void wina_quantize_q5_0(const float *x, const float *importance, float variance, uint8_t *dst,
                        int64_t n_blocks) {
    wina_block_q5_0 *out = (wina_block_q5_0 *)dst;
    for (int64_t k = 0; k < n_blocks; k++, out++) {
        uint8_t q[BLOCK];
        put_half(out->d, fit_symmetric(x, importance, variance, k, 16, q));
        put_nibbles(q, out->qs);
        put_fifth_bits(q, out->qh);
    }
}

void wina_quantize_q4_1(const float *x, const float *importance, float variance, uint8_t *dst,
                        int64_t n_blocks) {
    wina_block_q4_1 *out = (wina_block_q4_1 *)dst;
    for (int64_t k = 0; k < n_blocks; k++, out++) {
        uint8_t q[BLOCK];
        float low;
        put_half(out->d, fit_affine(x, importance, variance, k, 15, &low, q));
        put_half(out->m, low);
        put_nibbles(q, out->qs);
    }
}

void wina_quantize_q5_1(const float *x, const float *importance, float variance, uint8_t *dst,
                        int64_t n_blocks) {
    wina_block_q5_1 *out = (wina_block_q5_1 *)dst;
    for (int64_t k = 0; k < n_blocks; k++, out++) {
        uint8_t q[BLOCK];
        float low;
        put_half(out->d, fit_affine(x, importance, variance, k, 31, &low, q));
        put_half(out->m, low);
        put_nibbles(q, out->qs);
        put_fifth_bits(q, out->qh);
    }
}
