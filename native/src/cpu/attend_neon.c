/* NEON: attention over rows of the cache. Four rows are multiplied at once and their sixteen lanes
 * folded together. */
#include <math.h>

#include "neon.h"

/* Sixteen lanes of n more products (n <= 16) added to four vectors. */
WINA_INLINE void multiply_tail(const float *q, const float *k, int n, float32x4_t t[4]) {
    float a[16] = {0}, b[16] = {0};
    memcpy(a, q, (size_t)n * sizeof *a);
    memcpy(b, k, (size_t)n * sizeof *b);
    for (int v = 0; v < 4; v++)
        t[v] = vfmaq_f32(t[v], vld1q_f32(a + 4 * v), vld1q_f32(b + 4 * v));
}

/* Lanes of one row folded 16 -> 8 -> 4. */
WINA_INLINE float32x4_t multiply_row(const float *q, const float *k, int32_t n_dim) {
    float32x4_t t[4];
    for (int v = 0; v < 4; v++)
        t[v] = vdupq_n_f32(0.0f);
    int32_t i = 0;
    for (; i + 16 <= n_dim; i += 16)
#pragma GCC unroll 4
        for (int v = 0; v < 4; v++)
            t[v] = vfmaq_f32(t[v], vld1q_f32(q + i + 4 * v), vld1q_f32(k + i + 4 * v));
    if (i < n_dim)
        multiply_tail(q + i, k + i, n_dim - i, t);
    return vaddq_f32(vaddq_f32(t[0], t[2]), vaddq_f32(t[1], t[3]));
}

/* 4 -> 2 of two rows side by side. */
WINA_INLINE float32x4_t fold_two(float32x4_t a, float32x4_t b) {
    return vaddq_f32(vcombine_f32(vget_low_f32(a), vget_low_f32(b)),
                     vcombine_f32(vget_high_f32(a), vget_high_f32(b)));
}

void wina_attend_dots_neon(const float *q, const float *k, int32_t n_dim, int32_t n_rows,
                           float scale, float *s) {
    for (int32_t first = 0; first < n_rows; first += 4) {
        float32x4_t f[4];
#pragma GCC unroll 4
        for (int r = 0; r < 4; r++) { /* beyond the end: the last row again */
            const int32_t row = first + r < n_rows ? first + r : n_rows - 1;
            f[r] = multiply_row(q, k + (int64_t)row * n_dim, n_dim);
        }
        const float32x4_t sums =
            vmulq_n_f32(vpaddq_f32(fold_two(f[0], f[1]), fold_two(f[2], f[3])), scale);
        if (first + 4 <= n_rows) {
            vst1q_f32(s + first, sums);
        } else {
            float four[4];
            vst1q_f32(four, sums);
            memcpy(s + first, four, (size_t)(n_rows - first) * sizeof *s);
        }
    }
}

/* 4 * n dimensions, whose sums stay in registers over all rows. */
WINA_INLINE void add_rows(float *o, const float *p, const float *v, int n, int32_t stride,
                          int32_t n_rows) {
    float32x4_t t[16];
    for (int j = 0; j < n; j++)
        t[j] = vld1q_f32(o + 4 * j);
    for (int32_t r = 0; r < n_rows; r++, v += stride) {
        const float32x4_t w = vdupq_n_f32(p[r]);
        for (int j = 0; j < n; j++)
            t[j] = vfmaq_f32(t[j], w, vld1q_f32(v + 4 * j));
    }
    for (int j = 0; j < n; j++)
        vst1q_f32(o + 4 * j, t[j]);
}

void wina_attend_add_neon(float *o, const float *p, const float *v, int32_t n_dim, int32_t stride,
                          int32_t n_rows) {
    int32_t i = 0;
    for (; i + 64 <= n_dim; i += 64)
        add_rows(o + i, p, v + i, 16, stride, n_rows);
    for (; i + 16 <= n_dim; i += 16)
        add_rows(o + i, p, v + i, 4, stride, n_rows);
    for (; i + 4 <= n_dim; i += 4)
        add_rows(o + i, p, v + i, 1, stride, n_rows);
    for (; i < n_dim; i++)
        for (int32_t r = 0; r < n_rows; r++)
            o[i] = fmaf(p[r], v[(int64_t)r * stride + i], o[i]);
}

void wina_load_f16_neon(float *x, const void *rows, int32_t n_dim, int32_t n_rows) {
    const uint16_t *h = rows;
    const int64_t n = (int64_t)n_dim * n_rows;
    int64_t i = 0;
    for (; i + 8 <= n; i += 8) {
        const float16x8_t v = vreinterpretq_f16_u16(vld1q_u16(h + i));
        vst1q_f32(x + i, vcvt_f32_f16(vget_low_f16(v)));
        vst1q_f32(x + i + 4, vcvt_high_f32_f16(v));
    }
    for (; i < n; i++)
        x[i] = wina_f16_to_f32(h[i]);
}

void wina_store_f16_neon(void *row, const float *x, int32_t n_dim) {
    uint16_t *y = row;
    int32_t i = 0;
    for (; i + 4 <= n_dim; i += 4)
        vst1_u16(y + i, vreinterpret_u16_f16(vcvt_f16_f32(vld1q_f32(x + i))));
    for (; i < n_dim; i++)
        y[i] = wina_f32_to_f16(x[i]);
}

void wina_load_q8_0_neon(float *x, const void *rows, int32_t n_dim, int32_t n_rows) {
    const uint8_t *block = rows;
    for (int32_t r = 0; r < n_rows; r++, x += n_dim)
        for (int32_t i = 0; i < n_dim; i += WINA_CACHE_BLOCK, block += WINA_CACHE_BLOCK_BYTES) {
            uint16_t half;
            memcpy(&half, block, sizeof half);
            const float d = wina_f16_to_f32(half);
            const int8_t *values = (const int8_t *)block + 2;
            int32_t k = 0;
            for (; k < WINA_CACHE_BLOCK && i + k + 8 <= n_dim; k += 8) {
                const int16x8_t v = vmovl_s8(vld1_s8(values + k));
                float *out = x + i + k;
                vst1q_f32(out, vmulq_n_f32(vcvtq_f32_s32(vmovl_s16(vget_low_s16(v))), d));
                vst1q_f32(out + 4, vmulq_n_f32(vcvtq_f32_s32(vmovl_high_s16(v)), d));
            }
            for (; k < WINA_CACHE_BLOCK && i + k < n_dim; k++)
                x[i + k] = d * (float)values[k];
        }
}
