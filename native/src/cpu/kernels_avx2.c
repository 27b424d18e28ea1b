/* AVX2, FMA and F16C: one token. For several see gemm_avx2.c. */
#include "avx2.h"
#include "kernels_generic.h"

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
        if (has_min(kind))
            acc = _mm256_fmadd_ps(load_m(kind, scales, super, p->n_rows, at),
                                  _mm256_set1_ps(scale * (float)sum), acc);
        _mm256_storeu_ps(y + sums_at(r), acc);
    }
}

/* Sums of quads [q0, q1) over one strip. */
INLINE void sum_quads(const wina_panel *p, const wina_quads *a, uint32_t q0, uint32_t q1,
                      const uint8_t *base, int32_t strip, int values, __m256i s[SUMS]) {
    for (int r = 0; r < SUMS; r++)
        s[r] = _mm256_setzero_si256();
    for (uint32_t q = q0; q < q1;) {
        /* In 4 bits |sum| grows by at most 2 * 15 * 128 a pair: eight pairs fit into 16 bits. */
        const uint32_t end = values == 1 && q1 - q > 4 ? q + 4 : q1;
        narrow_sums n;
        if (values == 1)
            for (int i = 0; i < 4; i++)
                n.hi[i] = n.lo[i] = _mm256_setzero_si256();
        for (; q < end; q++)
            for (int half = 0; half < 4; half += 2) {
                const uint8_t *col = a->col + 4 * q + half;
                __m256i pair[4];
                interleave(load_values(base + col[0] * p->col_bytes, p->n_rows, strip, values),
                           load_values(base + col[1] * p->col_bytes, p->n_rows, strip, values),
                           pair);
                if (values == 1)
                    add_pair_narrow(&n, pair, broadcast_bytes(a->hi + 4 * q + half),
                                    broadcast_bytes(a->lo + 4 * q + half));
                else
                    add_pair(s, pair, broadcast_pair(a->x + 4 * q + half));
            }
        if (values == 1)
            widen(s, &n);
    }
}

/* One value plane and one kind of scales; both are constants where this is inlined. */
INLINE void gemv_kind(const wina_panel *p, const wina_quads *a, int values, wina_scales kind,
                      int32_t strip0, int32_t strip1, float *y) {
    const int n_sub = kind == WINA_SCALES_K_D16 ? 2 : 1;
    const int32_t n_subs = p->n_blocks * n_sub;
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
            __m256i sums[SUMS];
            sum_quads(p, a, q0, q1, base, strip, values, sums);
            if (values == 0 || strip % 2 == 0)
                for (uint32_t i = 4 * p0; i < 4 * p1; i++)
                    _mm_prefetch(
                        (const char *)(next + a->col[i] * p->col_bytes + strip * strip_bytes),
                        _MM_HINT_T1);
            add_sums(p, kind, scales, super, s % n_sub, strip, sums, a->scale[s], a->sum[s],
                     y + (int64_t)strip * WINA_STRIP);
        }
    }
    for (int32_t strip = strip0; strip < strip1; strip++)
        unswap_strip(y + (int64_t)strip * WINA_STRIP);
}

INLINE void gemv_floats_kind(const wina_panel *p, const wina_act *act, wina_scales kind,
                             int32_t strip0, int32_t strip1, float *y) {
    const int64_t size = kind == WINA_SCALES_F32 ? 4 : 2;
    for (int32_t k = 0, k1; k < act->n_kept; k = k1) {
        const int32_t block = act->kept[k] / WINA_BLOCK;
        const uint8_t *base = wina_panel_block(p, block);
        for (k1 = k; k1 < act->n_kept && act->kept[k1] / WINA_BLOCK == block;)
            k1++;
        const int32_t ahead = k1 + (k1 - k) < act->n_kept ? k1 + (k1 - k) : act->n_kept;
        for (int32_t strip = strip0; strip < strip1; strip++) {
            float *out = y + (int64_t)strip * WINA_STRIP;
            __m256 s[SUMS];
            for (int r = 0; r < SUMS; r++)
                s[r] = _mm256_loadu_ps(out + 8 * r);
            for (int32_t i = k; i < k1; i++) {
                const uint8_t *col =
                    base + (uint64_t)(act->kept[i] % WINA_BLOCK) * p->col_bytes + strip * 64 * size;
                __m256 x = _mm256_set1_ps(act->x[act->kept[i]]);
                for (int r = 0; r < SUMS; r++)
                    s[r] = _mm256_fmadd_ps(load_floats(col + 8 * r * size, kind), x, s[r]);
            }
            for (int32_t i = k1; i < ahead; i++) {
                const char *col = (const char *)wina_panel_block(p, act->kept[i] / WINA_BLOCK) +
                                  (uint64_t)(act->kept[i] % WINA_BLOCK) * p->col_bytes +
                                  strip * 64 * size;
                for (int line = 0; line < size; line++)
                    _mm_prefetch(col + 64 * line, _MM_HINT_T1);
            }
            for (int r = 0; r < SUMS; r++)
                _mm256_storeu_ps(out + 8 * r, s[r]);
        }
    }
}

static void gemv_tile(const wina_panel *p, const wina_act *act, int32_t strip0, int32_t strip1,
                      float *y) {
    const wina_layout *l = p->layout;
    const int plane = l->low_bits == 8 ? 0 : 1 + l->high_bits;
    memset(y + (int64_t)strip0 * WINA_STRIP, 0, (size_t)(strip1 - strip0) * WINA_STRIP * sizeof *y);
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

/* Rows are walked in tiles: a block of 32 inputs of a tile is 128 KiB, so that it and the next one,
 * which is being fetched, fit into the second-level cache together with the sums. */
static void gemv_avx2(const wina_panel *p, const wina_act *act, int32_t strip0, int32_t strip1,
                      float *y) {
    const int32_t tile = (int32_t)(512 / wina_layout_bits(p->layout));
    for (int32_t s = strip0; s < strip1; s += tile)
        gemv_tile(p, act, s, s + tile < strip1 ? s + tile : strip1, y);
}

void wina_kernels_init_avx2(wina_kernels *k) {
    fill_table(k, "avx2");
    k->gemv = gemv_avx2;
    k->gemm = wina_gemm_avx2;
}
