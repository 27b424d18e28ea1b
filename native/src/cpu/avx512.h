/* avx512: what the AVX-512 kernels share: loading panels, scales, floats.
 *
 * There are two sets, which multiply integers differently. With VNNI a strip's inputs are taken
 * four at a time: two rounds of interleaving put the four bytes of a row side by side, where one
 * instruction multiplies them by four activation bytes and adds (gemv and gemm_avx512vnni.c).
 * Without it, they are taken in pairs, as AVX2 does (gemm_avx512.c). Either way a strip's 64 sums
 * end in four registers, in the order in which panels store scales. */
#ifndef WINA_AVX512_H
#define WINA_AVX512_H

#include <immintrin.h>
#include <string.h>

#include "groups.h"

/* Two bits of 64 rows from 16 bytes. */
INLINE __m512i spread_pairs(const uint8_t *pairs) {
    const __m512i by_quarter =
        _mm512_set_epi64(0x0006000600060006, 0x0006000600060006, 0x0004000400040004,
                         0x0004000400040004, 0x0002000200020002, 0x0002000200020002, 0, 0);
    __m512i h = _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)pairs));
    return _mm512_and_si512(_mm512_srlv_epi16(h, by_quarter), _mm512_set1_epi8(3));
}

/* v plus `value` where a row's bit is set in eight bytes. */
INLINE __m512i add_bits(__m512i v, const uint8_t *eight, int value) {
    uint64_t bits;
    memcpy(&bits, eight, 8);
    return _mm512_mask_add_epi8(v, bits, v, _mm512_set1_epi8((char)value));
}

/* 64 stored values of one input. */
INLINE __m512i load_values(const wina_panel *p, const uint8_t *col, int32_t strip,
                           wina_plane plane) {
    if (plane == WINA_PLANE_8)
        return _mm512_loadu_si512(col + (int64_t)strip * 64);
    if (plane == WINA_PLANE_2)
        return spread_pairs(col + (int64_t)strip * 16);
    if (plane == WINA_PLANE_3)
        return add_bits(spread_pairs(col + (int64_t)strip * 16),
                        col + p->n_rows / 4 + (int64_t)strip * 8, 4);
    __m512i both =
        _mm512_broadcast_i64x4(_mm256_loadu_si256((const __m256i *)(col + (int64_t)strip * 32)));
    const __m512i by_half = _mm512_inserti64x4(_mm512_setzero_si512(), _mm256_set1_epi16(4), 1);
    __m512i v = _mm512_and_si512(_mm512_srlv_epi16(both, by_half), _mm512_set1_epi8(15));
    const uint8_t *high = col + p->n_rows / 2;
    if (plane == WINA_PLANE_5)
        v = add_bits(v, high + (int64_t)strip * 8, 16);
    else if (plane == WINA_PLANE_6)
        v = _mm512_or_si512(v, _mm512_slli_epi16(spread_pairs(high + (int64_t)strip * 16), 4));
    else if (plane == WINA_PLANE_T)
        v = _mm512_shuffle_epi8(
            _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)p->layout->table)), v);
    return v;
}

/* Lines that are fetched with four columns of 64 rows. */
INLINE int lines_per_quad(wina_plane plane) {
    return plane == WINA_PLANE_8 ? 4 : 2;
}

#ifdef __AVX512VNNI__
/* Bytes of four inputs side by side, 16 rows each, in stored order. */
INLINE void interleave_quad(__m512i a, __m512i b, __m512i c, __m512i d, __m512i q[4]) {
    const __m512i ab0 = _mm512_unpacklo_epi8(a, b), ab1 = _mm512_unpackhi_epi8(a, b);
    const __m512i cd0 = _mm512_unpacklo_epi8(c, d), cd1 = _mm512_unpackhi_epi8(c, d);
    q[0] = _mm512_unpacklo_epi16(ab0, cd0);
    q[1] = _mm512_unpackhi_epi16(ab0, cd0);
    q[2] = _mm512_unpacklo_epi16(ab1, cd1);
    q[3] = _mm512_unpackhi_epi16(ab1, cd1);
}
#else
/* Two inputs side by side, 16 bits each. */
INLINE void interleave_pair(__m512i a, __m512i b, __m512i w[4]) {
    const __m512i zero = _mm512_setzero_si512();
    const __m512i ab0 = _mm512_unpacklo_epi8(a, b), ab1 = _mm512_unpackhi_epi8(a, b);
    w[0] = _mm512_unpacklo_epi8(ab0, zero);
    w[1] = _mm512_unpackhi_epi8(ab0, zero);
    w[2] = _mm512_unpacklo_epi8(ab1, zero);
    w[3] = _mm512_unpackhi_epi8(ab1, zero);
}

/* s += w x, pairs of 16 bits, which VNNI has as one instruction. Spelt out, because the compiler
 * would form many products first, which costs moves and runs out of registers. */
INLINE void multiply_add(__m512i *s, __m512i w, __m512i x) {
#ifdef __AVX512F__
    __m512i product;
    __asm__("vpmaddwd %2, %3, %1\n\tvpaddd %1, %0, %0" : "+v"(*s), "=&v"(product) : "v"(w), "v"(x));
#else /* emulated: tests/native/avx512 */
    *s = _mm512_add_epi32(*s, _mm512_madd_epi16(w, x));
#endif
}
#endif

INLINE __m512 halves(const uint8_t *p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p));
}
INLINE __m512 bytes(const uint8_t *p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)p)));
}
INLINE __m512 signed_bytes(const uint8_t *p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)p)));
}

/* The low or, with shift 4, the high halves of sixteen bytes. */
INLINE __m512 nibbles(const uint8_t *p, unsigned shift) {
    __m512i v = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)p));
    return _mm512_cvtepi32_ps(_mm512_and_si512(_mm512_srli_epi32(v, shift), _mm512_set1_epi32(15)));
}
/* wina_e8m0_to_f32: below 2 the result is subnormal. */
INLINE __m512 exponents(const uint8_t *p) {
    const __m512i e = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)p));
    const __m512i normal = _mm512_slli_epi32(_mm512_sub_epi32(e, _mm512_set1_epi32(1)), 23);
    const __m512i small = _mm512_sllv_epi32(_mm512_set1_epi32(0x00200000), e);
    return _mm512_castsi512_ps(
        _mm512_mask_mov_epi32(small, _mm512_cmpgt_epi32_mask(e, _mm512_set1_epi32(1)), normal));
}

/* Scales (and mins, as they are added) of 16 rows at stored position `at`. */
INLINE __m512 load_d(wina_scales kind, const uint8_t *scales, const uint8_t *super, int64_t rows,
                     int64_t at, int sub) {
    if (kind == WINA_SCALES_K_DM)
        return _mm512_mul_ps(halves(super + 2 * at), bytes(scales + at));
    if (kind == WINA_SCALES_K_D16 || kind == WINA_SCALES_K_D32)
        return _mm512_mul_ps(halves(super + 2 * at), signed_bytes(scales + (sub ? rows : 0) + at));
    if (kind == WINA_SCALES_K_DM16)
        return _mm512_mul_ps(halves(super + 2 * at), nibbles(scales + (sub ? rows : 0) + at, 0));
    if (kind == WINA_SCALES_E8)
        return exponents(scales + at);
    return halves(scales + 2 * at);
}
INLINE __m512 load_m(wina_scales kind, const uint8_t *scales, const uint8_t *super, int64_t rows,
                     int64_t at, int sub) {
    if (kind == WINA_SCALES_K_DM16)
        return _mm512_mul_ps(
            halves(super + 2 * (rows + at)),
            _mm512_sub_ps(_mm512_set1_ps(-0.0f), nibbles(scales + (sub ? rows : 0) + at, 4)));
    if (kind == WINA_SCALES_K_DM)
        return _mm512_mul_ps(halves(super + 2 * (rows + at)),
                             _mm512_sub_ps(_mm512_set1_ps(-0.0f), bytes(scales + rows + at)));
    return halves(scales + 2 * (rows + at));
}

/* Stored order back to row order: the 4 x 4 blocks of four rows are transposed. */
INLINE void unswap_strip(float *y) {
    __m512 a = _mm512_loadu_ps(y), b = _mm512_loadu_ps(y + 16), c = _mm512_loadu_ps(y + 32),
           d = _mm512_loadu_ps(y + 48);
    __m512 ab0 = _mm512_shuffle_f32x4(a, b, 0x44), ab1 = _mm512_shuffle_f32x4(a, b, 0xee);
    __m512 cd0 = _mm512_shuffle_f32x4(c, d, 0x44), cd1 = _mm512_shuffle_f32x4(c, d, 0xee);
    _mm512_storeu_ps(y, _mm512_shuffle_f32x4(ab0, cd0, 0x88));
    _mm512_storeu_ps(y + 16, _mm512_shuffle_f32x4(ab0, cd0, 0xdd));
    _mm512_storeu_ps(y + 32, _mm512_shuffle_f32x4(ab1, cd1, 0x88));
    _mm512_storeu_ps(y + 48, _mm512_shuffle_f32x4(ab1, cd1, 0xdd));
}

/* Activations, four bytes or a pair of 16 bits, in every 32-bit lane. */
INLINE __m512i broadcast_inputs(const void *x) {
    int32_t v;
    memcpy(&v, x, 4);
    return _mm512_set1_epi32(v);
}

INLINE __m512 load_floats(const uint8_t *p, wina_scales kind) {
    if (kind == WINA_SCALES_F32)
        return _mm512_loadu_ps(p);
    __m256i h = _mm256_loadu_si256((const __m256i *)p);
    if (kind == WINA_SCALES_F16)
        return _mm512_cvtph_ps(h);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16));
}

/* gemm_avx512.c, gemm_avx512vnni.c */
void wina_gemm_avx512(const wina_panel *panel, const wina_batch *batch, int32_t block0,
                      int32_t block1, int32_t strip0, int32_t strip1, float *y);
void wina_gemm_avx512vnni(const wina_panel *panel, const wina_batch *batch, int32_t block0,
                          int32_t block1, int32_t strip0, int32_t strip1, float *y);

/* attend_avx512.c */
void wina_attend_dots_avx512(const float *q, const float *k, int32_t n_dim, int32_t n_rows,
                             float scale, float *s);
void wina_attend_add_avx512(float *o, const float *p, const float *v, int32_t n_dim, int32_t stride,
                            int32_t n_rows);
float wina_softmax_part_avx512(float *s, int32_t n, float *sum);
void wina_load_q8_0_avx512(float *x, const void *rows, int32_t n_dim, int32_t n_rows);

#endif
