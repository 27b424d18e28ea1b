/* quantize: floats to blocks of the quantised formats. Scales, and minima where a format has them,
 * are searched for: candidates quantise the weights, weighted least squares gives the best scale
 * for these integers, and the candidate with the least weighted squared error wins. Plain C without
 * fused operations and sums in one written order: the same bytes everywhere. */
#ifndef WINA_QUANTIZE_H
#define WINA_QUANTIZE_H

#include <stdint.h>

enum { WINA_QUANTIZE_PART = 32 }; /* the most weights that share a scale */

/* What a search fits: n weights, 16 or 32, and how much an error in each of them matters (w > 0
 * where it matters at all). */
typedef struct wina_quantize_part {
    int n;
    float x[WINA_QUANTIZE_PART], w[WINA_QUANTIZE_PART];
} wina_quantize_part;

/* x ~ scale * q + low with 0 <= q <= top. low_above 0: low <= 0. q: (n) or NULL. */
void wina_quantize_affine(const wina_quantize_part *part, int top, int low_above, float *scale,
                          float *low, uint8_t *q);

/* x ~ scale * (q - half) with 0 <= q < 2 half; scale may be negative. q: (n) or NULL. */
void wina_quantize_symmetric(const wina_quantize_part *part, int half, float *scale, uint8_t *q);

/* The nearest q in 0..top for given scale and low, and the weighted squared error. q: (n) or NULL.
 */
double wina_quantize_nearest(const wina_quantize_part *part, int top, float scale, float low,
                             uint8_t *q);

/* n_blocks blocks at x to dst. importance: a factor per weight, or NULL (K-quants: then errors in
 * large weights count more). variance: the mean square of the row. */
typedef void (*wina_quantize_fn)(const float *x, const float *importance, float variance,
                                 uint8_t *dst, int64_t n_blocks);
void wina_quantize_q4_0(const float *x, const float *importance, float variance, uint8_t *dst,
                        int64_t n_blocks);
void wina_quantize_q4_1(const float *x, const float *importance, float variance, uint8_t *dst,
                        int64_t n_blocks);
void wina_quantize_q5_0(const float *x, const float *importance, float variance, uint8_t *dst,
                        int64_t n_blocks);
void wina_quantize_q5_1(const float *x, const float *importance, float variance, uint8_t *dst,
                        int64_t n_blocks);
void wina_quantize_q4_k(const float *x, const float *importance, float variance, uint8_t *dst,
                        int64_t n_blocks);
void wina_quantize_q5_k(const float *x, const float *importance, float variance, uint8_t *dst,
                        int64_t n_blocks);
void wina_quantize_q6_k(const float *x, const float *importance, float variance, uint8_t *dst,
                        int64_t n_blocks);

#endif
