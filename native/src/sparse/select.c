#include "select.h"

#include <math.h>
#include <string.h>

void wina_score(const float *x, const float *norms, int32_t n, float *score) {
    if (norms)
        for (int32_t i = 0; i < n; i++)
            score[i] = fabsf(x[i]) * norms[i];
    else
        for (int32_t i = 0; i < n; i++)
            score[i] = fabsf(x[i]);
}

void wina_score_gate(const float *gate, int32_t n, float *score) {
    for (int32_t i = 0; i < n; i++)
        score[i] = fabsf(gate[i] / (1.0f + expf(-gate[i])));
}

/* Among n_candidates bit patterns that agree above `shift`, the n_keep-th largest. */
static uint32_t nth_largest(uint32_t *bits, int32_t n, int32_t shift, int32_t *n_keep) {
    while (shift > 0) {
        int32_t step = shift >= 10 ? 10 : shift;
        uint32_t mask = (1u << step) - 1;
        int32_t count[1 << 10] = {0};
        shift -= step;
        for (int32_t i = 0; i < n; i++)
            count[bits[i] >> shift & mask]++;
        uint32_t bin = mask;
        while (count[bin] < *n_keep)
            *n_keep -= count[bin--];
        int32_t m = 0;
        for (int32_t i = 0; i < n; i++)
            if ((bits[i] >> shift & mask) == bin)
                bits[m++] = bits[i];
        n = m;
    }
    return bits[0];
}

void wina_select(const float *score, int32_t n, int32_t n_keep, int32_t *kept, uint32_t *scratch) {
    if (n_keep >= n) {
        for (int32_t i = 0; i < n; i++)
            kept[i] = i;
        return;
    }
    enum { SHIFT = 20, BINS = 1 << 11 };
    int32_t count[BINS] = {0};
    for (int32_t i = 0; i < n; i++) {
        uint32_t bits;
        memcpy(&bits, &score[i], 4);
        count[bits >> SHIFT & (BINS - 1)]++;
    }
    int32_t left = n_keep;
    uint32_t bin = BINS - 1;
    while (count[bin] < left)
        left -= count[bin--];
    int32_t n_candidates = 0;
    for (int32_t i = 0; i < n; i++) {
        uint32_t bits;
        memcpy(&bits, &score[i], 4);
        scratch[n_candidates] = bits & 0x7fffffff;
        n_candidates += (bits >> SHIFT & (BINS - 1)) == bin;
    }
    /* `left` becomes the number of scores equal to the threshold that are kept. */
    uint32_t threshold = nth_largest(scratch, n_candidates, SHIFT, &left);
    int32_t m = 0;
    for (int32_t i = 0; i < n && m < n_keep; i++) {
        uint32_t bits;
        memcpy(&bits, &score[i], 4);
        bits &= 0x7fffffff;
        int32_t tie = bits == threshold && left > 0;
        left -= tie;
        kept[m] = i;
        m += bits > threshold || tie;
    }
}

int32_t wina_select_from(const float *score, int32_t n, float threshold, int32_t *kept) {
    int32_t m = 0, best = 0;
    for (int32_t i = 0; i < n; i++) {
        kept[m] = i;
        m += score[i] >= threshold;
        best = score[i] > score[best] ? i : best;
    }
    if (m == 0)
        kept[m++] = best;
    return m;
}
