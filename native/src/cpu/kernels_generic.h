/* kernels_generic: every kernel in plain C, written so that a compiler can vectorise it. Included
 * by kernels_c.c (the reference) and by the files of instruction sets, which compile it with their
 * own flags and then overlay what they do better by hand. The results are the same bits everywhere:
 * see kernels.h for the order of every sum.
 */
#include <float.h>
#include <math.h>
#include <string.h>

#include "../sparse/select.h"
#include "kernels.h"

#if defined(__F16C__)
#include <immintrin.h>
#endif

enum { LANES = 16 };

/* ---- small pieces ------------------------------------------------------------------------- */

static inline void halves_to_floats(const uint16_t *h, float *f, int n) {
    int i = 0;
#if defined(__F16C__)
    for (; i + 8 <= n; i += 8)
        _mm256_storeu_ps(f + i, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(h + i))));
#endif
    for (; i < n; i++)
        f[i] = wina_f16_to_f32(h[i]);
}

static inline float fold_lanes(float *s) {
    for (int w = LANES / 2; w > 0; w /= 2)
        for (int i = 0; i < w; i++)
            s[i] += s[i + w];
    return s[0];
}

static inline float round_even(float x) {
    return x + 12582912.0f - 12582912.0f; /* |x| < 2^22 */
}

/* The larger of two; once one is a NaN it stays one, whatever follows. */
static inline float larger(float a, float b) {
    return b > a || isnan(b) ? b : a;
}

/* exp by range reduction to |r| <= ln(2) / 2 and a polynomial; relative error below 2e-7. */
static inline float exp_one(float x) {
    if (isnan(x)) /* has no exponent to shift into place */
        return x;
    x = x < -87.0f ? -87.0f : x > 88.0f ? 88.0f : x;
    float n = round_even(x * 1.44269504f);
    float r = fmaf(n, -0.693359375f, x);
    r = fmaf(n, 2.12194440e-4f, r);
    float p = fmaf(1.9875691500e-4f, r, 1.3981999507e-3f);
    p = fmaf(p, r, 8.3334519073e-3f);
    p = fmaf(p, r, 4.1665795894e-2f);
    p = fmaf(p, r, 1.6666665459e-1f);
    p = fmaf(p, r, 5.0000001201e-1f);
    p = fmaf(p, r * r, r) + 1.0f;
    union {
        int32_t i;
        float f;
    } power = {((int32_t)n + 127) << 23};
    return p * power.f;
}

/* ---- vectors ------------------------------------------------------------------------------ */

static void rms_norm(float *y, const float *x, const float *gain, int32_t n, float eps) {
    float s[LANES] = {0};
    int32_t i = 0;
    for (; i + LANES <= n; i += LANES)
        for (int l = 0; l < LANES; l++)
            s[l] = fmaf(x[i + l], x[i + l], s[l]);
    for (int l = 0; i + l < n; l++)
        s[l] = fmaf(x[i + l], x[i + l], s[l]);
    float scale = 1.0f / sqrtf(fold_lanes(s) / (float)n + eps);
    for (i = 0; i < n; i++)
        y[i] = x[i] * scale * gain[i];
}

static void swiglu(float *y, const float *gate, const float *up, int32_t n) {
    for (int32_t i = 0; i < n; i++)
        y[i] = gate[i] / (1.0f + exp_one(-gate[i])) * up[i];
}

/* 0.5 (1 + tanh(u)) is the logistic function of 2 u. */
static void geglu(float *y, const float *gate, const float *up, int32_t n) {
    for (int32_t i = 0; i < n; i++) {
        const float g = gate[i], u = 1.595769122f * fmaf(0.044715f * g, g * g, g);
        y[i] = g / (1.0f + exp_one(-u));
    }
    for (int32_t i = 0; i < n && up; i++)
        y[i] *= up[i];
}

static void attend_dots(const float *q, const float *k, int32_t n_dim, int32_t n_rows, float scale,
                        float *out) {
    for (int32_t r = 0; r < n_rows; r++, k += n_dim) {
        float s[LANES] = {0};
        int32_t i = 0;
        for (; i + LANES <= n_dim; i += LANES)
            for (int l = 0; l < LANES; l++)
                s[l] = fmaf(q[i + l], k[i + l], s[l]);
        for (int l = 0; i + l < n_dim; l++)
            s[l] = fmaf(q[i + l], k[i + l], s[l]);
        out[r] = fold_lanes(s) * scale;
    }
}

static void attend_add(float *o, const float *p, const float *v, int32_t n_dim, int32_t stride,
                       int32_t n_rows) {
    for (int32_t r = 0; r < n_rows; r++, v += stride)
        for (int32_t i = 0; i < n_dim; i++)
            o[i] = fmaf(p[r], v[i], o[i]);
}

static float softmax_part(float *s, int32_t n, float *sum) {
    float max = s[0], t[LANES] = {0};
    for (int32_t i = 1; i < n; i++)
        max = s[i] > max ? s[i] : max;
    for (int32_t i = 0; i < n; i++)
        s[i] = exp_one(s[i] - max);
    int32_t i = 0;
    for (; i + LANES <= n; i += LANES)
        for (int l = 0; l < LANES; l++)
            t[l] += s[i + l];
    for (int l = 0; i + l < n; l++)
        t[l] += s[i + l];
    *sum = fold_lanes(t);
    return max;
}

/* Rows are fetched this many bytes ahead, about a tile: hardware stops at the end of every small
 * page. */
enum { ROWS_AHEAD = 8192 };

static void load_f16(float *x, const void *rows, int32_t n_dim, int32_t n_rows) {
    const uint8_t *from = rows;
    const int64_t row_bytes = 2 * (int64_t)n_dim;
    for (int32_t r = 0; r < n_rows; r++, from += row_bytes, x += n_dim) {
        for (int64_t i = 0; i < row_bytes; i += 64)
            __builtin_prefetch(from + ROWS_AHEAD + i);
        halves_to_floats((const uint16_t *)(const void *)from, x, n_dim);
    }
}

static void store_f16(void *row, const float *x, int32_t n_dim) {
    uint16_t *y = row;
    int32_t i = 0;
#if defined(__F16C__)
    for (; i + 8 <= n_dim; i += 8)
        _mm_storeu_si128((__m128i *)(y + i), _mm256_cvtps_ph(_mm256_loadu_ps(x + i), 0));
#endif
    for (; i < n_dim; i++)
        y[i] = wina_f32_to_f16(x[i]);
}

static void load_f32(float *x, const void *rows, int32_t n_dim, int32_t n_rows) {
    memcpy(x, rows, (size_t)n_dim * (size_t)n_rows * sizeof *x);
}

static void store_f32(void *row, const float *x, int32_t n_dim) {
    memcpy(row, x, (size_t)n_dim * sizeof *x);
}

static void load_q8_0(float *x, const void *rows, int32_t n_dim, int32_t n_rows) {
    const uint8_t *block = rows;
    for (int32_t r = 0; r < n_rows; r++, x += n_dim)
        for (int32_t i = 0; i < n_dim; i += WINA_CACHE_BLOCK, block += WINA_CACHE_BLOCK_BYTES) {
            uint16_t half;
            memcpy(&half, block, sizeof half);
            const float d = wina_f16_to_f32(half);
            for (int32_t k = 0; k < WINA_CACHE_BLOCK && i + k < n_dim; k++)
                x[i + k] = d * (float)(int8_t)block[2 + k];
        }
}

/* A value that is not finite makes the block's scale NaN, as in activations. */
static void store_q8_0(void *row, const float *x, int32_t n_dim) {
    uint8_t *block = row;
    for (int32_t i = 0; i < n_dim; i += WINA_CACHE_BLOCK, block += WINA_CACHE_BLOCK_BYTES) {
        const int32_t n = n_dim - i < WINA_CACHE_BLOCK ? n_dim - i : WINA_CACHE_BLOCK;
        float amax = 0.0f;
        for (int32_t k = 0; k < n; k++) {
            amax = larger(amax, fabsf(x[i + k]));
        }
        const float d = amax <= FLT_MAX ? amax / 127.0f : NAN;
        const float inverse = d > 0.0f ? 1.0f / d : 0.0f;
        const uint16_t half = wina_f32_to_f16(d);
        memcpy(block, &half, sizeof half);
        memset(block + 2, 0, WINA_CACHE_BLOCK);
        for (int32_t k = 0; k < n && inverse <= FLT_MAX && inverse > 0.0f; k++)
            block[2 + k] = (uint8_t)(int8_t)round_even(x[i + k] * inverse);
    }
}

static void add(float *y, const float *x, int32_t n) {
    for (int32_t i = 0; i < n; i++)
        y[i] += x[i];
}

/* ---- activations -------------------------------------------------------------------------- */

/* Scale of a sub-block whose largest magnitude is amax, and the factor that rounds by it. Values
 * that are not finite make the scale NaN, so that the result is NaN and not garbage. */
static inline float activation_scale(float amax, float *inverse) {
    if (!(amax <= FLT_MAX)) {
        *inverse = 0.0f;
        return NAN;
    }
    if (amax < 1e-30f) {
        *inverse = 0.0f;
        return 0.0f;
    }
    *inverse = (float)WINA_ACT_MAX / amax;
    return amax / (float)WINA_ACT_MAX;
}

static void quantize(const float *x, const int32_t *kept, int32_t n_kept, int32_t n_cols,
                     int32_t sub, wina_quads *out) {
    int32_t n_sub = (n_cols + sub - 1) / sub, k = 0;
    uint32_t n = 0;
    for (int32_t s = 0; s < n_sub; s++) {
        int32_t begin = k, end = (s + 1) * sub;
        float amax = 0.0f;
        for (; k < n_kept && kept[k] < end; k++) {
            amax = larger(amax, fabsf(x[kept[k]]));
        }
        float inverse;
        out->first[s] = n / 4;
        out->scale[s] = activation_scale(amax, &inverse);
        int32_t sum = 0;
        for (int32_t i = begin; i < k; i++, n++) {
            int32_t v = inverse > 0 ? (int32_t)round_even(x[kept[i]] * inverse) : 0;
            int32_t hi = (v + 128) >> 8;
            sum += v;
            out->hi[n] = (int8_t)hi;
            out->lo[n] = (int8_t)(v - 256 * hi);
            out->x[n] = (int16_t)v;
            out->col[n] = (uint8_t)(kept[i] % WINA_BLOCK);
        }
        out->sum[s] = sum;
        for (; n % 4 != 0; n++) {
            out->hi[n] = out->lo[n] = 0;
            out->x[n] = 0;
            out->col[n] = out->col[n - 1];
        }
    }
    out->first[n_sub] = n / 4;
}

static void quantize_row(const wina_batch *b, int32_t token, int which) {
    const int32_t sub = which ? 16 : 32, n_sub = (int32_t)(b->stride / sub);
    for (int32_t s = 0; s < n_sub; s++) {
        const int64_t at = wina_batch_at(b, s * sub / WINA_BLOCK, token) + s * sub % WINA_BLOCK;
        const float *x = b->x + at;
        int8_t *hi = b->hi[which] + at, *lo = b->lo[which] + at;
        int16_t *wide = b->x16[which] + at;
        float amax = 0.0f, inverse;
        for (int32_t i = 0; i < sub; i++) {
            amax = larger(amax, fabsf(x[i]));
        }
        int32_t sum = 0;
        b->scale[which][wina_batch_sub(b, s, token)] = activation_scale(amax, &inverse);
        for (int32_t i = 0; i < sub; i++) {
            int32_t v = inverse > 0 ? (int32_t)round_even(x[i] * inverse) : 0;
            hi[i] = (int8_t)((v + 128) >> 8);
            lo[i] = (int8_t)(v - 256 * hi[i]);
            wide[i] = (int16_t)v;
            sum += v;
        }
        b->sum[which][wina_batch_sub(b, s, token)] = sum;
    }
}

/* ---- matrices ----------------------------------------------------------------------------- */

/* Stored values of one input in one strip, in row order. */
static inline void unpack_strip(const wina_panel *p, const uint8_t *col, int32_t strip,
                                uint8_t *v) {
    const wina_layout *l = p->layout;
    const uint8_t *low = col + strip * 8 * l->low_bits;
    const uint8_t *high = col + (int64_t)p->n_rows * l->low_bits / 8;
    if (l->low_bits == 8)
        memcpy(v, low, 64);
    else if (l->low_bits == 2)
        for (int i = 0; i < 64; i++)
            v[i] = low[i % 16] >> (i / 16 * 2) & 3;
    else
        for (int i = 0; i < 32; i++) {
            v[i] = low[i] & 15;
            v[i + 32] = low[i] >> 4;
        }
    if (l->high_bits == 1)
        for (int i = 0; i < 64; i++)
            v[i] |= (uint8_t)((high[strip * 8 + i / 8] >> (i % 8) & 1) << l->low_bits);
    if (l->high_bits == 2)
        for (int i = 0; i < 64; i++)
            v[i] |= (uint8_t)((high[strip * 16 + i % 16] >> (i / 16 * 2) & 3) << l->low_bits);
    if (l->table)
        for (int i = 0; i < 64; i++)
            v[i] = l->table[v[i]];
}

static inline void unpack_floats(const wina_panel *p, const uint8_t *col, int32_t strip, float *v) {
    if (p->layout->scales == WINA_SCALES_F32) {
        memcpy(v, col + strip * 256, 256);
    } else if (p->layout->scales == WINA_SCALES_F16) {
        uint16_t h[WINA_STRIP];
        memcpy(h, col + strip * 128, 128);
        halves_to_floats(h, v, WINA_STRIP);
    } else {
        for (int i = 0; i < WINA_STRIP; i++) {
            uint16_t h;
            memcpy(&h, col + strip * 128 + 2 * i, 2);
            v[i] = wina_bf16_to_f32(h);
        }
    }
}

static inline void unpack_halves(const uint8_t *p, float *out) {
    uint16_t h[WINA_STRIP];
    float f[WINA_STRIP];
    memcpy(h, p, sizeof h);
    halves_to_floats(h, f, WINA_STRIP);
    for (int i = 0; i < WINA_STRIP; i++)
        out[wina_strip_swap(i)] = f[i];
}

/* Scales of one strip and sub-block in row order: y += scale * dot [- or + min * sum]. */
typedef struct strip_scales {
    float d[WINA_STRIP];
    float m[WINA_STRIP]; /* signed as it is added; unused without mins */
} strip_scales;

static inline void load_scales(const wina_panel *p, int32_t block, int sub, int32_t strip,
                               strip_scales *out) {
    const uint8_t *scales = wina_panel_scales(p, block), *super = wina_panel_super(p, block);
    int64_t rows = p->n_rows, at = (int64_t)strip * WINA_STRIP;
    switch (p->layout->scales) {
    case WINA_SCALES_D:
        unpack_halves(scales + 2 * at, out->d);
        break;
    case WINA_SCALES_DM:
        unpack_halves(scales + 2 * at, out->d);
        unpack_halves(scales + 2 * (rows + at), out->m);
        break;
    case WINA_SCALES_K_DM:
        unpack_halves(super + 2 * at, out->d);
        unpack_halves(super + 2 * (rows + at), out->m);
        for (int i = 0; i < WINA_STRIP; i++) {
            out->d[i] *= (float)scales[at + wina_strip_swap(i)];
            out->m[i] *= -(float)scales[rows + at + wina_strip_swap(i)];
        }
        break;
    case WINA_SCALES_K_DM16:
        unpack_halves(super + 2 * at, out->d);
        unpack_halves(super + 2 * (rows + at), out->m);
        for (int i = 0; i < WINA_STRIP; i++) {
            uint8_t both = scales[(sub ? rows : 0) + at + wina_strip_swap(i)];
            out->d[i] *= (float)(both & 15);
            out->m[i] *= -(float)(both >> 4);
        }
        break;
    case WINA_SCALES_E8:
        for (int i = 0; i < WINA_STRIP; i++)
            out->d[i] = wina_e8m0_to_f32(scales[at + wina_strip_swap(i)]);
        break;
    case WINA_SCALES_K_D16:
    case WINA_SCALES_K_D32:
        unpack_halves(super + 2 * at, out->d);
        for (int i = 0; i < WINA_STRIP; i++)
            out->d[i] *= (float)(int8_t)scales[(sub ? rows : 0) + at + wina_strip_swap(i)];
        break;
    default:
        break;
    }
}

static inline bool has_mins(const wina_panel *p) {
    return wina_scales_mins(p->layout->scales);
}

/* y += (d * scale) * (dot - offset * sum), then y += m * (scale * sum) */
static inline void add_block(const strip_scales *s, bool mins, int32_t offset, const int32_t *dot,
                             float scale, int32_t sum, float *y) {
    for (int i = 0; i < WINA_STRIP; i++)
        y[i] = fmaf(s->d[i] * scale, (float)(dot[i] - offset * sum), y[i]);
    if (mins) {
        float t = scale * (float)sum;
        for (int i = 0; i < WINA_STRIP; i++)
            y[i] = fmaf(s->m[i], t, y[i]);
    }
}

static void gemv_floats(const wina_panel *p, const wina_act *act, int32_t block0, int32_t block1,
                        int32_t strip0, int32_t strip1, float *y) {
    for (int32_t i = 0; i < act->n_kept; i++) {
        const int32_t c = act->kept[i], block = c / WINA_BLOCK;
        if (block < block0 || block >= block1)
            continue;
        const uint8_t *col = wina_panel_column(p, block, c % WINA_BLOCK);
        for (int32_t strip = strip0; strip < strip1; strip++) {
            float w[WINA_STRIP], *out = y + (int64_t)strip * WINA_STRIP;
            unpack_floats(p, col, strip, w);
            for (int r = 0; r < WINA_STRIP; r++)
                out[r] = fmaf(w[r], act->x[c], out[r]);
        }
    }
}

static void gemv(const wina_panel *p, const wina_act *act, int32_t block0, int32_t block1,
                 int32_t strip0, int32_t strip1, bool add, float *y) {
    if (!add)
        wina_gemv_clear(y, strip0, strip1);
    if (p->layout->low_bits >= 16) {
        gemv_floats(p, act, block0, block1, strip0, strip1, y);
        return;
    }
    const int n_sub = WINA_BLOCK / p->layout->sub;
    const wina_quads *a = n_sub == 1 ? &act->by32 : &act->by16;
    const bool mins = has_mins(p);
    for (int32_t s = block0 * n_sub; s < block1 * n_sub; s++) {
        if (a->first[s] == a->first[s + 1])
            continue;
        for (int32_t strip = strip0; strip < strip1; strip++) {
            int32_t dot[WINA_STRIP] = {0};
            for (uint32_t i = 4 * a->first[s]; i < 4 * a->first[s + 1]; i++) {
                uint8_t v[WINA_STRIP];
                unpack_strip(p, wina_panel_column(p, s / n_sub, a->col[i]), strip, v);
                for (int r = 0; r < WINA_STRIP; r++)
                    dot[r] += v[r] * a->x[i];
            }
            strip_scales scales;
            load_scales(p, s / n_sub, s % n_sub, strip, &scales);
            add_block(&scales, mins, p->layout->offset, dot, a->scale[s], a->sum[s],
                      y + (int64_t)strip * WINA_STRIP);
        }
    }
}

static void gemm_floats(const wina_panel *p, const wina_batch *batch, int32_t block0,
                        int32_t block1, int32_t strip, float *y) {
    const int32_t end = block1 * WINA_BLOCK < p->n_cols ? block1 * WINA_BLOCK : p->n_cols;
    for (int32_t c = block0 * WINA_BLOCK; c < end; c++) {
        float w[WINA_STRIP];
        unpack_floats(
            p, wina_panel_block(p, c / WINA_BLOCK) + (uint64_t)(c % WINA_BLOCK) * p->col_bytes,
            strip, w);
        for (int32_t t = 0; t < batch->n_tokens; t++) {
            float x = batch->x[wina_batch_at(batch, c / WINA_BLOCK, t) + c % WINA_BLOCK];
            float *out = y + (int64_t)t * WINA_STRIP;
            for (int r = 0; r < WINA_STRIP; r++)
                out[r] = fmaf(w[r], x, out[r]);
        }
    }
}

static void gemm_block(const wina_panel *p, const wina_batch *batch, int32_t block, int32_t strip,
                       float *y) {
    const int sub_width = p->layout->sub, n_sub = WINA_BLOCK / sub_width, which = n_sub - 1;
    uint8_t v[WINA_BLOCK][WINA_STRIP];
    for (int c = 0; c < WINA_BLOCK; c++)
        unpack_strip(p, wina_panel_block(p, block) + (uint64_t)c * p->col_bytes, strip, v[c]);
    for (int j = 0; j < n_sub; j++) {
        strip_scales scales;
        load_scales(p, block, j, strip, &scales);
        for (int32_t t = 0; t < batch->n_tokens; t++) {
            int64_t at = wina_batch_at(batch, block, t) + j * sub_width;
            int64_t s = wina_batch_sub(batch, block * n_sub + j, t);
            int32_t dot[WINA_STRIP] = {0};
            for (int c = 0; c < sub_width; c++) {
                int32_t x = batch->x16[which][at + c];
                for (int r = 0; r < WINA_STRIP; r++)
                    dot[r] += v[j * sub_width + c][r] * x;
            }
            add_block(&scales, has_mins(p), p->layout->offset, dot, batch->scale[which][s],
                      batch->sum[which][s], y + (int64_t)t * WINA_STRIP);
        }
    }
}

static void gemm(const wina_panel *p, const wina_batch *batch, int32_t block0, int32_t block1,
                 int32_t strip0, int32_t strip1, float *y) {
    const int64_t n = (int64_t)batch->n_tokens * WINA_STRIP;
    for (int32_t strip = strip0; strip < strip1; strip++, y += n) {
        memset(y, 0, (size_t)n * sizeof *y);
        if (p->layout->low_bits >= 16)
            gemm_floats(p, batch, block0, block1, strip, y);
        else
            for (int32_t b = block0; b < block1; b++)
                gemm_block(p, batch, b, strip, y);
    }
}

static inline void fill_table(wina_kernels *k, const char *name) {
    *k = (wina_kernels){
        .name = name,
        .gemv = gemv,
        .gemm = gemm,
        .quantize = quantize,
        .quantize_row = quantize_row,
        .fill = wina_fill_ops_c,
        .score = wina_score,
        .select = wina_select,
        .rms_norm = rms_norm,
        .swiglu = swiglu,
        .geglu = geglu,
        .attend_dots = attend_dots,
        .attend_add = attend_add,
        .softmax_part = softmax_part,
        .cache_load = {load_f16, load_q8_0, load_f32},
        .cache_store = {store_f16, store_q8_0, store_f32},
        .add = add,
    };
}
