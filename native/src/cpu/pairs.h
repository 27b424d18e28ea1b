/* pairs: what a group multiplies, for kernels that take inputs two at a time. */
#ifndef WINA_PAIRS_H
#define WINA_PAIRS_H

#include "groups.h"

typedef struct operands {
    const uint8_t *col[4 * GROUP];
    int32_t n_pairs;
    int32_t x[2 * GROUP];                 /* pairs of 16-bit activations, as they are broadcast */
    int32_t hi[2 * GROUP], lo[2 * GROUP]; /* pairs of their bytes, twice */
} operands;

INLINE void load_operands(const wina_panel *p, const wina_quads *a, const group *g, int n_sub,
                          operands *o) {
    const wina_block_columns columns = wina_panel_columns(p, g->sub / n_sub);
    const uint32_t n = 4 * (g->q1 - g->q0), at = 4 * g->q0;
    for (uint32_t i = 0; i < n; i++)
        o->col[i] = wina_block_column(&columns, a->col[at + i]);
    for (uint32_t i = 0; i < n / 2; i++) {
        uint16_t hi, lo;
        memcpy(&o->x[i], a->x + at + 2 * i, 4);
        memcpy(&hi, a->hi + at + 2 * i, 2);
        memcpy(&lo, a->lo + at + 2 * i, 2);
        o->hi[i] = (int32_t)(hi * 0x10001u);
        o->lo[i] = (int32_t)(lo * 0x10001u);
    }
    /* Half of a last quad may be nothing but zeros that fill it up. */
    o->n_pairs = (int32_t)n / 2 - (o->x[n / 2 - 1] == 0);
}

#endif
