/* pack: input-major panels, the one copy of the weights that decoding and prompt processing use.
 *
 * A panel holds n_rows outputs (padded to 64) by n_cols inputs. For each block of 32 inputs it
 * stores every input's quantised values for all rows, one input after the other, then the scales of
 * the block for all rows; skipping an input skips its bytes. K-quants put the scales of their
 * 256-input super-block in front of its eight blocks. The integers and scales are those of the
 * file: nothing is re-quantised.
 *
 *   super-block | super scales | block 0: input 0, input 1, ... input 31, scales | block 1 ... |
 *
 * Rows come in strips of 64. Within a strip an input's values are in row order; in 4 bits, byte j
 * holds row j in its low and row j + 32 in its high half; in 2 bits, byte j of 16 holds rows j,
 * j + 16, j + 32, j + 48 from the lowest bits up. One further bit (8 bytes) or two (16 bytes, as
 * the 2 bits) follow after all the strips' low parts. Scales are stored per strip in the order in
 * which byte-interleaving kernels produce their sums: position 16 k + 4 l + i holds row 16 l + 4 k
 * + i (its own inverse).
 */
#ifndef WINA_PACK_H
#define WINA_PACK_H

#include <stdbool.h>
#include <stddef.h>

#include "dtype.h"
#include "piece.h"

/* Number of this layout; files of panels carry it. Any change of what is above or of where
 * wina_panel_plan puts things needs a new number. */
enum { WINA_PANEL_LAYOUT = 1 };

enum {
    WINA_PARTS = 4,       /* parts of a panel at most */
    WINA_SUPER_BLOCKS = 8 /* blocks of a super-block */
};

/* How a panel's scales are laid out; also which kernel multiplies it. */
typedef enum wina_scales {
    WINA_SCALES_F32, /* float values, no scales */
    WINA_SCALES_F16,
    WINA_SCALES_BF16,
    WINA_SCALES_D,      /* w = d (q - offset);  d f16 */
    WINA_SCALES_DM,     /* w = d q + m;         d, m f16 */
    WINA_SCALES_K_DM,   /* w = D s q - M m;     s, m u8 per block; D, M f16 per super-block */
    WINA_SCALES_K_D16,  /* w = D s (q - offset);  s i8 per 16 inputs; D f16 per super-block */
    WINA_SCALES_K_DM16, /* w = D s q - M m;       s, m the halves of a byte per 16 inputs */
    WINA_SCALES_K_D32,  /* w = D s (q - offset);  s i8 per block; D f16 per super-block */
    WINA_SCALES_E8,     /* w = 2^(e - 128) (q - offset);  e u8 per block */
    WINA_N_SCALES
} wina_scales;

/* How the stored values of a quantised panel lie: their bits. In WINA_PLANE_T four bits choose one
 * of the 16 values of the layout's table. */
typedef enum wina_plane {
    WINA_PLANE_8,
    WINA_PLANE_4,
    WINA_PLANE_5,
    WINA_PLANE_6,
    WINA_PLANE_2,
    WINA_PLANE_3,
    WINA_PLANE_T,
    WINA_N_PLANES
} wina_plane;

/* Every pair of plane and scales there is: X(name, plane, scales). Kernels are written once and
 * compiled for each, with both constant. */
#define WINA_KINDS(X)                                                                              \
    X(d8, WINA_PLANE_8, WINA_SCALES_D)                                                             \
    X(d4, WINA_PLANE_4, WINA_SCALES_D)                                                             \
    X(d5, WINA_PLANE_5, WINA_SCALES_D)                                                             \
    X(d2, WINA_PLANE_2, WINA_SCALES_D)                                                             \
    X(dt, WINA_PLANE_T, WINA_SCALES_D)                                                             \
    X(dm4, WINA_PLANE_4, WINA_SCALES_DM)                                                           \
    X(dm5, WINA_PLANE_5, WINA_SCALES_DM)                                                           \
    X(k2, WINA_PLANE_2, WINA_SCALES_K_DM16)                                                        \
    X(k3, WINA_PLANE_3, WINA_SCALES_K_D16)                                                         \
    X(k4, WINA_PLANE_4, WINA_SCALES_K_DM)                                                          \
    X(k5, WINA_PLANE_5, WINA_SCALES_K_DM)                                                          \
    X(k6, WINA_PLANE_6, WINA_SCALES_K_D16)                                                         \
    X(kt, WINA_PLANE_T, WINA_SCALES_K_D32)                                                         \
    X(et, WINA_PLANE_T, WINA_SCALES_E8)

/* Parts of a block with scales of their own, and whether mins are added. */
static inline __attribute__((always_inline)) int wina_scales_subs(wina_scales kind) {
    return kind == WINA_SCALES_K_D16 || kind == WINA_SCALES_K_DM16 ? 2 : 1;
}
static inline __attribute__((always_inline)) bool wina_scales_mins(wina_scales kind) {
    return kind == WINA_SCALES_DM || kind == WINA_SCALES_K_DM || kind == WINA_SCALES_K_DM16;
}

/* A row of the table of layouts: one per tensor type. */
typedef struct wina_layout {
    uint32_t dtype; /* wina_dtype_id */
    wina_scales scales;
    uint8_t low_bits;    /* of the first plane: 2, 4, 8, 16, 32 */
    uint8_t high_bits;   /* of the second plane: 0, 1, 2 */
    uint8_t offset;      /* stored value minus this is the signed integer */
    uint8_t sub;         /* inputs that share a scale: 32 or 16 */
    uint8_t scale_bytes; /* per row and block */
    uint8_t super_bytes; /* per row and super-block */
    wina_plane plane;
    wina_piece_reader read; /* NULL for floats */
    const uint8_t *table;   /* (16) of WINA_PLANE_T: values plus offset */
} wina_layout;

/* NULL if the type cannot be packed. */
const wina_layout *wina_layout_find(uint32_t dtype);

typedef struct wina_panel {
    const wina_layout *layout;
    int32_t n_rows; /* multiple of 64, padding rows are zero */
    int32_t n_cols;
    int32_t n_blocks;     /* ceil(n_cols / 32) */
    int32_t n_parts;      /* runs of blocks that are summed apart, see wina_panel_part */
    uint64_t col_bytes;   /* distance of two inputs of a block */
    uint64_t block_bytes; /* distance of two blocks of a super-block */
    uint64_t super_bytes; /* distance of two super-blocks */
    uint64_t n_bytes;
    uint8_t *data;
    /* (n_cols) where products of one token find the inputs' values, or NULL: all are in data. */
    const uint8_t *const *columns;
} wina_panel;

/* Sizes of a panel; data stays NULL. n_rows is rounded up. */
int32_t wina_panel_plan(uint32_t dtype, int64_t n_rows, int64_t n_cols, wina_panel *out);

/* Row of the panel as floats, (n_cols), equal to the type's own decode bit for bit. */
void wina_panel_decode_row(const wina_panel *panel, int64_t row, float *out);

static inline const uint8_t *wina_panel_super(const wina_panel *p, int32_t block) {
    return p->data + (uint64_t)(block / WINA_SUPER_BLOCKS) * p->super_bytes;
}
static inline const uint8_t *wina_panel_block(const wina_panel *p, int32_t block) {
    return wina_panel_super(p, block) + (uint64_t)p->layout->super_bytes * (uint64_t)p->n_rows +
           (uint64_t)(block % WINA_SUPER_BLOCKS) * p->block_bytes;
}
static inline const uint8_t *wina_panel_scales(const wina_panel *p, int32_t block) {
    return wina_panel_block(p, block) + p->col_bytes * WINA_BLOCK;
}
/* Where a block's inputs have their values, for products of one token. */
typedef struct wina_block_columns {
    const uint8_t *base;
    uint64_t col_bytes;
    const uint8_t *const *table;
} wina_block_columns;
static inline wina_block_columns wina_panel_columns(const wina_panel *p, int32_t block) {
    return (wina_block_columns){wina_panel_block(p, block), p->col_bytes,
                                p->columns ? p->columns + block * WINA_BLOCK : NULL};
}
static inline const uint8_t *wina_block_column(const wina_block_columns *b, int32_t i) {
    return b->table ? b->table[i] : b->base + (uint64_t)i * b->col_bytes;
}
static inline const uint8_t *wina_panel_column(const wina_panel *p, int32_t block, int32_t i) {
    const wina_block_columns columns = wina_panel_columns(p, block);
    return wina_block_column(&columns, i);
}
/* Blocks [*begin, *end) of a part. A row's sum is formed part by part, each from zero, and the
 * parts are added in rising order: threads can take different parts of short columns, which are
 * read faster whole, and the result does not depend on who took what. */
static inline void wina_panel_part(const wina_panel *p, int32_t part, int32_t *begin,
                                   int32_t *end) {
    *begin = (int32_t)((int64_t)p->n_blocks * part / p->n_parts);
    *end = (int32_t)((int64_t)p->n_blocks * (part + 1) / p->n_parts);
}

/* Position of a row inside its strip's scales, and back. */
static inline int32_t wina_strip_swap(int32_t i) {
    return (i & 3) | (i >> 2 & 12) | (i << 2 & 48);
}

/* Bits of values (scales excluded) one input has per row. */
static inline uint64_t wina_layout_bits(const wina_layout *l) {
    return (uint64_t)l->low_bits + l->high_bits;
}

/* Whether its products take activations that are rounded in sub-blocks of this size. */
static inline bool wina_layout_rounds_by(const wina_layout *l, int32_t sub) {
    return l->low_bits < 16 && l->sub == sub;
}

#endif
