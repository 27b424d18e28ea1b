/* AVX-512 (F, BW, DQ, VL, VNNI): one token. For several see gemm_avx512.c. */
#include "avx512.h"
#include "kernels_generic.h"

/* One value plane and one kind of scales; both are constants where this is inlined. */
static inline __attribute__((always_inline)) void
gemv_kind(const wina_panel *p, const wina_quads *a, int values, wina_scales kind, int32_t block0,
          int32_t block1, int32_t strip0, int32_t strip1, float *y) {
    const int n_sub = kind == WINA_SCALES_K_D16 ? 2 : 1;
    const int32_t n_subs = block1 * n_sub, n_rows = p->n_rows;
    const int64_t strip_bytes = values == 0 ? 64 : 32;
    for (int32_t s = block0 * n_sub; s < n_subs; s++) {
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
                    _mm_prefetch(
                        (const char *)(next + a->col[i] * p->col_bytes + strip * strip_bytes),
                        _MM_HINT_T1);
            add_sums(p, kind, scales, super, s % n_sub, strip, &sums, a->scale[s], a->sum[s],
                     y + (int64_t)strip * WINA_STRIP);
        }
    }
    for (int32_t strip = strip0; strip < strip1; strip++)
        unswap_strip(y + (int64_t)strip * WINA_STRIP);
}

static inline __attribute__((always_inline)) void
gemv_floats_kind(const wina_panel *p, const wina_act *act, wina_scales kind, int32_t block0,
                 int32_t block1, int32_t strip0, int32_t strip1, float *y) {
    const int64_t size = kind == WINA_SCALES_F32 ? 4 : 2;
    for (int32_t k = 0, k1; k < act->n_kept; k = k1) {
        const int32_t block = act->kept[k] / WINA_BLOCK;
        if (block < block0 || block >= block1) {
            k1 = k + 1;
            continue;
        }
        const uint8_t *base = wina_panel_block(p, block);
        for (k1 = k; k1 < act->n_kept && act->kept[k1] / WINA_BLOCK == block;)
            k1++;
        const int32_t ahead = k1 + (k1 - k) < act->n_kept ? k1 + (k1 - k) : act->n_kept;
        for (int32_t strip = strip0; strip < strip1; strip++) {
            float *out = y + (int64_t)strip * WINA_STRIP;
            __m512 s0 = _mm512_loadu_ps(out), s1 = _mm512_loadu_ps(out + 16);
            __m512 s2 = _mm512_loadu_ps(out + 32), s3 = _mm512_loadu_ps(out + 48);
            for (int32_t i = k; i < k1; i++) {
                const uint8_t *col =
                    base + (uint64_t)(act->kept[i] % WINA_BLOCK) * p->col_bytes + strip * 64 * size;
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

/* Rows are walked in tiles: a block of 32 inputs of a tile is 256 KiB, so that it and the next one,
 * which is being fetched, fit into the second-level cache together with the sums. */
static void gemv_avx512(const wina_panel *p, const wina_act *act, int32_t block0, int32_t block1,
                        int32_t strip0, int32_t strip1, float *y) {
    const int32_t tile = (int32_t)(1024 / wina_layout_bits(p->layout));
    for (int32_t s = strip0; s < strip1; s += tile)
        gemv_tile(p, act, block0, block1, s, s + tile < strip1 ? s + tile : strip1, y);
}

void wina_kernels_init_avx512(wina_kernels *k) {
    fill_table(k, "avx512");
    k->gemv = gemv_avx512;
    k->gemm = wina_gemm_avx512;
}
