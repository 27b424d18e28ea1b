/* Which instruction sets the processor *and* the system offer (a register file that the system does
 * not save must not be used). */
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "kernels.h"
#include "status.h"

typedef struct isa {
    const char *name;
    void (*init)(wina_kernels *k);
    bool (*present)(void);
} isa;

static bool always(void) {
    return true;
}

#if defined(__x86_64__)
#include <cpuid.h>

static uint64_t enabled_states(void) {
    unsigned a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c >> 27 & 1)) /* OSXSAVE */
        return 0;
    unsigned low, high;
    __asm__ __volatile__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (uint64_t)high << 32 | low;
}

static bool has_avx2(void) {
    unsigned a, b, c, d, c1;
    if ((enabled_states() & 6) != 6 || !__get_cpuid(1, &a, &b, &c1, &d) ||
        !__get_cpuid_count(7, 0, &a, &b, &c, &d))
        return false;
    bool fma = c1 >> 12 & 1, f16c = c1 >> 29 & 1, avx2 = b >> 5 & 1;
    return fma && f16c && avx2;
}

static bool has_avxvnni(void) {
    unsigned a, b, c, d;
    return has_avx2() && __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a >> 4 & 1);
}

static bool has_avx512(void) {
    unsigned a, b, c, d;
    if (!has_avx2() || (enabled_states() & 0xe6) != 0xe6 ||
        !__get_cpuid_count(7, 0, &a, &b, &c, &d))
        return false;
    bool f = b >> 16 & 1, dq = b >> 17 & 1, bw = b >> 30 & 1, vl = b >> 31 & 1;
    return f && dq && bw && vl;
}

static bool has_avx512vnni(void) {
    unsigned a, b, c, d;
    return has_avx512() && __get_cpuid_count(7, 0, &a, &b, &c, &d) && (c >> 11 & 1);
}
#endif

#if defined(__aarch64__)
#include <sys/auxv.h>

enum { HAS_ASIMDDP = 1 << 20, HAS2_I8MM = 1 << 13 }; /* bits of AT_HWCAP and AT_HWCAP2 */

static bool has_dotprod(void) {
    return (getauxval(AT_HWCAP) & HAS_ASIMDDP) != 0;
}

static bool has_i8mm(void) {
    return has_dotprod() && (getauxval(AT_HWCAP2) & HAS2_I8MM) != 0;
}
#endif

/* In rising order. */
static const isa ISAS[] = {
    {"c", wina_kernels_init_c, always},
#if defined(__x86_64__)
    {"avx2", wina_kernels_init_avx2, has_avx2},
    {"avxvnni", wina_kernels_init_avxvnni, has_avxvnni},
    {"avx512", wina_kernels_init_avx512, has_avx512},
    {"avx512vnni", wina_kernels_init_avx512vnni, has_avx512vnni},
#elif defined(__aarch64__)
    {"neon", wina_kernels_init_neon, always},
    {"dotprod", wina_kernels_init_dotprod, has_dotprod},
    {"i8mm", wina_kernels_init_i8mm, has_i8mm},
#endif
};
enum { N_ISAS = sizeof ISAS / sizeof ISAS[0] };

int32_t wina_kernels_detect(wina_kernels *out) {
    const char *forced = getenv("WINA_CPU");
    for (int i = N_ISAS - 1; i >= 0; i--) {
        if (forced && *forced && strcmp(forced, ISAS[i].name) != 0)
            continue;
        if (!ISAS[i].present()) {
            if (forced && *forced)
                return wina_fail(WINA_E_UNSUPPORTED, "WINA_CPU=%s: this processor does not have it",
                                 forced);
            continue;
        }
        ISAS[i].init(out);
        return WINA_OK;
    }
    return wina_fail(WINA_E_ARGUMENT, "WINA_CPU=%s is not known on this kind of processor", forced);
}
