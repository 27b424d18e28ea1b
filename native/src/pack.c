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

/* ---- reading back ------------------------------------------------------------------------- */

static uint16_t load_u16(const uint8_t *p) {
    return (uint16_t)(p[0] | p[1] << 8);
}

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
