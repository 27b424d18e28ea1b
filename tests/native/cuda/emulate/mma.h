/* mma: tensor cores, in place of CUDA's header. The first lane of a warp has all of a fragment and
 * does the work of all; the others come to the same calls. */
#ifndef WINA_CUDA_EMULATE_MMA_H
#define WINA_CUDA_EMULATE_MMA_H

#include <cstdio>
#include <cstdlib>

#include "emulate.h"

namespace nvcuda {
namespace wmma {

enum layout_t { mem_row_major, mem_col_major };
struct row_major;
struct matrix_a;
struct matrix_b;
struct accumulator;

template <class USE, int M, int N, int K, class T, class LAYOUT = void> struct fragment {
    static_assert(M == 16 && N == 16 && K == 16, "no other shape is used");
    T x[16][16];
};

static inline float emulated_float(__half v) {
    return __half2float(v);
}

/* Whether this lane works; what a GPU wants of an address. */
template <class T> static inline bool emulated_works(const T *p, unsigned ld) {
    emulate_meet(0);
    if (p && ((uintptr_t)p % 32 != 0 || ld * sizeof(T) % 16 != 0)) {
        fprintf(stderr, "emulation: a fragment's memory is not aligned\n");
        abort();
    }
    return emulated_lane() == 0;
}

template <class F> static inline void fill_fragment(F &f, float v) {
    if (emulated_works<float>(nullptr, 0))
        for (int i = 0; i < 256; i++)
            f.x[i / 16][i % 16] = v;
}

/* Row-major alone. */
template <class F, class T> static inline void load_matrix_sync(F &f, const T *p, unsigned ld) {
    if (emulated_works(p, ld))
        for (unsigned i = 0; i < 256; i++)
            f.x[i / 16][i % 16] = p[(uint64_t)(i / 16) * ld + i % 16];
}
template <class F>
static inline void load_matrix_sync(F &f, const float *p, unsigned ld, layout_t) {
    load_matrix_sync(f, p, ld);
}
template <class F>
static inline void store_matrix_sync(float *p, const F &f, unsigned ld, layout_t) {
    if (emulated_works(p, ld))
        for (unsigned i = 0; i < 256; i++)
            p[(uint64_t)(i / 16) * ld + i % 16] = f.x[i / 16][i % 16];
}

/* d = a b + c */
template <class C, class A, class B>
static inline void mma_sync(C &d, const A &a, const B &b, const C &c) {
    if (!emulated_works<float>(nullptr, 0))
        return;
    float w[16][16];
    for (int i = 0; i < 256; i++)
        w[i / 16][i % 16] = emulated_float(b.x[i / 16][i % 16]);
    for (int i = 0; i < 16; i++) {
        float sum[16];
        for (int j = 0; j < 16; j++)
            sum[j] = c.x[i][j];
        for (int k = 0; k < 16; k++) {
            const float x = emulated_float(a.x[i][k]);
            for (int j = 0; j < 16; j++)
                sum[j] += x * w[k][j];
        }
        for (int j = 0; j < 16; j++)
            d.x[i][j] = sum[j];
    }
}

} // namespace wmma
} // namespace nvcuda

#endif
