/* AVX-512 without VNNI: several tokens at once, by pairs of 16 bits. */
#include "avx512.h"

enum { PAIRS = WINA_BLOCK / 2 };
enum { TOKENS = 4 }; /* 16 sums */

/* One block of one strip: 16 pairs of inputs, 4 x 16 rows each. */
typedef struct block_values {
    __m512i w[PAIRS][4];
} block_values;

INLINE void load_block_values(const wina_panel *p, wina_plane plane, int32_t block, int32_t strip,
                              block_values *out) {
    const uint8_t *col = wina_panel_block(p, block);
    for (int g = 0; g < PAIRS; g++, col += 2 * p->col_bytes)
        interleave_pair(load_values(p, col, strip, plane),
                        load_values(p, col + p->col_bytes, strip, plane), out->w[g]);
}

/* Inputs [c, c + n_inputs) of a block of n tokens, the first of whose inputs in the batch are at
 * `at`, onto sums that start at `start`. */
INLINE void sum_tokens(const wina_batch *b, int which, int64_t at, const block_values *w, int c,
                       int n_inputs, int n, const int32_t *start, __m512i s[TOKENS][4]) {
    for (int i = 0; i < n; i++)
        for (int k = 0; k < 4; k++)
            s[i][k] = _mm512_set1_epi32(start[i]);
    for (int g = c / 2; g < (c + n_inputs) / 2; g++)
        for (int i = 0; i < n; i++) {
            const __m512i x = broadcast_inputs(b->x16[which] + at + i * WINA_BLOCK + 2 * g);
            for (int k = 0; k < 4; k++)
                multiply_add(&s[i][k], w->w[g][k], x);
        }
}

#include "gemm_avx512.h"

void wina_gemm_avx512(const wina_panel *p, const wina_batch *b, int32_t block0, int32_t block1,
                      int32_t strip0, int32_t strip1, float *y) {
    gemm_all(p, b, block0, block1, strip0, strip1, y);
}
