/* select_avx2: which inputs are kept, and their rounding, eight at a time.
 *
 * Scores are not negative, so their bits are ordered like integers. The threshold, the bits of the
 * n_keep-th largest score, is found from the highest bit down: a bit belongs to it if enough scores
 * reach the value with the bit set. Once few scores can still decide, only those are looked at. */
#include <float.h>
#include <math.h>

#include "avx2.h"

INLINE __m256i load_bits(const float *score, int32_t i) {
    return _mm256_and_si256(_mm256_loadu_si256((const __m256i *)(score + i)),
                            _mm256_set1_epi32(0x7fffffff));
}

INLINE int32_t sum_lanes(__m256i v) {
    __m128i s = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(s, _mm_shuffle_epi32(s, 0xb1)));
}

static int32_t bits_of(const float *score) {
    int32_t v;
    memcpy(&v, score, 4);
    return v & 0x7fffffff;
}

/* How many of n scores are at least `bits`. */
static int32_t count_from(const float *score, int32_t n, int32_t bits) {
    const __m256i below = _mm256_set1_epi32(bits - 1);
    __m256i count = _mm256_setzero_si256(), more = count;
    int32_t i = 0;
    for (; i + 16 <= n; i += 16) {
        count = _mm256_sub_epi32(count, _mm256_cmpgt_epi32(load_bits(score, i), below));
        more = _mm256_sub_epi32(more, _mm256_cmpgt_epi32(load_bits(score, i + 8), below));
    }
    int32_t total = sum_lanes(_mm256_add_epi32(count, more));
    for (; i < n; i++)
        total += bits_of(score + i) >= bits;
    return total;
}

/* Copies the scores whose bits are in [low, last]; returns how many. */
static int32_t copy_between(const float *score, int32_t n, int32_t low, int32_t last,
                            uint32_t *out) {
    const __m256i below = _mm256_set1_epi32(low - 1), above = _mm256_set1_epi32(last);
    int32_t i = 0, m = 0;
    for (; i + 8 <= n; i += 8) {
        const __m256i v = load_bits(score, i);
        const __m256i in =
            _mm256_andnot_si256(_mm256_cmpgt_epi32(v, above), _mm256_cmpgt_epi32(v, below));
        for (uint32_t mask = (uint32_t)_mm256_movemask_ps(_mm256_castsi256_ps(in)); mask;
             mask &= mask - 1)
            out[m++] = (uint32_t)bits_of(score + i + __builtin_ctz(mask));
    }
    for (; i < n; i++)
        if (bits_of(score + i) >= low && bits_of(score + i) <= last)
            out[m++] = (uint32_t)bits_of(score + i);
    return m;
}

/* Bits of the n_keep-th largest score; *n_equal of those equal to it are kept. */
static int32_t find_threshold(const float *score, int32_t n, int32_t n_keep, uint32_t *scratch,
                              int32_t *n_equal) {
    int32_t low = 0, n_from = n, n_above = 0; /* scores >= low; >= the range that is left */
    int bit = 30;
    for (; bit >= 0 && n_from - n_above > n / 32 + 16; bit--) {
        const int32_t count = count_from(score, n, low | 1 << bit);
        if (count >= n_keep)
            low |= 1 << bit, n_from = count;
        else
            n_above = count;
    }
    int32_t m = copy_between(score, n, low, low | (int32_t)((1u << (bit + 1)) - 1), scratch);
    for (; bit >= 0; bit--) {
        int32_t count = n_above;
        for (int32_t i = 0; i < m; i++)
            count += (int32_t)scratch[i] >= (low | 1 << bit);
        if (count >= n_keep)
            low |= 1 << bit;
    }
    n_from = n_above;
    for (int32_t i = 0; i < m; i++)
        n_from += (int32_t)scratch[i] > low;
    *n_equal = n_keep - n_from;
    return low;
}

/* Appends base + i for every bit i of the mask. Up to four entries beyond the last are written. */
INLINE int32_t append_lanes(int32_t *kept, int32_t base, uint32_t mask) {
    static const int8_t LANES_OF[16][4] = {
        {0}, {0},    {1},    {0, 1},    {2},    {0, 2},    {1, 2},    {0, 1, 2},
        {3}, {0, 3}, {1, 3}, {0, 1, 3}, {2, 3}, {0, 2, 3}, {1, 2, 3}, {0, 1, 2, 3}};
    int32_t low, high;
    memcpy(&low, LANES_OF[mask & 15], 4);
    memcpy(&high, LANES_OF[mask >> 4], 4);
    const int32_t n_low = __builtin_popcount(mask & 15);
    _mm_storeu_si128((__m128i *)kept, _mm_add_epi32(_mm_cvtepi8_epi32(_mm_cvtsi32_si128(low)),
                                                    _mm_set1_epi32(base)));
    _mm_storeu_si128(
        (__m128i *)(kept + n_low),
        _mm_add_epi32(_mm_cvtepi8_epi32(_mm_cvtsi32_si128(high)), _mm_set1_epi32(base + 4)));
    return n_low + __builtin_popcount(mask >> 4);
}

void wina_select_avx2(const float *score, int32_t n, int32_t n_keep, int32_t *kept,
                      uint32_t *scratch) {
    int32_t i = 0, m = 0, n_equal = n;
    if (n_keep >= n) {
        for (; i < n; i++)
            kept[i] = i;
        return;
    }
    const int32_t threshold = find_threshold(score, n, n_keep, scratch, &n_equal);
    const __m256i limit = _mm256_set1_epi32(threshold);
    /* Whole vectors may write eight entries; the list must not end before them. */
    for (; i + 8 <= n && m + 8 <= n_keep; i += 8) {
        const __m256i v = load_bits(score, i);
        const uint32_t above =
            (uint32_t)_mm256_movemask_ps(_mm256_castsi256_ps(_mm256_cmpgt_epi32(v, limit)));
        uint32_t equal =
            (uint32_t)_mm256_movemask_ps(_mm256_castsi256_ps(_mm256_cmpeq_epi32(v, limit)));
        while (__builtin_popcount(equal) > n_equal) /* the last ones go */
            equal &= ~(1u << (31 - __builtin_clz(equal)));
        n_equal -= __builtin_popcount(equal);
        m += append_lanes(kept + m, i, above | equal);
    }
    for (; i < n && m < n_keep; i++) {
        const int32_t v = bits_of(score + i);
        const bool tie = v == threshold && n_equal > 0;
        n_equal -= tie;
        if (v > threshold || tie)
            kept[m++] = i;
    }
}

/* ---- rounding ----------------------------------------------------------------------------- */

/* As activation_scale of kernels_generic.h. */
INLINE float scale_of(float amax, float *inverse) {
    *inverse = 0.0f;
    if (!(amax <= FLT_MAX))
        return NAN;
    if (amax < 1e-30f)
        return 0.0f;
    *inverse = (float)WINA_ACT_MAX / amax;
    return amax / (float)WINA_ACT_MAX;
}

/* Largest magnitude of n values, n a multiple of 8; NaN if there is one. */
INLINE float largest(const float *x, int32_t n) {
    const __m256 magnitude = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff));
    __m256i m = _mm256_setzero_si256(); /* magnitudes are ordered like their bits, NaN on top */
    for (int32_t i = 0; i < n; i += 8)
        m = _mm256_max_epi32(m,
                             _mm256_castps_si256(_mm256_and_ps(_mm256_loadu_ps(x + i), magnitude)));
    __m128i s = _mm_max_epi32(_mm256_castsi256_si128(m), _mm256_extracti128_si256(m, 1));
    s = _mm_max_epi32(s, _mm_shuffle_epi32(s, 0x4e));
    s = _mm_max_epi32(s, _mm_shuffle_epi32(s, 0xb1));
    return _mm_cvtss_f32(_mm_castsi128_ps(s));
}

/* Rounds n values, n a multiple of 8: 256 hi + lo = x. Returns their sum. */
INLINE int32_t round_values(const float *v, int32_t n, float inverse, int8_t *hi, int8_t *lo,
                            int16_t *x) {
    const __m256 by = _mm256_set1_ps(inverse);
    __m256i sum = _mm256_setzero_si256();
    for (int32_t i = 0; i < n; i += 8) {
        __m256i q = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(v + i), by));
        sum = _mm256_add_epi32(sum, q);
        __m128i w = _mm_packs_epi32(_mm256_castsi256_si128(q), _mm256_extracti128_si256(q, 1));
        __m128i h = _mm_srai_epi16(_mm_add_epi16(w, _mm_set1_epi16(128)), 8);
        __m128i l = _mm_sub_epi16(w, _mm_slli_epi16(h, 8));
        _mm_storeu_si128((__m128i *)(x + i), w);
        _mm_storel_epi64((__m128i *)(hi + i), _mm_packs_epi16(h, h));
        _mm_storel_epi64((__m128i *)(lo + i), _mm_packs_epi16(l, l));
    }
    return sum_lanes(sum);
}

void wina_quantize_avx2(const float *x, const int32_t *kept, int32_t n_kept, int32_t n_cols,
                        int32_t sub, wina_quads *out) {
    const int32_t n_sub = (n_cols + sub - 1) / sub;
    uint32_t n = 0;
    for (int32_t s = 0, k = 0; s < n_sub; s++) {
        float v[WINA_BLOCK + 8];
        const int32_t end = (s + 1) * sub;
        int32_t m = 0;
        for (; k < n_kept && kept[k] < end; k++, m++) {
            v[m] = x[kept[k]];
            out->col[n + (uint32_t)m] = (uint8_t)(kept[k] % WINA_BLOCK);
        }
        for (int32_t i = m; i < (m + 7) / 8 * 8; i++)
            v[i] = 0.0f;
        float inverse;
        out->first[s] = n / 4;
        out->scale[s] = scale_of(largest(v, (m + 7) / 8 * 8), &inverse);
        if (inverse == 0.0f) /* zeros, or NaN and infinity, which the scale carries */
            memset(v, 0, sizeof v);
        out->sum[s] =
            round_values(v, (m + 7) / 8 * 8, inverse, out->hi + n, out->lo + n, out->x + n);
        for (; m % 4 != 0; m++)
            out->col[n + (uint32_t)m] = out->col[n + (uint32_t)m - 1];
        n += (uint32_t)m;
    }
    out->first[n_sub] = n / 4;
}

void wina_quantize_row_avx2(const wina_batch *b, int32_t token, int which) {
    const int32_t sub = which ? 16 : 32, n_sub = (int32_t)(b->stride / sub);
    const float zeros[WINA_BLOCK] = {0};
    for (int32_t s = 0; s < n_sub; s++) {
        const int64_t at = wina_batch_at(b, s * sub / WINA_BLOCK, token) + s * sub % WINA_BLOCK;
        const int64_t i = wina_batch_sub(b, s, token);
        const float *x = b->x + at;
        float inverse;
        b->scale[which][i] = scale_of(largest(x, sub), &inverse);
        b->sum[which][i] = round_values(inverse == 0.0f ? zeros : x, sub, inverse,
                                        b->hi[which] + at, b->lo[which] + at, b->x16[which] + at);
    }
}

void wina_score_avx2(const float *x, const float *norms, int32_t n, float *score) {
    const __m256 magnitude = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff));
    int32_t i = 0;
    for (; i + 8 <= n; i += 8) {
        __m256 v = _mm256_and_ps(_mm256_loadu_ps(x + i), magnitude);
        _mm256_storeu_ps(score + i, norms ? _mm256_mul_ps(v, _mm256_loadu_ps(norms + i)) : v);
    }
    for (; i < n; i++)
        score[i] = norms ? fabsf(x[i]) * norms[i] : fabsf(x[i]);
}
