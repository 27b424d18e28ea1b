/* NEON with byte dot products (sdot), as in the Cortex-A55 and A76 and everything later. */
#include "dotprod.h"

WINA_KINDS(DEFINE_GEMV)
static const neon_gemv_table GEMV = {WINA_KINDS(LIST_GEMV)};

static void gemv_dotprod(const wina_panel *p, const wina_act *act, int32_t block0, int32_t block1,
                         int32_t strip0, int32_t strip1, bool add, float *y) {
    wina_gemv_tiles_neon(GEMV, p, act, block0, block1, strip0, strip1, add, y);
}

void wina_kernels_init_dotprod(wina_kernels *k) {
    wina_kernels_init_neon(k);
    k->name = "dotprod";
    k->gemv = gemv_dotprod;
    k->gemm = wina_gemm_dotprod;
}
