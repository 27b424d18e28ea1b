/* budget: how many inputs each group keeps, when all groups together are to keep a given share of
 * the bytes. A budget is a kept fraction per item (a group of a layer, or a projection). Only its
 * shape matters: it is moved to the wanted share by adding one number to the log-odds of every
 * item's sparsity, which keeps fractions inside (0, 1] and leaves dense items dense. */
#ifndef WINA_BUDGET_H
#define WINA_BUDGET_H

#include <stdint.h>

/* Inputs kept of n at a fraction in (0, 1]: at least one, rounded half up. */
int32_t wina_budget_count(double kept, int32_t n);

/* Fraction between a at position x = 0 and b at x = 1, straight in log-odds of the sparsity. */
float wina_budget_blend(float a, float b, double x);

/* Position of the sparsity `at` between low and high, on the same scale: 0 at low, 1 at high. */
double wina_budget_position(double at, double low, double high);

/* Moves the kept fractions of n items, of `bits` each, to a kept share of all bits in (0, 1).
 * Returns the share that was reached; it is larger only if too much is dense. */
double wina_budget_fit(float *kept, const uint64_t *bits, int64_t n, double share);

#endif
