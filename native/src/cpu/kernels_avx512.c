/* AVX-512 (F, BW, DQ, VL) without VNNI: one token. For several see gemm_avx512.c. */
#include "avx512.h"
#include "kernels_generic.h"
#include "pairs.h"

/* Whether a group's sums fit into 16 bits, high and low bytes of the activations apart: values of b
 * bits add up to 2 * (2^b - 1) * 128 a pair, and a group has six. Four bits: 23040 of 32767. */
INLINE bool is_narrow(wina_plane plane) {
    return plane == WINA_PLANE_4 || plane == WINA_PLANE_3 || plane == WINA_PLANE_2;
}

/* Sums of n pairs over one strip, which stay in 16 bits while they are formed. */
INLINE void sum_narrow(const wina_panel *p, const operands *o, int n, int32_t strip,
                       wina_plane plane, uintptr_t lines, __m512i s[4]) {
    const __m512i weights = _mm512_set1_epi32(256 << 16 | 1);
    const int n_lines = lines_per_quad(plane) / 2;
    __m512i hi[2], lo[2];
    hi[0] = hi[1] = lo[0] = lo[1] = _mm512_setzero_si512();
    for (int i = 0; i < n; i++) {
        const __m512i a = load_values(p, o->col[2 * i], strip, plane);
        const __m512i b = load_values(p, o->col[2 * i + 1], strip, plane);
        const __m512i pair[2] = {_mm512_unpacklo_epi8(a, b), _mm512_unpackhi_epi8(a, b)};
        const __m512i xh = _mm512_set1_epi32(o->hi[i]), xl = _mm512_set1_epi32(o->lo[i]);
        for (int k = 0; k < 2; k++) {
            hi[k] = _mm512_add_epi16(hi[k], _mm512_maddubs_epi16(pair[k], xh));
            lo[k] = _mm512_add_epi16(lo[k], _mm512_maddubs_epi16(pair[k], xl));
        }
        fetch_lines(lines, i * n_lines, (i + 1) * n_lines);
    }
    for (int k = 0; k < 2; k++) {
        s[2 * k] = _mm512_madd_epi16(_mm512_unpacklo_epi16(lo[k], hi[k]), weights);
        s[2 * k + 1] = _mm512_madd_epi16(_mm512_unpackhi_epi16(lo[k], hi[k]), weights);
    }
}

INLINE void sum_columns(const wina_panel *p, const operands *o, int n, int32_t strip,
                        wina_plane plane, bool first, const __m512i *kept, uintptr_t lines,
                        __m512i s[4]) {
    if (is_narrow(plane)) {
        sum_narrow(p, o, 2 * n, strip, plane, lines, s);
        for (int k = 0; k < 4 && !first; k++)
            s[k] = _mm512_add_epi32(s[k], _mm512_load_si512(kept + k));
        return;
    }
    const int n_lines = lines_per_quad(plane) / 2;
    for (int k = 0; k < 4; k++)
        s[k] = first ? _mm512_setzero_si512() : _mm512_load_si512(kept + k);
    for (int i = 0; i < 2 * n; i++) {
        const __m512i x = _mm512_set1_epi32(o->x[i]);
        __m512i w[4];
        interleave_pair(load_values(p, o->col[2 * i], strip, plane),
                        load_values(p, o->col[2 * i + 1], strip, plane), w);
        for (int k = 0; k < 4; k++)
            multiply_add(&s[k], w[k], x);
        fetch_lines(lines, i * n_lines, (i + 1) * n_lines);
    }
}

#include "gemv_avx512.h"

void wina_kernels_init_avx512(wina_kernels *k) {
    fill_avx512(k, "avx512");
    k->gemm = wina_gemm_avx512;
}
