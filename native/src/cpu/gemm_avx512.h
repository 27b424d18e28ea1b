/* gemm_avx512: several tokens at once, for AVX-512 with and without VNNI. A block of a strip is
 * interleaved once into a small buffer that stays in the first-level cache, then every token
 * multiplies it, TOKENS at a time. The sums of a row are formed in the order that gemv uses: by
 * block, in exact integers inside it. A file that includes this one has defined how integers are
 * multiplied: block_values and load_block_values(), sum_tokens() and TOKENS. */

/* One block of one strip. */
typedef struct strip_block {
    block_values values;
    __m512 d[2][4]; /* scales of each sub-block, in stored order */
    __m512 m[2][4]; /* mins, as they are added */
} strip_block;

INLINE void load_block(const wina_panel *p, wina_plane plane, wina_scales kind, int32_t block,
                       int32_t strip, strip_block *out) {
    const uint8_t *scales = wina_panel_scales(p, block), *super = wina_panel_super(p, block);
    load_block_values(p, plane, block, strip, &out->values);
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
INLINE void finish_token(const strip_block *w, wina_scales kind, int sub, const __m512i s[4],
                         float scale, int32_t sum, float *y) {
    const __m512 by = _mm512_set1_ps(scale);
    for (int k = 0; k < 4; k++) {
        __m512 acc = _mm512_fmadd_ps(_mm512_mul_ps(w->d[sub][k], by), _mm512_cvtepi32_ps(s[k]),
                                     _mm512_loadu_ps(y + 16 * k));
        if (wina_scales_mins(kind))
            acc = _mm512_fmadd_ps(w->m[sub][k], _mm512_set1_ps(scale * (float)sum), acc);
        _mm512_storeu_ps(y + 16 * k, acc);
    }
}

/* Tokens [t, t + n) of the batch times one block. Sums start at minus what the offset of the stored
 * values adds. */
INLINE void multiply_tokens(const wina_panel *p, const wina_batch *b, const strip_block *w,
                            wina_scales kind, int32_t block, int32_t t, int n, float *y) {
    const int n_sub = wina_scales_subs(kind), which = n_sub - 1, n_inputs = WINA_BLOCK / n_sub;
    for (int sub = 0; sub < n_sub; sub++) {
        const int64_t at = wina_batch_sub(b, block * n_sub + sub, t);
        int32_t start[TOKENS];
        __m512i s[TOKENS][4];
        for (int i = 0; i < n; i++)
            start[i] = -p->layout->offset * b->sum[which][at + i];
        sum_tokens(b, which, wina_batch_at(b, block, t), &w->values, sub * n_inputs, n_inputs, n,
                   start, s);
        for (int i = 0; i < n; i++)
            finish_token(w, kind, sub, s[i], b->scale[which][at + i], b->sum[which][at + i],
                         y + (int64_t)(t + i) * WINA_STRIP);
    }
}

INLINE void gemm_kind(const wina_panel *p, const wina_batch *b, wina_plane plane, wina_scales kind,
                      int32_t block0, int32_t block1, int32_t strip, int32_t t0, int32_t t1,
                      float *y) {
    for (int32_t block = block0; block < block1; block++) {
        strip_block w;
        load_block(p, plane, kind, block, strip, &w);
        int32_t t = t0;
        for (; t + TOKENS <= t1; t += TOKENS)
            multiply_tokens(p, b, &w, kind, block, t, TOKENS, y);
        for (; t < t1; t++)
            multiply_tokens(p, b, &w, kind, block, t, 1, y);
    }
}

/* Float panels: a block is converted once, four tokens keep their 64 sums in registers. x (n, 32),
 * y (n, 64). */
INLINE void add_floats(const float *w, int n_cols, const float *x, int n, float *y) {
    __m512 s[4][4];
    for (int i = 0; i < n; i++)
        for (int k = 0; k < 4; k++)
            s[i][k] = _mm512_loadu_ps(y + i * WINA_STRIP + 16 * k);
    for (int c = 0; c < n_cols; c++)
        for (int i = 0; i < n; i++) {
            __m512 v = _mm512_set1_ps(x[i * WINA_BLOCK + c]);
            for (int k = 0; k < 4; k++)
                s[i][k] = _mm512_fmadd_ps(_mm512_load_ps(w + 64 * c + 16 * k), v, s[i][k]);
        }
    for (int i = 0; i < n; i++)
        for (int k = 0; k < 4; k++)
            _mm512_storeu_ps(y + i * WINA_STRIP + 16 * k, s[i][k]);
}

static void gemm_floats(const wina_panel *p, const wina_batch *b, int32_t block0, int32_t block1,
                        int32_t strip, int32_t t0, int32_t t1, float *y) {
    const wina_scales kind = p->layout->scales;
    const int64_t size = p->layout->low_bits / 8;
    _Alignas(64) float w[WINA_BLOCK * WINA_STRIP];
    for (int32_t block = block0; block < block1; block++) {
        int32_t left = p->n_cols - block * WINA_BLOCK, n = left < WINA_BLOCK ? left : WINA_BLOCK;
        const uint8_t *from = wina_panel_block(p, block) + strip * WINA_STRIP * size;
        for (int32_t c = 0; c < n; c++, from += p->col_bytes)
            for (int k = 0; k < 4; k++)
                _mm512_store_ps(w + 64 * c + 16 * k, load_floats(from + 16 * k * size, kind));
        const float *x = b->x + wina_batch_at(b, block, 0);
        int32_t t = t0;
        for (; t + 4 <= t1; t += 4)
            add_floats(w, n, x + t * WINA_BLOCK, 4, y + t * WINA_STRIP);
        for (; t < t1; t++)
            add_floats(w, n, x + t * WINA_BLOCK, 1, y + t * WINA_STRIP);
    }
}

/* Adds the products of tokens [t0, t1) to y, rows in stored order. */
typedef void (*x86_gemm)(const wina_panel *p, const wina_batch *b, int32_t block0, int32_t block1,
                         int32_t strip, int32_t t0, int32_t t1, float *y);
#define DEFINE_GEMM(name, plane, kind)                                                             \
    static void gemm_##name(const wina_panel *p, const wina_batch *b, int32_t block0,              \
                            int32_t block1, int32_t strip, int32_t t0, int32_t t1, float *y) {     \
        gemm_kind(p, b, plane, kind, block0, block1, strip, t0, t1, y);                            \
    }
#define LIST_GEMM(name, plane, kind) [plane][kind] = gemm_##name,
WINA_KINDS(DEFINE_GEMM)
static const x86_gemm GEMM[WINA_N_PLANES][WINA_N_SCALES] = {WINA_KINDS(LIST_GEMM)};

/* How much is multiplied at a time: 64 KB of activations, or 128 of floats. */
enum { MOST_TOKENS = 128, RUN = 8 };

/* The activations of some tokens and a run of blocks stay in the second-level cache while all
 * strips multiply them. */
static void gemm_all(const wina_panel *p, const wina_batch *b, int32_t block0, int32_t block1,
                     int32_t strip0, int32_t strip1, float *y) {
    const wina_layout *l = p->layout;
    const int64_t size = (int64_t)b->n_tokens * WINA_STRIP, n_rows = size * (strip1 - strip0);
    const bool floats = l->low_bits >= 16;
    const x86_gemm multiply = floats ? gemm_floats : GEMM[l->plane][l->scales];
    memset(y, 0, (size_t)n_rows * sizeof *y);
    for (int32_t t = 0; t < b->n_tokens; t += MOST_TOKENS) {
        const int32_t end = t + MOST_TOKENS < b->n_tokens ? t + MOST_TOKENS : b->n_tokens;
        for (int32_t block = block0; block < block1; block += RUN)
            for (int32_t strip = strip0; strip < strip1; strip++)
                multiply(p, b, block, block + RUN < block1 ? block + RUN : block1, strip, t, end,
                         y + (strip - strip0) * size);
    }
    for (int64_t i = 0; i < n_rows && !floats; i += WINA_STRIP)
        unswap_strip(y + i);
}
