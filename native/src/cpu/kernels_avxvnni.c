/* AVX-VNNI without AVX-512, as desktop processors have it: AVX2 with faster products of integers.
 */
#include "gemv_avx2.h"

void wina_kernels_init_avxvnni(wina_kernels *k) {
    wina_kernels_init_avx2(k);
    k->name = "avxvnni";
    k->gemv = gemv_by_groups;
    k->gemm = wina_gemm_avxvnni;
}
