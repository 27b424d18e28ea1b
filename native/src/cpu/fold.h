/* fold: the order in which x86 attention adds up lanes, whatever the width of its registers. */
#ifndef WINA_FOLD_H
#define WINA_FOLD_H

#include <immintrin.h>

/* Eight rows' eight lanes, each folded 8 -> 4 -> 2 -> 1: lane r of the result is row r. */
static inline __attribute__((always_inline)) __m256 fold_eight(const __m256 f[8]) {
    __m256 x[4], y[2];
    for (int r = 0; r < 4; r++)
        x[r] = _mm256_add_ps(_mm256_permute2f128_ps(f[r], f[r + 4], 0x20),
                             _mm256_permute2f128_ps(f[r], f[r + 4], 0x31));
    for (int r = 0; r < 2; r++)
        y[r] = _mm256_add_ps(_mm256_shuffle_ps(x[2 * r], x[2 * r + 1], 0x44),
                             _mm256_shuffle_ps(x[2 * r], x[2 * r + 1], 0xee));
    return _mm256_add_ps(_mm256_shuffle_ps(y[0], y[1], 0x88), _mm256_shuffle_ps(y[0], y[1], 0xdd));
}

#endif
