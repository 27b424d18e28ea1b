/* gemv_avx2: one token, for AVX2 and AVX-VNNI. */
#include "avx2.h"
#include "kernels_generic.h"
#include "pairs.h"

/* Zen 3 reads what lies between short columns whether it is asked to or not, and asking for
 * all of it in order is faster: docs/performance.md. */
enum { CLOSE = 1536 };

/* Adds a finished sub-block to the strip's 64 sums (in stored order). */
INLINE void add_sums(const wina_panel *p, wina_scales kind, const uint8_t *scales,
                     const uint8_t *super, int sub, int32_t strip, const __m256i s[SUMS],
                     float scale, int32_t sum, float *y) {
    const __m256i start = _mm256_set1_epi32(p->layout->offset * sum);
    for (int r = 0; r < SUMS; r++) {
        int64_t at = (int64_t)strip * WINA_STRIP + sums_at(r);
        __m256 dot = _mm256_cvtepi32_ps(_mm256_sub_epi32(s[r], start));
        __m256 d = load_d(kind, scales, super, p->n_rows, at, sub);
        __m256 acc = _mm256_fmadd_ps(_mm256_mul_ps(d, _mm256_set1_ps(scale)), dot,
                                     _mm256_loadu_ps(y + sums_at(r)));
        if (wina_scales_mins(kind))
            acc = _mm256_fmadd_ps(load_m(kind, scales, super, p->n_rows, at, sub),
                                  _mm256_set1_ps(scale * (float)sum), acc);
        _mm256_storeu_ps(y + sums_at(r), acc);
    }
}

/* Bytes of a pair of 4-bit columns: rows as interleave() has them. */
INLINE void load_pair(const operands *o, int i, int64_t at, __m256i pair[4]) {
    const __m256i nibble = _mm256_set1_epi8(15);
    const __m256i a = _mm256_loadu_si256((const __m256i *)(o->col[2 * i] + at));
    const __m256i b = _mm256_loadu_si256((const __m256i *)(o->col[2 * i + 1] + at));
    const __m256i ab0 = _mm256_unpacklo_epi8(a, b), ab1 = _mm256_unpackhi_epi8(a, b);
    pair[0] = _mm256_and_si256(ab0, nibble);
    pair[1] = _mm256_and_si256(ab1, nibble);
    pair[2] = _mm256_and_si256(_mm256_srli_epi16(ab0, 4), nibble);
    pair[3] = _mm256_and_si256(_mm256_srli_epi16(ab1, 4), nibble);
}

/* s += w x, pairs of bytes. Spelt out, because the compiler would form all products of a pair of
 * columns first and run out of registers. */
INLINE void multiply_add_bytes(__m256i *s, __m256i w, __m256i x) {
    __m256i product;
    __asm__("vpmaddubsw %3, %2, %1\n\tvpaddw %1, %0, %0"
            : "+x"(*s), "=&x"(product)
            : "x"(w), "x"(x));
}

/* Sums of n pairs of 4-bit values over one strip, added to `kept` unless they are the first. They
 * stay in 16 bits while they are formed: |sum| grows by at most 2 * 15 * 128 a pair. */
INLINE void sum_narrow(const operands *o, int n, int64_t at, bool first, const __m256i *kept,
                       uintptr_t lines, __m256i s[SUMS]) {
    const __m256i weights = _mm256_set1_epi32(256 << 16 | 1);
    __m256i hi[4], lo[4];
    for (int k = 0; k < 4; k++)
        hi[k] = lo[k] = _mm256_setzero_si256();
#pragma GCC unroll 1
    for (int i = 0; i < n; i++) {
        __m256i pair[4];
        RELOAD(o);
        load_pair(o, i, at, pair);
        fetch_lines(lines, i, i + 1);
        const __m256i xh = _mm256_set1_epi32(o->hi[i]), xl = _mm256_set1_epi32(o->lo[i]);
        for (int k = 0; k < 4; k++) {
            multiply_add_bytes(&hi[k], pair[k], xh);
            multiply_add_bytes(&lo[k], pair[k], xl);
        }
    }
    for (int k = 0; k < 4; k++) {
        s[2 * k] = _mm256_madd_epi16(_mm256_unpacklo_epi16(lo[k], hi[k]), weights);
        s[2 * k + 1] = _mm256_madd_epi16(_mm256_unpackhi_epi16(lo[k], hi[k]), weights);
    }
    if (!first)
        for (int r = 0; r < SUMS; r++)
            s[r] = _mm256_add_epi32(s[r], _mm256_load_si256(kept + r));
}

/* The same for wider values, in 32 bits. */
INLINE void sum_wide(const wina_panel *p, const operands *o, int n, int32_t strip, wina_plane plane,
                     bool first, const __m256i *kept, uintptr_t lines, __m256i s[SUMS]) {
    for (int r = 0; r < SUMS; r++)
        s[r] = first ? _mm256_setzero_si256() : _mm256_load_si256(kept + r);
    for (int i = 0; i < n; i++) {
        __m256i pair[4];
        RELOAD(o);
        interleave(load_values(p, o->col[2 * i], strip, plane),
                   load_values(p, o->col[2 * i + 1], strip, plane), pair);
        fetch_lines(lines, 2 * i, 2 * i + 2);
        add_pair(s, pair, _mm256_set1_epi32(o->x[i]));
    }
}

typedef __m256i sum_vector;

/* One group over a tile of rows. Sums of a sub-block that goes on are kept in `kept_sums`. */
INLINE void multiply_group(const wina_panel *p, const wina_quads *a, const group *g,
                           const operands *o, wina_plane plane, wina_scales kind, int32_t strip0,
                           int32_t strip1, fetch *f, __m256i *kept_sums, float *y) {
    const int n_sub = wina_scales_subs(kind), n = o->n_pairs;
    const int32_t block = g->sub / n_sub;
    const uint8_t *scales = wina_panel_scales(p, block), *super = wina_panel_super(p, block);
    const bool first = g->q0 == a->first[g->sub], last = g->q1 == a->first[g->sub + 1];
    const int32_t n_fetch = fetch_rate(f, strip1 - strip0);
    for (int32_t strip = strip0; strip < strip1; strip++) {
        __m256i s[SUMS], *kept = kept_sums + (strip - strip0) * SUMS;
        const uintptr_t lines = fetch_next(f, n_fetch);
        if (plane == WINA_PLANE_4)
            sum_narrow(o, n, (int64_t)strip * 32, first, kept, lines, s);
        else
            sum_wide(p, o, n, strip, plane, first, kept, lines, s);
        fetch_lines(lines, plane == WINA_PLANE_4 ? n : 2 * n, n_fetch);
        if (last)
            add_sums(p, kind, scales, super, g->sub % n_sub, strip, s, a->scale[g->sub],
                     a->sum[g->sub], y + (int64_t)strip * WINA_STRIP);
        else
            for (int r = 0; r < SUMS; r++)
                _mm256_store_si256(kept + r, s[r]);
    }
}

INLINE void add_columns(const uint8_t *const col[], const float *x, int n, wina_scales kind,
                        int32_t strip0, int32_t strip1, fetch *f, float *y) {
    const int64_t size = kind == WINA_SCALES_F32 ? 4 : 2;
    const int32_t n_fetch = fetch_rate(f, strip1 - strip0);
    for (int32_t strip = strip0; strip < strip1; strip++) {
        float *out = y + (int64_t)strip * WINA_STRIP;
        __m256 s[SUMS];
        const uintptr_t lines = fetch_next(f, n_fetch);
        for (int r = 0; r < SUMS; r++)
            s[r] = _mm256_loadu_ps(out + 8 * r);
        for (int i = 0; i < n; i++) {
            const uint8_t *w = col[i] + strip * 64 * size;
            __m256 v = _mm256_set1_ps(x[i]);
            for (int r = 0; r < SUMS; r++)
                s[r] = _mm256_fmadd_ps(load_floats(w + 8 * r * size, kind), v, s[r]);
            fetch_lines(lines, i * (int)size, (i + 1) * (int)size);
        }
        fetch_lines(lines, n * (int)size, n_fetch);
        for (int r = 0; r < SUMS; r++)
            _mm256_storeu_ps(out + 8 * r, s[r]);
    }
}

#include "gemv_groups.h"
