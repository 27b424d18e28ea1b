/* AVX-512 (F, BW, DQ, VL, VNNI): one token. For several see gemm_avx512.c. */
#include "avx512.h"
#include "groups.h"
#include "kernels_generic.h"

/* What a group multiplies: columns, and the bytes of four activations as they are broadcast. */
typedef struct operands {
    const uint8_t *col[4 * GROUP];
    int32_t hi[GROUP], lo[GROUP];
} operands;

INLINE void load_operands(const wina_panel *p, const wina_quads *a, const group *g, int n_sub,
                          operands *o) {
    const wina_block_columns columns = wina_panel_columns(p, g->sub / n_sub);
    for (uint32_t q = g->q0; q < g->q1; q++) {
        for (uint32_t i = 0; i < 4; i++)
            o->col[4 * (q - g->q0) + i] = wina_block_column(&columns, a->col[4 * q + i]);
        memcpy(&o->hi[q - g->q0], a->hi + 4 * q, 4);
        memcpy(&o->lo[q - g->q0], a->lo + 4 * q, 4);
    }
}

typedef __m512i sum_vector;
/* Intel's processors do skip short columns. */
enum { SUMS = 4, CLOSE = 0 };

/* One group over a tile of rows. Sums of a sub-block that goes on are kept in `kept_sums`. */
INLINE void multiply_group(const wina_panel *p, const wina_quads *a, const group *g,
                           const operands *o, wina_plane plane, wina_scales kind, int32_t strip0,
                           int32_t strip1, fetch *f, __m512i *kept_sums, float *y) {
    const int n_sub = wina_scales_subs(kind), n = (int)(g->q1 - g->q0);
    const int per_quad = plane == WINA_PLANE_8 ? 4 : 2; /* lines */
    const int32_t block = g->sub / n_sub, n_fetch = fetch_rate(f, strip1 - strip0);
    const uint8_t *scales = wina_panel_scales(p, block), *super = wina_panel_super(p, block);
    const bool first = g->q0 == a->first[g->sub], last = g->q1 == a->first[g->sub + 1];
    for (int32_t strip = strip0; strip < strip1; strip++) {
        block_sums s;
        __m512i *kept = kept_sums + (strip - strip0) * 4;
        const uintptr_t lines = fetch_next(f, n_fetch);
        for (int k = 0; k < 4; k++) {
            s.hi[k] = _mm512_setzero_si512();
            s.lo[k] = first ? _mm512_setzero_si512() : _mm512_load_si512(kept + k);
        }
        for (int q = 0; q < n; q++) {
            const uint8_t *const *col = o->col + 4 * q;
            add_quad(&s, load_values(p, col[0], strip, plane), load_values(p, col[1], strip, plane),
                     load_values(p, col[2], strip, plane), load_values(p, col[3], strip, plane),
                     _mm512_set1_epi32(o->hi[q]), _mm512_set1_epi32(o->lo[q]));
            fetch_lines(lines, q * per_quad, (q + 1) * per_quad);
        }
        fetch_lines(lines, n * per_quad, n_fetch);
        if (last)
            add_sums(p, kind, scales, super, g->sub % n_sub, strip, &s, a->scale[g->sub],
                     a->sum[g->sub], y + (int64_t)strip * WINA_STRIP);
        else
            for (int k = 0; k < 4; k++)
                _mm512_store_si512(kept + k,
                                   _mm512_add_epi32(_mm512_slli_epi32(s.hi[k], 8), s.lo[k]));
    }
}

INLINE void add_columns(const uint8_t *const col[], const float *x, int n, wina_scales kind,
                        int32_t strip0, int32_t strip1, fetch *f, float *y) {
    const int64_t size = kind == WINA_SCALES_F32 ? 4 : 2;
    const int32_t n_fetch = fetch_rate(f, strip1 - strip0);
    for (int32_t strip = strip0; strip < strip1; strip++) {
        float *out = y + (int64_t)strip * WINA_STRIP;
        __m512 s[4];
        const uintptr_t lines = fetch_next(f, n_fetch);
        for (int k = 0; k < 4; k++)
            s[k] = _mm512_loadu_ps(out + 16 * k);
        for (int i = 0; i < n; i++) {
            const uint8_t *w = col[i] + strip * 64 * size;
            const __m512 v = _mm512_set1_ps(x[i]);
            for (int k = 0; k < 4; k++)
                s[k] = _mm512_fmadd_ps(load_floats(w + 16 * k * size, kind), v, s[k]);
            fetch_lines(lines, i * (int)size, (i + 1) * (int)size);
        }
        fetch_lines(lines, n * (int)size, n_fetch);
        for (int k = 0; k < 4; k++)
            _mm512_storeu_ps(out + 16 * k, s[k]);
    }
}

#include "gemv_groups.h"

void wina_kernels_init_avx512(wina_kernels *k) {
    fill_table(k, "avx512");
    k->gemv = gemv_by_groups;
    k->gemm = wina_gemm_avx512;
    k->fill = wina_fill_ops_avx2;
    k->attend_dots = wina_attend_dots_avx512;
    k->attend_add = wina_attend_add_avx512;
    k->softmax_part = wina_softmax_part_avx512;
    k->cache_load[WINA_CACHE_Q8_0] = wina_load_q8_0_avx512;
}
