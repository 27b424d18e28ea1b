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
    const uint8_t *base = wina_panel_block(p, g->sub / n_sub);
    for (uint32_t q = g->q0; q < g->q1; q++) {
        for (uint32_t i = 0; i < 4; i++)
            o->col[4 * (q - g->q0) + i] = base + a->col[4 * q + i] * p->col_bytes;
        memcpy(&o->hi[q - g->q0], a->hi + 4 * q, 4);
        memcpy(&o->lo[q - g->q0], a->lo + 4 * q, 4);
    }
}

/* n quads over a tile of rows. Sums of a sub-block that goes on are kept in `kept_sums`. */
INLINE void multiply_quads(const wina_panel *p, const wina_quads *a, const group *g,
                           const operands *o, int n, int values, wina_scales kind, int32_t strip0,
                           int32_t strip1, fetch *f, __m512i *kept_sums, float *y) {
    const int n_sub = kind == WINA_SCALES_K_D16 ? 2 : 1, per_quad = values == 0 ? 4 : 2;
    const int32_t block = g->sub / n_sub, n_fetch = fetch_rate(f, strip1 - strip0);
    const uint8_t *scales = wina_panel_scales(p, block), *super = wina_panel_super(p, block);
    const bool first = g->q0 == a->first[g->sub], last = g->q1 == a->first[g->sub + 1];
    for (int32_t strip = strip0; strip < strip1; strip++) {
        block_sums s;
        __m512i *kept = kept_sums + (strip - strip0) * 4;
        const char *lines = fetch_next(f, n_fetch);
        for (int k = 0; k < 4; k++) {
            s.hi[k] = _mm512_setzero_si512();
            s.lo[k] = first ? _mm512_setzero_si512() : _mm512_load_si512(kept + k);
        }
        for (int q = 0; q < n; q++) {
            const uint8_t *const *col = o->col + 4 * q;
            add_quad(&s, load_values(col[0], p->n_rows, strip, values),
                     load_values(col[1], p->n_rows, strip, values),
                     load_values(col[2], p->n_rows, strip, values),
                     load_values(col[3], p->n_rows, strip, values), _mm512_set1_epi32(o->hi[q]),
                     _mm512_set1_epi32(o->lo[q]));
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

/* One value plane and one kind of scales; both are constants where this is inlined. */
INLINE void gemv_kind(const wina_panel *p, const wina_quads *a, int values, wina_scales kind,
                      int32_t block0, int32_t block1, int32_t strip0, int32_t strip1, float *y) {
    const int n_sub = kind == WINA_SCALES_K_D16 ? 2 : 1;
    const int32_t end = block1 * n_sub;
    __m512i kept_sums[TILE * 4];
    group g = {.sub = block0 * n_sub, .q1 = a->first[block0 * n_sub]}, next;
    bool more = next_group(a, end, &g);
    while (more) {
        fetch f;
        operands o;
        fetch_clear(&f);
        next = g;
        more = next_group(a, end, &next);
        if (more)
            fetch_group(p, a, &next, n_sub, strip0, strip1, &f);
        load_operands(p, a, &g, n_sub, &o);
        multiply_quads(p, a, &g, &o, (int)(g.q1 - g.q0), values, kind, strip0, strip1, &f,
                       kept_sums, y);
        g = next;
    }
    for (int32_t strip = strip0; strip < strip1; strip++)
        unswap_strip(y + (int64_t)strip * WINA_STRIP);
}

INLINE void add_columns(const uint8_t *const col[], const float *x, int n, wina_scales kind,
                        int32_t strip0, int32_t strip1, fetch *f, float *y) {
    const int64_t size = kind == WINA_SCALES_F32 ? 4 : 2;
    const int32_t n_fetch = fetch_rate(f, strip1 - strip0);
    for (int32_t strip = strip0; strip < strip1; strip++) {
        float *out = y + (int64_t)strip * WINA_STRIP;
        __m512 s[4];
        const char *lines = fetch_next(f, n_fetch);
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

INLINE void gemv_floats_kind(const wina_panel *p, const wina_act *act, wina_scales kind,
                             int32_t block0, int32_t block1, int32_t strip0, int32_t strip1,
                             float *y) {
    const int32_t end = find_kept(act->kept, act->n_kept, block1 * WINA_BLOCK);
    for (int32_t k = find_kept(act->kept, act->n_kept, block0 * WINA_BLOCK), n; k < end; k += n) {
        const uint8_t *col[COLUMNS];
        float x[COLUMNS];
        fetch f;
        n = load_columns(p, act, k, end, strip0, strip1, col, x, &f);
        if (n == COLUMNS)
            add_columns(col, x, COLUMNS, kind, strip0, strip1, &f, y);
        else
            add_columns(col, x, n, kind, strip0, strip1, &f, y);
    }
}

static void gemv_tile(const wina_panel *p, const wina_act *act, int32_t block0, int32_t block1,
                      int32_t strip0, int32_t strip1, float *y) {
    const wina_layout *l = p->layout;
    const int plane = l->low_bits == 8 ? 0 : 1 + l->high_bits;
    memset(y + (int64_t)strip0 * WINA_STRIP, 0, (size_t)(strip1 - strip0) * WINA_STRIP * sizeof *y);
    switch (l->scales) {
    case WINA_SCALES_F32:
        gemv_floats_kind(p, act, WINA_SCALES_F32, block0, block1, strip0, strip1, y);
        break;
    case WINA_SCALES_F16:
        gemv_floats_kind(p, act, WINA_SCALES_F16, block0, block1, strip0, strip1, y);
        break;
    case WINA_SCALES_BF16:
        gemv_floats_kind(p, act, WINA_SCALES_BF16, block0, block1, strip0, strip1, y);
        break;
    case WINA_SCALES_D:
        if (plane == 0)
            gemv_kind(p, &act->by32, 0, WINA_SCALES_D, block0, block1, strip0, strip1, y);
        else if (plane == 1)
            gemv_kind(p, &act->by32, 1, WINA_SCALES_D, block0, block1, strip0, strip1, y);
        else
            gemv_kind(p, &act->by32, 2, WINA_SCALES_D, block0, block1, strip0, strip1, y);
        break;
    case WINA_SCALES_DM:
        if (plane == 1)
            gemv_kind(p, &act->by32, 1, WINA_SCALES_DM, block0, block1, strip0, strip1, y);
        else
            gemv_kind(p, &act->by32, 2, WINA_SCALES_DM, block0, block1, strip0, strip1, y);
        break;
    case WINA_SCALES_K_DM:
        if (plane == 1)
            gemv_kind(p, &act->by32, 1, WINA_SCALES_K_DM, block0, block1, strip0, strip1, y);
        else
            gemv_kind(p, &act->by32, 2, WINA_SCALES_K_DM, block0, block1, strip0, strip1, y);
        break;
    case WINA_SCALES_K_D16:
        gemv_kind(p, &act->by16, 3, WINA_SCALES_K_D16, block0, block1, strip0, strip1, y);
        break;
    }
}

static void gemv_avx512(const wina_panel *p, const wina_act *act, int32_t block0, int32_t block1,
                        int32_t strip0, int32_t strip1, float *y) {
    for (int32_t s = strip0; s < strip1; s += TILE)
        gemv_tile(p, act, block0, block1, s, s + TILE < strip1 ? s + TILE : strip1, y);
}

void wina_kernels_init_avx512(wina_kernels *k) {
    fill_table(k, "avx512");
    k->gemv = gemv_avx512;
    k->gemm = wina_gemm_avx512;
}
