/* quantize_k: the formats with blocks of 256. Parts of 32 (Q6_K: 16) have small integers as scales,
 * whose unit is the block's. Parts are fitted alone first; then the units are set, every part takes
 * the best of the integer scales around its own, and the units are fitted to what came out. */
#include <math.h>
#include <string.h>

#include "dequant.h"
#include "dtype.h"
#include "quantize.h"

enum { BLOCK = 256, N_PARTS = 8, TOP = 63, N_PARTS_Q6 = 16 };

static void put_half(uint8_t out[2], uint16_t h) {
    out[0] = (uint8_t)h;
    out[1] = (uint8_t)(h >> 8);
}

/* A part of n weights with what an error in each of them costs. */
static void take_part(const float *x, const float *importance, float variance, int n,
                      wina_quantize_part *p) {
    float sum = 0;
    p->n = n;
    memcpy(p->x, x, (size_t)n * sizeof *x);
    for (int i = 0; i < n; i++)
        sum += x[i] * x[i];
    const float typical = sqrtf(sum / (float)n);
    for (int i = 0; i < n; i++)
        p->w[i] =
            importance ? importance[i] * sqrtf(variance + x[i] * x[i]) : typical + fabsf(x[i]);
}

/* A block on its way to Q4_K or Q5_K. */
typedef struct affine_block {
    wina_quantize_part parts[N_PARTS];
    int top;
    uint16_t d, dmin; /* halves */
    uint8_t scale[N_PARTS], min[N_PARTS], q[BLOCK];
    double error;
} affine_block;

static int nearest_scale(float value, float unit) {
    float n = unit > 0 ? value / unit + 0.5f : 0;
    return n > (float)TOP ? TOP : (int)n;
}

static double part_error(const affine_block *b, int part, int scale, int min, uint8_t *q) {
    float d = wina_f16_to_f32(b->d), dmin = wina_f16_to_f32(b->dmin);
    return wina_quantize_nearest(&b->parts[part], b->top, d * (float)scale, -dmin * (float)min, q);
}

/* The best integers of every part for the units that are set, around scale and low as wanted. */
static void choose_scales(affine_block *b, const float *scale, const float *low) {
    float d = wina_f16_to_f32(b->d), dmin = wina_f16_to_f32(b->dmin);
    b->error = 0;
    for (int j = 0; j < N_PARTS; j++) {
        int s0 = nearest_scale(scale[j], d), m0 = nearest_scale(-low[j], dmin);
        double least = INFINITY;
        for (int s = s0 - 1; s <= s0 + 1; s++)
            for (int m = m0 - 1; m <= m0 + 1; m++) {
                if (s < 0 || s > TOP || m < 0 || m > TOP)
                    continue;
                double error = part_error(b, j, s, m, NULL);
                if (error < least) {
                    least = error;
                    b->scale[j] = (uint8_t)s;
                    b->min[j] = (uint8_t)m;
                }
            }
        b->error += part_error(b, j, b->scale[j], b->min[j], b->q + 32 * j);
    }
}

/* Units of least squares for the integers that are set: x ~ d (scale q) - dmin (min). */
static void fit_units(affine_block *b) {
    double uu = 0, uv = 0, vv = 0, xu = 0, xv = 0;
    for (int j = 0; j < N_PARTS; j++)
        for (int i = 0; i < 32; i++) {
            double w = (double)b->parts[j].w[i], x = (double)b->parts[j].x[i];
            double u = (double)(b->scale[j] * b->q[32 * j + i]), v = -(double)b->min[j];
            uu += w * u * u;
            uv += w * u * v;
            vv += w * v * v;
            xu += w * x * u;
            xv += w * x * v;
        }
    double det = uu * vv - uv * uv;
    double d = uu > 0 ? xu / uu : 0, dmin = 0;
    if (det > 1e-9 * uu * vv) {
        d = (xu * vv - xv * uv) / det;
        dmin = (xv * uu - xu * uv) / det;
    }
    if (d > 0 && dmin >= 0) {
        b->d = wina_f32_to_f16((float)d);
        b->dmin = wina_f32_to_f16((float)dmin);
    }
}

static void fit_block(affine_block *b) {
    float scale[N_PARTS], low[N_PARTS], most = 0, least = 0;
    for (int j = 0; j < N_PARTS; j++) {
        wina_quantize_affine(&b->parts[j], b->top, 0, &scale[j], &low[j], NULL);
        most = scale[j] > most ? scale[j] : most;
        least = low[j] < least ? low[j] : least;
    }
    b->d = wina_f32_to_f16(most / (float)TOP);
    b->dmin = wina_f32_to_f16(-least / (float)TOP);
    choose_scales(b, scale, low);
    affine_block other = *b;
    fit_units(&other);
    if (other.d != b->d || other.dmin != b->dmin) {
        choose_scales(&other, scale, low);
        if (other.error < b->error)
            *b = other;
    }
}

static void put_k_scales(const affine_block *b, uint8_t packed[12]) {
    for (int j = 0; j < 4; j++) {
        packed[j] = (uint8_t)(b->scale[j] | b->scale[j + 4] >> 4 << 6);
        packed[j + 4] = (uint8_t)(b->min[j] | b->min[j + 4] >> 4 << 6);
        packed[j + 8] = (uint8_t)((b->scale[j + 4] & 15) | (b->min[j + 4] & 15) << 4);
    }
}

static void fit_affine(const float *x, const float *importance, float variance, int top,
                       affine_block *b) {
    b->top = top;
    for (int j = 0; j < N_PARTS; j++)
        take_part(x + 32 * j, importance ? importance + 32 * j : NULL, variance, 32, &b->parts[j]);
    fit_block(b);
}

void wina_quantize_q4_k(const float *x, const float *importance, float variance, uint8_t *dst,
                        int64_t n_blocks) {
    wina_block_q4_k *out = (wina_block_q4_k *)dst;
    for (int64_t k = 0; k < n_blocks; k++, out++, x += BLOCK) {
        affine_block b;
        fit_affine(x, importance ? importance + k * BLOCK : NULL, variance, 15, &b);
        put_half(out->d, b.d);
        put_half(out->dmin, b.dmin);
        put_k_scales(&b, out->scales);
        for (int j = 0; j < 128; j++) {
            const uint8_t *q = b.q + j / 32 * 64 + j % 32;
            out->qs[j] = (uint8_t)(q[0] | q[32] << 4);
        }
    }
}

void wina_quantize_q5_k(const float *x, const float *importance, float variance, uint8_t *dst,
                        int64_t n_blocks) {
    wina_block_q5_k *out = (wina_block_q5_k *)dst;
    for (int64_t k = 0; k < n_blocks; k++, out++, x += BLOCK) {
        affine_block b;
        fit_affine(x, importance ? importance + k * BLOCK : NULL, variance, 31, &b);
        put_half(out->d, b.d);
        put_half(out->dmin, b.dmin);
        put_k_scales(&b, out->scales);
        for (int j = 0; j < 128; j++) {
            const uint8_t *q = b.q + j / 32 * 64 + j % 32;
            out->qs[j] = (uint8_t)((q[0] & 15) | (q[32] & 15) << 4);
        }
        memset(out->qh, 0, sizeof out->qh);
        for (int j = 0; j < BLOCK; j++)
            out->qh[j % 32] |= (uint8_t)(b.q[j] >> 4 << j / 32);
    }
}

void wina_quantize_q6_k(const float *x, const float *importance, float variance, uint8_t *dst,
                        int64_t n_blocks) {
    wina_block_q6_k *out = (wina_block_q6_k *)dst;
    for (int64_t k = 0; k < n_blocks; k++, out++, x += BLOCK) {
        wina_quantize_part parts[N_PARTS_Q6];
        float scale[N_PARTS_Q6], peak = 0;
        uint8_t q[BLOCK];
        for (int j = 0; j < N_PARTS_Q6; j++) {
            take_part(x + 16 * j, importance ? importance + k * BLOCK + 16 * j : NULL, variance, 16,
                      &parts[j]);
            wina_quantize_symmetric(&parts[j], 32, &scale[j], NULL);
            peak = fabsf(scale[j]) > fabsf(peak) ? scale[j] : peak;
        }
        /* The signed byte with the most room goes to the largest scale. */
        const uint16_t half = wina_f32_to_f16(peak / -128.0f);
        const float d = wina_f16_to_f32(half);
        for (int j = 0; j < N_PARTS_Q6; j++) {
            float wanted = d != 0 ? scale[j] / d : 0;
            int middle = (int)floorf((wanted > 127 ? 127 : wanted < -128 ? -128 : wanted) + 0.5f);
            double least = INFINITY;
            int best = 0;
            for (int s = middle - 1; s <= middle + 1; s++) {
                if (s < -128 || s > 127)
                    continue;
                float ds = d * (float)s;
                double error = wina_quantize_nearest(&parts[j], 63, ds, -32.0f * ds, NULL);
                if (error < least) {
                    least = error;
                    best = s;
                }
            }
            float ds = d * (float)best;
            wina_quantize_nearest(&parts[j], 63, ds, -32.0f * ds, q + 16 * j);
            out->scales[j] = (uint8_t)best;
        }
        put_half(out->d, half);
        memset(out->qh, 0, sizeof out->qh);
        for (int j = 0; j < 64; j++) {
            /* Runs r and r + 2 of a half share the bytes of ql, all four those of qh. */
            for (int h = 0; h < 2; h++)
                out->ql[64 * h + j] =
                    (uint8_t)((q[128 * h + j] & 15) | (q[128 * h + j + 64] & 15) << 4);
        }
        for (int j = 0; j < BLOCK; j++)
            out->qh[j / 128 * 32 + j % 32] |= (uint8_t)(q[j] >> 4 << j % 128 / 32 * 2);
    }
}
