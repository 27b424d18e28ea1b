/* Loading with AVX2: tiles of 16 rows and 32 inputs are turned by interleaving their halves, over
 * and over. One round moves the highest bit of the place (row, input) to the lowest, so that after
 * as many rounds as rows have bits the two have changed places. Both halves of a register do this
 * for 16 inputs (8 of 16 bits) each. */
#include "avx2.h"

/* One round over n registers of bytes, or of 16-bit values. */
INLINE void interleave_halves(__m256i *v, const int n, const int bytes) {
    __m256i t[16];
#pragma GCC unroll 8
    for (int i = 0; i < n / 2; i++) {
        const __m256i a = v[i], b = v[i + n / 2];
        t[2 * i] = bytes == 1 ? _mm256_unpacklo_epi8(a, b) : _mm256_unpacklo_epi16(a, b);
        t[2 * i + 1] = bytes == 1 ? _mm256_unpackhi_epi8(a, b) : _mm256_unpackhi_epi16(a, b);
    }
#pragma GCC unroll 16
    for (int i = 0; i < n; i++)
        v[i] = t[i];
}

INLINE void store_16(uint8_t *to, __m128i v) {
    _mm_storeu_si128((__m128i *)(void *)to, v);
}

/* 16 rows of bytes to 32 columns of 16 bytes. */
INLINE void store_columns_16(uint8_t *to, uint64_t stride, __m256i v[16]) {
#pragma GCC unroll 4
    for (int round = 0; round < 4; round++)
        interleave_halves(v, 16, 1);
#pragma GCC unroll 16
    for (uint64_t c = 0; c < 16; c++) {
        store_16(to + c * stride, _mm256_castsi256_si128(v[c]));
        store_16(to + (c + 16) * stride, _mm256_extracti128_si256(v[c], 1));
    }
}

/* 8 rows of bytes to 32 columns of 8 bytes. */
INLINE void store_columns_8(uint8_t *to, uint64_t stride, __m256i v[8]) {
#pragma GCC unroll 3
    for (int round = 0; round < 3; round++)
        interleave_halves(v, 8, 1);
#pragma GCC unroll 8
    for (uint64_t i = 0; i < 8; i++)
        for (uint64_t half = 0; half < 2; half++) {
            const __m128i two =
                half ? _mm256_extracti128_si256(v[i], 1) : _mm256_castsi256_si128(v[i]);
            uint8_t *at = to + (2 * i + 16 * half) * stride;
            _mm_storel_epi64((__m128i *)(void *)at, two);
            _mm_storeh_pd((double *)(void *)(at + stride), _mm_castsi128_pd(two));
        }
}

INLINE __m256i load_row(const wina_pieces *in, int r) {
    return _mm256_loadu_si256((const __m256i *)(const void *)in->q[r]);
}

/* `mask` of a row from bit `shift` on, moved up by `up`. */
INLINE __m256i bits_of(const wina_pieces *in, int r, const int shift, const int mask,
                       const int up) {
    const __m256i v =
        _mm256_and_si256(_mm256_srli_epi16(load_row(in, r), shift), _mm256_set1_epi8((char)mask));
    return _mm256_slli_epi16(v, up);
}

/* Rows i, i + 16, ... with two bits each. */
INLINE void store_pairs(uint8_t *to, uint64_t stride, const wina_pieces *in, const int shift) {
    __m256i v[16];
#pragma GCC unroll 16
    for (int i = 0; i < 16; i++)
        v[i] = _mm256_or_si256(
            _mm256_or_si256(bits_of(in, i, shift, 3, 0), bits_of(in, i + 16, shift, 3, 2)),
            _mm256_or_si256(bits_of(in, i + 32, shift, 3, 4), bits_of(in, i + 48, shift, 3, 6)));
    store_columns_16(to, stride, v);
}

/* Bit `shift` of rows 8 j ... 8 j + 7. */
INLINE void store_bits(uint8_t *to, uint64_t stride, const wina_pieces *in, const int shift) {
    __m256i v[8];
#pragma GCC unroll 8
    for (int j = 0; j < 8; j++) {
        v[j] = bits_of(in, 8 * j, shift, 1, 0);
#pragma GCC unroll 7
        for (int i = 1; i < 8; i++)
            v[j] = _mm256_or_si256(v[j], bits_of(in, 8 * j + i, shift, 1, i));
    }
    store_columns_8(to, stride, v);
}

INLINE void store_planes(const wina_panel *p, uint8_t *block, int32_t strip, const wina_pieces *in,
                         const int low_bits, const int high_bits) {
    const uint64_t stride = p->col_bytes;
    uint8_t *low = block + strip * 8 * low_bits;
    uint8_t *high = block + (uint64_t)p->n_rows * (uint64_t)low_bits / 8;
    __m256i v[16];
    for (int r = 0; r < 64 && low_bits == 8; r += 16) {
#pragma GCC unroll 16
        for (int i = 0; i < 16; i++)
            v[i] = load_row(in, r + i);
        store_columns_16(low + r, stride, v);
    }
    for (int r = 0; r < 32 && low_bits == 4; r += 16) {
#pragma GCC unroll 16
        for (int i = 0; i < 16; i++)
            v[i] = _mm256_or_si256(bits_of(in, r + i, 0, 15, 0), bits_of(in, r + i + 32, 0, 15, 4));
        store_columns_16(low + r, stride, v);
    }
    if (low_bits == 2)
        store_pairs(low, stride, in, 0);
    if (high_bits == 1)
        store_bits(high + strip * 8, stride, in, low_bits);
    if (high_bits == 2)
        store_pairs(high + strip * 16, stride, in, low_bits);
}

/* 64 rows of 16-bit values to columns, 8 rows and 16 inputs at a time. */
static void store_halves(uint8_t *to, uint64_t stride, const wina_pieces *in) {
    for (int c = 0; c < WINA_BLOCK; c += 16)
        for (int r = 0; r < WINA_STRIP; r += 8) {
            __m256i v[8];
#pragma GCC unroll 8
            for (int i = 0; i < 8; i++)
                v[i] = _mm256_loadu_si256((const __m256i *)(const void *)&in->raw[r + i][2 * c]);
#pragma GCC unroll 3
            for (int round = 0; round < 3; round++)
                interleave_halves(v, 8, 2);
            uint8_t *at = to + (uint64_t)c * stride + 2 * r;
#pragma GCC unroll 8
            for (uint64_t i = 0; i < 8; i++) {
                store_16(at + i * stride, _mm256_castsi256_si128(v[i]));
                store_16(at + (i + 8) * stride, _mm256_extracti128_si256(v[i], 1));
            }
        }
}

static void store_avx2(const wina_panel *p, uint8_t *block, int32_t strip, const wina_pieces *in,
                       int32_t n_cols) {
    const wina_layout *l = p->layout;
    switch (l->low_bits << 4 | l->high_bits) {
    case 0x80:
        store_planes(p, block, strip, in, 8, 0);
        break;
    case 0x40:
        store_planes(p, block, strip, in, 4, 0);
        break;
    case 0x41:
        store_planes(p, block, strip, in, 4, 1);
        break;
    case 0x42:
        store_planes(p, block, strip, in, 4, 2);
        break;
    case 0x20:
        store_planes(p, block, strip, in, 2, 0);
        break;
    case 0x21:
        store_planes(p, block, strip, in, 2, 1);
        break;
    default:
        if (l->low_bits == 16 && n_cols == WINA_BLOCK)
            store_halves(block + (uint64_t)strip * 2 * WINA_STRIP, p->col_bytes, in);
        else
            wina_fill_ops_c.store(p, block, strip, in, n_cols);
    }
}

/* ---- squares ------------------------------------------------------------------------------ */

/* The product of two floats fits into a double, so fusing it with the sum rounds once as before. */
INLINE void add_eight(__m256d s[2], __m256 w) {
    const __m256d low = _mm256_cvtps_pd(_mm256_castps256_ps128(w));
    const __m256d high = _mm256_cvtps_pd(_mm256_extractf128_ps(w, 1));
    s[0] = _mm256_fmadd_pd(low, low, s[0]);
    s[1] = _mm256_fmadd_pd(high, high, s[1]);
}

INLINE void add_floats(const wina_pieces *in, int32_t n_rows, const wina_scales kind,
                       __m256d s[8]) {
    const int size = kind == WINA_SCALES_F32 ? 4 : 2;
    for (int32_t r = 0; r < n_rows; r++)
#pragma GCC unroll 4
        for (int v = 0; v < 4; v++)
            add_eight(s + 2 * v, load_floats(&in->raw[r][8 * v * size], kind));
}

INLINE void add_integers(const wina_layout *l, const wina_pieces *in, int32_t n_rows,
                         const bool table, const bool mins, __m256d s[8]) {
    wina_fill_scales k;
    wina_fill_get_scales(l, in, &k);
    const __m256i offset = _mm256_set1_epi32(l->offset);
    const __m256i values =
        table
            ? _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)(const void *)l->table))
            : offset;
    for (int32_t r = 0; r < n_rows; r++) {
        uint8_t looked_up[WINA_BLOCK];
        const uint8_t *q = in->q[r];
        if (table) {
            _mm256_storeu_si256((__m256i *)(void *)looked_up,
                                _mm256_shuffle_epi8(values, load_row(in, r)));
            q = looked_up;
        }
#pragma GCC unroll 4
        for (int v = 0; v < 4; v++) {
            const __m128i bytes = _mm_loadl_epi64((const __m128i *)(const void *)(q + 8 * v));
            const __m256i n = _mm256_sub_epi32(_mm256_cvtepu8_epi32(bytes), offset);
            __m256 w =
                _mm256_mul_ps(_mm256_broadcast_ss(&k.scale[v / 2][r]), _mm256_cvtepi32_ps(n));
            if (mins)
                w = _mm256_sub_ps(w, _mm256_broadcast_ss(&k.min[v / 2][r]));
            add_eight(s + 2 * v, w);
        }
    }
}

static void add_squares_avx2(const wina_layout *l, const wina_pieces *in, int32_t n_rows,
                             double *sums) {
    __m256d s[8];
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++)
        s[i] = _mm256_loadu_pd(sums + 4 * i);
    if (l->scales == WINA_SCALES_F32)
        add_floats(in, n_rows, WINA_SCALES_F32, s);
    else if (l->scales == WINA_SCALES_F16)
        add_floats(in, n_rows, WINA_SCALES_F16, s);
    else if (l->scales == WINA_SCALES_BF16)
        add_floats(in, n_rows, WINA_SCALES_BF16, s);
    else if (l->table)
        add_integers(l, in, n_rows, true, false, s);
    else if (wina_scales_mins(l->scales))
        add_integers(l, in, n_rows, false, true, s);
    else
        add_integers(l, in, n_rows, false, false, s);
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++)
        _mm256_storeu_pd(sums + 4 * i, s[i]);
}

const wina_fill_ops wina_fill_ops_avx2 = {store_avx2, add_squares_avx2};
