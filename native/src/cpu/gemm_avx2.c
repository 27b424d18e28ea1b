/* gemm_avx2: several tokens at once. A block of a strip is extended to 16 bits and interleaved once
 * into a small buffer that stays in the first-level cache; then every token multiplies it, a
 * few at a time on a part of the strip: as many sums as there are registers for. The sums of a row
 * are formed in the order that gemv uses: by block, in exact integers inside it. */
#include "avx2.h"

enum { PAIRS = WINA_BLOCK / 2 };
enum { TOKENS = 4, REGS = 2 }; /* integers: 8 sums, 4 activations, weights, a product */
enum { MOST_TOKENS = 64, F_MOST_TOKENS = 128 }; /* whose sums fit into the first-level cache */
enum { F_TOKENS = 3, F_REGS = 4 };              /* floats: 12 sums, 3 activations, weights */

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

/* One sub-block of one token onto REGS of its sums, from register r0 on. */
INLINE void finish_token(const strip_block *w, wina_scales kind, int sub, int r0, int32_t offset,
                         const __m256i s[REGS], float scale, int32_t sum, float *y) {
    const __m256i start = _mm256_set1_epi32(offset * sum);
    for (int i = 0; i < REGS; i++) {
        __m256 dot = _mm256_cvtepi32_ps(_mm256_sub_epi32(s[i], start));
        __m256 acc = _mm256_fmadd_ps(_mm256_mul_ps(w->d[sub][r0 + i], _mm256_set1_ps(scale)), dot,
                                     _mm256_loadu_ps(y + sums_at(r0 + i)));
        if (wina_scales_mins(kind))
            acc = _mm256_fmadd_ps(w->m[sub][r0 + i], _mm256_set1_ps(scale * (float)sum), acc);
        _mm256_storeu_ps(y + sums_at(r0 + i), acc);
    }
}

/* s += v x, pairs of 16 bits. Spelt out, because the compiler would form all products of a pair of
 * inputs first and run out of registers. */
INLINE void multiply_add(__m256i *s, __m256i v, __m256i x) {
    __m256i product;
    __asm__("vpmaddwd %2, %3, %1\n\tvpaddd %1, %0, %0" : "+x"(*s), "=&x"(product) : "x"(v), "x"(x));
}

/* Tokens [t, t + n) of the batch times one block, REGS registers of rows. */
INLINE void multiply_tokens(const wina_panel *p, const wina_batch *b, const strip_block *w,
                            wina_scales kind, int32_t block, int r0, int32_t t, int n, float *y) {
    const int n_sub = wina_scales_subs(kind), which = n_sub - 1;
    const int16_t *x = b->x16[which] + wina_batch_at(b, block, t);
    for (int sub = 0; sub < n_sub; sub++) {
        __m256i s[TOKENS][REGS];
        for (int i = 0; i < n; i++)
            for (int r = 0; r < REGS; r++)
                s[i][r] = _mm256_setzero_si256();
        for (int g = sub * PAIRS / n_sub; g < (sub + 1) * PAIRS / n_sub; g++) {
            __m256i pair[TOKENS];
            RELOAD(x);
            for (int i = 0; i < n; i++)
                pair[i] = broadcast_pair(x + i * WINA_BLOCK + 2 * g);
            for (int r = 0; r < REGS; r++) {
                const __m256i v = w->w[g][r0 + r];
                for (int i = 0; i < n; i++)
                    multiply_add(&s[i][r], v, pair[i]);
            }
        }
        for (int i = 0; i < n; i++) {
            int64_t at = wina_batch_sub(b, block * n_sub + sub, t + i);
            finish_token(w, kind, sub, r0, p->layout->offset, s[i], b->scale[which][at],
                         b->sum[which][at], y + (int64_t)(t + i) * WINA_STRIP);
        }
    }
}

INLINE void gemm_kind(const wina_panel *p, const wina_batch *b, wina_plane plane, wina_scales kind,
                      int32_t block0, int32_t block1, int32_t strip, int32_t t0, int32_t t1,
                      float *y) {
    for (int32_t block = block0; block < block1; block++) {
        strip_block w;
        load_block(p, plane, kind, block, strip, &w);
        if (block + 1 < block1)
            fetch_block(p, block + 1, strip);
        int32_t t = t0;
        for (; t + TOKENS <= t1; t += TOKENS)
            for (int r = 0; r < SUMS; r += REGS)
                multiply_tokens(p, b, &w, kind, block, r, t, TOKENS, y);
        for (; t < t1; t++)
            for (int r = 0; r < SUMS; r += REGS)
                multiply_tokens(p, b, &w, kind, block, r, t, 1, y);
    }
    for (int32_t t = t0; t < t1; t++)
        unswap_strip(y + t * WINA_STRIP);
}

/* Float panels: a block is converted once, three tokens keep 32 sums each in registers. */
INLINE void add_floats(const float *w, int n_cols, const float *x, int64_t x_stride, int n,
                       float *y) {
    __m256 s[F_TOKENS][F_REGS];
    for (int i = 0; i < n; i++)
        for (int r = 0; r < F_REGS; r++)
            s[i][r] = _mm256_loadu_ps(y + i * WINA_STRIP + 8 * r);
    for (int c = 0; c < n_cols; c++)
        for (int i = 0; i < n; i++) {
            __m256 v = _mm256_set1_ps(x[i * x_stride + c]);
            for (int r = 0; r < F_REGS; r++)
                s[i][r] = _mm256_fmadd_ps(_mm256_load_ps(w + 64 * c + 8 * r), v, s[i][r]);
        }
    for (int i = 0; i < n; i++)
        for (int r = 0; r < F_REGS; r++)
            _mm256_storeu_ps(y + i * WINA_STRIP + 8 * r, s[i][r]);
}

INLINE void convert_block(const wina_panel *p, wina_scales kind, int32_t block, int32_t strip,
                          int n, float *w) {
    const int64_t size = kind == WINA_SCALES_F32 ? 4 : 2;
    for (int c = 0; c < n; c++) {
        const uint8_t *col =
            wina_panel_block(p, block) + (uint64_t)c * p->col_bytes + strip * 64 * size;
        for (int r = 0; r < SUMS; r++)
            _mm256_store_ps(w + 64 * c + 8 * r, load_floats(col + 8 * r * size, kind));
    }
}

/* As fetch_block, for floats. */
INLINE void fetch_floats(const wina_panel *p, wina_scales kind, int32_t block, int32_t strip) {
    const int64_t size = kind == WINA_SCALES_F32 ? 256 : 128;
    const uint8_t *base = wina_panel_block(p, block) + strip * size;
    for (int c = 0; c < WINA_BLOCK; c++)
        for (int64_t at = 0; at < size; at += 64)
            _mm_prefetch((const char *)(base + (uint64_t)c * p->col_bytes + at), _MM_HINT_T1);
}

INLINE void gemm_floats(const wina_panel *p, const wina_batch *b, wina_scales kind, int32_t block0,
                        int32_t block1, int32_t strip, int32_t t0, int32_t t1, float *y) {
    _Alignas(64) float w[WINA_BLOCK * WINA_STRIP];
    for (int32_t block = block0; block < block1; block++) {
        int32_t left = p->n_cols - block * WINA_BLOCK, n = left < WINA_BLOCK ? left : WINA_BLOCK;
        convert_block(p, kind, block, strip, n, w);
        if (block + 1 < block1)
            fetch_floats(p, kind, block + 1, strip);
        for (int at = 0; at < WINA_STRIP; at += 8 * F_REGS) {
            const float *x = b->x + wina_batch_at(b, block, 0);
            int32_t t = t0;
            for (; t + F_TOKENS <= t1; t += F_TOKENS)
                add_floats(w + at, n, x + t * WINA_BLOCK, WINA_BLOCK, F_TOKENS,
                           y + t * WINA_STRIP + at);
            for (; t < t1; t++)
                add_floats(w + at, n, x + t * WINA_BLOCK, WINA_BLOCK, 1, y + t * WINA_STRIP + at);
        }
    }
}

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

static void gemm_strip(const wina_panel *p, const wina_batch *b, int32_t block0, int32_t block1,
                       int32_t strip, int32_t t0, int32_t t1, float *y) {
    const wina_layout *l = p->layout;
    if (l->scales == WINA_SCALES_F32)
        gemm_floats(p, b, WINA_SCALES_F32, block0, block1, strip, t0, t1, y);
    else if (l->scales == WINA_SCALES_F16)
        gemm_floats(p, b, WINA_SCALES_F16, block0, block1, strip, t0, t1, y);
    else if (l->scales == WINA_SCALES_BF16)
        gemm_floats(p, b, WINA_SCALES_BF16, block0, block1, strip, t0, t1, y);
    else
        GEMM[l->plane][l->scales](p, b, block0, block1, strip, t0, t1, y);
}

void wina_gemm_avx2(const wina_panel *p, const wina_batch *b, int32_t block0, int32_t block1,
                    int32_t strip, float *y) {
    memset(y, 0, (size_t)b->n_tokens * WINA_STRIP * sizeof *y);
    const int32_t most = p->layout->low_bits < 16 ? MOST_TOKENS : F_MOST_TOKENS;
    for (int32_t t = 0; t < b->n_tokens; t += most)
        gemm_strip(p, b, block0, block1, strip, t, t + most < b->n_tokens ? t + most : b->n_tokens,
                   y);
}
