/* AVX-512 (F, BW, DQ, VL) with VNNI: one token. For several see gemm_avx512vnni.c. */
#include "avx512.h"
#include "kernels_generic.h"

/* What a group multiplies: columns, and the bytes of four activations as they are broadcast. */
typedef struct operands {
    const uint8_t *col[4 * GROUP];
    int32_t hi[GROUP], lo[GROUP];
} operands;

INLINE void load_operands(const wina_panel *p, const wina_quads *a, const group *g, int n_sub,
                          operands *o) {
    const wina_block_columns columns = wina_panel_columns(p, g->sub / n_sub);
    for (uint32_t q = g->q0; q < g->q1; q++) {
        for (uint32_t i = 0; i < 4; i++)
            o->col[4 * (q - g->q0) + i] = wina_block_column(&columns, a->col[4 * q + i]);
        memcpy(&o->hi[q - g->q0], a->hi + 4 * q, 4);
        memcpy(&o->lo[q - g->q0], a->lo + 4 * q, 4);
    }
}

INLINE void sum_columns(const wina_panel *p, const operands *o, int n, int32_t strip,
                        wina_plane plane, bool first, const __m512i *kept, uintptr_t lines,
                        __m512i s[4]) {
    const int n_lines = lines_per_quad(plane);
    __m512i hi[4];
    for (int k = 0; k < 4; k++) {
        hi[k] = _mm512_setzero_si512();
        s[k] = first ? _mm512_setzero_si512() : _mm512_load_si512(kept + k);
    }
    for (int i = 0; i < n; i++) {
        const uint8_t *const *col = o->col + 4 * i;
        const __m512i xh = _mm512_set1_epi32(o->hi[i]), xl = _mm512_set1_epi32(o->lo[i]);
        __m512i q[4];
        interleave_quad(load_values(p, col[0], strip, plane), load_values(p, col[1], strip, plane),
                        load_values(p, col[2], strip, plane), load_values(p, col[3], strip, plane),
                        q);
        for (int k = 0; k < 4; k++)
            hi[k] = _mm512_dpbusd_epi32(hi[k], q[k], xh);
        for (int k = 0; k < 4; k++)
            s[k] = _mm512_dpbusd_epi32(s[k], q[k], xl);
        fetch_lines(lines, i * n_lines, (i + 1) * n_lines);
    }
    for (int k = 0; k < 4; k++)
        s[k] = _mm512_add_epi32(_mm512_slli_epi32(hi[k], 8), s[k]);
}

#include "gemv_avx512.h"

void wina_kernels_init_avx512vnni(wina_kernels *k) {
    fill_avx512(k, "avx512vnni");
    k->gemm = wina_gemm_avx512vnni;
}
