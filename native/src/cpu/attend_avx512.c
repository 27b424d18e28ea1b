/* AVX-512: attention over rows of the cache, eight rows at once as in attend_avx2.c; the sixteen
 * lanes of a sum are one register. */
#include "avx512.h"
#include "fold.h"

static inline __mmask16 tail_mask(int n) { /* the first n of sixteen lanes */
    return (__mmask16)(n >= 16 ? 0xffff : (1u << n) - 1);
}

/* Sixteen lanes folded to eight. */
static inline __m256 fold_half(__m512 x) {
    return _mm256_add_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps(x, 1));
}

void wina_attend_dots_avx512(const float *q, const float *k, int32_t n_dim, int32_t n_rows,
                             float scale, float *s) {
    for (int32_t first = 0; first < n_rows; first += 8) {
        const float *row[8]; /* beyond the end: the last row again */
        __m512 t[8];
        for (int r = 0; r < 8; r++) {
            row[r] = k + (int64_t)(first + r < n_rows ? first + r : n_rows - 1) * n_dim;
            t[r] = _mm512_setzero_ps();
        }
        int32_t i = 0;
        for (; i + 16 <= n_dim; i += 16) {
            const __m512 x = _mm512_loadu_ps(q + i);
            for (int r = 0; r < 8; r++)
                t[r] = _mm512_fmadd_ps(x, _mm512_loadu_ps(row[r] + i), t[r]);
        }
        if (i < n_dim) {
            const __mmask16 mask = tail_mask(n_dim - i);
            const __m512 x = _mm512_maskz_loadu_ps(mask, q + i);
            for (int r = 0; r < 8; r++)
                t[r] = _mm512_fmadd_ps(x, _mm512_maskz_loadu_ps(mask, row[r] + i), t[r]);
        }
        __m256 f[8];
        for (int r = 0; r < 8; r++)
            f[r] = fold_half(t[r]);
        const __m256 sums = _mm256_mul_ps(fold_eight(f), _mm256_set1_ps(scale));
        _mm256_mask_storeu_ps(s + first, (__mmask8)tail_mask(n_rows - first), sums);
    }
}

/* 16 * n dimensions, whose sums stay in registers over all rows. */
static inline __attribute__((always_inline)) void add_rows(float *o, const float *p, const float *v,
                                                           int n, int32_t stride, int32_t n_rows) {
    __m512 t[8];
    for (int j = 0; j < n; j++)
        t[j] = _mm512_loadu_ps(o + 16 * j);
    for (int32_t r = 0; r < n_rows; r++, v += stride) {
        const __m512 w = _mm512_set1_ps(p[r]);
        for (int j = 0; j < n; j++)
            t[j] = _mm512_fmadd_ps(w, _mm512_loadu_ps(v + 16 * j), t[j]);
    }
    for (int j = 0; j < n; j++)
        _mm512_storeu_ps(o + 16 * j, t[j]);
}

void wina_attend_add_avx512(float *o, const float *p, const float *v, int32_t n_dim, int32_t stride,
                            int32_t n_rows) {
    int32_t i = 0;
    for (; i + 128 <= n_dim; i += 128)
        add_rows(o + i, p, v + i, 8, stride, n_rows);
    for (; i + 64 <= n_dim; i += 64)
        add_rows(o + i, p, v + i, 4, stride, n_rows);
    for (; i < n_dim; i += 16) {
        const __mmask16 mask = tail_mask(n_dim - i);
        __m512 t = _mm512_maskz_loadu_ps(mask, o + i);
        for (int32_t r = 0; r < n_rows; r++)
            t = _mm512_fmadd_ps(_mm512_set1_ps(p[r]),
                                _mm512_maskz_loadu_ps(mask, v + (int64_t)r * stride + i), t);
        _mm512_mask_storeu_ps(o + i, mask, t);
    }
}

/* exp_one of kernels_generic.h for sixteen. */
static inline __m512 exp_sixteen(__m512 x) {
    x = _mm512_max_ps(_mm512_set1_ps(-87.0f), x); /* the second one if it is a NaN */
    x = _mm512_min_ps(_mm512_set1_ps(88.0f), x);
    const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)),
                                          _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m512 r = _mm512_fmadd_ps(n, _mm512_set1_ps(-0.693359375f), x);
    r = _mm512_fmadd_ps(n, _mm512_set1_ps(2.12194440e-4f), r);
    __m512 p =
        _mm512_fmadd_ps(_mm512_set1_ps(1.9875691500e-4f), r, _mm512_set1_ps(1.3981999507e-3f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(8.3334519073e-3f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(4.1665795894e-2f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.6666665459e-1f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(5.0000001201e-1f));
    p = _mm512_add_ps(_mm512_fmadd_ps(p, _mm512_mul_ps(r, r), r), _mm512_set1_ps(1.0f));
    const __m512i power =
        _mm512_slli_epi32(_mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127)), 23);
    return _mm512_mul_ps(p, _mm512_castsi512_ps(power));
}

float wina_softmax_part_avx512(float *s, int32_t n, float *sum) {
    __m512 most = _mm512_set1_ps(s[0]), t = _mm512_setzero_ps();
    for (int32_t i = 0; i < n; i += 16)
        most = _mm512_mask_max_ps(most, tail_mask(n - i), most,
                                  _mm512_maskz_loadu_ps(tail_mask(n - i), s + i));
    const float max = _mm512_reduce_max_ps(most);
    for (int32_t i = 0; i < n; i += 16) {
        const __mmask16 mask = tail_mask(n - i);
        const __m512 x = _mm512_maskz_loadu_ps(mask, s + i);
        const __m512 e = exp_sixteen(_mm512_sub_ps(x, _mm512_set1_ps(max)));
        _mm512_mask_storeu_ps(s + i, mask, e);
        t = _mm512_mask_add_ps(t, mask, t, e);
    }
    const __m256 f = fold_half(t);
    __m128 x = _mm_add_ps(_mm256_castps256_ps128(f), _mm256_extractf128_ps(f, 1));
    x = _mm_add_ps(x, _mm_movehl_ps(x, x));
    *sum = _mm_cvtss_f32(_mm_add_ss(x, _mm_shuffle_ps(x, x, 1)));
    return max;
}

void wina_load_q8_0_avx512(float *x, const void *rows, int32_t n_dim, int32_t n_rows) {
    const uint8_t *block = rows;
    for (int32_t r = 0; r < n_rows; r++, x += n_dim)
        for (int32_t i = 0; i < n_dim; i += WINA_CACHE_BLOCK, block += WINA_CACHE_BLOCK_BYTES) {
            uint16_t half;
            memcpy(&half, block, sizeof half);
            const __m512 d = _mm512_set1_ps(_cvtsh_ss(half));
            for (int32_t k = 0; k < WINA_CACHE_BLOCK && i + k < n_dim; k += 16)
                _mm512_mask_storeu_ps(x + i + k, tail_mask(n_dim - i - k),
                                      _mm512_mul_ps(d, signed_bytes(block + 2 + k)));
        }
}
