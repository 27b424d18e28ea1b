/* AVX2, FMA and F16C: attention over rows of the cache. Eight rows are multiplied at once, so that
 * their sixteen lanes are folded together, a fold of eight rows taking three shuffled additions. */
#include "avx2.h"

INLINE __m256i tail_mask(int n) { /* the first n of eight lanes */
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

/* Lanes 0..7 and 8..15 of four rows' products, already folded to eight. */
INLINE void multiply_four(const float *q, const float *const k[4], int32_t n_dim, __m256 f[4]) {
    __m256 a[4], b[4];
    for (int r = 0; r < 4; r++)
        a[r] = b[r] = _mm256_setzero_ps();
    int32_t i = 0;
    for (; i + 16 <= n_dim; i += 16) {
        const __m256 q0 = _mm256_loadu_ps(q + i), q1 = _mm256_loadu_ps(q + i + 8);
        for (int r = 0; r < 4; r++) {
            a[r] = _mm256_fmadd_ps(q0, _mm256_loadu_ps(k[r] + i), a[r]);
            b[r] = _mm256_fmadd_ps(q1, _mm256_loadu_ps(k[r] + i + 8), b[r]);
        }
    }
    if (i < n_dim) {
        const __m256i m0 = tail_mask(n_dim - i), m1 = tail_mask(n_dim - i - 8);
        const __m256 q0 = _mm256_maskload_ps(q + i, m0), q1 = _mm256_maskload_ps(q + i + 8, m1);
        for (int r = 0; r < 4; r++) {
            a[r] = _mm256_fmadd_ps(q0, _mm256_maskload_ps(k[r] + i, m0), a[r]);
            b[r] = _mm256_fmadd_ps(q1, _mm256_maskload_ps(k[r] + i + 8, m1), b[r]);
        }
    }
    for (int r = 0; r < 4; r++)
        f[r] = _mm256_add_ps(a[r], b[r]);
}

void wina_attend_dots_avx2(const float *q, const float *k, int32_t n_dim, int32_t n_rows,
                           float scale, float *s) {
    for (int32_t first = 0; first < n_rows; first += 8) {
        const float *row[8]; /* beyond the end: the last row again */
        for (int r = 0; r < 8; r++)
            row[r] = k + (int64_t)(first + r < n_rows ? first + r : n_rows - 1) * n_dim;
        __m256 f[8];
        multiply_four(q, row, n_dim, f);
        multiply_four(q, row + 4, n_dim, f + 4);
        const __m256 sums = _mm256_mul_ps(fold_eight(f), _mm256_set1_ps(scale));
        if (first + 8 <= n_rows)
            _mm256_storeu_ps(s + first, sums);
        else
            _mm256_maskstore_ps(s + first, tail_mask(n_rows - first), sums);
    }
}

/* 8 * n dimensions, whose sums stay in registers over all rows. */
INLINE void add_rows(float *o, const float *p, const float *v, int n, int32_t stride,
                     int32_t n_rows) {
    __m256 t[8];
    for (int j = 0; j < n; j++)
        t[j] = _mm256_loadu_ps(o + 8 * j);
    for (int32_t r = 0; r < n_rows; r++, v += stride) {
        const __m256 w = _mm256_broadcast_ss(p + r);
        for (int j = 0; j < n; j++)
            t[j] = _mm256_fmadd_ps(w, _mm256_loadu_ps(v + 8 * j), t[j]);
    }
    for (int j = 0; j < n; j++)
        _mm256_storeu_ps(o + 8 * j, t[j]);
}

void wina_attend_add_avx2(float *o, const float *p, const float *v, int32_t n_dim, int32_t stride,
                          int32_t n_rows) {
    int32_t i = 0;
    for (; i + 64 <= n_dim; i += 64)
        add_rows(o + i, p, v + i, 8, stride, n_rows);
    for (; i + 32 <= n_dim; i += 32)
        add_rows(o + i, p, v + i, 4, stride, n_rows);
    for (; i + 8 <= n_dim; i += 8)
        add_rows(o + i, p, v + i, 1, stride, n_rows);
    if (i == n_dim)
        return;
    const __m256i mask = tail_mask(n_dim - i);
    __m256 t = _mm256_maskload_ps(o + i, mask);
    for (int32_t r = 0; r < n_rows; r++)
        t = _mm256_fmadd_ps(_mm256_broadcast_ss(p + r),
                            _mm256_maskload_ps(v + (int64_t)r * stride + i, mask), t);
    _mm256_maskstore_ps(o + i, mask, t);
}

/* exp_one of kernels_generic.h for eight. */
INLINE __m256 exp_eight(__m256 x) {
    x = _mm256_max_ps(_mm256_set1_ps(-87.0f), x); /* the second one if it is a NaN */
    x = _mm256_min_ps(_mm256_set1_ps(88.0f), x);
    const __m256 n = _mm256_round_ps(_mm256_mul_ps(x, _mm256_set1_ps(1.44269504f)),
                                     _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m256 r = _mm256_fmadd_ps(n, _mm256_set1_ps(-0.693359375f), x);
    r = _mm256_fmadd_ps(n, _mm256_set1_ps(2.12194440e-4f), r);
    __m256 p =
        _mm256_fmadd_ps(_mm256_set1_ps(1.9875691500e-4f), r, _mm256_set1_ps(1.3981999507e-3f));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(8.3334519073e-3f));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(4.1665795894e-2f));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.6666665459e-1f));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(5.0000001201e-1f));
    p = _mm256_add_ps(_mm256_fmadd_ps(p, _mm256_mul_ps(r, r), r), _mm256_set1_ps(1.0f));
    const __m256i power =
        _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
    return _mm256_mul_ps(p, _mm256_castsi256_ps(power));
}

INLINE float largest(const float *s, int32_t n) {
    __m256 most = _mm256_set1_ps(s[0]);
    int32_t i = 0;
    for (; i + 8 <= n; i += 8)
        most = _mm256_max_ps(most, _mm256_loadu_ps(s + i));
    float eight[8], max = s[0];
    _mm256_storeu_ps(eight, most);
    for (int l = 0; l < 8; l++)
        max = eight[l] > max ? eight[l] : max;
    for (; i < n; i++)
        max = s[i] > max ? s[i] : max;
    return max;
}

float wina_softmax_part_avx2(float *s, int32_t n, float *sum) {
    const float max = largest(s, n);
    const __m256 shift = _mm256_set1_ps(max);
    __m256 t[2] = {_mm256_setzero_ps(), _mm256_setzero_ps()};
    int32_t i = 0;
    for (; i + 16 <= n; i += 16)
        for (int l = 0; l < 2; l++) {
            const __m256 e = exp_eight(_mm256_sub_ps(_mm256_loadu_ps(s + i + 8 * l), shift));
            _mm256_storeu_ps(s + i + 8 * l, e);
            t[l] = _mm256_add_ps(t[l], e);
        }
    for (int l = 0; l < 2 && i + 8 * l < n; l++) {
        const __m256i mask = tail_mask(n - i - 8 * l);
        const __m256 x = _mm256_maskload_ps(s + i + 8 * l, mask);
        const __m256 e =
            _mm256_and_ps(exp_eight(_mm256_sub_ps(x, shift)), _mm256_castsi256_ps(mask));
        _mm256_maskstore_ps(s + i + 8 * l, mask, e);
        t[l] = _mm256_add_ps(t[l], e);
    }
    *sum = fold_lanes_avx2(_mm256_add_ps(t[0], t[1]));
    return max;
}

void wina_load_q8_0_avx2(float *x, const void *rows, int32_t n_dim, int32_t n_rows) {
    const uint8_t *block = rows;
    for (int32_t r = 0; r < n_rows; r++, x += n_dim)
        for (int32_t i = 0; i < n_dim; i += WINA_CACHE_BLOCK, block += WINA_CACHE_BLOCK_BYTES) {
            uint16_t half;
            memcpy(&half, block, sizeof half);
            const __m256 d = _mm256_set1_ps(_cvtsh_ss(half));
            int32_t k = 0;
            for (; k < WINA_CACHE_BLOCK && i + k + 8 <= n_dim; k += 8)
                _mm256_storeu_ps(x + i + k, _mm256_mul_ps(d, signed_bytes(block + 2 + k)));
            if (k < WINA_CACHE_BLOCK && i + k < n_dim)
                _mm256_maskstore_ps(x + i + k, tail_mask(n_dim - i - k),
                                    _mm256_mul_ps(d, signed_bytes(block + 2 + k)));
        }
}
