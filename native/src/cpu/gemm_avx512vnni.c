/* AVX-512 with VNNI: several tokens at once, by their bytes. */
#include "avx512.h"

enum { QUADS = WINA_BLOCK / 4 };
enum { TOKENS = 2 }; /* 16 sums, of high and low bytes */

/* One block of one strip: 8 groups of four inputs, 4 x 16 rows each. */
typedef struct block_values {
    __m512i q[QUADS][4];
} block_values;

INLINE void load_block_values(const wina_panel *p, wina_plane plane, int32_t block, int32_t strip,
                              block_values *out) {
    const uint8_t *col = wina_panel_block(p, block);
    for (int g = 0; g < QUADS; g++, col += 4 * p->col_bytes)
        interleave_quad(load_values(p, col, strip, plane),
                        load_values(p, col + p->col_bytes, strip, plane),
                        load_values(p, col + 2 * p->col_bytes, strip, plane),
                        load_values(p, col + 3 * p->col_bytes, strip, plane), out->q[g]);
}

/* Inputs [c, c + n_inputs) of a block of n tokens, the first of whose inputs in the batch are at
 * `at`, onto sums that start at `start`. */
INLINE void sum_tokens(const wina_batch *b, int which, int64_t at, const block_values *w, int c,
                       int n_inputs, int n, const int32_t *start, __m512i s[TOKENS][4]) {
    __m512i hi[TOKENS][4];
    for (int i = 0; i < n; i++)
        for (int k = 0; k < 4; k++) {
            s[i][k] = _mm512_set1_epi32(start[i]);
            hi[i][k] = _mm512_setzero_si512();
        }
    for (int g = c / 4; g < (c + n_inputs) / 4; g++)
        for (int i = 0; i < n; i++) {
            const __m512i xh = broadcast_inputs(b->hi[which] + at + i * WINA_BLOCK + 4 * g);
            const __m512i xl = broadcast_inputs(b->lo[which] + at + i * WINA_BLOCK + 4 * g);
            for (int k = 0; k < 4; k++) {
                hi[i][k] = _mm512_dpbusd_epi32(hi[i][k], w->q[g][k], xh);
                s[i][k] = _mm512_dpbusd_epi32(s[i][k], w->q[g][k], xl);
            }
        }
    for (int i = 0; i < n; i++)
        for (int k = 0; k < 4; k++)
            s[i][k] = _mm512_add_epi32(_mm512_slli_epi32(hi[i][k], 8), s[i][k]);
}

#include "gemm_avx512.h"

void wina_gemm_avx512vnni(const wina_panel *p, const wina_batch *b, int32_t block0, int32_t block1,
                          int32_t strip0, int32_t strip1, float *y) {
    gemm_all(p, b, block0, block1, strip0, strip1, y);
}
