/* immintrin: AVX-512 for processors without it. The kernels are compiled with this header in front
 * of the compiler's: what they use of AVX-512 is written out here, a lane after the other, from the
 * operations' definitions in Intel's manual; AVX2 stays the processor's own. Slow, and right to the
 * bit: products and sums of floats are rounded once, as fused multiply-adds are.
 */
#ifndef WINA_TEST_AVX512_H
#define WINA_TEST_AVX512_H

#include_next <immintrin.h>

#ifdef EMULATE_AVX512VNNI
#define __AVX512VNNI__ 1
#endif

#include <math.h>
#include <stdint.h>
#include <string.h>

/* Not inline: what includes this has loops within loops of them and would compile for minutes. */
#define EMULATED static __attribute__((noinline, unused))

typedef union lanes {
    __m512 m;
    __m512i i;
    __m256 half[2];
    __m256i half_i[2];
    __m128i quarter[4];
    float f[16];
    int32_t s32[16];
    uint32_t u32[16];
    int64_t s64[8];
    int16_t s16[32];
    uint16_t u16[32];
    int8_t s8[64];
    uint8_t u8[64];
} lanes;

/* Operations on n lanes: the last argument computes lane i of r from those of a and b. FROM has one
 * operand of any size, SHIFT one and a number; a result is the union's `field`. */
#define FROM(name, type, field, operand, n, ...)                                                   \
    EMULATED type emulated_##name(operand x) {                                                     \
        lanes r, a;                                                                                \
        memcpy(&a, &x, sizeof x);                                                                  \
        for (int i = 0; i < (n); i++)                                                              \
            __VA_ARGS__;                                                                           \
        return r.field;                                                                            \
    }
#define TWO(name, type, field, n, ...)                                                             \
    EMULATED type emulated_##name(type x, type y) {                                                \
        const lanes a = {.field = x}, b = {.field = y};                                            \
        lanes r;                                                                                   \
        for (int i = 0; i < (n); i++)                                                              \
            __VA_ARGS__;                                                                           \
        return r.field;                                                                            \
    }
#define TWO_I(name, n, ...) TWO(name, __m512i, i, n, __VA_ARGS__)
#define TWO_F(name, ...)    TWO(name, __m512, m, 16, __VA_ARGS__)
#define SHIFT(name, n, ...)                                                                        \
    EMULATED __m512i emulated_##name(__m512i x, unsigned by) {                                     \
        const lanes a = {.i = x};                                                                  \
        lanes r;                                                                                   \
        for (int i = 0; i < (n); i++)                                                              \
            __VA_ARGS__;                                                                           \
        return r.i;                                                                                \
    }

FROM(set1_epi32, __m512i, i, int, 16, r.s32[i] = a.s32[0])
FROM(set1_epi8, __m512i, i, char, 64, r.s8[i] = a.s8[0])
FROM(set1_ps, __m512, m, float, 16, r.f[i] = a.f[0])
#define emulated_setzero_si512() emulated_set1_epi32(0)
#define emulated_setzero_ps()    emulated_set1_ps(0.0f)
EMULATED __m512i emulated_set_epi64(int64_t h, int64_t g, int64_t f, int64_t e, int64_t d,
                                    int64_t c, int64_t b, int64_t a) {
    const lanes r = {.s64 = {a, b, c, d, e, f, g, h}};
    return r.i;
}

/* Memory. */
EMULATED __m512i emulated_loadu_si512(const void *p) {
    lanes r;
    memcpy(&r, p, sizeof r);
    return r.i;
}
EMULATED __m512 emulated_loadu_ps(const void *p) {
    lanes r;
    memcpy(&r, p, sizeof r);
    return r.m;
}
EMULATED void emulated_storeu_ps(void *p, __m512 x) {
    memcpy(p, &x, sizeof x);
}
EMULATED void emulated_store_si512(void *p, __m512i x) {
    memcpy(p, &x, sizeof x);
}
EMULATED __m512 emulated_maskz_loadu_ps(__mmask16 m, const float *p) {
    lanes r;
    for (int i = 0; i < 16; i++)
        r.f[i] = m >> i & 1 ? p[i] : 0.0f;
    return r.m;
}
EMULATED void emulated_mask_storeu_ps(float *p, __mmask16 m, __m512 x) {
    const lanes a = {.m = x};
    for (int i = 0; i < 16; i++)
        if (m >> i & 1)
            p[i] = a.f[i];
}
EMULATED void emulated_mask_storeu_half(float *p, __mmask8 m, __m256 x) {
    const lanes a = {.half = {x, x}};
    for (int i = 0; i < 8; i++)
        if (m >> i & 1)
            p[i] = a.f[i];
}

/* Parts of registers. */
EMULATED __m512i emulated_broadcast_i32x4(__m128i x) {
    const lanes r = {.quarter = {x, x, x, x}};
    return r.i;
}
EMULATED __m512i emulated_broadcast_i64x4(__m256i x) {
    const lanes r = {.half_i = {x, x}};
    return r.i;
}
EMULATED __m512i emulated_inserti64x4(__m512i x, __m256i y, int at) {
    lanes r = {.i = x};
    r.half_i[at & 1] = y;
    return r.i;
}
EMULATED __m256 emulated_extractf32x8_ps(__m512 x, int at) {
    const lanes a = {.m = x};
    return a.half[at & 1];
}
#define emulated_castps512_ps256(x) emulated_extractf32x8_ps(x, 0)
EMULATED __m512 emulated_castsi512_ps(__m512i x) {
    const lanes a = {.i = x};
    return a.m;
}
EMULATED __m512 emulated_shuffle_f32x4(__m512 x, __m512 y, int order) {
    const lanes a = {.m = x}, b = {.m = y};
    lanes r;
    for (int k = 0; k < 4; k++)
        r.quarter[k] = (k < 2 ? a : b).quarter[order >> 2 * k & 3];
    return r.m;
}
#define LANE(i, n) ((i) / (n) * (n)) /* first element of i's 128 bits */
TWO_I(unpacklo_epi8, 64, r.u8[i] = (i & 1 ? b : a).u8[LANE(i, 16) + i % 16 / 2])
TWO_I(unpackhi_epi8, 64, r.u8[i] = (i & 1 ? b : a).u8[LANE(i, 16) + 8 + i % 16 / 2])
TWO_I(unpacklo_epi16, 32, r.u16[i] = (i & 1 ? b : a).u16[LANE(i, 8) + i % 8 / 2])
TWO_I(unpackhi_epi16, 32, r.u16[i] = (i & 1 ? b : a).u16[LANE(i, 8) + 4 + i % 8 / 2])
TWO_I(shuffle_epi8, 64, r.u8[i] = b.u8[i] & 0x80 ? 0 : a.u8[LANE(i, 16) + b.u8[i] % 16])

/* Integers. */
TWO_I(and_si512, 16, r.u32[i] = a.u32[i] & b.u32[i])
TWO_I(or_si512, 16, r.u32[i] = a.u32[i] | b.u32[i])
TWO_I(add_epi32, 16, r.u32[i] = a.u32[i] + b.u32[i])
TWO_I(sub_epi32, 16, r.u32[i] = a.u32[i] - b.u32[i])
TWO_I(add_epi16, 32, r.u16[i] = (uint16_t)(a.u16[i] + b.u16[i]))
TWO_I(srlv_epi16, 32, r.u16[i] = (uint16_t)(b.u16[i] > 15 ? 0 : a.u16[i] >> b.u16[i]))
TWO_I(sllv_epi32, 16, r.u32[i] = b.u32[i] > 31 ? 0 : a.u32[i] << b.u32[i])
SHIFT(slli_epi32, 16, r.u32[i] = by > 31 ? 0 : a.u32[i] << by)
SHIFT(srli_epi32, 16, r.u32[i] = by > 31 ? 0 : a.u32[i] >> by)
SHIFT(slli_epi16, 32, r.u16[i] = (uint16_t)(by > 15 ? 0 : a.u16[i] << by))
TWO_I(madd_epi16, 16,
      r.u32[i] = (uint32_t)(a.s16[2 * i] * b.s16[2 * i]) +
                 (uint32_t)(a.s16[2 * i + 1] * b.s16[2 * i + 1]))
EMULATED int16_t emulated_saturate(int32_t v) {
    return (int16_t)(v > INT16_MAX ? INT16_MAX : v < INT16_MIN ? INT16_MIN : v);
}
TWO_I(maddubs_epi16, 32,
      r.s16[i] = emulated_saturate(a.u8[2 * i] * b.s8[2 * i] + a.u8[2 * i + 1] * b.s8[2 * i + 1]))
EMULATED __m512i emulated_dpbusd_epi32(__m512i s, __m512i x, __m512i y) {
    const lanes a = {.i = x}, b = {.i = y};
    lanes r = {.i = s};
    for (int i = 0; i < 64; i++)
        r.u32[i / 4] += (uint32_t)(a.u8[i] * b.s8[i]);
    return r.i;
}
EMULATED __m512i emulated_mask_add_epi8(__m512i from, __mmask64 m, __m512i x, __m512i y) {
    const lanes a = {.i = x}, b = {.i = y};
    lanes r = {.i = from};
    for (int i = 0; i < 64; i++)
        if (m >> i & 1)
            r.u8[i] = (uint8_t)(a.u8[i] + b.u8[i]);
    return r.i;
}
EMULATED __m512i emulated_mask_mov_epi32(__m512i from, __mmask16 m, __m512i x) {
    const lanes a = {.i = x};
    lanes r = {.i = from};
    for (int i = 0; i < 16; i++)
        if (m >> i & 1)
            r.u32[i] = a.u32[i];
    return r.i;
}
EMULATED __mmask16 emulated_cmpgt_epi32_mask(__m512i x, __m512i y) {
    const lanes a = {.i = x}, b = {.i = y};
    unsigned m = 0;
    for (int i = 0; i < 16; i++)
        m |= (unsigned)(a.s32[i] > b.s32[i]) << i;
    return (__mmask16)m;
}

/* Conversions. */
FROM(cvtepu8_epi32, __m512i, i, __m128i, 16, r.s32[i] = a.u8[i])
FROM(cvtepi8_epi32, __m512i, i, __m128i, 16, r.s32[i] = a.s8[i])
FROM(cvtepu16_epi32, __m512i, i, __m256i, 16, r.s32[i] = a.u16[i])
FROM(cvtepi32_ps, __m512, m, __m512i, 16, r.f[i] = (float)a.s32[i])
FROM(cvtps_epi32, __m512i, i, __m512, 16, r.s32[i] = (int32_t)rintf(a.f[i]))
EMULATED __m512 emulated_cvtph_ps(__m256i x) {
    const lanes a = {.half_i = {x}};
    const lanes r = {.half = {_mm256_cvtph_ps(a.quarter[0]), _mm256_cvtph_ps(a.quarter[1])}};
    return r.m;
}

/* Floats. A maximum or minimum is the second operand if there is no order. */
TWO_F(add_ps, r.f[i] = a.f[i] + b.f[i])
TWO_F(sub_ps, r.f[i] = a.f[i] - b.f[i])
TWO_F(mul_ps, r.f[i] = a.f[i] * b.f[i])
TWO_F(max_ps, r.f[i] = a.f[i] > b.f[i] ? a.f[i] : b.f[i])
TWO_F(min_ps, r.f[i] = a.f[i] < b.f[i] ? a.f[i] : b.f[i])
EMULATED __m512 emulated_fmadd_ps(__m512 x, __m512 y, __m512 z) {
    const lanes a = {.m = x}, b = {.m = y}, c = {.m = z};
    lanes r;
    for (int i = 0; i < 16; i++)
        r.f[i] = fmaf(a.f[i], b.f[i], c.f[i]);
    return r.m;
}
FROM(round_ps, __m512, m, __m512, 16, r.f[i] = rintf(a.f[i]))
#define emulated_roundscale_ps(x, to_nearest) emulated_round_ps(x)
EMULATED float emulated_reduce_max_ps(__m512 x) {
    const lanes a = {.m = x};
    float most = a.f[0];
    for (int i = 1; i < 16; i++)
        most = most > a.f[i] ? most : a.f[i];
    return most;
}
EMULATED __m512 emulated_mask_f32(__m512 from, __mmask16 m, __m512 x) {
    const lanes a = {.m = x};
    lanes r = {.m = from};
    for (int i = 0; i < 16; i++)
        if (m >> i & 1)
            r.f[i] = a.f[i];
    return r.m;
}
#define emulated_mask_add_ps(from, m, x, y) emulated_mask_f32(from, m, emulated_add_ps(x, y))
#define emulated_mask_max_ps(from, m, x, y) emulated_mask_f32(from, m, emulated_max_ps(x, y))

/* Under the names that the kernels use. */
#undef _mm512_add_epi16
#define _mm512_add_epi16 emulated_add_epi16
#undef _mm512_add_epi32
#define _mm512_add_epi32 emulated_add_epi32
#undef _mm512_add_ps
#define _mm512_add_ps emulated_add_ps
#undef _mm512_and_si512
#define _mm512_and_si512 emulated_and_si512
#undef _mm512_broadcast_i32x4
#define _mm512_broadcast_i32x4 emulated_broadcast_i32x4
#undef _mm512_broadcast_i64x4
#define _mm512_broadcast_i64x4 emulated_broadcast_i64x4
#undef _mm512_castps512_ps256
#define _mm512_castps512_ps256 emulated_castps512_ps256
#undef _mm512_castsi512_ps
#define _mm512_castsi512_ps emulated_castsi512_ps
#undef _mm512_cmpgt_epi32_mask
#define _mm512_cmpgt_epi32_mask emulated_cmpgt_epi32_mask
#undef _mm512_cvtepi32_ps
#define _mm512_cvtepi32_ps emulated_cvtepi32_ps
#undef _mm512_cvtepi8_epi32
#define _mm512_cvtepi8_epi32 emulated_cvtepi8_epi32
#undef _mm512_cvtepu16_epi32
#define _mm512_cvtepu16_epi32 emulated_cvtepu16_epi32
#undef _mm512_cvtepu8_epi32
#define _mm512_cvtepu8_epi32 emulated_cvtepu8_epi32
#undef _mm512_cvtph_ps
#define _mm512_cvtph_ps emulated_cvtph_ps
#undef _mm512_cvtps_epi32
#define _mm512_cvtps_epi32 emulated_cvtps_epi32
#undef _mm512_dpbusd_epi32
#define _mm512_dpbusd_epi32 emulated_dpbusd_epi32
#undef _mm512_extractf32x8_ps
#define _mm512_extractf32x8_ps emulated_extractf32x8_ps
#undef _mm512_fmadd_ps
#define _mm512_fmadd_ps emulated_fmadd_ps
#undef _mm512_inserti64x4
#define _mm512_inserti64x4 emulated_inserti64x4
#undef _mm512_load_ps
#define _mm512_load_ps emulated_loadu_ps
#undef _mm512_load_si512
#define _mm512_load_si512 emulated_loadu_si512
#undef _mm512_loadu_ps
#define _mm512_loadu_ps emulated_loadu_ps
#undef _mm512_loadu_si512
#define _mm512_loadu_si512 emulated_loadu_si512
#undef _mm512_madd_epi16
#define _mm512_madd_epi16 emulated_madd_epi16
#undef _mm512_maddubs_epi16
#define _mm512_maddubs_epi16 emulated_maddubs_epi16
#undef _mm512_mask_add_epi8
#define _mm512_mask_add_epi8 emulated_mask_add_epi8
#undef _mm512_mask_add_ps
#define _mm512_mask_add_ps emulated_mask_add_ps
#undef _mm512_mask_max_ps
#define _mm512_mask_max_ps emulated_mask_max_ps
#undef _mm512_mask_mov_epi32
#define _mm512_mask_mov_epi32 emulated_mask_mov_epi32
#undef _mm512_mask_storeu_ps
#define _mm512_mask_storeu_ps emulated_mask_storeu_ps
#undef _mm512_maskz_loadu_ps
#define _mm512_maskz_loadu_ps emulated_maskz_loadu_ps
#undef _mm512_max_ps
#define _mm512_max_ps emulated_max_ps
#undef _mm512_min_ps
#define _mm512_min_ps emulated_min_ps
#undef _mm512_mul_ps
#define _mm512_mul_ps emulated_mul_ps
#undef _mm512_or_si512
#define _mm512_or_si512 emulated_or_si512
#undef _mm512_reduce_max_ps
#define _mm512_reduce_max_ps emulated_reduce_max_ps
#undef _mm512_roundscale_ps
#define _mm512_roundscale_ps emulated_roundscale_ps
#undef _mm512_set1_epi32
#define _mm512_set1_epi32 emulated_set1_epi32
#undef _mm512_set1_epi8
#define _mm512_set1_epi8 emulated_set1_epi8
#undef _mm512_set1_ps
#define _mm512_set1_ps emulated_set1_ps
#undef _mm512_set_epi64
#define _mm512_set_epi64 emulated_set_epi64
#undef _mm512_setzero_ps
#define _mm512_setzero_ps emulated_setzero_ps
#undef _mm512_setzero_si512
#define _mm512_setzero_si512 emulated_setzero_si512
#undef _mm512_shuffle_epi8
#define _mm512_shuffle_epi8 emulated_shuffle_epi8
#undef _mm512_shuffle_f32x4
#define _mm512_shuffle_f32x4 emulated_shuffle_f32x4
#undef _mm512_slli_epi16
#define _mm512_slli_epi16 emulated_slli_epi16
#undef _mm512_slli_epi32
#define _mm512_slli_epi32 emulated_slli_epi32
#undef _mm512_sllv_epi32
#define _mm512_sllv_epi32 emulated_sllv_epi32
#undef _mm512_srli_epi32
#define _mm512_srli_epi32 emulated_srli_epi32
#undef _mm512_srlv_epi16
#define _mm512_srlv_epi16 emulated_srlv_epi16
#undef _mm512_store_ps
#define _mm512_store_ps emulated_storeu_ps
#undef _mm512_store_si512
#define _mm512_store_si512 emulated_store_si512
#undef _mm512_storeu_ps
#define _mm512_storeu_ps emulated_storeu_ps
#undef _mm512_sub_epi32
#define _mm512_sub_epi32 emulated_sub_epi32
#undef _mm512_sub_ps
#define _mm512_sub_ps emulated_sub_ps
#undef _mm512_unpackhi_epi16
#define _mm512_unpackhi_epi16 emulated_unpackhi_epi16
#undef _mm512_unpackhi_epi8
#define _mm512_unpackhi_epi8 emulated_unpackhi_epi8
#undef _mm512_unpacklo_epi16
#define _mm512_unpacklo_epi16 emulated_unpacklo_epi16
#undef _mm512_unpacklo_epi8
#define _mm512_unpacklo_epi8 emulated_unpacklo_epi8
#undef _mm256_mask_storeu_ps
#define _mm256_mask_storeu_ps emulated_mask_storeu_half

#endif
