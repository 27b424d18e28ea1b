/* gemv_avx512: one token, for AVX-512 with and without VNNI, and the rest of both sets. A file that
 * includes this one has defined how integers are multiplied:
 *
 *   operands, load_operands()   what a group multiplies, as gemv_groups.h says
 *   sum_columns()               the sums of a group over one strip, added to `kept` unless they are
 *                               the first; it fetches the first 2 * low_bits / 8 `lines` a pair
 */
/* Intel's processors do skip short columns: nothing between them is fetched. */
enum { SUMS = 4, CLOSE = 0 };
typedef __m512i sum_vector;

/* Adds a finished sub-block to the strip's 64 sums (in stored order). */
INLINE void add_sums(const wina_panel *p, wina_scales kind, const uint8_t *scales,
                     const uint8_t *super, int sub, int32_t strip, const __m512i s[SUMS],
                     float scale, int32_t sum, float *y) {
    const __m512i start = _mm512_set1_epi32(p->layout->offset * sum);
    for (int k = 0; k < SUMS; k++) {
        int64_t at = (int64_t)strip * WINA_STRIP + 16 * k;
        __m512 dot = _mm512_cvtepi32_ps(_mm512_sub_epi32(s[k], start));
        __m512 d = load_d(kind, scales, super, p->n_rows, at, sub);
        __m512 acc = _mm512_fmadd_ps(_mm512_mul_ps(d, _mm512_set1_ps(scale)), dot,
                                     _mm512_loadu_ps(y + 16 * k));
        if (wina_scales_mins(kind))
            acc = _mm512_fmadd_ps(load_m(kind, scales, super, p->n_rows, at, sub),
                                  _mm512_set1_ps(scale * (float)sum), acc);
        _mm512_storeu_ps(y + 16 * k, acc);
    }
}

/* One group over a tile of rows. Sums of a sub-block that goes on are kept in `kept_sums`. */
INLINE void multiply_group(const wina_panel *p, const wina_quads *a, const group *g,
                           const operands *o, wina_plane plane, wina_scales kind, int32_t strip0,
                           int32_t strip1, fetch *f, __m512i *kept_sums, float *y) {
    const int n_sub = wina_scales_subs(kind), n = (int)(g->q1 - g->q0);
    const int32_t block = g->sub / n_sub, n_fetch = fetch_rate(f, strip1 - strip0);
    const uint8_t *scales = wina_panel_scales(p, block), *super = wina_panel_super(p, block);
    const bool first = g->q0 == a->first[g->sub], last = g->q1 == a->first[g->sub + 1];
    for (int32_t strip = strip0; strip < strip1; strip++) {
        __m512i s[SUMS], *kept = kept_sums + (strip - strip0) * SUMS;
        const uintptr_t lines = fetch_next(f, n_fetch);
        sum_columns(p, o, n, strip, plane, first, kept, lines, s);
        fetch_lines(lines, n * lines_per_quad(plane), n_fetch);
        if (last)
            add_sums(p, kind, scales, super, g->sub % n_sub, strip, s, a->scale[g->sub],
                     a->sum[g->sub], y + (int64_t)strip * WINA_STRIP);
        else
            for (int k = 0; k < SUMS; k++)
                _mm512_store_si512(kept + k, s[k]);
    }
}

INLINE void add_columns(const uint8_t *const col[], const float *x, int n, wina_scales kind,
                        int32_t strip0, int32_t strip1, fetch *f, float *y) {
    const int64_t size = kind == WINA_SCALES_F32 ? 4 : 2;
    const int32_t n_fetch = fetch_rate(f, strip1 - strip0);
    for (int32_t strip = strip0; strip < strip1; strip++) {
        float *out = y + (int64_t)strip * WINA_STRIP;
        __m512 s[SUMS];
        const uintptr_t lines = fetch_next(f, n_fetch);
        for (int k = 0; k < SUMS; k++)
            s[k] = _mm512_loadu_ps(out + 16 * k);
        for (int i = 0; i < n; i++) {
            const uint8_t *w = col[i] + strip * 64 * size;
            const __m512 v = _mm512_set1_ps(x[i]);
            for (int k = 0; k < SUMS; k++)
                s[k] = _mm512_fmadd_ps(load_floats(w + 16 * k * size, kind), v, s[k]);
            fetch_lines(lines, i * (int)size, (i + 1) * (int)size);
        }
        fetch_lines(lines, n * (int)size, n_fetch);
        for (int k = 0; k < SUMS; k++)
            _mm512_storeu_ps(out + 16 * k, s[k]);
    }
}

#include "gemv_groups.h"

/* All of a set but its products of several tokens. What is not bound by arithmetic is AVX2's. */
INLINE void fill_avx512(wina_kernels *k, const char *name) {
    fill_table(k, name);
    k->gemv = gemv_by_groups;
    k->fill = wina_fill_ops_avx2;
    k->score = wina_score_avx2;
    k->select = wina_select_avx2;
    k->quantize = wina_quantize_avx2;
    k->quantize_row = wina_quantize_row_avx2;
    k->attend_dots = wina_attend_dots_avx512;
    k->attend_add = wina_attend_add_avx512;
    k->softmax_part = wina_softmax_part_avx512;
    k->cache_load[WINA_CACHE_Q8_0] = wina_load_q8_0_avx512;
}
