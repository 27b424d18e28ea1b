/* AVX2, FMA and F16C: one token. For several see gemm_avx2.c. */
#include "gemv_avx2.h"

void wina_kernels_init_avx2(wina_kernels *k) {
    fill_table(k, "avx2");
    k->gemv = gemv_by_groups;
    k->gemm = wina_gemm_avx2;
    k->fill = wina_fill_ops_avx2;
    k->score = wina_score_avx2;
    k->select = wina_select_avx2;
    k->quantize = wina_quantize_avx2;
    k->quantize_row = wina_quantize_row_avx2;
    k->attend_dots = wina_attend_dots_avx2;
    k->attend_add = wina_attend_add_avx2;
    k->softmax_part = wina_softmax_part_avx2;
    k->cache_load[WINA_CACHE_Q8_0] = wina_load_q8_0_avx2;
}
