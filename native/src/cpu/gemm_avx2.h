/* gemm_avx2: several tokens at once, for AVX2 and AVX-VNNI. A block of a strip is extended to 16
 * bits and interleaved once into a small buffer that stays in the first-level cache; then every
 * token multiplies it, a few at a time on a part of the strip: as many sums as there are registers
 * for. The sums of a row are formed in the order that gemv uses: by block, in exact integers inside
 * it. */
#include "avx2.h"

enum { PAIRS = WINA_BLOCK / 2 };
enum { TOKENS = 4, REGS = 2 }; /* integers: 8 sums, 4 activations, weights, a product */
enum { MOST_TOKENS = 64, F_MOST_TOKENS = 128 }; /* whose sums fit into the first-level cache */
enum {
    F_TOKENS = 3,
    F_REGS = 4,
    F_ROWS = 8 * F_REGS
};                  /* floats: 12 sums, 3 activations, weights */
enum { F_RUN = 4 }; /* blocks whose floats stay in the first-level cache: 16 KB */
/* Blocks whose activations stay in the second-level cache, of as many tokens as above: 64 or 128
 * KB.
 */
enum { RUNS = 16, F_RUNS = 8 };

/* One block of one strip: 16 pairs of inputs, 8 x 8 rows each. */
typedef struct strip_block {
    __m256i w[PAIRS][SUMS];
    __m256 d[2][SUMS]; /* scales of each sub-block */
    __m256 m[2][SUMS]; /* mins, as they are added */
} strip_block;

INLINE void load_block(const wina_panel *p, wina_plane plane, wina_scales kind, int32_t block,
                       int32_t strip, strip_block *out) {
    const __m256i zero = _mm256_setzero_si256();
    const uint8_t *base = wina_panel_block(p, block);
    const uint8_t *scales = wina_panel_scales(p, block), *super = wina_panel_super(p, block);
    for (int g = 0; g < PAIRS; g++) {
        const uint8_t *col = base + (uint64_t)(2 * g) * p->col_bytes;
        __m256i pair[4];
        interleave(load_values(p, col, strip, plane),
                   load_values(p, col + p->col_bytes, strip, plane), pair);
        for (int i = 0; i < 4; i++) {
            out->w[g][2 * i] = _mm256_unpacklo_epi8(pair[i], zero);
            out->w[g][2 * i + 1] = _mm256_unpackhi_epi8(pair[i], zero);
        }
    }
    for (int r = 0; r < SUMS; r++) {
        int64_t at = (int64_t)strip * WINA_STRIP + sums_at(r);
        for (int sub = 0; sub < wina_scales_subs(kind); sub++) {
            out->d[sub][r] = load_d(kind, scales, super, p->n_rows, at, sub);
            if (wina_scales_mins(kind))
                out->m[sub][r] = load_m(kind, scales, super, p->n_rows, at, sub);
        }
    }
}

/* The columns of the next block, while this one is multiplied. */
INLINE void fetch_block(const wina_panel *p, int32_t block, int32_t strip) {
    const uint8_t *base = wina_panel_block(p, block) + (int64_t)strip * 8 * p->layout->low_bits;
    for (int c = 0; c < WINA_BLOCK; c++)
        _mm_prefetch((const char *)(base + (uint64_t)c * p->col_bytes), _MM_HINT_T0);
}

/* What a block's multiplications read of some tokens. */
typedef struct token_block {
    const int16_t *x;   /* (n, 32) */
    const float *scale; /* (subs, n_tokens) */
    const int32_t *sum; /* (subs, n_tokens) */
    int64_t n_tokens;
} token_block;

/* n tokens times one block, REGS registers of rows from register r0 on, added to y (n, 64). The
 * sums start at minus what the offset of the stored values adds. */
INLINE void multiply_tokens(const strip_block *w, wina_scales kind, int32_t offset, int r0,
                            const token_block *b, int n, float *y) {
    const int n_sub = wina_scales_subs(kind), n_pairs = PAIRS / n_sub;
    const int16_t *x = b->x;
    for (int sub = 0; sub < n_sub; sub++) {
        const float *scale = b->scale + sub * b->n_tokens;
        const int32_t *sum = b->sum + sub * b->n_tokens;
        __m256i s[TOKENS][REGS];
        for (int i = 0; i < n; i++)
            for (int r = 0; r < REGS; r++)
                s[i][r] = _mm256_set1_epi32(-offset * sum[i]);
#pragma GCC unroll 2
        for (int g = 0; g < n_pairs; g++) {
            __m256i pair[TOKENS];
            RELOAD(x);
            for (int i = 0; i < n; i++)
                pair[i] = broadcast_pair(x + i * WINA_BLOCK + 2 * (sub * n_pairs + g));
            for (int r = 0; r < REGS; r++) {
                const __m256i v = w->w[sub * n_pairs + g][r0 + r];
                for (int i = 0; i < n; i++)
                    multiply_add(&s[i][r], v, pair[i]);
            }
        }
        for (int i = 0; i < n; i++) {
            const __m256 by = _mm256_set1_ps(scale[i]);
            for (int r = 0; r < REGS; r++) {
                float *to = y + i * WINA_STRIP + 16 * r;
                __m256 acc = _mm256_fmadd_ps(_mm256_mul_ps(w->d[sub][r0 + r], by),
                                             _mm256_cvtepi32_ps(s[i][r]), _mm256_loadu_ps(to));
                if (wina_scales_mins(kind))
                    acc = _mm256_fmadd_ps(w->m[sub][r0 + r],
                                          _mm256_set1_ps(scale[i] * (float)sum[i]), acc);
                _mm256_storeu_ps(to, acc);
            }
        }
    }
}

INLINE void gemm_kind(const wina_panel *p, const wina_batch *b, wina_plane plane, wina_scales kind,
                      int32_t block0, int32_t block1, int32_t strip, bool next, int32_t t0,
                      int32_t t1, float *y) {
    for (int32_t block = block0; block < block1; block++) {
        strip_block w;
        load_block(p, plane, kind, block, strip, &w);
        if (block + 1 < block1)
            fetch_block(p, block + 1, strip);
        else if (next)
            fetch_block(p, block0, strip + 1);
        const int n_sub = wina_scales_subs(kind), which = n_sub - 1;
        for (int32_t t = t0, n; t < t1; t += n) {
            const int64_t at = wina_batch_sub(b, block * n_sub, t);
            const token_block x = {b->x16[which] + wina_batch_at(b, block, t), b->scale[which] + at,
                                   b->sum[which] + at, b->n_tokens};
            n = t1 - t < TOKENS ? 1 : TOKENS;
            for (int r = 0; r < SUMS; r += REGS) {
                float *to = y + (int64_t)t * WINA_STRIP + sums_at(r);
                if (n == TOKENS)
                    multiply_tokens(&w, kind, p->layout->offset, r, &x, TOKENS, to);
                else
                    multiply_tokens(&w, kind, p->layout->offset, r, &x, 1, to);
            }
        }
    }
}

/* Float panels: half a strip of some blocks is converted once into F_RUN * F_ROWS floats, then
 * three tokens at a time keep its sums in registers over all those blocks. w (n_blocks, 32,
 * F_ROWS), x (n_blocks, x_stride): blocks of the last column may be short. */
INLINE void add_floats(const float *w, int n_cols, const float *x, int64_t x_stride, int n,
                       float *y) {
    __m256 s[F_TOKENS][F_REGS];
    for (int i = 0; i < n; i++)
        for (int r = 0; r < F_REGS; r++)
            s[i][r] = _mm256_loadu_ps(y + i * WINA_STRIP + 8 * r);
    for (; n_cols > 0; n_cols -= WINA_BLOCK, x += x_stride) {
        const int n_now = n_cols < WINA_BLOCK ? n_cols : WINA_BLOCK;
        for (int i = 0; i < 2 * n; i++) /* of the next tokens */
            _mm_prefetch((const char *)(x + n * WINA_BLOCK + 16 * i), _MM_HINT_T0);
        for (int c = 0; c < n_now; c++, w += F_ROWS)
            for (int i = 0; i < n; i++) {
                const __m256 v = _mm256_set1_ps(x[i * WINA_BLOCK + c]);
                for (int r = 0; r < F_REGS; r++)
                    s[i][r] = _mm256_fmadd_ps(_mm256_load_ps(w + 8 * r), v, s[i][r]);
            }
    }
    for (int i = 0; i < n; i++)
        for (int r = 0; r < F_REGS; r++)
            _mm256_storeu_ps(y + i * WINA_STRIP + 8 * r, s[i][r]);
}

/* Converts F_ROWS rows from row `row` on of some blocks; returns how many columns those have. */
INLINE int convert_blocks(const wina_panel *p, wina_scales kind, int32_t block0, int32_t block1,
                          int32_t row, float *w) {
    const int64_t size = kind == WINA_SCALES_F32 ? 4 : 2;
    int n_cols = 0;
    for (int32_t block = block0; block < block1; block++) {
        const int32_t left = p->n_cols - block * WINA_BLOCK;
        const int32_t n = left < WINA_BLOCK ? left : WINA_BLOCK;
        const uint8_t *col = wina_panel_block(p, block) + row * size;
        for (int c = 0; c < n; c++, col += p->col_bytes, w += F_ROWS)
            for (int r = 0; r < F_REGS; r++)
                _mm256_store_ps(w + 8 * r, load_floats(col + 8 * r * size, kind));
        n_cols += n;
    }
    return n_cols;
}

/* As fetch_block, for the floats of some blocks. */
INLINE void fetch_floats(const wina_panel *p, wina_scales kind, int32_t block0, int32_t block1,
                         int32_t row) {
    const int64_t size = kind == WINA_SCALES_F32 ? 4 : 2;
    for (int32_t block = block0; block < block1; block++) {
        const uint8_t *col = wina_panel_block(p, block) + row * size;
        for (int c = 0; c < WINA_BLOCK; c++, col += p->col_bytes)
            for (int64_t at = 0; at < F_ROWS * size; at += 64)
                _mm_prefetch((const char *)(col + at), _MM_HINT_T1);
    }
}

INLINE void gemm_floats(const wina_panel *p, const wina_batch *b, wina_scales kind, int32_t block0,
                        int32_t block1, int32_t strip, bool next, int32_t t0, int32_t t1,
                        float *y) {
    _Alignas(64) float w[F_RUN * WINA_BLOCK * F_ROWS];
    const int64_t x_stride = wina_batch_at(b, 1, 0);
    for (int32_t block = block0, end; block < block1; block = end) {
        end = block + F_RUN < block1 ? block + F_RUN : block1;
        const float *x = b->x + wina_batch_at(b, block, 0);
        for (int at = 0; at < WINA_STRIP; at += F_ROWS) {
            const int32_t row = strip * WINA_STRIP + at;
            const int n = convert_blocks(p, kind, block, end, row, w);
            if (end < block1)
                fetch_floats(p, kind, end, end + F_RUN < block1 ? end + F_RUN : block1, row);
            else if (next)
                fetch_floats(p, kind, block0, block0 + F_RUN < block1 ? block0 + F_RUN : block1,
                             row + WINA_STRIP);
            int32_t t = t0;
            for (; t + F_TOKENS <= t1; t += F_TOKENS)
                add_floats(w, n, x + t * WINA_BLOCK, x_stride, F_TOKENS, y + t * WINA_STRIP + at);
            if (t + 2 == t1)
                add_floats(w, n, x + t * WINA_BLOCK, x_stride, 2, y + t * WINA_STRIP + at), t = t1;
            if (t < t1)
                add_floats(w, n, x + t * WINA_BLOCK, x_stride, 1, y + t * WINA_STRIP + at);
        }
    }
}

typedef void (*x86_gemm)(const wina_panel *p, const wina_batch *b, int32_t block0, int32_t block1,
                         int32_t strip, bool next, int32_t t0, int32_t t1, float *y);
#define DEFINE_GEMM(name, plane, kind)                                                             \
    static void gemm_##name(const wina_panel *p, const wina_batch *b, int32_t block0,              \
                            int32_t block1, int32_t strip, bool next, int32_t t0, int32_t t1,      \
                            float *y) {                                                            \
        gemm_kind(p, b, plane, kind, block0, block1, strip, next, t0, t1, y);                      \
    }
#define LIST_GEMM(name, plane, kind) [plane][kind] = gemm_##name,
WINA_KINDS(DEFINE_GEMM)
static const x86_gemm GEMM[WINA_N_PLANES][WINA_N_SCALES] = {WINA_KINDS(LIST_GEMM)};

/* Adds the products of tokens [t0, t1) to y, rows in stored order; next: the strip behind this one
 * comes next, so that its first columns are fetched. */
static void gemm_strip(const wina_panel *p, const wina_batch *b, int32_t block0, int32_t block1,
                       int32_t strip, bool next, int32_t t0, int32_t t1, float *y) {
    const wina_layout *l = p->layout;
    if (l->scales == WINA_SCALES_F32)
        gemm_floats(p, b, WINA_SCALES_F32, block0, block1, strip, next, t0, t1, y);
    else if (l->scales == WINA_SCALES_F16)
        gemm_floats(p, b, WINA_SCALES_F16, block0, block1, strip, next, t0, t1, y);
    else if (l->scales == WINA_SCALES_BF16)
        gemm_floats(p, b, WINA_SCALES_BF16, block0, block1, strip, next, t0, t1, y);
    else
        GEMM[l->plane][l->scales](p, b, block0, block1, strip, next, t0, t1, y);
}

/* The activations of some tokens and a run of blocks stay in the second-level cache while all
 * strips multiply them. */
static void gemm_all(const wina_panel *p, const wina_batch *b, int32_t block0, int32_t block1,
                     int32_t strip0, int32_t strip1, float *y) {
    const int64_t size = (int64_t)b->n_tokens * WINA_STRIP, n_rows = size * (strip1 - strip0);
    const bool floats = p->layout->low_bits >= 16;
    const int32_t most = floats ? F_MOST_TOKENS : MOST_TOKENS, run = floats ? F_RUNS : RUNS;
    memset(y, 0, (size_t)n_rows * sizeof *y);
    for (int32_t t = 0; t < b->n_tokens; t += most) {
        const int32_t end = t + most < b->n_tokens ? t + most : b->n_tokens;
        for (int32_t block = block0; block < block1; block += run)
            for (int32_t strip = strip0; strip < strip1; strip++)
                gemm_strip(p, b, block, block + run < block1 ? block + run : block1, strip,
                           strip + 1 < strip1, t, end, y + (strip - strip0) * size);
    }
    for (int64_t i = 0; i < n_rows && !floats; i += WINA_STRIP)
        unswap_strip(y + i);
}
