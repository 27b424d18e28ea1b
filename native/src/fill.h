/* fill: rows of a file's matrix into a panel, and the squares of its columns besides, a strip and
 * block at a time: read (piece.h), store, add. What takes time is a table of functions, the C ones
 * being the reference; instruction sets overlay them (cpu/kernels.h). All give the same bits. */
#ifndef WINA_FILL_H
#define WINA_FILL_H

#include "pack.h"

typedef struct wina_fill_ops {
    /* The values of a strip to the first n_cols columns of a block of the panel. All 64 rows are
     * stored; quantised blocks have 32 columns. */
    void (*store)(const wina_panel *panel, uint8_t *block, int32_t strip, const wina_pieces *in,
                  int32_t n_cols);
    /* sums (32) += squares of the weights, as floats and multiplied in double, of n_rows rows in
     * rising order. */
    void (*add_squares)(const wina_layout *layout, const wina_pieces *in, int32_t n_rows,
                        double *sums);
} wina_fill_ops;

extern const wina_fill_ops wina_fill_ops_c;

/* Fills rows [row0, row0 + n_rows) of the panel from row-major weights; row0 is a multiple of 64,
 * and so is n_rows unless they are the last of their strip. sums (n_blocks * 32) or NULL: the
 * squares of each column are added to it, in the order of rows. */
void wina_fill_rows(const wina_fill_ops *ops, wina_panel *panel, int64_t row0, const uint8_t *rows,
                    uint64_t row_bytes, int64_t n_rows, double *sums);

/* Of quantised types: a weight of half h of row r is scale[h][r] * (q - offset) - min[h][r], or has
 * the table's value for q, rounded after each operation. */
typedef struct wina_fill_scales {
    float scale[2][WINA_STRIP], min[2][WINA_STRIP];
} wina_fill_scales;
void wina_fill_get_scales(const wina_layout *layout, const wina_pieces *in, wina_fill_scales *out);

#endif
