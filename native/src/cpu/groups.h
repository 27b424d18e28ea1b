/* groups: the order in which x86 kernels walk kept columns.
 *
 * Columns are multiplied in small groups. The lines that the next group needs are fetched in the
 * order of their addresses and evenly between the multiplications of the one before: the memory
 * system sees one long read, and never more requests at once than it takes (others are dropped). */
#ifndef WINA_GROUPS_H
#define WINA_GROUPS_H

#include <immintrin.h>

#include "kernels.h"

#define INLINE static inline __attribute__((always_inline))

enum {
    GROUP = 3,                 /* quads of kept inputs, in quantised panels */
    COLUMNS = 8,               /* kept inputs, in panels of floats */
    MAX_SPANS = 8 * GROUP + 2, /* pieces of memory a group reads, one after the other */
    TILE = 256                 /* strips: their sums stay in the second-level cache; short tiles
                                * would cut columns into pieces, which are read slower */
};

/* Addresses are integers: they are fetched, never read, and may reach beyond what they are of. */
typedef struct fetch {
    uintptr_t at[MAX_SPANS];
    int32_t n_lines[MAX_SPANS];
    int32_t n_spans, span, n_total;
    int32_t left; /* lines of the span under way */
    uintptr_t next;
} fetch;

INLINE void fetch_clear(fetch *f) {
    f->n_spans = f->span = f->n_total = f->left = 0;
    f->next = 0; /* a fetch from there is dropped */
}

INLINE void fetch_add(fetch *f, const uint8_t *at, int64_t n_bytes) {
    f->at[f->n_spans] = (uintptr_t)at;
    f->n_lines[f->n_spans] = (int32_t)((n_bytes + 63) / 64);
    f->n_total += f->n_lines[f->n_spans++];
}

INLINE void fetch_start(fetch *f) {
    if (f->n_spans) {
        f->next = f->at[0];
        f->left = f->n_lines[0];
    }
}

/* Lines to fetch with each of n strips. */
INLINE int32_t fetch_rate(const fetch *f, int32_t n) {
    return (f->n_total + n - 1) / n;
}

/* The next n lines; the last of a span may reach into what follows it. */
INLINE uintptr_t fetch_next(fetch *f, int32_t n) {
    const uintptr_t lines = f->next;
    f->next += 64 * (uintptr_t)n;
    f->left -= n;
    if (f->left <= 0 && f->span + 1 < f->n_spans) {
        f->span++;
        f->next = f->at[f->span];
        f->left = f->n_lines[f->span];
    }
    return lines;
}

INLINE void fetch_lines(uintptr_t lines, int32_t from, int32_t to) {
    for (int32_t i = from; i < to; i++)
        _mm_prefetch((const char *)(lines + 64 * (uintptr_t)i), _MM_HINT_T1);
}

/* Up to GROUP quads of one sub-block: what the kernel multiplies at a time. */
typedef struct group {
    int32_t sub;     /* sub-block, of n_sub in a block */
    uint32_t q0, q1; /* quads */
} group;

/* The group after g, or false. */
INLINE bool next_group(const wina_quads *a, int32_t end, group *g) {
    g->q0 = g->q1;
    while (g->q0 == a->first[g->sub + 1])
        if (++g->sub == end)
            return false;
    /* As few groups as can be, of even sizes, so that fetching stays even too. */
    const uint32_t left = a->first[g->sub + 1] - g->q0, n = (left + GROUP - 1) / GROUP;
    g->q1 = g->q0 + (left + n - 1) / n;
    return true;
}

/* Everything from `*from` on to the end of group g, or of its block if that has no further group;
 * what lies between the columns comes along. */
INLINE void fetch_through(const wina_panel *p, const wina_quads *a, const group *g, int n_sub,
                          const uint8_t **from, fetch *f) {
    const int32_t block = g->sub / n_sub;
    const bool last = g->q1 == a->first[(block + 1) * n_sub];
    const uint8_t *to =
        last ? wina_panel_scales(p, block) + (uint64_t)p->n_rows * p->layout->scale_bytes
             : wina_panel_column(p, block, a->col[4 * g->q1 - 1]) + p->col_bytes;
    fetch_add(f, *from, to - *from);
    fetch_start(f);
    *from = to;
}

/* What group g reads in strips [strip0, strip1). */
INLINE void fetch_group(const wina_panel *p, const wina_quads *a, const group *g, int n_sub,
                        int32_t strip0, int32_t strip1, fetch *f) {
    const wina_layout *l = p->layout;
    const int32_t n_strips = strip1 - strip0, block = g->sub / n_sub;
    const int64_t rows = (int64_t)n_strips * WINA_STRIP, row0 = (int64_t)strip0 * WINA_STRIP;
    const uint8_t *scales = wina_panel_scales(p, block);
    const wina_block_columns columns = wina_panel_columns(p, block);
    for (uint32_t i = 4 * g->q0; i < 4 * g->q1; i++)
        if (i == 4 * g->q0 || a->col[i] != a->col[i - 1]) {
            const uint8_t *col = wina_block_column(&columns, a->col[i]);
            fetch_add(f, col + row0 * l->low_bits / 8, rows * l->low_bits / 8);
            if (l->high_bits)
                fetch_add(f, col + (int64_t)p->n_rows * l->low_bits / 8 + row0 * l->high_bits / 8,
                          rows * l->high_bits / 8);
        }
    if (g->q1 == a->first[g->sub + 1]) {
        const int64_t half = l->scale_bytes == 4 || (l->super_bytes > 0 && l->scale_bytes > 1)
                                 ? l->scale_bytes / 2
                                 : 0;
        const int64_t size = half ? half : l->scale_bytes;
        fetch_add(f, scales + row0 * size, rows * size);
        if (half)
            fetch_add(f, scales + ((int64_t)p->n_rows + row0) * size, rows * size);
    }
    fetch_start(f);
}

/* First entry of a rising list that is at least `value`. */
INLINE int32_t find_kept(const int32_t *kept, int32_t n, int32_t value) {
    int32_t low = 0;
    while (low < n) {
        int32_t middle = low + (n - low) / 2;
        if (kept[middle] < value)
            low = middle + 1;
        else
            n = middle;
    }
    return low;
}

/* Kept columns of a panel of floats: up to COLUMNS of them from act->kept[k] on, not beyond `end`;
 * the same number behind them is set up to be fetched. */
INLINE int32_t load_columns(const wina_panel *p, const wina_act *act, int32_t k, int32_t end,
                            int32_t strip0, int32_t strip1, const uint8_t **col, float *x,
                            fetch *f) {
    const int64_t size = p->layout->low_bits / 8;
    const int64_t at = strip0 * 64 * size, n_bytes = (strip1 - strip0) * 64 * size;
    const int32_t n = end - k < COLUMNS ? end - k : COLUMNS;
    fetch_clear(f);
    for (int32_t i = 0; i < 2 * n && k + i < end; i++) {
        const int32_t c = act->kept[k + i];
        const uint8_t *w = wina_panel_column(p, c / WINA_BLOCK, c % WINA_BLOCK);
        if (i < n)
            col[i] = w, x[i] = act->x[c];
        else
            fetch_add(f, w + at, n_bytes);
    }
    fetch_start(f);
    return n;
}

#endif
