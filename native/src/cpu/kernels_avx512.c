/* AVX-512 (F, BW, DQ, VL, VNNI). A strip's inputs are taken four at a time: two rounds of
 * interleaving put the four bytes of a row side by side, where one instruction multiplies them by
 * four activation bytes and adds. The rows come out in the order in which panels store scales. */
#include "kernels_generic.h"

#include <immintrin.h>

typedef struct block_sums {
    __m512i hi[4], lo[4]; /* 16 rows each, in stored order */
} block_sums;

/* 64 stored values of one input. kind: low_bits 8 -> 0; 4 -> 1; 4 + 1 -> 2; 4 + 2 -> 3 */
static inline __attribute__((always_inline)) __m512i load_values(const uint8_t *col, int32_t n_rows,
                                                                 int32_t strip, int kind) {
    if (kind == 0)
        return _mm512_loadu_si512(col + (int64_t)strip * 64);
    __m512i both = _mm512_broadcast_i64x4(
        _mm256_loadu_si256((const __m256i *)(col + (int64_t)strip * 32)));
    const __m512i by_half =
        _mm512_inserti64x4(_mm512_setzero_si512(), _mm256_set1_epi16(4), 1);
    __m512i v = _mm512_and_si512(_mm512_srlv_epi16(both, by_half), _mm512_set1_epi8(15));
    const uint8_t *high = col + n_rows / 2;
    if (kind == 2) {
        uint64_t bits;
        memcpy(&bits, high + (int64_t)strip * 8, 8);
        v = _mm512_mask_add_epi8(v, bits, v, _mm512_set1_epi8(16));
    } else if (kind == 3) {
        __m512i h = _mm512_broadcast_i32x4(
            _mm_loadu_si128((const __m128i *)(high + (int64_t)strip * 16)));
        const __m512i by_quarter =
            _mm512_set_epi64(0x0006000600060006, 0x0006000600060006, 0x0004000400040004,
                             0x0004000400040004, 0x0002000200020002, 0x0002000200020002, 0, 0);
        h = _mm512_and_si512(_mm512_srlv_epi16(h, by_quarter), _mm512_set1_epi8(3));
        v = _mm512_or_si512(v, _mm512_slli_epi16(h, 4));
    }
    return v;
}

static inline __attribute__((always_inline)) void add_quad(block_sums *s, __m512i a, __m512i b,
                                                           __m512i c, __m512i d, __m512i xh,
                                                           __m512i xl) {
    __m512i ab0 = _mm512_unpacklo_epi8(a, b), ab1 = _mm512_unpackhi_epi8(a, b);
    __m512i cd0 = _mm512_unpacklo_epi8(c, d), cd1 = _mm512_unpackhi_epi8(c, d);
    __m512i q0 = _mm512_unpacklo_epi16(ab0, cd0), q1 = _mm512_unpackhi_epi16(ab0, cd0);
    __m512i q2 = _mm512_unpacklo_epi16(ab1, cd1), q3 = _mm512_unpackhi_epi16(ab1, cd1);
    s->hi[0] = _mm512_dpbusd_epi32(s->hi[0], q0, xh);
    s->hi[1] = _mm512_dpbusd_epi32(s->hi[1], q1, xh);
    s->hi[2] = _mm512_dpbusd_epi32(s->hi[2], q2, xh);
    s->hi[3] = _mm512_dpbusd_epi32(s->hi[3], q3, xh);
    s->lo[0] = _mm512_dpbusd_epi32(s->lo[0], q0, xl);
    s->lo[1] = _mm512_dpbusd_epi32(s->lo[1], q1, xl);
    s->lo[2] = _mm512_dpbusd_epi32(s->lo[2], q2, xl);
    s->lo[3] = _mm512_dpbusd_epi32(s->lo[3], q3, xl);
}

static inline __m512 halves(const uint8_t *p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p));
}
static inline __m512 bytes(const uint8_t *p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)p)));
}
static inline __m512 signed_bytes(const uint8_t *p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)p)));
}

/* Scales (and mins, as they are added) of 16 rows at stored position `at`. */
static inline __attribute__((always_inline)) __m512 load_d(wina_scales kind, const uint8_t *scales,
                                                           const uint8_t *super, int64_t rows,
                                                           int64_t at, int sub) {
    if (kind == WINA_SCALES_K_DM)
        return _mm512_mul_ps(halves(super + 2 * at), bytes(scales + at));
    if (kind == WINA_SCALES_K_D16)
        return _mm512_mul_ps(halves(super + 2 * at),
                             signed_bytes(scales + (sub ? rows : 0) + at));
    return halves(scales + 2 * at);
}
static inline __attribute__((always_inline)) __m512 load_m(wina_scales kind, const uint8_t *scales,
                                                           const uint8_t *super, int64_t rows,
                                                           int64_t at) {
    if (kind == WINA_SCALES_K_DM)
        return _mm512_mul_ps(
            halves(super + 2 * (rows + at)),
            _mm512_sub_ps(_mm512_set1_ps(-0.0f), bytes(scales + rows + at)));
    return halves(scales + 2 * (rows + at));
}

/* Adds a finished sub-block to the strip's 64 sums (in stored order). */
static inline __attribute__((always_inline)) void add_sums(const wina_panel *p, wina_scales kind,
                                                           const uint8_t *scales,
                                                           const uint8_t *super, int sub,
                                                           int32_t strip, const block_sums *s,
                                                           float scale, int32_t sum, float *y) {
    __m512i start = _mm512_set1_epi32(p->layout->offset * sum);
    for (int k = 0; k < 4; k++) {
        int64_t at = (int64_t)strip * WINA_STRIP + 16 * k;
        __m512i dot = _mm512_sub_epi32(
            _mm512_add_epi32(_mm512_slli_epi32(s->hi[k], 8), s->lo[k]), start);
        __m512 d = load_d(kind, scales, super, p->n_rows, at, sub);
        __m512 acc = _mm512_fmadd_ps(_mm512_mul_ps(d, _mm512_set1_ps(scale)),
                                     _mm512_cvtepi32_ps(dot), _mm512_loadu_ps(y + 16 * k));
        if (kind == WINA_SCALES_DM || kind == WINA_SCALES_K_DM)
            acc = _mm512_fmadd_ps(load_m(kind, scales, super, p->n_rows, at),
                                  _mm512_set1_ps(scale * (float)sum), acc);
        _mm512_storeu_ps(y + 16 * k, acc);
    }
}

/* Stored order back to row order: the 4 x 4 blocks of four rows are transposed. */
static inline void unswap_strip(float *y) {
    __m512 a = _mm512_loadu_ps(y), b = _mm512_loadu_ps(y + 16), c = _mm512_loadu_ps(y + 32),
           d = _mm512_loadu_ps(y + 48);
    __m512 ab0 = _mm512_shuffle_f32x4(a, b, 0x44), ab1 = _mm512_shuffle_f32x4(a, b, 0xee);
    __m512 cd0 = _mm512_shuffle_f32x4(c, d, 0x44), cd1 = _mm512_shuffle_f32x4(c, d, 0xee);
    _mm512_storeu_ps(y, _mm512_shuffle_f32x4(ab0, cd0, 0x88));
    _mm512_storeu_ps(y + 16, _mm512_shuffle_f32x4(ab0, cd0, 0xdd));
    _mm512_storeu_ps(y + 32, _mm512_shuffle_f32x4(ab1, cd1, 0x88));
    _mm512_storeu_ps(y + 48, _mm512_shuffle_f32x4(ab1, cd1, 0xdd));
}

static inline __m512i broadcast_quad(const int8_t *x) {
    int32_t v;
    memcpy(&v, x, 4);
    return _mm512_set1_epi32(v);
}

/* One value plane and one kind of scales; both are constants where this is inlined. */
static inline __attribute__((always_inline)) void gemv_kind(const wina_panel *p,
                                                            const wina_quads *a, int values,
                                                            wina_scales kind, int32_t strip0,
                                                            int32_t strip1, float *y) {
    const int n_sub = kind == WINA_SCALES_K_D16 ? 2 : 1;
    const int32_t n_subs = p->n_blocks * n_sub, n_rows = p->n_rows;
    const int64_t strip_bytes = values == 0 ? 64 : 32;
    for (int32_t s = 0; s < n_subs; s++) {
        const uint32_t q0 = a->first[s], q1 = a->first[s + 1];
        if (q0 == q1)
            continue;
        const uint8_t *base = wina_panel_block(p, s / n_sub);
        const uint8_t *scales = wina_panel_scales(p, s / n_sub);
        const uint8_t *super = wina_panel_super(p, s / n_sub);
        /* While this sub-block is multiplied, the next one's kept columns are fetched. */
        const uint8_t *next = s + 1 < n_subs ? wina_panel_block(p, (s + 1) / n_sub) : base;
        const uint32_t p0 = s + 1 < n_subs ? a->first[s + 1] : q0;
        const uint32_t p1 = s + 1 < n_subs ? a->first[s + 2] : q0;
        for (int32_t strip = strip0; strip < strip1; strip++) {
            block_sums sums;
            for (int k = 0; k < 4; k++)
                sums.hi[k] = sums.lo[k] = _mm512_setzero_si512();
            for (uint32_t q = q0; q < q1; q++) {
                const uint8_t *col = a->col + 4 * q;
                add_quad(&sums, load_values(base + col[0] * p->col_bytes, n_rows, strip, values),
                         load_values(base + col[1] * p->col_bytes, n_rows, strip, values),
                         load_values(base + col[2] * p->col_bytes, n_rows, strip, values),
                         load_values(base + col[3] * p->col_bytes, n_rows, strip, values),
                         broadcast_quad(a->hi + 4 * q), broadcast_quad(a->lo + 4 * q));
            }
            if (values == 0 || strip % 2 == 0)
                for (uint32_t i = 4 * p0; i < 4 * p1; i++)
                    _mm_prefetch((const char *)(next + a->col[i] * p->col_bytes +
                                                strip * strip_bytes),
                                 _MM_HINT_T1);
            add_sums(p, kind, scales, super, s % n_sub, strip, &sums, a->scale[s], a->sum[s],
                     y + (int64_t)strip * WINA_STRIP);
        }
    }
    for (int32_t strip = strip0; strip < strip1; strip++)
        unswap_strip(y + (int64_t)strip * WINA_STRIP);
}

static inline __m512 load_floats(const uint8_t *p, wina_scales kind) {
    if (kind == WINA_SCALES_F32)
        return _mm512_loadu_ps(p);
    __m256i h = _mm256_loadu_si256((const __m256i *)p);
    if (kind == WINA_SCALES_F16)
        return _mm512_cvtph_ps(h);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16));
}

static inline __attribute__((always_inline)) void gemv_floats_kind(const wina_panel *p,
                                                                   const wina_act *act,
                                                                   wina_scales kind,
                                                                   int32_t strip0, int32_t strip1,
                                                                   float *y) {
    const int64_t size = kind == WINA_SCALES_F32 ? 4 : 2;
    for (int32_t k = 0, k1; k < act->n_kept; k = k1) {
        const int32_t block = act->kept[k] / WINA_BLOCK;
        const uint8_t *base = wina_panel_block(p, block);
        for (k1 = k; k1 < act->n_kept && act->kept[k1] / WINA_BLOCK == block;)
            k1++;
        const int32_t ahead = k1 + (k1 - k) < act->n_kept ? k1 + (k1 - k) : act->n_kept;
        for (int32_t strip = strip0; strip < strip1; strip++) {
            float *out = y + (int64_t)strip * WINA_STRIP;
            __m512 s0 = _mm512_loadu_ps(out), s1 = _mm512_loadu_ps(out + 16);
            __m512 s2 = _mm512_loadu_ps(out + 32), s3 = _mm512_loadu_ps(out + 48);
            for (int32_t i = k; i < k1; i++) {
                const uint8_t *col = base + (uint64_t)(act->kept[i] % WINA_BLOCK) * p->col_bytes +
                                     strip * 64 * size;
                __m512 x = _mm512_set1_ps(act->x[act->kept[i]]);
                s0 = _mm512_fmadd_ps(load_floats(col, kind), x, s0);
                s1 = _mm512_fmadd_ps(load_floats(col + 16 * size, kind), x, s1);
                s2 = _mm512_fmadd_ps(load_floats(col + 32 * size, kind), x, s2);
                s3 = _mm512_fmadd_ps(load_floats(col + 48 * size, kind), x, s3);
            }
            for (int32_t i = k1; i < ahead; i++) {
                const uint8_t *col = wina_panel_block(p, act->kept[i] / WINA_BLOCK) +
                                     (uint64_t)(act->kept[i] % WINA_BLOCK) * p->col_bytes +
                                     strip * 64 * size;
                _mm_prefetch((const char *)col, _MM_HINT_T1);
                _mm_prefetch((const char *)col + 64, _MM_HINT_T1);
            }
            _mm512_storeu_ps(out, s0), _mm512_storeu_ps(out + 16, s1);
            _mm512_storeu_ps(out + 32, s2), _mm512_storeu_ps(out + 48, s3);
        }
    }
}

static void gemv_avx512(const wina_panel *p, const wina_act *act, int32_t strip0, int32_t strip1,
                        float *y) {
    const wina_layout *l = p->layout;
    const int plane = l->low_bits == 8 ? 0 : 1 + l->high_bits;
    memset(y + (int64_t)strip0 * WINA_STRIP, 0,
           (size_t)(strip1 - strip0) * WINA_STRIP * sizeof *y);
    switch (l->scales) {
    case WINA_SCALES_F32:
        gemv_floats_kind(p, act, WINA_SCALES_F32, strip0, strip1, y);
        break;
    case WINA_SCALES_F16:
        gemv_floats_kind(p, act, WINA_SCALES_F16, strip0, strip1, y);
        break;
    case WINA_SCALES_BF16:
        gemv_floats_kind(p, act, WINA_SCALES_BF16, strip0, strip1, y);
        break;
    case WINA_SCALES_D:
        if (plane == 0)
            gemv_kind(p, &act->by32, 0, WINA_SCALES_D, strip0, strip1, y);
        else if (plane == 1)
            gemv_kind(p, &act->by32, 1, WINA_SCALES_D, strip0, strip1, y);
        else
            gemv_kind(p, &act->by32, 2, WINA_SCALES_D, strip0, strip1, y);
        break;
    case WINA_SCALES_DM:
        if (plane == 1)
            gemv_kind(p, &act->by32, 1, WINA_SCALES_DM, strip0, strip1, y);
        else
            gemv_kind(p, &act->by32, 2, WINA_SCALES_DM, strip0, strip1, y);
        break;
    case WINA_SCALES_K_DM:
        if (plane == 1)
            gemv_kind(p, &act->by32, 1, WINA_SCALES_K_DM, strip0, strip1, y);
        else
            gemv_kind(p, &act->by32, 2, WINA_SCALES_K_DM, strip0, strip1, y);
        break;
    case WINA_SCALES_K_D16:
        gemv_kind(p, &act->by16, 3, WINA_SCALES_K_D16, strip0, strip1, y);
        break;
    }
}

void wina_kernels_init_avx512(wina_kernels *k) {
    fill_table(k, "avx512");
    k->gemv = gemv_avx512;
}
