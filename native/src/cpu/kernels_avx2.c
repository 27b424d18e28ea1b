/* AVX2, FMA and F16C: the plain kernels, vectorised by the compiler. */
#include "kernels_generic.h"

void wina_kernels_init_avx2(wina_kernels *k) {
    fill_table(k, "avx2");
}
