/* NEON with dot products of mixed signs (usdot) and byte matrix products. */
#include "dotprod.h"

WINA_KINDS(DEFINE_GEMV)
static const neon_gemv_table GEMV = {WINA_KINDS(LIST_GEMV)};

static void gemv_i8mm(const wina_panel *p, const wina_act *act, int32_t block0, int32_t block1,
                      int32_t strip0, int32_t strip1, bool add, float *y) {
    wina_gemv_tiles_neon(GEMV, p, act, block0, block1, strip0, strip1, add, y);
}

void wina_kernels_init_i8mm(wina_kernels *k) {
    wina_kernels_init_neon(k);
    k->name = "i8mm";
    k->gemv = gemv_i8mm;
    k->gemm = wina_gemm_i8mm;
}
