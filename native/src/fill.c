#include "fill.h"

#include <string.h>

#include "dequant.h"
#include "sparse/norms.h"

enum {
    TOGETHER = 128, /* bytes of a column that are written while its lines are in the cache */
    AHEAD = 256     /* bytes of a row that are fetched ahead: hardware does not follow 64 rows */
};

/* Eight bytes at any address. */
static inline uint64_t load_u64(const uint8_t *p) {
    uint64_t v;
    memcpy(&v, p, sizeof v);
    return v;
}

static inline void store_u64(uint8_t *p, uint64_t v) {
    memcpy(p, &v, sizeof v);
}

/* Swaps what lies in `mask` of b with what lies `shift` higher in a. */
static inline void swap_parts(uint64_t *a, uint64_t *b, int shift, uint64_t mask) {
    uint64_t t = (*a >> shift ^ *b) & mask;
    *b ^= t;
    *a ^= t << shift;
}

/* (64 rows, 32 inputs) to (32 inputs, 64 rows), in tiles of 8 x 8 bytes: halves, then quarters,
 * then eighths change places. */
static void transpose(const uint8_t q[WINA_STRIP][WINA_BLOCK], uint8_t t[WINA_BLOCK][WINA_STRIP]) {
    for (int r = 0; r < WINA_STRIP; r += 8)
        for (int c = 0; c < WINA_BLOCK; c += 8) {
            uint64_t w[8];
            for (int i = 0; i < 8; i++)
                w[i] = load_u64(&q[r + i][c]);
            for (int i = 0; i < 4; i++)
                swap_parts(&w[i], &w[i + 4], 32, 0x00000000ffffffffu);
            for (int i = 0; i < 8; i += i % 2 ? 3 : 1)
                swap_parts(&w[i], &w[i + 2], 16, 0x0000ffff0000ffffu);
            for (int i = 0; i < 8; i += 2)
                swap_parts(&w[i], &w[i + 1], 8, 0x00ff00ff00ff00ffu);
            for (int i = 0; i < 8; i++)
                store_u64(&t[c + i][r], w[i]);
        }
}

/* Two bits of 64 rows from bit `shift` on. */
static void store_pairs(uint8_t *to, const uint8_t v[WINA_STRIP], int shift) {
    for (int r = 0; r < 16; r++)
        to[r] = (uint8_t)((v[r] >> shift & 3) | (v[r + 16] >> shift & 3) << 2 |
                          (v[r + 32] >> shift & 3) << 4 | (v[r + 48] >> shift & 3) << 6);
}

/* Integers: transposed, then split into planes. */
static void store_planes(const wina_panel *p, uint8_t *block, int32_t strip,
                         const uint8_t q[WINA_STRIP][WINA_BLOCK]) {
    const wina_layout *l = p->layout;
    const int low_bits = l->low_bits;
    uint8_t t[WINA_BLOCK][WINA_STRIP];
    transpose(q, t);
    for (int c = 0; c < WINA_BLOCK; c++) {
        uint8_t *col = block + (uint64_t)c * p->col_bytes, *low = col + strip * 8 * low_bits;
        const uint8_t *v = t[c];
        if (low_bits == 8)
            memcpy(low, v, 64);
        else if (low_bits == 2)
            store_pairs(low, v, 0);
        else
            for (int r = 0; r < 32; r++)
                low[r] = (uint8_t)((v[r] & 15) | (v[r + 32] & 15) << 4);
        uint8_t *high = col + (uint64_t)p->n_rows * l->low_bits / 8;
        if (l->high_bits == 1) {
            for (int r = 0; r < 64; r += 8) {
                const uint64_t w = load_u64(v + r); /* its bits are gathered into the top byte */
                high[strip * 8 + r / 8] =
                    (uint8_t)((w >> low_bits & 0x0101010101010101u) * 0x0102040810204080u >> 56);
            }
        } else if (l->high_bits == 2) {
            store_pairs(high + strip * 16, v, low_bits);
        }
    }
}

/* Four rows of four 16-bit values, w[row], to four columns. */
static inline void transpose_4x4(uint64_t w[4]) {
    swap_parts(&w[0], &w[2], 32, 0x00000000ffffffffu);
    swap_parts(&w[1], &w[3], 32, 0x00000000ffffffffu);
    swap_parts(&w[0], &w[1], 16, 0x0000ffff0000ffffu);
    swap_parts(&w[2], &w[3], 16, 0x0000ffff0000ffffu);
}

/* 16-bit values to columns `stride` bytes apart. */
static void store_halves(uint8_t *to, uint64_t stride, const wina_pieces *in, int32_t n_cols) {
    for (int32_t c = 0; c < n_cols; c += 4)
        for (int r = 0; r < WINA_STRIP; r += 4) {
            uint64_t w[4];
            for (int i = 0; i < 4; i++)
                w[i] = load_u64(&in->raw[r + i][2 * c]);
            transpose_4x4(w);
            for (int32_t i = 0; i < 4 && c + i < n_cols; i++)
                store_u64(to + (uint64_t)(c + i) * stride + 2 * r, w[i]);
        }
}

static void store_c(const wina_panel *p, uint8_t *block, int32_t strip, const wina_pieces *in,
                    int32_t n_cols) {
    const int low_bits = p->layout->low_bits;
    uint8_t *to = block + (uint64_t)strip * WINA_STRIP / 8 * (uint64_t)low_bits;
    if (low_bits < 16)
        store_planes(p, block, strip, in->q);
    else if (low_bits == 16)
        store_halves(to, p->col_bytes, in, n_cols);
    else
        for (int32_t c = 0; c < n_cols; c++)
            for (int r = 0; r < WINA_STRIP; r++)
                memcpy(to + (uint64_t)c * p->col_bytes + 4 * r, &in->raw[r][4 * c], 4);
}

/* ---- squares ------------------------------------------------------------------------------ */

static void set_all(float to[WINA_STRIP], float value) {
    for (int r = 0; r < WINA_STRIP; r++)
        to[r] = value;
}

void wina_fill_get_scales(const wina_layout *l, const wina_pieces *in, wina_fill_scales *out) {
    float d[WINA_STRIP], m[WINA_STRIP];
    wina_dequant_f16((const uint8_t *)in->d, d, WINA_STRIP);
    if (wina_scales_mins(l->scales))
        wina_dequant_f16((const uint8_t *)in->m, m, WINA_STRIP);
    if (!wina_scales_mins(l->scales))
        for (int h = 0; h < 2; h++)
            set_all(out->min[h], 0.0f);
    for (int h = 0; h < 2; h++) {
        const uint8_t *s = in->s[h % wina_scales_subs(l->scales)];
        float *scale = out->scale[h], *min = out->min[h];
        switch (l->scales) {
        case WINA_SCALES_D:
            memcpy(scale, d, sizeof d);
            break;
        case WINA_SCALES_DM: /* which is added */
            memcpy(scale, d, sizeof d);
            for (int r = 0; r < WINA_STRIP; r++)
                min[r] = -m[r];
            break;
        case WINA_SCALES_K_DM:
            for (int r = 0; r < WINA_STRIP; r++) {
                scale[r] = d[r] * (float)in->s[0][r];
                min[r] = m[r] * (float)in->s[1][r];
            }
            break;
        case WINA_SCALES_K_DM16:
            for (int r = 0; r < WINA_STRIP; r++) {
                scale[r] = d[r] * (float)(s[r] & 15);
                min[r] = m[r] * (float)(s[r] >> 4);
            }
            break;
        case WINA_SCALES_K_D16:
        case WINA_SCALES_K_D32:
            for (int r = 0; r < WINA_STRIP; r++)
                scale[r] = d[r] * (float)(int8_t)s[r];
            break;
        case WINA_SCALES_E8:
            for (int r = 0; r < WINA_STRIP; r++)
                scale[r] = wina_e8m0_to_f32(s[r]);
            break;
        default: /* floats */
            set_all(scale, 1.0f);
        }
    }
}

static void add_squares_c(const wina_layout *l, const wina_pieces *in, int32_t n_rows,
                          double *sums) {
    const wina_dtype *type = wina_dtype_find(l->dtype);
    wina_fill_scales k;
    if (l->low_bits < 16)
        wina_fill_get_scales(l, in, &k);
    for (int32_t r = 0; r < n_rows; r++) {
        float w[WINA_BLOCK];
        if (l->low_bits >= 16)
            type->decode(in->raw[r], w, WINA_BLOCK);
        for (int c = 0; c < WINA_BLOCK && l->low_bits < 16; c++) {
            const int q = l->table ? l->table[in->q[r][c]] : in->q[r][c];
            w[c] = k.scale[c / 16][r] * (float)(q - l->offset) - k.min[c / 16][r];
        }
        wina_norms_add_row(sums, w, WINA_BLOCK);
    }
}

const wina_fill_ops wina_fill_ops_c = {store_c, add_squares_c};

/* ---- a strip and block at a time ---------------------------------------------------------- */

/* Values of `size` bytes of 64 rows to the panel's order: wina_strip_swap, four rows at a time. */
static void store_swapped(uint8_t *to, const void *rows, uint64_t size) {
    const uint8_t *from = rows;
    for (int r = 0; r < WINA_STRIP; r += 4)
        memcpy(to + (uint64_t)wina_strip_swap(r) * size, from + (uint64_t)r * size, 4 * size);
}

static void store_scales(wina_panel *p, int32_t b, int32_t strip, const wina_pieces *in) {
    const wina_layout *l = p->layout;
    const bool first = b % WINA_SUPER_BLOCKS == 0;
    const uint64_t rows = (uint64_t)p->n_rows, at = (uint64_t)strip * WINA_STRIP;
    uint8_t *super = (uint8_t *)wina_panel_super(p, b),
            *scales = (uint8_t *)wina_panel_scales(p, b);
    if (l->scales == WINA_SCALES_D || l->scales == WINA_SCALES_DM) {
        store_swapped(scales + 2 * at, in->d, 2);
        if (l->scales == WINA_SCALES_DM)
            store_swapped(scales + 2 * (rows + at), in->m, 2);
        return;
    }
    store_swapped(scales + at, in->s[0], 1);
    if (l->scale_bytes == 2)
        store_swapped(scales + rows + at, in->s[1], 1);
    if (first && l->super_bytes >= 2)
        store_swapped(super + 2 * at, in->d, 2);
    if (first && l->super_bytes == 4)
        store_swapped(super + 2 * (rows + at), in->m, 2);
}

/* The pieces of rows that are a power of two apart would drive each other out of the cache if
 * columns were gathered from them: hence a copy. */
static void read_floats(const uint8_t *rows, uint64_t row_bytes, int32_t n_rows, int32_t b,
                        int32_t n_cols, uint64_t size, wina_pieces *out) {
    for (int32_t r = 0; r < n_rows; r++)
        memcpy(out->raw[r], rows + (uint64_t)r * row_bytes + (uint64_t)b * WINA_BLOCK * size,
               (uint64_t)n_cols * size);
}

static void fill_piece(const wina_fill_ops *ops, wina_panel *p, int32_t strip, int32_t b,
                       const uint8_t *rows, uint64_t row_bytes, int32_t n_rows, double *sums) {
    const wina_layout *l = p->layout;
    const int32_t left = p->n_cols - b * WINA_BLOCK, n_cols = left < WINA_BLOCK ? left : WINA_BLOCK;
    wina_pieces in;
    if (n_rows < WINA_STRIP || n_cols < WINA_BLOCK)
        memset(&in, 0, sizeof in); /* what is not there is zero */
    if (l->read) {
        l->read(rows, row_bytes, n_rows, b, &in);
        store_scales(p, b, strip, &in);
    } else {
        read_floats(rows, row_bytes, n_rows, b, n_cols, l->low_bits / 8, &in);
    }
    ops->store(p, (uint8_t *)wina_panel_block(p, b), strip, &in, n_cols);
    if (sums)
        ops->add_squares(l, &in, n_rows, sums + (int64_t)b * WINA_BLOCK);
}

static void fetch_rows(const uint8_t *rows, uint64_t row_bytes, int32_t n_rows) {
    for (int32_t r = 0; r < n_rows; r++)
        __builtin_prefetch(rows + (uint64_t)r * row_bytes);
}

void wina_fill_rows(const wina_fill_ops *ops, wina_panel *p, int64_t row0, const uint8_t *rows,
                    uint64_t row_bytes, int64_t n_rows, double *sums) {
    const int strip_bytes = WINA_STRIP * p->layout->low_bits / 8;
    const int64_t together =
        strip_bytes < TOGETHER ? TOGETHER / strip_bytes * WINA_STRIP : WINA_STRIP;
    for (int64_t begin = 0; begin < n_rows; begin += together)
        for (int32_t b = 0; b < p->n_blocks; b++)
            for (int64_t r = begin; r < n_rows && r < begin + together; r += WINA_STRIP) {
                const int32_t n = n_rows - r < WINA_STRIP ? (int32_t)(n_rows - r) : WINA_STRIP;
                const uint8_t *from = rows + (uint64_t)r * row_bytes;
                const uint64_t ahead = row_bytes * (uint64_t)b / (uint64_t)p->n_blocks + AHEAD;
                if (ahead < row_bytes)
                    fetch_rows(from + ahead, row_bytes, n);
                fill_piece(ops, p, (int32_t)((row0 + r) / WINA_STRIP), b, from, row_bytes, n, sums);
            }
}
