/* kernels: the inner loops of the CPU backend, a table of functions. The C functions come first;
 * each instruction set overlays what it has (one file each), chosen once at run time.
 *
 * Every implementation computes the same bits. Integer sums are exact; float sums have one written
 * order: multiply-adds are fused, reductions run in 16 lanes (element i in lane i % 16) that are
 * folded 16 -> 8 -> 4 -> 2 -> 1, and a row's blocks are added in rising order inside a part of a
 * panel (wina_panel_part), then the parts. So results depend neither on the instruction set, nor on
 * the number of threads, nor on how tokens are batched.
 *
 * Quantised matrices multiply activations rounded to 16 bits per sub-block (32 inputs, or 16 for
 * Q6_K): x = scale * (256 hi + lo), both signed bytes, |256 hi + lo| <= 32512. Two byte products
 * where others use one: on AVX-512 the second is hidden behind the shuffles, and the rounding costs
 * nothing that can be measured.
 */
#ifndef WINA_KERNELS_H
#define WINA_KERNELS_H

#include <string.h>

#include "fill.h"
#include "pack.h"
#include "wina.h"

enum { WINA_ACT_MAX = 32512 }; /* 127 * 256 */

/* Kept inputs of one token in groups of four, per sub-block: groups first[s] .. first[s + 1). A
 * last group is filled up with zeros at a repeated input. */
typedef struct wina_quads {
    uint32_t *first; /* (n_sub + 1) */
    uint8_t *col;    /* (4 * n_quads) input inside its block of 32 */
    int8_t *hi, *lo; /* (4 * n_quads) */
    int16_t *x;      /* (4 * n_quads) 256 hi + lo */
    float *scale;    /* (n_sub) */
    int32_t *sum;    /* (n_sub) sum of the 16-bit integers */
} wina_quads;

/* Kept inputs of one token, ready for every kind of panel. */
typedef struct wina_act {
    int32_t n_kept;
    const int32_t *kept; /* (n_kept) rising */
    const float *x;      /* (n_cols) all values; only kept ones are read */
    wina_quads by32, by16;
} wina_act;

/* The same for several tokens, with zeros where an input is not kept. */
typedef struct wina_batch {
    int32_t n_tokens;
    int64_t stride;        /* n_cols rounded up to 32 */
    float *x;              /* (n_blocks, n_tokens, 32) masked */
    int8_t *hi[2], *lo[2]; /* [0]: sub-blocks of 32, [1]: of 16; (n_blocks, n_tokens, 32) */
    int16_t *x16[2];       /* 256 hi + lo */
    float *scale[2];       /* (n_sub, n_tokens) */
    int32_t *sum[2];       /* (n_sub, n_tokens) */
} wina_batch;

/* Where a token's 32 inputs of a block are. All tokens of a block lie together: a stride of a whole
 * row, often a power of two, would put them into the same few sets of the cache. */
static inline int64_t wina_batch_at(const wina_batch *b, int32_t block, int32_t token) {
    return ((int64_t)block * b->n_tokens + token) * WINA_BLOCK;
}
/* Where scale and sum of a token's sub-block are. */
static inline int64_t wina_batch_sub(const wina_batch *b, int32_t sub, int32_t token) {
    return (int64_t)sub * b->n_tokens + token;
}

/* Types of the key and value cache, numbered as wina_cache_type. Q8_0 has blocks of up to 32
 * values: a scale in float16, then 32 signed bytes, those of a last block's missing values being
 * zero. */
enum { WINA_N_CACHE_TYPES = 3, WINA_CACHE_BLOCK = 32, WINA_CACHE_BLOCK_BYTES = 34 };

static inline uint64_t wina_cache_row_bytes(int32_t type, int32_t n_dim) {
    const uint64_t n = (uint64_t)n_dim, n_blocks = (n + WINA_CACHE_BLOCK - 1) / WINA_CACHE_BLOCK;
    return type == WINA_CACHE_Q8_0  ? n_blocks * WINA_CACHE_BLOCK_BYTES
           : type == WINA_CACHE_F32 ? n * sizeof(float)
                                    : n * sizeof(uint16_t);
}

typedef struct wina_kernels {
    const char *name;

    /* y[64 * strip0 .. 64 * strip1) = those rows of the panel, times the kept inputs in blocks
     * [block0, block1). With `add` they are added to what y has, which gives the bits of one call
     * if that is the product of the blocks before. */
    void (*gemv)(const wina_panel *panel, const wina_act *act, int32_t block0, int32_t block1,
                 int32_t strip0, int32_t strip1, bool add, float *y);
    /* The same for every token of a batch: y (strip1 - strip0, n_tokens, 64). */
    void (*gemm)(const wina_panel *panel, const wina_batch *batch, int32_t block0, int32_t block1,
                 int32_t strip0, int32_t strip1, float *y);

    /* Rounds the kept inputs to 16 bits; sub is 32 or 16. */
    void (*quantize)(const float *x, const int32_t *kept, int32_t n_kept, int32_t n_cols,
                     int32_t sub, wina_quads *out);
    /* The same for one token of a batch, from its values in batch->x; which is 0 or 1. */
    void (*quantize_row)(const wina_batch *batch, int32_t token, int which);

    /* See sparse/select.h. */
    void (*score)(const float *x, const float *norms, int32_t n, float *score);
    void (*select)(const float *score, int32_t n, int32_t n_keep, int32_t *kept, uint32_t *scratch);

    /* y (n) = x * gain / sqrt(mean(x^2) + eps) */
    void (*rms_norm)(float *y, const float *x, const float *gain, int32_t n, float eps);
    /* y (n) = silu(gate) * up */
    void (*swiglu)(float *y, const float *gate, const float *up, int32_t n);
    /* y (n) = gelu(gate) * up, in the tanh form; up NULL: gelu(gate) */
    void (*geglu)(float *y, const float *gate, const float *up, int32_t n);
    /* s[i] = scale * sum of q * k_i, for n_rows rows k_i of n_dim floats, one behind the other */
    void (*attend_dots)(const float *q, const float *k, int32_t n_dim, int32_t n_rows, float scale,
                        float *s);
    /* o (n_dim) += p[i] * v_i for n_rows rows, in rising order; rows are `stride` floats apart */
    void (*attend_add)(float *o, const float *p, const float *v, int32_t n_dim, int32_t stride,
                       int32_t n_rows);
    /* s (n) = exp(s - max(s)); returns the maximum and stores the sum */
    float (*softmax_part)(float *s, int32_t n, float *sum);
    /* By type of the cache: rows of n_dim values, wina_cache_row_bytes apart, as floats; a row
     * rounded. */
    void (*cache_load[WINA_N_CACHE_TYPES])(float *x, const void *rows, int32_t n_dim,
                                           int32_t n_rows);
    void (*cache_store[WINA_N_CACHE_TYPES])(void *row, const float *x, int32_t n_dim);
    /* y[i] += x[i] */
    void (*add)(float *y, const float *x, int32_t n);
    wina_fill_ops fill; /* what loads a model */
} wina_kernels;

static inline void wina_gemv_clear(float *y, int32_t strip0, int32_t strip1) {
    memset(y + (int64_t)strip0 * WINA_STRIP, 0, (size_t)(strip1 - strip0) * WINA_STRIP * sizeof *y);
}

/* Adds the products of one strip and every token of a batch to y, whose tokens are y_stride apart.
 */
typedef void (*wina_gemm_strip)(const wina_panel *panel, const wina_batch *batch, int32_t block0,
                                int32_t block1, int32_t strip, float *y, int64_t y_stride);

/* wina_kernels.gemm, a strip after the other. */
static inline void wina_gemm_each_strip(wina_gemm_strip multiply, const wina_panel *panel,
                                        const wina_batch *batch, int32_t block0, int32_t block1,
                                        int32_t strip0, int32_t strip1, float *y) {
    const int64_t n = (int64_t)batch->n_tokens * WINA_STRIP;
    memset(y, 0, (size_t)(n * (strip1 - strip0)) * sizeof *y);
    for (int32_t strip = strip0; strip < strip1; strip++, y += n)
        multiply(panel, batch, block0, block1, strip, y, WINA_STRIP);
}

void wina_kernels_init_c(wina_kernels *k);
void wina_kernels_init_avx2(wina_kernels *k);
void wina_kernels_init_avxvnni(wina_kernels *k);
void wina_kernels_init_avx512(wina_kernels *k);
void wina_kernels_init_avx512vnni(wina_kernels *k);
void wina_kernels_init_neon(wina_kernels *k);
void wina_kernels_init_dotprod(wina_kernels *k);
void wina_kernels_init_i8mm(wina_kernels *k);

/* What tables share. */
extern const wina_fill_ops wina_fill_ops_avx2, wina_fill_ops_neon;
void wina_score_avx2(const float *x, const float *norms, int32_t n, float *score);
void wina_select_avx2(const float *score, int32_t n, int32_t n_keep, int32_t *kept,
                      uint32_t *scratch);
void wina_quantize_avx2(const float *x, const int32_t *kept, int32_t n_kept, int32_t n_cols,
                        int32_t sub, wina_quads *out);
void wina_quantize_row_avx2(const wina_batch *batch, int32_t token, int which);

/* The best table for this processor, or the one WINA_CPU names (an error if it is unknown or the
 * processor lacks it). */
int32_t wina_kernels_detect(wina_kernels *out);

#endif
