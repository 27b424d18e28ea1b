/* avx2: what the AVX2 kernels share: loading panels, multiplying pairs of inputs, scales.
 *
 * Inputs are taken in pairs: interleaving their bytes puts the two values of a row side by side.
 * In 4 bits one instruction multiplies them by two activation bytes into 16-bit sums, high and low
 * bytes apart, which hold eight pairs before they are widened. Wider values are extended to 16 bits
 * and multiplied by the 16-bit activations as they are. Either way 64 rows end in eight registers
 * of 32-bit sums: register r holds the scales' stored positions 16 (r % 4) + 8 (r / 4) onwards. */
#ifndef WINA_AVX2_H
#define WINA_AVX2_H

#include <immintrin.h>
#include <string.h>

#include "fold.h"
#include "groups.h"

enum { SUMS = 8 }; /* registers of a strip */

/* Keeps the compiler from loading what a pointer leads to ahead of a loop, where there are not
 * enough registers for it. */
#define RELOAD(pointer) __asm__("" : "+r"(pointer))

/* Stored position of register r of a strip. */
INLINE int64_t sums_at(int r) {
    return 16 * (r & 3) + 8 * (r >> 2);
}

typedef struct strip_values {
    __m256i a, b; /* rows 0..31 and 32..63, a byte each */
} strip_values;

/* `value` in each of 32 rows whose bit is set in four bytes. */
INLINE __m256i spread_bits(const uint8_t *bits, int value) {
    const __m256i spread = _mm256_setr_epi8(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2,
                                            2, 2, 2, 2, 2, 3, 3, 3, 3, 3, 3, 3, 3);
    const __m256i bit = _mm256_set1_epi64x((int64_t)0x8040201008040201u);
    int32_t four;
    memcpy(&four, bits, 4);
    __m256i v = _mm256_and_si256(_mm256_shuffle_epi8(_mm256_set1_epi32(four), spread), bit);
    return _mm256_and_si256(_mm256_cmpeq_epi8(v, bit), _mm256_set1_epi8((char)value));
}

/* Two bits of 64 rows from 16 bytes, as bits 4 and 5 of a byte each. */
INLINE strip_values spread_pairs(const uint8_t *pairs) {
    const __m256i bits = _mm256_set1_epi8(0x30);
    __m256i h = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)pairs));
    __m256i a = _mm256_sllv_epi32(h, _mm256_setr_epi32(4, 4, 4, 4, 2, 2, 2, 2));
    __m256i b = _mm256_srlv_epi32(h, _mm256_setr_epi32(0, 0, 0, 0, 2, 2, 2, 2));
    return (strip_values){_mm256_and_si256(a, bits), _mm256_and_si256(b, bits)};
}

/* 64 stored values of one input, 2 or 3 bits each. */
INLINE strip_values load_small(const wina_panel *p, const uint8_t *col, int32_t strip,
                               wina_plane plane) {
    strip_values v = spread_pairs(col + (int64_t)strip * 16);
    v.a = _mm256_srli_epi16(v.a, 4);
    v.b = _mm256_srli_epi16(v.b, 4);
    if (plane == WINA_PLANE_3) {
        const uint8_t *high = col + p->n_rows / 4 + (int64_t)strip * 8;
        v.a = _mm256_or_si256(v.a, spread_bits(high, 4));
        v.b = _mm256_or_si256(v.b, spread_bits(high + 4, 4));
    }
    return v;
}

/* 64 stored values of one input. */
INLINE strip_values load_values(const wina_panel *p, const uint8_t *col, int32_t strip,
                                wina_plane plane) {
    if (plane == WINA_PLANE_8) {
        const __m256i *at = (const __m256i *)(col + (int64_t)strip * 64);
        return (strip_values){_mm256_loadu_si256(at), _mm256_loadu_si256(at + 1)};
    }
    if (plane == WINA_PLANE_2 || plane == WINA_PLANE_3)
        return load_small(p, col, strip, plane);
    const __m256i low = _mm256_set1_epi8(15);
    __m256i both = _mm256_loadu_si256((const __m256i *)(col + (int64_t)strip * 32));
    strip_values v = {_mm256_and_si256(both, low),
                      _mm256_and_si256(_mm256_srli_epi16(both, 4), low)};
    const uint8_t *high = col + p->n_rows / 2;
    if (plane == WINA_PLANE_5) {
        v.a = _mm256_or_si256(v.a, spread_bits(high + (int64_t)strip * 8, 16));
        v.b = _mm256_or_si256(v.b, spread_bits(high + (int64_t)strip * 8 + 4, 16));
    } else if (plane == WINA_PLANE_6) {
        strip_values h = spread_pairs(high + (int64_t)strip * 16);
        v.a = _mm256_or_si256(v.a, h.a);
        v.b = _mm256_or_si256(v.b, h.b);
    } else if (plane == WINA_PLANE_T) {
        const __m256i table =
            _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)p->layout->table));
        v.a = _mm256_shuffle_epi8(table, v.a);
        v.b = _mm256_shuffle_epi8(table, v.b);
    }
    return v;
}

/* A pair's rows side by side: bytes (input 0, input 1) of rows 0-7 and 16-23 in p[0], 8-15 and
 * 24-31 in p[1]; the same of rows 32.. in p[2] and p[3]. */
INLINE void interleave(strip_values u, strip_values v, __m256i p[4]) {
    p[0] = _mm256_unpacklo_epi8(u.a, v.a);
    p[1] = _mm256_unpackhi_epi8(u.a, v.a);
    p[2] = _mm256_unpacklo_epi8(u.b, v.b);
    p[3] = _mm256_unpackhi_epi8(u.b, v.b);
}

/* Two activations (16 bits each) in every 32-bit lane. */
INLINE __m256i broadcast_pair(const int16_t *x) {
    int32_t v;
    memcpy(&v, x, 4);
    return _mm256_set1_epi32(v);
}

/* s += v x, pairs of 16 bits. Spelt out, because the compiler would form all products of a pair of
 * inputs first and run out of registers. */
INLINE void multiply_add(__m256i *s, __m256i v, __m256i x) {
#ifdef __AVXVNNI__
    __asm__("%{vex%} vpdpwssd %2, %1, %0" : "+x"(*s) : "x"(v), "x"(x));
#else
    __m256i product;
    __asm__("vpmaddwd %2, %3, %1\n\tvpaddd %1, %0, %0" : "+x"(*s), "=&x"(product) : "x"(v), "x"(x));
#endif
}

/* s += pair times x, from interleaved bytes. */
INLINE void add_pair(__m256i s[SUMS], const __m256i p[4], __m256i x) {
    const __m256i zero = _mm256_setzero_si256();
    for (int i = 0; i < 4; i++) {
        multiply_add(&s[2 * i], _mm256_unpacklo_epi8(p[i], zero), x);
        multiply_add(&s[2 * i + 1], _mm256_unpackhi_epi8(p[i], zero), x);
    }
}

INLINE __m256 halves(const uint8_t *p) {
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p));
}
INLINE __m256 bytes(const uint8_t *p) {
    return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)p)));
}
INLINE __m256 signed_bytes(const uint8_t *p) {
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)p)));
}

/* The low or, with shift 4, the high halves of eight bytes. */
INLINE __m256 nibbles(const uint8_t *p, int shift) {
    __m256i v = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)p));
    return _mm256_cvtepi32_ps(_mm256_and_si256(_mm256_srli_epi32(v, shift), _mm256_set1_epi32(15)));
}
/* wina_e8m0_to_f32: below 2 the result is subnormal. */
INLINE __m256 exponents(const uint8_t *p) {
    const __m256i e = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)p));
    const __m256i normal = _mm256_slli_epi32(_mm256_sub_epi32(e, _mm256_set1_epi32(1)), 23);
    const __m256i small = _mm256_sllv_epi32(_mm256_set1_epi32(0x00200000), e);
    return _mm256_castsi256_ps(
        _mm256_blendv_epi8(small, normal, _mm256_cmpgt_epi32(e, _mm256_set1_epi32(1))));
}

/* Scales (and mins, as they are added) of 8 rows at stored position `at`. */
INLINE __m256 load_d(wina_scales kind, const uint8_t *scales, const uint8_t *super, int64_t rows,
                     int64_t at, int sub) {
    if (kind == WINA_SCALES_K_DM)
        return _mm256_mul_ps(halves(super + 2 * at), bytes(scales + at));
    if (kind == WINA_SCALES_K_D16 || kind == WINA_SCALES_K_D32)
        return _mm256_mul_ps(halves(super + 2 * at), signed_bytes(scales + (sub ? rows : 0) + at));
    if (kind == WINA_SCALES_K_DM16)
        return _mm256_mul_ps(halves(super + 2 * at), nibbles(scales + (sub ? rows : 0) + at, 0));
    if (kind == WINA_SCALES_E8)
        return exponents(scales + at);
    return halves(scales + 2 * at);
}
INLINE __m256 load_m(wina_scales kind, const uint8_t *scales, const uint8_t *super, int64_t rows,
                     int64_t at, int sub) {
    if (kind == WINA_SCALES_K_DM16)
        return _mm256_mul_ps(
            halves(super + 2 * (rows + at)),
            _mm256_sub_ps(_mm256_set1_ps(-0.0f), nibbles(scales + (sub ? rows : 0) + at, 4)));
    if (kind == WINA_SCALES_K_DM)
        return _mm256_mul_ps(halves(super + 2 * (rows + at)),
                             _mm256_sub_ps(_mm256_set1_ps(-0.0f), bytes(scales + rows + at)));
    return halves(scales + 2 * (rows + at));
}

/* Stored order back to row order: the 4 x 4 blocks of four rows are transposed. */
INLINE void unswap_strip(float *y) {
    float t[WINA_STRIP];
    memcpy(t, y, sizeof t);
    for (int i = 0; i < 4; i++)
        for (int j = 0; j < 4; j++)
            _mm_storeu_ps(y + 16 * j + 4 * i, _mm_loadu_ps(t + 16 * i + 4 * j));
}

INLINE __m256 load_floats(const uint8_t *p, wina_scales kind) {
    if (kind == WINA_SCALES_F32)
        return _mm256_loadu_ps((const float *)p);
    __m128i h = _mm_loadu_si128((const __m128i *)p);
    if (kind == WINA_SCALES_F16)
        return _mm256_cvtph_ps(h);
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(h), 16));
}

/* What fold_eight() does, for one row. */
INLINE float fold_lanes_avx2(__m256 f) {
    __m128 x = _mm_add_ps(_mm256_castps256_ps128(f), _mm256_extractf128_ps(f, 1));
    x = _mm_add_ps(x, _mm_movehl_ps(x, x));
    return _mm_cvtss_f32(_mm_add_ss(x, _mm_shuffle_ps(x, x, 1)));
}

/* attend_avx2.c */
void wina_attend_dots_avx2(const float *q, const float *k, int32_t n_dim, int32_t n_rows,
                           float scale, float *s);
void wina_attend_add_avx2(float *o, const float *p, const float *v, int32_t n_dim, int32_t stride,
                          int32_t n_rows);
float wina_softmax_part_avx2(float *s, int32_t n, float *sum);
void wina_load_q8_0_avx2(float *x, const void *rows, int32_t n_dim, int32_t n_rows);

/* gemm_avx2.c */
void wina_gemm_avxvnni(const wina_panel *panel, const wina_batch *batch, int32_t block0,
                       int32_t block1, int32_t strip0, int32_t strip1, float *y);
void wina_gemm_avx2(const wina_panel *panel, const wina_batch *batch, int32_t block0,
                    int32_t block1, int32_t strip0, int32_t strip1, float *y);

#endif
