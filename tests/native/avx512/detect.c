/* detect: the sets that `make test-avx512` emulates, whatever the processor has, and C. */
#include <stdlib.h>
#include <string.h>

#include "cpu/kernels.h"
#include "status.h"

int32_t wina_kernels_detect(wina_kernels *out) {
    static const struct {
        const char *name;
        void (*init)(wina_kernels *k);
    } sets[] = {{"c", wina_kernels_init_c},
                {"avx512", wina_kernels_init_avx512},
                {"avx512vnni", wina_kernels_init_avx512vnni}};
    const char *forced = getenv("WINA_CPU");
    for (size_t i = 0; i < sizeof sets / sizeof sets[0]; i++)
        if (forced && strcmp(forced, sets[i].name) == 0) {
            sets[i].init(out);
            return WINA_OK;
        }
    return wina_fail(WINA_E_UNSUPPORTED, "not a set that is emulated");
}
