#include "quantize.h"

#include <math.h>
#include <string.h>

enum { LANES = 8, N_POLISH = 4 };

/* To the nearest integer, ties to even, |v| < 2^22: adding 1.5 * 2^23 leaves no bits below one. */
static inline float round_near(float v) {
    const float magic = 12582912.0f;
    return (v + magic) - magic;
}

static inline float clamp(float v, float top) {
    v = v < 0 ? 0 : v;
    return v > top ? top : v;
}

/* Sums over a part (a multiple of LANES) go into partial sums that are joined in a fixed order. */
static double join(const float lanes[LANES]) {
    float half[LANES / 2];
    for (int k = 0; k < LANES / 2; k++)
        half[k] = lanes[k] + lanes[k + LANES / 2];
    return (double)(half[0] + half[2]) + (double)(half[1] + half[3]);
}

/* The sums that least squares needs: of w, w x, w x^2, and for integers q of w q, w q^2, w x q. */
typedef struct sums {
    double w, x, xx, q, qq, xq;
} sums;

static void sum_weights(const wina_quantize_part *p, sums *s) {
    float w[LANES] = {0}, x[LANES] = {0}, xx[LANES] = {0};
    for (int i = 0; i < p->n; i += LANES)
        for (int k = 0; k < LANES; k++) {
            float wx = p->w[i + k] * p->x[i + k];
            w[k] += p->w[i + k];
            x[k] += wx;
            xx[k] += wx * p->x[i + k];
        }
    s->w = join(w);
    s->x = join(x);
    s->xx = join(xx);
}

/* q = the nearest integers to (x - low) * inverse in 0..top, less shift, and their sums. */
static void choose(const wina_quantize_part *p, float inverse, float low, float top, float shift,
                   float *q, sums *s) {
    float a[LANES] = {0}, b[LANES] = {0}, c[LANES] = {0};
    for (int i = 0; i < p->n; i += LANES)
        for (int k = 0; k < LANES; k++) {
            float own = clamp(round_near(inverse * (p->x[i + k] - low)), top) - shift;
            float wq = p->w[i + k] * own;
            q[i + k] = own;
            a[k] += wq;
            b[k] += wq * own;
            c[k] += wq * p->x[i + k];
        }
    s->q = join(a);
    s->qq = join(b);
    s->xq = join(c);
}

static double error_of(const wina_quantize_part *p, const float *q, float scale, float low) {
    float e[LANES] = {0};
    for (int i = 0; i < p->n; i += LANES)
        for (int k = 0; k < LANES; k++) {
            float d = scale * q[i + k] + low - p->x[i + k];
            e[k] += p->w[i + k] * d * d;
        }
    return join(e);
}

typedef struct fit {
    double scale, low, error;
    float q[WINA_QUANTIZE_PART];
} fit;

/* Takes what least squares makes of integers q if that is better than *best. */
static int improve(const wina_quantize_part *p, const sums *s, int low_above, const float *q,
                   fit *best) {
    double det = s->w * s->qq - s->q * s->q;
    if (det <= 1e-9 * s->w * s->qq)
        return 0;
    double a = (s->w * s->xq - s->x * s->q) / det;
    double b = (s->qq * s->x - s->q * s->xq) / det;
    if (b > 0 && !low_above) {
        b = 0;
        a = s->xq / s->qq;
    }
    /* At its minimum the sum of squares is what the fit does not explain. */
    double error = s->xx - a * s->xq - b * s->x;
    if (a <= 0 || error >= best->error)
        return 0;
    best->error = error;
    best->scale = a;
    best->low = b;
    memcpy(best->q, q, (size_t)p->n * sizeof *q);
    return 1;
}

void wina_quantize_affine(const wina_quantize_part *p, int top, int low_above, float *scale,
                          float *low, uint8_t *q) {
    float least = p->x[0], most = p->x[0], trial[WINA_QUANTIZE_PART];
    for (int i = 1; i < p->n; i++) {
        least = p->x[i] < least ? p->x[i] : least;
        most = p->x[i] > most ? p->x[i] : most;
    }
    if (!low_above && least > 0)
        least = 0;
    const float span = most - least;
    fit best = {.low = (double)least, .error = INFINITY};
    if (span > 0 && isfinite((float)top / span)) {
        sums s;
        sum_weights(p, &s);
        best.scale = (double)span / top;
        choose(p, (float)top / span, least, (float)top, 0, best.q, &s);
        best.error = error_of(p, best.q, (float)best.scale, least);
        improve(p, &s, low_above, best.q, &best);
        /* Steps a little wider or narrower than the range: outliers may be cut. */
        for (int step = -10; step <= 12; step += 2) {
            float inverse = ((float)top + 0.1f * (float)step) / span;
            choose(p, inverse, least, (float)top, 0, trial, &s);
            improve(p, &s, low_above, trial, &best);
        }
        /* Integers for the scale and the scale for the integers, while that helps. */
        for (int i = 0; i < N_POLISH; i++) {
            choose(p, (float)(1 / best.scale), (float)best.low, (float)top, 0, trial, &s);
            if (!improve(p, &s, low_above, trial, &best))
                break;
        }
    }
    *scale = (float)best.scale;
    *low = (float)best.low;
    for (int i = 0; i < p->n && q; i++)
        q[i] = (uint8_t)best.q[i];
}

void wina_quantize_symmetric(const wina_quantize_part *p, int half, float *scale, uint8_t *q) {
    const float top = (float)(2 * half - 1), middle = (float)half;
    float peak = 0, trial[WINA_QUANTIZE_PART];
    fit best = {.error = 0}; /* here: less than zero by what the fit explains */
    sums s;
    for (int i = 0; i < p->n; i++)
        peak = fabsf(p->x[i]) > fabsf(peak) ? p->x[i] : peak;
    /* One side has one integer more: the largest weight gets it, or the other side does. */
    const int step = half > 16 ? 3 : 1;
    for (int sign = -1; sign <= 1 && peak != 0 && isfinite((float)half / peak); sign += 2)
        for (int i = -9; i <= 9; i += step) {
            float inverse = (float)sign * (middle + 0.1f * (float)i) / peak;
            choose(p, inverse, -middle / inverse, top, middle, trial, &s);
            if (s.qq <= 0 || -s.xq * s.xq / s.qq >= best.error)
                continue;
            best.error = -s.xq * s.xq / s.qq;
            best.scale = s.xq / s.qq;
            memcpy(best.q, trial, (size_t)p->n * sizeof *trial);
        }
    for (int i = 0; i < N_POLISH && best.scale != 0; i++) {
        float inverse = (float)(1 / best.scale);
        choose(p, inverse, -middle / inverse, top, middle, trial, &s);
        if (s.qq <= 0 || -s.xq * s.xq / s.qq >= best.error)
            break;
        best.error = -s.xq * s.xq / s.qq;
        best.scale = s.xq / s.qq;
        memcpy(best.q, trial, (size_t)p->n * sizeof *trial);
    }
    *scale = (float)best.scale;
    for (int i = 0; i < p->n && q; i++)
        q[i] = (uint8_t)(best.q[i] + middle);
}

double wina_quantize_nearest(const wina_quantize_part *p, int top, float scale, float low,
                             uint8_t *q) {
    float chosen[WINA_QUANTIZE_PART] = {0};
    const float inverse = scale != 0 ? 1 / scale : 0;
    sums s;
    if (isfinite(inverse))
        choose(p, inverse, low, (float)top, 0, chosen, &s);
    for (int i = 0; i < p->n && q; i++)
        q[i] = (uint8_t)chosen[i];
    return error_of(p, chosen, scale, low);
}
