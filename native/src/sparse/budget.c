#include "budget.h"

#include <math.h>

int32_t wina_budget_count(double kept, int32_t n) {
    int32_t count = (int32_t)floor(kept * n + 0.5);
    return count < 1 ? 1 : count > n ? n : count;
}

/* The fraction after its sparsity's odds were multiplied; 1 stays 1. */
static double shifted(double kept, double factor) {
    return kept / (kept + (1 - kept) * factor);
}

float wina_budget_blend(float a, float b, double x) {
    if (a >= 1 || b >= 1) /* no odds: a dense end counts as it is */
        return (float)((1 - x) * (double)a + x * (double)b);
    double odds_a = (1 - (double)a) / (double)a, odds_b = (1 - (double)b) / (double)b;
    return (float)(1 / (1 + exp((1 - x) * log(odds_a) + x * log(odds_b))));
}

double wina_budget_position(double at, double low, double high) {
    double a = log(low / (1 - low)), b = log(high / (1 - high));
    return (log(at / (1 - at)) - a) / (b - a);
}

static double share_at(const float *kept, const uint64_t *bits, int64_t n, double factor) {
    double part = 0, all = 0;
    for (int64_t i = 0; i < n; i++) {
        part += (double)bits[i] * shifted((double)kept[i], factor);
        all += (double)bits[i];
    }
    return part / all;
}

double wina_budget_fit(float *kept, const uint64_t *bits, int64_t n, double share) {
    double low = -40, high = 40; /* logarithm of the factor; the share falls as it rises */
    for (int i = 0; i < 60; i++) {
        double middle = (low + high) / 2;
        if (share_at(kept, bits, n, exp(middle)) > share)
            low = middle;
        else
            high = middle;
    }
    for (int64_t i = 0; i < n; i++)
        kept[i] = (float)shifted((double)kept[i], exp(high));
    return share_at(kept, bits, n, 1);
}
