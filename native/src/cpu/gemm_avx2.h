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
}; /* floats: 12 sums, 3 activations, weights */
/* Blocks of a tile of floats, 16 KB of them, and how many columns before they are converted they
 * are fetched. */
enum { F_RUN = 4, F_TILE = F_RUN * WINA_BLOCK * F_ROWS, F_AHEAD = 32 };
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

/* Float panels: a tile, half a strip of F_RUN blocks, is converted into floats once, then three
 * tokens at a time keep its sums in registers over all those blocks. w (n_blocks, 32, F_ROWS), x
 * (n_blocks, x_stride): blocks of the last column may be short. */
INLINE void add_floats_n(const float *w, int n_cols, const float *x, int64_t x_stride, int n,
                         float *y) {
    __m256 s[F_TOKENS][F_REGS];
    for (int i = 0; i < n; i++)
        for (int r = 0; r < F_REGS; r++)
            s[i][r] = _mm256_loadu_ps(y + i * WINA_STRIP + 8 * r);
    do {
        const float *end = w + (n_cols < WINA_BLOCK ? n_cols : WINA_BLOCK) * F_ROWS;
        for (int i = 0; i < 2 * n; i++) /* of the next tokens */
            _mm_prefetch((const char *)(x + n * WINA_BLOCK + 16 * i), _MM_HINT_T0);
        const float *v = x;
        do {
            __m256 by[F_TOKENS];
            for (int i = 0; i < n; i++)
                by[i] = _mm256_set1_ps(v[i * WINA_BLOCK]);
            for (int r = 0; r < F_REGS; r++) {
                __m256 rows = _mm256_load_ps(w + 8 * r);
                __asm__("" : "+x"(rows)); /* one load for all tokens */
                for (int i = 0; i < n; i++)
                    s[i][r] = _mm256_fmadd_ps(rows, by[i], s[i][r]);
            }
            w += F_ROWS;
            v++;
        } while (w < end);
        n_cols -= WINA_BLOCK;
        x += x_stride;
    } while (n_cols > 0);
    for (int i = 0; i < n; i++)
        for (int r = 0; r < F_REGS; r++)
            _mm256_storeu_ps(y + i * WINA_STRIP + 8 * r, s[i][r]);
}
static void add_floats_1(const float *w, int n_cols, const float *x, int64_t x_stride, float *y) {
    add_floats_n(w, n_cols, x, x_stride, 1, y);
}
static void add_floats_2(const float *w, int n_cols, const float *x, int64_t x_stride, float *y) {
    add_floats_n(w, n_cols, x, x_stride, 2, y);
}
static void add_floats_3(const float *w, int n_cols, const float *x, int64_t x_stride, float *y) {
    add_floats_n(w, n_cols, x, x_stride, 3, y);
}
typedef void (*add_floats_fn)(const float *w, int n_cols, const float *x, int64_t x_stride,
                              float *y);
static const add_floats_fn add_floats[F_TOKENS + 1] = {NULL, add_floats_1, add_floats_2,
                                                       add_floats_3};

/* A tile of weights: F_ROWS rows of up to F_RUN blocks. */
typedef struct tile {
    int32_t strip, at; /* the first of its blocks; which half of the strip */
    int half;
    int n_cols;                  /* 0: there is none */
    const uint8_t *block[F_RUN]; /* the first column's values */
} tile;

/* The tiles of blocks [block0, block1) and strips up to strip1. */
typedef struct tiles {
    const wina_panel *panel;
    int64_t size; /* of a value */
    int32_t block0, block1, strip1;
} tiles;

/* Fills in where a tile's columns are. */
INLINE void find_columns(const tiles *all, tile *t) {
    const wina_panel *p = all->panel;
    const int64_t row = (int64_t)t->strip * WINA_STRIP + t->half * F_ROWS;
    const int32_t left = p->n_cols - t->at * WINA_BLOCK;
    t->n_cols = 0;
    if (t->strip == all->strip1)
        return;
    for (int i = 0; i < F_RUN && t->at + i < all->block1; i++, t->n_cols += WINA_BLOCK)
        t->block[i] = wina_panel_block(p, t->at + i) + row * all->size;
    t->n_cols = t->n_cols < left ? t->n_cols : left;
}

/* The tile behind t: the other half of the rows, other blocks, the next strip. */
INLINE tile tile_behind(const tiles *all, const tile *t) {
    tile b = {.strip = t->strip, .at = t->at, .half = !t->half};
    if (t->half)
        b.at += F_RUN;
    if (b.at >= all->block1)
        b.at = all->block0, b.strip++;
    find_columns(all, &b);
    return b;
}

/* Columns from `from` on that are in one block: to `to` at most. */
INLINE int in_block(int from, int to) {
    const int end = (from | (WINA_BLOCK - 1)) + 1;
    return end < to ? end : to;
}

INLINE void fetch_columns(const tile *t, uint64_t col_bytes, int64_t size, int from, int to) {
    to = to < t->n_cols ? to : t->n_cols;
    for (int end; from < to; from = end) {
        const uint8_t *col =
            t->block[from / WINA_BLOCK] + (uint64_t)(from % WINA_BLOCK) * col_bytes;
        end = in_block(from, to);
        for (int i = from; i < end; i++, col += col_bytes)
            for (int64_t at = 0; at < F_ROWS * size; at += 64)
                _mm_prefetch((const char *)(col + at), _MM_HINT_T1);
    }
}

/* Converts columns [from, to) of a tile. Those that come F_AHEAD later, perhaps of the tile behind
 * it, are fetched. */
INLINE void convert_columns(const tile *t, const tile *behind, uint64_t col_bytes, wina_scales kind,
                            int from, int to, float *w) {
    const int64_t size = kind == WINA_SCALES_F32 ? 4 : 2;
    const int later = from + F_AHEAD, over = later - t->n_cols;
    fetch_columns(t, col_bytes, size, later, to + F_AHEAD);
    fetch_columns(behind, col_bytes, size, over > 0 ? over : 0, over + to - from);
    w += from * F_ROWS;
    for (int end; from < to; from = end) {
        const uint8_t *col =
            t->block[from / WINA_BLOCK] + (uint64_t)(from % WINA_BLOCK) * col_bytes;
        end = in_block(from, to);
        for (int i = from; i < end; i++, col += col_bytes, w += F_ROWS)
            for (int r = 0; r < F_REGS; r++)
                _mm256_store_ps(w + 8 * r, load_floats(col + 8 * r * size, kind));
    }
}

/* Some strips; y (n_strips, n_tokens, 64). While a tile is multiplied the next one is converted, a
 * few columns with every group of tokens: columns often lie a power of two apart, so that the
 * second-level cache could not hold those of a whole tile. */
INLINE void gemm_floats(const wina_panel *p, const wina_batch *b, wina_scales kind, int32_t block0,
                        int32_t block1, int32_t strip0, int32_t strip1, int32_t t0, int32_t t1,
                        float *y) {
    _Alignas(64) float w[2][F_TILE];
    const tiles all = {p, kind == WINA_SCALES_F32 ? 4 : 2, block0, block1, strip1};
    const int64_t x_stride = wina_batch_at(b, 1, 0);
    const int n_groups = (t1 - t0 + F_TOKENS - 1) / F_TOKENS;
    tile now = {.strip = strip0, .at = block0}, next;
    find_columns(&all, &now);
    next = tile_behind(&all, &now);
    convert_columns(&now, &next, p->col_bytes, kind, 0, now.n_cols, w[0]);
    for (int i = 0; now.n_cols > 0; i = !i) {
        tile behind = {.n_cols = 0};
        if (next.n_cols > 0)
            behind = tile_behind(&all, &next);
        const int step = (next.n_cols + n_groups - 1) / n_groups;
        const float *x = b->x + wina_batch_at(b, now.at, t0);
        float *to =
            y + ((int64_t)(now.strip - strip0) * b->n_tokens + t0) * WINA_STRIP + now.half * F_ROWS;
        int done = 0;
        for (int32_t t = t0; t < t1; t += F_TOKENS) {
            const int end = done + step < next.n_cols ? done + step : next.n_cols;
            convert_columns(&next, &behind, p->col_bytes, kind, done, end, w[!i]);
            done = end;
            add_floats[t1 - t < F_TOKENS ? t1 - t : F_TOKENS](w[i], now.n_cols, x, x_stride, to);
            x += F_TOKENS * WINA_BLOCK, to += F_TOKENS * WINA_STRIP;
        }
        now = next, next = behind;
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

/* Adds the products of tokens [t0, t1) to y, rows of quantised panels in stored order. */
static void gemm_strips(const wina_panel *p, const wina_batch *b, int32_t block0, int32_t block1,
                        int32_t strip0, int32_t strip1, int32_t t0, int32_t t1, float *y) {
    const wina_layout *l = p->layout;
    if (l->scales == WINA_SCALES_F32)
        gemm_floats(p, b, WINA_SCALES_F32, block0, block1, strip0, strip1, t0, t1, y);
    else if (l->scales == WINA_SCALES_F16)
        gemm_floats(p, b, WINA_SCALES_F16, block0, block1, strip0, strip1, t0, t1, y);
    else if (l->scales == WINA_SCALES_BF16)
        gemm_floats(p, b, WINA_SCALES_BF16, block0, block1, strip0, strip1, t0, t1, y);
    else
        for (int32_t strip = strip0; strip < strip1; strip++, y += b->n_tokens * WINA_STRIP)
            GEMM[l->plane][l->scales](p, b, block0, block1, strip, strip + 1 < strip1, t0, t1, y);
}

/* The activations of some tokens and a run of blocks stay in the second-level cache while all
 * strips multiply them. */
static void gemm_all(const wina_panel *p, const wina_batch *b, int32_t block0, int32_t block1,
                     int32_t strip0, int32_t strip1, float *y) {
    const int64_t n_rows = (int64_t)b->n_tokens * WINA_STRIP * (strip1 - strip0);
    const bool floats = p->layout->low_bits >= 16;
    const int32_t most = floats ? F_MOST_TOKENS : MOST_TOKENS, run = floats ? F_RUNS : RUNS;
    memset(y, 0, (size_t)n_rows * sizeof *y);
    for (int32_t t = 0; t < b->n_tokens; t += most) {
        const int32_t end = t + most < b->n_tokens ? t + most : b->n_tokens;
        for (int32_t block = block0; block < block1; block += run)
            gemm_strips(p, b, block, block + run < block1 ? block + run : block1, strip0, strip1, t,
                        end, y);
    }
    for (int64_t i = 0; i < n_rows && !floats; i += WINA_STRIP)
        unswap_strip(y + i);
}
