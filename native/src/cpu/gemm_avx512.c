/* gemm_avx512: several tokens at once. A block of a strip is interleaved once into a small buffer
 * that stays in the first-level cache, then every token multiplies it, two at a time. The sums of a
 * row are formed in the order that gemv uses: by block, in exact integers inside it. */
#include "avx512.h"

enum { QUADS = WINA_BLOCK / 4 };

/* One block of one strip: 8 groups of four inputs, 4 x 16 rows each. */
typedef struct strip_block {
    __m512i q[QUADS][4];
    __m512 d[2][4]; /* scales of each sub-block, in stored order */
    __m512 m[2][4]; /* mins, as they are added */
} strip_block;

static inline __attribute__((always_inline)) void load_block(const wina_panel *p, wina_plane plane,
                                                             wina_scales kind, int32_t block,
                                                             int32_t strip, strip_block *out) {
    const uint8_t *base = wina_panel_block(p, block);
    const uint8_t *scales = wina_panel_scales(p, block), *super = wina_panel_super(p, block);
    for (int g = 0; g < QUADS; g++) {
        const uint8_t *col = base + (uint64_t)(4 * g) * p->col_bytes;
        __m512i a = load_values(p, col, strip, plane);
        __m512i b = load_values(p, col + p->col_bytes, strip, plane);
        __m512i c = load_values(p, col + 2 * p->col_bytes, strip, plane);
        __m512i d = load_values(p, col + 3 * p->col_bytes, strip, plane);
        __m512i ab0 = _mm512_unpacklo_epi8(a, b), ab1 = _mm512_unpackhi_epi8(a, b);
        __m512i cd0 = _mm512_unpacklo_epi8(c, d), cd1 = _mm512_unpackhi_epi8(c, d);
        out->q[g][0] = _mm512_unpacklo_epi16(ab0, cd0);
        out->q[g][1] = _mm512_unpackhi_epi16(ab0, cd0);
        out->q[g][2] = _mm512_unpacklo_epi16(ab1, cd1);
        out->q[g][3] = _mm512_unpackhi_epi16(ab1, cd1);
    }
    for (int k = 0; k < 4; k++) {
        int64_t at = (int64_t)strip * WINA_STRIP + 16 * k;
        for (int sub = 0; sub < wina_scales_subs(kind); sub++) {
            out->d[sub][k] = load_d(kind, scales, super, p->n_rows, at, sub);
            if (wina_scales_mins(kind))
                out->m[sub][k] = load_m(kind, scales, super, p->n_rows, at, sub);
        }
    }
}

/* One sub-block of one token onto its 64 sums. */
static inline __attribute__((always_inline)) void finish_token(const strip_block *w,
                                                               wina_scales kind, int sub,
                                                               int32_t offset, const block_sums *s,
                                                               float scale, int32_t sum, float *y) {
    __m512i start = _mm512_set1_epi32(offset * sum);
    __m512 wide = _mm512_set1_ps(scale);
    for (int k = 0; k < 4; k++) {
        __m512i dot =
            _mm512_sub_epi32(_mm512_add_epi32(_mm512_slli_epi32(s->hi[k], 8), s->lo[k]), start);
        __m512 acc = _mm512_fmadd_ps(_mm512_mul_ps(w->d[sub][k], wide), _mm512_cvtepi32_ps(dot),
                                     _mm512_loadu_ps(y + 16 * k));
        if (wina_scales_mins(kind))
            acc = _mm512_fmadd_ps(w->m[sub][k], _mm512_set1_ps(scale * (float)sum), acc);
        _mm512_storeu_ps(y + 16 * k, acc);
    }
}

/* Tokens [t, t + n) of the batch, n = 1 or 2, times one block. */
static inline __attribute__((always_inline)) void
multiply_tokens(const wina_panel *p, const wina_batch *b, const strip_block *w, wina_scales kind,
                int32_t block, int32_t t, int n, float *y, int64_t y_stride) {
    const int n_sub = wina_scales_subs(kind), which = n_sub - 1;
    for (int sub = 0; sub < n_sub; sub++) {
        block_sums s[2];
        for (int k = 0; k < 4; k++)
            for (int i = 0; i < n; i++)
                s[i].hi[k] = s[i].lo[k] = _mm512_setzero_si512();
        for (int g = sub * QUADS / n_sub; g < (sub + 1) * QUADS / n_sub; g++)
            for (int i = 0; i < n; i++) {
                int64_t at = wina_batch_at(b, block, t + i) + 4 * g;
                __m512i xh = broadcast_quad(b->hi[which] + at);
                __m512i xl = broadcast_quad(b->lo[which] + at);
                for (int k = 0; k < 4; k++) {
                    s[i].hi[k] = _mm512_dpbusd_epi32(s[i].hi[k], w->q[g][k], xh);
                    s[i].lo[k] = _mm512_dpbusd_epi32(s[i].lo[k], w->q[g][k], xl);
                }
            }
        for (int i = 0; i < n; i++) {
            int64_t at = wina_batch_sub(b, block * n_sub + sub, t + i);
            finish_token(w, kind, sub, p->layout->offset, &s[i], b->scale[which][at],
                         b->sum[which][at], y + (t + i) * y_stride);
        }
    }
}

static inline __attribute__((always_inline)) void
gemm_kind(const wina_panel *p, const wina_batch *b, wina_plane plane, wina_scales kind,
          int32_t block0, int32_t block1, int32_t strip, float *y, int64_t y_stride) {
    for (int32_t block = block0; block < block1; block++) {
        strip_block w;
        load_block(p, plane, kind, block, strip, &w);
        int32_t t = 0;
        for (; t + 2 <= b->n_tokens; t += 2)
            multiply_tokens(p, b, &w, kind, block, t, 2, y, y_stride);
        if (t < b->n_tokens)
            multiply_tokens(p, b, &w, kind, block, t, 1, y, y_stride);
    }
    for (int32_t t = 0; t < b->n_tokens; t++)
        unswap_strip(y + t * y_stride);
}

/* Float panels: a block is converted once, four tokens keep their 64 sums in registers. */
static inline __attribute__((always_inline)) void add_floats(const float *w, int n_cols,
                                                             const float *x, int64_t x_stride,
                                                             int n, float *y, int64_t y_stride) {
    __m512 s[4][4];
    for (int i = 0; i < n; i++)
        for (int k = 0; k < 4; k++)
            s[i][k] = _mm512_loadu_ps(y + i * y_stride + 16 * k);
    for (int c = 0; c < n_cols; c++)
        for (int i = 0; i < n; i++) {
            __m512 v = _mm512_set1_ps(x[i * x_stride + c]);
            for (int k = 0; k < 4; k++)
                s[i][k] = _mm512_fmadd_ps(_mm512_load_ps(w + 64 * c + 16 * k), v, s[i][k]);
        }
    for (int i = 0; i < n; i++)
        for (int k = 0; k < 4; k++)
            _mm512_storeu_ps(y + i * y_stride + 16 * k, s[i][k]);
}

static void gemm_floats(const wina_panel *p, const wina_batch *b, int32_t block0, int32_t block1,
                        int32_t strip, float *y, int64_t y_stride) {
    const wina_scales kind = p->layout->scales;
    const int64_t size = p->layout->low_bits / 8;
    _Alignas(64) float w[WINA_BLOCK * WINA_STRIP];
    for (int32_t block = block0; block < block1; block++) {
        int32_t left = p->n_cols - block * WINA_BLOCK, n = left < WINA_BLOCK ? left : WINA_BLOCK;
        for (int32_t c = 0; c < n; c++)
            for (int k = 0; k < 4; k++)
                _mm512_store_ps(w + 64 * c + 16 * k, load_floats(wina_panel_block(p, block) +
                                                                     (uint64_t)c * p->col_bytes +
                                                                     (strip * 64 + 16 * k) * size,
                                                                 kind));
        const float *x = b->x + wina_batch_at(b, block, 0);
        int32_t t = 0;
        for (; t + 4 <= b->n_tokens; t += 4)
            add_floats(w, n, x + t * WINA_BLOCK, WINA_BLOCK, 4, y + t * y_stride, y_stride);
        for (; t < b->n_tokens; t++)
            add_floats(w, n, x + t * WINA_BLOCK, WINA_BLOCK, 1, y + t * y_stride, y_stride);
    }
}

#define DEFINE_GEMM(name, plane, kind)                                                             \
    static void gemm_##name(const wina_panel *p, const wina_batch *b, int32_t block0,              \
                            int32_t block1, int32_t strip, float *y, int64_t y_stride) {           \
        gemm_kind(p, b, plane, kind, block0, block1, strip, y, y_stride);                          \
    }
#define LIST_GEMM(name, plane, kind) [plane][kind] = gemm_##name,
WINA_KINDS(DEFINE_GEMM)
static const wina_gemm_strip GEMM[WINA_N_PLANES][WINA_N_SCALES] = {WINA_KINDS(LIST_GEMM)};

void wina_gemm_avx512(const wina_panel *p, const wina_batch *b, int32_t block0, int32_t block1,
                      int32_t strip0, int32_t strip1, float *y) {
    const wina_layout *l = p->layout;
    wina_gemm_each_strip(l->low_bits >= 16 ? gemm_floats : GEMM[l->plane][l->scales], p, b, block0,
                         block1, strip0, strip1, y);
}
