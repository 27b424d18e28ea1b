/* NEON as every aarch64 processor has it: vectors and the table. Matrices are in gemv_neon.c and
 * gemm_neon.c, attention in attend_neon.c. */
#include "kernels_generic.h"
#include "neon.h"

/* ---- sums in sixteen lanes ---------------------------------------------------------------- */

typedef struct lanes {
    float32x4_t v[LANES / 4];
} lanes;

static inline lanes zero_lanes(void) {
    const float32x4_t zero = vdupq_n_f32(0.0f);
    return (lanes){{zero, zero, zero, zero}};
}

static inline void store_lanes(float *s, lanes x) {
#pragma GCC unroll 4
    for (int v = 0; v < 4; v++)
        vst1q_f32(s + 4 * v, x.v[v]);
}

/* fold_lanes in registers. */
static inline float fold_vectors(lanes x) {
    const float32x4_t four = vaddq_f32(vaddq_f32(x.v[0], x.v[2]), vaddq_f32(x.v[1], x.v[3]));
    const float32x2_t two = vadd_f32(vget_low_f32(four), vget_high_f32(four));
    return vget_lane_f32(two, 0) + vget_lane_f32(two, 1);
}

/* ---- vectors ------------------------------------------------------------------------------ */

static void rms_norm_neon(float *y, const float *x, const float *gain, int32_t n, float eps) {
    lanes t = zero_lanes();
    int32_t i = 0;
    for (; i + LANES <= n; i += LANES)
#pragma GCC unroll 4
        for (int v = 0; v < 4; v++) {
            const float32x4_t a = vld1q_f32(x + i + 4 * v);
            t.v[v] = vfmaq_f32(t.v[v], a, a);
        }
    float s[LANES], sum = fold_vectors(t);
    if (i < n) {
        store_lanes(s, t);
        for (int l = 0; i + l < n; l++)
            s[l] = fmaf(x[i + l], x[i + l], s[l]);
        sum = fold_lanes(s);
    }
    const float scale = 1.0f / sqrtf(sum / (float)n + eps);
    for (i = 0; i + 4 <= n; i += 4)
        vst1q_f32(y + i, vmulq_f32(vmulq_n_f32(vld1q_f32(x + i), scale), vld1q_f32(gain + i)));
    for (; i < n; i++)
        y[i] = x[i] * scale * gain[i];
}

/* exp_one for four. */
static inline float32x4_t exp_four(float32x4_t x) {
    x = vminq_f32(vmaxq_f32(x, vdupq_n_f32(-87.0f)), vdupq_n_f32(88.0f));
    const float32x4_t n = vrndnq_f32(vmulq_n_f32(x, 1.44269504f));
    float32x4_t r = vfmaq_n_f32(x, n, -0.693359375f);
    r = vfmaq_n_f32(r, n, 2.12194440e-4f);
    float32x4_t p = vfmaq_n_f32(vdupq_n_f32(1.3981999507e-3f), r, 1.9875691500e-4f);
    p = vfmaq_f32(vdupq_n_f32(8.3334519073e-3f), p, r);
    p = vfmaq_f32(vdupq_n_f32(4.1665795894e-2f), p, r);
    p = vfmaq_f32(vdupq_n_f32(1.6666665459e-1f), p, r);
    p = vfmaq_f32(vdupq_n_f32(5.0000001201e-1f), p, r);
    p = vaddq_f32(vfmaq_f32(r, p, vmulq_f32(r, r)), vdupq_n_f32(1.0f));
    const int32x4_t power = vshlq_n_s32(vaddq_s32(vcvtq_s32_f32(n), vdupq_n_s32(127)), 23);
    return vmulq_f32(p, vreinterpretq_f32_s32(power));
}

static void swiglu_neon(float *y, const float *gate, const float *up, int32_t n) {
    int32_t i = 0;
    for (; i + 4 <= n; i += 4) {
        const float32x4_t g = vld1q_f32(gate + i);
        const float32x4_t e = vaddq_f32(vdupq_n_f32(1.0f), exp_four(vnegq_f32(g)));
        vst1q_f32(y + i, vmulq_f32(vdivq_f32(g, e), vld1q_f32(up + i)));
    }
    for (; i < n; i++)
        y[i] = gate[i] / (1.0f + exp_one(-gate[i])) * up[i];
}

static float softmax_part_neon(float *s, int32_t n, float *sum) {
    float max = s[0];
    int32_t i = 0;
    if (n >= 4) {
        float32x4_t most = vld1q_f32(s);
        for (; i + 4 <= n; i += 4)
            most = vmaxnmq_f32(most, vld1q_f32(s + i));
        max = vmaxnmvq_f32(most);
    }
    for (; i < n; i++)
        max = s[i] > max ? s[i] : max;
    lanes t = zero_lanes();
    for (i = 0; i + LANES <= n; i += LANES)
#pragma GCC unroll 4
        for (int v = 0; v < 4; v++) {
            float *four = s + i + 4 * v;
            const float32x4_t e = exp_four(vsubq_f32(vld1q_f32(four), vdupq_n_f32(max)));
            t.v[v] = vaddq_f32(t.v[v], e);
            vst1q_f32(four, e);
        }
    float l[LANES];
    store_lanes(l, t);
    for (int k = 0; i + k < n; k++) {
        s[i + k] = exp_one(s[i + k] - max);
        l[k] += s[i + k];
    }
    *sum = fold_lanes(l);
    return max;
}

/* ---- activations -------------------------------------------------------------------------- */

static void score_neon(const float *x, const float *norms, int32_t n, float *score) {
    int32_t i = 0;
    for (; i + 4 <= n; i += 4) {
        const float32x4_t a = vabsq_f32(vld1q_f32(x + i));
        vst1q_f32(score + i, norms ? vmulq_f32(a, vld1q_f32(norms + i)) : a);
    }
    for (; i < n; i++)
        score[i] = norms ? fabsf(x[i]) * norms[i] : fabsf(x[i]);
}

/* Where the integers of a sub-block go. */
typedef struct rounded {
    int8_t *hi, *lo;
    int16_t *x;
    float scale;
    int32_t sum;
} rounded;

/* Rounds n values, a multiple of eight. */
static inline void round_values(const float *v, int32_t n, rounded *out) {
    float32x4_t most = vdupq_n_f32(0.0f); /* a NaN gets through */
    for (int32_t i = 0; i < n; i += 4)
        most = vmaxq_f32(most, vabsq_f32(vld1q_f32(v + i)));
    float inverse;
    out->scale = activation_scale(vmaxvq_f32(most), &inverse);
    int32x4_t sum = vdupq_n_s32(0);
    for (int32_t i = 0; i < n; i += 8) {
        /* NaN times zero becomes the integer zero. */
        const int32x4_t a = vcvtnq_s32_f32(vmulq_n_f32(vld1q_f32(v + i), inverse));
        const int32x4_t b = vcvtnq_s32_f32(vmulq_n_f32(vld1q_f32(v + i + 4), inverse));
        const int16x8_t x = vmovn_high_s32(vmovn_s32(a), b);
        vst1q_s16(out->x + i, x);
        vst1_s8(out->hi + i, vrshrn_n_s16(x, 8));
        vst1_s8(out->lo + i, vmovn_s16(x));
        sum = vaddq_s32(sum, vaddq_s32(a, b));
    }
    out->sum = vaddvq_s32(sum);
}

/* A sub-block is gathered, filled up with zeros and rounded in eights; what is stored beyond its
 * last four is overwritten by the next one or never read (the arrays have room). */
static void quantize_neon(const float *x, const int32_t *kept, int32_t n_kept, int32_t n_cols,
                          int32_t sub, wina_quads *out) {
    const int32_t n_sub = (n_cols + sub - 1) / sub;
    int32_t k = 0;
    uint32_t at = 0;
    for (int32_t s = 0; s < n_sub; s++) {
        float v[WINA_BLOCK];
        int32_t n = 0, end = (s + 1) * sub;
        for (; k < n_kept && kept[k] < end; k++, n++) {
            v[n] = x[kept[k]];
            out->col[at + (uint32_t)n] = (uint8_t)(kept[k] % WINA_BLOCK);
        }
        for (int32_t i = n; i % 4 != 0; i++)
            out->col[at + (uint32_t)i] = out->col[at + (uint32_t)n - 1];
        for (int32_t i = n; i % 8 != 0; i++)
            v[i] = 0.0f;
        rounded to = {.hi = out->hi + at, .lo = out->lo + at, .x = out->x + at};
        round_values(v, (n + 7) / 8 * 8, &to);
        out->first[s] = at / 4;
        out->scale[s] = to.scale;
        out->sum[s] = to.sum;
        at += (uint32_t)(n + 3) / 4 * 4;
    }
    out->first[n_sub] = at / 4;
}

static void quantize_row_neon(const wina_batch *b, int32_t token, int which) {
    const int32_t sub = which ? 16 : 32, n_sub = (int32_t)(b->stride / sub);
    for (int32_t s = 0; s < n_sub; s++) {
        const int64_t at = wina_batch_at(b, s * sub / WINA_BLOCK, token) + s * sub % WINA_BLOCK;
        const int64_t i = wina_batch_sub(b, s, token);
        rounded to = {.hi = b->hi[which] + at, .lo = b->lo[which] + at, .x = b->x16[which] + at};
        round_values(b->x + at, sub, &to);
        b->scale[which][i] = to.scale;
        b->sum[which][i] = to.sum;
    }
}

/* ---- the table ---------------------------------------------------------------------------- */

void wina_kernels_init_neon(wina_kernels *k) {
    fill_table(k, "neon");
    k->gemv = wina_gemv_neon;
    k->gemm = wina_gemm_neon;
    k->quantize = quantize_neon;
    k->quantize_row = quantize_row_neon;
    k->fill = wina_fill_ops_neon;
    k->score = score_neon;
    k->rms_norm = rms_norm_neon;
    k->swiglu = swiglu_neon;
    k->attend_dots = wina_attend_dots_neon;
    k->attend_add = wina_attend_add_neon;
    k->softmax_part = softmax_part_neon;
    k->cache_load[WINA_CACHE_F16] = wina_load_f16_neon;
    k->cache_load[WINA_CACHE_Q8_0] = wina_load_q8_0_neon;
    k->cache_store[WINA_CACHE_F16] = wina_store_f16_neon;
}
