#include "pack.h"

#include <string.h>

#include "mem.h"
#include "status.h"

/* wina_dequant_iq4_values and wina_dequant_mxfp4_values plus 128. */
static const uint8_t IQ4[16] = {1,   24,  45,  63,  79,  93,  106, 118,
                                129, 141, 153, 166, 181, 197, 217, 241};
static const uint8_t MXFP4[16] = {128, 129, 130, 131, 132, 134, 136, 140,
                                  128, 127, 126, 125, 124, 122, 120, 116};

/* clang-format off */
static const wina_layout LAYOUTS[] = {
    /* dtype          scales        low high off  sub scale super plane  reader  table */
    {WINA_DTYPE_F32, WINA_SCALES_F32, 32, 0, 0, 32, 0, 0, WINA_PLANE_8, NULL, NULL},
    {WINA_DTYPE_F16, WINA_SCALES_F16, 16, 0, 0, 32, 0, 0, WINA_PLANE_8, NULL, NULL},
    {WINA_DTYPE_BF16, WINA_SCALES_BF16, 16, 0, 0, 32, 0, 0, WINA_PLANE_8, NULL, NULL},
    {WINA_DTYPE_Q8_0, WINA_SCALES_D, 8, 0, 128, 32, 2, 0, WINA_PLANE_8, wina_piece_q8_0, NULL},
    {WINA_DTYPE_Q4_0, WINA_SCALES_D, 4, 0, 8, 32, 2, 0, WINA_PLANE_4, wina_piece_q4_0, NULL},
    {WINA_DTYPE_Q5_0, WINA_SCALES_D, 4, 1, 16, 32, 2, 0, WINA_PLANE_5, wina_piece_q5_0, NULL},
    {WINA_DTYPE_Q4_1, WINA_SCALES_DM, 4, 0, 0, 32, 4, 0, WINA_PLANE_4, wina_piece_q4_1, NULL},
    {WINA_DTYPE_Q5_1, WINA_SCALES_DM, 4, 1, 0, 32, 4, 0, WINA_PLANE_5, wina_piece_q5_1, NULL},
    {WINA_DTYPE_Q2_K, WINA_SCALES_K_DM16, 2, 0, 0, 16, 2, 4, WINA_PLANE_2, wina_piece_q2_k, NULL},
    {WINA_DTYPE_Q3_K, WINA_SCALES_K_D16, 2, 1, 4, 16, 2, 2, WINA_PLANE_3, wina_piece_q3_k, NULL},
    {WINA_DTYPE_Q4_K, WINA_SCALES_K_DM, 4, 0, 0, 32, 2, 4, WINA_PLANE_4, wina_piece_q4_k, NULL},
    {WINA_DTYPE_Q5_K, WINA_SCALES_K_DM, 4, 1, 0, 32, 2, 4, WINA_PLANE_5, wina_piece_q5_k, NULL},
    {WINA_DTYPE_Q6_K, WINA_SCALES_K_D16, 4, 2, 32, 16, 2, 2, WINA_PLANE_6, wina_piece_q6_k, NULL},
    {WINA_DTYPE_IQ4_NL, WINA_SCALES_D, 4, 0, 128, 32, 2, 0, WINA_PLANE_T, wina_piece_q4_0, IQ4},
    {WINA_DTYPE_IQ4_XS, WINA_SCALES_K_D32, 4, 0, 128, 32, 1, 2, WINA_PLANE_T, wina_piece_iq4_xs, IQ4},
    {WINA_DTYPE_MXFP4, WINA_SCALES_E8, 4, 0, 128, 32, 1, 0, WINA_PLANE_T, wina_piece_mxfp4, MXFP4},
    {WINA_DTYPE_TQ1_0, WINA_SCALES_D, 2, 0, 1, 32, 2, 0, WINA_PLANE_2, wina_piece_tq1_0, NULL},
    {WINA_DTYPE_TQ2_0, WINA_SCALES_D, 2, 0, 1, 32, 2, 0, WINA_PLANE_2, wina_piece_tq2_0, NULL},
};
/* clang-format on */

/* Columns from here on are split between threads by rows, shorter ones by parts. */
enum { LONG_COLUMN = 32 << 10 };

const wina_layout *wina_layout_find(uint32_t dtype) {
    for (size_t i = 0; i < sizeof LAYOUTS / sizeof LAYOUTS[0]; i++)
        if (LAYOUTS[i].dtype == dtype)
            return &LAYOUTS[i];
    return NULL;
}

static uint64_t round_up(uint64_t n, uint64_t unit) {
    return (n + unit - 1) / unit * unit;
}

int32_t wina_panel_plan(uint32_t dtype, int64_t n_rows, int64_t n_cols, wina_panel *out) {
    const wina_layout *l = wina_layout_find(dtype);
    if (!l)
        return wina_fail(WINA_E_UNSUPPORTED, "tensor type %s cannot be packed",
                         wina_dtype_name(dtype));
    if (n_rows < 1 || n_cols < 1 || n_rows > INT32_MAX / 2 || n_cols > INT32_MAX / 2)
        return wina_fail(WINA_E_FORMAT, "a matrix of %lld x %lld is too large", (long long)n_rows,
                         (long long)n_cols);
    wina_panel p = {.layout = l};
    uint64_t rows = round_up((uint64_t)n_rows, WINA_STRIP);
    p.n_rows = (int32_t)rows;
    p.n_cols = (int32_t)n_cols;
    p.n_blocks = (int32_t)((n_cols + WINA_BLOCK - 1) / WINA_BLOCK);
    p.col_bytes = round_up(rows * wina_layout_bits(l) / 8, 32);
    p.n_parts = p.col_bytes < LONG_COLUMN && p.n_blocks >= 2 * WINA_PARTS ? WINA_PARTS : 1;
    /* A kernel walks the same strip of many inputs at once. An odd number of cache lines between
     * them spreads these over all sets of the caches. */
    if (p.col_bytes >= 1024 && p.col_bytes % 128 == 0)
        p.col_bytes += 64;
    p.block_bytes = round_up(p.col_bytes * WINA_BLOCK + rows * l->scale_bytes, 64);
    p.super_bytes = p.block_bytes * WINA_SUPER_BLOCKS + rows * l->super_bytes;
    uint64_t n_super = ((uint64_t)p.n_blocks + WINA_SUPER_BLOCKS - 1) / WINA_SUPER_BLOCKS;
    uint64_t n_last = (uint64_t)p.n_blocks - (n_super - 1) * WINA_SUPER_BLOCKS;
    /* Kernels may read up to a strip beyond the last value. */
    if (!wina_mem_mul(n_super - 1, p.super_bytes, &p.n_bytes) ||
        !wina_mem_add(p.n_bytes, rows * l->super_bytes + n_last * p.block_bytes + 64, &p.n_bytes))
        return wina_fail(WINA_E_FORMAT, "a matrix of %lld x %lld is too large", (long long)n_rows,
                         (long long)n_cols);
    *out = p;
    return WINA_OK;
}

/* ---- filling ------------------------------------------------------------------------------ */

static uint16_t load_u16(const uint8_t *p) {
    return (uint16_t)(p[0] | p[1] << 8);
}

static void store_u16(uint8_t *p, uint16_t v) {
    p[0] = (uint8_t)v;
    p[1] = (uint8_t)(v >> 8);
}

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

/* Values of one strip and block: (64 rows, 32 inputs) transposed into planes. */
static void store_values(const wina_panel *p, uint8_t *block, int32_t strip,
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

/* Scales of one row, at position `at` of the panel's swapped row order. */
static void store_scales(const wina_panel *p, uint8_t *super, uint8_t *scales, bool first,
                         int64_t at, const wina_piece *w) {
    uint64_t rows = (uint64_t)p->n_rows, i = (uint64_t)at;
    switch (p->layout->scales) {
    case WINA_SCALES_D:
        store_u16(scales + 2 * i, w->d);
        break;
    case WINA_SCALES_DM:
        store_u16(scales + 2 * i, w->d);
        store_u16(scales + 2 * (rows + i), w->m);
        break;
    case WINA_SCALES_K_DM:
    case WINA_SCALES_K_DM16:
    case WINA_SCALES_K_D16:
    case WINA_SCALES_K_D32:
    case WINA_SCALES_E8:
        scales[i] = w->s[0];
        if (p->layout->scale_bytes == 2)
            scales[rows + i] = w->s[1];
        if (first && p->layout->super_bytes >= 2)
            store_u16(super + 2 * i, w->d);
        if (first && p->layout->super_bytes == 4)
            store_u16(super + 2 * (rows + i), w->m);
        break;
    default:
        break;
    }
}

/* Four rows of four 16-bit values, w[row], to four columns. */
static inline void transpose_4x4(uint64_t w[4]) {
    swap_parts(&w[0], &w[2], 32, 0x00000000ffffffffu);
    swap_parts(&w[1], &w[3], 32, 0x00000000ffffffffu);
    swap_parts(&w[0], &w[1], 16, 0x0000ffff0000ffffu);
    swap_parts(&w[2], &w[3], 16, 0x0000ffff0000ffffu);
}

/* A strip of 16-bit values, (64 rows, 32 inputs), to columns `stride` bytes apart. */
static void store_halves(uint8_t *to, uint64_t stride,
                         const uint8_t tile[WINA_STRIP][4 * WINA_BLOCK], int32_t n_cols) {
    for (int32_t c = 0; c < n_cols; c += 4)
        for (int r = 0; r < WINA_STRIP; r += 4) {
            uint64_t w[4];
            for (int i = 0; i < 4; i++)
                w[i] = load_u64(&tile[r + i][2 * c]);
            transpose_4x4(w);
            for (int32_t i = 0; i < 4 && c + i < n_cols; i++)
                store_u64(to + (uint64_t)(c + i) * stride + 2 * r, w[i]);
        }
}

/* Up to a strip of rows, by tiles of one block: the pieces of rows that are a power of two apart
 * would drive each other out of the cache if columns were gathered from them. */
static void fill_floats(wina_panel *p, int64_t row0, const uint8_t *rows, uint64_t row_bytes,
                        int64_t n_rows) {
    const uint64_t size = p->layout->low_bits / 8;
    uint8_t tile[WINA_STRIP][4 * WINA_BLOCK];
    for (int32_t b = 0; b < p->n_blocks; b++) {
        const int32_t c0 = b * WINA_BLOCK;
        const int32_t n_cols = p->n_cols - c0 < WINA_BLOCK ? p->n_cols - c0 : WINA_BLOCK;
        uint8_t *to = (uint8_t *)wina_panel_block(p, b) + (uint64_t)row0 * size;
        for (int64_t r = 0; r < n_rows; r++)
            memcpy(tile[r], rows + (uint64_t)r * row_bytes + (uint64_t)c0 * size,
                   (uint64_t)n_cols * size);
        if (size == 2 && n_rows == WINA_STRIP) {
            store_halves(to, p->col_bytes, (const uint8_t(*)[4 * WINA_BLOCK]) tile, n_cols);
            continue;
        }
        for (int32_t c = 0; c < n_cols; c++)
            for (int64_t r = 0; r < n_rows; r++)
                memcpy(to + (uint64_t)c * p->col_bytes + (uint64_t)r * size,
                       &tile[r][(uint64_t)c * size], size);
    }
}

void wina_panel_fill(wina_panel *p, int64_t row0, const uint8_t *rows, uint64_t row_bytes,
                     int64_t n_rows) {
    const wina_layout *l = p->layout;
    if (l->low_bits >= 16) {
        for (int64_t r = 0; r < n_rows; r += WINA_STRIP)
            fill_floats(p, row0 + r, rows + (uint64_t)r * row_bytes, row_bytes,
                        n_rows - r < WINA_STRIP ? n_rows - r : WINA_STRIP);
        return;
    }
    for (int64_t r0 = 0; r0 < n_rows; r0 += WINA_STRIP) {
        int32_t strip = (int32_t)((row0 + r0) / WINA_STRIP);
        const int32_t n = n_rows - r0 < WINA_STRIP ? (int32_t)(n_rows - r0) : WINA_STRIP;
        uint8_t q[WINA_STRIP][WINA_BLOCK] = {{0}}; /* rows beyond the last stay zero */
        for (int32_t b = 0; b < p->n_blocks; b++) {
            uint8_t *super = (uint8_t *)wina_panel_super(p, b);
            uint8_t *block = (uint8_t *)wina_panel_block(p, b);
            uint8_t *scales = (uint8_t *)wina_panel_scales(p, b);
            for (int32_t r = 0; r < n; r++) {
                wina_piece w = {.d = 0};
                l->read(rows + (uint64_t)(r0 + r) * row_bytes, b, &w);
                memcpy(q[r], w.q, WINA_BLOCK);
                store_scales(p, super, scales, b % WINA_SUPER_BLOCKS == 0,
                             (int64_t)strip * WINA_STRIP + wina_strip_swap(r), &w);
            }
            store_values(p, block, strip, (const uint8_t(*)[WINA_BLOCK])q);
        }
    }
}

/* ---- reading back ------------------------------------------------------------------------- */

static int32_t stored_value(const wina_panel *p, const uint8_t *col, int64_t row) {
    const wina_layout *l = p->layout;
    int64_t strip = row / WINA_STRIP, r = row % WINA_STRIP;
    const int64_t at = strip * 16 + r % 16, shift = r / 16 * 2; /* of two bits */
    if (l->low_bits == 8)
        return col[row];
    int32_t v =
        l->low_bits == 2 ? col[at] >> shift & 3 : col[strip * 32 + r % 32] >> (r / 32 * 4) & 15;
    const uint8_t *high = col + (uint64_t)p->n_rows * l->low_bits / 8;
    if (l->high_bits == 1)
        v |= (high[strip * 8 + r / 8] >> (r % 8) & 1) << l->low_bits;
    else if (l->high_bits == 2)
        v |= (high[at] >> shift & 3) << l->low_bits;
    return l->table ? l->table[v] : v;
}

void wina_panel_decode_row(const wina_panel *p, int64_t row, float *out) {
    const wina_layout *l = p->layout;
    uint64_t rows = (uint64_t)p->n_rows;
    uint64_t at =
        (uint64_t)(row / WINA_STRIP * WINA_STRIP + wina_strip_swap((int32_t)(row % WINA_STRIP)));
    for (int32_t c = 0; c < p->n_cols; c++) {
        int32_t b = c / WINA_BLOCK;
        const uint8_t *col = wina_panel_block(p, b) + (uint64_t)(c % WINA_BLOCK) * p->col_bytes;
        const uint8_t *scales = wina_panel_scales(p, b), *super = wina_panel_super(p, b);
        uint32_t bits;
        if (l->scales == WINA_SCALES_F32) {
            memcpy(&out[c], col + 4 * row, 4);
            continue;
        }
        if (l->scales == WINA_SCALES_F16 || l->scales == WINA_SCALES_BF16) {
            bits = load_u16(col + 2 * row);
            out[c] = l->scales == WINA_SCALES_F16 ? wina_f16_to_f32((uint16_t)bits)
                                                  : wina_bf16_to_f32((uint16_t)bits);
            continue;
        }
        float q = (float)(stored_value(p, col, row) - l->offset);
        if (l->scales == WINA_SCALES_D) {
            out[c] = wina_f16_to_f32(load_u16(scales + 2 * at)) * q;
        } else if (l->scales == WINA_SCALES_DM) {
            float t = wina_f16_to_f32(load_u16(scales + 2 * at)) * q;
            out[c] = t + wina_f16_to_f32(load_u16(scales + 2 * (rows + at)));
        } else if (l->scales == WINA_SCALES_K_DM) {
            float s = wina_f16_to_f32(load_u16(super + 2 * at)) * (float)scales[at];
            float m = wina_f16_to_f32(load_u16(super + 2 * (rows + at))) * (float)scales[rows + at];
            out[c] = s * q - m;
        } else if (l->scales == WINA_SCALES_K_DM16) {
            uint8_t sub = scales[(c % 32 / 16 ? rows : 0) + at];
            float s = wina_f16_to_f32(load_u16(super + 2 * at)) * (float)(sub & 15);
            float m = wina_f16_to_f32(load_u16(super + 2 * (rows + at))) * (float)(sub >> 4);
            out[c] = s * q - m;
        } else if (l->scales == WINA_SCALES_E8) {
            out[c] = wina_e8m0_to_f32(scales[at]) * q;
        } else {
            int8_t sub = (int8_t)scales[(l->sub == 16 && c % 32 / 16 ? rows : 0) + at];
            out[c] = wina_f16_to_f32(load_u16(super + 2 * at)) * (float)sub * q;
        }
    }
}
