/* AVX2: several tokens at once. */
#include "gemm_avx2.h"

void wina_gemm_avx2(const wina_panel *p, const wina_batch *b, int32_t block0, int32_t block1,
                    int32_t strip0, int32_t strip1, float *y) {
    gemm_all(p, b, block0, block1, strip0, strip1, y);
}
