/* The reference: runs on every processor. */
#include "kernels_generic.h"

void wina_kernels_init_c(wina_kernels *k) {
    fill_table(k, "c");
}
